"""Diffusion (DDPM) in the terms of rectified flow, so that its solvers sample from it too.

The convention, stated only here, is that steps t = 0 .. 999 run from data to noise. Their variances
beta_t are the squares of equally spaced numbers from sqrt(0.0015) to sqrt(0.0195) (Rombach et al.,
arXiv 2112.10752), A_t is the product of 1 - beta_0 .. 1 - beta_t, and

    x_t = a_t x + s_t eps,    a_t = sqrt(A_t),  s_t = sqrt(1 - A_t),  eps ~ N(0, I)            (1)

A model predicts eps from (x_t, t, condition). In `rectified`, where time runs from noise to data, a
step and a noisy x correspond to

    time = a_t / (a_t + s_t),    z = x_t / (a_t + s_t) = time x + (1 - time) eps               (2)

so z and v = x - eps are those of `rectified`, and by (2) the predicted noise gives the velocity:

    v = (z - eps) / time                                                                       (3)

It is linear in eps, so guidance of the velocity is guidance of the noise. A step of deterministic
DDIM (Song et al., arXiv 2010.02502) moves (a, s) to (a', s') and keeps eps and the x it implies:

    x_t' = a' x + s' eps,    that is    z' = z + (time' - time) v                              (4)

which is a step of the Euler solver. Between steps, t is interpolated linearly in log(a / s), which
by (2) is the logit of time; a_t and s_t follow from time by a^2 + s^2 = 1 without interpolation.

Times lie between 0.0118 (t = 999) and 0.9627 (t = 0), and data is at 1. Sampling draws x_t of the
first step from N(0, I), although a_t is not quite 0 there. So z starts as `to_flow` of this noise
at that time, which in 50 steps is 0.986 times the noise.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from sisma_jax.flows.rectified import mean_square

STEPS = 1000
BETAS = (0.0015, 0.0195)
"""beta_t at t = 0 and t = 999."""

_BETAS = np.linspace(*np.sqrt(BETAS), STEPS) ** 2
_SIGNAL = np.cumprod(1 - _BETAS)
_LOGITS = (0.5 * np.log(_SIGNAL / (1 - _SIGNAL))).astype(np.float32)
"""log(a / s) of each step, decreasing in t."""

FIRST_TIME = float(1 / (1 + np.exp(-_LOGITS[-1])))
"""The time of t = 999, the noisiest step."""

Noise = Callable[[Float[Array, "batch ..."], Float[Array, " batch"]], Float[Array, "batch ..."]]
"""eps(x_t, t), with the condition already bound."""


def step_to_time(t: Float[Array, "..."]) -> Float32[Array, "..."]:
    """Return the times of steps `t` in [0, 999], not necessarily integers; others are clipped."""
    steps = jnp.arange(STEPS, dtype=jnp.float32)
    return jax.nn.sigmoid(jnp.interp(t.astype(jnp.float32), steps, jnp.asarray(_LOGITS)))


def time_to_step(time: Float[Array, "..."]) -> Float32[Array, "..."]:
    """Return the steps at `time` in [0, 1], clipped to [0, 999]; the inverse of `step_to_time`."""
    time = time.astype(jnp.float32)
    logits = jnp.log(time) - jnp.log1p(-time)
    steps = jnp.arange(STEPS - 1, -1, -1, dtype=jnp.float32)
    return _interpolate(logits, jnp.asarray(_LOGITS[::-1]), steps)


def _interpolate(
    x: Float[Array, "..."], places: Float[Array, " n"], values: Float[Array, " n"]
) -> Float[Array, "..."]:
    """`jnp.interp`, but without its loop, with which XLA compiles no solver for a GPU."""
    after = jnp.searchsorted(places, x, side="right", method="compare_all")
    after = jnp.clip(after, 1, len(places) - 1)
    left, right = places[after - 1], places[after]
    low, high = values[after - 1], values[after]
    between = low + (x - left) / (right - left) * (high - low)
    between = jnp.where(x < places[0], values[0], between)
    return jnp.where(x > places[-1], values[-1], between)


def _scale(time: Float[Array, " batch"], like: Array) -> Array:
    """z / x_t = 1 / (a + s), shaped to broadcast over `like`."""
    return jnp.hypot(time, 1 - time).reshape(time.shape + (1,) * (like.ndim - 1))


def to_flow(
    x_t: Float[Array, "batch ..."], time: Float[Array, " batch"]
) -> Float[Array, "batch ..."]:
    """Return z of x_t, equation (2)."""
    return x_t * _scale(time, x_t)


def from_flow(
    z: Float[Array, "batch ..."], time: Float[Array, " batch"]
) -> Float[Array, "batch ..."]:
    """Return x_t of z, equation (2)."""
    return z / _scale(time, z)


def velocity(
    predict_noise: Noise, z: Float[Array, "batch ..."], time: Float[Array, " batch"]
) -> Float[Array, "batch ..."]:
    """Return v at z, equation (3).

    Before FIRST_TIME, where the model is untrained and (3) unbounded, z is treated as if at
    FIRST_TIME.
    """
    time = jnp.maximum(time, FIRST_TIME)
    noise = predict_noise(from_flow(z, time), time_to_step(time))
    return (z - noise) / time.reshape(time.shape + (1,) * (z.ndim - 1))


def ddim_times(steps: int) -> Float32[np.ndarray, " steps_and_one"]:
    """Return the start times of DDIM's steps, from noise to data, followed by the end time 1.

    As published, they are evenly spaced in t, from 1 up: 50 steps start at t = 981, 961 .. 1. (In
    the published code the last step ends at t = 0, which leaves 4 % of noise.)

    Raises:
      ValueError: if `steps` is not from 1 to 999.
    """
    if not 1 <= steps < STEPS:
        raise ValueError(f"the number of DDIM steps is {steps}: choose 1 to {STEPS - 1}")
    t = 1 + np.arange(steps) * STEPS // steps
    starts = 1 / (1 + np.exp(-_LOGITS[t[::-1]].astype(np.float64)))
    return np.append(starts, 1).astype(np.float32)


def noise_loss_at(
    predict_noise: Noise,
    x: Float[Array, "batch ..."],
    noise: Float[Array, "batch ..."],
    time: Float[Array, " batch"],
    weight: Float[Array, "batch ..."] | None = None,
) -> Float[Array, " batch"]:
    """Return each sample's mean squared error of the predicted noise.

    Args:
      predict_noise: eps(x_t, t), called with integer steps.
      x: data.
      noise: eps.
      time: a number in (0, 1), uniform for training. It selects the step, from t = 999 at 0 to
        t = 0 at 1 with equal shares, and is not the time of (2).
      weight: see `rectified.loss_at`.
    """
    t = jnp.clip(jnp.floor(STEPS * (1 - time)), 0, STEPS - 1)
    a, s = (
        jnp.asarray(np.sqrt(squares), jnp.float32)[t.astype(jnp.int32)].reshape(
            t.shape + (1,) * (x.ndim - 1)
        )
        for squares in (_SIGNAL, 1 - _SIGNAL)
    )
    error = predict_noise(a * x + s * noise, t) - noise
    return mean_square(error, weight)
