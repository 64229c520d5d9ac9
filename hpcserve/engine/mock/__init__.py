"""An engine without a model: real scheduling, paging and prefix caching, simulated compute.

`scheduler`, `block_pool` and `timing` know no tokens and no clock, `core` adds tokens and text, `engine` adds asyncio.
"""

from hpcserve.engine.mock.engine import MockEngine

__all__ = ["MockEngine"]
