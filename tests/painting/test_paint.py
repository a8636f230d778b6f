"""The command that serves the page: what it refuses before it loads anything."""

import importlib.util
import socket

import pytest

from sisma_jax import paint
from sisma_jax.common.errors import InputError
from tests.tiny_runs import call


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_out_of_range_is_refused(tmp_path, port):
    with pytest.raises(InputError, match=rf"--port is {port}: use 1\.\.65535"):
        call(paint.main, "--workdir", tmp_path, "--port", port)


def test_a_port_in_use_is_refused(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} of 127\.0\.0\.1 .*another --port"):
            call(paint.main, "--workdir", tmp_path, "--port", port)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(InputError, match=r"--host 203\.0\.113\.1 is no address of this machine: "):
        paint.check_address("203.0.113.1", 7860)
    with pytest.raises(InputError, match=r"--host 999\.1\.1\.1 is no address \(.*\): give one of"):
        paint.check_address("999.1.1.1", 7860)


def test_where_gradio_is_missing_the_extra_is_named(tmp_path, monkeypatch):
    there = importlib.util.find_spec
    without = lambda name, *package: None if name == "gradio" else there(name, *package)
    monkeypatch.setattr(importlib.util, "find_spec", without)
    monkeypatch.setattr(paint, "check_address", lambda host, port: None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[paint\]'"):
        call(paint.main, "--workdir", tmp_path)


def test_who_may_log_in_is_read_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(paint, "check_address", lambda host, port: None)
    with pytest.raises(InputError, match="--auth has user:password where the name of a file"):
        call(paint.main, "--workdir", tmp_path, "--auth", "ann:secret")


@pytest.mark.parametrize(
    ("host", "everyone"),
    [
        ("127.0.0.1", "everyone on this machine"),
        ("localhost", "everyone on this machine"),
        ("0.0.0.0", "everyone who reaches this machine"),
        ("192.0.2.1", "everyone who reaches this machine"),
    ],
)
def test_who_may_use_the_page_is_said(host, everyone):
    without = paint.who_may_use_it(host, password=False)
    assert without == f"{everyone} may use it without a password (--auth asks for one)"
    with_password = paint.who_may_use_it(host, password=True)
    assert with_password.startswith(f"{everyone} may use it who has a password of --auth")
    assert ("unencrypted" in with_password) == ("reaches" in everyone)


def test_help_says_where_it_serves(capsys):
    with pytest.raises(SystemExit, match="0"):
        call(paint.main, "--help")
    shown = capsys.readouterr().out
    assert "127.0.0.1" in shown and "7860" in shown and "runs/parser" in shown
