"""`hpcserve batch submit`: checks everything, then submits `batch run` as one Slurm job with engines of its own."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from hpcserve.cli.options import load_config, set_key, slurm_options
from hpcserve.cli.streams import say
from hpcserve.errors import ConfigError

if TYPE_CHECKING:
    from hpcserve.cli.batch import Given
    from hpcserve.cluster.batch_script import BatchJob
    from hpcserve.config import Config

_TYPED = "hpcserve.typed"
_NOT_TAKEN = {  # options of `batch run` that mean nothing here, or are this command's own
    "--name", "--endpoint", "--key-file", "--over", "--json", "--fresh", "--retry-failed", "--standalone",
    "--shard", "--cluster", "--nodes", "--partition", "--account", "--walltime", "--time", "--dry-run", "--detach",
    "--timeout", "--host", "--port", "--unix-socket", "--frontends", "--no-auth",
}  # fmt: skip
_COUNT = click.IntRange(1)


class _Submit(click.Command):
    """Keeps the options of `batch run` as they were typed: the job is given the same ones."""

    def __init__(self, passed: list[click.Parameter], **attributes: Any) -> None:
        super().__init__(**attributes)
        self._passed = {param.name for param in passed if isinstance(param, click.Option)} - {"output"}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse twice: once for what was typed, once for what it means."""
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[_TYPED] = [
            word
            for param in dict.fromkeys(order)
            if isinstance(param, click.Option) and param.name in self._passed
            for word in _words(param, values[param.name])
        ]
        return super().parse_args(ctx, args)


def make_submit(run: click.Command) -> click.Command:
    """Return the command; it takes the options of `run` beside its own."""
    passed = [param for param in run.params if not _NOT_TAKEN.intersection(param.opts)]
    arguments = [param for param in passed if isinstance(param, click.Argument)]
    options = [param for param in passed if isinstance(param, click.Option)]
    return _Submit(
        passed,
        name="submit",
        params=[*arguments, *_own_options(), *options],
        callback=click.pass_context(_submit),
        help=_submit.__doc__,
    )


def _submit(ctx: click.Context, **given: Any) -> None:
    """Submit a batch to Slurm: one job that brings its own engines, works through IN, and ends.

    It takes the options of `hpcserve batch run`, too. All of the input is checked first. The job goes on in a further
    one when its walltime ends, until every request is finished; submitting it again goes on as well.
    """
    from hpcserve.cluster.batch_script import render

    given["standalone"] = True
    set_key(ctx, "cluster.kind", "mpi", "--cluster")
    if given["model"] is not None:
        set_key(ctx, "model.path", given["model"], "--model")
    config = load_config(ctx).config
    job = _job(ctx, config, given)
    num_requests = _check(config, given)
    if job.num_tasks is not None and job.num_tasks > num_requests:
        raise ConfigError(f"--array {job.num_tasks}: the input has {num_requests} requests only")
    script = render(job)
    if given["dry_run"]:
        click.echo(script, nl=False)
        return
    from hpcserve.cluster.slurm_commands import run_slurm

    answer, _ = asyncio.run(run_slurm("sbatch", "--parsable", stdin=script))
    job_id = answer.strip().partition(";")[0]
    _explain(job, job_id, num_requests)
    click.echo(job_id)


def _job(ctx: click.Context, config: Config, given: dict[str, Any]) -> BatchJob:
    from hpcserve.cluster.batch_script import BatchJob, share_gpus
    from hpcserve.cluster.command import console_script

    slurm = config.cluster.slurm
    workers, gpus = share_gpus(
        slurm,
        config.model.tensor_parallel,
        gpus_per_node=given["gpus_per_node"],
        workers_per_node=given["workers_per_node"],
    )
    options = list(ctx.meta[_TYPED])
    if gpus and slurm.gpus != gpus // workers:
        options += ["--set", f"cluster.slurm.gpus={gpus // workers}"]
    job = BatchJob(
        input=str(given["input"]),
        output=str(given["output"]),
        options=tuple(options),
        slurm=slurm.model_copy(update={"exclusive": given["exclusive"]}),
        num_nodes=given["nodes"],
        workers_per_node=workers,
        gpus_per_node=gpus,
        num_tasks=given["array"],
        launcher=given["launcher"] or "srun",
        requeue=given["requeue"],
        command=console_script(slurm.python),
    )
    if config.kv.transport != "mpi":
        return job
    if given["launcher"] == "srun":
        raise ConfigError("kv.transport=mpi needs --launcher mpirun: srun starts no MPI by itself")
    return replace(job, launcher="mpirun")


def _check(config: Config, given: dict[str, Any]) -> int:
    """Return how many requests there are to finish. Raises `ConfigError` for all that is wrong with them."""
    from hpcserve.batch import open_source
    from hpcserve.batch.check import check_input
    from hpcserve.batch.text_lengths import counted_texts
    from hpcserve.cli.batch_run import make_reader
    from hpcserve.frontend.prompts.model_files import context_of
    from hpcserve.serve.start import check_model

    check_model(config)
    output: Path = given["output"]
    if not output.parent.is_dir():
        raise ConfigError(f"there is no directory {output.parent} for {output.name}")
    source = open_source(given["input"], prompt_column=given["prompt_column"], id_column=given["id_column"])
    models = {config.served_name: context_of(config.model)}
    reader = make_reader(source, cast("Given", given), list(models))
    with counted_texts(config, models) as too_long:
        return check_input(source, reader, models, too_long).num_requests


def _explain(job: BatchJob, job_id: str, num_requests: int) -> None:
    from hpcserve.batch.paths import Paths

    log = job.log.replace("%j", job_id).replace("%A", job_id)
    num_ranks = job.num_nodes * job.workers_per_node + 1
    each = f"{num_requests:,} requests, {job.num_nodes} nodes, {num_ranks - 1} workers"
    say(f"job {job_id}: {each}" if job.num_tasks is None else f"jobs {job_id}_0 to _{job.num_tasks - 1}: {each} each")
    if job.num_tasks is None:
        say(f"answers: {job.output}; failed requests: {Paths(Path(job.output)).errors}")
        say(f"watch: squeue -j {job_id}; tail -F {log}")
        return
    parts = f"{job.output.removesuffix('.jsonl')}.[0-9]*.jsonl"
    say(f"answers: {parts}; when all have ended: hpcserve batch merge -o {job.output}")
    say(f"watch: squeue -j {job_id}; tail -F {log.replace('%a', '*')}")


def _own_options() -> list[click.Parameter]:
    own = [
        _option("--nodes", "Nodes of the job.", type=_COUNT, required=True, metavar="N"),
        *slurm_options(),
        _option("--gpus-per-node", "GPUs to ask for on each.", type=_COUNT, metavar="N"),
        _option("--workers-per-node", "Engines on each; they share its GPUs.", type=_COUNT, metavar="N"),
        _option("--array", "Submit N jobs, each for its part of the requests.", type=_COUNT, metavar="N"),
        _option("--launcher", "What starts the ranks.  [default: srun]", type=click.Choice(("srun", "mpirun"))),
        _option("--exclusive/--shared", "Whole nodes or a part of them.  [default: exclusive]", default=True),
        _option("--requeue/--no-requeue", "Go on after the walltime.  [default: requeue]", default=True),
        _option("--dry-run", "Check everything, print the script and submit nothing.", is_flag=True),
    ]
    bare = click.Command("bare")
    for option in own:
        option(bare)
    return bare.params


def _option(flags: str, text: str, **settings: Any) -> Any:
    return click.option(flags, help=text, **settings)


def _words(option: click.Option, value: Any) -> list[str]:
    """Return an option as it is typed, from what the parser found."""
    if option.is_flag:
        return [option.opts[0] if value else option.secondary_opts[0]]
    values = value if option.multiple else [value]
    flag = next((each for each in option.opts if each.startswith("--")), option.opts[0])
    return [word for each in values for word in (flag, str(each))]
