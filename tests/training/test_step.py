"""One step: the gradient in parts, steps that are skipped, what is drawn and how."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sisma_jax.devices.sharding import MeshConfig, batch_sharding, make_mesh, under_mesh
from sisma_jax.training.state import init_state, make_optimizer, make_step, split_rows
from tests.training import toy

WEIGHTS = {"w": np.ones((toy.FEATURES, 2), np.float32)}


def stepper(**changes):
    config = toy.settings(**changes)
    optimizer = make_optimizer(config, lambda path, leaf: ((0,), (1,)))
    step = jax.jit(make_step(toy.loss_fn, toy.draw, optimizer, config, seed=3))

    def call(*arguments):
        with jax.numpy_dtype_promotion("standard"):
            return step(*arguments)

    return call, init_state(jax.tree.map(jnp.asarray, WEIGHTS), optimizer)


def batch(number=0, rows=8):
    return next(toy.Batches(number, rows))


@pytest.mark.parametrize("parts", [2, 4])
def test_a_gradient_in_parts_is_that_of_the_whole(parts):
    whole, state = stepper()
    in_parts, _ = stepper(accumulate=parts)
    (one, metrics), (other, metrics_of_parts) = whole(state, batch()), in_parts(state, batch())
    np.testing.assert_allclose(one.params["w"], other.params["w"], rtol=1e-5)
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(metrics[name], metrics_of_parts[name], rtol=1e-5)


def test_the_memory_of_a_gradient_in_parts_is_that_of_a_part():
    """What is kept for the backward pass shrinks with the parts."""

    def loss_fn(params, batch):
        hidden = batch["x"]
        for _ in range(8):
            hidden = jnp.tanh(hidden @ params["w"])
        return jnp.mean(hidden**2), {}

    def temporary(parts):
        config = toy.settings(accumulate=parts)
        step = make_step(loss_fn, lambda key, batch: {}, optax.sgd(0.1), config, seed=0)
        state = init_state({"w": jnp.ones((64, 64))}, optax.sgd(0.1))
        with jax.numpy_dtype_promotion("standard"):
            compiled = jax.jit(step).lower(state, {"x": jnp.ones((4096, 64))}).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(8) < temporary(1) / 4


def test_parts_take_rows_of_every_device_and_move_none():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2))
    rows = jax.device_put(np.arange(16), batch_sharding(mesh))
    split = jax.jit(lambda x: split_rows({"x": x}, 2)["x"])
    parts = under_mesh(mesh, split)(rows)
    # Devices hold rows 0-3, 4-7, 8-11, 12-15.
    np.testing.assert_array_equal(parts, [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]])
    text = under_mesh(mesh, split.lower)(rows).compile().as_text()
    assert not any(word in text for word in ("all-gather", "all-to-all", "permute"))
    np.testing.assert_array_equal(split(np.arange(4)), [[0, 1], [2, 3]])  # no mesh


def test_a_step_that_is_not_finite_changes_only_counters():
    step, state = stepper()
    bad = batch() | {"x": np.full((8, toy.FEATURES), np.nan, np.float32)}
    after, metrics = step(state, bad)
    for name in ("params", "ema", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(state, name))
    assert (int(after.step), int(after.skipped), int(after.skipped_in_a_row)) == (1, 1, 1)
    assert int(metrics["skipped"]) == 1 and not np.isfinite(metrics["loss"])
    after, _ = step(after, batch(1))
    assert (int(after.step), int(after.skipped), int(after.skipped_in_a_row)) == (2, 1, 0)
    assert (np.asarray(after.params["w"]) != WEIGHTS["w"]).any()


def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is_finite():
    config = toy.settings()
    root = lambda params, batch: (jnp.sum(jnp.sqrt(jnp.abs(params["w"]))), {})
    step = make_step(root, lambda key, batch: {}, optax.sgd(0.1), config, seed=0)
    state = init_state({"w": jnp.zeros((2, 2))}, optax.sgd(0.1))
    with jax.numpy_dtype_promotion("standard"):
        after, metrics = jax.jit(step)(state, batch())
    assert np.isfinite(metrics["loss"]) and int(metrics["skipped"]) == 1
    np.testing.assert_array_equal(after.params["w"], 0)


def test_after_the_limit_nothing_changes_any_more():
    """So that a loop that looks later still finds the state before the first bad step."""
    step, state = stepper(skip_limit=2)
    bad = batch() | {"x": np.full((8, toy.FEATURES), np.inf, np.float32)}
    for one in (bad, bad, batch(2)):
        state, metrics = step(state, one)
    np.testing.assert_array_equal(state.params["w"], WEIGHTS["w"])
    assert int(metrics["skipped_in_a_row"]) == 3


def test_schedule_and_average_count_the_steps_that_were_applied():
    step, state = stepper(warmup=4)
    bad = batch() | {"x": np.full((8, toy.FEATURES), np.nan, np.float32)}
    rates = []
    for one in (batch(), bad, batch(2), batch(3)):
        state, metrics = step(state, one)
        rates.append(float(metrics["learning_rate"]))
    np.testing.assert_allclose(rates, [0, 2.5e-3, 2.5e-3, 5e-3])


def test_the_average_is_its_formula_over_the_steps_that_were_applied():
    limit = 0.24  # reached at the last of these steps
    step, state = stepper(learning_rate=0.5, ema_decay=limit)
    bad = batch() | {"x": np.full((8, toy.FEATURES), np.nan, np.float32)}
    average, applied, decays = np.float64(WEIGHTS["w"]), 0, []
    for one in (batch(), bad, batch(2), batch(3)):
        state, metrics = step(state, one)
        if not int(metrics["skipped"]):
            decays.append(min(limit, (1 + applied) / (10 + applied)))
            average = decays[-1] * average + (1 - decays[-1]) * np.float64(state.params["w"])
            applied += 1
        np.testing.assert_allclose(state.ema["w"], average, rtol=1e-5)
    assert decays == [1 / 10, 2 / 11, limit]


def test_noise_is_of_seed_and_step():
    step, state = stepper()
    one, _ = step(state, batch())
    again, _ = step(state, batch())
    later, _ = step(state.replace(step=state.step + 1), batch())
    np.testing.assert_array_equal(one.params["w"], again.params["w"])
    assert (np.asarray(one.params["w"]) != np.asarray(later.params["w"])).any()


def test_state_and_average_stay_in_float32_whatever_is_computed_in():
    step, state = stepper()
    half = lambda params, batch: toy.loss_fn(jax.tree.map(jnp.bfloat16, params), batch)
    config = toy.settings()
    optimizer = make_optimizer(config, lambda path, leaf: ((0,), (1,)))
    step = make_step(half, toy.draw, optimizer, config, seed=0)
    with jax.numpy_dtype_promotion("standard"):
        after, _ = jax.eval_shape(step, state, batch())
    assert {x.dtype for x in jax.tree.leaves((after.params, after.ema))} == {jnp.dtype("float32")}
