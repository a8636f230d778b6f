"""What is on this machine is looked at before what takes long: the hub, networks, faces."""

import json

import pytest

from sisma_jax import cache_latents, evaluate, train, train_autoencoder, train_parser
from sisma_jax.common.config import load_config, to_json
from sisma_jax.common.errors import InputError
from sisma_jax.common.files import lock
from sisma_jax.data import synthetic
from sisma_jax.runs.folder import RunFolder
from sisma_jax.synthesis.synthesizer import Synthesizer
from sisma_jax.training.setup import check_folder
from tests.tiny_runs import CONFIGS, SIZE, arguments, call, train_tiny


@pytest.fixture
def in_haste(monkeypatch):
    """What takes long fails."""

    def fail(*arguments, **options):
        pytest.fail("it was not yet time for this")

    monkeypatch.setattr(train, "check_scan", fail)
    monkeypatch.setattr("sisma_jax.common.hub.local_path", fail)
    monkeypatch.setattr(synthetic, "write_dataset", fail)
    monkeypatch.setattr(cache_latents, "load_autoencoder", fail)
    monkeypatch.setattr(evaluate, "load_networks", fail)
    monkeypatch.setattr(Synthesizer, "load", fail)


def test_missing_data_is_told_before_the_hub_is_asked(in_haste, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^data/celeba-256 is not a folder") as caught:
        call(train.main, f"--config={CONFIGS / 'celeba.py'}")
    assert str(caught.value).endswith("--count 512 --size 256` and set --config.data.test_from=448")
    with pytest.raises(InputError, match=r"^latents is not a latent cache"):
        call(train.main, f"--config={CONFIGS / 'celeba.py'}", "--config.autoencoder.cache=latents")


def not_a_run(folder):
    (folder / "run").mkdir()
    (folder / "run" / "thesis.tex").write_text("")


def below_a_file(folder):
    (folder / "run").write_text("")


@pytest.mark.parametrize(
    ("overrides", "before", "said"),
    [
        ({"data__test_from": 500}, None, "split 'test' of .* is empty"),
        ({"data__test_from": 0}, None, "split 'train' of .* is empty"),
        (
            {"model__num_classes": 7},
            None,
            "num_classes is 7, but split 'train' of .* has 19 classes",
        ),
        ({"train__init_from": "nowhere"}, None, "nowhere is not a run folder"),
        ({"train__profile_at": 7}, None, "profile_at is 7, but training ends at step 6"),
        ({"evaluation__hook": "json:dumps"}, None, "with evaluation.every 0 it is never called"),
        ({}, not_a_run, "run is not empty and holds no run"),
        ({}, below_a_file, r"run cannot be written \(it is a file\)"),
    ],
)
def test_all_that_is_here_is_looked_at_before_the_hub_is_asked(
    overrides, before, said, in_haste, inputs_folder, tmp_path
):
    if before:
        before(tmp_path)
    settings = {"autoencoder__path": "hf://owner/name"} | overrides
    with pytest.raises(InputError, match=said):
        train_tiny(inputs_folder, tmp_path / "run", **settings)


def test_a_run_that_others_train_is_refused_before_the_hub_is_asked(
    in_haste, inputs_folder, tmp_path
):
    (tmp_path / "run").mkdir()
    with lock(tmp_path / "run" / "lock"), pytest.raises(InputError, match="is in use by"):
        train_tiny(inputs_folder, tmp_path / "run", autoencoder__path="hf://owner/name")


def test_weights_to_start_from_are_looked_for_before_the_hub_is_asked(
    in_haste, tiny_run, inputs_folder, tmp_path
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_bytes((tiny_run / "config.json").read_bytes())
    with pytest.raises(InputError, match="empty, which holds no finished checkpoint"):
        train_tiny(
            inputs_folder, tmp_path / "run", autoencoder__path="hf://owner/name",
            train__init_from=tmp_path / "empty",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        ("ca2sis:synthetic", "synthetic", "a run of CA2-SIS, but this one trains SISMA: give a"),
        ("ca2sis:synthetic", "autoencoder", "is a run of sisma_jax.train: give the folder of a run "
         "of sisma_jax.train_autoencoder"),
        ("autoencoder", "autoencoder:celeba-64", "it has autoencoder.latent_channels 4, and this "
         "run autoencoder.latent_channels 8; set the same"),
        ("parser --config.parser.channels=(8,16)", "parser", r"has parser.channels \(8, 16\), and"),
        ("synthetic", "synthetic --config.model.dtype=bfloat16", None),
        ("autoencoder", "autoencoder --config.autoencoder.norm_groups=4", None),
    ],
)  # fmt: skip
def test_weights_of_other_shapes_are_refused_before_a_run_is_written(theirs, ours, said, tmp_path):
    def config(command, *overrides):
        spec, *words = command.split()
        return load_config(spec, [*words, *overrides])

    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(to_json(config(theirs)))
    (other / "model.safetensors").touch()
    start = lambda: check_folder(
        RunFolder(tmp_path / "run"), config(ours, f"--config.train.init_from={other}")
    )
    if said is None:
        start()
        return
    with pytest.raises(InputError, match=said):
        start()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"data__test_from": 16}, "test_from is 16 of .* leaves the test split empty"),
        ({"data__test_from": 0}, "test_from is 0 of .* leaves the train split empty"),
        ({"model__num_classes": 7}, "num_classes is 7, but synthetic faces have 19 classes"),
        ({"autoencoder__path": "nowhere"}, "there is no autoencoder at nowhere"),
    ],
)
def test_no_faces_are_made_for_a_run_that_cannot_begin(
    overrides, said, inputs_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(train, "check_scan", lambda model: None)
    monkeypatch.setattr(synthetic, "write_dataset", lambda *_, **__: pytest.fail("faces"))
    settings = {"data__path": tmp_path / "new", "data__synthetic_count": 16} | overrides
    with pytest.raises(InputError, match=said):
        train_tiny(inputs_folder, tmp_path / "run", **settings)


@pytest.mark.parametrize(
    ("command", "config"), [(train_autoencoder, "autoencoder.py"), (train_parser, "parser.py")]
)
def test_other_trainings_make_no_faces_either(command, config, in_haste, tmp_path):
    not_a_run(tmp_path)
    settings = [f"--config={CONFIGS / config}", f"--config.data.path={tmp_path / 'new'}"]
    with pytest.raises(InputError, match="is not empty and holds no run"):
        call(command.main, *settings, f"--workdir={tmp_path / 'run'}")
    for more, said in (
        ("--config.data.test_from=9999", "leaves the test split empty"),
        ("--config.train.init_from=nowhere", "nowhere is not a run folder"),
    ):
        with pytest.raises(InputError, match=said):
            call(command.main, *settings, f"--workdir={tmp_path / 'other'}", more)


def test_data_is_looked_at_before_the_autoencoder_that_encodes_it(
    in_haste, inputs_folder, tmp_path
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    described = {"version": 1, "splits": {"train": {"ids": ["a"], "shards": [{"file": "a"}]}}}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(described))
    cache = lambda data, out, *more: call(
        cache_latents.main, "--data", data, "--autoencoder", "hf://owner/name", "--out", out, *more
    )
    with pytest.raises(InputError, match="nowhere is not a prepared data set"):
        cache("nowhere", tmp_path / "out")
    with pytest.raises(InputError, match=r"data/a is missing: write"):
        cache(tmp_path / "data", tmp_path / "out")
    with pytest.raises(InputError, match="--batch-size is 0"):
        cache(tmp_path / "data", tmp_path / "out", "--batch-size", 0)
    described["splits"]["train"]["ids"] = []
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match="full is not an empty folder"):
        cache(tmp_path / "data", tmp_path / "full")
    with pytest.raises(InputError, match=r"thesis.tex/out cannot be written \(Not a directory\)"):
        cache(tmp_path / "data", tmp_path / "full" / "thesis.tex" / "out")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "nowhere"], "nowhere is not a folder"),
        (["--parser", "nowhere"], "there is no face parser at nowhere"),
        (["--weights", "nowhere"], "--weights nowhere is not a folder"),
        (["--style-guidance", 2], "but no face has a reference style"),
    ],
)
def test_data_is_looked_at_before_networks_and_models_are_read(
    options, said, in_haste, tiny_run, tmp_path
):
    with pytest.raises(InputError, match=said):
        call(evaluate.main, "--workdir", tiny_run, "--out", tmp_path / "report", *options)
    images = ["--images", "nowhere", "--reference", tmp_path, "--out", tmp_path / "report"]
    with pytest.raises(InputError, match="nowhere is not a folder"):
        call(evaluate.main, *images)
    with pytest.raises(InputError, match="--masks none is not a folder"):
        call(evaluate.main, *images, "--masks", "none")


def test_a_run_of_this_size_passes_all_of_it(inputs_folder, tmp_path, monkeypatch):
    """The autoencoder is asked for at last."""

    def asked(*arguments):
        raise InputError("the hub was asked")

    monkeypatch.setattr("sisma_jax.common.hub.local_path", asked)
    with pytest.raises(InputError, match="the hub was asked"):
        call(train.main, *arguments(inputs_folder, tmp_path / "run"), f"--config.data.size={SIZE}")
    assert not (tmp_path / "run").exists()
