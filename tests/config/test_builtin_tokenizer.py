import jinja2
import pytest
from tokenizers import Tokenizer

from hpcserve.config.builtin_tokenizer import (
    BUILTIN_CHAT_TEMPLATE,
    NUM_BYTES,
    SPECIAL_TOKENS,
    builtin_tokenizer_json,
)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_str(builtin_tokenizer_json())


def render(messages, add_generation_prompt=True):
    template = jinja2.Environment().from_string(BUILTIN_CHAT_TEMPLATE)
    return template.render(messages=messages, add_generation_prompt=add_generation_prompt)


@pytest.mark.parametrize("text", ["hello  world\n", "Grüße, 世界 🌍", "\x00\x01\x7f"])
def test_token_ids_of_text_are_its_utf8_bytes_and_decode_back(tokenizer, text):
    ids = tokenizer.encode(text).ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_special_tokens_follow_the_bytes_and_are_one_token_each(tokenizer):
    assert tokenizer.encode("".join(SPECIAL_TOKENS)).ids == list(range(NUM_BYTES, NUM_BYTES + len(SPECIAL_TOKENS)))
    assert tokenizer.decode([NUM_BYTES, 104, 105], skip_special_tokens=True) == "hi"


def test_chat_template_marks_each_role_and_asks_for_the_answer():
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": " there"}]},
        {"role": "assistant", "content": " yes "},
        {"role": "user", "content": "why?"},
    ]
    assert render(messages) == (
        "<|bos|><|system|>be brief<|end|><|user|>hi there<|end|>"
        "<|assistant|> yes <|end|><|user|>why?<|end|><|assistant|>"
    )


def test_chat_template_without_generation_prompt_ends_with_the_last_message():
    assert render([{"role": "user", "content": "x"}], add_generation_prompt=False).endswith("<|user|>x<|end|>")
