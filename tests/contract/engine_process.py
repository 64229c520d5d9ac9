"""An engine in a process of its own, driven over a socket: vLLM takes one engine a process, transfers need two.

`RemoteEngine` implements `AsyncEngine` in the test's process. The child runs `serve`, which starts with this module;
there requests run by `PushingEngine.run`, where the engine has it.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from hpcserve.config import Config
from hpcserve.engine.protocol import EngineContext
from hpcserve.engine.push import run_of
from hpcserve.types import EngineInfo, EngineOutput, EngineRequest, KvEvent, LoadReport, RequestId

EXIT_TIMEOUT_S = 30.0


class RemoteEngine:
    """The engine that `config` names, in a child process. `events` collects what its cache tells."""

    def __init__(self, config: Config, context: EngineContext) -> None:
        self._config, self._context = config, context
        self._process: asyncio.subprocess.Process | None = None
        self._streams: dict[int, asyncio.Queue[Any]] = {}
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._report = LoadReport()
        self._num_calls = 0
        self._on_kv_events: Callable[[list[KvEvent]], None] = lambda events: None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self, on_kv_events: Callable[[list[KvEvent]], None]) -> EngineInfo:
        self._on_kv_events = on_kv_events
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, __file__, str(theirs.fileno()), pass_fds=[theirs.fileno()]
            )
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        self._listening = asyncio.create_task(self._listen())
        _send(self._writer, (self._config, self._context))
        return await self._call("start")

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        self._num_calls += 1
        key, queue = self._num_calls, asyncio.Queue[Any]()
        self._streams[key] = queue
        _send(self._writer, ("generate", key, request))
        output = None
        try:
            while output is None or output.finish_reason is None:
                output = await queue.get()
                if isinstance(output, Exception):
                    raise output
                yield output
        finally:
            del self._streams[key]
            if output is None or isinstance(output, Exception) or output.finish_reason is None:
                _send(self._writer, ("close", key))

    async def abort(self, request_id: RequestId) -> None:
        await self._call("abort", request_id)

    def load(self) -> LoadReport:
        return self._report

    async def measure(self) -> LoadReport:
        """Fetch the newest load report."""
        self._report = await self._call("load")
        return self._report

    async def stop(self) -> None:
        if self._process is None:
            return
        if self._process.returncode is None:
            await self._call("stop")
            await self.measure()
            self._writer.write_eof()
            await asyncio.wait_for(self._process.wait(), EXIT_TIMEOUT_S)
        await self._leave()

    async def kill(self) -> None:
        """End the child as a crash would."""
        assert self._process is not None
        self._process.kill()
        await self._leave()

    async def _leave(self) -> None:
        assert self._process is not None
        self.returncode = await self._process.wait()
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _call(self, name: str, *args: Any) -> Any:
        self._num_calls += 1
        future = self._replies[self._num_calls] = asyncio.get_running_loop().create_future()
        _send(self._writer, ("call", self._num_calls, name, args))
        return await future

    async def _listen(self) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                kind, key, value = await _receive(self._reader)
                if kind == "events":
                    self._on_kv_events(value)
                elif kind == "output" and (queue := self._streams.get(key)) is not None:
                    queue.put_nowait(value)
                elif kind == "reply":
                    future = self._replies.pop(key)
                    future.set_exception(value) if isinstance(value, Exception) else future.set_result(value)
        for future in self._replies.values():
            future.set_exception(ConnectionError("the engine's process ended"))


async def serve(connection: socket.socket) -> None:
    """Run one engine for the process at the other end, until it hangs up."""
    from hpcserve.engine.factory import make_engine

    reader, writer = await asyncio.open_connection(sock=connection)
    config, context = await _receive(reader)
    engine = make_engine(config, context)
    tasks: dict[int, asyncio.Task[None]] = {}
    try:
        while True:
            kind, *message = await _receive(reader)
            if kind == "generate":
                tasks[message[0]] = asyncio.create_task(_generate(engine, message[0], message[1], writer))
            elif kind == "close":
                if task := tasks.get(message[0]):
                    task.cancel()
            else:
                tasks[message[0]] = asyncio.create_task(_answer(engine, message, writer))
    except asyncio.IncompleteReadError:
        pass
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        await engine.stop()


async def _generate(engine: Any, key: int, request: EngineRequest, writer: asyncio.StreamWriter) -> None:
    try:
        await run_of(engine)(request, lambda output: _send(writer, ("output", key, output)))
    except Exception as err:
        _send(writer, ("output", key, err))


async def _answer(engine: Any, message: list[Any], writer: asyncio.StreamWriter) -> None:
    number, name, args = message
    try:
        if name == "start":
            result = await engine.start(lambda events: _send(writer, ("events", None, events)))
        elif name == "load":
            result = engine.load()
        else:
            result = await getattr(engine, name)(*args)
    except Exception as err:
        result = err
    _send(writer, ("reply", number, result))


def _send(writer: asyncio.StreamWriter, message: Any) -> None:
    data = pickle.dumps(message)
    writer.write(len(data).to_bytes(8, "big") + data)


async def _receive(reader: asyncio.StreamReader) -> Any:
    size = int.from_bytes(await reader.readexactly(8), "big")
    return pickle.loads(await reader.readexactly(size))


if __name__ == "__main__":
    asyncio.run(serve(socket.socket(fileno=int(sys.argv[1]))))
