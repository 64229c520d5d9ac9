"""What the HTTP API offers, operation by operation: what goes in, what comes out, and which errors. Serves nothing."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve import errors
from hpcserve.errors import HpcserveError
from hpcserve.frontend import replies
from hpcserve.frontend.batches.replies import BatchList, BatchObject
from hpcserve.frontend.batches.schemas import BatchBody, ListBatchesQuery
from hpcserve.frontend.files.replies import FileDeleted, FileList, FileObject
from hpcserve.frontend.files.schemas import FileForm, ListFilesQuery
from hpcserve.frontend.messages import replies as message_replies
from hpcserve.frontend.messages.schemas import CountTokensBody, MessagesBody
from hpcserve.frontend.replies import Reply
from hpcserve.frontend.replies.embeddings import Embeddings
from hpcserve.frontend.responses import event_replies as response_events
from hpcserve.frontend.responses.replies import Response
from hpcserve.frontend.responses.schemas import ResponsesBody
from hpcserve.frontend.schemas import (
    Body,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    TokenizeChatBody,
    TokenizeTextBody,
)
from hpcserve.frontend.schemas.embeddings import EmbeddingsBody
from hpcserve.frontend.status import DeploymentStatus

Errors = tuple[type[HpcserveError], ...]

_POST: Errors = (errors.BadRequest, errors.ModelNotFound, errors.BodyTooSlow, errors.BodyTooLarge, errors.RateLimited)
_GENERATE: Errors = (
    *_POST,
    errors.ContextTooLong,
    errors.Unsupported,
    errors.EngineError,
    errors.Unavailable,
    errors.Overloaded,
    errors.DeadlineExceeded,
)
_STORED: Errors = (errors.BadRequest, errors.NotFound, errors.StorageFailed)
_STORE: Errors = (*_STORED, errors.BodyTooSlow, errors.BodyTooLarge, errors.RateLimited)


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    summary: str
    reply: type[Reply] | str  # a JSON object, or the content type of something else
    event: type[Reply] | tuple[type[Reply], ...] = ()  # of the stream that it may answer with instead; any of these
    body: tuple[type[Body], ...] = ()  # any of these
    errors: Errors = ()
    needs_key: bool = True  # where keys are asked for at all
    is_form: bool = False  # the body is multipart/form-data
    query: type[Body] | None = None  # parameters in the URL


OPERATIONS = (
    Operation(
        "POST", "/v1/chat/completions", "Continue a conversation",
        replies.ChatCompletion, replies.ChatCompletionChunk, (ChatBody,), _GENERATE,
    ),
    Operation(
        "POST", "/v1/completions", "Continue one or more prompts",
        replies.Completion, replies.CompletionChunk, (CompletionBody,), _GENERATE,
    ),
    Operation(
        "POST", "/v1/responses", "Answer some input, in the form of OpenAI's Responses API",
        Response, response_events.EVENTS, (ResponsesBody,), _GENERATE,
    ),
    Operation(
        "POST", "/v1/embeddings", "Get vectors that stand for texts",
        Embeddings, body=(EmbeddingsBody,), errors=_GENERATE,
    ),
    Operation(
        "POST", "/v1/messages", "Continue a conversation, in Anthropic's form",
        message_replies.Message, message_replies.EVENTS, (MessagesBody,), _GENERATE,
    ),
    Operation(
        "POST", "/v1/messages/count_tokens", "Count the tokens of a conversation, in Anthropic's form",
        message_replies.TokenCount, body=(CountTokensBody,), errors=(*_POST, errors.Unavailable),
    ),
    Operation(
        "POST", "/tokenize", "Get the token ids of a prompt or of a conversation",
        replies.Tokenized, body=(TokenizeTextBody, TokenizeChatBody), errors=(*_POST, errors.Unavailable),
    ),
    Operation(
        "POST", "/detokenize", "Get the text of token ids", replies.Detokenized, body=(DetokenizeBody,), errors=_POST
    ),
    Operation(
        "POST", "/v1/files", "Upload a file of requests",
        FileObject, body=(FileForm,), is_form=True, errors=_STORE,
    ),
    Operation("GET", "/v1/files", "List files", FileList, query=ListFilesQuery, errors=_STORED),
    Operation("GET", "/v1/files/{id}", "Get what is known of a file", FileObject, errors=_STORED),
    Operation("GET", "/v1/files/{id}/content", "Get a file", "application/octet-stream", errors=_STORED),
    Operation("DELETE", "/v1/files/{id}", "Delete a file", FileDeleted, errors=_STORED),
    Operation(
        "POST", "/v1/batches", "Have a file of requests answered when there is room",
        BatchObject, body=(BatchBody,), errors=_STORE,
    ),
    Operation("GET", "/v1/batches", "List batches", BatchList, query=ListBatchesQuery, errors=_STORED),
    Operation("GET", "/v1/batches/{id}", "Get one batch", BatchObject, errors=_STORED),
    Operation(
        "POST", "/v1/batches/{id}/cancel", "Cancel a batch; what is answered is kept",
        BatchObject, errors=(*_STORED, errors.RateLimited),
    ),
    Operation("GET", "/v1/models", "List the served models", replies.ModelList),
    Operation(
        "GET", "/v1/models/{id}", "Get one served model", replies.Model,
        errors=(errors.ModelNotFound, errors.Unavailable),
    ),
    Operation(
        "GET", "/health", "Ask whether requests are served", replies.Healthy,
        errors=(errors.Unavailable,), needs_key=False,
    ),
    Operation("GET", "/live", "Ask whether the process answers", replies.Alive, needs_key=False),
    Operation("GET", "/status", "See what the deployment does", DeploymentStatus),
    Operation("GET", "/metrics", "Get metrics in Prometheus' format", "text/plain"),
    Operation("GET", "/", "Open the page: what the deployment does, and a chat", "text/html", needs_key=False),
    Operation("GET", "/page/{name}", "Get a part of the page", "*/*", errors=(errors.NotFound,), needs_key=False),
    Operation("GET", "/openapi.json", "Get this description", "application/json", needs_key=False),
    Operation("GET", "/docs", "Read this description", "text/html", needs_key=False),
)  # fmt: skip
