"""What visitors may ask for and send. The page's sliders keep to it, but a request need not come
from them: handlers check it again."""

import reprlib
from typing import Any

from sisma_jax.errors import InputError

MOST_FACES, MOST_STEPS, MOST_GUIDANCE = 16, 50, 5.0
"""Of one request. A run whose own steps or guidance are more may be asked for those."""
MOST_SEED = 2**32 - 1
MOST_REFERENCES, MOST_STYLE_GUIDANCE = 4, 5.0
MOST_UPLOAD = 32 * 2**20
"""Bytes of an uploaded file: a photo of 50 megapixels as JPEG has about 20 MB."""
MOST_WAITING = 32
"""Requests that wait for their turn, of all visitors."""
MOST_VISITORS = 100
"""Whose paintings, faces and photos are remembered: megabytes each at 256x256 pixels. Those who
come after them take the places of those who have been idle the longest."""


def most_message(size: int) -> int:
    """Bytes of a request that uploads nothing, for a canvas of `size` x `size` pixels: the canvas's
    value holds two label maps as base64."""
    return 2**20 + 4 * size**2


def number(name: str, value: Any, least: int | float, most: int | float) -> float:
    """Returns `value` as a float.

    Raises:
      InputError: unless it is a number from `least` to `most`; `name` says which one.
    """
    if not _is_number(value) or not least <= value <= most:
        raise InputError(f"{name} is {reprlib.repr(value)}: use {least:g} to {most:g}")
    return float(value)


def whole(name: str, value: Any, least: int, most: int) -> int:
    """As `number`, of a whole number, which may come as a float."""
    if not _is_number(value) or not least <= value <= most or value != int(value):
        raise InputError(
            f"{name} is {reprlib.repr(value)}: use a whole number from {least} to {most}"
        )
    return int(value)


def place(what: str, value: Any, count: int) -> int:
    """Returns `value`, the place of what was clicked among `count`.

    Raises:
      InputError: if nothing is there.
    """
    if not isinstance(value, int) or not 0 <= value < count:
        raise InputError(
            f"there is no {what} number {reprlib.repr(value)}: click one that is shown"
        )
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
