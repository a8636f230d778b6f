"""Between label maps and what the page's canvas exchanges with the server.

The canvas (`easel.js`) paints on the label map itself: its pixels are the map's, enlarged by the
browser, and a stroke has no soft edge, so that no colour has to be taken for a class again. Maps
travel as base64 of their bytes, row by row; photos as PNG.
"""

import base64
import binascii
import io
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sisma_jax.data.classes import ClassSet
from sisma_jax.data.label_maps import colourise
from sisma_jax.errors import InputError


def packed(labels: UInt8[np.ndarray, "h h"]) -> dict[str, str]:
    """The canvas's value for a label map on which nothing has been painted: `start` is what the
    eraser brings back, `labels` what has been painted."""
    text = base64.b64encode(labels.tobytes()).decode()
    return {"start": text, "labels": text}


def unpacked(value: Any, size: int) -> UInt8[np.ndarray, "size size"]:
    """The label map painted on the canvas.

    Raises:
      InputError: if it is not one of `size` x `size` pixels.
    """
    try:
        content = base64.b64decode(value["labels"], validate=True)
    except (TypeError, KeyError, binascii.Error, ValueError):
        content = b""
    if len(content) != size * size:
        raise InputError(
            f"the page sent no mask of {size}x{size} pixels: load it again in the browser"
        )
    return np.frombuffer(content, np.uint8).reshape(size, size)


def data_url(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """A picture as the address of itself."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def thumbnail(
    labels: UInt8[np.ndarray, "h h"], classes: ClassSet, side: int
) -> UInt8[np.ndarray, "H H 3"]:
    """A label map in the classes' colours, each pixel a square, of at least `side` pixels."""
    factor = -(-side // len(labels))
    return colourise(labels, classes).repeat(factor, axis=0).repeat(factor, axis=1)
