"""Options of commands that sample: the times of the solver, and how guidance applies."""

import argparse
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from sisma_jax.common.errors import InputError
from sisma_jax.models.generators import generator, learns_null_mask, model_config
from sisma_jax.synthesis.options import ALWAYS, SamplingOptions, name_fields

FURTHER_OPTIONS = ("times", "shift", "guidance_interval", "guidance_rescale")
"""Fields of `SamplingOptions` that `add_arguments` adds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command with `--steps` and `--guidance`."""
    group = parser.add_argument_group(
        "times, from 0 (noise) to 1 (data), and guidance (docs/sampling.md)"
    )
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
    add(
        "--guidance-rescale",
        type=float,
        default=SamplingOptions.guidance_rescale,
        metavar="SHARE",
        help="share, from 0 to 1, of a rescaling against the over-exposure by strong guidance",
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
        further = {name: getattr(args, name) for name in FURTHER_OPTIONS}
        options = SamplingOptions(**further, **values)
        options.check_ends()
    return options


def check_numbers(args: argparse.Namespace) -> None:
    """Raises InputError if --seed or --batch-size is out of range."""
    if not 0 <= args.seed < 2**32:
        raise InputError(f"--seed is {args.seed}: use 0..{2**32 - 1}")
    if args.batch_size < 1:
        raise InputError(f"--batch-size is {args.batch_size}: use at least 1")


def check_guidance(
    args: argparse.Namespace, guidances: Sequence[float], config: ConfigDict
) -> None:
    """Raises InputError for options of guidance where each of the guidances is 1.

    Call it after the checks of what the model is given, which a model of one pass does not pass
    with such options.

    Args:
      args: parsed options of `add_arguments`.
      guidances: those that are asked for.
      config: the run's config, which says what guidance its model can have.
    """
    if any(scale != 1 for scale in guidances):
        return
    first, last = args.guidance_interval
    for option, value, given in (
        ("interval", f"{first:g} {last:g}", args.guidance_interval != list(ALWAYS)),
        ("rescale", f"{args.guidance_rescale:g}", args.guidance_rescale != 0),
    ):
        if given:
            possible = [
                *(["--guidance"] if learns_null_mask(config) else []),
                *(["--style-guidance"] if generator(model_config(config)).has_style else []),
            ]
            remedy = (
                f"give {' or '.join(possible)}, or leave it out" if possible else "leave it out"
            )
            raise InputError(f"--guidance-{option} is {value}, but there is no guidance: {remedy}")
