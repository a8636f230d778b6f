"""Write procedural faces in the raw layout of CelebAMask-HQ, a data set that needs no download.

The same command continues an interrupted run and does nothing once it is finished.
"""

from sisma_jax.common import cli
from sisma_jax.data.synthetic.writer import write_dataset


def main() -> None:
    parser = cli.Parser(
        "sisma_jax.data.synthetic",
        __doc__,
        "python -m sisma_jax.data.synthetic --out data/synthetic --count 2000 --size 64 --seed 0",
    )
    add = parser.add_argument
    add("--out", type=cli.path, required=True, help="new or empty folder for the data set")
    add("--count", type=int, default=2000, help="number of faces")
    add("--size", type=int, default=64, help="side of an image in pixels, 32 to 1024")
    add("--mask-size", type=int, help="side of a mask in pixels (default: the image size)")
    add("--seed", type=int, default=0, help="another seed gives other faces")
    add("--workers", type=int, help="worker processes (default: one per core)")
    given = vars(parser.parse_args())
    out, count, size = given["out"], given["count"], given["size"]
    if write_dataset(**given):
        print(f"{out}: {count} faces at {size} px")
    else:
        print(f"{out}: already complete, {count} faces at {size} px")


if __name__ == "__main__":
    cli.run(main)
