"""Small data sets in the layouts that `prepare` reads."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from sisma_jax.data import synthetic
from sisma_jax.data.label_maps import write_label_map
from sisma_jax.data.raw import RawFaces

COUNT, SIZE, TEST_FROM = 20, 32, 16


def write_raw(folder: Path) -> Path:
    synthetic.write_dataset(folder, count=COUNT, size=64, mask_size=SIZE, seed=3, workers=1)
    return folder


def write_packed(folder: Path, raw: Path, test_from: int = TEST_FROM) -> Path:
    """The raw set's images as they are, and one indexed PNG each."""
    for split in ("train", "test"):
        source = RawFaces(raw, SIZE, split=split, test_from=test_from)
        for name in ("images", "labels"):
            (folder / split / name).mkdir(parents=True)
        for index, face in enumerate(source.ids):
            shutil.copy(raw / f"CelebA-HQ-img/{face}.jpg", folder / split / "images")
            write_label_map(folder / split / f"labels/{face}.png", source[index]["labels"])
    return folder


TOY = {
    "classes": [
        {"name": "sky", "color": [90, 160, 255]},
        {"name": "sand", "color": [230, 200, 120]},
        {"name": "left_stone", "color": [80, 80, 80]},
        {"name": "right_stone", "color": [120, 60, 40]},
    ],
    "flip_pairs": [["left_stone", "right_stone"]],
}


def write_toy(folder: Path, count: int = 16) -> Path:
    """Four classes, no faces: a sky, sand and two stones, painted in RGB."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    colours = np.array([one["color"] for one in TOY["classes"]], np.uint8)
    for index in range(count):
        rng = np.random.default_rng(index)
        labels = np.zeros((SIZE, SIZE), np.uint8)
        labels[rng.integers(10, 22) :] = 1
        for label, x in ((2, 4), (3, 20)):
            y, side = rng.integers(16, 24), rng.integers(3, 8)
            labels[y : y + side, x : x + side] = label
        noise = rng.integers(-20, 20, (SIZE, SIZE, 3))
        image = np.clip(colours[labels].astype(int) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / f"images/scene_{index}.png")
        Image.fromarray(colours[labels]).save(folder / f"labels/scene_{index}.png")
    (folder / "classes.json").write_text(json.dumps(TOY))
    return folder
