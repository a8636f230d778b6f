"""Torchvision's networks of convolutions whose activations compare pictures: AlexNet and VGGs.

A network is a sequence of levels: a pooling, then convolutions with a ReLU each. Parameters have
the published names, with "_" for the "." before an index.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sisma_jax.common.errors import InputError
from sisma_jax.models.state_dicts import to_flax_layout
from sisma_jax.models.weights import listed, read_tensors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """Convolutions with a ReLU each."""

    channels: int
    convs: int = 1
    size: int = 3
    stride: int = 1
    padding: int = 1
    pool: int | None = None
    """Window of the stride-2 max pooling before the convolutions; None for no pooling."""


class Convolution(NamedTuple):
    """Published name of a convolution, its level and its place in it, and its channels."""

    name: str
    level: int
    place: int
    inputs: int
    outputs: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone:
    """The part of a torchvision network whose activations are used."""

    name: str
    file: str
    """File name of torchvision's weights."""
    linear_file: str = ""
    """File of LPIPS' weights of the channels in the Python package lpips; "" if it has none."""
    levels: tuple[Level, ...]

    def first(self, levels: int) -> "Backbone":
        """The part of this network that ends with its finest `levels` levels.

        Raises:
          InputError: if the network does not have as many, or `levels` is not positive.
        """
        if not 1 <= levels <= len(self.levels):
            raise InputError(
                f"{levels} levels of {self.name} cannot be compared: choose 1 to {len(self.levels)}"
            )
        return dataclasses.replace(self, levels=self.levels[:levels])

    def convolutions(self) -> Iterator["Convolution"]:
        """The convolutions in their order."""
        inputs, index = 3, 0  # torchvision also counts ReLUs and pools
        for number, level in enumerate(self.levels):
            index += bool(level.pool)
            for place in range(level.convs):
                yield Convolution(f"features.{index}", number, place, inputs, level.channels)
                inputs = level.channels
                index += 2

    @property
    def smallest(self) -> int:
        """Smallest side of an image in pixels; it leaves one pixel at the last level."""
        side = 1
        for level in reversed(self.levels):
            for _ in range(level.convs):
                side = (side - 1) * level.stride + level.size - 2 * level.padding
            if level.pool:
                side = (side - 1) * 2 + level.pool
        return side


ALEXNET = Backbone(
    name="AlexNet",
    file="alexnet-owt-7be5be79.pth",
    linear_file="weights/v0.1/alex.pth",
    levels=(
        Level(channels=64, size=11, stride=4, padding=2),
        Level(channels=192, size=5, padding=2, pool=3),
        Level(channels=384, pool=3),
        Level(channels=256),
        Level(channels=256),
    ),
)
VGG16 = Backbone(
    name="VGG-16",
    file="vgg16-397923af.pth",
    linear_file="weights/v0.1/vgg.pth",
    levels=(
        Level(channels=64, convs=2),
        Level(channels=128, convs=2, pool=2),
        Level(channels=256, convs=3, pool=2),
        Level(channels=512, convs=3, pool=2),
        Level(channels=512, convs=3, pool=2),
    ),
)
VGG19 = Backbone(
    name="VGG-19",
    file="vgg19-dcbb9e9d.pth",
    levels=(
        Level(channels=64, convs=2),
        Level(channels=128, convs=2, pool=2),
        Level(channels=256, convs=4, pool=2),
        Level(channels=512, convs=4, pool=2),
        Level(channels=512, pool=2),
    ),
)
"""Up to the first convolution of the last level; three more follow in torchvision's network."""


def activations(
    backbone: Backbone, x: Float[Array, "n h w 3"], precision: jax.lax.Precision | None
) -> list[list[Float[Array, "n _ _ _"]]]:
    """Return the activations of a network by level, one array for each convolution.

    Call it within a compact module, which gets the convolutions.

    Args:
      backbone: the network.
      x: images, as the network expects them.
      precision: of the convolutions, as `jax.lax.conv` takes it.
    """
    found: list[list[Array]] = [[] for _ in backbone.levels]
    for convolution in backbone.convolutions():
        level = backbone.levels[convolution.level]
        if level.pool and not convolution.place:
            x = nn.max_pool(x, (level.pool, level.pool), strides=(2, 2))
        conv = nn.Conv(
            level.channels,
            (level.size, level.size),
            strides=level.stride,
            padding=level.padding,
            precision=precision,
            name=convolution.name.replace(".", "_"),
        )
        x = nn.relu(conv(x))
        found[convolution.level].append(x)
    return found


def convolution_shapes(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the published tensors by name, without those of the classifier."""
    shapes: dict[str, tuple[int, ...]] = {}
    for conv in backbone.convolutions():
        size = backbone.levels[conv.level].size
        shapes[f"{conv.name}.weight"] = (conv.outputs, conv.inputs, size, size)
        shapes[f"{conv.name}.bias"] = (conv.outputs,)
    return shapes


def convolution_parameters(
    backbone: Backbone, tensors: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Array]]:
    """Return the parameters of `activations` from tensors by their published names."""
    return {
        conv.name.replace(".", "_"): {
            ours: jnp.asarray(to_flax_layout(tensors[f"{conv.name}.{theirs}"]))
            for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
        }
        for conv in backbone.convolutions()
    }


def read_convolutions(
    path: str | os.PathLike, backbones: Sequence[Backbone]
) -> tuple[Backbone, dict[str, np.ndarray]]:
    """Read a network of torchvision, which is recognised by its tensors.

    Args:
      path: its weights, converted to safetensors (`weights.RECIPE`). The classifier, and
        convolutions behind the last one of all backbones, are not read and may be missing.
      backbones: the networks that are accepted.

    Returns:
      The network, and its float32 tensors by name.

    Raises:
      InputError: if the file is missing, pickled, damaged or of another network.
    """
    places = (place(conv.name) for backbone in backbones for conv in backbone.convolutions())
    last = max(places)
    tensors = read_tensors(
        path,
        lambda names: [x for x in names if not x.startswith("classifier.") and place(x) <= last],
    )
    for backbone in backbones:
        if are_exactly(tensors, convolution_shapes(backbone)):
            return backbone, tensors
    names = " or ".join(each.name for each in backbones)
    files = " or ".join(each.file for each in backbones)
    raise InputError(
        f"{path} does not hold torchvision's {names} in float32 but "
        f"{described(tensors)}: convert {files} of torchvision to safetensors"
    )


def place(name: str) -> int:
    """The number of a layer of torchvision's `features`, by a name in it; -1 for other names."""
    found = re.match(r"features\.(\d+)", name)
    return int(found[1]) if found else -1


def are_exactly(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the tensors have these names and shapes, and are float32."""
    present = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    return present == {name: (shape, np.float32) for name, shape in shapes.items()}


def described(tensors: Mapping[str, Any]) -> str:
    """The names of tensors, for a message."""
    return listed(tensors) or "nothing"
