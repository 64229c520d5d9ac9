"""Makes a small language model out of nothing, for machines that cannot download one. Its text means nothing.

A Llama of 4 layers and 256 dimensions with random weights (3.7 M parameters, 15 MB), and a byte-level BPE tokenizer of
2,048 tokens trained on the Python standard library's sources. Every call makes the same weights.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcserve.errors import ConfigError

VOCAB_SIZE = 2048
CONTEXT = 8192  # tokens
_SPECIAL = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>")
_TRAINING_FILES = 60
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def make_tiny_model(directory: Path, extra_tokens: Sequence[str] = ()) -> None:
    """Write config, weights and tokenizer into `directory`, which is made; about 3 s.

    `extra_tokens` are words of the vocabulary, such as the marks that parsers look for; they are not special.
    Raises `ConfigError` where the directory holds something already, or PyTorch and transformers are not installed.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} is not empty; name a new directory for the model", param="directory")
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as err:
        raise ConfigError(
            f"making a model needs {err.name}; install it with: pip install 'hpcserve[cpu]' (or 'hpcserve[gpu]')"
        ) from err
    transformers.utils.logging.disable_progress_bar()
    directory.mkdir(parents=True, exist_ok=True)
    # The template goes into tokenizer_config.json, where readers that know no separate template file look.
    _make_tokenizer(extra_tokens).save_pretrained(directory, save_jinja_files=False)
    _make_weights().save_pretrained(directory)


def _make_tokenizer(extra_tokens: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(extra_tokens),
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:_TRAINING_FILES]
    tokenizer.train([str(path) for path in sources], trainer)
    tokenizer.add_tokens(list(extra_tokens))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    bos, eos, *_ = _SPECIAL
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, model_max_length=CONTEXT)
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def _make_weights() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
        initializer_range=0.1,  # spreads the logits: sampling and greedy decoding differ, ties do not occur
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)
