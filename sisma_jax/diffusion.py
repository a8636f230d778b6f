"""Diffusion (DDPM) in the terms of rectified flow, so that `flow`'s solvers sample from it too.

Convention, stated here once. Steps t = 0 .. 999 run from data to noise. Their variances beta_t are
the squares of equally spaced numbers, from sqrt(0.0015) to sqrt(0.0195) (Rombach et al., arXiv
2112.10752), A_t is the product of 1 - beta_0 .. 1 - beta_t, and

    x_t = a_t x + s_t eps,    a_t = sqrt(A_t),  s_t = sqrt(1 - A_t),  eps ~ N(0, I)            (1)

A model predicts eps from (x_t, t, condition). Time is `flow`'s, which runs from noise to data: a
step and a noisy x are there

    time = a_t / (a_t + s_t),    z = x_t / (a_t + s_t) = time x + (1 - time) eps               (2)

so z and v = x - eps are those of `flow`, and by (2) the predicted noise says the velocity:

    v = (z - eps) / time                                                                       (3)

It is linear in eps: guidance of the velocity is guidance of the noise. A step of DDIM (Song et al.,
arXiv 2010.02502, deterministic) moves (a, s) to (a', s') and keeps both eps and the x it implies:

    x_t' = a' x + s' eps,    that is    z' = z + (time' - time) v                              (4)

which is a step of the Euler solver. Between steps t is interpolated, in log(a / s), which by (2) is
the logit of time; a_t and s_t need no interpolation: a^2 + s^2 = 1 gives them from time.

Times lie between 0.0118 (t = 999) and 0.9627 (t = 0), and data at 1. Sampling draws x_t of its
first step as noise alone, N(0, I), though a_t is not quite 0 there. So z begins as `to_flow` of
that noise at that time: in 50 steps, 0.986 times the noise.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from sisma_jax.flow import mean_square

STEPS = 1000
BETAS = (0.0015, 0.0195)
"""Of t = 0 and t = 999."""

_BETAS = np.linspace(*np.sqrt(BETAS), STEPS) ** 2
_SIGNAL = np.cumprod(1 - _BETAS)
_LOGITS = (0.5 * np.log(_SIGNAL / (1 - _SIGNAL))).astype(np.float32)
"""log(a / s) of each step: it falls."""

FIRST_TIME = float(1 / (1 + np.exp(-_LOGITS[-1])))
"""Of t = 999, the noisiest."""

Noise = Callable[[Float[Array, "batch ..."], Float[Array, " batch"]], Float[Array, "batch ..."]]
"""eps(x_t, t): the condition is already bound."""


def step_to_time(t: Float[Array, "..."]) -> Float32[Array, "..."]:
    """Return the time of steps `t`, 0 to 999 and in between; beyond, of the nearest."""
    steps = jnp.arange(STEPS, dtype=jnp.float32)
    return jax.nn.sigmoid(jnp.interp(t.astype(jnp.float32), steps, jnp.asarray(_LOGITS)))


def time_to_step(time: Float[Array, "..."]) -> Float32[Array, "..."]:
    """Return the step at `time`, 0 to 1: 999 until FIRST_TIME, 0 at 1. Inverts `step_to_time`."""
    time = time.astype(jnp.float32)
    logits = jnp.log(time) - jnp.log1p(-time)
    steps = jnp.arange(STEPS - 1, -1, -1, dtype=jnp.float32)
    return jnp.interp(logits, jnp.asarray(_LOGITS[::-1]), steps)


def _scale(time: Float[Array, " batch"], like: Array) -> Array:
    """z / x_t, which is 1 / (a + s); shaped to multiply `like`."""
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

    Ahead of FIRST_TIME, where the model has seen nothing and (3) has no bounds, z counts as of
    FIRST_TIME.
    """
    time = jnp.maximum(time, FIRST_TIME)
    noise = predict_noise(from_flow(z, time), time_to_step(time))
    return (z - noise) / time.reshape(time.shape + (1,) * (z.ndim - 1))


def ddim_times(steps: int) -> Float32[np.ndarray, " steps_and_one"]:
    """Return the times where the steps of DDIM begin, from noise to data, and 1, where they end.

    Evenly spaced in t, from 1 up, as published: 50 steps begin at t = 981, 961 .. 1. (The published
    code lets the last step end at t = 0, whose noise of 4 % it hands on.)

    Raises:
      ValueError: if `steps` is not from 1 to 999.
    """
    if not 1 <= steps < STEPS:
        raise ValueError(f"DDIM in {steps} steps: take from 1 to {STEPS - 1}")
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
      predict_noise: eps(x_t, t), which sees whole steps.
      x: data.
      noise: eps.
      time: in (0, 1), uniform for training. It draws the step, and is not the time of (2): all
        steps are equally likely, from t = 999 at 0 to t = 0 at 1.
      weight: see `flow.loss_at`.
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
