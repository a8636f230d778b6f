"""A face parser small enough for tests, with random weights."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from sisma_jax.data.classes import CLASSES
from sisma_jax.models.face_parser import (
    FaceParserConfig,
    FaceParserUNet,
    parameter_shapes,
    save_parser,
)
from tests.tiny_runs import SIZE

CONFIG = FaceParserConfig(channels=(8, 8), norm_groups=2)
QUALITY = {
    "data": "elsewhere",
    "test_miou": 0.25,
    "test_accuracy": 0.5,
    "test_images": 4,
    "class_iou": {"skin": 0.5},
}


def random_params(config: FaceParserConfig, seed: int = 0) -> Any:
    """Drawn by the host, which compiles nothing."""
    random = np.random.default_rng(seed)
    draw = lambda leaf: random.normal(0, 1, leaf.shape).astype(leaf.dtype)
    return jax.tree.map(draw, parameter_shapes(FaceParserUNet(config)))


def write_parser(folder: Path, seed: int = 0) -> Path:
    params = random_params(CONFIG, seed)
    save_parser(folder, CONFIG, params, classes=CLASSES, size=SIZE, quality=QUALITY)
    return folder
