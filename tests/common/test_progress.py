"""Progress: a bar on a terminal and in a notebook, lines in a log."""

import contextlib
import io
import re

import pytest

from sisma_jax.common import progress
from sisma_jax.data import synthetic


class Terminal(io.StringIO):
    def isatty(self):
        return True


# A notebook's stream says that it is no terminal.
Cell = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def test_a_log_has_a_line_every_ten_seconds_and_one_at_the_end(clock):
    with (
        contextlib.redirect_stderr(io.StringIO()) as log,
        progress.bar(total=2600, initial=1000, desc="faces", unit="face") as bar,
    ):
        for done in range(1600):
            clock[0] += 1 / 64
            if done == 1000:
                bar.set_description("smiles")
            bar.update()
    assert log.getvalue().splitlines() == [
        "faces: 1640/2600, 64.00face/s, 00:15 left",
        "smiles: 2280/2600, 64.00face/s, 00:05 left",
        "smiles: 2600/2600 in 00:25, 64.00face/s",
    ]


def test_an_interrupted_work_says_how_far_it_came(clock):
    with contextlib.redirect_stderr(io.StringIO()) as log, pytest.raises(KeyboardInterrupt):
        for step in progress.over(range(40), desc="diversity", unit="mask"):
            clock[0] += 2
            if step == 3:
                raise KeyboardInterrupt
    assert log.getvalue() == "diversity: 3/40 in 00:08,  2.67s/mask\n"


@pytest.mark.parametrize("stream", [Terminal, Cell])
def test_a_terminal_and_a_notebook_have_a_moving_bar(stream):
    with contextlib.redirect_stderr(stream()) as shown:
        assert list(progress.over("abc", desc="letters", unit="letter")) == ["a", "b", "c"]
        with progress.bar(total=3, desc="faces", unit="face") as bar:
            bar.update(3)
    assert "\rfaces: 100%" in shown.getvalue() and shown.getvalue().count("\n") == 1


def test_a_command_writes_few_lines_into_a_log(tmp_path):
    with contextlib.redirect_stderr(io.StringIO()) as log:
        synthetic.write_dataset(tmp_path / "data", count=8, size=32, seed=0, workers=1)
    (line,) = log.getvalue().splitlines()
    assert re.fullmatch(r"faces: 8/8 in 00:\d\d, .+", line)
