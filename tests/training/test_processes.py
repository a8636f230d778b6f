"""Two processes on this machine that train one model: together, killed, stopped, continued."""

import json
import shutil
import signal
import time

import numpy as np
import pytest

from sisma_jax.synthesis.synthesizer import Synthesizer
from tests.tiny_runs import train_tiny
from tests.training.processes import ends, saved, start, wait_for

STEPS = 24


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def alone(inputs_folder, tmp_path_factory):
    """The run that all others here have to equal: one process, undisturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "alone"
    train_tiny(inputs_folder, workdir, train__steps=STEPS, **EVALUATED)
    return workdir


EVALUATED = dict(evaluation__every=12, evaluation__items=3)


def rows(workdir):
    measured = {"images_per_second", "data_wait", "memory_gib", "mfu"}
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in measured} for line in lines]


def assert_same_run(workdir, other):
    """To float tolerance: other devices add up in another order, and training spreads that."""
    assert [row.keys() for row in rows(workdir)] == [row.keys() for row in rows(other)]
    for a, b in zip(rows(workdir), rows(other), strict=True):
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=2e-2, err_msg=str(a))
    first = [rows(folder)[0]["loss"] for folder in (workdir, other)]
    np.testing.assert_allclose(*first, rtol=1e-4)  # other batches or draws differ by 10 %


@pytest.mark.slow
def test_two_train_as_one_one_is_killed_and_both_continue(inputs_folder, alone, cache, tmp_path):
    run = tmp_path / "run"
    pair = lambda: start(
        inputs_folder, run, processes=2, cache=cache, mesh__fsdp=2, train__steps=STEPS, **EVALUATED
    )
    started = pair()
    wait_for(lambda: saved(run), started)
    started[1].send_signal(signal.SIGKILL)
    status, _, words = ends(started)[0]
    # The other one ends too: by itself, or JAX's own service aborts it where it notices first.
    assert status == -signal.SIGABRT or (status == 1 and "process 0 lost another process" in words)
    (first, said, _), (second, silent, _) = ends(pair())
    assert (first, second) == (0, 0)
    assert f"continuing {run} at step" in said and silent == ""
    assert saved(run)[-1] == STEPS
    assert_same_run(run, alone)
    # What both saved is one checkpoint for all.
    assert Synthesizer.load(run).step == STEPS


@pytest.mark.slow
def test_a_signal_to_one_stops_both_after_the_same_step(inputs_folder, cache, tmp_path):
    run = tmp_path / "run"
    settings = dict(processes=2, cache=cache, mesh__fsdp=2, train__steps=100_000)
    started = start(inputs_folder, run, **settings)
    wait_for(lambda: saved(run), started)
    started[1].send_signal(signal.SIGTERM)
    results = ends(started)
    assert [status for status, _, _ in results] == [0, 0], results[0][2][-2000:]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert saved(run)[-1] == last["step"]


@pytest.mark.slow
def test_a_run_continues_with_another_number_of_processes(inputs_folder, alone, cache, tmp_path):
    run = tmp_path / "run"
    for count, steps in ((2, 10), (1, 18), (2, STEPS)):
        shared = dict(processes=count, devices=4 // count, cache=cache, mesh__fsdp=2)
        results = ends(start(inputs_folder, run, **shared, train__steps=steps, **EVALUATED))
        assert [status for status, _, _ in results] == [0] * count, results[0][2][-2000:]
    # The first two commands ended with an evaluation of their own.
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [x for x in lines if json.loads(x)["step"] not in (10, 18) or "test_loss" not in x]
    (run / "metrics.jsonl").write_text("".join(kept))
    assert_same_run(run, alone)


@pytest.mark.slow
def test_a_step_that_one_process_cannot_read_is_left_by_both(inputs_folder, alone, cache, tmp_path):
    run = tmp_path / "run"
    pair = lambda steps: start(
        inputs_folder, run, processes=2, cache=cache, mesh__fsdp=2, train__steps=steps, **EVALUATED
    )  # fmt: skip
    ends(pair(12))
    for file in (run / "checkpoints" / "12").rglob("ocdbt.process_1/d/*"):
        file.write_bytes(file.read_bytes()[:10])
    (status, said, words), other = ends(pair(STEPS))
    assert (status, other[0]) == (0, 0), words[-2000:]
    assert "12 cannot be restored" in words and f"continuing {run} at step 10" in said
    assert_same_run(run, alone)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(train__batch_size=6), "train.batch_size 6 is not divisible by the 4 devices"),
        (dict(mesh__data=8), "mesh.data 8 x mesh.fsdp 1 does not cover the 4 devices"),
    ],
)
def test_wrong_input_is_said_once(overrides, message, inputs_folder, cache, tmp_path):
    run = tmp_path / "run"
    results = ends(start(inputs_folder, run, processes=2, cache=cache, **overrides))
    assert [status for status, _, _ in results] == [2, 2]
    assert f"error: {message}" in results[0][2] and "error:" not in results[1][2]
    assert not run.exists()


@pytest.mark.slow
def test_two_that_diverge_leave_one_folder_that_repeats_it(inputs_folder, cache, tmp_path):
    run = tmp_path / "run"
    diverge = dict(train__learning_rate=1e30, train__warmup=0, train__skip_limit=2)
    results = ends(start(inputs_folder, run, processes=2, cache=cache, **diverge))
    assert [status for status, _, _ in results] == [1, 1], results[0][2][-2000:]
    assert "not finite in 2 steps in a row" in results[0][2] and "error:" not in results[1][2]
    (kept,) = (run / "diverged").iterdir()
    assert saved(kept) == [int(kept.name.removeprefix("step_"))]
    # The same settings, then, but by one process: it repeats them and says so.
    again = start(inputs_folder, kept, devices=4, cache=cache, **diverge)
    ((status, said, words),) = ends(again)
    assert status == 1 and "not finite in 2 steps in a row" in words
    assert "continuing" in said or saved(kept) == [0]


@pytest.mark.slow
def test_a_record_that_only_one_process_reads_and_cannot(inputs_folder, cache, tmp_path):
    """What it says is seen, and nobody waits for it for minutes."""
    data = tmp_path / "data"
    shutil.copytree(inputs_folder / "data", data)
    for face in range(12):
        (data / f"CelebA-HQ-img/{face}.jpg").write_bytes(b"no image")
    whole = [f"--config.data.path={inputs_folder / 'data'}"]
    began = time.monotonic()
    results = ends(
        start(
            inputs_folder, tmp_path / "run", processes=2, cache=cache, last=whole, data__path=data
        )
    )
    assert time.monotonic() - began < 120
    assert all(status for status, _, _ in results)
    assert "cannot be read" in results[0][2], results[0][2][-2000:]


@pytest.mark.slow
def test_what_only_another_process_lacks_is_said_by_the_first(inputs_folder, cache, tmp_path):
    run = tmp_path / "run"
    lacking = ["--config.autoencoder.path=nowhere"]
    results = ends(start(inputs_folder, run, last=lacking, processes=2, cache=cache))
    assert [status for status, _, _ in results] == [2, 2]
    assert (
        "error: there is no autoencoder at nowhere" in results[0][2]
        and "(process 1)" in results[0][2]
    )
    assert "error:" not in results[1][2]
    assert not run.exists()
