"""The training of CA2-SIS, which `sisma_jax.train` starts for `model.kind` "ca2sis"."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8
from ml_collections import ConfigDict

from sisma_jax.common.config import check_least, section
from sisma_jax.common.errors import InputError
from sisma_jax.data.config import DataConfig
from sisma_jax.data.contact_sheet import mask_sheet
from sisma_jax.data.input_pipeline import Source, fixed_batch, items
from sisma_jax.data.raw import FIELDS
from sisma_jax.devices.hosts import is_first, print_once, together
from sisma_jax.devices.sharding import fill_up, local_copy
from sisma_jax.metrics.image_quality import WINDOW, psnr, ssim
from sisma_jax.models.autoencoder import to_float, to_uint8
from sisma_jax.models.ca2sis.config import CA2SISConfig, drawn_size
from sisma_jax.models.ca2sis.model import CA2SIS
from sisma_jax.models.generators import model_config
from sisma_jax.models.weights import tree_checksum
from sisma_jax.runs.folder import RunFolder
from sisma_jax.runs.state import Params
from sisma_jax.training.adversarial import DiscriminatorSection
from sisma_jax.training.ca2sis.objective import LossSection, trainable_ca2sis
from sisma_jax.training.logging import Log
from sisma_jax.training.loop import Task, train
from sisma_jax.training.setup import (
    Sections,
    check_classes,
    check_folder,
    refuse_sections,
    run_claimed,
)

ROWS = 16
"""Faces of the test split that are drawn at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplesSection:
    """The config's section `samples`: the sheets written while training."""

    masks: int

    def __post_init__(self) -> None:
        check_least(self, "samples", 1, "masks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSection:
    """The config's section `evaluation`, for metrics of the averaged weights during training."""

    every: int
    """Steps between two evaluations; 0 for none."""
    items: int
    """Number of faces of the test split that are reconstructed."""

    def __post_init__(self) -> None:
        check_least(self, "evaluation", 0, "every")
        check_least(self, "evaluation", 1, "items")


def train_ca2sis(config: ConfigDict, workdir: str | Path, watch: Sequence[Log] = ()) -> None:
    """Train CA2-SIS; arguments and errors are those of `sisma_jax.train.train_sisma`."""
    run = RunFolder(Path(workdir))
    with together():
        common = Sections.of(config)
        data, settings, mesh = common.data, common.train, common.mesh
        check_size(config, data)
        model = model_config(config)
        discriminator = section(DiscriminatorSection, config, "discriminator")
        loss = section(LossSection, config, "loss")
        samples = section(SamplesSection, config, "samples")
        evaluation = section(EvaluationSection, config, "evaluation")
        discriminator.check_size(data.size)
        check_sections(model, common, loss)
        refuse_sections(config, ("flow", "autoencoder"), "CA2-SIS")
        check_folder(run, config)
        network = loss.network(data.size)
        sources = data.open_if_there(FIELDS, FIELDS)
        check_classes("model", model.num_classes, sources)
    data.make_if_synthetic()
    with together():
        train_source, test_source = sources or data.open_both(FIELDS, FIELDS)
        check_classes("model", model.num_classes, [train_source])
    if loss.compares and loss.perceptual and network is None:
        print_once(
            "note: loss.perceptual_network is empty, so the loss has no perceptual term: give the "
            "path of torchvision's VGG-19 as safetensors to train as published"
        )

    with run_claimed(
        run,
        config,
        data=train_source.checksum,
        classes=train_source.classes,
        perceptual=None if network is None else tree_checksum(network.params),
    ) as record:
        measured = reconstruction_scores(model, test_source, evaluation.items)

        def evaluate(ema: Params) -> dict[str, float]:
            ema = local_copy(ema, mesh)
            return measured(ema) if is_first() else {}

        train(
            run=run,
            config=settings,
            checkpoint=common.checkpoint,
            mesh=mesh,
            record=record,
            watch=watch,
            task=Task(
                trainable=trainable_ca2sis(model, discriminator, loss, settings, config.seed),
                constants=() if network is None else (network,),
                feed=common.feed(train_source, config.seed),
                sample_grid=sample_grid(model, loss, test_source, samples.masks),
                # The second stage does not change the faces in their own style.
                evaluate=evaluate if loss.compares else None,
                evaluate_every=evaluation.every if loss.compares else 0,
                dtype=model.dtype or "float32",
            ),
        )


def check_size(config: ConfigDict, data: DataConfig) -> None:
    """Raise InputError unless the model draws images of the data's size, on which the checks of its
    other sizes depend."""
    grid, widths = config.model.grid, config.model.widths
    if widths and data.size != (drawn := drawn_size(grid, widths)):
        raise InputError(
            f"data.size is {data.size}, but model.grid {grid} and the {len(widths)} stages of "
            f"model.widths draw {drawn} pixels: make them agree"
        )


def check_sections(model: CA2SISConfig, common: Sections, loss: LossSection) -> None:
    """Raises InputError if sections of the config do not fit each other."""
    if model.image_size < WINDOW:
        raise InputError(
            f"data.size is {model.image_size}, but SSIM needs {WINDOW} pixels: choose a larger size"
        )
    if not loss.compares and not common.train.init_from:
        raise InputError(
            "loss.styles is 'random', which trains the mapping network of a finished model: name "
            "the run of its first stage by --config.train.init_from"
        )


def reconstruction_scores(
    config: CA2SISConfig, source: Source, count: int
) -> Callable[[Params], dict[str, float]]:
    """Return weights -> mean PSNR (dB) and SSIM of faces in their own style, on uint8 images.

    Args:
      config: sizes of the generator.
      source: the test split.
      count: number of its first faces; all if it has fewer.
    """
    rows = range(min(count, len(source)))
    draw = jax.jit(partial(_reconstruct, config))

    def measure(params: Params) -> dict[str, float]:
        scores: dict[str, list[np.ndarray]] = {"test_psnr_db": [], "test_ssim": []}
        for start in range(0, len(rows), ROWS):
            batch = items(source, rows[start : start + ROWS])
            real, labels = (fill_up(batch[name], ROWS) for name in ("image", "labels"))
            drawn = draw(params, jnp.asarray(real), jnp.asarray(labels))
            for name, metric in (("test_psnr_db", psnr), ("test_ssim", ssim)):
                values = np.asarray(metric(real, drawn, 255))
                scores[name].append(values[: len(batch["image"])])
        return {name: float(np.mean(np.concatenate(values))) for name, values in scores.items()}

    return measure


def sample_grid(
    config: CA2SISConfig, loss: LossSection, source: Source, count: int
) -> Callable[[Params], UInt8[np.ndarray, "h w 3"]]:
    """Return weights -> a sheet of masks, their own faces, and drawn faces.

    In the first stage they are drawn in their own style and in that of the next mask's face, in the
    second one in two random styles.
    """
    fixed = fixed_batch(source, min(count, len(source)))
    images, labels = jnp.asarray(fixed["image"]), jnp.asarray(fixed["labels"])

    @jax.jit
    def drawn(params: Params) -> list[Array]:
        apply = partial(CA2SIS(config).apply, {"params": params})
        if loss.compares:
            own = apply(to_float(images), labels, method="styles")
            styles = [own, jnp.roll(own, -1, axis=0)]
        else:
            noise = jax.random.normal(jax.random.key(0), (2, len(labels), config.noise_width))
            styles = [apply(one, labels, method="random_styles") for one in noise]
        codes = apply(labels, method="mask_codes")
        return [to_uint8(apply(codes, style, method="draw")) for style in styles]

    def grid(params: Params) -> np.ndarray:
        faces = np.stack([np.asarray(x) for x in drawn(params)], axis=1)
        return mask_sheet(fixed["labels"], faces, fixed["image"], source.classes)

    return grid


def _reconstruct(
    config: CA2SISConfig, params: Params, images: UInt8[Array, "b H W 3"], labels: Array
) -> UInt8[Array, "b H W 3"]:
    return to_uint8(CA2SIS(config).apply({"params": params}, to_float(images), labels))
