"""`hpcserve doctor`: check a site and a configuration before anything is spent."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpcserve.cli.options import config_options, load_config
from hpcserve.errors import ConfigError, HpcserveError

if TYPE_CHECKING:
    from hpcserve.config import Config
    from hpcserve.doctor.examine import Examination

FOUND_A_PROBLEM = 7


@click.command("doctor")
@config_options
@click.option(
    "--probe",
    "num_probed",
    type=click.IntRange(min=0, max=64),
    default=0,
    metavar="N",
    help="Look at N compute nodes, too, with a job of a few minutes.  [default: 0, submit nothing]",
)
@click.option(
    "--probe-timeout",
    "probe_timeout_s",
    type=click.FloatRange(min=1),
    default=300.0,
    metavar="SECONDS",
    help="How long that job may wait in the queue.  [default: 300]",
)
@click.option(
    "--write-site", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write what was found."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    ctx: click.Context,
    num_probed: int,
    probe_timeout_s: float,
    write_site: Path | None,
    as_json: bool,
) -> None:
    """Check this site and a configuration, and say what to change.

    Takes the options of `hpcserve up`, starts nothing, and submits nothing without --probe. --write-site writes a
    configuration with what this site wants, for `hpcserve up --config FILE`. The exit code is 7 if `up` would not work.
    """
    from hpcserve.cli.checkup import Checkup
    from hpcserve.doctor.check import has_problem
    from hpcserve.doctor.examine import examine

    if write_site is not None and write_site.exists():
        raise ConfigError(f"{write_site} is there already; move it away, or name another file with --write-site")
    loaded = load_config(ctx, allow_contradictions=True)
    with Checkup(as_json=as_json) as view:
        seen = asyncio.run(
            examine(
                loaded.config,
                wrong=[*loaded.contradictions, *_cannot_listen(loaded.config)],
                num_probed=num_probed,
                probe_timeout_s=probe_timeout_s,
                on_checks=view.show,
                on_progress=view.progress,
            )
        )
        view.finish(seen)
    if write_site is not None:
        _write(write_site, seen)
    if as_json:
        click.echo(json.dumps(_as_dict(seen, write_site)))
    ctx.exit(FOUND_A_PROBLEM if has_problem(seen.checks) else 0)


def _cannot_listen(config: Config) -> list[str]:
    """Return why the endpoint cannot be where it is to be, if that is on this host."""
    from hpcserve.serve.listening import check_listening, resolved

    if config.cluster.slurm.head == "job":
        return []
    try:
        check_listening(resolved(config.frontend))
    except HpcserveError as err:
        return [err.message]
    return []


def _write(path: Path, seen: Examination) -> None:
    from hpcserve.doctor.site import render_site

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render_site(seen), encoding="utf-8")
    except OSError as err:
        raise ConfigError(f"cannot write {path}: {err.strerror or err}") from err
    from hpcserve.config.load import default_file

    use = "hpcserve up reads it" if path.absolute() == default_file() else f"hpcserve up --config {path}"
    click.echo(f"{path} is written: {use}", err=True)


def _as_dict(seen: Examination, site: Path | None) -> dict[str, object]:
    import msgspec

    from hpcserve.doctor.check import has_problem

    return {
        "ok": not has_problem(seen.checks),
        "cluster": seen.kind,
        "checks": [msgspec.structs.asdict(check) for check in seen.checks],
        "estimate": seen.estimate.as_dict() if seen.estimate else None,
        "site_file": str(site) if site else None,
    }
