"""What a probe job brought back, judged: each node by itself, and the ways between them. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from hpcserve.config.models import Config
from hpcserve.doctor.check import Check, good, grouped, problem, skipped, warning
from hpcserve.doctor.durations import in_words
from hpcserve.doctor.host import HostReport
from hpcserve.doctor.host_checks import check_limits, check_network, check_storage
from hpcserve.doctor.probe_job import ProbeResult
from hpcserve.doctor.rendezvous import Visit
from hpcserve.doctor.software_checks import check_gpus, check_libraries, check_python

_SKEW_S, _MUCH_SKEW_S = 2.0, 30.0


def check_nodes(result: ProbeResult, config: Config, here: HostReport, root: str, num_nodes: int) -> list[Check]:
    """Return what is to be said of the job, and of each node that answered."""
    checks = grouped("probe job", [_job(result, root, num_nodes)])
    for visit in result.visits:
        checks += grouped(f"node {visit.report.node}", _node(visit, config, here, root))
    return checks


def _job(result: ProbeResult, root: str, num_nodes: int) -> Check:
    name, missing = f"job {result.job_id}", num_nodes - len(result.visits)
    if not missing:
        waited = "" if result.waited_s is None else f", after {in_words(result.waited_s)} in the queue"
        return good(name, f"{num_nodes} node{'s' * (num_nodes != 1)} answered{waited}")
    if "did not start" in result.error:
        return skipped(name, result.error, "wait longer with --probe-timeout; or look at `squeue --me --start`")
    log = f"; its log ends with: {result.log}" if result.log else "; it wrote nothing"
    found = f"{missing} of {num_nodes} nodes said nothing: {result.error or 'no answer in time'}{log}"
    if not result.log:
        return problem(name, found, f"do the nodes see {root}? If not: HPCSERVE_STATE_DIR on a shared file system")
    return problem(name, found, "mend what the log says: cluster.slurm.modules, prologue, or python")


def _node(visit: Visit, config: Config, here: HostReport, root: str) -> Iterator[Check]:
    report = visit.report
    yield check_python(report, here)
    yield from check_gpus(report, config)
    yield from check_libraries(report.libraries, config, on_gpus=bool(report.gpus))
    yield from check_network(report, config, is_spread=True)
    yield from _ways(visit, here)
    yield from check_storage(report, config, root, must_be_shared=False)  # it was given its order there
    yield from check_limits(report, runs_head=False)
    yield _clock(visit)


def _ways(visit: Visit, here: HostReport) -> Iterator[Check]:
    change = "cluster.interface: a network that login and compute nodes share; else --head job"
    if visit.report.doctor_error:
        yield problem("to this host", f"no way from the node to {visit.report.doctor_error}", change)
        yield skipped("from this host", "it could not tell its port")
    else:
        yield good("to this host", f"{visit.report.node} reaches {here.address}")
        if visit.back_error:
            found = f"no way from {here.host} to {visit.report.address}: {visit.back_error}"
            yield problem("from this host", found, change)
        elif visit.back_error is not None:
            yield good("from this host", f"{visit.report.address} is reached")
    for node, error in sorted(visit.peer_errors.items()):
        if error:
            change = "cluster.interface: the network that compute nodes share"
            yield problem(f"to {node}", f"no way from {visit.report.node}: {error}", change)
        else:
            yield good(f"to {node}", "reached")


def _clock(visit: Visit) -> Check:
    if visit.skew_s is None:
        return skipped("clock", "the node could not call")
    found = f"{abs(visit.skew_s):.1f} s {'ahead of' if visit.skew_s > 0 else 'behind'} this host's"
    if abs(visit.skew_s) < _SKEW_S:
        return good("clock", found)
    change = "ask your site about NTP; until then set renewal.leave_s higher by that much"
    if abs(visit.skew_s) < _MUCH_SKEW_S:
        return warning("clock", found, change)
    return problem("clock", f"{found}: ends of walltimes and certificates are told by the clock", change)
