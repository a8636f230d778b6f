"""How much an edit of the mask changes the rest of a photo: figures and a picture.

    python benchmarks/edit_bench.py --workdir runs/demo

Paints hair around the heads of faces of the run's test split and edits the faces accordingly
(`sisma_jax.synthesis.editing`). Distances are root mean squares over pixels in grey levels of
0..255; "far" pixels are farther than the margin from every edited pixel. Writes edit_cpu.json
and edit.png.
"""

from pathlib import Path

import numpy as np
import report
from PIL import Image

from sisma_jax import Synthesizer
from sisma_jax.common import cli
from sisma_jax.common.config import section
from sisma_jax.data.classes import CLASSES
from sisma_jax.data.config import DataConfig
from sisma_jax.data.contact_sheet import tile
from sisma_jax.data.input_pipeline import fixed_batch
from sisma_jax.data.label_maps import colourise
from sisma_jax.metrics.regions import far_from, rms_change
from sisma_jax.models.autoencoder import to_float, to_uint8
from sisma_jax.runs.folder import RunFolder
from sisma_jax.synthesis.editing import edit

STEPS, MARGIN = 12, 8
SHOWN = 8
HAIR, BACKGROUND = CLASSES.index("hair"), CLASSES.index("background")


def hair_around(labels: np.ndarray) -> np.ndarray:
    """Turn background into hair in a box around each head."""
    size = labels.shape[1]
    edited = labels.copy()
    box = edited[:, size // 32 : 11 * size // 32, size // 8 : 7 * size // 8]
    box[box == BACKGROUND] = HAIR
    return edited


def measure(run: Path, count: int) -> tuple[dict[str, float], np.ndarray]:
    """Return figures by name, and a sheet of photos, masks, edited masks and edited photos."""
    synthesizer = Synthesizer.load(run)
    test = section(DataConfig, RunFolder(run).config(), "data").open("test", ("image", "labels"))
    faces = fixed_batch(test, count)
    images, labels = faces["image"], faces["labels"]
    edited = hair_around(labels)
    changed = edited != labels
    far, everywhere = far_from(changed, MARGIN), np.ones_like(changed)

    mean, _ = synthesizer.autoencoder.encode(to_float(images))
    decoded = np.asarray(to_uint8(synthesizer.autoencoder.decode(mean)))
    unedited = edit(synthesizer, images, labels, labels, steps=STEPS, margin=None)
    unbounded = edit(synthesizer, images, labels, edited, steps=STEPS, margin=None)
    local = edit(synthesizer, images, labels, edited, steps=STEPS, margin=MARGIN)
    fresh = synthesizer(labels, seed=3, steps=STEPS)
    figures = {
        "there_and_back": rms_change(unedited, decoded, everywhere),
        "whole_far": rms_change(unbounded, decoded, far),
        "whole_edited": rms_change(unbounded, decoded, changed),
        "local_far": rms_change(local, images, far),
        "local_edited": rms_change(local, images, changed),
        "other_noise_far": rms_change(fresh, decoded, far),
        "autoencoder": rms_change(decoded, images, everywhere),
    }
    rows = images, colourise(labels), colourise(edited), local
    return figures, tile([list(row[:SHOWN]) for row in rows])


def main() -> None:
    parser = report.parser("edit_bench.py", __doc__)
    parser.add_argument("--workdir", type=cli.path, default=Path("runs/demo"),
        help="run on CelebAMask-HQ's classes (default: runs/demo)")  # fmt: skip
    parser.add_argument("--count", type=int, default=64, help="test faces (default: 64)")
    parser.add_argument("--out", type=cli.path, default=report.RESULTS,
        help="folder for edit_cpu.json and edit.png (default: benchmarks/results)")  # fmt: skip
    args = parser.parse_args()
    figures, sheet = measure(args.workdir, args.count)
    content = {"faces": args.count, "steps": STEPS, "margin": MARGIN, "rms_grey_levels": figures}
    report.write(args.out / "edit_cpu.json", ("jax", "flax"), content)
    Image.fromarray(sheet.repeat(2, axis=0).repeat(2, axis=1)).save(args.out / "edit.png")
    for name, value in figures.items():
        print(f"{name:16s} {value:.2f}")


if __name__ == "__main__":
    cli.run(main)
