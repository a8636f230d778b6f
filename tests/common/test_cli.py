"""What every command does with wrong input and with --help."""

import errno
import importlib
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sisma_jax
from sisma_jax import doctor
from sisma_jax.common import cli
from sisma_jax.common.commands import COMMANDS, MODULES
from sisma_jax.common.errors import InputError, RunError
from tests.command_lines import parser_of

ROOT = Path(__file__).parents[2]
HERE = {**os.environ, "PYTHONPATH": str(ROOT)}


def run_module(name, *arguments):
    before = sys.argv
    sys.argv = [name, *arguments]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=False)
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
    assert f"python -m {name}" in text and "example:" in text and "default" in text
    assert f"{COMMANDS[name].page} in the project's sources" in text


def test_every_command_is_listed(capsys):
    run_module("sisma_jax")
    listed = capsys.readouterr().out
    for module, command in COMMANDS.items():
        assert f"python -m {module} " in listed and command.what in listed
    package = Path(sisma_jax.__file__).parent
    commands = [path.stem for path in package.glob("[!_]*.py")]
    assert {f"sisma_jax.{name}" for name in commands} | {"sisma_jax.data.synthetic"} == {*COMMANDS}


@pytest.fixture
def sisma(monkeypatch):
    """The console script, called with arguments."""
    script = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    module, _, function = script["sisma"].partition(":")
    monkeypatch.setattr(cli, "_called_by_name", False)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["sisma", *arguments])
        getattr(importlib.import_module(module), function)()

    return call


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_the_console_script_lists_every_command(sisma, arguments, capsys):
    sisma(*arguments)
    listed = capsys.readouterr().out
    assert len(MODULES) == len(COMMANDS), "two modules have one name"
    for name, module in MODULES.items():
        assert re.search(rf"^  sisma {name} +{re.escape(COMMANDS[module].what)}$", listed, re.M)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_console_script_starts_every_command(sisma, name, capsys):
    with pytest.raises(SystemExit) as stop:
        sisma(name, "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: sisma {name} " in text and f"example:\n  sisma {name}" in text
    assert "python -m sisma_jax" not in text


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_a_command_goes_by_its_path_within_the_package_too(sisma, capsys):
    with pytest.raises(SystemExit) as stop:
        sisma("data.synthetic", "--help")
    assert stop.value.code == 0
    assert "usage: sisma synthetic " in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_errors_are_those_of_the_command(sisma, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        sisma("train", "--config", "none.py")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "none.py does not exist" in error
    assert error.endswith(" (see --help, or docs/training.md)\n")


def test_an_unknown_command_is_one_sentence_and_status_two(sisma, capsys):
    with pytest.raises(SystemExit) as stop:
        sisma("trian")
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: command 'trian' does not exist: did you mean 'train'? (see --help, or README.md)\n"
    )


def test_the_console_script_knows_its_version(sisma, capsys):
    sisma("--version")
    assert capsys.readouterr().out == f"sisma_jax {sisma_jax.__version__}\n"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("doctor", ["--weights", "none"], "--weights none is not a folder"),
        ("train", ["--config", "none.py"], "none.py does not exist"),
        ("sample", ["--workdir", "none", "--masks", "none", "--out", "none"], "none"),
        ("demo", ["--workdir", "none"], "none is not a run folder"),
        ("prepare", ["--source", "none", "--out", "out"], "none is not a folder"),
        (
            "cache_latents",
            ["--data", "none", "--autoencoder", "missing", "--out", "out"],
            "none is not a prepared data set",
        ),
        ("inspect_data", ["--data", "none"], "none is not a folder"),
        ("inspect_data", ["--data", "none", "--out", "."], "--out . cannot be written (it is a fo"),
        ("inspect_data", ["--data", __file__], "test_cli.py is a file: give the folder of a data"),
        ("prepare", ["--source", __file__, "--out", "out"], "is a file: name the folder of a data"),
        (
            "export",
            ["--workdir", "none", "--out", "out"],
            "none is not a run folder, it does not exist: give",
        ),
        (
            "export",
            ["--workdir", __file__, "--out", "out"],
            "is not a run folder, it is a file: gi",
        ),
        ("data.synthetic", ["--out", "none", "--count", "0"], "0"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_commands_end_with_a_sentence_and_status_two(
    name, arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run_module(f"sisma_jax.{name}", *arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert error.endswith(f" (see --help, or {COMMANDS[f'sisma_jax.{name}'].page})\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", COMMANDS)
def test_paths_are_options_that_refuse_addresses(name):
    parser = parser_of(name)
    assert not any(action.type is Path for action in parser._actions)
    paths = [action for action in parser._actions if action.type is cli.path]
    assert paths
    if name == "sisma_jax.sample":  # pairs of files count as well
        options = {option for action in paths for option in action.option_strings}
        assert {"--workdir", "--masks", "--out", "--reference", "--towards"} <= options
    for action in paths:
        (option,) = action.option_strings
        with pytest.raises(
            InputError, match=f"^{option} gs://bucket/folder is an address.*`gcloud storage rsync`"
        ):
            parser.parse_args([option, "gs://bucket/folder"])


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("train", "", "--config must be given: for example, `python -m sisma_jax.train --config"),
        ("sample", "--out x", "--workdir and --masks must be given: for example, `python -m "),
        ("evaluate", "--out x", "one of --workdir and --images must be given: `python -m "),
        ("evaluate", "--workdir a --images b", "--images and --workdir do not go together: leave"),
        ("sample", "--steps five", "--steps is 'five': give a whole number"),
        ("paint", "--nearest-colour far", "--nearest-colour is 'far': give a number"),
        ("sample", "--solver eulr", "--solver is 'eulr': choose one of euler, "),
        ("prepare", "--split offical", "--split is 'offical': choose one of sis, official"),
        ("prepare", "--crop=yes", "--crop takes no value: write --crop alone"),
        ("inspect_data", "--count", "--count takes one argument: write --count COUNT"),
        ("sample", "--seed 1 --seed 2", "--seed is given twice: give it once"),
        (
            "sample",
            "--reference a b --reference c d",
            "--reference is given twice: give all its values after one --reference",
        ),
        ("evaluate", "--steps=5 --steps=10", "--steps is given twice: give it once"),
        ("train", "--workdir=", "--workdir is empty: give a value, or leave the option out"),
        ("doctor", "--wieghts=x", "option '--wieghts' does not exist: did you mean '--weights'?"),
        ("doctor", "--zzz", "option '--zzz' does not exist: leave it out"),
        ("doctor", "a b", "argument 'a' belongs to no option: leave it out, or quote the value"),
        ("train", "--config=x --workdri y", "option '--workdri' does not exist: did you mean '--w"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_a_wrong_option_is_one_sentence_with_its_remedy(name, words, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_module(f"sisma_jax.{name}", *words.split())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
    assert error.endswith(f" (see --help, or {COMMANDS[f'sisma_jax.{name}'].page})\n")


def test_no_value_of_several_seems_to_be_left_out_at_will():
    text = parser_of("sisma_jax.sample").format_help()
    for shown in ("--reference FACE MASK", "--part CLASSES FACE MASK", "--shape CLASSES MASK"):
        assert f"  {shown}" in text


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_doctor_finds_this_installation_well(capsys, monkeypatch, tmp_path):
    (tmp_path / "lpips-v0.1-vgg.safetensors").touch()
    run_module("sisma_jax.doctor", "--weights", str(tmp_path))
    text = capsys.readouterr().out
    assert text.endswith("all is well\n")
    for said in ("jaxlib", "cpu", "chunked  ", "no NVIDIA GPU", "within", "finite loss"):
        assert said in text
    assert f"LPIPS vgg linear  {tmp_path}" in text and f"no {tmp_path}/pt_inception" in text


def test_the_doctor_says_what_is_wrong(capsys, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(doctor, "selective_scan", broken)
    monkeypatch.setattr(doctor, "accelerator", lambda: "cuda13")
    monkeypatch.setitem(doctor.TESTS, "model", lambda: "well")
    monkeypatch.setattr(sys, "argv", ["doctor"])
    with pytest.raises(RunError, match="self-test of scan failed: repair"):
        doctor.main()
    text = capsys.readouterr().out
    assert "FAILED: RuntimeError: no kernel image" in text
    assert "a device for cuda13, but JAX computes on the CPU: pip install -e '.[cuda13]'" in text


def test_a_reader_that_has_gone_ends_a_command_in_silence(tmp_path):
    """`| head`: no traceback, and the status that others end with."""
    code = (
        "from sisma_jax.common import cli\n"
        "cli.run(lambda: [print('x' * 1000) for _ in range(10**4)])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize("arguments", [[], ["--help"], ["prepare", "--help"]])
def test_a_reader_that_never_read_ends_the_list_and_the_help_in_silence(arguments):
    """The output is buffered, so the write fails when the buffer is flushed at the end."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "sisma_jax", *arguments],
        stdout=write,
        stderr=subprocess.PIPE,
        env={name: value for name, value in HERE.items() if name != "PYTHONUNBUFFERED"},
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_names_that_a_terminal_cannot_show_are_escaped(encoding):
    code = (
        "from sisma_jax.common import cli\nfrom sisma_jax.common.errors import InputError\n"
        "def main():\n    print('v\\udce9lo \\u00d7')\n"
        "    raise InputError('v\\udce9\\n\\x1b[2Jlo')\n"
        "cli.run(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 2
    assert done.stdout.startswith(b"v\\udce9lo ")
    assert done.stderr == b"error: v\\udce9\\n\\x1b[2Jlo\n"


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_closed_stream_changes_nothing(closed, tmp_path):
    words = "-m sisma_jax.data.synthetic --out set --count 1 --size 32"
    command = f"{sys.executable} {words} {closed}>&-"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, env=HERE).returncode == 0
    assert (tmp_path / "set/synthetic.json").exists()


@pytest.mark.parametrize(
    ("number", "status", "remedy"),
    [
        (errno.ENOTDIR, 2, "a file stands where a folder is needed, so give another path"),
        (errno.EISDIR, 2, "a folder stands where a file is needed, so give another path"),
        (errno.ENOSPC, 1, "make room, or give a path on another disk"),
    ],
)
def test_what_no_command_has_foreseen_of_paths_and_disks_is_one_sentence(
    number, status, remedy, monkeypatch, capsys
):
    def main():
        raise OSError(number, os.strerror(number), "some/file")

    left = []
    monkeypatch.setattr(cli.os, "_exit", left.append)
    cli.run(main)
    assert left == [status]
    assert capsys.readouterr().err == f"error: some/file: {os.strerror(number)}: {remedy}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_a_full_device_is_one_sentence():
    code = "from sisma_jax.common import cli; cli.run(lambda: print(1))"
    command = f"{sys.executable} -c '{code}' > /dev/full"
    done = subprocess.run(["sh", "-c", command], env=HERE, capture_output=True)
    assert done.returncode == 1 and b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr
