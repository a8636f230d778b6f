"""Weights and inputs of an SCA-DM that both sides of the comparison with PyTorch make themselves.

Every tensor is drawn from a generator seeded by its name, so neither the order nor a file matters.
"""

import zlib

import numpy as np

SIZES = dict(
    latent_size=8,
    latent_channels=3,
    factor=2,
    num_classes=5,
    channels=16,
    multipliers=(1, 2),
    blocks=1,
    attention_sizes=(8, 4),
    head_width=8,
    spade_hidden=8,
    norm_groups=4,
    style_levels=2,
    style_features=4,
    style_channels=2,
)
"""All parts, two heads at the least, and nothing large."""
STEPS = (731.0, 4.0)
ADDENDS = ("input_blocks.0.0", "out_layers.2", "out_layers.3", "proj_in", "proj_out")
"""Layers whose outputs are added up."""


def generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor without the zeros of a new model's.

    What the blocks add up stays about as small as 1/20, so that the norms' epsilons count.
    """
    values = generator(name).standard_normal(shape, np.float32)
    if len(shape) == 1:
        return 0.2 * values + 1 if name.endswith("weight") else 0.01 * values
    adds = name.removesuffix(".weight").endswith(ADDENDS)
    return (0.05 if adds else 1) * values / np.sqrt(np.prod(shape[1:]), dtype=np.float32)


def latents() -> np.ndarray:
    """float32 (2, height, width, channels)."""
    shape = (2, SIZES["latent_size"], SIZES["latent_size"], SIZES["latent_channels"])
    return generator("latents").standard_normal(shape, np.float32)


def labels() -> np.ndarray:
    """uint8 (2, height, width) at the image's size.

    The first has all classes but the last; the second has an unlabelled corner, a large hole, and
    a pixel that no coarser map has.
    """
    size = SIZES["latent_size"] * SIZES["factor"]
    patches = generator("labels").integers(0, SIZES["num_classes"] - 1, (2, size // 4, size // 4))
    maps = patches.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    maps[1, :9, :6] = 255
    maps[1, 13, 11] = SIZES["num_classes"] - 1
    return maps


def images() -> np.ndarray:
    """float32 (2, height, width, 3) in [-1, 1]: the references, whose masks are `labels`."""
    return generator("images").uniform(-1, 1, (*labels().shape, 3)).astype(np.float32)
