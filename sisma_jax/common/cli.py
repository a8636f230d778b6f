"""Shared by all commands: errors as one sentence, the layout of `--help`, the command's page."""

import argparse
import contextlib
import errno
import inspect
import io
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import logging

from sisma_jax.common.commands import COMMANDS, PACKAGE, PACKAGE_PAGE, short_name
from sisma_jax.common.errors import InputError, RunError, did_you_mean
from sisma_jax.common.files import NO_ROOM, local_path

_SIGPIPE = 13

_OTHER_PATH = {
    errno.ENOENT: "check the path, or give another",
    errno.ENOTDIR: "a file stands where a folder is needed, so give another path",
    errno.EISDIR: "a folder stands where a file is needed, so give another path",
    errno.EEXIST: "give another path",
    errno.EACCES: "give a path that you may read and write",
    errno.EPERM: "give a path that you may read and write",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "give a path without a circle of links",
}
"""Errors that another path on the command line mends, and the remedies."""

_called_by_name = False
"""Whether the command was started as `sisma NAME` instead of `python -m`."""


def as_called(text: str) -> str:
    """`text` with its commands `python -m sisma_jax...` in the form in which this one was called:
    `sisma NAME` if it was started by `sisma`."""
    if not _called_by_name:
        return text
    return re.sub(
        rf"python -m ({PACKAGE}(?:\.\w+)+)",
        lambda match: f"sisma {short_name(match[1])}" if match[1] in COMMANDS else match[0],
        text,
    )


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `InputError`, so that each is one sentence with a remedy
    and the command's page; its help shows defaults and ends with an example.

    An option that keeps one value, or one list of values, is refused where it is given twice: the
    last would silently replace the others. So are empty values, which would be the current folder
    or no value at all.

    Messages of a type (`argparse.ArgumentTypeError`) continue the option's name: "is 'a': give b".
    """

    def __init__(self, module: str, description: str, example: str) -> None:
        """
        Args:
          module: a command of `COMMANDS`.
          description: text above the options.
          example: one command line.
        """
        page = COMMANDS[module].page
        self._example = as_called(example)
        super().__init__(
            prog=as_called(f"python -m {module}"),
            description=as_called(description),
            epilog=f"example:\n  {self._example}\n\n{page} in the project's sources explains it.",
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        self.register("type", int, _whole_number)
        self.register("type", float, _number)
        for action in (None, "store"):
            self.register("action", action, _StoreOnce)
        self.given: set[str] = set()
        """The options of `_StoreOnce` among the words that are being parsed."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = set()
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, others = self.parse_known_args(args, namespace)
        self.refuse(others)
        return parsed

    def refuse(self, words: Sequence[str]) -> None:
        """Raises InputError for the first of these words, which belong to no option."""
        for word in words:
            if not word.startswith("-"):
                raise InputError(
                    f"argument {word!r} belongs to no option: leave it out, or quote the value of "
                    "which it is a part"
                )
            option = word.partition("=")[0]
            remedy = did_you_mean(option, self._option_string_actions, "leave it out")
            raise InputError(f"option {option!r} does not exist: {remedy}")

    def error(self, message: str) -> NoReturn:
        """Raises InputError for a message of argparse."""
        raise InputError(self._sentence(message))

    def _sentence(self, message: str) -> str:
        if match := re.fullmatch(r"the following arguments are required: (.+)", message):
            missing = " and ".join(match[1].split(", "))
            return f"{missing} must be given: for example, `{self._example}`"
        if match := re.fullmatch(r"one of the arguments (.+) is required", message):
            return f"one of {' and '.join(match[1].split())} must be given: `{self._example}`"
        if not (match := re.fullmatch(r"argument (\S+): (.+)", message, re.DOTALL)):
            return f"{message}: for example, `{self._example}`"
        option, reason = match[1], match[2]
        if other := re.fullmatch(r"not allowed with argument (\S+)", reason):
            return f"{option} and {other[1]} do not go together: leave one of them out"
        if reason.startswith("ignored explicit argument"):
            return f"{option} takes no value: write {option} alone"
        if reason.startswith("expected ") and option in self._option_string_actions:
            action = self._option_string_actions[option]
            values = action.metavar or action.dest.upper()
            values = values if isinstance(values, str) else " ".join(values)
            takes = reason.replace("expected", "takes", 1)
            return f"{option} {takes}: write {option} {values}"
        return f"{option} {reason}"

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """As argparse, without empty values."""
        if not arg_string:
            raise argparse.ArgumentError(action, "is empty: give a value, or leave the option out")
        return super()._get_value(action, arg_string)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse, with a sentence that ends with the choices."""
        if action.choices is not None and value not in action.choices:
            choices = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"is {value!r}: choose one of {choices}")


class _StoreOnce(argparse.Action):
    """Stores the value of an option of a `Parser`, or its values, and refuses the option's second
    occurrence."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        if option_string in parser.given:
            several = self.nargs in ("+", "*")
            remedy = f"give all its values after one {option_string}" if several else "give it once"
            raise argparse.ArgumentError(self, f"is given twice: {remedy}")
        if option_string is not None:
            parser.given.add(option_string)
        setattr(namespace, self.dest, values)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {text!r}: give a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {text!r}: give a number") from None


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside every option; line breaks of description and example kept. The values of an
    option that takes several are shown by all their names, none as if it might be left out."""

    def _format_args(self, action: argparse.Action, default_metavar: str | None) -> str:
        if action.nargs == "+" and isinstance(action.metavar, tuple):
            return " ".join(action.metavar)
        return super()._format_args(action, default_metavar)

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


def start(module: str, arguments: Sequence[str], *, by_name: bool) -> None:
    """Run a command as `python -m module arguments` does; with `by_name` its help and its errors
    call commands `sisma NAME`."""
    global _called_by_name
    _called_by_name = by_name
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def run(main: Callable[[], None]) -> None:
    """Run a command; InputError ends it with one sentence and status 2, RunError with status 1.

    The sentence ends with a page of the documentation, the command's own unless the error names
    another. Errors of paths that no command handles have status 2, and others of disks 1.
    Characters that the terminal's encoding lacks are escaped. If the reader of the output is gone
    (`| head`), the status is 141.
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
            page = error.page if isinstance(error, InputError) else ""
            _print_error(str(error), _where(main, page))
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
        where = "" if place is None else f"{os.fsdecode(place)}: "
        remedy = _OTHER_PATH.get(error.errno)
        _print_error(
            f"{where}{error.strerror}: {remedy or 'make room, or give a path on another disk'}",
            _where(main),
        )
        _exit_now(1 if remedy is None else 2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        _exit_now(130)  # a compilation in another thread does not survive a regular exit
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


def _print_error(sentence: str, where: str) -> None:
    print(f"error: {_printable(as_called(sentence))}{where}", file=sys.stderr, flush=True)


def _where(main: Callable[[], None], page: str = "") -> str:
    """The `page` of the documentation, or else that on the command whose `main` this is."""
    # The tests' type checker wraps functions.
    spec = inspect.unwrap(main).__globals__.get("__spec__")
    module = spec.name.removesuffix(".__main__") if spec is not None else ""
    own = PACKAGE_PAGE if module == PACKAGE else COMMANDS[module].page if module in COMMANDS else ""
    return f" (see --help, or {page or own})" if own else ""


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
