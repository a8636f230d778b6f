"""Published face parsers: equal to PyTorch's, read strictly, labels in the data set's order."""

import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from sisma_jax.common.errors import InputError
from sisma_jax.data import class_names
from sisma_jax.data.classes import CLASSES
from sisma_jax.models.autoencoder import to_float
from sisma_jax.models.face_parser import load_parser
from tests.golden import face_parsers_recipe as recipe
from tests.golden.files import golden_arrays, golden_tensors

ORDERS = {"unet": class_names.CANONICAL, "bisenet": class_names.BISENET}
NAMES = {"unet": "CelebAMask-HQ U-Net", "bisenet": "BiSeNet (face-parsing.PyTorch)"}


@pytest.fixture(scope="module")
def golden():
    return golden_arrays("face_parsers")


@pytest.fixture(scope="module")
def tensors(golden):
    """By network, all tensors of its published file."""
    return {network: golden_tensors(golden, recipe, f"{network}/") for network in ORDERS}


@pytest.fixture(scope="module")
def parsers(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    for network in ORDERS:
        save_file(tensors[network], folder / f"{network}.safetensors")
    return {network: load_parser(folder / f"{network}.safetensors") for network in ORDERS}


@pytest.fixture
def load(tmp_path):
    """Write tensors, read a parser."""

    def written_and_read(tensors):
        save_file(tensors, tmp_path / "weights.safetensors")
        return load_parser(tmp_path / "weights.safetensors")

    return written_and_read


def assert_near(actual, expected):
    for image in range(len(expected)):  # each by itself: one has contrast, one is nearly flat
        error = np.abs(np.asarray(actual[image]) - expected[image]).max()
        assert error < 1e-5 * np.abs(expected[image]).max(), image


@pytest.fixture(scope="module")
def found(parsers):
    """By network: logits, features and labels of the images at their own size."""

    @jax.jit
    def look(parser, images):
        logits = parser.module.apply({"params": parser.params}, to_float(images))
        return logits, parser.features(images), parser.labels(images)

    free = {name: dataclasses.replace(parser, size=None) for name, parser in parsers.items()}
    return {network: look(free[network], recipe.images()) for network in ORDERS}


@pytest.mark.parametrize("network", ORDERS)
class TestExactness:
    def test_logits_equal_pytorchs_in_the_data_sets_order(self, network, golden, found):
        order = [ORDERS[network].index(name) for name in CLASSES]
        expected = golden[f"{network}/logits"][..., order]
        assert_near(found[network][0][recipe.KEPT[0]], expected)

    def test_features_equal_pytorchs(self, network, golden, found):
        assert_near(found[network][1], golden[f"{network}/features"])

    def test_labels_are_the_data_sets(self, network, golden, found):
        labels = np.asarray(found[network][2][recipe.KEPT[0]])
        named = np.array(ORDERS[network])[golden[f"{network}/logits"].argmax(-1)]
        assert len(np.unique(named)) > 2
        assert (np.array(CLASSES)[labels] == named).mean() > 0.99, "but for ties"

    def test_what_it_is(self, network, parsers):
        parser = parsers[network]
        assert parser.name == NAMES[network]
        assert (parser.classes, parser.size, parser.quality) == (CLASSES, 512, None)
        parser.check(CLASSES)


class TestNaming:
    def test_the_class_names_are_the_data_sets(self):
        assert class_names.CANONICAL == CLASSES
        assert sorted(class_names.BISENET) == sorted(CLASSES)

    def test_data_parallel_files_and_those_without_counters(self, tensors, parsers, load):
        changed = {
            f"module.{name}": tensor
            for name, tensor in tensors["bisenet"].items()
            if "num_batches_tracked" not in name and not name.startswith("conv_out32.")
        }
        changed["module.conv_out16.conv.bn.num_batches_tracked"] = np.array(3, np.int64)
        assert load(changed).checksum() == parsers["bisenet"].checksum()

    def test_half_precision_weights_are_read_as_float32(self, tensors, load):
        kernel = tensors["unet"]["final.weight"].astype(np.float16)
        parser = load(tensors["unet"] | {"final.weight": kernel})
        loaded = np.asarray(parser.params["final"]["kernel"])
        np.testing.assert_array_equal(loaded, kernel.astype(np.float32).transpose(2, 3, 1, 0))


class TestRefusals:
    def test_what_differs_is_listed(self, tensors, load):
        changed = dict(tensors["unet"])
        del changed["center.conv1.1.running_var"]
        changed["conv5.conv1.0.weight"] = np.zeros((8, 4, 3, 3), np.float32)
        changed["up_concat1.up.weight"] = np.zeros((16, 32, 2, 2), np.float32)
        with pytest.raises(InputError) as caught:
            load(changed)
        for phrase in (
            "missing: center.conv1.1.running_var",
            "left over: conv5.conv1.0.weight",
            "up_concat1.up.weight (16, 32, 2, 2) instead of (32, 16, 2, 2)",
        ):
            assert phrase in str(caught.value)

    @pytest.mark.parametrize(
        ("network", "last"), [("unet", "final"), ("bisenet", "conv_out.conv_out")]
    )
    def test_another_number_of_classes(self, network, last, tensors, load):
        fewer = {f"{last}.weight": tensors[network][f"{last}.weight"][:11]}
        with pytest.raises(InputError, match=r"with 11 classes: give the published weights.* 19$"):
            load(tensors[network] | fewer)

    @pytest.mark.parametrize("names", [[], ["encoder.conv_in.weight"], ["final/kernel"]])
    def test_another_model(self, names, load):
        with pytest.raises(InputError, match=r"holds no known face parser .* U-Net or BiSeNet"):
            load({name: np.zeros((4, 4), np.float32) for name in names})

    def test_pickled_weights_come_with_the_recipe(self, tmp_path):
        (tmp_path / "79999_iter.pth").touch()
        with pytest.raises(InputError, match=r"79999_iter\.pth is a pickled file.*convert it once"):
            load_parser(tmp_path / "79999_iter.pth")

    @pytest.mark.parametrize(("network", "factor"), [("unet", 16), ("bisenet", 32)])
    def test_sides_that_do_not_divide(self, network, factor, parsers):
        parser = dataclasses.replace(parsers[network], size=None)
        with pytest.raises(InputError, match=f"48 x 40 pixels.*multiple of {factor}"):
            parser.labels(np.zeros((1, 48, 40, 3), np.uint8))
