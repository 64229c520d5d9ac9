"""What the whole cluster is set to, against what would be asked of it: GPUs, memory, jobs, preemption. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hpcserve.cluster.slurm_output import Partition
from hpcserve.cluster.slurm_script import gpu_directive, parse_memory_mb
from hpcserve.cluster.slurm_settings import SlurmSettings, parse_limit_s, parse_names
from hpcserve.config.models import Config, SlurmConfig
from hpcserve.doctor.check import Check, good, problem, skipped, warning
from hpcserve.doctor.durations import in_words

_LITTLE_MB = 8192


def check_gpus(settings: SlurmSettings, config: Config, partition: Partition) -> Iterator[Check]:
    """Check whether GPUs are asked for in a way that this cluster and this partition know."""
    slurm = config.cluster.slurm
    kinds = sorted({kind for node in partition.nodes for kind in node.gpus})
    wants = bool(slurm.requested_gpus) or (slurm.exclusive and slurm.gpu_request != "none")
    if not kinds:
        yield _without_gpus(settings, slurm, wants=wants)
        return
    named = [kind for kind in kinds if kind]
    if slurm.gpu_type and slurm.gpu_type not in named:
        there_are = ", ".join(named) or "no types: they are just gpu"
        yield problem(
            "GPU type", f"no {slurm.gpu_type!r} in {partition.name!r}, but {there_are}", "cluster.slurm.gpu_type"
        )
    elif len(kinds) > 1 and not slurm.gpu_type and not slurm.constraint:
        found = f"{partition.name!r} has {', '.join(kind or 'untyped' for kind in kinds)}: workers may differ"
        yield warning("GPU type", found, f"cluster.slurm.gpu_type: {named[0]}, or a constraint")
    yield _request_style(settings, slurm)


def _without_gpus(settings: SlurmSettings, slurm: SlurmConfig, *, wants: bool) -> Check:
    others = sorted(name for name, each in settings.nodes.items() if any(node.gpus for node in each.nodes))
    if not slurm.requested_gpus:
        found = "the nodes have none that Slurm knows of"
        return (
            good("GPUs", f"{found}, and none are asked for")
            if not wants
            else warning("GPUs", found, "cluster.slurm.gpu_request: none if that is right; workers compute on CPUs")
        )
    there_are = f" with GPUs: {', '.join(others)}" if others else ""
    change = f"another --partition{there_are}; or cluster.slurm.gpu_request: none, to compute on CPUs"
    return problem("GPUs", f"{gpu_directive(slurm)} is asked for, and no node of the partition has any", change)


def _request_style(settings: SlurmSettings, slurm: SlurmConfig) -> Check:
    line, select = gpu_directive(slurm), settings.config.get("SelectType", "")
    if line is None:
        how = "come with the whole node" if slurm.exclusive else "are not asked for"
        if not slurm.exclusive and slurm.gpu_request == "none":
            return warning("GPU request", "GPUs are there, and none are asked for", "cluster.slurm.gpu_request: gres")
        return good("GPU request", f"GPUs {how}")
    if slurm.gpu_request != "gres" and select and "cons_tres" not in select:
        found = f"{line} needs select/cons_tres, and this cluster has {select}"
        return problem("GPU request", found, "cluster.slurm.gpu_request: gres")
    if "gpu" not in settings.config.get("GresTypes", "gpu").split(","):
        found = f"{line} is asked for, and slurm.conf knows no gpu (GresTypes={settings.config['GresTypes']})"
        return problem("GPU request", found, "cluster.slurm.gpu_request: none")
    return good("GPU request", f"{line} for each worker")


def check_memory(settings: SlurmSettings, config: Config, partition: Partition, model_bytes: int | None) -> Check:
    """Check whether memory is counted here, and whether a worker gets enough of it."""
    slurm, limits = config.cluster.slurm, settings.partitions.get(partition.name, {})
    asked_mb = parse_memory_mb(slurm.memory) if slurm.memory else None
    if not counts_memory(settings, limits):
        if asked_mb is None or skips_memory(slurm):
            return good("memory", "not counted by this cluster, and not asked for")
        return warning("memory", f"{slurm.memory} is asked for, but this cluster does not count memory", _SKIP_MEMORY)
    most_mb = _most_mb(settings, limits, slurm)
    if asked_mb is not None and most_mb is not None and asked_mb > most_mb:
        change = f"cluster.slurm.memory: {most_mb // 1024}GB, or more cores"
        return problem("memory", f"{slurm.memory} is above the partition's limit of {most_mb} MiB", change)
    given_mb = asked_mb or _default_mb(settings, limits, slurm)
    if given_mb is None:
        if slurm.exclusive or not config.cluster.slurm.partition:
            return good("memory", "none asked for: Slurm gives a job all that its node has")
        return good("memory", "none asked for: a job gets all of its node, and no other job fits beside it")
    needs_mb = max(_LITTLE_MB, int((model_bytes or 0) * 0.5 / 2**20)) if config.engine.kind == "vllm" else 1024
    if given_mb < needs_mb:
        source = "asked for" if asked_mb else f"the default for {slurm.cores} cores"
        found = f"a worker gets {given_mb} MiB ({source}); vLLM and this model want about {needs_mb} MiB of the host's"
        return warning(
            "memory", found, f"cluster.slurm.memory: {-(-needs_mb // 1024)}GB, or --mem=0 in extra_directives"
        )
    return good("memory", f"{given_mb} MiB for each worker")


_SKIP_MEMORY = 'leave cluster.slurm.memory out, or cluster.slurm.skip_directives: ["--mem"] if sbatch refuses it'


def counts_memory(settings: SlurmSettings, limits: Mapping[str, str]) -> bool:
    """Whether memory is something that jobs are given."""
    own = limits.get("SelectTypeParameters") or settings.config.get("SelectTypeParameters", "")
    return "MEMORY" in own.upper()


def skips_memory(slurm: SlurmConfig) -> bool:
    """Whether no memory is asked for, whatever the configuration says."""
    return any(skip in "#SBATCH --mem=" for skip in slurm.skip_directives)


def _default_mb(settings: SlurmSettings, limits: Mapping[str, str], slurm: SlurmConfig) -> int | None:
    for source in (limits, settings.config):
        if source.get("DefMemPerCPU", "").isdecimal():
            return int(source["DefMemPerCPU"]) * slurm.cores
        if source.get("DefMemPerNode", "").isdecimal():
            return int(source["DefMemPerNode"])
        if source.get("DefMemPerGPU", "").isdecimal() and slurm.requested_gpus:
            return int(source["DefMemPerGPU"]) * slurm.requested_gpus
    return None


def _most_mb(settings: SlurmSettings, limits: Mapping[str, str], slurm: SlurmConfig) -> int | None:
    for source in (limits, settings.config):
        if source.get("MaxMemPerNode", "").isdecimal():
            return int(source["MaxMemPerNode"])
        if source.get("MaxMemPerCPU", "").isdecimal() and not slurm.exclusive:
            return int(source["MaxMemPerCPU"]) * slurm.cores  # beyond it Slurm raises the number of cores
    return None


def check_jobs(settings: SlurmSettings, config: Config) -> Iterator[Check]:
    """Check how many jobs there may be at once, for the cluster and for this user."""
    num = sum(config.pools.sizes.values())
    needed = num + 1 + (config.cluster.slurm.head == "job")  # a successor of one, and the head
    most = settings.config.get("MaxJobCount", "")
    array = settings.config.get("MaxArraySize", "")
    if most.isdecimal() and needed > int(most):
        yield problem("jobs", f"{needed} jobs are more than the cluster holds (MaxJobCount {most})", "fewer workers")
    else:
        said = f"MaxJobCount {most or 'is not told'}, MaxArraySize {array or 'is not told'}"
        limit = f"`hpcserve batch submit --array` of up to {max(0, int(array) - 1)} tasks" if array.isdecimal() else ""
        yield good("jobs", "; ".join(words for words in (said, limit) if words))
    yield from _own_limits(settings, config, needed)


def _own_limits(settings: SlurmSettings, config: Config, needed: int) -> Iterator[Check]:
    if settings.associations is None and settings.qos is None:
        why = "no accounting (sacctmgr does not answer)" if not settings.has_accounting else "sacctmgr tells nothing"
        yield skipped("limits of your account", why)
        return
    slurm, wrong = config.cluster.slurm, []
    own = [row for row in settings.associations or () if slurm.account in (None, row.get("Account"))]
    qos_name = slurm.qos or next((row["DefaultQOS"] for row in own if row.get("DefaultQOS")), "")
    allowed = {name for row in own for name in parse_names(row.get("QOS")) or ()}
    if slurm.qos and allowed and slurm.qos not in allowed:
        wrong.append(
            problem("QOS", f"{slurm.qos!r} is none of yours: {', '.join(sorted(allowed))}", "cluster.slurm.qos")
        )
    qos = (settings.qos or {}).get(qos_name, {})
    longest, asked = parse_limit_s(qos.get("MaxWall")), parse_limit_s(slurm.walltime)
    if longest is not None and asked is not None and asked > longest:
        found = f"{slurm.walltime} is above the limit of QOS {qos_name!r}: {in_words(longest)}"
        wrong.append(problem("QOS", found, f"--walltime {qos['MaxWall']}, or another QOS"))
    for where, row, field in (
        *((f"account {each.get('Account')!r}", each, "MaxSubmit") for each in own[:1]),
        (f"QOS {qos_name!r}", qos, "MaxSubmitPU"),
        (f"QOS {qos_name!r}", qos, "MaxJobsPU"),
    ):
        if row.get(field, "").isdecimal() and int(row[field]) < needed:
            found = f"{where} allows {row[field]} jobs at once ({field}); the workers and one successor are {needed}"
            wrong.append(warning("limits of your account", found, "fewer workers, or another account or QOS"))
    yield from wrong or [good("limits of your account", f"{needed} jobs at once are within them")]


def check_ends(settings: SlurmSettings, config: Config, partition: Partition) -> Iterator[Check]:
    """Check what becomes of workers that Slurm ends before their time."""
    yield _preemption(settings, config, settings.partitions.get(partition.name, {}))
    drain_s = config.cluster.drain_timeout_s
    kill_wait_s = float((settings.config.get("KillWait") or "30").split()[0])
    if drain_s >= kill_wait_s:
        found = f"cluster.drain_timeout_s is {drain_s:g}, but Slurm kills {kill_wait_s:g} s after SIGTERM (KillWait)"
        yield warning("KillWait", found, f"cluster.drain_timeout_s: {max(1, int(kill_wait_s) - 5)}")
    if config.cluster.slurm.head == "job" and settings.config.get("JobRequeue") == "0":
        yield good("requeue", "jobs are not requeued by themselves (JobRequeue=0); the head submits its own successor")


def _preemption(settings: SlurmSettings, config: Config, limits: Mapping[str, str]) -> Check:
    kind = settings.config.get("PreemptType", "preempt/none").removeprefix("preempt/")
    mode = limits.get("PreemptMode") or settings.config.get("PreemptMode", "OFF")
    tiers = [_tier(each) for each in settings.partitions.values()]
    if kind == "none" or mode.upper() == "OFF" or (kind == "partition_prio" and _tier(limits) >= max(tiers, default=0)):
        return good("preemption", "jobs of this partition are not preempted")
    grace_s = float(limits["GraceTime"]) if limits.get("GraceTime", "").isdecimal() else 0.0
    found = f"jobs here may be preempted ({mode}), with {grace_s:g} s of warning"
    if grace_s >= config.cluster.drain_timeout_s:
        return good("preemption", found)
    if not grace_s:
        return warning("preemption", found, "have two workers or more: requests are recomputed on the others")
    return warning("preemption", found, f"cluster.drain_timeout_s: {max(1, int(grace_s * 0.75))}")


def _tier(limits: Mapping[str, str]) -> int:
    return int(limits["PriorityTier"]) if limits.get("PriorityTier", "").isdecimal() else 0
