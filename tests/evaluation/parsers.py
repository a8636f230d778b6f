"""A face parser small enough for tests, with random weights."""

from pathlib import Path

import jax
import jax.numpy as jnp

from sisma_jax.data.classes import CLASSES
from sisma_jax.models.face_parser import FaceParserConfig, FaceParserUNet, save_parser
from tests.runs import SIZE

CONFIG = FaceParserConfig(channels=(8, 8), norm_groups=2)
QUALITY = {"test_miou": 0.25, "test_accuracy": 0.5, "test_images": 4, "class_iou": {"skin": 0.5}}


def write_parser(folder: Path, seed: int = 0) -> Path:
    images = jnp.zeros((1, SIZE, SIZE, 3))
    params = FaceParserUNet(CONFIG).init(jax.random.key(seed), images)["params"]
    save_parser(folder, CONFIG, params, classes=CLASSES, size=SIZE, quality=QUALITY)
    return folder
