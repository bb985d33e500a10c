"""The `hyperflux` command. Errors are one line; exit code 2 is bad input, 1 a failure, 130 Ctrl-C, 70 a bug."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import click

import hyperflux
from hyperflux.errors import Interrupted, one_line
from hyperflux.session.processes import launched

from . import output
from .bench import bench
from .compare import compare
from .export import export
from .law import law
from .prune import prune
from .recipes import recipes
from .report import report
from .signals import INTERRUPTED, LINE, SIGNALLED, catch_ctrl_c, ignore_stop_signals
from .unexpected import UNEXPECTED, unexpected_line

TORCH_OUT_OF_MEMORY = ("not enough memory", "allocate memory", "out of memory")
"""Torch reports these as a plain RuntimeError."""


class OneLineErrors(click.Group):
    """A group that reports every error as one line on standard error."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command as click does, and turn an error into one line and an exit code."""
        run = functools.partial(super().main, *args, standalone_mode=False, **extra)
        if not standalone_mode:
            return run()
        catch_ctrl_c()
        output.take_over()
        try:
            code, message = _outcome(run)
        except KeyboardInterrupt:
            code, message = INTERRUPTED, LINE
        ignore_stop_signals()
        if message:
            print(message, file=sys.stderr)
        sys.exit(output.exit_code(code))


def _outcome(run: Callable[[], object]) -> tuple[int, str]:
    """The exit code of a command, and the line to print on standard error, if any."""
    try:
        result = run()
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 0, ""
    except click.ClickException as error:
        return 2, _line(error.format_message())
    except (hyperflux.InputError, hyperflux.RunError, Interrupted) as error:
        return _code(error), "" if error.reported_elsewhere else _line(str(error))
    except (click.Abort, KeyboardInterrupt):  # the first is a RuntimeError too
        return INTERRUPTED, LINE
    except Exception as error:
        if isinstance(error, MemoryError) or _is_torch_out_of_memory(error):
            return 1, _line(f"out of memory ({error}); give a smaller --model or --batch-size")
        return UNEXPECTED, unexpected_line(error)
    return result if isinstance(result, int) else 0, ""


def _is_torch_out_of_memory(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and any(words in str(error) for words in TORCH_OUT_OF_MEMORY)


def _code(error: hyperflux.InputError | hyperflux.RunError | Interrupted) -> int:
    if isinstance(error, Interrupted):
        return SIGNALLED + error.signal
    return 2 if isinstance(error, hyperflux.InputError) else 1


def _line(message: str) -> str:
    return f"hyperflux: {one_line(message)}"


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
