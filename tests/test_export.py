"""Exported folders: they load as the run does, and stand without it."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from sisma_jax import Synthesizer, export, sample
from sisma_jax.common.errors import InputError
from sisma_jax.data.classes import ClassSet
from sisma_jax.data.label_maps import write_label_map
from sisma_jax.models.autoencoder import AutoencoderConfig, load_autoencoder, save_autoencoder
from sisma_jax.models.autoencoder.files import save_diffusers
from sisma_jax.models.ca2sis import CA2SISConfig, load_published
from sisma_jax.models.scadm.config import SCADMConfig
from sisma_jax.models.weights import read_tensors, save_tensors
from tests.autoencoders import SMALL_KL, random_params
from tests.golden import ca2sis_recipe, scadm_recipe
from tests.golden.files import golden_arrays
from tests.models.scadm.test_scadm import golden_tensors
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
        with pytest.raises(
            InputError, match=r"--out .*\.safetensors cannot be written \(it is a f"
        ):
            run_export(tiny_run, exported / "model.safetensors")
        with pytest.raises(InputError, match="--format own is for autoencoders"):
            run_export(tiny_run, tmp_path / "out", "--format", "own")
        assert not (tmp_path / "out").exists()


def classes_file(path, count):
    classes = ClassSet(
        tuple(f"part {k}" for k in range(count)), tuple((k, 0, 0) for k in range(count))
    )
    path.write_text(json.dumps(classes.to_json()))
    return path


def sizes(config, *others):
    """Words that override the sizes of a model in a config."""
    left_out = {"style_grouping", *others}
    fields = {key: x for key, x in dataclasses.asdict(config).items() if key not in left_out}
    return [f"--config.model.{key}={value}" for key, value in fields.items()]


class TestPublishedWeights:
    @pytest.fixture
    def ca2sis(self, tmp_path):
        weights = tmp_path / "latest_net_G.safetensors"
        save_tensors(weights, ca2sis_recipe.tensors(golden_arrays("ca2sis_tiny"), "netG."), {})
        return ["--weights", weights, "--config", "ca2sis", *sizes(CA2SISConfig.tiny(), "dtype")]

    @pytest.fixture
    def scadm(self, tmp_path):
        """A checkpoint without a first stage, and one that holds it."""
        config = SCADMConfig(**scadm_recipe.SIZES)
        tensors = golden_tensors()
        first_stage = AutoencoderConfig(
            latent_channels=3, block_channels=(32, 32), layers_per_block=1, codebook=8
        )
        save_diffusers(tmp_path / "vq", first_stage, random_params(first_stage))
        file = tmp_path / "vq/diffusion_pytorch_model.safetensors"
        own = {f"first_stage_model.{name}": x for name, x in read_tensors(file).items()}
        save_tensors(tmp_path / "alone.safetensors", tensors, {})
        save_tensors(tmp_path / "both.safetensors", tensors | own, {})
        left_out = ("remat", "diffusion", "norm_after")
        return config, ["--config", "scadm", *sizes(config, *left_out)]

    def test_ca2sis(self, ca2sis, tmp_path, capsys):
        classes, out = classes_file(tmp_path / "classes.json", 5), tmp_path / "out"
        call(export.main, *ca2sis, "--classes", classes, "--out", out)
        assert "CA2-SIS of latest_net_G.safetensors" in capsys.readouterr().out
        loaded = Synthesizer.load(out)
        assert loaded.config == CA2SISConfig.tiny(dtype="float32")
        assert loaded.classes == ClassSet.read(classes) and loaded.step == 0
        expected = load_published(ca2sis[1], loaded.config)
        jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
        assert not loaded.draws_styles
        second = tmp_path / "second"
        call(
            export.main, *ca2sis, "--classes", classes, "--config.loss.styles=random",
            "--out", second,
        )  # fmt: skip
        assert Synthesizer.load(second).draws_styles

    def test_scadm_with_its_first_stage(self, scadm, tmp_path):
        config, words = scadm
        words += ["--classes", classes_file(tmp_path / "classes.json", 5)]
        call(
            export.main, *words, "--weights", tmp_path / "both.safetensors", "--out",
            tmp_path / "both",
        )  # fmt: skip
        call(
            export.main, *words, "--weights", tmp_path / "alone.safetensors", "--autoencoder",
            tmp_path / "vq", "--out", tmp_path / "alone",
        )  # fmt: skip
        one, other = Synthesizer.load(tmp_path / "both"), Synthesizer.load(tmp_path / "alone")
        assert one.config == other.config
        assert one.config == dataclasses.replace(config, style_grouping="published")
        jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
        assert one.autoencoder.checksum() == other.autoencoder.checksum()
        with pytest.raises(InputError, match=r"vq-f4\.safetensors"):
            call(
                export.main, *words, "--weights", tmp_path / "alone.safetensors", "--out",
                tmp_path / "none",
            )  # fmt: skip
        assert not (tmp_path / "none").exists()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--weights", "a.safetensors"], "--config must be given for the published weights"),
            (
                ["--weights", "a.safetensors", "--config", "celeba"],
                "of sisma, of which no weights were published: give --config ca2sis or scadm",
            ),
            (
                ["--weights", "a.safetensors", "--config", "autoencoder"],
                "is a config of sisma_jax.train_autoencoder",
            ),
            (
                ["--weights", "a.safetensors", "--config", "ca2sis", "--autoencoder", "vq"],
                "CA2-SIS has no first stage: leave --autoencoder out",
            ),
            (["--weights", "a.pth", "--config", "ca2sis"], "there is no weight file a.pth: check"),
            (
                ["--weights", "a.safetensors", "--config", "ca2sis", "--format", "own"],
                "a.safetensors is none: leave it out",
            ),
            (["--workdir", "run", "--config", "ca2sis"], "--config is for published --weights"),
            (
                ["--workdir", "run", "--config.model.grid=8"],
                "--config.model.grid=8 is for published --weights",
            ),
            (["--workdir", "run", "--weights", "a.safetensors"], "do not go together"),
            (
                [
                    "--weights", "a.safetensors", "--config", "ca2sis",
                    "--config.model.num_classes=151",
                ],
                "model has 151 classes, but there are 19 in --classes",
            ),
        ],
    )  # fmt: skip
    def test_wrong_input(self, words, message, tmp_path):
        with pytest.raises(InputError, match=message):
            call(export.main, *words, "--out", tmp_path / "out")
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
