"""From a command line to the parts of a run: what the training commands share."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from sisma_jax import cli
from sisma_jax.config import load_config
from sisma_jax.data import synthetic
from sisma_jax.data.input_pipeline import Source, open_dataset, training_stream
from sisma_jax.errors import InputError


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

    def open(self, split: str, fields: Sequence[str]) -> Source:
        """Open a split; raises InputError where there is no such data."""
        return open_dataset(
            self.path, self.size, split=split, test_from=self.test_from, fields=fields
        )

    def stream(
        self, source: Source, *, batch_size: int, seed: int
    ) -> Callable[..., grain.DatasetIterator[dict[str, np.ndarray]]]:
        """Return (start: number of the first global batch) -> this process's rows from there on."""
        return partial(
            training_stream,
            source,
            batch_size=batch_size,
            seed=seed,
            flip=self.flip,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=self.threads,
        )

    def make_if_synthetic(self) -> None:
        """Write the synthetic set if the config asks for one and it is not there."""
        if self.synthetic_count and not Path(self.path).exists():
            print(f"{self.path} does not exist: writing {self.synthetic_count} synthetic faces")
            synthetic.write_dataset(
                Path(self.path), count=self.synthetic_count, size=self.size, seed=0
            )


def parse_training_command(module: str, description: str, example: str) -> tuple[ConfigDict, Path]:
    """Return the resolved config and the run folder of a training command."""
    parser = cli.parser(module, description, example)
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:VARIANT]",
        help="a config file; override any key with --config.section.key=VALUE",
    )
    parser.add_argument(
        "--workdir",
        type=Path,
        help="run folder, made or continued (default: runs/ and the config's name)",
    )
    args, overrides = parser.parse_known_args()
    config = load_config(args.config, overrides)
    return config, args.workdir or Path("runs") / _name(args.config)


def _name(spec: str) -> str:
    path, _, variant = spec.partition(":")
    return "-".join(filter(None, (Path(path).stem, variant)))


def check_image_size(data: DataConfig, factor: int) -> None:
    """Raises InputError if the autoencoder's factor does not divide the image size."""
    if data.size < 1 or data.size % factor:
        raise InputError(
            f"data.size {data.size} is not a multiple of the autoencoder's factor {factor}: "
            "choose one that is"
        )
