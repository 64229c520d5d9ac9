"""Every error hpcserve raises on purpose. Each has an HTTP status for the frontend and an exit code for the CLI.

A message says what failed, with which value, and what to do next. Errors of other libraries are translated where they
are called, with `raise ... from err`; nothing else is turned into one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class HpcserveError(Exception):
    """Root of the tree. `http_status` and `code` shape OpenAI's error body; `exit_code` is what the CLI returns."""

    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    error_type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param  # the field of the request or the key of the config that was wrong
        self.retry_after_s = retry_after_s  # when it may be worth trying again, where that is known


# --- what the user wrote -----------------------------------------------------------------------------------------


class ConfigError(HpcserveError):
    """A wrong key or value in flags, environment or YAML."""

    exit_code = 2


class BadRequest(HpcserveError):
    """The request cannot be served as written; the message says what to change."""

    http_status = 400
    error_type = "invalid_request_error"


class ContextTooLong(BadRequest):
    """Prompt plus requested tokens do not fit the model's context."""

    code = "context_length_exceeded"


class Unsupported(BadRequest):
    """A known field of the API asks for something that is not served."""

    code = "unsupported_parameter"


class Unauthorized(BadRequest):
    """No key, or a wrong one."""

    http_status = 401
    error_type = "authentication_error"
    code = "invalid_api_key"


class RateLimited(BadRequest):
    """The key's tenant has used what its limits allow for now."""

    http_status = 429
    error_type = "rate_limit_error"
    code = "rate_limit_exceeded"


class NotFound(BadRequest):
    """Unknown route or object."""

    http_status = 404


class ModelNotFound(NotFound):
    """The model named in the request is not served here."""

    code = "model_not_found"


class MethodNotAllowed(BadRequest):
    """The route exists, the method does not."""

    http_status = 405


class BodyTooLarge(BadRequest):
    """The request body is over the configured limit."""

    http_status = 413
    code = "request_too_large"


class BodyTooSlow(BadRequest):
    """The request body did not arrive in time."""

    http_status = 408
    code = "request_timeout"


# --- what the service could not do -------------------------------------------------------------------------------


class Unavailable(HpcserveError):
    """No worker can take the request now; it may be tried again."""

    http_status = 503
    error_type = "service_unavailable_error"
    code = "no_worker_ready"


class Overloaded(Unavailable):
    """More requests wait than the configuration lets wait, or this one has waited too long."""

    code = "overloaded"


class StorageFailed(Unavailable):
    """Files or batches cannot be read or written now."""

    code = "storage_failed"


class DeadlineExceeded(HpcserveError):
    """The request ran longer than the configured limit and was aborted."""

    http_status = 504
    code = "deadline_exceeded"


class EngineError(HpcserveError):
    """The engine failed on a request or died."""

    code = "engine_error"


class WorkerLost(EngineError):
    """The connection to a worker ended while a request ran on it. Dispatch re-assigns; clients never see it."""

    code = "worker_lost"


class WorkerLeaving(WorkerLost):
    """A worker that has to leave gave a request up, with all that it had said; no fault of the request's."""


class KVError(HpcserveError):
    """KV cannot be moved here: the transport is missing, or the memory cannot be registered."""

    code = "kv_error"


class ConnectionLost(HpcserveError):
    """A channel to another hpcserve process broke, or could not be opened."""

    http_status = 503
    error_type = "service_unavailable_error"
    code = "connection_lost"


# --- where it runs -----------------------------------------------------------------------------------------------


class ClusterError(HpcserveError):
    """The cluster refused: no Slurm, no such partition, more nodes than there are."""

    exit_code = 4


class ClusterAway(ClusterError):
    """The cluster does not answer. What runs there goes on, and nothing is to be concluded about it."""


class DeploymentError(HpcserveError):
    """A deployment of this name is already running, is not running, or its state directory is unusable."""

    exit_code = 5


class StartError(HpcserveError):
    """The deployment came up too slowly or failed while coming up; everything it had started was stopped."""

    exit_code = 6


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest of `valid`, or the list of them where none is near."""
    choices = sorted(valid)
    near = difflib.get_close_matches(word, choices, n=3, cutoff=0.6)
    if near:
        return "; did you mean " + " or ".join(repr(name) for name in near) + "?"
    return "; valid: " + ", ".join(choices) if choices else ""
