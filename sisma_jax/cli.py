"""What every command shares: one sentence for wrong input, the same shape of `--help`, the page of
the documentation."""

import argparse
import contextlib
import inspect
import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from absl import logging

from sisma_jax.commands import COMMANDS
from sisma_jax.errors import InputError, RunError
from sisma_jax.files import NO_ROOM, local_path

_SIGPIPE = 13


def parser(module: str, description: str, example: str) -> argparse.ArgumentParser:
    """An argument parser whose help shows defaults and ends with `example`.

    Args:
      module: a command of `COMMANDS`.
      description: of the help.
      example: one command line.
    """
    page = COMMANDS[module].page
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
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
    """The type of every option that is a path on this machine: `~` is expanded, also where no
    shell does (`--out=~/x`); an address (`gs://`) is refused, which would become a folder."""
    try:
        return local_path(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(main: Callable[[], None]) -> None:
    """Run a command; wrong input ends it with one sentence and status 2, a run that cannot go on
    with one and status 1. The sentence ends with the page of the documentation on the command.

    File names may hold anything: what the terminal's encoding lacks is printed escaped. Where the
    reader of the output has gone (`| head`), the command ends with status 141, as others do.
    """
    logging.set_verbosity(logging.FATAL)  # Orbax logs what it raises, and warns of its own options
    # A closed stream (`>&-`) is none; what is said is then said to nobody.
    nobody = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  until the process ends
    sys.stdout, sys.stderr = sys.stdout or nobody, sys.stderr or nobody
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except (InputError, RunError) as error:
        if _first() or not error.shared:
            sentence = _printable(str(error))
            print(f"error: {sentence}{_where(main)}", file=sys.stderr, flush=True)
        status = 2 if isinstance(error, InputError) else 1
        if status == 2 and (error.shared or not _many()):
            sys.exit(status)
        _leave(status)
    except BrokenPipeError:
        if _output_is_gone():
            os._exit(128 + _SIGPIPE)
        _unforeseen()
    except OSError as error:
        if error.filename is None and error.errno not in NO_ROOM:
            _unforeseen()
        # What no command has foreseen of disks and paths: a folder in place of a file, a name that
        # is too long, a full device.
        place = error.filename2 or error.filename
        where = "" if place is None else f"{_printable(os.fsdecode(place))}: "
        print(f"error: {where}{error.strerror}: give another path, or make room", file=sys.stderr)
        _leave(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        _leave(130) if _many() else sys.exit(130)
    except Exception:
        _unforeseen()


def _unforeseen() -> None:
    """Go on with the error at hand; of several processes this one leaves at once."""
    if not _many():
        raise
    traceback.print_exc()
    _leave(1)


def _printable(text: str) -> str:
    """Text without line breaks and other control characters, which file names may hold."""
    return "".join(c if c.isprintable() or ord(c) > 127 else repr(c)[1:-1] for c in text)


def _output_is_gone() -> bool:
    try:
        print(flush=True)  # a flush alone may find its buffer empty
    except BrokenPipeError:
        return True
    return False


def _where(main: Callable[[], None]) -> str:
    """The page of the documentation on the command whose `main` this is."""
    # A type checker, as in the tests, wraps functions.
    spec = inspect.unwrap(main).__globals__.get("__spec__")
    module = spec.name.removesuffix(".__main__") if spec is not None else ""
    return f" (see --help, or {COMMANDS[module].page})" if module in COMMANDS else ""


def _first() -> bool:
    return not _many() or sys.modules["jax"].process_index() == 0


def _many() -> bool:
    """Whether there are other processes of the same run; many commands do without JAX."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _leave(status: int) -> None:
    """Exit at once: at a regular end JAX would wait for processes that are lost, and libraries
    would say again what has been said."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)
