"""The parts of the configuration that speak of what clients and users see."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from hpcserve.config.section import Section


class FrontendConfig(Section):
    """The HTTP server."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: all of this host's")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="0: any free port")
    processes: PositiveInt = Field(
        1, description="on the one port; each takes the connections that the system gives it"
    )
    tcp: bool = Field(True, description="false: listen on the Unix socket only")
    unix_socket: Path | None = Field(None, description="listen there too, in a directory of yours alone")
    tls_cert: Path | None = Field(None, description="certificate in PEM, with its chain; makes the endpoint https")
    tls_key: Path | None = Field(None, description="its private key, readable by you alone")
    max_body_mb: PositiveFloat = Field(20.0, description="larger bodies get a 413")
    max_attempts: PositiveInt = Field(4, description="workers that a request may be lost on before it fails")
    head_timeout_s: Annotated[float, Field(ge=0)] = Field(
        60.0, description="new requests wait that long for a head that is gone, then they get a 503"
    )
    reassign_timeout_s: PositiveFloat = Field(120.0, description="to find a new worker for a request that was lost")
    request_timeout_s: PositiveFloat = Field(3600.0, description="longer requests are aborted with a 504")
    drain_timeout_s: Annotated[float, Field(ge=0)] = Field(20.0, description="for running requests when going down")


class SecurityConfig(Section):
    """Who may connect."""

    auth: Literal["auto", "on", "off"] = Field("auto", description="auto: a key is required unless local and loopback")
    share_prefixes: bool = Field(
        False, description="let tenants find each other's prompts in the KV cache: faster, and visible by timing"
    )


class DashboardConfig(Section):
    """The Dask dashboard, always bound to loopback."""

    enabled: bool = Field(True, description="whether there is one")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(0, description="0: any free port")


class BatchesConfig(Section):
    """The Files and Batches API. Batches run from the command line have no such limits."""

    enabled: bool = Field(True, description="whether there are /v1/files and /v1/batches")
    directory: Path | None = Field(None, description="where files and batches are kept; default: the deployment's own")
    max_lines: PositiveInt = Field(50_000, description="requests in one batch")
    max_file_mb: PositiveFloat = Field(200.0, description="larger uploads get a 413")
    max_active: PositiveInt = Field(2, description="batches that run at once; more wait")
    keep_days: PositiveFloat = Field(30.0, description="a file is deleted after that, and so are its batch's results")
    priority: int = Field(100, description="of their requests; online ones have 0, and lower runs first")
    max_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.75, description="of a worker's sequences that batches may take, so that online requests find room at once"
    )


class TracingConfig(Section):
    """OpenTelemetry spans of requests. Off without an endpoint."""

    endpoint: str | None = Field(
        None, pattern="^https?://", description="OTLP over HTTP, such as http://localhost:4318/v1/traces"
    )
    sample: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="share of requests that nobody else decided on"
    )
