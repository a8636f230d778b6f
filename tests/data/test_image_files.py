"""Pictures of every origin come out alike: upright, 8 bits, sRGB, on white, of a bounded size."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from sisma_jax.common.errors import InputError
from sisma_jax.data import image_files
from sisma_jax.data.image_files import picture_size, read_lossless, read_picture

SUFFIXES = tuple(image_files.FORMATS)
ORIENTATION = 0x0112
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
STORED_AS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}
"""What a camera stores of an upright picture, by the orientation that it names."""


@pytest.fixture
def picture():
    """20 x 32 pixels, smooth enough for a JPEG, each corner its own colour."""
    y, x = np.mgrid[0:20, 0:32]
    return np.stack([8 * x, 12 * y, 255 - 4 * (x + y)], axis=-1).clip(0, 255).astype(np.uint8)


def save(path, pixels, **options):
    options |= {".webp": {"lossless": True}, ".jpg": {"quality": 100, "subsampling": 0}}.get(
        path.suffix, {}
    )
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, **options)


def refusal(path, read=read_picture) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and not message.endswith(".")
    return message


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s not in (".bmp", ".jpeg")])
@pytest.mark.parametrize("orientation", STORED_AS)
def test_every_orientation_is_turned_upright(picture, tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"a{suffix}"
    save(path, STORED_AS[orientation](picture), exif=exif)
    found = np.asarray(read_picture(path))
    assert found.shape == picture.shape
    assert np.abs(found.astype(int) - picture).mean() < 2
    assert picture_size(path) == (32, 20)
    if suffix != ".jpg":
        np.testing.assert_array_equal(np.asarray(read_lossless(path).image), picture)


def phone_exif(orientation_entry: bytes) -> bytes:
    """EXIF with a ResolutionUnit in ASCII and a Software in rationals, as some phones write it."""
    entries = [
        orientation_entry,
        struct.pack("<HHI4s", 0x128, 2, 2, b"2\0\0\0"),
        struct.pack("<HHII", 0x131, 5, 1, 8),
    ]
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + b"\0" * 4


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_malformed_tags_beside_the_orientation_do_not_matter(picture, tmp_path, suffix):
    exif = phone_exif(struct.pack("<HHII", ORIENTATION, 3, 1, 6))
    save(tmp_path / f"a{suffix}", STORED_AS[6](picture), exif=exif)
    found = np.asarray(read_picture(tmp_path / f"a{suffix}"))
    assert np.abs(found.astype(int) - picture).mean() < 2


@pytest.mark.parametrize(
    "exif",
    [
        phone_exif(struct.pack("<HHI4s", ORIENTATION, 2, 2, b"6\0\0\0")),
        phone_exif(struct.pack("<HHII", ORIENTATION, 3, 1, 9)),
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(40),
    ],
)
def test_an_orientation_that_is_none_turns_nothing(picture, tmp_path, exif):
    save(tmp_path / "a.jpg", picture, exif=exif)
    found = np.asarray(read_picture(tmp_path / "a.jpg"))
    assert found.shape == picture.shape


def test_an_orientation_behind_the_pixels_of_a_png_counts(picture, tmp_path):
    save(tmp_path / "a.png", STORED_AS[6](picture))
    content = (tmp_path / "a.png").read_bytes()
    exif = phone_exif(struct.pack("<HHII", ORIENTATION, 3, 1, 6))[6:]
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif
    chunk += struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    (tmp_path / "a.png").write_bytes(content[:-12] + chunk + content[-12:])
    np.testing.assert_array_equal(np.asarray(read_picture(tmp_path / "a.png")), picture)
    assert picture_size(tmp_path / "a.png") == (32, 20)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_of_grey_are_scaled(tmp_path, suffix):
    values = np.array([[0, 128, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    assert np.asarray(read_picture(tmp_path / f"a{suffix}"))[0, :, 0].tolist() == [
        0, 0, 1, 128, 255,
    ]  # fmt: skip


def test_sixteen_bits_of_which_zero_is_white_are_turned_round(tmp_path):
    """As scanners write them; Pillow turns round 8 bits only."""
    values = np.array([[0, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={262: 0})
    content = bytearray((tmp_path / "a.tif").read_bytes())
    entry = struct.pack("<HHI", 262, 3, 1)
    place = content.index(entry) + len(entry)
    content[place : place + 2] = b"\0\0"
    (tmp_path / "a.tif").write_bytes(content)
    assert np.asarray(read_picture(tmp_path / "a.tif"))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L"])
def test_what_is_transparent_is_white(tmp_path, mode):
    if mode in ("P", "L"):  # one index or value is named transparent
        image, options = Image.new(mode, (3, 1), 1), {"transparency": 0}
        image.putpixel((0, 0), 0)
        if mode == "P":
            image.putpalette([9, 9, 9, 40, 40, 40])
        shown = 40 if mode == "P" else 1
    else:
        image, options, shown = Image.new("RGBA", (3, 1), (40, 40, 40, 255)), {}, 40
        image.putpixel((0, 0), (40, 40, 40, 0))
        image = image.convert(mode)
    path = tmp_path / ("a.tif" if mode == "PA" else "a.png")
    if mode == "PA":
        image = image.convert("RGBA")
    image.save(path, **options)
    assert np.asarray(read_picture(path))[0, :, 1].tolist() == [255, shown, shown]


def test_half_transparent_is_half_white(tmp_path):
    Image.new("RGBA", (1, 1), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert np.asarray(read_picture(tmp_path / "a.png")).tolist() == [[[127] * 3]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_modes_are_converted(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (4, 4), "white").convert(mode).save(path)
    found = read_picture(path)
    assert found.mode == "RGB" and np.asarray(found).min() > 253


def test_an_inverted_cmyk_jpeg_has_its_colours(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = np.asarray(read_picture(tmp_path / "a.jpg"))[4, 4]
    assert red > 250 and green < 5 and blue < 5


def linear_profile() -> bytes:
    """sRGB's primaries with a linear curve: a gamma profile of Pillow's own making is Lab or XYZ,
    so the curve of sRGB is changed in place."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile = profile.replace(
        "sRGB built-in".encode("utf-16-be"), "line built-in".encode("utf-16-be")
    )
    for curve in (b"rTRC", b"gTRC", b"bTRC"):
        place = profile.index(curve) + 4
        start = int.from_bytes(profile[place : place + 4])
        assert profile[start : start + 4] == b"para"
        profile[start + 8 : start + 10] = b"\0\0"  # y = x ** g
        profile[start + 12 : start + 16] = struct.pack(">I", 1 << 16)  # g = 1
    return bytes(profile)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_colours_of_a_profile_become_srgb(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    save(path, np.full((2, 2, 3), 55, np.uint8), icc_profile=linear_profile())
    np.testing.assert_allclose(np.asarray(read_picture(path)), 128, atol=2)


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        b"no profile",
        b"\0" * 128,
    ],
)
def test_srgb_and_profiles_that_are_none_change_nothing(picture, tmp_path, profile):
    save(tmp_path / "a.png", picture, icc_profile=profile)
    np.testing.assert_array_equal(np.asarray(read_picture(tmp_path / "a.png")), picture)


def test_a_profile_of_other_channels_is_passed_over(tmp_path):
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    Image.fromarray(grey).save(tmp_path / "a.png", icc_profile=linear_profile())
    np.testing.assert_array_equal(np.asarray(read_picture(tmp_path / "a.png"))[..., 0], grey)


def test_pixels_that_are_no_colours_are_refused(tmp_path):
    Image.new("F", (4, 4)).save(tmp_path / "a.tif")
    assert "pixels of type F" in refusal(tmp_path / "a.tif")


def png_header(width: int, height: int, colour_type: int = 2) -> bytes:
    """A PNG of a size, with the pixels of one row."""

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    return image_files.PNG_SIGNATURE + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(99))), chunk(b"IEND", b"")]
    )


@pytest.mark.parametrize("read", [read_picture, read_lossless, picture_size])
def test_a_size_that_would_fill_the_memory_is_told_from_the_header(tmp_path, read, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it is decoded"))
    side = int(image_files.MAX_PIXELS**0.5) + 1
    (tmp_path / "a.png").write_bytes(png_header(side, side))
    assert f"{side} x {side} pixels, more than" in refusal(tmp_path / "a.png", read)
    (tmp_path / "a.png").write_bytes(png_header(200_000, 200_000))
    assert "more pixels than" in refusal(tmp_path / "a.png", read)


def test_a_photograph_that_the_decoder_can_shrink_may_be_larger(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "MAX_PIXELS", 1000)
    Image.new("RGB", (256, 200), "red").save(tmp_path / "a.jpg")
    assert read_picture(tmp_path / "a.jpg", draft=20).size == (32, 25)
    assert picture_size(tmp_path / "a.jpg", draft=True) == (256, 200)
    assert "256 x 200 pixels" in refusal(tmp_path / "a.jpg", picture_size)
    Image.new("RGB", (256, 200), "red").save(tmp_path / "b.jpg", progressive=True)
    assert "256 x 200 pixels" in refusal(
        tmp_path / "b.jpg", lambda path: read_picture(path, draft=9)
    )
    assert "256 x 200 pixels" in refusal(tmp_path / "a.jpg")


def test_a_huge_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "MAX_BYTES", 100)
    (tmp_path / "a.png").write_bytes(bytes(101))
    assert "the limit for picture files" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_files_of_several_pictures_are_refused(picture, tmp_path, suffix):
    frames = [Image.fromarray(picture), Image.fromarray(255 - picture)]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    assert "holds 2 pictures" in refusal(tmp_path / f"a{suffix}")


def test_of_a_phones_several_views_the_first_is_the_picture(picture, tmp_path):
    views = [Image.fromarray(picture), Image.fromarray(255 - picture)]
    views[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=views[1:], quality=100)
    found = np.asarray(read_picture(tmp_path / "a.jpg")).astype(int)
    assert np.abs(found - picture).mean() < 3


def test_what_a_file_is_its_content_says(picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "a.jpg", "PNG")
    np.testing.assert_array_equal(np.asarray(read_picture(tmp_path / "a.jpg")), picture)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a PNG file"),
        (b"nothing", "another format"),
        (b"GIF89a" + bytes(20), "another format"),
        (b"\xff\xd8\xff", "cannot be read as a JPEG file"),
    ],
)
def test_other_files_are_refused_in_a_sentence(tmp_path, content, message):
    (tmp_path / "a.png").write_bytes(content)
    assert message in refusal(tmp_path / "a.png")


def test_a_git_lfs_pointer_is_told(tmp_path):
    (tmp_path / "a.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in refusal(tmp_path / "a.png")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert "is a pipe or a device" in refusal(tmp_path / "a.png")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "a.png does not exist: check the path" in refusal(tmp_path / "a.png")
    assert "directory" in refusal(tmp_path)


def test_a_written_file_is_whole_and_reads_back(picture, tmp_path):
    image_files.save_png(Image.fromarray(picture), tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(read_picture(tmp_path / "a.png")), picture)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
