"""Two engines of each kind that can hand KV to each other, kept for a whole module: vLLM takes seconds to start."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.contract.engine_subjects import Subject, make_config, make_context, make_subject_engine, start_subject

VLLM = pytest.param("vllm", marks=[pytest.mark.real, pytest.mark.vllm])


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to load; made in a child, since PyTorch's imports warn."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    code = "import pathlib, sys; from hpcserve.engine import tiny_model; tiny_model.make_tiny_model(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(directory)], check=True, timeout=120)
    return directory


@pytest.fixture(scope="module", params=["mock", VLLM])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(
    kind: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[list[Subject]]:
    model = request.getfixturevalue("tiny_model") if kind == "vllm" else None
    scratch = tmp_path_factory.mktemp("scratch")
    config = make_config(kind, model)
    engines = [make_subject_engine(config, make_context(name, scratch)) for name in ("a-0-1", "b-0-1")]
    try:
        yield await asyncio.gather(*(start_subject(engine) for engine in engines))
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines))


@pytest.fixture
def one(pair: list[Subject]) -> Subject:
    return pair[0]


@pytest.fixture
def two(pair: list[Subject]) -> Subject:
    return pair[1]
