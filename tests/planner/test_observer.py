"""What the planner sees of a router, its workers and the frontends."""

from __future__ import annotations

import pytest

from hpcserve.config.models import RouterConfig
from hpcserve.config.planning_models import PlannerConfig
from hpcserve.observability.metrics import ITL_S, TTFT_S
from hpcserve.planner import Observer
from hpcserve.router.router import Router
from hpcserve.types import (
    EngineInfo,
    LoadReport,
    RequestId,
    Role,
    RouteRequest,
    Traffic,
    WorkDone,
    WorkerId,
    WorkerInfo,
    WorkerState,
)

CONFIG = PlannerConfig(ttft_ms=1000, itl_ms=50)
ENGINE = EngineInfo(engine="mock", model="m", block_size=64, num_kv_blocks=1000, max_model_len=64_000)
SIZES = {"prefill": 1, "decode": 2}


def worker(name: str, state: WorkerState = WorkerState.READY, role: Role | None = None) -> WorkerInfo:
    pool = name.partition("-")[0]
    return WorkerInfo(worker=WorkerId(name), pool=pool, role=role or Role(pool), state=state, engine=ENGINE)


def ask(router: Router, name: str, num_tokens: int, priority: int = 0) -> None:
    request = RouteRequest(
        request_id=RequestId(name), block_hashes=[], num_tokens=num_tokens, max_tokens=9, priority=priority
    )
    router.submit(request, 100.0)


@pytest.fixture
def router() -> Router:
    router = Router(RouterConfig(), 64)
    for name in ("prefill-0", "decode-0"):
        router.update_worker(worker(name))
    return router


def traffic(**seconds: list[float]) -> Traffic:
    """Observations by bucket; a value on a bound belongs below it."""

    def counts(values: list[float], bounds: tuple[float, ...]) -> tuple[int, ...]:
        edges = (*bounds, float("inf"))
        return tuple(
            sum(low < value <= high for value in values) for low, high in zip((0.0, *edges), edges, strict=False)
        )

    return Traffic(ttft=counts(seconds.get("ttft", []), TTFT_S), itl=counts(seconds.get("itl", []), ITL_S))


def test_what_came_in_an_interval_is_what_came_since_the_last_one(router: Router) -> None:
    observer = Observer(CONFIG, router)
    ask(router, "a", 4000)
    ask(router, "b", 8000)
    ask(router, "of a batch", 8000, priority=100)
    seen = observer.observe(10.0, [], SIZES, Traffic())
    assert seen.num_arrived == 2
    assert seen.arrived_ms == pytest.approx(78 + 165, rel=0.1)
    assert seen.arrived_squares == pytest.approx(78**2 + 165**2, rel=0.2)
    assert (seen.num_waiting, seen.waiting_ms) == (3, pytest.approx(seen.arrived_ms))
    ask(router, "c", 4000)
    seen = observer.observe(16.0, [], SIZES, Traffic())
    assert (seen.num_arrived, seen.interval_s) == (1, 6.0)


def test_workers_show_what_waits_on_them_and_what_they_reported(router: Router) -> None:
    ask(router, "a", 4000)
    router.place(100.0)
    router.report(WorkerId("decode-0"), LoadReport(kv_usage=0.4, num_running=1))
    infos = [
        worker("prefill-0"),
        worker("decode-0", role=Role.PREFILL),
        worker("decode-1", WorkerState.PENDING),
        worker("decode-2", WorkerState.DRAINING),
        worker("decode-3", WorkerState.FAILED),
    ]
    seen = Observer(CONFIG, router).observe(10.0, infos, SIZES, Traffic(), 30.0)
    assert [(each.worker, each.role, each.state) for each in seen.workers] == [
        ("prefill-0", Role.PREFILL, "ready"),
        ("decode-0", Role.PREFILL, "ready"),
        ("decode-1", Role.DECODE, "coming"),
    ]
    assert seen.workers[0].queued_ms == pytest.approx(84, rel=0.1)
    assert seen.workers[1].kv_usage == 0.4
    assert (seen.num_wanted, seen.num_coming, seen.wait_s) == (3, 1, 30.0)


def test_who_waits_for_room_to_decode_is_told_from_who_waits_to_be_computed(router: Router) -> None:
    observer = Observer(CONFIG, router)
    ask(router, "fills the one decode worker", 60_000)
    router.place(100.0)
    ask(router, "waits", 8000)
    router.place(100.1)
    assert not observer.observe(1.0, [], SIZES, Traffic()).wants_room, "the prefill worker is not free either"
    router.prefill_done(RequestId("fills the one decode worker"))
    router.place(100.2)
    assert observer.observe(2.0, [], SIZES, Traffic()).wants_room
    router.release(RequestId("fills the one decode worker"))
    router.place(100.3)
    assert not observer.observe(3.0, [], SIZES, Traffic()).wants_room


def test_late_is_what_certainly_was_late(router: Router) -> None:
    observer = Observer(CONFIG, router)
    observer.observe(1.0, [], SIZES, traffic())
    told = traffic(ttft=[0.2, 0.9, 1.0, 3.0], itl=[0.02] * 8 + [0.06, 0.2])
    seen = observer.observe(2.0, [], SIZES, told)
    assert (seen.late_ttft, seen.late_itl) == (0.25, 0.2)
    assert seen.ttft_p90_ms is not None
    assert seen.ttft_p90_ms > 1000
    quiet = observer.observe(3.0, [], SIZES, told)
    assert (quiet.late_ttft, quiet.ttft_p90_ms) == (0.0, None)
    anew = observer.observe(4.0, [], SIZES, traffic(ttft=[0.2]))
    assert (anew.late_ttft, anew.ttft_p90_ms) == (0.0, None), "a frontend counts anew"


def test_the_gap_between_tokens_is_what_engines_measured_prompts_in_between_included(router: Router) -> None:
    observer, infos = Observer(CONFIG, router), [worker("prefill-0"), worker("decode-0")]

    def report(name: str, work: WorkDone) -> None:
        router.report(WorkerId(name), LoadReport(work=work))

    report("decode-0", WorkDone(decode_steps=100, decode_s=1.0))
    report("prefill-0", WorkDone(prefill_passes=9, prefill_s=9.0))
    assert observer.observe(1.0, infos, SIZES, Traffic()).gap_ms is None, "where counting began is not known"
    report("decode-0", WorkDone(decode_steps=150, decode_s=1.5, prefill_s=0.25))
    report("prefill-0", WorkDone(prefill_passes=99, prefill_s=99.0))
    assert observer.observe(2.0, infos, SIZES, Traffic()).gap_ms == 15.0
    assert observer.observe(3.0, infos, SIZES, Traffic()).gap_ms is None
