"""The path of a request: assign, call engines, stream, move on loss. `dispatcher.py` is the page to read."""

from hpcserve.dispatch.dispatcher import Dispatcher

__all__ = ["Dispatcher"]
