"""Rectified flow: the training loss of a velocity, solvers, and guidance.

The convention, stated only here, is that time runs from noise to data:

    z_t = t x + (1 - t) eps,    eps ~ N(0, I),    t = 0 noise, t = 1 data          (1)
    v   = dz_t / dt = x - eps                                                      (2)

A model predicts v from (z_t, t, condition). Its loss is the mean squared error of v over all
dimensions, unweighted by default, with t from a logit-normal(0, 1) (Esser et al., arXiv 2403.03206)
or a uniform distribution. The times of a batch are stratified (Kingma et al., arXiv 2107.00630):
together they cover the distribution evenly, which lowers the variance of the gradient. Synthesis
integrates dz/dt = v(z, t) from t = 0 to t = 1, by default in equal steps. Shifted times

    t' = t / (t + s (1 - t)),    s the shift                                       (3)

take finer steps near the noise for s > 1: they multiply the ratio of noise to data, (1 - t) / t, by
s (Esser et al., the shift of timestep schedules by resolution; their t is 1 - t here).

For classifier-free guidance, training replaces some conditions by the null condition, and synthesis
uses

    v = v_null + s (v_cond - v_null),    s the guidance scale                      (4)

where s = 1 is the conditional velocity and s = 0 the unconditional one.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

Velocity = Callable[[Float[Array, "batch ..."], Float[Array, " batch"]], Float[Array, "batch ..."]]
"""v(z_t, t), with the condition already bound."""

Times = Float[np.ndarray, " steps_and_one"] | Float[Array, " steps_and_one"]
"""Start times of solver steps, and the end time."""

TIME_SAMPLINGS = ("logit_normal", "uniform")
VELOCITIES = {"euler": 1, "midpoint": 2, "heun": 2, "ab2": 1}
"""Velocity evaluations per step, by solver."""
SOLVERS = tuple(VELOCITIES)
MOST_EXTRAPOLATION = 10.0
"""Largest ratio of a step's width to that of the step before at which "ab2" extrapolates."""


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
    guidance: Float[Array, " batch"] | Float[Array, ""] | float,
) -> Float[Array, "batch ..."]:
    """Return the guided velocity, equation (4), with one scale for all samples or one for each."""
    if jnp.ndim(guidance):
        guidance = _per_sample(guidance, conditional).astype(conditional.dtype)
    return unconditional + guidance * (conditional - unconditional)


def step(
    velocity: Velocity,
    z: Float[Array, "batch ..."],
    time: Float[Array, ""] | float,
    h: Float[Array, ""] | float,
    solver: str,
) -> Float[Array, "batch ..."]:
    """Return z at `time` + h from z at `time`, by one step of a one-step solver; h may be negative.

    "ab2" is none: its steps also need the velocity of the step before.
    """
    t = jnp.full(z.shape[:1], time)
    v = velocity(z, t)
    if solver == "midpoint":
        v = velocity(z + 0.5 * h * v, t + 0.5 * h)
    elif solver == "heun":
        v = 0.5 * (v + velocity(z + h * v, t + h))
    return z + h * v


def shifted(
    times: Float[Array, " n"] | Float[np.ndarray, " n"], shift: Float[Array, ""] | float
) -> Float[Array, " n"] | Float[np.ndarray, " n"]:
    """Return times shifted by a positive number, equation (3); 0 and 1 stay where they are."""
    return times / (times + shift * (1 - times))


def integrate(
    velocity: Velocity,
    noise: Float[Array, "batch ..."],
    *,
    steps: int,
    solver: str = "euler",
    times: Times | None = None,
) -> Float[Array, "batch ..."]:
    """Integrate the velocity from noise (t = 0) to data (t = 1).

    "euler" evaluates the velocity once per step (order 1), "midpoint" and "heun" twice (order 2).
    "ab2", the Adams-Bashforth method of order 2, evaluates it once and extrapolates linearly from
    the step before; with r the ratio of the step's width h to the one before,

        z' = z + h ((1 + r / 2) v - (r / 2) v_before)

    (Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I, section III.5). Its
    first step is Euler's. So is a step with r > MOST_EXTRAPOLATION (our choice), because r
    multiplies the rounding errors of the velocities.

    Args:
      velocity: v(z, t).
      noise: z at the first time.
      steps: number of solver steps.
      solver: one of SOLVERS.
      times: start times of the steps and the end time, increasing; None for equal steps from 0
        to 1.

    Raises:
      ValueError: if `steps` is less than 1 or the solver is unknown.
    """
    advance = lambda state, at: (_advance(velocity, state, at, solver), None)
    grid = _grid(steps, solver, times, noise.dtype)
    return jax.lax.scan(advance, _first_state(noise, solver), grid)[0].z


def trajectory(
    velocity: Velocity,
    noise: Float[Array, "batch ..."],
    *,
    steps: int,
    solver: str = "euler",
    times: Times | None = None,
) -> Float[Array, "steps_and_one batch ..."]:
    """`integrate`, returning z at every time: the noise first, the result of `integrate` last."""

    def advance(state: _State, at: _Step) -> tuple[_State, Array]:
        state = _advance(velocity, state, at, solver)
        return state, state.z

    grid = _grid(steps, solver, times, noise.dtype)
    after = jax.lax.scan(advance, _first_state(noise, solver), grid)[1]
    return jnp.concatenate([noise[None], after])


def invert(
    velocity: Velocity,
    data: Float[Array, "batch ..."],
    *,
    steps: int,
    solver: str = "euler",
    times: Times | None = None,
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
    retreat = lambda state, at: (_advance(velocity, state, at, solver), state.z)
    grid = _grid(steps, solver, times, data.dtype, backwards=True)
    state, after = jax.lax.scan(retreat, _first_state(data, solver), grid, reverse=True)
    return state.z, after


def integrate_near(
    velocity: Velocity,
    noise: Float[Array, "batch ..."],
    trajectory: Float[Array, "steps batch ..."],
    free: Bool[Array, "batch ..."],
    *,
    steps: int,
    solver: str = "euler",
    times: Times | None = None,
) -> Float[Array, "batch ..."]:
    """`integrate`, with elements that are not `free` set to the `trajectory` of `invert`.

    `free` broadcasts over z.
    """

    def advance(state: _State, at: tuple[_Step, Array]) -> tuple[_State, None]:
        state = _advance(velocity, state, at[0], solver)
        return state._replace(z=jnp.where(free, state.z, at[1])), None

    grid = _grid(steps, solver, times, noise.dtype)
    return jax.lax.scan(advance, _first_state(noise, solver), (grid, trajectory))[0].z


class _State(NamedTuple):
    """What a solver carries from step to step."""

    z: Array
    before: Array | None
    """The velocity at the last step's start for "ab2"; None for the other solvers."""


class _Step(NamedTuple):
    """A solver step, or arrays of all of them."""

    start: Array
    width: Array
    """Negative backwards."""
    ratio: Array | None
    """Ratio of `width` to that of the step before, for "ab2"; 0 for a step of Euler's method."""


def _first_state(z: Array, solver: str) -> _State:
    return _State(z, jnp.zeros_like(z) if solver == "ab2" else None)


def _advance(velocity: Velocity, state: _State, at: _Step, solver: str) -> _State:
    if solver != "ab2":
        return _State(step(velocity, state.z, at.start, at.width, solver), None)
    v = velocity(state.z, jnp.full(state.z.shape[:1], at.start)).astype(state.z.dtype)
    return _State(state.z + at.width * (v + 0.5 * at.ratio * (v - state.before)), v)


def _grid(
    steps: int, solver: str, times: Times | None, dtype: jnp.dtype, *, backwards: bool = False
) -> _Step:
    """The steps in the order of their times; those that go backwards start at their later time."""
    if steps < 1:
        raise ValueError(f"the number of solver steps is {steps}: use at least 1")
    if solver not in SOLVERS:
        raise ValueError(f"solver {solver!r} is unknown: use one of {', '.join(SOLVERS)}")
    if times is None:
        starts = jnp.arange(steps, dtype=dtype) / steps
        widths = jnp.full(steps, 1.0 / steps, dtype)
    else:
        times = jnp.asarray(times, dtype)
        starts, widths = times[:-1], jnp.diff(times)
    ratios = None
    if solver == "ab2":
        none = jnp.zeros(1, dtype)
        ratios = jnp.concatenate(
            [widths[:-1] / widths[1:], none] if backwards else [none, widths[1:] / widths[:-1]]
        )
        ratios = jnp.where(ratios <= MOST_EXTRAPOLATION, ratios, 0)
    return _Step(starts + widths, -widths, ratios) if backwards else _Step(starts, widths, ratios)
