"""The Inception-v3 that defines FID, in Flax Linen.

It is the network of December 2015 whose weights the original FID code downloads, in the layout of
pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`. It differs from torchvision's Inception-v3 in
weights, 1008 classes, average pooling that excludes the padding, and a last block with max pooling
(Szegedy et al., arXiv 1512.00567; Heusel et al., 1706.08500).

    bytes --resize to 299 x 299, scale to [-1, 1]--> images --convolutions, mean--> 2048 features

Submodules are named as in pytorch-fid. Batch norms are folded into the preceding convolutions.
"""

import dataclasses
import os
from collections.abc import Iterable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Num

from sisma_jax.common.errors import InputError
from sisma_jax.models.state_dicts import to_flax_layout
from sisma_jax.models.weights import listed, read_tensors

PUBLISHED_FILE = "pt_inception-2015-12-05-6726825d.pth"
"""Release file of the repository mseitzer/pytorch-fid, identical to torch-fidelity's."""
SIDE = 299
"""Side in pixels of the network's input."""
FEATURES = 2048
CLASSES = 1008
NORM_EPSILON = 1e-3
SCALINGS = {"tf1": 128.0, "half_pixel": 127.5}
"""Resizing methods, each with s of its scaling (x - s) / s.

"tf1": TensorFlow 1, the original code and torch-fidelity; output pixel i of n is at input position
i * m / n of m. "half_pixel": PyTorch and pytorch-fid; it is at (i + 1/2) * m / n - 1/2.
"""

same_max_pool = partial(nn.max_pool, window_shape=(3, 3), padding="SAME")
same_avg_pool = partial(nn.avg_pool, window_shape=(3, 3), padding="SAME", count_include_pad=False)
halving_max_pool = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))


def unit(
    x: Float[Array, "b h w c"],
    name: str,
    channels: int,
    size: tuple[int, int] = (1, 1),
    *,
    stride: int = 1,
    padding: str = "SAME",
) -> Float[Array, "b _ _ channels"]:
    """A convolution, in full float32 even where TF32 is the default, and a ReLU."""
    conv = nn.Conv(
        channels,
        size,
        strides=stride,
        padding=padding,
        precision=jax.lax.Precision.HIGHEST,
        name=name,
    )
    return nn.relu(conv(x))


halving_unit = partial(unit, size=(3, 3), stride=2, padding="VALID")


def branch(
    x: Float[Array, "b h w c"], name: str, *layers: tuple[int, tuple[int, int]]
) -> Float[Array, "b h w _"]:
    """Applies units of (channels, size) in sequence, numbered from 1."""
    for i, (channels, size) in enumerate(layers, 1):
        x = unit(x, f"{name}_{i}", channels, size)
    return x


def joined(*branches: Float[Array, "b h w _"]) -> Float[Array, "b h w c"]:
    return jnp.concatenate(branches, axis=-1)


class BlockA(nn.Module):
    """Branches of 1x1, 5x5 and two 3x3 convolutions, at 35 x 35."""

    pool_channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w _"]:
        return joined(
            unit(x, "branch1x1", 64),
            branch(x, "branch5x5", (48, (1, 1)), (64, (5, 5))),
            branch(x, "branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
            unit(same_avg_pool(x), "branch_pool", self.pool_channels),
        )


class BlockB(nn.Module):
    """Reduces 35 x 35 to 17 x 17."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        double = branch(x, "branch3x3dbl", (64, (1, 1)), (96, (3, 3)))
        return joined(
            halving_unit(x, "branch3x3", 384),
            halving_unit(double, "branch3x3dbl_3", 96),
            halving_max_pool(x),
        )


class BlockC(nn.Module):
    """7x7 convolutions factored into rows and columns, once and twice, at 17 x 17."""

    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w _"]:
        one, row, column = (1, 1), (1, 7), (7, 1)
        c = self.channels
        double = (c, one), (c, column), (c, row), (c, column), (192, row)
        return joined(
            unit(x, "branch1x1", 192),
            branch(x, "branch7x7", (c, one), (c, row), (192, column)),
            branch(x, "branch7x7dbl", *double),
            unit(same_avg_pool(x), "branch_pool", 192),
        )


class BlockD(nn.Module):
    """Reduces 17 x 17 to 8 x 8."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        wide = branch(x, "branch7x7x3", (192, (1, 1)), (192, (1, 7)), (192, (7, 1)))
        return joined(
            halving_unit(branch(x, "branch3x3", (192, (1, 1))), "branch3x3_2", 320),
            halving_unit(wide, "branch7x7x3_4", 192),
            halving_max_pool(x),
        )


class BlockE(nn.Module):
    """3x3 convolutions split into parallel rows and columns, also after another, at 8 x 8."""

    max_pool: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w _"]:
        single = branch(x, "branch3x3", (384, (1, 1)))
        double = branch(x, "branch3x3dbl", (448, (1, 1)), (384, (3, 3)))
        pooled = same_max_pool(x) if self.max_pool else same_avg_pool(x)
        return joined(
            unit(x, "branch1x1", 320),
            unit(single, "branch3x3_2a", 384, (1, 3)),
            unit(single, "branch3x3_2b", 384, (3, 1)),
            unit(double, "branch3x3dbl_3a", 384, (1, 3)),
            unit(double, "branch3x3dbl_3b", 384, (3, 1)),
            unit(pooled, "branch_pool", 192),
        )


class InceptionNet(nn.Module):
    """Maps images in [-1, 1] to the spatial mean of the last block."""

    @nn.compact
    def __call__(self, images: Float[Array, "b 299 299 3"]) -> Float[Array, "b 2048"]:
        x = halving_unit(images, "Conv2d_1a_3x3", 32)
        x = unit(x, "Conv2d_2a_3x3", 32, (3, 3), padding="VALID")
        x = unit(x, "Conv2d_2b_3x3", 64, (3, 3))
        x = halving_max_pool(x)
        x = unit(x, "Conv2d_3b_1x1", 80)
        x = unit(x, "Conv2d_4a_3x3", 192, (3, 3), padding="VALID")
        x = halving_max_pool(x)
        x = BlockA(32, name="Mixed_5b")(x)
        x = BlockA(64, name="Mixed_5c")(x)
        x = BlockA(64, name="Mixed_5d")(x)
        x = BlockB(name="Mixed_6a")(x)
        x = BlockC(128, name="Mixed_6b")(x)
        x = BlockC(160, name="Mixed_6c")(x)
        x = BlockC(160, name="Mixed_6d")(x)
        x = BlockC(192, name="Mixed_6e")(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(max_pool=False, name="Mixed_7b")(x)
        x = BlockE(max_pool=True, name="Mixed_7c")(x)
        return x.mean((1, 2))


@dataclasses.dataclass(frozen=True)
class InceptionV3:
    """The network with its parameters.

    A pytree whose leaves are the parameters: pass it to jitted functions as an argument.
    """

    params: Any

    def features(
        self, images: Num[Array | np.ndarray, "..."], resize: str = "tf1"
    ) -> Float[Array, "n 2048"]:
        """Return the pooled features of images.

        The network is compiled once per number of images, whatever their size.

        Args:
          images: uint8 (n, h, w, 3).
          resize: "tf1" or "half_pixel" (`SCALINGS`); do not mix features of both.

        Raises:
          InputError: if the images have another dtype or shape, or `resize` is unknown.
        """
        if resize not in SCALINGS:
            raise InputError(f"resize is {resize!r}: choose one of {', '.join(SCALINGS)}")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise InputError(
                f"Inception cannot take {images.dtype} images of shape {images.shape}: give uint8 "
                "(n, h, w, 3)"
            )
        return self.of_resized(resized(images, resize))

    @jax.jit
    def of_resized(self, images: Float[Array, "n 299 299 3"]) -> Float[Array, "n 2048"]:
        """Return the features of images from `resized`."""
        return InceptionNet().apply({"params": self.params}, images)


jax.tree_util.register_dataclass(InceptionV3, data_fields=["params"], meta_fields=[])


@partial(jax.jit, static_argnames="resize")
def resized(images: Num[Array, "n h w 3"], resize: str) -> Float[Array, "n 299 299 3"]:
    """Return uint8 images resized to the network's input, 299 x 299 in [-1, 1] (`SCALINGS`)."""
    rows, columns = (interpolation(size, resize) for size in images.shape[1:3])
    product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    x = product("ih,nhwc->niwc", rows, images.astype(jnp.float32))
    x = product("jw,niwc->nijc", columns, x)
    return (x - SCALINGS[resize]) / SCALINGS[resize]


def interpolation(size: int, resize: str) -> Float[np.ndarray, "299 size"]:
    """Return the float32 matrix of linear resizing from `size` to 299, without antialiasing."""
    # float32, as TensorFlow and PyTorch compute the positions.
    index, step = np.arange(SIDE, dtype=np.float32), np.float32(size) / np.float32(SIDE)
    half = np.float32(0.5)
    places = index * step if resize == "tf1" else np.maximum((index + half) * step - half, 0)
    lower = places.astype(int)
    upper = np.minimum(lower + 1, size - 1)
    share = places - lower.astype(np.float32)
    matrix = np.zeros((SIDE, size), np.float32)
    matrix[range(SIDE), lower] = 1 - share
    matrix[range(SIDE), upper] += share
    return matrix


def load_inception(path: str | os.PathLike) -> InceptionV3:
    """Read FID's Inception-v3.

    Args:
      path: pytorch-fid's `PUBLISHED_FILE`, converted to safetensors (`weights.RECIPE`). The
        classifier and, if present, the counters of the norms are ignored.

    Raises:
      InputError: if the file is missing, pickled, damaged or of another network.
    """
    kernels = kernel_shapes()
    counters = {f"{layer}.bn.num_batches_tracked" for layer in kernels}

    def choose(names: list[str]) -> Iterable[str]:
        return (name for name in names if name not in counters)

    tensors = read_tensors(path, choose)
    present = {name: (tensor.shape, tensor.dtype.name) for name, tensor in tensors.items()}
    wanted = {name: (shape, "float32") for name, shape in published_shapes(kernels).items()}
    differing = listed({name for name, _ in present.items() ^ wanted.items()})
    if differing:
        raise InputError(
            f"{path} does not hold FID's Inception-v3 (missing, left over, of another shape or "
            f"type: {differing}): convert pytorch-fid's release {PUBLISHED_FILE} to safetensors"
        )
    folded = {tuple(layer.split(".")): folded_unit(tensors, layer) for layer in kernels}
    return InceptionV3(unflatten_dict(folded))


def kernel_shapes() -> dict[str, tuple[int, ...]]:
    """Return the kernel shape of each convolution in Flax' layout, by pytorch-fid's name."""
    images = jnp.zeros((1, SIDE, SIDE, 3))
    params = jax.eval_shape(InceptionNet().init, jax.random.key(0), images)["params"]
    flat = flatten_dict(params, sep=".")
    return {
        name.removesuffix(".kernel"): leaf.shape
        for name, leaf in flat.items()
        if name.endswith(".kernel")
    }


def published_shapes(kernels: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the published tensors by name, without counters of the norms."""
    shapes = {"fc.weight": (CLASSES, FEATURES), "fc.bias": (CLASSES,)}
    for layer, (height, width, inputs, outputs) in kernels.items():
        shapes[f"{layer}.conv.weight"] = (outputs, inputs, height, width)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{layer}.bn.{name}"] = (outputs,)
    return shapes


def folded_unit(tensors: dict[str, np.ndarray], layer: str) -> dict[str, Array]:
    """Return a convolution with the batch norm that follows it folded in."""
    kernel = tensors[f"{layer}.conv.weight"].astype(np.float64)
    scale, shift, mean, variance = (
        tensors[f"{layer}.bn.{name}"].astype(np.float64)
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = scale / np.sqrt(variance + NORM_EPSILON)
    folded = {"kernel": to_flax_layout(kernel) * scale, "bias": shift - mean * scale}
    return {name: jnp.asarray(array, jnp.float32) for name, array in folded.items()}
