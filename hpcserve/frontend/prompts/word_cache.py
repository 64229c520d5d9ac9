"""Tokenizing words that were seen before by a look into a table: a sixth of the library's time for short prompts.

Byte-level BPE, which most families use, first cuts text into words by a regular expression and then merges bytes within
each; a word's tokens depend on nothing around it. `tokenizers` does the cutting with offsets that nobody here needs,
which is most of its time. This does it for ASCII text, where Python's `re` means the same, and asks the library for the
words it does not know. It is made only for a tokenizer whose tokens it has been seen to reproduce.
"""

from __future__ import annotations

import json
import random
import re
from itertools import chain
from typing import Any, cast

import tokenizers

_MAX_WORDS = 1 << 16
_MAX_WORD_CHARS = 64  # longer ones are hardly seen again
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # of ByteLevel itself
_ASCII_OF = {"L": "A-Za-z", "N": "0-9", "Lu": "A-Z", "Ll": "a-z", "Nd": "0-9", "Lt": "", "Lm": "", "Lo": "", "M": ""}
_NUM_PROBES = 60


class WordCache:
    """The tokens of words. Use `of` to get one that is right."""

    def __init__(self, encoder: tokenizers.Tokenizer, words: re.Pattern[str], added: dict[str, int]) -> None:
        self._encoder = encoder
        self._find_words = words.findall
        by_length = sorted(added, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, by_length))})").split if added else None
        self._added = {content: [token_id] for content, token_id in added.items()}
        self._known = dict(self._added)

    @classmethod
    def of(cls, encoder: tokenizers.Tokenizer) -> WordCache | None:
        """Return a cache for this tokenizer, or None where words are not all there is to it."""
        described = json.loads(encoder.to_str())
        pattern = _word_pattern(described)
        added = described["added_tokens"]
        if pattern is None or any(each["single_word"] or each["lstrip"] or each["rstrip"] for each in added):
            return None
        found = cls(encoder, pattern, {each["content"]: each["id"] for each in added})
        return found if all(found.encode(probe) == _encode(encoder, probe) for probe in _probes(list(added))) else None

    def encode(self, text: str) -> list[int] | None:
        """Return the ids of a text, without special tokens around it; None for text that is not ASCII."""
        if not text.isascii():
            return None
        words = self._words(text)
        ids = list(map(self._known.get, words))
        if None in ids:
            unknown = [index for index, each in enumerate(ids) if each is None]
            new = self._learn([words[index] for index in unknown])
            for index in unknown:
                ids[index] = new[words[index]]
        return list(chain.from_iterable(cast("list[list[int]]", ids)))

    def _words(self, text: str) -> list[str]:
        if self._split is None:
            return self._find_words(text)
        words: list[str] = []
        for part in self._split(text):
            if part in self._added:
                words.append(part)
            else:
                words += self._find_words(part)
        return words

    def _learn(self, words: list[str]) -> dict[str, list[int]]:
        """Return the ids of new words, and keep those that are worth it."""
        encodings = self._encoder.encode_batch_fast(words, add_special_tokens=False)
        ids = {word: encoding.ids for word, encoding in zip(words, encodings, strict=True)}
        kept = {word: each for word, each in ids.items() if len(word) <= _MAX_WORD_CHARS}
        if len(self._known) + len(kept) > _MAX_WORDS:
            self._known = dict(self._added)
        self._known.update(kept)
        return ids


def _word_pattern(described: dict[str, Any]) -> re.Pattern[str] | None:
    """Return the expression that cuts ASCII text into words, if it is all that this tokenizer does before merging."""
    if described["normalizer"] is not None and described["normalizer"]["type"] != "NFC":  # which leaves ASCII alone
        return None
    if described["model"].get("type") != "BPE" or described["model"].get("dropout"):
        return None
    match described["pre_tokenizer"]:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return _for_ascii(_GPT2)
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return _for_ascii(pattern)
    return None


def _for_ascii(pattern: str) -> re.Pattern[str] | None:
    """Return what an Oniguruma expression means for ASCII text, or None where that cannot be said.

    Every character has to be matched by something: what `findall` skips would be lost. The probes would show it.
    """
    try:
        translated = re.sub(r"(\[[^\]]*\])|\\p\{(\w+)\}", _translate, pattern)
        return re.compile(re.sub(r"(?<!\\)\((?!\?)", "(?:", translated), re.ASCII)
    except (KeyError, re.error):
        return None


def _translate(found: re.Match[str]) -> str:
    if found[1] is None:
        return f"[{_ASCII_OF[found[2]]}]"
    return re.sub(r"\\p\{(\w+)\}", lambda inner: _ASCII_OF[inner[1]], found[1])


def _encode(encoder: tokenizers.Tokenizer, text: str) -> list[int]:
    return list(encoder.encode(text, add_special_tokens=False).ids)


def _probes(added: list[dict[str, Any]]) -> list[str]:
    """Return texts with all that ASCII has, in all sorts of neighbourhoods."""
    source = random.Random(0)  # noqa: S311  nothing secret
    pieces = [chr(code) for code in range(128)] + ["  ", "\n\n", " \n", "\r\n", "'s", "'LL", "don't", " word", "12345"]
    pieces += [each["content"] for each in added[:20]]
    ordinary = [*" etaoinshrdlu", " the", " of", "\n", ".", ", ", "(x)", "I'm"]
    probes = ["".join(source.choices(pieces, k=80)) for _ in range(_NUM_PROBES)]
    probes += ["".join(source.choices(ordinary, k=200)) for _ in range(_NUM_PROBES)]
    return [*probes, "", " ", "\n", "a", " a", "a " * 3]
