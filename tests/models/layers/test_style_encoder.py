"""The style encoder: its layers against the library's, what a class's token may depend on."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.models.layers.style_encoder import (
    GROUPINGS,
    ClassConv3x3,
    ClassNorm,
    StyleEncoder,
    class_colours,
    class_means,
    class_shares,
    doubled,
    joined,
    without,
)

K, SIZE = 3, 16


@pytest.fixture(scope="module")
def encoder():
    """(images, labels) -> tokens, with random weights, biases too."""
    module = StyleEncoder(num_classes=K, channels=2, levels=2, features=4, dtype="float32")
    images, labels = faces(0)
    params = module.init(jax.random.key(0), images, labels)
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + 0.1 * random.normal(size=x.shape).astype(x.dtype), params)
    return jax.jit(lambda images, labels: module.apply(params, images, labels))


def faces(seed, count=2):
    random = np.random.default_rng(seed)
    labels = random.integers(0, K, (count, SIZE // 4, SIZE // 4), np.uint8)
    labels = labels.repeat(4, 1).repeat(4, 2)
    images = random.uniform(-1, 1, (count, SIZE, SIZE, 3)).astype(np.float32)
    return jnp.asarray(images), jnp.asarray(labels)


def test_the_published_size_has_the_published_number_of_parameters():
    module = StyleEncoder(num_classes=19, channels=4, levels=5, features=256, dtype="float32")
    images, labels = jnp.zeros((1, 256, 256, 3)), jnp.zeros((1, 256, 256), jnp.uint8)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images, labels)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 18_069_304
    tokens = jax.eval_shape(module.apply, shapes, images, labels)
    assert tokens.shape == (1, 19, 1280) and tokens.dtype == jnp.float32


def test_groupings_join_skips_class_by_class_or_in_the_published_order():
    x = jnp.arange(2.0 * K).reshape(K, 1, 1, 1, 2)  # class k has 2k and 2k + 1
    separate, published = (joined(x, 10 + x, grouping) for grouping in GROUPINGS)
    np.testing.assert_array_equal(
        separate[:, 0, 0, 0], [[0, 1, 10, 11], [2, 3, 12, 13], [4, 5, 14, 15]]
    )
    np.testing.assert_array_equal(
        published[:, 0, 0, 0], [[0, 1, 2, 3], [4, 5, 10, 11], [12, 13, 14, 15]]
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_a_class_convolution_is_a_grouped_convolution(stride):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, K, 2))
    module = ClassConv3x3(channels=5, stride=stride, dtype="float32")
    ours, variables = module.init_with_output(jax.random.key(0), x.transpose(3, 0, 1, 2, 4))
    kernel = variables["params"]["kernel"].transpose(1, 2, 3, 0, 4).reshape(3, 3, 2, K * 5)
    theirs = jax.lax.conv_general_dilated(
        x.reshape(2, 8, 8, K * 2), kernel, (stride, stride), ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=K,
    )  # fmt: skip
    theirs = theirs.reshape(2, 8 // stride, 8 // stride, K, 5).transpose(3, 0, 1, 2, 4)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_class_norm_is_a_group_norm_over_classes():
    x = 2 + 3 * jax.random.normal(jax.random.key(0), (2, 4, 4, K, 5))
    ours, _ = ClassNorm().init_with_output(jax.random.key(0), x.transpose(3, 0, 1, 2, 4))
    theirs, _ = nn.GroupNorm(K, epsilon=1e-5).init_with_output(
        jax.random.key(0), x.reshape(2, 4, 4, K * 5)
    )
    theirs = nn.relu(theirs).reshape(x.shape).transpose(3, 0, 1, 2, 4)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_doubling_is_linear_with_the_edge_repeated():
    row = jnp.array([0.0, 4.0]).reshape(1, 1, 1, 2, 1)
    np.testing.assert_allclose(doubled(row)[0, 0, 0, :, 0], [0, 1, 3, 4])


def test_means_are_over_a_classes_own_pixels():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    x = jnp.stack([x, 10 * x, 100 * x])
    labels = np.array([[0, 0, 1, 9], [9, 9, 9, 9], [0, 9, 255, 9], [9, 9, 9, 9]], np.uint8)
    # Of every 2 x 2 pixels the first counts: 0, 1 above, 0, 255 below.
    means = class_means(x, jnp.asarray(labels)[None])
    np.testing.assert_allclose(means[:, 0, 0], [1.0, 10.0, 0.0], rtol=1e-4)


def test_the_token_of_an_absent_class_says_nothing_of_the_image(encoder):
    (images, labels), (others, _) = faces(0), faces(1)
    gone = jnp.where(labels == 1, jnp.uint8(255), labels)
    here, there = encoder(images, gone), encoder(others, gone)
    np.testing.assert_array_equal(here[:, 1], there[:, 1])
    assert (np.abs(here[:, 0] - there[:, 0]).max(-1) > 1e-3).all()
    np.testing.assert_array_equal(here[:, ::2], encoder(images, labels)[:, ::2])
    nothing = jnp.full_like(labels, 255)
    np.testing.assert_array_equal(encoder(images, nothing), encoder(others, nothing))


def test_classes_are_dropped_row_by_row():
    labels = np.array([[[0, 1], [2, 255]], [[0, 1], [2, 255]]], np.uint8)
    dropped = np.array([[True, False, False], [False, True, True]])
    out = without(jnp.asarray(labels), jnp.asarray(dropped))
    np.testing.assert_array_equal(out, [[[255, 1], [2, 255]], [[0, 255], [255, 255]]])
    assert out.dtype == jnp.uint8


def test_mean_colours_are_added_where_they_are_asked_for():
    images, labels = faces(0)
    labels = jnp.where(labels == 2, jnp.uint8(255), labels)
    colours = class_colours(images, labels, K)
    own = np.asarray(images[1])[np.asarray(labels[1]) == 1]
    np.testing.assert_allclose(colours[1, 1], [*own.mean(0), 1], atol=1e-5)
    assert (colours[:, 2] == 0).all()
    module = StyleEncoder(K, 2, 2, 4, "float32", colours=True)
    params = jax.jit(module.init)(jax.random.key(0), images, labels)
    assert params["params"]["colour"]["kernel"].shape == (4, 4)
    brighter = jax.jit(module.apply)(params, images + 0.5, labels)
    change = np.abs(brighter - jax.jit(module.apply)(params, images, labels))
    assert (change[:, :2].max(-1) > 1e-2).all() and change[:, 2].max() == 0


def test_shares_are_of_cells():
    labels = np.zeros((1, 4, 4), np.uint8)
    labels[0, :2, 2:] = [[1, 1], [1, 255]]
    labels[0, 2:, :2] = 255
    shares = class_shares(jnp.asarray(labels), (2, 2), K)
    np.testing.assert_allclose(shares[0], [[1, 0, 0], [0, 0.75, 0], [0, 0, 0], [1, 0, 0]])
