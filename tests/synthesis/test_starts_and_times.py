"""Where the solver starts and what it returns, at which times it steps, and where it is guided."""

import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.flows import rectified
from sisma_jax.models import SISMAConfig
from sisma_jax.synthesis import programs
from sisma_jax.synthesis.options import SamplingOptions
from sisma_jax.synthesis.programs import noise_keys, velocity_with
from tests.synthesis.pictures import largest_difference

SHAPE = (8, 8, 4)
"""Latents of the tiny run."""


def test_latents_and_trajectory_belong_to_the_images(synthesizer, labels):
    options = SamplingOptions(steps=3, solver="ab2", shift=2)
    images = synthesizer.images(labels, options, seed=3)
    latents = synthesizer.latents(labels, options, seed=3)
    way = synthesizer.trajectory(labels, options, seed=3)
    assert latents.shape == (5, *SHAPE) and way.shape == (5, 4, *SHAPE)
    assert latents.dtype == way.dtype == np.float32
    np.testing.assert_allclose(way[:, -1], latents, atol=1e-5)
    assert largest_difference(synthesizer.decode(latents), images) <= 1
    noise = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(noise_keys(3, 0, 5))
    np.testing.assert_allclose(way[:, 0], noise, atol=1e-6)
    assert largest_difference(synthesizer.images(labels, options, noise=noise), images) <= 1
    assert synthesizer.latents(labels[:0], options).shape == (0, *SHAPE)
    assert synthesizer.trajectory(labels[:0], options).shape == (0, 4, *SHAPE)
    assert synthesizer.decode(latents[:0]).shape == (0, 32, 32, 3)


@pytest.mark.slow
def test_a_solution_can_be_continued_from_its_latents(synthesizer, labels):
    at = lambda *times: SamplingOptions(solver="heun", times=times)
    whole = synthesizer.latents(labels, at(0, 0.2, 0.5, 0.9, 1), seed=1)
    half = synthesizer.latents(labels, at(0, 0.2, 0.5), seed=1)
    rest = synthesizer.latents(labels, at(0.5, 0.9, 1), latents=half)
    np.testing.assert_allclose(rest, whole, atol=1e-5)
    images = synthesizer(labels, times=(0.5, 0.9, 1), solver="heun", latents=half)
    assert largest_difference(images, synthesizer.decode(whole)) <= 1


def test_each_image_has_its_own_guidance(synthesizer, labels):
    scales = [1.0, 50.0, 0.0, 9.0, 30.0]
    every = synthesizer(labels, seed=[4] * 5, steps=2, guidance=scales)
    for i in (0, 1, 2, 4):
        alone = synthesizer(labels[i : i + 1], seed=4, steps=2, guidance=scales[i])
        assert largest_difference(every[i : i + 1], alone) <= 1
    plain = synthesizer(labels[1:2], seed=4, steps=2)
    assert largest_difference(every[1:2], plain) > 1
    options = SamplingOptions(steps=2, guidance=[1, 2])
    assert synthesizer.memory(2, options)["batch"] == 4
    with pytest.raises(InputError, match="guidance has 2 values for 5 label maps: give one"):
        synthesizer.images(labels, options)


@pytest.mark.slow
def test_guidance_is_that_of_times_in_its_interval(synthesizer, labels):
    make = partial(synthesizer, labels[:4], seed=2, steps=4, guidance=50.0)
    plain, guided = synthesizer(labels[:4], seed=2, steps=4), make()
    within = make(guidance_interval=(0, 0.8))
    assert largest_difference(within, guided) <= 1, "Euler's last step starts at 0.75"
    assert largest_difference(make(guidance_interval=(0.8, 1)), plain) <= 1
    some = make(guidance_interval=(0.3, 0.6))
    assert min(largest_difference(some, other) for other in (plain, guided)) > 1


def test_a_guided_velocity_is_rescaled_by_the_share_of_the_options(monkeypatch):
    """The rescaling has its formula, in a velocity of two rows with different guidances."""
    random = np.random.default_rng(0)
    z, null, *given = random.normal(size=(4, 2, 3, 3, 2)).astype(np.float32)
    given = given[0] + 1

    def velocity(params, z, t, encoded):
        is_null = encoded[:, None, None, None] == 1
        every = jnp.where(is_null, jnp.repeat(null, 2, 0), jnp.repeat(given, 2, 0))
        return z + every

    toy = types.SimpleNamespace(
        in_compute_type=lambda params: params,
        encode=lambda params, labels, style: labels[:, 0, 0].astype(jnp.float32) / 255,
        velocity=velocity,
    )
    monkeypatch.setattr(programs, "generator", lambda config: toy)
    time, scales = np.float32(0.3), (2.0, 5.0)
    options = SamplingOptions(guidance=scales, guidance_rescale=0.7)
    labels = jnp.ones((2, 1, 1), jnp.uint8)
    found = jax.jit(
        lambda z, t, options: velocity_with(SISMAConfig.tiny(), {}, labels, options, None)(z, t)
    )(z, np.full(2, time), options)
    k = np.hypot(time, 1 - time)
    u = lambda v: ((2 * time - 1) * z - k**2 * v) / k
    plain, guided = z + given, z + null + np.reshape(scales, (2, 1, 1, 1)) * (given - null)
    ratio = u(plain).std((1, 2, 3), keepdims=True) / u(guided).std((1, 2, 3), keepdims=True)
    expected = u(guided) * (0.3 + 0.7 * ratio)
    np.testing.assert_allclose(u(np.asarray(found)), expected, atol=1e-4)
    assert (np.abs(ratio - 1) > 0.1).all()


@pytest.fixture
def rows_by_time(monkeypatch):
    """A function that solves with guidance in an interval, and returns the time and the number of
    rows of each velocity of two samples, sorted."""
    rows = []

    def velocity(params, z, t, encoded):
        jax.debug.callback(lambda t: rows.append((round(float(t[0]), 2), len(t))), t)
        return z * encoded[:, None, None, None]

    toy = types.SimpleNamespace(
        in_compute_type=lambda params: params,
        encode=lambda params, labels, style: labels[:, 0, 0].astype(jnp.float32) / 255,
        velocity=velocity,
    )
    monkeypatch.setattr(programs, "generator", lambda config: toy)

    @jax.jit
    def solve(noise, options):
        v = velocity_with(SISMAConfig.tiny(), {}, jnp.ones((2, 1, 1), jnp.uint8), options, None)
        return rectified.integrate(v, noise, steps=options.steps, solver=options.solver)

    def solved(interval, **arguments):
        rows.clear()
        options = SamplingOptions(guidance=3.0, guidance_interval=interval, **arguments)
        solve(jnp.ones((2, 1, 1, 1)), options).block_until_ready()
        jax.effects_barrier()
        return sorted(rows)

    return solved


def test_a_velocity_outside_of_the_interval_costs_no_second_pass(rows_by_time):
    once = [(0.0, 2), (0.2, 2), (0.4, 4), (0.6, 4), (0.8, 4)]
    assert rows_by_time((0.35, 0.8), steps=5, solver="euler") == once
    both = sorted([*once, *once[1:], (1.0, 2)])
    assert rows_by_time((0.35, 0.8), steps=5, solver="heun") == both, "each velocity has its time"


@pytest.mark.parametrize("steps", [10, 20])
def test_both_velocities_of_heun_at_an_end_of_the_interval_are_guided(rows_by_time, steps):
    starts, ends = range(steps), range(1, steps + 1)
    for first in range(steps):
        last = min(first + steps // 2, steps)
        rows = lambda k, a=first, b=last: (round(k / steps, 2), 4 if a <= k <= b else 2)
        made = rows_by_time((first / steps, last / steps), steps=steps, solver="heun")
        assert made == sorted(map(rows, [*starts, *ends])), (first, last)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": np.zeros((4, *SHAPE))}, r"noise of float64 and shape \(4, 8, 8, 4\) do not fit"),
        ({"latents": np.zeros((5, *SHAPE), int)}, "latents of int64 and shape .* give floats of"),
        ({"noise": np.full((5, *SHAPE), np.inf)}, "noise of image 0 are not all finite"),
        ({"noise": np.full((5, *SHAPE), 1e300)}, "noise of image 0 are not all finite in float32"),
        ({"noise": [[1.0], [1.0, 2.0]]}, "noise with rows of unequal lengths do not fit: give one"),
        (
            {"noise": np.zeros((5, *SHAPE)), "latents": np.zeros((5, *SHAPE))},
            "noise and latents are given, but a solver starts from one: leave one out",
        ),
        ({"times": (0.5, 1)}, "times begin at 0.5, .* noise: begin at 0, or start from latents"),
        ({"times": (0, 0.5), "latents": np.zeros((5, *SHAPE))}, "times end at 0.5, where z is"),
        ({"style_guidance": (1, 2, 3)}, "style guidance has 3 values for 5 label maps"),
    ],
)
def test_wrong_starts_are_refused_in_a_sentence(synthesizer, labels, arguments, message):
    with pytest.raises(InputError, match=message):
        synthesizer(labels, **arguments)


@pytest.mark.parametrize(("options", "kind"), [({"steps": 2}, "dict"), (None, "NoneType")])
def test_options_of_another_type_are_refused_in_a_sentence(synthesizer, labels, options, kind):
    for make in (synthesizer.images, synthesizer.latents, synthesizer.trajectory):
        with pytest.raises(InputError, match=f"^options are of type {kind}: give SamplingOptions"):
            make(labels, options)
