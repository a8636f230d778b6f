"""The files of a run folder.

config.json     the resolved config
classes.json    the classes of its label maps
data.json       the checksum of the data set, or of the file listing of a raw one
perceptual.json the checksum of the weights that the perceptual loss uses
checkpoints/    Orbax steps: state, ema and position
damaged/        steps that could not be restored
autoencoder/    a copy of the autoencoder, so that the run folder can be moved
parser/         the face parser trained by the run
metrics.jsonl   rows of training and evaluation metrics by step
parameters.txt  names and shapes of the weights
samples/        sample grids by step
masks/          label maps of the faces that `sisma_jax.demo` shows, by id
profile/        traces requested by train.profile_at
diverged/       by step: a run folder with the state before numbers stopped being finite, and the
                batches' ids in batches.json
lock            held by the process that trains here, which lock.holder names
report.json     scores of the finished run
events.*        TensorBoard

An exported folder (`sisma_jax.export`) has config.json, classes.json, autoencoder/ and, in place of
checkpoints/, the averaged weights:

model.safetensors   weights by the names of parameters.txt; its header has the training step
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sisma_jax.common.config import flatten, from_json, to_json, trained_by
from sisma_jax.common.errors import InputError
from sisma_jax.common.files import (
    LOCK,
    LOCK_FILES,
    LockedError,
    is_new_or_empty,
    library_path,
    lock,
    read_json,
    why_unwritable,
    write_atomically,
    write_json,
)
from sisma_jax.data.checksums import differ
from sisma_jax.data.classes import CELEBAMASK, ClassSet

CHANGEABLE = (
    "autoencoder.cache",
    "autoencoder.path",
    "checkpoint.",
    "data.path",
    "data.threads",
    "discriminator.learning_rate",
    "evaluation.",
    "loss.perceptual_linear",
    "loss.perceptual_network",
    "mesh.",
    "model.remat",
    "model.scan",
    "samples.",
    "train.accumulate",
    "train.clip",
    "train.init_from",
    "train.learning_rate",
    "train.log_every",
    "train.profile_at",
    "train.profile_steps",
    "train.sample_every",
    "train.skip_limit",
    "train.steps",
)
"""Config keys (or sections, with a dot) that may differ when a run is continued."""

ADDED = {
    "augment.brightness": 0.0,
    "augment.contrast": 0.0,
    "augment.saturation": 0.0,
    "augment.shift": 0.0,
    "augment.turn": 0.0,
    "augment.zoom": 0.0,
    "autoencoder.codebook": 0,
    "discriminator.channels": None,
    "discriminator.layers": None,
    "discriminator.learning_rate": None,
    "discriminator.scales": None,
    "flow.class_balance": 0.0,
    "flow.prediction": "noise",
    "flow.zero_terminal_snr": False,
    "loss.adversarial_weight": 0.0,
    "loss.class_balance": 0.0,
    "loss.commitment": None,
    "loss.perceptual_levels": None,
    "loss.perceptual_weight": 0.0,
    "model.attention_head": None,
    "model.mixer": "mamba",
    "model.modulation": "gate",
    "model.style_grouping": "separate",
    "train.betas": [0.9, 0.999],
}
"""Keys that configs of older runs lack, and the value they need to continue such a run; None if any
value will do because the run does not use it."""

SPELLED = {"data.flip": {True: "exchange", False: "none"}}
"""Today's spelling of values in configs of older runs, by key."""

OF_ITS_COPY = ("autoencoder.dtype", "")
"""A key, and the value in configs of older runs that leaves it to the run's copy of the first
stage."""


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths inside one run folder; raises InputError if `path` is a URL."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", library_path(self.path))

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def classes_file(self) -> Path:
        return self.path / "classes.json"

    @property
    def data_file(self) -> Path:
        return self.path / "data.json"

    @property
    def perceptual_file(self) -> Path:
        return self.path / "perceptual.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights_file(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def autoencoder(self) -> Path:
        return self.path / "autoencoder"

    @property
    def parser(self) -> Path:
        return self.path / "parser"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def parameters_file(self) -> Path:
        return self.path / "parameters.txt"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def sample_file(self, step: int) -> Path:
        return self.samples / f"step_{step:07d}.png"

    @property
    def masks(self) -> Path:
        return self.path / "masks"

    @property
    def profile(self) -> Path:
        return self.path / "profile"

    @property
    def diverged(self) -> Path:
        return self.path / "diverged"

    @property
    def damaged(self) -> Path:
        return self.path / "damaged"

    @property
    def lock_file(self) -> Path:
        return self.path / LOCK

    @property
    def report_file(self) -> Path:
        return self.path / "report.json"

    def report(self) -> dict[str, Any] | None:
        """Read the report; None if there is none or it is damaged."""
        return read_json(self.report_file)

    def write_report(self, report: dict[str, Any]) -> None:
        write_json(self.report_file, report)

    def classes(self) -> ClassSet:
        """The classes of the run's label maps."""
        return ClassSet.read(self.classes_file) if self.classes_file.exists() else CELEBAMASK

    def write_classes(self, classes: ClassSet) -> None:
        write_json(self.classes_file, classes.to_json())

    def config(self, *commands: str) -> ConfigDict:
        """Read the resolved config, with values of older runs in today's spelling.

        Args:
          *commands: training commands (modules) of which the run must be one; none for any.

        Raises:
          InputError: there is no config, or it is one of another command.
        """
        config = from_json(self.config_file)
        for key, spelled in SPELLED.items():
            section, name = key.split(".")
            value = flatten(config).get(key)
            if isinstance(value, bool):
                with config.ignore_type():
                    config[section][name] = spelled[value]
        kind = trained_by(config)
        if commands and kind not in commands:
            what = f"is a run of {kind}" if kind else f"is no run, by its {self.config_file.name}"
            raise InputError(
                f"{self.path} {what}: give the folder of a run of {' or '.join(commands)}"
            )
        return config

    def newest_step(self) -> int | None:
        """The newest checkpoint's step, by folder names; None if there are no checkpoints."""
        if not self.checkpoints.is_dir():
            return None
        names = [path.name for path in self.checkpoints.iterdir()]
        return max((int(name) for name in names if name.isdecimal()), default=None)

    def is_begun(self) -> bool:
        """Whether the run got beyond its start: it has saved a step or written other results."""
        results = self.report_file, self.samples, self.diverged, self.damaged, self.parser
        return self.newest_step() is not None or any(path.exists() for path in results)

    def is_replaced_by(self, config: ConfigDict) -> bool:
        """Whether `claim` replaces the run by a new one of another config, because it is not
        begun."""
        exists = self.config_file.exists() and not self.is_begun()
        return exists and bool(changes(self.config(), config))

    def check(self, config: ConfigDict) -> None:
        """Check in advance, without writing, what `claim` checks, except for checksums and classes.

        Raises:
          InputError: as `claim`.
        """
        if self.weights_file.exists():
            raise InputError(
                f"{self.path} is an export, which cannot be continued: give --workdir a new folder "
                f"and --config.train.init_from={self.path}"
            )
        if (reason := why_unwritable(self.path)) is not None:
            raise self._unwritable(reason)
        if self.config_file.exists():
            begun_by, command = trained_by(self.config()), trained_by(config)
            if begun_by != command:
                raise InputError(
                    f"{self.path} is a run of {begun_by}, which {command} cannot continue: give "
                    "--workdir a new folder"
                )
            fixed = fixed_changes(self.config(), config) if self.is_begun() else ()
            for key, before, after in fixed:
                if before is None and key in ADDED:
                    raise InputError(
                        f"{self.config_file} is older than {key}, which was always {ADDED[key]!r}, "
                        f"but this run has {after!r}: continue with {ADDED[key]!r}, or give "
                        "--workdir a new folder"
                    )
                raise InputError(
                    f"{self.config_file} has {key} = {before!r}, but this run has {after!r}: "
                    "continue with the old value, or give --workdir a new folder"
                )
            step = self.newest_step()
            for key, before, after in changes(self.config(), config):
                if key == "train.init_from" and after and step is not None:
                    raise InputError(
                        f"train.init_from is now {after}, but {self.path} continues from its own "
                        f"step {step}: leave it at {before!r}, or give --workdir a new folder"
                    )
        elif not is_new_or_empty(self.path, besides=LOCK_FILES):
            raise InputError(
                f"{self.path} is not empty and holds no run: give --workdir a new or empty folder"
            )
        if self.lock_file.exists():
            with self._locked():
                pass

    def not_read(self, key: str, value: Any) -> str:
        """Why a continued run ignores the new value of a key; "" if it does not."""
        step = self.newest_step()
        before = flatten(self.config()).get(key) if key == OF_ITS_COPY[0] else None
        ours = key == "autoencoder.path" or (key, before) == OF_ITS_COPY
        if ours and self.autoencoder.exists():
            return f"it is ignored: the run uses its own copy, {self.autoencoder}"
        if key == "train.init_from" and step is not None:
            return f"it is ignored: the run continues from its own step {step}"
        if key == "train.steps" and step is not None and value < step:
            return f"it is ignored: the run is at step {step} already"
        if key == "train.profile_at" and step is not None and 0 < value <= step:
            return f"nothing is traced: the run continues from step {step}"
        return ""

    def _unwritable(self, reason: str | None) -> InputError:
        return InputError(
            f"run folder {self.path} cannot be written ({reason}): give --workdir a writable folder"
        )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with ExitStack() as held:
            try:
                held.enter_context(lock(self.lock_file))
            except LockedError as error:
                raise InputError(
                    f"{self.path} is in use by {error}: wait for it to end, or give --workdir "
                    "another folder"
                ) from None
            yield

    @contextmanager
    def claim(
        self,
        config: ConfigDict,
        *,
        data: str | None = None,
        classes: ClassSet | None = None,
        perceptual: str | None = None,
    ) -> Iterator[None]:
        """Make this the folder of a new run, or continue its run; hold its lock inside the context.

        A run that is not begun (`is_begun`), for instance because its memory was too small, may
        have another config, data set, classes and perceptual loss from now on.

        Args:
          config: the resolved config.
          data: checksum of the data set, if it has one (`data.checksums`).
          classes: classes of the label maps, if they are used.
          perceptual: checksum of the weights of the perceptual loss, if there is one.

        Raises:
          InputError: if the folder holds a run of another config, data set, classes or perceptual
            loss, an export or other files, cannot be written, or is in use by another process.
        """
        self.check(config)
        if self.config_file.exists() and self.is_begun():
            self._refuse_other_data(data, classes)
            self._refuse_other_loss(perceptual)
            config = self._as_read(config)
        with ExitStack() as held:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                held.enter_context(self._locked())
                self._remove_start(config)
                write_atomically(self.config_file, to_json(config).encode())
                if classes is not None:
                    self.write_classes(classes)
                if data is not None:
                    write_json(self.data_file, {"checksum": data})
                if perceptual is not None:
                    write_json(self.perceptual_file, {"checksum": perceptual})
            except OSError as error:
                raise self._unwritable(error.strerror) from error
            yield

    def _remove_start(self, config: ConfigDict) -> None:
        """Remove what a run that is not begun has written and `config`'s run would not replace."""
        if self.is_begun():
            return
        if self.is_replaced_by(config):
            shutil.rmtree(self.autoencoder, ignore_errors=True)  # the copy of its first stage
        for file in (self.data_file, self.perceptual_file, self.classes_file):
            file.unlink(missing_ok=True)

    def _as_read(self, config: ConfigDict) -> ConfigDict:
        """`config` with the old values of keys whose new values are ignored."""
        config = config.copy_and_resolve_references()
        for key, before, after in changes(self.config(), config):
            if self.not_read(key, after):
                section, name = key.split(".")
                config[section][name] = before
        return config

    def _refuse_other_data(self, data: str | None, classes: ClassSet | None) -> None:
        if classes is not None and self.classes() != classes:
            raise InputError(
                f"{self.path} was trained on other classes ({', '.join(self.classes().names)}) "
                f"than those of the data ({', '.join(classes.names)}): give --workdir a new folder"
            )
        begun = read_json(self.data_file)
        if begun and differ(begun["checksum"], data):
            raise InputError(
                f"{self.path} was trained on other data ({begun['checksum'][:8]}) than data.path "
                f"and autoencoder.cache now have ({data[:8]}): continue with the original data, "
                "or give --workdir a new folder"
            )

    def _refuse_other_loss(self, perceptual: str | None) -> None:
        begun = read_json(self.perceptual_file)
        if not begun and perceptual is not None and self.newest_step() is not None:
            raise InputError(
                f"{self.path} was trained without the weights of the perceptual loss that "
                "loss.perceptual_network now names: leave them out, or give --workdir a new folder"
            )
        if begun and begun["checksum"] != perceptual:
            raise InputError(
                f"{self.path} was trained with other weights of the perceptual loss "
                f"({begun['checksum'][:8]}) than loss.perceptual_network and "
                f"loss.perceptual_linear now have ({(perceptual or 'none')[:8]}): continue with "
                "the original files, or give --workdir a new folder"
            )


def fixed_changes(old: ConfigDict, new: ConfigDict) -> list[tuple[str, Any, Any]]:
    """The `changes` that a continued run does not allow."""
    return [
        (key, before, after)
        for key, before, after in changes(old, new)
        if not key.startswith(CHANGEABLE)
        and not (before is None and key in ADDED and ADDED[key] in (None, after))
        and (key, before) != OF_ITS_COPY
    ]


def changes(old: ConfigDict, new: ConfigDict) -> list[tuple[str, Any, Any]]:
    """The keys in which two configs differ, with both values; None for a missing one."""
    # Compared after a JSON round trip, which turns tuples into lists.
    before, after = (flatten(json.loads(to_json(config))) for config in (old, new))
    return [
        (key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
