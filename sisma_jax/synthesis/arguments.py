"""Options of commands that sample: the times of the solver and of guidance."""

import argparse
from collections.abc import Sequence
from typing import Any

from sisma_jax.common.errors import InputError
from sisma_jax.synthesis.options import ALWAYS, SamplingOptions, name_fields

TIME_OPTIONS = ("times", "shift", "guidance_interval")
"""Fields of `SamplingOptions` that `add_arguments` adds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command with `--steps` and `--guidance`."""
    group = parser.add_argument_group("times, from 0 (noise) to 1 (data) (docs/sampling.md)")
    add = group.add_argument
    add(
        "--times",
        type=float,
        nargs="+",
        metavar="T",
        help="start times of the solver's steps and the end time, from 0 to 1, in place of --steps",
    )
    add(
        "--shift",
        type=float,
        default=SamplingOptions.shift,
        help="shift of equal steps; more than 1 takes finer steps near the noise",
    )
    add(
        "--guidance-interval",
        type=float,
        nargs=2,
        default=list(ALWAYS),
        metavar=("FIRST", "LAST"),
        help="first and last time of guidance, which costs nothing at others",
    )


def options_from(args: argparse.Namespace, **values: Any) -> SamplingOptions:
    """The options of a command that makes images from noise.

    Args:
      args: parsed options of `add_arguments`.
      values: the other fields of `SamplingOptions`.

    Raises:
      InputError: if a value is out of range; the message names the command's option.
    """
    with name_fields("--"):
        times = {name: getattr(args, name) for name in TIME_OPTIONS}
        options = SamplingOptions(**times, **values)
        options.check_ends()
    return options


def check_interval(args: argparse.Namespace, guidances: Sequence[float]) -> None:
    """Raises InputError for a guidance interval where each of the guidances is 1."""
    if args.guidance_interval != list(ALWAYS) and all(scale == 1 for scale in guidances):
        first, last = args.guidance_interval
        raise InputError(
            f"--guidance-interval is {first:g} {last:g}, but there is no guidance: give --guidance "
            "or --style-guidance, or leave it out"
        )
