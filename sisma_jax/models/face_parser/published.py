"""Published face parsers: CelebAMask-HQ's own U-Net and face-parsing.PyTorch's BiSeNet.

Parameters are named like their tensors, with "_" for the "." before an index. PyTorch stores the
kernels of convolutions as (out, in, height, width), of transposed ones as (in, out, height, width).
A batch norm with weight w, bias b, running mean m and variance v becomes

    scale = w / sqrt(v + 1e-5),   shift = b - m * scale.

The rows of the last layer are permuted to the data set's order of classes.

Differences from the networks' own scripts in the treatment of images:
- Both networks expect RGB images of 512 x 512 pixels, the U-Net in [-1, 1], BiSeNet normalised by
  ImageNet's mean and deviation (inside its module).
- The U-Net's training loader and BiSeNet's scripts resize bilinearly. The U-Net's test script takes
  the nearest pixel of an image twice as large. Images here are mostly smaller, where this would
  show as blocks, so they are resized bilinearly for both networks.
- Both scripts return labels of 512 pixels; here logits are resized to the images' size.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sisma_jax.common.errors import InputError
from sisma_jax.data import class_names
from sisma_jax.models.face_parser.bisenet import BiSeNet
from sisma_jax.models.face_parser.config import FaceParserConfig
from sisma_jax.models.face_parser.layers import ParserNetwork
from sisma_jax.models.face_parser.parser import FaceParser, parameter_shapes
from sisma_jax.models.face_parser.unet import FaceParserUNet
from sisma_jax.models.state_dicts import to_flax_layout
from sisma_jax.models.weights import check_tensors, listed, read_tensors

SIZE = 512
NORM_EPSILON = 1e-5
PARALLEL = "module."
"""Prefix of all names if PyTorch's DataParallel module was saved."""
UNUSED = re.compile(r"\.num_batches_tracked$|^(module\.)?conv_out(16|32)\.")
"""Counters of batch norms, and BiSeNet's heads for training only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A published network."""

    name: str
    module: ParserNetwork
    classes: tuple[str, ...]
    """Class names in the order of its logits."""
    first: str
    """Name of a tensor that only this network has."""
    last: str
    """Name of the layer whose rows are classes."""


NETWORKS = (
    Network(
        name="CelebAMask-HQ U-Net",
        module=FaceParserUNet(FaceParserConfig(norm="affine")),
        classes=class_names.CANONICAL,
        first="conv1.conv1.0.weight",
        last="final",
    ),
    Network(
        name="BiSeNet (face-parsing.PyTorch)",
        module=BiSeNet(),
        classes=class_names.BISENET,
        first="cp.resnet.conv1.weight",
        last="conv_out.conv_out",
    ),
)


def load_published(path: Path) -> FaceParser:
    """Read a published face parser's weights.

    Raises:
      InputError: if the file cannot be read, a tensor is unused or a parameter missing.
    """
    tensors = read_tensors(path, lambda names: [x for x in names if not UNUSED.search(x)])
    if tensors and all(name.startswith(PARALLEL) for name in tensors):
        tensors = {name.removeprefix(PARALLEL): tensor for name, tensor in tensors.items()}
    network = next((one for one in NETWORKS if one.first in tensors), None)
    if network is None:
        raise InputError(
            f"{path} holds no known face parser (its tensors: {listed(tensors) or 'none'}): give "
            f"weights of {' or '.join(one.name for one in NETWORKS)}, or a folder of this package"
        )
    count, last = len(network.classes), tensors.get(f"{network.last}.weight")
    if last is not None and last.ndim and last.shape[0] != count:
        raise InputError(
            f"{path} is a {network.name} with {last.shape[0]} classes: give the published weights, "
            f"which have CelebAMask-HQ's {count}"
        )
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    return FaceParser(
        module=network.module,
        params=from_pytorch(path, tensors, network),
        name=network.name,
        classes=class_names.CANONICAL,
        size=SIZE,
    )


def from_pytorch(path: Path, tensors: Mapping[str, np.ndarray], network: Network) -> dict[str, Any]:
    """Return float32 parameters.

    Args:
      path: path of the file, for messages.
      tensors: float32 tensors by their published names.
      network: the network they belong to.

    Raises:
      InputError: if a tensor is unused or a parameter missing.
    """
    shapes = flatten_dict(parameter_shapes(network.module))
    wanted = {
        f"{pytorch_name(modules)}.{leaf}": jax.ShapeDtypeStruct(shape, jnp.float32)
        for (*modules, parameter), like in shapes.items()
        for leaf, shape in pytorch_shapes(parameter, like.shape).items()
    }
    check_tensors(path, wanted, tensors)
    order = [network.classes.index(name) for name in class_names.CANONICAL]
    params = {}
    for (*modules, parameter), like in shapes.items():
        layer = pytorch_name(modules)
        leaves = pytorch_shapes(parameter, like.shape)
        parts = {leaf: tensors[f"{layer}.{leaf}"] for leaf in leaves}
        if layer == network.last:
            parts = {leaf: part[order] for leaf, part in parts.items()}
        params[*modules, parameter] = jnp.asarray(to_flax(parameter, len(like.shape), parts))
    return unflatten_dict(params)


def pytorch_name(modules: list[str]) -> str:
    return ".".join(re.sub(r"_(\d+)$", r".\1", module) for module in modules)


def pytorch_shapes(parameter: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that a parameter is converted from, by the last part of their names."""
    if parameter == "bias":
        return {"bias": shape}
    if parameter == "kernel":
        if len(shape) == 2:  # UpConv
            return {"weight": (shape[0], shape[1] // 4, 2, 2)}
        return {"weight": (shape[3], shape[2], *shape[:2])}
    return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), shape)


def to_flax(parameter: str, ndim: int, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """A parameter with `ndim` axes, from the tensors that `pytorch_shapes` names."""
    if parameter == "bias":
        return tensors["bias"]
    if parameter == "kernel":
        weight = tensors["weight"]
        if ndim == 2:
            return weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)
        return to_flax_layout(weight)
    scale = tensors["weight"] / np.sqrt(tensors["running_var"] + np.float32(NORM_EPSILON))
    return scale if parameter == "scale" else tensors["bias"] - tensors["running_mean"] * scale
