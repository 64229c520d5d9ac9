"""Two engines of each kind that can hand KV to each other, kept for all suites here: vLLM takes seconds to start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.contract.engine_subjects import Subject, make_config, make_context, make_subject_engine, start_subject

VLLM = pytest.param("vllm", marks=[pytest.mark.real, pytest.mark.vllm])


@pytest.fixture(scope="package", params=["mock", VLLM])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest_asyncio.fixture(scope="package", loop_scope="session")
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
