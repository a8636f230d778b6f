"""The training command: a whole run, exact resume, clean stops, what it refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from sisma_jax import train
from sisma_jax.common.config import load_config, section, to_json
from sisma_jax.common.errors import InputError, RunError
from sisma_jax.data.config import DataConfig
from sisma_jax.data.raw import FIELDS
from sisma_jax.models.autoencoder import load_autoencoder
from sisma_jax.models.generators import model_config
from sisma_jax.runs.folder import RunFolder, fixed_changes
from sisma_jax.synthesis.synthesizer import Synthesizer
from sisma_jax.training.objective import FlowConfig
from sisma_jax.training.setup import Sections, check_folder
from tests.tiny_runs import arguments, call, train_tiny


def weights(workdir):
    return jax.tree.leaves(Synthesizer.load(workdir).params)


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(first, second):
    for a, b in zip(weights(first), weights(second), strict=True):
        np.testing.assert_array_equal(a, b)
    measured = ("images_per_second", "data_wait", "memory_gib", "mfu")
    drop = lambda row: {k: v for k, v in row.items() if k not in measured}
    assert list(map(drop, rows(first))) == list(map(drop, rows(second)))


def test_a_run_folder_holds_what_it_promises(tiny_run):
    run = RunFolder(tiny_run)
    assert run.config().train.steps == 6
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["4", "6"]
    assert {path.name for path in run.autoencoder.iterdir()} == {
        "config.json",
        "weights.safetensors",
    }
    assert [row["step"] for row in rows(tiny_run)] == [2, 4, 6]
    assert {"loss", "gradient_norm", "learning_rate"} <= rows(tiny_run)[0].keys()
    assert list(tiny_run.glob("events.*"))
    assert "blocks" in run.parameters_file.read_text()
    with Image.open(run.samples / "step_0000006.png") as image:
        assert image.size == (4 * 34 - 2, 2 * 34 - 2)  # mask, reference, two samples; two rows


@pytest.fixture
def tiny_config(inputs_folder, tmp_path):
    """The config of a tiny run with these overrides."""

    def tiny_config(**overrides):
        config, *rest = arguments(inputs_folder, tmp_path / "run", **overrides)
        rest = [override for override in rest if override.startswith("--config.")]
        return load_config(config.removeprefix("--config="), rest)

    return tiny_config


class Heard:
    """A log that remembers."""

    def __init__(self):
        self.metrics, self.pictures, self.closed = [], [], 0

    def write(self, step, metrics):
        self.metrics.append({"step": step, **metrics})

    def image(self, step, name, image):
        self.pictures.append((step, image))

    def close(self):
        self.closed += 1


def test_whoever_watches_is_told_what_the_folder_holds(tiny_run, tiny_config, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    heard = Heard()
    with jax.numpy_dtype_promotion("standard"):
        train.train_sisma(tiny_config(train__steps=8), str(tmp_path / "run"), watch=[heard])
    assert heard.metrics == [row for row in rows(tmp_path / "run") if row["step"] > 6]
    (step, sheet), *more = heard.pictures
    with Image.open(tmp_path / "run/samples/step_0000008.png") as image:
        np.testing.assert_array_equal(sheet, image)
    assert (step, more, heard.closed) == (8, [], 1)


@pytest.mark.slow
def test_continuing_equals_an_undisturbed_run_bit_for_bit(tiny_run, inputs_folder, tmp_path):
    train_tiny(inputs_folder, tmp_path / "run", train__steps=4)
    train_tiny(inputs_folder, tmp_path / "run", train__steps=6)
    assert_same_run(tmp_path / "run", tiny_run)


def test_a_finished_run_is_left_as_it_is(tiny_run, inputs_folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in tiny_run.glob("checkpoints/*/*")}
    train_tiny(inputs_folder, tiny_run)
    assert "is trained: step 6 of 6" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in tiny_run.glob("checkpoints/*/*")}


def test_a_start_that_failed_is_corrected_in_the_same_folder(
    inputs_folder, tmp_path, monkeypatch, capsys
):
    def fail(*, run, **options):
        run.checkpoints.mkdir(exist_ok=True)
        raise RunError("the devices' memory is too small")

    monkeypatch.setattr(train, "train", fail)
    monkeypatch.setattr(train, "check_scan", lambda model: None)
    shutil.copytree(inputs_folder / "autoencoder", tmp_path / "other")
    for changes in ({"model__width": 32}, {"autoencoder__path": tmp_path / "other"}):
        with pytest.raises(RunError, match="too small"):
            train_tiny(inputs_folder, tmp_path / "run", **changes)
    said = capsys.readouterr().out
    assert f"{tmp_path / 'run'} has no saved step, so a new run replaces the one in it\n" in said
    assert "changed in this run: model.width from 32 to 16\n" in said
    assert "ignored" not in said
    config = RunFolder(tmp_path / "run").config()
    assert (config.model.width, config.autoencoder.path) == (16, str(tmp_path / "other"))
    assert load_autoencoder(tmp_path / "run").config.block_channels == (8,)


@pytest.mark.slow
def test_a_moved_run_continues_without_its_first_autoencoder_and_says_so(
    tiny_run, inputs_folder, tmp_path, capsys
):
    shutil.copytree(tiny_run, tmp_path / "moved")
    train_tiny(
        inputs_folder, tmp_path / "moved", train__steps=7, autoencoder__path=tmp_path / "gone"
    )
    assert Synthesizer.load(tmp_path / "moved").step == 7
    copy = tmp_path / "moved" / "autoencoder"
    said = f"autoencoder' to '{tmp_path / 'gone'}'; it is ignored: the run uses its own copy"
    assert f"{said}, {copy}\n" in capsys.readouterr().out


@pytest.mark.slow
def test_a_missing_synthetic_set_is_made(inputs_folder, tmp_path):
    data = tmp_path / "data"
    train_tiny(
        inputs_folder, tmp_path / "run", train__steps=2, data__path=data, data__synthetic_count=16
    )
    assert len(list((data / "CelebA-HQ-img").iterdir())) == 16


def cut_short(checkpoint):
    for path in [path for path in checkpoint.rglob("*") if path.is_file()]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_synthesis_falls_back_and_changes_nothing(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    cut_short(run / "checkpoints" / "6")
    with pytest.warns(UserWarning, match="checkpoints/6 cannot be restored"):
        assert Synthesizer.load(run).step == 4
    assert not (run / "damaged").exists()


def test_where_no_checkpoint_is_intact_it_is_said(tiny_run, inputs_folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    for step in ("4", "6"):
        cut_short(run / "checkpoints" / step)
    for action, remedy in (
        (lambda: train_tiny(inputs_folder, run, train__steps=8), "delete .* to start again"),
        (lambda: weights(run), "give another run"),
    ):
        with pytest.raises(InputError, match=rf"checkpoints/6 cannot be .*nor can 1 .*{remedy}$"):
            action()
    assert not (run / "damaged").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train__steps": 0}, "train.steps is 0"),
        ({"data__size": 64}, "data.size is 64 where .* is 8 x 4"),
        ({"model__factor": 8, "model__latent_size": 4}, "factor 4 .* where the model has 8"),
        ({"data__size": 30}, "data.size 30 is not a multiple of the .*factor 4"),
        ({"model__scan": "pallas_triton"}, "model.scan 'pallas_triton' cannot run here .*choose"),
        ({"evaluation__hook": "no_such:thing"}, "evaluation.hook 'no_such:thing' cannot be im"),
        ({"train__init_from": "nowhere"}, "nowhere is not a run folder"),
        ({"flow__drop": 1.5}, "flow.drop is 1.5"),
        (
            {"flow__drop": 0.0, "samples__guidance": 2.0},
            "samples.guidance is 2.0, but no mask was dropped",
        ),
        ({"samples__solver": "rk4"}, "samples.solver 'rk4' is unknown"),
        ({"autoencoder__path": "nowhere"}, "no autoencoder at nowhere"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(
    overrides, message, inputs_folder, tmp_path
):
    """One setting for each check of the command, and for sections that it reads by itself."""
    with pytest.raises(InputError, match=message):
        train_tiny(inputs_folder, tmp_path / "run", **overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("theirs", "ours"), [("separate", "published"), ("published", None)])
def test_weights_of_another_grouping_are_not_started_from(theirs, ours, tmp_path):
    def config(grouping, init_from=""):
        keys = {"style_grouping": grouping} if grouping else {}
        return ConfigDict({"model": {"kind": "scadm"} | keys, "train": {"init_from": init_from}})

    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(to_json(config(theirs)))
    (other / "model.safetensors").touch()
    check_folder(RunFolder(tmp_path / "run"), config(theirs, str(other)))
    with pytest.raises(
        InputError, match=f"is '{theirs}', but this run's is .* --config.*={theirs}"
    ):
        check_folder(RunFolder(tmp_path / "run"), config(ours, str(other)))


CHECKS = {
    "sections": Sections.of,
    "model": model_config,
    "scan": lambda config: train.check_scan(model_config(config)),
    "samples": lambda config: section(train.SamplesConfig, config, "samples"),
    "flow": lambda config: section(FlowConfig, config, "flow"),
    "hook": lambda config: train.load_hook(section(train.EvaluationConfig, config, "evaluation")),
    "sections that fit": lambda config: train.check_sections(
        model_config(config),
        section(DataConfig, config, "data"),
    ),
    "splits": lambda config: section(DataConfig, config, "data").open_if_there(FIELDS, FIELDS),
    "first stage": lambda config: section(train.FirstStageConfig, config, "autoencoder").load(),
    "start": lambda config: check_folder(RunFolder(Path("run")), config),
}
"""What `train_sisma` asks of a config, by itself."""


@pytest.mark.parametrize(
    ("check", "overrides", "message"),
    [
        ("splits", {"data__path": "nowhere"}, "nowhere"),
        ("splits", {"data__path": ""}, "data.path is empty"),
        ("splits", {"data__test_from": 500}, "test"),
        ("first stage", {"autoencoder__path": ""}, "autoencoder.path is empty"),
        ("first stage", {"autoencoder__path": "nowhere"}, "no autoencoder at nowhere"),
        ("first stage", {"autoencoder__dtype": "half"}, "autoencoder.dtype is 'half': choose one"),
        (
            "sections that fit",
            {"data__size": 30},
            "data.size 30 is not a multiple of the .*factor 4",
        ),
        ("model", {"model__patch": 3}, "model.patch 3 does not divide model.latent_size 8"),
        ("model", {"model__remat": "all"}, "model.remat is 'all'"),
        ("scan", {"model__scan": "pallas_triton"}, "'pallas_triton' cannot run here .*choose"),
        ("start", {"train__init_from": "nowhere"}, "nowhere is not a run folder"),
        ("flow", {"flow__drop": 1.5}, "flow.drop is 1.5"),
        ("samples", {"samples__masks": 0}, "^samples.masks is 0: set 1 or more"),
        ("samples", {"samples__steps": 0}, "^samples.steps is 0: use at least 1"),
        ("samples", {"samples__solver": "rk4"}, "^samples.solver 'rk4' is unknown: use one of"),
        ("samples", {"samples__guidance": -1.0}, "^samples.guidance is -1.0: use 0 or more"),
        ("hook", {"evaluation__hook": "no_such:thing"}, "hook 'no_such:thing' cannot be im"),
        ("hook", {"evaluation__hook": "json:__name__"}, "hook 'json:__name__' cannot be im"),
        ("hook", {"evaluation__hook": "json:no_such"}, "hook 'json:no_such' cannot be im"),
        ("sections", {"train__batch_size": 6}, "6 is not divisible by the 4 devices"),
        ("sections", {"train__accumulate": 2}, "4 is not divisible by the 4 devices in 2 parts"),
        ("sections", {"train__schedule": "cosin"}, "train.schedule is 'cosin'"),
        ("sections", {"train__skip_limit": 0}, "train.skip_limit is 0"),
        ("sections", {"train__warmup": -1}, "train.warmup is -1: set 0 or more"),
        ("sections", {"train__profile_at": -1}, "train.profile_at is -1"),
        ("sections", {"mesh__data": 3}, "mesh.data 3 x mesh.fsdp 1 does not cover the 4 devices"),
        ("sections", {"data__threads": -1}, "data.threads is -1: set 0 or more"),
        ("sections", {"data__flip": "false"}, "data.flip is 'false': choose one of exchange, pl"),
        ("sections", {"data__synthetic_count": -1}, "synthetic_count is -1: set 0 or more"),
        ("sections", {"checkpoint__every": 0}, "checkpoint.every is 0"),
        ("sections", {"checkpoint__keep_every": 3}, "keep_every is 3: choose a multiple of"),
        ("sections", {"seed": -1}, "seed is -1: use 0..4294967295"),
        ("sections", {"seed": 2**32}, "seed is 4294967296: use 0..4294967295"),
    ],
)
def test_wrong_settings_are_refused(check, overrides, message, tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        CHECKS[check](tiny_config(**overrides))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_may_change_changes_and_is_said(tiny_run, inputs_folder, tmp_path, capsys):
    shutil.copytree(tiny_run, tmp_path / "run")
    changes = dict(train__steps=7, train__learning_rate=1e-4, model__remat="block")
    train_tiny(inputs_folder, tmp_path / "run", **changes)
    said = capsys.readouterr().out
    assert "changed in this run: train.learning_rate from 0.015 to 0.0001" in said
    assert "changed in this run: model.remat from 'names' to 'block'" in said
    assert rows(tmp_path / "run")[-1]["learning_rate"] == pytest.approx(1e-4)


def test_a_run_from_before_auto_continues_in_the_type_of_its_copy(tiny_run, tiny_config, tmp_path):
    run = RunFolder(shutil.copytree(tiny_run, tmp_path / "run"))
    config = tiny_config()
    for before, allowed in (("", True), ("float32", False)):
        begun = run.config()
        begun.autoencoder.dtype = before
        run.config_file.write_text(to_json(begun))
        refused = [key for key, _, _ in fixed_changes(begun, config)]
        assert ("autoencoder.dtype" in refused) != allowed
        assert ("its own copy" in run.not_read("autoencoder.dtype", "auto")) == allowed


def test_a_run_from_before_flips_had_names_continues_with_the_same_flips(
    tiny_run, tiny_config, tmp_path
):
    run = RunFolder(shutil.copytree(tiny_run, tmp_path / "run"))
    for before, name in ((True, "exchange"), (False, "none")):
        begun = json.loads(run.config_file.read_text())
        begun["data"]["flip"] = before
        run.config_file.write_text(json.dumps(begun))
        assert run.config().data.flip == name
        assert not fixed_changes(run.config(), tiny_config(data__flip=name))
        with pytest.raises(InputError, match=f"has data.flip = '{name}', but this run has 'plain'"):
            run.check(tiny_config(data__flip="plain"))


def test_two_runs_in_one_folder_are_refused_and_a_crash_leaves_no_lock(
    tiny_run, inputs_folder, tmp_path
):
    shutil.copytree(tiny_run, tmp_path / "run")
    code = (
        "import sys, time; from pathlib import Path; from sisma_jax.common.files import lock\n"
        "with lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    held = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "run" / "lock"], stdout=subprocess.PIPE
    )
    try:
        assert held.stdout.readline() == b"held\n"
        before = RunFolder(tmp_path / "run").config_file.stat().st_mtime_ns
        with pytest.raises(InputError, match=rf"is in use by process {held.pid} on"):
            train_tiny(inputs_folder, tmp_path / "run", train__steps=7)
        assert RunFolder(tmp_path / "run").config_file.stat().st_mtime_ns == before
    finally:
        held.kill()
        held.wait()
        held.stdout.close()
    train_tiny(inputs_folder, tmp_path / "run", train__steps=7)
    assert rows(tmp_path / "run")[-1]["step"] == 7


def test_a_folder_that_cannot_be_written_is_said(inputs_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"run folder .* cannot be written \(Not a directory\)"):
        train_tiny(inputs_folder, tmp_path / "file" / "run")


def count_faces(synthesizer, source):
    """A metric hook."""
    item = source[0]
    faces = synthesizer(item["labels"][None], steps=1)
    return {"faces": len(faces), "held_out": len(source)}


def broken(synthesizer, source):
    raise FileNotFoundError(2, "No such file or directory", "inception.npz")


@pytest.mark.slow  # a program of its own for each of four callers
def test_a_hook_that_fails_loses_no_step_and_runs_when_training_continues(inputs_folder, tmp_path):
    run = tmp_path / "run"
    settings = dict(train__steps=3, evaluation__every=2, evaluation__items=4)
    with pytest.raises(RunError, match=r"evaluation.hook .*:broken' failed .*No such file"):
        hook = "tests.training.test_train:broken"
        train_tiny(inputs_folder, run, evaluation__hook=hook, **settings)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["2"]
    hook = "tests.training.test_train:count_faces"
    train_tiny(inputs_folder, run, evaluation__hook=hook, **settings)
    evaluated = [row for row in rows(run) if "test_loss" in row]
    assert [row["step"] for row in evaluated] == [2, 3]
    assert {"test_loss/0-0.2", "test_loss/0.8-1"} <= evaluated[0].keys()
    assert (evaluated[0]["faces"], evaluated[0]["held_out"]) == (1, 4)
    assert 0 < evaluated[0]["test_loss"] < 10


@pytest.mark.slow
def test_a_raw_set_that_has_changed_is_noticed(tiny_run, inputs_folder, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    shutil.copytree(inputs_folder / "data", tmp_path / "data")
    changed = dict(data__path=tmp_path / "data", train__steps=7)
    for path in tmp_path.glob("data/*/3.jpg"), tmp_path.glob("data/*/0/00003_*.png"):
        for file in path:
            file.unlink()
    with pytest.raises(InputError, match=r"was trained on other data .* than data.path"):
        train_tiny(inputs_folder, tmp_path / "run", **changed)
    # A run of before raw sets had a checksum goes on, and has one from then on.
    (tmp_path / "run/data.json").unlink()
    for said in tmp_path.glob("run/checkpoints/*/run/metadata"):
        said.write_text(json.dumps(json.loads(said.read_text()) | {"data": None}))
    train_tiny(inputs_folder, tmp_path / "run", **changed)
    assert (tmp_path / "run/data.json").exists() and rows(tmp_path / "run")[-1]["step"] == 7


def test_a_run_of_another_config_is_refused(tiny_run, inputs_folder):
    with pytest.raises(InputError, match=r"model.width = 16, but this run has 24"):
        train_tiny(inputs_folder, tiny_run, model__width=24)
    with pytest.raises(InputError, match=r"'model.widht' does not exist: did you mean"):
        call(train.main, *arguments(inputs_folder, tiny_run), "--config.model.widht=24")


@pytest.mark.slow
def test_a_run_older_than_an_option_continues_with_what_it_did(tiny_run, inputs_folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    config = json.loads((run / "config.json").read_text())
    for key in ("mixer", "modulation", "attention_head"):
        del config["model"][key]
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"which was always 'gate', but this run has 'shift'"):
        train_tiny(inputs_folder, run, model__modulation="shift")
    train_tiny(inputs_folder, run, train__steps=7)
    assert rows(run)[-1]["step"] == 7
