"""Words that are looked up have the tokens that the library gives them in their text."""

from __future__ import annotations

import sysconfig
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from hpcserve.frontend.prompts.word_cache import WordCache

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
    r"|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")


@cache
def merges() -> str:
    encoder = Tokenizer(models.BPE())
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<s>", "<|im_start|>", "<|im_start|>x"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:15]
    encoder.train([str(path) for path in sources], trainer)
    return str(encoder.to_str())


def with_words(pre_tokenizer: object, normalizer: object = None) -> Tokenizer:
    encoder = Tokenizer.from_str(merges())
    encoder.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        encoder.normalizer = normalizer
    return encoder


def split(pattern: str) -> object:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])


FAMILIES = {
    "gpt2": with_words(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "llama3": with_words(split(LLAMA3)),
    "qwen2": with_words(split(QWEN2), normalizers.NFC()),
}
CACHES = {name: WordCache.of(encoder) for name, encoder in FAMILIES.items()}


@pytest.mark.parametrize("family", FAMILIES)
@given(text=st.text(st.characters(max_codepoint=127)) | st.lists(
    st.sampled_from(["<s>", "<|im_start|>", "x", " ", "\n", "the", " def", "don't", "'", "12", ".", "é"])
).map("".join))  # fmt: skip
def test_the_tokens_are_those_of_the_library(family: str, text: str) -> None:
    words = CACHES[family]
    assert words is not None
    found = words.encode(text)
    if text.isascii():
        assert found == FAMILIES[family].encode(text, add_special_tokens=False).ids
    else:
        assert found is None


def test_more_words_than_are_kept_are_tokenized_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcserve.frontend.prompts.word_cache._MAX_WORDS", 10)
    encoder = FAMILIES["llama3"]
    words = WordCache.of(encoder)
    assert words is not None
    for start in range(0, 100, 7):
        text = "<s>" + " ".join(f"word{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(start, start + 20))
        assert words.encode(text) == encoder.encode(text, add_special_tokens=False).ids
        assert len(words._known) <= 10 + 3 + 20  # of one text, and those that are always there


def unlike_the_others() -> dict[str, tokenizers.Tokenizer]:
    spaced = with_words(pre_tokenizers.ByteLevel(add_prefix_space=True))
    lowered = with_words(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Lowercase())
    stripping = with_words(pre_tokenizers.ByteLevel(add_prefix_space=False))
    stripping.add_tokens([AddedToken("<tool>", lstrip=True)])
    odd = with_words(split(r"\p{Greek}|[^\s]+|\s+"))
    holes = with_words(split(r"\p{L}+"))  # what the expression leaves out is kept by the library
    metaspace = with_words(pre_tokenizers.Metaspace())
    return {"spaced": spaced, "lowered": lowered, "stripping": stripping, "odd": odd, "holes": holes, "meta": metaspace}


@pytest.mark.parametrize(("name", "encoder"), unlike_the_others().items())
def test_there_is_no_cache_where_words_are_not_all(name: str, encoder: tokenizers.Tokenizer) -> None:
    assert WordCache.of(encoder) is None, name
