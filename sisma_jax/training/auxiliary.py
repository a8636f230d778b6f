"""Trainings that end with an export and its scores: the autoencoder and the face parser.

Their run has a report with the scores of its last step. A run that has all its steps and a report
is finished: the command shows the report again, and trains on only if `train.steps` is raised.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from sisma_jax.data.classes import ClassSet
from sisma_jax.data.config import DataConfig
from sisma_jax.data.input_pipeline import Source, items
from sisma_jax.devices.hosts import is_first, together
from sisma_jax.devices.sharding import fill_up, local_copy
from sisma_jax.runs.folder import RunFolder
from sisma_jax.runs.state import Params
from sisma_jax.training.logging import Log
from sisma_jax.training.loop import Task, train
from sisma_jax.training.setup import Sections, check_folder, run_claimed

FACES_ON_SHEET = 12
TEST_BATCH = 16


def open_splits(
    run: RunFolder,
    config: ConfigDict,
    data: DataConfig,
    *,
    train: Sequence[str],
    test: Sequence[str],
    check: Callable[[Sequence[Source]], None] = lambda sources: None,
) -> tuple[Source, Source]:
    """Check the run folder and open both splits, whose synthetic faces are written if missing.

    Args:
      run: the run folder.
      config: the resolved config.
      data: its section `data`.
      train, test: fields of the items of either split.
      check: raises InputError if the data does not suit the model; called with [] before synthetic
        faces are written.

    Raises:
      InputError: as `check_folder`, `DataConfig.open_if_there` and `check`.
    """
    with together():
        check_folder(run, config)
        sources = data.open_if_there(train, test)
        check(sources)
    data.make_if_synthetic()
    with together():
        sources = sources or data.open_both(train, test)
        check(sources)
    return sources[0], sources[1]


def train_and_report(
    run: RunFolder,
    config: ConfigDict,
    sections: Sections,
    *,
    data: str | None,
    classes: ClassSet | None = None,
    perceptual: str | None = None,
    task: Callable[[], Task],
    export: Callable[[Params], dict],
    show: Callable[[dict], None],
    watch: Sequence[Log] = (),
) -> None:
    """Train in the run folder to the last step, then export and score the averaged weights.

    Args:
      run: the run folder.
      config: the resolved config, and its `sections`.
      data, classes, perceptual: see `RunFolder.claim`.
      task: returns what is trained; not called for a finished run.
      export: averaged weights -> scores by name; writes the export. Called in the first process.
      show: prints a report, the scores with "step".
      watch: further logs that receive metrics and samples.

    Raises:
      InputError, RunError: as `run_claimed` and `loop.train`.
    """
    with run_claimed(run, config, data=data, classes=classes, perceptual=perceptual) as record:
        report = run.report()
        if report is not None and report["step"] >= sections.train.steps:
            if is_first():
                show(report)
            return
        state = train(
            run=run,
            config=sections.train,
            checkpoint=sections.checkpoint,
            mesh=sections.mesh,
            record=record,
            task=task(),
            watch=watch,
        )
        if state.step < sections.train.steps:
            return  # stopped by a signal
        ema = local_copy(state.ema, sections.mesh)
        with together():  # the other processes wait for the first
            if is_first():
                report = {"step": int(state.step), **export(ema)}
                run.write_report(report)
                show(report)


def test_batches(source: Source) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """All items in batches of one shape, so that everything compiles once; the last one is padded.
    Each comes with the number of its items."""
    for start in range(0, len(source), TEST_BATCH):
        rows = range(start, min(start + TEST_BATCH, len(source)))
        batch = {name: fill_up(x, TEST_BATCH) for name, x in items(source, rows).items()}
        yield batch, len(rows)
