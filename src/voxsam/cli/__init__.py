"""The command `voxsam`: its subcommands, and what happens when one fails.

Exit status: 0 done, 2 the user's input is wrong, 1 anything else, 130 interrupted. A failure is one line on stderr;
`--debug` puts the traceback above it. Command modules import torch and other heavy packages inside their functions, so
that `voxsam --help` answers at once.
"""

from __future__ import annotations

import errno
import functools
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import Annotated, Any

import typer

from voxsam.cli import batch, demo, info, project, segment, serve, weights
from voxsam.errors import InputError
from voxsam.extras import commands, require_extra

DISK = {
    errno.ENOSPC,
    errno.EROFS,
    getattr(errno, "EDQUOT", errno.ENOSPC),
}  # full, read-only, or over the user's quota
DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130

# Typer 0.27 dropped click and took over its classes; BadParameter is public in both, and this is its usage-error base.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]


app = typer.Typer(
    name="voxsam",
    help="Segment a tumour in a 3D scan from one click.",
    epilog="Research software, not a medical device: every mask needs a qualified person's eyes.",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda word: word.replace("_", "-"),  # `--save_masks` is `--save-masks`
    },
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("segment")(segment.command)
app.command("batch")(batch.command)
app.command("serve")(serve.command)
app.command("demo")(demo.command)
app.command("info")(info.command)
app.add_typer(project.app, name="project")
app.add_typer(weights.app, name="weights")


@functools.cache
def _with_added_commands() -> typer.Typer:
    """The product's commands and those of entry points; not at import, since their modules import this package."""
    for entry in commands():
        _add(entry)
    return app


def _add(entry: EntryPoint) -> None:
    """Add a module's function `command`, with the context settings `CONTEXT` if it has any."""
    module = entry.load()

    @functools.wraps(module.command)
    def command(*arguments: Any, **options: Any) -> Any:
        require_extra("lab", f"`voxsam {entry.name}`")
        return module.command(*arguments, **options)

    app.command(entry.name, context_settings=getattr(module, "CONTEXT", None))(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the arguments (without the program's name; None: this process's) and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:end]
    words = [word for word in words[:end] if word != "--debug"] + words[end:]
    if not debug:
        warnings.simplefilter("ignore")  # libraries' warnings are for developers; stderr is for the user
    try:
        status = typer.main.get_command(_with_added_commands()).main(words, prog_name="voxsam", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        status, line = _explain(error, words)
        print(f"voxsam: {line}", file=sys.stderr)
    if status == INTERRUPTED:
        print("voxsam: interrupted; nothing was left half-written", file=sys.stderr)
    return status if isinstance(status, int) else DONE


def _explain(error: Exception, words: Sequence[str]) -> tuple[int, str]:
    """The exit status of an error, and its one-line message."""
    if isinstance(error, InputError):
        return WRONG_INPUT, f"error: {error}"
    if isinstance(error, _UsageError):
        known = {info.name for info in (*app.registered_commands, *app.registered_groups)}
        command = next((f"voxsam {word}" for word in words[:1] if word in known), "voxsam")
        return WRONG_INPUT, f"error: {_one_line(error.format_message())} (see `{command} --help`)"  # type: ignore[attr-defined]
    if isinstance(error, OSError) and error.errno in DISK:
        given = _one_line(f"{error.filename or 'a file'} could not be written ({error.strerror})")
        return WRONG_INPUT, f"error: {given}; expected a disk that takes files; free some space, or choose another"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch
        return FAILED, "error: out of memory; close other programs, or take a smaller model or --device cpu"
    what = _one_line(str(error)) or type(error).__name__
    return FAILED, f"internal error: {what} (run again with --debug for the traceback)"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _show_version(wanted: bool) -> None:
    if wanted:
        from voxsam import __version__

        typer.echo(f"voxsam {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
