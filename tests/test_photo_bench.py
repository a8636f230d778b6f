"""The benchmark of photographs: what it combines and refuses, and a whole command on tiny runs."""

import importlib
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from sisma_jax.common.errors import InputError
from sisma_jax.data.classes import CELEBAMASK
from sisma_jax.data.contact_sheet import GAP
from sisma_jax.data.label_maps import flip, write_label_map
from sisma_jax.evaluation.pictures import SourcePictures
from sisma_jax.synthesis.options import SamplingOptions
from sisma_jax.synthesis.synthesizer import Synthesizer
from tests.evaluation.parsers import write_parser
from tests.tiny_runs import SIZE, call

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("photo_bench")


@pytest.fixture
def measuring(bench):
    return importlib.import_module("photo_scores")


@pytest.fixture
def sheets(bench):
    return importlib.import_module("photo_sheet")


def trained(measuring, name, autoencoder="a", step=9, **changes):
    config = {"seed": 0, "data": {"path": "here"}, "train": {"steps": 9, "log_every": 5}}
    config["train"] |= changes.pop("train", {})
    return measuring.Trained(
        name=name,
        run=SimpleNamespace(path=name),
        config=ConfigDict(config | changes),
        synthesizer=SimpleNamespace(
            step=step, autoencoder=SimpleNamespace(checksum=lambda: autoencoder)
        ),
    )


def test_guidance_is_swept_at_one_number_of_steps_and_steps_at_some_guidances(measuring):
    pairs = measuring.combinations([4, 12, 25], [1, 1.5, 2], 12, [1, 1.5])
    assert pairs == [
        (12, 1), (12, 1.5), (12, 2), (4, 1), (25, 1), (4, 1.5), (25, 1.5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "at_steps", "at_guidance"),
    [
        ([], 12, [1, 1.25]),
        (["--steps=8", "--guidance=2"], 8, [2]),
        (["--at-steps=50", "--at-guidance=1,3"], 50, [1, 3]),
    ],
)
def test_the_sweeps_of_a_command_line(bench, monkeypatch, words, at_steps, at_guidance):
    monkeypatch.setattr(sys, "argv", ["photo_bench.py", "--workdirs", "run", *words])
    args = bench.parse_arguments()
    assert (args.at_steps, args.at_guidance) == (at_steps, at_guidance)


def test_steps_of_the_sweep_of_guidance_are_refused_by_their_own_name(bench, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["photo_bench.py", "--workdirs", "run", "--at-steps=0"])
    with pytest.raises(SystemExit):
        bench.parse_arguments()
    assert "--at-steps 0: give numbers above 0" in capsys.readouterr().err


def test_trainings_of_one_model_are_averaged(measuring):
    first, second = trained(measuring, "a"), trained(measuring, "b", seed=1, data={"path": "there"})
    others = [
        trained(measuring, "c", seed=2, train={"steps": 10}),
        trained(measuring, "d", seed=3, autoencoder="b"),
        trained(measuring, "e", seed=4, step=8),
    ]
    models = measuring.models_of([first, others[0], second, *others[1:]])
    assert models == [[first, second], *([one] for one in others)]
    with pytest.raises(InputError, match=r"a and f are one model with the same seed 0: give one"):
        measuring.models_of([first, trained(measuring, "f")])

    found = [{"miou": 0.5, "nearest": {"least": 1.0}, "seconds": 2.0}, {"miou": 0.7}]
    found[1]["nearest"] = {"least": 3.0}
    together = measuring.combined(found)
    assert together["miou"] == pytest.approx({"mean": 0.6, "deviation": np.sqrt(0.02)})
    assert together["nearest"]["least"] == pytest.approx({"mean": 2, "deviation": np.sqrt(2)})
    assert together["seconds"] == {"mean": 2.0}


def test_hours_are_those_of_the_logged_speeds(measuring, tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    assert measuring.training_hours(metrics, 8) is None
    rows = [
        {"step": 100, "images_per_second": 4.0},
        {"step": 100, "test_loss": 1.0},
        {"step": 400, "images_per_second": 2.0},
    ]
    metrics.write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert measuring.training_hours(metrics, 8) == pytest.approx((100 * 8 / 4 + 300 * 8 / 2) / 3600)


def test_seconds_are_those_of_the_same_program(measuring):
    case = {"solver": "euler", "steps": 4, "guidance": 1.5, "batch": 1, "seconds_per_image": 3.0}
    cases = [
        case | {"batch": 16, "seconds_per_image": 2.0},
        case,
        case | {"guidance": 1.0, "seconds_per_image": 1.0},
        case | {"steps": 8},
    ]
    of = lambda **options: measuring.seconds_per_image(cases, SamplingOptions(**options))
    assert of(steps=4, guidance=2)["seconds_per_image"] == {"batch 16": 2.0, "batch 1": 3.0}
    assert of(steps=4)["seconds_per_image"] == {"batch 1": 1.0}
    assert of(steps=4, solver="heun") == of(steps=5) == {}


def test_a_sheet_with_a_face_near_a_training_face_is_refused(sheets):
    unseen = np.array([0.2, 0.1, 0.3])
    sheets.refuse_near_faces(np.array([[0.1, 0.5], [0.15, 0.2]]), unseen)
    near = np.array([[0.11, 0.5], [0.4, 0.0999]])
    with pytest.raises(InputError, match=r"not written: face 2 of mask 2 .* 0\.0999 .* 0\.1000"):
        sheets.refuse_near_faces(near, unseen)
    with pytest.raises(InputError, match="a test face is the same as a training face"):
        sheets.refuse_near_faces(near, np.array([0.2, 0.0]))


class Split(list):
    ids = np.array([10, 11, 12])


@pytest.mark.parametrize("mirrored", [False, True])
def test_masks_of_the_data_set_are_refused_for_the_sheet(sheets, mirrored):
    masks = np.random.default_rng(0).integers(0, 19, (4, 8, 8), np.uint8)
    split = Split({"labels": mask} for mask in masks[:3])
    sheets.refuse_masks_of_data(masks[3:], [split], CELEBAMASK)
    theirs = flip(masks[1], CELEBAMASK) if mirrored else masks[1]
    with pytest.raises(InputError, match=r"mask 2 of --sheet-masks is that of face 11"):
        sheets.refuse_masks_of_data(np.stack([masks[3], theirs]), [split], CELEBAMASK)


def figures_of(out):
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    return write_parser(tmp_path_factory.mktemp("parsers") / "parser")


@pytest.mark.slow
def test_tiny_runs_are_measured_beside_real_faces_and_nothing_is_made_twice(
    bench, inputs_folder, tiny_run, parser, tmp_path, monkeypatch, capsys
):
    other = shutil.copytree(tiny_run, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"seed": 1}))
    out, sheet = tmp_path / "out.json", tmp_path / "sheet.png"
    command = [
        "--parser", parser, "--workdirs", tiny_run, other, "--steps=1,2", "--guidance=1,2",
        "--at-guidance=1", "--count=4", "--spread-masks=2", "--spread-samples=2",
        "--batch-size=4", "--no-speed", "--report", tmp_path / "report", "--out", out,
    ]  # fmt: skip
    on_sheet = ["--sheet", sheet, "--sheet-rows=2", "--sheet-columns=3"]
    call(bench.main, *command, *on_sheet)
    said, figures = capsys.readouterr().out, figures_of(out)
    assert {"command", "date", "hardware", "versions"} <= figures.keys()
    assert str(tmp_path) not in out.read_text() and str(inputs_folder) not in out.read_text()

    # One model, of two trainings with the same weights.
    (model,) = figures["models"].values()
    assert model["runs"] == ["tiny", "other"]
    assert [(x["settings"]["steps"], x["settings"]["guidance"]) for x in model["samplings"]] == [
        (2, 1), (2, 2), (1, 1),
    ]  # fmt: skip
    for sampling in model["samplings"]:
        scores = sampling["scores"]
        assert scores.keys() == {
            "fd_parser", "miou", "accuracy", "explained_variance", "coherence", "spread", "nearest",
        }  # fmt: skip
        assert scores["fd_parser"]["mean"] > 0 and scores["fd_parser"]["deviation"] == 0
        assert 0 < scores["nearest"]["least"]["mean"] <= scores["nearest"]["median"]["mean"]
    assert {"fd_parser", "ssim", "coherence"} <= model["reconstructions"].keys()
    real = figures["real"]
    assert "fd_parser" in real["training faces"] and "fd_parser" not in real["test faces"]
    assert real["test faces"]["explained_variance"] > 0.3
    run = figures["runs"]["tiny"]
    assert run["training_steps"] == 6 and run["parameters"] > 0 and run["training_hours"] > 0
    assert "### Scores" in said and "l_eye/r_eye" in said and "Unseen test faces: 1 %" in said

    # Procedural masks and noise: no picture of the data set is on the sheet.
    side = SIZE + GAP
    with Image.open(sheet) as image:
        assert image.size == (4 * side - GAP, 2 * side - GAP)

    # The same command again makes no face; a face that is a training face is not shown.
    def nothing(*args, **options):
        raise AssertionError("a face was made twice")

    with monkeypatch.context() as patched:
        patched.setattr(Synthesizer, "batches", nothing)
        call(bench.main, *command)
    assert figures_of(out)["models"] == figures["models"]

    shown = {}

    def copy(synthesizer, masks, columns, sampling):
        shown["faces"] = training[: len(masks) * columns].reshape(
            len(masks), columns, SIZE, SIZE, 3
        )
        return shown["faces"]

    train = bench.open_split(str(inputs_folder / "data"), SIZE, "train", 12, fields=("image",))
    training = SourcePictures(train, 6).read(range(6))
    sheet.unlink()
    monkeypatch.setattr(bench, "sheet_faces", copy)
    with pytest.raises(InputError, match="--sheet is not written: face 1 of mask 1"):
        call(bench.main, *command, *on_sheet)
    assert shown and not sheet.exists()

    # A mask of the data set is refused before anything is made.
    labels = bench.open_split(str(inputs_folder / "data"), SIZE, "test", 12)[0]["labels"]
    (tmp_path / "masks").mkdir()
    write_label_map(tmp_path / "masks" / "one.png", labels)
    with pytest.raises(InputError, match=r"mask 1 of --sheet-masks is that of face 12"):
        call(bench.main, *command, *on_sheet, "--sheet-masks", tmp_path / "masks")


@pytest.mark.slow
def test_a_style_is_scored_as_the_faces_own_and_other_training_data_are_refused(
    bench, inputs_folder, tiny_style_run, parser, tmp_path
):
    out = tmp_path / "out.json"
    command = [
        "--parser", parser, "--workdirs", tiny_style_run, "--steps=1", "--guidance=1", "--count=4",
        "--spread-masks=1", "--spread-samples=2", "--batch-size=4", "--report",
        tmp_path / "report", "--out", out, "--no-speed",
    ]  # fmt: skip
    call(bench.main, *command)
    (model,) = figures_of(out)["models"].values()
    own = model["own_style"]
    assert own["settings"]["own_style"] and own["settings"]["steps"] == 1
    assert {"ssim", "miou", "fd_parser", "coherence", "nearest"} <= own["scores"].keys()
    assert "ssim" not in model["samplings"][0]["scores"]

    run = SimpleNamespace(path="run", data_file=tmp_path / "data.json")
    run.data_file.write_text(json.dumps({"checksum": "of another set"}))
    with pytest.raises(InputError, match="run was trained on other data"):
        bench.check_training_data(run, SimpleNamespace(checksum="of this set"))


@pytest.mark.slow
def test_what_a_model_cannot_do_is_left_out_with_a_note(
    bench, tiny_run, tiny_ca2sis_run, parser, tmp_path, capsys
):
    """A model that draws in one pass, in the style of references alone, and one that has no null
    mask are measured in what they can do."""
    unguided = shutil.copytree(tiny_run, tmp_path / "unguided")
    config = json.loads((unguided / "config.json").read_text())
    config["flow"]["drop"] = 0.0
    (unguided / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out.json"
    command = [
        "--parser", parser, "--workdirs", unguided, tiny_ca2sis_run, "--steps=1,2",
        "--guidance=1,2", "--at-guidance=1", "--count=4", "--spread-masks=1", "--spread-samples=2",
        "--batch-size=4", "--report", tmp_path / "report", "--out", out,
    ]  # fmt: skip
    call(bench.main, *command)
    said, models = capsys.readouterr().out, figures_of(out)["models"]
    note = r"note: unguided is not measured with euler 2, guidance 2: .* \(flow.drop is 0\)"
    assert len(re.findall(note, said)) == 1
    settings = [one["settings"] for one in models["unguided"]["samplings"]]
    assert [(one["steps"], one["guidance"]) for one in settings] == [(2, 1), (1, 1)]

    model = models[tiny_ca2sis_run.name]
    assert model["samplings"] == [] and "reconstructions" not in model
    assert model["own_style"]["settings"]["steps"] == 1
    scores = model["own_style"]["scores"]
    assert {"ssim", "miou", "nearest", "seconds_per_image"} <= scores.keys()
    assert f"| {tiny_ca2sis_run.name}, own style | 1 | 1 |" in said

    with pytest.raises(InputError, match=r"no mask was dropped .* \(flow.drop is 0\)"):
        call(bench.main, *command, "--guidance=2", "--at-guidance=2")
