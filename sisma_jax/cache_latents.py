"""Encode a prepared data set once, so that training need not encode it in every step.

Writes float16 latent moments of every image and of its mirror image, with the labels, and with the
images if asked to: models with a style need them. Uses all devices of this machine. The same
command continues an interrupted run.
"""

import argparse
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float16, UInt8

from sisma_jax.common import cli
from sisma_jax.common.errors import InputError, RunError
from sisma_jax.common.processes import cores
from sisma_jax.common.progress import bar
from sisma_jax.data import latents, prepared, shards
from sisma_jax.data.classes import ClassSet
from sisma_jax.data.prepared import PreparedDataset
from sisma_jax.data.records import encode_image
from sisma_jax.data.shards import Folder, Shard
from sisma_jax.devices.sharding import (
    batch_sharding,
    fill_up,
    local_mesh,
    replicated,
    whole_batch,
)
from sisma_jax.models.autoencoder import Autoencoder, load_autoencoder, to_float

IN_FLIGHT = 2
"""Batches that are encoded or in transfer while the records of one are written."""


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(
        "sisma_jax.cache_latents",
        __doc__,
        "python -m sisma_jax.cache_latents --data data/celeba-256 --autoencoder sd-vae-ft-ema "
        "--out data/celeba-256-latents",
    )
    add = parser.add_argument
    add("--data", required=True, help="folder written by sisma_jax.prepare")
    add("--autoencoder", required=True, help="same values as autoencoder.path in a config")
    add("--out", type=cli.path, required=True, help="folder for the shards, new or empty")
    add("--images", action="store_true", help="keep the images too, for models with a style")
    add("--batch-size", type=int, default=16, help="images per batch, over all devices")
    return parser.parse_args()


@jax.jit
def encode(
    autoencoder: Autoencoder, images: UInt8[Array, "b H W 3"]
) -> Float16[Array, "b 2 h w moments"]:
    """Return the moments of images ([:, 0]) and of their mirror images ([:, 1])."""
    both = jnp.concatenate([images, images[:, :, ::-1]])
    moments = jnp.concatenate(autoencoder.encode(to_float(both)), axis=-1).astype(jnp.float16)
    return jnp.stack(jnp.split(moments, 2), axis=1)


def encoder(
    autoencoder: Autoencoder, batch_size: int
) -> Callable[[UInt8[np.ndarray, "n H W 3"]], Float16[Array, "b 2 h w moments"]]:
    """Return `encode` for at most `batch_size` images, split evenly over all local devices."""
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
    images: bool,
) -> Iterator[
    tuple[str, Float16[np.ndarray, "2 h w moments"], UInt8[np.ndarray, "H W"], bytes | None]
]:
    """Yield ids, moments, labels and, if requested, the bytes of images, with up to IN_FLIGHT
    batches computing ahead."""

    def fetch(batch: tuple[Sequence[int], list[dict], Array]) -> Iterator[tuple]:
        places, items, moments = batch
        as_bytes = pool.map(encode_image, [item["image"] for item in items]) if images else ()
        rows = zip_longest(places, items, as_bytes)
        for (index, item, image), one in zip(rows, np.asarray(moments), strict=False):
            yield source.ids[index], one, item["labels"], image

    in_flight: deque[tuple[Sequence[int], list[dict], Array]] = deque()
    for start in range(0, len(indices), batch_size):
        places = indices[start : start + batch_size]
        items = list(pool.map(source.__getitem__, places))
        in_flight.append((places, items, call(np.stack([item["image"] for item in items]))))
        if len(in_flight) > IN_FLIGHT:
            yield from fetch(in_flight.popleft())
    for batch in in_flight:
        yield from fetch(batch)


def cache(
    data: str,
    autoencoder: Autoencoder,
    out: Path,
    batch_size: int,
    name: str,
    *,
    images: bool = False,
) -> dict[str, Any]:
    """Write the cache, or continue writing it; return the content of `latents.json`.

    Args:
      data: folder of a prepared data set.
      autoencoder: one that computes in float32.
      out: a new or empty folder, or one that holds this cache, complete or interrupted.
      batch_size: images per batch.
      name: the autoencoder's name, kept in `latents.json`.
      images: whether the records also hold the images.

    Raises:
      InputError: an argument is out of range, the factor does not divide the image size, `out`
        cannot be written or holds other files, or a latent overflows float16.
    """
    if batch_size < 1:
        raise InputError(f"--batch-size is {batch_size}: give at least 1")
    description = prepared.read_description(data)
    size, factor = description["size"], autoencoder.config.factor
    if size % factor:
        raise InputError(
            f"images in {data} have {size} pixels, which is not a multiple of the autoencoder's "
            f"factor {factor}: prepare them at a multiple"
        )
    settings = {
        "version": latents.VERSION,
        "size": size,
        "coding": latents.CODING_WITH_IMAGES if images else latents.CODING,
        "data": prepared.checksum(description),
        "autoencoder": autoencoder.checksum(),
    }
    splits = {name: split for name, split in description["splits"].items() if split["ids"]}
    tasks = []
    for split, content in splits.items():  # one shard of latents per shard of the data set
        start = 0
        for shard in content["shards"]:
            tasks.append(Shard(split, shard["file"], range(start, start + shard["count"])))
            start += shard["count"]
    ids = {task.file: [splits[task.split]["ids"][i] for i in task.items] for task in tasks}
    # The codings of this version differ in the images only.
    other_images = (
        "was written without --images: leave out --images, or name another folder"
        if images
        else "was written with --images: give --images too, or name another folder"
    )
    plan = shards.plan(settings, ids)
    folder = Folder(out, plan, latents.LATENTS_FILE, {"coding": other_images})
    if (finished := folder.finished()) is not None:
        return finished
    with folder.writing(), _explain_out_of_memory(batch_size):
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
                    for id, moments, labels, image in encoded(
                        sources[task.split], task.items, batch_size, call, pool, images
                    ):
                        if not np.isfinite(moments).all():
                            raise InputError(
                                f"the latents of image {id} overflow float16: give an autoencoder "
                                f"that suits these images in place of {name}"
                            )
                        writer.write(latents.encode(id, moments, labels, image))
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
def _explain_out_of_memory(batch_size: int) -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise RunError(
            f"--batch-size {batch_size} does not fit in the devices' memory "
            f"({str(error).splitlines()[0][:200]}): continue with a smaller one"
        ) from error


def check(args: argparse.Namespace) -> None:
    """Check the data and the output folder before the autoencoder, which may be a download.

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
    cached = cache(
        args.data, autoencoder, args.out, args.batch_size, args.autoencoder, images=args.images
    )
    counts = ", ".join(f"{name} {len(split['ids'])}" for name, split in cached["splits"].items())
    _, height, width, moments = cached["moments"]
    print(f"{args.out}: {counts}, latents {height} x {width} x {moments // 2}")
    print(f"train with --config.autoencoder.cache={args.out}")


if __name__ == "__main__":
    cli.run(main)
