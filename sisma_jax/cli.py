"""What every command shares: one sentence for wrong input, the same shape of `--help`."""

import argparse
import sys
from collections.abc import Callable

from absl import logging

from sisma_jax.errors import InputError


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
    """Run a command; wrong input or a diverged run ends it with one sentence and status 2."""
    logging.set_verbosity(logging.ERROR)  # Orbax warns of options that it sets itself
    try:
        main()
    except (InputError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
