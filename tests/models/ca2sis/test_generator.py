"""CA2-SIS's generator: the authors' values, published sizes and weights, masks and styles, cost."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sisma_jax.common.errors import InputError
from sisma_jax.models.ca2sis import CA2SIS, CA2SISConfig, from_torch, load_published
from sisma_jax.models.ca2sis.model import (
    draw_macs,
    init_params,
    mask_code_macs,
    matrix_axes,
    parameter_shapes,
    style_macs,
)
from sisma_jax.models.layers import style_encoder
from sisma_jax.models.weights import save_tensors
from sisma_jax.training.adversarial import attention_loss
from tests.golden import ca2sis_recipe as recipe
from tests.golden.files import golden_arrays
from tests.models.cost.test_cost import contractions

TINY = CA2SISConfig.tiny()
PUBLISHED = CA2SISConfig()
MINIMAL = CA2SISConfig.tiny(
    num_classes=4,
    mask_size=4,
    grid=2,
    stem_width=4,
    widths=(4, 4, 4),
    attention_sizes=(2,),
    norm_groups=2,
    style_channels=1,
    style_levels=1,
    style_features=3,
)
"""Images of 8 pixels, for what does not depend on sizes."""
FIRST_STAGE = 2


def new_part(config, part):
    """New parameters of this part alone: to compile the others' random numbers takes long."""
    return {part: jax.jit(lambda key: init_params(config, key)[part])(jax.random.key(0))}


@cache
def golden():
    return golden_arrays("ca2sis_tiny")


@cache
def tensors():
    return recipe.tensors(golden(), "netG.")


def run(config, dtype, *, capture=False):
    """What the golden values are compared with, from weights and images of this type."""
    params = from_torch({name: x.astype(dtype) for name, x in tensors().items()}, config)
    images, labels = jnp.asarray(recipe.images(), dtype), jnp.asarray(golden()["tiny/label"])

    def everything(model, images, labels):
        styles, codes = model.styles(images, labels), model.mask_codes(labels)
        return styles, codes, *model.draw_with_attention(codes, styles)

    @jax.jit
    def program(params, images, labels):
        options = dict(method=everything, capture_intermediates=capture)
        return CA2SIS(config).apply({"params": params}, images, labels, **options)

    return program(params, images, labels)


def check(ours, name, tolerance, dtype):
    expected = golden()[f"tiny/{name}"]
    assert ours.dtype == dtype
    error = np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max()
    assert error < tolerance, f"{name}: {error}"


def nchw(x):
    return x.transpose(0, 3, 1, 2)


def check_all(outputs, dtype, *, encoders, decoder):
    styles, codes, images, attention = outputs
    check(styles, "style", encoders, dtype)
    check(codes, "z", encoders, dtype)
    check(nchw(images), "out", decoder, dtype)
    for stage, logits in enumerate(attention, start=FIRST_STAGE):
        name = f"att/logit_mean{stage}"
        check(nchw(logits[: len(golden()[f"tiny/{name}"])]), name, decoder, dtype)


def test_the_recipe_rebuilds_the_authors_tensors_and_inputs():
    names, sums = golden()["tiny/param_names"], golden()["tiny/param_sum_f64"]
    expected = {
        name.removeprefix("netG."): total
        for name, total in zip(names, sums, strict=True)
        if name.startswith("netG.")
    }
    totals = {name: x.astype(np.float64).sum() for name, x in tensors().items()}
    assert totals == pytest.approx(expected, rel=1e-9, abs=1e-9)
    images = nchw(recipe.images())
    np.testing.assert_array_equal(images.ravel()[:8], golden()["tiny/image_first8"])
    np.testing.assert_array_equal(nchw(recipe.cotangent()).ravel()[:8], golden()["tiny/w_first8"])


def test_in_float64_styles_codes_images_and_attention_are_the_authors():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        outputs = run(dataclasses.replace(TINY, remat="none"), np.float64)
        check_all(outputs, np.float64, encoders=1e-9, decoder=5e-7)


def test_in_float32_styles_codes_images_and_attention_are_the_authors():
    check_all(run(TINY, np.float32), np.float32, encoders=5e-6, decoder=5e-5)


@pytest.mark.slow
def test_every_stage_is_the_authors():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        config = dataclasses.replace(TINY, output_tanh=False)
        (*_, images, _), state = run(config, np.float64, capture=True)
        layers = {"reshape_conv": state["intermediates"]["decoder"]["conv_in"]["__call__"][0]}
        for i in range(len(TINY.widths)):
            block = state["intermediates"]["decoder"][f"block_{i}"]["__call__"][0]
            transformer = state["intermediates"]["decoder"][f"transformer_{i}"]["__call__"][0][0]
            layers |= {f"res{FIRST_STAGE + i}": block, f"cross{FIRST_STAGE + i}": transformer}
        layers["out_conv"] = images
        for name, x in layers.items():
            step = max(1, x.shape[1] // 8)
            seen = nchw(x[:1, step // 2 :: step, step // 2 :: step])
            check(seen, f"stage/{name}", 5e-7, np.float64)


def weighted_image(images, logits, labels):
    return jnp.sum(images * recipe.cotangent())


def loss_of_attention(images, logits, labels):
    return attention_loss(logits, labels)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "value_of"), [("grad_outw", weighted_image), ("grad_att", loss_of_attention)]
)
def test_gradients_through_recomputed_transformers_are_the_authors(kind, value_of):
    places = {
        "encs.encs.0.bias": ("mask_embedder", "linear", "bias"),
        "cross2.transformer_blocks.0.attn2.to_k.weight": (
            "decoder", "transformer_0", "cross_attention", "key", "kernel"
        ),
        "cross6.transformer_blocks.0.attn2.to_q.weight": (
            "decoder", "transformer_4", "cross_attention", "query", "kernel"
        ),
        "style_encoder.out.out_0.0.bias": ("style_encoder", "out_3", "bias"),
    }  # fmt: skip
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        params = from_torch({name: x.astype(np.float64) for name, x in tensors().items()}, TINY)
        images = jnp.asarray(recipe.images(), np.float64)
        labels = jnp.asarray(golden()["tiny/label"])

        def value(params):
            apply = partial(CA2SIS(TINY).apply, {"params": params})
            codes = apply(labels, method="mask_codes")
            styles = apply(images, labels, method="styles")
            return value_of(*apply(codes, styles, method="draw_with_attention"), labels)

        found, gradients = jax.jit(jax.value_and_grad(value))(params)
        if kind == "grad_att":
            np.testing.assert_allclose(found, golden()["tiny/att_loss"], rtol=1e-9)
        for name, path in places.items():
            leaf = gradients
            for part in path:
                leaf = leaf[part]
            leaf = leaf.T if path[-1] == "kernel" else leaf.reshape(-1)
            check(leaf, f"{kind}/{name}", 5e-7, np.float64)


@pytest.mark.slow
def test_bfloat16_is_close():
    *_, images, _ = run(dataclasses.replace(TINY, dtype="bfloat16"), np.float32)
    expected = golden()["tiny/out"]
    assert images.dtype == jnp.float32
    error = np.sqrt(np.mean(np.square(nchw(images) - expected)) / np.mean(np.square(expected)))
    assert 1e-4 < error < 0.05


def test_random_styles_are_each_class_s_own_map_of_noise_and_zero_for_absent_classes():
    noise, labels = jnp.asarray(golden()["tiny/noise_z"]), jnp.asarray(golden()["tiny/label"])
    params = from_torch(tensors(), TINY)
    apply = jax.jit(lambda *args: CA2SIS(TINY).apply(*args, method="random_styles"))
    styles = apply({"params": params}, noise, labels)

    def layer(x, name):
        return x @ tensors()[f"{name}.weight"].T + tensors()[f"{name}.bias"]

    h = np.asarray(noise)
    for i in (0, 2, 4, 6):
        h = np.maximum(layer(h, f"noise_encoder.shared.{i}"), 0)
    for k in range(TINY.num_classes):
        own = h
        for i in (0, 2, 4):
            own = np.maximum(layer(own, f"noise_encoder.unshared.{k}.{i}"), 0)
        own = layer(own, f"noise_encoder.unshared.{k}.6")
        present = np.array([(one == k).any() for one in labels])
        np.testing.assert_allclose(styles[present, k], own[present], rtol=1e-4, atol=1e-5)
        assert not np.any(styles[~present, k])
    assert not np.any(styles[0, 3]) and not np.any(styles[3, 4])


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (
            PUBLISHED,
            {
                "style_encoder": 18_069_304,
                "mask_embedder": 4_194_560,
                "decoder": 26_721_155,
                "mapping": 28_244_224,
            },
        ),
        (
            CA2SISConfig.ade20k(),
            {
                "style_encoder": 143_603_416,
                "mask_embedder": 4_194_560,
                "decoder": 26_789_251,
                "mapping": 218_932_480,
            },
        ),
    ],
)
def test_published_sizes_have_the_published_numbers_of_parameters(config, parts):
    shapes = parameter_shapes(config)
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert {name: count(part) for name, part in shapes.items()} == parts
    assert count(shapes) == {19: 77_229_243, 151: 393_519_707}[config.num_classes]
    if config == PUBLISHED:
        stages = [
            [count(shapes["decoder"][f"{part}_{i}"]) for part in ("block", "transformer")]
            for i in range(5)
        ]
        assert stages == [
            [1_902_848, 6_301_440],
            [476_288, 6_169_984],
            [119_360, 6_104_256],
            [29_984, 5_021_280],
            [18_624, 567_264],
        ]


@pytest.mark.parametrize("config", [PUBLISHED, pytest.param(MINIMAL, marks=pytest.mark.slow)])
def test_the_hand_counts_of_macs_are_the_programs(config, monkeypatch):
    # JAX resizes by matrices; PyTorch, and a hand count, look at four pixels.
    monkeypatch.setattr(style_encoder, "doubled", lambda x: x.repeat(2, axis=2).repeat(2, axis=3))
    struct = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct((1, *shape), dtype)
    size = (config.image_size, config.image_size)
    labels = struct(*size, dtype=jnp.uint8)
    codes = struct(config.drawn_classes, config.code_width)
    styles = struct(config.num_classes, config.style_width)

    def traced(method, *arguments):
        apply = lambda params, *args: CA2SIS(config).apply({"params": params}, *args, method=method)
        return contractions(jax.make_jaxpr(apply)(parameter_shapes(config), *arguments).jaxpr)

    assert traced("draw", codes, styles) == draw_macs(config)
    assert traced("styles", struct(*size, 3), labels) == style_macs(config)
    assert traced("mask_codes", labels) == mask_code_macs(config)
    if config == PUBLISHED:
        assert round(draw_macs(config) / 1e9, 1) == 124.4
        assert round(style_macs(config) / 1e9, 1) == 3.9


def test_soft_and_overlapping_masks_have_linear_codes():
    model, params = CA2SIS(MINIMAL), new_part(MINIMAL, "mask_embedder")
    codes = jax.jit(lambda masks: model.apply({"params": params}, masks, method="mask_codes"))
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, (2, 8, 8), np.uint8)
    labels[1, :4] = 255
    masks = (labels[..., None] == np.arange(1, 4)).astype(np.float32)
    np.testing.assert_allclose(codes(labels), codes(masks), atol=1e-6)
    part = np.array([0, 1, 0], bool)[:, None]  # the shape of class 2 from the other image
    other = masks[::-1]
    exchanged = np.where(part[:, 0], other, masks)
    assert (exchanged.sum(-1) > 1).any()
    np.testing.assert_allclose(
        codes(exchanged), np.where(part, codes(masks)[::-1], codes(masks)), atol=1e-6
    )
    halfway = (masks + other) / 2
    np.testing.assert_allclose(codes(halfway), (codes(masks) + codes(other)) / 2, atol=1e-6)


def test_a_class_without_pixels_has_the_token_of_no_style():
    model, random = CA2SIS(MINIMAL), np.random.default_rng(0)
    params = new_part(MINIMAL, "style_encoder")
    images = jnp.asarray(random.uniform(-1, 1, (1, 8, 8, 3)), jnp.float32)
    labels = jnp.asarray(random.integers(0, 3, (1, 8, 8), np.uint8))

    @jax.jit
    def tokens(params):
        apply = lambda *args, method: model.apply({"params": params}, *args, method=method)
        return apply(images, labels, method="styles"), apply(method="no_style")

    styles, nothing = tokens(params)
    np.testing.assert_array_equal(styles[0, 3], nothing[0, 3])
    assert (np.abs(styles - nothing).max(-1)[0, :3] > 1e-4).all()


def test_new_parameters_are_drawn_as_published():
    inputs = {
        "decoder/block_1/conv1": 9 * 256,
        "decoder/transformer_1/cross_attention/out": 16,
        "style_encoder/down_2_conv": 9 * 8,
        "style_encoder/out_1": 8,
        "mapping/class_0": 8,
    }
    zeros = "decoder/block_1/conv2", "decoder/transformer_1/out"
    norms = "decoder/block_1/norm1", "style_encoder/norm_in"

    @jax.jit
    def new(key):
        everything = init_params(TINY, key)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), everything)
        assert shapes == parameter_shapes(TINY)
        leaves = flatten_dict(everything, sep="/")
        asked = (*inputs, *zeros, *norms)
        return {name: x for name, x in leaves.items() if name.rpartition("/")[0] in asked}

    params = new(jax.random.key(0))
    for layer in zeros:
        assert not np.any(params[f"{layer}/kernel"]) and not np.any(params[f"{layer}/bias"])
    for layer in norms:
        assert np.all(params[f"{layer}/scale"] == 1) and not np.any(params[f"{layer}/bias"])
    for layer, count in inputs.items():
        kernel, bias = (np.asarray(params[f"{layer}/{leaf}"]) for leaf in ("kernel", "bias"))
        limit = count**-0.5
        for leaf in (kernel, bias):
            assert 0.7 * limit < np.abs(leaf).max() <= limit
        assert abs(kernel.std() * np.sqrt(3) / limit - 1) < 0.1


def test_every_kernel_is_a_matrix_whose_classes_stay_apart():
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameter_shapes(TINY)):
        axes = matrix_axes(path, leaf)
        if path[-1].key != "kernel":
            assert axes is None
            continue
        inputs, outputs = axes
        classes = leaf.ndim % 2
        assert (*range(classes), *inputs, *outputs) == tuple(range(leaf.ndim))


def test_published_files_are_read_strictly(tmp_path):
    path = tmp_path / "latest_net_G.safetensors"
    save_tensors(path, tensors(), {})
    loaded = load_published(path, TINY)
    jax.tree.map(np.testing.assert_array_equal, loaded, from_torch(tensors(), TINY))
    pickled = path.with_suffix(".pth")
    with pytest.raises(InputError, match=r"there is no weight file .*latest_net_G\.pth: check the"):
        load_published(pickled, TINY)
    pickled.touch()
    with pytest.raises(InputError, match=r"latest_net_G\.pth is a pickled file"):
        load_published(pickled, TINY)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (
            dataclasses.replace(TINY, style_grouping="separate"),
            {},
            r"mixes classes, but model\.style_grouping is 'separate': set it to 'published'",
        ),
        (
            dataclasses.replace(TINY, num_classes=7),
            {},
            r"weights for 5 classes, but model\.num_classes is 7: set it to 5",
        ),
        (TINY, {"out_conv.bias": None}, r"missing: out_conv\.bias"),
        (TINY, {"out_conv.bias": np.full(3, np.nan)}, r"not finite in out_conv\.bias"),
        (TINY, {"out_conv.bias": np.zeros(3, int)}, r"has no floats in out_conv\.bias"),
        (TINY, {"res6.skip_connection.weight": np.ones((32, 32, 1, 1))}, "left over: res6"),
        (TINY, {"encs.encs.0.weight": np.ones((16, 4))}, r"\(16, 4\) instead of \(16, 1024\)"),
        (
            TINY,
            {"discriminator_0.model0.0.bias": np.ones(8)},
            "holds CA2-SIS's discriminator .* give its generator, latest_net_G",
        ),
    ],
)
def test_other_weights_are_refused(config, change, message):
    changed = {name: x for name, x in (tensors() | change).items() if x is not None}
    with pytest.raises(InputError, match=message):
        from_torch(changed, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 0}, r"model\.heads is 0: set a whole number"),
        ({"widths": (32, 0)}, r"model\.widths is \(32, 0\): give whole numbers"),
        ({"widths": ()}, r"model\.widths is empty"),
        ({"num_classes": 1}, r"model\.num_classes is 1: choose 2 to 255 classes"),
        ({"num_classes": 256}, r"model\.num_classes is 256: choose 2 to 255 classes"),
        ({"mask_size": 24}, r"model\.mask_size is 24: choose a divisor .* 64"),
        ({"norm_groups": 24}, r"model\.norm_groups 24 does not divide the width 512"),
        ({"attention_sizes": (4, 12)}, r"model\.attention_sizes has 12, .* among 4, 8, 16, 32, 64"),
        ({"style_levels": 6}, r"model\.style_levels is 6, which halves images of 64 pixels 7"),
        ({"style_grouping": "mixed"}, r"model\.style_grouping is 'mixed': choose one of separate"),
        ({"remat": "dots"}, r"model\.remat is 'dots': choose one of none, block"),
        ({"dtype": "float16"}, r"model\.dtype is 'float16': choose 'float32'"),
    ],
)
def test_sizes_that_make_no_model_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        CA2SISConfig.tiny(**changes)


@pytest.mark.parametrize(
    ("method", "shapes", "message"),
    [
        ("styles", [(1, 4, 4, 3), (1, 4, 4)], r"images of shape .* have .* \(batch, 8, 8, 3\)"),
        ("mask_codes", [(1, 4, 4)], r"label maps of shape \(1, 4, 4\) do not .*\(batch, 8, 8\)"),
        ("mask_codes", [(1, 8, 8, 4)], r"masks of shape \(1, 8, 8, 4\) .*\(batch, 8, 8, 3\)"),
        ("draw", [(1, 3, 9), (1, 4, 3)], r"mask codes of shape \(1, 3, 9\) .*\(batch, 3, 4\)"),
        ("draw", [(1, 3, 4), (1, 5, 3)], r"styles of shape \(1, 5, 3\) .*\(batch, 4, 3\)"),
        ("random_styles", [(1, 2), (1, 8, 8)], r"noise of shape \(1, 2\) .*\(batch, 3\)"),
    ],
)
def test_inputs_of_another_size_are_named(method, shapes, message):
    maps = [len(shape) == 3 and shape[1] == shape[2] for shape in shapes]
    kinds = [jnp.uint8 if is_map else jnp.float32 for is_map in maps]
    inputs = list(map(jnp.zeros, shapes, kinds))
    with pytest.raises(ValueError, match=message):
        CA2SIS(MINIMAL).apply({"params": {}}, *inputs, method=method)


def test_inputs_of_another_type_and_batch_are_named():
    """The tests' type checker is stricter, and comes first in the methods."""
    faces, masks = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 8, 8), jnp.uint8)
    for images, labels, message in (
        (faces.astype(jnp.uint8), masks, "images are uint8: give floats"),
        (faces, masks.astype(bool), "label maps are bool: give integers"),
        (faces, masks.astype(jnp.float32), "label maps are float32: give integers"),
        (faces[0], masks, r"images of shape \(8, 8, 3\) do not .* \(batch, 8, 8, 3\)"),
        (faces.repeat(2, 0), masks, "there are 2 images and 1 labels: give as many"),
    ):
        with pytest.raises(ValueError, match=message):
            CA2SIS(MINIMAL)._check(images=images, labels=labels)
