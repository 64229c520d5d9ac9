"""vLLM engines with processes of their own, where MPI cannot be: their KV goes through the couriers of their ranks."""

from __future__ import annotations

import asyncio
import importlib.util
import random
import shutil
from pathlib import Path

import pytest

from tests.contract.engine_subjects import tokens
from tests.contract.test_kv_between_engines import _request, _serve, running

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.timeout(400)]

_random = random.Random(5)


async def test_engines_in_processes_of_their_own_move_kv_by_mpi(tiny_model: Path, tmp_path: Path) -> None:
    if shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None:
        pytest.skip("no MPI")
    prompts = [[_random.randrange(300, 2000) for _ in range(length)] for length in (50, 700, 3000, 1500)]
    async with running("mpi", tiny_model, tmp_path, in_process=False) as (prefill, decode):
        assert prefill.info.kv_transport == "mpi"
        assert any("two more copies" in warning for warning in prefill.info.warnings)
        expected = [tokens(await decode.run(_request(prompt, cache_salt="alone"))) for prompt in prompts]
        served = await asyncio.gather(*(_serve(prefill, decode, prompt, salt="moved") for prompt in prompts))
        assert [tokens(outputs) for outputs in served] == expected
        assert all(outputs[0].pulled_tokens >= len(each) - 1 for outputs, each in zip(served, prompts, strict=True))
        assert (await decode.load()).pull_failures_total == 0
