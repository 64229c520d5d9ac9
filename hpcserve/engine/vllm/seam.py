"""Makes the text of a request right where the prompt ends and the generated text begins.

Two things go wrong there. A prompt that ends within a character (some of its bytes are tokens still to come) makes
vLLM's detokenizer repeat the whole prompt as if it were generated. And a worker that holds text back, because it could
be the beginning of a stop string, may be lost with it: the next one has the tokens in its prompt and must say the text.
Stop strings that lie across the seam are not found.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hpcserve.types import EngineOutput, EngineRequest

_LONGEST_CHARACTER = 4  # bytes, and so at most as many tokens
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Seam:
    """Mends the outputs of one request, in order."""

    def __init__(self, tokenizer: Any, request: EngineRequest) -> None:
        self._skip_special = request.sampling.skip_special_tokens
        self._repeated = self._find_repeated(tokenizer, request.token_ids)
        self._held_back = self._find_held_back(tokenizer, request)

    def mend(self, output: EngineOutput) -> EngineOutput:
        """Return the output with the text that belongs to it."""
        if not self._repeated and not self._held_back:
            return output
        text = output.text
        if text and self._repeated:
            num_repeated = min(len(text), len(self._repeated))
            text, self._repeated = text[num_repeated:], self._repeated[num_repeated:]
        if text or output.finish_reason:
            text, self._held_back = self._held_back + text, ""
        return msgspec.structs.replace(output, text=text)

    def _find_repeated(self, tokenizer: Any, token_ids: list[int]) -> str:
        if not self._decode(tokenizer, token_ids[-_LONGEST_CHARACTER:]).endswith(_INCOMPLETE):
            return ""
        whole = self._decode(tokenizer, token_ids)
        return whole.rstrip(_INCOMPLETE) if whole.endswith(_INCOMPLETE) else ""

    def _find_held_back(self, tokenizer: Any, request: EngineRequest) -> str:
        sampling = request.sampling
        if not request.num_resumed or not sampling.stop or sampling.include_stop:
            return ""
        num_held = max(len(stop) for stop in sampling.stop) - 1
        resumed = self._decode(tokenizer, request.token_ids[-request.num_resumed :]).rstrip(_INCOMPLETE)
        return resumed[-num_held:] if num_held else ""

    def _decode(self, tokenizer: Any, token_ids: list[int]) -> str:
        return str(tokenizer.decode(token_ids, skip_special_tokens=self._skip_special))
