"""Reading of picture files, and atomic writing of PNG files.

`read_picture` returns any picture of a camera, browser or scanner in one form: upright by its EXIF
orientation, 8 bits per channel, RGB in sRGB, transparency on white. `read_lossless` returns values
that are numbers rather than colours, such as label maps, as they are stored. The format is
determined by the content, not the name. The size is checked before decoding, so that a small file
cannot fill the memory.
"""

import functools
import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import refuse_lfs_pointer, write_atomically

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
"""Formats of picture files by suffix in lower case."""
LOSSLESS = tuple(suffix for suffix, kind in FORMATS.items() if kind != "JPEG")
"""Suffixes of files that may hold label maps."""
FORMAT_NAMES = "PNG, JPEG, BMP, TIFF or WebP"
LOSSLESS_NAMES = "PNG, BMP, TIFF or lossless WebP"

MAX_PIXELS = 2**25
"""Pixels of the largest picture that is decoded: 33 million. A JPEG that is decoded at reduced
resolution (not a progressive one) may have up to 178 million."""
MAX_BYTES = 2**29
"""Bytes of the largest picture file that is read."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH_BYTE = 24
_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transpose that makes a picture upright, by EXIF orientation."""
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
_COLOUR_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", *_ALPHA_MODES)
_NAMES_OF_SRGB = ("sRGB", "sRGB built-in", "sRGB IEC61966-2.1", "sRGB IEC61966-2-1", "c2")
"""Names of sRGB profiles; others that contain the name, such as linear ones, are converted."""
_LOSSLESS_TIFF = (
    "raw", "packbits", "tiff_ccitt", "group3", "group4", "tiff_lzw", "tiff_adobe_deflate",
    "tiff_deflate", "lzma", "zstd",
)  # fmt: skip

# Pillow warns of EXIF that it cannot parse and of transparency that it handles.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Stored(NamedTuple):
    """A decoded file with values as stored, and its format and bit depth, which decoding hides."""

    image: Image.Image
    format: str
    depth: int
    """Bits per channel, or per palette index."""

    @property
    def has_alpha(self) -> bool:
        return self.image.mode in _ALPHA_MODES


def read_picture(path: Path | str, *, draft: int | None = None) -> Image.Image:
    """Read a picture as it is meant to be seen.

    It is turned by its EXIF orientation, even if other EXIF data is malformed. 16-bit grey is
    scaled to 8 bits, colours are converted from an embedded profile to sRGB (unless the profile
    does not fit the picture), and transparent pixels become white.

    Args:
      path: a PNG, JPEG, BMP, TIFF or WebP file with any suffix.
      draft: a JPEG's decoder may skip resolution down to this many pixels of the shorter side,
        never below (1/2, 1/4 or 1/8 of the stored size).

    Returns:
      The picture in Pillow's mode "RGB".

    Raises:
      InputError: the file is missing, damaged, cut short, of another format, larger than
        `MAX_PIXELS` or `MAX_BYTES`, has several frames or pages, or its pixels are not colours.
    """
    with _opened(path) as image:
        if draft is not None and _can_skip_resolution(image):
            image.draft(None, (draft, draft))
        _check_decodable(path, image)
        image.load()
        return _upright(_rgb(path, image), image)


def read_lossless(path: Path | str) -> Stored:
    """Read a file whose values must be exact, upright, in its own mode.

    Args:
      path: a PNG, BMP, TIFF or WebP file with any suffix.

    Raises:
      InputError: as in `read_picture`, or the file's compression is lossy.
    """
    with _opened(path) as image:
        lossy = _lossy(image)
        if lossy:
            raise InputError(
                f"{path} is {lossy}, whose compression blurs values: save it again, from the "
                f"original, as {LOSSLESS_NAMES}"
            )
        _check_decodable(path, image)
        depth = _depth(image)
        kind = image.format
        image.load()
        return Stored(_upright(image, image), kind, depth)


def picture_size(path: Path | str, *, draft: bool = False) -> tuple[int, int]:
    """(width, height) of the upright picture, from the file's header.

    Args:
      path: as in `read_picture`.
      draft: whether the picture will be read with resolution skipped, so that it may be larger.

    Raises:
      InputError: as in `read_picture`, but data after the header is not checked.
    """
    with _opened(path) as image:
        if not (draft and _can_skip_resolution(image)):
            _check_decodable(path, image)
        width, height = image.size
        # Pillow swaps the sides of a TIFF file itself.
        if width != height and image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8):
            return height, width
        return width, height


def save_png(image: Image.Image, path: Path | str, *, flush: bool = True) -> None:
    """Write `image` to `path` as PNG, atomically (`write_atomically`)."""
    content = io.BytesIO()
    image.save(content, format="PNG")
    write_atomically(Path(path), content.getvalue(), flush=flush)


@contextmanager
def _opened(path: Path | str) -> Iterator[Image.Image]:
    """Open a file and read its header; any error inside the context becomes an InputError."""
    path = Path(path)
    content = b""
    try:
        kind = path.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # reading a pipe may block
            raise InputError(f"{path} is a pipe or a device: give a file")
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise InputError(
                    f"{path} has more than {MAX_BYTES >> 20} MiB, the limit for picture "
                    "files: make it smaller"
                )
            content = file.read()
        if content.startswith(PNG_SIGNATURE):
            _check_png(content)
        with Image.open(io.BytesIO(content), formats=sorted(set(FORMATS.values()))) as image:
            yield image
    except InputError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} does not exist: check the path") from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path} cannot be read as {_kind(path, content)} (its header names more pixels than "
            "the limit): make it smaller, or replace it by an intact one"
        ) from error
    # Pillow's decoders raise many kinds of errors: struct.error, KeyError, TypeError.
    except Exception as error:
        refuse_lfs_pointer(path)
        reason = getattr(error, "strerror", None) or "damaged, cut short or of another format"
        raise InputError(
            f"{path} cannot be read as {_kind(path, content)} ({reason}): replace the file by an "
            "intact one"
        ) from error


def _kind(path: Path, content: bytes) -> str:
    """The kind of file in words, by its content, or else by its name."""
    kinds = [
        kind
        for start, kind in (
            (PNG_SIGNATURE, "PNG"), (b"\xff\xd8", "JPEG"), (b"BM", "BMP"), (b"RIFF", "WEBP"),
            (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"),
        )
        if content.startswith(start)
    ]  # fmt: skip
    kind = kinds[0] if kinds else FORMATS.get(path.suffix.lower())
    return f"a {kind} file" if kind else "a picture"


def _check_png(content: bytes) -> None:
    """Raises SyntaxError unless all checksums agree, including the pixels', which Pillow skips."""
    place = len(PNG_SIGNATURE)
    while place + 12 <= len(content):
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        end = place + 8 + length
        checksum = zlib.crc32(content[place + 4 : end])
        if end + 4 > len(content) or checksum != int.from_bytes(content[end : end + 4]):
            break
        if kind == b"IEND":
            return
        place = end + 4
    raise SyntaxError("damaged")


def _can_skip_resolution(image: Image.Image) -> bool:
    """Whether it is a JPEG whose decoder may skip stored data (not a progressive one)."""
    return image.format in ("JPEG", "MPO") and not image.info.get("progressive")


def _check_decodable(path: Path | str, image: Image.Image) -> None:
    """Raises InputError where the picture is too large, or not the only one in its file."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{path} has {width} x {height} pixels, more than the {MAX_PIXELS:,} that are read: "
            "make it smaller"
        )
    # A phone's JPEG may hold further views of the scene after the picture (MPO).
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise InputError(
            f"{path} holds {image.n_frames} pictures (frames or pages): save the one that is meant"
        )


def _lossy(image: Image.Image) -> str | None:
    """The lossy format in words; None if it is lossless."""
    if image.format in ("JPEG", "MPO"):
        return "a JPEG"
    if image.format == "TIFF" and image.info.get("compression") not in _LOSSLESS_TIFF:
        return f"a TIFF with {image.info.get('compression')} compression"
    if image.format == "WEBP" and not _is_lossless_webp(image.fp.getvalue()):
        return "a lossy WebP"
    return None


def _is_lossless_webp(content: bytes) -> bool:
    """Whether the picture's chunk is coded losslessly ("VP8L")."""
    place = 12
    while place + 8 <= len(content):
        kind, length = struct.unpack("<4sI", content[place : place + 8])
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8L"
        place += 8 + length + length % 2
    return False


def _depth(image: Image.Image) -> int:
    """Stored bits per channel or palette index: decoders silently widen 2- and 4-bit greyscale and
    narrow 16-bit colour."""
    if image.format == "PNG":
        return image.fp.getvalue()[_PNG_DEPTH_BYTE]
    if image.format == "TIFF":
        return max(image.tag_v2.get(_TIFF_BITS, (1,)))
    return 1 if image.mode == "1" else 8


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if it is missing or unreadable."""
    # Other tags are malformed in many phones' files, so only this one is read.
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # Pillow's parser raises many kinds
        return 1
    return value if type(value) is int and value in _TURNS else 1


def _upright(image: Image.Image, file: Image.Image) -> Image.Image:
    """`image`, turned as the EXIF orientation of its file says; Pillow turns a TIFF's itself."""
    turn = None if file.format == "TIFF" else _TURNS.get(_orientation(file))
    return image if turn is None else image.transpose(turn)


def _rgb(path: Path | str, image: Image.Image) -> Image.Image:
    """Convert a picture of any mode to RGB in sRGB, on white."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        image = _from_sixteen_bits(image)
    if image.mode not in _COLOUR_MODES:
        raise InputError(
            f"{path} has pixels of type {image.mode}, whose colours are undefined: save it as "
            "8-bit RGB"
        )
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    if profile:
        image = _from_profile(image, profile)
    if image.mode != "RGB":
        image = image.convert("RGB")
    if alpha is not None:
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=alpha)
        return white
    return image


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    """Convert to 8-bit grey, with alpha if the file names a transparent value."""
    values = np.asarray(image)
    if image.format == "TIFF" and image.tag_v2.get(_TIFF_PHOTOMETRIC) == 0:  # 0 is white
        values = 65535 - values
    grey = Image.fromarray(np.rint(values * np.float32(255 / 65535)).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        opaque = np.where(values == transparent, 0, 255).astype(np.uint8)
        grey.putalpha(Image.fromarray(opaque))
    return grey


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _from_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert a picture from its profile to sRGB; unchanged if the profile does not fit."""
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if ImageCms.getProfileDescription(own).strip() in _NAMES_OF_SRGB:
            return image
        return ImageCms.profileToProfile(image, own, _srgb(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
