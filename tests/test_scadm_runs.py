"""SCA-DM through the same commands as SISMA: trained, exported, sampled."""

import json
import shutil
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from sisma_jax import Synthesizer, demo, export, train
from sisma_jax.common.config import load_config
from sisma_jax.common.errors import InputError
from sisma_jax.data import synthetic
from sisma_jax.flows.diffusion import PUBLISHED, Diffusion, to_flow
from sisma_jax.models.generators import model_config
from sisma_jax.models.scadm.config import SCADMConfig
from tests.tiny_runs import SIZE, arguments, call

pytestmark = pytest.mark.slow
ZERO = Diffusion(prediction="velocity", zero_terminal_snr=True)
TINY = {
    "model.channels": 16,
    "model.multipliers": "(1,)",
    "model.attention_sizes": "(8,)",
    "model.head_width": 8,
    "model.spade_hidden": 4,
    "model.norm_groups": 4,
    "model.latent_channels": 4,
    "model.style_channels": 1,
    "model.style_levels": 1,
    "model.style_features": 4,
}


OF_SISMA = ("width", "depth", "state", "mask_channels")


NOISE = {"flow.prediction": "noise", "flow.zero_terminal_snr": False}


def train_scadm(inputs_folder, workdir, **overrides):
    settings = {"train.steps": 4} | TINY | overrides
    command = arguments(inputs_folder, workdir, "scadm.py:synthetic", **settings)
    call(train.main, *(x for x in command if x.split("=")[0].split(".")[-1] not in OF_SISMA))


@pytest.fixture(scope="module")
def workdir(inputs_folder, tmp_path_factory):
    """A finished tiny run."""
    workdir = tmp_path_factory.mktemp("runs") / "scadm"
    train_scadm(inputs_folder, workdir)
    return workdir


@pytest.fixture(scope="module")
def faces():
    pairs = [synthetic.face(0, index, SIZE) for index in range(2)]
    return tuple(np.stack(column) for column in zip(*pairs, strict=True))


def test_a_run_says_what_it_is(workdir):
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["kind"] == "scadm"
    assert config["flow"]["prediction"] == "velocity" and config["flow"]["zero_terminal_snr"]
    assert model_config(ConfigDict(config)).diffusion == ZERO
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [2, 4]
    assert (workdir / "samples" / "step_0000004.png").exists()


def test_the_demo_shows_it_too(workdir, tmp_path, monkeypatch):
    for name, count in {"MASKS": 2, "PER_MASK": 2, "LOSS_COUNT": 4}.items():
        monkeypatch.setattr(demo, name, count)
    shutil.copytree(workdir, tmp_path / "run")
    call(demo.main, "--workdir", tmp_path / "run", "--steps", 2)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert 0 < report["loss"]["right_masks"] < 10 and report["spread"]["samples"] > 0


def test_faces_take_the_style_they_are_given(workdir, faces, tmp_path):
    images, labels = faces
    synthesizer = Synthesizer.load(workdir)
    assert isinstance(synthesizer.config, SCADMConfig) and synthesizer.has_style
    style = synthesizer.style(images, labels)
    make = partial(synthesizer, labels, steps=3)
    assert make(style=style).shape == (2, SIZE, SIZE, 3)
    np.testing.assert_array_equal(make(), make(style=synthesizer.no_style()))
    for options, said in [
        (dict(guidance=1.5), r"no mask was dropped in the model's training \(flow.drop is 0\)"),
        (dict(steps=1000), "SCA-DM was trained on 1000 steps of noise, use at most 999"),
        (dict(steps=None, times=(0, 0.5, 1)), "^times are given, but SCA-DM is sampled at DDIM's"),
        (dict(shift=3), "^shift is 3, but SCA-DM is sampled at DDIM's times: leave it at 1"),
    ]:
        with pytest.raises(InputError, match=said):
            make(**options)
    noise = np.random.default_rng(0).normal(size=(2, SIZE // 4, SIZE // 4, 4)).astype(np.float32)
    made = make(noise=noise, solver="ab2").astype(int)
    assert np.abs(made - make(latents=noise, solver="ab2")).max() <= 1, "it starts from noise alone"
    call(export.main, "--workdir", workdir, "--out", tmp_path / "out")
    exported = Synthesizer.load(tmp_path / "out")
    np.testing.assert_array_equal(exported(labels, steps=3, style=style), make(style=style))


def test_a_run_older_than_predictions_predicts_the_noise(inputs_folder, faces, tmp_path, capsys):
    run = tmp_path / "run"
    train_scadm(inputs_folder, run, **NOISE)
    _, labels = faces
    with_keys = Synthesizer.load(run)
    assert with_keys.config.diffusion == PUBLISHED
    noise = np.random.default_rng(0).normal(size=(2, SIZE // 4, SIZE // 4, 4)).astype(np.float32)
    made = with_keys(labels, steps=3, noise=noise)
    begun = to_flow(jnp.asarray(noise), jnp.full(2, PUBLISHED.ddim_times(3)[0]))
    assert np.abs(made.astype(int) - with_keys(labels, steps=3, latents=begun)).max() <= 1
    config = json.loads((run / "config.json").read_text())
    for key in NOISE:
        del config["flow"][key.removeprefix("flow.")]
    (run / "config.json").write_text(json.dumps(config))
    older = Synthesizer.load(run)
    assert older.config == with_keys.config
    np.testing.assert_array_equal(older(labels, steps=3, noise=noise), made)
    with pytest.raises(InputError, match=r"flow.prediction, which was always 'noise', but this"):
        train_scadm(inputs_folder, run)
    train_scadm(inputs_folder, run, **NOISE, **{"train.steps": 5})
    capsys.readouterr()
    train_scadm(inputs_folder, tmp_path / "finer", **{"train.init_from": run, "train.steps": 1})
    assert (
        "predict the noise, and this run trains them to predict the vel" in capsys.readouterr().out
    )


def test_zero_terminal_snr_needs_a_prediction_of_the_velocity(inputs_folder, tmp_path):
    with pytest.raises(InputError, match=r"^flow.zero_terminal_snr is True with flow.prediction"):
        train_scadm(inputs_folder, tmp_path / "run", **NOISE | {"flow.zero_terminal_snr": True})
    assert not (tmp_path / "run").exists()


def test_a_kind_that_does_not_exist_is_refused():
    config = load_config("scadm:synthetic")
    config.model.kind = "gan"
    with pytest.raises(InputError, match=r"model\.kind is 'gan': choose one of sisma, scadm"):
        model_config(config)
