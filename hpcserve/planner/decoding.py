"""How many workers decode a load fast enough. Pure.

The more of its KV a worker reads, the longer a step takes (the published curve of `router/timing.py`, scaled to what is
measured), and the longer steps take, the longer requests stay and hold their KV. So what is in use now is first turned
into a rate: KV in use over the time of a step. With other numbers of workers the same rate comes to other shares.
"""

from __future__ import annotations

from hpcserve.router.timing import decode_steps_ms

MOST_KV = 0.8
"""Share of a worker's KV that is to be in use: contexts grow, and a full cache preempts."""

_ITL_SHARE = 0.8  # of the objective, on average: nine of ten are to keep to it
_MOST_WORKERS = 4096


def step_ms(share: float, scale: float) -> float:
    """Return the time of a decode step that reads `share` of the KV cache; `scale` times as long as published."""
    return scale * decode_steps_ms(1, share, share * share)


def workers_to_decode(kv: float, num_now: int, offered: float, scale: float, itl_ms: float) -> int:
    """Return the fewest workers that decode within `itl_ms` what fills `kv` caches on `num_now` workers.

    `offered` of them, in workers' worth, compute prompts at the same time: decoding gets what is left of a worker.
    """
    if not num_now or not kv:
        return 1
    left_now = max(0.1, 1 - offered / num_now)
    rate = kv * left_now / step_ms(min(1.0, kv / num_now), scale)  # caches over ms
    for num in range(1, _MOST_WORKERS):
        left = 1 - offered / num
        if left <= 0:
            continue
        share = _most_share(_ITL_SHARE * itl_ms * left, scale)
        if share and rate * step_ms(share, scale) / left <= num * share:
            return num
        if not share and num >= 2 * num_now and offered / num < 0.1:
            return num_now  # steps are too slow even on idle workers: more of them are no help
    return _MOST_WORKERS


def _most_share(most_ms: float, scale: float) -> float:
    """Return the largest share, in percents up to `MOST_KV`, that a step may read to take no longer."""
    low, high = 0, round(100 * MOST_KV)
    while low < high:
        middle = (low + high + 1) // 2
        if step_ms(middle / 100, scale) <= most_ms:
            low = middle
        else:
            high = middle - 1
    return low / 100
