"""Offline batches: a file of requests in, a file of answers out, through a deployment's endpoint. Nothing is lost.

`source.py` reads the input, `lines.py` makes requests of it, `check.py` finds what is wrong before anything is sent;
`ledger.py` says what is done, `recovery.py` repairs it after a crash, `store.py` writes; `client.py` asks and asks
again; `run.py` is the loop. It starts no engine and chooses no worker: that is the deployment's.
"""

from hpcserve.batch.client import Client, Endpoint, Patience
from hpcserve.batch.lines import LineReader, OpenAILines, Prompts
from hpcserve.batch.plan import Plan
from hpcserve.batch.run import Batch, Stop
from hpcserve.batch.source import Source, open_source
from hpcserve.batch.tally import Tally

__all__ = [
    "Batch",
    "Client",
    "Endpoint",
    "LineReader",
    "OpenAILines",
    "Patience",
    "Plan",
    "Prompts",
    "Source",
    "Stop",
    "Tally",
    "open_source",
]
