"""What a streamed token costs the frontend: CPU microseconds a token, requests/s and tokens/s under loopback load.

    python tests/benchmarks/frontend_stream.py --connections 64 --tokens 64 --seconds 5

The frontend runs in a process of its own, with auth and metrics on, in front of a backend that hands out one delta a
step to every request, as fast as it can. Clients are raw sockets of this process. The backend's share is included.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import signal
import subprocess
import sys
import time

import uvloop

KEY = "sk-benchmark"


class PumpingBackend:
    """One delta a step for all that runs, like an agent's one message a step; the step takes no time."""

    def __init__(self) -> None:
        from hpcserve.types import EngineInfo, Phase, Role, Status, WorkerId, WorkerInfo, WorkerState

        engine = EngineInfo(engine="none", model="mock", block_size=32, num_kv_blocks=1, max_model_len=8192)
        worker = WorkerInfo(worker=WorkerId("w"), pool="both", role=Role.BOTH, state=WorkerState.READY, engine=engine)
        self._status = Status(
            name="bench",
            phase=Phase.SERVING,
            model="mock",
            mode="aggregated",
            policy="kv",
            cluster="local",
            workers=(worker,),
        )
        self._running: dict[str, tuple] = {}
        self.num_tokens = 0
        self.num_requests = 0

    def status(self):
        return self._status

    async def run(self, request, on_output, caller) -> None:
        done = asyncio.get_running_loop().create_future()
        self._running[request.request_id] = (request, on_output, done, [0])
        try:
            await done
        finally:
            self._running.pop(request.request_id, None)

    async def pump(self) -> None:
        from hpcserve.types import EngineOutput

        while True:
            for request_id, (request, on_output, done, count) in list(self._running.items()):
                count[0] += 1
                is_last = count[0] == request.sampling.max_tokens
                finish = "length" if is_last else None
                on_output(EngineOutput(request_id=request_id, token_ids=(7,), text=" token", finish_reason=finish))
                if is_last:
                    del self._running[request_id]
                    self.num_requests += 1
                    done.set_result(None)
            self.num_tokens += len(self._running)
            await asyncio.sleep(0)


async def serve() -> None:
    """Print the port, then on every line of standard input the counters so far."""
    from hpcserve.config.models import Config, FrontendConfig
    from hpcserve.frontend import KeyRing, Tokenizer, make_app, start_site

    backend = PumpingBackend()
    config = Config(frontend=FrontendConfig(drain_timeout_s=0))
    app = make_app(config, backend, KeyRing(KEY, b"secret"), Tokenizer.load(config.model))
    site = await start_site(app, "127.0.0.1", 0)
    pump = asyncio.create_task(backend.pump())
    print(site.port, flush=True)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(sys.stdin, lambda: (sys.stdin.readline(), _report(backend)))
    await stop.wait()
    loop.remove_reader(sys.stdin)
    pump.cancel()
    await site.close()


def _report(backend: PumpingBackend) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    report = {
        "tokens": backend.num_tokens + backend.num_requests,
        "requests": backend.num_requests,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "rss_mb": usage.ru_maxrss / 1024,
        "at": time.monotonic(),
    }
    print(json.dumps(report), flush=True)


class Client(asyncio.Protocol):
    """Asks again as soon as an answer has ended."""

    def __init__(self, request: bytes) -> None:
        self._request = request

    def connection_made(self, transport) -> None:
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"0\r\n\r\n"):
            self._transport.write(self._request)


def request_bytes(num_tokens: int, prompt_chars: int) -> bytes:
    text = "word " * (prompt_chars // 5)
    messages = [{"role": "user", "content": text}]
    body = json.dumps({"model": "mock", "messages": messages, "max_tokens": num_tokens, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def load(server: subprocess.Popen, options: argparse.Namespace) -> dict[str, float]:
    port = int(server.stdout.readline())
    loop = asyncio.get_running_loop()
    request = request_bytes(options.tokens, options.prompt_chars)
    for _ in range(options.connections):
        await loop.create_connection(lambda: Client(request), "127.0.0.1", port)
    await asyncio.sleep(1)  # past the start
    first = await asyncio.to_thread(_ask, server)
    await asyncio.sleep(options.seconds)
    last = await asyncio.to_thread(_ask, server)
    spent = {key: last[key] - first[key] for key in ("tokens", "requests", "cpu_s", "at")}
    return {
        "connections": options.connections,
        "tokens_a_reply": options.tokens,
        "cpu_us_a_token": round(1e6 * spent["cpu_s"] / spent["tokens"], 2),
        "cpu_us_a_request": round(1e6 * spent["cpu_s"] / max(1, spent["requests"])),
        "tokens_per_s": round(spent["tokens"] / spent["at"]),
        "requests_per_s": round(spent["requests"] / spent["at"]),
        "rss_mb": round(last["rss_mb"]),
    }


def _ask(server: subprocess.Popen) -> dict[str, float]:
    server.stdin.write("\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64, help="of one reply")
    parser.add_argument("--prompt-chars", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve())
        return
    command = [sys.executable, __file__, "--serve"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        print(json.dumps(uvloop.run(load(server, options))))
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.terminate()
        server.wait(10)


if __name__ == "__main__":
    main()
