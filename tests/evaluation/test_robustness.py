"""Noise in masks in a report: what is drawn, what it is scored by, and models side by side."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sisma_jax import evaluate
from sisma_jax.common.errors import InputError
from sisma_jax.data.classes import CELEBAMASK
from sisma_jax.data.mask_noise import MaskNoise
from sisma_jax.data.raw import RawFaces
from sisma_jax.evaluation import networks
from sisma_jax.metrics import confusion_matrix, mean_iou, pixel_accuracy
from sisma_jax.synthesis.synthesizer import Synthesizer
from tests.evaluation.parsers import write_parser
from tests.tiny_runs import SIZE, call, overridden

NOISE = "--mask-noise", "jitter,salt+jitter", "--noise-strengths", "0.5,1"


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    return write_parser(tmp_path_factory.mktemp("parsers") / "parser")


@pytest.fixture
def drawn(monkeypatch):
    """Label maps in synthesis' place: a face is its mask in the classes' colours."""
    maps = []

    def batches(self, labels, options, *, seed, style):
        for start in range(0, len(labels), self.batch_size):
            rows = labels[start : start + self.batch_size]
            maps.extend(rows)
            yield CELEBAMASK.shown[rows]

    monkeypatch.setattr(Synthesizer, "batches", batches)
    return maps


def evaluate_tiny(run, parser, out, *more, metrics="fd,miou,acc"):
    settings = [
        "--workdir", run, "--out", out, "--parser", parser, "--steps", 1, "--metrics", metrics,
    ]  # fmt: skip
    call(evaluate.main, *overridden(settings, more))
    return json.loads((out / "report.json").read_text())


def test_faces_of_noisy_masks_are_scored_by_the_clean_ones_in_curves_side_by_side(
    tiny_run, inputs_folder, parser, drawn, tmp_path
):
    out = tmp_path / "report"
    evaluate_tiny(tiny_run, parser, out, *NOISE)
    # Four samples of each mask are shown; strength 0 has the faces of the clean masks.
    assert len(drawn) == 4 * (4 + 2 * 2)
    with pytest.MonkeyPatch.context() as patch:
        # The second model has the same pictures, for which nothing is made or measured again.
        patch.setattr(Synthesizer, "batches", None)
        patch.setattr(MaskNoise, "__call__", None)
        patch.setattr("sisma_jax.evaluation.judges.Accumulator", None)
        report = evaluate_tiny(tiny_run, parser, out, *NOISE, "--name", "other")
    rows = {row["name"]: row for row in report["rows"] if row["kind"] == "noise"}
    who = "the masks themselves", "tiny, euler 1, guidance 1", "other, euler 1, guidance 1"
    assert rows.keys() == {
        f"{one}, {noise} {x}" for one in who for noise in ("jitter", "jitter+salt")
        for x in ("0", "0.5", "1")
    }  # fmt: skip

    test = RawFaces(inputs_folder / "data", SIZE, split="test", test_from=12)
    clean = np.stack([item["labels"] for item in test])
    noise = MaskNoise(("jitter", "salt"), 1.0)
    noisy = np.stack([noise(one, classes=19, seed=(0, k)) for k, one in enumerate(clean)])
    confusion = confusion_matrix(clean, noisy, 19)
    floor = rows["the masks themselves, jitter+salt 1"]["scores"]
    assert floor == {"miou": mean_iou(confusion), "accuracy": pixel_accuracy(confusion)}
    assert rows["the masks themselves, jitter 0"]["scores"] == {"miou": 1, "accuracy": 1}
    folder = next((out / "images").glob("euler1-g1-seed0-jitter+salt-1-*"))
    faces = [np.asarray(Image.open(folder / f"{name}_0.png")) for name in test.ids]
    np.testing.assert_array_equal(np.stack(faces), CELEBAMASK.shown[noisy])
    judge = networks.load_parser(parser)
    confusion = confusion_matrix(clean, np.asarray(judge.labels(np.stack(faces))), 19)
    scores = rows["tiny, euler 1, guidance 1, jitter+salt 1"]["scores"]
    assert scores.keys() == {"fd_parser", "miou", "accuracy"}
    assert scores["accuracy"] == pytest.approx(pixel_accuracy(confusion), abs=2e-3)
    rest = {row["name"]: row for row in report["rows"]}[who[1]]
    assert rows[f"{who[1]}, jitter 0"]["scores"] == rest["scores"]

    text = (out / "report.md").read_text()
    assert "### Noise in masks: jitter\n" in text and "### Noise in masks: jitter+salt\n" in text
    line = [f"{floor['miou']:.3f} |"]
    table = text[text.index("### Noise in masks: jitter+salt\n") :].split("\n\n")[1].splitlines()
    assert table[0] == "| faces | score | strength 0 | strength 0.5 | strength 1 |"
    assert [row.split(" | ")[0].strip("| ") for row in table[2:]] == [who[0]] * 2 + [
        one for one in sorted(who[1:]) for _ in range(3)
    ]
    assert table[2].endswith(line[0]) and "by discs" not in text and "flow field" in text
    scores_table = text[text.index("### Scores") :].split("\n\n")[1]
    assert "jitter" not in scores_table
    assert (out / "report.html").read_text().count("<svg") == 2
    assert len(list((out / "pictures").glob("mask_noise_*.svg"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask-noise", "fog"], "mask noise 'fog' is unknown: use some of jitter, morphology"),
        (["--mask-noise", "jitter+jitter"], r"'jitter\+jitter' has no kind, or one twice"),
        (["--mask-noise", "salt", "--noise-strengths", "0,2"], "strength of mask noise is 2: use"),
        (["--noise-strengths", "0.5"], "--noise-strengths goes with --mask-noise: add it, or"),
        (["--mask-noise", "salt", "--metrics", "ssim"], "--metrics has none of its scores: add"),
        (["--mask-noise", "salt", "--parser", "none"], "there is no face parser at none"),
    ],
)
def test_wrong_noise_is_refused_before_anything_is_written(
    tiny_run, parser, arguments, message, tmp_path
):
    with pytest.raises(InputError, match=message):
        evaluate_tiny(tiny_run, parser, tmp_path / "report", *arguments)
    assert not (tmp_path / "report").exists()


def test_noise_without_any_parser_or_without_a_model_is_refused(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "DEFAULT_PARSER", Path("nowhere"))
    out = "--out", tmp_path / "report"
    with pytest.raises(InputError, match=r"^--mask-noise needs a face parser\. mIoU, accuracy"):
        call(evaluate.main, "--workdir", tiny_run, *out, "--mask-noise", "salt")
    with pytest.raises(InputError, match="--mask-noise goes with --workdir, not with these images"):
        call(evaluate.main, "--images", tmp_path, "--data", "x", *out, "--mask-noise", "salt")
    assert not (tmp_path / "report").exists()
