"""Cached latents: the moments of every item's latents, and its labels.

`sisma_jax.cache_latents` writes them from a prepared data set. A record holds the float16 moments
of the image and of its mirror image (which are not mirror images of each other), the labels once
and, if the cache was written for models with a style, the image. Checksums in `latents.json`
identify the data and the autoencoder.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float16, UInt8

from sisma_jax.common.errors import InputError
from sisma_jax.data import prepared, records
from sisma_jax.data.classes import ClassSet

LATENTS_FILE = "latents.json"
COMMAND = "sisma_jax.cache_latents --data DIR --autoencoder PATH --out DIR"
"""The command that writes a cache, for messages."""
VERSION = 1
"""Incremented when older software cannot read the records."""
CODING = {"container": "msgpack", "moments": "float16", "labels": records.CODING["labels"]}
CODING_WITH_IMAGES = CODING | {"image": records.CODING["image"]}
FIELDS = ("moments", "labels")
FIELDS_WITH_IMAGES = (*FIELDS, "image")


def encode(
    id: str,
    moments: Float16[np.ndarray, "2 h w moments"],
    labels: UInt8[np.ndarray, "H W"],
    image: bytes | None = None,
) -> bytes:
    """Bytes of an item: moments of the image and of its mirror image, its labels and, if given, the
    image as `records.encode_image` returns it."""
    picture = {} if image is None else {"image": image}
    labelled = {"labels": records.encode_labels(labels)}
    return records.pack(id, moments=moments.tobytes(), **labelled, **picture)


def is_latent_cache(path: Path | str) -> bool:
    with prepared.reading(path):
        return (prepared.folder(path) / LATENTS_FILE).exists()


class LatentCache:
    """Random access to the items of one split, in the order of their ids; a grain data source.

    Item `i` is a dict of the requested fields: "moments" float16 (2, h, w, 2 channels), mean and
    log-variance before scaling, of the image and of its mirror image; "labels" uint8 (size, size)
    of the image; "image" uint8 (size, size, 3). Reading is thread-safe.

    Attributes:
      ids: list of str, names of the items in the data set.
      classes: the classes that labels index.
      checksum: checksum of the data set that was encoded.
    """

    def __init__(self, path: Path | str, *, split: str = "train", fields: Sequence[str] = FIELDS):
        """Open the shards.

        Raises:
          InputError: it is not a finished cache, has no such split, images are requested that it
            does not hold, or shards are missing or hold another number of records.
        """
        self._description = prepared.read_versioned(
            path,
            LATENTS_FILE,
            VERSION,
            what="latent cache",
            command=COMMAND,
        )
        self.classes = ClassSet.from_json(self._description)
        self.checksum = self._description["data"]
        self._path, self._split, self._fields = path, split, tuple(fields)
        if "image" in fields and "image" not in self._description["coding"]:
            raise InputError(
                f"the latents in {path} come without the images that a model with a style takes "
                f"styles from: encode the data set by `python -m {COMMAND} --images`, or leave "
                "autoencoder.cache empty"
            )
        self._shape = tuple(self._description["moments"])
        self._size = self._description["size"]
        self.ids, self._records = prepared.open_split(path, self._description, split)

    def check(self, *, size: int, autoencoder: str | None, data: str | None) -> None:
        """Check that the cache was made from this data by this autoencoder.

        Args:
          size: side of the images in pixels.
          autoencoder: checksum of the autoencoder; None if it is not known yet.
          data: checksum of the data set; None to skip it.

        Raises:
          InputError: something differs; the message names all of it.
        """
        made_of = self._description
        differences = []
        if self._size != size:
            differences.append(f"of images of {self._size} pixels instead of {size}")
        if autoencoder not in (None, made_of["autoencoder"]):
            differences.append(
                f"of another autoencoder ({made_of['autoencoder'][:8]} instead of "
                f"{autoencoder[:8]})"
            )
        if data not in (None, made_of["data"]):
            differences.append(f"of other data ({made_of['data'][:8]} instead of {data[:8]})")
        if differences:
            images = " --images" if "image" in self._fields else ""
            raise InputError(
                f"the latents in {self._path} are {' and '.join(differences)}: encode this data "
                f"set with this autoencoder by `python -m {COMMAND}{images}`, or set "
                '--config.autoencoder.cache=""'
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        place = range(len(self))[index]  # IndexError past the end, to end an iteration
        stored = records.unpack(self._records[place])
        decode = {
            "moments": lambda x: np.frombuffer(x, np.float16).reshape(self._shape),
            "labels": lambda x: records.decode_labels(x, self._size),
            "image": records.decode_image,
        }
        return {field: decode[field](stored[field]) for field in self._fields}

    def __str__(self) -> str:
        return f"split {self._split!r} of {self._path}"

    def __repr__(self) -> str:
        return f"LatentCache({str(self._path)!r}, {len(self)} items)"
