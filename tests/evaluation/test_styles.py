"""What a report says of styles: known answers of its measures, and the command on a tiny run."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from sisma_jax import evaluate
from sisma_jax.common.errors import InputError
from sisma_jax.data.classes import CELEBAMASK, CLASSES
from sisma_jax.data.contact_sheet import GAP
from sisma_jax.data.raw import RawFaces
from sisma_jax.evaluation.styles import Show, style_tables
from sisma_jax.metrics.regions import class_colours, colour_errors, far_from, rms_change
from sisma_jax.synthesis.styles import Style
from sisma_jax.synthesis.synthesizer import Synthesizer
from tests.tiny_runs import SIZE, call


def test_class_colours_are_means_over_a_classes_own_pixels():
    images = np.zeros((1, 2, 2, 3), np.uint8)
    images[0, 0] = [[10, 0, 0], [30, 0, 8]]
    labels = np.array([[[1, 1], [255, 2]]], np.uint8)
    colours = class_colours(images, labels, 4)
    np.testing.assert_array_equal(colours[0, 1], [20, 0, 4])
    np.testing.assert_array_equal(colours[0, 2], [0, 0, 0])
    assert np.isnan(colours[0, [0, 3]]).all()


def test_colour_errors_are_of_pictures_that_show_the_class_on_both_sides():
    nothing = [np.nan] * 3
    colours = np.array([[[3, 0, 0], nothing], [[9, 0, 0], nothing]], float)
    wanted = np.array([[[0, 0, 0], [1, 1, 1]], [nothing, [1, 1, 1]]], float)
    errors = colour_errors(colours, wanted)
    np.testing.assert_allclose(errors[0], 3**0.5)
    assert np.isnan(errors[1])


def test_far_pixels_lie_more_than_the_margin_away():
    changed = np.zeros((1, 7, 7), bool)
    changed[0, 3, 3] = True
    far = far_from(changed, 2)
    assert not far[0, 1:6, 1:6].any() and far.sum() == 49 - 25


def test_a_change_is_its_root_mean_square_where_it_is_asked_for():
    a, b = np.zeros((2, 1, 1, 2, 3), np.uint8)
    b[0, 0, 0] = 10
    assert rms_change(a, b, np.array([[[True, False]]])) == 10
    assert rms_change(a, b, np.array([[[False, True]]])) == 0


@pytest.fixture(scope="module")
def report(tiny_style_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("styled") / "report"
    for _ in range(2):  # the second adds nothing
        call(
            evaluate.main, "--workdir", tiny_style_run, "--out", out, "--metrics", "ssim,style",
            "--steps", 1, "--count", 3, "--style-guidance", 1.5,
        )  # fmt: skip
    return out, json.loads((out / "report.json").read_text())


@pytest.mark.slow
def test_a_report_has_the_reconstruction_in_the_own_style(report):
    rows = {row["name"]: row for row in report[1]["rows"]}
    own = rows["tiny-style, own style, euler 1, guidance 1, of the style 1.5"]
    assert own["kind"] == "reconstruction" and own["settings"]["own_style"]
    assert own["scores"].keys() == {"ssim", "psnr_db"}
    made = {path.name.rpartition("-")[0]: path for path in (report[0] / "images").iterdir()}
    assert made.keys() == {"euler1-g1-seed0", "euler1-g1-seed0-style-s1.5"}
    assert len(list(made["euler1-g1-seed0-style-s1.5"].glob("*.png"))) == 3


@pytest.mark.slow
def test_faces_in_their_own_style_follow_it_by_its_guidance(report, tiny_style_run, inputs_folder):
    files = sorted((report[0] / "images").glob("*-style-s1.5-*/*.png"))
    test = RawFaces(inputs_folder / "data", SIZE, split="test", test_from=12)
    images, labels = (np.stack([test[i][name] for i in range(3)]) for name in ("image", "labels"))
    synthesizer = Synthesizer.load(tiny_style_run)
    in_style = partial(
        synthesizer, labels, seed=[0, 1, 2], steps=1, style=synthesizer.style(images, labels)
    )
    plain, expected = in_style(), in_style(style_guidance=1.5)
    assert np.abs(plain.astype(int) - expected).max() > 5
    found = np.stack([np.asarray(Image.open(file)) for file in files])
    assert np.abs(found.astype(int) - expected).max() <= 1

    measured = report[1]["styles"]["tiny-style"]["colour_errors"]["own style"]

    def farthest(faces):
        """How much the colour errors of faces differ from those measured, at most."""
        colours = (class_colours(x, labels, len(CLASSES)) for x in (faces, images))
        return np.nanmax(np.abs(colour_errors(*colours) - np.array([*measured.values()], float)))

    assert farthest(found) < 0.5 < farthest(plain)


def test_guidance_by_the_style_is_refused_where_no_face_has_one(tiny_run, tmp_path):
    said = r"--style-guidance is 1\.5, but no face has a reference style"
    with pytest.raises(InputError, match=said):
        call(
            evaluate.main, "--workdir", tiny_run, "--out", tmp_path / "out",
            "--style-guidance", 1.5,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_report_measures_colours_and_locality_by_class(report):
    found = report[1]["styles"]["tiny-style"]
    assert found["faces"] == 3 and found["margin"] == 8
    for way in ("own style", "other style", "noise", "autoencoder"):
        errors = found["colour_errors"][way]
        assert errors.keys() == set(CLASSES) and errors["skin"] >= 0
    assert found["colour_faces"]["skin"] == 3
    for line in found["locality"].values():
        assert 1 <= line["faces"] <= 3 and line["inside"] >= 0
    assert {"background", "skin"} <= found["locality"].keys()


@pytest.mark.slow
def test_a_report_shows_each_thing_one_can_do(report):
    out, _ = report
    text = (out / "report.md").read_text()
    for what in ("reconstruction", "total swap", "partial swap", "parts of several",
                 "interpolation from", "interpolation of"):  # fmt: skip
        assert f"Style, {what}" in text
    assert "colour error by class" in text and "what changes when one class" in text


def test_a_model_of_references_alone_is_scored_in_its_own_style(tiny_ca2sis_run, tmp_path):
    arguments = "--workdir", tiny_ca2sis_run, "--out", tmp_path / "report", "--count", 3
    with pytest.raises(InputError, match=r"CA2-SIS in .* of references only: add style to --metr"):
        call(evaluate.main, *arguments, "--metrics", "ssim")
    for option, value in (("guidance-rescale", 0.7), ("style-guidance", 2.0), ("guidance", 1.5)):
        with pytest.raises(InputError, match=f"^--{option} is {value}, but CA2-SIS draws in one"):
            call(evaluate.main, *arguments, f"--{option}", value)
    assert not (tmp_path / "report").exists()
    call(evaluate.main, *arguments, "--metrics", "ssim,style")
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert [row["name"] for row in report["rows"] if "ssim" in row["scores"]] == [
        "tiny-ca2sis, own style, one pass"
    ]
    errors = report["styles"]["tiny-ca2sis"]["colour_errors"]
    assert errors.keys() == {"own style", "other style"}  # neither noise nor an autoencoder
    text = (tmp_path / "report/report.md").read_text()
    assert "a face in its style" in text and "parts of several" not in text


def test_tables_leave_out_what_nobody_shows():
    line = {"faces": 2, "inside": 5.0, "near": 1.0, "beyond": None, "colour_before": 9.0,
            "colour_after": 2.0}  # fmt: skip
    errors = {"hair": 1.0, "hat": None}
    ways = dict.fromkeys(("own style", "other style", "noise", "autoencoder"), errors)
    found = {"faces": 2, "sampling": "euler 1", "margin": 8, "colour_errors": ways,
             "colour_faces": {"hair": 2, "hat": 0}, "locality": {"hair": line}}  # fmt: skip
    colours, locality = style_tables(found)
    assert [row[0] for row in colours.rows] == ["hair"]
    assert list(locality.rows[0]) == ["hair", 2, "5.0", "1.0", None, "9.0", "2.0"]


@pytest.fixture
def show():
    """Four faces that are flat in the colour of their number, and so are their styles.

    What is made has (mask, hair's style, the others' style, sample) as its channels.
    """
    size, count, k = 4, 4, len(CLASSES)
    hair = CLASSES.index("hair")
    labels = np.full((count, size, size), CLASSES.index("background"), np.uint8)
    labels[:, :1], labels[:, 1] = hair, CLASSES.index("skin")
    images = np.stack([np.full((size, size, 3), 100 + i, np.uint8) for i in range(count)])
    tokens = np.arange(count, dtype=np.float32)[:, None, None].repeat(k, 1)
    none = np.full((k, 1), 9, np.float32)
    style = Style(tokens, np.ones((count, k), bool), none, CELEBAMASK)

    def make(rows, style, sample=0):
        background = CLASSES.index("background")
        of = np.full((len(rows), k), 9) if style is None else 10 * style.tokens[..., 0]
        return np.stack(
            [
                np.full((size, size, 3), (10 * row + sample, one[hair], one[background]), np.uint8)
                for row, one in zip(rows, of, strict=True)
            ]
        )

    made = {"own style": make(range(count), style), "noise": make(range(count), None)}
    return Show(make, style, images, labels, made)


def cells(sheet):
    """The colour of each picture on a sheet of pictures of four pixels."""
    return sheet[:: 4 + GAP, :: 4 + GAP].tolist()


def test_sheets_show_what_their_captions_say(show):
    total = cells(show.total())
    for row in range(4):
        assert total[0][1 + row] == [100 + row] * 3
        for column in range(4):
            assert total[1 + row][1 + column] == [10 * row, 10 * column, 10 * column]
    reconstruction = cells(show.reconstruction())
    assert reconstruction[2][1:] == [
        [102] * 3, [20, 20, 20], [21, 20, 20], [20, 9, 9], [21, 9, 9],
    ]  # fmt: skip
    assert show.parts == ["background", "skin", "hair"]
    partial = cells(show.partial())
    assert partial[3] == [
        [30, 30, 30], [100] * 3, [30, 30, 0], [30, 30, 30], [30, 0, 30],
    ]  # fmt: skip
    between = cells(show.between(["hair"]))
    assert between[1][1:-1] == [[10, hair, 10] for hair in (10, 12, 15, 17, 20)]
    assert between[1][0] == [101] * 3 and between[1][-1] == [102] * 3
    several = cells(show.several())
    assert several[0][1:] == [[101] * 3, [102] * 3, [0, 90, 10], [1, 90, 10], [2, 90, 10]]
