"""What the notebooks show and move, without a notebook: IPython is a stand-in."""

import io
import json
import os
import sys
from itertools import pairwise
from types import SimpleNamespace

import fsspec
import jax
import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from PIL import Image
from safetensors.numpy import save

from sisma_jax.common.errors import InputError
from sisma_jax.runs import notebook
from sisma_jax.runs.notebook import LivePlot, copy_folder, describe_devices, picture
from sisma_jax.training.logging import Log

SHEET = np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8)


def test_devices_are_described_with_the_scan_and_why():
    text = describe_devices()
    assert f"{jax.device_count()} x cpu" in text and "too slow for photographs" in text
    assert "chunked (no NVIDIA GPU" in text and f"jax {jax.__version__}" in text


def test_a_picture_is_enlarged_without_blur():
    image = np.asarray(picture(SHEET, zoom=3))
    assert image.shape == (24, 36, 3)
    np.testing.assert_array_equal(image[1::3, 1::3], SHEET)
    np.testing.assert_array_equal(image[:3, :3], np.broadcast_to(SHEET[0, 0], (3, 3, 3)))


class Screen:
    """A stand-in for IPython.display that records the output of a cell and counts its updates."""

    def __init__(self):
        self.shown, self.updates = [], []

    def Image(self, data):
        return data

    def display(self, what, raw=False, display_id=False):
        place = len(self.shown)
        self.shown.append(what)
        self.updates.append(0)

        def update(what, raw=False):
            self.shown[place] = what
            self.updates[place] += 1

        return SimpleNamespace(update=update)

    @property
    def plot(self):
        return np.asarray(Image.open(io.BytesIO(self.shown[0])))

    @property
    def line(self):
        return self.shown[1]["text/plain"]


@pytest.fixture
def screen(monkeypatch):
    def new():
        screen = Screen()
        # matplotlib asks for the version.
        ipython = SimpleNamespace(display=screen, version_info=(9, 0))
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        return screen

    return new


def test_a_plot_follows_its_run(screen, tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "REDRAWN_AFTER", 0.0)
    here = screen()
    plot = LivePlot(tmp_path)
    assert isinstance(plot, Log)
    seen = [here.plot]
    plot.write(1, {"loss": 2.0, "learning_rate": 0.1})
    plot.write(2, {"loss": 1.0, "learning_rate": 0.1})
    seen.append(here.plot)
    plot.write(2, {"test_loss": 1.5})
    seen.append(here.plot)
    plot.image(2, "samples", SHEET)
    seen.append(here.plot)
    for before, after in pairwise(seen):
        assert (before != after).any()
    assert here.updates[0] == 4


def test_a_plot_is_drawn_seldom_but_samples_and_the_end_always(screen, tmp_path):
    here = screen()
    plot = LivePlot(tmp_path)
    for step in range(1, 50):
        plot.write(step, {"loss": 1.0 / step})
    assert here.updates[0] == 0, "all of it took less than two seconds"
    plot.image(49, "samples", SHEET)
    assert here.updates[0] == 1
    plot.write(50, {"loss": 0.01})
    plot.close()
    assert here.updates[0] == 2


def test_a_continued_run_begins_with_its_curve(screen, tmp_path):
    """Rows and samples in its folder; rows past the checkpoint come a second time."""
    fresh = screen()
    plot = LivePlot(tmp_path / "run")
    for step, loss in ((1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)):
        plot.write(step, {"loss": loss})
    plot.image(4, "samples", SHEET)

    (tmp_path / "run" / "samples").mkdir(parents=True)
    Image.fromarray(SHEET[::-1]).save(tmp_path / "run" / "samples" / "step_0000002.png")
    Image.fromarray(SHEET).save(tmp_path / "run" / "samples" / "step_0000004.png")
    rows = [(1, 4.0), (2, 3.0), (3, 7.0), (4, 8.0)]
    lines = [json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in rows]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines) + '{"step": 5, "lo')
    continued = screen()
    plot = LivePlot(tmp_path / "run")
    assert (continued.plot != fresh.plot).any()
    plot.write(3, {"loss": 2.0})
    plot.write(4, {"loss": 1.0})
    plot.close()
    np.testing.assert_array_equal(continued.plot, fresh.plot)


def test_the_last_whole_line_that_is_printed_stands_below(screen, tmp_path, capsys):
    here = screen()
    with pytest.raises(ValueError), LivePlot(tmp_path):
        print("a table\nof many lines")
        print("step 1/2", end="")
        assert here.line == "of many lines"
        print("  loss 3\n")
        assert here.line == "step 1/2  loss 3"
        raise ValueError
    print("outside")
    assert capsys.readouterr().out == "outside\n"


def test_without_ipython_a_plot_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "IPython", None)
    with pytest.raises(InputError, match="a live plot needs IPython, which is not installed: open"):
        LivePlot(tmp_path)


def tree(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="latin-1")


CONFIG = {"config.json": '{"seed": 1, "train": {"steps": 4}}'}
"""Settings of a run; a run may be continued with another `train.steps`."""


def test_a_folder_becomes_a_copy(tmp_path):
    run, store = tmp_path / "run", tmp_path / "a" / "store"
    write(run, **CONFIG, checkpoints__4__state="four", samples__x="x")
    copy_folder(run, store)
    assert tree(store) == tree(run)
    (run / "checkpoints" / "4" / "state").unlink()
    (run / "checkpoints" / "4").rmdir()
    write(run, **CONFIG, checkpoints__8__state="eight")
    copy_folder(str(run), str(store))
    assert tree(store) == tree(run) and not (store / "checkpoints" / "4").exists()


def test_what_is_there_is_not_copied_twice(tmp_path):
    write(tmp_path / "run", **CONFIG, old="x", new="x")
    os.utime(tmp_path / "run" / "old", (1e9, 1e9))
    copy_folder(tmp_path / "run", tmp_path / "store")
    write(tmp_path / "store", old="y", new="y")
    copy_folder(tmp_path / "run", tmp_path / "store")
    assert tree(tmp_path / "store") == tree(tmp_path / "run") | {"old": b"y"}


def test_there_and_back_by_a_bucket(tmp_path, monkeypatch):
    """The bucket is one in memory, behind the library that opens real ones."""
    memory, real = fsspec.filesystem("memory"), backend.fsspec_backend.fs
    is_bucket = lambda path: os.fspath(path).startswith("gs://")
    monkeypatch.setattr(
        backend.fsspec_backend, "fs", lambda path: memory if is_bucket(path) else real(path)
    )
    write(tmp_path / "run", **CONFIG, checkpoints__4__state="four")
    copy_folder(tmp_path / "run", "gs://bucket/run")
    copy_folder("gs://bucket/run", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(tmp_path / "run")


def export(step):
    return {"model.safetensors": save({"w": np.ones(2)}, {"step": str(step)}).decode("latin-1")}


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (
            {"letter": "dear"},
            "is not a copy of .*run, it holds other files: name another folder",
        ),
        ({"config.json": '{"seed": 2}'}, "holds another run than .* seed = 2 instead of 1"),
        ({"config.json": "{"}, "holds other files"),
        (CONFIG | {"checkpoints__12__state": "x"}, "holds step 12 of this run, but .* only step 8"),
        (CONFIG | export(12), "holds step 12 of this run, but .* only step 8"),
    ],
)
def test_a_copy_takes_the_place_of_no_other_and_of_no_longer_run(there, message, tmp_path):
    write(tmp_path / "run", **CONFIG, checkpoints__8__state="eight")
    write(tmp_path / "store", **there)
    before = tree(tmp_path / "store")
    with pytest.raises(InputError, match=message):
        copy_folder(tmp_path / "run", tmp_path / "store")
    assert tree(tmp_path / "store") == before


def test_a_run_that_was_continued_takes_the_place_of_its_copy(tmp_path):
    write(tmp_path / "run", **{"config.json": '{"seed": 1, "train": {"steps": 9}}'}, **export(9))
    write(tmp_path / "store", **CONFIG, **export(4))
    copy_folder(tmp_path / "run", tmp_path / "store")
    assert tree(tmp_path / "store") == tree(tmp_path / "run")


def test_a_copy_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    write(tmp_path / "run", **CONFIG, a="a", checkpoints__8__state="eight")
    copies, copy = [], type(epath.Path(tmp_path)).copy

    def cut_off(path, *place, **options):
        copies.append(path)
        if len(copies) == 2:
            raise OSError("the network is gone")
        return copy(path, *place, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path(tmp_path)), "copy", cut_off)
        with pytest.raises(OSError, match="gone"):
            copy_folder(tmp_path / "run", tmp_path / "store")
    copy_folder(tmp_path / "run", tmp_path / "store")
    assert tree(tmp_path / "store") == tree(tmp_path / "run")


def test_no_folder_to_copy_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="is not a folder: give one that was saved before"):
        copy_folder(tmp_path / "none", tmp_path / "store")
