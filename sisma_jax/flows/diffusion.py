"""Diffusion (DDPM) in the terms of rectified flow, so that its solvers sample from it too.

The convention, stated only here, is that steps t = 0 .. 999 run from data to noise. Their variances
beta_t are the squares of equally spaced numbers from sqrt(0.0015) to sqrt(0.0195) (Rombach et al.,
arXiv 2112.10752), A_t is the product of 1 - beta_0 .. 1 - beta_t, and

    x_t = a_t x + s_t eps,    a_t = sqrt(A_t),  s_t = sqrt(1 - A_t),  eps ~ N(0, I)            (1)

With zero terminal SNR (Lin et al., arXiv 2305.08891, algorithm 1) a_t is moved and scaled such that
a_999 is 0 and a_0 stays, so that the last step is noise alone, as where sampling begins:

    a_t <- (a_t - a_999) a_0 / (a_0 - a_999),    s_t = sqrt(1 - a_t^2)                         (2)

A model predicts from (x_t, t, condition) the noise eps, or the velocity of Salimans and Ho (arXiv
2202.00512, section 4), here u, which determines x and eps without a division:

    u = a_t eps - s_t x,    x = a_t x_t - s_t u,    eps = s_t x_t + a_t u                      (3)

In `rectified`, where time runs from noise to data, a step and a noisy x correspond to

    time = a_t / (a_t + s_t),    z = x_t / (a_t + s_t) = time x + (1 - time) eps               (4)

so z and v = x - eps are those of `rectified`, and follow from a prediction by

    v = (z - eps) / time,    v = ((2 time - 1) z - k u) / k^2,    k = 1 / (a_t + s_t)          (5)

Both are affine in the prediction, so guidance of the velocity is guidance of the prediction. A step
of deterministic DDIM (Song et al., arXiv 2010.02502) moves (a, s) to (a', s') and keeps the eps and
the x that the prediction implies:

    x_t' = a' x + s' eps,    that is    z' = z + (time' - time) v                              (6)

which is a step of the Euler solver. Between steps, t is interpolated linearly in time; a_t and s_t
follow from time by a^2 + s^2 = 1 without interpolation.

Without zero terminal SNR, times lie between 0.0118 (t = 999) and 0.9627 (t = 0); with it, the first
is 0. Data is at 1. Sampling draws x_t of the first step from N(0, I), although a_t is not quite 0
there without zero terminal SNR. So z starts as `to_flow` of this noise at that time, which in 50
steps is 0.986 times the noise.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from sisma_jax.common.config import check_choice
from sisma_jax.common.errors import InputError
from sisma_jax.flows.rectified import mean_square

STEPS = 1000
BETAS = (0.0015, 0.0195)
"""beta_t at t = 0 and t = 999."""

PREDICTIONS = ("noise", "velocity")

Predict = Callable[[Float[Array, "batch ..."], Float[Array, " batch"]], Float[Array, "batch ..."]]
"""The prediction from (x_t, t), with the condition already bound."""


def to_flow(
    x_t: Float[Array, "batch ..."], time: Float[Array, " batch"]
) -> Float[Array, "batch ..."]:
    """Return z of x_t, equation (4)."""
    return x_t * _scale(time, x_t)


def from_flow(
    z: Float[Array, "batch ..."], time: Float[Array, " batch"]
) -> Float[Array, "batch ..."]:
    """Return x_t of z, equation (4)."""
    return z / _scale(time, z)


def u_to_velocity(
    u: Float[Array, "batch ..."], z: Float[Array, "batch ..."], time: Float[Array, " batch"]
) -> Float[Array, "batch ..."]:
    """Return v of the velocity u of Salimans and Ho at z, equation (5)."""
    scale = _scale(time, z)
    return ((2 * _column(time, z) - 1) * z - scale * u) / scale**2


def velocity_to_u(
    v: Float[Array, "batch ..."], z: Float[Array, "batch ..."], time: Float[Array, " batch"]
) -> Float[Array, "batch ..."]:
    """Return the velocity u of Salimans and Ho of v at z, equation (5)."""
    scale = _scale(time, z)
    return ((2 * _column(time, z) - 1) * z - scale**2 * v) / scale


def rescale_guidance(
    guided: Float[Array, "batch ..."],
    plain: Float[Array, "batch ..."],
    z: Float[Array, "batch ..."],
    time: Float[Array, " batch"],
    share: Float[Array, ""] | float,
) -> Float[Array, "batch ..."]:
    """Return a guided v at z, rescaled against over-exposure (Lin et al., section 3.4).

    Guidance enlarges the prediction, and with it the contrast of the data that it implies. In each
    sample u of `guided` is multiplied by 1 - share + share std(u of plain) / std(u of guided), as
    Lin et al. rescale what their models predict. u is defined for every v, so this also serves
    models that predict something else (our extension).

    Args:
      guided, plain: the guided and the conditional v.
      z, time: where they are.
      share: 0 for `guided` itself, 1 for the standard deviation of `plain`; Lin et al. use 0.7.
    """
    u, axes = velocity_to_u(guided, z, time), tuple(range(1, z.ndim))
    deviation = lambda x: jnp.std(x, axes, keepdims=True)
    ratio = deviation(velocity_to_u(plain, z, time)) / jnp.maximum(deviation(u), 1e-6)
    return u_to_velocity(u * (1 - share + share * ratio), z, time)


def _column(per_sample: Array, like: Array) -> Array:
    """One number per sample, shaped to broadcast over `like`."""
    return per_sample.reshape(per_sample.shape + (1,) * (like.ndim - 1))


def _scale(time: Float[Array, " batch"], like: Array) -> Array:
    """k = z / x_t = 1 / (a + s), shaped to broadcast over `like`."""
    return _column(jnp.hypot(time, 1 - time), like)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion:
    """What a model predicts, and the noise of its training steps: keys of the config's section
    `flow`. The defaults are SCA-DM's as published.

    Raises:
      InputError: if a value is out of range, or the noise is predicted with zero terminal SNR.
    """

    prediction: str = "noise"
    """What the model predicts, "noise" or "velocity", equation (3)."""
    zero_terminal_snr: bool = False
    """Whether the last step is noise alone, equation (2)."""

    def __post_init__(self) -> None:
        check_choice(self, "flow", "prediction", PREDICTIONS)
        if type(self.zero_terminal_snr) is not bool:
            raise InputError(
                f"flow.zero_terminal_snr is {self.zero_terminal_snr!r}: choose True or False"
            )
        if self.zero_terminal_snr and self.prediction == "noise":
            raise InputError(
                "flow.zero_terminal_snr is True with flow.prediction 'noise', but the noise of a "
                "step that is noise alone says nothing about the data: set flow.prediction to "
                "'velocity', or flow.zero_terminal_snr to False"
            )

    @property
    def levels(self) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
        """a_t and s_t of all steps, float64."""
        return _levels(self.zero_terminal_snr)

    @property
    def times(self) -> Float[np.ndarray, " steps"]:
        """The time of each step, equation (4), float64, decreasing in t."""
        a, s = self.levels
        return a / (a + s)

    def step_to_time(self, t: Float[Array, "..."]) -> Float32[Array, "..."]:
        """Return the times of steps `t`, whole or not, which are clipped to [0, 999]."""
        steps = jnp.arange(STEPS, dtype=jnp.float32)
        return jnp.interp(t.astype(jnp.float32), steps, jnp.asarray(self.times, jnp.float32))

    def time_to_step(self, time: Float[Array, "..."]) -> Float32[Array, "..."]:
        """Return the inverse of `step_to_time` at times in [0, 1], clipped to [0, 999]."""
        times = jnp.asarray(self.times[::-1], jnp.float32)
        steps = jnp.arange(STEPS - 1, -1, -1, dtype=jnp.float32)
        return _interpolate(time.astype(jnp.float32), times, steps)

    def velocity(
        self, predict: Predict, z: Float[Array, "batch ..."], time: Float[Array, " batch"]
    ) -> Float[Array, "batch ..."]:
        """Return v at z, equation (5).

        Before the time of t = 999, where the model is untrained, z is treated as if at that time.
        """
        time = jnp.maximum(time, float(self.times[-1]))
        predicted = predict(from_flow(z, time), self.time_to_step(time))
        if self.prediction == "noise":
            return (z - predicted) / _column(time, z)
        return u_to_velocity(predicted, z, time)

    def ddim_times(self, steps: int) -> Float32[np.ndarray, " steps_and_one"]:
        """Return the start times of DDIM's steps, from noise to data, followed by the end time 1.

        As SCA-DM publishes them, they are evenly spaced in t, from 1 up: 50 steps start at t = 981,
        961 .. 1. (In the published code the last step ends at t = 0, which leaves 4 % of noise.)
        With zero terminal SNR they are evenly spaced from 999 down, as Lin et al. require: 50 steps
        start at t = 999, 979 .. 19.

        Raises:
          ValueError: if `steps` is not from 1 to 999.
        """
        if not 1 <= steps < STEPS:
            raise ValueError(f"the number of DDIM steps is {steps}: choose 1 to {STEPS - 1}")
        if self.zero_terminal_snr:
            t = np.round(STEPS - np.arange(steps) * STEPS / steps).astype(int) - 1
        else:
            t = 1 + np.arange(steps)[::-1] * STEPS // steps
        return np.append(self.times[t], 1).astype(np.float32)

    def loss_at(
        self,
        predict: Predict,
        x: Float[Array, "batch ..."],
        noise: Float[Array, "batch ..."],
        time: Float[Array, " batch"],
        weight: Float[Array, "batch ..."] | None = None,
    ) -> Float[Array, " batch"]:
        """Return each sample's mean squared error of the prediction.

        Args:
          predict: the prediction, called with integer steps.
          x: data.
          noise: eps.
          time: a number in (0, 1), uniform for training. It selects the step, from t = 999 at 0 to
            t = 0 at 1 with equal shares, and is not the time of (4).
          weight: see `rectified.loss_at`.
        """
        t = jnp.clip(jnp.floor(STEPS * (1 - time)), 0, STEPS - 1)
        a, s = (
            _column(jnp.asarray(level, jnp.float32)[t.astype(jnp.int32)], x)
            for level in self.levels
        )
        target = noise if self.prediction == "noise" else a * noise - s * x
        return mean_square(predict(a * x + s * noise, t) - target, weight)


PUBLISHED = Diffusion()


@functools.cache
def _levels(
    zero_terminal_snr: bool,
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    betas = np.linspace(*np.sqrt(BETAS), STEPS) ** 2
    squares = np.cumprod(1 - betas)
    if zero_terminal_snr:
        a = np.sqrt(squares)
        squares = ((a - a[-1]) * a[0] / (a[0] - a[-1])) ** 2
    return np.sqrt(squares), np.sqrt(1 - squares)


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
