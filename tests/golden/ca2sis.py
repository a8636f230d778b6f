"""Weights and inputs of the golden file `ca2sis_tiny.npz`, drawn again.

The authors' public code of CA2-SIS (TFonta/CA2SIS, commit of 2024-04-17) wrote the file's values in
float64 from the same weights and inputs; none of that code is here. Every tensor is drawn from a
generator seeded by its name. Arrays of the file are NCHW.
"""

import zlib

import numpy as np

from tests.golden.files import golden_arrays

CASE = "tiny/"
IMAGE_SEED, COTANGENT_SEED = 101, 104
SHAPE = (4, 3, 64, 64)
BLOCK = 8
"""Side of the blocks of one colour in the images."""


def golden() -> dict[str, np.ndarray]:
    """The file's arrays by their names without the name of the case."""
    return {name.removeprefix(CASE): array for name, array in golden_arrays("ca2sis_tiny").items()}


def tensors(arrays: dict[str, np.ndarray], network: str) -> dict[str, np.ndarray]:
    """The state dict of "netG", "netD" or "vgg", by names without this prefix."""
    shapes = zip(arrays["param_names"], arrays["param_shapes"], strict=True)
    return {
        str(name).removeprefix(f"{network}."): fill(str(name), read_shape(str(shape)))
        for name, shape in shapes
        if name.startswith(f"{network}.")
    }


def read_shape(text: str) -> tuple[int, ...]:
    """The numbers of "[16, 8, 4, 4]"."""
    return tuple(int(number) for number in text.strip("[]").split(",") if number.strip())


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of this name, prefix included, float32."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    x = random.standard_normal(int(np.prod(shape))).reshape(shape)
    leaf = name.rpartition(".")[2]
    if leaf == "bias":
        x = 0.05 * x
    elif leaf in ("weight_u", "weight_v"):  # the vectors of spectral normalisation
        x = x / np.linalg.norm(x)
    elif len(shape) == 1:  # scales of norms
        x = 1.0 + 0.1 * x
    else:
        x = x / np.sqrt(np.prod(shape[1:]))
        if name.endswith("out_conv.weight"):
            x = 0.15 * x
        if ".to_q." in name or ".to_k." in name:
            x = 2.0 * x
        if name.startswith("vgg."):
            x = np.sqrt(2.0) * x
    return x.astype(np.float32)


def image() -> np.ndarray:
    """float32 (4, 3, 64, 64) in [-1, 1]: blocks of one colour, and noise."""
    batch, channels, height, width = SHAPE
    random = np.random.RandomState(IMAGE_SEED)
    coarse = random.uniform(-1, 1, (batch, channels, height // BLOCK, width // BLOCK))
    noise = random.uniform(-1, 1, SHAPE)
    blocks = np.kron(coarse, np.ones((1, 1, BLOCK, BLOCK)))
    return (0.7 * blocks + 0.3 * noise).astype(np.float32)


def cotangent() -> np.ndarray:
    """float32 (4, 3, 64, 64): the weights w of the output in the gradients of sum(out * w)."""
    return np.random.RandomState(COTANGENT_SEED).standard_normal(SHAPE).astype(np.float32)
