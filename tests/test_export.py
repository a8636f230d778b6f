"""Exported folders: they load as the run does, and stand without it."""

import json
import shutil

import jax
import numpy as np
import pytest

from sisma_jax import Synthesizer, export, sample
from sisma_jax.common.errors import InputError
from sisma_jax.data.label_maps import write_label_map
from sisma_jax.models.autoencoder import load_autoencoder, save_autoencoder
from tests.autoencoders import SMALL_KL, random_params
from tests.tiny_runs import SIZE, call, train_tiny


def run_export(workdir, out, *options):
    call(export.main, "--workdir", workdir, "--out", out, *options)
    return out


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    return run_export(tiny_run, tmp_path_factory.mktemp("export") / "sisma")


def first_stage_run(folder, config, params):
    """What `train_autoencoder` leaves."""
    save_autoencoder(folder / "autoencoder", config, params)
    (folder / "config.json").write_text(json.dumps({"autoencoder": {}, "train": {}}))
    return folder


class TestSISMA:
    def test_it_makes_the_runs_pictures(self, exported, tiny_run):
        run, export = Synthesizer.load(tiny_run), Synthesizer.load(exported)
        assert export.step == run.step == 6
        assert export.config == run.config and export.classes == run.classes
        jax.tree.map(np.testing.assert_array_equal, export.params, run.params)
        labels = np.random.default_rng(0).integers(0, 19, (2, SIZE, SIZE)).astype(np.uint8)
        np.testing.assert_array_equal(export(labels, steps=2), run(labels, steps=2))

    def test_it_is_small_plain_files(self, exported):
        files = sorted(str(p.relative_to(exported)) for p in exported.rglob("*") if p.is_file())
        assert files == [
            "autoencoder/config.json",
            "autoencoder/weights.safetensors",
            "classes.json",
            "config.json",
            "model.safetensors",
        ]

    def test_sample_takes_it(self, exported, tmp_path, capsys):
        write_label_map(tmp_path / "mask.png", np.zeros((SIZE, SIZE), np.uint8))
        call(
            sample.main, "--workdir", exported, "--masks", tmp_path / "mask.png",
            "--out", tmp_path / "faces", "--steps", 2,
        )  # fmt: skip
        assert (tmp_path / "faces/mask_0.png").exists()
        assert "MiB for weights and" in capsys.readouterr().out

    @pytest.mark.slow
    def test_a_run_may_start_from_it_but_not_continue_in_it(
        self, exported, inputs_folder, tmp_path
    ):
        copy = shutil.copytree(exported, tmp_path / "export")
        with pytest.raises(InputError, match=r"is an export.*train\.init_from"):
            train_tiny(inputs_folder, copy)
        train_tiny(inputs_folder, tmp_path / "run", train__init_from=exported, train__steps=1)

    def test_damage_is_named(self, exported, tmp_path):
        copy = shutil.copytree(exported, tmp_path / "export")
        file = copy / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-4])
        with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
            Synthesizer.load(copy)

    def test_wrong_input(self, tiny_run, exported, tmp_path):
        with pytest.raises(InputError, match="is not empty"):
            run_export(tiny_run, exported)
        with pytest.raises(InputError, match="--format own is for autoencoders"):
            run_export(tiny_run, tmp_path / "out", "--format", "own")
        assert not (tmp_path / "out").exists()


class TestFirstStage:
    def test_diffusers_format_where_it_can_be(self, tmp_path, capsys):
        run = first_stage_run(tmp_path / "run", SMALL_KL, random_params(SMALL_KL))
        out = run_export(run, tmp_path / "out")
        assert "diffusers' format" in capsys.readouterr().out
        assert (out / "diffusion_pytorch_model.safetensors").exists()
        jax.tree.map(
            np.testing.assert_array_equal,
            load_autoencoder(out).params,
            load_autoencoder(run).params,
        )

    def test_otherwise_its_own(self, inputs_folder, tmp_path, capsys):
        loaded = load_autoencoder(inputs_folder / "autoencoder")
        run = first_stage_run(tmp_path / "run", loaded.config, loaded.params)
        out = run_export(run, tmp_path / "out")
        assert "has no fold and no linear_skip" in capsys.readouterr().out
        assert load_autoencoder(out).checksum() == loaded.checksum()
        with pytest.raises(InputError, match="has no fold"):
            run_export(run, tmp_path / "other", "--format", "diffusers")
        own = run_export(run, tmp_path / "own", "--format", "own")
        assert (own / "weights.safetensors").exists()

    def test_unfinished_training(self, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run/config.json").write_text('{"autoencoder": {}}')
        with pytest.raises(InputError, match="holds no finished autoencoder"):
            run_export(tmp_path / "run", tmp_path / "out")
