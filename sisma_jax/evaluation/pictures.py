"""Sets of pictures to be scored: test faces, their reconstructions, folders of any origin."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import UInt8

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import is_content, stem
from sisma_jax.data.checksums import is_of_listing
from sisma_jax.data.image_files import FORMAT_NAMES, FORMATS, picture_size, read_picture
from sisma_jax.data.input_pipeline import Source
from sisma_jax.devices.sharding import (
    chunks,
    local_mesh,
    replicated,
    whole_batch,
)
from sisma_jax.models.autoencoder import Autoencoder, to_float, to_uint8

BATCH = 16
LOOKED_AT = 64
"""Number of images in the digest of a data set whose checksum does not cover images."""


@runtime_checkable
class Pictures(Protocol):
    """Pictures of one size, each with a name."""

    names: Sequence[str]
    key: str
    """Digest of the pictures; measurements are stored under it."""

    def __len__(self) -> int: ...
    def read(self, indices: Sequence[int]) -> UInt8[np.ndarray, "n h w 3"]: ...


def batches(
    pictures: Pictures, size: int = BATCH
) -> Iterator[tuple[range, UInt8[np.ndarray, "n h w 3"]]]:
    """All pictures in their order, with their indices, at most `size` at a time."""
    for start in range(0, len(pictures), size):
        indices = range(start, min(start + size, len(pictures)))
        yield indices, pictures.read(indices)


def digest(*parts: object) -> str:
    """SHA-256 of the parts in order: bytes of arrays, everything else as text."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype} {part.shape}\n".encode())
            sha.update(np.ascontiguousarray(part).data)
        else:
            content = str(part).encode(errors="surrogateescape")  # names may not be UTF-8
            sha.update(f"{len(content)}\n".encode() + content)
    return sha.hexdigest()


class SourcePictures:
    """The first `count` images of a data source."""

    def __init__(self, source: Source, count: int):
        self.source, self.count = source, count
        self.names = [str(name) for name in source.ids[:count]]
        self.key = digest("images", source.checksum, *self.names, *self._checked_images())

    def _checked_images(self) -> Iterator[np.ndarray]:
        """Some images, if the data set's checksum does not cover any; reading all takes long."""
        if is_of_listing(self.source.checksum):
            places = np.linspace(0, self.count - 1, min(self.count, LOOKED_AT)).astype(int)
            yield from (self.source[int(place)]["image"] for place in places)

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Sequence[int]) -> UInt8[np.ndarray, "n h w 3"]:
        return np.stack([self.source[index]["image"] for index in indices])


class SplitPictures(SourcePictures):
    """Images with their label maps.

    Attributes:
      labels: uint8 (count, size, size).
    """

    def __init__(self, source: Source, count: int):
        # Every item is read for its labels anyway, so its image enters the digest, too.
        maps, images = [], hashlib.sha256()
        for index in range(count):
            item = source[index]
            maps.append(item["labels"])
            images.update(item["image"].tobytes())
        self.labels = np.stack(maps)
        super().__init__(source, count)
        self.key = digest("faces", self.key, self.labels, images.hexdigest())


class Selection:
    """Some of the pictures of a set, in any order."""

    def __init__(self, pictures: Pictures, indices: Sequence[int]):
        self.pictures, self.indices = pictures, indices
        self.names = [pictures.names[index] for index in indices]
        self.key = digest("selection", pictures.key, *indices)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: Sequence[int]) -> UInt8[np.ndarray, "n h w 3"]:
        return self.pictures.read([self.indices[index] for index in indices])


class Reconstructions:
    """Reconstructions by an autoencoder, from the means of latents: an upper bound for any model
    of its latents."""

    def __init__(self, pictures: Pictures, autoencoder: Autoencoder):
        self.pictures, self.names = pictures, pictures.names
        own = autoencoder.config, autoencoder.checksum()
        self.key = digest("reconstructions", pictures.key, *own)
        self.reconstruct = reconstructor(autoencoder)

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, indices: Sequence[int]) -> UInt8[np.ndarray, "n h w 3"]:
        return self.reconstruct(self.pictures.read(indices))


def reconstructor(
    autoencoder: Autoencoder,
) -> Callable[[UInt8[np.ndarray, "n h w 3"]], UInt8[np.ndarray, "n h w 3"]]:
    """Return a function that encodes images and decodes the means of their latents."""
    reconstruct = lambda net, images: to_uint8(net.decode(net.encode(to_float(images))[0]))
    return on_all_devices(reconstruct, autoencoder)


class PictureFolder:
    """The pictures of a folder (`image_files.FORMATS`), by name; other files are ignored.

    Attributes:
      size: (height, width) of all pictures.
    """

    def __init__(self, path: Path | str):
        """Read every file.

        Raises:
          InputError: there is no such folder, it has fewer than two pictures, they are not all of
            one size, two have one name, or one cannot be read.
        """
        path = Path(path)
        if not path.is_dir():
            raise InputError(f"{path} is not a folder: give one of {FORMAT_NAMES} files")
        self.files = sorted(
            file
            for file in path.iterdir()
            if file.suffix.lower() in FORMATS and is_content(file.name)
        )
        if len(self.files) < 2:
            raise InputError(
                f"{path} holds {len(self.files)} {FORMAT_NAMES} files: scores of a set need at "
                "least 2"
            )
        self.path = path
        self.names = [stem(file) for file in self.files]
        twice = next((name for name, count in Counter(self.names).items() if count > 1), None)
        if twice is not None:
            raise InputError(f"{path} holds two pictures named {twice!r}: keep one of them")
        contents = hashlib.sha256()
        for file in self.files:
            size = picture_size(file)[::-1]
            if file == self.files[0]:
                self.size = size
            elif size != self.size:
                raise InputError(
                    f"{file} has {size[1]}x{size[0]} pixels where {self.files[0].name} has "
                    f"{self.size[1]}x{self.size[0]}: bring all pictures of {path} to one size"
                )
            contents.update(hashlib.sha256(file.read_bytes()).digest())
        self.key = digest("folder, as read_picture reads", *self.names, contents.hexdigest())

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: Sequence[int]) -> UInt8[np.ndarray, "n h w 3"]:
        files = [self.files[index] for index in indices]
        return np.stack([np.asarray(read_picture(file)) for file in files])


def on_all_devices(
    function: Callable, network: object
) -> Callable[[UInt8[np.ndarray, "n h w 3"]], Any]:
    """Compile (network, images) -> tree of arrays by image; return it as a function of images.

    It processes `BATCH` images at a time, spread over the local devices; the last batch is padded,
    so that everything compiles once.
    """
    mesh = local_mesh()
    network = jax.device_put(network, replicated(mesh))
    size = whole_batch(BATCH, mesh)
    compiled = jax.jit(function)

    def call(images: UInt8[np.ndarray, "n h w 3"]) -> Any:
        results = []
        for (placed,), count in chunks(size, mesh, images):
            out = compiled(network, placed)
            results.append(jax.tree.map(lambda x: np.asarray(x)[:count], out))  # noqa: B023
        return jax.tree.map(lambda *parts: np.concatenate(parts), *results)

    return call
