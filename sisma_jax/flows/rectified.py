"""Rectified flow: the training loss of a velocity, solvers, and guidance.

The convention, stated only here, is that time runs from noise to data:

    z_t = t x + (1 - t) eps,    eps ~ N(0, I),    t = 0 noise, t = 1 data          (1)
    v   = dz_t / dt = x - eps                                                      (2)

A model predicts v from (z_t, t, condition). Its loss is the mean squared error of v over all
dimensions, unweighted by default, with t from a logit-normal(0, 1) (Esser et al., arXiv 2403.03206)
or a uniform distribution. The times of a batch are stratified (Kingma et al., arXiv 2107.00630):
together they cover the distribution evenly, which lowers the variance of the gradient. Synthesis
integrates dz/dt = v(z, t) from t = 0 to t = 1, by default in equal steps.

For classifier-free guidance, training replaces some conditions by the null condition, and synthesis
uses

    v = v_null + s (v_cond - v_null),    s the guidance scale                      (3)

where s = 1 is the conditional velocity and s = 0 the unconditional one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

Velocity = Callable[[Float[Array, "batch ..."], Float[Array, " batch"]], Float[Array, "batch ..."]]
"""v(z_t, t), with the condition already bound."""

TIME_SAMPLINGS = ("logit_normal", "uniform")
VELOCITIES = {"euler": 1, "midpoint": 2, "heun": 2}
"""Velocity evaluations per step, by solver."""
SOLVERS = tuple(VELOCITIES)


def _per_sample(t: Shaped[Array, " batch"], like: Array) -> Array:
    """Reshape one number per sample so that it broadcasts over `like`."""
    return t.reshape(t.shape + (1,) * (like.ndim - 1))


def interpolate(
    x: Float[Array, "batch ..."], noise: Float[Array, "batch ..."], t: Float[Array, " batch"]
) -> Float[Array, "batch ..."]:
    """Return z_t, equation (1)."""
    t = _per_sample(t, x)
    return t * x + (1.0 - t) * noise


def sample_time(
    key: PRNGKeyArray, batch: int, sampling: str = "logit_normal"
) -> Float[Array, " batch"]:
    """Draw stratified training times in (0, 1), one in each of `batch` equally likely intervals.

    Raises:
      ValueError: if `sampling` is neither "logit_normal" nor "uniform".
    """
    quantiles = (jnp.arange(batch, dtype=jnp.float32) + jax.random.uniform(key)) / batch
    return time_at(jnp.clip(quantiles, 1e-6, 1 - 1e-6), sampling)


def time_at(quantiles: Float[Array, " batch"], sampling: str) -> Float[Array, " batch"]:
    """Return the training times at these quantiles, in [0, 1], of a distribution of times.

    Raises:
      ValueError: if `sampling` is neither "logit_normal" nor "uniform".
    """
    if sampling == "logit_normal":
        return jax.nn.sigmoid(jax.scipy.stats.norm.ppf(quantiles))
    if sampling == "uniform":
        return quantiles
    raise ValueError(f"time sampling {sampling!r} is unknown: use 'logit_normal' or 'uniform'")


def drop_condition(dropped: Bool[Array, " batch"], condition: Array, null: Array | int) -> Array:
    """Replace the conditions of `dropped` samples by the null condition.

    Args:
      dropped: which samples to drop.
      condition: (batch, ...), any dtype.
      null: the null condition, a scalar or an array that broadcasts over one sample.
    """
    null = jnp.broadcast_to(jnp.asarray(null, condition.dtype), condition.shape)
    return jnp.where(_per_sample(dropped, condition), null, condition)


def loss_at(
    velocity: Velocity,
    x: Float[Array, "batch ..."],
    noise: Float[Array, "batch ..."],
    t: Float[Array, " batch"],
    weight: Float[Array, "batch ..."] | None = None,
) -> Float[Array, " batch"]:
    """Return each sample's mean squared error of the velocity at given noise and times.

    `weight` multiplies the squared errors and broadcasts over them; None for 1 everywhere.
    """
    error = velocity(interpolate(x, noise, t), t) - (x - noise)
    return mean_square(error, weight)


def mean_square(
    error: Float[Array, "batch ..."], weight: Float[Array, "batch ..."] | None
) -> Float[Array, " batch"]:
    """Return the mean square of each sample, with squares multiplied by `weight` if given."""
    square = jnp.square(error)
    square = square if weight is None else weight * square
    return jnp.mean(square, axis=tuple(range(1, error.ndim)))


def guide(
    conditional: Float[Array, "batch ..."],
    unconditional: Float[Array, "batch ..."],
    guidance: Float[Array, ""] | float,
) -> Float[Array, "batch ..."]:
    """Return the guided velocity, equation (3)."""
    return unconditional + guidance * (conditional - unconditional)


def step(
    velocity: Velocity,
    z: Float[Array, "batch ..."],
    time: Float[Array, ""] | float,
    h: Float[Array, ""] | float,
    solver: str,
) -> Float[Array, "batch ..."]:
    """Return z at `time` + h from z at `time`, by one solver step; h may be negative."""
    t = jnp.full(z.shape[:1], time)
    v = velocity(z, t)
    if solver == "midpoint":
        v = velocity(z + 0.5 * h * v, t + 0.5 * h)
    elif solver == "heun":
        v = 0.5 * (v + velocity(z + h * v, t + h))
    return z + h * v


def integrate(
    velocity: Velocity,
    noise: Float[Array, "batch ..."],
    *,
    steps: int,
    solver: str = "euler",
    times: Float[np.ndarray, " steps_and_one"] | None = None,
) -> Float[Array, "batch ..."]:
    """Integrate the velocity from noise (t = 0) to data (t = 1).

    "euler" evaluates the velocity once per step (order 1), "midpoint" and "heun" twice (order 2).

    Args:
      velocity: v(z, t).
      noise: z at the first time.
      steps: number of solver steps.
      solver: one of SOLVERS.
      times: start times of the steps and the end time; None for equal steps from 0 to 1.

    Raises:
      ValueError: if `steps` is less than 1 or the solver is unknown.
    """
    time_steps = _grid(steps, solver, times, noise.dtype)
    advance = lambda z, at: (step(velocity, z, *at, solver), None)
    return jax.lax.scan(advance, noise, time_steps)[0]


def invert(
    velocity: Velocity,
    data: Float[Array, "batch ..."],
    *,
    steps: int,
    solver: str = "euler",
    times: Float[np.ndarray, " steps_and_one"] | None = None,
) -> tuple[Float[Array, "batch ..."], Float[Array, "steps batch ..."]]:
    """Integrate the velocity backwards, from data to the noise that `integrate` maps to it.

    The steps are those of `integrate` in reverse. For a diffusion model (`diffusion`) "euler" is
    DDIM inversion (Song et al., arXiv 2010.02502, section 4.3). How closely `integrate` returns to
    the data depends on the number of steps and the order of the solver.

    Args:
      data: z at the last time.
      velocity, steps, solver, times: as for `integrate`.

    Returns:
      z at the first time, and the trajectory: z at the end of each step of `integrate`, ending
      with the data.

    Raises:
      ValueError: as `integrate`.
    """

    def retreat(z: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        start, width = at
        return step(velocity, z, start + width, -width, solver), z

    return jax.lax.scan(retreat, data, _grid(steps, solver, times, data.dtype), reverse=True)


def integrate_near(
    velocity: Velocity,
    noise: Float[Array, "batch ..."],
    trajectory: Float[Array, "steps batch ..."],
    free: Bool[Array, "batch ..."],
    *,
    steps: int,
    solver: str = "euler",
    times: Float[np.ndarray, " steps_and_one"] | None = None,
) -> Float[Array, "batch ..."]:
    """`integrate`, with elements that are not `free` set to the `trajectory` of `invert`.

    `free` broadcasts over z.
    """

    def advance(z: Array, at: tuple) -> tuple[Array, None]:
        (start, width), after = at
        return jnp.where(free, step(velocity, z, start, width, solver), after), None

    time_steps = _grid(steps, solver, times, noise.dtype)
    return jax.lax.scan(advance, noise, (time_steps, trajectory))[0]


def _grid(
    steps: int, solver: str, times: Float[np.ndarray, " steps_and_one"] | None, dtype: jnp.dtype
) -> tuple[Float[Array, " steps"], Float[Array, " steps"]]:
    """Start time and width of each step."""
    if steps < 1:
        raise ValueError(f"the number of solver steps is {steps}: use at least 1")
    if solver not in SOLVERS:
        raise ValueError(f"solver {solver!r} is unknown: use one of {', '.join(SOLVERS)}")
    if times is None:
        return jnp.arange(steps, dtype=dtype) / steps, jnp.full(steps, 1.0 / steps, dtype)
    times = jnp.asarray(times, dtype)
    return times[:-1], jnp.diff(times)
