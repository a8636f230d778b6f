"""From weights of Stable Diffusion's size to training at 256 pixels from a cache, by commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.golden import autoencoder_recipe as recipe

ROOT = Path(__file__).parents[1]


def run(module, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", f"sisma_jax.{module}", *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_celeba_trains_from_a_cache_of_published_weights(tmp_path):
    with np.load(Path(recipe.__file__).with_name("autoencoder.npz")) as golden:
        shapes = json.loads(str(golden["stable_diffusion/shapes"]))
    weights = tmp_path / "sd-vae"
    weights.mkdir()
    (weights / "config.json").write_text(json.dumps(recipe.config_fields("stable_diffusion")))
    save_file(
        {name: recipe.tensor(name, tuple(shape)) for name, shape in shapes.items()},
        weights / "diffusion_pytorch_model.safetensors",
    )
    raw, data, latents = (tmp_path / name for name in ("raw", "data", "latents"))
    run("data.synthetic", "--out", raw, "--count", 8, "--size", 256)
    run("prepare", "--source", raw, "--out", data, "--size", 256, "--test-from", 6)
    told = run("cache_latents", "--data", data, "--autoencoder", weights, "--out", latents)
    assert "latents 32 x 32 x 4" in told
    run(
        "train",
        *("--config", "configs/celeba.py:debug", "--workdir", tmp_path / "run"),
        f"--config.data.path={data}",
        f"--config.autoencoder.path={weights}",
        f"--config.autoencoder.cache={latents}",
        "--config.train.steps=6",
        "--config.train.sample_every=6",
        "--config.samples.steps=2",
    )
    rows = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    trained, evaluated = rows[:-1], rows[-1]
    assert all(np.isfinite(row["loss"]) and row["skipped"] == 0 for row in trained)
    assert np.isfinite(evaluated["test_loss"])
    run("export", "--workdir", tmp_path / "run", "--out", tmp_path / "exported")
    run(
        "sample",
        *("--workdir", tmp_path / "exported", "--out", tmp_path / "faces", "--steps", 2),
        *("--masks", mask_of(raw, tmp_path / "mask.png")),
    )
    assert (tmp_path / "faces/mask_0.png").exists()


def mask_of(raw, path):
    from sisma_jax.data.label_maps import write_label_map
    from sisma_jax.data.raw import RawFaces

    write_label_map(path, RawFaces(raw, 256, split="all")[0]["labels"])
    return path
