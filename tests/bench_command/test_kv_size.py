import json
from pathlib import Path
from typing import Any

import pytest

from hpcserve.bench.kv_size import kv_bytes_per_token
from hpcserve.bench.prompts import Prompts, vocab_size
from hpcserve.config import Config

LLAMA = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}


@pytest.fixture
def size(tmp_path: Path) -> Any:
    def of(model: dict[str, Any], on_cpu: bool = False, **vllm: Any) -> int | None:
        (tmp_path / "config.json").write_text(json.dumps(model))
        config = {"model": {"path": tmp_path}, "engine": {"vllm": {"args": vllm}}}
        return kv_bytes_per_token(Config.model_validate(config), on_cpu=on_cpu)

    return of


def test_keys_and_values_of_all_layers_count(size: Any) -> None:
    assert size({**LLAMA, "torch_dtype": "bfloat16"}) == 131072  # Llama 3 8B
    assert size({**LLAMA, "torch_dtype": "bfloat16"}, on_cpu=True) == 262144, "float32 on CPUs"
    assert size({**LLAMA, "dtype": "bfloat16"}, kv_cache_dtype="fp8_e4m3") == 65536
    assert size({"text_config": {**LLAMA, "head_dim": 64}, "torch_dtype": "bfloat16"}) == 65536


def test_latent_attention_keeps_one_vector(size: Any) -> None:
    latent = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_hidden_layers": 61, "torch_dtype": "bfloat16"}
    assert size({**LLAMA, **latent}) == 61 * 576 * 2


@pytest.mark.parametrize(
    "odd", [{"sliding_window": 4096}, {"layer_types": ["full_attention", "linear_attention"]}, {"hidden_size": "many"}]
)
def test_a_model_that_is_not_understood_has_no_size(size: Any, odd: dict[str, Any]) -> None:
    assert size({**LLAMA, "torch_dtype": "bfloat16", **odd}) is None


def test_layers_that_are_alike_are_understood(size: Any) -> None:
    alike = {"layer_types": ["full_attention"] * 32, "sliding_window": 4096, "use_sliding_window": False}
    assert size({**LLAMA, "torch_dtype": "bfloat16", **alike}) == 131072


def test_prompts_stay_within_the_vocabulary_and_are_never_alike(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 2048}')
    assert vocab_size(tmp_path) == 2048
    assert vocab_size(None) == vocab_size(tmp_path / "nowhere") == 256
    prompts = Prompts(2048)
    made = [tuple(prompts.request(32, 1).token_ids) for _ in range(200)]
    assert len(set(made)) == 200
    assert max(max(tokens) for tokens in made) < 2048
