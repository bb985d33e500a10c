"""The `hyperflux` command. Errors are one line; exit code 2 is bad input, 1 a failure, 130 Ctrl-C."""

from __future__ import annotations

import functools
import io
import signal
import sys
from typing import Any, NoReturn

import click

import hyperflux
from hyperflux.errors import Interrupted, one_line
from hyperflux.session.processes import launched

from .bench import bench
from .compare import compare
from .export import export
from .law import law
from .prune import prune
from .recipes import recipes
from .report import report

SIGNALLED = 128
"""A command that a signal ends exits with this plus the signal's number, as in shells."""
INTERRUPTED = SIGNALLED + signal.SIGINT
TORCH_OUT_OF_MEMORY = ("not enough memory", "allocate memory", "out of memory")
"""Torch reports these as a plain RuntimeError."""


class OneLineErrors(click.Group):
    """A group that reports every error as one line on standard error."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command as click does, and turn an error into one line and an exit code."""
        run = functools.partial(super().main, *args, standalone_mode=False, **extra)
        if not standalone_mode:
            return run()
        _replace_what_cannot_be_encoded()
        try:
            result: object = run()
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(0)
        except click.ClickException as error:
            _fail(error.format_message(), 2)
        except (hyperflux.InputError, hyperflux.RunError, Interrupted) as error:
            code = _code(error)
            if error.reported_elsewhere:
                sys.exit(code)
            _fail(str(error), code)
        except (click.Abort, KeyboardInterrupt):  # the first is a RuntimeError too
            _fail("interrupted; the run's folder is left unfinished", INTERRUPTED)
        except (MemoryError, RuntimeError) as error:
            if not (isinstance(error, MemoryError) or any(words in str(error) for words in TORCH_OUT_OF_MEMORY)):
                raise
            _fail(f"out of memory ({error}); give a smaller --model or --batch-size", 1)
        sys.exit(result if isinstance(result, int) else 0)


def _replace_what_cannot_be_encoded() -> None:
    """Print "?" for a character that the output's encoding lacks: on Windows a pipe is not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _code(error: hyperflux.InputError | hyperflux.RunError | Interrupted) -> int:
    if isinstance(error, Interrupted):
        return SIGNALLED + error.signal
    return 2 if isinstance(error, hyperflux.InputError) else 1


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"hyperflux: {one_line(message)}", err=True)
    sys.exit(code)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(hyperflux.__version__, prog_name="hyperflux")
@click.pass_context
def main(context: click.Context) -> None:
    """Prune neural networks while they train.

    Start with `hyperflux prune`: without options it trains and prunes a small network on handwritten digits that come
    with the package, in half a minute. `hyperflux COMMAND --help` explains each command.
    """
    if context.invoked_subcommand != prune.name and launched():
        raise hyperflux.InputError(f"{context.invoked_subcommand}: runs in one process; start it without torchrun")


main.add_command(prune)
main.add_command(compare)
main.add_command(law)
main.add_command(bench)
main.add_command(report)
main.add_command(export)
main.add_command(recipes)
