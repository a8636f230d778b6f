"""One training step in bfloat16 beside the same in float32."""

import jax
import jax.numpy as jnp
import numpy as np

from sisma_jax.models import SISMA, SISMAConfig
from sisma_jax.models.sisma.model import init_params

BOUNDS = {
    "blocks/cross_mamba": 0.014,
    "blocks/ff_in": 0.012,
    "blocks/ff_out": 0.011,
    "blocks/modulation": 0.0105,
    "blocks/self_mamba": 0.012,
    "final": 0.006,
    "mask_encoder": 0.018,
    "patch_in": 0.0065,
    "positions": 0.011,
    "time": 0.012,
}
"""Largest error of a group's gradient, over its norm: about 1.3 times the measured."""


def loss_and_gradients(dtype):
    config = SISMAConfig.tiny(
        latent_size=8, factor=4, patch=1, width=32, depth=2, mask_channels=8, dtype=dtype
    )
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))

    def parameter(path, shape):
        """Away from the zeros of initialisation."""
        stacked = path[0].key == "blocks"
        fan_in = np.prod(shape.shape[stacked:-1]) if path[-1].key == "kernel" else 100
        start = {"scale": 1, "D": 1, "delta_bias": -3}.get(path[-1].key, 0)
        return np.float32(start + random.normal(size=shape.shape) / np.sqrt(max(fan_in, 1)))

    params = jax.tree_util.tree_map_with_path(parameter, shapes)
    z, target = np.float32(random.normal(size=(2, 4, 8, 8, 4)))
    t = np.float32(random.uniform(size=4))
    labels = random.integers(0, 19, (4, 8, 8), np.uint8).repeat(4, 1).repeat(4, 2)

    def loss(params, *inputs):
        velocity = SISMA(config).apply({"params": params}, *inputs)
        return jnp.mean((velocity - target) ** 2)

    return jax.jit(jax.value_and_grad(loss))(params, z, t, labels)


def test_a_step_in_bfloat16_is_near_that_in_float32():
    (loss, gradients), (low_loss, low_gradients) = map(loss_and_gradients, ("float32", "bfloat16"))
    assert 0 < abs(low_loss / loss - 1) < 2e-3
    error, norm = dict.fromkeys(BOUNDS, 0.0), dict.fromkeys(BOUNDS, 0.0)
    for (path, full), low in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(low_gradients), strict=True
    ):
        assert low.dtype == jnp.float32
        group = "/".join(part.key for part in path[: 2 if path[0].key == "blocks" else 1])
        error[group] += float(jnp.sum((low - full) ** 2))
        norm[group] += float(jnp.sum(full**2))
    errors = {group: np.sqrt(error[group] / norm[group]) for group in BOUNDS}
    assert all(0 < errors[group] < most for group, most in BOUNDS.items()), errors
