"""The shared setup of the training commands, from the command line to the parts of a run."""

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from sisma_jax.common import cli
from sisma_jax.common.config import load_config, section, split_overrides, split_spec
from sisma_jax.common.errors import InputError
from sisma_jax.data.classes import CELEBAMASK, ClassSet
from sisma_jax.data.config import DataConfig, Feed
from sisma_jax.data.input_pipeline import Source
from sisma_jax.devices import hosts
from sisma_jax.devices.compilation_cache import keep_compiled_programs
from sisma_jax.devices.hosts import is_first, print_once, together
from sisma_jax.devices.sharding import MeshConfig, check_batch, make_mesh
from sisma_jax.runs.checkpoint import CheckpointConfig
from sisma_jax.runs.folder import CHANGEABLE, RunFolder, changes
from sisma_jax.training.starting_weights import check_starting_weights
from sisma_jax.training.state import TrainConfig

LARGEST_SEED = 2**32 - 1
"""JAX's keys use 32 bits of a seed, and NumPy does not take negative seeds."""


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

    def feed(self, source: Source, seed: int) -> Feed:
        """Return the feed of the training batches of `source`."""
        return self.data.feed(source, self.mesh, batch_size=self.train.batch_size, seed=seed)


def parse_training_command(module: str, description: str, example: str) -> tuple[ConfigDict, Path]:
    """Return the resolved config and the run folder of a training command.

    It also connects to the other processes, if any, and enables JAX's compilation cache.
    """
    keys = textwrap.fill(", ".join(CHANGEABLE).replace(".,", ".*,"), 96, initial_indent="  ",
        subsequent_indent="  ")  # fmt: skip
    parser = cli.Parser(
        module, f"{description}\n\nA run can be continued with other values of\n{keys}", example
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:VARIANT]",
        help="a config file, or the name of an installed one (celeba, synthetic, ...); any key is "
        "overridden by --config.section.key=VALUE",
    )
    parser.add_argument(
        "--workdir",
        type=cli.path,
        help="run folder, made or continued (default: runs/ and the config's name)",
    )
    hosts.add_arguments(parser)
    args, overrides = parser.parse_known_args()
    parser.refuse(split_overrides(overrides)[1])
    hosts.join(args)
    keep_compiled_programs()
    with together():
        config = load_config(args.config, overrides, command=module)
    return config, args.workdir or Path("runs") / _name(args.config)


@contextmanager
def run_claimed(
    run: RunFolder,
    config: ConfigDict,
    *,
    data: str | None = None,
    classes: ClassSet | None = None,
    perceptual: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Claim the folder in the first process (`RunFolder.claim`) for the body of the context.

    Yields:
      The record of the run for its checkpoints: seed, config and checksum of the data.
    """
    with ExitStack() as held:
        with together():
            begun = run.config() if run.config_file.exists() else config
            replaced = run.is_replaced_by(config)
            if is_first():
                held.enter_context(
                    run.claim(config, data=data, classes=classes, perceptual=perceptual)
                )
        if replaced:
            print_once(f"{run.path} has no saved step, so a new run replaces the one in it")
        for key, before, after in changes(begun, config):
            ignored = run.not_read(key, after)
            note = f"; {ignored}" if ignored else ""
            print_once(f"changed in this run: {key} from {before!r} to {after!r}{note}")
        yield {"seed": config.seed, "config": config.to_dict(), "data": data}


def _check_seed(config: ConfigDict) -> None:
    seed = config.get("seed")
    if type(seed) is not int or not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"seed is {seed!r}: use 0..{LARGEST_SEED}")


def _name(spec: str) -> str:
    path, variant = split_spec(spec)
    return "-".join(filter(None, (path.stem, variant)))


def refuse_sections(config: ConfigDict, names: Sequence[str], model: str) -> None:
    """Raise InputError if a config has one of these sections, which the training of `model` would
    ignore."""
    for name in names:
        if name in config:
            raise InputError(
                f"the config has a section {name!r}, which {model}'s training does not read: "
                "remove it, or choose another model.kind"
            )


def check_classes(section: str, count: int, sources: Sequence[Source]) -> None:
    """Raise InputError unless the model has as many classes as its data, which are synthetic faces
    yet to be written if there are no sources."""
    classes = sources[0].classes if sources else CELEBAMASK
    if len(classes) != count:
        whose = f"{sources[0]} has" if sources else "synthetic faces have"
        raise InputError(
            f"{section}.num_classes is {count}, but {whose} {len(classes)} classes: set "
            f"--config.{section}.num_classes={len(classes)}"
        )


def check_folder(run: RunFolder, config: ConfigDict) -> None:
    """Raise InputError if no run of this config can begin or continue in the folder, or if it is to
    start from weights that it cannot use (`check_starting_weights`)."""
    if is_first():  # checking the lock takes it for a moment
        run.check(config)
    if config.train.init_from and run.newest_step() is None:  # not read when a run continues
        check_starting_weights(config)


def check_image_size(data: DataConfig, factor: int, what: str) -> None:
    """Raise InputError unless the image size is a multiple of `factor`, which the message calls
    `what`."""
    if data.size < 1:
        raise InputError(f"data.size is {data.size}: choose a multiple of {what} above 0")
    if data.size % factor:
        raise InputError(f"data.size {data.size} is not a multiple of {what}: choose a multiple")
