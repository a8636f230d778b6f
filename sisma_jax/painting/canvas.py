"""Conversion between label maps and the values of the page's canvas.

The canvas (`easel.js`) paints on the label map itself: its pixels are the map's, enlarged by the
browser, and strokes have no soft edges, so that colours need not be mapped back to classes. Maps
are sent as base64 of their bytes, row by row; photos as PNG.
"""

import base64
import io
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sisma_jax.common.errors import InputError
from sisma_jax.data.classes import UNLABELLED, ClassSet
from sisma_jax.data.label_maps import colourise


def packed(labels: UInt8[np.ndarray, "h h"]) -> dict[str, str]:
    """The canvas's value for an untouched label map: `start` is the map that the eraser restores,
    `labels` the painted one."""
    text = base64.b64encode(labels.tobytes()).decode()
    return {"start": text, "labels": text}


def unpacked(value: Any, size: int, classes: ClassSet) -> UInt8[np.ndarray, "size size"]:
    """The label map painted on the canvas: ids of `classes`, and 255 where unlabelled.

    Raises:
      InputError: if it does not have `size` x `size` pixels, or holds an id of no class.
    """
    try:
        text = value["labels"]
        fits = len(text) == 4 * -(-size * size // 3)
        content = base64.b64decode(text, validate=True) if fits else b""
    except (TypeError, KeyError, ValueError):
        content = b""
    if len(content) != size * size:
        raise InputError(
            f"the page sent no mask of {size}x{size} pixels: load it again in the browser"
        )
    labels = np.frombuffer(content, np.uint8).reshape(size, size)
    wrong = labels[(labels >= len(classes)) & (labels != UNLABELLED)]
    if wrong.size:
        raise InputError(
            f"the page sent a mask with the id {wrong[0]}, but the model's classes are 0 to "
            f"{len(classes) - 1}: load it again in the browser"
        )
    return labels


def data_url(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """A picture as a data URL of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def thumbnail(
    labels: UInt8[np.ndarray, "h h"], classes: ClassSet, side: int
) -> UInt8[np.ndarray, "H H 3"]:
    """A label map in the classes' colours, enlarged to at least `side` pixels."""
    factor = -(-side // len(labels))
    return colourise(labels, classes).repeat(factor, axis=0).repeat(factor, axis=1)
