"""Helpers of the notebooks in `launch/`: devices, live curves, pictures, copies of run folders."""

import contextlib
import io
import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from PIL import Image

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import LOCK_FILES, is_left_by_system
from sisma_jax.kernels.selective_scan.api import choose
from sisma_jax.runs.folder import RunFolder, fixed_changes

REDRAWN_AFTER = 2.0
"""Seconds between drawings; one takes 0.2 s of a core that also prepares batches."""

CONFIG_FILE = RunFolder(Path()).config_file.name

CURVES = ("loss", "test_loss")

MEANING = {
    "cpu": "no accelerator: minutes for small faces of 64 pixels, too slow for photographs",
    "gpu": "an accelerator: photographs are within reach",
    "tpu": "accelerators, which share every batch: photographs are within reach",
}


def describe_devices(state: int = 16) -> str:
    """Describe, in a few lines, JAX's devices, what to expect of them, and the chosen scan.

    Args:
      state: state size of the scan, on which the choice depends.
    """
    devices = jax.devices()
    name, reason = choose(state)
    return "\n".join(
        (
            f"devices   {len(devices)} x {devices[0].device_kind}",
            f"          {MEANING.get(jax.default_backend(), 'never tried')}",
            f"scan      {name} ({reason})",
            f"versions  jax {jax.__version__}, Python {platform.python_version()}",
        )
    )


def picture(sheet: UInt8[np.ndarray, "h w 3"], zoom: int = 2) -> Image.Image:
    """Return `sheet` for display, each pixel enlarged to `zoom` x `zoom`."""
    return Image.fromarray(sheet.repeat(zoom, axis=0).repeat(zoom, axis=1))


class LivePlot:
    """A `Log` that draws loss and newest samples of a run below its cell while it trains.

        with LivePlot(folder) as plot:
            train_sisma(config, folder, watch=[plot])

    The newest line that the training prints is shown below the plot. The plot of a continued run
    starts with the curve in its folder.
    """

    def __init__(self, workdir: str | Path) -> None:
        """Draw what `workdir`, a run folder that may not exist yet, holds so far.

        Raises:
          InputError: IPython is not installed.
        """
        try:
            from IPython import display
        except ImportError as error:
            raise InputError(
                "a live plot needs IPython, which is not installed: open the notebook in Jupyter, "
                "or train without `watch`"
            ) from error
        self._run = RunFolder(Path(workdir))
        self._points: dict[str, list[tuple[int, float]]] = {name: [] for name in CURVES}
        self._sheet: np.ndarray | None = None
        if self._run.metrics_file.exists():
            for line in self._run.metrics_file.read_text("utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # a row cut short by a crash
                    row = json.loads(line)
                    self._add(row["step"], row)
        grids = sorted(self._run.samples.glob("step_*.png"))
        if grids:
            self._sheet = np.asarray(Image.open(grids[-1]).convert("RGB"))

        shown = lambda: display.Image(data=self._drawing())
        plot = display.display(shown(), display_id=True)
        self._drawn_at = time.monotonic()
        self._redraw = lambda: plot.update(shown())
        text = lambda line: {"text/plain": line}
        status = display.display(text(""), raw=True, display_id=True)
        self._printed = _LastLine(lambda line: status.update(text(line), raw=True))
        self._redirected = contextlib.redirect_stdout(self._printed)

    def __enter__(self) -> "LivePlot":
        self._redirected.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._redirected.__exit__(kind, error, traceback)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._add(step, metrics)
        self._draw(wait=REDRAWN_AFTER)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        self._sheet = image
        self._draw()

    def close(self) -> None:
        self._draw()

    def _add(self, step: int, metrics: Mapping[str, int | float]) -> None:
        for name in self._points.keys() & metrics.keys():
            # A continued run repeats the steps after its checkpoint.
            earlier = [point for point in self._points[name] if point[0] < step]
            self._points[name] = [*earlier, (step, metrics[name])]

    def _draw(self, wait: float = 0.0) -> None:
        if time.monotonic() - self._drawn_at >= wait:
            self._redraw()
            self._drawn_at = time.monotonic()

    def _drawing(self) -> bytes:
        figure = Figure(figsize=(11, 4), layout="constrained")
        curve, grid = figure.subplots(1, 2, width_ratios=(3, 2))
        curve.set(title=str(self._run.path), xlabel="step", yscale="log")
        for name, points in self._points.items():
            if points:
                curve.plot(*zip(*points, strict=True), ".-", label=name)
        if any(self._points.values()):
            curve.legend()
        curve.grid(True, which="both", alpha=0.3)
        grid.axis("off")
        if self._sheet is not None:
            grid.imshow(self._sheet)
        png = io.BytesIO()
        figure.savefig(png, dpi=100)
        return png.getvalue()


class _LastLine(io.TextIOBase):
    """A text stream that shows the last complete line."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._begun = show, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        complete = [line for line in lines if line.strip()]
        if complete:
            self._show(complete[-1])
        return len(text)


def copy_folder(source: epath.PathLike, target: epath.PathLike) -> None:
    """Make `target` a mirror of `source`, a run folder or export, unless it holds a longer run.

    Copies new and changed files, and deletes all others in `target`. Either may be in a bucket
    (`gs://`) that the libraries can read. The same call continues an interrupted copy. Do not copy
    a run while it trains.

    Raises:
      InputError: `source` is not a folder, or `target` holds another run, more steps of this run,
        or other files.
    """
    source, target = epath.Path(source), epath.Path(target)
    if not source.is_dir():
        raise InputError(f"{source} is not a folder: give one that was saved before")
    if target.exists() and (not target.is_dir() or _content(target)):
        _refuse_loss(source, target)
    _mirror(source, target)


def _refuse_loss(source: epath.Path, target: epath.Path) -> None:
    remedy = "name another folder, or delete what is there yourself"
    ours, theirs = (_read_json(folder / CONFIG_FILE) for folder in (source, target))
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        raise InputError(f"{target} is not a copy of {source}, it holds other files: {remedy}")
    for key, before, after in fixed_changes(ConfigDict(theirs), ConfigDict(ours)):
        raise InputError(
            f"{target} holds another run than {source}, with {key} = {before!r} instead of "
            f"{after!r}: {remedy}"
        )
    if _checkpoints(target) and not _checkpoints(source):
        raise InputError(
            f"{target} holds checkpoints of this run, but {source}, an export, has none: {remedy}"
        )
    step, kept = _last_step(source), _last_step(target)
    if kept > step:
        raise InputError(
            f"{target} holds step {kept} of this run, but {source} only step {step}: {remedy}"
        )


def _last_step(folder: epath.Path) -> int:
    """The newest step of a run folder or an export; 0 if there is none."""
    run, steps = RunFolder(Path()), [0, *_checkpoints(folder)]
    if (weights := folder / run.weights_file.name).exists():
        with contextlib.suppress(ValueError, KeyError), weights.open("rb") as file:  # cut short
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            steps.append(int(header["__metadata__"]["step"]))
    return max(steps)


def _checkpoints(folder: epath.Path) -> list[int]:
    """Steps of a run folder's checkpoints."""
    checkpoints = folder / RunFolder(Path()).checkpoints.name
    if not checkpoints.is_dir():
        return []
    return [int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal()]


def _read_json(path: epath.Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _content(folder: epath.Path) -> dict[str, epath.Path]:
    """A folder's entries by name, without locks and files that operating systems create."""
    ours = lambda name: name not in LOCK_FILES and not is_left_by_system(name)
    return {path.name: path for path in folder.iterdir() if ours(path.name)}


def _mirror(source: epath.Path, target: epath.Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    wanted = _content(source)
    # The config first: it identifies an interrupted copy.
    for name in sorted(wanted, key=lambda name: name != CONFIG_FILE):
        path = wanted[name]
        if path.is_dir():
            _mirror(path, target / name)
        elif _changed(path, target / name):
            path.copy(target / name, overwrite=True)
    for path in _content(target).values():
        if path.name not in wanted:
            path.rmtree() if path.is_dir() else path.unlink()


def _changed(file: epath.Path, copy: epath.Path) -> bool:
    if not copy.exists():
        return True
    now, then = file.stat(), copy.stat()
    return now.length != then.length or now.mtime >= then.mtime  # mtime has a resolution of 1 s
