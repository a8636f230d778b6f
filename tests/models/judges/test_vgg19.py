"""VGG-19's file: the part that is read, and files that are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sisma_jax.common.errors import InputError
from sisma_jax.models.judges.backbones import VGG16, VGG19, convolution_shapes
from sisma_jax.models.judges.vgg19 import Vgg19, load_vgg19
from tests.golden import ca2sis_recipe as recipe

SMALL = dataclasses.replace(
    VGG19, levels=tuple(dataclasses.replace(x, channels=x.channels // 16) for x in VGG19.levels)
)


@pytest.fixture
def tensors():
    return {
        name: recipe.tensor(f"vgg.{name}", shape)
        for name, shape in convolution_shapes(SMALL).items()
    }


def test_the_part_has_the_published_size():
    assert sum(np.prod(shape) for shape in convolution_shapes(VGG19).values()) == 12_944_960
    assert sum(np.prod(shape) for shape in convolution_shapes(SMALL).values()) == 50_900


def test_the_rest_of_the_published_network_is_not_read(tensors, tmp_path):
    part, whole = tmp_path / "part.safetensors", tmp_path / "whole.safetensors"
    save_file(tensors, part)
    rest = dict.fromkeys(("features.30.weight", "features.34.bias", "classifier.0.weight"))
    save_file(tensors | {name: np.full(1, np.nan, np.float32) for name in rest}, whole)
    a, b = load_vgg19(part, SMALL), load_vgg19(whole, SMALL)
    assert len(jax.tree.leaves(a.params)) == 26
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("features.28.weight", None),
        ("features.26.weight", np.ones((2, 2, 3, 3), np.float32)),  # between a VGG-16's others
        ("features.0.bias", np.ones(4, np.float16)),
        ("features.0.bias", np.ones(5, np.float32)),
    ],
)
def test_another_networks_file_is_refused(name, tensor, tensors, tmp_path):
    changed = {k: v for k, v in ({**tensors, name: tensor}).items() if v is not None}
    save_file(changed, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"not hold torchvision's VGG-19 .*vgg19-dcbb9e9d\.pth"):
        load_vgg19(tmp_path / "x.safetensors", SMALL)


def test_vgg_16_has_other_layers():
    assert convolution_shapes(VGG16).keys() != convolution_shapes(VGG19).keys()


def test_the_features_halve_and_small_images_are_refused():
    network = Vgg19(VGG19, None)
    assert network.backbone.smallest == 16
    with pytest.raises(InputError, match=r"16 x 15 pixels are too small .* at least 16"):
        network.features(jnp.zeros((1, 16, 15, 3)))
