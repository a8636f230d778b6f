"""The same training on one device and on many: the losses, and what moves between the devices."""

import dataclasses
import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.devices import sharding
from sisma_jax.devices.sharding import MeshConfig, make_mesh, put_batch, state_shardings
from sisma_jax.models import SISMAConfig
from sisma_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from sisma_jax.training.objective import FlowConfig, trainable_generator
from sisma_jax.training.program import assemble
from tests.training import toy

ROWS = 8
CONFIG = SISMAConfig.tiny(
    latent_size=8, patch=1, width=32, depth=2, state=4, mask_channels=8, factor=4
)

# Every mesh is a program that takes ten seconds to compile.
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
MESHES = [
    slow(2, 2, 2), slow(2, 1, 1), slow(4, 1, 1), slow(1, 4, 1), slow(2, 2, 1),
    slow(8, 1, 1), slow(2, 4, 1),
]  # fmt: skip


def batch(number):
    rng = np.random.default_rng(number)
    moments = rng.normal(size=(ROWS, 8, 8, 8)).astype(np.float16)
    return {
        "moments": moments,
        "labels": rng.integers(0, 19, (ROWS, 32, 32)).astype(np.uint8),
    }


@functools.cache
def trained(data, fsdp, accumulate=1, remat="none"):
    """Losses and gradient norms of three steps on data x fsdp devices, the program, the state."""
    if data * fsdp > jax.device_count():
        pytest.skip(f"{jax.device_count()} devices: set JAX_NUM_CPU_DEVICES=8")
    settings = toy.settings(batch_size=ROWS, accumulate=accumulate)
    config = dataclasses.replace(CONFIG, remat=remat)
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp), jax.devices()[: data * fsdp])
    flow_config = FlowConfig(sampling="logit_normal", drop=0.5)
    trainable = trainable_generator(config, flow_config, settings, seed=0)
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(sharding, "SMALLEST_SHARDED", 1024)
        program = assemble(trainable, config=settings, seed=0, mesh=mesh)
        state = program.init()
        autoencoder = Autoencoder(AutoencoderConfig.tiny(scaling_factor=0.5), {})
        compiled = program.compile_step(put_batch(batch(0), mesh), autoencoder)
        curve = []
        for number in range(3):
            state, metrics = compiled(state, put_batch(batch(number), mesh), autoencoder)
            curve.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
    return np.array(curve), compiled.as_text(), state


@pytest.mark.parametrize(("data", "fsdp", "accumulate"), MESHES)
def test_losses_are_those_of_one_device(data, fsdp, accumulate):
    curve, _, _ = trained(data, fsdp, accumulate)
    alone, _, _ = trained(1, 1)
    np.testing.assert_allclose(curve, alone, rtol=2e-5)
    assert alone[0, 0] != alone[2, 0]


def moved(text, operations="all-gather|all-to-all|collective-permute"):
    """(operation, shape) of everything that moves between devices in a compiled program."""
    pattern = rf"= (\(.*?\)|\S+) ({operations})(?:-start)?\("
    return [
        (operation, tuple(int(n) for n in shape.split(",") if n))
        for types, operation in re.findall(pattern, text)
        for shape in re.findall(r"\w+\[([\d,]*)\]", types)
    ]


@pytest.mark.slow
def test_with_copies_of_the_parameters_only_sums_move():
    _, text, _ = trained(4, 1)
    assert moved(text) == []
    assert moved(text, "all-reduce")


@pytest.mark.parametrize(
    ("data", "fsdp", "accumulate"), [mesh for mesh in MESHES if mesh.values[1] > 1]
)
def test_only_parameters_are_gathered_and_no_activations(data, fsdp, accumulate):
    _, text, state = trained(data, fsdp, accumulate)
    shapes = {x.shape for x in jax.tree.leaves(state.params)}
    # One block's share of stacked parameters, as the loop over blocks takes it.
    shapes |= {(1, *shape[1:]) for shape in shapes} | {shape[1:] for shape in shapes}
    gathers = moved(text)
    assert len(gathers) > 5
    for operation, shape in gathers:
        assert operation == "all-gather" and shape in shapes, (operation, shape)


@pytest.mark.slow
def test_with_blocks_computed_again_no_device_holds_the_parameters_of_all_blocks():
    _, text, state = trained(2, 2, remat="block")
    cut = [x for x in jax.tree.leaves(state.params["blocks"]) if not x.sharding.is_fully_replicated]
    shards = {x.addressable_shards[0].data.shape for x in cut}
    whole = {x.shape for x in cut} - shards
    assert len(whole) > 3
    for shape in whole:
        assert f"[{','.join(map(str, shape))}]" not in text, shape


def test_parameters_optimizer_and_average_are_cut_alike_and_small_ones_are_whole():
    _, _, state = trained(2, 2, 2)
    kernel = lambda tree: tree["blocks"]["ff_in"]["kernel"]
    moments = [x for x in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu"))]
    adam = next(x for x in moments if hasattr(x, "mu"))
    for tree in (state.params, state.ema, adam.mu, adam.nu):
        # (blocks, width, 4 width): the widest axis is cut, never that of the blocks.
        assert kernel(tree).sharding.spec == jax.sharding.PartitionSpec(None, None, "fsdp")
        assert kernel(tree).addressable_shards[0].data.shape == (2, 32, 64)
        assert tree["blocks"]["ff_in"]["bias"].sharding.is_fully_replicated


def test_the_axis_of_the_blocks_is_never_cut():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4))
    tree = {
        "blocks": {"tall": jax.ShapeDtypeStruct((2**20, 3), jnp.float32)},
        "tall": jax.ShapeDtypeStruct((2**20, 3), jnp.float32),
    }
    specs = jax.tree.map(lambda x: x.spec, state_shardings(tree, mesh))
    assert specs["blocks"]["tall"] == jax.sharding.PartitionSpec()
    assert specs["tall"] == jax.sharding.PartitionSpec("fsdp", None)


@pytest.mark.slow
def test_eight_devices():
    """The meshes above that need so many, in a process that has them."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "slow", __file__, "-k", "8-1 or 2-4"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout[-3000:]
