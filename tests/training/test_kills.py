"""A run killed again and again equals one that was not, bit for bit."""

import random
import signal
import time

import jax
import numpy as np
import pytest

from sisma_jax.synthesizer import Synthesizer
from tests.training.processes import ends, saved, start

KILLS, STEPS = 20, 700


@pytest.mark.slow
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
    assert not (run / "damaged").exists()
    a, b = (Synthesizer.load(tmp_path / name).params for name in ("whole", "run"))
    jax.tree.map(np.testing.assert_array_equal, a, b)
