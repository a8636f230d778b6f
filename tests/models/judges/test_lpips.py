"""LPIPS: equal to the package's definition with both backbones, in pairs and all with all."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sisma_jax.common.errors import InputError
from sisma_jax.metrics.perceptual import diversity, lpips
from sisma_jax.models.autoencoder import to_float
from sisma_jax.models.judges.backbones import ALEXNET, VGG16
from sisma_jax.models.judges.lpips import (
    SCALE,
    SHIFT,
    Lpips,
    is_linear,
    load_lpips,
    published_shapes,
)
from tests.golden import judges_recipe as recipe
from tests.golden.files import golden_arrays, golden_tensors

NAMES = {"alexnet": ALEXNET, "vgg16": VGG16}


@pytest.fixture(scope="module")
def golden():
    return golden_arrays("lpips")


@pytest.fixture(scope="module")
def tensors(golden):
    """By name of the network: those of both files."""
    return {network: golden_tensors(golden, recipe, f"{network}/") for network in NAMES}


def files_of(tensors, folder):
    """Paths of torchvision's and the package's file."""
    parts = {
        "backbone": {k: v for k, v in tensors.items() if not is_linear(k)},
        "linear": {k: v for k, v in tensors.items() if is_linear(k)},
    }
    parts["backbone"]["classifier.6.bias"] = np.zeros(1000, np.float32)
    paths = [folder / f"{part}.safetensors" for part in parts]
    for path, part in zip(paths, parts.values(), strict=True):
        save_file(part, path)
    return paths


@pytest.fixture(scope="module")
def networks(tensors, tmp_path_factory):
    return {name: load_lpips(*files_of(tensors[name], tmp_path_factory.mktemp(name)))
            for name in NAMES}  # fmt: skip


@pytest.fixture
def alexnet(networks):
    return networks["alexnet"]


class TestExactness:
    @pytest.mark.parametrize("name", NAMES)
    def test_distances_equal_the_reference(self, name, networks, golden):
        expected = golden[f"{name}/levels"].sum(1)
        assert expected[2] < 0.02 * expected[0], "a pair that is nearly the same takes part"
        distance = networks[name].distance(*recipe.pairs(name))
        assert distance.dtype == jnp.float32
        np.testing.assert_allclose(distance, expected, rtol=1e-5)

    @pytest.mark.parametrize("name", NAMES)
    def test_the_references_names_and_shapes_are_the_table(self, name, golden):
        shapes = json.loads(str(golden[f"{name}/shapes"]))
        assert published_shapes(NAMES[name]) == {k: tuple(v) for k, v in shapes.items()}

    def test_features_are_those_whose_squared_distance_it_is(self, alexnet, golden):
        a, b = map(alexnet.features, recipe.pairs("alexnet"))
        apart = [np.asarray(p) - np.asarray(q) for p, q in zip(a, b, strict=True)]
        levels = [np.sum(np.square(level), axis=(1, 2, 3)) for level in apart]
        np.testing.assert_allclose(np.stack(levels, 1), golden["alexnet/levels"], rtol=1e-4)

    def test_bytes_and_floats_are_the_same_pictures(self, alexnet):
        a, b = recipe.pairs("alexnet")
        floats = alexnet.distance(to_float(a), np.asarray(to_float(b)))
        np.testing.assert_allclose(floats, alexnet.distance(a, b), rtol=1e-6)


def convolved(x, kernel, bias):
    """3 x 3 convolution with a ReLU of (n, h, w, c), by a PyTorch kernel (out, in, 3, 3)."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    return np.maximum(np.einsum("nhwcij,ocij->nhwo", windows, kernel) + bias, 0)


class TestEqualWeights:
    def test_two_levels_are_the_angles_between_activations(self, tensors, tmp_path):
        path, _ = files_of(tensors["vgg16"], tmp_path)
        network = load_lpips(path, None, levels=2)
        images = [recipe.pictures(name, (6, 4)) for name in "ab"]
        x = (np.concatenate(images) / 127.5 - 1 - SHIFT) / SCALE
        expected = 0
        for level, layers in enumerate([(0, 2), (5, 7)]):
            if level:
                n, h, w, c = x.shape
                x = x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
            for index in layers:
                names = (f"features.{index}.{leaf}" for leaf in ("weight", "bias"))
                x = convolved(x, *(tensors["vgg16"][name] for name in names))
            a, b = np.split(x, 2)
            norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
            expected += np.mean(2 - 2 * np.sum(a * b, -1) / norms, (1, 2))
        np.testing.assert_allclose(network.distance(*images), expected, rtol=1e-5)

    def test_the_first_levels_are_those_of_the_whole_network(self, networks):
        whole = networks["vgg16"]
        images = recipe.pictures("a", (37, 48))
        cut = Lpips(VGG16.first(3), whole.params).features(images)
        assert len(cut) == 3
        for one, other in zip(cut, whole.features(images), strict=False):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
        for levels in (0, 6):
            with pytest.raises(InputError, match=f"{levels} levels of VGG-16 .* choose 1 to 5"):
                VGG16.first(levels)

    def test_pixels_without_an_activation_have_a_gradient(self, networks):
        network = networks["alexnet"]
        params = dict(network.params)
        params["features_10"] = jax.tree.map(lambda x: x - 1e3, params["features_10"])
        silent = Lpips(ALEXNET, params)
        a, b = map(to_float, recipe.pairs("alexnet"))
        assert not np.any(silent.features(a)[-1]) and np.any(silent.features(a)[-2])
        gradient = jax.grad(lambda a: jnp.sum(silent.distance(a, b)))(a)
        assert np.isfinite(gradient).all() and np.any(gradient)


def three_pictures():
    """As many pairs, of the size of others: they share a program."""
    return recipe.pictures("pairwise", recipe.LPIPS_SIZES["alexnet"], 3)


class TestAllWithAll:
    def test_every_pair_has_its_distance(self, alexnet):
        images = three_pictures()
        found = np.asarray(alexnet.pairwise(images))
        np.testing.assert_array_equal(found, found.T)
        np.testing.assert_array_equal(np.diag(found), 0)
        rows, columns = np.triu_indices(3, 1)
        expected = alexnet.distance(images[rows], images[columns])
        np.testing.assert_allclose(found[rows, columns], expected, rtol=1e-5)

    def test_diversity_is_the_mean_over_pairs(self, alexnet):
        images = three_pictures()
        rows, columns = np.triu_indices(3, 1)
        expected = np.mean(lpips(images[rows], images[columns], alexnet))
        np.testing.assert_allclose(diversity(images, alexnet), expected, rtol=1e-5)
        assert diversity(np.stack([images[0]] * 3), alexnet) == 0

    def test_memory_does_not_grow_with_the_pairs(self, alexnet):
        """Ten pictures of 256 x 256: the differences of 45 pairs would be 116 MB."""
        images = jax.ShapeDtypeStruct((10, 256, 256, 3), jnp.uint8)
        program = jax.jit(lambda network, x: network.pairwise(x)).lower(alexnet, images).compile()
        assert program.memory_analysis().temp_size_in_bytes < 90e6


class TestRefusals:
    def test_a_backbone_with_the_other_ones_weights(self, tensors, tmp_path):
        backbone, _ = files_of(tensors["alexnet"], tmp_path)
        (tmp_path / "vgg").mkdir()
        _, linear = files_of(tensors["vgg16"], tmp_path / "vgg")
        with pytest.raises(InputError) as caught:
            load_lpips(backbone, linear)
        assert "LPIPS' weights for VGG-16, but" in str(caught.value)
        assert str(caught.value).endswith(
            "holds AlexNet: give weights/v0.1/alex.pth of the Python package lpips, or "
            "torchvision's vgg16-397923af.pth"
        )

    def test_files_the_wrong_way_round(self, tensors, tmp_path):
        backbone, linear = files_of(tensors["alexnet"], tmp_path)
        with pytest.raises(InputError, match=r"does not hold torchvision's.*but lin0.*alexnet-owt"):
            load_lpips(linear, backbone)
        with pytest.raises(InputError, match=r"does not hold LPIPS' weights.*alex\.pth or"):
            load_lpips(backbone, backbone)

    @pytest.mark.parametrize(
        ("changes", "phrase"),
        [
            ({"features.1.weight": np.ones(64, np.float32)}, "AlexNet or VGG-16 in float32"),
            ({"features.0.bias": np.ones(64, np.float16)}, "AlexNet or VGG-16 in float32"),
            ({"lin5.model.1.weight": np.ones((1, 64, 1, 1), np.float32)}, "does not hold LPIPS'"),
            ({"lin0.model.1.weight": np.full((1, 64, 1, 1), -0.1, np.float32)}, "negative weights"),
        ],
    )
    def test_tensors_that_are_not_theirs(self, changes, phrase, tensors, tmp_path):
        with pytest.raises(InputError, match=phrase):
            load_lpips(*files_of(tensors["alexnet"] | changes, tmp_path))

    @pytest.mark.parametrize(("name", "smallest"), [("alexnet", 31), ("vgg16", 16)])
    def test_pictures_that_are_too_small(self, name, smallest, networks):
        sizes = lambda side: jax.ShapeDtypeStruct((1, 40, side, 3), jnp.uint8)
        *_, last = jax.eval_shape(networks[name].features, sizes(smallest))
        assert last.shape[2] == 1
        with pytest.raises(InputError, match=f"give at least {smallest} along each side"):
            jax.eval_shape(networks[name].features, sizes(smallest - 1))

    def test_pictures_that_cannot_be_compared(self, alexnet):
        images = recipe.pictures("pairwise", (40, 33), 2)
        with pytest.raises(InputError, match="cannot be compared"):
            lpips(images, images[:1], alexnet)
        with pytest.raises(InputError, match="LPIPS of int32 images"):
            lpips(images.astype(np.int32), images.astype(np.int32), alexnet)
        with pytest.raises(InputError, match="diversity is undefined for 1 pictures"):
            diversity(images[:1], alexnet)
