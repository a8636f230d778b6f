"""Diffusion as flow: every conversion there and back, and DDIM by its own formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.flows import rectified
from sisma_jax.flows.diffusion import (
    PUBLISHED,
    STEPS,
    Diffusion,
    from_flow,
    rescale_guidance,
    to_flow,
    u_to_velocity,
    velocity_to_u,
)
from tests.lowering import equations

VELOCITY = Diffusion(prediction="velocity")
ZERO = Diffusion(prediction="velocity", zero_terminal_snr=True)
ALL = pytest.mark.parametrize(
    "diffusion", [PUBLISHED, VELOCITY, ZERO], ids=["noise", "velocity", "zero_terminal_snr"]
)
SHAPE = (3, 4, 5, 2)


def levels(diffusion):
    """a_t and s_t by formula."""
    betas = (0.0015**0.5 + (0.0195**0.5 - 0.0015**0.5) * np.arange(STEPS) / (STEPS - 1)) ** 2
    a = np.sqrt(np.cumprod(1 - betas))
    if diffusion.zero_terminal_snr:
        a = (a - a[-1]) * a[0] / (a[0] - a[-1])
    return a, np.sqrt(1 - a**2)


SIGNAL, NOISE = levels(PUBLISHED)
FIRST_TIME = SIGNAL[-1] / (SIGNAL[-1] + NOISE[-1])


def normal(seed, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=shape)


def as_jax(x):
    return jnp.asarray(x, jnp.float32)


def column(x):
    return np.reshape(x, (-1, 1, 1, 1))


def truth(diffusion, x, noise, t):
    """The perfect prediction at integer steps."""
    a, s = (column(level[np.asarray(t, int)]) for level in levels(diffusion))
    return noise if diffusion.prediction == "noise" else a * noise - s * x


@ALL
def test_times_of_the_steps_are_those_of_the_schedule_and_fall(diffusion):
    signal, noise = levels(diffusion)
    times = np.asarray(diffusion.step_to_time(jnp.arange(STEPS, dtype=jnp.float32)))
    np.testing.assert_allclose(times, signal / (signal + noise), rtol=1e-5)
    assert (np.diff(times) < 0).all()
    last = 0 if diffusion.zero_terminal_snr else 0.0118
    assert times[[0, -1]] == pytest.approx([0.9627, last], abs=1e-4)
    assert bool(times[-1] == 0) is diffusion.zero_terminal_snr


@ALL
def test_steps_survive_the_way_to_times_and_back(diffusion):
    t = as_jax(np.random.default_rng(0).uniform(0, STEPS - 1, 500))
    t = jnp.concatenate([t, jnp.arange(STEPS, dtype=jnp.float32)])
    there_and_back = jax.jit(lambda t: diffusion.time_to_step(diffusion.step_to_time(t)))
    np.testing.assert_allclose(there_and_back(t), t, atol=2e-3)


def test_times_outside_the_schedule_are_its_ends():
    outside = jnp.asarray([0.0, 0.9 * FIRST_TIME, FIRST_TIME, 0.97, 1.0])
    np.testing.assert_allclose(PUBLISHED.time_to_step(outside), [999, 999, 999, 0, 0], atol=1e-3)


@ALL
def test_noisy_data_is_flow_s_and_comes_back(diffusion):
    x, noise, t = normal(1), normal(2), np.array([999, 400, 0])
    signal, level = levels(diffusion)
    x_t = as_jax(column(signal[t]) * x + column(level[t]) * noise)
    time = diffusion.step_to_time(as_jax(t))
    z = to_flow(x_t, time)
    np.testing.assert_allclose(z, rectified.interpolate(as_jax(x), as_jax(noise), time), atol=1e-5)
    np.testing.assert_allclose(from_flow(z, time), x_t, atol=1e-5)


@ALL
def test_the_true_prediction_says_flow_s_velocity_and_sees_the_step(diffusion):
    x, noise, t = normal(1), normal(2), np.array([999, 400, 0])
    seen = []

    def predict(x_t, step):
        seen.append((x_t, step))
        return as_jax(truth(diffusion, x, noise, t))

    time = diffusion.step_to_time(as_jax(t))
    v = diffusion.velocity(predict, rectified.interpolate(as_jax(x), as_jax(noise), time), time)
    np.testing.assert_allclose(v, x - noise, atol=1e-4)
    ((x_t, step),) = seen
    np.testing.assert_allclose(step, t, atol=1e-3)
    signal, level = levels(diffusion)
    np.testing.assert_allclose(x_t, column(signal[t]) * x + column(level[t]) * noise, atol=1e-5)


@ALL
def test_the_velocity_has_no_loop_which_xla_could_not_compile_within_a_solver_for_a_gpu(diffusion):
    z, t = jnp.ones((2, 3)), jnp.full(2, 0.5)
    program = jax.make_jaxpr(lambda z, t: diffusion.velocity(lambda x, step: x, z, t))(z, t)
    assert not {e.primitive.name for e in equations(program.jaxpr)} & {"while", "scan"}


def test_ahead_of_the_first_time_the_velocity_is_finite_and_the_first_time_s():
    predict = lambda x_t, t: jnp.sin(x_t)
    z = as_jax(normal(1))
    early, first = (
        PUBLISHED.velocity(predict, z, jnp.full(len(z), time)) for time in (0.0, FIRST_TIME)
    )
    assert np.isfinite(early).all()
    np.testing.assert_array_equal(early, first)


def arbitrary(np_or_jnp, x_t, t):
    """A prediction by a formula that knows nothing of schedules."""
    t = t.reshape(-1, 1, 1, 1) / STEPS
    return 0.6 * np_or_jnp.tanh(x_t) + np_or_jnp.sin(2 * x_t + 3 * t)


def euler(v, z, times):
    advance = lambda z, at: (rectified.step(v, z, *at, "euler"), None)
    return jax.lax.scan(advance, z, (times[:-1], np.diff(times)))[0]


def np_ddim(diffusion, x, steps):
    """DDIM without fresh noise, in NumPy: predict the data, then add the noise back."""
    signal, noise = levels(diffusion)
    starts = [t - 1 if diffusion.zero_terminal_snr else t for t in range(1, STEPS, STEPS // steps)]
    if diffusion.zero_terminal_snr:
        starts = [t + STEPS // steps - 1 for t in starts]
    assert len(starts) == steps
    for t, following in reversed(list(zip(starts, [None, *starts], strict=False))):
        predicted = arbitrary(np, x, np.full(len(x), float(t)))
        if diffusion.prediction == "noise":
            eps, data = predicted, (x - noise[t] * predicted) / signal[t]
        else:
            eps = noise[t] * x + signal[t] * predicted
            data = signal[t] * x - noise[t] * predicted
        a, s = (1.0, 0.0) if following is None else (signal[following], noise[following])
        x = a * data + s * eps
    return x


@ALL
@pytest.mark.parametrize("steps", [50, 8, 1])
def test_euler_s_steps_are_ddim_s(diffusion, steps):
    noise = normal(3)
    times = diffusion.ddim_times(steps)

    @jax.jit
    def sample(noise):
        z = to_flow(noise, jnp.full(len(noise), times[0]))
        v = lambda z, time: diffusion.velocity(lambda x, t: arbitrary(jnp, x, t), z, time)
        return euler(v, z, times)

    expected = np_ddim(diffusion, noise, steps)
    sampled = sample(as_jax(noise))
    np.testing.assert_allclose(sampled, expected, atol=1e-5 * np.abs(expected).max())


@ALL
def test_who_knows_the_truth_samples_the_data(diffusion):
    """From z that the data is in; from noise alone only with zero terminal SNR, where the
    prediction is the data."""
    x, noise = normal(1), normal(2)
    times = diffusion.ddim_times(20)
    z = rectified.interpolate(as_jax(x), as_jax(noise), jnp.full(len(x), times[0]))

    def predict(x_t, t):
        a, s = (as_jax(level)[jnp.round(t).astype(int)] for level in levels(diffusion))
        a, s = (level.reshape(-1, 1, 1, 1) for level in (a, s))
        eps = as_jax(noise)
        return eps if diffusion.prediction == "noise" else a * eps - s * as_jax(x)

    z = euler(lambda z, t: diffusion.velocity(predict, z, t), z, times)
    np.testing.assert_allclose(z, x, atol=1e-4)


SPREAD = np.array([[0.3, 1.0, 2.0]], np.float32)
"""Standard deviations of three Gaussians."""


def of_gaussian(diffusion):
    """The perfect prediction for data of the distribution N(0, SPREAD^2), from x_t alone."""

    def predict(x_t, t):
        time = diffusion.step_to_time(t).reshape(-1, 1)
        k = jnp.hypot(time, 1 - time)
        a, s = time / k, (1 - time) / k
        x = a * SPREAD**2 * x_t / (a**2 * SPREAD**2 + s**2)
        eps = s * x_t / (a**2 * SPREAD**2 + s**2)
        return eps if diffusion.prediction == "noise" else a * eps - s * x

    return predict


def deviation(times):
    """The standard deviation of z at these times."""
    return np.hypot(times * SPREAD, 1 - times)


@ALL
def test_the_perfect_model_of_a_gaussian_samples_its_marginals(diffusion):
    """Its flow scales the noise such that the standard deviation is that of every time. Only from a
    first step of noise alone are they those of the data; else a share of the data is missed."""
    times = diffusion.ddim_times(500)
    z = jnp.broadcast_to(to_flow(jnp.ones((1, 1)), jnp.asarray(times[:1])), (1, 3))
    v = jax.jit(lambda z, t: diffusion.velocity(of_gaussian(diffusion), z, t))
    path = rectified.trajectory(v, z, steps=500, solver="heun", times=times)[:, 0]
    marginals = deviation(times[:, None])
    begun = np.asarray(z) / marginals[:1]
    inside = slice(0, -1)  # beyond t = 0 there is no perfect prediction
    np.testing.assert_allclose(path[inside], (marginals * begun)[inside], rtol=1e-3)
    np.testing.assert_allclose(path[-1], SPREAD[0] * begun[0], rtol=0.02)
    assert (np.abs(begun - 1).max() < 1e-6) == diffusion.zero_terminal_snr


@ALL
def test_inversion_and_sampling_return_the_data(diffusion):
    times = diffusion.ddim_times(100)
    v = jax.jit(lambda z, t: diffusion.velocity(of_gaussian(diffusion), z, t))
    data = as_jax(normal(4, (5, 3)) * SPREAD)
    solve = dict(steps=100, solver="heun", times=times)
    noise, _ = rectified.invert(v, data, **solve)
    np.testing.assert_allclose(rectified.integrate(v, noise, **solve), data, atol=2e-3)
    np.testing.assert_allclose(noise, deviation(times[0]) / SPREAD * data, rtol=0.03)


@ALL
@pytest.mark.parametrize("steps", [1, 7, 50, 999])
def test_ddim_goes_from_noise_to_data_by_whole_steps(diffusion, steps):
    times = diffusion.ddim_times(steps)
    assert times.shape == (steps + 1,) and times.dtype == np.float32
    assert (np.diff(times) > 0).all() and times[-1] == 1
    t = np.asarray(diffusion.time_to_step(jnp.asarray(times[:-1])))
    np.testing.assert_allclose(t, t.round(), atol=2e-3)
    if diffusion.zero_terminal_snr:
        assert t[0] == STEPS - 1 and times[0] == 0
    else:
        assert t[-1].round() == 1 and t[0] <= STEPS - 1
    if STEPS % steps == 0:
        first = STEPS // steps - 1 if diffusion.zero_terminal_snr else 1
        np.testing.assert_array_equal(t.round()[::-1], np.arange(first, STEPS, STEPS // steps))


@pytest.mark.parametrize("steps", [0, 1000])
def test_numbers_of_steps_that_there_are_not_are_named(steps):
    with pytest.raises(ValueError, match=f"DDIM steps is {steps}: choose 1 to 999"):
        PUBLISHED.ddim_times(steps)


@ALL
def test_the_loss_is_the_prediction_s_of_the_step_that_time_draws(diffusion):
    x, noise = normal(1), normal(2)
    time = jnp.asarray([0.0, 0.6001, 1.0])
    steps = np.array([999, 399, 0])
    signal, level = levels(diffusion)

    def predict(x_t, t):
        np.testing.assert_array_equal(t, steps)
        expected = column(signal[steps]) * x + column(level[steps]) * noise
        np.testing.assert_allclose(x_t, expected, atol=1e-5)
        off = jnp.asarray([0.0, 1.0, -3.0])[:, None, None, None]
        return as_jax(truth(diffusion, x, noise, steps)) + off

    found = diffusion.loss_at(predict, as_jax(x), as_jax(noise), time)
    np.testing.assert_allclose(found, [0, 1, 9], atol=1e-5)


def test_every_step_is_equally_likely():
    drawn = []
    predict = lambda x_t, t: drawn.append(t) or x_t
    time = (jnp.arange(4 * STEPS, dtype=jnp.float32) + 0.5) / (4 * STEPS)
    PUBLISHED.loss_at(predict, jnp.zeros((4 * STEPS, 1)), jnp.zeros((4 * STEPS, 1)), time)
    np.testing.assert_array_equal(np.bincount(np.asarray(drawn[0], int)), np.full(STEPS, 4))


@ALL
def test_guiding_the_velocity_guides_the_prediction(diffusion):
    z, time = as_jax(normal(1)), jnp.asarray([0.02, 0.5, 0.9])
    predicted = {1: as_jax(normal(2)), 0: as_jax(normal(3))}
    of = lambda prediction: diffusion.velocity(lambda x_t, t: prediction, z, time)
    guided = rectified.guide(of(predicted[1]), of(predicted[0]), 1.2)
    expected = of(rectified.guide(predicted[1], predicted[0], 1.2))
    np.testing.assert_allclose(guided, expected, atol=1e-3)


def test_the_two_velocities_are_each_other_s_at_every_time():
    z, v, time = as_jax(normal(1)), as_jax(normal(2)), jnp.asarray([0.0, 0.4, 1.0])
    u = velocity_to_u(v, z, time)
    np.testing.assert_allclose(u_to_velocity(u, z, time), v, atol=1e-5)
    x, noise = z + (1 - column(time)) * v, z - column(time) * v
    a, s = (column(level / np.hypot(time, 1 - time)) for level in (time, 1 - time))
    np.testing.assert_allclose(u, a * noise - s * x, atol=1e-5)


def test_rescaled_guidance_has_the_deviation_of_the_plain_prediction_in_its_share():
    z, plain, null = (as_jax(normal(seed)) for seed in (1, 2, 3))
    time = jnp.asarray([0.0, 0.4, 1.0])
    guided = rectified.guide(plain, null, 3.0)
    deviation = lambda v: np.std(velocity_to_u(v, z, time), (1, 2, 3))
    none, half, full = (rescale_guidance(guided, plain, z, time, s) for s in (0.0, 0.5, 1.0))
    np.testing.assert_allclose(none, guided, atol=1e-5)
    np.testing.assert_allclose(deviation(full), deviation(plain), rtol=1e-4)
    np.testing.assert_allclose(
        deviation(half), (deviation(plain) + deviation(guided)) / 2, rtol=1e-4
    )
    assert (deviation(guided) > 1.5 * deviation(plain)).all()
    data = np.std(full[0] + z[0])  # of noise alone, where u is minus the data
    np.testing.assert_allclose(data, np.std(plain[0] + z[0]), rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(prediction="v"), r"flow\.prediction is 'v': choose one of noise, velocity"),
        (dict(zero_terminal_snr=True), "says nothing about the data: set flow.prediction to 'vel"),
    ],
)
def test_a_diffusion_that_cannot_be_is_refused(fields, said):
    with pytest.raises(InputError, match=said):
        Diffusion(**fields)
