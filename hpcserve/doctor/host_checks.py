"""One host's network, storage and limits against what a deployment needs of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hpcserve.config.models import Config
from hpcserve.doctor.check import Check, good, problem, skipped, warning
from hpcserve.doctor.host import HostReport
from hpcserve.doctor.storage import LOCAL_KINDS
from hpcserve.errors import did_you_mean

_FAST = re.compile(r"(ib|hsn|bond-ib|opa|roce|cxi)\w*")
_LITTLE_STATE = 1 << 30
_LITTLE_SCRATCH = 1 << 30
_FEW_FILES = 8192  # a connection is a file
_FEW_CPU_SECONDS = 86400


def fast_interfaces(report: HostReport) -> list[str]:
    """Return the interfaces that look like a fabric of their own, by name."""
    return sorted(name for name in report.interfaces if _FAST.fullmatch(name))


def check_network(report: HostReport, config: Config, *, is_spread: bool) -> Iterator[Check]:
    """Check the address that processes of this host announce. `is_spread`: others on other hosts have to reach it."""
    interface, fast = config.cluster.interface, fast_interfaces(report)
    others = sorted(name for name, address in report.interfaces.items() if not address.startswith("127."))
    if interface is not None and report.address_error:
        hint = did_you_mean(interface, report.interfaces).removeprefix("; ")
        found = f"{report.address_error} on {report.host}; {hint}"
        yield problem("interface", found, f"cluster.interface: {(fast or others or ['lo'])[0]}")
    elif interface is not None:
        yield good("interface", f"{interface} is {report.address}")
    elif not is_spread:
        yield good("interface", "loopback: everything is on this machine")
    else:
        yield _unnamed(report, fast, others)
    if report.adapters:
        down = [name for name, state in report.adapters.items() if "ACTIVE" not in state.upper()]
        said = ", ".join(f"{name} ({state})" for name, state in report.adapters.items())
        if len(down) == len(report.adapters):
            yield warning("HCAs", f"none is active: {said}", "KV goes over sockets; ask your site")
        else:
            yield good("HCAs", said)
    else:
        yield good("HCAs", "no InfiniBand or RoCE adapter (/sys/class/infiniband): KV goes over sockets")


def _unnamed(report: HostReport, fast: list[str], others: list[str]) -> Check:
    proposed = (fast or others or ["lo"])[0]
    if report.address_error or not report.address:
        return problem("interface", report.address_error, f"cluster.interface: {proposed}")
    if report.address.startswith("127."):
        found = f"the name {report.host} stands for {report.address}, which no other host can reach"
        return problem("interface", found, f"cluster.interface: {proposed} (lo only if all nodes are this machine)")
    if fast and report.interfaces[fast[0]] != report.address:
        found = f"the name {report.host} stands for {report.address}; {', '.join(fast)} would be faster"
        return warning("interface", found, f"cluster.interface: {fast[0]}")
    return good("interface", f"the name {report.host} stands for {report.address}")


def check_storage(report: HostReport, config: Config, state_root: str, *, must_be_shared: bool) -> Iterator[Check]:
    """Check the state directory, the model and the scratch directory as this host sees them."""
    yield _state(report, state_root, must_be_shared=must_be_shared)
    yield _model(report, config)
    if report.scratch_error:
        found = f"{report.scratch} cannot be written: {report.scratch_error}"
        yield problem("scratch", found, "cluster.scratch: a directory of the compute node, such as /tmp")
    elif report.scratch_free < _LITTLE_SCRATCH:
        found = f"{report.scratch} has {size(report.scratch_free)} left"
        yield warning("scratch", found, "cluster.scratch: a directory of the compute node with a few GB")
    else:
        yield good("scratch", f"{report.scratch}, {size(report.scratch_free)} free")


def _state(report: HostReport, root: str, *, must_be_shared: bool) -> Check:
    elsewhere = "HPCSERVE_STATE_DIR: a directory on a file system that all nodes share"
    kind = f" ({report.state_kind})" if report.state_kind else ""
    if report.state_error:
        return problem("state directory", f"{root}{kind} cannot be written: {report.state_error}", elsewhere)
    if report.lock_error:
        found = f"{root}{kind} has no locks that work: {report.lock_error}"
        return problem("state directory", found, f"{elsewhere} and has locks (fcntl)")
    if report.state_free < _LITTLE_STATE:
        return warning(
            "state directory", f"{root}{kind} has {size(report.state_free)} left", "make room: logs go there"
        )
    found = f"{root}{kind}: written, locked, {size(report.state_free)} free"
    if must_be_shared and report.state_kind in LOCAL_KINDS:
        change = "--probe 1 finds out whether nodes see it; if not, HPCSERVE_STATE_DIR: a shared directory"
        return warning("state directory", f"{found}; this kind is usually a disk of one host", change)
    return good("state directory", found)


def _model(report: HostReport, config: Config) -> Check:
    if config.model.path is None:
        if config.engine.kind == "mock":
            return skipped("model", "the mock engine needs none")
        return problem("model", "none is named", "--model DIR, or try things out with --engine mock")
    if report.model_error:
        change = "--model: a model's directory that this host can read"
        return problem("model", f"{config.model.path}: {report.model_error}", change)
    if not report.model_bytes and config.engine.kind == "vllm":
        return problem("model", f"{config.model.path} holds no weights", "--model: a directory with *.safetensors")
    kind = f" ({report.model_kind})" if report.model_kind else ""
    return good("model", f"{config.model.path}{kind}: {size(report.model_bytes)} of weights, readable")


def check_limits(report: HostReport, *, runs_head: bool) -> Iterator[Check]:
    """Check what a process may use here."""
    if 0 < report.open_files < _FEW_FILES:
        found = f"{report.open_files} at most: about as many clients at once"
        yield warning("open files", found, f"a hard limit (ulimit -Hn) of {_FEW_FILES} or more")
    else:
        yield good("open files", f"{report.open_files}" if report.open_files else "no limit")
    if runs_head and 0 < report.cpu_seconds < _FEW_CPU_SECONDS:
        found = (
            f"processes here are ended after {report.cpu_seconds} s of CPU time, and head and endpoint would run here"
        )
        yield warning("CPU time", found, "--head job: they run in a small Slurm job")


def size(num_bytes: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB" if num_bytes < 1000 else f"{num_bytes / 1000:.3g} PB"
