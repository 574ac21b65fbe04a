"""Define the `moa` command. Each sub-command has a file beside this one, and imports torch only when it runs."""

import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Annotated

import typer
from typer.exceptions import TyperException

import moa
from moa.cli.terminal import substitute
from moa.plans.errors import MoaError

LONGEST_WORD = 300
"""Number of characters of one word that an error shows; paths can be longer than the file system allows."""
COMMANDS = (
    "compress", "report", "compare", "profile", "measure", "search", "refine", "show", "plans", "eval", "generate",
    "serve", "bench", "doctor",
)  # fmt: skip

app = typer.Typer(
    name="moa",
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # in "rich", what stands in [brackets] is lost
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"moa {moa.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _moa(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Find a sparse-attention plan for a pretrained language model under a budget, and run it."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _name in COMMANDS:
    app.command(_name)(import_module(f"moa.cli.{_name}").command)


def main() -> int:
    """Run the command line.

    Returns:
        The exit code: 0 for success, 1 if `moa doctor` found no back-end that computes right, 2 for bad input (with one
        line on stderr), 130 if interrupted, 141 if the reader of the output closed it, as `| head` does. Anything else
        that goes wrong is a bug and shows its traceback.
    """
    substitute()
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()  # a full disk is noticed here, and reported in one line
    except (MoaError, TyperException) as error:
        message = error.format_message() if isinstance(error, TyperException) else str(error)
        return _fail(message)
    except (BrokenPipeError, SystemExit):  # rich turns a BrokenPipeError into SystemExit
        _discard_output()
        return 141
    except OSError as error:
        if error.errno is None:
            raise
        _discard_output()
        return _fail(": ".join(filter(None, (error.filename, error.strerror))))
    except (KeyboardInterrupt, typer.Abort):
        return 130
    return code if isinstance(code, int) else 0


def _discard_output() -> None:
    """Discard what is still to be written to stdout, so that it does not fail once more when Python ends."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> int:
    words = (word if len(word) <= LONGEST_WORD else f"{word[:LONGEST_WORD]}..." for word in message.split())
    print("error:", *words, file=sys.stderr)
    return 2
