"""GET / and the files it is made of: what the deployment does now, and a chat. Plain HTML, CSS and JavaScript modules.

Nothing is built and nothing is fetched from elsewhere. The page holds no data of its own: it asks `GET /status` and
`POST /v1/chat/completions` as any client does, with the key that is typed into it. Data reaches the page as text only.
"""

from __future__ import annotations

from importlib.resources import files

from aiohttp import web

from hpcserve.errors import NotFound

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # after an upgrade the parts have to fit together
}


class Page:
    """The page of one frontend. Its files are read once."""

    def __init__(self, *, has_keys: bool) -> None:
        self._parts = {each.name: each.read_bytes() for each in files(__name__).iterdir() if _type(each.name)}
        asked = b"asked" if has_keys else b"none"
        self._parts["index.html"] = self._parts["index.html"].replace(b"{{keys}}", asked)

    async def index(self, request: web.Request) -> web.Response:
        """GET /."""
        return self._respond("index.html")

    async def part(self, request: web.Request) -> web.Response:
        """GET /page/{name}. Raises `NotFound` for what the page has not."""
        return self._respond(request.match_info["name"])

    def _respond(self, name: str) -> web.Response:
        if name not in self._parts:
            raise NotFound(f"the page has no part {name[:100]!r}")
        return web.Response(body=self._parts[name], content_type=_type(name), charset="utf-8", headers=_HEADERS)


def _type(name: str) -> str | None:
    return next((media_type for ending, media_type in _TYPES.items() if name.endswith(ending)), None)
