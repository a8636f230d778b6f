"""Throughput of the training stream and of `prepare`.

Makes synthetic faces in the raw layout (1024 px, masks 512), or takes a raw folder, and prepares
it. Measures images per second of the training stream with flips from the raw folder, from shards
and from cached latents (with Stable Diffusion's factor of 8); of plain Pillow in threads over image
and label PNG files, as a peer; and of `prepare` without the start of its workers; each on one core
and on all. Then profiles one item. Prints a table and writes JSON.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import report
from PIL import Image

from sisma_jax import cache_latents
from sisma_jax.common import cli
from sisma_jax.common.processes import cores
from sisma_jax.data import label_maps, layouts, preparation, raw, raw_layout, records, synthetic
from sisma_jax.data.input_pipeline import Source, mirror, open_dataset, training_stream
from sisma_jax.data.label_maps import write_label_map
from sisma_jax.data.latents import LatentCache
from sisma_jax.models.autoencoder import Autoencoder, AutoencoderConfig, AutoencoderKL


def parse() -> argparse.Namespace:
    parser = report.parser("data_bench.py", __doc__)
    add = parser.add_argument
    add("--source", type=cli.path, help="a raw CelebAMask-HQ folder (default: synthetic faces)")
    add("--count", type=int, default=64, help="synthetic faces (default: 64)")
    add("--size", type=int, default=256, help="side in pixels (default: 256)")
    add("--batch-size", type=int, default=16, help="(default: 16)")
    add("--seconds", type=float, default=4.0, help="seconds per measurement (default: 4)")
    add("--repeats", type=int, default=3, help="measurements per median")
    add("--out", type=cli.path, default=report.RESULTS / "data_cpu.json", help="JSON file")
    return parser.parse_args()


@contextlib.contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Restrict this process and its children to `count` cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Repeated:
    """A source as long as the full set: grain shuffles very short ones slowly."""

    def __init__(self, source: Source, length: int = 28_000):
        self.source, self.length = source, length
        self.classes, self.checksum = source.classes, source.checksum

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.source[index % len(self.source)]


def stream_rate(source: Source, args: argparse.Namespace, threads: int) -> float:
    stream = training_stream(Repeated(source), batch_size=args.batch_size, seed=0, threads=threads)
    with contextlib.closing(stream):
        for _ in range(4):
            next(stream)
        began, images = time.perf_counter(), 0
        while time.perf_counter() - began < args.seconds:
            images += len(next(stream)["labels"])
        return images / (time.perf_counter() - began)


def latent_cache(shards: Path, out: Path) -> LatentCache:
    """Latents by an untrained autoencoder with Stable Diffusion's factor and channels."""
    config = AutoencoderConfig.tiny(block_channels=(8, 8), norm_groups=4)
    image = np.zeros((1, 8, 8, 3), np.float32)
    params = AutoencoderKL(config).init(jax.random.key(0), image)["params"]
    cache_latents.cache(str(shards), Autoencoder(config, params), out, 16, "untrained")
    return LatentCache(out)


def pillow_rate(folder: Path, args: argparse.Namespace, threads: int) -> float:
    """The peer: PNG files of image and labels, opened by threads, flipped, stacked."""
    paths = sorted((folder / "images").iterdir())

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        path = paths[index % len(paths)]
        image = np.asarray(Image.open(path))
        labels = np.asarray(Image.open(folder / "labels" / path.name))
        return (image[:, ::-1], label_maps.flip(labels)) if index % 2 else (image, labels)

    began, images = time.perf_counter(), 0
    with ThreadPoolExecutor(threads) as pool:
        while time.perf_counter() - began < args.seconds:
            items = [*pool.map(read, range(images, images + args.batch_size))]
            for field in zip(*items, strict=True):
                np.stack(field)
            images += len(items)
    return images / (time.perf_counter() - began)


def prepare_rate(layout: layouts.Layout, args: argparse.Namespace, cores: int) -> float:
    """Images per second from the times of one and of five copies, without the workers' start."""
    count = sum(map(len, layout.splits.values()))
    times = []
    for copies in (1, 5):
        repeated = dataclasses.replace(
            layout, splits={name: entries * copies for name, entries in layout.splits.items()}
        )
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            prepare(repeated, Path(folder) / "out", args.size, cores)
            times.append(time.perf_counter() - began)
    return 4 * count / (times[1] - times[0])


def prepare(layout: layouts.Layout, out: Path, size: int, workers: int) -> None:
    reader = layouts.Reader(size, layout.classes, "canonical", crop=False)
    preparation.prepare(layout, reader, out, split_name="sis", shard_size=8, workers=workers)


def milliseconds(function: Callable[[int], object], count: int) -> float:
    """Median over calls with 0 .. count - 1."""
    times = []
    for index in range(count):
        began = time.perf_counter()
        function(index)
        times.append(time.perf_counter() - began)
    return float(np.median(times) * 1e3)


def profile(root: Path, shards: Source, size: int) -> dict[str, float]:
    """Milliseconds of each stage of one item, on one core."""
    masks = raw_layout.mask_folder(root)
    images, parts = raw_layout.list_images(root), raw_layout.list_parts(masks)
    faces = [raw_layout.Face(face, images[face], parts[face]) for face in sorted(parts)[:40]]
    items = [shards[index] for index in range(min(len(shards), 40))]
    encoded = [records.encode("0", item) for item in items]
    stored = [records.unpack(record) for record in encoded]
    coded = [Image.fromarray(item["image"]) for item in items]

    def in_format(**options):
        buffers = []
        for image in coded:
            buffers.append(io.BytesIO())
            image.save(buffers[-1], **options)
        return lambda k: np.asarray(Image.open(buffers[k]))

    image_path = lambda k: faces[k].image_path(root)
    part_of = lambda k: raw.read_parts(masks, faces[k], size)
    count, few = len(items), min(len(faces), len(items))
    return {
        "raw: image": milliseconds(lambda k: raw.read_image(image_path(k), size), few),
        "raw: parts": milliseconds(part_of, few),
        "prepare: code a record": milliseconds(lambda k: records.encode("0", items[k]), count),
        "shards: read a record": milliseconds(lambda k: shards._records[k], count),
        "shards: decode the image": milliseconds(
            lambda k: records.decode(encoded[k], ("image",), size), count
        ),
        "shards: decode the labels": milliseconds(
            lambda k: records.decode(encoded[k], ("labels",), size), count
        ),
        "flip of both": milliseconds(lambda k: mirror(shards.classes, items[k]), count),
        "the image as PNG, level 1": milliseconds(in_format(format="PNG", compress_level=1), count),
        "the image as PNG, level 6": milliseconds(in_format(format="PNG"), count),
        "bytes of a record's image": float(np.mean([len(one["image"]) for one in stored])),
        "bytes of a record's labels": float(np.mean([len(one["labels"]) for one in stored])),
    }


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        root, shards = args.source or Path(folder) / "raw", Path(folder) / "shards"
        if args.source is None:
            synthetic.write_dataset(root, count=args.count, size=1024, mask_size=512, seed=0)
        layout = layouts.survey(root, test_from=10**9)
        available = cores()
        prepare(layout, shards, args.size, available)
        prepared = open_dataset(shards, args.size)
        latents = latent_cache(shards, Path(folder) / "latents")
        raw_source = open_dataset(root, args.size, split="all")
        pairs = Path(folder) / "pairs"
        for name in ("images", "labels"):
            (pairs / name).mkdir(parents=True)
        for index in range(min(len(prepared), 64)):
            item = prepared[index]
            Image.fromarray(item["image"]).save(pairs / f"images/{index}.png")
            write_label_map(pairs / f"labels/{index}.png", item["labels"])
        measured: dict[str, dict[int, float]] = {}
        for count in sorted({1, available}):
            with on_cores(count):
                for name, rate in (
                    ("stream from shards", lambda n: stream_rate(prepared, args, n)),
                    ("stream from cached latents", lambda n: stream_rate(latents, args, n)),
                    ("stream from the raw folder", lambda n: stream_rate(raw_source, args, n)),
                    ("Pillow and threads, PNG files", lambda n: pillow_rate(pairs, args, n)),
                    ("prepare", lambda n: prepare_rate(layout, args, n)),
                ):
                    rates = [rate(count) for _ in range(args.repeats)]
                    measured.setdefault(name, {})[count] = float(np.median(rates))
        with on_cores(1):
            parts = profile(root, prepared, args.size)
    print(f"{'images/s':32s}" + "".join(f"{count:>7} cores" for count in sorted({1, available})))
    for name, rates in measured.items():
        print(f"{name:32s}" + "".join(f"{rate:13.0f}" for rate in rates.values()))
    for name, value in parts.items():
        print(f"{name:32s}{value:13.2f}" + ("" if name.startswith("bytes") else " ms"))
    content = {"size": args.size, "images_per_second": measured, "profile": parts}
    report.write(args.out, ("pillow", "grain", "array-record", "numpy"), content)


if __name__ == "__main__":
    cli.run(main)
