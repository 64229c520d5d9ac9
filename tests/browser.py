"""A headless Chromium, driven over its DevTools protocol (https://chromedevtools.github.io/devtools-protocol)."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

_FLAGS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-gpu",
    "--disable-sync",
    "--hide-scrollbars",
    "--mute-audio",
)
_START_TIMEOUT_S = 30.0
_CALL_TIMEOUT_S = 20.0
_MAX_MESSAGE_BYTES = 64 << 20  # of a screenshot


def find_chromium() -> str | None:
    """Return the program, or None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Tab:
    """One page of the browser. What it complained about in its console is kept in `complaints`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.complaints: list[str] = []
        self.requested: list[str] = []  # URLs
        self._socket = socket
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._events: dict[str, asyncio.Event] = {}

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        number = len(self._answers) + 1
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        return await asyncio.wait_for(answer, _CALL_TIMEOUT_S)

    async def go(self, url: str) -> None:
        """Load a page, and return when all of it is there."""
        loaded = self._events["Page.loadEventFired"] = asyncio.Event()
        result = await self.call("Page.navigate", url=url)
        assert "errorText" not in result, result
        await asyncio.wait_for(loaded.wait(), _CALL_TIMEOUT_S)

    async def run(self, script: str) -> Any:
        """Return the value of an expression in the page; promises are waited for."""
        result = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, condition: str, timeout_s: float = 15.0) -> Any:
        """Wait until an expression is true in the page, looking at each of its frames, and return its value."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not (value := await self.run(condition)):
            if asyncio.get_running_loop().time() > deadline:
                text = await self.run("document.body.innerText")
                raise AssertionError(f"not so within {timeout_s} s: {condition}\nthe page:\n{text}\n{self.complaints}")
            await self.run("new Promise((soon) => setTimeout(soon, 50))")
        return value

    async def text(self, selector: str) -> str:
        """Return the text that an element shows."""
        return str(await self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def click(self, selector: str) -> None:
        """Click on the middle of an element, as a mouse does."""
        place = await self.run(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            "found.scrollIntoView({block: 'center'}); const box = found.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    async def type(self, text: str) -> None:
        """Type into whatever has the focus."""
        await self.call("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        """Press and release a key, such as Enter or Tab."""
        codes = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, "")}
        code, text = codes[key]
        for kind in ("keyDown", "keyUp"):
            written = {"text": text} if text and kind == "keyDown" else {}
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **written
            )

    async def look(self, width: int, height: int, *, dark: bool = False, scale: float = 1.0) -> None:
        """Set the window's size in CSS pixels, and the colour scheme."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def shoot(self, path: Path) -> None:
        """Write what the window shows as a PNG."""
        shot = await self.call("Page.captureScreenshot", format="png", optimizeForSpeed=False)
        path.write_bytes(base64.b64decode(shot["data"]))

    async def listen(self) -> None:
        """Take what the browser says, until cancelled or the browser ends."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._answer(said)
            else:
                self._take(said["method"], said["params"])

    def _answer(self, said: dict[str, Any]) -> None:
        answer = self._answers[said["id"]]
        if "error" in said:
            answer.set_exception(AssertionError(said["error"]))
        elif not answer.done():
            answer.set_result(said["result"])

    def _take(self, method: str, said: dict[str, Any]) -> None:
        if method in self._events:
            self._events[method].set()
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(said["exceptionDetails"].get("exception", {}).get("description")))
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(each.get("value", each)) for each in said["args"]))
        elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requested.append(said["request"]["url"])


@asynccontextmanager
async def open_tab(profile: Path) -> AsyncIterator[Tab]:
    """Start a Chromium with an empty profile in the directory `profile`, and yield a tab of it; end it afterwards."""
    program = find_chromium()
    assert program is not None
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    process = await asyncio.create_subprocess_exec(
        program, *_FLAGS, *sandbox, f"--user-data-dir={profile}", "about:blank",
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    draining = None
    try:
        port = await asyncio.wait_for(_port_of(process), _START_TIMEOUT_S)
        draining = asyncio.create_task(_drain(process))
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{port}/json/list") as response:
                pages = [each for each in await response.json(content_type=None) if each["type"] == "page"]
            socket = await http.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=_MAX_MESSAGE_BYTES)
            tab = Tab(socket)
            listening = asyncio.create_task(tab.listen())
            for domain in ("Page", "Runtime", "Log", "Network"):
                await tab.call(f"{domain}.enable")
            yield tab
            await socket.close()
            listening.cancel()
            await asyncio.wait((listening,))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its renderers, too
        await process.wait()
        if draining is not None:
            await draining


async def _port_of(process: asyncio.subprocess.Process) -> int:
    assert process.stderr is not None
    async for line in process.stderr:
        if line.startswith(b"DevTools listening on ws://"):
            return int(line.split(b":")[2].split(b"/")[0])
    raise AssertionError("Chromium ended before it listened")


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    while await process.stderr.read(65536):
        pass
