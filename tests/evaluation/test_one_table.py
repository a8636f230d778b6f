"""What stands together in a report: several models, seeds and commands, and what stays of each."""

import dataclasses
import errno
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from sisma_jax import evaluate
from sisma_jax.common.errors import InputError, RunError
from sisma_jax.data.classes import CELEBAMASK
from sisma_jax.data.label_maps import write_label_map
from sisma_jax.data.thumbnails import shrunk
from sisma_jax.evaluation import evaluator
from sisma_jax.evaluation.generation import Sampling
from sisma_jax.evaluation.nearest import nearest, pictures_of
from sisma_jax.evaluation.pictures import SplitPictures
from sisma_jax.evaluation.plots import quality_plots
from sisma_jax.evaluation.report import ReportFolder
from sisma_jax.evaluation.scoring import Row
from sisma_jax.synthesis.options import SamplingOptions
from sisma_jax.synthesis.synthesizer import Synthesizer
from tests.datasets import TOY
from tests.evaluation.parsers import write_parser
from tests.evaluation.test_judges import Arrays
from tests.tiny_runs import SIZE, call, overridden


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    return write_parser(tmp_path_factory.mktemp("parsers") / "parser")


def run(workdir, parser, out, *more, metrics="miou,ssim"):
    settings = [
        "--workdir", workdir, "--out", out, "--parser", parser, "--steps", 1,
        *(["--metrics", metrics] if metrics else []),
    ]  # fmt: skip
    call(evaluate.main, *overridden(settings, more))
    return json.loads((out / "report.json").read_text())


@pytest.mark.slow  # three reports
def test_models_stand_beside_their_own_bounds(tiny_run, parser, tmp_path, capsys):
    # The same weights behind another scaling factor are another model.
    other = shutil.copytree(tiny_run, tmp_path / "other")
    config = other / "autoencoder/config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"scaling_factor": 3 * fields["scaling_factor"]}))
    run(tiny_run, parser, tmp_path / "report")
    found = run(other, parser, tmp_path / "report")
    rows = {row["name"]: row for row in found["rows"]}
    made = {f"{model}, euler 1, guidance 1" for model in ("tiny", "other")}
    assert rows.keys() == {"test faces", "autoencoder of tiny", "autoencoder of other"} | made
    assert rows["tiny, euler 1, guidance 1"]["key"] != rows["other, euler 1, guidance 1"]["key"]
    assert found["memorisation"].keys() == {"tiny", "other"}
    assert "replaces" not in capsys.readouterr().out
    run(other, parser, tmp_path / "report", "--name", "tiny")
    said = capsys.readouterr().out
    assert "note: 'tiny, euler 1, guidance 1' replaces a row of other pictures" in said


@pytest.mark.slow
def test_what_an_earlier_command_said_stays(tiny_run, parser, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "DEFAULT_METRICS", "fid,miou")
    first = run(tiny_run, parser, tmp_path / "report", metrics=None)
    assert first["missing"].keys() == {"fid"} and first["parser_quality"]["test_miou"] == 0.25
    second = run(tiny_run, parser, tmp_path / "report", "--metrics", "ssim")
    assert second["missing"] == first["missing"]
    assert second["parser_quality"] == first["parser_quality"]
    assert second["protocol"].items() >= first["protocol"].items()
    for picture in (tmp_path / "report/pictures").iterdir():
        picture.unlink()
    run(tiny_run, parser, tmp_path / "report", "--metrics", "ssim")
    assert "](pictures/nearest" not in (tmp_path / "report/report.md").read_text()


def test_speed_alone_makes_no_faces_and_adds_up(tiny_run, parser, tmp_path, monkeypatch):
    def measure_speed(synthesizer, *, steps, solvers, guidances):
        assert len(steps) == len(solvers) == 1
        case = {"solver": solvers[0], "steps": steps[0], "status": "measured"}
        return {"cases": [case | {"guidance": guidance} for guidance in guidances]}

    monkeypatch.setattr(evaluator, "measure_speed", measure_speed)
    monkeypatch.setattr(evaluator, "speed_tables", lambda found: [])
    monkeypatch.setattr(Synthesizer, "batches", None)
    speed = lambda *more: run(tiny_run, parser, tmp_path / "report", "--metrics", "speed", *more)
    assert not speed("--steps", "3,1")["rows"]
    (tmp_path / "report/report.html").unlink()
    cases = speed("--solver", "heun,euler")["speed"]["tiny"]["cases"]
    assert [(case["solver"], case["steps"], case["guidance"]) for case in cases] == [
        ("euler", 3, 1), ("euler", 3, 1.5), ("euler", 1, 1), ("euler", 1, 1.5),
        ("heun", 1, 1), ("heun", 1, 1.5),
    ]  # fmt: skip
    assert (tmp_path / "report/report.html").exists()
    assert not (tmp_path / "report/images").exists()


def test_a_full_disk_is_one_sentence_and_hides_no_other_error(
    tiny_run, parser, tmp_path, monkeypatch
):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    def broken(*_):
        raise InputError("the first error")

    monkeypatch.setattr(ReportFolder, "put", full)
    with pytest.raises(RunError, match=r"report cannot be written \(No space left on device\)"):
        run(tiny_run, parser, tmp_path / "report")
    monkeypatch.undo()
    monkeypatch.setattr(evaluator, "write_report", full)
    monkeypatch.setattr(evaluator, "score_bounds", broken)
    with pytest.raises(InputError, match="the first error"):
        run(tiny_run, parser, tmp_path / "report")


def test_two_commands_do_not_write_at_once(tmp_path):
    folder = ReportFolder(tmp_path / "report")
    with (
        folder.claim({"reference": "a"}),
        pytest.raises(InputError, match="is being written by process"),
        folder.claim({"reference": "a"}),
    ):
        pass
    with pytest.raises(InputError, match=r"share one reference, .* 'a' where .* has 'b'"):
        folder.claim({"reference": "b"}).__enter__()


def test_seeds_share_no_noise():
    masks, samples = 2000, 10
    first = [
        Sampling(options=SamplingOptions(), seed=seed).seed_of(0, sample)
        for seed in (*range(30), 2**32 - 1)
        for sample in range(samples)
    ]
    assert np.diff(sorted(first)).min() >= masks
    one = Sampling(options=SamplingOptions(), seed=7)
    assert one.seed_of(5, 2) == one.seed_of(0, 2) + 5


def test_the_description_of_a_sampling_is_that_of_earlier_reports():
    """Their rows, folders and digests are continued, so order and types of settings count, too."""
    options = SamplingOptions(steps=12, solver="heun", guidance=1.5)
    plain = Sampling(options=options, seed=3)
    settings = {"steps": 12, "solver": "heun", "guidance": 1.5, "seed": 3}
    assert str(plain.settings) == str(settings)
    assert (plain.name, plain.in_words) == ("heun12-g1.5-seed3", "heun 12, guidance 1.5, seed 3")
    options = dataclasses.replace(options, guidance=1, style_guidance=2)
    own = Sampling(options=options, seed=0, own_style=True)
    settings |= {"guidance": 1.0, "seed": 0, "own_style": True, "style_guidance": 2.0}
    assert str(own.settings) == str(settings)
    assert own.name == "heun12-g1-seed0-style-s2"
    assert own.in_words == "own style, heun 12, guidance 1, of the style 2"
    once = Sampling(options=SamplingOptions(steps=1), seed=3, own_style=True, one_pass=True)
    assert once.in_words == "own style, one pass, seed 3" and once.settings["steps"] == 1


def test_times_and_the_interval_of_guidance_are_in_the_description_of_a_sampling():
    options = SamplingOptions(steps=12, shift=3, guidance=2, guidance_interval=(0.1, 0.8))
    shifted = Sampling(options=options, seed=0)
    assert shifted.in_words == "euler 12, guidance 2, shift 3, guidance interval 0.1 0.8"
    assert shifted.name == "euler12-g2-seed0-shift-guidance-interval"
    assert shifted.settings["guidance_interval"] == [0.1, 0.8] and shifted.settings["shift"] == 3
    plain = Sampling(options=dataclasses.replace(options, guidance=1, shift=1), seed=0)
    assert plain.in_words == "euler 12, guidance 1", "the interval has no effect"
    rescaled = dataclasses.replace(options, shift=1, guidance_interval=(0, 1), guidance_rescale=0.7)
    rescaled = Sampling(options=rescaled, seed=0)
    assert rescaled.in_words == "euler 12, guidance 2, guidance rescale 0.7"
    assert rescaled.settings["guidance_rescale"] == 0.7
    timed = Sampling(options=SamplingOptions(times=[0, 0.25, 1]), seed=0)
    assert timed.in_words == "euler 2, guidance 1, times 0 0.25 1"


class Source:
    """Faces in memory, without a checksum as a raw folder has none."""

    checksum = None
    classes = CELEBAMASK

    def __init__(self, images):
        self.images, self.ids = images, range(len(images))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index], "labels": np.zeros((4, 4), np.uint8)}


def test_one_image_that_changes_makes_other_faces_of_a_raw_folder():
    images = np.zeros((300, 4, 4, 3), np.uint8)
    before = SplitPictures(Source(images), 200)
    images[201] = 1
    assert SplitPictures(Source(images), 200).key == before.key
    images[123, 0, 0, 0] = 1
    assert SplitPictures(Source(images), 200).key != before.key


def test_a_mirror_image_is_near():
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
    asked = np.stack([images[4, :, ::-1], images[1]])
    found = nearest(shrunk(asked), Arrays(images))
    assert found.index.tolist() == [4, 1] and found.mirrored.tolist() == [True, False]
    np.testing.assert_array_equal(found.distance, 0)
    np.testing.assert_array_equal(pictures_of(found, Arrays(images), range(2)), asked)


def row_of(model, steps, seed=0):
    return Row(
        name=f"{model} {steps}", kind="synthesis", count=4, key="", scores={"miou": steps / 9},
        settings={
            "model": model, "solver": "euler", "steps": steps, "guidance": 1.0, "seed": seed,
        },
    )  # fmt: skip


def test_plots_have_a_line_for_every_model_and_seed():
    (svg,) = quality_plots([row_of(model, steps) for model in "ab" for steps in (1, 2)]).values()
    assert "<!-- a, euler, guidance 1 -->" in svg and "<!-- b, euler, guidance 1 -->" in svg
    (svg,) = quality_plots([row_of("a", s, seed) for s in (1, 2) for seed in (0, 3)]).values()
    assert "<!-- euler, guidance 1 -->" in svg and "<!-- euler, guidance 1, seed 3 -->" in svg
    shifted = [row_of("a", steps) for steps in (1, 2)]
    shifted = [dataclasses.replace(x, settings=x.settings | {"shift": 3.0}) for x in shifted]
    (svg,) = quality_plots([*shifted, row_of("a", 1), row_of("a", 2)]).values()
    assert "<!-- euler, guidance 1, shift 3.0 -->" in svg and "<!-- euler, guidance 1 -->" in svg
    assert not quality_plots([row_of("a", 1), row_of("b", 1)])


def test_own_classes_of_plain_folders(parser, tmp_path, capsys):
    random = np.random.default_rng(0)
    for folder in ("a", "b", "masks"):
        (tmp_path / folder).mkdir()
    for name in "xy":
        for folder in "ab":
            image = random.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / folder / f"{name}.png")
        write_label_map(tmp_path / "masks" / f"{name}.png", np.full((SIZE, SIZE), 3, np.uint8))
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps(TOY))
    arguments = (
        "--images", tmp_path / "a", "--reference", tmp_path / "b", "--masks", tmp_path / "masks",
        "--classes", classes, "--out", tmp_path / "report",
    )  # fmt: skip
    with pytest.raises(InputError, match="has 19 classes, but the data has 4"):
        call(evaluate.main, *arguments, "--parser", parser)
    call(evaluate.main, *arguments, "--metrics", "ssim")
    found = json.loads((tmp_path / "report/report.json").read_text())
    assert found["rows"][0]["scores"].keys() == {"ssim", "psnr_db"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "5"], "--steps goes with --workdir"),
        (["--times", "0", "1"], "--times goes with --workdir"),
        (["--seed", 1], "--seed goes with --workdir"),
        (["--count", 5], "--count goes with --data"),
        (["--test-from", 5], "--test-from goes with --data"),
        (["--lpips-network", "vgg"], "--lpips-network goes with --workdir"),
        (["--metrics", "fd,speed"], "metric 'speed' needs a model"),
        (["--classes", "x.json"], "--classes goes with --masks"),
    ],
)
def test_pictures_have_no_options_of_models(arguments, message, tmp_path):
    with pytest.raises(InputError, match=message):
        call(
            evaluate.main, "--images", tmp_path, "--reference", tmp_path, "--out",
            tmp_path / "report", *arguments,
        )  # fmt: skip
    assert not (tmp_path / "report").exists()
