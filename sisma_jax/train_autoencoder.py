"""Train an autoencoder: `python -m sisma_jax.train_autoencoder --config configs/autoencoder.py`."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8
from ml_collections import ConfigDict

from sisma_jax.common import cli
from sisma_jax.common.config import check_least, check_shares, section
from sisma_jax.common.errors import InputError, naming
from sisma_jax.common.files import local_path
from sisma_jax.data.contact_sheet import tile
from sisma_jax.data.input_pipeline import Source, fixed_batch
from sisma_jax.devices.hosts import together
from sisma_jax.devices.placement import replicate
from sisma_jax.metrics import psnr, ssim
from sisma_jax.metrics.image_quality import WINDOW
from sisma_jax.models.autoencoder import (
    Autoencoder,
    AutoencoderKL,
    sample_latent,
    save_autoencoder,
    to_float,
    to_uint8,
)
from sisma_jax.models.autoencoder.config import AutoencoderConfig
from sisma_jax.models.autoencoder.training import (
    autoencoder_loss,
    codebook_init,
    codebook_loss,
    latent_scale,
    patch_pca_init,
    perceptual_distance,
    posterior_noise,
)
from sisma_jax.models.judges.backbones import VGG16
from sisma_jax.models.judges.lpips import Lpips, load_lpips
from sisma_jax.models.layers.patch_discriminator import Judgement, PatchDiscriminator
from sisma_jax.models.weights import tree_checksum
from sisma_jax.runs.folder import RunFolder
from sisma_jax.runs.state import OpponentState, Params
from sisma_jax.training.adversarial import (
    DISCRIMINATOR,
    Discriminator,
    DiscriminatorSection,
    discriminator_loss,
    hinge_of_generator,
)
from sisma_jax.training.auxiliary import (
    FACES_ON_SHEET,
    open_splits,
    test_batches,
    train_and_report,
)
from sisma_jax.training.class_balance import class_weights
from sisma_jax.training.logging import Log
from sisma_jax.training.loop import Task
from sisma_jax.training.program import Trainable
from sisma_jax.training.setup import Sections, check_image_size, parse_training_command
from sisma_jax.training.state import Batch, Metrics, TrainConfig, kernel_axes, make_optimizer

FACES_FOR_STATISTICS = 512
CHANNELS = 3
"""The channels of every picture in a data set: red, green and blue."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The config's section `loss`."""

    kl_weight: float
    """Weight of the posterior's KL divergence; without a codebook."""
    commitment: float
    """Weight of the latents' distance from their codebook entries; with a codebook."""
    class_balance: float = 0.0
    """In [0, 1]: 0 weighs classes by their area in the reconstruction error, 1 all alike
    (`class_weights`); above 0 faces need their masks."""
    perceptual_weight: float = 0.0
    """Weight of the perceptual distance of images and reconstructions; 0 for none."""
    perceptual_network: str = ""
    """Path of torchvision's VGG-16 as safetensors."""
    perceptual_linear: str = ""
    """Path of LPIPS' weights of the channels as safetensors; "" for 1 everywhere (`lpips`)."""
    perceptual_levels: int = len(VGG16.levels)
    """Number of VGG-16's levels that are compared, the finest first."""
    adversarial_weight: float = 0.0
    """Weight of the loss against a discriminator of patches, as in VQGAN; 0 for none."""

    def __post_init__(self) -> None:
        check_least(
            self, "loss", 0, "kl_weight", "commitment", "perceptual_weight", "adversarial_weight"
        )
        check_shares(self, "loss", "class_balance")
        if not 1 <= self.perceptual_levels <= len(VGG16.levels):
            raise InputError(
                f"loss.perceptual_levels is {self.perceptual_levels}: {VGG16.name} has "
                f"{len(VGG16.levels)} levels, so choose 1 to {len(VGG16.levels)}"
            )
        if self.perceptual_weight and not self.perceptual_network:
            raise InputError(
                f"loss.perceptual_weight is {self.perceptual_weight}, but loss.perceptual_network "
                f"is empty: give the path of torchvision's {VGG16.file}, converted to safetensors, "
                "or set the weight to 0"
            )
        for key in () if self.perceptual_weight else ("perceptual_network", "perceptual_linear"):
            if path := getattr(self, key):
                raise InputError(
                    f"loss.{key} is {path!r}, which loss.perceptual_weight 0 does not use: set a "
                    "weight above 0, or leave the path empty"
                )
        if not self.perceptual_weight and self.perceptual_levels != LossConfig.perceptual_levels:
            raise InputError(
                f"loss.perceptual_levels is {self.perceptual_levels}, which loss.perceptual_weight "
                "0 does not use: set a weight above 0, or leave it at "
                f"{LossConfig.perceptual_levels}"
            )

    def network(self, size: int) -> Lpips | None:
        """Read the network of the perceptual distance; None if there is none.

        Args:
          size: side of the images in pixels.

        Raises:
          InputError: if its files cannot be used, or its levels need larger images.
        """
        if not self.perceptual_weight:
            return None
        smallest = VGG16.first(self.perceptual_levels).smallest
        if size < smallest:
            raise InputError(
                f"data.size is {size}, but loss.perceptual_levels {self.perceptual_levels} needs "
                f"{smallest} pixels: choose a larger size, or fewer levels"
            )
        keys = "loss.perceptual_network"
        linear = None
        if self.perceptual_linear:
            keys, linear = f"{keys} or loss.perceptual_linear", local_path(self.perceptual_linear)
        with naming(keys):
            return load_lpips(
                local_path(self.perceptual_network), linear,
                backbones=(VGG16,), levels=self.perceptual_levels,
            )  # fmt: skip


def train_autoencoder(config: ConfigDict, workdir: str | Path, watch: Sequence[Log] = ()) -> None:
    """Train a first stage; arguments and errors are those of `sisma_jax.train.train_sisma`."""
    run = RunFolder(Path(workdir))
    with together():
        sections = Sections.of(config)
        data, settings = sections.data, sections.train
        model = section(AutoencoderConfig, config, "autoencoder")
        if model.dtype == "auto":
            raise InputError(
                "autoencoder.dtype is 'auto', with which a run would depend on its devices: "
                "choose 'float32' or 'bfloat16' to train it"
            )
        if model.image_channels != CHANNELS:
            raise InputError(
                f"autoencoder.image_channels is {model.image_channels}, but faces have {CHANNELS}: "
                f"set it to {CHANNELS}"
            )
        loss = section(LossConfig, config, "loss")
        section_of_discriminator = None
        if loss.adversarial_weight:
            section_of_discriminator = section(DiscriminatorSection, config, "discriminator")
        elif "discriminator" in config:  # which older runs lack
            section(DiscriminatorSection, config, "discriminator")  # raises if it is invalid
        check_image_size(data, model.factor, f"the autoencoder's factor {model.factor}")
        if data.size < WINDOW:
            raise InputError(
                f"data.size is {data.size}, but SSIM needs {WINDOW} pixels: choose a larger size"
            )
        if section_of_discriminator is not None:
            section_of_discriminator.check_size(data.size)
        network = loss.network(data.size)
    train_source, test_source = open_splits(
        run,
        config,
        data,
        train=("image", "labels") if loss.class_balance else ("image",),
        test=("image",),
    )

    module = AutoencoderKL(model)
    reconstruct = jax.jit(lambda params, images: module.apply({"params": params}, images))
    statistics = cache(
        lambda: to_float(
            fixed_batch(train_source, min(FACES_FOR_STATISTICS, len(train_source)))["image"]
        )
    )

    classes = len(train_source.classes)

    def task() -> Task:
        trained = Trainable(
            init_params=first_params(module, config.seed, statistics()),
            optimizer=make_optimizer(settings, kernel_axes),
            draw=partial(draw, model),
            loss_fn=lambda params, batch, *constants, **options: batch_loss(
                module, loss, classes, replicate(params), batch, *constants, **options
            ),
        )
        if section_of_discriminator is not None:
            discriminator = Discriminator(
                PatchDiscriminator(section_of_discriminator.network(0)), data.size, config.seed
            )
            trained = with_discriminator(
                trained, module, discriminator, section_of_discriminator, settings
            )
        return Task(
            trainable=trained,
            constants=() if network is None else (network,),
            feed=sections.feed(train_source, config.seed),
            sample_grid=sample_grid(reconstruct, test_source),
        )

    def export(ema: Params) -> dict[str, float | int]:
        scale = latent_scale(Autoencoder(model, ema), statistics())
        scaled = dataclasses.replace(model, scaling_factor=scale)
        save_autoencoder(run.autoencoder, scaled, ema)
        scores = reconstruction_quality(partial(reconstruct, ema), test_source)
        scores["scaling_factor"] = scale
        if model.codebook:
            scores["codebook_usage"] = codebook_usage(Autoencoder(model, ema), test_source)
        return scores

    train_and_report(
        run,
        config,
        sections,
        data=train_source.checksum,
        perceptual=None if network is None else tree_checksum(network.params),
        task=task,
        export=export,
        show=partial(show, run),
        watch=watch,
    )


def draw(config: AutoencoderConfig, key: PRNGKeyArray, batch: Batch) -> Batch:
    """Random arrays of a training batch; none with a codebook."""
    return {} if config.codebook else {"noise": posterior_noise(config, key, batch["image"])}


def batch_loss(
    module: AutoencoderKL,
    loss: LossConfig,
    classes: int,
    params: Params,
    batch: Batch,
    network: Lpips | None = None,
    *,
    judged: Callable[[Array, Array], Judgement] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The loss of a batch, and its parts.

    The batch holds "image" and what `draw` gives; with a class balance also "labels" of `classes`
    classes. The network is `loss.network`; `judged` returns a discriminator's judgement of
    reconstructions, given them and the images, for an adversarial term.
    """
    images, weight = to_float(batch["image"]), None
    if loss.class_balance:
        weight = class_weights(batch["labels"], images.shape[1], classes, loss.class_balance)

    def further(decoded: Array, images: Array) -> tuple[Array, Metrics]:
        metrics, total = {}, jnp.zeros(())
        if network is not None:
            metrics["perceptual"] = perceptual_distance(network, decoded, images)
            total += loss.perceptual_weight * metrics["perceptual"]
        if judged is not None:
            metrics["adversarial"] = hinge_of_generator(judged(decoded, images))
            total += loss.adversarial_weight * metrics["adversarial"]
        return total, metrics

    if module.config.codebook:
        return codebook_loss(module, params, images, loss.commitment, weight, further)
    return autoencoder_loss(module, params, batch["noise"], images, loss.kl_weight, weight, further)


def reconstructed(module: AutoencoderKL, params: Params, batch: Batch) -> Float[Array, "b h w c"]:
    """The reconstructions that the loss of a batch compares with its images."""
    apply = partial(module.apply, {"params": params})
    mean, logvar = apply(to_float(batch["image"]), method="encode")
    codebook = module.config.codebook
    z = mean if codebook else sample_latent(batch["noise"], mean, logvar, scaling_factor=1.0)
    return apply(z, method="decode")


def with_discriminator(
    trained: Trainable,
    module: AutoencoderKL,
    discriminator: Discriminator,
    section: DiscriminatorSection,
    settings: TrainConfig,
) -> Trainable:
    """Return the training of an autoencoder against a discriminator of its reconstructions."""

    def loss_fn(
        params: Params, batch: Batch, opponents: dict[str, OpponentState], *constants: Lpips
    ) -> tuple[Array, Metrics]:
        state = opponents[DISCRIMINATOR]
        judged = lambda *pictures: discriminator.judge(state.params, state.variables, *pictures)[0]
        return trained.loss_fn(params, batch, *constants, judged=judged)

    def of_discriminator(
        params: Params, batch: Batch, spectral: Params, autoencoder: Params, *unused: Lpips
    ) -> tuple[Array, Metrics]:
        fake = jax.lax.stop_gradient(reconstructed(module, replicate(autoencoder), batch))
        judgements = discriminator.judge(params, spectral, fake, to_float(batch["image"]))
        return discriminator_loss(*judgements)

    return dataclasses.replace(
        trained,
        loss_fn=loss_fn,
        opponents={DISCRIMINATOR: discriminator.opponent(section, settings, of_discriminator)},
    )


def first_params(
    module: AutoencoderKL, seed: int, statistics: Float[Array, "n h w c"]
) -> Callable[[], Params]:
    """Return a function that makes new weights: random ones, but linear maps from principal
    components, and a codebook from the latents under these weights."""
    new_params = lambda: module.init(jax.random.key(seed), statistics[:1])["params"]
    config = module.config
    if not config.linear_skip and not config.codebook:
        return new_params
    params = jax.jit(new_params)()
    if config.linear_skip:
        params = patch_pca_init(params, statistics)
    if config.codebook:
        params = codebook_init(Autoencoder(config, params), statistics)
    # NumPy arrays, which a program of several processes may close over.
    start = jax.tree.map(np.asarray, params)
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
    """Mean PSNR (dB) and SSIM over all images of a split, computed on uint8 images."""
    scores: dict[str, list[np.ndarray]] = {"psnr_db": [], "ssim": []}
    for batch, count in test_batches(source):
        decoded = to_uint8(reconstruct(to_float(batch["image"])))
        for name, metric in (("psnr_db", psnr), ("ssim", ssim)):
            scores[name].append(np.asarray(metric(batch["image"], decoded, 255))[:count])
    means = {f"test_{name}": float(np.mean(np.concatenate(x))) for name, x in scores.items()}
    return means | {"test_images": len(source)}


def codebook_usage(autoencoder: Autoencoder, source: Source) -> float:
    """Share of the codebook's entries that quantise any latent of a split's images."""
    used = np.zeros(autoencoder.config.codebook, bool)
    indices_of = jax.jit(lambda model, images: model.quantise(model.encode(images)[0])[1])
    for batch, count in test_batches(source):
        used[np.asarray(indices_of(autoencoder, to_float(batch["image"])))[:count]] = True
    return float(used.mean())


def show(run: RunFolder, report: dict) -> None:
    """Print the scores of the finished first stage, and how to use it."""
    print(
        f"step {report['step']}: PSNR {report['test_psnr_db']:.2f} dB and SSIM "
        f"{report['test_ssim']:.3f} on {report['test_images']} test images, "
        f"scaling factor {report['scaling_factor']:.4f}"
    )
    if "codebook_usage" in report:
        print(f"they use {report['codebook_usage']:.1%} of the codebook's entries")
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
