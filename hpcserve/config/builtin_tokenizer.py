"""A tokenizer and chat template for deployments without a model directory: one token a byte, and six special tokens.

The mock engine and the frontend both use it when `model.path` is not set. It is not meant for real models.
"""

from __future__ import annotations

import json

SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
"""In the order of their ids, which follow the 256 bytes."""
BUILTIN_BOS = "<|bos|>"
BUILTIN_EOS = "<|eos|>"
NUM_BYTES = 256

BUILTIN_CHAT_TEMPLATE = """\
<|bos|>
{%- for message in messages -%}
{%- if message.role in ("system", "developer") -%}<|system|>
{%- elif message.role == "assistant" -%}<|assistant|>
{%- else -%}<|user|>
{%- endif -%}
{%- if message.content is string -%}{{ message.content }}
{%- elif message.content -%}
{%- for part in message.content -%}{%- if part.type == "text" -%}{{ part.text }}{%- endif -%}{%- endfor -%}
{%- endif -%}
<|end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""


def builtin_tokenizer_json() -> str:
    """Return the text of a `tokenizer.json`: token ids 0 to 255 are the bytes, 256 to 261 the special tokens."""
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [_added(NUM_BYTES + i, token) for i, token in enumerate(SPECIAL_TOKENS)],
            "normalizer": None,
            "pre_tokenizer": _BYTE_LEVEL,
            "post_processor": None,
            "decoder": _BYTE_LEVEL,
            "model": {"type": "BPE", "vocab": {char: byte for byte, char in enumerate(_byte_chars())}, "merges": []},
        },
        ensure_ascii=False,
    )


_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def _byte_chars() -> list[str]:
    """Return the printable stand-in of each byte in GPT-2's byte-level scheme, which the ByteLevel parts expect."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(NUM_BYTES, 2 * NUM_BYTES))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(NUM_BYTES)]


def _added(token_id: int, token: str) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": token, **flags}
