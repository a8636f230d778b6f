"""Programs compiled for an H200 on a machine without one. Needs the extra `gpu-check`."""

import importlib.util
from collections.abc import Callable

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sisma_jax.kernels.selective_scan.pallas.chips import target
from tests.lowering import gpu_in_mind

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="needs the CUDA compiler: pip install -e '.[gpu-check]'",
)


def compiled_for_h200(function: Callable, *shapes: jax.ShapeDtypeStruct) -> jax.stages.Compiled:
    """`function` at shapes of arrays, compiled by XLA alone: no kernels of Mosaic."""
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=target("H200"), topology="1x1x1"
    )
    replicated = NamedSharding(Mesh(np.array(topology.devices), ("device",)), P())
    placed = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated) for x in shapes]
    with gpu_in_mind("H200"):
        return jax.jit(function).lower(*placed).compile()
