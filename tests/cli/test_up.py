"""`hpcserve up` against a deployment that plays a script."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path

import msgspec
import pytest
from click.testing import Result
from fake_serve import LOADING, PENDING, SERVING, FakeServe, make_status, make_worker

from hpcserve.cli import session
from hpcserve.errors import ClusterError, ConfigError, DeploymentError, HpcserveError
from hpcserve.types import Phase, WorkerState

UP = ("up", "--engine", "mock", "--cluster", "local")
READY = make_worker("both-0-a1", WorkerState.READY, host="gpu1")


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def errors(result: Result) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


def test_detached_it_prints_one_json_object_and_leaves_it_running(run, home: Path) -> None:
    fake = FakeServe([[PENDING, LOADING, SERVING, None]])
    result = run(*UP, "--name", "demo", "--detach", "--json", serve=fake)
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    shown = json.loads(line)
    state_dir = home / "state" / "demo"
    assert shown["endpoint"] == "http://127.0.0.1:8123/v1"
    assert shown["key_file"] == str(state_dir / "api-key")
    assert shown["state_dir"] == str(state_dir)
    assert shown["dashboard"] == "http://127.0.0.1:8787/status"
    assert shown["frontend_pid"] == 4242
    (worker,) = shown["workers"]
    expected = {"id": "both-0-a1", "pool": "both", "role": "both", "state": "ready", "job_id": "17", "host": "gpu1"}
    assert expected.items() <= worker.items()
    assert fake.calls == ["start", "watch"]


def test_without_a_terminal_every_change_is_a_line(run) -> None:
    fake = FakeServe([[PENDING, PENDING, LOADING, SERVING]])
    lines = [line.split("] ", 1)[-1] for line in run(*UP, "--detach", serve=fake).stderr.splitlines()]
    assert [line for line in lines if not line.startswith("fake")] == [
        "both-0-a1  job 17  pending (Resources)",
        "warning: RDMA is not there: sockets are used",
        "default: starting, 0 of 1 workers READY",
        "both-0-a1  job 17  on gpu1  loading",
        "both-0-a1  job 17  on gpu1  READY",
        "default: serving, 1 of 1 workers READY",
    ]


def test_the_banner_says_how_to_use_it_without_a_key_on_ones_own_machine(run) -> None:
    result = run(*UP, "--detach", serve=FakeServe([[SERVING]]))
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if line)
    assert rows["endpoint"] == "http://127.0.0.1:8123/v1"
    assert rows["key"] == "none needed"
    assert rows["laptop"].startswith("ssh -N -L 8123:127.0.0.1:8123 -L 8787:127.0.0.1:8787 ")
    assert rows["laptop"].endswith("@login1")
    assert rows["stop"] == "hpcserve down --name default"
    assert "Authorization" not in result.stdout
    assert "no key is asked for" not in result.stderr


def test_the_curl_line_reads_the_key_from_its_file(run, home: Path) -> None:
    result = run(*UP, "--detach", "--set", "security.auth=on", serve=FakeServe([[SERVING]]))
    (line,) = [line for line in result.stdout.splitlines() if "curl " in line]
    words = shlex.split(line)
    assert words[words.index("-H") + 1] == f"@{home}/state/default/api-key.header"
    assert json.loads(words[-1])["model"] == "mock"
    assert (home / "state/default/api-key").read_text().strip() not in result.output


def test_an_endpoint_that_answers_is_held_back_for_workers_that_are_coming_up(run) -> None:
    some = msgspec.structs.replace(make_status(Phase.SERVING, READY), wanted={"both": 2})
    both = msgspec.structs.replace(some, workers=(READY, make_worker("both-1-b2", WorkerState.READY)))
    result = run(*UP, "--detach", "--json", serve=FakeServe([[some, both, None]]))
    assert len(json.loads(result.stdout)["workers"]) == 2


def test_an_endpoint_that_answers_is_not_held_back_for_ever(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SETTLE_S", 0.01)
    some = msgspec.structs.replace(make_status(Phase.SERVING, READY), wanted={"both": 2})
    result = run(*UP, "--detach", "--json", serve=FakeServe([[some, None]]))
    assert result.exit_code == 0
    assert len(json.loads(result.stdout)["workers"]) == 1


def test_an_endpoint_open_to_others_is_warned_about(run) -> None:
    result = run(*UP, "--detach", "--host", "0.0.0.0", "--no-auth", serve=FakeServe([[SERVING]]))
    assert "warning: no key is asked for: whoever reaches http://127.0.0.1:8123/v1 can use it" in result.stderr
    on_slurm = FakeServe([[make_status(Phase.SERVING, *SERVING.workers, cluster="slurm")]])
    assert "warning: no key is asked for" in run(*UP, "--detach", "--no-auth", serve=on_slurm).stderr


def test_a_dry_run_prints_every_script_and_starts_nothing(run) -> None:
    fake = FakeServe([[]])
    result = run(*UP, "--nodes", "2", "--dry-run", serve=fake)
    assert result.stdout == "# ---- both-0\n#!/bin/sh\nrun 0\n\n# ---- both-1\n#!/bin/sh\nrun 1\n\n"
    assert fake.calls == ["render_jobs"]
    as_json = run(*UP, "--dry-run", "--json", serve=fake)
    assert json.loads(as_json.stdout) == [{"worker": "both-0", "script": "#!/bin/sh\nrun 0\n"}]


def test_interrupted_while_serving_it_stops_in_good_order(run) -> None:
    fake = FakeServe([[SERVING], [SERVING, interrupt, None]])
    result = run(*UP, serve=fake)
    assert result.exit_code == 0
    assert fake.calls[-2:] == ["stop force=False", "stopped"]


def test_one_interrupt_forces_nothing_however_long_the_stop_takes(run) -> None:
    slowly = [lambda: None] * 20
    fake = FakeServe([[SERVING], [SERVING, interrupt, None]], stops=[slowly])
    assert run(*UP, serve=fake).exit_code == 0
    assert fake.calls[-2:] == ["stop force=False", "stopped"]


def test_a_second_interrupt_forces(run) -> None:
    fake = FakeServe([[SERVING], [SERVING, interrupt, None]], stops=[[interrupt, None], []])
    result = run(*UP, serve=fake)
    assert result.exit_code == 130
    assert fake.calls[-3:] == ["stop force=False", "stop force=True", "stopped"]


def test_a_third_interrupt_gives_up_and_says_what_to_do(run) -> None:
    fake = FakeServe([[SERVING], [interrupt, None]], stops=[[interrupt, None], [interrupt, None]])
    result = run(*UP, serve=fake)
    assert result.exit_code == 130
    assert "jobs may be left: hpcserve down --force --name default" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_while_coming_up_it_stops_everything(run, number: signal.Signals) -> None:
    fake = FakeServe([[PENDING, lambda: signal.raise_signal(number), None]])
    result = run(*UP, serve=fake)
    assert result.exit_code == 130
    assert fake.calls[-2:] == ["stop force=False", "stopped"]
    assert result.stdout == ""


def test_signals_are_pythons_again_afterwards(run) -> None:
    run(*UP, "--detach", serve=FakeServe([[SERVING]]))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_when_every_worker_fails_it_shows_the_log_and_stops_everything(run, home: Path) -> None:
    failed = make_status(Phase.STARTING, make_worker("both-0-a1", WorkerState.FAILED, "out of memory"))

    def write_log() -> None:
        (home / "state/default/logs/both-0-a1.log").write_text("loading\nCUDA out of memory\n")

    fake = FakeServe([[PENDING, write_log, failed, None]])
    result = run(*UP, serve=fake)
    assert result.exit_code == 6
    assert errors(result) == ["error: every worker failed; both-0-a1: out of memory"]
    assert "    CUDA out of memory" in result.stderr
    assert fake.calls[-1] == "stopped"


def test_a_failed_worker_among_others_is_waited_for(run) -> None:
    workers = (make_worker("both-0-a1", WorkerState.FAILED, "node died"), make_worker("both-1-b2", WorkerState.LOADING))
    fake = FakeServe([[make_status(Phase.STARTING, *workers), SERVING]])
    assert run(*UP, "--nodes", "2", "--detach", serve=fake).exit_code == 0


def test_a_head_that_gives_up_is_a_failed_start(run) -> None:
    fake = FakeServe([[make_status(Phase.FAILED, detail="the frontend cannot be started")]])
    result = run(*UP, "--detach", serve=fake)
    assert (result.exit_code, errors(result)) == (6, ["error: the frontend cannot be started"])
    assert fake.calls[-1] == "stopped"


def test_a_head_that_never_comes_shows_its_log(run, home: Path) -> None:
    def write_log() -> None:
        (home / "state/default/logs/head.log").write_text("ImportError: no module named dask\n")

    fake = FakeServe([[write_log, DeploymentError("the head is not running")]])
    result = run(*UP, "--detach", serve=fake)
    assert (result.exit_code, errors(result)) == (6, ["error: the head is not running"])
    assert "ImportError: no module named dask" in result.stderr


def test_a_bug_while_coming_up_leaves_nothing_running_either(run) -> None:
    def bug() -> None:
        raise ZeroDivisionError("oh")

    fake = FakeServe([[bug]])
    result = run(*UP, "--detach", serve=fake)
    assert result.exit_code == 1
    assert errors(result)[0].startswith("error: internal: ZeroDivisionError: oh")
    assert fake.calls[-1] == "stopped"


def test_it_gives_up_after_the_time_limit(run) -> None:
    fake = FakeServe([[PENDING, None]])
    result = run(*UP, "--timeout", "0.05", "--detach", serve=fake)
    assert result.exit_code == 6
    assert errors(result) == ["error: not serving after 0.05 s: both-0-a1 pending (Resources)"]
    assert fake.calls[-1] == "stopped"


def test_the_default_limit_is_lifted_for_a_slurm_queue_that_somebody_watches(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    limits: list[float | None] = []
    real = asyncio.Timeout.reschedule
    monkeypatch.setattr(asyncio.Timeout, "reschedule", lambda self, when: (limits.append(when), real(self, when)))
    pending = make_status(Phase.STARTING, make_worker("both-0-a1", WorkerState.PENDING), cluster="slurm")
    run(*UP, "--detach", serve=FakeServe([[pending, SERVING]]))
    assert None not in limits
    run(*UP, serve=FakeServe([[pending, SERVING], [interrupt, None]]))
    assert None in limits


def test_a_head_that_dies_while_serving_is_reported_and_cleaned_up_after(run) -> None:
    dead = make_status(Phase.FAILED, detail="killed")
    result = run(*UP, serve=(fake := FakeServe([[SERVING], [SERVING, dead]])))
    assert result.exit_code == 5
    assert errors(result) == ["error: the head of 'default' ended: killed"]
    assert fake.calls[-2:] == ["stop force=True", "stopped"]


def test_a_head_that_dies_without_a_word_gets_a_successor_which_is_held_as_well(run) -> None:
    left = "1 worker and the frontend (pid 7) are"
    fake = FakeServe([[SERVING], [SERVING], [SERVING], [SERVING, interrupt, None]], left=left)
    result = run(*UP, serve=fake)
    assert result.exit_code == 0
    assert "had died" in result.stderr
    assert f"{left} still there: a new head takes over" in result.stderr
    assert fake.calls.count("start") == 2
    assert fake.calls[-2:] == ["stop force=False", "stopped"]


def test_what_was_taken_over_is_left_as_it_is_where_it_does_not_come_up(run) -> None:
    fake = FakeServe([[LOADING, None]], left="2 workers are")
    result = run(*UP, "--detach", "--timeout", "0.05", serve=fake)
    assert result.exit_code == 6
    assert "is left as it is" in result.stderr
    assert not [call for call in fake.calls if call.startswith("stop")]


def test_stopped_from_elsewhere_is_no_error(run) -> None:
    fake = FakeServe([[SERVING], [SERVING, make_status(Phase.STOPPED)]])
    result = run(*UP, serve=fake)
    assert result.exit_code == 0
    assert "default was stopped from elsewhere" in result.stderr


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (ConfigError("model.path: /m does not exist"), 2),
        (ClusterError("no partition 'gpu'"), 4),
        (DeploymentError("'default' is already running"), 5),
    ],
)
def test_refusals_are_one_line_and_an_exit_code(run, error: HpcserveError, exit_code: int) -> None:
    fake = FakeServe([[]], refuses=error)
    result = run(*UP, serve=fake)
    assert (result.exit_code, errors(result)) == (exit_code, [f"error: {error.message}"])
    assert fake.calls == ["start"]


def test_wrong_configuration_is_a_line_a_mistake(run) -> None:
    result = run(*UP, "--set", "router.polcy=kv", "--set", "frontend.port=x", serve=FakeServe([[]]))
    assert result.exit_code == 2
    assert len(errors(result)) == 2


def test_the_flags_reach_the_configuration(run) -> None:
    given = ("--partition", "gpu", "--account", "a1", "--time", "1:00:00", "--port", "0", "--policy", "random")
    result = run("config", "show", "--json", "--engine", "mock", "--cluster", "slurm", "--decode", "3", *given)
    shown = json.loads(result.stdout)
    slurm = shown["config"]["cluster"]["slurm"]
    assert (slurm["partition"], slurm["account"], slurm["walltime"]) == ("gpu", "a1", "1:00:00")
    assert shown["config"]["pools"]["decode"] == 3
    assert (shown["config"]["frontend"]["port"], shown["config"]["router"]["policy"]) == (0, "random")
    assert shown["origins"]["cluster.slurm.walltime"] == "--walltime"


def test_the_choices_of_the_flags_are_those_of_the_configuration() -> None:
    from hpcserve.cli import options
    from hpcserve.config.schema import leaves

    choices = {".".join(path): leaf.choices for path, leaf in leaves().items()}
    assert choices["engine.kind"] == options.ENGINES
    assert choices["cluster.kind"] == options.CLUSTERS
    assert choices["pools.mode"] == options.MODES
    assert choices["router.policy"] == options.POLICIES
