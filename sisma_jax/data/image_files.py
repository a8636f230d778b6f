"""Image files on disk: decoding with errors that name the file, writing that leaves no halves."""

import io
import os
import struct
import zlib
from pathlib import Path

from PIL import Image

from sisma_jax.errors import InputError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
"""Of picture files, by how their names end."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# What Pillow raises on damaged bytes; 20,000 damaged PNG and JPEG files raised nothing else. A size
# over its limit is damage too: no picture here comes near, so the header must be wrong.
_DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def load(path: Path | str, image_format: str, *, draft: int | None = None) -> Image.Image:
    """Decodes one image file of a known format, whatever its name ends in.

    Args:
      path: the file.
      image_format: "JPEG" or "PNG"; a file of another format is refused.
      draft: JPEG only: the decoder may skip resolution down to this many pixels a side, never
        below (1/2, 1/4 or 1/8 of the stored size).

    Returns:
      The decoded image, in the mode the file has.

    Raises:
      InputError: the file is missing, damaged, cut short or of another format.
    """
    try:
        source = _intact_png(Path(path)) if image_format == "PNG" else path
        with Image.open(source, formats=(image_format,)) as image:
            if draft is not None:
                image.draft(None, (draft, draft))
            image.load()
            return image
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or "damaged, cut short or of another format"
        raise InputError(
            f"{path} cannot be read as a {image_format} file ({reason}): replace the file by an "
            "intact one"
        ) from error


def _intact_png(path: Path) -> io.BytesIO:
    """A PNG file's bytes, whose checksums agree: Pillow does not look at those of the pixels."""
    content = path.read_bytes()
    place = len(PNG_SIGNATURE)
    while content.startswith(PNG_SIGNATURE) and place + 12 <= len(content):
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        end = place + 8 + length
        checksum = zlib.crc32(content[place + 4 : end])
        if end + 4 > len(content) or checksum != int.from_bytes(content[end : end + 4]):
            break
        if kind == b"IEND":
            return io.BytesIO(content)
        place = end + 4
    raise SyntaxError("damaged")


def save_png(image: Image.Image, path: Path | str) -> None:
    """Writes `image` to `path` as PNG; the file appears whole or not at all."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        image.save(unfinished, format="PNG")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
