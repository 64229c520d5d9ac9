"""/v1/embeddings with a real vLLM that pools: the vectors are those that transformers computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from tests.system.conftest import Deployment

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.timeout(300)]

TEXTS = ["def add(a, b):\n    return a + b\n", "import os", "class Tree:\n" + "    left = right = None\n" * 30]


def by_transformers(model: Path, texts: list[str]) -> list[list[float]]:
    """Return each text's last hidden state at its last token, of length 1."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.AutoModel.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        states = [network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1] for text in texts]
    return [torch.nn.functional.normalize(state, dim=0).tolist() for state in states]


def test_embeddings_of_a_real_engine_are_those_of_transformers(
    deploy: Callable[..., Deployment], tiny_model: Path
) -> None:
    deployment = deploy(
        "--cluster", "local", "--model", str(tiny_model), "--nodes", "1",
        "--set", "model.name=tiny", "--set", "engine.vllm.args.runner=pooling",
    )  # fmt: skip
    with openai.OpenAI(base_url=deployment.endpoint, api_key=deployment.key, max_retries=0) as client:
        answer = client.embeddings.create(model="tiny", input=[*TEXTS, TEXTS[0]])
        as_floats = client.embeddings.create(model="tiny", input=TEXTS[0], encoding_format="float")
        with pytest.raises(openai.BadRequestError, match="use /v1/embeddings"):
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])
    vectors = [each.embedding for each in answer.data]
    for vector, expected in zip(vectors, by_transformers(tiny_model, TEXTS), strict=False):
        assert vector == pytest.approx(expected, abs=1e-3)
        assert math.hypot(*vector) == pytest.approx(1.0, abs=1e-4)
    assert vectors[3] == pytest.approx(vectors[0], abs=1e-5)
    assert as_floats.data[0].embedding == pytest.approx(vectors[0], abs=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    assert as_floats.usage.prompt_tokens < answer.usage.prompt_tokens
