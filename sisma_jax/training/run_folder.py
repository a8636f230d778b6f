"""What a run folder holds, and where.

config.json     the resolved config
classes.json    the classes of its label maps
data.json       the checksum of the data set, of prepared ones
checkpoints/    Orbax steps: state, ema and position
damaged/        steps that could not be restored, out of the way
autoencoder/    a copy of the first stage, so that a moved run still loads
metrics.jsonl   one row per logged step
parameters.txt  names and shapes of the weights
samples/        sample grids by step
report.json     what the finished run was measured to do
events.*        TensorBoard

An exported folder (`sisma_jax.export`) has config.json, classes.json, autoencoder/ and, in place of
checkpoints/, the averaged weights:

model.safetensors   by the names of parameters.txt; the training step is in its header
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sisma_jax.config import flatten, from_json, to_json
from sisma_jax.data.classes import CELEBAMASK, ClassSet
from sisma_jax.errors import InputError
from sisma_jax.files import is_new_or_empty, read_json, write_atomically, write_json

CHANGEABLE = (
    "autoencoder.cache",
    "autoencoder.path",
    "checkpoint.",
    "data.path",
    "data.threads",
    "mesh.",
    "samples.",
    "train.init_from",
    "train.log_every",
    "train.sample_every",
    "train.steps",
)
"""Config keys (or sections, with a dot) that may differ when a run is continued."""


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths inside one run folder."""

    path: Path

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
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights_file(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def autoencoder(self) -> Path:
        return self.path / "autoencoder"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def parameters_file(self) -> Path:
        return self.path / "parameters.txt"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def report_file(self) -> Path:
        return self.path / "report.json"

    def report(self) -> dict[str, Any] | None:
        """Read the report, or None where there is none."""
        return json.loads(self.report_file.read_text()) if self.report_file.exists() else None

    def write_report(self, report: dict[str, Any]) -> None:
        write_json(self.report_file, report)

    def classes(self) -> ClassSet:
        """The classes of the run's label maps."""
        return ClassSet.read(self.classes_file) if self.classes_file.exists() else CELEBAMASK

    def check_classes(self, classes: ClassSet) -> None:
        """Raises InputError where the run was begun with other classes."""
        if self.config_file.exists() and self.classes() != classes:
            raise InputError(
                f"{self.path} was trained on other classes ({', '.join(self.classes().names)}) "
                f"than the data set has ({', '.join(classes.names)}): give --workdir a new folder"
            )

    def write_classes(self, classes: ClassSet) -> None:
        write_json(self.classes_file, classes.to_json())

    def check_data(self, checksum: str | None) -> None:
        """Raises InputError where the run was begun on another data set, as far as is known."""
        begun = read_json(self.data_file) if self.config_file.exists() else None
        if begun and checksum not in (None, begun["checksum"]):
            raise InputError(
                f"{self.path} was trained on other data ({begun['checksum'][:8]}) than data.path "
                f"and autoencoder.cache now have ({checksum[:8]}): continue with the data set it "
                "was begun on, or give --workdir a new folder"
            )

    def write_data(self, checksum: str | None) -> None:
        """Keep the checksum, where there is one, of what a run is trained on."""
        if checksum is not None:
            write_json(self.data_file, {"checksum": checksum})

    def config(self) -> ConfigDict:
        """Read the resolved config; raises InputError where there is none."""
        return from_json(self.config_file)

    def claim(self, config: ConfigDict) -> None:
        """Make this the folder of a run with `config`, or continue the run that it holds.

        Raises:
          InputError: if it holds a run of another config, an export or other files.
        """
        if self.weights_file.exists():
            raise InputError(
                f"{self.path} is an export, which cannot be continued: give --workdir a new folder "
                f"and --config.train.init_from={self.path}"
            )
        if self.config_file.exists():
            _refuse_other(self.config_file, self.config(), config)
        elif not is_new_or_empty(self.path):
            raise InputError(
                f"{self.path} is not empty and holds no run: give --workdir a new or empty folder"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.config_file, to_json(config).encode())
        except OSError as error:
            raise InputError(
                f"run folder {self.path} cannot be written ({error.strerror}): "
                "give --workdir a folder that can"
            ) from error


def _refuse_other(path: Path, old: ConfigDict, new: ConfigDict) -> None:
    # Both sides as JSON has them: tuples are lists there.
    before, after = flatten(old), flatten(json.loads(to_json(new)))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key) and not key.startswith(CHANGEABLE):
            raise InputError(
                f"{path} has {key} = {before.get(key)!r} where this run has {after.get(key)!r}: "
                "continue with the old value, or give --workdir a new folder"
            )
