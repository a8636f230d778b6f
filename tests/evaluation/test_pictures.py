"""Folders of pictures: which are taken, and what is said of those that are not."""

import numpy as np
import pytest
from PIL import Image

from sisma_jax.common.errors import InputError
from sisma_jax.data.thumbnails import shrunk
from sisma_jax.evaluation.nearest import nearest
from sisma_jax.evaluation.pictures import PictureFolder, Selection, batches


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3)).astype(np.uint8)


@pytest.fixture
def folder(images, tmp_path):
    path = tmp_path / "pictures"
    path.mkdir()
    for name, image in zip("ecabd", images, strict=True):
        Image.fromarray(image).save(path / f"{name}.png")
    return path


def test_pictures_come_by_name_in_batches(folder, images):
    (folder / "notes.txt").write_text("not a picture")
    (folder / "._a.png").write_bytes(b"of a Mac")
    pictures = PictureFolder(folder)
    assert pictures.names == list("abcde") and pictures.size == (24, 24)
    found = [image for _, chunk in batches(pictures, 2) for image in chunk]
    np.testing.assert_array_equal(found, images[[2, 3, 1, 4, 0]])
    chosen = Selection(pictures, [4, 0])
    assert chosen.names == ["e", "a"]
    np.testing.assert_array_equal(chosen.read([1, 0]), images[[2, 0]])


def test_the_key_is_of_names_and_contents(folder, images):
    before = PictureFolder(folder).key
    assert PictureFolder(folder).key == before
    (folder / "a.png").rename(folder / "f.png")
    renamed = PictureFolder(folder).key
    Image.fromarray(images[0]).save(folder / "b.png")
    assert len({before, renamed, PictureFolder(folder).key}) == 3


def save(mode, size=(24, 24)):
    return lambda folder: Image.new(mode, size).save(folder / "b.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: Image.new("F", (24, 24)).save(folder / "b.tif"),
            "two pictures named 'b'",
        ),
        (save("RGB", (20, 24)), "b.png has 20x24 pixels where a.png has 24x24"),
        (lambda folder: (folder / "b.png").write_bytes(b"nothing"), "b.png cannot be read"),
        (lambda folder: Image.new("RGB", (24, 24)).save(folder / "b.jpg"), "named 'b'"),
        (
            lambda folder: [(folder / f"{name}.png").unlink() for name in "bcde"],
            "holds 1 PNG, JPEG, BMP, TIFF or WebP files: scores of a set need at least 2",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(spoil, message, folder):
    spoil(folder)
    with pytest.raises(InputError, match=message):
        PictureFolder(folder)


def test_pictures_of_every_kind_are_read_as_they_are_meant(folder, images):
    """Grey, 16 bits, transparent, turned: what `image_files.read_picture` makes of them."""
    grey = images[0][..., 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "a.png")
    Image.new("RGBA", (24, 24)).save(folder / "b.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(images[2]).rotate(180).save(folder / "c.png", exif=exif)
    found = PictureFolder(folder).read(range(3))
    np.testing.assert_array_equal(found[0], grey[..., None].repeat(3, axis=-1))
    assert (found[1] == 255).all()
    np.testing.assert_array_equal(found[2], images[2])


def test_no_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="none is not a folder"):
        PictureFolder(tmp_path / "none")


def test_a_copy_is_its_own_nearest_picture(folder, images):
    pictures = PictureFolder(folder)
    asked = np.stack([images[4], 255 - images[0]])
    found = nearest(shrunk(asked), pictures)
    assert found.index[0] == pictures.names.index("d") and found.distance[0] == 0
    by_hand = [
        np.sqrt(np.mean((shrunk(asked[1:]) - shrunk(image[None])) ** 2))
        for image in pictures.read(range(5))
    ]
    assert found.index[1] == np.argmin(by_hand)
    np.testing.assert_allclose(found.distance[1], min(by_hand), rtol=1e-5)


def test_shrinking_averages_boxes():
    image = np.zeros((1, 33, 32, 3), np.uint8)
    image[0, :2, :2] = [[[255], [0]], [[255], [255]]]
    small = shrunk(image).reshape(16, 16, 3)
    np.testing.assert_allclose(small[0, 0], 0.75)
    assert small[1:].max() == small[0, 1:].max() == 0
