"""The two-scale discriminator: equal to the authors' code, and with spectral normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.models.ca2sis.discriminator import from_torch, variable_shapes
from sisma_jax.models.layers.patch_discriminator import (
    DiscriminatorConfig,
    PatchDiscriminator,
    advanced,
)
from tests.golden import ca2sis_recipe as recipe
from tests.golden.files import golden_arrays

TINY = DiscriminatorConfig(num_classes=5, channels=8)


@pytest.fixture(scope="module")
def golden():
    return golden_arrays("ca2sis_tiny")


@pytest.fixture(scope="module")
def tensors(golden):
    return recipe.tensors(golden, "netD.")


def nhwc(x, dtype):
    return jnp.asarray(x.transpose(0, 2, 3, 1), dtype)


def judged(golden, tensors, config, dtype):
    """The judgements of fake and real in one forward pass in training, and "spectral" after it."""
    variables = jax.tree.map(lambda x: x.astype(dtype), from_torch(tensors, config))
    spectral = advanced(variables["params"], variables["spectral"])
    batches = [nhwc(golden["tiny/out"], dtype), jnp.asarray(recipe.images(), dtype)]
    judge = jax.jit(PatchDiscriminator(config).apply)
    return judge(
        {**variables, "spectral": spectral}, batches, jnp.asarray(golden["tiny/label"])
    ), spectral


def errors(golden, judgements, spectral):
    """max|a - b| / max|b| of every golden array of the discriminator."""
    found = {"u_after1_d0_model1": spectral["scale_0"]["conv_1"]["u"]}
    for name, judgement in zip(("fake", "real"), judgements, strict=True):
        scales = zip(judgement.features, judgement.predictions, strict=True)
        for i, (features, predictions) in enumerate(scales):
            for j, x in enumerate([*features, predictions]):
                found[f"{name}_s{i}_l{j}"] = x.transpose(0, 3, 1, 2)
    expected = {k.removeprefix("tiny/D/"): x for k, x in golden.items() if k.startswith("tiny/D/")}
    assert found.keys() == expected.keys() and len(expected) == 17
    relative = {}
    for name, wanted in expected.items():
        x = np.asarray(found[name], np.float64)[: len(wanted)]
        relative[name] = np.max(np.abs(x - wanted)) / np.max(np.abs(wanted))
    return relative


def test_equals_the_authors_code_in_float64(golden, tensors):
    with jax.enable_x64(True):
        judgements, spectral = judged(golden, tensors, TINY, jnp.float64)
        assert judgements[0].predictions[0].dtype == jnp.float64
    assert max(errors(golden, judgements, spectral).values()) < 5e-7


@pytest.mark.parametrize(("dtype", "most"), [("float32", 2e-5), ("bfloat16", 0.02)])
def test_equals_the_authors_code_in_the_types_of_training(dtype, most, golden, tensors):
    config = DiscriminatorConfig(num_classes=5, channels=8, dtype=dtype)
    judgements, spectral = judged(golden, tensors, config, jnp.float32)
    assert judgements[0].features[0][0].dtype == dtype
    assert judgements[0].predictions[0].dtype == jnp.float32
    assert max(errors(golden, judgements, spectral).values()) < most


def test_has_the_published_number_of_parameters():
    shapes = variable_shapes(DiscriminatorConfig())
    for scale in ("scale_0", "scale_1"):
        assert sum(x.size for x in jax.tree.leaves(shapes["params"][scale])) == 682_049
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_new_kernels_are_xavier_normal_with_gain_0_02(key):
    variables = jax.jit(PatchDiscriminator(DiscriminatorConfig()).init)(
        key, [jnp.zeros((1, 8, 8, 3))], jnp.zeros((1, 8, 8), jnp.uint8)
    )
    scale = variables["params"]["scale_0"]
    deviations = [np.std(scale[f"conv_{i}"]["kernel"]) for i in range(4)]
    np.testing.assert_allclose(deviations, [7.6e-4, 5.1e-4, 3.6e-4, 4.4e-4], rtol=0.03)
    assert not np.any(scale["conv_0"]["bias"]) and not np.any(scale["conv_3"]["bias"])
    vectors = jax.tree.leaves(variables["spectral"])
    np.testing.assert_allclose([np.linalg.norm(x) for x in vectors], 1, rtol=1e-5)
    assert len(vectors) == 8 and all(np.std(x) > 0.01 for x in vectors)


class TestSpectralNormalisation:
    CONFIG = DiscriminatorConfig(num_classes=0, channels=4, layers=2, scales=1)

    @pytest.fixture
    def variables(self, key):
        return jax.jit(PatchDiscriminator(self.CONFIG).init)(key, [jnp.zeros((1, 8, 8, 3))])

    def test_the_iteration_finds_the_largest_singular_value(self, variables):
        params, spectral = variables["params"], variables["spectral"]
        step = jax.jit(advanced)
        for _ in range(200):
            spectral = step(params, spectral)
        kernel = np.asarray(params["scale_0"]["conv_1"]["kernel"], np.float64).reshape(-1, 8)
        u, v = (np.asarray(spectral["scale_0"]["conv_1"][name], np.float64) for name in "uv")
        np.testing.assert_allclose(v @ kernel @ u, np.linalg.norm(kernel, 2), rtol=1e-4)

    def test_the_gradient_passes_through_the_kernel_and_not_the_vectors(self, variables):
        """Along the normalised kernel itself the output does not change, as u and v stay."""
        x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
        params = variables["params"]

        def total(params):
            new = {"params": params, "spectral": advanced(params, variables["spectral"])}
            (judgement,) = PatchDiscriminator(self.CONFIG).apply(new, [x])
            return jnp.sum(
                judgement.predictions[0] * jnp.arange(25.0).reshape(1, 5, 5, 1)[:, :4, :4]
            )

        gradient = jax.jit(jax.grad(total))(params)["scale_0"]["conv_1"]["kernel"]
        kernel = params["scale_0"]["conv_1"]["kernel"]
        size = np.linalg.norm(gradient) * np.linalg.norm(kernel)
        assert size > 0 and abs(np.vdot(gradient, kernel)) < 1e-5 * size


def test_pictures_alone_are_judged_by_themselves(key):
    config = DiscriminatorConfig(num_classes=0, image_channels=1, channels=4, layers=1, scales=3)
    module = PatchDiscriminator(config)
    a, b = jax.random.normal(key, (2, 2, 12, 10, 1))
    variables = jax.jit(module.init)(key, [a])
    assert "spectral" not in variables
    judge = jax.jit(module.apply)
    both, alone = judge(variables, [a, b]), judge(variables, [b[1:]])
    assert len(both) == 2 and [len(x) for x in both[1].features] == [1, 1, 1]
    assert [x.shape for x in both[1].predictions] == [(2, 8, 7, 1), (2, 5, 4, 1), (2, 3, 3, 1)]
    for x, y in zip(both[1].predictions, alone[0].predictions, strict=True):
        np.testing.assert_allclose(x[1:], y, atol=1e-7)


class TestRefusals:
    def test_tensors_that_are_not_a_discriminators(self, golden, tensors):
        with pytest.raises(InputError, match=r"no discriminator .*cross2\.norm\.bias, .*net_D"):
            from_torch(recipe.tensors(golden, "netG."), TINY)
        with pytest.raises(
            InputError, match=r"D\.safetensors do not fit.*of another shape: .*0\.0"
        ):
            from_torch(tensors, DiscriminatorConfig(channels=8), source="D.safetensors")
        less = {k: v for k, v in tensors.items() if k != "discriminator_1.model2.0.0.weight_u"}
        with pytest.raises(InputError, match=r"missing: discriminator_1\.model2\.0\.0\.weight_u;"):
            from_torch(less, TINY)

    def test_sizes_and_label_maps_that_do_not_fit(self, golden):
        with pytest.raises(InputError, match=r"discriminator\.scales is 0: set 1 or more"):
            DiscriminatorConfig(scales=0)
        with pytest.raises(
            InputError, match=r"dtype is 'float16': choose one of float32, bfloat16"
        ):
            DiscriminatorConfig(dtype="float16")
        images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
        labels = jax.ShapeDtypeStruct((2, 8, 4), jnp.uint8)
        for classes, given, phrase in (
            (5, None, "label maps of 5 classes beside pictures, but none are given"),
            (0, labels, "pictures alone, but label maps are given"),
            (5, labels, r"\(2, 8, 8, 3\) and label maps of shape \(2, 8, 4\)"),
        ):
            module = PatchDiscriminator(DiscriminatorConfig(num_classes=classes))
            with pytest.raises(InputError, match=phrase):
                jax.eval_shape(module.init, jax.random.key(0), [images], given)
