"""Makes the pictures of the docs: `python -m tests.screenshots` brings up mock engines, loads them and looks."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.browser import Tab, open_tab
from tests.fixtures_deployment import Deployment, processes_of, run_hpcserve
from tests.system.chats import stream_chats

IMAGES = Path(__file__).parents[1] / "docs" / "images"
_MAX_BYTES = 150_000
_WARM_UP_S = 75  # that the charts show
_QUESTION = "Which of these jobs should start first, and why?"


@contextmanager
def disaggregated(*flags: str, decode: int = 1, name: str = "t") -> Iterator[Deployment]:
    """A deployment with keys, one prefill worker and some that decode; taken down with all that it left."""
    root = Path(tempfile.mkdtemp(prefix="hs-"))
    env = os.environ | {"HPCSERVE_STATE_DIR": str(root)}
    pools = ("--cluster", "local", "--engine", "mock", "--prefill", "1", "--decode", str(decode))
    try:
        asked = ("--detach", "--json", "--port", "0", "--name", name, "--set", "security.auth=on")
        done = run_hpcserve("up", *pools, *asked, *flags, env=env, check=True)
        yield Deployment(json.loads(done.stdout), env)
    finally:
        run_hpcserve("down", "--force", "--name", name, env=env)
        left = processes_of(root)
        shutil.rmtree(root, ignore_errors=True)
        assert not left, f"still running: {left}"


async def keep_busy(deployment: Deployment) -> None:
    """Send conversations that share prefixes, more and fewer by turns, until cancelled."""
    number = 0
    while True:
        many = 3 + 6 * (number % 7 in (2, 3, 5))
        asked = [
            f"Conversation {(number + each) % 11}. " + "Queues form where work arrives. " * 40 for each in range(many)
        ]
        await stream_chats(deployment.endpoint, deployment.key, asked, max_tokens=150 + 60 * (number % 3))
        number += 1


async def open_page(tab: Tab, deployment: Deployment) -> None:
    """Open the page, give it the key and ask something."""
    await tab.go(deployment.endpoint.removesuffix("v1"))
    await tab.until("document.querySelector('#key-dialog').open")
    await tab.type(deployment.key)
    await tab.press("Enter")
    await tab.until("document.querySelector('#phase').innerText === 'serving'")
    await tab.run("document.querySelector('#max-tokens').value = 120")
    await tab.click("#question")
    await tab.type(_QUESTION)
    await tab.press("Enter")
    await tab.until("document.querySelector('.turn.assistant .numbers').innerText !== ''", timeout_s=60)


async def shoot(tab: Tab, deployment: Deployment) -> None:
    """Take every picture."""
    await tab.look(1360, 860)
    await open_page(tab, deployment)
    await tab.run("document.activeElement.blur()")
    await tab.shoot(IMAGES / "page.png")
    await tab.look(1360, 860, dark=True)
    await tab.shoot(IMAGES / "page-dark.png")
    await tab.look(390, 844)
    await tab.run("window.scrollTo(0, 0)")
    await tab.shoot(IMAGES / "page-phone.png")
    await tab.look(1360, 940)
    await tab.go(str(deployment.up["dashboard"]))
    await tab.until("globalThis.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle")
    await tab.run("new Promise((soon) => setTimeout(soon, 3000))")
    await tab.shoot(IMAGES / "dashboard.png")


async def main() -> None:
    """Bring it up, load it, look, take it down; fail if a page complained or a picture is too large."""
    IMAGES.mkdir(exist_ok=True)
    # a small cache, so that its use can be seen
    with disaggregated("--set", "engine.mock.num_kv_blocks=512", decode=3, name="llm") as deployment:
        busy = asyncio.create_task(keep_busy(deployment))
        await asyncio.sleep(_WARM_UP_S)
        with tempfile.TemporaryDirectory() as profile:
            async with open_tab(Path(profile)) as tab:
                await shoot(tab, deployment)
                assert tab.complaints == []
        busy.cancel()
        await asyncio.wait((busy,))
    for path in IMAGES.glob("*.png"):
        assert path.stat().st_size < _MAX_BYTES, path


if __name__ == "__main__":
    asyncio.run(main())
