"""Face parsers with their parameters.

Every parser maps RGB bytes of any size to labels of that size, in the order of `classes`. The
network runs at its own size: other images are resized to it bilinearly (with antialiasing, as in
Pillow), and the logits are resized back before the argmax.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from sisma_jax.common.errors import InputError
from sisma_jax.models.autoencoder import to_float
from sisma_jax.models.face_parser.config import FaceParserConfig
from sisma_jax.models.face_parser.layers import ParserNetwork
from sisma_jax.models.face_parser.unet import FaceParserUNet
from sisma_jax.models.weights import tree_checksum

TRAINED_HERE = "U-Net trained here"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaceParser:
    """A face parser with its parameters.

    A pytree whose leaves are the parameters: pass it to jitted functions as an argument.
    """

    module: ParserNetwork
    params: Any
    name: str
    """Name in reports."""
    classes: tuple[str, ...]
    """Class names by label."""
    size: int | None
    """Side in pixels of the network's input; None for the size of the images."""
    quality_json: str = "null"
    """`quality` as JSON, because static arguments of jit must be hashable."""

    @classmethod
    def trained(
        cls,
        config: FaceParserConfig,
        params: Any,
        *,
        classes: Sequence[str],
        size: int | None,
        quality: Mapping[str, Any] | None = None,
    ) -> "FaceParser":
        """Return a parser whose U-Net was trained by this package.

        Args:
          config: sizes of the U-Net.
          params: its parameters.
          classes: class names by label.
          size: side of the training images; None for the size of the images.
          quality: measured scores, JSON-serialisable.

        Raises:
          InputError: if the number of `classes` differs from the configuration's, or `size` is not
            a multiple of its factor.
        """
        if len(classes) != config.num_classes:
            raise InputError(
                f"parser.num_classes is {config.num_classes}, but there are {len(classes)} class "
                "names: give one for each class"
            )
        if size is not None and (size < 1 or size % config.factor):
            raise InputError(
                f"the face parser's size is {size} pixels: choose a multiple of {config.factor}"
            )
        return cls(
            module=FaceParserUNet(config),
            params=params,
            name=TRAINED_HERE,
            classes=tuple(classes),
            size=size,
            quality_json=json.dumps(None if quality is None else dict(quality)),
        )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def quality(self) -> dict[str, Any] | None:
        """Scores measured by training, such as the IoU on its test images; None if unknown."""
        return json.loads(self.quality_json)

    @jax.jit
    def labels(self, images: UInt8[Array | np.ndarray, "b h w 3"]) -> UInt8[Array, "b h w"]:
        """Return the most likely class of each pixel.

        Raises:
          InputError: if `size` is None and the network cannot take the images' size.
        """
        logits = self.module.apply({"params": self.params}, self._inputs(images))
        logits = resize(logits, *images.shape[1:3])
        return jnp.argmax(logits, axis=-1).astype(jnp.uint8)

    @jax.jit
    def features(self, images: UInt8[Array | np.ndarray, "b h w 3"]) -> Float[Array, "b d"]:
        """Return the deepest activations averaged over the image, for a Fréchet distance.

        Raises:
          InputError: as `labels` does.
        """
        inputs = self._inputs(images)
        return self.module.apply({"params": self.params}, inputs, method="features")

    def _inputs(self, images: UInt8[Array | np.ndarray, "b h w 3"]) -> Float[Array, "b _ _ 3"]:
        """Images in [-1, 1] at the network's size."""
        height, width = images.shape[1:3]
        return resize(to_float(images), self.size or height, self.size or width)

    def check(self, classes: Sequence[str]) -> None:
        """Raise InputError unless the parser has exactly these classes in this order."""
        if tuple(classes) == self.classes:
            return
        if len(classes) != self.num_classes:
            raise InputError(
                f"the face parser ({self.name}) has {self.num_classes} classes, but the data has "
                f"{len(classes)}: give a parser of the data's classes"
            )
        pairs = enumerate(zip(self.classes, classes, strict=True))
        label, (ours, theirs) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        raise InputError(
            f"label {label} is {ours!r} for the face parser ({self.name}), but {theirs!r} in the "
            "data: give a parser of the data's classes"
        )

    def checksum(self) -> str:
        """SHA-256 of all that determines the labels of an image: network, size, parameters."""
        unet = isinstance(self.module, FaceParserUNet)
        sizes = dataclasses.asdict(self.module.config) if unet else {}
        parts = [type(self.module).__name__, sizes, self.size, tree_checksum(self.params)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


jax.tree_util.register_dataclass(
    FaceParser,
    data_fields=["params"],
    meta_fields=["module", "name", "classes", "size", "quality_json"],
)


def resize(x: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b height width c"]:
    """Bilinear resizing, with antialiasing when the image shrinks."""
    shape = (x.shape[0], height, width, x.shape[-1])
    return jax.image.resize(x, shape, "linear", precision=jax.lax.Precision.HIGHEST)


def parameter_shapes(module: ParserNetwork) -> Any:
    """Return a network's parameter tree as shapes and dtypes, without computing it."""
    images = jnp.zeros((1, module.factor, module.factor, 3))
    return jax.eval_shape(module.init, jax.random.key(0), images)["params"]
