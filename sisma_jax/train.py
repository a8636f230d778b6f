"""Train SISMA, SCA-DM or CA2-SIS: `python -m sisma_jax.train --config configs/synthetic.py`.

The config file chooses the model: SCA-DM in configs/scadm.py, CA2-SIS in configs/ca2sis.py, and
SISMA in the others (`model.kind`).
"""

import dataclasses
import importlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from sisma_jax.common import cli
from sisma_jax.common.config import check_choice, check_least, section
from sisma_jax.common.errors import InputError, RunError
from sisma_jax.data import latents, prepared
from sisma_jax.data.config import DataConfig
from sisma_jax.data.contact_sheet import mask_sheet
from sisma_jax.data.input_pipeline import Source, fixed_batch
from sisma_jax.data.latents import LatentCache
from sisma_jax.data.raw import FIELDS
from sisma_jax.devices.hosts import is_first, print_once, together
from sisma_jax.devices.sharding import (
    local_copy,
    replicated,
)
from sisma_jax.kernels.selective_scan.api import check_here
from sisma_jax.models import SISMAConfig
from sisma_jax.models.autoencoder import (
    Autoencoder,
    load_autoencoder,
    save_autoencoder,
    to_uint8,
)
from sisma_jax.models.autoencoder.config import DTYPES
from sisma_jax.models.generators import (
    Config,
    generator,
    learns_null_mask,
    model_config,
    parameter_shapes,
)
from sisma_jax.models.scadm.config import SCADMConfig
from sisma_jax.runs.folder import RunFolder
from sisma_jax.runs.state import Params
from sisma_jax.synthesis.checks import check_autoencoder, check_mask_guidance, check_sampling
from sisma_jax.synthesis.options import SamplingOptions, name_fields
from sisma_jax.synthesis.synthesizer import Synthesizer
from sisma_jax.training.ca2sis.run import train_ca2sis
from sisma_jax.training.held_out import EvaluationConfig, held_out_loss
from sisma_jax.training.logging import Log
from sisma_jax.training.loop import Task, train
from sisma_jax.training.memory import check_memory
from sisma_jax.training.objective import FlowConfig, trainable_generator
from sisma_jax.training.setup import (
    Sections,
    check_classes,
    check_folder,
    check_image_size,
    parse_training_command,
    refuse_sections,
    run_claimed,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstStageConfig:
    """The config's section `autoencoder`."""

    path: str
    """A path that `load_autoencoder` reads."""
    scaling_factor: float
    """Replaces the scaling factor of the weights, unless it is 0."""
    dtype: str
    """Compute type, one of `DTYPES`; "" for the one that the weights were saved with."""
    cache: str
    """Folder by `sisma_jax.cache_latents`; "" encodes the images in every step."""

    def __post_init__(self) -> None:
        if self.dtype:
            check_choice(self, "autoencoder", "dtype", DTYPES)

    def load(self) -> Autoencoder:
        if not self.path:
            raise InputError(
                "autoencoder.path is empty: give a run of sisma_jax.train_autoencoder, a weight "
                "file or hf://owner/name"
            )
        return load_autoencoder(
            self.path, scaling_factor=self.scaling_factor or None, dtype=self.dtype or None
        )

    def open(self, data: DataConfig, *, style: bool) -> list[Source]:
        """Open the training and the test split, of cached latents or of images; [] if synthetic
        faces are still to be made.

        Args:
          data: the config's section `data`.
          style: whether styles are taken from the images, which then come with cached latents.

        Raises:
          InputError: if there are none, or the cache has another size, other data or no images.
        """
        if not self.cache:
            return data.open_if_there(FIELDS, FIELDS)
        fields = latents.FIELDS_WITH_IMAGES if style else latents.FIELDS
        sources = [
            LatentCache(self.cache, split=split, fields=fields) for split in ("train", "test")
        ]
        self.check(sources[0], data)
        return sources

    def check(self, cache: LatentCache, data: DataConfig, autoencoder: str | None = None) -> None:
        """Raises InputError if the cache has another size, data or autoencoder (by checksum)."""
        checksum = prepared.checksum(prepared.read_description(data.path)) if data.path else None
        cache.check(size=data.size, autoencoder=autoencoder, data=checksum)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """The config's section `samples`: the grids written while training."""

    masks: int
    per_mask: int
    steps: int
    solver: str
    guidance: float

    def __post_init__(self) -> None:
        check_least(self, "samples", 1, "masks", "per_mask")
        self.options  # noqa: B018  raises if a value is out of range

    @property
    def options(self) -> SamplingOptions:
        with name_fields("samples."):
            return SamplingOptions(steps=self.steps, solver=self.solver, guidance=self.guidance)


Hook = Callable[[Synthesizer, Source], Mapping[str, float]]
"""(synthesizer with the averaged weights, test split) -> metrics by name."""


def load_hook(evaluation: EvaluationConfig) -> Hook | None:
    """The function that evaluation.hook names as "module:function"; None for "".

    Raises:
      InputError: if it cannot be imported, or there is no evaluation to call it.
    """
    spec = evaluation.hook
    if not spec:
        return None
    module, _, name = spec.partition(":")
    try:
        hook = getattr(importlib.import_module(module), name)
        if not callable(hook):
            raise TypeError("it is not a function")
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputError(
            f"evaluation.hook {spec!r} cannot be imported ({error}): write it as module:function, "
            "of a module on the Python path"
        ) from error
    if not evaluation.every:
        raise InputError(
            f"evaluation.hook is {spec!r}, but with evaluation.every 0 it is never called: set the "
            "number of steps between two evaluations"
        )

    def named(synthesizer: Synthesizer, source: Source) -> dict[str, float]:
        try:
            return {key: float(value) for key, value in hook(synthesizer, source).items()}
        except Exception as error:  # whatever the user's function raises
            traceback.print_exc()
            raise RunError(
                f"evaluation.hook {spec!r} failed ({error!r}): fix it, or continue with another "
                "--config.evaluation.hook"
            ) from error

    return named


def check_sections(model: Config, data: DataConfig) -> None:
    """Raises InputError if the config's other sections do not fit the model and its kind."""
    check_image_size(data, model.factor, f"the autoencoder's factor {model.factor}")
    if data.size != model.image_size:
        raise InputError(
            f"data.size is {data.size} where model.latent_size x model.factor is "
            f"{model.latent_size} x {model.factor}: make them agree"
        )


def say_other_prediction(run: RunFolder, config: ConfigDict, model: Config) -> None:
    """Print a note if the run starts from weights that predict something else."""
    start = config.train.init_from
    if not start or run.newest_step() is not None:  # not read when a run continues
        return
    before = model_config(RunFolder(Path(start)).config())
    if not isinstance(before, SCADMConfig) or not isinstance(model, SCADMConfig):
        return
    predicted, wanted = before.diffusion.prediction, model.diffusion.prediction
    if predicted != wanted:
        print_once(
            f"note: the weights of train.init_from {start} predict the {predicted}, and this run "
            f"trains them to predict the {wanted}: set flow.prediction to {predicted!r} to keep "
            "what they have learnt"
        )


def check_scan(model: Config) -> None:
    """Raises InputError if the implementation of the scan cannot run here."""
    with explaining_scan(model):
        parameter_shapes(model)
        if isinstance(model, SISMAConfig) and "mamba" in (model.mixer, model.style):
            check_here(model.scan, model.state)


@contextmanager
def explaining_scan(model: Config) -> Iterator[None]:
    """Turn the error of tracing a scan that cannot run here into InputError."""
    try:
        yield
    except NotImplementedError as error:
        raise InputError(
            f"model.scan {model.scan!r} cannot run here ({error}): choose 'auto'"
        ) from error


def train_sisma(config: ConfigDict, workdir: str | Path, watch: Sequence[Log] = ()) -> None:
    """Train a model as `config` says, in the run folder `workdir`, or continue the run there.

    Args:
      config: what get_config() of a file in `configs/` returns.
      workdir: the run folder.
      watch: further logs that receive metrics and samples during training.

    Raises:
      InputError: if the config, the data or the folder cannot be used.
      RunError: if the run cannot go on.
    """
    if config.get("model", {}).get("kind") == "ca2sis":
        train_ca2sis(config, workdir, watch)
        return
    run = RunFolder(Path(workdir))

    # Check everything before the first file is written.
    with together():
        common = Sections.of(config)
        data, settings, mesh = common.data, common.train, common.mesh
        model = model_config(config)
        samples = section(SamplesConfig, config, "samples")
        evaluation = section(EvaluationConfig, config, "evaluation")
        flow_config = FlowConfig.of(config)
        first_stage = section(FirstStageConfig, config, "autoencoder")
        check_sections(model, data)
        with name_fields("samples."):
            check_sampling(model, samples.options)
            check_mask_guidance(samples.options, learns_null_mask(config))
        hook = load_hook(evaluation)
        refuse_sections(config, ("loss", "discriminator"), generator(model).name)
        check_folder(run, config)
        say_other_prediction(run, config, model)
        with explaining_scan(model):  # traced if the devices report their memory
            check_memory(model, flow_config, settings, mesh)
        # Local data first: the autoencoder may be a download.
        sources = first_stage.open(data, style=generator(model).has_style)
        check_classes("model", model.num_classes, sources)
        check_scan(model)  # takes seconds for a large model
        has_copy = run.autoencoder.exists() and not run.is_replaced_by(config)
        autoencoder = (
            load_autoencoder(run.autoencoder, dtype=None) if has_copy else first_stage.load()
        )
        check_autoencoder(model, autoencoder)
        if first_stage.cache:
            first_stage.check(sources[0], data, autoencoder.checksum())
    if not first_stage.cache:
        data.make_if_synthetic()
    with together():
        train_source, test_source = sources or data.open_both(FIELDS, FIELDS)
        check_classes("model", model.num_classes, [train_source])
        classes = train_source.classes

    with run_claimed(run, config, data=train_source.checksum, classes=classes) as record:
        if is_first() and not run.autoencoder.exists():
            save_autoencoder(run.autoencoder, autoencoder.config, autoencoder.params)
        # For cached latents only its scaling factor is needed.
        constant = dataclasses.replace(autoencoder, params={}) if first_stage.cache else autoencoder
        constant = jax.device_put(constant, replicated(mesh))
        synthesizer = lambda ema: Synthesizer(model, ema, autoencoder, classes=classes)
        loss_by_time = held_out_loss(
            model, evaluation, test_source, constant, mesh,
            settings.batch_size // settings.accumulate,
        )  # fmt: skip

        def evaluate(ema: Params) -> dict[str, float]:
            metrics = loss_by_time(ema)
            if hook is not None:
                ema = local_copy(ema, mesh)
                if is_first():
                    metrics |= hook(synthesizer(ema), test_source)
            return metrics

        train(
            run=run,
            config=settings,
            checkpoint=common.checkpoint,
            mesh=mesh,
            record=record,
            watch=watch,
            task=Task(
                trainable=trainable_generator(model, flow_config, settings, config.seed),
                constants=(constant,),
                feed=common.feed(train_source, config.seed),
                sample_grid=sample_grid(samples, synthesizer, autoencoder, test_source),
                evaluate=evaluate,
                evaluate_every=evaluation.every,
                macs=sum(generator(model).macs()),
                dtype=model.dtype,
            ),
        )


def sample_grid(
    samples: SamplesConfig,
    synthesizer: Callable[[Params], Synthesizer],
    autoencoder: Autoencoder,
    source: Source,
) -> Callable[[Params], UInt8[np.ndarray, "h w 3"]]:
    """Return averaged weights -> a sheet of masks, their own faces, and synthesised faces.

    A model with style conditioning first makes as many in the style of the masks' own faces.
    """
    fixed = fixed_batch(source, min(samples.masks, len(source)))
    if "image" not in fixed:  # decoded latents replace the faces
        means = np.split(fixed["moments"], 2, axis=-1)[0].astype(np.float32)
        fixed["image"] = np.asarray(to_uint8(autoencoder.decode(means)))
    labels = fixed["labels"]

    def draw_grid(ema: Params) -> np.ndarray:
        model = synthesizer(ema)
        make = partial(
            model.images,
            np.repeat(labels, samples.per_mask, axis=0),
            samples.options,
        )
        made = [make()]
        if model.has_style:
            made.insert(0, make(style=model.style(fixed["image"], labels).repeat(samples.per_mask)))
        columns = [x.reshape(len(labels), samples.per_mask, *x.shape[1:]) for x in made]
        return mask_sheet(labels, np.concatenate(columns, 1), fixed["image"], source.classes)

    return draw_grid


def main() -> None:
    train_sisma(
        *parse_training_command(
            "sisma_jax.train",
            __doc__,
            "python -m sisma_jax.train --config configs/synthetic.py --config.train.steps=1000",
        )
    )


if __name__ == "__main__":
    cli.run(main)
