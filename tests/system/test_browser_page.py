"""The page and the dashboard in a real Chromium, on a deployment with mock engines and keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.browser import Tab, find_chromium, open_tab
from tests.screenshots import disaggregated
from tests.system.chats import stream_chats
from tests.system.conftest import Deployment

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(120),
    pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed"),
]

PHASE = "document.querySelector('#phase').innerText"
DIALOG = "document.querySelector('#key-dialog').open"
LAST_ANSWER = "[...document.querySelectorAll('.turn.assistant .text')].at(-1).innerText"
NUM_ANSWERS = "[...document.querySelectorAll('.turn.assistant .numbers')].filter((each) => each.innerText).length"


@pytest.fixture
async def tab(tmp_path: Path) -> AsyncIterator[Tab]:
    async with open_tab(tmp_path / "profile") as opened:
        await opened.look(1400, 900)
        yield opened


@pytest.fixture(scope="module")
def locked() -> Iterator[Deployment]:
    """One deployment for all tests that leave it as it is."""
    with disaggregated() as deployment:
        yield deployment


def page_of(deployment: Deployment) -> str:
    return deployment.endpoint.removesuffix("v1")


async def unlock(tab: Tab, deployment: Deployment) -> None:
    await tab.go(page_of(deployment))
    await tab.until(DIALOG)
    await tab.type(deployment.key)
    await tab.press("Enter")
    await tab.until(f"{PHASE} === 'serving'")


async def ask(tab: Tab, text: str) -> None:
    await tab.click("#question")
    await tab.type(text)
    await tab.press("Enter")


async def test_with_a_key_it_shows_ready_workers_and_streams_a_chat_of_several_turns(
    tab: Tab, locked: Deployment
) -> None:
    await unlock(tab, locked)
    rows = await tab.run("[...document.querySelectorAll('#workers tr')].map((row) => row.innerText)")
    assert len(rows) == 2
    for worker, row in zip(locked.up["workers"], rows, strict=True):
        assert worker["id"] in row
        assert "ready" in row
    assert await tab.text("#chat-model") == "mock"
    await tab.run("document.querySelector('#max-tokens').value = 60")
    await ask(tab, "why do <b>queues</b> form?")
    seen = await tab.until(
        f"document.querySelector('.turn.assistant.coming') && {LAST_ANSWER}.length > 2 && {LAST_ANSWER}"
    )
    await tab.until(f"{NUM_ANSWERS} === 1")
    answer = await tab.run(LAST_ANSWER)
    assert answer.startswith(seen.rstrip())
    assert len(answer) > len(seen), "the text grew while the page showed it"
    assert "60 tokens" in await tab.text(".turn.assistant .numbers")
    assert "<b>queues</b>" in await tab.text(".turn.user .text"), "what looks like markup is text"
    await ask(tab, "and why do they stay?")
    await tab.until(f"{NUM_ANSWERS} === 2")
    assert await tab.run("document.querySelectorAll('.turn').length") == 4
    assert tab.complaints == []
    assert {url.split("/")[2] for url in tab.requested} == {page_of(locked).split("/")[2]}
    assert not [url for url in tab.requested if locked.key in url]


async def test_live_numbers_follow_the_traffic(tab: Tab, locked: Deployment) -> None:
    await unlock(tab, locked)
    value = "document.querySelector('#tile-{} .value').innerText"
    await tab.until(f"{value.format('tokens')} === '0'")
    load = asyncio.create_task(stream_chats(locked.endpoint, locked.key, ["hello " * 50] * 4, max_tokens=600))
    await tab.until(f"{value.format('tokens')} > 20")
    await tab.until(f"{value.format('ttft')} > 0 && {value.format('itl')} > 0")
    await tab.until(f"{value.format('requests')} === '4'")
    await load
    await tab.until(f"{value.format('requests')} === '0'")
    assert await tab.run("document.querySelectorAll('#tile-tokens polyline').length") == 1
    assert tab.complaints == []


async def test_a_wrong_key_is_refused_with_a_reason_and_asked_for_again(tab: Tab, locked: Deployment) -> None:
    await tab.go(page_of(locked))
    await tab.until(DIALOG)
    assert tab.complaints == [], "no request without a key, and so no failed one"
    await tab.type("sk-wrong")
    await tab.press("Enter")
    await tab.until("!document.querySelector('#key-error').hidden")
    assert "not accepted: wrong or revoked API key" in await tab.text("#key-error")
    assert await tab.text("#phase") == "locked"
    assert await tab.run("document.querySelector('#send').disabled && sessionStorage.length === 0")
    await tab.type(locked.key)
    await tab.press("Enter")
    await tab.until(f"{PHASE} === 'serving'")
    await tab.go(page_of(locked))
    await tab.until(f"{PHASE} === 'serving'")  # it is kept while the tab is open
    assert await tab.run("[...Object.values(sessionStorage), document.cookie, localStorage.length].length") == 3


async def test_an_answer_can_be_stopped_and_the_engine_stops_too(tab: Tab, locked: Deployment) -> None:
    await unlock(tab, locked)
    await tab.run("document.querySelector('#max-tokens').value = 20000")
    await ask(tab, "go on")
    await tab.until(f"document.querySelector('.turn.assistant.coming') && {LAST_ANSWER}.length > 20")
    await tab.press("Escape")
    await tab.until("document.querySelector('.turn.assistant .numbers').innerText.endsWith('stopped')")
    await tab.until("document.querySelector('#tile-requests .value').innerText === '0'")
    assert await tab.run("document.activeElement.id") == "question"
    assert tab.complaints == []


async def test_what_the_endpoint_refuses_is_shown_and_the_question_is_not_lost(tab: Tab, locked: Deployment) -> None:
    await unlock(tab, locked)
    await tab.run("document.querySelector('#system').value = 'x'.repeat(200000)")
    await ask(tab, "too much?")
    await tab.until("document.querySelectorAll('.turn .error').length === 1")
    assert "context" in await tab.text(".turn .error")
    assert await tab.run("document.querySelector('#question').value") == "too much?"


async def test_a_name_that_contains_markup_is_shown_as_text(tab: Tab, deploy: Callable[..., Deployment]) -> None:
    name = "<img src=x onerror=alert(1)>"
    deployment = deploy("--cluster", "local", "--engine", "mock", "--set", f"model.name={name}")
    await tab.go(page_of(deployment))  # no key is asked for on loopback
    await tab.until(f"{PHASE} === 'serving'")
    assert await tab.text("#chat-model") == name
    assert name in await tab.text("#about")
    assert await tab.run("document.querySelectorAll('img').length") == 1
    assert tab.complaints == []


async def test_it_says_when_the_endpoint_is_gone(tab: Tab, deploy: Callable[..., Deployment]) -> None:
    deployment = deploy("--cluster", "local", "--engine", "mock")
    await tab.go(page_of(deployment))
    await tab.until(f"{PHASE} === 'serving'")
    deployment.hpcserve("down")
    await tab.until(f"{PHASE} === 'unreachable'")
    assert "Trying again" in await tab.text("#notice")


async def test_it_fits_a_phone_and_the_keyboard(tab: Tab, locked: Deployment) -> None:
    await tab.look(390, 844, dark=True)
    await unlock(tab, locked)
    await tab.until("document.querySelectorAll('.tile').length === 6")
    assert await tab.run("document.documentElement.scrollWidth") <= 390
    unnamed = (
        "[...document.querySelectorAll('input, textarea')].filter((each) => !each.labels.length).map((each) => each.id)"
    )
    assert await tab.run(unnamed) == []
    reached = set()
    for _ in range(20):
        await tab.press("Tab")
        reached.add(await tab.run("document.activeElement.id || document.activeElement.tagName"))
    assert {"question", "send", "new-chat", "key-button", "log", "SUMMARY"} <= reached


async def test_the_dask_dashboard_draws_the_deployment(tab: Tab, locked: Deployment) -> None:
    assert locked.up["dashboard"].endswith("/hpcserve")
    await tab.go(locked.up["dashboard"])
    await tab.until("globalThis.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle")
    await stream_chats(locked.endpoint, locked.key, ["hello " * 200] * 4, max_tokens=100)
    points = "[...Bokeh.documents[0]._all_models.values()].find((model) => model.data?.at)?.data"
    await tab.until(f"Math.max(...[...{points}.generated_tokens_per_s]) > 20")
    await tab.until(f"[...{points}.ttft_p50_ms].at(-1) > 0 && [...{points}.itl_p90_ms].at(-1) > 0")
    await tab.until(f"Math.max(...[...{points}.pulled_tokens_per_s]) > 0 && Math.max(...[...{points}.running]) > 0")
    everything = (
        "(() => { const found = []; const walk = (node) => { found.push(node);"
        "for (const child of [node.shadowRoot, ...(node.children ?? [])]) if (child) walk(child); };"
        "walk(document.body); return found; })()"
    )
    canvases = f"{everything}.filter((node) => node.tagName === 'CANVAS' && node.width > 100).length"
    assert await tab.until(f"{canvases} >= 9 && {canvases}") >= 9
    table = await tab.run(f"{everything}.find((node) => node.tagName === 'TABLE').innerText")
    assert all(worker["id"] in table for worker in locked.up["workers"])
    assert "Hpcserve" in await tab.text(".navbar")
    assert tab.complaints == []
    await tab.go(locked.up["dashboard"].replace("/hpcserve", "/status"))
    assert "Hpcserve" in await tab.text(".navbar"), "Dask's own pages lead back"
