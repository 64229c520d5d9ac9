"""A node agent without an engine: says what it was given, and treats signals as the real one does."""

import json
import os
import signal
import sys
import threading

asked = threading.Event()


def say(line: str) -> None:
    """Write a whole line at once: parent and child share the file."""
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def on_term(*_: object) -> None:
    if asked.is_set() or "--drain-at-once" in sys.argv:
        say("ended")
        os._exit(143 if asked.is_set() else 0)
    asked.set()
    say("draining")


if __name__ == "__main__":
    if "--exit" in sys.argv:
        sys.exit(int(sys.argv[sys.argv.index("--exit") + 1]))
    signal.signal(signal.SIGTERM, on_term)
    if "--child" in sys.argv and os.fork() == 0:
        signal.signal(signal.SIGTERM, lambda *_: say("child was told"))
        say(f"child {os.getpid()}")
        while True:
            signal.pause()
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "FROM_PROLOGUE")
    around = {"args": sys.argv[1:], "pid": os.getpid(), **{n: os.environ.get(n) for n in names}}
    say(f"started {json.dumps(around)}")
    while True:
        signal.pause()
