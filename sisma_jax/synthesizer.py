"""From masks to images: the trained model, its autoencoder and a solver behind one call."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Compiled
from jaxtyping import Array, Float, Key, UInt8

from sisma_jax import flow
from sisma_jax.config import section
from sisma_jax.data.classes import CELEBAMASK, UNLABELLED, ClassSet
from sisma_jax.errors import InputError
from sisma_jax.models import SISMA, SISMAConfig
from sisma_jax.models.autoencoder import Autoencoder, load_autoencoder, to_uint8
from sisma_jax.models.sisma import init_params
from sisma_jax.training.checkpoint import abstract_like, averaged_weights
from sisma_jax.training.run_folder import RunFolder
from sisma_jax.training.sharding import (
    batch_sharding,
    fill_up,
    local_mesh,
    replicated,
    under_mesh,
    whole_batch,
)
from sisma_jax.training.state import Params


def noise_keys(seed: int | Sequence[int], start: int, count: int) -> Key[Array, " b"]:
    """Return the key of each image's noise.

    With one seed, image i of a set has the noise (seed, i), where i counts from `start`. With one
    seed per image it has the noise (its seed, 0): that of a lone image with this seed.
    """
    if isinstance(seed, int | np.integer):
        seeds, indices = np.full(count, seed, np.uint32), np.arange(start, start + count)
    else:
        seeds, indices = np.asarray(seed, np.uint32)[start : start + count], np.zeros(count)
    return jax.vmap(lambda seed, index: jax.random.fold_in(jax.random.key(seed), index))(
        jnp.asarray(seeds), jnp.asarray(indices, jnp.uint32)
    )


def velocity_under(
    config: SISMAConfig,
    params: Params,
    labels: UInt8[Array, "b H W"],
    guidance: Float[Array, ""] | float | None,
) -> flow.Velocity:
    """Return the velocity under label maps, which are encoded here, once, ahead of any solver.

    With `guidance` None the null mask is never computed; guided, each velocity is one pass over a
    batch of twice the size.
    """
    apply = partial(SISMA(config).apply, {"params": params})
    if guidance is None:
        features = apply(labels, method="encode_mask")
        return lambda z, t: apply(z, t, features, method="velocity")
    null = jnp.full_like(labels, UNLABELLED)
    features = apply(jnp.concatenate([labels, null]), method="encode_mask")

    def guided_velocity(z: Array, t: Array) -> Array:
        both = apply(jnp.tile(z, (2, 1, 1, 1)), jnp.tile(t, 2), features, method="velocity")
        return flow.guide(*jnp.split(both, 2), guidance)

    return guided_velocity


@partial(jax.jit, static_argnames=("config", "steps", "solver", "guided"))
def synthesize_latents(
    config: SISMAConfig,
    params: Params,
    keys: Key[Array, " b"],
    labels: UInt8[Array, "b H W"],
    guidance: Float[Array, ""] | float,
    *,
    steps: int,
    solver: str,
    guided: bool,
) -> Float[Array, "b h w c"]:
    """Return scaled latents for label maps."""
    shape = (config.latent_size, config.latent_size, config.latent_channels)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    velocity = velocity_under(config, params, labels, guidance if guided else None)
    return flow.integrate(velocity, noise, steps=steps, solver=solver)


@partial(jax.jit, static_argnames=("config", "steps", "solver", "guided"))
def _synthesize(config, params, autoencoder, keys, labels, guidance, *, steps, solver, guided):
    latents = synthesize_latents(
        config, params, keys, labels, guidance, steps=steps, solver=solver, guided=guided
    )
    return to_uint8(autoencoder.from_latents(latents))


@dataclasses.dataclass(frozen=True)
class _Variant:
    """What a compiled synthesis is for."""

    size: int
    steps: int
    solver: str
    guided: bool

    @property
    def options(self) -> dict[str, Any]:
        return {"steps": self.steps, "solver": self.solver, "guided": self.guided}


def check_autoencoder(config: SISMAConfig, autoencoder: Autoencoder) -> None:
    """Raises InputError unless the model was configured for this autoencoder's latents."""
    autoencoder.scaling_factor  # noqa: B018  it raises where the weights do not say it
    factor, channels = autoencoder.config.factor, autoencoder.config.latent_channels
    if (factor, channels) != (config.factor, config.latent_channels):
        raise InputError(
            f"the autoencoder has factor {factor} and {channels} latent channels where the "
            f"model has {config.factor} and {config.latent_channels}: "
            "set model.factor and model.latent_channels to the autoencoder's"
        )


@dataclasses.dataclass(frozen=True)
class Synthesizer:
    """Masks to images.

        synthesizer = Synthesizer.load("runs/demo")
        images = synthesizer(labels, seed=1, steps=25)

    Batches of any size run on all local devices, `batch_size` images at a time; the last batch is
    padded. An image depends on its mask, its seed and its index, not on what else is in a batch
    (up to 1/255 in float32, from the order of sums).
    """

    config: SISMAConfig
    params: Params
    autoencoder: Autoencoder
    batch_size: int = 16
    step: int | None = None
    """The training step of the weights, where they come from a run."""
    classes: ClassSet = CELEBAMASK
    """What the labels are ids of."""
    _compiled: dict[_Variant, Compiled] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_autoencoder(self.config, self.autoencoder)
        if self.batch_size < 1:
            raise InputError(f"batch size {self.batch_size} makes no image: use at least 1")

    @classmethod
    def load(cls, workdir: str | Path, *, batch_size: int = 16) -> "Synthesizer":
        """Read a run folder: the averaged weights of its newest checkpoint and its autoencoder.

        Args:
          workdir: the run folder, or what `sisma_jax.export` made of it.
          batch_size: images at a time, over all local devices.

        Raises:
          InputError: if `workdir` is not of SISMA or holds no finished checkpoint.
        """
        run = RunFolder(Path(workdir))
        config = section(SISMAConfig, run.config(), "model")
        mesh = local_mesh()
        shapes = jax.eval_shape(partial(init_params, config), jax.random.key(0))
        shardings = jax.tree.map(lambda _: replicated(mesh), shapes)
        step, params = averaged_weights(run, abstract_like(shapes, shardings))
        autoencoder = jax.device_put(load_autoencoder(run.autoencoder), replicated(mesh))
        return cls(config, params, autoencoder, batch_size, step, run.classes())

    @no_type_check  # wrong labels are answered by `check`, in words
    def __call__(
        self,
        labels: UInt8[np.ndarray, "batch H W"],
        seed: int | Sequence[int] = 0,
        steps: int = 25,
        solver: str = "euler",
        guidance: float = 1.0,
    ) -> UInt8[np.ndarray, "batch H W 3"]:
        """Return an RGB image for every label map.

        Args:
          labels: class ids, 255 where unlabelled; H = W = the model's image size.
          seed: one for all, or one per image. Noise depends on (seed, index of the image).
          steps: of the solver.
          solver: "euler", "midpoint" or "heun"; the latter two cost two velocities a step.
          guidance: 1 is the plain model, above it follows the mask more closely at twice the
            cost, 0 ignores the mask.

        Raises:
          InputError: if an argument is out of range or the label maps do not fit the model.
        """
        batches = self.batches(np.asarray(labels), seed, steps, solver, guidance)
        size = self.config.image_size
        return np.concatenate([np.empty((0, size, size, 3), np.uint8), *batches])

    @no_type_check
    def batches(
        self,
        labels: UInt8[np.ndarray, "batch H W"],
        seed: int | Sequence[int] = 0,
        steps: int = 25,
        solver: str = "euler",
        guidance: float = 1.0,
    ) -> Iterator[UInt8[np.ndarray, "_ H W 3"]]:
        """Yield what a call returns, `batch_size` images at a time."""
        self.check(labels, seed, steps, solver, guidance)
        return self._batches(labels, seed, steps, solver, guidance)

    def _batches(
        self,
        labels: UInt8[np.ndarray, "batch H W"],
        seed: int | Sequence[int],
        steps: int,
        solver: str,
        guidance: float,
    ) -> Iterator[UInt8[np.ndarray, "_ H W 3"]]:
        mesh = local_mesh()
        rows = batch_sharding(mesh)
        variant = self._variant(mesh, len(labels), steps, solver, guidance)
        size = variant.size
        program = self._compiled.get(variant) or partial(
            under_mesh(mesh, _synthesize), self.config, **variant.options
        )
        for start in range(0, len(labels), size):
            chunk = labels[start : start + size]
            keys = noise_keys(seed, start, len(chunk))
            padding = size - len(chunk)
            if padding:
                keys = jnp.concatenate([keys, jnp.repeat(keys[-1:], padding)])
            images = program(
                self.params,
                self.autoencoder,
                jax.device_put(keys, rows),
                jax.device_put(fill_up(chunk, size), rows),
                np.float32(guidance),
            )
            yield np.asarray(images)[: size - padding]

    def _variant(
        self, mesh: Mesh, count: int, steps: int, solver: str, guidance: float
    ) -> _Variant:
        """What makes `count` images, in batches of one size."""
        size = whole_batch(max(min(self.batch_size, count), 1), mesh)
        return _Variant(size, steps, solver, guidance != 1.0)

    def memory(
        self, count: int = 16, steps: int = 25, solver: str = "euler", guidance: float = 1.0
    ) -> dict[str, int]:
        """Return what a call with `count` label maps needs on each device, in bytes.

        Solver and decoder are one program, which this compiles (and keeps for the call).

        Returns:
          "batch": images of one batch, over all local devices; "arguments": weights and inputs;
          "temporary": the rest at its largest, as XLA planned it.
        """
        mesh = local_mesh()
        variant = self._variant(mesh, count, steps, solver, guidance)
        if variant not in self._compiled:
            rows, pixels = batch_sharding(mesh), self.config.image_size
            keys = jax.device_put(noise_keys(0, 0, variant.size), rows)
            labels = jax.ShapeDtypeStruct((variant.size, pixels, pixels), np.uint8, sharding=rows)
            inputs = self.config, self.params, self.autoencoder, keys, labels, np.float32(1)
            lowered = under_mesh(mesh, _synthesize.lower)(*inputs, **variant.options)
            self._compiled[variant] = lowered.compile()
        analysis = self._compiled[variant].memory_analysis()
        return {
            "batch": variant.size,
            "arguments": analysis.argument_size_in_bytes,
            "temporary": analysis.temp_size_in_bytes,
        }

    def check(
        self,
        labels: np.ndarray,
        seed: int | Sequence[int],
        steps: int,
        solver: str,
        guidance: float,
    ) -> None:
        """Raises InputError if a call with these arguments would."""
        size = self.config.image_size
        if labels.dtype != np.uint8 or labels.shape[1:] != (size, size):
            raise InputError(
                f"labels are {labels.dtype} of shape {labels.shape}: give uint8 class ids of shape "
                f"(batch, {size}, {size})"
            )
        wrong = (labels >= self.config.num_classes) & (labels != UNLABELLED)
        if wrong.any():
            image, y, x = np.argwhere(wrong)[0]
            raise InputError(
                f"label {labels[image, y, x]} of map {image} at pixel ({x}, {y}) is no class: use "
                f"0..{self.config.num_classes - 1}, or {UNLABELLED} for unlabelled"
            )
        if not isinstance(seed, int | np.integer) and len(seed) != len(labels):
            raise InputError(
                f"{len(seed)} seeds do not fit {len(labels)} label maps: give one for all, or one "
                "each"
            )
        if np.min(seed, initial=0) < 0 or np.max(seed, initial=0) >= 2**32:
            raise InputError(f"seed {seed} is out of range: use 0..{2**32 - 1}")
        if steps < 1:
            raise InputError(f"steps is {steps}: use at least 1")
        if solver not in flow.SOLVERS:
            raise InputError(f"solver {solver!r} is unknown: use one of {', '.join(flow.SOLVERS)}")
        if not guidance >= 0 or not np.isfinite(guidance):
            raise InputError(f"guidance is {guidance}: use 0 or more (1 is the plain model)")
