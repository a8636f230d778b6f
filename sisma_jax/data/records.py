"""One item as bytes: images losslessly as WebP, label maps as deflated ids, in a msgpack map.

WebP was chosen by measurement (`benchmarks/data_bench.py`): it decodes faster than PNG and is
smaller. A label map is small enough for its raw bytes to be deflated.
"""

import io
import zlib
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
from PIL import Image

CODING = {"container": "msgpack", "image": "webp-lossless", "labels": "zlib"}


def encode(id: str, item: dict[str, np.ndarray]) -> bytes:
    """Bytes of an item's id, "image" uint8 (size, size, 3) and "labels" uint8 (size, size)."""
    image, labels = encode_image(item["image"]), encode_labels(item["labels"])
    return pack(id, image=image, labels=labels)


def decode(record: bytes, fields: Sequence[str], size: int) -> dict[str, np.ndarray]:
    """The requested fields of a record that `encode` wrote."""
    stored = unpack(record)
    item = {}
    if "image" in fields:
        item["image"] = decode_image(stored["image"])
    if "labels" in fields:
        item["labels"] = decode_labels(stored["labels"], size)
    return item


def pack(id: str, **fields: bytes) -> bytes:
    """A record of an item's id and fields. The id may come from a file name that is not UTF-8."""
    return msgpack.packb({"id": id, **fields}, unicode_errors="surrogateescape")


def unpack(record: bytes) -> dict[str, Any]:
    """The id and fields that `pack` was given."""
    return msgpack.unpackb(record, unicode_errors="surrogateescape")


def encode_image(image: np.ndarray) -> bytes:
    """Bytes of an image, uint8 (size, size, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", lossless=True, method=0, quality=50)
    return buffer.getvalue()


def decode_image(stored: bytes) -> np.ndarray:
    """The image, uint8 (size, size, 3), that `encode_image` was given."""
    with Image.open(io.BytesIO(stored), formats=("WEBP",)) as image:
        return np.asarray(image)


def encode_labels(labels: np.ndarray) -> bytes:
    """Bytes of a label map, uint8 (size, size)."""
    return zlib.compress(labels.tobytes(), 6)


def decode_labels(stored: bytes, size: int) -> np.ndarray:
    """The label map, uint8 (size, size), that `encode_labels` was given."""
    return np.frombuffer(zlib.decompress(stored), np.uint8).reshape(size, size)
