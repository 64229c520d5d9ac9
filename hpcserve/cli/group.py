"""A click group that imports a command when it is called, and turns every error into one line and an exit code."""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import Any, NoReturn

import click

from hpcserve.errors import HpcserveError, did_you_mean

INTERRUPTED = 130


class Failure(click.ClickException):
    """An error as the shell sees it. Its cause is printed in full with --debug."""

    def __init__(self, message: str, exit_code: int, *, debug: bool) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it off the instance
        self._debug = debug

    def show(self, file: Any = None) -> None:
        """Print one `error:` line for each line of the message to standard error."""
        if self._debug and self.__cause__ is not None:
            traceback.print_exception(self.__cause__, file=sys.stderr)
        for line in self.message.splitlines():
            click.echo(f"error: {line}", err=True)


class LazyGroup(click.Group):
    """Commands live in `hpcserve.cli.<name>` as `command`; `commands_help` says which there are."""

    def __init__(self, *args: Any, commands_help: dict[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._help = commands_help

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which `--help` shows them."""
        return list(self._help)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in self._help:
            return None
        module = importlib.import_module(f"hpcserve.cli.{cmd_name.replace('-', '_')}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._help.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; name the nearest ones where there is none."""
        if args and not args[0].startswith("-") and args[0] not in self._help:
            raise click.UsageError(f"no command {args[0]!r}{did_you_mean(args[0], self._help)}", ctx)
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options before the command."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as err:
            raise _usage_failure(err) from err

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. What it raises leaves as `Failure` or `click.exceptions.Exit`."""
        try:
            return super().invoke(ctx)
        except click.UsageError as err:
            raise _usage_failure(err) from err
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except (KeyboardInterrupt, click.Abort) as err:
            click.echo("interrupted", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from err
        except Exception as err:  # noqa: BLE001 - the edge: the shell gets a line and an exit code
            _fail(err, debug=bool(ctx.meta.get("hpcserve.debug")))


def _fail(err: Exception, *, debug: bool) -> NoReturn:
    if isinstance(err, HpcserveError):
        raise Failure(err.message, err.exit_code, debug=debug) from err
    what = " ".join(f"{type(err).__name__}: {err}".split())
    hint = "" if debug else " (HPCSERVE_DEBUG=1 prints where; please report it)"
    raise Failure(f"internal: {what}{hint}", 1, debug=debug) from err


def _usage_failure(err: click.UsageError) -> click.UsageError | Failure:
    if isinstance(err, click.exceptions.NoArgsIsHelpError):
        return err
    help_line = f" (see `{err.ctx.command_path} --help`)" if err.ctx else ""
    return Failure(" ".join(err.format_message().split()) + help_line, err.exit_code, debug=False)
