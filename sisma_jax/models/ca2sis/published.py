"""Published weights of CA2-SIS's generator: the state dict `latest_net_G`, as safetensors.

The names are those of the authors' code. Files from before December 2023 have the same tensors, but
belong to a generator without tanh (`CA2SISConfig.output_tanh`).
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from sisma_jax.common.errors import InputError
from sisma_jax.models.ca2sis.config import CA2SISConfig
from sisma_jax.models.ca2sis.model import (
    CLASS_LAYERS,
    PER_CLASS,
    SHARED_LAYERS,
    parameter_shapes,
)
from sisma_jax.models.state_dicts import (
    Layers,
    arrays,
    from_state_dict,
    residual_layers,
    style_encoder_layers,
    transformer_layers,
)
from sisma_jax.models.weights import check_published_style, read_tensors

FIRST_STAGE = 2
"""The number of the first stage in the names."""
CLASS_OF_MAPPING = re.compile(r"noise_encoder\.unshared\.(\d+)\.")
DISCRIMINATOR = "discriminator_"


def load_published(path: str | os.PathLike, config: CA2SISConfig) -> dict[str, Any]:
    """Read published weights, converted to safetensors (`weights.RECIPE`), as parameters.

    Raises:
      InputError: as `from_torch` and `weights.read_tensors`.
    """
    return from_torch(read_tensors(path), config, source=path)


def from_torch(
    tensors: Mapping[str, np.ndarray],
    config: CA2SISConfig,
    *,
    source: str | os.PathLike = "the state dict",
) -> dict[str, Any]:
    """Return the parameters of `CA2SIS(config)` that a generator's state dict holds.

    They are float32, or float64 if all tensors are and JAX's 64-bit types are enabled.

    Args:
      tensors: the state dict by the authors' names.
      config: sizes of the generator; `style_grouping` has to be "published".
      source: the file, for messages.

    Raises:
      InputError: if these are the weights of a discriminator, of another number of classes or of
        another configuration, or a tensor is missing or left over.
    """
    tensors = arrays(source, tensors)
    if any(name.startswith(DISCRIMINATOR) for name in tensors):
        raise InputError(
            f"{source} holds CA2-SIS's discriminator (latest_net_D): give its generator, "
            "latest_net_G"
        )
    check_published_style(source, config.style_grouping, config.style_colours)
    count = len({match[1] for name in tensors if (match := CLASS_OF_MAPPING.match(name))})
    if count and count != config.num_classes:
        raise InputError(
            f"{source} holds weights for {count} classes, but model.num_classes is "
            f"{config.num_classes}: set it to {count}"
        )
    return from_state_dict(source, tensors, parameter_shapes(config), layers(config))


def layers(config: CA2SISConfig) -> Layers:
    """The authors' names of the generator's layers."""
    names = style_encoder_layers("style_encoder", "style_encoder", config.style_levels)
    names["mask_embedder/linear"] = "encs.encs.0"
    names |= {"decoder/conv_in": "reshape_conv", "decoder/conv_out": "out_conv"}
    for i in range(len(config.widths)):
        names |= residual_layers(f"decoder/block_{i}", f"res{FIRST_STAGE + i}")
        names |= transformer_layers(f"decoder/transformer_{i}", f"cross{FIRST_STAGE + i}")
    # Between two linear maps is a ReLU, which has a number of its own.
    for i in range(SHARED_LAYERS):
        names[f"mapping/shared_{i}"] = f"noise_encoder.shared.{2 * i}"
    for i in range(CLASS_LAYERS + 1):
        names[f"mapping/{PER_CLASS}_{i}"] = tuple(
            f"noise_encoder.unshared.{k}.{2 * i}" for k in range(config.num_classes)
        )
    return names
