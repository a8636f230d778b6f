"""The argument parsers of the commands and the benchmarks, for questions about their options."""

import argparse
import functools
import importlib
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


class Parsed(Exception):
    """Carries the parser of a program whose command line was about to be parsed."""


@functools.cache
def parser_of(program: str) -> argparse.ArgumentParser:
    """The argument parser of a program: a module of `COMMANDS`, or a file of benchmarks/."""

    def stop(parser, *_):
        raise Parsed(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        patch.syspath_prepend(ROOT / "benchmarks")
        with pytest.raises(Parsed) as parsed:
            if program.startswith("benchmarks/"):
                runpy.run_path(str(ROOT / program), run_name="__main__")
            else:
                module = importlib.import_module(program)
                if hasattr(module, "__path__"):
                    module = importlib.import_module(f"{program}.__main__")
                module.main()
    return parsed.value.args[0]
