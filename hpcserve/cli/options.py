"""The options that set keys of the configuration, shared by `up` and `config show`, and what they load to.

They leave their values in the click context, so that commands have no parameter for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hpcserve.cli.ranks import num_workers

if TYPE_CHECKING:
    from hpcserve.config import LoadedConfig, PoolFlags

_Command = TypeVar("_Command", bound=Callable[..., Any])
_FLAGS = "hpcserve.flags"
_SIZES = "hpcserve.sizes"
_FILE = "hpcserve.config_file"
_ASSIGNMENTS = "hpcserve.assignments"

ENGINES = ("vllm", "mock")
CLUSTERS = ("auto", "local", "slurm", "mpi")
MODES = ("aggregated", "disaggregated")
HEADS = ("here", "job")
POLICIES = ("random", "round_robin", "least_loaded", "power_of_two", "session", "dynamo", "kv")


def config_options(command: _Command) -> _Command:
    """Add every option that the configuration is made of."""
    return _with(command, _options())


def engine_options(command: _Command) -> _Command:
    """Add the options of what concerns one engine only."""
    return _with(command, [_model(), _engine(), *_files_and_keys()])


def standalone_options(command: _Command) -> _Command:
    """Add the options of `up` that say which workers there are: for commands that bring up their own deployment."""
    return _with(command, [*_workers(), _policy(), *_files_and_keys()])


def first_given(ctx: click.Context) -> str | None:
    """Return an option for the configuration that was given, or None."""
    flags = [flag for _, _, flag in ctx.meta.get(_FLAGS, [])]
    sizes = [f"--{name}" for name, value in ctx.meta.get(_SIZES, {}).items() if value is not None]
    files = ["--config"] if ctx.meta.get(_FILE) else []
    assignments = ["--set"] if ctx.meta.get(_ASSIGNMENTS) else []
    return next(iter([*flags, *sizes, *files, *assignments]), None)


def slurm_options() -> list[Any]:
    """Return the options of what is asked of Slurm."""
    return [
        _key("--partition", "cluster.slurm.partition", "Slurm partition.", metavar="NAME"),
        _key("--account", "cluster.slurm.account", "Slurm account.", metavar="NAME"),
        _key("--walltime,--time", "cluster.slurm.walltime", "Slurm time limit.", metavar="[D-]H:M:S"),
    ]


def set_key(ctx: click.Context, key: str, value: Any, flag: str) -> None:
    """Set a key of the configuration as the flag would that has it."""
    ctx.meta.setdefault(_FLAGS, []).append((tuple(key.split(".")), value, flag))


def load_config(ctx: click.Context, *, allow_contradictions: bool = False) -> LoadedConfig:
    """Put the configuration together from the options, the environment and the file. Raises `ConfigError`."""
    from hpcserve.config import PoolFlags, Setting, load

    given: dict[str, Any] = ctx.meta

    def put_together(pools: PoolFlags) -> LoadedConfig:
        return load(
            file=given.get(_FILE),
            assignments=given.get(_ASSIGNMENTS, ()),
            flags=[Setting(path, value, flag) for path, value, flag in given.get(_FLAGS, [])],
            pools=pools,
            allow_contradictions=allow_contradictions,
        )

    pools = PoolFlags(**given.get(_SIZES, {}))
    loaded = put_together(pools)
    if loaded.config.cluster.kind == "mpi" and (fitting := _fill_ranks(pools, loaded)) is not None:
        return put_together(fitting)
    return loaded


def given_keys(ctx: click.Context, loaded: LoadedConfig) -> frozenset[str]:
    """Return the keys that were set for this one command: by its options, or in a file that it names."""
    named = f"{ctx.meta[_FILE]}:" if ctx.meta.get(_FILE) else "--"
    return frozenset(key for key, origin in loaded.origins.items() if origin.startswith(("--", named)))


def _fill_ranks(pools: PoolFlags, loaded: LoadedConfig) -> PoolFlags | None:
    """Return what makes a worker of every rank, where nobody has said how many workers there are."""
    sizes = ("pools.workers", "pools.prefill", "pools.decode")
    if any(loaded.origins[key] != "default" for key in sizes if pools == replace(pools, prefill=None, decode=None)):
        return None
    if pools.nodes is not None or (pools.prefill is not None and pools.decode is not None):
        return None
    num = num_workers()
    return replace(pools, nodes=num) if num else None


def _with(command: _Command, options: list[Any]) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command


def _options() -> list[Callable[[_Command], _Command]]:
    return [
        _key("--name", "name", "Name of the deployment; several can run side by side.  [default: default]"),
        _model(),
        *_workers(),
        _key("--host", "frontend.host", "Address that the endpoint listens on.  [default: 127.0.0.1]"),
        _key("--port", "frontend.port", "Port of the endpoint; 0: any free one.  [default: 8000]", kind=int),
        _key("--unix-socket", "frontend.unix_socket", "Socket that the endpoint listens on, too.", metavar="PATH"),
        _key("--frontends", "frontend.processes", "Processes on the one port.  [default: 1]", kind=int, metavar="N"),
        _key("--head", "cluster.slurm.head", "Slurm: where the head runs.  [default: here]", kind=click.Choice(HEADS)),
        _policy(),
        _option("--no-auth", _keep_no_auth, "Ask clients for no key, even where others can connect.", is_flag=True),
        *_files_and_keys(),
    ]


def _workers() -> list[Any]:
    return [
        _size("--nodes", "Workers in all; a quarter of them prefills when disaggregated."),
        _size("--prefill", "Prefill workers; implies --mode disaggregated."),
        _size("--decode", "Decode workers; implies --mode disaggregated."),
        _size("--mode", "Whether prefill and decode have workers of their own.", kind=click.Choice(MODES)),
        _engine(),
        _key("--cluster", "cluster.kind", "Where workers run.  [default: auto]", kind=click.Choice(CLUSTERS)),
        *slurm_options(),
    ]


def _policy() -> Any:
    return _key("--policy", "router.policy", "How workers are chosen.  [default: kv]", kind=click.Choice(POLICIES))


def _model() -> Any:
    return _key("--model", "model.path", "Directory with the model's weights and tokenizer.", metavar="DIR")


def _engine() -> Any:
    return _key("--engine", "engine.kind", "What runs the model.  [default: vllm]", kind=click.Choice(ENGINES))


def _files_and_keys() -> list[Callable[[_Command], _Command]]:
    return [
        _option("--config", _keep_file, "YAML file to read.", kind=click.Path(path_type=Path), metavar="FILE"),
        _option("--set", _keep_assignments, "Any key, such as router.seed=7.", metavar="KEY=VALUE", multiple=True),
    ]


def _key(flags: str, key: str, text: str, *, kind: Any = str, metavar: str | None = None) -> Any:
    """Return an option that sets one key of the configuration."""

    def keep(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None:
            ctx.meta.setdefault(_FLAGS, []).append((tuple(key.split(".")), value, flags.partition(",")[0]))

    return _option(flags, keep, text, kind=kind, metavar=metavar)


def _size(flag: str, text: str, *, kind: Any = int) -> Any:
    """Return an option that the pools are worked out from."""

    def keep(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        ctx.meta.setdefault(_SIZES, {})[flag.removeprefix("--")] = value

    return _option(flag, keep, text, kind=kind, metavar="N" if kind is int else None)


def _keep_no_auth(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta.setdefault(_FLAGS, []).append((("security", "auth"), "off", "--no-auth"))


def _keep_file(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    ctx.meta[_FILE] = value


def _keep_assignments(ctx: click.Context, _: click.Parameter, value: tuple[str, ...]) -> None:
    ctx.meta[_ASSIGNMENTS] = value


def _option(
    flags: str,
    keep: Callable[[click.Context, click.Parameter, Any], None],
    text: str,
    *,
    kind: Any = None,
    metavar: str | None = None,
    is_flag: bool = False,
    multiple: bool = False,
) -> Any:
    return click.option(
        *flags.split(","),
        type=kind,
        metavar=metavar,
        is_flag=is_flag,
        multiple=multiple,
        expose_value=False,
        callback=keep,
        help=text,
    )
