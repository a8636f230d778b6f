"""Styles of references: what is made of them, and what a model with a style does with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sisma_jax import Synthesizer, sample
from sisma_jax.common.errors import InputError
from sisma_jax.data import synthetic
from sisma_jax.data.classes import CELEBAMASK, CLASSES
from sisma_jax.data.label_maps import write_label_map
from sisma_jax.synthesis.options import SamplingOptions
from sisma_jax.synthesis.programs import noise_keys, synthesize_latents
from sisma_jax.synthesis.styles import Style
from sisma_jax.training.objective import FlowConfig, draw, losses
from tests.tiny_runs import SIZE, call, overridden

HAIR, HAT = CLASSES.index("hair"), CLASSES.index("hat")


@pytest.fixture(scope="module")
def faces():
    pairs = [synthetic.face(0, index, SIZE) for index in range(5)]
    return tuple(np.stack(column) for column in zip(*pairs, strict=True))


@pytest.fixture(scope="module")
def styled(tiny_style_run):
    return Synthesizer.load(tiny_style_run, batch_size=4)


def style(*values, given=None):
    """Styles whose tokens are their value; absent ones are -1."""
    tokens = np.full((len(values), 19, 2), np.array(values)[:, None, None], np.float32)
    given = np.ones((len(values), 19), bool) if given is None else np.array(given)
    tokens = np.where(given[..., None], tokens, np.float32(-1))
    return Style(tokens, given, np.full((19, 2), -1, np.float32), CELEBAMASK)


def test_parts_are_taken_left_out_and_kept():
    a, b = style(0.0, 0.5), style(1.0)
    swapped = a.take(b, ["hair", "hat"])
    assert (swapped.tokens[:, [HAIR, HAT]] == 1).all()
    assert (swapped.tokens[0, :HAIR] == 0).all() and (swapped.tokens[1, :HAIR] == 0.5).all()
    left = a.without(["hair"])
    assert (left.tokens[:, HAIR] == -1).all() and left.missing(1) == ["hair"]
    np.testing.assert_array_equal(left.only(["hat"]).given.sum(1), [1, 1])
    assert (a.tokens[:, HAIR] == [[0, 0], [0.5, 0.5]]).all()


@pytest.mark.parametrize("one", [1, np.int64(1), np.array(1), "jax", -2])
def test_one_of_several_styles_is_a_style_whatever_kind_of_number_names_it(one):
    several = style(0.0, 0.5, 1.0)
    one = jnp.int32(1) if isinstance(one, str) else one  # not while collecting: it starts JAX
    np.testing.assert_array_equal(several[one].tokens, several.tokens[1:2])
    np.testing.assert_array_equal(several[one].given, several.given[1:2])
    for rows in (slice(1, 2), [1], (1,), np.array([False, True, False])):
        np.testing.assert_array_equal(several[rows].tokens, several.tokens[1:2])
    assert len(several[[]]) == 0 and len(several[0, 1]) == 2


def test_between_two_styles_lies_a_straight_line_of_what_both_show():
    given = np.ones((1, 19), bool)
    given[0, HAT] = False
    a, b = style(0.0, given=given), style(1.0)
    half = a.blend(b, 0.25)
    assert (half.tokens[0, HAIR] == 0.25).all() and (half.tokens[0, HAT] == -1).all()
    assert half.missing() == ["hat"]
    only = a.blend(b, 1.0, ["hair"])
    assert (only.tokens[0, HAIR] == 1).all() and (only.tokens[0, 1] == 0).all()
    np.testing.assert_array_equal(b.blend(b, 0.5).tokens, b.tokens)
    assert len(a.blend(style(1.0, 1.0), 0.5)) == 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda a: a.take(a, ["ear"]), "'ear' is no class: use some of background, skin"),
        (lambda a: a.blend(a, 1.5), "a share of 1.5 is not between two styles: use 0 to 1"),
        (lambda a: style(1.0, 2.0).take(style(1.0, 2.0, 3.0), []), "2 styles and 3 do not go"),
        (
            lambda a: a.take(dataclasses.replace(a, absent=a.absent + 1), ["hair"]),
            "different weights",
        ),
    ],
)
def test_styles_that_do_not_go_together_are_refused(wrong, said):
    with pytest.raises(InputError, match=said):
        wrong(style(0.0))


def test_a_style_is_of_a_face_whatever_comes_with_it(styled, faces):
    images, labels = faces
    every, one = styled.style(images, labels), styled.style(images[3:4], labels[3:4])
    np.testing.assert_allclose(every.tokens[3], one.tokens[0], atol=1e-5)
    shown = [name for k, name in enumerate(CLASSES) if (labels[3] == k).any()]
    assert set(CLASSES) - set(shown) == set(one.missing())
    absent = ~one.given[0]
    np.testing.assert_allclose(one.tokens[0, absent], one.absent[absent], atol=1e-6)
    assert len(styled.style(images[:0], labels[:0])) == 0


def test_no_style_is_the_style_of_no_reference(styled, faces):
    labels = faces[1][:2]
    plain = styled(labels, steps=2)
    given = styled(labels, steps=2, style=styled.no_style())
    assert np.abs(plain.astype(int) - given).max() <= 1
    assert styled.no_style().missing() == list(CLASSES)


def test_faces_take_the_styles_they_are_given_one_by_one(styled, faces):
    images, labels = faces
    own = styled.style(images, labels)
    made = styled(labels, steps=2, style=own)  # more than a batch
    assert np.abs(made.astype(int) - styled(labels, steps=2)).max() > 3
    alone = styled(labels[4:], seed=[0], steps=2, style=own[4])
    again = styled(labels[4:], seed=[0], steps=2, style=own[[4]])
    np.testing.assert_array_equal(alone, again)
    same = styled(labels, steps=2, style=own[0])
    assert np.abs(made[0].astype(int) - same[0]).max() <= 1
    assert np.abs(made[1].astype(int) - same[1]).max() > 1


@pytest.mark.slow
def test_guidance_by_the_style_is_a_line_through_with_and_without(styled, faces):
    """In one Euler step the latents are linear in the velocity, before the decoder."""
    images, labels = faces
    own = jnp.asarray(styled.style(images[:2], labels[:2]).tokens)
    keys = noise_keys(0, 0, 2)

    def latents(style, guidance=1.0, style_guidance=1.0, masks=labels[:2]):
        options = SamplingOptions(steps=1, guidance=guidance, style_guidance=style_guidance)
        masks = jnp.asarray(masks)
        return np.asarray(
            synthesize_latents(styled.config, styled.params, keys, masks, options, style)
        )

    with_style, without = latents(own), latents(None)
    np.testing.assert_allclose(
        latents(own, 1.0, 1.5), without + 1.5 * (with_style - without), atol=1e-4
    )
    null = latents(None, masks=np.full_like(labels[:2], 255))
    np.testing.assert_allclose(latents(None, 2.0), null + 2.0 * (without - null), atol=1e-3)
    null = 2 * without - latents(None, 2.0)
    np.testing.assert_allclose(
        latents(own, 2.0, 1.5),
        null + 2.0 * (without + 1.5 * (with_style - without) - null),
        atol=1e-4,
    )


def test_what_does_not_fit_the_model_is_refused_in_one_sentence(styled, faces, tiny_run):
    images, labels = faces
    own = styled.style(images, labels)
    other = dataclasses.replace(own, absent=own.absent + 1)
    plain = Synthesizer.load(tiny_run)
    for wrong, said in [
        (lambda: styled.style(images[:, :16], labels), r"references are uint8 of shape \(5, 16"),
        (lambda: styled.style(images, labels[:, :16]), "labels are uint8 of shape"),
        (lambda: styled(labels[:2], style=own), "5 styles do not fit 2 label maps"),
        (lambda: styled(labels, style=other), "the style is of another model"),
        (lambda: styled(labels, style_guidance=2.0), "but there is no style to follow"),
        (lambda: styled(labels, style=own, style_guidance=-1.0), "style guidance is -1.0: use 0"),
        (lambda: plain.style(images, labels), "this model has no style conditioning"),
        (lambda: plain(labels, style=own), "this model has no style conditioning"),
    ]:
        with pytest.raises(InputError, match=said):
            wrong()


def test_styles_are_dropped_for_whole_faces_and_for_classes(styled):
    batch = {"labels": jnp.zeros((4000, 2, 2), jnp.uint8)}
    config = FlowConfig(sampling="uniform", drop=0.0, style_drop=0.5, style_class_drop=0.1)
    drawn = draw(jax.random.key(0), batch, config=styled.config, flow_config=config)
    gone = np.asarray(drawn["styleless"])
    assert gone.shape == (4000, 19)
    assert gone.all(1).mean() == pytest.approx(0.5, abs=0.03)
    assert gone[~gone.all(1)].mean() == pytest.approx(0.1, abs=0.01)


def test_the_loss_reaches_the_style_of_the_classes_that_are_not_dropped(styled, faces):
    images, labels = (x[:2] for x in faces)
    noise = np.random.default_rng(0).normal(size=(3, 2, 8, 8, 4)).astype(np.float32)
    batch = {"image": images, "labels": labels, "noise": noise[0], "time": np.full(2, 0.5, "f"),
             "dropped": np.zeros(2, bool), "styleless": np.ones((2, 19), bool)}  # fmt: skip
    batch["styleless"][1, CLASSES.index("skin")] = False

    @jax.jit
    @jax.grad
    def gradient(params, batch):
        of_rows = losses(params, jnp.asarray(noise[1]), batch, config=styled.config)
        return jnp.sum(of_rows)

    grads = gradient(styled.params, jax.tree.map(jnp.asarray, batch))["style_encoder"]
    kernel = np.abs(grads["out_1"]["kernel"]).max((1, 2))
    assert kernel[CLASSES.index("skin")] > 0
    assert (np.delete(kernel, CLASSES.index("skin")) == 0).all()
    # The tokens of no style are learned, for classes that the masks show.
    assert np.abs(grads["out_1"]["bias"][CLASSES.index("hair")]).max() > 0


@pytest.fixture
def files(faces, tmp_path):
    """face{i}.png and mask{i}.png."""
    for i, (image, labels) in enumerate(zip(*faces, strict=True)):
        Image.fromarray(image).save(tmp_path / f"face{i}.png")
        write_label_map(tmp_path / f"mask{i}.png", labels)
    return tmp_path


def make(run, files, *options):
    out = files / f"out{len(list(files.glob('out*')))}"
    masks = files / "mask0.png"
    settings = "--workdir", run, "--masks", masks, "--out", out, "--steps", 2
    call(sample.main, *overridden(settings, options))
    return {path.stem: np.asarray(Image.open(path)) for path in out.glob("*.png")}


@pytest.mark.slow
def test_the_command_takes_references_parts_and_what_lies_between(
    tiny_style_run, files, faces, capsys
):
    run, at = tiny_style_run, lambda i: (files / f"face{i}.png", files / f"mask{i}.png")
    plain = make(run, files)
    assert plain.keys() == {"mask0_0"}
    whole = make(run, files, "--reference", *at(1), "--style-guidance", 3)
    expected = Synthesizer.load(run)
    style = expected.style(faces[0][1:2], faces[1][1:2])
    made = expected(faces[1][:1], steps=2, style=style, style_guidance=3.0)
    np.testing.assert_array_equal(whole["mask0_0"], made[0])
    capsys.readouterr()
    bare = next(i for i, labels in enumerate(faces[1]) if not (labels == HAT).any())
    make(run, files, "--part", "hair,hat", *at(bare))
    said = capsys.readouterr().out
    assert "shows no hat, which is then drawn from noise" in said
    assert "note: no reference gives background, skin" in said
    between = make(
        run, files, "--reference", *at(1), "--towards", *at(2), "--interpolate", 3, "--per-mask", 2
    )
    assert between.keys() == {f"mask0_{k}_{j}" for k in range(2) for j in range(3)}
    np.testing.assert_array_equal(
        between["mask0_0_0"], make(run, files, "--reference", *at(1))["mask0_0"]
    )


def test_references_that_cannot_be_used_are_refused_in_one_sentence(
    tiny_style_run, tiny_run, files
):
    face, mask = files / "face1.png", files / "mask1.png"
    large, other = files / "large.png", files / "face.gif"
    Image.new("RGB", (48, 48)).save(large)
    for run, options, said in [
        (tiny_style_run, ("--reference", face), "--reference has 1 file: give the face and its"),
        (
            tiny_style_run,
            ("--reference", large, mask),
            "large.png has 48x48 pixels where the model",
        ),
        (
            tiny_style_run,
            ("--reference", other, mask),
            r"--reference: .*face\.gif does not exist: check the path",
        ),
        (tiny_style_run, ("--part", "ear", face, mask), "'ear' is no class"),
        (tiny_style_run, ("--part", "hair", face), "--part hair has 1 file:"),
        (tiny_style_run, ("--towards", face, mask), "--towards needs a face to begin with"),
        (tiny_style_run, ("--interpolate", 3), "--interpolate goes with --towards"),
        (tiny_style_run, ("--style-guidance", 2), "^--style-guidance is 2.0, but there is no"),
        (tiny_run, ("--reference", face, mask), "this model has no style conditioning"),
    ]:
        with pytest.raises(InputError, match=said) as caught:
            make(run, files, *options)
        assert not list(files.glob("out*"))
    assert caught.value.page == "docs/styles.md"
