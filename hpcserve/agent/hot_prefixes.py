"""Which prefixes are asked for again and again on this worker. It remembers tokens and holds no KV."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from hpcserve.types import EngineRequest

_MOST = 64  # prefixes
_MOST_TOKENS = 1 << 18  # of all together: 1 MiB
_FORGET_SHARE = 0.5  # of the counts, when one has to go: what was asked for long ago is not hot


@dataclass
class HotPrefix:
    """Leading tokens of several prompts, with one more, which is computed wherever they are found."""

    token_ids: Sequence[int]
    cache_salt: str | None
    num_asked: float = 0.0


class HotPrefixes:
    """Counts what the router says of requests: how many leading tokens were asked for before."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str | None, bytes], HotPrefix] = OrderedDict()
        self._num_tokens = 0

    def note(self, request: EngineRequest) -> None:
        """Take in one request. Costs something only for those that share a prefix."""
        length = request.reused_tokens
        if not length or length > _MOST_TOKENS or request.moves_away:
            return
        key = request.cache_salt, array("I", request.token_ids[:length]).tobytes()
        known = self._known.get(key)
        if known is None:
            kept = array("I", request.token_ids[: length + 1])
            known = self._known[key] = HotPrefix(kept, request.cache_salt)
            self._num_tokens += len(kept)
        known.num_asked += 1
        self._known.move_to_end(key)
        self._make_room()

    def hottest(self, max_tokens: int) -> list[HotPrefix]:
        """Return those asked for most, at most `max_tokens` together. None is the beginning of another one."""
        chosen: list[tuple[tuple[str | None, bytes], HotPrefix]] = []
        for key, prefix in sorted(self._known.items(), key=lambda item: -item[1].num_asked):
            if len(prefix.token_ids) > max_tokens or any(_begins(other, key) for other, _ in chosen):
                continue
            max_tokens -= len(prefix.token_ids)
            chosen.append((key, prefix))
        return [prefix for _, prefix in chosen]

    def _make_room(self) -> None:
        """Forget the least asked for, the oldest of them first; the rest has to earn its place again."""
        while len(self._known) > _MOST or self._num_tokens > _MOST_TOKENS:
            *others, _newest = self._known.items()
            key, coldest = min(others, key=lambda item: item[1].num_asked)
            del self._known[key]
            self._num_tokens -= len(coldest.token_ids)
            for prefix in self._known.values():
                prefix.num_asked = max(1.0, prefix.num_asked * _FORGET_SHARE)


def _begins(other: tuple[str | None, bytes], key: tuple[str | None, bytes]) -> bool:
    return other[0] == key[0] and other[1].startswith(key[1])
