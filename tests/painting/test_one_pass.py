"""The page with a model that draws in one pass and in the style of a reference only, over HTTP."""

import dataclasses

import numpy as np
import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.data import synthetic
from sisma_jax.painting import canvas, look
from sisma_jax.painting.starts import Starts, Subject
from sisma_jax.painting.studio import Reference, Shape, Studio
from sisma_jax.synthesis.shapes import transfer
from tests.tiny_runs import SIZE

pytest.importorskip("gradio", reason="the extra `paint` is not installed")

from sisma_jax.painting.handlers import Made, chosen_face
from tests.painting.test_open_page import ask, serving


def face(index):
    return Subject(*reversed(synthetic.face(0, index, SIZE)))


@pytest.fixture(scope="module")
def studio(tiny_ca2sis_run):
    opened = Studio.open(tiny_ca2sis_run)
    return dataclasses.replace(opened, starts=Starts("faces", 8, face), parser=None)


@pytest.fixture(scope="module")
def browser(studio):
    with serving(studio) as (_, browser):
        yield browser


def properties(browser):
    components = browser.get("/config").json()["components"]
    return {one["props"].get("elem_id"): one["props"] for one in components}


def test_what_the_model_does_not_have_is_hidden_and_the_first_face_is_the_reference(browser):
    shown = properties(browser)
    for name in ("steps", "guidance", "style-guidance", "count", "seed"):
        assert shown[name]["visible"] is False, name
    assert len(shown["faces"]["value"]) == len(shown["references"]["value"]) == 1
    assert shown["references"]["visible"] and shown["remove-reference"]["visible"]
    assert shown["style-note"]["value"] == look.REFERENCES_GIVE_ALL


def make(browser, other=None, parts=(), share=1.0):
    """What comes of a press of the button, with the visitor's references."""
    inputs = canvas.packed(face(0).labels), 1, 0, 1, 1.0, None, list(parts), share
    return ask(browser, "make", *inputs, None, 0.5, 1.0)


def test_without_a_reference_the_page_says_what_to_do(browser):
    fine, output = make(browser)
    assert fine and len(output[1]["value"]) == 1
    fine, output = ask(browser, "clear")
    assert fine and output[6] == look.no_reference(draws_styles=False)
    assert "take the mask's own face" in output[6]
    fine, error = make(browser)
    assert not fine and "in the style of a reference only: give one" in error
    fine, output = ask(browser, "add_sheet", None, canvas.packed(face(0).labels), None)
    assert fine and make(browser)[0]


def test_parts_that_no_reference_gives_are_said_to_have_the_one_style(browser):
    fine, output = ask(browser, "use_parts", None, canvas.packed(face(0).labels), None, ["hair"])
    assert fine and output[6].startswith("No reference gives background, skin")
    assert output[6].endswith("drawn in the one style that this model has for parts without a "
                              "reference.")  # fmt: skip


def test_faces_take_the_shapes_of_another_mask(browser, studio):
    own, other = face(0).labels, face(1).labels
    references = (Reference(face(0).photo, own),)
    style = studio.style_of(references, 0.5)
    made = lambda **how: studio.faces(own, studio.options, count=1, seed=0, style=style, **how)
    shaped = made(shape=Shape(other, ("skin",), 0.5))
    masks = transfer(studio.synthesizer, own[None], other[None], ["skin"], 0.5)
    expected = studio.synthesizer(masks, style=style)
    np.testing.assert_array_equal(shaped, expected)
    assert (shaped != made()).any()
    edited = studio.edited(face(0), own, studio.options, shape=Shape(other, ("skin",)))
    assert (edited != face(0).photo).any()
    with pytest.raises(InputError, match="nothing to change: paint first"):
        studio.edited(face(0), own, studio.options)
    # As a state of the visitor's.
    fine, output = ask(browser, "take_painted", canvas.packed(other))
    assert fine and output[2]["visible"] and "parts may overlap" in output[4]
    fine, output = make(browser, parts=["skin"], share=0.5)
    assert fine
    fine, error = make(browser, parts=["skin"], share=2)
    assert not fine and "2" in error
    fine, output = ask(browser, "clear_other")
    assert fine and output[4] == look.NO_SHAPE


def test_where_no_face_was_made_none_is_chosen():
    none = np.empty((0, SIZE, SIZE, 3), np.uint8)
    with pytest.raises(InputError, match="there is no face yet: make one first"):
        chosen_face(Made(none, np.zeros((SIZE, SIZE), np.uint8), seed=0))
