"""FID's Inception-v3: equal to pytorch-fid's graph, resized as both traditions do, and strictly."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from sisma_jax.common.errors import InputError
from sisma_jax.models.judges.inception import (
    kernel_shapes,
    load_inception,
    published_shapes,
    resized,
)
from tests.golden import judges_recipe as recipe
from tests.golden.files import golden_arrays, golden_tensors


@pytest.fixture(scope="module")
def golden():
    return golden_arrays("inception")


@pytest.fixture(scope="module")
def tensors(golden):
    counter = "Mixed_6e.branch7x7dbl_4.bn.num_batches_tracked"
    return golden_tensors(golden, recipe) | {counter: np.array(3, np.int64)}


@pytest.fixture(scope="module")
def inception(tensors, tmp_path_factory):
    file = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    save_file(tensors, file)
    return load_inception(file)


def by_definition(image, resize):
    """(299, 299, c): each pixel is interpolated between the four around its place."""

    def around(i, size):
        place = i * size / 299 if resize == "tf1" else max((i + 0.5) * size / 299 - 0.5, 0)
        lower = int(place)
        return lower, min(lower + 1, size - 1), place - lower

    (top, bottom, down), (left, right, across) = (
        map(np.array, zip(*(around(i, size) for i in range(299)), strict=True))
        for size in image.shape[:2]
    )
    across = across[:, None]
    upper = (1 - across) * image[top][:, left] + across * image[top][:, right]
    lower = (1 - across) * image[bottom][:, left] + across * image[bottom][:, right]
    down = down[:, None, None]
    return (1 - down) * upper + down * lower


class TestExactness:
    @pytest.mark.parametrize("resize", ["tf1", "half_pixel"])
    def test_features_equal_the_reference(self, resize, inception, golden):
        features = inception.features(
            recipe.pictures("inception", recipe.INCEPTION_SIZE), resize=resize
        )
        assert features.dtype == jnp.float32
        expected = golden[resize]
        for image in range(len(expected)):
            error = np.abs(np.asarray(features[image]) - expected[image]).max()
            assert error < 1e-5 * expected[image].max()

    def test_the_references_names_and_shapes_are_the_table(self, golden):
        shapes = json.loads(str(golden["shapes"]))
        assert published_shapes(kernel_shapes()) == {k: tuple(v) for k, v in shapes.items()}

    @pytest.mark.slow
    def test_images_do_not_see_each_other_wherever_they_are(self, inception):
        images = recipe.pictures("four", (70, 50), 4)
        expected = np.concatenate([inception.features(images[i : i + 1]) for i in range(4)])
        mesh = jax.make_mesh((4,), ("data",))
        spread = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
        everywhere = jax.device_put(inception, NamedSharding(mesh, PartitionSpec()))
        features = everywhere.features(spread)
        np.testing.assert_allclose(features, expected, atol=1e-5 * expected.max())

    def test_it_passes_through_jit_as_an_argument(self, inception):
        images = jax.ShapeDtypeStruct((5, 64, 64, 3), jnp.uint8)
        features = jax.eval_shape(lambda network, x: network.features(x), inception, images)
        assert features.shape == (5, 2048)
        assert len(jax.tree.leaves(inception)) == 2 * 94


class TestResizing:
    @pytest.mark.parametrize("resize", ["tf1", "half_pixel"])
    @pytest.mark.parametrize("size", [(11, 17), (350, 301)])
    def test_pixels_are_interpolated_by_definition(self, size, resize):
        image = recipe.pictures("resize", size, 1)
        scale = {"tf1": 128, "half_pixel": 127.5}[resize]
        expected = by_definition(image[0].astype(np.float64), resize) / scale - 1
        np.testing.assert_allclose(resized(image, resize)[0], expected, atol=5e-5)

    @pytest.mark.parametrize("resize", ["tf1", "half_pixel"])
    def test_299_pixels_stay_what_they_are(self, resize):
        image = recipe.pictures("resize", (299, 299), 1)
        x = image.astype(np.float64)
        expected = (x - 128) / 128 if resize == "tf1" else 2 * x / 255 - 1
        np.testing.assert_allclose(resized(image, resize), expected, atol=1e-6)


class TestRefusals:
    def test_torchvisions_inception(self, tensors, tmp_path):
        other = tensors | {
            "fc.weight": np.zeros((1000, 2048), np.float32),
            "AuxLogits.fc.bias": np.zeros(1000, np.float32),
        }
        save_file(other, tmp_path / "torchvision.safetensors")
        with pytest.raises(InputError) as caught:
            load_inception(tmp_path / "torchvision.safetensors")
        assert "(missing, left over, of another shape or type: AuxLogits.fc.bias, fc.weight)" in (
            str(caught.value)
        )
        assert "pytorch-fid's release pt_inception-2015-12-05-6726825d.pth" in str(caught.value)

    @pytest.mark.parametrize("name", ["features.0.weight", "encoder.bn.num_batches_tracked"])
    def test_other_networks(self, name, tmp_path):
        save_file({name: np.zeros((4, 4), np.float32)}, tmp_path / "other.safetensors")
        with pytest.raises(InputError, match="does not hold FID's Inception-v3"):
            load_inception(tmp_path / "other.safetensors")

    def test_the_pickled_file_is_told_how_to_convert(self, tmp_path):
        file = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
        file.write_bytes(b"")
        with pytest.raises(InputError, match=r"pickled file.*6726825d\.safetensors"):
            load_inception(file)

    @pytest.mark.parametrize(
        "images", [np.zeros((1, 64, 64, 3), np.float32), np.zeros((64, 64, 3), np.uint8)]
    )
    def test_images_that_are_no_bytes(self, images, inception):
        with pytest.raises(InputError, match=r"give uint8 \(n, h, w, 3\)"):
            inception.features(images)

    def test_an_unknown_way_of_resizing(self, inception):
        with pytest.raises(InputError, match="resize is 'clean': choose one of tf1, half_pixel"):
            inception.features(np.zeros((1, 64, 64, 3), np.uint8), resize="clean")
