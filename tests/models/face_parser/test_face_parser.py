"""Face parsers of this package: the U-Net, bytes to labels, and their folders."""

import dataclasses
import functools
import json
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import load_file, save_file

from sisma_jax.common.config import load_config, to_json
from sisma_jax.common.errors import InputError
from sisma_jax.models.autoencoder import to_float
from sisma_jax.models.face_parser import (
    FaceParser,
    FaceParserConfig,
    FaceParserUNet,
    load_parser,
    parameter_shapes,
    save_parser,
)
from sisma_jax.models.face_parser.layers import UpConv, resize_corners
from sisma_jax.models.face_parser.parser import resize

SMALL = FaceParserConfig(num_classes=3, channels=(4, 8, 12), norm_groups=2)
NAMES = ("sky", "skin", "hair")
QUALITY = {"test_miou": 0.75, "class_iou": {"sky": 1.0, "hair": None}}


shapes_of = functools.cache(lambda config: parameter_shapes(FaceParserUNet(config)))


def random_params(config=SMALL, seed=4):
    """Drawn by the host, which compiles nothing."""
    random = np.random.default_rng(seed)
    draw = lambda leaf: random.normal(0, 1, leaf.shape).astype(leaf.dtype)
    return jax.tree.map(draw, shapes_of(config))


def small_parser(size=None, seed=4):
    return FaceParser.trained(SMALL, random_params(seed=seed), classes=NAMES, size=size)


@functools.partial(jax.jit, static_argnames=("module", "method"))
def apply(module, params, images, method=None):
    return module.apply({"params": params}, images, method=method)


def outputs(module, params, images):
    """Logits, and activations of the coarsest level; tests of both share a program."""
    return apply(module, params, images, "outputs")


def pictures(count, height, width, seed=0):
    shape = (count, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


class TestConfig:
    @pytest.mark.parametrize(
        ("changes", "phrase"),
        [
            ({"num_classes": 0}, "parser.num_classes is 0: set a whole number from 1 to 255"),
            ({"num_classes": 256}, "parser.num_classes is 256"),
            ({"channels": ()}, r"parser.channels is \(\): give whole numbers"),
            ({"channels": (16, 0)}, r"parser.channels is \(16, 0\)"),
            ({"channels": (16, True)}, r"parser.channels is \(16, True\)"),
            ({"channels": (16, 20)}, "parser.norm_groups 8 does not divide the 20 of"),
            ({"norm": "batch"}, "parser.norm is 'batch': choose 'group' or 'affine'"),
            ({"norm_groups": 0}, "parser.norm_groups is 0"),
            ({"dtype": "float16"}, "parser.dtype is 'float16'"),
        ],
    )
    def test_values_that_cannot_be(self, changes, phrase):
        with pytest.raises(InputError, match=phrase):
            FaceParserConfig(**changes)

    def test_only_group_norm_needs_groups(self):
        assert FaceParserConfig(norm="affine", channels=(3, 5)).factor == 2


class TestUNet:
    def test_default_sizes_are_the_published_networks(self):
        for norm in ("group", "affine"):  # as many parameters: two per channel
            shapes = parameter_shapes(FaceParserUNet(FaceParserConfig(norm=norm)))
            assert sum(x.size for x in jax.tree.leaves(shapes)) == 1_944_355

    @pytest.mark.parametrize("norm", ["group", "affine"])
    def test_every_parameter_has_a_say(self, norm):
        config = dataclasses.replace(SMALL, channels=(4, 8), norm=norm)
        module = FaceParserUNet(config)
        params, images = random_params(config), to_float(pictures(2, 8, 12))

        @jax.jit
        @functools.partial(jax.grad, has_aux=True)
        def gradients(params):
            logits = module.apply({"params": params}, images)
            return jnp.sum(jnp.square(logits)), logits

        found, logits = gradients(params)
        assert logits.shape == (2, 8, 12, 3) and logits.dtype == jnp.float32
        for name, gradient in flatten_dict(found, sep="/").items():
            assert np.isfinite(gradient).all() and np.asarray(gradient).any(), name

    def test_bfloat16_computes_nearly_the_same(self):
        params, images = random_params(), to_float(pictures(2, 8, 12))
        exact = FaceParserUNet(SMALL)
        rounded = FaceParserUNet(dataclasses.replace(SMALL, dtype="bfloat16"))
        for a, b in zip(*(outputs(x, params, images) for x in (exact, rounded)), strict=True):
            assert b.dtype == jnp.float32
            a, b = np.asarray(a), np.asarray(b)
            assert 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()

    def test_features_are_the_coarsest_levels(self):
        params, images = random_params(), to_float(pictures(2, 8, 12))
        _, coarsest = outputs(FaceParserUNet(SMALL), params, images)
        assert coarsest.shape == (2, 2, 3, 12)
        without = jax.tree.map(np.zeros_like, params) | {
            name: params[name] for name in ("conv1", "conv2", "center")
        }
        _, again = outputs(FaceParserUNet(SMALL), without, images)
        np.testing.assert_array_equal(again, coarsest)
        features = apply(FaceParserUNet(SMALL), params, images, "features")
        np.testing.assert_allclose(
            features, np.asarray(coarsest).mean((1, 2)), rtol=1e-4, atol=1e-5
        )

    @pytest.mark.parametrize("size", [(6, 8), (8, 6)])
    def test_sides_that_do_not_divide(self, size):
        with pytest.raises(InputError, match=rf"{size[0]} x {size[1]} pixels.*multiple of 4"):
            FaceParserUNet(SMALL).apply({"params": random_params()}, jnp.zeros((1, *size, 3)))

    def test_up_convolution_is_a_transposed_one(self):
        random = np.random.default_rng(0)
        x = jnp.asarray(random.normal(size=(2, 3, 4, 5)), jnp.float32)
        kernel, bias = (
            random.normal(size=(5, 24)).astype(np.float32),
            np.arange(6, dtype=np.float32),
        )
        by_place = kernel.reshape(5, 2, 2, 6).transpose(1, 2, 0, 3)
        # Flax's correlates: it sees the kernel turned by half a turn.
        turned = {"kernel": by_place[::-1, ::-1], "bias": bias}
        np.testing.assert_allclose(
            apply(UpConv(6), {"kernel": kernel, "bias": bias}, x),
            apply(nn.ConvTranspose(6, (2, 2), strides=(2, 2)), turned, x),
            atol=1e-5,
        )


class TestResizing:
    @pytest.mark.parametrize("size", [(24, 20), (5, 7), (16, 3)])
    def test_it_is_pillows_bilinear(self, size):
        image = pictures(1, 12, 10)[0]
        expected = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
        resized = resize(jnp.asarray(image, jnp.float32)[None], *size)[0]
        assert np.abs(np.asarray(resized) - np.asarray(expected, np.float32)).max() < 1.01

    def test_corner_alignment_keeps_corners_and_lines(self):
        rows, columns = np.mgrid[:3, :4].astype(np.float32)
        ramp = jnp.asarray(2 * rows + columns)[None, :, :, None]
        y, x = np.mgrid[:9, :10]
        expected = 2 * y * 2 / 8 + x * 3 / 9
        np.testing.assert_allclose(resize_corners(ramp, 9, 10)[0, :, :, 0], expected, atol=1e-5)


class TestParser:
    def test_labels_are_the_largest_logits(self):
        parser, images = small_parser(), pictures(2, 8, 12)
        labels = parser.labels(images)
        assert labels.dtype == jnp.uint8 and labels.shape == (2, 8, 12)
        assert len(np.unique(labels)) == 3
        logits, _ = outputs(parser.module, parser.params, to_float(images))
        np.testing.assert_array_equal(labels, np.asarray(logits).argmax(-1))

    def test_other_sizes_are_seen_at_the_networks_and_labelled_at_their_own(self):
        parser, images = small_parser(size=16), pictures(2, 30, 50)
        inputs = resize(to_float(images), 16, 16)
        logits, coarsest = outputs(parser.module, parser.params, inputs)
        expected = np.asarray(resize(logits, 30, 50)).argmax(-1)
        disagreeing = np.asarray(parser.labels(images)) != expected
        assert disagreeing.shape == (2, 30, 50) and disagreeing.mean() < 1e-3
        features = np.asarray(coarsest).mean((1, 2))
        np.testing.assert_allclose(parser.features(images), features, rtol=1e-4, atol=1e-5)

    def test_its_own_size_is_not_resized(self):
        images = pictures(4, 16, 16)
        free, fixed = small_parser(), small_parser(size=16)
        np.testing.assert_array_equal(free.labels(images), fixed.labels(images))

    def test_sides_that_do_not_fit_a_parser_of_any_size(self):
        with pytest.raises(InputError, match="images of 10 x 8 pixels do not fit"):
            small_parser().labels(pictures(1, 10, 8))

    def test_passes_through_jit_and_onto_devices(self):
        parser, images = small_parser(size=16), pictures(4, 16, 16)
        mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        place = lambda *axes: jax.NamedSharding(mesh, jax.P(*axes))
        placed = jax.device_put(parser, place())
        assert placed.quality == parser.quality and placed.name == "U-Net trained here"
        spread = jax.device_put(images, place("data"))
        labels = jax.jit(lambda parser, images: parser.labels(images))(placed, spread)
        np.testing.assert_array_equal(labels, parser.labels(images))

    def test_checksum_is_of_what_decides_labels(self):
        parser = small_parser(size=16)
        assert parser.checksum() == small_parser(size=16).checksum()
        config = dataclasses.replace(SMALL, norm_groups=4)
        others = (
            small_parser(size=16, seed=1),
            small_parser(size=8),
            FaceParser.trained(config, parser.params, classes=NAMES, size=16),
        )
        assert parser.checksum() not in {other.checksum() for other in others}

    def test_other_classes_are_refused(self):
        parser = small_parser()
        parser.check(NAMES)
        with pytest.raises(InputError, match="has 3 classes, but the data has 2"):
            parser.check(NAMES[:2])
        with pytest.raises(InputError, match=r"label 1 is 'skin' for .*, but 'hair' in the data"):
            parser.check(("sky", "hair", "skin"))


@pytest.fixture
def folder(tmp_path):
    save_parser(tmp_path / "saved", SMALL, random_params(), classes=NAMES, size=16, quality=QUALITY)
    return tmp_path / "saved"


class TestFiles:
    def test_round_trip(self, folder):
        parser = load_parser(folder)
        assert parser.module.config == SMALL
        assert (parser.classes, parser.size, parser.quality) == (NAMES, 16, QUALITY)
        assert parser.name == "U-Net trained here" and parser.num_classes == 3
        jax.tree.map(np.testing.assert_array_equal, parser.params, random_params())
        assert load_parser(folder / "weights.safetensors").checksum() == parser.checksum()

    def test_no_quality_and_no_size(self, folder):
        save_parser(folder, SMALL, random_params(), classes=NAMES, size=None)
        assert load_parser(folder).quality is None and load_parser(folder).size is None

    def test_a_run_folder_holds_a_parser(self, folder, tmp_path):
        os.rename(folder, tmp_path / "parser")
        (tmp_path / "config.json").write_text('{"model": {"width": 3}}')
        assert load_parser(tmp_path).size == 16

    def test_saving_again_replaces_and_leaves_nothing_behind(self, folder):
        save_parser(folder, SMALL, random_params(seed=1), classes=NAMES, size=32)
        assert load_parser(folder).size == 32
        assert [child.name for child in folder.parent.iterdir()] == ["saved"]

    def test_other_folders_are_not_overwritten(self, folder):
        (folder / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match="holds something other than a face parser"):
            save_parser(folder, SMALL, random_params(), classes=NAMES, size=16)
        assert (folder / "notes.txt").read_text() == "mine"

    @pytest.mark.parametrize(
        ("changes", "phrase"),
        [
            ({"classes": NAMES[:2]}, "parser.num_classes is 3, but there are 2 class names"),
            ({"size": 18}, "size is 18 pixels: choose a multiple of 4"),
            ({"size": 0}, "size is 0 pixels"),
        ],
    )
    def test_what_does_not_belong_together_is_not_saved(self, changes, phrase, tmp_path):
        values = {"classes": NAMES, "size": 16} | changes
        with pytest.raises(InputError, match=phrase):
            save_parser(tmp_path / "saved", SMALL, random_params(), **values)
        assert not any(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("changes", "phrase"),
        [
            ({"channels": [4, 8, "12"]}, r"config\.json is damaged, parser\.channels is"),
            ({"channels": 16}, "parser.channels is 16, which is not a list of whole numbers"),
            ({"num_classes": 3.0}, "parser.num_classes is 3.0, which is not of type int"),
            ({"num_classes": 4}, "is damaged, parser.num_classes is 4, but there are 3"),
            ({"size": 16.5}, "size a whole number or null"),
            ({"classes": "sky"}, "classes must be a list of names"),
            ({"classes": [1, 2, 3]}, "classes must be a list of names"),
            ({"quality": 0.8}, "quality an object or null"),
            ({"depth": 3}, "missing or unknown entries depth"),
            ({"model": "AutoencoderKL"}, "does not describe a face parser"),
        ],
    )
    def test_a_config_that_cannot_be(self, changes, phrase, folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(InputError, match=phrase):
            load_parser(folder)

    @pytest.mark.parametrize("text", ["{", "[]", "3", '"FaceParserUNet"', "{}"])
    def test_a_config_that_is_none(self, text, folder):
        (folder / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"config\.json (is not JSON|does not describe)"):
            load_parser(folder)

    def test_weights_that_differ_are_listed(self, folder):
        file = folder / "weights.safetensors"
        tensors = load_file(file)
        del tensors["final/bias"]
        tensors["center/conv1_0/kernel"] = np.zeros((3, 3, 8, 16), np.float32)
        save_file(tensors, file)
        with pytest.raises(InputError, match=r"missing: final/bias; of another shape: center/"):
            load_parser(folder)

    def test_missing_weights(self, folder):
        (folder / "weights.safetensors").unlink()
        with pytest.raises(InputError, match="there is no weight file"):
            load_parser(folder)

    def test_an_unfinished_run(self, tmp_path):
        (tmp_path / "config.json").write_text(to_json(load_config("parser")))
        with pytest.raises(InputError, match=r"train_parser that is not finished .*: finish it"):
            load_parser(tmp_path)

    @pytest.mark.parametrize("name", ["nothing", "."])
    def test_nothing_there(self, name, tmp_path):
        with pytest.raises(InputError, match="there is no face parser at"):
            load_parser(tmp_path / name)
