"""The options of commands that read label maps: how they are to be read."""

import argparse

from sisma_jax.data.label_values import CLASS_ORDERS


def add_mask_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds --class-order and --nearest-colour, of `what` in words.

    Their values are what `label_values.Reading` takes.
    """
    parser.add_argument(
        "--class-order",
        choices=CLASS_ORDERS,
        default="canonical",
        help=f"how {what} number the CelebAMask-HQ classes; bisenet: as face-parsing.PyTorch",
    )
    parser.add_argument(
        "--nearest-colour",
        type=float,
        metavar="DISTANCE",
        help=f"of {what} with soft edges: take colours that are no class colour for the nearest, "
        "at most so far away in RGB (try 130); the share of such pixels is said",
    )
