"""What the page does with references, without the page: whose style a class takes."""

import dataclasses

import jax
import numpy as np
import pytest

from sisma_jax import Synthesizer
from sisma_jax.common.errors import InputError
from sisma_jax.data import synthetic
from sisma_jax.data.classes import CELEBAMASK, CLASSES, UNLABELLED
from sisma_jax.models import SISMAConfig
from sisma_jax.models.autoencoder import load_autoencoder
from sisma_jax.models.generators import parameter_shapes
from sisma_jax.painting import look
from sisma_jax.painting.starts import Starts, Subject
from sisma_jax.painting.studio import Reference, Studio, between_two
from sisma_jax.synthesis.options import SamplingOptions
from tests.tiny_runs import SIZE

HAIR, HAT, SKIN = (CLASSES.index(name) for name in ("hair", "hat", "skin"))
OPTIONS = SamplingOptions(steps=2)
GUIDED = SamplingOptions(steps=2, style_guidance=3.0)


@pytest.fixture(scope="module")
def studio(inputs_folder):
    """A studio around a model with style conditioning and random weights."""
    config = SISMAConfig.tiny(
        latent_size=SIZE // 4, factor=4, width=16, depth=1, state=2, mask_channels=8, patch=1,
        attention_head=8, style="attention", style_channels=2, style_levels=2, style_features=4,
    )  # fmt: skip
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda shape: random.normal(0, 0.3, shape.shape).astype(np.float32),
        parameter_shapes(config),
    )
    synthesizer = Synthesizer(config, params, load_autoencoder(inputs_folder / "autoencoder"), 4)
    starts = Starts("one face", 1, lambda _: Subject(*reversed(synthetic.face(0, 0, SIZE))))
    return Studio("tiny", synthesizer, starts, None, "no parser", OPTIONS)


@pytest.fixture(scope="module")
def plain(studio):
    """A studio around a model without style conditioning, which computes nothing."""
    config = dataclasses.replace(studio.synthesizer.config, style="none")
    synthesizer = dataclasses.replace(studio.synthesizer, config=config)
    return dataclasses.replace(studio, synthesizer=synthesizer)


@pytest.fixture(scope="module")
def references():
    """One of all classes but hats, one of all but hair."""
    random = np.random.default_rng(1)

    def reference(without, instead):
        labels = np.arange(SIZE * SIZE, dtype=np.int64).reshape(SIZE, SIZE) // 2 % 19
        labels = np.where(labels == without, instead, labels).astype(np.uint8)
        labels[0] = UNLABELLED
        return Reference(random.integers(0, 256, (SIZE, SIZE, 3), np.uint8), labels)

    return reference(HAT, SKIN), reference(HAIR, SKIN)


@pytest.fixture(scope="module")
def styles(studio, references):
    """Those of each alone."""
    return tuple(studio.synthesizer.style(x.image[None], x.labels[None]) for x in references)


def with_parts(reference, *parts):
    return dataclasses.replace(reference, parts=parts)


def token(style, label):
    return style.tokens[0, label]


def test_only_models_with_a_style_have_references(studio, plain, references):
    assert studio.has_style and not plain.has_style
    with pytest.raises(InputError, match="no style conditioning"):
        plain.style_of(references, 0.5)


def test_without_references_there_is_no_style(studio):
    assert studio.style_of((), 0.5) is None


def test_one_reference_gives_what_it_shows_and_of_that_its_parts(studio, references, styles):
    first, style = references[0], styles[0]
    whole = studio.style_of((first,), 0.5)
    np.testing.assert_array_equal(whole.tokens, style.tokens)
    assert whole.missing() == ["hat"]
    part = studio.style_of((with_parts(first, "hair", "hat"),), 0.5)
    np.testing.assert_array_equal(part.tokens, style.only(["hair"]).tokens)
    assert studio.given_by(with_parts(first, "hair", "hat")) == ["hair"]


def test_a_later_reference_goes_before_an_earlier_one_in_its_parts(studio, references, styles):
    first, second = references
    made = studio.style_of((first, with_parts(second, "skin", "hat", "hair")), 0.5)
    for label in range(19):
        giver = styles[1] if label in (SKIN, HAT) else styles[0]
        np.testing.assert_array_equal(token(made, label), token(giver, label))
    assert made.missing() == []


def test_between_two_whole_references_lies_a_straight_line(studio, references, styles):
    for between in (0.0, 0.25, 1.0):
        made = studio.style_of(references, between)
        expected = (1 - between) * token(styles[0], SKIN) + between * token(styles[1], SKIN)
        np.testing.assert_allclose(token(made, SKIN), expected, atol=1e-6)
        np.testing.assert_allclose(token(made, HAIR), token(styles[0], HAIR), atol=1e-6)
        np.testing.assert_allclose(token(made, HAT), token(styles[1], HAT), atol=1e-6)
        assert made.missing() == []


def test_styles_lie_between_two_whole_references_only(references):
    first, second = references
    assert between_two((first, second))
    assert not between_two(()) and not between_two((first,))
    assert not between_two((first, second, first))
    assert not between_two((first, with_parts(second, "hair")))


def test_painted_classes_that_no_reference_gives_are_named(studio, references):
    first, second = references
    labels = np.full((SIZE, SIZE), HAIR, np.uint8)
    labels[:4], labels[4:8] = HAT, UNLABELLED
    assert studio.not_given((), labels) == ["hair", "hat"]
    assert studio.not_given((first,), labels) == ["hat"]
    assert studio.not_given((first, second), labels) == []
    assert studio.not_given((with_parts(first, "skin"), second), labels) == ["hair"]


@pytest.mark.slow
def test_faces_take_the_style_and_its_guidance(studio, references):
    labels = studio.starts.read(0).labels
    plain = studio.faces(labels, OPTIONS, count=2, seed=0)
    style = studio.style_of(references, 0.5)
    styled = studio.faces(labels, OPTIONS, count=2, seed=0, style=style)
    expected = studio.synthesizer(np.stack([labels] * 2), steps=2, style=style)
    np.testing.assert_array_equal(styled, expected)
    guided = studio.faces(labels, GUIDED, count=2, seed=0, style=style)
    assert (styled != plain).any() and (guided != styled).any()
    without = studio.faces(labels, GUIDED, count=2, seed=0)
    np.testing.assert_array_equal(without, plain)


def test_what_is_said_of_references_has_the_brushes_names():
    assert look.not_given(["hat", "cloth"], "drawn from noise") == (
        "No reference gives hat, clothes: drawn from noise."
    )
    assert "all painted classes" in look.not_given([], "")
    assert look.not_given(["<b>"], "").startswith("No reference gives &lt;b&gt;:")
    assert look.caption(()) == "all parts" and look.caption(["eye_g", "hair"]) == "glasses, hair"
    assert look.spoken(CELEBAMASK.names) == look.easel(CELEBAMASK, 64)["names"]
