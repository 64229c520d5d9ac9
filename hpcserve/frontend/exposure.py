"""Who reaches a server, and whether they need a key. It loads nothing of the server: commands ask it, too."""

from __future__ import annotations

import ipaddress

from hpcserve.config.models import Config


def auth_required(config: Config, cluster_kind: str, host: str) -> bool:
    """Return whether callers need a key, for a server on `host` whose workers come from `cluster_kind`.

    "auto" means no key on loopback of a machine of one's own; on a cluster's login node loopback is everybody's.
    """
    if config.security.auth != "auto":
        return config.security.auth == "on"
    return cluster_kind != "local" or not is_loopback(host)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name: where it resolves to may change
