"""How long synthesis takes, what it computes, and the memory it needs.

Every program is timed as a whole, as a user pays for it; the time is the median of several calls,
each waited for. Compiling is not in it.

Arithmetic is in multiply-accumulates (MACs): by hand (`models.cost`) and as XLA counts
(`models.xla_cost`), which has norms and activations, too.
"""

import dataclasses
import importlib.metadata
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from sisma_jax import flow
from sisma_jax.evaluation.tables import Table
from sisma_jax.generators import Config, generator
from sisma_jax.models import SISMAConfig
from sisma_jax.models.autoencoder import Autoencoder
from sisma_jax.models.xla_cost import xla_macs
from sisma_jax.processes import cores
from sisma_jax.progress import over
from sisma_jax.synthesis import noise_keys, synthesize_latents
from sisma_jax.synthesizer import Synthesizer
from sisma_jax.training.sharding import (
    batch_sharding,
    fill_up,
    local_mesh,
    under_mesh,
    whole_batch,
)
from sisma_jax.training.throughput import peak_memory

LEAST_CALLS, MOST_CALLS = 3, 20
PATIENCE = 30.0
"""Seconds after which no further call of a slow program is begun."""
MEASURED, TOO_LARGE = "measured", "does not fit"
"""What may have become of a case."""
GIGA, MIB, GIB = 1e9, 2**20, 2**30


class DoesNotFit(Exception):
    """A program needs more memory than there is."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """What `clock` found."""

    seconds: float
    """The median."""
    calls: int
    """That it is of."""


def clock(call: Callable[[], Any], seconds: float, patience: float = PATIENCE) -> Timing:
    """Time a call that returns when its work is done.

    Args:
      call: the first is to warm up, unless it takes longer than `seconds`.
      seconds: to go on for, within LEAST_CALLS to MOST_CALLS calls.
      patience: seconds in all. A call that would go beyond is not begun, but for the first one.
    """
    times: list[float] = []

    def once() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    first = spent = once()
    if first >= seconds:
        times.append(first)
    while len(times) < LEAST_CALLS or (sum(times) < seconds and len(times) < MOST_CALLS):
        if spent + (times or [first])[-1] > patience:
            break
        times.append(once())
        spent += times[-1]
    return Timing(statistics.median(times or [first]), max(1, len(times)))


def available_memory() -> int | None:
    """Bytes that are left of a device, of the machine on a CPU; None where nobody says."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    info = Path("/proc/meminfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return sizes[0] if sizes else None


def check_fit(needed: int) -> None:
    """Raises DoesNotFit if that many bytes are more than there are."""
    left = available_memory()
    if left is not None and needed > left:
        raise DoesNotFit(f"it needs {needed / GIB:.1f} GiB where {left / GIB:.1f} GiB are left")


def unless_too_large(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `measure` returns and its "status", which else is that it does not fit, and why."""
    try:
        return {"status": MEASURED, **measure()}
    except DoesNotFit as error:
        return {"status": TOO_LARGE, "reason": str(error)}
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"status": TOO_LARGE, "reason": str(error).splitlines()[0][:200]}


def circumstances() -> dict[str, Any]:
    """What times depend on beside the program."""
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "cores": cores(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
    }


def where(found: dict[str, Any]) -> str:
    """`circumstances` in words."""
    kind = found["device"]
    device = f"{found['cores']} CPU cores" if kind == "cpu" else f"{found['devices']} x {kind}"
    return f"Measured on {device}, jax {found['versions']['jax']}, in {found['dtype']}"


def count(params: Any) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def random_labels(config: Config, batch: int) -> UInt8[np.ndarray, "batch H W"]:
    """A class for every latent's pixels: what a map shows does not change the time."""
    shape = (batch, config.latent_size, config.latent_size)
    classes = np.random.default_rng(0).integers(0, config.num_classes, shape, np.uint8)
    return classes.repeat(config.factor, axis=1).repeat(config.factor, axis=2)


def measure_speed(
    synthesizer: Synthesizer,
    *,
    steps: Sequence[int],
    solvers: Sequence[str],
    guidances: Sequence[float],
    batches: Sequence[int] = (1, 16),
    seconds: float = 2.0,
) -> dict[str, Any]:
    """Time synthesis with and without the decoder, in every combination of what is given.

    All guidances but 1 are one program, which is timed once. A model with a style is given one,
    encoded before.

    Args:
      synthesizer: the model; its own batch size has no part in this.
      steps: of the solver.
      solvers: of `flow.SOLVERS`.
      guidances: 1 is the plain model.
      batches: masks of a call. Where local devices do not divide them, rows are added that are
        computed and thrown away.
      seconds: of each measurement (`clock`).

    Returns:
      What `circumstances` says; "dtype", "image_size"; "parameters" of "model" and "autoencoder";
      "gmacs" of one image: of a "velocity" by hand and (SISMA's) "velocity_xla", of the "mask" and
      a reference's "style" by hand, of "decode_xla"; "peak_bytes" of a device, or of the process on
      a CPU, so far; "cases", each with "batch", "solver", "steps", "guidance", "velocities",
      "gmacs_per_image" (decoding not counted), "status" and, if it is "measured",
      "seconds_per_image", "seconds_per_image_latents" (without decoding), "images_per_second",
      "images_per_second_latents", "calls" that each time is the median of, "arguments_bytes" and
      "temporary_bytes" of a device as XLA planned the program with the decoder; else "reason".
    """
    config = synthesizer.config
    macs = generator(config).macs()
    velocity, mask = macs.velocity, macs.mask
    by_xla = xla_macs(config) / GIGA if isinstance(config, SISMAConfig) else None
    combinations = list(itertools.product(batches, solvers, steps, guidances))
    programs = dict.fromkeys((*rest, guidance != 1.0) for *rest, guidance in combinations)
    for batch, solver, count_, guided in over(list(programs), unit="program", desc="speed"):
        programs[batch, solver, count_, guided] = unless_too_large(
            lambda batch=batch, solver=solver, count_=count_, guided=guided: time_synthesis(
                synthesizer, batch, seconds, steps=count_, solver=solver, guided=guided
            )
        )
    cases = []
    for batch, solver, count_, guidance in combinations:
        passes = 1 if guidance == 1.0 else 2
        velocities = passes * count_ * flow.VELOCITIES[solver]
        case = dict(batch=batch, solver=solver, steps=count_, guidance=guidance)
        case["velocities"] = velocities
        case["gmacs_per_image"] = (passes * mask + velocities * velocity) / GIGA
        cases.append(case | programs[batch, solver, count_, guidance != 1.0])
    return {
        **circumstances(),
        "dtype": config.dtype,
        "image_size": config.image_size,
        "parameters": {
            "model": count(synthesizer.params),
            "autoencoder": count(synthesizer.autoencoder),
        },
        "gmacs": {
            "velocity": velocity / GIGA,
            "velocity_xla": by_xla,
            "mask": mask / GIGA,
            "style": macs.style / GIGA,
            "decode_xla": decode_xla_macs(synthesizer.autoencoder, config) / GIGA,
        },
        "peak_bytes": peak_memory(),
        "cases": cases,
    }


def decode_xla_macs(autoencoder: Autoencoder, config: Config) -> float:
    """Half of XLA's operations for decoding one image. There are no loops in it to miss."""
    shape = (1, config.latent_size, config.latent_size, config.latent_channels)
    latents = jax.ShapeDtypeStruct(shape, np.float32)
    lowered = jax.jit(Autoencoder.from_latents).lower(autoencoder, latents)
    return lowered.cost_analysis()["flops"] / 2


def time_synthesis(
    synthesizer: Synthesizer, batch: int, seconds: float, *, steps: int, solver: str, guided: bool
) -> dict[str, Any]:
    """Time one way of synthesis: what `measure_speed` says of a measured case.

    Raises:
      DoesNotFit: if the memory that XLA plans is more than there is.
    """
    guidance = 2.0 if guided else 1.0
    options = dict(steps=steps, solver=solver)
    whole = dataclasses.replace(synthesizer, batch_size=batch)
    style = whole.no_style() if whole.has_style else None  # of whatever face costs the same
    plan = whole.memory(batch, guidance=guidance, style=style, **options)
    check_fit(plan["temporary"])  # weights are there
    labels = random_labels(synthesizer.config, batch)
    decoded = clock(lambda: whole(labels, guidance=guidance, style=style, **options), seconds)

    mesh = local_mesh()
    rows, size = batch_sharding(mesh), whole_batch(batch, mesh)
    inputs = (
        synthesizer.params,
        jax.device_put(noise_keys(0, 0, size), rows),
        jax.device_put(fill_up(labels, size), rows),
        np.float32(guidance),
        style and jax.device_put(style.repeat(size).tokens, rows),
    )
    lowered = under_mesh(mesh, synthesize_latents.lower)(
        synthesizer.config, *inputs, guided=guided, **options
    )
    program = lowered.compile()
    latents = clock(lambda: program(*inputs).block_until_ready(), seconds)
    return {
        "seconds_per_image": decoded.seconds / batch,
        "seconds_per_image_latents": latents.seconds / batch,
        "images_per_second": batch / decoded.seconds,
        "images_per_second_latents": batch / latents.seconds,
        "calls": [decoded.calls, latents.calls],
        "arguments_bytes": plan["arguments"],
        "temporary_bytes": plan["temporary"],
    }


def speed_tables(found: dict[str, Any]) -> list[Table]:
    """What `measure_speed` returned, for a report."""
    return [_cost_table(found), _time_table(found)]


def _cost_table(found: dict[str, Any]) -> Table:
    gmacs, parameters = found["gmacs"], found["parameters"]
    by_xla, style = gmacs["velocity_xla"], gmacs.get("style")
    on_cpu = found["device"] == "cpu"
    return Table(
        "Cost",
        ["quantity", "value"],
        [
            *([f"parameters of the {name}", f"{count:,}"] for name, count in parameters.items()),
            ["GMACs of a velocity, by hand", gmacs["velocity"]],
            ["GMACs of a velocity, XLA's count", by_xla],
            ["XLA's count / by hand", by_xla and by_xla / gmacs["velocity"]],
            ["GMACs of the mask, once an image", gmacs["mask"]],
            *([["GMACs of a style, once a reference", style]] if style else []),
            ["GMACs of decoding, XLA's count", gmacs["decode_xla"]],
            [f"peak memory of the {'process' if on_cpu else 'device'}, GiB",
             found["peak_bytes"] / GIB],
        ],
        f"One image of {found['image_size']} pixels. A step of euler takes one velocity, of the "
        "other solvers two; guidance doubles velocities and mask. XLA counts norms and activations "
        "too. Peak memory is the most so far, of everything that the process has done.",
    )  # fmt: skip


def _time_table(found: dict[str, Any]) -> Table:
    def line(case: dict[str, Any]) -> list:
        start = [case[name] for name in ("batch", "solver", "steps", "guidance")]
        if case["status"] != MEASURED:
            return [*start, case["status"], *[None] * 3, case["gmacs_per_image"], None, None]
        times = ("seconds_per_image", "seconds_per_image_latents", "images_per_second",
                 "images_per_second_latents", "gmacs_per_image")  # fmt: skip
        memory = (case[name] / MIB for name in ("arguments_bytes", "temporary_bytes"))
        return [*start, *(case[name] for name in times), *memory]

    return Table(
        "Speed",
        [
            "batch", "solver", "steps", "guidance", "s/image", "s/image without decoding",
            "images/s", "images/s without decoding", "GMACs/image without decoding",
            "weights and inputs MiB", "temporary MiB",
        ],
        [line(case) for case in found["cases"]],
        f"{where(found)}: medians of {LEAST_CALLS} calls or more (fewer where they take long), "
        "compiled before. All guidances but 1 are one program, timed once. Memory is that of a "
        "device, as XLA planned it, with decoding.",
    )  # fmt: skip
