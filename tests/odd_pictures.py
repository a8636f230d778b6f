"""Pictures as they turn up: of all modes, sizes and formats, with EXIF and profiles right or wrong,
cut short and overwritten."""

import io
import random
import struct
from pathlib import Path

from PIL import Image, ImageCms

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "LAB", "HSV")
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".bmp": "BMP", ".tif": "TIFF", ".webp": "WEBP"}


def write(folder: Path, stem: str, seed: int, side: int) -> Path:
    """Writes one, of `side` x `side` pixels more often than not, and returns its path."""
    dice = random.Random(seed)
    width, height = side, side
    if dice.random() < 0.3:
        width, height = dice.choice(((1, 1), (side, side + 8), (3 * side, side), (2 * side,) * 2))
    image = picture(dice, dice.choice(MODES), (width, height))
    suffix, options = dice.choice([*FORMATS]), {}
    if dice.random() < 0.5:
        options["exif"] = exif(dice)
    if dice.random() < 0.4:
        options["icc_profile"] = profile(dice)
    if dice.random() < 0.2:
        options["transparency"] = dice.choice((0, 3, b"\0\x80\xff", (1, 2, 3)))
    if dice.random() < 0.1:
        options |= {"save_all": True, "append_images": [image.copy()]}
    content = encoded(image, suffix, options)
    if dice.random() < 0.35:
        content = damaged(dice, bytearray(content))
    if dice.random() < 0.1:
        suffix = dice.choice([*FORMATS])
    path = folder / f"{stem}{suffix.upper() if dice.random() < 0.2 else suffix}"
    path.write_bytes(content)
    return path


def picture(dice: random.Random, mode: str, size: tuple[int, int]) -> Image.Image:
    colours = Image.frombytes("RGB", size, dice.randbytes(3 * size[0] * size[1]))
    if mode == "I;16":
        return Image.frombytes(mode, size, dice.randbytes(2 * size[0] * size[1]))
    if mode in ("I", "F"):
        return Image.frombytes(mode, size, bytes(4 * size[0] * size[1]))
    if mode == "LAB":
        return Image.frombytes(mode, size, dice.randbytes(3 * size[0] * size[1]))
    if mode in ("PA", "LA", "RGBA"):
        colours = colours.convert("RGBA")
        colours.putalpha(dice.choice((0, 100, 255)))
        return colours.convert(mode)
    return colours.convert(mode)


def encoded(image: Image.Image, suffix: str, options: dict) -> bytes:
    """With the options that the format takes; as plain RGB where it does not take the mode."""
    plain = Image.new("RGB", image.size, (9, 90, 200))
    for attempt, chosen in ((image, options), (image, {}), (plain, {})):
        file = io.BytesIO()
        try:
            attempt.save(file, FORMATS[suffix], **chosen)
        except Exception:  # whatever Pillow raises for options that do not fit
            continue
        return file.getvalue()
    raise AssertionError(f"no {suffix} of {image}")


def exif(dice: random.Random) -> bytes:
    """Some of it as phones have it, with wrong types; some of it no EXIF at all."""
    kinds = (
        struct.pack("<HHII", 0x112, 3, 1, dice.randrange(10)),
        struct.pack("<HHI4s", 0x128, 2, 2, b"2\0\0\0"),
        struct.pack("<HHII", 0x131, 5, 1, 8),
        struct.pack("<HHII", 0x8769, 4, 1, dice.randrange(2**32)),
        dice.randbytes(12),
    )
    entries = dice.sample(kinds, dice.randint(0, len(kinds)))
    count = len(entries) if dice.random() < 0.8 else dice.randrange(2**16)
    content = b"II*\0" + struct.pack("<IH", 8, count) + b"".join(entries) + bytes(4)
    if dice.random() < 0.2:
        content = content[: dice.randrange(len(content))]
    return b"Exif\0\0" + content


def profile(dice: random.Random) -> bytes:
    right = ImageCms.ImageCmsProfile(ImageCms.createProfile(dice.choice(("sRGB", "LAB", "XYZ"))))
    content = right.tobytes()
    if dice.random() < 0.5:
        content = bytes(damaged(dice, bytearray(content)))
    return content or b"\0"


def damaged(dice: random.Random, content: bytearray) -> bytes:
    """Cut short, with bytes of another file in it, or overwritten here and there."""
    kind = dice.randrange(4)
    if kind == 0:
        return bytes(content[: dice.randrange(len(content) + 1)])
    if kind == 1:
        place = dice.randrange(len(content))
        content[place:place] = dice.randbytes(dice.randint(1, 64))
    elif kind == 2:
        for _ in range(dice.randint(1, 20)):
            content[dice.randrange(len(content))] = dice.randrange(256)
    else:  # the head, where sizes and offsets stand
        for _ in range(dice.randint(1, 4)):
            content[dice.randrange(min(len(content), 64))] = dice.randrange(256)
    return bytes(content)
