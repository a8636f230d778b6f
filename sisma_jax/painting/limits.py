"""Limits of what visitors may request and send.

The page's sliders respect them, but a request may come from elsewhere, so handlers check again.
"""

import reprlib
from typing import Any

from sisma_jax.common.errors import InputError

MOST_FACES, MOST_STEPS, MOST_GUIDANCE = 16, 50, 5.0
"""Limits of one request. A run's own steps or guidance are allowed if they are higher."""
MOST_SEED = 2**32 - 1
MOST_REFERENCES, MOST_STYLE_GUIDANCE = 4, 5.0
MOST_UPLOAD = 32 * 2**20
"""Bytes of an uploaded file: a photo of 50 megapixels as JPEG has about 20 MB."""
MOST_WAITING = 32
"""Limit of queued requests, over all visitors."""
MOST_VISITORS = 100
"""Limit of visitors whose paintings, faces and photos are kept: megabytes each at 256x256 pixels.
Further visitors replace those who have been idle the longest."""


def most_message(size: int) -> int:
    """Limit in bytes of a request without upload, for a canvas of `size` x `size` pixels, whose
    value holds two label maps as base64."""
    return 2**20 + 4 * size**2


def number(name: str, value: Any, least: int | float, most: int | float) -> float:
    """Return `value` as a float.

    Raises:
      InputError: unless it is a number from `least` to `most`; the message has its `name`.
    """
    if not _is_number(value) or not least <= value <= most:
        raise InputError(f"{name} is {reprlib.repr(value)}: use {least:g} to {most:g}")
    return float(value)


def integer(name: str, value: Any, least: int, most: int) -> int:
    """Like `number`, for an integer, which may be given as a float."""
    if not _is_number(value) or not least <= value <= most or value != int(value):
        raise InputError(
            f"{name} is {reprlib.repr(value)}: use a whole number from {least} to {most}"
        )
    return int(value)


def place(what: str, value: Any, count: int) -> int:
    """Return `value`, the clicked index among `count` items.

    Raises:
      InputError: if it is not an index.
    """
    if not isinstance(value, int) or not 0 <= value < count:
        raise InputError(
            f"there is no {what} number {reprlib.repr(value)}: click one that is shown"
        )
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
