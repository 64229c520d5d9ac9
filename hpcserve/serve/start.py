"""From a configuration to a running head process. What can be refused is refused before a job is submitted."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence

from hpcserve.cluster import Cluster, WorkerSpec, make_cluster, resolve_kind
from hpcserve.cluster.head_job import check_head, submit_head
from hpcserve.comm.tls import create_identity
from hpcserve.config.models import Config
from hpcserve.errors import ConfigError
from hpcserve.frontend.exposure import is_loopback
from hpcserve.observability.tracing import check_tracing
from hpcserve.receipt import ReceiptFile
from hpcserve.records import Proc
from hpcserve.serve.leftovers import find_leftovers
from hpcserve.serve.listening import check_listening, resolved
from hpcserve.serve.processes import open_log
from hpcserve.serve.takeover import Start, decide, refuse_other_settings
from hpcserve.state import StateDir
from hpcserve.types import Role, WorkerId


def start(
    config: Config,
    *,
    given: Collection[str] | None = None,
    wrong: Sequence[str] = (),
    on_adopting: Callable[[str], None] = lambda _: None,
) -> StateDir:
    """Check everything, record the deployment and spawn its head, which goes on by itself.

    Where a head of that name has died, its successor takes over what is left, as it is; `on_adopting` is told what that
    is. Then `given`, the keys that somebody set, have to agree with what runs (see `refuse_other_settings`). `wrong`
    says why `config` cannot be brought up anew.

    Raises `ConfigError`, `ClusterError` or `DeploymentError` before anything is started.
    """
    state = StateDir.of(config.name)
    with state.starting():
        left = find_leftovers(state, trusts_records=True)
        if decide(left, state) is Start.ADOPTING:
            refuse_other_settings(state.read_config(), _with_whole_paths(config), given)
            on_adopting(left.description)
            state.write_failure("")
            state.retire_head()
        else:
            if wrong:
                raise ConfigError("\n".join(wrong))
            config = _resolved(config)
            _check(config, state)
            _prepare(state, config)
        begin_head(state)
    return state


def begin_head(state: StateDir) -> None:
    """Have a head run: as a process of this host, or as a Slurm job. Raises `ClusterError`."""
    config = state.read_config()
    if config.cluster.kind == "slurm" and config.cluster.slurm.head == "job":
        state.clear_spawned()
        state.write_head_job(asyncio.run(submit_head(config, state.path)))
    else:
        state.write_head_job(None)
        _spawn_head(state)


def _check(config: Config, state: StateDir) -> None:
    check_model(config)
    check_tracing(config.tracing.endpoint)
    check_listening(config.frontend, is_here=config.cluster.slurm.head == "here")
    num_workers = sum(config.pools.sizes.values())
    num_nodes = num_workers if config.cluster.slurm.exclusive else None
    asyncio.run(_cluster(config, state).check(num_workers, num_nodes=num_nodes))
    if config.cluster.slurm.head == "job":
        _check_head_job(config, state)


def _check_head_job(config: Config, state: StateDir) -> None:
    if config.cluster.kind != "slurm":
        raise ConfigError(
            f"the head can be a job of Slurm's only, and cluster.kind is {config.cluster.kind}: leave --head job out",
            param="cluster.slurm.head",
        )
    if config.security.auth == "off" and config.frontend.tcp and is_loopback(config.frontend.host):
        raise ConfigError(
            "a head in a job of its own listens on its node's address, where security.auth off lets everybody in; "
            "leave --no-auth out, or name the address with --host",
            param="security.auth",
        )
    asyncio.run(check_head(config, state.path))


def render_jobs(config: Config) -> list[tuple[str, str]]:
    """Return what would be submitted for each worker, as (worker name, job script or command line)."""
    config = _resolved(config)
    cluster = _cluster(config, StateDir.of(config.name))
    specs = [
        WorkerSpec(worker=WorkerId(f"{pool}-{index}"), pool=pool, role=Role(pool))
        for pool, size in config.pools.sizes.items()
        for index in range(size)
    ]
    return [(spec.worker, cluster.render(spec)) for spec in specs]


def _resolved(config: Config) -> Config:
    kind = resolve_kind(config)
    if config.kv.transport == "mpi" and kind != "mpi":
        raise ConfigError(
            f"kv.transport is mpi, which is for the ranks of one allocation, and cluster.kind is {kind}: "
            "take --cluster mpi, or kv.transport: nixl",
            param="kv.transport",
        )
    return _with_whole_paths(config).model_copy(
        update={"cluster": config.cluster.model_copy(update={"kind": kind})},
    )


def _with_whole_paths(config: Config) -> Config:
    path = config.model.path.expanduser().resolve() if config.model.path else None
    model = config.model.model_copy(update={"path": path})
    return config.model_copy(update={"model": model, "frontend": resolved(config.frontend)})


def _cluster(config: Config, state: StateDir) -> Cluster:
    return make_cluster(config, state.path)


def check_model(config: Config) -> None:
    """Refuse an engine without a model, and a directory that holds none. Raises `ConfigError`."""
    path = config.model.path
    if path is None:
        if config.engine.kind != "mock":
            raise ConfigError(f"model.path is not set, and engine {config.engine.kind!r} needs one; pass --model DIR")
        return
    missing = [name for name in ("config.json", "tokenizer.json") if not (path / name).is_file()]
    if not path.is_dir():
        raise ConfigError(f"model path {path} is not a directory; pass --model with a directory that holds config.json")
    if missing:
        raise ConfigError(f"model path {path} holds no {' and no '.join(missing)}; is it a model's directory?")


def _prepare(state: StateDir, config: Config) -> None:
    state.create()
    cert, key = create_identity()  # anew: nothing of an earlier life is left to know it, and certificates end
    state.write_private(state.tls_key, key)
    state.write_private(state.tls_cert, cert)
    state.clear_head()
    state.write_jobs([])
    state.write_failure("")
    ReceiptFile(state).begin()
    state.write_config(config)


def _spawn_head(state: StateDir) -> None:
    with open_log(state.logs / "head.log") as log:
        head = subprocess.Popen(
            [sys.executable, "-m", "hpcserve.serve.head", "--state-dir", str(state.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_ignore_warning,
        )
    state.write_spawned(Proc.of(head.pid))


def _ignore_warning() -> None:
    """Slurm's USR1 reaches all processes of an allocation; what it means is the starter's matter."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
