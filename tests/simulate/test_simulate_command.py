import json
import sys

import pytest
from click.testing import CliRunner

from hpcserve.cli import main


@pytest.fixture
def simulate(excerpt):
    def run(*args, trace=excerpt):
        return CliRunner().invoke(main, ["simulate", "--trace", str(trace), *args])

    return run


def test_json_has_the_documented_keys(simulate):
    done = simulate("--workers", "2", "--requests", "50", "--slo-ttft-ms", "500", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    for name in ("ttft_ms", "itl_ms", "e2e_ms"):
        assert set(report[name]) == {"mean", "p50", "p90", "p99"}
        assert report[name]["p50"] <= report[name]["p90"] <= report[name]["p99"]
    assert report["num_requests"] == 50
    assert report["workers"] == "2"
    assert report["policy"] == "kv"
    assert 0 < report["slo_attainment"] < 1
    assert report["worker_hours"] == pytest.approx(2 * report["duration_s"] / 3600)
    assert {"prefix_hit_ratio", "goodput", "kv_pulled_tokens"} <= set(report)


def test_the_table_shows_latencies_and_totals(simulate):
    done = simulate("--prefill", "1", "--decode", "2", "--requests", "20", "--policy", "round_robin")
    assert done.exit_code == 0, done.output
    for text in ("TTFT", "p99", "prefix hits", "KV pulled", "worker-hours", "round_robin, 1 prefill + 2 decode"):
        assert text in done.output


def test_the_trace_may_come_from_the_environment(excerpt):
    done = CliRunner().invoke(main, ["simulate", "--requests", "3", "--json"], env={"HPCSERVE_TRACE": str(excerpt)})
    assert json.loads(done.output)["num_requests"] == 3


def test_without_a_trace_it_says_what_to_give(monkeypatch):
    monkeypatch.delenv("HPCSERVE_TRACE", raising=False)
    done = CliRunner().invoke(main, ["simulate"])
    assert done.exit_code == 2
    assert "give --trace FILE, or set HPCSERVE_TRACE" in done.output


def test_neither_environment_nor_a_file_nearby_changes_results(simulate, tmp_path, monkeypatch):
    (tmp_path / "hpcserve.yaml").write_text("router: {policy: random}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPCSERVE_ROUTER__POLICY", "random")
    assert json.loads(simulate("--requests", "3", "--json").output)["policy"] == "kv"


def test_a_named_file_and_keys_of_the_router_count(simulate, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("router: {policy: random}\n")
    from_file = simulate("--requests", "40", "--workers", "4", "--json", "--config", str(file))
    seeded = simulate("--requests", "40", "--workers", "4", "--json", "--config", str(file), "--set", "router.seed=7")
    assert json.loads(from_file.output)["policy"] == "random"
    assert json.loads(from_file.output)["ttft_ms"] != json.loads(seeded.output)["ttft_ms"]


def test_a_sweep_prints_its_answer(simulate):
    args = ("--requests", "30", "--workers", "4", "--sweep", "--slo-ttft-ms", "2000")
    table = simulate(*args)
    assert table.exit_code == 0, table.output
    assert "smallest:" in table.output
    result = json.loads(simulate(*args, "--json").output)
    assert result["smallest"]["meets_slo"]
    assert result["smallest"]["node_hours"] > 0


def test_fitted_coefficients_replace_the_published_ones(simulate, tmp_path):
    timing = tmp_path / "fit.json"
    timing.write_text('{"prefill_ms": [0, 0.03, 33], "decode_ms": [0, 0, 11.5]}')
    published = json.loads(simulate("--requests", "1", "--json").output)
    fitted = json.loads(simulate("--requests", "1", "--json", "--timing", str(timing)).output)
    assert fitted["ttft_ms"]["mean"] == pytest.approx(6758 * 0.03 + 33)
    assert fitted["itl_ms"]["p50"] == pytest.approx(11.5)
    assert published["itl_ms"]["p50"] != fitted["itl_ms"]["p50"]


def test_kv_size_and_bandwidth_make_the_time_of_a_pull(simulate):
    split = ("--requests", "1", "--prefill", "1", "--decode", "1", "--json")
    fast = json.loads(simulate(*split).output)["ttft_ms"]["mean"]
    slow = json.loads(simulate(*split, "--kv-bandwidth", "5").output)["ttft_ms"]["mean"]
    assert slow - fast == pytest.approx(6758 * 131072 * (1 / 5e9 - 1 / 50e9) * 1000)


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("--workers", "2", "--prefill", "1", "--decode", "1"), "does not go with"),
        (("--prefill", "1"), "come together"),
        (("--block-size", "96"), "does not divide"),
        (("--set", "engine.kind=mock"), "only keys of the router"),
        (("--set", "router.sede=7"), "seed"),
        (("--speed", "0"), "speed"),
        (("--sweep", "--workers", "2"), "--slo-ttft-ms"),
        (("--sweep", "--slo-ttft-ms", "5"), "--workers"),
        (("--timing", "/nowhere.json"), "cannot read the timing model"),
        (("--config", "/nowhere.yaml"), "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(simulate, args, complaint):
    done = simulate(*args)
    assert done.exit_code == 2, done.output
    assert done.output.startswith("error: ")
    assert complaint in done.output


@pytest.mark.parametrize("text", ['{"prefil_ms": [1, 2, 3]}', '{"prefill_ms": [1, 2]}', "[]", '{"min_decode_ms": 0}'])
def test_a_wrong_timing_model_is_an_error(simulate, tmp_path, text):
    timing = tmp_path / "fit.json"
    timing.write_text(text)
    done = simulate("--timing", str(timing))
    assert done.exit_code == 2
    assert "fit.json" in done.output


def test_a_plot_without_matplotlib_says_how_to_get_it(simulate, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = simulate("--plot", str(tmp_path / "out.png"))
    assert done.exit_code == 2
    assert "pip install 'hpcserve[plot]'" in done.output


def test_a_plot_is_a_picture(simulate, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out.png"
    done = simulate("--requests", "50", "--workers", "2", "--plot", str(out))
    assert done.exit_code == 0, done.output
    assert out.read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_cannot_be_written_is_an_error(simulate, tmp_path):
    pytest.importorskip("matplotlib")
    done = simulate("--requests", "2", "--plot", str(tmp_path / "none" / "out.png"))
    assert done.exit_code == 2
    assert "cannot write the plot" in done.output
