"""What a run says while it trains: a line on the screen, a row in metrics.jsonl, TensorBoard."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tensorboardX import SummaryWriter

from sisma_jax.files import write_atomically
from sisma_jax.training.run_folder import RunFolder


class MetricsLog:
    """Rows of metrics by step. Rows past the step that a run continues from are dropped."""

    def __init__(self, run: RunFolder, start: int) -> None:
        _drop_rows_after(run.metrics_file, start)
        self._file = run.metrics_file.open("a")
        self._board = SummaryWriter(str(run.path), purge_step=start + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _drop_rows_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # a row cut short by a crash
    write_atomically(path, "".join(kept).encode())


class Progress:
    """Speed and remaining time, from the moment the first step of this process is done."""

    def __init__(self, start: int, steps: int, batch_size: int) -> None:
        self._steps, self._batch_size = steps, batch_size
        self._last_step, self._last_time = start, time.monotonic()
        self._first: tuple[int, float] | None = None

    def compiled(self, step: int) -> None:
        """Leave out of the remaining time what came before: compilation."""
        self._first = (step, time.monotonic())
        self._last_step, self._last_time = self._first

    def images_per_second(self, step: int) -> float:
        """Since the last call."""
        now = time.monotonic()
        rate = (step - self._last_step) / max(now - self._last_time, 1e-9)
        self._last_step, self._last_time = step, now
        return rate * self._batch_size

    def line(self, step: int, metrics: Mapping[str, float]) -> str:
        shown = "  ".join(
            f"{name} {value:.4g}" for name, value in metrics.items() if name != "learning_rate"
        )
        return f"step {step}/{self._steps}  {shown}  left {self._remaining(step)}"

    def _remaining(self, step: int) -> str:
        if self._first is None or step == self._first[0]:
            return "?"
        per_step = (time.monotonic() - self._first[1]) / (step - self._first[0])
        seconds = round((self._steps - step) * per_step)
        hours, minutes = seconds // 3600, seconds % 3600 // 60
        return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds % 60:02d}s"
