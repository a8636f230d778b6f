"""Compiles a Pallas kernel to PTX for a GPU that need not be there (extra `gpu-check`)."""

import contextlib
import dataclasses
import hashlib
import math
import os
import pickle
import re
import tempfile
from pathlib import Path

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sisma_jax.kernels.selective_scan.pallas.chips import target
from tests.lowering import gpu_in_mind

from . import launches
from .launches import Launch


@dataclasses.dataclass(frozen=True)
class Compiled:
    ptx: str
    launch: Launch


def compiled(equation, chip: str) -> Compiled:
    """The kernel of an equation of a jaxpr, compiled once and then kept in the tests' cache.

    Args:
      equation: a `pallas_call` or, of Mosaic GPU, an `mpmd_map`.
      chip: one of CHIPS.
    """
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=target(chip), topology="1x1x1"
    )
    sharding = NamedSharding(Mesh(np.array(topology.devices), ("device",)), P())
    primitive, parameters = equation.primitive, equation.params
    bound = primitive.get_bind_params(parameters)
    specs = [
        jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, sharding=sharding) for v in equation.invars
    ]
    with gpu_in_mind(chip):
        lowered = jax.jit(lambda *given: primitive.bind(*given, **bound)).lower(*specs)
    text = re.sub(r"loc\(.*?\)", "", lowered.as_text())
    key = hashlib.sha256(f"{jax.__version__} {chip} {text}".encode()).hexdigest()[:24]
    kept = _cache() / key
    if kept.exists():
        return pickle.loads(kept.read_bytes())
    with _dumps() as dump:
        # Of XLA's flags the tests set some that are for CPUs and would slow a GPU's code.
        lowered.compile({"xla_dump_to": str(dump), "xla_backend_optimization_level": 3})
        arrays = len(equation.invars) + len(equation.outvars)
        found = _of_mosaic(dump) if primitive.name == "mpmd_map" else _of_triton(dump, arrays)
    unfinished = kept.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(pickle.dumps(found))
    unfinished.replace(kept)
    return found


def _cache() -> Path:
    folder = Path(os.environ.get("SISMA_JAX_TESTS_CACHE") or tempfile.gettempdir()) / "ptx"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _dumps():
    """A folder that Mosaic GPU's compiler prints to; programs are not put into JAX's cache.

    What is read from there is not compiled, and prints nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "MOSAIC_GPU_DUMP_PTX": "1",
            "MOSAIC_GPU_DUMP_MLIR_PASSES": "1",
            "MOSAIC_GPU_DUMP_TO": folder,
        }
        before = {name: os.environ.get(name) for name in settings}
        os.environ |= settings
        least = jax.config.jax_persistent_cache_min_compile_time_secs
        jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
        try:
            yield Path(folder)
        finally:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _of_triton(dump: Path, arrays: int) -> Compiled:
    (thunks,) = dump.glob("*.thunk_sequence.txt")
    texts = [path.read_text() for path in dump.glob("*.ptx")]
    (ptx,) = [text for text in texts if ".entry" in text]
    (entry,) = re.findall(r"\.entry (\w+)", ptx)
    return Compiled(ptx, launches.of_triton(thunks.read_text(), entry, arrays))


def _of_mosaic(dump: Path) -> Compiled:
    (log,) = dump.glob("*.mlir-passes.log")
    (ptx,) = [path for path in dump.glob("*.ptx") if not path.name.startswith("module")]
    return Compiled(ptx.read_text(), launches.of_mosaic(log.read_text()))
