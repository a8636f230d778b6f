"""Command-line options for reading label maps."""

import argparse

from sisma_jax.data.label_values import CLASS_ORDERS


def add_mask_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --class-order and --nearest-colour, the arguments of `label_values.Reading`.

    Args:
      parser: the command's parser.
      what: how the help calls the label maps.
    """
    parser.add_argument(
        "--class-order",
        choices=CLASS_ORDERS,
        default="canonical",
        help=f"how {what} number the CelebAMask-HQ classes; bisenet: like face-parsing.PyTorch",
    )
    parser.add_argument(
        "--nearest-colour",
        type=float,
        metavar="DISTANCE",
        help=f"for {what} with soft edges: map other colours to the nearest class colour, at most "
        "this far away in RGB (try 130); the share of such pixels is printed",
    )
