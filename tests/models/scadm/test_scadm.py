"""SCA-DM against PyTorch's, who sees whose style, sizes, cost."""

import dataclasses
import json
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.models.layers import style_encoder
from sisma_jax.models.layers.spatial_transformer import Attention, SpatialTransformer
from sisma_jax.models.scadm.config import SCADMConfig
from sisma_jax.models.scadm.model import (
    SCADM,
    encode_mask,
    init_params,
    matrix_axes,
    scadm_macs,
    style_macs,
)
from sisma_jax.models.scadm.published import from_torch, load_published
from sisma_jax.models.weights import save_tensors
from tests.golden import scadm_recipe as recipe
from tests.models.cost.test_cost import contractions

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "scadm.npz")
SMALL = SCADMConfig(**recipe.SIZES, dtype="float32")
PUBLISHED = dataclasses.replace(SMALL, style_grouping="published")
FREE = dataclasses.replace(SMALL, mask_attention=False)
PUBLISHED_PARAMETERS = {"unet": 486_895_363, "style_encoder": 18_069_304}


@cache
def shapes_of(config):
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def golden_tensors():
    """The recipe's weights by their names in a published checkpoint."""
    parts = {"unet": "model.diffusion_model", "style_encoder": "cond_stage_model"}
    tensors = {}
    for name, shape in json.loads(str(GOLDEN["shapes"])).items():
        part, _, rest = name.partition(".")
        tensors[f"{parts[part]}.{rest}"] = recipe.tensor(name, tuple(shape))
    return tensors


@cache
def golden_params():
    return from_torch(golden_tensors(), PUBLISHED)


@cache
def model(config):
    return jax.jit(SCADM(config).apply)


def predict(config, style, *, params=None, labels=None):
    """The noise in the recipe's latents, with its weights and masks unless others are given."""
    params = golden_params() if params is None else params
    labels = recipe.labels() if labels is None else labels
    t = jnp.asarray(recipe.STEPS)
    return model(config)({"params": params}, recipe.latents(), t, labels, style)


def test_a_published_checkpoint_gives_the_averaged_unet_and_nothing_else(tmp_path):
    tensors = golden_tensors()
    assert "model.diffusion_model.label_emb.weight" in tensors
    averages = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): 2 * tensor
        for name, tensor in tensors.items()
        if name.startswith("model.")
    }
    others = {
        "first_stage_model.quantize.embedding.weight": np.ones((2, 2), np.float32),
        "betas": np.ones(3, np.float32),
        "model_ema.decay": np.float32(0.9999).reshape(()),
    }
    path = tmp_path / "model.safetensors"
    save_tensors(path, tensors | averages | others, {})
    loaded = load_published(path, PUBLISHED)
    expected = golden_params() | {"unet": jax.tree.map(lambda x: 2 * x, golden_params()["unet"])}
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (SMALL, {}, r"style_grouping is 'separate': set it to 'published'"),
        (
            dataclasses.replace(PUBLISHED, num_classes=7),
            {},
            r"weights for 5 classes, but model\.num_classes is 7: set it to 5",
        ),
        (PUBLISHED, {"cond_stage_model.extra.weight": np.ones(1, np.float32)}, "left over: cond"),
        (PUBLISHED, {"model.diffusion_model.out.2.bias": None}, r"missing: .*out\.2\.bias"),
    ],
)
def test_other_weights_are_refused(config, change, message):
    tensors = {k: v for k, v in (golden_tensors() | change).items() if v is not None}
    with pytest.raises(InputError, match=message):
        from_torch(tensors, config)


def test_style_tokens_are_pytorch_s():
    encode = jax.jit(lambda *args: SCADM(SMALL).apply(*args, method="encode_style"))
    style = encode({"params": golden_params()}, recipe.images(), recipe.labels())
    assert style.dtype == jnp.float32 and style.shape == (2, SMALL.num_classes, SMALL.style_width)
    np.testing.assert_allclose(style, GOLDEN["style"], atol=1e-5 * np.abs(GOLDEN["style"]).max())


def test_the_published_grouping_changes_all_levels_but_the_coarsest():
    """Skips join after it. The values of finer levels are checked with CA2-SIS's generator."""
    encode = jax.jit(lambda *args: SCADM(PUBLISHED).apply(*args, method="encode_style"))
    style = encode({"params": golden_params()}, recipe.images(), recipe.labels())
    coarsest = SMALL.style_features
    change = np.abs(style - GOLDEN["style"])
    assert change[..., :coarsest].max() < 1e-5
    assert change[..., coarsest:].max() > 0.1


@pytest.mark.parametrize(("config", "name"), [(SMALL, "noise"), (FREE, "noise_without_mask")])
def test_noise_is_pytorch_s(config, name):
    noise = predict(config, GOLDEN["style"])
    assert noise.dtype == jnp.float32 and noise.shape == recipe.latents().shape
    np.testing.assert_allclose(noise, GOLDEN[name], atol=1e-5 * np.abs(GOLDEN[name]).max())


def test_a_mask_encoded_before_gives_the_same_noise():
    params, labels = golden_params(), jnp.asarray(recipe.labels())

    @jax.jit
    def noise(params, labels):
        mask = encode_mask(SMALL, params, labels)
        x_t, t, style = map(jnp.asarray, (recipe.latents(), recipe.STEPS, GOLDEN["style"]))
        return SCADM(SMALL).apply({"params": params}, x_t, t, mask, style, method="with_mask")

    expected = GOLDEN["noise"]
    np.testing.assert_allclose(noise(params, labels), expected, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(ValueError, match=r"label maps \(8, 8\) do not have the model's size"):
        encode_mask(SMALL, params, labels[:, ::2, ::2])


def test_bfloat16_is_close():
    low = predict(dataclasses.replace(SMALL, dtype="bfloat16"), GOLDEN["style"])
    assert low.dtype == jnp.float32
    error = np.abs(low - GOLDEN["noise"]).max() / np.abs(GOLDEN["noise"]).max()
    assert 1e-4 < error < 0.1


def test_in_bfloat16_all_learns_but_queries_and_keys_under_the_mask():
    """A pixel has one token to read, or all alike, and weighs them so whatever these say."""
    layer = SpatialTransformer(head_width=4, groups=2, dtype="bfloat16")
    x, tokens = (jax.random.normal(jax.random.key(i), (1, 4, 4, 8)) for i in (0, 1))
    x, tokens = x.astype(jnp.bfloat16), tokens[:, 0, :, :3]
    labels = np.array([0, 1, 3, 255]).repeat(4).reshape(1, 4, 4)
    semantics = jax.nn.one_hot(labels, 4, dtype="bfloat16")
    shapes = jax.eval_shape(layer.init, jax.random.key(2), x, tokens, semantics)["params"]
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(recipe.tensor(jax.tree_util.keystr(path), leaf.shape)),
        shapes,
    )
    loss = lambda p: jnp.sum(jnp.square(layer.apply({"params": p}, x, tokens, semantics)))
    idle = {
        "/".join(part.key for part in path[:-1])
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params))
        if not np.any(leaf)
    }
    assert idle == {"norm2", "cross_attention/query", "cross_attention/key"}


@pytest.mark.parametrize(("config", "read"), [(SMALL, False), (FREE, True)])
def test_the_style_of_a_class_that_the_mask_lacks_is_read_without_the_mask_only(config, read):
    style = np.array(GOLDEN["style"])
    # Another array: JAX may still read the first one while it computes.
    other = style + (np.arange(style.shape[1]) == 4).astype(style.dtype)[None, :, None]
    before = predict(config, style, labels=np.minimum(recipe.labels(), 3))
    after = predict(config, other, labels=np.minimum(recipe.labels(), 3))
    assert (after != before).any() == read


@pytest.fixture(scope="module")
def attention():
    """Weights of every size, and the output of six tokens that attend to four."""
    layer = Attention(head_width=4, dtype="float32")
    x, others = (jax.random.normal(jax.random.key(i), (1, 6 - 2 * i, 8)) for i in (0, 1))
    params = layer.init(jax.random.key(2), x, others)
    run = lambda others, seen: layer.apply(params, x, others, seen)
    return params["params"], others, run


@pytest.mark.parametrize("masked", [True, False])
def test_no_gradient_reaches_the_tokens_of_other_classes(attention, masked):
    _, others, run = attention
    classes = np.array([0, 1, 2, 3, 0, 2])
    seen = jnp.asarray(classes[:, None] == np.arange(4))[None] if masked else None
    gradients = jax.jit(jax.jacrev(run), static_argnums=() if masked else 1)(others, seen)
    reached = np.abs(np.asarray(gradients)[0, :, :, 0]).max(axis=(1, 3)) > 0
    np.testing.assert_array_equal(reached, seen[0] if masked else np.ones((6, 4), bool))


def test_a_pixel_without_a_class_reads_the_mean_of_all_and_one_with_reads_its_own(attention):
    params, others, run = attention
    classes = np.array([0, 1, 2, 3, 255, 255])
    seen = jnp.asarray(classes[:, None] == np.arange(4))[None]
    values = np.asarray(others[0] @ params["value"]["kernel"])
    read = np.concatenate([values, np.tile(values.mean(axis=0), (2, 1))])
    expected = read @ np.asarray(params["out"]["kernel"])
    np.testing.assert_allclose(run(others, seen)[0], expected, atol=1e-5)


def starts_at_zero(path):
    """The last layer of a residual block, of a transformer, of the U-Net."""
    names = [part.key for part in path[:-1]]
    transformer = len(names) == 3 and names[1].endswith("attention") and names[2] == "out"
    return transformer or names[-1] in ("conv2", "conv_out")


def test_a_new_model_predicts_no_noise_and_its_published_layers_are_zero():
    @jax.jit  # of these alone: to compile the others' random numbers takes long
    def new():
        leaves = jax.tree_util.tree_leaves_with_path(init_params(SMALL, jax.random.key(0)))
        return [leaf for path, leaf in leaves if starts_at_zero(path)]

    assert not any(leaf.any() for leaf in new())
    zeroed = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if starts_at_zero(path) else leaf, golden_params()
    )
    noise = predict(SMALL, GOLDEN["style"], params=zeroed)
    np.testing.assert_array_equal(noise, np.zeros_like(noise))


def test_the_published_size_has_the_published_number_of_parameters():
    """PyTorch counts one embedding more, which the published code never reads."""
    shapes = shapes_of(SCADMConfig())
    count = {
        name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in shapes.items()
    }
    assert count == PUBLISHED_PARAMETERS
    unread = GOLDEN["published/unread_embedding"]
    assert count["unet"] == GOLDEN["published/unet"] - unread == 486_912_387 - 19 * 896
    assert count["style_encoder"] == GOLDEN["published/style_encoder"]
    attentions = {name for name in shapes["unet"] if name.endswith("attention")}
    assert attentions == {"middle_attention"} | {
        f"{way}_{level}_{i}_attention"
        for way, count in (("down", 2), ("up", 3))
        for level in (1, 2, 3)
        for i in range(count)
    }
    steered = [name for name in shapes["unet"] if "shared" in shapes["unet"][name].get("norm1", {})]
    assert len(steered) == 2 + 4 * 3


def test_every_kernel_is_a_matrix_whose_classes_stay_apart():
    for path, leaf in jax.tree_util.tree_leaves_with_path(golden_params()):
        axes = matrix_axes(path, leaf)
        if path[-1].key != "kernel":
            assert axes is None
            continue
        classes = path[0].key == "style_encoder" and path[1].key != "conv_in"
        inputs, outputs = axes
        assert (*range(classes), *inputs, *outputs) == tuple(range(leaf.ndim))
        assert not classes or leaf.shape[0] == SMALL.num_classes


def argument_shapes(config):
    struct = lambda shape, dtype=jnp.float32: jax.ShapeDtypeStruct((1, *shape), dtype)
    size, latent = (config.image_size,) * 2, (config.latent_size,) * 2
    labels = struct(size, jnp.uint8)
    style = struct((config.num_classes, config.style_width))
    return {
        "__call__": (struct((*latent, config.latent_channels)), struct(()), labels, style),
        "encode_style": (struct((*size, 3)), labels),
    }


def traced_macs(config, method):
    apply = lambda params, *args: SCADM(config).apply({"params": params}, *args, method=method)
    program = jax.make_jaxpr(apply)(shapes_of(config), *argument_shapes(config)[method])
    return contractions(program.jaxpr)


ODD = SCADMConfig.tiny(
    latent_size=12,
    latent_channels=4,
    factor=4,
    num_classes=5,
    multipliers=(2, 1, 3),
    blocks=2,
    attention_sizes=(6, 3),
    style_levels=3,
    style_features=6,
)


@pytest.mark.parametrize("config", [SCADMConfig(), pytest.param(ODD, marks=pytest.mark.slow)])
def test_the_hand_counts_of_macs_are_the_programs(config, monkeypatch):
    # JAX resizes by matrices; PyTorch, and a hand count, look at four pixels.
    monkeypatch.setattr(style_encoder, "doubled", lambda x: x.repeat(2, axis=2).repeat(2, axis=3))
    assert traced_macs(config, "__call__") == scadm_macs(config)
    assert traced_macs(config, "encode_style") == style_macs(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": 0}, r"model\.blocks is 0: set a whole number"),
        ({"multipliers": (1, 0)}, r"model\.multipliers is \(1, 0\): give whole numbers"),
        ({"multipliers": ()}, r"model\.multipliers is empty"),
        ({"latent_size": 7}, r"model\.latent_size is 7: choose a multiple of 2, because 2"),
        ({"attention_sizes": (4, 16)}, r"model\.attention_sizes has 16, .* choose among 8, 4"),
        ({"norm_groups": 5}, r"model\.norm_groups 5 does not divide model\.channels 16"),
        ({"head_width": 12}, r"model\.head_width 12 does not divide model\.channels 16"),
        ({"channels": 15, "norm_groups": 5, "head_width": 5}, r"model\.channels is 15: .* even"),
        ({"style_levels": 4}, r"model\.style_levels is 4, which halves images of 16 pixels 5"),
        ({"dtype": "float16"}, r"model\.dtype is 'float16': choose"),
    ],
)
def test_sizes_that_make_no_model_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        SCADMConfig.tiny(**changes)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("channels", 16.0, r"model\.channels is 16\.0: set a whole number"),
        ("mask_attention", "yes", r"model\.mask_attention is 'yes': choose True or False"),
    ],
)
def test_sizes_of_another_type_are_named(name, value, message):
    """Put in behind the back of the type checker that watches tests."""
    config = SCADMConfig.tiny()
    object.__setattr__(config, name, value)
    with pytest.raises(InputError, match=message):
        config.__post_init__()


@pytest.mark.parametrize(
    ("place", "shape", "message"),
    [
        (0, (2, 4, 4, 3), r"latents \(4, 4, 3\) do not have the model's size \(8, 8, 3\)"),
        (2, (2, 8, 8), r"label maps \(8, 8\) do not have the model's size \(16, 16\)"),
        (3, (2, 5, 9), r"styles \(5, 9\) do not have the model's size \(5, 8\)"),
    ],
)
def test_inputs_of_another_size_are_named(place, shape, message):
    inputs = [recipe.latents(), np.ones(2, np.float32), recipe.labels(), GOLDEN["style"]]
    inputs[place] = np.zeros(shape, inputs[place].dtype)
    with pytest.raises(ValueError, match=message):
        SCADM(SMALL).apply({"params": {}}, *map(jnp.asarray, inputs))


def test_references_of_another_size_are_named():
    images, labels = jnp.zeros((2, 8, 8, 3)), jnp.zeros((2, 8, 8), jnp.uint8)
    with pytest.raises(ValueError, match=r"images \(8, 8\) do not have .* \(16, 16\)"):
        SCADM(SMALL).apply({"params": {}}, images, labels, method="encode_style")
