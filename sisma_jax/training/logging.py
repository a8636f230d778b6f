"""What a run says while it trains: a line on the screen, a row in metrics.jsonl, TensorBoard."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from sisma_jax.files import write_atomically
from sisma_jax.training.run_folder import RunFolder
from sisma_jax.training.throughput import mfu, peak_memory


@runtime_checkable
class Log(Protocol):
    """Whom a run tells how it goes; the first of its processes does."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers by name: those of training have a learning rate, those of an evaluation none."""

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """A sheet of samples, or whatever the run draws of itself."""

    def close(self) -> None:
        """Nothing more comes: the run has ended or stopped."""


class MetricsLog:
    """Rows of metrics by step. Rows past the step that a run continues from are dropped.

    TensorBoard's events are written here and now: `tensorboardX.SummaryWriter` leaves them to a
    thread, which a full disk ends unheard, and then waits for it forever.
    """

    def __init__(self, run: RunFolder, start: int) -> None:
        _drop_rows_after(run.metrics_file, start)
        self._file = run.metrics_file.open("a", encoding="utf-8")
        self._events = EventsWriter(str(run.path / "events"))
        # TensorBoard hides events of earlier files from this step on.
        self._event(start + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers that are not finite are left out: JSON has none.

        Raises:
          OSError: if a file cannot be written; so does `image`.
        """
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        for name, value in finite.items():
            self._event(step, summary=summary.scalar(name, value))
        self._events.flush()

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        self._event(step, summary=summary.image(name, image, dataformats="HWC"))
        self._events.flush()

    def close(self) -> None:
        for file in (self._file, self._events):
            with suppress(OSError):  # only of what `write` or `image` has raised already
                file.close()

    def _event(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **content))


class Logs:
    """Several as one; none in the processes that write none."""

    def __init__(self, logs: Sequence[Log]) -> None:
        self._logs = logs

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for log in self._logs:
            log.write(step, metrics)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        for log in self._logs:
            log.image(step, name, image)

    def close(self) -> None:
        for log in self._logs:
            log.close()


def _drop_rows_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # a row cut short by a crash
    write_atomically(path, "".join(kept).encode())


def evaluated_at(path: Path, step: int) -> bool:
    """Whether there is a row of an evaluation at `step`: rows of training have a learning rate."""
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError, KeyError, TypeError):  # a row cut short by a crash
            row = json.loads(line)
            if row["step"] == step and "learning_rate" not in row:
                return True
    return False


class Progress:
    """Speed and remaining time, from the moment the first step of this process is done.

    Args:
      start, steps: the step before the first, and the last.
      batch_size: of all processes.
      macs: of one image, for the MFU; None where they are not known.
      peak: operations per second of all devices, likewise.
    """

    def __init__(
        self, start: int, steps: int, batch_size: int, macs: int | None, peak: float | None
    ) -> None:
        self._steps, self._batch_size, self._macs, self._peak = steps, batch_size, macs, peak
        self._first: tuple[int, float] | None = None
        self._last_step, self._since, self._waited = start, time.monotonic(), 0.0

    def compiled(self, step: int) -> None:
        """Leave out what came before: compilation."""
        self._first = (step, time.monotonic())
        self._last_step, self._since, self._waited = step, time.monotonic(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens inside is waiting for data."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is no training: it does not count for the speed."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def speed(self, step: int) -> dict[str, float]:
        """Since the last call: images a second, MFU, share of the time that waited for data; and
        the memory of a device at its most."""
        elapsed = max(time.monotonic() - self._since, 1e-9)
        rate = (step - self._last_step) * self._batch_size / elapsed
        found = {"memory_gib": peak_memory() / 2**30}
        if rate:
            found |= {"images_per_second": rate, "data_wait": self._waited / elapsed}
            if self._macs and self._peak:
                found["mfu"] = mfu(self._macs, rate, self._peak)
        self._last_step, self._since, self._waited = step, time.monotonic(), 0.0
        return found

    def line(self, step: int, metrics: Mapping[str, float]) -> str:
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        return f"step {step}/{self._steps}  {shown}  left {self._remaining(step)}"

    def _remaining(self, step: int) -> str:
        if self._first is None or step == self._first[0]:
            return "?"
        per_step = (time.monotonic() - self._first[1]) / (step - self._first[0])
        seconds = round((self._steps - step) * per_step)
        hours, minutes = seconds // 3600, seconds % 3600 // 60
        return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds % 60:02d}s"
