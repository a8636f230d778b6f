"""The page as others reach it, over HTTP: what it lets in, and what it says of the rest."""

import io
import json
import os
import socket
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from sisma_jax.common.errors import InputError
from sisma_jax.data import synthetic
from sisma_jax.models import SISMAConfig
from sisma_jax.models.autoencoder import load_autoencoder
from sisma_jax.painting import canvas, limits
from sisma_jax.painting.starts import Starts, Subject
from sisma_jax.painting.studio import Studio
from sisma_jax.painting.temporary import temporary_files
from sisma_jax.synthesis.options import SamplingOptions
from sisma_jax.synthesis.synthesizer import Synthesizer
from tests.tiny_runs import SIZE

pytest.importorskip("gradio", reason="the extra `paint` is not installed")
import httpx  # gradio's own

from sisma_jax.painting import app

MAKE = {"count": 2, "seed": 0, "steps": 2, "guidance": 1.0, "other": None, "parts": [], "share": 1}
ACCOUNTS = [("ann", "pässword: 1"), ("bob", "another")]


class Model(Studio):
    """Draws faces of noise, for here nobody looks at them; 13 is an unlucky seed."""

    def faces(self, labels, options, *, count, seed, **others):
        if seed == 13:
            raise OSError("/srv/private is full")
        return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def read(index):
    if index == 7:
        raise InputError("/srv/private/7.png is damaged")
    return Subject(*reversed(synthetic.face(0, index, SIZE)))


@pytest.fixture(scope="module")
def studio(inputs_folder):
    """With a model of no weights; one of the masks to begin with is damaged."""
    config = SISMAConfig.tiny(latent_size=SIZE // 4, factor=4, patch=1)
    synthesizer = Synthesizer(config, {}, load_autoencoder(inputs_folder / "autoencoder"), 4)
    starts = Starts("faces", 8, read)
    return Model("a run", synthesizer, starts, None, "/srv/runs", SamplingOptions(steps=2))


@contextmanager
def serving(studio, accounts=()):
    """Yields the page's files and a browser of sorts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with temporary_files() as files:
        page = app.build(studio, files)
        at = {"host": "127.0.0.1", "port": port, "size": SIZE, "accounts": accounts}
        with (
            app.served(page, files, **at) as address,
            httpx.Client(base_url=address, trust_env=False, timeout=30) as browser,
        ):
            yield files, browser


@pytest.fixture(scope="module")
def page(studio):
    with serving(studio) as page:
        yield page


@pytest.fixture
def browser(page):
    return page[1]


@pytest.fixture
def files(page):
    return page[0]


@pytest.fixture
def easel():
    return canvas.packed(read(0).labels)


def ask(browser, handler, *inputs, event=None):
    """What the page's own script would be told: whether it went well, and the output or error."""
    named = {one["api_name"]: one["id"] for one in browser.get("/config").json()["dependencies"]}
    body = {"data": inputs, "fn_index": named[handler], "session_hash": "one", "event_data": event}
    sent = browser.post(
        "/gradio_api/queue/join",
        content=json.dumps(body),
        headers={"content-type": "application/json"},
    )
    if sent.status_code != 200:
        return False, sent.json()["detail"]
    told = {"session_hash": "one"}
    with browser.stream("GET", "/gradio_api/queue/data", params=told) as events:
        for line in events.iter_lines():
            event = json.loads(line.removeprefix("data:")) if line else {}
            if event.get("msg") == "process_completed":
                output = event["output"]
                return event["success"], output["data" if event["success"] else "error"]
    raise AssertionError("the page did not answer")


def upload(browser, content, name="mine.png"):
    return browser.post("/gradio_api/upload", files={"files": (name, content)})


def sent(path):
    """As the page's script names an uploaded file."""
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def png(labels):
    file = io.BytesIO()
    Image.fromarray(labels).save(file, "PNG")
    return file.getvalue()


# --- Uploads


def test_a_mask_is_uploaded(browser):
    path = upload(browser, png(read(3).labels), "../m ä.png").json()[0]
    fine, output = ask(browser, "upload_mask", sent(path))
    assert fine and output[1]["value"] == canvas.packed(read(3).labels)


def test_an_upload_that_is_too_long_is_answered_in_a_sentence_and_leaves_nothing(browser, files):
    before = sorted(files.folder.rglob("*"))
    answer = upload(browser, bytes(limits.MOST_UPLOAD + 2**17))
    assert answer.status_code == 413
    assert answer.text == "the upload is longer than 32 MiB: send a smaller file"
    assert browser.get("/config").json()["max_file_size"] == limits.MOST_UPLOAD
    assert sorted(files.folder.rglob("*")) == before


def test_many_files_in_one_upload_are_no_way_around(browser, files):
    def parts():
        head = b'--X\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(limits.MOST_UPLOAD // 2**22 + 2):
            yield head + bytes(2**22) + b"\r\n"

    before = sorted(files.folder.rglob("*"))
    kind = {"content-type": "multipart/form-data; boundary=X"}
    answer = browser.post("/gradio_api/upload", content=parts(), headers=kind)
    assert answer.status_code == 413 and "longer than 32 MiB" in answer.text
    assert sorted(files.folder.rglob("*")) == before


def test_other_requests_are_short(browser):
    kind = {"content-type": "application/json"}
    for content, status, said in (
        (b" " * (limits.most_message(SIZE) + 1), 413, "the request is too long"),
        (b"[" * 2**19, 400, "the request is nested too deeply"),
    ):
        answer = browser.post("/gradio_api/queue/join", content=content, headers=kind)
        assert (answer.status_code, answer.json()) == (status, {"detail": said})


@pytest.mark.parametrize("path", ["/etc/passwd", "http://example.com/x.png", "", "a\0b", "x.png"])
def test_files_that_were_not_uploaded_are_not_read(browser, easel, path):
    expected = (False, "the request names a file that was not uploaded to this page: upload it")
    assert ask(browser, "upload_mask", sent(path)) == expected
    assert ask(browser, "download_mask", easel | {"other": [sent(path)]}) == expected


def test_files_that_are_gone_are_asked_for_again(browser, files):
    for path in (sent(files.folder / "gone.png"), None):
        fine, error = ask(browser, "upload_mask", path)
        assert not fine and error == "the uploaded file no longer exists: upload it again"


@pytest.mark.parametrize("route", ["file=http://example.com/", "file/https://a.b/", "proxy=http:x"])
def test_the_server_fetches_nothing_for_visitors(browser, route):
    assert browser.get(f"/gradio_api/{route}").status_code == 404


def test_files_of_the_server_are_not_handed_out(browser):
    assert browser.get("/gradio_api/file=/etc/passwd").status_code == 403


def test_visitors_files_go_and_what_the_page_opens_with_stays(browser, files):
    components = browser.get("/config").json()["components"]
    shown = next(one for one in components if one["props"].get("elem_id") == "starts")["props"]
    picture = shown["value"][1]["image"]
    path = upload(browser, png(read(4).labels)).json()[0]
    for file in (path, picture["path"]):
        os.utime(file, (0, 0))
    files.tidy()
    assert not os.path.exists(path)
    answer = browser.get(f"/gradio_api/file={picture['path']}")
    assert answer.status_code == 200 and Image.open(io.BytesIO(answer.content)).format == "PNG"
    fine, output = ask(browser, "start", None, event={"index": 1, "value": {"image": picture}})
    assert fine and output[1]["value"]["start"]


# --- Requests that no slider sends


def test_faces_are_made(browser, easel):
    fine, output = ask(browser, "make", easel, *MAKE.values())
    assert fine and len(output[1]["value"]) == 2


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"count": 10**6}, "Value 1000000 is greater than maximum value 16."),  # gradio's
        ({"steps": 10**9}, "Value 1000000000 is greater than maximum value 50."),
        ({"count": 1.5}, "the number of faces is 1.5: use a whole number from 1 to 16"),
        ({"guidance": float("nan")}, "guidance is nan: use 0 to 5"),
        ({"seed": -1}, "seed is -1: use a whole number from 0 to 4294967295"),
        ({"seed": 2**40}, "seed is 1099511627776: use a whole number from 0 to 4294967295"),
        ({"seed": None}, "seed is None: use a whole number from 0 to 4294967295"),
    ],
)
def test_numbers_out_of_range_are_refused(browser, easel, change, error):
    assert ask(browser, "make", easel, *(MAKE | change).values()) == (False, error)


@pytest.mark.parametrize("index", [6, -1, "a", None, 10**20])
def test_what_is_not_there_cannot_be_chosen(browser, index):
    for handler, what in (("start", "mask"), ("choose", "face")):
        fine, error = ask(browser, handler, None, event={"index": index, "value": None})
        assert not fine and error.startswith(f"there is no {what} number ")


# --- What visitors are told of the server


def test_of_the_servers_own_files_nothing_is_said(browser, easel, capfd):
    assert "/srv" not in browser.get("/config").text
    fine, output = ask(browser, "more", None, None)
    assert fine and len(output[1]["value"]) == 2
    fine, error = ask(browser, "start", None, event={"index": 1, "value": None})
    assert not fine and error == "mask 7 cannot be read on the server: take another"
    fine, error = ask(browser, "make", easel, *(MAKE | {"seed": 13}).values())
    assert not fine and error.startswith("This failed on the server; its terminal has the details")
    terminal = capfd.readouterr().err
    assert "/srv/private/7.png is damaged" in terminal and "/srv/private is full" in terminal


def test_without_a_parser_the_page_does_not_say_where_one_was_looked_for(browser):
    assert "There is no face parser to find a photo's mask" in browser.get("/config").text


def test_handlers_cannot_be_called_past_the_queue(page):
    _, browser = page
    for route in ("run/make", "api/make", "run/upload_mask"):
        answer = browser.post(f"/gradio_api/{route}", json={"data": []})
        assert answer.status_code == 404, route


def test_a_request_that_names_many_files_is_refused(page):
    files, browser = page
    named = [{"path": str(files.folder / f"{k}.png")} for k in range(200)]
    answer = browser.post("/gradio_api/queue/join", json={"data": named})
    assert answer.status_code == 400 and "too many files" in answer.json()["detail"]


# --- Passwords


def test_without_a_password_nothing_is_let_in(studio, easel):
    with serving(studio, ACCOUNTS) as (files, browser):
        present = sorted(files.folder.rglob("*"))
        for method, route in (
            ("GET", "config"),
            ("GET", "gradio_api/info"),
            ("POST", "gradio_api/upload"),
            ("POST", "gradio_api/queue/join"),
            ("GET", "gradio_api/queue/data?session_hash=one"),
            ("GET", f"gradio_api/file={next(files.folder.rglob('*.png'))}"),
        ):
            assert browser.request(method, f"/{route}").status_code == 401, route
        assert upload(browser, png(read(0).labels)).status_code == 401
        assert sorted(files.folder.rglob("*")) == present

        wrong = {"username": "ann", "password": "another"}
        assert browser.post("/login", data=wrong).status_code == 400
        assert browser.get("/config").status_code == 401
        for user, password in ACCOUNTS:
            right = {"username": user, "password": password}
            assert browser.post("/login", data=right).status_code == 200
            assert browser.get("/config").json()["username"] == user
            browser.cookies.delete(next(name for name in browser.cookies if "unsecure" in name))
        browser.post("/login", data=right)
        assert ask(browser, "make", easel, *MAKE.values())[0]
