"""Weights and inputs that both sides of the comparison with diffusers' VQModel make themselves."""

import numpy as np

from tests.golden.autoencoder_recipe import generator
from tests.golden.autoencoder_recipe import tensor as autoencoder_tensor

ATTENTION = {"attention": True, "noattn": False}
"""The configurations: vq-f4's middle attention, and vq-f4-noattn's lack of it."""
SIZE = (16, 24)
"""Height and width of the images: no square."""
ENTRIES, CHANNELS = 40, 3


def config_fields(name: str) -> dict:
    """diffusers' config.json: three resolutions, as VQ-f4 has them."""
    return {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": [8, 16, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "in_channels": 3,
        "latent_channels": CHANNELS,
        "layers_per_block": 1,
        "mid_block_add_attention": ATTENTION[name],
        "norm_num_groups": 4,
        "num_vq_embeddings": ENTRIES,
        "out_channels": 3,
        "sample_size": 256,
        "scaling_factor": 1.0,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "vq_embed_dim": CHANNELS,
    }


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of about the size that training gives it; entries as far apart as latents."""
    if name == "quantize.embedding.weight":
        return generator(name).standard_normal(shape, np.float32)
    if name == "quant_conv.weight":
        return 2 * generator(name).standard_normal(shape, np.float32)
    return autoencoder_tensor(name, shape)


def images() -> np.ndarray:
    """float32 (2, height, width, 3) about in [-1, 1]."""
    return generator("vq images").uniform(-1, 1, (2, *SIZE, 3)).astype(np.float32)


def latents() -> np.ndarray:
    """float32 (2, h, w, 3), before scaling and quantising."""
    shape = (2, SIZE[0] // 4, SIZE[1] // 4, CHANNELS)
    return generator("vq latents").standard_normal(shape).astype(np.float32)
