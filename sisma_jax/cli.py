"""What every command shares: one sentence for wrong input, the same shape of `--help`."""

import argparse
import sys
from collections.abc import Callable

from absl import logging

from sisma_jax.errors import InputError, RunError


def parser(module: str, description: str, example: str) -> argparse.ArgumentParser:
    """An argument parser whose help shows defaults and ends with `example`."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside every option; line breaks of description and example kept."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.const is True:
            return action.help
        return super()._get_help_string(action)


def run(main: Callable[[], None]) -> None:
    """Run a command; wrong input ends it with one sentence and status 2, a run that cannot go on
    with one and status 1."""
    logging.set_verbosity(logging.FATAL)  # Orbax logs what it raises, and warns of its own options
    try:
        main()
    except InputError as error:
        _end(str(error), 2)
    except RunError as error:
        _end(str(error), 1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _end(sentence: str, status: int) -> None:
    """Say it on the first of the processes that train together, and leave."""
    jax = sys.modules.get("jax")  # many commands do without
    together = jax is not None and jax.distributed.is_initialized()
    if not together or jax.process_index() == 0:
        print(f"error: {sentence}", file=sys.stderr, flush=True)
    sys.exit(status)
