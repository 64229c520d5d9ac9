"""Which address of this host other processes of a deployment should use."""

from __future__ import annotations

import socket

from hpcserve.config.models import Config
from hpcserve.errors import ConfigError, did_you_mean

LOOPBACK = "127.0.0.1"


def announce_host(config: Config) -> str:
    """Return the IPv4 address to listen on and announce.

    That of `cluster.interface` where one is named, loopback for a local deployment, else the one that this host's name
    stands for. Raises `ConfigError` for an interface that this host does not have.
    """
    if config.cluster.interface:
        return interface_address(config.cluster.interface)
    if config.cluster.kind == "local":
        return LOOPBACK
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return LOOPBACK


def interface_address(interface: str) -> str:
    """Return the IPv4 address of a network interface, such as ib0. Raises `ConfigError` naming those there are."""
    import psutil

    interfaces = psutil.net_if_addrs()
    for address in interfaces.get(interface, []):
        if address.family == socket.AF_INET:
            return str(address.address)
    raise ConfigError(
        f"cluster.interface={interface!r} has no IPv4 address on {socket.gethostname()}"
        + did_you_mean(interface, interfaces)
    )
