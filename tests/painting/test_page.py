"""The page in a real browser: it loads by itself, and a stroke changes the faces where it went.

Needs the extra `browser` and Chromium; the run behind the page is trained just enough (a minute)
for faces to follow their masks, and a second one, of a model with a style, for faces to differ.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from benchmarks.paint_screenshot import FLAGS, choose, make_faces, serving, stroke
from sisma_jax.data import synthetic
from sisma_jax.data.classes import CELEBAMASK
from sisma_jax.data.input_pipeline import open_dataset
from sisma_jax.data.label_maps import read_label_map
from tests.tiny_runs import CONFIGS, SIZE, STYLE, arguments

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("page")]
CHROMIUM = shutil.which("chromium")
COUNT, TEST_FROM = 144, 128
HAT = CELEBAMASK.names.index("hat")
ROWS, COLUMNS = slice(4, 12), slice(4, 28)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where data/ and run/ will be."""
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def environment(folder):
    """For commands: programs are optimised, and kept out of the user's own cache."""
    own = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "XDG_CACHE_HOME": str(folder / "cache")}
    return os.environ | own


@pytest.fixture(scope="module")
def train(folder, environment):
    """(command, its arguments): runs it to its end."""

    def train(module, *arguments):
        command = [sys.executable, "-m", f"sisma_jax.{module}", *map(str, arguments)]
        subprocess.run(command, check=True, env=environment)

    synthetic.write_dataset(folder / "data", count=COUNT, size=SIZE, seed=0, workers=1)
    data = {"path": folder / "data", "size": SIZE, "test_from": TEST_FROM, "synthetic_count": 0}
    train(
        "train_autoencoder",
        f"--config={CONFIGS / 'autoencoder.py'}",
        f"--workdir={folder / 'autoencoder'}",
        *(f"--config.data.{key}={value}" for key, value in data.items()),
        "--config.train.steps=100",
        "--config.checkpoint.every=100",
    )
    return train


@pytest.fixture(scope="module")
def run(folder, train):
    """A run of little training."""
    settings = {"data.test_from": TEST_FROM, "model.width": 32, "samples.steps": 12}
    settings |= {"train.steps": 200, "train.batch_size": 8, "train.log_every": 100}
    settings |= {"checkpoint.every": 200}
    train("train", *arguments(folder, folder / "run", **settings))
    return folder / "run"


@pytest.fixture(scope="module")
def styled_run(folder, train):
    """One of less, of a model with a style."""
    settings = STYLE | {"data.test_from": TEST_FROM, "train.steps": 60, "checkpoint.every": 60}
    train("train", *arguments(folder, folder / "styled", "synthetic_style.py", **settings))
    return folder / "styled"


@contextmanager
def served(run, environment):
    """Serve the page by the command as a process of its own, which Ctrl-C ends at last."""
    with serving(run, environment) as (address, server):
        yield address
        server.send_signal(signal.SIGINT)
        rest, _ = server.communicate(timeout=60)
        assert server.returncode == 0 and rest.strip() == "ended", rest


@pytest.fixture(scope="module")
def address(request, environment):
    """The page's."""
    pytest.importorskip("gradio", reason="the extra `paint` is not installed")
    with served(request.getfixturevalue("run"), environment) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the extra `browser` is not installed"
    )
    if CHROMIUM is None:
        pytest.skip("there is no chromium here")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def opened(browser, address):
    """The page, loaded; at the end it has asked nobody else for anything and had no error."""
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    page.set_default_timeout(60_000)
    elsewhere, errors = [], []
    own = (address, "blob:", "data:")
    page.on("request", lambda r: r.url.startswith(own) or elsewhere.append(r.url))
    page.on("response", lambda r: r.status < 400 or errors.append(f"{r.status} {r.url}"))
    page.on("console", lambda m: m.type != "error" or errors.append(m.text))
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.goto(address)
    page.wait_for_selector("#easel canvas")
    yield page
    page.close()
    assert not elsewhere and not errors


@pytest.fixture
def page(browser, address):
    with opened(browser, address) as page:
        yield page


@pytest.fixture
def styled_page(browser, request, environment):
    """That of a model with a style."""
    pytest.importorskip("gradio", reason="the extra `paint` is not installed")
    with (
        served(request.getfixturevalue("styled_run"), environment) as address,
        opened(browser, address) as page,
    ):
        yield page


@pytest.fixture(scope="module")
def start(folder):
    """The first face of the test split."""
    return open_dataset(folder / "data", SIZE, split="test", test_from=TEST_FROM)[0]


def paint_block(page):
    """Rows 4 to 11 of columns 4 to 27, by strokes two pixels wide."""
    for row in range(5, 13, 2):
        stroke(page, SIZE, [(5, row), (27, row)])


def fetched(page, tmp_path, button):
    with page.expect_download() as download:
        page.click(button)
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    return path


def mask(page, tmp_path):
    return read_label_map(fetched(page, tmp_path, "#download-mask"))


def wait_for_mask(page, tmp_path, expected):
    """What the server sends takes its time."""
    for _ in range(20):
        if (mask(page, tmp_path) == expected).all():
            return
        page.wait_for_timeout(250)
    np.testing.assert_array_equal(mask(page, tmp_path), expected)


def faces(page, tmp_path):
    with zipfile.ZipFile(fetched(page, tmp_path, "#download-faces")) as archive:
        files = [archive.open(name) for name in sorted(archive.namelist())]
        return np.stack([np.asarray(Image.open(file)) for file in files])


def wait_for_faces(page, tmp_path, fits):
    """For a note may say the same twice."""
    page.click("#make")
    for _ in range(240):
        if fits(faces(page, tmp_path)):
            return
        page.wait_for_timeout(250)
    raise AssertionError("no such faces came")


def difference(a, b):
    return np.abs(a.astype(int) - b).mean(axis=(0, -1)) if a.ndim == 4 else np.abs(a - b).max(-1)


def test_painting_changes_the_mask_and_the_faces_where_it_went(page, start, tmp_path):
    np.testing.assert_array_equal(mask(page, tmp_path), start["labels"])
    before = faces(page, tmp_path)
    assert before.shape == (4, SIZE, SIZE, 3), "it opens with faces"

    choose(page, "hat")
    paint_block(page)
    expected = start["labels"].copy()
    expected[ROWS, COLUMNS] = HAT
    painted = mask(page, tmp_path)
    # A brush is round: at the ends of its strokes a pixel may be missing.
    ends = np.zeros_like(expected, bool)
    ends[ROWS, COLUMNS.start - 1 : COLUMNS.start + 2] = True
    ends[ROWS, COLUMNS.stop - 2 : COLUMNS.stop + 1] = True
    np.testing.assert_array_equal(painted[~ends], expected[~ends])
    assert set(np.unique(painted)) <= {*np.unique(start["labels"]), HAT}

    make_faces(page)
    assert re.search(r"4 faces of seed 0 in \d", page.text_content("#faces-note"))
    changed = difference(faces(page, tmp_path), before)
    inside = np.zeros((SIZE, SIZE), bool)
    inside[ROWS, COLUMNS] = True
    print(f"inside {changed[inside].mean():.1f}, outside {changed[~inside].mean():.1f}")
    assert changed[inside].mean() > 2 * changed[~inside].mean() and changed[inside].mean() > 4


def test_strokes_are_undone_and_redone_and_erased(page, start, tmp_path):
    choose(page, "hair")
    stroke(page, SIZE, [(2, 2), (20, 2)])
    one = mask(page, tmp_path)
    assert (one != start["labels"]).any()
    stroke(page, SIZE, [(2, 30), (20, 30)])
    two = mask(page, tmp_path)
    page.keyboard.press("Control+z")
    np.testing.assert_array_equal(mask(page, tmp_path), one)
    page.get_by_role("button", name="Redo").click()
    np.testing.assert_array_equal(mask(page, tmp_path), two)
    for _ in range(2):
        page.get_by_role("button", name="Undo").click()
    assert page.get_by_role("button", name="Undo").is_disabled()
    np.testing.assert_array_equal(mask(page, tmp_path), start["labels"])

    page.get_by_role("button", name="Fill all").click()
    assert set(np.unique(mask(page, tmp_path))) == {CELEBAMASK.names.index("hair")}
    page.get_by_text("Eraser").click()
    page.fill("#easel .width", "8")
    for row in (4, 10, 16):
        stroke(page, SIZE, [(0.5, row), (31.5, row)])
    erased = mask(page, tmp_path)
    np.testing.assert_array_equal(erased[:16], start["labels"][:16])
    assert (erased[24:] == CELEBAMASK.names.index("hair")).all()


def test_masks_are_chosen_and_uploaded_and_what_is_none_is_answered_in_a_sentence(
    page, folder, start, tmp_path
):
    third = open_dataset(folder / "data", SIZE, split="test", test_from=TEST_FROM)[2]["labels"]
    page.locator("#starts button").nth(2).click()
    wait_for_mask(page, tmp_path, third)
    upload = page.locator("input[type=file]").first
    (tmp_path / "letter.png").write_text("dear reader")
    upload.set_input_files(tmp_path / "letter.png")
    page.get_by_text("letter.png cannot be read as a PNG file").wait_for()
    np.testing.assert_array_equal(mask(page, tmp_path), third)
    Image.fromarray(start["labels"]).save(tmp_path / "mine.png")
    upload.set_input_files(tmp_path / "mine.png")
    wait_for_mask(page, tmp_path, start["labels"])


def test_a_photo_changes_where_its_mask_is_painted_and_nowhere_else(page, start, tmp_path):
    page.get_by_role("tab", name="Edit a photo").click()
    page.click("#use-sheet")
    page.locator("#photo img").wait_for()
    choose(page, "hat")
    stroke(page, SIZE, [(1, 1), (6, 1)])
    page.click("#edit")
    page.locator("#edited img").wait_for()
    edited = np.asarray(Image.open(fetched(page, tmp_path, "#download-result")))
    changed = (edited != start["image"]).any(-1)
    assert changed[:2, :6].any()
    assert not changed[16:].any() and not changed[:, 20:].any()


def test_faces_take_the_style_of_a_reference_until_it_is_cleared(styled_page, tmp_path):
    page = styled_page
    before = faces(page, tmp_path)
    assert "no reference" in page.text_content("#style-note")
    assert page.locator("#style-guidance input").first.is_disabled()

    page.click("#style-sheet")
    page.locator("#references img").wait_for()
    note = page.text_content("#style-note").strip()
    assert note == "References give the style of all painted classes."
    page.fill("#style-guidance input[type=number]", "3")
    make_faces(page)
    styled = faces(page, tmp_path)
    assert (styled != before).any()

    page.click("#parts input")
    page.get_by_role("option", name="hair", exact=True).click()
    page.locator("#references").get_by_text("hair").wait_for()
    assert "No reference gives background, skin" in page.text_content("#style-note")
    wait_for_faces(page, tmp_path, lambda made: (made != styled).any())

    page.click("#style-sheet")
    page.locator("#references img").nth(1).wait_for()
    page.click("#remove-reference")  # the second, which is the chosen one
    page.locator("#references img").nth(1).wait_for(state="detached")
    assert page.locator("#references").get_by_text("hair").count() == 1

    page.click("#no-style")
    page.locator("#references").wait_for(state="hidden")
    page.locator("#remove-reference").wait_for(state="hidden")
    wait_for_faces(page, tmp_path, lambda made: (made == before).all())


def test_a_model_without_a_style_has_no_references(page):
    assert page.locator("#style-sheet").count() == 0
    assert page.get_by_text("Style").count() == 0
