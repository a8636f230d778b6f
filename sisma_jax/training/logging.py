"""Output of a run in training: progress lines, rows in metrics.jsonl, and TensorBoard."""

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

from sisma_jax.common.files import write_atomically
from sisma_jax.devices.throughput import mfu, peak_memory
from sisma_jax.runs.folder import RunFolder


@runtime_checkable
class Log(Protocol):
    """A receiver of a run's metrics and images, called by the first process."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics by name. Only those of training include "learning_rate"."""

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """A picture such as a sheet of samples."""

    def close(self) -> None:
        """Called when the run has ended or stopped."""


class MetricsLog:
    """Writes rows of metrics by step. Rows past the step that a run continues from are dropped.

    TensorBoard's events are written synchronously: the thread of `tensorboardX.SummaryWriter` ends
    silently on a full disk, and the writer then waits for it forever.
    """

    def __init__(self, run: RunFolder, start: int) -> None:
        _drop_rows_after(run.metrics_file, start)
        self._file = run.metrics_file.open("a", encoding="utf-8")
        self._events = EventsWriter(str(run.path / "events"))
        # Makes TensorBoard hide events of earlier files from this step on.
        self._event(start + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics, leaving out those that are not finite, which JSON cannot represent.

        Raises:
          OSError: if a file cannot be written; `image` raises it too.
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
            with suppress(OSError):  # `write` or `image` has raised it already
                file.close()

    def _event(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **content))


class Logs:
    """Several logs as one; empty in processes that do not log."""

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
    """Whether there is a row of an evaluation, without a learning rate, at `step`."""
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError, KeyError, TypeError):  # a row cut short by a crash
            row = json.loads(line)
            if row["step"] == step and "learning_rate" not in row:
                return True
    return False


class Progress:
    """Speed and remaining time, measured after the first step of this process.

    Args:
      start, steps: the step before the first, and the last.
      batch_size: global batch size.
      macs: multiply-accumulates per image, for the MFU; None if unknown.
      peak: operations per second of all devices; None if unknown.
    """

    def __init__(
        self, start: int, steps: int, batch_size: int, macs: int | None, peak: float | None
    ) -> None:
        self._steps, self._batch_size, self._macs, self._peak = steps, batch_size, macs, peak
        self._first: tuple[int, float] | None = None
        self._last_step, self._since, self._waited = start, time.monotonic(), 0.0

    def compiled(self, step: int) -> None:
        """Start measuring after `step`, which excludes compilation."""
        self._first = (step, time.monotonic())
        self._last_step, self._since, self._waited = step, time.monotonic(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time inside from the speed."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def speed(self, step: int) -> dict[str, float]:
        """Images per second, MFU and share of time waiting for data since the last call, and the
        peak memory of a device in GiB."""
        elapsed = max(time.monotonic() - self._since, 1e-9)
        rate = (step - self._last_step) * self._batch_size / elapsed
        metrics = {"memory_gib": peak_memory() / 2**30}
        if rate:
            metrics |= {"images_per_second": rate, "data_wait": self._waited / elapsed}
            if self._macs and self._peak:
                metrics["mfu"] = mfu(self._macs, rate, self._peak)
        self._last_step, self._since, self._waited = step, time.monotonic(), 0.0
        return metrics

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
