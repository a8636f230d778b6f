"""Train a first stage: `python -m sisma_jax.train_autoencoder --config configs/autoencoder.py`."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from sisma_jax import cli
from sisma_jax.config import section
from sisma_jax.contact_sheet import tile
from sisma_jax.data.input_pipeline import Source, fixed_batch
from sisma_jax.errors import InputError
from sisma_jax.metrics import psnr, ssim
from sisma_jax.metrics.image_quality import WINDOW
from sisma_jax.models.autoencoder import (
    Autoencoder,
    AutoencoderKL,
    save_autoencoder,
    to_float,
    to_uint8,
)
from sisma_jax.models.autoencoder.config import AutoencoderConfig
from sisma_jax.models.autoencoder.training import (
    autoencoder_loss,
    latent_scale,
    patch_pca_init,
    posterior_noise,
)
from sisma_jax.models.placement import whole
from sisma_jax.training.hosts import is_first, together
from sisma_jax.training.logging import Log
from sisma_jax.training.loop import Task, train
from sisma_jax.training.run_folder import RunFolder
from sisma_jax.training.setup import (
    Sections,
    check_image_size,
    parse_training_command,
    run_claimed,
)
from sisma_jax.training.sharding import fill_up, local_copy
from sisma_jax.training.state import Params, kernel_axes, make_optimizer

FACES_FOR_STATISTICS = 512
FACES_ON_SHEET = 12
TEST_BATCH = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The config's section `loss`."""

    kl_weight: float

    def __post_init__(self) -> None:
        if self.kl_weight < 0:
            raise InputError(f"loss.kl_weight is {self.kl_weight}: use 0 or more")


def train_autoencoder(config: ConfigDict, workdir: str | Path, watch: Sequence[Log] = ()) -> None:
    """Train a first stage; arguments and errors are those of `sisma_jax.train.train_sisma`."""
    run = RunFolder(Path(workdir))
    with together():
        common = Sections.of(config)
        data, settings, mesh = common.data, common.train, common.mesh
        model = section(AutoencoderConfig, config, "autoencoder")
        loss = section(LossConfig, config, "loss")
        check_image_size(data, model.factor)
        if data.size < WINDOW:
            raise InputError(
                f"data.size is {data.size}, but SSIM needs {WINDOW} pixels: choose a larger size"
            )
    data.make_if_synthetic()
    with together():
        train_source = data.open("train", ("image",))
        test_source = data.open("test", ("image",))

    with run_claimed(run, config, data=train_source.checksum) as record:
        report = run.report()
        if report is not None and report["step"] >= settings.steps:
            if is_first():
                show(run, report)
            return
        module = AutoencoderKL(model)
        statistics = to_float(
            fixed_batch(train_source, min(FACES_FOR_STATISTICS, len(train_source)))["image"]
        )
        reconstruct = jax.jit(lambda params, images: module.apply({"params": params}, images))
        state = train(
            run=run,
            config=settings,
            checkpoint=common.checkpoint,
            mesh=mesh,
            record=record,
            watch=watch,
            task=Task(
                init_params=first_params(module, config.seed, statistics),
                optimizer=make_optimizer(settings, kernel_axes),
                draw=lambda key, batch: {"noise": posterior_noise(model, key, batch["image"])},
                loss_fn=lambda params, batch: autoencoder_loss(
                    module, whole(params), batch["noise"], to_float(batch["image"]), loss.kl_weight
                ),
                feed=data.feed(
                    train_source, mesh, batch_size=settings.batch_size, seed=config.seed
                ),
                sample_grid=sample_grid(reconstruct, test_source),
            ),
        )
        if state.step < settings.steps:
            return
        ema = local_copy(state.ema, mesh)
        with together():  # the others wait: none may leave before the first
            if is_first():
                scale = latent_scale(Autoencoder(model, ema), statistics)
                scaled = dataclasses.replace(model, scaling_factor=scale)
                save_autoencoder(run.autoencoder, scaled, ema)
                report = {
                    "step": int(state.step),
                    **reconstruction_quality(partial(reconstruct, ema), test_source),
                    "scaling_factor": scale,
                }
                run.write_report(report)
                show(run, report)


def first_params(
    module: AutoencoderKL, seed: int, statistics: Float[Array, "n h w c"]
) -> Callable[[], Params]:
    """Return what makes new weights: random ones, linear maps from principal components."""
    new_params = lambda: module.init(jax.random.key(seed), statistics[:1])["params"]
    if not module.config.linear_skip:
        return new_params
    # As NumPy arrays, which a program of many processes may hold.
    start = jax.tree.map(np.asarray, patch_pca_init(jax.jit(new_params)(), statistics))
    return lambda: jax.tree.map(jnp.asarray, start)


def sample_grid(
    reconstruct: Callable[[Params, Array], Array], source: Source
) -> Callable[[Params], UInt8[np.ndarray, "h w 3"]]:
    """Return averaged weights -> a sheet of faces and their reconstructions."""
    faces = to_float(fixed_batch(source, min(FACES_ON_SHEET, len(source)))["image"])
    return lambda ema: tile(
        [list(np.asarray(to_uint8(x))) for x in (faces, reconstruct(ema, faces))]
    )


def reconstruction_quality(
    reconstruct: Callable[[Array], Array], source: Source
) -> dict[str, float | int]:
    """Mean PSNR and SSIM over all images of a split, as bytes on both sides."""
    scores: dict[str, list[np.ndarray]] = {"psnr_db": [], "ssim": []}
    # Batches of one shape, so that everything compiles once; the last one is filled up.
    for start in range(0, len(source), TEST_BATCH):
        rows = range(start, min(start + TEST_BATCH, len(source)))
        images = np.stack([source[index]["image"] for index in rows])
        full = fill_up(images, TEST_BATCH)
        decoded = to_uint8(reconstruct(to_float(full)))
        for name, metric in (("psnr_db", psnr), ("ssim", ssim)):
            scores[name].append(np.asarray(metric(full, decoded, 255))[: len(rows)])
    means = {f"test_{name}": float(np.mean(np.concatenate(x))) for name, x in scores.items()}
    return means | {"test_images": len(source)}


def show(run: RunFolder, report: dict) -> None:
    """Print what the finished first stage is, and how it is used."""
    print(
        f"step {report['step']}: PSNR {report['test_psnr_db']:.2f} dB and SSIM "
        f"{report['test_ssim']:.3f} on {report['test_images']} test images, "
        f"scaling factor {report['scaling_factor']:.4f}"
    )
    print(f"{run.autoencoder} is ready: set autoencoder.path to {run.path}")


def main() -> None:
    train_autoencoder(
        *parse_training_command(
            "sisma_jax.train_autoencoder",
            __doc__,
            "python -m sisma_jax.train_autoencoder --config configs/autoencoder.py "
            "--workdir runs/autoencoder",
        )
    )


if __name__ == "__main__":
    cli.run(main)
