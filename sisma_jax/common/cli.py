"""Shared by all commands: errors as one sentence, the layout of `--help`, the command's page."""

import argparse
import contextlib
import inspect
import io
import os
import runpy
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import logging

from sisma_jax.common.commands import COMMANDS
from sisma_jax.common.errors import InputError, RunError
from sisma_jax.common.files import NO_ROOM, local_path

_SIGPIPE = 13

_shown_as: dict[str, str] = {}
"""How a command was called, by module, where it was not by `python -m`."""


def parser(module: str, description: str, example: str) -> argparse.ArgumentParser:
    """An argument parser whose help shows defaults and ends with `example`.

    Args:
      module: a command of `COMMANDS`.
      description: text above the options.
      example: one command line.
    """
    page = COMMANDS[module].page
    return argparse.ArgumentParser(
        prog=_shown_as.get(module, f"python -m {module}"),
        description=description,
        epilog=f"example:\n  {example}\n\n{page} in the project's sources explains it.",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside every option; line breaks of description and example kept."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.const is True:
            return action.help
        return super()._get_help_string(action)


def path(text: str) -> Path:
    """Argparse type of local paths. Expands `~`, also where the shell does not (`--out=~/x`);
    refuses addresses (`gs://`), which would become folders."""
    try:
        return local_path(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def start(module: str, arguments: Sequence[str], *, shown_as: str) -> None:
    """Run a command as `python -m module arguments` does; its help calls it `shown_as`."""
    _shown_as[module] = shown_as
    sys.argv = [shown_as, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def run(main: Callable[[], None]) -> None:
    """Run a command; InputError ends it with one sentence and status 2, RunError with status 1.

    The sentence ends with the command's page of the documentation. Characters that the terminal's
    encoding lacks are escaped. If the reader of the output is gone (`| head`), the status is 141.
    """
    logging.set_verbosity(logging.FATAL)  # Orbax also logs the errors that it raises
    # A closed stream (`>&-`) is None in Python; print to the null device instead.
    null = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  until the process ends
    sys.stdout, sys.stderr = sys.stdout or null, sys.stderr or null
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            main()
        except SystemExit:  # raised by argparse after --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except (InputError, RunError) as error:
        if _is_first() or not error.shared:
            sentence = _printable(str(error))
            print(f"error: {sentence}{_where(main)}", file=sys.stderr, flush=True)
        status = 2 if isinstance(error, InputError) else 1
        if status == 2 and (error.shared or not _is_multiprocess()):
            sys.exit(status)
        _exit_now(status)
    except BrokenPipeError:
        if _output_is_gone():
            os._exit(128 + _SIGPIPE)
        _raise_or_exit()
    except OSError as error:
        if error.filename is None and error.errno not in NO_ROOM:
            _raise_or_exit()
        # Errors of paths and disks that no command handles: a folder in place of a file, a name
        # that is too long, a full device.
        place = error.filename2 or error.filename
        where = "" if place is None else f"{_printable(os.fsdecode(place))}: "
        print(f"error: {where}{error.strerror}: give another path, or make room", file=sys.stderr)
        _exit_now(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        _exit_now(130) if _is_multiprocess() else sys.exit(130)
    except Exception:
        _raise_or_exit()


def _raise_or_exit() -> None:
    """Re-raise the current exception; one of several processes prints it and exits at once."""
    if not _is_multiprocess():
        raise
    traceback.print_exc()
    _exit_now(1)


def _printable(text: str) -> str:
    """Escape line breaks and other control characters, which file names may hold."""
    return "".join(c if c.isprintable() or ord(c) > 127 else repr(c)[1:-1] for c in text)


def _output_is_gone() -> bool:
    try:
        print(flush=True)  # flushing an empty buffer would not fail
    except BrokenPipeError:
        return True
    return False


def _where(main: Callable[[], None]) -> str:
    """The page of the documentation on the command whose `main` this is."""
    # The tests' type checker wraps functions.
    spec = inspect.unwrap(main).__globals__.get("__spec__")
    module = spec.name.removesuffix(".__main__") if spec is not None else ""
    return f" (see --help, or {COMMANDS[module].page})" if module in COMMANDS else ""


def _is_first() -> bool:
    return not _is_multiprocess() or sys.modules["jax"].process_index() == 0


def _is_multiprocess() -> bool:
    """Whether other processes take part in this run; many commands never import JAX."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _exit_now(status: int) -> None:
    """Exit at once: at a regular exit JAX would wait for lost processes, and libraries would
    report the error again."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)
