"""Label maps on disk and in memory: round trips, the mirror, and every file that is refused."""

import os
import struct
import zlib
from itertools import starmap

import numpy as np
import pytest
from PIL import Image

from sisma_jax.common.errors import InputError
from sisma_jax.data import label_maps, label_values
from sisma_jax.data.classes import CLASSES, FLIP_PAIRS, PALETTE, UNLABELLED
from sisma_jax.data.label_maps import read_label_map, write_label_map

CLASS_COUNT = len(CLASSES)
VOC_COLOURS = label_values._voc_colours(CLASS_COUNT)


@pytest.fixture
def labels():
    """20 x 31 pixels in which every class occurs."""
    ids = np.random.default_rng(0).permutation(np.arange(620) % CLASS_COUNT)
    return ids.astype(np.uint8).reshape(20, 31)


def refusal(path, **options) -> str:
    with pytest.raises(InputError) as caught:
        label_maps.read_label_map(path, **options)
    message = str(caught.value)
    assert str(path) in message and not message.endswith(".")
    return message


PNG = b"\x89PNG\r\n\x1a\n"
HEADER = struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)
PIXELS = zlib.compress(bytes(4 * 5))


def chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of a PNG file, with its length and checksum."""
    length, checksum = (
        struct.pack(">I", len(content)),
        struct.pack(">I", zlib.crc32(name + content)),
    )
    return length + name + content + checksum


def indexed(indices: np.ndarray, palette: np.ndarray) -> Image.Image:
    image = Image.fromarray(indices)
    image.putpalette(np.ascontiguousarray(palette).tobytes())
    return image


class TestReading:
    def test_written_maps_read_back_as_the_same_ids(self, tmp_path, labels):
        label_maps.write_label_map(tmp_path / "a.png", labels)
        read = label_maps.read_label_map(tmp_path / "a.png")
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, labels)

    def test_written_maps_show_in_class_colours(self, tmp_path, labels):
        label_maps.write_label_map(tmp_path / "a.png", labels)
        with Image.open(tmp_path / "a.png") as image:
            assert image.mode == "P"
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), PALETTE[labels])

    def test_colours_read_back_as_ids(self, tmp_path, labels):
        Image.fromarray(label_maps.colourise(labels)).save(tmp_path / "a.png")
        np.testing.assert_array_equal(label_maps.read_label_map(tmp_path / "a.png"), labels)

    def test_greyscale_values_are_ids(self, tmp_path, labels):
        Image.fromarray(labels).save(tmp_path / "a.png")
        np.testing.assert_array_equal(label_maps.read_label_map(tmp_path / "a.png"), labels)

    def test_indices_under_a_foreign_palette_are_ids(self, tmp_path, labels):
        palette = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
        indexed(labels, palette).save(tmp_path / "a.png")
        np.testing.assert_array_equal(label_maps.read_label_map(tmp_path / "a.png"), labels)

    def test_indices_under_a_palette_of_one_colour_are_ids(self, tmp_path, labels):
        indexed(labels, np.zeros((256, 3), np.uint8)).save(tmp_path / "a.png")
        np.testing.assert_array_equal(label_maps.read_label_map(tmp_path / "a.png"), labels)

    def test_indices_packed_into_few_bits_are_ids(self, tmp_path):
        two = np.array([[0, 1], [1, 0]], np.uint8)
        for bits in (1, 2, 4):
            indexed(two, PALETTE[:2]).save(tmp_path / "a.png", bits=bits)
            np.testing.assert_array_equal(label_maps.read_label_map(tmp_path / "a.png"), two)

    def test_indices_that_are_no_ids_are_read_by_class_colour(self, tmp_path, labels):
        palette = np.zeros((256, 3), np.uint8)
        palette[200 : 200 + CLASS_COUNT] = PALETTE[::-1]
        indexed(200 + CLASS_COUNT - 1 - labels, palette).save(tmp_path / "a.png")
        np.testing.assert_array_equal(label_maps.read_label_map(tmp_path / "a.png"), labels)

    def test_class_colours_at_other_indices_are_refused_as_ambiguous(self, tmp_path):
        indexed(np.array([[0, 1, 2]], np.uint8), PALETTE[[0, 2, 1]]).save(tmp_path / "a.png")
        message = refusal(tmp_path / "a.png")
        assert "(1, 0)" in message
        assert "palette index 1 has the colour of class 2" in message

    @pytest.mark.parametrize("soft", [False, True])
    def test_palettes_in_another_order_are_refused(self, tmp_path, soft):
        """As GIMP and Pillow make them: of PASCAL VOC's colours, or with soft edges beside them."""
        labels = np.arange(48 * 48).reshape(48, 48) // (48 * 6) % 8
        colours = np.array(VOC_COLOURS[:8], np.uint8) if not soft else PALETTE[[0, 1, 13, 17]]
        picture = Image.fromarray(colours[labels % len(colours)].astype(np.uint8))
        if soft:
            picture = picture.resize((72, 72), Image.Resampling.BILINEAR)
        picture.quantize(12 if soft else 8, dither=0).save(tmp_path / "a.png")
        assert "is ambiguous at pixel" in refusal(tmp_path / "a.png")

    def test_pascal_vocs_own_palette_is_read(self, tmp_path, labels):
        indexed(labels, np.array(VOC_COLOURS, np.uint8)).save(tmp_path / "a.png")
        np.testing.assert_array_equal(label_maps.read_label_map(tmp_path / "a.png"), labels)

    def test_grey_at_a_class_index_is_ambiguous_where_unlabelled_is_allowed(self, tmp_path):
        palette = np.array([PALETTE[0], (128, 128, 128)], np.uint8)
        indexed(np.array([[0, 1]], np.uint8), palette).save(tmp_path / "a.png")
        assert "class 255" in refusal(tmp_path / "a.png", allow_unlabelled=True)
        assert label_maps.read_label_map(tmp_path / "a.png").tolist() == [[0, 1]]

    def test_unlabelled_pixels_need_permission(self, tmp_path, labels):
        labels[3, 7] = UNLABELLED
        label_maps.write_label_map(tmp_path / "indexed.png", labels)
        Image.fromarray(labels).save(tmp_path / "grey.png")
        Image.fromarray(label_maps.colourise(labels)).save(tmp_path / "colour.png")
        for name in ("indexed.png", "grey.png", "colour.png"):
            assert "(7, 3)" in refusal(tmp_path / name)
            read = label_maps.read_label_map(tmp_path / name, allow_unlabelled=True)
            np.testing.assert_array_equal(read, labels)

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("a.bmp", {}),
            ("a.tif", {"compression": "tiff_lzw"}),
            ("a.tiff", {}),
            ("a.webp", {"lossless": True}),
        ],
    )
    def test_other_lossless_formats(self, tmp_path, labels, name, options):
        for picture in (
            Image.fromarray(labels),
            Image.fromarray(label_maps.colourise(labels)),
            indexed(labels, PALETTE),
        ):
            picture.save(tmp_path / name, **options)
            np.testing.assert_array_equal(label_maps.read_label_map(tmp_path / name), labels)

    def test_ids_saved_as_rgb_grey(self, tmp_path, labels):
        Image.fromarray(labels).convert("RGB").save(tmp_path / "a.png")
        np.testing.assert_array_equal(label_maps.read_label_map(tmp_path / "a.png"), labels)
        bisenet = label_maps.read_label_map(tmp_path / "a.png", class_order="bisenet")
        Image.fromarray(labels).save(tmp_path / "b.png")
        expected = label_maps.read_label_map(tmp_path / "b.png", class_order="bisenet")
        np.testing.assert_array_equal(bisenet, expected)
        labels[2, 3] = 60
        Image.fromarray(labels).convert("RGB").save(tmp_path / "a.png")
        message = refusal(tmp_path / "a.png")
        assert "grey saved as RGB" in message and "value 60" in message and "(3, 2)" in message

    def test_a_map_is_turned_by_its_exif(self, tmp_path, labels):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(labels).save(tmp_path / "a.png", exif=exif)
        turned = label_maps.read_label_map(tmp_path / "a.png")
        np.testing.assert_array_equal(turned, np.rot90(labels, -1))

    def test_more_pixels_than_a_block_are_the_same_pixels(self, tmp_path, labels, monkeypatch):
        Image.fromarray(label_maps.colourise(labels)).save(tmp_path / "a.png")
        monkeypatch.setattr(label_values, "_BLOCK", 100)
        np.testing.assert_array_equal(label_maps.read_label_map(tmp_path / "a.png"), labels)
        colours = label_maps.colourise(labels)
        colours[17, 5] = 1, 2, 3
        Image.fromarray(colours).save(tmp_path / "a.png")
        assert "(1, 2, 3) at pixel (5, 17)" in refusal(tmp_path / "a.png")

    def test_the_result_can_be_edited(self, tmp_path, labels):
        Image.fromarray(labels).save(tmp_path / "a.png")
        label_maps.read_label_map(tmp_path / "a.png")[0, 0] = 3


class TestRefusing:
    @pytest.mark.parametrize("allow_unlabelled", [False, True])
    def test_an_id_over_18_names_the_first_such_pixel(self, tmp_path, labels, allow_unlabelled):
        labels[4, 9], labels[5, 2] = 19, 77
        Image.fromarray(labels).save(tmp_path / "grey.png")
        indexed(labels, np.full((256, 3), 7, np.uint8)).save(tmp_path / "indexed.png")
        for name in ("grey.png", "indexed.png"):
            message = refusal(tmp_path / name, allow_unlabelled=allow_unlabelled)
            assert "value 19" in message and "(9, 4)" in message and "0 to 18" in message

    def test_a_colour_off_the_palette_names_pixel_and_nearest_class(self, tmp_path, labels):
        colours = label_maps.colourise(labels)
        colours[2, 30] = PALETTE[CLASSES.index("hat")] + np.array([0, 3, 0], np.uint8)
        Image.fromarray(colours).save(tmp_path / "a.png")
        message = refusal(tmp_path / "a.png")
        assert "(255, 54, 153)" in message and "(30, 2)" in message
        assert "hat, (255, 51, 153)" in message

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_alpha(self, tmp_path, labels, mode):
        Image.fromarray(labels).convert(mode).save(tmp_path / "a.png")
        assert "alpha" in refusal(tmp_path / "a.png")

    def test_sixteen_bits(self, tmp_path, labels):
        Image.fromarray(labels.astype(np.uint16)).save(tmp_path / "a.png")
        assert "16-bit" in refusal(tmp_path / "a.png")

    def test_one_bit(self, tmp_path, labels):
        Image.fromarray(labels > 0).save(tmp_path / "a.png")
        assert "1-bit" in refusal(tmp_path / "a.png")

    def test_greyscale_of_few_bits_which_decoders_stretch(self, tmp_path, labels):
        header = struct.pack(">IIBBBBB", 4, 4, 4, 0, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(4 * 3))), (b"IEND", b"")]
        (tmp_path / "a.png").write_bytes(PNG + b"".join(starmap(chunk, chunks)))
        assert "4-bit" in refusal(tmp_path / "a.png")

    def test_a_jpeg_under_any_name(self, tmp_path, labels):
        for name in ("a.jpg", "a.png"):
            Image.fromarray(labels).save(tmp_path / name, format="JPEG")
            message = refusal(tmp_path / name)
            assert "JPEG" in message and "compression" in message

    def test_lossy_compression_within_other_formats(self, tmp_path, labels):
        picture = Image.fromarray(label_maps.colourise(labels))
        picture.save(tmp_path / "a.webp", lossless=False)
        assert "lossy WebP" in refusal(tmp_path / "a.webp")
        picture.save(tmp_path / "a.tif", compression="jpeg")
        assert "TIFF with jpeg compression" in refusal(tmp_path / "a.tif")

    def test_a_photograph_in_bounded_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr(label_values, "MOST_COLOURS", 100)
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / "a.png")
        for options in ({}, {"nearest_colour": 100}):
            assert "it is a photograph" in refusal(tmp_path / "a.png", **options)

    def test_a_pattern_without_areas(self, tmp_path, monkeypatch):
        monkeypatch.setattr(label_values, "MOST_UNSURE", 1000)
        pattern = label_maps.colourise((np.indices((40, 40)).sum(0) % 2).astype(np.uint8))
        pattern[0, 0] = 3
        Image.fromarray(pattern).save(tmp_path / "a.png")
        assert "in no area of a class colour" in refusal(tmp_path / "a.png", nearest_colour=100)

    def test_formats_that_are_not_read(self, tmp_path, labels):
        Image.fromarray(labels).save(tmp_path / "a.png", format="GIF")
        assert "another format" in refusal(tmp_path / "a.png")

    def test_several_pages(self, tmp_path, labels):
        page = Image.fromarray(labels)
        page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
        assert "holds 2 pictures" in refusal(tmp_path / "a.tif")

    def test_a_file_cut_short_is_refused_while_a_pixel_may_be_missing(self, tmp_path, labels):
        label_maps.write_label_map(tmp_path / "a.png", labels)
        whole = (tmp_path / "a.png").read_bytes()
        checksums_and_end = 4 + 4 + 12
        for length in range(0, len(whole) - checksums_and_end - 1, 7):
            (tmp_path / "cut.png").write_bytes(whole[:length])
            refusal(tmp_path / "cut.png")

    @pytest.mark.parametrize(
        "chunks",
        [
            [(b"IHDR", HEADER), (b"IDAT", PIXELS[:5]), (b"ID!T", b""), (b"IDAT", PIXELS[5:])],
            [(b"IHDR", HEADER[:-1]), (b"IDAT", PIXELS), (b"IEND", b"")],
            [(b"IHDR", struct.pack(">II", 200_000, 200_000) + HEADER[8:]), (b"IDAT", PIXELS)],
            [(b"IHDR", HEADER), (b"IDAT", PIXELS[:-9] + bytes(9)), (b"IEND", b"")],
        ],
        ids=["bad chunk", "short header", "absurd size", "bad pixels"],
    )
    def test_a_damaged_file(self, tmp_path, chunks):
        (tmp_path / "a.png").write_bytes(PNG + b"".join(starmap(chunk, chunks)))
        assert "cannot be read as a PNG" in refusal(tmp_path / "a.png")

    def test_damage_gives_a_sentence_or_a_map_never_another_error(self, tmp_path, labels):
        label_maps.write_label_map(tmp_path / "a.png", labels)
        whole = (tmp_path / "a.png").read_bytes()
        rng = np.random.default_rng(2)
        refused = 0
        for _ in range(300):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), 2):
                damaged[place] = rng.integers(256)
            (tmp_path / "bad.png").write_bytes(damaged)
            try:
                read = label_maps.read_label_map(tmp_path / "bad.png")
            except InputError:
                refused += 1
            else:
                assert read.max() < CLASS_COUNT
        assert refused > 100

    def test_a_missing_file_and_a_folder(self, tmp_path):
        assert "none.png does not exist: check" in refusal(tmp_path / "none.png")
        assert "directory" in refusal(tmp_path)


class TestMirror:
    def test_pairs_trade_places_and_columns_turn_round(self):
        row = np.arange(CLASS_COUNT, dtype=np.uint8)[None]
        swap = {**dict(FLIP_PAIRS), **{right: left for left, right in FLIP_PAIRS}}
        expected = [swap.get(label, label) for label in reversed(range(CLASS_COUNT))]
        assert label_maps.flip(row)[0].tolist() == expected

    def test_twice_is_nothing(self, labels):
        labels[0, 0] = UNLABELLED
        np.testing.assert_array_equal(label_maps.flip(label_maps.flip(labels)), labels)

    def test_unlabelled_stays_unlabelled(self):
        assert label_maps.flip(np.array([[UNLABELLED]], np.uint8)) == UNLABELLED


def test_colours_are_the_palette_and_grey_for_unlabelled():
    every = np.append(np.arange(CLASS_COUNT), UNLABELLED).astype(np.uint8)[None, None]
    colours = label_maps.colourise(every)
    np.testing.assert_array_equal(colours[0, 0, :-1], PALETTE)
    np.testing.assert_array_equal(colours[0, 0, -1], (128, 128, 128))


@pytest.mark.parametrize("size", [1, 7, 20, 31, 64])
def test_resizing_takes_the_label_under_each_new_pixels_centre(labels, size):
    resized = label_maps.resize_nearest(labels, size)
    pillow = Image.fromarray(labels).resize((size, size), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(resized, np.asarray(pillow))


def test_writing_leaves_nothing_beside_the_file_nor_half_a_file(tmp_path, labels, monkeypatch):
    label_maps.write_label_map(tmp_path / "a.png", labels)
    before = (tmp_path / "a.png").read_bytes()

    def break_off(*paths):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", break_off)
    with pytest.raises(OSError, match="disk full"):
        label_maps.write_label_map(tmp_path / "a.png", labels + 1)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


class TestCollecting:
    def test_files_stay_in_order_and_folders_stand_for_their_masks(self, tmp_path):
        folder = tmp_path / "masks"
        folder.mkdir()
        for name in ("b.bmp", "a.PNG", "notes.txt", "._b.png", "Thumbs.db", "c.jpg"):
            (folder / name).touch()
        single = tmp_path / "z.png"
        single.touch()
        found = label_maps.collect_masks([single, str(folder)])
        assert found == [single, folder / "a.PNG", folder / "b.bmp"]

    def test_a_missing_path_is_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"nowhere.* does not exist"):
            label_maps.collect_masks([tmp_path / "nowhere"])

    def test_a_folder_without_masks_is_refused_with_what_it_has(self, tmp_path):
        (tmp_path / "a.jpg").touch()
        with pytest.raises(
            InputError, match=r"no PNG, BMP.* \(it holds 1 other file, a\.jpg\): masks"
        ):
            label_maps.collect_masks([tmp_path])


class TestOtherConventions:
    """What other software writes."""

    BISENET = (
        "background skin l_brow r_brow l_eye r_eye eye_g l_ear r_ear ear_r nose mouth u_lip l_lip "
        "neck neck_l cloth hair hat"
    )

    @pytest.fixture
    def labels(self):
        return np.arange(19, dtype=np.uint8).reshape(1, 19).repeat(3, 0)

    def test_the_colours_of_voc_are_ids(self, labels, tmp_path):
        # Its first colours, as the development kit lists them.
        voc = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128)]
        known = np.array(voc, np.uint8)[labels[:, :6]]
        Image.fromarray(known).save(tmp_path / "voc.png")
        np.testing.assert_array_equal(read_label_map(tmp_path / "voc.png"), labels[:, :6])

    def test_colours_of_both_conventions_at_once_are_refused(self, tmp_path):
        sheet = np.array([[(204, 0, 0), (128, 0, 0)]], np.uint8)  # skin here, id 1 there
        Image.fromarray(sheet).save(tmp_path / "mixed.png")
        with pytest.raises(InputError, match=r"colour \(128, 0, 0\) at pixel \(1, 0\)"):
            read_label_map(tmp_path / "mixed.png")

    def test_grey_that_may_be_unlabelled_or_a_class_of_voc_is_ambiguous(self, tmp_path):
        Image.fromarray(np.full((2, 2, 3), 128, np.uint8)).save(tmp_path / "grey.png")
        with pytest.raises(InputError, match="is ambiguous at pixel"):
            read_label_map(tmp_path / "grey.png", allow_unlabelled=True)

    def test_the_order_of_bisenet_is_renumbered(self, labels, tmp_path):
        Image.fromarray(labels).save(tmp_path / "ids.png")
        read = read_label_map(tmp_path / "ids.png", class_order="bisenet")
        assert [CLASSES[label] for label in read[0]] == self.BISENET.split()

    def test_what_class_colours_say_is_not_renumbered(self, labels, tmp_path):
        write_label_map(tmp_path / "indexed.png", labels)
        Image.fromarray(label_maps.colourise(labels)).save(tmp_path / "rgb.png")
        for name in ("indexed", "rgb"):
            read = read_label_map(tmp_path / f"{name}.png", class_order="bisenet")
            np.testing.assert_array_equal(read, labels)

    def test_an_unknown_order_is_refused(self, labels, tmp_path):
        write_label_map(tmp_path / "a.png", labels)
        with pytest.raises(InputError, match="choose canonical or bisenet"):
            read_label_map(tmp_path / "a.png", class_order="celeba")
