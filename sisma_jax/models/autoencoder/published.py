"""Conversion of published autoencoder weights: names, shapes and sizes.

Canonical names are those of diffusers' AutoencoderKL and VQModel; this package's parameters have
the same with "_" for the "." before an index. `RENAMED` maps the names of older diffusers files
and of CompVis' latent-diffusion files to them. PyTorch stores kernels as (out, in, height, width),
Flax as (height, width, in, out); codebook entries are rows in both. Attention weights are stored as
matrices or as 1x1 convolutions.
"""

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sisma_jax.common.errors import InputError
from sisma_jax.models.autoencoder.config import AutoencoderConfig
from sisma_jax.models.autoencoder.model import parameter_shapes
from sisma_jax.models.state_dicts import to_flax_layout, to_pytorch_layout
from sisma_jax.models.weights import check_tensors, listed

CLASS_NAME = "AutoencoderKL"
VQ_CLASS_NAME = "VQModel"
"""diffusers' class name of an autoencoder with a codebook."""
CODEBOOK = "quantize.embedding.weight"
FIRST_STAGE = "first_stage_model."
"""Prefix of the autoencoder in the checkpoint of a whole latent-diffusion model."""
SCALING_FACTOR = "scale_factor"
"""Scaling factor in such a checkpoint, if it was measured instead of configured."""
TRAINING_ONLY = re.compile(r"loss\.|model_ema\.(decay|num_updates)$")
"""Tensors of CompVis' files for training only: perceptual network, discriminator, EMA counters."""

RENAMED = {
    # diffusers before 0.15
    r"(attentions\.\d+)\.query\.": r"\1.to_q.",
    r"(attentions\.\d+)\.key\.": r"\1.to_k.",
    r"(attentions\.\d+)\.value\.": r"\1.to_v.",
    r"(attentions\.\d+)\.proj_attn\.": r"\1.to_out.0.",
    # CompVis
    r"^(encoder|decoder)\.mid\.block_1\.": r"\1.mid_block.resnets.0.",
    r"^(encoder|decoder)\.mid\.block_2\.": r"\1.mid_block.resnets.1.",
    r"^(encoder|decoder)\.mid\.attn_1\.norm\.": r"\1.mid_block.attentions.0.group_norm.",
    r"^(encoder|decoder)\.mid\.attn_1\.([qkv])\.": r"\1.mid_block.attentions.0.to_\2.",
    r"^(encoder|decoder)\.mid\.attn_1\.proj_out\.": r"\1.mid_block.attentions.0.to_out.0.",
    r"^encoder\.down\.(\d+)\.block\.(\d+)\.": r"encoder.down_blocks.\1.resnets.\2.",
    r"^encoder\.down\.(\d+)\.downsample\.": r"encoder.down_blocks.\1.downsamplers.0.",
    r"^(decoder\.up_blocks\.\d+)\.block\.(\d+)\.": r"\1.resnets.\2.",
    r"^(decoder\.up_blocks\.\d+)\.upsample\.": r"\1.upsamplers.0.",
    r"\.nin_shortcut\.": r".conv_shortcut.",
    r"^(encoder|decoder)\.norm_out\.": r"\1.conv_norm_out.",
}
"""Patterns in other namings and their canonical replacements, applied in this order."""

COMPVIS_UP = re.compile(r"^decoder\.up\.(\d+)\.")
"""CompVis numbers the decoder's resolutions from the finest, diffusers from the coarsest."""

SIZES = {
    "block_out_channels": "block_channels",
    "in_channels": "image_channels",
    "latent_channels": "latent_channels",
    "layers_per_block": "layers_per_block",
    "norm_num_groups": "norm_groups",
}
"""Required entries of diffusers' config and the fields they correspond to here."""
VQ_SIZES = SIZES | {"num_vq_embeddings": "codebook"}
FIXED = {
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "lookup_from_codebook": False,
    "norm_type": "group",
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
"""Values that these entries must have if present."""
BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


def config_of(
    path: Path, fields: Mapping[str, Any], scaling_factor: float | None
) -> AutoencoderConfig:
    """Return the config that diffusers' `config.json` describes.

    Args:
      path: path of the file, for messages.
      fields: its content.
      scaling_factor: overrides the file's. If both are missing, Stable Diffusion's architecture has
        Stable Diffusion's factor, since diffusers records it only from 0.11 on and the sd-vae-ft
        weights are older, and a VQModel has 1.

    Raises:
      InputError: if it describes another model, lacks an entry, or has an unsupported one.
    """
    known = {CLASS_NAME: SIZES, VQ_CLASS_NAME: VQ_SIZES}
    class_name = fields["_class_name"]
    if class_name not in known:
        raise InputError(
            f"{path} describes a {class_name}: give the folder of an {CLASS_NAME} or a "
            f"{VQ_CLASS_NAME}"
        )
    missing = sorted(known[class_name].keys() - fields.keys())
    if missing:
        raise InputError(
            f"{path} lacks {', '.join(missing)}: copy the config that came with the weights"
        )
    sizes = {ours: fields[theirs] for theirs, ours in known[class_name].items()}
    sizes["mid_attention"] = fields.get("mid_block_add_attention", True)
    sizes["scaling_factor"] = fields.get("scaling_factor")
    try:
        config = AutoencoderConfig.from_json(sizes)
    except InputError as error:
        raise InputError(
            f"{path} is damaged, {error}: copy the config that came with the weights"
        ) from error
    levels = len(config.block_channels)
    fixed = FIXED | {name: [kind] * levels for name, kind in BLOCKS.items()}
    fixed["out_channels"] = fields["in_channels"]
    if fields.get("vq_embed_dim") is not None:
        fixed["vq_embed_dim"] = fields["latent_channels"]
    for name, value in fixed.items():
        if fields.get(name, value) != value:
            raise InputError(
                f"{path} has {name} = {fields[name]!r}, but this package's autoencoder supports "
                f"only {value!r}: give weights of Stable Diffusion's or VQ-f4's kind"
            )
    config = _scaled(config, scaling_factor)
    if config.scaling_factor is None:
        raise InputError(
            f"{path} lacks scaling_factor: add it there, or set autoencoder.scaling_factor"
        )
    return config


def config_from_shapes(
    path: Path, tensors: Mapping[str, np.ndarray], scaling_factor: float | None
) -> AutoencoderConfig:
    """Return the config inferred from the tensors of a single weight file.

    Tensors do not determine the number of normalisation groups, which is 32 in all published
    weights, nor the scaling factor. The latter is assumed to be Stable Diffusion's for its
    architecture, with a warning because SDXL shares it, 1 with a codebook, and otherwise None.

    Args:
      path: path of the file, for messages.
      tensors: tensors by canonical name.
      scaling_factor: overrides the assumption.

    Raises:
      InputError: if these are not the weights of an autoencoder.
    """
    blocks = [f"encoder.down_blocks.{i}.resnets.0.conv1.weight" for i in range(len(tensors))]
    layers = [f"encoder.down_blocks.0.resnets.{i}.conv1.weight" for i in range(len(tensors))]
    needed = dict.fromkeys(["encoder.conv_in.weight", "post_quant_conv.weight", *blocks[:1]], 4)
    if CODEBOOK in tensors:
        needed[CODEBOOK] = 2
    missing = [x for x, axes in needed.items() if x not in tensors or tensors[x].ndim != axes]
    if missing:
        lacking = listed(missing) if tensors else "all tensors"
        raise InputError(
            f"{path} holds no {CLASS_NAME}, it lacks {lacking} (its tensors: {listed(tensors)}): "
            "give an autoencoder's weights"
        )
    channels = tuple(tensors[name].shape[0] for name in takewhile(tensors.__contains__, blocks))
    try:
        config = AutoencoderConfig(
            image_channels=tensors["encoder.conv_in.weight"].shape[1],
            latent_channels=tensors["post_quant_conv.weight"].shape[0],
            block_channels=channels,
            layers_per_block=len(list(takewhile(tensors.__contains__, layers))),
            codebook=len(tensors[CODEBOOK]) if CODEBOOK in tensors else 0,
            mid_attention=any(".mid_block.attentions." in name for name in tensors),
            scaling_factor=None,
        )
    except InputError as error:
        raise InputError(
            f"{path} alone does not determine its architecture ({error}): put the config.json of "
            "its weights beside it"
        ) from error
    scaled = _scaled(config, scaling_factor)
    if scaling_factor is None and scaled.scaling_factor is not None and not config.codebook:
        warnings.warn(
            f"{path} has no scaling factor: assuming Stable Diffusion's, "
            f"{scaled.scaling_factor} (SDXL's is 0.13025; set autoencoder.scaling_factor)",
            stacklevel=4,
        )
    return scaled


def _scaled(config: AutoencoderConfig, scaling_factor: float | None) -> AutoencoderConfig:
    """The config with the given scaling factor, else its own, else that of its architecture.

    It is Stable Diffusion's for its architecture, and 1 with a codebook: latent diffusion does not
    scale quantised latents.
    """
    known = AutoencoderConfig.stable_diffusion()
    if scaling_factor is None and config == dataclasses.replace(known, scaling_factor=None):
        scaling_factor = known.scaling_factor
    if scaling_factor is None and config.scaling_factor is None and config.codebook:
        scaling_factor = AutoencoderConfig.vq_f4().scaling_factor
    if scaling_factor is None:
        return config
    return dataclasses.replace(config, scaling_factor=scaling_factor)


def of_autoencoder(names: Sequence[str]) -> list[str]:
    """Return the names of the tensors in a file that belong to the autoencoder.

    In the file of a whole latent-diffusion model these are the first stage's and the scaling
    factor. Tensors for training only are left out.
    """
    if any(name.startswith(FIRST_STAGE) for name in names):
        return [name for name in names if name.startswith(FIRST_STAGE) or name == SCALING_FACTOR]
    return [name for name in names if not TRAINING_ONLY.match(name)]


def canonical(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return tensors by canonical name; unknown names are kept as they are.

    Raises:
      InputError: if two tensors have the same canonical name.
    """
    tensors = {name.removeprefix(FIRST_STAGE): tensor for name, tensor in tensors.items()}
    levels = [int(match[1]) for name in tensors if (match := COMPVIS_UP.match(name))]
    chosen: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    for name, tensor in tensors.items():
        renamed = COMPVIS_UP.sub(
            lambda match: f"decoder.up_blocks.{max(levels) - int(match[1])}.", name
        )
        for pattern, replacement in RENAMED.items():
            renamed = re.sub(pattern, replacement, renamed)
        if renamed in chosen:
            raise InputError(
                f"{origin[renamed]} and {name} name the same parameter: keep the tensors of one "
                "naming only"
            )
        chosen[renamed], origin[renamed] = tensor, name
    return chosen


def from_pytorch(
    path: Path, tensors: dict[str, np.ndarray], config: AutoencoderConfig
) -> dict[str, Any]:
    """Return float32 parameters from tensors by canonical name.

    Args:
      path: path of the file, for messages.
      tensors: emptied one by one, so that not all tensors are in memory twice.
      config: the sizes.

    Raises:
      InputError: if a tensor is unused or a parameter missing.
    """
    shapes = flatten_dict(parameter_shapes(config), sep="/")
    flax_names = {pytorch_name(name): name for name in shapes}
    wanted = {
        name: jax.eval_shape(partial(_to_pytorch, name), shapes[flax_name])
        for name, flax_name in flax_names.items()
    }

    def fitted(name: str, tensor: np.ndarray) -> np.ndarray:
        matrix = name in wanted and wanted[name].ndim == 2
        if matrix and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):  # attention by convolution
            tensor = tensor[:, :, 0, 0]
        return tensor.astype(np.float32, copy=False)

    fit = {name: fitted(name, tensors.pop(name)) for name in [*tensors]}
    check_tensors(path, wanted, fit)
    return unflatten_dict(
        {flax_names[name]: jnp.asarray(_to_flax(name, fit.pop(name))) for name in [*fit]},
        sep="/",
    )


def to_pytorch(
    config: AutoencoderConfig, params: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return an autoencoder as diffusers' `config.json` and tensors.

    Raises:
      InputError: if neither AutoencoderKL nor VQModel can represent it.
    """
    class_name, sizes = (VQ_CLASS_NAME, VQ_SIZES) if config.codebook else (CLASS_NAME, SIZES)
    present = {"fold": config.fold > 1, "linear_skip": config.linear_skip}
    ours = [name for name, is_present in present.items() if is_present]
    if ours:
        raise InputError(
            f"diffusers' {class_name} has no {' and no '.join(ours)}, which this autoencoder "
            "has: save it in this package's own format"
        )
    levels = len(config.block_channels)
    fields = (
        {"_class_name": class_name, "act_fn": "silu", "out_channels": config.image_channels}
        | {theirs: getattr(config, ours) for theirs, ours in sizes.items()}
        | {name: [kind] * levels for name, kind in BLOCKS.items()}
        | {"scaling_factor": config.scaling_factor}
        | ({} if config.mid_attention else {"mid_block_add_attention": False})
    )
    tensors = {
        name: np.ascontiguousarray(_to_pytorch(name, np.asarray(leaf)))
        for flax_name, leaf in flatten_dict(params, sep="/").items()
        for name in [pytorch_name(flax_name)]
    }
    return fields, tensors


def _to_pytorch(name: str, array: Any) -> Any:
    return array if name == CODEBOOK else to_pytorch_layout(array)


def _to_flax(name: str, array: np.ndarray) -> np.ndarray:
    return array if name == CODEBOOK else to_flax_layout(array)


def pytorch_name(name: str) -> str:
    *modules, leaf = name.split("/")
    counted = [re.sub(r"_(\d+)$", r".\1", module) for module in modules]
    return ".".join([*counted, "bias" if leaf == "bias" else "weight"])
