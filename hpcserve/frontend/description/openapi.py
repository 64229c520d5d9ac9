"""The API as an OpenAPI 3.1 document, built from what validates requests and what replies are made of.

It says nothing about the deployment but whether keys are asked for. https://spec.openapis.org/oas/v3.1.1.html
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from pydantic.json_schema import models_json_schema

from hpcserve import __version__
from hpcserve.errors import HpcserveError, RateLimited, Unauthorized, Unavailable
from hpcserve.frontend import unsupported
from hpcserve.frontend.description.operations import OPERATIONS, Operation
from hpcserve.frontend.messages import schemas as message_schemas
from hpcserve.frontend.messages.errors import is_message_path, message_error_status
from hpcserve.frontend.messages.replies import MessageError
from hpcserve.frontend.messages.schemas import CountTokensBody, MessagesBody
from hpcserve.frontend.replies import ErrorReply, Reply
from hpcserve.frontend.responses.schemas import RESPONSES, ResponsesBody
from hpcserve.frontend.schemas import Body, ChatBody, ChatMessage, CompletionBody, TokenizeChatBody
from hpcserve.frontend.schemas.embeddings import EMBEDDINGS, EmbeddingsBody

Schema = dict[str, Any]

_REF = "#/components/schemas/"
_KNOWN: dict[type[Body], dict[str, tuple[Any, ...]]] = {
    ChatBody: unsupported.CHAT,
    CompletionBody: unsupported.COMPLETION,
    ChatMessage: unsupported.MESSAGE,
    TokenizeChatBody: unsupported.TOKENIZE_CHAT,
    ResponsesBody: RESPONSES,
    EmbeddingsBody: EMBEDDINGS,
    MessagesBody: message_schemas.MESSAGES,
    CountTokensBody: message_schemas.COUNT_TOKENS,
}
_DESCRIPTION = (
    "OpenAI's online endpoints with the extra fields of vLLM's server, and Anthropic's Messages API. A field that is "
    "not known, or that asks for what is not served, is refused by name."
)
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
}


def openapi_document(*, has_keys: bool) -> dict[str, Any]:
    """Return the document of a frontend that asks for keys, or for none."""
    paths: dict[str, dict[str, Any]] = {}
    for each in OPERATIONS:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each, has_keys)
    return {
        "openapi": "3.1.1",
        "info": {"title": "hpcserve", "version": __version__, "description": _DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": {**_body_schemas(), **_reply_schemas()},
            "securitySchemes": _SECURITY_SCHEMES if has_keys else {},
        },
    }


def _operation(operation: Operation, has_keys: bool) -> dict[str, Any]:
    is_locked = has_keys and operation.needs_key
    described: dict[str, Any] = {
        "operationId": "_".join([operation.method.lower(), *re.findall(r"\w+", operation.path)]),
        "summary": operation.summary,
        "security": [{name: []} for name in _SECURITY_SCHEMES] if is_locked else [],
    }
    names = re.findall(r"{(\w+)}", operation.path)
    parameters = [
        {"name": each, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for each in names
    ]
    parameters += _query_parameters(operation)
    if parameters:
        described["parameters"] = parameters
    if operation.body:
        schemas = [{"$ref": _REF + each.__name__} for each in operation.body]
        content = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        kind = "multipart/form-data" if operation.is_form else "application/json"
        described["requestBody"] = {"required": True, "content": {kind: {"schema": content}}}
    errors = (*operation.errors, Unauthorized) if is_locked else operation.errors
    described["responses"] = {"200": _success(operation), **_failures(errors, operation.path)}
    return described


def _query_parameters(operation: Operation) -> list[Schema]:
    if operation.query is None:
        return []
    properties = operation.query.model_json_schema()["properties"]
    return [
        {"name": name, "in": "query", "required": False, "schema": _without_null(schema)}
        for name, schema in properties.items()
    ]


def _without_null(schema: Schema) -> Schema:
    """Return the schema of a parameter: one that is not wanted is left out."""
    choice: Schema = next((each for each in schema.get("anyOf", ()) if each != {"type": "null"}), {})
    kept = {name: each for name, each in schema.items() if name not in ("anyOf", "title")}
    if kept.get("default") is None:
        kept.pop("default", None)
    return {**kept, **_untitled(choice)}


def _success(operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if isinstance(operation.reply, str):
        content[operation.reply] = {"schema": {"type": "object" if operation.reply.endswith("json") else "string"}}
    else:
        content["application/json"] = {"schema": {"$ref": _REF + operation.reply.__name__}}
    kinds = operation.event if isinstance(operation.event, tuple) else (operation.event,)
    if kinds:
        # How the items of a stream look has a place of its own only from OpenAPI 3.2 on. Without a type, because some
        # readers take a schema for that of the whole text, and some for that of an event.
        events = {"description": "Events whose data is JSON, and at the end what says so, or an error."}
        items = [{"$ref": _REF + each.__name__} for each in kinds]
        item = items[0] if len(items) == 1 else {"oneOf": items}
        content["text/event-stream"] = {"schema": events, "x-itemSchema": item}
    return {"description": operation.summary, "headers": _headers(()), "content": content}


def _failures(errors: tuple[type[HpcserveError], ...], path: str) -> dict[str, Any]:
    is_message = is_message_path(path)
    reply = MessageError if is_message else ErrorReply
    by_status: dict[int, list[type[HpcserveError]]] = {}
    for each in errors:
        by_status.setdefault(message_error_status(each) if is_message else each.http_status, []).append(each)
    return {
        str(status): {
            "description": " ".join(_told(each) for each in group),
            "headers": _headers(group),
            "content": {"application/json": {"schema": {"$ref": _REF + reply.__name__}}},
        }
        for status, group in sorted(by_status.items())
    }


def _told(error: type[HpcserveError]) -> str:
    said = (error.__doc__ or "").strip().splitlines()[0]
    return f"{error.code}: {said}" if error.code else said


def _headers(errors: list[type[HpcserveError]] | tuple[()]) -> dict[str, Any]:
    headers: dict[str, Any] = {
        "x-request-id": {"description": "The request's own, or a new one.", "schema": {"type": "string"}}
    }
    if any(issubclass(each, Unavailable | RateLimited) for each in errors):
        headers["Retry-After"] = {"description": "In seconds.", "schema": {"type": "integer", "minimum": 1}}
    if Unauthorized in errors:
        headers["WWW-Authenticate"] = {"schema": {"type": "string"}}
    return headers


def _body_schemas() -> dict[str, Schema]:
    models = {each for operation in OPERATIONS for each in operation.body} | set(_KNOWN)
    inputs = [(each, "validation") for each in sorted(models, key=lambda each: each.__name__)]
    _, described = models_json_schema(inputs, ref_template=_REF + "{model}")  # type: ignore[arg-type]
    schemas: dict[str, Schema] = described["$defs"]
    for schema in schemas.values():
        required = schema.get("required", ())
        schema["properties"] = {
            name: each if name in required else _or_null(each) for name, each in schema["properties"].items()
        }
    for model, known in _KNOWN.items():
        properties = schemas[model.__name__]["properties"]
        properties.update({name: _harmless(values) for name, values in known.items() if name not in properties})
    # It is taken where it says what is done anyway.
    schemas[CompletionBody.__name__]["properties"]["best_of"] = {
        "type": ["integer", "null"],
        "description": "Not served, unless it equals n.",
    }
    return schemas


def _or_null(schema: Schema) -> Schema:
    """Return the schema of a field that may be null, as every optional field of a request may."""
    choices: list[Schema] = schema.get("anyOf") or [{name: each for name, each in schema.items() if name != "default"}]
    if {"type": "null"} not in choices:
        choices = [*choices, {"type": "null"}]
    rest = {name: schema[name] for name in ("description", "default") if schema.get(name) is not None}
    return {"anyOf": [_untitled(each) for each in choices], **rest}


def _harmless(values: tuple[Any, ...]) -> Schema:
    if ... in values:
        return {"description": "Taken and ignored."}
    distinct = [each for i, each in enumerate(values) if each not in values[:i]]
    return {"enum": [*distinct, None], "description": "Not served, so that only these values are accepted."}


def _reply_schemas() -> dict[str, Schema]:
    described: set[type[Reply]] = {ErrorReply, MessageError}
    for each in OPERATIONS:
        kinds = each.event if isinstance(each.event, tuple) else (each.event,)
        described |= {reply for reply in (each.reply, *kinds) if isinstance(reply, type)}
    ordered = sorted(described, key=lambda reply: reply.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=_REF + "{name}")
    for schema in schemas.values():
        schema.pop("additionalProperties", None)  # clients are not to break when a field is added
    return dict(schemas)


def _untitled(schema: Schema) -> Schema:
    return {name: each for name, each in schema.items() if name != "title"}
