"""Published weights of CA2-SIS's discriminator, by the names of the authors' state dict.

PyTorch keeps v of spectral normalisation in the order (in, height, width) of its kernels; here it
has the order (height, width, in) of ours.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sisma_jax.common.errors import InputError
from sisma_jax.models.layers.patch_discriminator import (
    KERNEL,
    DiscriminatorConfig,
    PatchDiscriminator,
)
from sisma_jax.models.state_dicts import to_flax_layout, to_pytorch_layout
from sisma_jax.models.weights import check_tensors, listed

PREFIX = "discriminator_"
"""All names of a discriminator's tensors start so, and no others do."""


def variable_shapes(config: DiscriminatorConfig) -> dict[str, Any]:
    """Return the shapes and dtypes of a discriminator's "params" and "spectral"."""
    side = 2**config.layers
    images = jax.ShapeDtypeStruct((1, side, side, config.image_channels), jnp.float32)
    labels = jax.ShapeDtypeStruct((1, side, side), jnp.uint8) if config.num_classes else None
    return jax.eval_shape(PatchDiscriminator(config).init, jax.random.key(0), [images], labels)


def from_torch(
    tensors: Mapping[str, np.ndarray],
    config: DiscriminatorConfig,
    *,
    source: str | os.PathLike = "the state dict",
) -> dict[str, Any]:
    """Return the variables of a discriminator, its "params" and "spectral".

    Args:
      tensors: float32 tensors of the authors' `latest_net_D` by name, all of them.
      config: the sizes.
      source: the file, for messages.

    Raises:
      InputError: if these are not a discriminator's tensors, one is missing, left over, or of
        another shape or type.
    """
    if not any(name.startswith(PREFIX) for name in tensors):
        raise InputError(
            f"{source} holds no discriminator (its tensors: {listed(tensors) or 'none'}): give the "
            "weights latest_net_D of CA2-SIS as safetensors"
        )
    shapes = flatten_dict(variable_shapes(config), sep="/")
    names = {path: pytorch_name(path, config.layers) for path in shapes}
    wanted = {
        name: shapes[path]
        if path.endswith("/v")
        else jax.eval_shape(to_pytorch_layout, shapes[path])
        for path, name in names.items()
    }
    check_tensors(source, wanted, tensors)
    return unflatten_dict(
        {path: jnp.asarray(to_flax(path, tensors[name])) for path, name in names.items()}, sep="/"
    )


def pytorch_name(path: str, layers: int) -> str:
    """The published name of "params/scale_0/conv_1/kernel", in a scale of `layers` + 1 layers."""
    _, scale, conv, leaf = path.split("/")
    layer = int(conv.removeprefix("conv_"))
    if 0 < layer < layers:
        module = f"model{layer}.0.0"
        name = {"kernel": "weight_orig", "u": "weight_u", "v": "weight_v"}[leaf]
    else:
        module, name = f"model{layer}.0", {"kernel": "weight", "bias": "bias"}[leaf]
    return f"{PREFIX}{scale.removeprefix('scale_')}.{module}.{name}"


def to_flax(path: str, tensor: np.ndarray) -> np.ndarray:
    if not path.endswith("/v"):
        return to_flax_layout(tensor)
    return tensor.reshape(-1, KERNEL, KERNEL).transpose(1, 2, 0).reshape(-1)
