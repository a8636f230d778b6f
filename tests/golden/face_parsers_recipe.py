"""Weights and images that both sides of the comparison with PyTorch make for themselves.

Every tensor is drawn from a generator seeded by its name, so neither the order nor a file matters.
"""

import zlib

import numpy as np

SIZE = (64, 96)
"""Height and width of the images: no square."""
SPREADS = (1.0, 0.02)
"""The two images: one with contrast and one that is nearly flat."""
KEPT = (np.s_[:, ::7, ::5], np.s_[:, :, ::7, ::5])
"""Pixels of the logits that the golden file keeps, corners among them; NHWC and NCHW."""


def generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor about as large as training leaves it, so that activations neither grow nor die."""
    values = generator(name).standard_normal(shape, np.float32)
    if name.endswith("num_batches_tracked"):
        return np.array(80_000, np.int64)
    if name.endswith("running_var"):
        return np.exp(0.5 * values)
    if len(shape) == 4:
        transposed = ".up." in name  # whose outputs see one pixel each
        return values * np.sqrt(2 / (shape[0] if transposed else np.prod(shape[1:])), dtype="f4")
    return 0.2 * values + 0.5 * name.endswith("weight")


def images() -> np.ndarray:
    """uint8 (2, height, width, 3)."""
    noise = generator("images").uniform(-1, 1, (2, *SIZE, 3))
    spread = np.array(SPREADS)[:, None, None, None]
    return np.round(127.5 + 40 * spread + 85 * spread * noise).astype(np.uint8)
