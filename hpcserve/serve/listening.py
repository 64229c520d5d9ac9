"""What the HTTP server of a deployment listens on, as its configuration says: checked, named, warned about."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress
from urllib.parse import urlsplit

from hpcserve.config.models import Config, FrontendConfig
from hpcserve.errors import ConfigError, DeploymentError, StartError
from hpcserve.frontend.exposure import is_loopback
from hpcserve.frontend.server.certificate import server_tls
from hpcserve.frontend.server.unix_socket import check_unix_socket
from hpcserve.records import HeadRecord

log = logging.getLogger(__name__)


def resolved(frontend: FrontendConfig) -> FrontendConfig:
    """Return it with absolute paths: the processes that use them start elsewhere."""
    paths = {"unix_socket": frontend.unix_socket, "tls_cert": frontend.tls_cert, "tls_key": frontend.tls_key}
    return frontend.model_copy(update={name: path and path.expanduser().absolute() for name, path in paths.items()})


def check_listening(frontend: FrontendConfig, *, is_here: bool = True) -> None:
    """Raise `ConfigError` or `DeploymentError` where it cannot be listened as configured.

    Without `is_here` another host will: then its port and its sockets cannot be looked at.
    """
    if frontend.tls_cert and frontend.tls_key:
        server_tls(frontend.tls_cert, frontend.tls_key)
    if frontend.unix_socket and is_here:
        check_unix_socket(frontend.unix_socket)
    if frontend.tcp:
        if is_here:
            check_port(frontend.host, frontend.port)
    elif frontend.processes > 1:
        raise ConfigError(
            f"frontend.processes = {frontend.processes} needs a port: a Unix socket is one process's; "
            "set frontend.tcp to true, or frontend.processes to 1",
            param="frontend.processes",
        )


def reserve_port(frontend: FrontendConfig, adopted: int | None = None) -> socket.socket | None:
    """Return a socket that holds the port which frontends are about to share; None where that has no use.

    It takes no connections itself. Held for as long as the head lives, so that a process that is started anew finds
    the port free, also a single one that had any free port. `adopted` is the one that processes of an earlier head
    have already. Raises `StartError`.
    """
    if not frontend.tcp or (frontend.processes == 1 and frontend.port):
        return None
    port = frontend.port if adopted is None else adopted
    holder = socket.socket(socket.AF_INET6 if ":" in frontend.host else socket.AF_INET)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((frontend.host, port))
    except OSError as err:
        holder.close()
        message = f"cannot share {frontend.host}:{port}: {err.strerror or err}; choose another with --port"
        raise StartError(message, param="frontend.port") from err
    return holder


def listened_on(frontend: FrontendConfig, own: str, *, has_job: bool) -> str | None:
    """Return what is listened on in place of the configured address, if anything.

    Loopback of a node where nobody types commands is of no use: there it stands for the node's `own` address.
    """
    return own if has_job and frontend.tcp and is_loopback(frontend.host) else None


def ports_of(before: HeadRecord | None, host: str) -> tuple[int, int]:
    """Return the ports of an earlier head's scheduler and channel on this host, where they are free; 0: any.

    Who still has the old record, as file systems may for a minute, finds the successor there.
    """
    if before is None or not before.proc.is_local:
        return 0, 0
    return _free_port_of(before.scheduler, host), _free_port_of(before.address, host)


def _free_port_of(address: str, host: str) -> int:
    url = urlsplit(address)
    if url.hostname != host or not url.port:
        return 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind((host, url.port))
            return url.port
    return 0


def endpoint_url(host: str, port: int, *, has_tls: bool) -> str:
    """Return a URL that works from this host; a server on all addresses is reached by the host's name."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host  # noqa: S104  compared, not bound
    scheme = "https" if has_tls else "http"
    return f"{scheme}://[{name}]:{port}/v1" if ":" in name else f"{scheme}://{name}:{port}/v1"


def plain_http_warnings(config: Config, host: str | None = None) -> tuple[str, ...]:
    """Say so where keys and prompts cross a network in the clear. `host`: see `listened_on`."""
    frontend = config.frontend
    host = host or frontend.host
    if not frontend.tcp or frontend.tls_cert or is_loopback(host):
        return ()
    return (
        f"the endpoint on {host} is plain HTTP: keys and prompts cross the network in the clear; "
        "set frontend.tls_cert and frontend.tls_key",
    )


def check_port(host: str, port: int) -> None:
    """Raise `DeploymentError` where somebody listens there already."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as err:
            raise DeploymentError(
                f"cannot listen on {host}:{port}: {err.strerror}; "
                "choose another with --port (0: any free port) or --host"
            ) from err


def address_warnings(config: Config, host: str) -> tuple[str, ...]:
    """Warn of a head on loopback, which is of no use to other nodes. Raises `ConfigError` under `strict`."""
    num_nodes = int(os.environ.get("SLURM_JOB_NUM_NODES") or 1)
    is_spread = config.cluster.kind == "slurm" or (config.cluster.kind == "mpi" and num_nodes > 1)
    if not is_spread or config.cluster.interface or not host.startswith("127."):
        return ()
    message = (
        f"this host's name stands for {host}, which compute nodes cannot reach; "
        "set cluster.interface to a network that they share, such as ib0 (lo if all nodes are this machine)"
    )
    if config.strict:
        raise ConfigError(message)
    log.warning("%s", message)
    return (message,)
