"""The description of the API as one page of HTML, for people: no script, nothing fetched from anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font: 13px/1.4 ui-monospace, monospace } pre { overflow: auto }
details { border: 1px solid #8886; border-radius: 6px; margin: .5rem 0; padding: .4rem .8rem }
summary { cursor: pointer } b.method { display: inline-block; width: 3.5rem }
table { border-collapse: collapse; margin: .5rem 0 1rem; width: 100% }
td, th { border-bottom: 1px solid #8884; padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }
"""


def docs_page(document: dict[str, Any]) -> str:
    """Return the page of an OpenAPI document."""
    info, schemas = document["info"], document["components"]["schemas"]
    operations = "".join(
        _operation(method, path, operation, schemas)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    objects = "".join(
        f'<details id="{escape(name)}"><summary><code>{escape(name)}</code> {escape(schema.get("description", ""))}'
        f"</summary><pre>{escape(json.dumps(schema, indent=2))}</pre></details>"
        for name, schema in sorted(schemas.items())
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])} "
        'The same for programs: <a href="openapi.json">openapi.json</a>.</p>'
        f"<h2>Operations</h2>{operations}<h2>Objects</h2>{objects}</body></html>\n"
    )


def _operation(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    key = "<p>Needs a key.</p>" if operation["security"] else ""
    bodies = "".join(_fields(name, schemas[name]) for name in _body_names(operation))
    rows = "".join(
        f"<tr><td>{status}</td><td>{_objects(response)}</td><td>{escape(response['description'])}</td></tr>"
        for status, response in operation["responses"].items()
    )
    return (
        f'<details><summary><b class="method">{method.upper()}</b> <code>{escape(path)}</code> '
        f"{escape(operation['summary'])}</summary>{key}{bodies}"
        f"<table><tr><th>Status</th><th>Body</th><th></th></tr>{rows}</table></details>"
    )


def _body_names(operation: dict[str, Any]) -> Iterator[str]:
    content = operation.get("requestBody", {}).get("content", {})
    for media in content.values():
        for each in media["schema"].get("anyOf", [media["schema"]]):
            yield _name(each)


def _fields(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code></td><td>{_type(each)}</td>"
        f"<td>{'required' if field in required else _default(each)}</td>"
        f"<td>{escape(each.get('description', ''))}</td></tr>"
        for field, each in schema["properties"].items()
    )
    return f"<table><tr><th>{escape(name)}</th><th>Type</th><th>Default</th><th></th></tr>{rows}</table>"


def _default(schema: dict[str, Any]) -> str:
    return f"<code>{escape(json.dumps(schema['default']))}</code>" if "default" in schema else ""


def _type(schema: dict[str, Any]) -> str:
    """Return a type in a few words, with its bounds."""
    if "$ref" in schema:
        return _link(_name(schema))
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"] if each != {"type": "null"})
    if "enum" in schema:
        return " or ".join(f"<code>{escape(json.dumps(each))}</code>" for each in schema["enum"])
    if "items" in schema:
        return f"list of {_type(schema['items'])}"
    kind = schema.get("type", "anything")
    words = [" or ".join(kind) if isinstance(kind, list) else kind]
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤"}
    words += [f"{sign} {schema[limit]}" for limit, sign in limits.items() if limit in schema]
    return escape(" ".join(words))


def _objects(response: dict[str, Any]) -> str:
    return "<br>".join(
        _link(_name(schema)) if "$ref" in schema else escape(media_type)
        for media_type, media in response["content"].items()
        for schema in [media.get("x-itemSchema", media["schema"])]
    )


def _link(name: str) -> str:
    return f'<a href="#{escape(name)}">{escape(name)}</a>'


def _name(schema: dict[str, Any]) -> str:
    return str(schema["$ref"]).rpartition("/")[2]
