"""What the page does, without the page."""

import dataclasses
import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from sisma_jax.common.errors import InputError
from sisma_jax.data.class_names import BISENET
from sisma_jax.data.classes import CELEBAMASK, ClassSet
from sisma_jax.data.input_pipeline import open_dataset
from sisma_jax.data.label_maps import colourise, read_label_map
from sisma_jax.data.label_values import Reading
from sisma_jax.painting import starts, studio
from sisma_jax.painting.studio import Reference, Studio, write_faces, write_photo
from sisma_jax.runs.folder import RunFolder
from sisma_jax.synthesis.editing import edit
from sisma_jax.synthesis.options import SamplingOptions
from sisma_jax.synthesis.synthesizer import Synthesizer
from tests.evaluation.parsers import write_parser
from tests.tiny_runs import SIZE

HAIR = CELEBAMASK.names.index("hair")


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    return write_parser(tmp_path_factory.mktemp("parsers") / "tiny")


@pytest.fixture(scope="module")
def opened(tiny_run, parser):
    return Studio.open(tiny_run, parser)


@pytest.fixture(scope="module")
def test_split(inputs_folder):
    return open_dataset(inputs_folder / "data", SIZE, split="test", test_from=12)


@pytest.fixture(scope="module")
def start(opened):
    return opened.starts.read(0)


# --- What is at hand


def test_painting_begins_with_the_runs_own_test_split(opened, test_split, inputs_folder):
    assert opened.starts.origin == f"test split of {inputs_folder / 'data'}"
    assert opened.starts.count == len(test_split)
    for i in (0, 3):
        np.testing.assert_array_equal(opened.starts.read(i).labels, test_split[i]["labels"])
        np.testing.assert_array_equal(opened.starts.read(i).photo, test_split[i]["image"])


def moved(tiny_run, folder, data):
    """The run's description, with its data elsewhere."""
    folder.mkdir()
    config = json.loads((tiny_run / "config.json").read_text())
    config["data"]["path"] = str(data)
    (folder / "config.json").write_text(json.dumps(config))
    return RunFolder(folder)


def test_without_its_data_set_procedural_faces_take_its_place(tiny_run, tmp_path):
    run = moved(tiny_run, tmp_path / "run", tmp_path / "nowhere")
    found = starts.find_starts(run, CELEBAMASK, SIZE)
    assert "procedural faces" in found.origin and "nowhere" in found.origin
    first, second = found.read(0), found.read(found.count - 1)
    assert first.labels.shape == second.labels.shape == (SIZE, SIZE)
    assert (first.labels != second.labels).any()
    assert first.photo.shape == (SIZE, SIZE, 3)


def test_of_other_classes_an_empty_mask_takes_its_place(tiny_run, inputs_folder, tmp_path):
    other = dataclasses.replace(CELEBAMASK, names=(*CELEBAMASK.names[:-1], "cape"))
    run = moved(tiny_run, tmp_path / "run", inputs_folder / "data")
    found = starts.find_starts(run, other, SIZE)
    assert "one class everywhere" in found.origin and "other classes" in found.origin
    only = found.read(0)
    assert found.count == 1 and only.photo is None
    np.testing.assert_array_equal(only.labels, np.zeros((SIZE, SIZE)))


def test_settings_to_begin_with_are_those_of_the_runs_grids(opened, tiny_run):
    samples = json.loads((tiny_run / "config.json").read_text())["samples"]
    own = SamplingOptions(**{name: samples[name] for name in ("steps", "solver", "guidance")})
    assert opened.options == own
    assert opened.size == SIZE and opened.classes == CELEBAMASK
    assert opened.name == "tiny, step 6"


def test_a_parser_that_nobody_named_need_not_be_there(tiny_run, parser, tmp_path, monkeypatch):
    monkeypatch.setattr(studio, "DEFAULT_PARSER", tmp_path / "none")
    without = Studio.open(tiny_run)
    assert without.parser is None
    with pytest.raises(InputError, match=r"none cannot be used to find a photo's mask .*--parser"):
        without.find_mask(np.zeros((SIZE, SIZE, 3), np.uint8))
    monkeypatch.setattr(studio, "DEFAULT_PARSER", parser)
    assert Studio.open(tiny_run).parser is not None


def test_a_parser_of_another_size_is_left_out_unless_it_is_named(
    tiny_run, parser, tmp_path, monkeypatch
):
    shutil.copytree(parser, tmp_path / "parser")
    config = json.loads((parser / "config.json").read_text()) | {"size": 2 * SIZE}
    (tmp_path / "parser/config.json").write_text(json.dumps(config))
    monkeypatch.setattr(studio, "DEFAULT_PARSER", tmp_path / "parser")
    left_out = Studio.open(tiny_run)
    assert left_out.parser is None and "64 pixels where the pictures have 32" in left_out.no_parser
    assert Studio.open(tiny_run, tmp_path / "parser").parser.size == 2 * SIZE


def test_a_run_or_a_parser_that_is_not_there_is_refused(tiny_run, tmp_path):
    with pytest.raises(InputError, match="is not a run folder"):
        Studio.open(tmp_path / "none")
    with pytest.raises(InputError, match="there is no face parser at"):
        Studio.open(tiny_run, tmp_path / "none")


def test_another_class_order_is_one_of_celebamask_alone(opened, tiny_run, parser, monkeypatch):
    other = ClassSet(("sky", "door"), ((1, 2, 3), (4, 5, 6)))
    synthesizer = dataclasses.replace(opened.synthesizer, classes=other)
    monkeypatch.setattr(Synthesizer, "load", lambda *_, **__: synthesizer)
    with pytest.raises(InputError, match="'bisenet' is for CelebAMask-HQ's classes only"):
        Studio.open(tiny_run, parser, Reading("bisenet"))


# --- Faces and photos


def test_faces_of_a_mask_differ_and_keep_their_noise(opened, start):
    told = []
    options = SamplingOptions(steps=2)
    report = lambda done, count: told.append((done, count))
    faces = opened.faces(start.labels, options, count=6, seed=3, report=report)
    assert faces.shape == (6, SIZE, SIZE, 3) and faces.dtype == np.uint8
    assert told == [(4, 6), (6, 6)]
    assert np.abs(faces[0].astype(int) - faces[5]).max() > 20
    fewer = opened.faces(start.labels, options, count=2, seed=3)
    assert np.abs(fewer.astype(int) - faces[:2]).max() <= 1
    synthesized = opened.synthesizer(start.labels[None], seed=3, steps=2)
    assert np.abs(synthesized[0].astype(int) - faces[0]).max() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "0 faces are asked for"),
        ({"seed": -1}, "seed -1 is out of range"),
    ],
)
def test_settings_out_of_range_are_refused(opened, start, changes, message):
    settings = {"count": 1, "seed": 0} | changes
    with pytest.raises(InputError, match=message):
        opened.faces(start.labels, SamplingOptions(steps=2), **settings)


def test_an_edited_photo_changes_where_its_mask_was_painted(opened, start):
    labels = start.labels.copy()
    labels[:3, :3] = HAIR
    edited = opened.edited(start, labels, SamplingOptions(steps=2))
    differs = (edited != start.photo).any(-1)
    assert differs[:3, :3].any()
    assert not differs[16:].any() and not differs[:, 16:].any()


@pytest.mark.slow
def test_an_edited_photo_keeps_its_style_but_for_what_references_give(tiny_style_run, start):
    opened = Studio.open(tiny_style_run)
    other = opened.starts.read(1)
    labels = start.labels.copy()
    labels[:12, :12] = HAIR
    make = lambda *references: opened.edited(
        start, labels, SamplingOptions(steps=2), references=references
    )
    own = opened.synthesizer.style(start.photo[None], start.labels[None])
    hair = own.take(opened.synthesizer.style(other.photo[None], other.labels[None]), ["hair"])
    batch = (x[None] for x in (start.photo, start.labels, labels))
    expected = edit(opened.synthesizer, *batch, steps=2, style=hair)[0]
    found = make(Reference(other.photo, other.labels, ("hair",)))
    np.testing.assert_array_equal(found, expected)
    assert (found != make()).any(), "which without one is the photo's own"


def test_a_photo_whose_mask_was_not_painted_has_nothing_to_change(opened, start):
    with pytest.raises(InputError, match="nothing to change: paint first"):
        opened.edited(start, start.labels.copy(), SamplingOptions(steps=2))


def test_the_parser_finds_the_mask_of_a_photo(opened, start):
    found = opened.find_mask(start.photo)
    assert found.shape == (SIZE, SIZE) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, opened.parser.labels(start.photo[None])[0])


# --- Files


def test_a_mask_that_was_downloaded_is_read_again(opened, start, tmp_path):
    labels = start.labels.copy()
    labels[0, 0] = 255
    path = opened.write_mask(tmp_path, labels)
    np.testing.assert_array_equal(read_label_map(path, allow_unlabelled=True), labels)
    np.testing.assert_array_equal(opened.read_mask(path), labels)


def test_masks_are_numbered_as_the_studio_was_told_unless_their_colours_say_it(
    opened, tiny_run, parser, start, tmp_path
):
    other = Studio.open(tiny_run, parser, Reading("bisenet"))
    ids = [BISENET.index(name) for name in CELEBAMASK.names]
    Image.fromarray(np.array(ids, np.uint8)[start.labels]).save(tmp_path / "ids.png")
    np.testing.assert_array_equal(other.read_mask(tmp_path / "ids.png"), start.labels)
    assert (opened.read_mask(tmp_path / "ids.png") != start.labels).any()
    downloaded = other.write_mask(tmp_path, start.labels)
    np.testing.assert_array_equal(other.read_mask(downloaded), start.labels)


def test_a_mask_of_another_shape_is_cut_and_resized(opened, start, tmp_path):
    large = np.kron(start.labels, np.ones((3, 3), np.uint8))
    wide = np.pad(large, ((0, 0), (7, 8)), constant_values=HAIR)
    Image.fromarray(colourise(wide)).save(tmp_path / "wide.png")
    np.testing.assert_array_equal(opened.read_mask(tmp_path / "wide.png"), start.labels)


def test_a_wrong_mask_is_named_without_the_servers_folder(opened, tmp_path):
    path = tmp_path / "mine.png"
    Image.fromarray(np.full((SIZE, SIZE), 19, np.uint8)).save(path)
    with pytest.raises(InputError, match=r"^mask mine\.png holds the value 19 at pixel \(0, 0\)"):
        opened.read_mask(path)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"^mine\.png cannot be read as a PNG file"):
        opened.read_mask(path)


def test_a_photo_is_turned_cut_and_resized(opened, tmp_path):
    image = np.zeros((100, 60, 3), np.uint8)
    image[:20], image[20:50], image[50:80], image[80:] = 255, (200, 0, 0), (0, 0, 200), 255
    turned = Image.fromarray(np.rot90(image))  # what orientation 6 turns back
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    photo = opened.read_photo(tmp_path / "photo.jpg").astype(int)
    assert photo.shape == (SIZE, SIZE, 3)
    assert np.abs(photo[2:14, 2:-2] - (200, 0, 0)).max() < 12
    assert np.abs(photo[18:30, 2:-2] - (0, 0, 200)).max() < 12


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_what_is_transparent_in_a_photo_is_white(opened, tmp_path, suffix):
    image = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    path = tmp_path / f"photo.{suffix}"
    image.save(path)
    np.testing.assert_array_equal(opened.read_photo(path), np.full((SIZE, SIZE, 3), 255))


def test_what_is_no_photo_is_refused(opened, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"^photo\.jpg cannot be read as a JPEG file"):
        opened.read_photo(path)
    path.write_bytes(b"\xff\xd8nothing")
    with pytest.raises(InputError, match=r"^photo\.jpg cannot be read as a JPEG"):
        opened.read_photo(path)
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "deep.tif")
    with pytest.raises(InputError, match=r"^deep\.tif has pixels of type F"):
        opened.read_photo(tmp_path / "deep.tif")


def test_faces_and_photos_are_written_without_loss(tmp_path):
    faces = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    with zipfile.ZipFile(write_faces(tmp_path, faces, seed=7)) as archive:
        assert archive.namelist() == ["seed7_0.png", "seed7_1.png", "seed7_2.png"]
        with archive.open("seed7_2.png") as file:
            np.testing.assert_array_equal(np.asarray(Image.open(file)), faces[2])
    path = write_photo(tmp_path, faces[1])
    np.testing.assert_array_equal(np.asarray(Image.open(path)), faces[1])
