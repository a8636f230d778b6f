"""Edit a photo by editing its mask: invert it to noise, then solve forward under the edited mask.

The solver runs from the photo's latents at t = 1 to their noise at t = 0 under the photo's own mask
(inversion), then back to t = 1 under the edited one, both at the times of sampling. Under an
unchanged mask Heun's method in 12 steps returns the photo within one grey level; for SCA-DM, with
DDIM's times, "euler" is DDIM inversion and DDIM. The noise keeps what a mask does not specify
(skin, hair, light); a model with style conditioning gets the photo's own style in both directions.
As every latent depends on the whole mask, pixels far from an edit change a little, too. With a
margin, latents away from the edit therefore follow the inversion's trajectory, and the pixels there
are the photo's (blended latent diffusion, arXiv 2206.02779, with inversion for fresh noise).

A model that draws in one pass has no noise to invert to: it draws the edited mask in the photo's
own style, and with a margin the pixels away from the edit are the photo's.
"""

from collections.abc import Sequence
from functools import partial
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from sisma_jax.common.errors import InputError, whole_number
from sisma_jax.devices.sharding import chunks, local_mesh, under_mesh, whole_batch
from sisma_jax.flows import rectified
from sisma_jax.models.autoencoder import to_float, to_uint8
from sisma_jax.models.generators import generator
from sisma_jax.synthesis.checks import default_steps
from sisma_jax.synthesis.options import SamplingOptions
from sisma_jax.synthesis.programs import (
    solver_of,
    synthesize_latents,
    velocity_under,
    velocity_with,
)
from sisma_jax.synthesis.soft_masks import SoftMasks, differ
from sisma_jax.synthesis.styles import Style
from sisma_jax.synthesis.synthesizer import Synthesizer


@no_type_check  # wrong arrays raise InputError
def edit(
    synthesizer: Synthesizer,
    images: UInt8[np.ndarray, "batch H W 3"],
    labels: UInt8[np.ndarray, "batch H W"],
    edited: UInt8[np.ndarray, "batch H W"] | SoftMasks,
    *,
    steps: int | None = SamplingOptions.steps,
    solver: str | None = None,
    guidance: float | Sequence[float] = SamplingOptions.guidance,
    margin: int | None = 8,
    style: Style | None = None,
    guidance_interval: tuple[float, float] = SamplingOptions.guidance_interval,
    times: Sequence[float] | None = SamplingOptions.times,
    shift: float = SamplingOptions.shift,
    guidance_rescale: float = SamplingOptions.guidance_rescale,
) -> UInt8[np.ndarray, "batch H W 3"]:
    """Return the photos under edited masks. Deterministic, so it takes no seed.

    Args:
      synthesizer: the trained model.
      images: RGB photos of the model's size.
      labels: their masks, class ids, 255 where unlabelled.
      edited: the edited masks; also what `shapes.transfer` returns for `labels`.
      steps: number of solver steps in each direction, by default 25, or one for a model that draws
        in one pass.
      solver: "heun" (by default), "midpoint" or "ab2"; "euler" comes back to the photo only with
        many steps.
      guidance: guidance of the forward direction, one or one per photo; 1 is the plain model.
      margin: distance in pixels from changed labels up to which the photo may change. None: all
        pixels come from the model.
      style: style of the forward direction, one for all or one per photo. None takes the photos'
        own, by their own masks; a part that only the edited mask shows is then drawn from noise.
        `synthesizer.style(images, labels).take(other, ["hat"])` gives it another face's style.
      guidance_interval, guidance_rescale: see `SamplingOptions`; of the forward direction.
      times, shift: see `SamplingOptions`; of both directions. With times that begin after 0 the
        photo is inverted up to there, and keeps more of itself.

    Raises:
      InputError: if an argument is out of range or does not fit the model or another argument.
    """
    one_pass = generator(synthesizer.config).one_pass
    if steps is None and times is None:
        steps = default_steps(synthesizer.config)
    solver = solver or ("euler" if one_pass else "heun")
    options = SamplingOptions(
        steps=steps, solver=solver, guidance=guidance, guidance_interval=guidance_interval,
        times=times, shift=shift, guidance_rescale=guidance_rescale,
    )  # fmt: skip
    options.check_ends(from_noise=False)
    synthesizer.check_labels(labels)
    synthesizer.check_masks(edited)
    if images.dtype != np.uint8 or images.shape != (*labels.shape, 3):
        raise InputError(
            f"photos are {images.dtype} of shape {images.shape}: give uint8 of shape "
            f"{(*labels.shape, 3)}, as the label maps are"
        )
    if len(edited) != len(labels):
        raise InputError(
            f"{len(edited)} edited masks do not fit {len(labels)} photos: give one each"
        )
    if margin is not None and margin < 0:
        raise InputError(f"margin is {margin}: use 0 or more pixels, or None for the whole face")
    given = synthesizer.no_style() if style is None and synthesizer.has_style else style
    synthesizer.check_options(options, given, len(images))
    styles: tuple[np.ndarray, ...] = ()
    if synthesizer.has_style:
        own = synthesizer.style(images, labels)
        wanted = own if style is None else style.repeat(len(images) if len(style) == 1 else 1)
        wanted = synthesizer.with_random_style(wanted, edited)
        styles = own.tokens, wanted.tokens
    mesh = local_mesh()
    follow = partial(
        under_mesh(mesh, _edit),
        synthesizer.config,
        margin=None if margin is None else whole_number(margin, "margin"),
    )
    size = whole_batch(max(min(synthesizer.batch_size, len(images)), 1), mesh)
    faces = [np.empty((0, *images.shape[1:]), np.uint8)]
    arrays, tree = jax.tree.flatten((options.per_image, images, labels, edited, *styles))
    for batch, count in chunks(size, mesh, *arrays):
        scales, *placed = jax.tree.unflatten(tree, batch)
        result = follow(
            synthesizer.params, synthesizer.autoencoder, options.of_images(scales), *placed
        )
        faces.append(np.asarray(result)[:count])
    return np.concatenate(faces)


@partial(jax.jit, static_argnames=("config", "margin"))
def _edit(
    config, params, autoencoder, options, images, labels, edited, own_style=None, style=None,
    *, margin,
):  # fmt: skip
    photo = to_float(images)
    if generator(config).one_pass:
        drawn = synthesize_latents(config, params, None, edited, options, style, noise=photo)
        blend = 1.0 if margin is None else _ramp(differ(labels, edited), margin)[..., None]
        return to_uint8(blend * drawn + (1.0 - blend) * photo)
    solve = solver_of(config, options)
    data = autoencoder.encode(photo)[0] * autoencoder.scaling_factor
    own = velocity_under(config, params, labels, None, own_style)
    noise, trajectory = rectified.invert(own, data, **solve)
    wanted = velocity_with(config, params, edited, options, style)
    if margin is None:
        return to_uint8(autoencoder.from_latents(rectified.integrate(wanted, noise, **solve)))
    blend = _ramp(labels != edited, margin)
    free = _cells(blend > 0, config.factor)[..., None]
    latents = rectified.integrate_near(wanted, noise, trajectory, free, **solve)
    blend = blend[..., None]
    return to_uint8(blend * autoencoder.from_latents(latents) + (1.0 - blend) * photo)


def _ramp(edited: Bool[Array, "b H W"], margin: int) -> Float[Array, "b H W"]:
    """1 where edited, falling linearly to 0 at more than `margin` pixels (Chebyshev distance)."""
    near, times = edited, edited.astype(jnp.float32)
    for _ in range(margin):  # each pass grows by a pixel
        near = jax.lax.reduce_window(near, False, jax.lax.bitwise_or, (1, 3, 3), (1, 1, 1), "SAME")
        times += near.astype(jnp.float32)
    return times / (margin + 1)


def _cells(pixels: Bool[Array, "b H W"], factor: int) -> Bool[Array, "b h w"]:
    """Latent cells that contain any of these pixels."""
    window = (1, factor, factor)
    return jax.lax.reduce_window(pixels, False, jax.lax.bitwise_or, window, window, "VALID")
