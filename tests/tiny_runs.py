"""A data set, a first stage and a run small enough to train within a test, made once a session."""

import itertools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from sisma_jax import train
from sisma_jax.common.config import load_config, to_json
from sisma_jax.data import synthetic
from sisma_jax.data.classes import CELEBAMASK
from sisma_jax.models import generators
from sisma_jax.models.autoencoder import parameter_shapes, save_autoencoder
from sisma_jax.models.autoencoder.config import AutoencoderConfig
from sisma_jax.models.weights import save_tree
from sisma_jax.runs.folder import RunFolder

CONFIGS = Path(__file__).parent.parent / "configs"
SIZE = 32


def write_inputs(folder: Path) -> None:
    """data/: 16 faces of 32 pixels; autoencoder/: factor 4, random weights."""
    synthetic.write_dataset(folder / "data", count=16, size=SIZE, seed=0, workers=1)
    config = AutoencoderConfig.tiny(block_channels=(8,), norm_groups=4, fold=4, scaling_factor=0.5)
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda shape: random.normal(0, 0.2, shape.shape).astype(np.float32),
        parameter_shapes(config),
    )
    save_autoencoder(folder / "autoencoder", config, params)


STYLE = {
    "model.depth": 1,
    "model.attention_head": 8,
    "model.style_channels": 2,
    "model.style_levels": 1,
    "model.style_features": 4,
}
"""Overrides of configs/synthetic_style.py for a tiny model."""


def arguments(
    folder: Path, workdir: Path, config: str = "synthetic.py", **overrides: object
) -> list[str]:
    """Command line of a tiny training run."""
    settings = {
        "data.path": folder / "data",
        "data.size": SIZE,
        "data.test_from": 12,
        "data.synthetic_count": 0,
        "autoencoder.path": folder / "autoencoder",
        "model.latent_size": SIZE // 4,
        "model.width": 16,
        "model.depth": 2,
        "model.state": 2,
        "model.mask_channels": 8,
        "train.steps": 6,
        "train.batch_size": 4,
        "train.warmup": 2,
        "train.schedule": "constant",
        "train.log_every": 2,
        "train.sample_every": 100,
        "samples.masks": 2,
        "samples.per_mask": 2,
        "samples.steps": 2,
        "evaluation.every": 0,
        "checkpoint.every": 2,
    } | {key.replace("__", "."): value for key, value in overrides.items()}
    return [
        f"--config={CONFIGS / config}",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]


def call(main, *arguments: object) -> None:
    """Run a command in this process."""
    before = sys.argv
    sys.argv = ["command", *map(str, arguments)]
    try:
        with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers
            main()
    finally:
        sys.argv = before


def overridden(settings: Sequence[object], options: Sequence[object]) -> list[object]:
    """Pairs of an option and its value, without those that `options` give anew; and `options`."""
    pairs = zip(settings[::2], settings[1::2], strict=True)
    kept = [pair for pair in pairs if pair[0] not in options]
    return [*itertools.chain.from_iterable(kept), *options]


def train_tiny(folder: Path, workdir: Path, **overrides: object) -> None:
    call(train.main, *arguments(folder, workdir, **overrides))


def train_tiny_style(folder: Path, workdir: Path, **overrides: object) -> None:
    settings = STYLE | overrides
    call(train.main, *arguments(folder, workdir, "synthetic_style.py", **settings))


def write_tiny_style(folder: Path, workdir: Path) -> None:
    """An export of a model with a style: random weights, for nothing shows after a few steps."""
    command = arguments(folder, workdir, "synthetic_style.py", **STYLE)
    settings = [x for x in command if x.startswith("--config.")]
    write_export(workdir, load_config(str(CONFIGS / "synthetic_style.py"), settings), 0.25)
    shutil.copytree(folder / "autoencoder", RunFolder(workdir).autoencoder)


CA2SIS = {
    "model.mask_size": SIZE,
    "model.grid": 16,
    "model.stem_width": 8,
    "model.widths": "(8, 8)",
    "model.attention_sizes": "(16,)",
    "model.heads": 1,
    "model.head_width": 8,
    "model.last_heads": 1,
    "model.last_head_width": 8,
    "model.norm_groups": 4,
    "model.style_channels": 1,
    "model.style_levels": 1,
    "model.style_features": 4,
    "model.noise_width": 4,
    "model.mapping_width": 8,
}
"""Overrides of configs/ca2sis.py:synthetic for a tiny model."""


def write_tiny_ca2sis(folder: Path, workdir: Path, styles: str = "own") -> None:
    """An export of CA2-SIS with random weights; `styles` is that of its section `loss`."""
    settings = CA2SIS | {"data.path": folder / "data", "data.size": SIZE, "data.test_from": 12}
    settings["loss.styles"] = styles
    config = load_config(
        f"{CONFIGS / 'ca2sis.py'}:synthetic",
        [f"--config.{key}={value}" for key, value in settings.items()],
    )
    write_export(workdir, config, 0.3)


def write_export(workdir: Path, config: ConfigDict, deviation: float) -> None:
    """An export without an autoencoder: normally distributed weights."""
    model = generators.model_config(config)
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda shape: random.normal(0, deviation, shape.shape).astype(np.float32),
        generators.parameter_shapes(model),
    )
    run = RunFolder(workdir)
    workdir.mkdir(parents=True)
    run.config_file.write_text(to_json(config))
    run.write_classes(CELEBAMASK)
    name = generators.generator(model).name
    save_tree(run.weights_file, params, {"model": name, "step": "0"})
