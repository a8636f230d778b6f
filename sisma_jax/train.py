"""Train SISMA: `python -m sisma_jax.train --config configs/synthetic.py`."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sisma_jax import cli, flow
from sisma_jax.config import section
from sisma_jax.contact_sheet import mask_sheet
from sisma_jax.data import prepared
from sisma_jax.data.classes import UNLABELLED
from sisma_jax.data.input_pipeline import Source, fixed_batch
from sisma_jax.data.latents import LatentCache
from sisma_jax.errors import InputError
from sisma_jax.models import SISMA, SISMAConfig
from sisma_jax.models.autoencoder import (
    Autoencoder,
    load_autoencoder,
    sample_latent,
    save_autoencoder,
    to_float,
    to_uint8,
)
from sisma_jax.models.sisma import init_params, matrix_axes
from sisma_jax.synthesizer import Synthesizer, check_autoencoder
from sisma_jax.training.checkpoint import CheckpointConfig
from sisma_jax.training.loop import train
from sisma_jax.training.run_folder import RunFolder
from sisma_jax.training.setup import DataConfig, check_image_size, parse_training_command
from sisma_jax.training.sharding import MeshConfig, check_batch, make_mesh
from sisma_jax.training.state import Params, TrainConfig, make_optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """The config's section `flow`."""

    sampling: str
    """Distribution of training times: "logit_normal" or "uniform"."""
    drop: float
    """Share of masks replaced by the null mask, for guidance."""

    def __post_init__(self) -> None:
        if self.sampling not in flow.TIME_SAMPLINGS:
            raise InputError(
                f"flow.sampling is {self.sampling!r}: choose 'logit_normal' or 'uniform'"
            )
        if not 0 <= self.drop <= 1:
            raise InputError(f"flow.drop is {self.drop}: choose a share in [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstStageConfig:
    """The config's section `autoencoder`."""

    path: str
    """Whatever `load_autoencoder` reads."""
    scaling_factor: float
    """In place of that of the weights, unless it is 0."""
    dtype: str
    """Compute type in place of that of the weights, unless it is ""."""
    cache: str
    """Latents by `sisma_jax.cache_latents`; "" encodes the images in every step."""

    def load(self) -> Autoencoder:
        return load_autoencoder(
            self.path, scaling_factor=self.scaling_factor or None, dtype=self.dtype or None
        )

    def open(self, data: DataConfig, autoencoder: Autoencoder) -> tuple[Source, Source]:
        """The training and the test split: cached latents, or images.

        Raises:
          InputError: where there are none, or the cache is of another autoencoder, size or data.
        """
        if not self.cache:
            return tuple(data.open(split, ("image", "labels")) for split in ("train", "test"))
        train, test = (LatentCache(self.cache, split=split) for split in ("train", "test"))
        checksum = prepared.checksum(prepared.read_description(data.path)) if data.path else None
        train.check(size=data.size, autoencoder=autoencoder.checksum(), data=checksum)
        return train, test


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """The config's section `samples`: the grids written while training."""

    masks: int
    per_mask: int
    steps: int
    solver: str
    guidance: float

    def __post_init__(self) -> None:
        for name in ("masks", "per_mask", "steps"):
            if getattr(self, name) < 1:
                raise InputError(f"samples.{name} is {getattr(self, name)}: set at least 1")
        if self.solver not in flow.SOLVERS:
            raise InputError(
                f"samples.solver is {self.solver!r}: choose one of {', '.join(flow.SOLVERS)}"
            )
        if self.guidance < 0:
            raise InputError(f"samples.guidance is {self.guidance}: set 0 or more")


def training_loss(
    params: Params,
    batch: dict[str, Array],
    key: Array,
    autoencoder: Autoencoder,
    *,
    config: SISMAConfig,
    flow_config: FlowConfig,
) -> tuple[Array, dict[str, Array]]:
    """Flow-matching loss of a batch of label maps with uint8 images or moments of latents."""
    latent_key, drop_key, flow_key = jax.random.split(key, 3)
    if "moments" in batch:
        mean, logvar = jnp.split(batch["moments"], 2, axis=-1)
        latents = sample_latent(latent_key, mean, logvar, autoencoder.scaling_factor)
    else:
        latents = autoencoder.to_latents(latent_key, to_float(batch["image"]))
    labels = flow.drop_condition(drop_key, batch["labels"], UNLABELLED, flow_config.drop)
    velocity = lambda z, t: SISMA(config).apply({"params": params}, z, t, labels)
    return flow.loss(velocity, flow_key, latents, sampling=flow_config.sampling), {}


def main() -> None:
    config, workdir = parse_training_command(
        "sisma_jax.train",
        __doc__,
        "python -m sisma_jax.train --config configs/synthetic.py --config.train.steps=1000",
    )
    data = section(DataConfig, config, "data")
    model = section(SISMAConfig, config, "model")
    settings = section(TrainConfig, config, "train")
    checkpoint = section(CheckpointConfig, config, "checkpoint")
    samples = section(SamplesConfig, config, "samples")
    flow_config = section(FlowConfig, config, "flow")
    first_stage = section(FirstStageConfig, config, "autoencoder")
    mesh = make_mesh(section(MeshConfig, config, "mesh"))
    run = RunFolder(workdir)

    # Everything that could be wrong is looked at before the first file is written.
    check_batch(settings.batch_size, mesh)
    check_image_size(data, model.factor)
    if settings.init_from:
        RunFolder(Path(settings.init_from)).config()
    if data.size != model.image_size:
        raise InputError(
            f"data.size is {data.size} where model.latent_size x model.factor is "
            f"{model.latent_size} x {model.factor}: make them agree"
        )
    has_copy = run.autoencoder.exists()
    autoencoder = load_autoencoder(run.autoencoder) if has_copy else first_stage.load()
    check_autoencoder(model, autoencoder)
    if not first_stage.cache:
        data.make_if_synthetic()
    train_source, test_source = first_stage.open(data, autoencoder)
    classes = train_source.classes
    if len(classes) != model.num_classes:
        raise InputError(
            f"model.num_classes is {model.num_classes}, but {train_source!r} has {len(classes)} "
            f"classes: set --config.model.num_classes={len(classes)}"
        )
    run.check_classes(classes)
    run.check_data(train_source.checksum)
    run.claim(config)
    run.write_classes(classes)
    run.write_data(train_source.checksum)
    if not has_copy:
        save_autoencoder(run.autoencoder, autoencoder.config, autoencoder.params)

    fixed = fixed_batch(test_source, min(samples.masks, len(test_source)))
    if "moments" in fixed:  # what the autoencoder makes of the faces stands for them
        means = np.split(fixed["moments"], 2, axis=-1)[0].astype(np.float32)
        fixed["image"] = np.asarray(to_uint8(autoencoder.decode(means)))

    # Of cached latents it has no more to say than their scaling factor.
    constant = dataclasses.replace(autoencoder, params={}) if first_stage.cache else autoencoder

    def sample_grid(ema: Params) -> np.ndarray:
        synthesizer = Synthesizer(model, ema, autoencoder)
        images = synthesizer(
            np.repeat(fixed["labels"], samples.per_mask, axis=0),
            seed=0,
            steps=samples.steps,
            solver=samples.solver,
            guidance=samples.guidance,
        )
        images = images.reshape(len(fixed["labels"]), samples.per_mask, *images.shape[1:])
        return mask_sheet(fixed["labels"], images, fixed["image"], classes)

    train(
        run=run,
        config=settings,
        checkpoint=checkpoint,
        mesh=mesh,
        seed=config.seed,
        init_params=lambda: init_params(model, jax.random.key(config.seed)),
        optimizer=make_optimizer(settings, matrix_axes),
        loss_fn=partial(training_loss, config=model, flow_config=flow_config),
        constants=(constant,),
        open_stream=data.stream(train_source, batch_size=settings.batch_size, seed=config.seed),
        sample_grid=sample_grid,
    )


if __name__ == "__main__":
    cli.run(main)
