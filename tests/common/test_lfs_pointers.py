"""What a clone without git-lfs leaves in place of large files is told by its name, wherever weights
and data are read."""

import json
import shutil

import pytest

from sisma_jax.common.config import from_json
from sisma_jax.common.errors import InputError
from sisma_jax.common.files import refuse_lfs_pointer
from sisma_jax.data.classes import ClassSet
from sisma_jax.data.latents import LATENTS_FILE, LatentCache
from sisma_jax.data.prepared import DATASET_FILE, PreparedDataset
from sisma_jax.metrics.frechet import load_statistics
from sisma_jax.models.autoencoder import load_autoencoder
from sisma_jax.models.face_parser import load_parser
from sisma_jax.models.judges.inception import load_inception
from sisma_jax.models.judges.lpips import load_lpips
from sisma_jax.synthesis.synthesizer import Synthesizer

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 334643276\n"
SAID = r"{} is a git-lfs pointer, not the file itself: run `git lfs pull` there$"
DIFFUSERS = {
    "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [8],
    "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"],
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 1,
    "norm_num_groups": 4, "sample_size": 32, "scaling_factor": 0.2,
}  # fmt: skip
SPLITS = {"version": 1, "size": 32, "moments": [2, 8, 8, 8], "data": ""} | {
    "classes": [{"name": "a", "color": [0, 0, 0]}],
    "flip_pairs": [],
    "splits": {"train": {"ids": ["x"], "shards": [{"file": "train.arrayrecord"}]}},
}


@pytest.mark.parametrize(
    ("name", "besides", "read"),
    [
        ("a.safetensors", {}, lambda folder: load_autoencoder(folder / "a.safetensors")),
        ("diffusion_pytorch_model.safetensors", {"config.json": DIFFUSERS}, load_autoencoder),
        ("config.json", {}, load_autoencoder),
        ("a.safetensors", {}, lambda folder: load_parser(folder / "a.safetensors")),
        ("config.json", {}, load_parser),
        ("a.safetensors", {}, lambda folder: load_inception(folder / "a.safetensors")),
        ("a.safetensors", {}, lambda folder: load_lpips(*[folder / "a.safetensors"] * 2)),
        ("a.npz", {}, lambda folder: load_statistics(folder / "a.npz")),
        ("train.arrayrecord", {DATASET_FILE: SPLITS}, lambda folder: PreparedDataset(folder, 32)),
        ("train.arrayrecord", {LATENTS_FILE: SPLITS}, LatentCache),
        (DATASET_FILE, {}, lambda folder: PreparedDataset(folder, 32)),
        (LATENTS_FILE, {}, LatentCache),
        ("classes.json", {}, lambda folder: ClassSet.read(folder / "classes.json")),
        ("config.json", {}, lambda folder: from_json(folder / "config.json")),
    ],
)
def test_a_pointer_in_place_of_a_file_is_named(name, besides, read, tmp_path):
    for other, content in besides.items():
        (tmp_path / other).write_text(json.dumps(content))
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(InputError, match="^" + SAID.format(tmp_path / name)):
        read(tmp_path)


def test_a_pointer_in_an_export_and_in_a_checkpoint_is_named(tiny_style_run, tiny_run, tmp_path):
    shutil.copytree(tiny_style_run, tmp_path / "export")
    weights = tmp_path / "export" / "model.safetensors"
    weights.write_text(POINTER)
    with pytest.raises(InputError, match=SAID.format(weights)):
        Synthesizer.load(tmp_path / "export")
    shutil.copytree(tiny_run, tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints").glob("*/ema/**/d/*"):
        file.write_text(POINTER)
    with pytest.raises(InputError, match=r"checkpoints/6 .*is a git-lfs pointer, not the file"):
        Synthesizer.load(tmp_path / "run")


def test_what_is_no_pointer_is_left_alone(tmp_path):
    (tmp_path / "file").write_bytes(b"version 2")
    for path in (tmp_path / "file", tmp_path, tmp_path / "missing"):
        refuse_lfs_pointer(path)
