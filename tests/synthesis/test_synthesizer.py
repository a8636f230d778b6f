"""Masks to images: what noise depends on, what is computed once, what is refused."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax import Synthesizer
from sisma_jax.common.errors import InputError
from sisma_jax.models.autoencoder import to_uint8
from sisma_jax.synthesis.options import SamplingOptions
from sisma_jax.synthesis.programs import synthesize_latents, variant_of
from tests.lowering import equations
from tests.synthesis.pictures import largest_difference

DECODER = ("decoder", "post_quant_conv", "linear_decoder")


def test_images_are_bytes_of_the_masks_size(synthesizer, labels):
    images = synthesizer(labels, steps=2)
    assert images.shape == (5, 32, 32, 3) and images.dtype == np.uint8
    assert synthesizer(labels[:0], steps=2).shape == (0, 32, 32, 3)


def test_the_same_call_gives_the_same_images_and_another_seed_others(synthesizer, labels):
    first = synthesizer(labels, seed=3, steps=2)
    np.testing.assert_array_equal(first, synthesizer(labels, seed=3, steps=2))
    assert largest_difference(first, synthesizer(labels, seed=4, steps=2)) > 20
    one_mask = synthesizer(np.repeat(labels[:1], 2, axis=0), steps=2)
    assert largest_difference(one_mask[0], one_mask[1]) > 20


def test_batch_size_changes_a_picture_by_at_most_one_level(tiny_run, synthesizer, labels):
    other = Synthesizer.load(tiny_run, batch_size=12)
    assert largest_difference(synthesizer(labels, steps=4), other(labels, steps=4)) <= 1


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.array, jnp.int32])
def test_whole_numbers_may_be_of_any_kind(kind, synthesizer, labels):
    expected = synthesizer(labels, seed=3, steps=2)
    np.testing.assert_array_equal(synthesizer(labels, seed=kind(3), steps=kind(2)), expected)
    seeds = np.array([3] * 5)
    np.testing.assert_array_equal(
        synthesizer(labels, seed=seeds, steps=2), synthesizer(labels, seed=[3] * 5, steps=2)
    )


def test_an_image_depends_on_its_own_seed_and_index_only(synthesizer, labels):
    images = synthesizer(labels, seed=3, steps=2)
    assert largest_difference(synthesizer(labels[:2], seed=3, steps=2), images[:2]) <= 1
    seeds = [11, 7, 7, 0, 2**32 - 1]
    each = synthesizer(labels, seed=seeds, steps=2)
    for i in (1, 4):
        alone = synthesizer(labels[i : i + 1], seed=seeds[i], steps=2)
        assert largest_difference(alone, each[i : i + 1]) <= 1


def test_a_batch_is_dispatched_before_the_last_is_waited_for_and_no_third(synthesizer, labels):
    log, names = [], itertools.count()

    class Images:
        def __init__(self, labels):
            self.name, self.labels = next(names), labels
            log.append(f"{self.name} dispatched")

        def __array__(self, dtype=None, copy=None):
            log.append(f"{self.name} waited for")
            return np.asarray(self.labels)

    options, other = SamplingOptions(steps=2), dataclasses.replace(synthesizer)
    program = lambda params, autoencoder, keys, labels, *_: Images(labels)
    maps = np.arange(14, dtype=np.uint8)[:, None, None].repeat(32, 1).repeat(32, 2)
    other._compiled[variant_of(4, options, None, maps)] = program
    batches = other.batches(maps, options)
    made = [next(batches), next(batches)]
    assert log == [
        "0 dispatched", "1 dispatched", "0 waited for", "2 dispatched", "1 waited for"
    ]  # fmt: skip
    np.testing.assert_array_equal(np.concatenate([*made, *batches]), maps)


def test_memory_is_of_solver_and_decoder_in_one_program(synthesizer, tiny_run, labels):
    before = synthesizer(labels[:4], steps=2)
    small = synthesizer.memory(4, SamplingOptions(steps=2))
    assert small["batch"] == 4, "one image on each of four devices"
    large = Synthesizer.load(tiny_run, batch_size=16).memory(16, SamplingOptions(steps=2))
    decoder = [synthesizer.autoencoder.params[name] for name in DECODER]
    weights = sum(x.nbytes for x in jax.tree.leaves((synthesizer.params, decoder)))
    assert weights < small["arguments"] < 1.2 * weights, "the encoder is not among them"
    np.testing.assert_array_equal(synthesizer(labels[:4], steps=2), before)
    assert large["temporary"] > 2 * small["temporary"] > 0


@pytest.mark.parametrize("solver", ["heun", "midpoint"])
def test_solvers_agree_in_the_limit(synthesizer, labels, solver):
    euler = synthesizer(labels[:1], steps=64)
    assert largest_difference(synthesizer(labels[:1], steps=32, solver=solver), euler) <= 6


def test_guidance_one_is_the_plain_model_and_costs_nothing(synthesizer, labels):
    plain = synthesizer(labels[:4], steps=2)
    near = synthesizer(labels[:4], steps=2, guidance=1 + 1e-6)
    assert largest_difference(plain, near) <= 1
    assert largest_difference(plain, synthesizer(labels[:4], steps=2, guidance=50.0)) > 1
    unmasked = synthesizer(np.full_like(labels[:4], 255), steps=2)
    assert largest_difference(synthesizer(labels[:4], steps=2, guidance=0.0), unmasked) <= 1

    def flops(guidance):
        lowered = synthesize_latents.lower(
            synthesizer.config, synthesizer.params, jax.random.split(jax.random.key(0), 4),
            labels[:4], SamplingOptions(steps=2, guidance=guidance),
        )  # fmt: skip
        return lowered.cost_analysis()["flops"]

    assert flops(2.0) > 1.5 * flops(1.0), "twice the velocities, and a mask for all rows"


def test_the_mask_is_encoded_once_and_not_in_the_solver_loop(synthesizer, labels):
    jaxpr = jax.make_jaxpr(partial(synthesize_latents, synthesizer.config))(
        synthesizer.params, jax.random.split(jax.random.key(0), 2), labels[:2],
        SamplingOptions(steps=7),
    )  # fmt: skip
    loops = [
        equation
        for equation in equations(jaxpr.jaxpr)
        if equation.primitive.name == "scan" and equation.params["length"] == 7
    ]
    assert len(loops) == 1
    inside = {e.primitive.name for e in equations(loops[0].params["jaxpr"].jaxpr)}
    everywhere = {e.primitive.name for e in equations(jaxpr.jaxpr)}
    # The mask encoder's convolutions; nothing else in SISMA is one.
    assert "conv_general_dilated" in everywhere and "conv_general_dilated" not in inside


def test_bytes_cover_the_range():
    values = jnp.array([-2.0, -1.0, 0.0, 1.0, 2.0]).reshape(1, 1, 5, 1)
    image = np.asarray(to_uint8(jnp.tile(values, (1, 1, 1, 3))))[0, 0, :, 0]
    assert image.tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"guidance": -0.5}, "guidance is -0.5"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"solver": "rk4"}, "solver 'rk4' is unknown: use one of euler"),
        ({"seed": [1, 2]}, "2 seeds do not fit 5 label maps"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"seed": 2**70}, "seed 1180591620717411303424 is out of range"),
        ({"seed": 1.5}, "seed is 1.5: give a whole number"),
        ({"seed": [1, 2, 3, 4, 0.5]}, "seed is 1.0: give a whole number"),
        ({"steps": 2.5}, "steps is 2.5: give a whole number"),
    ],
)
def test_wrong_arguments_are_refused(synthesizer, labels, arguments, message):
    with pytest.raises(InputError, match=message):
        synthesizer(labels, **arguments)


def test_wrong_labels_are_refused(synthesizer, labels):
    wrong = labels.copy()
    wrong[2, 5, 9] = 19
    with pytest.raises(InputError, match=r"label 19 of map 2 at pixel \(9, 5\) is no class"):
        synthesizer(wrong)
    with pytest.raises(InputError, match=r"int64 of shape \(5, 32, 32\)"):
        synthesizer(labels.astype(np.int64))
    with pytest.raises(InputError, match=r"shape \(5, 16, 32\)"):
        synthesizer(labels[:, :16])


def test_a_folder_without_a_run_or_checkpoint_is_named(tiny_run, tmp_path):
    with pytest.raises(InputError, match="is not a run folder"):
        Synthesizer.load(tmp_path)
    (tmp_path / "config.json").write_bytes((tiny_run / "config.json").read_bytes())
    with pytest.raises(InputError, match="no finished checkpoint"):
        Synthesizer.load(tmp_path)
