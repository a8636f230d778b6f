"""Contact sheets: each row shows a mask and its faces."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from sisma_jax.data.classes import CELEBAMASK, ClassSet
from sisma_jax.data.label_maps import colourise

GAP = 2
BACKGROUND = 255


def tile(rows: Sequence[Sequence[UInt8[np.ndarray, "h w 3"]]]) -> UInt8[np.ndarray, "H W 3"]:
    """Tile rows of images of one size on a white sheet."""
    height, width = rows[0][0].shape[:2]
    columns = max(map(len, rows))
    sheet = np.full(
        (len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), BACKGROUND, np.uint8
    )
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            y, x = i * (height + GAP), j * (width + GAP)
            sheet[y : y + height, x : x + width] = image
    return sheet


def mask_sheet(
    labels: UInt8[np.ndarray, "rows h w"],
    images: UInt8[np.ndarray, "rows columns h w 3"],
    reference: UInt8[np.ndarray, "rows h w 3"] | None = None,
    classes: ClassSet = CELEBAMASK,
) -> UInt8[np.ndarray, "H W 3"]:
    """One row per mask: the mask in class colours, its reference image, its synthesised faces."""
    rows = []
    for i, mask in enumerate(colourise(labels, classes)):
        row = [mask] if reference is None else [mask, reference[i]]
        rows.append(row + list(images[i]))
    return tile(rows)


def with_legend(
    sheet: UInt8[np.ndarray, "h w 3"], classes: ClassSet = CELEBAMASK
) -> UInt8[np.ndarray, "H w 3"]:
    """Add the names and colours of the classes below a sheet."""
    size, columns = 12, max(1, sheet.shape[1] // 96)
    lines = -(-len(classes) // columns)
    legend = Image.new("RGB", (sheet.shape[1], lines * (size + 6) + 6), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(legend)
    font = ImageFont.load_default(size)
    for i, (name, colour) in enumerate(zip(classes.names, classes.colours, strict=True)):
        x, y = i % columns * (sheet.shape[1] // columns) + 4, i // columns * (size + 6) + 6
        draw.rectangle((x, y, x + size, y + size), fill=colour, outline=(90,) * 3)
        draw.text((x + size + 4, y - 1), name, fill=(0, 0, 0), font=font)
    return np.concatenate([sheet, np.asarray(legend)])
