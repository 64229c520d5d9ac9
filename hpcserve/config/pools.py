"""What `--nodes`, `--prefill`, `--decode` and `--mode` say together about the pools. One node holds one worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hpcserve.config.models import PoolsConfig
from hpcserve.config.settings import Setting
from hpcserve.errors import ConfigError

Mode = Literal["aggregated", "disaggregated"]


@dataclass(frozen=True)
class PoolFlags:
    """The flags as given; None stands for a flag that was not."""

    nodes: int | None = None
    prefill: int | None = None
    decode: int | None = None
    mode: Mode | None = None

    @property
    def are_given(self) -> bool:
        """Whether any of them was."""
        return self != PoolFlags()


def pool_settings(flags: PoolFlags, below: PoolsConfig) -> list[Setting]:
    """Return what the flags set over the pools configured `below`. Raises `ConfigError` where they contradict.

    `--prefill` and `--decode` imply disaggregation. `--nodes` alone keeps the configured split where that adds up, and
    otherwise gives a quarter of the nodes to prefill.
    """
    _check_positive(flags)
    mode = _mode(flags, below)
    origin = "--mode" if flags.mode else _origin(flags)
    settings = [Setting(("pools", "mode"), mode, origin)] if mode != below.mode or flags.mode else []
    if flags.nodes is not None:
        settings.append(Setting(("cluster", "slurm", "exclusive"), True, "--nodes"))
    if mode == "aggregated":
        return settings + ([Setting(("pools", "workers"), flags.nodes, _origin(flags))] if flags.nodes else [])
    if flags.nodes is not None:
        return [*settings, *_split(flags.nodes, flags, below)]
    given = (("prefill", flags.prefill), ("decode", flags.decode))
    return settings + [Setting(("pools", pool), num, f"--{pool}") for pool, num in given if num is not None]


def _check_positive(flags: PoolFlags) -> None:
    for flag, num in (("--nodes", flags.nodes), ("--prefill", flags.prefill), ("--decode", flags.decode)):
        if num is not None and num < 1:
            raise ConfigError(f"{flag} {num}: must be at least 1")


def _mode(flags: PoolFlags, below: PoolsConfig) -> Mode:
    if flags.prefill is None and flags.decode is None:
        return flags.mode or below.mode
    if flags.mode == "aggregated":
        raise ConfigError("--mode aggregated has no prefill and decode pools: leave out --prefill and --decode")
    return "disaggregated"


def _split(nodes: int, flags: PoolFlags, below: PoolsConfig) -> list[Setting]:
    if nodes == 1:
        raise ConfigError(
            "--nodes 1: disaggregated mode needs at least 2 nodes, one for prefill and one for decode; "
            "take --nodes 2 or --mode aggregated"
        )
    prefill, decode = _sizes(nodes, flags, below)
    if min(prefill, decode) < 1 or prefill + decode != nodes:
        raise ConfigError(f"{_origin(flags)}: {_sum(flags)}; --prefill and --decode share the nodes, at least one each")
    return [
        Setting(("pools", "prefill"), prefill, "--nodes" if flags.prefill is None else "--prefill"),
        Setting(("pools", "decode"), decode, "--nodes" if flags.decode is None else "--decode"),
    ]


def _sizes(nodes: int, flags: PoolFlags, below: PoolsConfig) -> tuple[int, int]:
    if flags.prefill is not None:
        return flags.prefill, nodes - flags.prefill if flags.decode is None else flags.decode
    if flags.decode is not None:
        return nodes - flags.decode, flags.decode
    if below.mode == "disaggregated" and below.prefill + below.decode == nodes:
        return below.prefill, below.decode
    prefill = max(1, round(nodes / 4))
    return prefill, nodes - prefill


def _sum(flags: PoolFlags) -> str:
    if flags.prefill is not None and flags.decode is not None:
        return f"{flags.prefill} + {flags.decode} is not {flags.nodes}"
    return "no node is left for the other pool"


def _origin(flags: PoolFlags) -> str:
    given = (("--nodes", flags.nodes), ("--prefill", flags.prefill), ("--decode", flags.decode))
    return " ".join(f"{flag} {num}" for flag, num in given if num is not None)
