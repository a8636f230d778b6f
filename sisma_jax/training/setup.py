"""From a command line to the parts of a run: what the training commands share."""

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

from sisma_jax import cli
from sisma_jax.config import load_config, section, split_spec
from sisma_jax.data import synthetic
from sisma_jax.data.classes import CELEBAMASK, ClassSet
from sisma_jax.data.input_pipeline import Source, batch_ids, open_dataset, training_stream
from sisma_jax.data.prepared import is_prepared
from sisma_jax.errors import InputError
from sisma_jax.files import LOCK_FILES, is_new_or_empty, local_path
from sisma_jax.training import hosts
from sisma_jax.training.checkpoint import CheckpointConfig
from sisma_jax.training.hosts import is_first, say, together
from sisma_jax.training.run_folder import CHANGEABLE, RunFolder, changes
from sisma_jax.training.sharding import MeshConfig, check_batch, make_mesh, row_share
from sisma_jax.training.state import TrainConfig

LARGEST_SEED = 2**32 - 1
"""JAX's keys take 32 bits of a seed, and NumPy's no negative ones."""

Batches = Iterator[dict[str, np.ndarray]]
"""That of `training_stream`, which can be closed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The config's section `data`."""

    path: str
    size: int
    """Pixels along each side of images and label maps."""
    test_from: int
    """First id of the test split."""
    flip: bool
    """Mirror half of the training images, with left and right labels swapped."""
    threads: int
    """Threads that read ahead."""
    synthetic_count: int
    """Where `path` does not exist, write so many synthetic faces there first; 0 for never."""

    def __post_init__(self) -> None:
        for name in ("threads", "synthetic_count"):
            if getattr(self, name) < 0:
                raise InputError(f"data.{name} is {getattr(self, name)}: set 0 or more")

    def open(self, split: str, fields: Sequence[str]) -> Source:
        """Open a split; raises InputError where there is no such data."""
        return open_dataset(
            self.path, self.size, split=split, test_from=self.test_from, fields=fields
        )

    def feed(self, source: Source, mesh: Mesh, *, batch_size: int, seed: int) -> "Feed":
        """Return the batches of a run over the devices of `mesh`."""
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
        """Whether `make_if_synthetic` has faces to write: all, or the rest of an unfinished set.

        Whatever else is there is read, or refused.

        Raises:
          InputError: `path` cannot be written.
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
        """Raises InputError if of the faces that are to be made one split would be empty."""
        if not 0 < self.test_from < self.synthetic_count:
            raise InputError(
                f"data.test_from is {self.test_from} of data.synthetic_count "
                f"{self.synthetic_count} faces, which leaves the "
                f"{'train' if self.test_from < 1 else 'test'} split empty: choose one between"
            )

    def open_if_there(self, train: Sequence[str], test: Sequence[str]) -> list[Source]:
        """Open the training and the test split; of faces that are to be made none, yet.

        Args:
          train, test: the fields of their items.

        Raises:
          InputError: if there is no such data, or there would be none.
        """
        if self.is_to_be_made():
            self.check_split()
            return []
        return self.open_both(train, test)

    def open_both(self, train: Sequence[str], test: Sequence[str]) -> list[Source]:
        """Open the training and the test split, items of these fields, as `open` does."""
        return [self.open("train", train), self.open("test", test)]

    def make_if_synthetic(self) -> None:
        """Write the synthetic set if the config asks for one and it is not there, or not whole.

        Only the first process writes; the others wait.

        Raises:
          InputError: `path` cannot be written.
        """
        with together():
            if is_first():
                self._make_if_synthetic()

    def _make_if_synthetic(self) -> None:
        if not self.is_to_be_made():
            return
        path = local_path(self.path)
        begun = synthetic.read_unfinished_settings(path)
        how = "is not finished: going on to" if begun else "has no faces yet: writing"
        print(f"{path} {how} {self.synthetic_count} synthetic faces")
        synthetic.write_dataset(path, **self._synthetic_settings())


@dataclasses.dataclass(frozen=True)
class Feed:
    """Where a run's batches come from."""

    open: Callable[[int], Batches]
    """Number of the first global batch -> this process's rows from there on, endlessly."""
    ids: Callable[[int], list[str]]
    """Number of a global batch -> the data set's names of its items."""


@dataclasses.dataclass(frozen=True)
class Sections:
    """Those of a config that every training command has."""

    data: DataConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    mesh: Mesh

    @classmethod
    def of(cls, config: ConfigDict) -> "Sections":
        """Raises InputError if one is missing or wrong, or the devices do not divide a batch."""
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

    Meets the other processes, where there are any, and has JAX keep compiled programs.
    """
    keys = textwrap.fill(", ".join(CHANGEABLE).replace(".,", ".*,"), 96, initial_indent="  ",
        subsequent_indent="  ")  # fmt: skip
    parser = cli.parser(
        module, f"{description}\n\nA run may be continued with other values of\n{keys}", example
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
    """Claim the folder (`RunFolder.claim`, by the first process) for what happens inside.

    Yields:
      What the run is, for its checkpoints: seed, config and the checksum of its data.
    """
    with ExitStack() as held:
        with together():
            begun = run.config() if run.config_file.exists() else config
            if is_first():
                held.enter_context(run.claim(config, data=data, classes=classes))
        for key, before, after in changes(begun, config):
            ignored = run.not_read(key, after)
            said = f"; {ignored}" if ignored else ""
            say(f"changed in this run: {key} from {before!r} to {after!r}{said}")
        yield {"seed": config.seed, "config": config.to_dict(), "data": data}


def keep_compiled_programs() -> None:
    """Have JAX keep compiled programs for the next start, unless it has been told where to.

    They lie in the user's cache folder, on a CPU by its abilities, for programs of one CPU may use
    instructions that another lacks.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kind = jax.default_backend()
    if kind == "cpu":
        info = Path("/proc/cpuinfo")
        lines = info.read_text("utf-8").splitlines() if info.exists() else []
        abilities = next((x for x in lines if x.startswith(("flags", "Features"))), "")
        kind += "-" + hashlib.sha256(abilities.encode()).hexdigest()[:8]
    jax.config.update("jax_compilation_cache_dir", str(cache / "sisma_jax" / kind))


def _check_seed(config: ConfigDict) -> None:
    seed = config.get("seed")
    if type(seed) is not int or not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"seed is {seed!r}: use 0..{LARGEST_SEED}")


def _name(spec: str) -> str:
    path, variant = split_spec(spec)
    return "-".join(filter(None, (path.stem, variant)))


def check_classes(section: str, count: int, sources: Sequence[Source]) -> None:
    """Raises InputError unless a model has as many classes as its data, the synthetic faces that
    are still to be made where there are no sources."""
    classes = sources[0].classes if sources else CELEBAMASK
    if len(classes) != count:
        whose = f"{sources[0]!r} has" if sources else "synthetic faces have"
        raise InputError(
            f"{section}.num_classes is {count}, but {whose} {len(classes)} classes: set "
            f"--config.{section}.num_classes={len(classes)}"
        )


def check_start(run: RunFolder, init_from: str) -> None:
    """Raises InputError if a run begins with weights of another one that has none."""
    if not init_from or run.newest_step() is not None:  # a begun run does not read them again
        return
    other = RunFolder(Path(init_from))
    other.config()
    if not other.weights_file.exists() and other.newest_step() is None:
        raise InputError(
            f"train.init_from is {init_from}, which holds no finished checkpoint: give a run or an "
            "export that has weights"
        )


def check_image_size(data: DataConfig, factor: int) -> None:
    """Raises InputError if the autoencoder's factor does not divide the image size."""
    if data.size < 1 or data.size % factor:
        raise InputError(
            f"data.size {data.size} is not a multiple of the autoencoder's factor {factor}: "
            "choose one that is"
        )
