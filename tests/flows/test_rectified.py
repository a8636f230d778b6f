"""Rectified flow: path, loss, dropping, solvers with their orders, guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.flows import rectified


def test_path_runs_from_noise_to_data(key):
    x, noise = jax.random.normal(key, (2, 3, 4, 4, 2))
    np.testing.assert_array_equal(rectified.interpolate(x, noise, jnp.zeros(3)), noise)
    np.testing.assert_array_equal(rectified.interpolate(x, noise, jnp.ones(3)), x)


def test_velocity_target_is_the_derivative_of_the_path(key):
    x, noise = jax.random.normal(key, (2, 3, 4, 4, 2))
    t = jnp.array([0.1, 0.5, 0.9])
    derivative = jax.jvp(lambda t: rectified.interpolate(x, noise, t), (t,), (jnp.ones(3),))[1]
    loss = rectified.loss_at(lambda z, t: derivative, x, noise, t)
    np.testing.assert_allclose(loss, 0, atol=1e-12)


def test_loss_is_the_mean_squared_error_per_sample(key):
    x, noise = jax.random.normal(key, (2, 3, 4, 4, 2))
    loss = rectified.loss_at(lambda z, t: jnp.zeros_like(z), x, noise, jnp.full(3, 0.3))
    expected = np.mean(np.square(np.asarray(x) - np.asarray(noise)), axis=(1, 2, 3))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_logit_normal_and_uniform_times(key):
    logit_normal = np.asarray(rectified.sample_time(key, 40_000, "logit_normal"))
    logits = np.log(logit_normal / (1 - logit_normal))
    np.testing.assert_allclose([logits.mean(), logits.std()], [0, 1], atol=0.03)
    uniform = np.asarray(rectified.sample_time(key, 40_000, "uniform"))
    np.testing.assert_allclose([uniform.mean(), uniform.var()], [0.5, 1 / 12], atol=0.01)
    with pytest.raises(ValueError, match="'cosine' is unknown"):
        rectified.sample_time(key, 2, "cosine")


def test_each_time_of_a_batch_has_the_whole_distribution_and_together_they_are_stratified(key):
    many = jax.vmap(lambda key: rectified.sample_time(key, 8, "uniform"))(
        jax.random.split(key, 1000)
    )
    np.testing.assert_array_equal(np.floor(8 * np.sort(many)), np.tile(np.arange(8), (1000, 1)))
    within = 8 * np.asarray(many) % 1
    np.testing.assert_allclose([within.mean(), within.var()], [0.5, 1 / 12], atol=0.02)


def test_dropping_replaces_whole_conditions():
    condition = jnp.ones((3, 2, 2), jnp.uint8)
    left = rectified.drop_condition(jnp.array([False, True, False]), condition, 255)
    np.testing.assert_array_equal(left, condition.at[1].set(255))


ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "ab2": 2}
GRIDS = {
    "equal": lambda steps: None,
    "shifted": lambda steps: rectified.shifted(np.linspace(0, 1, steps + 1), 2.0),
    "uneven": lambda steps: (np.arange(steps + 1) + 0.2 * (np.arange(steps + 1) % 2)) / steps,
}
"""Times by the number of steps, which is even. The ratio of neighbouring steps of "uneven" is 1.5
or 2 / 3 however many there are, where the formula for equal steps would be of order 1."""


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("solver", "order"), ORDERS.items())
def test_solvers_converge_at_their_order_there_and_back(solver, order, grid):
    """dz/dt = (t - z): z(1) = z0 / e + 1 / e, a flow that depends on t and z."""
    noise = jnp.array([[0.7], [-1.3]])
    data = (np.asarray(noise, np.float64) + 1) / np.e
    velocity = lambda z, t: t[:, None] - z
    there, back = [], []
    for steps in (16, 32, 64):
        solve = {"steps": steps, "solver": solver, "times": GRIDS[grid](steps)}
        there.append(np.abs(rectified.integrate(velocity, noise, **solve) - data).max())
        found, _ = rectified.invert(velocity, jnp.asarray(data, jnp.float32), **solve)
        back.append(np.abs(found - noise).max())
    for errors in (there, back):
        rates = np.log2(np.array(errors[:-1]) / errors[1:])
        np.testing.assert_allclose(rates, order, atol=0.35)


def test_adams_bashforth_extrapolates_from_the_step_before():
    """dz/dt = t by hand: a method of order 2 is exact, except for Euler's first step."""
    times = np.array([0.0, 0.25, 0.5, 1.0])
    way = rectified.trajectory(
        lambda z, t: t[:, None], jnp.zeros((1, 1)), steps=3, solver="ab2", times=times
    )
    lost = 0.25**2 / 2
    np.testing.assert_allclose(way[:, 0, 0], times**2 / 2 - [0, lost, lost, lost], atol=1e-7)


def test_adams_bashforth_takes_a_step_of_euler_after_a_much_narrower_one():
    """dz/dt = t by hand: each step of Euler loses half the square of its width."""
    times = np.array([0.0, 0.01, 0.5, 1.0], np.float32)
    velocity, solve = lambda z, t: jnp.broadcast_to(t[:, None], z.shape), {"solver": "ab2"}
    expected = -(0.01**2 + 0.49**2) / 2
    arrived = rectified.integrate(velocity, jnp.zeros((1, 1)), steps=3, times=times, **solve)
    np.testing.assert_allclose(arrived - 0.5, expected, atol=1e-6)
    back, _ = rectified.invert(
        velocity, jnp.full((1, 1), 0.5), steps=3, times=1 - times[::-1], **solve
    )
    np.testing.assert_allclose(back, expected, atol=1e-6)


def test_shifted_times_multiply_the_ratio_of_noise_to_data():
    times = np.linspace(0, 1, 9)
    moved = rectified.shifted(times, 3.0)
    assert (moved[0], moved[-1]) == (0, 1) and (np.diff(moved) > 0).all()
    ratio = lambda t: (1 - t[1:]) / t[1:]
    np.testing.assert_allclose(ratio(moved), 3 * ratio(times))
    expected = 3 * (1 - times) / (1 + 2 * (1 - times))
    np.testing.assert_allclose(1 - moved, expected, err_msg="as written by Esser et al.")


@pytest.mark.parametrize("solver", rectified.SOLVERS)
def test_the_trajectory_begins_with_the_noise_and_ends_with_the_result(solver, key):
    noise = jax.random.normal(key, (2, 5))
    velocity = lambda z, t: jnp.sin(3 * z) + t[:, None]
    solve = {"solver": solver, "times": np.array([0, 0.1, 0.5, 0.8], np.float32)}
    way = rectified.trajectory(velocity, noise, steps=3, **solve)
    assert way.shape == (4, 2, 5)
    np.testing.assert_array_equal(way[0], noise)
    result = rectified.integrate(velocity, noise, steps=3, **solve)
    np.testing.assert_allclose(way[-1], result, atol=1e-6)
    first = rectified.integrate(velocity, noise, steps=1, solver=solver, times=solve["times"][:2])
    np.testing.assert_allclose(way[1], first, atol=1e-6)


@pytest.mark.parametrize("solver", rectified.SOLVERS)
def test_straight_flows_are_exact_in_one_step(solver, key):
    """Points moving at constant speed from noise to data: what rectified flow strives for."""
    x, noise = jax.random.normal(key, (2, 3, 5))
    arrived = rectified.integrate(lambda z, t: x - noise, noise, steps=1, solver=solver)
    np.testing.assert_allclose(arrived, x, atol=1e-6)


def test_flow_of_a_gaussian_arrives_at_that_gaussian():
    """The exact velocity between N(0, 1) and N(m, s^2) maps noise z to m + s z."""
    m, s = 1.5, 0.4

    def velocity(z, t):
        t = t[:, None]
        variance = (t * s) ** 2 + (1 - t) ** 2
        return m + (t * s**2 - (1 - t)) / variance * (z - t * m)

    noise = jnp.linspace(-2, 2, 9)[:, None]
    arrived = rectified.integrate(velocity, noise, steps=200, solver="heun")
    np.testing.assert_allclose(arrived, m + s * noise, atol=1e-3)


def test_solver_calls_and_times_are_counted(key):
    for solver in rectified.SOLVERS:
        times = []

        def velocity(z, t, times=times):
            jax.debug.callback(lambda t: times.append(float(t)), t[0])
            return z

        rectified.integrate(velocity, jnp.ones((1, 1)), steps=5, solver=solver).block_until_ready()
        jax.effects_barrier()
        assert len(times) == 5 * rectified.VELOCITIES[solver]
        assert min(times) == 0 and max(times) <= 1


def test_guidance_interpolates_and_extrapolates(key):
    conditional, unconditional = jax.random.normal(key, (2, 3, 5))
    np.testing.assert_allclose(
        rectified.guide(conditional, unconditional, 1.0), conditional, atol=1e-6
    )
    np.testing.assert_allclose(rectified.guide(conditional, unconditional, 0.0), unconditional)
    np.testing.assert_allclose(
        rectified.guide(conditional, unconditional, 2.0), 2 * conditional - unconditional, atol=1e-6
    )


def test_each_sample_has_its_own_guidance(key):
    conditional, unconditional = jax.random.normal(key, (2, 3, 4, 5))
    scales = [0.5, 1.0, 4.0]
    every = rectified.guide(conditional, unconditional, jnp.array(scales))
    for i, scale in enumerate(scales):
        alone = rectified.guide(conditional[i], unconditional[i], scale)
        np.testing.assert_array_equal(every[i], alone)


def test_no_steps_and_unknown_solvers_are_refused():
    velocity = lambda z, t: z
    with pytest.raises(ValueError, match="solver steps is 0: use"):
        rectified.integrate(velocity, jnp.ones((1, 1)), steps=0)
    with pytest.raises(ValueError, match="'rk4' is unknown: use one of euler"):
        rectified.integrate(velocity, jnp.ones((1, 1)), steps=1, solver="rk4")


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
def test_a_step_back_undoes_a_step_up_to_its_order(solver):
    z = jnp.array([[0.7], [-1.3]])
    velocity = lambda z, t: t[:, None] - z

    def error(h):
        there = rectified.step(velocity, z, 0.3, h, solver)
        return float(jnp.abs(rectified.step(velocity, there, 0.3 + h, -h, solver) - z).max())

    assert error(0.2) / error(0.1) > 0.8 * 2 ** (ORDERS[solver] + 1)


@pytest.mark.parametrize("times", [None, np.array([0.1, 0.2, 0.6, 1.0], np.float32)])
def test_the_way_back_goes_through_the_times_of_the_way_there(times):
    """A constant velocity has a straight trajectory, which every solver follows exactly."""
    seen = {"there": [], "back": []}

    def velocity(way):
        def constant(z, t):
            jax.debug.callback(lambda t: seen[way].append(float(t)), t[0])
            return jnp.full_like(z, 2.0)

        return constant

    data = jnp.ones((1, 3))
    noise, way = rectified.invert(velocity("back"), data, steps=3, times=times)
    back = rectified.integrate(velocity("there"), noise, steps=3, times=times)
    jax.effects_barrier()
    grid = np.arange(4) / 3 if times is None else times
    np.testing.assert_allclose(sorted(seen["there"]), grid[:-1], atol=1e-6)
    np.testing.assert_allclose(sorted(seen["back"]), grid[1:], atol=1e-6)
    np.testing.assert_allclose(back, data, atol=1e-6)
    np.testing.assert_allclose(way[:, 0, 0], 1 - 2 * (1 - grid[1:]), atol=1e-6)
