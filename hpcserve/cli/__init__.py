"""The `hpcserve` command. One command a file, imported when it is called: `hpcserve --help` imports none of them."""

from __future__ import annotations

import click

from hpcserve.cli.group import LazyGroup

COMMANDS = {
    "up": "Start a deployment and show its endpoint.",
    "doctor": "Check this site and a configuration, and say what to change.",
    "status": "Show a deployment, its workers and their load.",
    "plan": "Show what the planner sees, what it would do now, and its last decisions.",
    "logs": "Print or follow the logs of the head, the frontend and the workers.",
    "down": "Stop a deployment; return when nothing of it is left.",
    "key": "Print the API key of a deployment.",
    "keys": "Add, list and revoke the API keys of tenants.",
    "receipt": "Print what a deployment has used: GPU-hours, how idle they were, and what came of them.",
    "usage": "Print what each tenant has used, in requests and tokens.",
    "batch": "Send a file of requests through a deployment and write the answers to another.",
    "config": "Show the configuration, its schema, or which file is read.",
    "tiny-model": "Make a small model to try things out with.",
    "bench": "Measure an engine and fit the timing model that simulate reads.",
    "simulate": "Replay a trace in virtual time: latencies, cache hits, worker-hours.",
    "version": "Print the version.",
    "completion": "Print a completion script for bash, zsh or fish.",
}
"""What `--help` lists. The test suite holds it against the first line of each command's own help."""

EXIT_CODES = """\b
Exit codes:
  0    done
  1    an error inside hpcserve
  2    wrong flags, configuration or input
  3    some requests of a batch failed
  4    the cluster refused
  5    the deployment is not running, or already is
  6    it failed to start; everything it had started was stopped
  7    doctor found what would not work
  130  interrupted
"""


@click.group(
    cls=LazyGroup,
    commands_help=COMMANDS,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("--debug", is_flag=True, envvar="HPCSERVE_DEBUG", help="Print tracebacks of errors.")
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """Turn a Slurm allocation into an LLM service with an OpenAI-compatible endpoint.

    \b
    hpcserve up --nodes 8 --model /path/to/model     on a Slurm cluster
    hpcserve up --engine mock --cluster local        on this machine, no model needed
    """
    ctx.meta["hpcserve.debug"] = debug
