"""Who may use a page that asks for a password."""

import os
from pathlib import Path

import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.painting.accounts import read_accounts


def written(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_each_line_is_an_account(tmp_path, start):
    path = written(tmp_path / "a", f"{start}ann : pässword: 1 \r\n\r\n bob:b\n")
    assert read_accounts(path) == [("ann", " pässword: 1 "), ("bob", "b")]


def test_a_password_on_the_command_line_is_refused_and_not_repeated(tmp_path):
    with pytest.raises(InputError, match="on the command line would be visible") as error:
        read_accounts(tmp_path / "ann:secret")
    assert "secret" not in str(error.value)
    with pytest.raises(InputError, match=r"--auth .*/nothere cannot be read .*: name a file of li"):
        read_accounts(tmp_path / "nothere")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_may_read_or_write_is_refused(tmp_path, mode):
    path = written(tmp_path / "a", "ann:secret\n")
    path.chmod(mode)
    with pytest.raises(InputError, match=f"is open to other users .*: chmod 600 {path}"):
        read_accounts(path)


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_pipe_is_read(tmp_path):
    read, write = os.pipe()
    os.write(write, b"ann:secret\n")
    os.close(write)
    with open(read, "rb"):
        assert read_accounts(Path(f"/dev/fd/{read}")) == [("ann", "secret")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no line user:password, so nobody could log in"),
        ("ann:secret\nbob\n", "line 2 of --auth .* is not of the form user:password"),
        ("ann:\n", "line 1 of --auth .* is not of the form user:password"),
        (":secret\n", "line 1 of --auth .* is not of the form user:password"),
        ("ann:secret\nann:other\n", "line 2 of --auth .* names 'ann' again: remove one"),
        (b"ann:\xff\n", "is not UTF-8 text"),
    ],
)
def test_what_lets_nobody_in_is_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as error:
        read_accounts(written(tmp_path / "a", content))
    assert "secret" not in str(error.value)
