"""GET /openapi.json and /docs: what the API is, for programs and for people. Made once, when first asked for."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import msgspec
from aiohttp import web

from hpcserve.frontend.description.docs_page import docs_page
from hpcserve.frontend.description.openapi import openapi_document
from hpcserve.frontend.errors import json_response

_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
}


class Description:
    """Of the API of one frontend."""

    def __init__(self, *, has_keys: bool) -> None:
        self._has_keys = has_keys

    async def document(self, request: web.Request) -> web.Response:
        """GET /openapi.json."""
        return json_response(msgspec.json.encode(self._document))

    async def page(self, request: web.Request) -> web.Response:
        """GET /docs."""
        return web.Response(text=docs_page(self._document), content_type="text/html", headers=_PAGE_HEADERS)

    @cached_property
    def _document(self) -> dict[str, Any]:
        return openapi_document(has_keys=self._has_keys)
