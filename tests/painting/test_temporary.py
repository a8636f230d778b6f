"""Files of visitors: how long they stay, and how many of them."""

import os

import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.painting import temporary
from sisma_jax.painting.temporary import TemporaryFiles, temporary_files


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def files(tmp_path, clock):
    return TemporaryFiles(tmp_path, age=60.0, most_bytes=28_000, clock=clock)


@pytest.fixture
def write(tmp_path, clock):
    """(path in the folder, bytes): a file written now."""

    def write(name, count=10):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(count))
        os.utime(path, (clock.now, clock.now))
        os.utime(path.parent, (clock.now, clock.now))
        return path

    return write


def test_files_go_when_they_have_had_their_time(files, write, clock):
    old = write("a/mask.png")
    clock.now += 40
    young = write("b/mask.png")
    files.tidy()
    assert old.exists() and young.exists()
    clock.now += 30
    files.tidy()
    assert not old.exists() and young.exists()


def test_many_small_files_fill_a_disk_too(files, write, clock):
    for place in range(8):
        write(f"{place}/mask.png", 1)
        clock.now += 1
    files.tidy()
    left = sorted(path.parent.name for path in files.folder.rglob("*.png"))
    assert left == ["5", "6", "7"]


def test_empty_folders_go_as_well_but_not_what_is_about_to_be_written_into(files, clock):
    clock.now = (os.stat(files.new_folder()).st_mtime) + 30
    (folder,) = files.folder.iterdir()
    files.tidy()
    assert folder.is_dir()
    clock.now += 60
    files.tidy()
    assert list(files.folder.iterdir()) == [] and files.folder.is_dir()


def test_the_oldest_make_room_for_new_ones(files, write, clock):
    written = []
    for i in range(5):
        written.append(write(f"{i}/photo.png", 300))
        clock.now += 1
    files.tidy()
    assert [path.exists() for path in written] == [False, False, True, True, True]


def test_what_the_page_itself_shows_stays(files, write, clock):
    shown = write("a/face.png", 9_000)
    files.keep_present()
    clock.now += 10
    uploaded = write("b/photo.png", 9_000)
    files.tidy()
    assert shown.exists() and not uploaded.exists()
    clock.now += 1000
    files.tidy()
    assert shown.exists()


def test_a_download_makes_room_first(files, write, clock):
    old = write("a/faces.zip")
    clock.now += 61
    assert files.new_folder().is_dir()
    assert not old.exists()


def test_only_what_is_in_the_folder_is_an_upload(files, write, tmp_path_factory):
    path = write("a/mask.png")
    assert files.uploaded(str(path)) == path
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "mask.png"
    elsewhere.write_bytes(b"")
    (files.folder / "link.png").symlink_to(elsewhere)
    around = f"{files.folder}/a/../../{elsewhere.parent.name}/mask.png"
    for wrong in (
        None, "", "a\0b", "mask.png", "https://a.b/c.png", str(elsewhere), around,
        str(files.folder), str(path.parent), str(files.folder / "link.png"), f"{path}x",
    ):  # fmt: skip
        with pytest.raises(InputError, match="no longer exists: upload it again"):
            files.uploaded(wrong)


def test_it_is_tidied_all_the_time_and_gone_in_the_end(monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr(temporary, "_EVERY", 0.01)
    with temporary_files() as files:
        assert os.environ["GRADIO_TEMP_DIR"] == str(files.folder)
        path = files.folder / "photo.png"
        path.write_bytes(b"")
        os.utime(path, (0, 0))
        for _ in range(500):
            if not path.exists():
                break
            temporary.time.sleep(0.01)
        assert not path.exists()
        (files.folder / "other.png").write_bytes(b"")
    assert not files.folder.exists()
