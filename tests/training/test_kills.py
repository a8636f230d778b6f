"""A run killed again and again equals one that was not, bit for bit."""

import random
import signal
import time

import jax
import numpy as np
import pytest

from sisma_jax.synthesis.synthesizer import Synthesizer
from tests.killing import Point
from tests.training.processes import ends, saved, start

POINTS = {
    "before the config is written": Point("os.rename", r"-> .*/run/config\.json"),
    "before the first row of metrics": Point("open", r"/run/metrics\.jsonl -> a"),
    "before the first save": Point("os.mkdir", r"/checkpoints/2\.\S*tmp"),
    "in a save": Point("open", r"/checkpoints/2\.\S*tmp/state\S*/_METADATA -> w"),
    "in a save, of which the averaged weights are whole": Point(
        "open", r"/checkpoints/2\.\S*tmp/commit_success.txt -> w"
    ),
    "before a save appears": Point("os.rename", r"-> .*/checkpoints/4$"),
    "between a save and the samples": Point("os.rename", r"-> .*/samples/step_0+4\.png"),
    "in a restore": Point("open", r"/checkpoints/\d/state/_METADATA -> r"),
    "while an old step is deleted": Point("shutil.rmtree", r"/checkpoints/2\b"),
}
"""In the order that a run, continued after each, comes to them."""
SETTINGS = dict(
    devices=1, train__log_every=1, train__sample_every=4, evaluation__every=2, evaluation__items=2
)


def assert_same_weights(run, whole):
    assert not (run / "damaged").exists()
    a, b = (Synthesizer.load(folder).params for folder in (whole, run))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_killed_at_every_point_the_weights_are_those_of_an_undisturbed_run(inputs_folder, tmp_path):
    settings = SETTINGS | dict(cache=tmp_path / "compiled", train__steps=8)
    run = lambda name, **more: ends(start(inputs_folder, tmp_path / name, **settings, **more))[0]
    status, _, words = run("whole")
    assert status == 0, words[-2000:]
    for name, point in POINTS.items():
        status, _, words = run("run", kill_at=point)
        assert status == -signal.SIGKILL, (name, words[-2000:])
    assert saved(tmp_path / "run") == [2, 4, 6]
    status, said, words = run("run")
    assert status == 0, words[-2000:]
    assert "continuing" in said
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


KILLS, STEPS = 20, 700


@pytest.mark.night
@pytest.mark.timeout(1800)
def test_killed_at_random_moments_the_weights_are_those_of_an_undisturbed_run(
    inputs_folder, tmp_path
):
    """At moments of every kind: start, compilation, restoring, training, and saving most of all,
    for every second step is saved; some right after a save began."""
    settings = dict(
        devices=1, cache=tmp_path / "compiled", train__steps=STEPS, train__log_every=5,
        evaluation__every=50, evaluation__items=2,
    )  # fmt: skip
    begin = lambda name: start(inputs_folder, tmp_path / name, **settings)
    (status, _, words), = ends(begin("whole"), 600)  # fmt: skip
    assert status == 0, words[-2000:]

    run, dice = tmp_path / "run", random.Random(0)
    moments = {"before the first save": 0, "while saving": 0, "between saves": 0}
    for kill in range(KILLS):
        (one,) = begin("run")
        before = saved(run)
        until = time.monotonic() + dice.uniform(1, 12)
        if kill % 4 == 3:  # as soon as a save is seen to have begun, after some steps
            until = time.monotonic() + 120
            while time.monotonic() < until and one.process.poll() is None:
                if saved(run) != before and list(run.glob("checkpoints/*tmp*")):
                    break
        else:
            while time.monotonic() < until and one.process.poll() is None:
                time.sleep(0.01)
        assert one.process.poll() is None, "it ended before it could be killed: raise STEPS"
        one.send_signal(signal.SIGKILL)
        one.process.wait()
        if saved(run) == before:
            moments["before the first save"] += 1
        elif list(run.glob("checkpoints/*tmp*")):
            moments["while saving"] += 1
        else:
            moments["between saves"] += 1
    assert moments["while saving"] >= 4, moments

    (status, said, words), = ends(begin("run"), 600)  # fmt: skip
    assert status == 0, words[-2000:]
    assert "continuing" in said
    assert_same_weights(run, tmp_path / "whole")
