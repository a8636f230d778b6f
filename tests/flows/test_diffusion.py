"""Diffusion as flow: every conversion there and back, and DDIM by its own formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.flows import rectified
from sisma_jax.flows.diffusion import (
    FIRST_TIME,
    STEPS,
    ddim_times,
    from_flow,
    noise_loss_at,
    step_to_time,
    time_to_step,
    to_flow,
    velocity,
)
from tests.lowering import equations

BETAS = (0.0015**0.5 + (0.0195**0.5 - 0.0015**0.5) * np.arange(STEPS) / (STEPS - 1)) ** 2
SIGNAL, NOISE = np.sqrt(np.cumprod(1 - BETAS)), np.sqrt(1 - np.cumprod(1 - BETAS))
"""a_t and s_t."""
SHAPE = (3, 4, 5, 2)


def normal(seed, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=shape)


def as_jax(x):
    return jnp.asarray(x, jnp.float32)


def column(x):
    return np.reshape(x, (-1, 1, 1, 1))


def test_times_of_the_steps_are_those_of_the_schedule_and_fall():
    times = np.asarray(step_to_time(jnp.arange(STEPS, dtype=jnp.float32)))
    np.testing.assert_allclose(times, SIGNAL / (SIGNAL + NOISE), rtol=1e-5)
    assert (np.diff(times) < 0).all()
    assert times[-1] == pytest.approx(FIRST_TIME, rel=1e-6)
    assert times[[0, -1]] == pytest.approx([0.9627, 0.0118], abs=1e-4)


def test_steps_survive_the_way_to_times_and_back():
    t = as_jax(np.random.default_rng(0).uniform(0, STEPS - 1, 500))
    t = jnp.concatenate([t, jnp.arange(STEPS, dtype=jnp.float32)])
    np.testing.assert_allclose(jax.jit(lambda t: time_to_step(step_to_time(t)))(t), t, atol=2e-3)


def test_times_outside_the_schedule_are_its_ends():
    outside = jnp.asarray([0.0, 0.9 * FIRST_TIME, FIRST_TIME, 0.97, 1.0])
    np.testing.assert_allclose(time_to_step(outside), [999, 999, 999, 0, 0], atol=1e-3)


def test_noisy_data_is_flow_s_and_comes_back():
    x, noise, t = normal(1), normal(2), np.array([999, 400, 0])
    x_t = as_jax(column(SIGNAL[t]) * x + column(NOISE[t]) * noise)
    time = step_to_time(as_jax(t))
    z = to_flow(x_t, time)
    np.testing.assert_allclose(z, rectified.interpolate(as_jax(x), as_jax(noise), time), atol=1e-5)
    np.testing.assert_allclose(from_flow(z, time), x_t, atol=1e-5)


def test_the_true_noise_says_flow_s_velocity_and_sees_the_step():
    x, noise, t = as_jax(normal(1)), as_jax(normal(2)), np.array([900, 400, 10])
    seen = []

    def predict(x_t, step):
        seen.append((x_t, step))
        return noise

    time = step_to_time(as_jax(t))
    v = velocity(predict, rectified.interpolate(x, noise, time), time)
    np.testing.assert_allclose(v, x - noise, atol=1e-4)
    ((x_t, step),) = seen
    np.testing.assert_allclose(step, t, atol=1e-3)
    np.testing.assert_allclose(x_t, column(SIGNAL[t]) * x + column(NOISE[t]) * noise, atol=1e-5)


def test_the_velocity_has_no_loop_which_xla_could_not_compile_within_a_solver_for_a_gpu():
    z, t = jnp.ones((2, 3)), jnp.full(2, 0.5)
    program = jax.make_jaxpr(lambda z, t: velocity(lambda x, step: x, z, t))(z, t)
    assert not {e.primitive.name for e in equations(program.jaxpr)} & {"while", "scan"}


def test_ahead_of_the_first_time_the_velocity_is_finite_and_the_first_time_s():
    predict = lambda x_t, t: jnp.sin(x_t)
    z = as_jax(normal(1))
    early, first = (velocity(predict, z, jnp.full(len(z), time)) for time in (0.0, FIRST_TIME))
    assert np.isfinite(early).all()
    np.testing.assert_array_equal(early, first)


def arbitrary(np_or_jnp, x_t, t):
    """Noise by a formula that knows nothing of schedules."""
    t = t.reshape(-1, 1, 1, 1) / STEPS
    return 0.6 * np_or_jnp.tanh(x_t) + np_or_jnp.sin(2 * x_t + 3 * t)


def euler(v, z, times):
    advance = lambda z, at: (rectified.step(v, z, *at, "euler"), None)
    return jax.lax.scan(advance, z, (times[:-1], np.diff(times)))[0]


def np_ddim(x, steps):
    """DDIM without fresh noise, in NumPy: predict the data, then add the noise back."""
    starts = range(1, STEPS, STEPS // steps)
    assert len(starts) == steps
    for t, following in reversed(list(zip(starts, [None, *starts], strict=False))):
        eps = arbitrary(np, x, np.full(len(x), float(t)))
        data = (x - NOISE[t] * eps) / SIGNAL[t]
        a, s = (1.0, 0.0) if following is None else (SIGNAL[following], NOISE[following])
        x = a * data + s * eps
    return x


@pytest.mark.parametrize("steps", [50, 8, 1])
def test_euler_s_steps_are_ddim_s(steps):
    noise = normal(3)
    times = ddim_times(steps)

    @jax.jit
    def sample(noise):
        z = to_flow(noise, jnp.full(len(noise), times[0]))
        v = lambda z, time: velocity(lambda x, t: arbitrary(jnp, x, t), z, time)
        return euler(v, z, times)

    expected = np_ddim(noise, steps)
    sampled = sample(as_jax(noise))
    np.testing.assert_allclose(sampled, expected, atol=1e-5 * np.abs(expected).max())


def test_who_knows_the_noise_samples_the_data():
    """From z that the data is in; from noise alone nothing could."""
    x, noise = as_jax(normal(1)), as_jax(normal(2))
    times = ddim_times(20)
    z = rectified.interpolate(x, noise, jnp.full(len(x), times[0]))
    z = euler(lambda z, t: velocity(lambda x_t, t: noise, z, t), z, times)
    np.testing.assert_allclose(z, x, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 7, 50, 999])
def test_ddim_goes_from_noise_to_data_by_whole_steps(steps):
    times = ddim_times(steps)
    assert times.shape == (steps + 1,) and times.dtype == np.float32
    assert (np.diff(times) > 0).all() and times[-1] == 1
    t = np.asarray(time_to_step(jnp.asarray(times[:-1])))
    np.testing.assert_allclose(t, t.round(), atol=2e-3)
    assert t[-1].round() == 1 and t[0] <= STEPS - 1
    if STEPS % steps == 0:
        np.testing.assert_array_equal(t.round(), np.arange(1, STEPS, STEPS // steps)[::-1])


@pytest.mark.parametrize("steps", [0, 1000])
def test_numbers_of_steps_that_there_are_not_are_named(steps):
    with pytest.raises(ValueError, match=f"DDIM steps is {steps}: choose 1 to 999"):
        ddim_times(steps)


def test_the_loss_is_the_noise_s_of_the_step_that_time_draws():
    x, noise = as_jax(normal(1)), as_jax(normal(2))
    time = jnp.asarray([0.0, 0.6001, 1.0])
    steps = np.array([999, 399, 0])

    def predict(x_t, t):
        np.testing.assert_array_equal(t, steps)
        expected = column(SIGNAL[steps]) * x + column(NOISE[steps]) * noise
        np.testing.assert_allclose(x_t, expected, atol=1e-5)
        return noise + jnp.asarray([0.0, 1.0, -3.0])[:, None, None, None]

    np.testing.assert_allclose(noise_loss_at(predict, x, noise, time), [0, 1, 9], atol=1e-5)


def test_every_step_is_equally_likely():
    drawn = []
    predict = lambda x_t, t: drawn.append(t) or x_t
    time = (jnp.arange(4 * STEPS, dtype=jnp.float32) + 0.5) / (4 * STEPS)
    noise_loss_at(predict, jnp.zeros((4 * STEPS, 1)), jnp.zeros((4 * STEPS, 1)), time)
    np.testing.assert_array_equal(np.bincount(np.asarray(drawn[0], int)), np.full(STEPS, 4))


def test_guiding_the_velocity_guides_the_noise():
    z, time = as_jax(normal(1)), jnp.asarray([0.02, 0.5, 0.9])
    noise = {1: as_jax(normal(2)), 0: as_jax(normal(3))}
    of = lambda eps: velocity(lambda x_t, t: eps, z, time)
    guided = rectified.guide(of(noise[1]), of(noise[0]), 1.2)
    np.testing.assert_allclose(guided, of(rectified.guide(noise[1], noise[0], 1.2)), atol=1e-3)
