"""What the chunked implementation keeps and moves: memory, and communication over a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sisma_jax.kernels import selective_scan

BATCH, LENGTH, CHANNELS, STATE = 4, 512, 32, 16
ALL_STATES = BATCH * LENGTH * CHANNELS * STATE
ORDER = np.random.default_rng(0).permutation(LENGTH).astype(np.int32)


def specs():
    shapes = [
        (BATCH, LENGTH, CHANNELS),
        (BATCH, LENGTH, CHANNELS),
        (CHANNELS, STATE),
        (BATCH, LENGTH, STATE),
        (BATCH, LENGTH, STATE),
        (CHANNELS,),
    ]
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def scan(u, delta, A, B, C, D, order=ORDER):
    return selective_scan(
        u, delta, A, B, C, D, delta_softplus=True, order=order, implementation="chunked"
    )


def loss(*arguments):
    return jnp.sum(scan(*arguments) ** 2)


def test_residuals_do_not_hold_the_states_of_all_steps():
    _, pull_back = jax.eval_shape(lambda *a: jax.vjp(scan, *a), *specs())
    kept = [leaf.size for leaf in jax.tree.leaves(pull_back)]
    assert max(kept) <= ALL_STATES / STATE
    assert sum(kept) < ALL_STATES / 2


def test_backward_pass_never_holds_the_states_of_all_steps():
    compiled = jax.jit(jax.grad(loss, argnums=tuple(range(6)))).lower(*specs()).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * ALL_STATES / 2


def test_several_orders_do_not_copy_u():
    orders = 8
    u, *others = specs()
    others = [jax.ShapeDtypeStruct((orders, *x.shape), x.dtype) for x in others]
    order = jax.ShapeDtypeStruct((orders, LENGTH), jnp.int32)

    def summed(u, delta, A, B, C, D, order):
        several = jax.vmap(
            lambda delta, A, B, C, D, order: selective_scan(u, delta, A, B, C, D, order=order)
        )
        return several(delta, A, B, C, D, order)

    compiled = jax.jit(summed).lower(u, *others, order).compile()
    copies_of_u = compiled.memory_analysis().temp_size_in_bytes / (4 * u.size)
    assert copies_of_u < orders


def test_batch_sharding_gathers_nothing():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    shard = lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=NamedSharding(mesh, P("data") if len(x.shape) == 3 else P())
    )
    step = jax.jit(jax.grad(loss, argnums=tuple(range(6))))
    program = step.lower(*map(shard, specs())).compile().as_text()
    assert "all-gather" not in program
    assert "all-to-all" not in program
