"""What is done once per synthesis, and not in every step: weights rounded, masks encoded."""

import importlib.util
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.devices.sharding import batch_sharding, local_mesh, replicated, under_mesh
from sisma_jax.kernels.selective_scan.pallas.chips import target
from sisma_jax.models import SISMAConfig
from sisma_jax.models.generators import generator, parameter_shapes
from sisma_jax.models.scadm.config import SCADMConfig
from sisma_jax.synthesis.options import SamplingOptions
from sisma_jax.synthesis.programs import synthesize_latents
from tests.lowering import equations, gpu_in_mind, uses
from tests.models.cost.test_cost import contractions

TINY = dict(latent_size=8, factor=4, width=16, depth=2, state=2, mask_channels=8)
STYLE = dict(attention_head=8, style_channels=2, style_levels=1, style_features=4)
CONFIGS = {
    "SISMA": SISMAConfig(**TINY, **STYLE, style="mamba", dtype="bfloat16"),
    "twin": SISMAConfig(**TINY, **STYLE, style="attention", mixer="attention", dtype="bfloat16"),
    "SCA-DM": SCADMConfig.tiny(dtype="bfloat16"),
}
STEPS = 7
LOW = np.dtype("bfloat16")


def arguments(config, rows=1):
    """Shapes of parameters, latents, times and labels."""
    latents = (rows, *(config.latent_size,) * 2, config.latent_channels)
    return (
        parameter_shapes(config),
        jax.ShapeDtypeStruct(latents, jnp.float32),
        jax.ShapeDtypeStruct((rows,), jnp.float32),
        jax.ShapeDtypeStruct((rows, *(config.image_size,) * 2), jnp.uint8),
    )


def solver_loop(program):
    (loop,) = (
        equation
        for equation in equations(program.jaxpr)
        if equation.primitive.name == "scan" and equation.params["length"] == STEPS
    )
    return loop


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_stored_in_the_compute_type_are_the_weights_that_a_step_would_round(config):
    model = generator(config)
    params, z, t, labels = arguments(config)
    features = jax.eval_shape(lambda *args: model.encode(*args, None), params, labels)
    paths, shapes = zip(*jax.tree_util.tree_leaves_with_path(params), strict=True)

    def converted(function, *args):
        jaxpr = jax.make_jaxpr(function)(params, *args).jaxpr
        return list(uses(jaxpr, jaxpr.invars[: len(shapes)]).values())

    encoding = converted(lambda params, labels: model.encode(params, labels, None), labels)
    step = converted(model.velocity, z, t, features)
    stored = jax.tree.leaves(jax.eval_shape(model.in_compute_type, params))
    for path, leaf, of_encoding, of_step in zip(paths, stored, encoding, step, strict=True):
        name = jax.tree_util.keystr(path)
        if of_step:
            assert (leaf.dtype == jnp.bfloat16) == (of_step == {LOW}), name
        if leaf.dtype == jnp.bfloat16:
            assert of_encoding <= {LOW}, f"{name} is exact in encoding"
    assert sum(bool(of_step) for of_step in step) > len(step) / 4


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_no_step_of_the_solver_rounds_weights(config):
    params, _, _, labels = arguments(config)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    program = jax.make_jaxpr(partial(synthesize_latents, config))(
        params, keys, labels, SamplingOptions(steps=STEPS)
    )
    loop = solver_loop(program)
    body = loop.params["jaxpr"].jaxpr
    constants = body.invars[: loop.params["num_consts"]]
    assert sum(v.aval.dtype == jnp.bfloat16 for v in constants) > 10
    rounded = {v.aval.shape for v, types in uses(body, constants).items() if LOW in types}
    assert not rounded & {leaf.shape for leaf in jax.tree.leaves(params)}


def test_scadm_encodes_its_masks_before_the_solver_and_the_null_mask_for_one_row():
    config, rows = SCADMConfig.tiny(), 3
    model = generator(config)
    params, _, _, labels = arguments(config, rows)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    tokens = jax.eval_shape(lambda: jnp.zeros((rows, config.num_classes, config.style_width)))
    program = jax.make_jaxpr(partial(synthesize_latents, config))(
        params, keys, labels, SamplingOptions(steps=STEPS, guidance=2.0), tokens
    )
    loop, macs = solver_loop(program), model.macs()
    step = contractions(loop.params["jaxpr"].jaxpr)
    assert step == 2 * rows * macs.velocity
    no_style = contractions(jax.make_jaxpr(model.no_style)(params).jaxpr)
    assert contractions(program.jaxpr) - STEPS * step == (rows + 1) * macs.mask + no_style


def test_guidance_moves_nothing_between_devices():
    """Rows of one image under several conditions are neighbours, so each device has its own."""
    config, mesh, rows = SISMAConfig(**TINY, dtype="float32"), local_mesh(), 8
    params, _, _, labels = arguments(config, rows)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    placed = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    params = jax.tree.map(lambda x: placed(x, replicated(mesh)), params)
    keys, labels = (placed(x, batch_sharding(mesh)) for x in (keys, labels))
    options = SamplingOptions(steps=STEPS, guidance=2.0)
    lowered = under_mesh(mesh, synthesize_latents.lower)(config, params, keys, labels, options)
    moved = re.findall(r"all-gather|all-to-all|collective-permute", lowered.compile().as_text())
    assert mesh.size == 4 and not moved


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="needs the CUDA compiler: pip install -e '.[gpu-check]'",
)
@pytest.mark.parametrize(
    "config",
    [
        SISMAConfig(latent_size=8, factor=8, width=256, depth=2, dtype="bfloat16"),
        SCADMConfig.tiny(dtype="bfloat16"),
    ],
    ids=["SISMA", "SCA-DM"],
)
def test_compiled_for_a_gpu_the_loop_holds_no_float32_weights(config):
    """What the loop does not hold it cannot round."""
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    topology = topologies.get_topology_desc(
        platform="cuda", target_config=target("H200"), topology="1x1x1"
    )
    mesh = Mesh(np.array(topology.devices), ("device",))
    params, _, _, labels = arguments(config)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    params, keys, labels = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec())
        ),
        (params, keys, labels),
    )
    options = SamplingOptions(steps=STEPS)
    with gpu_in_mind("H200"):
        program = synthesize_latents.lower(config, params, keys, labels, options).compile()
    loops = [line for line in program.as_text().splitlines() if " while(" in line]
    (solver,) = (line for line in loops if f'"known_trip_count":{{"n":"{STEPS}"}}' in line)
    sizes = lambda shape: tuple(sorted(size for size in shape if size > 1))
    held = {"f32": set(), "bf16": set()}
    for kind, shape in re.findall(r"(f32|bf16)\[([\d,]+)\]", solver.split(" while(")[0]):
        held[kind].add(sizes(map(int, shape.split(","))))
    stored = jax.tree.leaves(jax.eval_shape(generator(config).in_compute_type, params))
    exact = {sizes(leaf.shape) for leaf in stored if leaf.dtype == jnp.float32}
    rounded = {sizes(leaf.shape) for leaf in stored if len(leaf.shape) > 1} - exact
    assert len(rounded & held["bf16"]) > 4 and not rounded & held["f32"]
