"""Shapes of other masks: repaired label maps, and CA2-SIS, whose masks need no repair."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sisma_jax import Synthesizer, sample
from sisma_jax.common.errors import InputError
from sisma_jax.data import synthetic
from sisma_jax.data.classes import CELEBAMASK, CLASSES, UNLABELLED
from sisma_jax.data.label_maps import write_label_map
from sisma_jax.models import SISMAConfig
from sisma_jax.models.autoencoder import load_autoencoder
from sisma_jax.models.ca2sis import CA2SIS
from sisma_jax.synthesis.editing import edit
from sisma_jax.synthesis.options import SamplingOptions
from sisma_jax.synthesis.shapes import transfer
from tests.synthesis.pictures import largest_difference
from tests.tiny_runs import SIZE, call, write_tiny_ca2sis

SKIN, NOSE, HAIR, HAT = (CLASSES.index(name) for name in ("skin", "nose", "hair", "hat"))


@pytest.fixture(scope="module")
def faces():
    """Three faces with hair, and their masks, of which the first has no hat."""
    pairs = [synthetic.face(0, index, SIZE) for index in range(24)]
    wanted = [pair for pair in pairs if (pair[1] == HAIR).any() and (pair[1] == NOSE).any()]
    first = next(pair for pair in wanted if not (pair[1] == HAT).any())
    pairs = [first, *(pair for pair in wanted if pair is not first)]
    return tuple(np.stack(column) for column in zip(*pairs[:3], strict=True))


@pytest.fixture(scope="module")
def ca2sis(tiny_ca2sis_run):
    return Synthesizer.load(tiny_ca2sis_run, batch_size=4)


@pytest.fixture(scope="module")
def repairing(inputs_folder):
    """A synthesizer of a model that draws from label maps, without weights."""
    config = SISMAConfig.tiny(latent_size=SIZE // 4, factor=4, patch=1)
    return Synthesizer(config, {}, load_autoencoder(inputs_folder / "autoencoder"), 4)


def mask(**boxes):
    """Background with rectangles, (rows, columns) by class, the later over the earlier."""
    labels = np.zeros((1, SIZE, SIZE), np.uint8)
    for name, (rows, columns) in boxes.items():
        labels[0, slice(*rows), slice(*columns)] = CLASSES.index(name)
    return labels


# --- Repaired label maps


def test_a_part_leaves_its_place_to_the_nearest_class_and_is_painted_in_its_new_shape(repairing):
    own = mask(skin=((4, 28), (4, 28)), nose=((10, 14), (10, 14)), hair=((0, 6), (0, 32)))
    own[0, 31] = UNLABELLED
    other = mask(nose=((16, 22), (16, 20)), hair=((0, 4), (0, 10)))
    expected = mask(skin=((4, 28), (4, 28)), nose=((16, 22), (16, 20)), hair=((0, 6), (0, 32)))
    expected[0, 31] = UNLABELLED
    np.testing.assert_array_equal(transfer(repairing, own, other, ["nose"]), expected)
    both = transfer(repairing, own, other, ["nose", "hair"])[0]
    np.testing.assert_array_equal(both == HAIR, other[0] == HAIR)
    assert (both[0:6, 14:20] == SKIN).all() and (both[0, 28:] == 0).all()
    np.testing.assert_array_equal(transfer(repairing, own, other), other)
    np.testing.assert_array_equal(transfer(repairing, own, own, ["nose", "hair"]), own)
    ring = mask(hair=((2, 30), (2, 30)), ear_r=((14, 16), (14, 16)))
    bald = transfer(repairing, ring, mask(hair=((0, 2), (0, 2))), ["hair"])
    np.testing.assert_array_equal(bald == CLASSES.index("ear_r"), ring == CLASSES.index("ear_r"))


def test_a_part_that_another_one_covered_still_gets_its_shape(repairing):
    own = mask(skin=((4, 28), (4, 28)), nose=((10, 14), (10, 14)), hair=((0, 6), (0, 32)))
    larger, smaller = mask(hair=((0, 20), (0, 32))), mask(nose=((22, 26), (10, 14)))
    covered = transfer(repairing, own, larger, ["hair"])
    assert not (covered == NOSE).any()
    shaped = transfer(repairing, covered, smaller, ["nose"], parts_of=own)
    np.testing.assert_array_equal(shaped == NOSE, smaller == NOSE)
    with pytest.raises(InputError, match="no mask to change has a pixel of nose"):
        transfer(repairing, covered, smaller, ["nose"])


def test_a_shape_between_two_lies_between_them_in_size_and_in_place(repairing):
    own = mask(skin=((2, 30), (2, 30)), nose=((4, 8), (4, 8)))
    other = mask(skin=((2, 30), (2, 30)), nose=((14, 24), (20, 26)))  # of 10 x 6 pixels
    for share, sides in ((0.0, (4, 4)), (0.5, (7, 5)), (1.0, (10, 6))):
        rows, columns = np.nonzero(transfer(repairing, own, other, ["nose"], share)[0] == NOSE)
        assert np.ptp(rows) + 1 == pytest.approx(sides[0], abs=1)
        assert np.ptp(columns) + 1 == pytest.approx(sides[1], abs=1)
        assert rows.mean() == pytest.approx((1 - share) * 5.5 + share * 18.5, abs=0.6)
        assert columns.mean() == pytest.approx((1 - share) * 5.5 + share * 22.5, abs=0.6)
    cap, long = mask(hair=((2, 8), (4, 28))), mask(hair=((2, 28), (4, 12)))
    halfway = transfer(repairing, cap, long, ["hair"], 0.5) == HAIR  # it stays where both have it
    assert halfway[0, 3:7, 5:11].all() and not halfway[0, :, 18:].any()
    cut = mask(hair=((0, 4), (0, 32))), mask(hair=((0, 12), (0, 32)))
    half = transfer(repairing, *cut, ["hair"], 0.5)  # it stays at the border that cuts it
    np.testing.assert_array_equal(half, mask(hair=((0, 8), (0, 32))))


def test_whole_masks_are_interpolated_without_gaps(repairing):
    own = mask(skin=((4, 20), (4, 20)), hat=((6, 14), (6, 14)))
    other = mask(skin=((4, 28), (4, 28)))
    own[0, 31] = other[0, 31] = UNLABELLED
    np.testing.assert_array_equal(transfer(repairing, own, other, share=0.0), own)
    np.testing.assert_array_equal(transfer(repairing, own, other, share=1.0), other)
    areas = [
        np.bincount(transfer(repairing, own, other, share=share).ravel(), minlength=256)
        for share in (0.0, 0.25, 0.5, 0.75)
    ]
    assert areas[0][HAT] > areas[1][HAT] > 0 == areas[2][HAT]
    assert areas[0][SKIN] < areas[1][SKIN] < areas[2][SKIN] < areas[3][SKIN]
    assert {area[UNLABELLED] for area in areas} == {SIZE}
    ring = mask(skin=((2, 30), (2, 14)), ear_r=((15, 17), (14, 16)))  # none grows to close a gap
    made = transfer(repairing, ring, mask(skin=((2, 30), (18, 30))), share=0.25)
    assert (made == CLASSES.index("ear_r")).sum() <= 4


def test_only_masks_that_have_the_part_change(repairing):
    own = np.concatenate([mask(skin=((4, 28), (4, 28))), mask(nose=((4, 8), (4, 8)))])
    other = mask(nose=((14, 24), (20, 26)))
    made = transfer(repairing, own, other, ["nose"])
    np.testing.assert_array_equal(made[0], own[0])
    np.testing.assert_array_equal(made[1:], other)
    assert transfer(repairing, own[:0], other, ["nose"]).shape == (0, SIZE, SIZE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(names=["hat"]), "^no mask to change has a pixel of hat, whose shape is asked for"),
        (dict(names=["hair"]), "^no other mask has a pixel of hair, whose shape is asked for"),
        (dict(names=["ear"]), "^'ear' is no class"),
        (dict(share=1.5), r"^share is 1\.5: use 0 \(the mask's own shape\) to 1"),
        (dict(share="half"), "^share is 'half': use a number from 0 to 1"),
        (dict(other=np.zeros((1, 16, 16), np.uint8)), r"^other masks are uint8 of shape \(1, 16"),
        (dict(other=np.zeros((3, SIZE, SIZE), np.uint8)), "^3 other masks do not fit 2 masks"),
    ],
)
def test_shapes_that_cannot_be_taken_are_refused_in_one_sentence(repairing, change, said):
    own = np.repeat(mask(nose=((4, 8), (4, 8)), hair=((0, 4), (0, 32))), 2, axis=0)
    arguments = dict(names=["nose"], other=mask(nose=((4, 9), (4, 8)), hat=((0, 4), (0, 9))))
    with pytest.raises(InputError, match=said):
        transfer(repairing, own, **arguments | change)


# --- CA2-SIS


@partial(jax.jit, static_argnames=("config", "method"))
def apply(config, params, *arguments, method):
    return CA2SIS(config).apply({"params": params}, *arguments, method=method)


@pytest.fixture(scope="module")
def codes(ca2sis, faces):
    """The mask codes of the faces."""
    return apply(ca2sis.config, ca2sis.params, jnp.asarray(faces[1]), method="mask_codes")


def drawn(synthesizer, codes, tokens):
    """What the model itself draws from mask codes and style tokens."""
    arguments = codes, jnp.asarray(tokens)
    images = apply(synthesizer.config, synthesizer.params, *arguments, method="draw")
    return np.rint(127.5 * (np.clip(images, -1, 1) + 1)).astype(np.uint8)


def test_ca2sis_draws_from_the_codes_of_both_masks_without_repair(ca2sis, faces, codes):
    images, labels = faces
    style = ca2sis.style(images, labels)
    hair, nose = HAIR - 1, NOSE - 1  # the background has no code
    following = [1, 2, 0]
    masks = transfer(ca2sis, labels, labels[following], ["hair"])
    swapped = codes.at[:, hair].set(codes[jnp.array(following), hair])
    made = ca2sis(masks, style=style)
    assert largest_difference(made, drawn(ca2sis, swapped, style.tokens)) <= 1
    assert largest_difference(made, ca2sis(labels, style=style)) > 3
    mixed = swapped.at[:, nose].set(0.75 * codes[:, nose] + 0.25 * codes[2:, nose])
    twice = transfer(ca2sis, masks, labels[2:], ["nose"], 0.25).channels()[..., 1:]
    np.testing.assert_allclose(
        apply(ca2sis.config, ca2sis.params, twice, method="mask_codes"), mixed, atol=1e-4
    )
    masks = transfer(ca2sis, labels, labels[following], share=0.5)
    halfway = 0.5 * (codes + codes[jnp.array(following)])
    made = ca2sis(masks, style=style)
    assert largest_difference(made, drawn(ca2sis, halfway, style.tokens)) <= 1
    repaired = transfer(ca2sis, labels, labels[following], ["hair"], repair=True)
    np.testing.assert_array_equal(repaired == HAIR, labels[following] == HAIR)


@pytest.mark.slow  # test_one_pass.py edits a photo, too
def test_a_photo_keeps_what_is_far_from_its_new_shapes(ca2sis, faces):
    images, labels = faces
    masks = transfer(ca2sis, labels[:1], labels[1:2], ["nose"])
    made = edit(ca2sis, images[:1], labels[:1], masks, margin=1)
    changed = (labels[0] == NOSE) ^ (labels[1] == NOSE)
    assert changed.any() and (made[0] != images[0])[changed].any()
    rows, columns = np.nonzero(changed)
    far = np.ones((SIZE, SIZE), bool)
    far[max(rows.min() - 1, 0) : rows.max() + 2, max(columns.min() - 1, 0) : columns.max() + 2] = 0
    np.testing.assert_array_equal(made[0][far], images[0][far])


def test_styles_of_ca2sis_are_swapped_and_interpolated_by_class(ca2sis, faces, codes):
    images, labels = faces
    own = ca2sis.style(images, labels)
    other = own[[1, 2, 0]]
    total = ca2sis(labels, style=other)
    assert largest_difference(total, drawn(ca2sis, codes, other.tokens)) <= 1
    tokens = own.tokens.copy()
    tokens[:, HAIR] = other.tokens[:, HAIR]
    partial_swap = ca2sis(labels, style=own.take(other, ["hair"]))
    assert largest_difference(partial_swap, drawn(ca2sis, codes, tokens)) <= 1
    tokens[:, HAIR] = 0.25 * own.tokens[:, HAIR] + 0.75 * other.tokens[:, HAIR]
    between = ca2sis(labels, style=own.blend(other, 0.75, ["hair"]))
    assert largest_difference(between, drawn(ca2sis, codes, tokens)) <= 1
    assert len({face.tobytes() for face in (*total, *partial_swap, *between)}) == 9


def test_the_second_stage_draws_what_no_reference_gives_from_noise(ca2sis, faces):
    images, labels = faces
    larger = jax.tree.map(lambda x: 4 * x, ca2sis.params["mapping"])  # so that faces differ
    params = ca2sis.params | {"mapping": larger}
    random = dataclasses.replace(ca2sis, params=params, draws_styles=True)
    first, again = (random(labels, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert largest_difference(first, random(labels, seed=4)) > 3
    hair = random.style(images, labels).only(["hair"])
    style = random.with_random_style(hair, labels, 3)
    shown = np.stack([(labels == k).any((1, 2)) for k in range(len(CELEBAMASK))], 1)
    np.testing.assert_array_equal(style.tokens[:, HAIR], hair.tokens[:, HAIR])
    rest = shown & (np.arange(len(CELEBAMASK)) != HAIR)
    drawn_tokens = random.with_random_style(None, labels, 3).tokens
    np.testing.assert_array_equal(style.tokens[rest], drawn_tokens[rest])
    assert not style.tokens[~shown].any()  # as in training
    # The parts of a mask of all shapes are those of both.
    masks = transfer(random, labels, labels[[1, 2, 0]], share=0.5)
    both = random.with_random_style(None, masks, 3)
    np.testing.assert_array_equal(both.tokens.any(2), shown | shown[[1, 2, 0]])
    with pytest.raises(InputError, match="draws faces in the style of a reference only: give one"):
        ca2sis(labels)


# --- The command


def test_a_model_of_one_pass_takes_its_own_number_of_steps_and_no_start(ca2sis, faces):
    images, labels = faces
    none = {"style": ca2sis.style(images[:1], labels[:1])[:0]}
    shape = (0, 2, *images.shape[1:])
    assert ca2sis.trajectory(labels[:0], SamplingOptions(), **none).shape == shape
    with pytest.raises(InputError, match=r"^steps is 25, but CA2-SIS draws in one pass"):
        ca2sis.latents(labels[:0], SamplingOptions(steps=25), **none)
    with pytest.raises(InputError, match=r"^noise is given, but CA2-SIS .*: leave it out$"):
        ca2sis.latents(labels[:0], SamplingOptions(), noise=np.zeros(3), **none)


@pytest.fixture
def files(faces, tmp_path):
    """face{i}.png and mask{i}.png."""
    for i, (image, labels) in enumerate(zip(*faces, strict=True)):
        Image.fromarray(image).save(tmp_path / f"face{i}.png")
        write_label_map(tmp_path / f"mask{i}.png", labels)
    return tmp_path


@pytest.mark.slow
def test_the_command_draws_shapes_of_other_masks(ca2sis, tiny_ca2sis_run, files, faces, capsys):
    images, labels = faces
    out, face, masks = files / "out", files / "face0.png", files / "mask0.png"
    call(
        sample.main, "--workdir", tiny_ca2sis_run, "--masks", masks, "--out", out,
        "--reference", face, masks, "--shape", "hair", files / "mask1.png",
        "--shape", "nose", files / "mask2.png", "--shape-share", 0, 0.5, 1, "--per-mask", 2,
    )  # fmt: skip
    assert (
        "nothing is drawn from noise, so the 2 faces per mask are equal" in capsys.readouterr().out
    )
    made = {path.stem: np.asarray(Image.open(path)) for path in out.iterdir()}
    assert made.keys() == {f"mask0_{k}_{i}" for k in range(2) for i in range(3)}
    style = ca2sis.style(images[:1], labels[:1])
    for i, share in enumerate((0, 0.5, 1.0)):
        shaped = transfer(ca2sis, labels[:1], labels[1:2], ["hair"], share)
        shaped = transfer(ca2sis, shaped, labels[2:], ["nose"], share)
        expected = ca2sis(shaped, style=style)[0]
        assert largest_difference(made[f"mask0_1_{i}"], expected) <= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--shape-share", 0.5), "^--shape-share goes with --shape"),
        (("--shape", "hair", "mask1.png", "--shape-share", 2), "^--shape-share is 2: use 0"),
        (("--shape", "hair", "face1.png", "mask1.png"), "^--shape has 3 words"),
        (("--shape", "ear", "mask1.png"), "^--shape ear .*mask1.png: 'ear' is no class"),
        (("--shape", "hat", "mask1.png"), "^--shape hat .*: no mask to change has a pixel of hat"),
        (("--shape", "hair", "wide.png"), "wide.png has 32x16 pixels: crop it to a square"),
        (
            ("--shape", "hair", "mask1.png", "--shape", "hair", "mask2.png"),
            "--shape has hair twice",
        ),
        (("--shape", "mask1.png", "--shape", "hair", "mask2.png"), "mask alone gives the shapes"),
        (("--steps", 5), "^--steps is 5, but CA2-SIS draws in one pass: the only choice is 1"),
        (("--guidance", 2), "^--guidance is 2.0, but CA2-SIS draws in one pass"),
        (("--solver", "heun"), "^--solver is 'heun', but CA2-SIS draws in one pass"),
        (("--style-guidance", 2), "^--style-guidance is 2.0, but CA2-SIS draws in one pass"),
        (("--times", 0, 1), r"^--times is \(0.0, 1.0\), but CA2-SIS draws in one pass: leave it"),
    ],
)
def test_options_that_make_no_sense_are_refused(tiny_ca2sis_run, files, options, said):
    write_label_map(files / "wide.png", np.zeros((16, 32), np.uint8))
    words = [files / word if str(word).endswith(".png") else word for word in options]
    face, masks = files / "face0.png", files / "mask0.png"
    with pytest.raises(InputError, match=said):
        call(
            sample.main, "--workdir", tiny_ca2sis_run, "--masks", masks, "--out", files / "out",
            "--reference", face, masks, *words,
        )  # fmt: skip
    assert not (files / "out").exists()


def test_an_export_says_which_stage_it_was_trained_in(inputs_folder, tmp_path, ca2sis):
    write_tiny_ca2sis(inputs_folder, tmp_path / "random", styles="random")
    assert Synthesizer.load(tmp_path / "random").draws_styles and not ca2sis.draws_styles
