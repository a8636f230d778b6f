"""Weights and inputs that both sides of the comparison with diffusers make for themselves.

Every tensor is drawn from a generator seeded by its name, so neither the order nor a file matters.
"""

import zlib

import numpy as np

CONFIGS = {
    "tiny": dict(block_out_channels=[8, 16], layers_per_block=1, norm_num_groups=4),
    "stable_diffusion": dict(
        block_out_channels=[128, 256, 512, 512], layers_per_block=2, norm_num_groups=32
    ),
}
SIZES = {"tiny": (16, 24), "stable_diffusion": (32, 48)}
"""Height and width of the images: no squares."""
SPREADS = (1.0, 1e-3)
"""The two inputs of a batch: an image with contrast and one that is nearly flat."""


def generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def config_fields(name: str) -> dict:
    """diffusers' config.json."""
    levels = len(CONFIGS[name]["block_out_channels"])
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": 3,
        "latent_channels": 4,
        "out_channels": 3,
        "sample_size": 256,
        "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        **CONFIGS[name],
    }


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of about the size that training gives it. Log-variances reach their clamp."""
    values = generator(name).standard_normal(shape, np.float32)
    if len(shape) > 1:
        values /= np.sqrt(np.prod(shape[1:], dtype=np.float32))
        return 40 * values if name == "quant_conv.weight" else values
    return 0.1 * values + ("norm" in name and name.endswith("weight"))


def images(name: str) -> np.ndarray:
    """float32 (2, height, width, 3) about in [-1, 1]."""
    shape = (*SIZES[name], 3)
    return np.stack(
        [0.3 + spread * generator(f"image {spread}").uniform(-1, 0.7, shape) for spread in SPREADS]
    ).astype(np.float32)


def latents(name: str) -> np.ndarray:
    """float32 (2, h, w, 4), before scaling."""
    factor = 2 ** (len(CONFIGS[name]["block_out_channels"]) - 1)
    shape = (SIZES[name][0] // factor, SIZES[name][1] // factor, 4)
    return np.stack(
        [0.3 + spread * generator(f"latent {spread}").standard_normal(shape) for spread in SPREADS]
    ).astype(np.float32)


def compvis_name(name: str, levels: int) -> str:
    """The name in CompVis' latent-diffusion of a parameter of diffusers' AutoencoderKL."""
    parts = name.split(".")
    if parts[0] not in ("encoder", "decoder"):
        return name
    side, block, *rest = parts
    if block == "conv_norm_out":
        return ".".join([side, "norm_out", *rest])
    if block == "mid_block":
        kind, number, *rest = rest
        if kind == "resnets":
            return ".".join([side, "mid", f"block_{int(number) + 1}", *rest])
        layer, leaf = rest[0], rest[-1]
        layer = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}[
            layer
        ]
        return ".".join([side, "mid", "attn_1", layer, leaf])
    if block in ("down_blocks", "up_blocks"):
        level, kind, number, *rest = rest
        if kind == "resnets":
            rest = [{"conv_shortcut": "nin_shortcut"}.get(rest[0], rest[0]), *rest[1:]]
            rest = ["block", number, *rest]
        else:
            rest = [{"downsamplers": "downsample", "upsamplers": "upsample"}[kind], *rest]
        if block == "up_blocks":
            level = str(levels - 1 - int(level))
        return ".".join([side, block.removesuffix("_blocks"), level, *rest])
    return name
