"""What the loop does whatever it trains: health, evaluation, traces, what it says, full disks."""

import contextlib
import json
import os
import resource
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from sisma_jax.common.errors import InputError, RunError
from sisma_jax.devices.sharding import MeshConfig, make_mesh
from sisma_jax.runs.folder import RunFolder
from sisma_jax.training import loop
from tests.training import toy


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def weights(state):
    return np.asarray(state.params["w"])


def test_a_row_says_how_the_run_is(tmp_path):
    toy.run(tmp_path, task_changes={"macs": 1000})
    assert [row["step"] for row in rows(tmp_path)] == [2, 4, 6]
    last = rows(tmp_path)[-1]
    assert {"loss", "largest", "gradient_norm", "learning_rate", "skipped"} <= last.keys()
    assert last["images_per_second"] > 0 and last["memory_gib"] > 0 and 0 < last["mfu"] < 1
    assert 0 <= last["data_wait"] <= 1


def test_the_time_that_waits_for_data_is_told(tmp_path):
    class Slow(toy.Batches):
        def __next__(self):
            time.sleep(0.2)
            return super().__next__()

    feed = toy.Feed(lambda start: Slow(start, 8), lambda number: [])
    toy.run(tmp_path, task_changes={"feed": feed}, checkpoint={"every": 100})
    assert rows(tmp_path)[-1]["data_wait"] > 0.5


def test_the_stream_is_closed_whatever_happens(tmp_path):
    streams = []

    def opened(start):
        streams.append(toy.Batches(start, 8, bad=range(3, 99)))
        return streams[-1]

    feed = toy.Feed(opened, lambda number: [])
    with pytest.raises(RunError):
        toy.run(tmp_path, steps=20, task_changes={"feed": feed})
    assert [stream.closed for stream in streams] == [True]


def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path, capsys):
    state = toy.run(tmp_path, bad=(2, 3))
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (6, 2, 0)
    assert [row["skipped"] for row in rows(tmp_path)] == [0, 2, 0]
    assert "loss" not in rows(tmp_path)[1]  # JSON has no NaN
    assert "skipped 2" in capsys.readouterr().out


def test_too_many_in_a_row_stop_the_run_and_leave_what_repeats_them(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    with pytest.raises(RunError) as error:
        toy.run(run, steps=20, log_every=100, bad=range(5, 99))
    kept = run / "diverged" / "step_5"
    for words in ("3 steps in a row, 6 to 8", str(kept), "lower train.learning_rate"):
        assert words in str(error.value)
    batches = json.loads((kept / "batches.json").read_text())
    assert batches.keys() == {"6", "7", "8"} and batches["6"] == [f"5-{row}" for row in range(8)]
    assert (kept / "config.json").read_text() == "{}"
    assert saved(run) == [4, 6]

    # The copy continues at the first bad step, with the weights of the step before it.
    good = toy.run(tmp_path / "good", steps=5)
    again = toy.run(kept, steps=6, bad=range(5, 99))
    assert (int(again.step), int(again.skipped), int(again.skipped_in_a_row)) == (6, 1, 1)
    np.testing.assert_array_equal(weights(again), weights(good))

    # And the run itself continues from its last checkpoint, at step 6, where the cause is mended.
    assert int(toy.run(run, steps=20).skipped) == 1


def test_steps_in_flight_change_nothing(tmp_path, monkeypatch):
    """As on an accelerator, whose metrics are read two steps later."""
    one = make_mesh(MeshConfig(data=1, fsdp=1), jax.devices()[:1])
    run = lambda name, **options: toy.run(tmp_path / name, mesh=one, bad=(3,), **options)
    waited = run("waited")
    monkeypatch.setattr("sisma_jax.training.loop._unread", lambda: 2)
    jax.tree.map(np.testing.assert_array_equal, run("in_flight"), waited)
    measured = {"images_per_second", "data_wait", "memory_gib"}
    drop = lambda row: {k: v for k, v in row.items() if k not in measured}
    first, second = (map(drop, rows(tmp_path / name)) for name in ("waited", "in_flight"))
    assert list(first) == list(second)

    # What repeats bad steps is the same, though the loop has gone two steps further.
    for name in ("one", "other"):
        with pytest.raises(RunError, match="6 to 8"):
            toy.run(tmp_path / name, mesh=one, bad=(5, 6, 7), steps=20, log_every=100)
        monkeypatch.undo()
    batches = [tmp_path / name / "diverged/step_5/batches.json" for name in ("one", "other")]
    assert batches[0].read_text() == batches[1].read_text()
    kept = [toy.run(path.parent, mesh=one, steps=6) for path in batches]
    jax.tree.map(np.testing.assert_array_equal, *kept)


def test_memory_that_is_too_small_is_said(tmp_path, monkeypatch):
    def full(state, metrics):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr("sisma_jax.training.loop.jax.block_until_ready", lambda x: full(x, x))
    with pytest.raises(RunError, match=r"train.batch_size 8 \(RESOURCE.*raise train.accumulate"):
        toy.run(tmp_path)


def test_a_run_that_is_continued_equals_one_that_is_not_also_across_skipped_steps(tmp_path):
    whole = toy.run(tmp_path / "whole", bad=(3, 4))
    toy.run(tmp_path / "run", steps=4, bad=(3, 4))
    state = toy.run(tmp_path / "run", bad=(3, 4))
    jax.tree.map(np.testing.assert_array_equal, state, whole)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The toy's run of six steps; do not write into it."""
    workdir = tmp_path_factory.mktemp("toy") / "finished"
    toy.run(workdir)
    return workdir


def assert_same_run(run, state, finished):
    jax.tree.map(np.testing.assert_array_equal, state, toy.run(finished))
    measured = {"images_per_second", "data_wait", "memory_gib"}
    drop = lambda row: {k: v for k, v in row.items() if k not in measured}
    assert list(map(drop, rows(run))) == list(map(drop, rows(finished)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_returns_and_the_run_continues_exactly(
    number, finished, tmp_path, monkeypatch
):
    profile = loop._Loop._profile

    def interrupted(self, step, state):  # before each step
        if step == 3:
            os.kill(os.getpid(), number)
        profile(self, step, state)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "_profile", interrupted)
        assert int(toy.run(tmp_path).step) == 3
    assert saved(tmp_path) == [2, 3]
    assert signal.getsignal(signal.SIGINT) is before
    whole = toy.run(finished)
    jax.tree.map(np.testing.assert_array_equal, toy.run(tmp_path), whole)


def test_rows_past_the_restored_step_are_dropped(finished, tmp_path):
    """A crash after step 6 was logged and before it was saved."""
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "6")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    assert_same_run(run, toy.run(run), finished)


def test_init_from_starts_with_the_other_runs_averaged_weights(finished, tmp_path):
    other = shutil.copytree(finished, tmp_path / "other")
    (other / "config.json").write_text("{}")
    state = toy.run(tmp_path / "run", steps=1, init_from=str(other), learning_rate=1e-12)
    np.testing.assert_allclose(weights(state), toy.run(finished).ema["w"], atol=1e-6)


def cut_short(checkpoint):
    for path in [path for path in checkpoint.rglob("*") if path.is_file()]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_a_file(checkpoint):
    (checkpoint / "state" / "manifest.ocdbt").unlink()


def with_another_position(checkpoint):
    (checkpoint / "run" / "metadata").write_text('{"batch": 5}')


@pytest.mark.parametrize("damage", [cut_short, without_a_file, with_another_position])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(damage, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    damage(run / "checkpoints" / "6")
    with pytest.warns(UserWarning, match=r"checkpoints/6 cannot be restored .*back to .*/4$"):
        state = toy.run(run)
    assert_same_run(run, state, finished)
    assert saved(run) == [4, 6]
    assert [path.name for path in (run / "damaged").iterdir()] == ["6"]


@pytest.mark.parametrize(
    ("before", "after"), [((4, 1), (1, 4)), ((1, 4), (2, 2)), ((2, 2), (1, 1))]
)
def test_a_state_is_restored_onto_another_mesh(before, after, tmp_path, monkeypatch):
    monkeypatch.setattr("sisma_jax.devices.sharding.SMALLEST_SHARDED", 1)
    mesh = lambda shape: make_mesh(
        MeshConfig(data=shape[0], fsdp=shape[1]), jax.devices()[: shape[0] * shape[1]]
    )
    first = toy.run(tmp_path, steps=4, mesh=mesh(before))
    assert first.params["w"].sharding.is_fully_replicated == (before[1] == 1)
    second = toy.run(tmp_path, steps=5, mesh=mesh(after))
    assert second.params["w"].sharding.mesh.shape == dict(zip(("data", "fsdp"), after, strict=True))
    alone = toy.run(tmp_path / "alone", steps=5, mesh=mesh((1, 1)))
    np.testing.assert_allclose(weights(second), weights(alone), rtol=1e-5)


def test_the_newest_steps_stay_and_every_so_many_for_good(tmp_path):
    toy.run(tmp_path, steps=11, checkpoint=dict(every=1, keep=2, keep_every=4))
    assert saved(tmp_path) == [4, 8, 10, 11]


def test_a_checkpoint_says_what_it_is_of(tmp_path):
    toy.run(tmp_path, steps=2)
    said = json.loads((tmp_path / "checkpoints/2/run/metadata").read_text())
    assert said == {"batch": 2, "seed": 0, "config": {}, "data": None}
    (tmp_path / "checkpoints/2/run/metadata").write_text(json.dumps(said | {"seed": 7}))
    with pytest.raises(InputError, match="has seed 7, but this run has 0"):
        toy.run(tmp_path)


@pytest.fixture
def files_of_at_most():
    """As on a full disk, every larger write fails; the soft limit of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_stops_the_run_with_the_last_good_step_intact(tmp_path, files_of_at_most):
    run = tmp_path / "run"

    def grid(ema):  # after step 3, once step 2 is whole
        until = time.monotonic() + 60
        while not (run / "checkpoints" / "2").exists() and time.monotonic() < until:
            time.sleep(0.01)
        files_of_at_most(100_000)
        return np.zeros((4, 4, 3), np.uint8)

    trainable = toy.trainable(
        toy.settings(),
        init_params=lambda: {"w": jax.random.normal(jax.random.key(0), (toy.FEATURES, 2**15))},
        draw=lambda key, batch: {"noise": jax.numpy.zeros((len(batch["x"]), 1))},
    )
    large = {"trainable": trainable}
    with pytest.raises(RunError, match=r"could not be written .*File too large\): step 2 is kept"):
        toy.run(run, task_changes=large | {"sample_grid": grid}, sample_every=3)
    files_of_at_most(resource.RLIM_INFINITY)
    continued = toy.run(run, task_changes=large)
    undisturbed = toy.run(tmp_path / "other", task_changes=large)
    jax.tree.map(np.testing.assert_array_equal, continued, undisturbed)


def test_a_metrics_file_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    def full(self, step, metrics):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sisma_jax.training.loop.MetricsLog.write", full)
    with pytest.raises(RunError, match=r"cannot be written \(No space left on device\)"):
        toy.run(tmp_path)


def test_what_cannot_be_read_of_the_data_is_not_taken_for_a_full_disk(tmp_path):
    class Gone(toy.Batches):
        def __next__(self):
            raise FileNotFoundError(2, "No such file or directory", "data/shard-3")

    feed = toy.Feed(lambda start: Gone(start, 8), lambda number: [])
    with pytest.raises(FileNotFoundError, match="shard-3"):
        toy.run(tmp_path, task_changes={"feed": feed})


def test_evaluations_have_their_own_rows_and_times(tmp_path, capsys):
    seen = []

    def evaluate(ema):
        seen.append(np.asarray(ema["w"]))
        return {"test_loss": 1.5}

    state = toy.run(tmp_path, task_changes=dict(evaluate=evaluate, evaluate_every=4))
    told = [(row["step"], row["test_loss"]) for row in rows(tmp_path) if "test_loss" in row]
    assert told == [(4, 1.5), (6, 1.5)]
    np.testing.assert_array_equal(seen[-1], state.ema["w"])
    assert "test_loss 1.5" in capsys.readouterr().out


def test_what_a_stop_left_out_is_looked_at_when_the_run_continues(tmp_path, monkeypatch):
    """Stopped at a step with an evaluation and a grid: the rows are those of an undisturbed run."""
    task = dict(evaluate=lambda ema: {"test_loss": float(ema["w"].sum())}, evaluate_every=2)
    settings = dict(task_changes=task, sample_every=4)
    toy.run(tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        asked = contextlib.nullcontext(lambda step: step == 4)
        patch.setattr("sisma_jax.training.loop.stop_requests", lambda: asked)
        toy.run(tmp_path / "run", **settings)
    assert rows(tmp_path / "run")[-1]["step"] == 4
    assert not (tmp_path / "run/samples").exists()
    toy.run(tmp_path / "run", **settings)
    told = lambda name: [
        {k: row[k] for k in ("step", "loss", "test_loss") if k in row}
        for row in rows(tmp_path / name)
    ]
    assert told("run") == told("whole")
    grids = lambda name: sorted(x.name for x in (tmp_path / name / "samples").iterdir())
    assert grids("run") == grids("whole") == ["step_0000004.png", "step_0000006.png"]


def test_a_run_that_was_saved_and_not_looked_at_is_not_finished(tmp_path, capsys):
    """The end of it, in the middle of the last evaluation."""
    asked = []

    def evaluate(ema):
        asked.append(ema)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return {"test_loss": 1.5}

    task = dict(evaluate=evaluate, evaluate_every=100)
    with pytest.raises(KeyboardInterrupt):
        toy.run(tmp_path, task_changes=task)
    assert saved(tmp_path)[-1] == 6
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "te')
    assert int(toy.run(tmp_path, task_changes=task).step) == 6
    assert rows(tmp_path)[-1] == {"step": 6, "test_loss": 1.5}
    assert (tmp_path / "samples/step_0000006.png").exists()
    capsys.readouterr()
    toy.run(tmp_path, task_changes=task)
    assert "is trained: step 6 of 6" in capsys.readouterr().out and len(asked) == 2
    toy.run(tmp_path, task_changes=task, steps=3)
    assert "is trained: step 6, beyond train.steps 3\n" in capsys.readouterr().out


def test_what_is_evaluated_is_saved_before(tmp_path):
    def evaluate(ema):
        raise ValueError("it fails")

    with pytest.raises(ValueError, match="it fails"):
        toy.run(tmp_path, task_changes=dict(evaluate=evaluate, evaluate_every=4))
    assert saved(tmp_path) == [2, 4]


def test_a_lower_limit_of_skipped_steps_does_not_forbid_good_ones(tmp_path):
    toy.run(tmp_path, steps=4, bad=(2, 3))
    state = toy.run(tmp_path, skip_limit=2)
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (6, 2, 0)


def test_a_trace_of_the_steps_asked_for(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: calls.append(("start", path)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop", None)))
    task = dict(evaluate=lambda ema: calls.append(("step", None)) or {}, evaluate_every=1)
    toy.run(tmp_path, profile_at=3, profile_steps=2, task_changes=task)
    assert [name for name, _ in calls] == ["step"] * 2 + ["start", "step", "step", "stop"] + [
        "step", "step",
    ]  # fmt: skip
    assert calls[2][1] == str(RunFolder(tmp_path).profile)
    calls.clear()
    toy.run(tmp_path / "short", profile_at=6, profile_steps=9)
    assert [name for name, _ in calls] == ["start", "stop"]  # the run ends first


def test_nothing_moves_to_the_devices_by_accident(tmp_path, monkeypatch):
    """Batches that nobody placed would be copied in the middle of every step."""
    monkeypatch.setattr("sisma_jax.devices.sharding.put_batch", lambda batch, mesh: batch)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        toy.run(tmp_path)


def test_parameters_are_listed_with_their_shardings(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sisma_jax.devices.sharding.SMALLEST_SHARDED", 1)
    toy.run(tmp_path, mesh=make_mesh(MeshConfig(data=1, fsdp=4)))
    listed = (tmp_path / "parameters.txt").read_text()
    assert "('fsdp', None)" in listed and listed.strip() in capsys.readouterr().out
