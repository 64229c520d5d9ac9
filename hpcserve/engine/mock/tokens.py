"""Which token comes next, and its text. No model: a token follows from the one before it and its position alone.

So a request that is moved to another worker as prompt plus tokens so far continues with the very same tokens. Sampling
parameters (temperature, seed, penalties …) have no influence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from hpcserve.errors import EngineError

_MAX_TOKENS = 4096  # enough variety; reading all of a large vocabulary would slow the start
_LETTERS = "  aabcdeeefghiijklmnoopqrsttuvwxyz"  # of the built-in tokenizer; repeated ones come more often
_PIECE = re.compile("[Ġ▁]?[A-Za-z]+")  # byte-level BPE and SentencePiece write a leading space as one of these
_UINT32 = 0xFFFFFFFF


class TokenTable:
    """Tokens that the mock may generate. Their texts are plain ASCII, and joining them is detokenizing."""

    def __init__(self, tokens: Iterable[tuple[int, str]]) -> None:
        pairs = list(tokens)
        self.ids = [token_id for token_id, _ in pairs]
        self.texts = [text for _, text in pairs]
        self.text_of = dict(pairs)

    def __len__(self) -> int:
        return len(self.ids)

    def pick(self, previous: int, position: int) -> int:
        """Return the index in this table of the token at `position`, counted from the prompt's first token."""
        mixed = (previous * 0x9E3779B1 ^ position * 0x85EBCA77) * 0xC2B2AE3D & _UINT32
        return (mixed ^ mixed >> 15) * len(self.ids) >> 32


def load_table(model_path: Path | None) -> TokenTable:
    """Return the tokens of a model directory's tokenizer, or of the built-in one. Raises `EngineError`."""
    if model_path is None:
        return TokenTable((ord(letter), letter) for letter in _LETTERS)
    from tokenizers import Tokenizer

    file = model_path / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as err:  # tokenizers raises plain Exception
        raise EngineError(f"cannot read the tokenizer {file}: {err}") from err
    table = TokenTable(_plain_tokens(tokenizer.get_vocab(with_added_tokens=False)))
    if not table:
        raise EngineError(f"the tokenizer {file} has no tokens of plain ASCII letters, which the mock engine writes")
    return table


def _plain_tokens(vocabulary: dict[str, int]) -> list[tuple[int, str]]:
    plain = sorted((token_id, piece) for piece, token_id in vocabulary.items() if _PIECE.fullmatch(piece))
    return [(token_id, piece.replace("Ġ", " ").replace("▁", " ")) for token_id, piece in plain[:_MAX_TOKENS]]
