"""Encode a prepared data set once, so that training need not encode it in every step.

Writes the moments of every image's latents and of its mirror image's, in float16, beside the
labels. On all devices of this machine; interrupted, the same command continues.
"""

import argparse
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float16, UInt8

from sisma_jax import cli
from sisma_jax.data import latents, prepared, shards
from sisma_jax.data.classes import ClassSet
from sisma_jax.data.prepared import PreparedDataset
from sisma_jax.data.shards import Folder, Shard
from sisma_jax.errors import InputError, RunError
from sisma_jax.models.autoencoder import Autoencoder, load_autoencoder, to_float
from sisma_jax.processes import cores
from sisma_jax.progress import bar
from sisma_jax.training.sharding import (
    batch_sharding,
    fill_up,
    local_mesh,
    replicated,
    whole_batch,
)

IN_FLIGHT = 2
"""Batches on their way to the devices or back while the records of one are written."""


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(
        "sisma_jax.cache_latents",
        __doc__,
        "python -m sisma_jax.cache_latents --data data/celeba-256 --autoencoder sd-vae-ft-ema "
        "--out data/celeba-256-latents",
    )
    add = parser.add_argument
    add("--data", required=True, help="a folder that sisma_jax.prepare has written")
    add("--autoencoder", required=True, help="whatever autoencoder.path in a config may be")
    add("--out", type=cli.path, required=True, help="folder for the shards, new or empty")
    add("--batch-size", type=int, default=16, help="images at a time, over all devices")
    return parser.parse_args()


@jax.jit
def encode(
    autoencoder: Autoencoder, images: UInt8[Array, "b H W 3"]
) -> Float16[Array, "b 2 h w moments"]:
    """Moments of images and of their mirror images."""
    both = jnp.concatenate([images, images[:, :, ::-1]])
    moments = jnp.concatenate(autoencoder.encode(to_float(both)), axis=-1).astype(jnp.float16)
    return jnp.stack(jnp.split(moments, 2), axis=1)


def encoder(
    autoencoder: Autoencoder, batch_size: int
) -> Callable[[UInt8[np.ndarray, "n H W 3"]], Float16[Array, "b 2 h w moments"]]:
    """`encode` on all local devices, of `batch_size` images or fewer, which they share evenly."""
    mesh = local_mesh()
    autoencoder = jax.device_put(autoencoder, replicated(mesh))

    def call(images: np.ndarray) -> Array:
        images = fill_up(images, batch_size)
        return encode(autoencoder, jax.device_put(images, batch_sharding(mesh)))

    return call


def encoded(
    source: PreparedDataset,
    indices: Sequence[int],
    batch_size: int,
    call: Callable[[np.ndarray], Array],
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[str, Float16[np.ndarray, "2 h w moments"], UInt8[np.ndarray, "H W"]]]:
    """Ids, moments and labels of the items, several batches in flight."""

    def fetch(batch: tuple[Sequence[int], list[dict], Array]) -> Iterator[tuple]:
        places, items, moments = batch
        for index, item, one in zip(places, items, np.asarray(moments), strict=False):
            yield source.ids[index], one, item["labels"]

    flying: deque[tuple[Sequence[int], list[dict], Array]] = deque()
    for start in range(0, len(indices), batch_size):
        places = indices[start : start + batch_size]
        items = list(pool.map(source.__getitem__, places))
        flying.append((places, items, call(np.stack([item["image"] for item in items]))))
        if len(flying) > IN_FLIGHT:
            yield from fetch(flying.popleft())
    for batch in flying:
        yield from fetch(batch)


def cache(
    data: str, autoencoder: Autoencoder, out: Path, batch_size: int, name: str
) -> dict[str, Any]:
    """Write the cache, or continue writing it; return what `latents.json` holds.

    Args:
      data: folder of a prepared data set.
      autoencoder: in float32.
      out: a new or empty folder, or one where the same was interrupted or finished.
      batch_size: images at a time.
      name: of the autoencoder, for the record.

    Raises:
      InputError: an argument is out of range, the factor does not divide the images, `out` cannot
        be written or holds anything else, or latents are beyond float16.
    """
    if batch_size < 1:
        raise InputError(f"--batch-size is {batch_size}: give at least 1")
    description = prepared.read_description(data)
    size, factor = description["size"], autoencoder.config.factor
    if size % factor:
        raise InputError(
            f"images of {size} pixels in {data} do not divide into latents: prepare them at a "
            f"multiple of the autoencoder's factor {factor}"
        )
    settings = {
        "version": latents.VERSION,
        "size": size,
        "coding": latents.CODING,
        "data": prepared.checksum(description),
        "autoencoder": autoencoder.checksum(),
    }
    splits = {name: split for name, split in description["splits"].items() if split["ids"]}
    tasks = []
    for split, content in splits.items():  # the shards of the data set, one for one
        start = 0
        for shard in content["shards"]:
            tasks.append(Shard(split, shard["file"], range(start, start + shard["count"])))
            start += shard["count"]
    ids = {task.file: [splits[task.split]["ids"][i] for i in task.items] for task in tasks}
    folder = Folder(out, shards.plan(settings, ids), latents.LATENTS_FILE)
    if (finished := folder.finished()) is not None:
        return finished
    with folder.writing(), _memory_in_words(batch_size):
        notes = folder.begin(tasks)
        sources = {split: PreparedDataset(data, size, split=split) for split in splits}
        batch_size = min(batch_size, max(len(task.items) for task in tasks))
        batch_size = whole_batch(batch_size, local_mesh())
        call = encoder(autoencoder, batch_size)
        total = sum(len(task.items) for task in tasks)
        done = sum(len(task.items) for task in tasks if task.file in notes)
        side = size // factor
        with (
            bar(total=total, initial=done, desc="encoding", unit="image") as progress,
            ThreadPoolExecutor(cores()) as pool,
        ):
            for task in tasks:
                if task.file in notes:
                    continue
                with folder.writer(task) as writer:
                    for id, moments, labels in encoded(
                        sources[task.split], task.items, batch_size, call, pool
                    ):
                        if not np.isfinite(moments).all():
                            raise InputError(
                                f"the latents of image {id} are beyond float16: is {name} an "
                                "autoencoder of such images?"
                            )
                        writer.write(latents.encode(id, moments, labels))
                        progress.update()
                    writer.note["ids"] = ids[task.file]
                notes[task.file] = writer.note
        return folder.finish(
            {
                **settings,
                "moments": [2, side, side, 2 * autoencoder.config.latent_channels],
                "autoencoder_name": name,
                **ClassSet.from_json(description).to_json(),
                "splits": {
                    split: {
                        "ids": content["ids"],
                        "shards": [
                            shards.entry(notes[task.file]) for task in tasks if task.split == split
                        ],
                    }
                    for split, content in splits.items()
                },
            }
        )


@contextmanager
def _memory_in_words(batch_size: int) -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise RunError(
            f"the devices' memory does not hold --batch-size {batch_size} "
            f"({str(error).splitlines()[0][:200]}): give a smaller one, and the command continues"
        ) from error


def check(args: argparse.Namespace) -> None:
    """Look at the data and the folder before the autoencoder, which may have to be downloaded.

    Raises:
      InputError: as `cache`.
    """
    if args.batch_size < 1:
        raise InputError(f"--batch-size is {args.batch_size}: give at least 1")
    description = prepared.read_description(args.data)
    for split, content in description["splits"].items():
        if content["ids"]:
            prepared.open_split(args.data, description, split)
    shards.check_folder(args.out, latents.LATENTS_FILE)


def main() -> None:
    args = parse_arguments()
    check(args)
    autoencoder = load_autoencoder(args.autoencoder, dtype="float32")
    cached = cache(args.data, autoencoder, args.out, args.batch_size, args.autoencoder)
    counts = ", ".join(f"{name} {len(split['ids'])}" for name, split in cached["splits"].items())
    _, height, width, moments = cached["moments"]
    print(f"{args.out}: {counts}, latents {height} x {width} x {moments // 2}")
    print(f"train with --config.autoencoder.cache={args.out}")


if __name__ == "__main__":
    cli.run(main)
