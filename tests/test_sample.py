"""The sample command: masks as files to faces as files."""

import numpy as np
import pytest
from PIL import Image

from sisma_jax import Synthesizer, sample
from sisma_jax.common import cli
from sisma_jax.common.errors import InputError
from sisma_jax.data.classes import CELEBAMASK, CLASSES
from sisma_jax.data.label_maps import colourise, read_label_map, write_label_map
from sisma_jax.synthesis import references
from tests.tiny_runs import call, overridden


@pytest.fixture
def masks(tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    labels = np.random.default_rng(0).integers(0, 19, (2, 32, 32)).astype(np.uint8)
    write_label_map(folder / "a.png", labels[0])
    Image.fromarray(colourise(labels[1])).save(folder / "b.png")
    return folder


def read(folder):
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.iterdir())}


def run(workdir, masks, out, *more):
    settings = "--workdir", workdir, "--masks", masks, "--out", out, "--steps", 2
    call(sample.main, *overridden(settings, more))
    return read(out)


def test_several_faces_per_mask_whatever_the_batch_size(tiny_run, masks, tmp_path):
    small = run(tiny_run, masks, tmp_path / "x", "--per-mask", 3, "--batch-size", 4)
    large = run(tiny_run, masks, tmp_path / "y", "--per-mask", 3, "--batch-size", 8)
    assert list(small) == [f"{name}_{k}.png" for name in "ab" for k in range(3)]
    for name, image in small.items():
        assert image.shape == (32, 32, 3)
        assert np.abs(image.astype(int) - large[name]).max() <= 1
    assert np.abs(small["a_0.png"].astype(int) - small["a_1.png"]).max() > 20


@pytest.mark.slow
def test_times_solver_and_interval_are_those_of_the_options(tiny_run, masks, tmp_path):
    made = run(
        tiny_run, masks, tmp_path / "x", "--solver", "ab2", "--shift", 3, "--guidance", 40,
        "--guidance-interval", 0.1, 0.8, "--guidance-rescale", 0.5, "--steps", 3,
    )  # fmt: skip
    synthesizer = Synthesizer.load(tiny_run)
    labels = sample.read_masks([masks / "a.png", masks / "b.png"], 32)
    options = {"solver": "ab2", "steps": 3, "shift": 3, "guidance": 40}
    faces = synthesizer(labels, **options, guidance_interval=(0.1, 0.8), guidance_rescale=0.5)
    assert np.abs(np.stack([*made.values()]).astype(int) - faces).max() <= 1
    assert np.abs(faces.astype(int) - synthesizer(labels, **options)).max() > 1


def test_colour_masks_mean_the_same_as_indexed_ones(tiny_run, masks, tmp_path):
    ids = tmp_path / "ids"
    ids.mkdir()
    for name in "ab":
        labels = sample.read_masks([masks / f"{name}.png"], 32)[0]
        write_label_map(ids / f"{name}.png", labels)
    first, second = run(tiny_run, masks, tmp_path / "x"), run(tiny_run, ids, tmp_path / "y")
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_masks_of_another_size_are_resized_with_a_note(tiny_run, masks, tmp_path, capsys):
    large = tmp_path / "large"
    large.mkdir()
    for name in "ab":
        labels = sample.read_masks([masks / f"{name}.png"], 32)[0]
        write_label_map(large / f"{name}.png", np.kron(labels, np.ones((3, 3), np.uint8)))
    first, second = run(tiny_run, masks, tmp_path / "x"), run(tiny_run, large, tmp_path / "y")
    assert "resized 2 masks of 96x96 pixels to 32x32" in capsys.readouterr().out
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_wrong_input_is_refused_and_nothing_is_written(tiny_run, masks, tmp_path):
    out = tmp_path / "out"
    (masks / "sub").mkdir()
    write_label_map(masks / "sub" / "a.png", np.zeros((32, 32), np.uint8))
    write_label_map(masks / "sub" / "wide.png", np.zeros((16, 32), np.uint8))
    for arguments, message in [
        ((tiny_run, masks / "none.png", out), "none.png does not exist"),
        ((tmp_path / "none", masks, out), "is not a run folder"),
        ((tiny_run, masks, tiny_run), "is not empty: name a new"),
        ((tiny_run, masks, out, "--per-mask", 0), "--per-mask is 0"),
        ((tiny_run, masks, out, "--batch-size", 0), "^--batch-size is 0: use at least 1"),
        ((tiny_run, masks, out, "--seed", -1), r"^--seed is -1: use 0\.\.4294967295$"),
        ((tiny_run, masks, out, "--guidance", -1), "^--guidance is -1"),
        ((tiny_run, masks, out, "--times", 0, 1), "^--steps is 2, but times are those of 1 steps"),
        (
            (tiny_run, masks, out, "--style-guidance", 2),
            r"^--style-guidance is 2\.0, but this model has no style conditioning: leave it at 1$",
        ),
        ((tiny_run, masks, out, "--shift", -1), "^--shift is -1.0: use more than 0"),
        (
            (tiny_run, masks, out, "--guidance-interval", 0.1, 0.8),
            "^--guidance-interval is 0.1 0.8, but there is no guidance: give --guidance, or leave",
        ),
        (
            (tiny_run, masks, out, "--guidance-rescale", 0.7),
            "^--guidance-rescale is 0.7, but there is no guidance: give --guidance",
        ),
        ((tiny_run, masks / "sub" / "wide.png", out), "has 32x16 pixels: crop it"),
    ]:
        with pytest.raises(InputError, match=message):
            run(*arguments)
        assert not out.exists()
    for arguments, message in [
        (("--steps", 0), "^--steps is 0"),
        (("--times", 0.2, 1), r"^--times begin at 0\.2, where z is no longer noise: begin at 0$"),
    ]:
        with pytest.raises(InputError, match=message):
            call(sample.main, "--workdir", tiny_run, "--masks", masks, "--out", out, *arguments)
    assert not out.exists()
    with pytest.raises(InputError, match="two masks are named 'a'"):
        run(tiny_run, masks / "a.png", out, "--masks", masks / "a.png", masks / "sub" / "a.png")


def test_what_cannot_be_is_refused_before_weights_are_read(
    tiny_run, tiny_style_run, tiny_ca2sis_run, masks, tmp_path, monkeypatch
):
    """A model of one pass has no guidance, and no advice leads to it."""
    monkeypatch.setattr(Synthesizer, "load", lambda *_, **__: pytest.fail("weights are read"))
    bare, hat = tmp_path / "bare.png", tmp_path / "hat.png"
    write_label_map(bare, np.zeros((32, 32), np.uint8))
    write_label_map(hat, np.full((32, 32), CLASSES.index("hat"), np.uint8))
    unlabelled = tmp_path / "unlabelled.png"
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save(unlabelled)
    pair = ("--reference", bare, bare)
    one_pass = "but CA2-SIS draws in one pass"
    for workdir, options, message in [
        (tiny_ca2sis_run, ("--guidance-rescale", 0.7), f"^--guidance-rescale is 0.7, {one_pass}"),
        (tiny_ca2sis_run, ("--guidance-interval", 0, 0.8), f"^--guidance-interval is .*{one_pass}"),
        (tiny_ca2sis_run, ("--guidance", 2), f"^--guidance is 2.0, {one_pass}"),
        (tiny_ca2sis_run, ("--steps", 25), f"^--steps is 25, {one_pass}"),
        (tiny_ca2sis_run, ("--shift", 3), f"^--shift is 3.0, {one_pass}"),
        (tiny_ca2sis_run, (), "^this CA2-SIS draws faces in the style of a reference only"),
        (tiny_run, pair, "^this model has no style conditioning"),
        (tiny_style_run, (*pair, "--towards", hat, bare, "--interpolate", 1), "^--interpolate is"),
        (
            tiny_style_run,
            (*pair, "--towards", bare, hat, "--interpolate-classes", "hat"),
            "^--interpolate-classes hat: the faces of --reference and --towards have none of ",
        ),
        (tiny_style_run, ("--part", "hair", bare), "^--part hair has 1 file: give the face and"),
        (tiny_style_run, ("--part", "hair,hair", bare, bare), "^--part has hair twice: take its "),
        (
            tiny_style_run,
            ("--part", "hair,hat", bare, bare, "--part", "hair", hat, hat),
            "^--part has hair twice: take its style from one face$",
        ),
        (
            tiny_style_run,
            ("--reference", bare, unlabelled),
            r"^--reference: mask .* holds 255 \(unlabelled\) .*--allow-unlabelled",
        ),
        (tiny_style_run, ("--shape", "hair"), "^--shape hair has classes, but no mask: write"),
        (tiny_style_run, ("--shape", "hiar"), "^--shape hiar: hiar does not exist: check the path"),
        (tiny_style_run, (*pair, "--towards", bare, hat), "^the faces of .* in common, so .*other"),
    ]:
        with pytest.raises(InputError, match=message):
            call(
                sample.main, "--workdir", workdir, "--masks", masks, "--out", tmp_path / "out",
                *options,
            )  # fmt: skip


def test_classes_that_one_of_two_faces_lacks_are_not_interpolated(tmp_path, capsys):
    labels = np.zeros((2, 4, 4), np.uint8)
    labels[:, 0] = CLASSES.index("hair")
    labels[0, 1] = CLASSES.index("hat")
    for i, one in enumerate(labels):
        write_label_map(tmp_path / f"{i}.png", one)
    first, second = ([str(tmp_path / f"{i}.png")] * 2 for i in range(2))
    parser = cli.Parser("sisma_jax.sample", "", "")
    references.add_arguments(parser)
    words = ["--reference", *first, "--towards", *second, "--interpolate-classes", "hat,hair"]
    args = parser.parse_args(words)
    asked = references.references_from(args, 4, CELEBAMASK, read_label_map)
    assert asked.interpolated == ("hat", "hair") and asked.count == 5
    said = "note: the face of --towards shows no hat, whose style is not interpolated\n"
    assert capsys.readouterr().out == said
