"""What every command does with wrong input and with --help."""

import runpy
import sys

import pytest

from sisma_jax import cli
from sisma_jax.errors import InputError, RunError

COMMANDS = (
    "prepare",
    "inspect_data",
    "train",
    "train_autoencoder",
    "cache_latents",
    "sample",
    "export",
    "demo",
    "data.synthetic",
)


def run_module(name, *arguments):
    before = sys.argv
    sys.argv = [name, *arguments]
    try:
        runpy.run_module(f"sisma_jax.{name}", run_name="__main__", alter_sys=False)
    finally:
        sys.argv = before


def test_wrong_input_is_one_sentence_and_status_two(capsys):
    def main():
        raise InputError("steps is 0: use at least 1")

    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: steps is 0: use at least 1\n"


def test_a_run_that_cannot_go_on_is_one_sentence_and_status_one(capsys, monkeypatch):
    def main():
        raise RunError("the disk is full: make room")

    left = []
    monkeypatch.setattr(cli.os, "_exit", left.append)
    cli.run(main)
    assert left == [1]
    assert capsys.readouterr().err == "error: the disk is full: make room\n"


def test_other_errors_keep_their_traceback():
    def main():
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        cli.run(main)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_help_names_the_options_their_defaults_and_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        run_module(name, "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"python -m sisma_jax.{name}" in text and "example:" in text and "default" in text


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train", ["--config", "none.py"], "none.py does not exist"),
        ("sample", ["--workdir", "none", "--masks", "none", "--out", "none"], "none"),
        ("demo", ["--workdir", "none"], "none is not a run folder"),
        ("export", ["--workdir", "none", "--out", "out"], "none is not a run folder"),
        ("prepare", ["--source", "none", "--out", "out"], "none is not a folder"),
        (
            "cache_latents",
            ["--data", "none", "--autoencoder", "missing", "--out", "out"],
            "no autoencoder at missing",
        ),
        ("inspect_data", ["--data", "none"], "none is not a folder"),
        ("data.synthetic", ["--out", "none", "--count", "0"], "0"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_commands_end_with_a_sentence_and_status_two(
    name, arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run_module(name, *arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
