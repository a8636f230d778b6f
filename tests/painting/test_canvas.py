"""Label maps as the page's canvas has them, and what the page calls things."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from sisma_jax.common.errors import InputError
from sisma_jax.data.classes import CELEBAMASK, UNLABELLED, ClassSet
from sisma_jax.painting import canvas, look


@pytest.fixture(scope="module")
def labels():
    labels = np.random.default_rng(0).integers(0, 19, (32, 32)).astype(np.uint8)
    labels[3, 4] = UNLABELLED
    return labels


def test_a_label_map_comes_back_as_it_was_sent(labels):
    value = canvas.packed(labels)
    assert value["start"] == value["labels"]
    np.testing.assert_array_equal(canvas.unpacked(value, 32, CELEBAMASK), labels)


def test_what_was_painted_counts_and_not_the_start(labels):
    value = canvas.packed(labels)
    value["labels"] = canvas.packed(labels.T.copy())["labels"]
    np.testing.assert_array_equal(canvas.unpacked(value, 32, CELEBAMASK), labels.T)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"labels": None},
        {"labels": "no base64!"},
        [],
        {"labels": 7},
        {"labels": ["A"] * 1368},
        {"labels": "ä" * 1368},
        {"labels": base64.b64encode(bytes(31 * 32)).decode()},
        {"labels": base64.b64encode(bytes(33 * 32)).decode()},
    ],
)
def test_what_is_no_label_map_is_refused(value):
    with pytest.raises(InputError, match="the page sent no mask of 32x32 pixels: load it again"):
        canvas.unpacked(value, 32, CELEBAMASK)


def test_what_is_too_long_is_not_decoded(monkeypatch):
    monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(InputError, match="the page sent no mask"):
        canvas.unpacked({"labels": "A" * 10**6}, 32, CELEBAMASK)


@pytest.mark.parametrize("wrong", [19, 254])
def test_an_id_of_no_class_is_refused(labels, wrong):
    labels = labels.copy()
    labels[30, 7] = wrong
    with pytest.raises(InputError, match=f"with the id {wrong}, but the model's classes are 0 to"):
        canvas.unpacked(canvas.packed(labels), 32, CELEBAMASK)


def test_a_photo_travels_without_loss(labels):
    image = np.stack([labels] * 3, axis=-1)
    kind, _, content = canvas.data_url(image).partition(",")
    assert kind == "data:image/png;base64"
    sent = Image.open(io.BytesIO(base64.b64decode(content)))
    np.testing.assert_array_equal(np.asarray(sent), image)


def test_thumbnails_have_square_pixels_in_class_colours(labels):
    shown = canvas.thumbnail(labels, CELEBAMASK, 80)
    assert shown.shape == (96, 96, 3)
    np.testing.assert_array_equal(shown[1::3, 2::3], CELEBAMASK.shown[labels])


def test_brushes_have_spoken_names_and_the_classes_colours():
    easel = look.easel(CELEBAMASK, 64)
    assert easel["size"] == 64
    by_name = dict(zip(CELEBAMASK.names, easel["names"], strict=True))
    assert by_name["hair"] == "hair" and by_name["l_eye"] == "left eye"
    assert by_name["eye_g"] == "glasses" and by_name["ear_r"] == "earring"
    assert len(set(easel["names"])) == 19
    assert easel["colours"][13] == "#0000cc"
    assert "person's" in easel["titles"][4] and not easel["titles"][13]


def test_brushes_of_other_classes_have_their_own_names():
    easel = look.easel(ClassSet(("sky", "left_door"), ((1, 2, 3), (255, 0, 16))), 32)
    assert easel["names"] == ["sky", "left door"]
    assert easel["colours"] == ["#010203", "#ff0010"]
    assert easel["titles"] == ["", ""]


def test_names_are_no_markup():
    assert "<h1>" in look.title("runs/a & <b>", 64, CELEBAMASK)
    assert "runs/a &amp; &lt;b&gt;" in look.title("runs/a & <b>", 64, CELEBAMASK)


def test_where_there_is_no_parser_the_page_says_so():
    assert "There is no face parser" in look.how_to_start(has_parser=False)
    assert "parser" not in look.how_to_start(has_parser=True)
