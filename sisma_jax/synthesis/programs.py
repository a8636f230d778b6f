"""Compiled programs of synthesis: noise, conditioned velocity, solver, decoder.

`Synthesizer` calls them in batches, with checked arguments.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.tree_util import PyTreeDef
from jaxtyping import Array, Float, Key, UInt8, UInt32

from sisma_jax.data.classes import UNLABELLED
from sisma_jax.flows import diffusion, rectified
from sisma_jax.models.autoencoder import to_float, to_uint8
from sisma_jax.models.generators import Config, Masks, Params, generator
from sisma_jax.synthesis.options import CLOSEST, SamplingOptions
from sisma_jax.synthesis.soft_masks import SoftMasks, as_input
from sisma_jax.synthesis.styles import Style

Scale = Float[Array, " b"] | Float[Array, ""] | float
"""A guidance: one for each image, or one for all."""
Variant = tuple[int, PyTreeDef, PyTreeDef, tuple[str, ...], bool]
"""The result of `variant_of`."""


def noise_keys(seed: int | UInt32[np.ndarray, "..."], start: int, count: int) -> Key[Array, " b"]:
    """Return the key of each image's noise.

    With one seed, image i of a set has the noise (seed, i), where i counts from `start`. With one
    seed per image, each has the noise (its seed, 0), as a single image with this seed.
    """
    if np.ndim(seed) == 0:
        seeds, indices = np.full(count, seed, np.uint32), np.arange(start, start + count)
    else:
        seeds, indices = np.asarray(seed, np.uint32)[start : start + count], np.zeros(count)
    return jax.vmap(lambda seed, index: jax.random.fold_in(jax.random.key(seed), index))(
        jnp.asarray(seeds), jnp.asarray(indices, jnp.uint32)
    )


def velocity_under(
    config: Config,
    params: Params,
    labels: Masks,
    guidance: Scale | None,
    style: Float[Array, "b k token"] | None = None,
    style_guidance: Scale | None = None,
    interval: Any = None,
    rescale: Any = None,
) -> rectified.Velocity:
    """Return the velocity under masks and styles, which are encoded once, here.

    The null mask is encoded for one row.

    With s the guidance by the mask and r that by the style,

        v = v(null, none) + s (v(mask, none) + r (v(mask, style) - v(mask, none)) - v(null, none))

    Only terms that a guidance needs are computed (None means 1), in one pass over a batch of two or
    three times the size. At times outside of `interval`, its first and last time, v(mask, style) is
    computed alone: a conditional of the compiled program runs one of its two branches. Times within
    CLOSEST of an end are inside. `rescale` is the share of `diffusion.rescale_guidance`; None for
    none.
    """
    model = generator(config)
    params = model.in_compute_type(params)  # once, and not in every step of a solver
    conditions = [model.encode(params, labels, style)]
    if style_guidance is not None:
        conditions.append(model.encode(params, labels, None))
    if guidance is not None:
        conditions.append(model.encode(params, jnp.full_like(labels[:1], UNLABELLED), None))
    count = len(conditions)
    plain = lambda z, t: model.velocity(params, z, t, conditions[0])
    if count == 1:
        return plain
    rows = _axes_of_rows(lambda labels: model.encode(params, labels, None), labels)
    encoded = jax.tree.map(_alternating, rows, *conditions)

    def guided_velocity(z: Array, t: Array) -> Array:
        repeated = jnp.repeat(z, count, axis=0), jnp.repeat(t, count)
        every = model.velocity(params, *repeated, encoded)
        v, *others = rearrange(every, "(b count) ... -> count b ...", count=count)
        conditional = v
        if style_guidance is not None:
            v = rectified.guide(v, others.pop(0), style_guidance)
        if guidance is not None:
            v = rectified.guide(v, others.pop(0), guidance)
        if rescale is None:
            return v
        return diffusion.rescale_guidance(v, conditional, z, t, rescale)

    if interval is None:
        return guided_velocity
    first, last = interval
    # All samples are at one time. That of a second velocity, t + h, is rounded.
    within = lambda t: (first - CLOSEST <= t[0]) & (t[0] <= last + CLOSEST)
    return lambda z, t: jax.lax.cond(within(t), guided_velocity, plain, z, t)


def _axes_of_rows(
    encode: Callable[[UInt8[Array, "b H W"]], Any], labels: UInt8[Array, "b H W"]
) -> Any:
    """The axis of the batch in every array of an encoding."""
    shape = labels.shape[1:]
    one, two = (
        jax.eval_shape(encode, jax.ShapeDtypeStruct((count, *shape), labels.dtype))
        for count in (1, 2)
    )
    differs = lambda a, b: [x != y for x, y in zip(a.shape, b.shape, strict=True)].index(True)
    return jax.tree.map(differs, one, two)


def _alternating(axis: int, first: Array, *others: Array) -> Array:
    """The first rows of all arrays, then their second rows, and so on; a single row is repeated.

    In this order rows that are sharded over devices stay where they are.
    """
    arrays = [first, *(jnp.broadcast_to(x, first.shape) for x in others)]
    shape = list(first.shape)
    shape[axis] *= len(arrays)
    return jnp.stack(arrays, axis + 1).reshape(shape)


def velocity_with(
    config: Config,
    params: Params,
    labels: Masks,
    options: SamplingOptions,
    style: Float[Array, "b k token"] | None,
) -> rectified.Velocity:
    """`velocity_under`, guided as `options` say."""
    return velocity_under(
        config,
        params,
        labels,
        options.guidance if options.guided else None,
        style,
        options.style_guidance if options.style_guided else None,
        options.interval if options.any_guided else None,
        options.rescale if options.any_guided else None,
    )


def solver_of(config: Config, options: SamplingOptions) -> dict[str, Any]:
    """Keyword arguments of `rectified.integrate`: number of steps, solver and times."""
    grid = options.grid
    times = generator(config).times(options.steps) if grid is None else grid
    return {"steps": options.steps, "solver": options.solver, "times": times}


@partial(jax.jit, static_argnames=("config", "trajectory"))
def synthesize_latents(
    config: Config,
    params: Params,
    keys: Key[Array, " b"] | None,
    labels: UInt8[Array, "b H W"] | SoftMasks,
    options: SamplingOptions,
    style: Float[Array, "b k token"] | None = None,
    noise: Float[Array, "b h w c"] | None = None,
    latents: Float[Array, "b h w c"] | None = None,
    *,
    trajectory: bool = False,
) -> Float[Array, "b h w c"] | Float[Array, "b steps_and_one h w c"]:
    """Return scaled latents for masks, or with `trajectory` those at all times of the solver.

    The solver starts from `latents`, else from `noise` ~ N(0, I), else from the noise of `keys`.
    """
    shape = (config.latent_size, config.latent_size, config.latent_channels)
    if latents is None:
        if noise is None:
            noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        latents = generator(config).start(noise, options.steps)
    velocity = velocity_with(config, params, as_input(labels), options, style)
    solve = solver_of(config, options)
    if trajectory:
        return jnp.swapaxes(rectified.trajectory(velocity, latents, **solve), 0, 1)
    return rectified.integrate(velocity, latents, **solve)


@partial(jax.jit, static_argnames="config")
def synthesize(config, params, autoencoder, keys, labels, options, style, noise=None, latents=None):
    """Return uint8 images (b, H, W, 3) for masks; arguments as in `synthesize_latents`."""
    latents = synthesize_latents(config, params, keys, labels, options, style, noise, latents)
    return decode(autoencoder, latents)


@jax.jit
def decode(autoencoder, latents):
    """Return the uint8 images (b, H, W, 3) of scaled latents."""
    return to_uint8(autoencoder.from_latents(latents))


@partial(jax.jit, static_argnames="config")
def encode_style(config, params, images, labels):
    """Return the style tokens (b, k, token) of uint8 reference images with their label maps."""
    return generator(config).encode_style(params, to_float(images), labels)


@partial(jax.jit, static_argnames="config")
def random_style(config, params, keys, masks):
    """Return style tokens (b, k, token) from noise, of a model that draws in one pass."""
    return generator(config).random_style(params, keys, as_input(masks))


@partial(jax.jit, static_argnames="config")
def no_style(config, params):
    """Return the style tokens (k, token) of classes without a reference."""
    return generator(config).no_style(params)[0]


def variant_of(
    size: int, options: SamplingOptions, style: Style | None, masks: np.ndarray | SoftMasks
) -> Variant:
    """What the compiled program of a batch of `size` masks depends on."""
    trees = jax.tree.structure(options), jax.tree.structure(masks)
    return size, *trees, tuple(options.per_image), style is not None
