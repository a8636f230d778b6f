"""Show what the demo's model has learned: a sheet of faces, and figures beside it.

`python -m sisma_jax.demo --workdir runs/demo` synthesises faces for masks of the test split of the
run's synthetic data set, writes `samples.png` (mask, faces, class colours), those masks as
`masks/ID.png` and `report.json` into the run folder, and prints:

  regions   share of pixel variance explained by the mask's regions: for samples, for faces
            rendered from the same masks, and for samples under another face's mask
  spread    difference between faces of one mask: samples, and renderings of the same mask
  loss      training loss on the test split, with the right masks and with shuffled ones

A model with style conditioning is shown without references: its style is drawn from noise.
"""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sisma_jax.common import cli
from sisma_jax.common.config import section
from sisma_jax.common.errors import InputError
from sisma_jax.common.files import local_path
from sisma_jax.data import synthetic
from sisma_jax.data.config import DataConfig
from sisma_jax.data.contact_sheet import mask_sheet, with_legend
from sisma_jax.data.image_files import save_png
from sisma_jax.data.input_pipeline import Source, fixed_batch
from sisma_jax.data.label_maps import write_label_map
from sisma_jax.devices.sharding import local_mesh, whole_batch
from sisma_jax.metrics.regions import explained_variance, spread
from sisma_jax.runs.folder import RunFolder
from sisma_jax.synthesis.synthesizer import Synthesizer
from sisma_jax.training.held_out import EvaluationConfig, held_out_loss

MASKS = 12
PER_MASK = 6
LOSS_COUNT = 128


def main() -> None:
    parser = cli.parser("sisma_jax.demo", __doc__, "python -m sisma_jax.demo --workdir runs/demo")
    parser.add_argument("--workdir", type=cli.path, default=Path("runs/demo"), help="run folder")
    parser.add_argument("--steps", type=int, default=12, help="solver steps")
    parser.add_argument(
        "--guidance",
        type=float,
        help="classifier-free guidance (default: 1.5, or 1 where training dropped no mask)",
    )
    args = parser.parse_args()

    run = RunFolder(args.workdir)
    config = run.config("sisma_jax.train")
    data = section(DataConfig, config, "data")
    test = data.open("test", ("image", "labels"))
    if len(test) < LOSS_COUNT:
        raise InputError(
            f"the test split of {data.path} has {len(test)} faces: the demo needs {LOSS_COUNT}, "
            "use sisma_jax.sample and sisma_jax.evaluate for smaller sets"
        )
    seed = seed_of(data)
    faces = fixed_batch(test, MASKS)
    labels = faces["labels"]
    write_masks(run.masks, test.ids[:MASKS], labels)

    synthesizer = Synthesizer.load(args.workdir, batch_size=24)
    guidance = args.guidance
    if guidance is None:
        guidance = 1.5 if synthesizer.trained_with_null_mask else 1.0
    settings = {"step": synthesizer.step, "steps": args.steps, "guidance": guidance}
    settings["loss"] = "held out"  # reports of before 2026-11-29 have another estimate
    report = run.report()
    if report is not None and report["settings"] == settings:
        show(report)
        print(f"{args.workdir / 'samples.png'} is up to date")
        return

    samples = synthesizer(
        np.repeat(labels, PER_MASK, axis=0), steps=args.steps, guidance=guidance
    ).reshape(MASKS, PER_MASK, data.size, data.size, 3)
    report = {
        "settings": settings,
        "regions": regions(samples, labels, faces["image"]),
        "spread": {
            "samples": float(spread(samples).mean()),
            "renderings": float(spread(renderings(seed, data.size, test.ids[:MASKS])).mean()),
        },
        "loss": loss_by_mask(synthesizer, test),
    }
    sheet = with_legend(mask_sheet(labels, samples))
    save_png(Image.fromarray(sheet), args.workdir / "samples.png")
    run.write_report(report)
    show(report)
    print(f"wrote {args.workdir / 'samples.png'}, and its masks to {run.masks}")


def write_masks(folder: Path, ids: np.ndarray, labels: UInt8[np.ndarray, "n h w"]) -> None:
    """Write label maps as `ID.png`, the input of `sisma_jax.sample` and `read_label_map`."""
    folder.mkdir(exist_ok=True)
    for face, one in zip(ids.tolist(), labels, strict=True):
        write_label_map(folder / f"{face}.png", one)


def regions(
    samples: UInt8[np.ndarray, "n k h w 3"],
    labels: UInt8[np.ndarray, "n h w"],
    rendered: UInt8[np.ndarray, "n h w 3"],
) -> dict[str, float]:
    """Explained variance of samples, rendered faces, and samples under another face's mask."""
    per_mask = samples.shape[1]
    flat = samples.reshape(-1, *samples.shape[2:])
    own = np.repeat(labels, per_mask, axis=0)
    other = np.repeat(np.roll(labels, 1, axis=0), per_mask, axis=0)
    return {
        "samples": float(explained_variance(flat, own).mean()),
        "rendered": float(explained_variance(rendered, labels).mean()),
        "other_mask": float(explained_variance(flat, other).mean()),
    }


def seed_of(data: DataConfig) -> int:
    """The seed of the synthetic set; raises InputError for other data."""
    settings = synthetic.read_settings(local_path(data.path))
    if settings is None:
        raise InputError(
            f"{data.path} is not a finished synthetic data set: the demo compares with renderings "
            "of its masks, use sisma_jax.sample for other data"
        )
    return settings["seed"]


def renderings(seed: int, size: int, ids: np.ndarray) -> UInt8[np.ndarray, "n k h w 3"]:
    """Render each face of `ids` PER_MASK times: the same mask in other appearances."""
    return np.stack(
        [[synthetic.face(seed, int(i), size, look=k)[0] for k in range(PER_MASK)] for i in ids]
    )


def loss_by_mask(synthesizer: Synthesizer, test: Source) -> dict[str, float]:
    """Held-out loss at logit-normal times, with right and with shuffled masks, and without a style,
    as samples are made."""
    mesh = local_mesh()
    loss = held_out_loss(
        synthesizer.config,
        EvaluationConfig(every=0, items=LOSS_COUNT, bins=1, hook=""),
        test,
        synthesizer.autoencoder,
        mesh,
        whole_batch(min(32, LOSS_COUNT), mesh),
        sampling="logit_normal",
        style=False,
    )
    right, shuffled = (loss(synthesizer.params, shift)["test_loss"] for shift in (0, 1))
    return {"right_masks": right, "shuffled_masks": shuffled, "ratio": shuffled / right}


def show(report: dict) -> None:
    """Print the figures as a table."""
    r, s, loss = report["regions"], report["spread"], report["loss"]
    print("share of pixel variance explained by the regions of the mask")
    print(f"  samples, their own mask      {r['samples']:.3f}")
    print(f"  rendered faces, their own    {r['rendered']:.3f}")
    print(f"  samples, another face's mask {r['other_mask']:.3f}")
    print("spread over faces of one mask (mean standard deviation of a pixel)")
    print(f"  samples    {s['samples']:.3f}")
    print(f"  renderings {s['renderings']:.3f}")
    print("loss on the test split")
    print(f"  right masks    {loss['right_masks']:.3f}")
    print(f"  shuffled masks {loss['shuffled_masks']:.3f}  (ratio {loss['ratio']:.2f})")


if __name__ == "__main__":
    cli.run(main)
