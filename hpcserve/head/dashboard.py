"""The page /hpcserve of the Dask dashboard: what the head knows of workers, queues, latencies and transfers, over time.

Like the rest of that dashboard it is served on loopback without a login, so it names no tenant and shows no prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from hpcserve.comm.address import LOOPBACK
from hpcserve.observability.history import History, Point
from hpcserve.types import Status

PAGE = "hpcserve"
NUM_POINTS = 600
"""That the head keeps: ten minutes."""
_UPDATE_MS = 1000


def register(make_status: Callable[[], Status], history: History) -> None:
    """Give the page to the dashboards of the schedulers that this process makes from now on."""
    from distributed.dashboard.scheduler import applications

    applications[f"/{PAGE}"] = partial(_fill, make_status, history)


def link(scheduler: Any) -> str:
    """Put the page first in the navigation of a scheduler's dashboard, on loopback, and return its URL."""
    from distributed.dashboard.scheduler import template_variables

    pages = template_variables(scheduler)["pages"]  # the very list that the pages are rendered with
    if PAGE not in pages:
        pages.insert(0, PAGE)
    return f"http://{LOOPBACK}:{scheduler.http_server.port}/{PAGE}"


def _fill(
    make_status: Callable[[], Status], history: History, scheduler: Any, variables: dict[str, Any], document: Any
) -> None:
    """Fill a document that somebody has opened; distributed calls this with its scheduler."""
    from distributed.dashboard.components.scheduler import env

    from hpcserve.head.dashboard_figures import Figures

    figures = Figures()
    figures.show_workers(make_status())
    figures.add_points(list(history.points))
    document.add_root(figures.layout)
    document.title = f"hpcserve: {make_status().name}"
    document.template = env.get_template("simple.html")
    document.template_variables.update(variables)
    document.add_periodic_callback(partial(_update, make_status, history, figures), _UPDATE_MS)


def _update(make_status: Callable[[], Status], history: History, figures: Any) -> None:
    figures.show_workers(make_status())
    figures.add_points(_newer(history, figures.newest))


def _newer(history: History, than: float) -> list[Point]:
    found = []
    for point in reversed(history.points):
        if point.at <= than:
            break
        found.append(point)
    return found[::-1]
