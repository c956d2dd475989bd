"""The command line. Each command lives in its own module and is imported only when it is asked for."""

from __future__ import annotations

import gc
import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

import click

_COMMANDS = {
    "serve": ("serve", "Run handlers: take events in, deliver them, until stopped."),
    "list": ("functions", "Functions with their triggers, policy and tags."),
    "show": ("functions", "One function: what starts it and how its events are treated."),
    "invoke": ("functions", "Run a function with a payload and print its result."),
    "send": ("events", "Put a real event in through a source of the running router."),
    "sample": ("events", "Print the AWS-shaped JSON that a source gives Lambda functions."),
    "tail": ("functions", "What invocations print, as it comes."),
    "event": ("events", "Where an event is and what became of it."),
    "replay": ("events", "Run archived events of a function again."),
    "throttle": ("throttling", "Pause a function: its events wait, requests get 429."),
    "unthrottle": ("throttling", "Let a throttled function run again."),
    "concurrency": ("throttling", "Change how many of a function run at once."),
    "permissions": ("permissions", "Who may start a function, and what it may do: show, add, remove, simulate."),
    "dlq": ("dlq", "Dead letters: list, show, redrive, purge."),
    "secrets": ("secrets", "Encrypted configuration: init, encrypt, decrypt, rotate."),
    "usage": ("usage", "What functions have used, and what it would cost."),
    "audit": ("audit", "Who did what: query the audit log, or verify that it is whole."),
    "doctor": ("doctor", "What this machine can enforce, which plugins loaded, what is wrong."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"eventrouter.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):  # without importing them all
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from eventrouter import __version__  # noqa: PLC0415

        click.echo(f"eventrouter {__version__}")
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
@click.option("--version", is_flag=True, callback=_version, expose_value=False, is_eager=True, help="Show the version.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """AWS Lambda's event model on any machine."""
    ctx.obj = {"debug": debug}


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit: 0 good, 1 the thing failed, 2 bad usage or configuration."""
    gc.disable()  # imports make next to no garbage, and would be searched for it a hundred times; see `loaded`
    sys.exit(run(args))


def run(args: list[str] | None = None) -> int:
    from eventrouter.errors import ConfigError, EventRouterError, PluginError  # noqa: PLC0415

    words = sys.argv[1:] if args is None else args
    try:
        result: Any = cli.main(words, prog_name="eventrouter", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except EventRouterError as error:
        report(error, debug="--debug" in words)
        return 2 if isinstance(error, ConfigError | PluginError) else 1


def report(error: Exception, *, debug: bool) -> None:
    """Print an error in one line or two; what the user's own module raised at import with its traceback."""
    from eventrouter.functions import UserImportError  # noqa: PLC0415

    if debug:
        traceback.print_exception(error)
    elif isinstance(error, UserImportError) and error.__cause__ is not None:
        click.echo(_user_traceback(error.__cause__), err=True, nl=False)
    click.echo(f"eventrouter: {error}", err=True)


def _user_traceback(error: BaseException) -> str:
    """The traceback from the user's first own frame on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and _not_theirs(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))


def _not_theirs(filename: str) -> bool:
    return filename.startswith(("<frozen importlib", str(Path(__file__).parents[1])))
