"""Checks of what a synthesizer is given, before any long work starts."""

import dataclasses
from collections.abc import Sequence
from typing import Any, no_type_check

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from sisma_jax.common.commands import STYLES_PAGE
from sisma_jax.common.errors import InputError, whole_number
from sisma_jax.data.classes import UNLABELLED
from sisma_jax.models.autoencoder import Autoencoder
from sisma_jax.models.generators import Config, generator
from sisma_jax.synthesis.options import STEPS, SamplingOptions
from sisma_jax.synthesis.soft_masks import SoftMasks
from sisma_jax.synthesis.styles import Style


def check_autoencoder(config: Config, autoencoder: Autoencoder) -> None:
    """Raises InputError unless the model was configured for this autoencoder's latents."""
    autoencoder.scaling_factor  # noqa: B018  raises if the weights lack it
    factor, channels = autoencoder.config.factor, autoencoder.config.latent_channels
    if (factor, channels) != (config.factor, config.latent_channels):
        raise InputError(
            f"the autoencoder has factor {factor} and {channels} latent channels where the "
            f"model has {config.factor} and {config.latent_channels}: "
            "set model.factor and model.latent_channels to the autoencoder's"
        )


def check_sampling(config: Config, options: SamplingOptions) -> None:
    """Raises InputError if a model of this configuration cannot be sampled in this way."""
    model = generator(config)
    if model.one_pass:
        _check_one_pass(model.name, options)
    if model.most_steps is not None and options.steps > model.most_steps:
        raise InputError(
            f"steps is {options.steps}: {model.name} was trained on {model.most_steps + 1} "
            f"steps of noise, use at most {model.most_steps}"
        )
    if model.any_times:
        return
    if options.times is not None:
        raise InputError(f"times are given, but {model.name} is sampled at DDIM's: leave them out")
    if options.shift != 1:
        raise InputError(
            f"shift is {options.shift:g}, but {model.name} is sampled at DDIM's times: leave it "
            "at 1"
        )


def check_request(
    config: Config,
    options: SamplingOptions,
    *,
    in_style: bool,
    null_mask: bool,
    draws_styles: bool,
) -> None:
    """Raises InputError if a model cannot make faces in this way, as far as can be told without its
    weights.

    Args:
      config: its configuration.
      options: how faces are sampled.
      in_style: whether references give a style.
      null_mask: whether its training sometimes dropped the mask.
      draws_styles: whether it draws what no reference shows.
    """
    check_sampling(config, options)
    check_mask_guidance(options, null_mask)
    if in_style:
        require_style(config)
    else:
        check_without_style(config, options, draws_styles)


def check_mask_guidance(options: SamplingOptions, null_mask: bool) -> None:
    """Raises InputError for guidance by the mask of a model that knows no null mask."""
    if options.guided and not null_mask:
        raise InputError(
            f"guidance is {options.guidance}, but no mask was dropped in the model's training "
            "(flow.drop is 0): leave it at 1, and use style guidance where there is a style"
        )


def require_style(config: Config) -> None:
    """Raises InputError unless a model has style conditioning."""
    if not generator(config).has_style:
        raise InputError(
            "this model has no style conditioning, so it takes no references: train one with "
            "model.style, as configs/synthetic_style.py does",
            page=STYLES_PAGE,
        )


def _check_one_pass(name: str, options: SamplingOptions) -> None:
    plain = SamplingOptions(steps=1)
    for field in dataclasses.fields(options):
        value, only = getattr(options, field.name), getattr(plain, field.name)
        if value != only:
            default = "leave it out" if only is None else f"the only choice is {only!r}"
            raise InputError(
                f"{field.name.replace('_', ' ')} is {value!r}, but {name} draws in one pass: "
                f"{default}"
            )


def default_steps(config: Config) -> int:
    """The number of solver steps of a model where none is asked for."""
    most = generator(config).most_steps
    return STEPS if most is None else min(STEPS, most)


@no_type_check
def check_kind(options: SamplingOptions) -> None:
    """Raises InputError unless these are SamplingOptions."""
    if not isinstance(options, SamplingOptions):
        raise InputError(
            f"options are of type {type(options).__name__}: give SamplingOptions, for instance "
            "SamplingOptions(steps=12)"
        )


def check_counts(options: SamplingOptions, count: int) -> None:
    """Raises InputError if guidances are one per image, but not of `count` images."""
    for name in ("guidance", "style_guidance"):
        value = getattr(options, name)
        if isinstance(value, tuple) and len(value) != count:
            raise InputError(
                f"{name.replace('_', ' ')} has {len(value)} values for {count} label maps: give "
                "one for all, or one each"
            )


def check_without_style(config: Config, options: SamplingOptions, draws_styles: bool) -> None:
    """Raises InputError if a model cannot make faces without a style in this way.

    Args:
      config: its configuration.
      options: how faces are sampled.
      draws_styles: whether it draws what no reference shows.
    """
    model = generator(config)
    if not draws_styles:
        raise InputError(
            f"this {model.name} draws faces in the style of a reference only: give one, or train "
            "its second stage, which makes random styles",
            page=STYLES_PAGE,
        )
    if options.style_guided and not model.has_style:
        raise InputError(
            f"style guidance is {options.style_guidance}, but this model has no style "
            "conditioning: leave it at 1",
            page=STYLES_PAGE,
        )
    if options.style_guided:
        raise InputError(
            f"style guidance is {options.style_guidance}, but there is no style to follow: "
            "give references, or leave it at 1"
        )


def check_style(style: Style, own: Style, count: int) -> None:
    """Raises InputError unless a style is of the model with the style `own`, for `count` images."""
    if style.classes != own.classes or not np.array_equal(style.absent, own.absent):
        raise InputError(
            "the style is of another model: make it with `style` of the one that uses it"
        )
    if len(style) not in (1, count):
        raise InputError(
            f"{len(style)} styles do not fit {count} label maps: give one for all, or one each"
        )


@no_type_check
def check_masks(config: Config, masks: np.ndarray | SoftMasks) -> None:
    """Raises InputError unless a model draws from masks of this kind, and they fit it."""
    if not isinstance(masks, SoftMasks):
        check_labels(config, masks)
        return
    model = generator(config)
    if not model.soft_masks:
        raise InputError(
            f"soft masks are given, but {model.name} takes label maps: make them with "
            "`shapes.transfer` and the synthesizer that draws them"
        )
    for labels in (masks.labels, *(other.labels for other in masks.mixed)):
        check_labels(config, labels)


@no_type_check
def check_labels(config: Config, labels: np.ndarray, name: str = "labels") -> None:
    """Raises InputError, with this name, unless label maps have a model's classes and size."""
    size = config.image_size
    if isinstance(labels, SoftMasks):
        raise InputError(f"{name} are soft masks, but have to be label maps: give uint8 ids")
    if labels.dtype != np.uint8 or labels.shape[1:] != (size, size):
        raise InputError(
            f"{name} are {labels.dtype} of shape {labels.shape}: give uint8 class ids of shape "
            f"(batch, {size}, {size})"
        )
    wrong = (labels >= config.num_classes) & (labels != UNLABELLED)
    if wrong.any():
        image, y, x = np.argwhere(wrong)[0]
        raise InputError(
            f"label {labels[image, y, x]} of map {image} at pixel ({x}, {y}) is no class: use "
            f"0..{config.num_classes - 1}, or {UNLABELLED} for unlabelled"
        )


@no_type_check
def check_seeds(seed: int | Sequence[int], count: int) -> None:
    """Raises InputError unless this is one seed, or one for each of `count` images."""
    seeds = [whole_number(x, "seed") for x in np.atleast_1d(seed).tolist()]
    if np.ndim(seed) and len(seeds) != count:
        raise InputError(
            f"{len(seeds)} seeds do not fit {count} label maps: give one for all, or one each"
        )
    if min(seeds, default=0) < 0 or max(seeds, default=0) >= 2**32:
        raise InputError(f"seed {seed} is out of range: use 0..{2**32 - 1}")


@no_type_check
def checked_latents(
    name: str, value: Any, config: Config, count: int | None = None
) -> Float32[np.ndarray, "count h w c"]:
    """Return latents, or noise of their shape, as float32.

    Raises:
      InputError: unless they are finite floats of the model's shape, for `count` images if given.
    """
    try:
        value = np.asarray(value)
    except ValueError:
        raise InputError(
            f"{name} with rows of unequal lengths do not fit: give one array of floats"
        ) from None
    count = (value.shape[0] if value.ndim else 1) if count is None else count
    shape = (count, config.latent_size, config.latent_size, config.latent_channels)
    if not jnp.issubdtype(value.dtype, jnp.floating) or value.shape != shape:
        raise InputError(
            f"{name} of {value.dtype} and shape {value.shape} do not fit: give floats of shape "
            f"{shape}, those of an image in each row"
        )
    with np.errstate(over="ignore"):  # infinite numbers are refused below
        value = value.astype(np.float32)
    finite = np.isfinite(value).all((1, 2, 3))
    if not finite.all():
        raise InputError(
            f"{name} of image {np.argmin(finite)} are not all finite in float32: give numbers that "
            "are"
        )
    return value


def start_of(
    config: Config, noise: Any, latents: Any, count: int
) -> dict[str, Float32[np.ndarray, "count h w c"]]:
    """Return what solvers start from in place of seeds, by name; {} if neither is given.

    Raises:
      InputError: if both are given, one does not fit, or the model draws in one pass.
    """
    given = {"noise": noise, "latents": latents}
    given = {name: value for name, value in given.items() if value is not None}
    model = generator(config)
    if given and model.one_pass:
        are, them = ("are", "them") if "latents" in given else ("is", "it")
        raise InputError(
            f"{' and '.join(given)} {are} given, but {model.name} draws in one pass, which starts "
            f"from neither noise nor latents: leave {them} out"
        )
    if len(given) > 1:
        raise InputError("noise and latents are given, but a solver starts from one: leave one out")
    return {name: checked_latents(name, value, config, count) for name, value in given.items()}
