"""Published weights of SCA-DM: a checkpoint of its latent diffusion, as safetensors.

The names are those of the authors' code, which extends latent diffusion's: the U-Net, its running
average and the style encoder are "model.diffusion_model", "model_ema" and "cond_stage_model". They
were taken from that code; no published file has been read.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sisma_jax.common.errors import InputError
from sisma_jax.models.layers.unet import unet_blocks
from sisma_jax.models.scadm.config import SCADMConfig
from sisma_jax.models.scadm.model import init_params
from sisma_jax.models.state_dicts import (
    Layers,
    arrays,
    from_state_dict,
    residual_layers,
    spade_residual_layers,
    style_encoder_layers,
    transformer_layers,
)
from sisma_jax.models.weights import check_published_style, read_tensors

UNET = "model.diffusion_model."
AVERAGED = "model_ema.diffusion_model"
"""Start of the names of the U-Net's running averages, which go on without the dots of its names."""
STYLE_ENCODER = "cond_stage_model."
UNREAD = re.compile(r"model\.diffusion_model\.label_emb\.|model_ema\.diffusion_modellabel_emb")
"""An embedding of classes in the U-Net that the code never reads."""


def load_published(path: str | os.PathLike, config: SCADMConfig) -> dict[str, Any]:
    """Read published weights, converted to safetensors (`weights.RECIPE`), as parameters.

    Raises:
      InputError: as `from_torch` and `weights.read_tensors`.
    """
    return from_torch(read_tensors(path, of_scadm), config, source=path)


def from_torch(
    tensors: Mapping[str, np.ndarray],
    config: SCADMConfig,
    *,
    source: str | os.PathLike = "the state dict",
) -> dict[str, Any]:
    """Return the parameters of `SCADM(config)` that a checkpoint's state dict holds.

    The U-Net's are the running averages if there are any.

    Args:
      tensors: the state dict by the authors' names. The first stage and the schedule are ignored.
      config: sizes of the model; `style_grouping` has to be "published".
      source: the file, for messages.

    Raises:
      InputError: if these are the weights of another model or configuration, or a tensor is missing
        or left over.
    """
    check_published_style(source, config.style_grouping, config.style_colours)
    tensors = arrays(source, tensors, of_scadm)
    first = tensors.get(f"{STYLE_ENCODER}Encoder.first_layer.0.weight")
    if first is not None and first.ndim and first.shape[0] % config.style_channels == 0:
        count = first.shape[0] // config.style_channels
        if count != config.num_classes:
            raise InputError(
                f"{source} holds weights for {count} classes, but model.num_classes is "
                f"{config.num_classes}: set it to {count}"
            )
    if any(name.startswith(AVERAGED) for name in tensors):
        shortened = {
            AVERAGED + name.removeprefix(UNET).replace(".", ""): name
            for name in tensors
            if name.startswith(UNET)
        }
        averages = {
            shortened.get(name, name): tensor
            for name, tensor in tensors.items()
            if name.startswith(AVERAGED)
        }
        others = {name: x for name, x in tensors.items() if name.startswith(STYLE_ENCODER)}
        tensors = averages | others
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    return from_state_dict(source, tensors, shapes, layers(config))


def of_scadm(names: list[str]) -> list[str]:
    """The names that belong to the U-Net, its running average or the style encoder."""
    ours = (UNET, AVERAGED, STYLE_ENCODER)
    return [name for name in names if name.startswith(ours) and not UNREAD.match(name)]


def layers(config: SCADMConfig) -> Layers:
    """The authors' names of the model's layers."""
    c = config
    names = style_encoder_layers("style_encoder", STYLE_ENCODER[:-1], c.style_levels)
    unet = {"time/in": "time_embed.0", "time/out": "time_embed.2"}
    unet |= {"norm_out": "out.0", "conv_out": "out.2", "conv_in": "input_blocks.0.0"}
    encoder, decoder = unet_blocks(c, c.latent_size, c.channels)
    place = 0
    for block in encoder:
        place += 1
        theirs = f"input_blocks.{place}"
        if block.resamples:
            unet[block.name] = f"{theirs}.0.op"
            continue
        unet |= residual_layers(block.name, f"{theirs}.0")
        unet |= transformer_layers(f"{block.name}_attention", f"{theirs}.1")
    place, attends = -1, False
    for block in decoder:
        if block.name.startswith("middle"):
            theirs = f"middle_block.{2 * int(block.name.removeprefix('middle_'))}"
            unet |= spade_residual_layers(block.name, theirs)
        elif block.resamples:  # a doubling follows its block in the same place
            unet[block.name] = f"output_blocks.{place}.{1 + attends}.conv"
        else:
            place, attends = place + 1, block.attention
            theirs = f"output_blocks.{place}"
            unet |= spade_residual_layers(block.name, f"{theirs}.0")
            unet |= transformer_layers(f"{block.name}_attention", f"{theirs}.1")
    unet |= transformer_layers("middle_attention", "middle_block.1")
    return names | {f"unet/{ours}": f"{UNET}{theirs}" for ours, theirs in unet.items()}
