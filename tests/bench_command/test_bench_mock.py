"""Measuring the mock, whose timing is known, in virtual time: what comes out must be what it computes with."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from virtual_time import VirtualLoop

from hpcserve.bench import BenchResult, Effort, bench
from hpcserve.config import Config
from hpcserve.engine.mock.timing import TimingModel
from hpcserve.engine.mock.timing_file import TimingFile, read_timing, write_timing
from hpcserve.errors import ConfigError


def measure(effort: Effort, scratch: Path, **mock: object) -> BenchResult:
    async def run() -> BenchResult:
        return await bench(config, effort, said.append, asyncio.get_running_loop().time)

    said: list[str] = []
    config = Config.model_validate({"engine": {"kind": "mock", "mock": mock}, "cluster": {"scratch": scratch}})
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        result = runner.run(run())
    assert list(scratch.iterdir()) == []
    return result


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> BenchResult:
    return measure(Effort(), tmp_path_factory.mktemp("scratch"), num_kv_blocks=4096)


def test_the_published_polynomials_come_out(result: BenchResult, tmp_path: Path) -> None:
    write_timing(tmp_path / "timing.json", result.to_file())
    fitted, published = read_timing(tmp_path / "timing.json").model(1, 1.0), TimingModel()
    for num_tokens in (64, 300, 1000, 4000, 8192):
        assert fitted.prefill_s(num_tokens) == pytest.approx(published.prefill_s(num_tokens), rel=0.01)
    for share in (0.01, 0.1, 0.3, 0.6, 0.9, 1.0):
        assert fitted.decode_s(share) == pytest.approx(published.decode_s(share), rel=0.02)
    assert result.prefill_error < 0.001
    assert result.decode_error < 0.01


def test_lengths_and_batches_cover_what_the_engine_can_take(result: BenchResult) -> None:
    assert len(result.prefill) == 10
    assert result.prefill[-1].num_tokens == 8192
    assert max(point.share for point in result.decode) > 0.8
    same_share = [point.num_sequences for point in result.decode if 0.3 < point.share < 0.4]
    assert max(same_share) > 4 * min(same_share)
    assert result.warnings == ()


def test_a_pass_is_without_what_a_client_waits_for_besides(result: BenchResult) -> None:
    assert result.ttft_overhead_ms == pytest.approx(0.0, abs=1e-6)


def test_the_file_has_sizes_and_says_what_was_measured(result: BenchResult) -> None:
    file = result.to_file()
    assert (file.num_kv_blocks, file.block_size, file.max_batched_tokens, file.max_num_seqs) == (4096, 32, 8192, 256)
    assert file.kv_bytes_per_token == 131072
    assert file.provenance["engine"] == file.provenance["model"] == "mock"
    assert file.provenance["hpcserve"] == result.version
    assert [point["num_tokens"] for point in file.provenance["prefill"]] == [p.num_tokens for p in result.prefill]


def test_a_mock_that_runs_faster_is_measured_in_its_own_time(tmp_path: Path) -> None:
    quick = measure(Effort(quick=True), tmp_path, num_kv_blocks=2048, speedup=40)
    for point in quick.prefill:
        assert point.pass_ms == pytest.approx(TimingModel().prefill_s(point.num_tokens) * 1000)


def test_a_mock_takes_the_timing_of_an_engine_that_was_measured(tmp_path: Path) -> None:
    timing, scratch = tmp_path / "timing.json", tmp_path / "scratch"
    scratch.mkdir()
    write_timing(timing, TimingFile(prefill_ms=(2e-6, 0.05, 8.0), decode_ms=(0.0, 100.0, 4.0), min_decode_ms=3.0))
    fit = measure(Effort(quick=True), scratch, num_kv_blocks=2048, timing=timing).fit
    assert fit.prefill_ms == pytest.approx((2e-6, 0.05, 8.0), rel=1e-3)
    assert fit.decode_ms[1:] == pytest.approx((100.0, 4.0), rel=0.02)


def test_prompts_are_as_long_as_asked_for_and_as_fit(tmp_path: Path) -> None:
    effort = Effort(quick=True, max_prompt=500, context=100)
    short = measure(effort, tmp_path, num_kv_blocks=512, max_batched_tokens=4096)
    assert short.prefill[-1].num_tokens == 500
    assert all(point.context >= 100 * point.num_sequences for point in short.decode)
    small = measure(Effort(quick=True), tmp_path, num_kv_blocks=64)
    assert small.prefill[-1].num_tokens == 1023, "two prompts share 64 blocks of 32 tokens"


def test_an_engine_that_takes_no_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"speedup is \.inf"):
        measure(Effort(), tmp_path, speedup=float("inf"))


def test_a_cache_too_large_to_fill_in_time_is_filled_in_part_and_it_says_so(tmp_path: Path) -> None:
    result = measure(Effort(quick=True, context=8000), tmp_path, num_kv_blocks=40_000)
    assert 0.05 < max(point.share for point in result.decode) < 0.4
    assert any("extrapolated" in warning for warning in result.warnings)
