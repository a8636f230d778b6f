"""Writing synthetic faces in the raw layout of CelebAMask-HQ, in parallel and resumable.

The folders are those of `sisma_jax.data.raw_layout`. Images are JPEG at quality 95 without chroma
subsampling, and part masks are white-on-black PNG; absent parts have no file. The set also contains
the mapping file and its settings, `synthetic.json`, which is written last and marks a finished set.
Until then the settings are in `synthetic.unfinished.json`. The image of a face is written after its
masks, so a face with an image is complete.
"""

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from sisma_jax.common import processes
from sisma_jax.common.errors import InputError
from sisma_jax.common.files import (
    flush_all,
    local_path,
    read_json,
    write_atomically,
    write_json,
    writing,
)
from sisma_jax.common.progress import bar
from sisma_jax.data import raw_layout
from sisma_jax.data.synthetic.appearance import sample_look
from sisma_jax.data.synthetic.figure import APPEARANCE, generator, part_masks, sample_figure
from sisma_jax.data.synthetic.render import render

VERSION = 1
"""Incremented when a change of the code makes the same settings give other pixels."""

_CELEBA_IMAGES = 202_599


@dataclass(frozen=True)
class Settings:
    """Determines every byte of a data set; raises InputError if a value is out of range."""

    count: int
    size: int
    mask_size: int
    seed: int
    version: int = VERSION

    def __post_init__(self) -> None:
        for name, least, most in (
            ("count", 1, 10**6),
            ("size", 32, 1024),
            ("mask_size", 32, 1024),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                name = name.replace("_", "-")
                raise InputError(
                    f"{name} {value} is out of range: give a whole number from {least} to {most}"
                )


def read_settings(folder: Path) -> dict[str, int] | None:
    """Settings (`count`, `size`, `mask_size`, `seed`, `version`) of a finished synthetic data set.

    None if `folder` holds no such set.
    """
    return read_json(folder / raw_layout.SYNTHETIC_FILE)


def read_unfinished_settings(folder: Path) -> dict[str, int] | None:
    """Settings of a set that an earlier run has begun but not finished; None if there is none."""
    return None if read_settings(folder) else read_json(folder / raw_layout.UNFINISHED_FILE)


def write_dataset(
    out: Path,
    *,
    count: int,
    size: int,
    seed: int,
    mask_size: int | None = None,
    workers: int | None = None,
) -> bool:
    """Write look 0 of faces 0 to `count` - 1 of set `seed`; return False if they exist already.

    Args:
      out: a new or empty folder, or one where an earlier run with the same settings stopped; that
        run is continued.
      count: number of faces.
      size: side of an image in pixels, 32 to 1024.
      seed: another seed gives other faces.
      mask_size: side of a mask in pixels, `size` by default.
      workers: number of processes, one per core by default; the files do not depend on it.

    Raises:
      InputError: a value is out of range, `out` holds other files or cannot be written, or another
        process writes there.
    """
    out = local_path(out)
    settings = Settings(count, size, size if mask_size is None else mask_size, seed)
    workers = processes.cores() if workers is None else workers
    if workers < 1:
        raise InputError(f"number of workers is {workers}: give at least 1")
    if read_settings(out) == asdict(settings):
        return False
    begun = read_settings(out) or read_unfinished_settings(out)
    with writing(out, begun=begun is not None):
        _open_folder(out, settings)
        images = (out / raw_layout.IMAGE_FOLDER).glob("*.jpg")
        done = {int(path.stem) for path in images if path.stem.isdecimal()}
        missing = [index for index in range(count) if index not in done]
        with bar(total=count, initial=len(done), desc="faces", unit="face") as progress:
            for written in _write_all(out, settings, missing, workers):
                progress.update(written)
        flush_all()  # before the files below mark the set as finished
        write_atomically(out / raw_layout.MAPPING_FILE, _mapping(count).encode())
        write_json(out / raw_layout.SYNTHETIC_FILE, asdict(settings))
        (out / raw_layout.UNFINISHED_FILE).unlink()
    return True


def _open_folder(out: Path, settings: Settings) -> None:
    """Set up `out` for writing."""
    wanted = asdict(settings)
    stored = read_settings(out) or read_unfinished_settings(out)
    if stored not in (None, wanted):
        different = " and ".join(
            f"{key} {stored.get(key)} instead of {value}"
            for key, value in wanted.items()
            if stored.get(key) != value
        )
        raise InputError(
            f"{out} holds a synthetic data set with {different}: name another folder or delete it"
        )
    try:
        write_json(out / raw_layout.UNFINISHED_FILE, wanted)
        (out / raw_layout.IMAGE_FOLDER).mkdir(exist_ok=True)
        masks = out / raw_layout.MASK_FOLDER
        for index in range(0, settings.count, raw_layout.FACES_PER_MASK_FOLDER):
            raw_layout.part_path(masks, index, "skin").parent.mkdir(parents=True, exist_ok=True)
        for stale in out.rglob("*.tmp"):
            stale.unlink(missing_ok=True)
        _remove_empty_files(out, masks)
    except OSError as error:
        raise InputError(
            f"{out} cannot be written ({error.strerror}): name another folder"
        ) from error


def _remove_empty_files(out: Path, masks: Path) -> None:
    """Remove files that a crash of the machine left empty, with the image of their face, so that
    it is made again."""
    for folder in (out / raw_layout.IMAGE_FOLDER, masks):
        for file in folder.rglob("[0-9]*.*"):
            face = file.stem.partition("_")[0]
            if face.isdecimal() and not file.stat().st_size:
                file.unlink()
                raw_layout.image_path(out, int(face)).unlink(missing_ok=True)


def _write_all(out: Path, settings: Settings, missing: list[int], workers: int) -> Iterator[int]:
    """Yield how many faces have just been written, until all of `missing` are."""
    step = max(32 * 64**2 // settings.size**2, 1)  # about a quarter of a second
    chunks = [missing[k : k + step] for k in range(0, len(missing), step)]
    yield from processes.run(partial(_write_chunk, out, settings), chunks, workers, str(out))


def _write_chunk(out: Path, settings: Settings, chunk: list[int]) -> Iterator[int]:
    yield _write_faces(out, settings, chunk)


def _write_faces(out: Path, settings: Settings, indices: list[int]) -> int:
    # After one large block has been freed, glibc keeps the memory that pictures free. Otherwise it
    # returns this memory to the system and requests it again, page by page, for every picture,
    # which takes a quarter of the time.
    np.empty(24 << 20, np.uint8)
    masks = out / raw_layout.MASK_FOLDER
    for index in indices:
        figure = sample_figure(settings.seed, index, settings.size)
        look = sample_look(generator(settings.seed, index, APPEARANCE))
        samples = figure.label_samples(settings.size)
        pixels = render(figure, look, settings.size, samples)
        if settings.mask_size != settings.size:
            samples = figure.label_samples(settings.mask_size)
        for part, mask in part_masks(figure, samples).items():
            image = Image.fromarray(mask.view(np.uint8) * np.uint8(255))
            path = raw_layout.part_path(masks, index, part)
            content = _encoded(image, format="PNG", compress_level=1)
            write_atomically(path, content, flush=False)  # flushing so many takes minutes
        image = _encoded(Image.fromarray(pixels), format="JPEG", quality=95, subsampling=0)
        write_atomically(raw_layout.image_path(out, index), image, flush=False)
    return len(indices)


def _encoded(image: Image.Image, **options: str | int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def _mapping(count: int) -> str:
    """Rows of the mapping file, with the columns of the real one. A step coprime to CelebA's size
    makes the numbers of the original pictures distinct."""
    rows = ["idx     orig_idx    orig_file"]
    for index in range(count):
        original = (119_613 + 104_729 * index) % _CELEBA_IMAGES
        rows.append(f"{index:<8}{original:<12}{original + 1:06d}.jpg")
    return "\n".join(rows) + "\n"
