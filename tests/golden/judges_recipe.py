"""Weights and pictures that both sides of the comparisons of Inception and LPIPS make.

As in `autoencoder_recipe`, every tensor is drawn from a generator seeded by its name.
"""

import numpy as np

from tests.golden.autoencoder_recipe import generator

INCEPTION_SIZE = (48, 64)
LPIPS_SIZES = {"alexnet": (40, 70), "vgg16": (37, 48)}
"""Height and width of the pictures: no squares, and not divisible."""


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of about the size that training gives it; a ReLU behind it keeps the scale."""
    random = generator(name)
    if name.startswith("lin"):  # LPIPS' weights of channels, some of them zero
        return np.maximum(random.uniform(-0.2, 1.0, shape), 0).astype(np.float32)
    if name.endswith("running_var"):
        return random.uniform(0.3, 2.0, shape).astype(np.float32)
    values = random.standard_normal(shape, np.float32)
    if len(shape) > 1:
        return values * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    return 0.2 * values + np.float32(name.endswith("bn.weight"))


class Weights:
    """Parameters drawn as a network asks for them; `shapes` says what it asked for."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __call__(self, name: str, *shape: int) -> np.ndarray:
        self.shapes[name] = shape
        return tensor(name, shape)


def pictures(name: str, size: tuple[int, int], count: int = 2) -> np.ndarray:
    """uint8 (count, height, width, 3): blocks of colour and noise, the last ones paler."""
    random = generator(name)
    height, width = size
    coarse = random.uniform(0, 255, (count, -(-height // 8), -(-width // 8), 3))
    fine = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    noisy = fine + random.normal(0, 20, fine.shape)
    contrast = np.linspace(1, 0.2, count)[:, None, None, None]
    return np.clip(128 + contrast * (noisy - 128), 0, 255).astype(np.uint8)


def pairs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (3, height, width, 3) each: different ones, and one that differs in few grey levels."""
    a = pictures(f"{name} a", LPIPS_SIZES[name], 3)
    b = pictures(f"{name} b", LPIPS_SIZES[name], 3)
    b[2] = np.clip(a[2] + generator("noise").integers(-3, 4, a[2].shape), 0, 255)
    return a, b
