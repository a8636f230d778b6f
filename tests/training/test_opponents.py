"""Networks that are trained against the run's own one, in the same step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sisma_jax.training.state import Opponent, init_state, make_step
from tests.training import toy

RATE = 0.1


def loss_fn(params, batch, opponents):
    """Linear in the weights, so that a step can be followed by hand."""
    judge = opponents["judge"]
    score = batch["x"] @ params["w"] * judge.params["a"] * judge.variables["scale"]
    return jnp.mean(score), {"mean_score": jnp.mean(score)}


def opponent_loss(params, batch, variables, against):
    score = batch["x"] @ against["w"] * params["a"] * variables["scale"]
    return -jnp.mean(score), {"scale_seen": variables["scale"]}


def opponent(**changes):
    defaults = dict(
        init_params=lambda: {"a": jnp.ones(())},
        init_variables=lambda params: {"scale": jnp.ones(())},
        advance=lambda params, variables: {"scale": 2.0 * variables["scale"]},
        optimizer=optax.sgd(RATE),
        loss_fn=opponent_loss,
    )
    return Opponent(**defaults | changes)


def step_and_state(parts=1, **changes):
    opponents = {"judge": opponent(**changes)}
    config = toy.settings(accumulate=parts)
    step = make_step(
        loss_fn, lambda key, batch: {}, optax.sgd(RATE), config, seed=0, opponents=opponents
    )
    weights = {"w": jnp.ones((toy.FEATURES, 2))}
    return jax.jit(step), init_state(weights, optax.sgd(RATE), opponents)


def batch():
    return next(toy.Batches(0, 8))


def test_an_opponent_sees_the_new_weights_and_its_variables_advance_for_each_loss():
    step, state = step_and_state()
    x = batch()["x"].mean(0)
    new, metrics = step(state, batch())
    w = 1 - RATE * np.outer(x, np.full(2, 0.5)) * 2.0  # the first loss has scale 2
    a = 1 + RATE * np.mean(x @ w) * 4.0  # the second loss has scale 4, at the new weights
    np.testing.assert_allclose(new.params["w"], w, rtol=1e-5)
    np.testing.assert_allclose(new.opponents["judge"].params["a"], a, rtol=1e-5)
    assert new.opponents["judge"].variables["scale"] == 4.0
    assert metrics["scale_seen"] == 4.0
    np.testing.assert_allclose(metrics["judge_loss"], -np.mean(x @ w * 4.0), rtol=1e-4)
    assert metrics["judge_gradient_norm"] > 0


def test_gradients_in_parts_and_the_variables_are_those_of_the_whole():
    (whole, state), (parts, _) = step_and_state(), step_and_state(parts=4)
    for one, other in zip(
        jax.tree.leaves(whole(state, batch())), jax.tree.leaves(parts(state, batch())), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_step_is_skipped_for_all_if_the_opponents_loss_is_not_finite():
    nan = lambda *arguments: (opponent_loss(*arguments)[0] * jnp.nan, {})
    step, state = step_and_state(loss_fn=nan)
    new, metrics = step(state, batch())
    assert metrics["skipped"] == 1 and new.step == 1
    for name in ("params", "ema", "opponents"):
        for one, other in zip(
            jax.tree.leaves(getattr(new, name)), jax.tree.leaves(getattr(state, name)), strict=True
        ):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("stop", [2, 3])
def test_a_run_with_an_opponent_continues_to_the_bit(tmp_path, stop):
    config = toy.settings()
    changes = {
        "trainable": toy.trainable(
            config,
            loss_fn=lambda params, batch, opponents: (
                toy.loss_fn(params, batch)[0] * opponents["judge"].params["a"], {}
            ),
            opponents={"judge": opponent(optimizer=optax.adam(RATE))},
        )
    }  # fmt: skip
    whole = toy.run(tmp_path / "whole", task_changes=changes)
    toy.run(tmp_path / "stopped", task_changes=changes, steps=stop)
    continued = toy.run(tmp_path / "stopped", task_changes=changes)
    assert whole.opponents["judge"].variables["scale"] == 2.0 ** (2 * config.steps)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(continued), strict=True):
        np.testing.assert_array_equal(one, other)
