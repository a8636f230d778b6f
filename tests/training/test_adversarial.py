"""Losses of adversarial training: equal to the authors' code, and what their gradients reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sisma_jax.common.errors import InputError
from sisma_jax.models.ca2sis.discriminator import from_torch
from sisma_jax.models.judges.vgg19 import load_vgg19
from sisma_jax.models.layers.patch_discriminator import (
    DiscriminatorConfig,
    Judgement,
    PatchDiscriminator,
    advanced,
)
from sisma_jax.training.adversarial import (
    AdversarialWeights,
    attention_loss,
    discriminator_loss,
    generator_loss,
    vgg_distance,
)
from tests.golden import ca2sis_recipe as recipe
from tests.golden.files import golden_arrays
from tests.models.judges.test_vgg19 import SMALL

CONFIG = DiscriminatorConfig(num_classes=5, channels=8)


@pytest.fixture(scope="module")
def golden():
    return golden_arrays("ca2sis_tiny")


@pytest.fixture(scope="module")
def network(golden, tmp_path_factory):
    """The golden VGG-19 as torchvision names it."""
    tensors = {
        f"features.{name.split('.', 1)[1]}": tensor
        for name, tensor in recipe.tensors(golden, "vgg.").items()
    }
    path = tmp_path_factory.mktemp("vgg.") / "vgg19.safetensors"
    save_file(tensors, path)
    return load_vgg19(path, SMALL)


def nhwc(x, dtype):
    return jnp.asarray(x.transpose(0, 2, 3, 1), dtype)


def in_type(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def variables_of(golden, dtype):
    """The golden discriminator in its first forward pass."""
    variables = in_type(from_torch(recipe.tensors(golden, "netD."), CONFIG), dtype)
    return {**variables, "spectral": advanced(variables["params"], variables["spectral"])}


def losses(variables, network, fake, real, labels, attention):
    """Both sides' losses and all terms, from one forward pass of the discriminator."""
    judgements = PatchDiscriminator(CONFIG).apply(variables, [fake, real], labels)
    perceptual = vgg_distance(network.features(fake), network.features(real))
    weights = AdversarialWeights()
    total, terms = generator_loss(*judgements, weights, perceptual=perceptual, attention=attention)
    for_discriminator, parts = discriminator_loss(*judgements)
    weighted = {name: getattr(weights, name) * term for name, term in terms.items()}
    return (total, for_discriminator), weighted | parts


NAMES = {
    "GAN": "adversarial",
    "GAN_Feat": "feature_matching",
    "VGG": "perceptual",
    "att_loss": "attention",
    "D_Fake": "discriminator_fake",
    "D_real": "discriminator_real",
}


computed = jax.jit(losses)


def arguments(golden, network, dtype):
    """The golden arguments of `losses`."""
    return (
        variables_of(golden, dtype),
        in_type(network, dtype),
        nhwc(golden["tiny/out"], dtype),
        jnp.asarray(recipe.images(), dtype),
        jnp.asarray(golden["tiny/label"]),
        jnp.asarray(golden["tiny/att_loss"], dtype),
    )


@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-8), ("float32", 2e-6)])
def test_losses_equal_the_authors_code(dtype, most, golden, network):
    """The golden picture of the generator is stored in float32, which limits the others."""
    with jax.enable_x64(dtype == "float64"):
        (total, for_discriminator), parts = computed(*arguments(golden, network, dtype))
    found = {name: parts[ours] for name, ours in NAMES.items()} | {"G_total": total}
    expected = {
        k.removeprefix("tiny/loss/"): x for k, x in golden.items() if k.startswith("tiny/loss/")
    }
    assert found.keys() == expected.keys()
    for name, x in found.items():
        assert x.dtype == dtype
        np.testing.assert_allclose(x, expected[name], rtol=most, err_msg=name)
    if dtype == "float64":
        np.testing.assert_allclose(found["D_real"], expected["D_real"], rtol=1e-13)
    np.testing.assert_allclose(for_discriminator, found["D_Fake"] + found["D_real"], rtol=1e-6)


def test_gradients_are_the_slopes_of_the_losses(golden, network):
    """The generator's by its pictures, the discriminator's by its parameters, whose spectral
    vectors stay; the data's pictures receive none from the generator's loss."""

    @jax.jit
    def gradients(variables, network, fake, real, *rest):
        def sides(params, fake, real):
            return losses({**variables, "params": params}, network, fake, real, *rest)[0]

        (one, other), pull = jax.vjp(sides, variables["params"], fake, real)
        of_generator = pull((jnp.ones_like(one), jnp.zeros_like(other)))[1:]
        return of_generator, pull((jnp.zeros_like(one), jnp.ones_like(other)))[0]

    with jax.enable_x64(True):
        variables, vgg, *pictures, attention = arguments(golden, network, "float64")
        fake, *rest = (x[:1, :32, :32] for x in pictures)  # enough, and faster
        rest.append(attention)
        (to_fake, to_real), to_params = gradients(variables, vgg, fake, *rest)

        def by_picture(x):
            return computed(variables, vgg, x, *rest)[0][0]

        def by_params(x):
            return computed({**variables, "params": x}, vgg, fake, *rest)[0][1]

        found = {
            "generator": slope_and_norm(by_picture, fake, to_fake),
            "discriminator": slope_and_norm(by_params, variables["params"], to_params),
        }
    assert not np.any(to_real)
    for side, (slope, norm) in found.items():
        assert norm > 1e-3
        np.testing.assert_allclose(slope, norm, rtol=1e-5, err_msg=side)


def slope_and_norm(loss, x, gradient, step=1e-6):
    """The slope of a loss along its gradient by central differences, and the gradient's norm."""
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient)))
    moved = lambda by: jax.tree.map(lambda a, b: a + by / norm * b, x, gradient)
    return (loss(moved(step)) - loss(moved(-step))) / (2 * step), norm


@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-8), ("float32", 2e-6)])
def test_attention_losses_equal_the_authors_code(dtype, most, golden):
    """The stages whose logits are stored for the whole batch, in float32."""
    labels, stages = jnp.asarray(golden["tiny/label"]), (2, 3, 4)
    with jax.enable_x64(dtype == "float64"):
        logits = [nhwc(golden[f"tiny/att/logit_mean{stage}"], dtype) for stage in stages]
        found = [attention_loss([x], labels) for x in logits]
        together = attention_loss(logits, labels)
    expected = [golden[f"tiny/att/loss{stage}"] for stage in stages]
    assert together.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=most)
    np.testing.assert_allclose(together, np.mean(expected), rtol=most)


def test_the_attention_loss_is_a_binary_cross_entropy_at_the_first_pixel_of_each_cell():
    random = np.random.default_rng(0)
    labels = random.choice([0, 1, 2, 255], (2, 4, 6)).astype(np.uint8)
    logits = 3 * random.standard_normal((2, 2, 2, 3)).astype(np.float32)
    shares = 1 / (1 + np.exp(-logits.astype(np.float64)))
    own = labels[:, ::2, ::3, None] == np.arange(3)
    expected = -np.mean(np.where(own, np.log(shares), np.log(1 - shares)))
    np.testing.assert_allclose(
        attention_loss([jnp.asarray(logits)], jnp.asarray(labels)), expected, rtol=1e-6
    )
    with pytest.raises(InputError, match="4 x 6 pixels cannot be reduced to 2 x 4"):
        attention_loss([jnp.zeros((2, 2, 4, 3))], jnp.asarray(labels))


def test_saturated_shares_count_patches_beyond_the_margin_scale_by_scale():
    of = lambda *scales: Judgement(
        features=(), predictions=tuple(jnp.asarray(x).reshape(1, -1, 1, 1) for x in scales)
    )
    fake, real = of([-2.0, -1.0, 0.5, 3.0], [-1.5]), of([2.0, 0.0], [0.25])
    loss, metrics = discriminator_loss(fake, real)
    found = {name: float(x) for name, x in metrics.items()}
    assert found == {
        "discriminator_fake": (5.5 / 4 + 0) / 2,
        "discriminator_real": (0.5 + 0.75) / 2,
        "saturated_fake": (0.5 + 1) / 2,
        "saturated_real": (0.5 + 0) / 2,
    }
    assert loss == found["discriminator_fake"] + found["discriminator_real"]


def test_terms_that_are_not_given_are_absent_and_weights_weigh():
    judgement = Judgement(
        features=((jnp.full((1, 2, 2, 3), 0.5), jnp.ones((1, 1, 1, 2))),),
        predictions=(jnp.full((1, 1, 1, 1), 2.0),),
    )
    nothing = jax.tree.map(jnp.zeros_like, judgement)
    weights = AdversarialWeights(adversarial=3.0, feature_matching=0.5, attention=7.0)
    loss, terms = generator_loss(judgement, nothing, weights)
    assert {k: float(x) for k, x in terms.items()} == {"adversarial": -2.0, "feature_matching": 1.5}
    assert loss == 3 * -2 + 0.5 * 1.5
    more, terms = generator_loss(judgement, nothing, weights, attention=jnp.ones(()))
    assert terms.keys() == {"adversarial", "feature_matching", "attention"} and more == loss + 7
    with pytest.raises(InputError, match=r"loss\.perceptual is -1.0: set 0 or more"):
        AdversarialWeights(perceptual=-1.0)
