"""Keeps the state of a run whose numbers stopped being finite, for finding the cause."""

import shutil
from collections.abc import Callable, Mapping
from typing import Any

from sisma_jax.common.errors import RunError
from sisma_jax.common.files import write_json
from sisma_jax.devices.hosts import is_first, wait_for_all
from sisma_jax.runs.checkpoint import CheckpointConfig, Checkpoints
from sisma_jax.runs.folder import RunFolder
from sisma_jax.runs.state import TrainState


def keep_diverged(
    run: RunFolder,
    step: int,
    skipped: int,
    state: TrainState,
    record: Mapping[str, Any],
    batch_ids: Callable[[int], list[str]],
) -> RunError:
    """Save the state before the first skipped step as a run folder; return the error to raise.

    Args:
      run: the run's own folder.
      step: the last of the skipped steps.
      skipped: number of consecutive skipped steps.
      state: state after this step or a later one; it has not changed since.
      record: description of the run, for the checkpoint.
      batch_ids: maps the number of a global batch to the data set's names of its items.
    """
    before = step - skipped
    folder = RunFolder(run.diverged / f"step_{before}")
    if is_first():
        shutil.rmtree(folder.path, ignore_errors=True)
        folder.path.mkdir(parents=True)
        for file in (run.config_file, run.classes_file, run.data_file, run.perceptual_file):
            if file.exists():
                shutil.copy(file, folder.path)
        if run.autoencoder.exists():
            shutil.copytree(run.autoencoder, folder.autoencoder)
        batches = {str(k + 1): batch_ids(k) for k in range(before, step)}
        write_json(folder.path / "batches.json", batches)
    wait_for_all()
    zero = state.skipped * 0
    state = state.replace(
        step=zero + before,
        skipped=state.skipped - (state.step - before),
        skipped_in_a_row=zero,
    )
    with Checkpoints(
        folder.checkpoints, CheckpointConfig(every=1, keep=1, keep_every=0), record
    ) as checkpoints:
        checkpoints.save(before, state)
    return RunError(
        f"loss or gradient was not finite in {skipped} steps in a row, {before + 1} to {step}: "
        f"--workdir {folder.path} repeats them, its batches.json names their items; to continue, "
        "lower train.learning_rate and restart from the last checkpoint",
        shared=True,
    )
