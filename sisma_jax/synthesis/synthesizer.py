"""Masks, and styles, to images: trained model, autoencoder and solver behind one call."""

import dataclasses
import functools
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Compiled
from jaxtyping import Float, Float32, UInt8, UInt32

from sisma_jax.common.errors import InputError, whole_number
from sisma_jax.data.classes import CELEBAMASK, ClassSet
from sisma_jax.devices.sharding import (
    batch_sharding,
    chunks,
    local_mesh,
    replicated,
    under_mesh,
    whole_batch,
)
from sisma_jax.models.autoencoder import PIXELS, Autoencoder, load_autoencoder
from sisma_jax.models.generators import (
    Config,
    draws_styles,
    generator,
    learns_null_mask,
    model_config,
    parameter_shapes,
)
from sisma_jax.runs.checkpoint import abstract_like, averaged_weights
from sisma_jax.runs.folder import RunFolder
from sisma_jax.runs.state import Params
from sisma_jax.synthesis.checks import (
    check_autoencoder,
    check_counts,
    check_kind,
    check_labels,
    check_masks,
    check_request,
    check_seeds,
    check_style,
    checked_latents,
    default_steps,
    require_style,
    start_of,
)
from sisma_jax.synthesis.options import SamplingOptions
from sisma_jax.synthesis.programs import (
    Variant,
    decode,
    no_style,
    noise_keys,
    synthesize,
    synthesize_latents,
    variant_of,
)
from sisma_jax.synthesis.soft_masks import SoftMasks, classes_shown
from sisma_jax.synthesis.style_tokens import random_tokens, reference_tokens
from sisma_jax.synthesis.styles import Style

IN_FLIGHT = 2
"""Batches that are dispatched and not yet fetched, at most; they bound the memory."""


@dataclasses.dataclass(frozen=True)
class Synthesizer:
    """Masks to images.

        synthesizer = Synthesizer.load("runs/demo")
        images = synthesizer(labels, seed=1, steps=25)

    A model with style conditioning also takes styles of reference faces (`styles.Style`):

        style = synthesizer.style(photos, labels_of_photos)
        images = synthesizer(labels, style=style[0].take(style[1], ["hair"]))

    Batches of any size run on all local devices, `batch_size` images at a time; the last batch is
    padded. An image depends on its mask, its seed and its index, not on what else is in a batch
    (up to 1/255 in float32, from the order of sums).
    """

    config: Config
    params: Params
    autoencoder: Autoencoder
    batch_size: int = 16
    step: int | None = None
    """Training step of the weights, if they come from a run."""
    classes: ClassSet = CELEBAMASK
    """Classes that the labels index."""
    trained_with_null_mask: bool = True
    """Whether training sometimes dropped the mask, as guidance needs."""
    draws_styles: bool = True
    """Whether what no reference shows is drawn from noise. A model that draws in one pass
    (`generators.Generator.one_pass`) learns this in a second stage of training."""
    _compiled: dict[Variant, Compiled] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_autoencoder(self.config, self.autoencoder)
        object.__setattr__(self, "batch_size", whole_number(self.batch_size, "batch size"))
        if self.batch_size < 1:
            raise InputError(f"batch size {self.batch_size} makes no image: use at least 1")

    @classmethod
    def load(cls, workdir: str | Path, *, batch_size: int = 16) -> "Synthesizer":
        """Read a run folder: the averaged weights of its newest checkpoint and its autoencoder.

        Args:
          workdir: a run folder, or an export of one.
          batch_size: images per batch, over all local devices.

        Raises:
          InputError: if `workdir` is no run of SISMA, SCA-DM or CA2-SIS, or holds no finished
            checkpoint.
        """
        run = RunFolder(Path(workdir))
        config = model_config(run.config("sisma_jax.train"))
        mesh = local_mesh()
        shapes = parameter_shapes(config)
        shardings = jax.tree.map(lambda _: replicated(mesh), shapes)
        step, params = averaged_weights(run, abstract_like(shapes, shardings))
        classes = run.classes()
        if generator(config).one_pass:
            drawn = draws_styles(run.config())
            return cls(config, params, PIXELS, batch_size, step, classes, False, drawn)
        autoencoder = load_autoencoder(run.autoencoder, dtype=None)
        autoencoder = jax.device_put(autoencoder, replicated(mesh))
        null_mask = learns_null_mask(run.config())
        return cls(config, params, autoencoder, batch_size, step, classes, null_mask)

    @no_type_check  # wrong arguments raise InputError
    def __call__(
        self,
        labels: UInt8[np.ndarray, "batch H W"] | SoftMasks,
        seed: int | Sequence[int] = 0,
        steps: int | None = SamplingOptions.steps,
        solver: str = SamplingOptions.solver,
        guidance: float | Sequence[float] = SamplingOptions.guidance,
        style: Style | None = None,
        style_guidance: float | Sequence[float] = SamplingOptions.style_guidance,
        *,
        guidance_interval: tuple[float, float] = SamplingOptions.guidance_interval,
        times: Sequence[float] | None = SamplingOptions.times,
        shift: float = SamplingOptions.shift,
        guidance_rescale: float = SamplingOptions.guidance_rescale,
        noise: Float[np.ndarray, "batch h w c"] | None = None,
        latents: Float[np.ndarray, "batch h w c"] | None = None,
    ) -> UInt8[np.ndarray, "batch H W 3"]:
        """Return an RGB image for every label map.

        Args:
          labels: class ids, 255 where unlabelled; H = W = the model's image size. Or what
            `shapes.transfer` returns.
          seed: one for all, or one per image, in [0, 2**32). Noise depends on (seed, image index).
          steps, solver, guidance, style_guidance, guidance_interval, times, shift,
            guidance_rescale: see `SamplingOptions`; without times there are 25 steps by default.
          style: one for all, or one per image; None draws the style from noise, too.
          noise: what the solver starts from in place of the seed's noise, N(0, I).
          latents: what the solver starts from in place of noise, scaled latents at the first of the
            times, which may be later than 0. `latents` and `trajectory` return such.

        Raises:
          InputError: if an argument is out of range, or label maps or styles do not fit the model.
        """
        options = SamplingOptions(
            steps=steps, solver=solver, guidance=guidance, style_guidance=style_guidance,
            guidance_interval=guidance_interval, times=times, shift=shift,
            guidance_rescale=guidance_rescale,
        )  # fmt: skip
        start = {"seed": seed, "noise": noise, "latents": latents}
        labels = labels if isinstance(labels, SoftMasks) else np.asarray(labels)
        return self.images(labels, options, style=style, **start)

    @no_type_check
    def images(
        self,
        labels: UInt8[np.ndarray, "batch H W"] | SoftMasks,
        options: SamplingOptions,
        *,
        seed: int | Sequence[int] = 0,
        style: Style | None = None,
        noise: Float[np.ndarray, "batch h w c"] | None = None,
        latents: Float[np.ndarray, "batch h w c"] | None = None,
    ) -> UInt8[np.ndarray, "batch H W 3"]:
        """Return what a call returns, by options that were checked before."""
        size = self.config.image_size
        start = {"seed": seed, "noise": noise, "latents": latents}
        batches = self.batches(labels, options, style=style, **start)
        return np.concatenate([np.empty((0, size, size, 3), np.uint8), *batches])

    @no_type_check
    def latents(
        self,
        labels: UInt8[np.ndarray, "batch H W"] | SoftMasks,
        options: SamplingOptions,
        *,
        seed: int | Sequence[int] = 0,
        style: Style | None = None,
        noise: Float[np.ndarray, "batch h w c"] | None = None,
        latents: Float[np.ndarray, "batch h w c"] | None = None,
    ) -> Float32[np.ndarray, "batch h w c"]:
        """Return the scaled latents of the images of a call, whose arguments these are.

        With times that end before 1 they are noisy latents at the last time, from which another
        call continues: `latents=`, with times that begin there. "euler", "midpoint" and "heun" then
        give the result of a single call. "ab2" gives another one, because every call begins with a
        step of Euler's method.
        """
        start = {"seed": seed, "noise": noise, "latents": latents}
        batches = self._checked_batches("latents", labels, options, style=style, **start)
        return np.concatenate([np.empty((0, *self._latent_shape), np.float32), *batches])

    @no_type_check
    def trajectory(
        self,
        labels: UInt8[np.ndarray, "batch H W"] | SoftMasks,
        options: SamplingOptions,
        *,
        seed: int | Sequence[int] = 0,
        style: Style | None = None,
        noise: Float[np.ndarray, "batch h w c"] | None = None,
        latents: Float[np.ndarray, "batch h w c"] | None = None,
    ) -> Float32[np.ndarray, "batch steps_and_one h w c"]:
        """Return scaled latents at all times of the solver: its start first, `latents` last."""
        start = {"seed": seed, "noise": noise, "latents": latents}
        batches = self._checked_batches("trajectory", labels, options, style=style, **start)
        steps = self._with_steps(options).steps
        none = np.empty((0, steps + 1, *self._latent_shape), np.float32)
        return np.concatenate([none, *batches])

    @no_type_check
    def decode(self, latents: Float[np.ndarray, "batch h w c"]) -> UInt8[np.ndarray, "batch H W 3"]:
        """Return the RGB images of scaled latents, for instance of steps of a trajectory.

        Raises:
          InputError: if they do not have the model's shape, or are not finite.
        """
        latents = checked_latents("latents", latents, self.config)
        mesh, size = local_mesh(), self._rows(len(latents))
        run, side = partial(under_mesh(mesh, decode), self.autoencoder), self.config.image_size
        images = [np.asarray(run(*x))[:count] for x, count in chunks(size, mesh, latents)]
        return np.concatenate([np.empty((0, side, side, 3), np.uint8), *images])

    @no_type_check
    def batches(
        self,
        labels: UInt8[np.ndarray, "batch H W"] | SoftMasks,
        options: SamplingOptions,
        *,
        seed: int | Sequence[int] = 0,
        style: Style | None = None,
        noise: Float[np.ndarray, "batch h w c"] | None = None,
        latents: Float[np.ndarray, "batch h w c"] | None = None,
    ) -> Iterator[UInt8[np.ndarray, "_ H W 3"]]:
        """Yield what a call returns, `batch_size` images at a time.

        A batch is dispatched before the last one is waited for, so the devices compute while the
        caller uses what it got.
        """
        start = {"seed": seed, "noise": noise, "latents": latents}
        return self._checked_batches("images", labels, options, style=style, **start)

    @no_type_check
    def _checked_batches(
        self, result, labels, options, *, seed, style, noise, latents
    ) -> Iterator[np.ndarray]:
        """`_batches`, after checks of its arguments."""
        self.check_masks(labels)
        check_seeds(seed, len(labels))
        options = self._with_steps(options)
        self.check_options(options, style, len(labels))
        options.check_ends(
            from_noise=latents is None,
            to_data=result == "images",
            remedy="begin at 0, or start from latents",
        )
        start = start_of(self.config, noise, latents, len(labels))
        if style is not None and len(style) != len(labels):
            style = style.repeat(len(labels))
        style = self.with_random_style(style, labels, np.asarray(seed, np.uint32))
        return self._batches(result, labels, options, np.asarray(seed, np.uint32), style, start)

    def _batches(
        self,
        result: str,
        labels: UInt8[np.ndarray, "batch H W"] | SoftMasks,
        options: SamplingOptions,
        seed: UInt32[np.ndarray, "..."],
        style: Style | None,
        given: dict[str, Float32[np.ndarray, "batch h w c"]],
    ) -> Iterator[np.ndarray]:
        """Yield "images", "latents" or the "trajectory", from noise of seeds unless it is `given`
        what to start from."""
        mesh = local_mesh()
        rows, size = batch_sharding(mesh), self._rows(len(labels))
        if result == "images":
            variant = variant_of(size, options, style, labels)
            compiled = None if given else self._compiled.get(variant)
            run = compiled or partial(under_mesh(mesh, synthesize), self.config)
            program = partial(run, self.params, self.autoencoder)
        else:
            run = partial(under_mesh(mesh, synthesize_latents), self.config, self.params)
            program = partial(run, trajectory=result == "trajectory")
        tokens = None if style is None else style.tokens
        arrays, tree = jax.tree.flatten((labels, tokens, given, options.per_image))
        fetch = lambda made, count: np.asarray(made)[:count]
        start, dispatched = 0, deque()
        for batch, count in chunks(size, mesh, *arrays):
            placed, tokens, begin, scales = jax.tree.unflatten(tree, batch)
            keys = None
            if not given:
                keys = noise_keys(seed, start, count)
                if count < size:
                    keys = jnp.concatenate([keys, jnp.repeat(keys[-1:], size - count)])
                keys = jax.device_put(keys, rows)
            made = program(keys, placed, options.of_images(scales), tokens, **begin)
            dispatched.append((made, count))
            start += count
            if len(dispatched) == IN_FLIGHT:
                yield fetch(*dispatched.popleft())
        for made, count in dispatched:
            yield fetch(made, count)

    def with_random_style(
        self,
        style: Style | None,
        labels: UInt8[np.ndarray, "batch H W"] | SoftMasks,
        seed: int | UInt32[np.ndarray, "..."] = 0,
    ) -> Style | None:
        """Return the style with random ones for the masks' classes that it lacks.

        Classes that the masks lack, too, have zeros, as in training.

        Only models that draw in one pass need this; others draw what is missing themselves.
        """
        if not (generator(self.config).one_pass and self.draws_styles and len(labels)):
            return style
        given = self.no_style(len(labels)) if style is None else style
        rows = self._rows(len(labels))
        tokens = random_tokens(self.config, self.params, labels, seed, rows)
        drawn = np.where(given.given[..., None], given.tokens, tokens)
        return dataclasses.replace(given, tokens=drawn)

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        return (self.config.latent_size, self.config.latent_size, self.config.latent_channels)

    @property
    def has_style(self) -> bool:
        """Whether the model takes the style of references."""
        return generator(self.config).has_style

    @no_type_check  # wrong arrays raise InputError
    def style(
        self, images: UInt8[np.ndarray, "n H W 3"], labels: UInt8[np.ndarray, "n H W"]
    ) -> Style:
        """Return the style of reference faces, class by class.

        Args:
          images: RGB faces of the model's size.
          labels: their masks, class ids, 255 where unlabelled. A class without pixels has no style.

        Raises:
          InputError: if they do not fit the model or each other, or the model has no style
            conditioning.
        """
        require_style(self.config)
        self.check_labels(labels)
        if images.dtype != np.uint8 or images.shape != (*labels.shape, 3):
            raise InputError(
                f"references are {images.dtype} of shape {images.shape}: give uint8 of shape "
                f"{(*labels.shape, 3)}, one for each of their masks"
            )
        rows = self._rows(len(images))
        tokens = reference_tokens(self.config, self.params, images, labels, rows)
        absent = self.no_style(0)
        return dataclasses.replace(
            absent,
            tokens=np.concatenate([absent.tokens, *tokens]),
            given=classes_shown(labels, len(self.classes)),
        )

    def no_style(self, count: int = 1) -> Style:
        """Return `count` styles without any reference, to which `take` can add classes.

        Raises:
          InputError: if the model has no style conditioning.
        """
        require_style(self.config)
        absent = self._absent
        return Style(
            np.repeat(absent[None], count, axis=0),
            np.zeros((count, len(absent)), bool),
            absent,
            self.classes,
        )

    @functools.cached_property
    def _absent(self) -> Float[np.ndarray, "k token"]:
        return np.asarray(no_style(self.config, self.params))

    @no_type_check
    def check_options(self, options: SamplingOptions, style: Style | None, count: int) -> None:
        """Raises InputError if the model cannot make `count` faces in this way and style."""
        options = self._with_steps(options)
        check_counts(options, count)
        check_request(
            self.config,
            options,
            in_style=style is not None,
            null_mask=self.trained_with_null_mask,
            draws_styles=self.draws_styles,
        )
        if style is not None:
            check_style(style, self.no_style(0), count)

    @no_type_check
    def _with_steps(self, options: SamplingOptions) -> SamplingOptions:
        """The options with the model's own number of steps if none was given."""
        check_kind(options)
        return options.by_default(default_steps(self.config))

    def _rows(self, count: int) -> int:
        """Rows of each batch that `count` images are processed in."""
        return whole_batch(max(min(self.batch_size, count), 1), local_mesh())

    def memory(
        self,
        count: int = 16,
        options: SamplingOptions = SamplingOptions(),  # noqa: B008  a constant
        *,
        style: Style | None = None,
        masks: UInt8[np.ndarray, "n H W"] | SoftMasks | None = None,
    ) -> dict[str, int]:
        """Return the memory that a call with `count` masks needs on each device, in bytes.

        `masks` are those of the call or some of them, which soft masks are told apart by; None for
        label maps. Compiles solver and decoder as one program, and keeps it for the call.

        Returns:
          "batch": images of one batch, over all local devices; "arguments": weights and inputs;
          "temporary": the peak of the rest for a batch, as XLA planned it. A CPU may compute
          IN_FLIGHT batches at once; other devices compute them one after another.
        """
        options = self._with_steps(options)
        if style is None and generator(self.config).one_pass:
            style = self.no_style()  # a call gives this model a random one
        mesh, size = local_mesh(), self._rows(count)
        pixels = self.config.image_size
        masks = np.zeros((1, pixels, pixels), np.uint8) if masks is None else masks
        variant = variant_of(size, options, style, masks)
        if variant not in self._compiled:
            rows = batch_sharding(mesh)
            scale = jax.ShapeDtypeStruct((size,), np.float32, sharding=rows)
            options = options.of_images(dict.fromkeys(options.per_image, scale))
            keys = jax.device_put(noise_keys(0, 0, size), rows)
            batch_of = lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype, sharding=rows)
            labels = jax.tree.map(batch_of, masks)
            tokens = None
            if style is not None:
                shape = (size, *style.tokens.shape[1:])
                tokens = jax.ShapeDtypeStruct(shape, np.float32, sharding=rows)
            lowered = under_mesh(mesh, synthesize.lower)(
                self.config, self.params, self.autoencoder, keys, labels, options, tokens
            )
            self._compiled[variant] = lowered.compile()
        analysis = self._compiled[variant].memory_analysis()
        return {
            "batch": size,
            "arguments": analysis.argument_size_in_bytes,
            "temporary": analysis.temp_size_in_bytes,
        }

    @no_type_check
    def check_masks(self, masks: np.ndarray | SoftMasks) -> None:
        """Raises InputError unless the model draws from masks of this kind, and they fit it."""
        check_masks(self.config, masks)

    @no_type_check
    def check_labels(self, labels: np.ndarray, name: str = "labels") -> None:
        """Raises InputError, with this name, unless these are label maps of the model's classes
        and size."""
        check_labels(self.config, labels, name)
