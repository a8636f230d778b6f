"""The shared setup of the training commands, from the command line to the parts of a run."""

import dataclasses
import hashlib
import os
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sisma_jax.common import cli
from sisma_jax.common.config import load_config, section, split_spec
from sisma_jax.common.errors import InputError
from sisma_jax.common.files import LOCK_FILES, is_new_or_empty, local_path
from sisma_jax.data import synthetic
from sisma_jax.data.classes import CELEBAMASK, ClassSet
from sisma_jax.data.input_pipeline import Source, batch_ids, open_dataset, training_stream
from sisma_jax.data.prepared import is_prepared
from sisma_jax.devices import hosts
from sisma_jax.devices.hosts import is_first, print_once, together
from sisma_jax.devices.sharding import MeshConfig, check_batch, make_mesh, row_share
from sisma_jax.runs.checkpoint import CheckpointConfig
from sisma_jax.runs.folder import CHANGEABLE, RunFolder, changes
from sisma_jax.training.state import TrainConfig

LARGEST_SEED = 2**32 - 1
"""JAX's keys use 32 bits of a seed, and NumPy does not take negative seeds."""

Batches = Iterator[dict[str, np.ndarray]]
"""The closable iterator of `training_stream`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The config's section `data`."""

    path: str
    size: int
    """Side of images and label maps in pixels."""
    test_from: int
    """First id of the test split."""
    flip: bool
    """Mirror half of the training images, with left and right labels swapped."""
    threads: int
    """Number of threads that read ahead."""
    synthetic_count: int
    """Number of synthetic faces to write to `path` if it does not exist; 0 for none."""

    def __post_init__(self) -> None:
        for name in ("threads", "synthetic_count"):
            if getattr(self, name) < 0:
                raise InputError(f"data.{name} is {getattr(self, name)}: set 0 or more")

    def open(self, split: str, fields: Sequence[str]) -> Source:
        """Open a split; raises InputError if there is no such data."""
        return open_dataset(
            self.path, self.size, split=split, test_from=self.test_from, fields=fields
        )

    def feed(self, source: Source, mesh: Mesh, *, batch_size: int, seed: int) -> "Feed":
        """Return the feed of global batches for the devices of `mesh`."""
        place, sharers = row_share(mesh)

        def open_stream(start: int) -> Batches:
            return training_stream(
                source,
                batch_size=batch_size,
                seed=seed,
                flip=self.flip,
                start=start,
                process_index=place,
                process_count=sharers,
                threads=self.threads,
            )

        ids = lambda batch: batch_ids(source, batch_size=batch_size, seed=seed, batch=batch)
        return Feed(open_stream, ids)

    def is_to_be_made(self) -> bool:
        """Whether `make_if_synthetic` has faces to write, all or the rest of an unfinished set.

        Raises:
          InputError: if `path` cannot be written.
        """
        if not self.synthetic_count or is_prepared(self.path):
            return False
        path = local_path(self.path)
        if is_new_or_empty(path, besides=LOCK_FILES):
            return True
        begun = synthetic.read_unfinished_settings(path) or {}
        return all(begun.get(name) == x for name, x in self._synthetic_settings().items())

    def _synthetic_settings(self) -> dict[str, int]:
        return {"count": self.synthetic_count, "size": self.size, "seed": 0}

    def check_split(self) -> None:
        """Raise InputError if a split of the faces to be written would be empty."""
        if not 0 < self.test_from < self.synthetic_count:
            raise InputError(
                f"data.test_from is {self.test_from} of data.synthetic_count "
                f"{self.synthetic_count} faces, which leaves the "
                f"{'train' if self.test_from < 1 else 'test'} split empty: choose a number between"
            )

    def open_if_there(self, train: Sequence[str], test: Sequence[str]) -> list[Source]:
        """Open the training and the test split; return [] if the faces are yet to be written.

        Args:
          train, test: fields of the items of either split.

        Raises:
          InputError: if there is no such data, or a split would be empty.
        """
        if self.is_to_be_made():
            self.check_split()
            return []
        return self.open_both(train, test)

    def open_both(self, train: Sequence[str], test: Sequence[str]) -> list[Source]:
        """Open the training and the test split with these fields; see `open`."""
        return [self.open("train", train), self.open("test", test)]

    def make_if_synthetic(self) -> None:
        """Write the synthetic faces if the config requests them and they are missing or incomplete.

        Only the first process writes; the others wait.

        Raises:
          InputError: if `path` cannot be written.
        """
        with together():
            if is_first():
                self._make_if_synthetic()

    def _make_if_synthetic(self) -> None:
        if not self.is_to_be_made():
            return
        path = local_path(self.path)
        begun = synthetic.read_unfinished_settings(path)
        how = "is incomplete: continuing to" if begun else "has no faces yet: writing"
        print(f"{path} {how} {self.synthetic_count} synthetic faces")
        synthetic.write_dataset(path, **self._synthetic_settings())


@dataclasses.dataclass(frozen=True)
class Feed:
    """The source of a run's batches."""

    open: Callable[[int], Batches]
    """Number of the first global batch -> an endless iterator of this process's rows."""
    ids: Callable[[int], list[str]]
    """Number of a global batch -> names of its items in the data set."""


@dataclasses.dataclass(frozen=True)
class Sections:
    """The sections of a config that all training commands share."""

    data: DataConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    mesh: Mesh

    @classmethod
    def of(cls, config: ConfigDict) -> "Sections":
        """Raise InputError if one is missing or invalid, or devices do not divide the batch."""
        _check_seed(config)
        train = section(TrainConfig, config, "train")
        mesh = make_mesh(section(MeshConfig, config, "mesh"))
        check_batch(train.batch_size, train.accumulate, mesh)
        return cls(
            data=section(DataConfig, config, "data"),
            train=train,
            checkpoint=section(CheckpointConfig, config, "checkpoint"),
            mesh=mesh,
        )


def parse_training_command(module: str, description: str, example: str) -> tuple[ConfigDict, Path]:
    """Return the resolved config and the run folder of a training command.

    It also connects to the other processes, if any, and enables JAX's compilation cache.
    """
    keys = textwrap.fill(", ".join(CHANGEABLE).replace(".,", ".*,"), 96, initial_indent="  ",
        subsequent_indent="  ")  # fmt: skip
    parser = cli.parser(
        module, f"{description}\n\nA run can be continued with other values of\n{keys}", example
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:VARIANT]",
        help="a config file; override any key with --config.section.key=VALUE",
    )
    parser.add_argument(
        "--workdir",
        type=cli.path,
        help="run folder, made or continued (default: runs/ and the config's name)",
    )
    hosts.add_arguments(parser)
    args, overrides = parser.parse_known_args()
    hosts.join(args)
    keep_compiled_programs()
    with together():
        config = load_config(args.config, overrides)
    return config, args.workdir or Path("runs") / _name(args.config)


@contextmanager
def run_claimed(
    run: RunFolder,
    config: ConfigDict,
    *,
    data: str | None = None,
    classes: ClassSet | None = None,
) -> Iterator[dict[str, Any]]:
    """Claim the folder in the first process (`RunFolder.claim`) for the body of the context.

    Yields:
      The record of the run for its checkpoints: seed, config and checksum of the data.
    """
    with ExitStack() as held:
        with together():
            begun = run.config() if run.config_file.exists() else config
            if is_first():
                held.enter_context(run.claim(config, data=data, classes=classes))
        for key, before, after in changes(begun, config):
            ignored = run.not_read(key, after)
            note = f"; {ignored}" if ignored else ""
            print_once(f"changed in this run: {key} from {before!r} to {after!r}{note}")
        yield {"seed": config.seed, "config": config.to_dict(), "data": data}


def keep_compiled_programs() -> None:
    """Enable JAX's persistent compilation cache, unless one is configured already.

    It is in the user's cache folder, on CPUs in one folder per set of CPU features, because
    programs compiled for one CPU may use instructions that another lacks.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kind = jax.default_backend()
    if kind == "cpu":
        info = Path("/proc/cpuinfo")
        lines = info.read_text("utf-8").splitlines() if info.exists() else []
        features = next((x for x in lines if x.startswith(("flags", "Features"))), "")
        kind += "-" + hashlib.sha256(features.encode()).hexdigest()[:8]
    jax.config.update("jax_compilation_cache_dir", str(cache / "sisma_jax" / kind))


def _check_seed(config: ConfigDict) -> None:
    seed = config.get("seed")
    if type(seed) is not int or not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"seed is {seed!r}: use 0..{LARGEST_SEED}")


def _name(spec: str) -> str:
    path, variant = split_spec(spec)
    return "-".join(filter(None, (path.stem, variant)))


def check_classes(section: str, count: int, sources: Sequence[Source]) -> None:
    """Raise InputError unless the model has as many classes as its data, which are synthetic faces
    yet to be written if there are no sources."""
    classes = sources[0].classes if sources else CELEBAMASK
    if len(classes) != count:
        whose = f"{sources[0]!r} has" if sources else "synthetic faces have"
        raise InputError(
            f"{section}.num_classes is {count}, but {whose} {len(classes)} classes: set "
            f"--config.{section}.num_classes={len(classes)}"
        )


def check_start(run: RunFolder, init_from: str) -> None:
    """Raise InputError if a new run is to start from a run without weights."""
    if not init_from or run.newest_step() is not None:  # not read when a run continues
        return
    other = RunFolder(Path(init_from))
    other.config()
    if not other.weights_file.exists() and other.newest_step() is None:
        raise InputError(
            f"train.init_from is {init_from}, which holds no finished checkpoint: give a run or an "
            "export that has weights"
        )


def check_image_size(data: DataConfig, factor: int) -> None:
    """Raise InputError unless the image size is a multiple of the autoencoder's factor."""
    if data.size < 1 or data.size % factor:
        raise InputError(
            f"data.size {data.size} is not a multiple of the autoencoder's factor {factor}: "
            "choose a multiple"
        )
