"""An autoencoder in bfloat16 beside float32: errors in dB and grey levels, on images of a data set.

    python benchmarks/autoencoder_dtypes.py --autoencoder runs/autoencoder --data data/synthetic \
        --size 64 --test-from 3584

Encodes images of the test split and decodes the means of their latents. A CPU emulates bfloat16:
its errors are of the size of an accelerator's, its speed says nothing. On a CPU, set
XLA_FLAGS=--xla_allow_excess_precision=false, without which XLA skips some of the rounding. Prints
a table and writes JSON.
"""

import argparse

import jax
import numpy as np
import report

from sisma_jax.common import cli
from sisma_jax.data.input_pipeline import items, open_dataset
from sisma_jax.data.raw import TEST_FROM
from sisma_jax.metrics import psnr
from sisma_jax.models.autoencoder import Autoencoder, load_autoencoder, to_float, to_uint8

BATCH = 16


def parse() -> argparse.Namespace:
    parser = report.parser("autoencoder_dtypes.py", __doc__)
    add = parser.add_argument
    add("--autoencoder", required=True, help="same values as autoencoder.path in a config")
    add("--data", required=True, help="a raw or prepared data set")
    add("--size", type=int, required=True, help="side of its images in pixels")
    add("--test-from", type=int, default=TEST_FROM, help="first id of a raw set's test split")
    add("--count", type=int, default=128, help="images of the test split (default: 128)")
    name = "autoencoder_dtypes_cpu.json"
    add("--out", type=cli.path, default=report.RESULTS / name, help="JSON file")
    return parser.parse_args()


@jax.jit
def there_and_back(autoencoder: Autoencoder, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    means, _ = autoencoder.encode(to_float(images))
    return means, to_uint8(autoencoder.decode(means))


@jax.jit
def decode(autoencoder: Autoencoder, means: jax.Array) -> jax.Array:
    return to_uint8(autoencoder.decode(means))


def apart(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Errors of uint8 images in grey levels and dB."""
    levels = np.abs(a.astype(int) - b)
    mean_square = np.mean(np.square(levels, dtype=np.float64))
    return {
        "psnr_db": float(10 * np.log10(255**2 / max(mean_square, 1e-12))),
        "mean_levels": float(levels.mean()),
        "largest_levels": int(levels.max()),
    }


def main() -> None:
    args = parse()
    source = open_dataset(
        args.data, args.size, split="test", test_from=args.test_from, fields=("image",)
    )
    images = items(source, range(min(args.count, len(source))))["image"]
    batches = np.array_split(images, max(1, len(images) // BATCH))
    made = {}
    for dtype in ("float32", "bfloat16"):
        autoencoder = load_autoencoder(args.autoencoder, dtype=dtype)
        parts = zip(*(there_and_back(autoencoder, batch) for batch in batches), strict=True)
        made[dtype] = [np.concatenate(part) for part in parts]
    (exact, faces), (means, rounded) = made.values()
    of_exact = [decode(autoencoder, part) for part in np.array_split(exact, len(batches))]
    errors = {
        "images": len(images),
        "test_psnr_db": {
            dtype: float(np.mean(psnr(images, decoded, 255)))
            for dtype, (_, decoded) in made.items()
        },
        "latents_relative_rms": float(np.sqrt(np.mean(np.square(means - exact))) / exact.std()),
        "encoded_and_decoded": apart(rounded, faces),
        "decoded": apart(np.concatenate(of_exact), faces),
    }
    for name, value in errors.items():
        print(f"{name}: {value}")
    report.write(args.out, ("jax", "jaxlib", "flax"), errors)


if __name__ == "__main__":
    cli.run(main)
