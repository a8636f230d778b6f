"""Time, arithmetic and memory of synthesis.

Every program is timed as a whole; the time is the median of several synchronised calls, without
compilation.

Arithmetic is in multiply-accumulates (MACs): by hand (`models.cost.by_hand`) and as XLA counts them
(`models.cost.by_xla`), which includes norms and activations.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from sisma_jax.common.install import versions
from sisma_jax.common.processes import cores
from sisma_jax.common.progress import over
from sisma_jax.devices.sharding import (
    batch_sharding,
    fill_up,
    local_mesh,
    under_mesh,
    whole_batch,
)
from sisma_jax.devices.throughput import peak_memory
from sisma_jax.evaluation.tables import Table
from sisma_jax.flows import rectified
from sisma_jax.models.autoencoder import Autoencoder
from sisma_jax.models.cost.by_xla import counted_macs, floats, xla_macs
from sisma_jax.models.generators import Config, generator
from sisma_jax.synthesis.options import SamplingOptions
from sisma_jax.synthesis.programs import noise_keys, synthesize_latents
from sisma_jax.synthesis.synthesizer import Synthesizer

LEAST_CALLS, MOST_CALLS = 3, 20
PATIENCE = 30.0
"""Seconds after which no further call of a slow program starts."""
MEASURED, TOO_LARGE = "measured", "does not fit"
"""Statuses of a case."""
GIGA, MIB, GIB = 1e9, 2**20, 2**30


class DoesNotFit(Exception):
    """A program needs more memory than there is."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Result of `clock`."""

    seconds: float
    """Median over `calls`."""
    calls: int


def clock(call: Callable[[], Any], seconds: float, patience: float = PATIENCE) -> Timing:
    """Time a call that returns when its work is done.

    Args:
      call: the call; the first one is a warm-up, unless it takes longer than `seconds`.
      seconds: duration, within LEAST_CALLS to MOST_CALLS calls.
      patience: limit in seconds. Except for the first, no call starts that would exceed it.
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
    """Free bytes of a device, or of the machine on a CPU; None if unknown."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    info = Path("/proc/meminfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return sizes[0] if sizes else None


def check_fit(needed: int) -> None:
    """Raises DoesNotFit if `needed` bytes are more than are free."""
    left = available_memory()
    if left is not None and needed > left:
        raise DoesNotFit(f"it needs {needed / GIB:.1f} GiB where {left / GIB:.1f} GiB are left")


def unless_too_large(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of `measure` with "status" MEASURED; otherwise TOO_LARGE with a "reason"."""
    try:
        return {"status": MEASURED, **measure()}
    except DoesNotFit as error:
        return {"status": TOO_LARGE, "reason": str(error)}
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"status": TOO_LARGE, "reason": str(error).splitlines()[0][:200]}


def circumstances() -> dict[str, Any]:
    """Circumstances that times depend on besides the program."""
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "cores": cores(),
        "versions": versions(("jax", "jaxlib", "flax")),
    }


def where(result: dict[str, Any]) -> str:
    """A sentence on `circumstances`, for a report."""
    kind = result["device"]
    device = f"{result['cores']} CPU cores" if kind == "cpu" else f"{result['devices']} x {kind}"
    return f"Measured on {device}, jax {result['versions']['jax']}, in {result['dtype']}"


def count(params: Any) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def random_labels(config: Config, batch: int) -> UInt8[np.ndarray, "batch H W"]:
    """Random label maps, one class per latent: their content does not affect the time."""
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
    """Time synthesis with and without the decoder, in all combinations of the arguments.

    All guidances but 1 are one program, which is timed once. A model with style conditioning gets a
    style that was encoded before.

    Args:
      synthesizer: the model; its own batch size is ignored.
      steps: numbers of solver steps.
      solvers: names in `rectified.SOLVERS`.
      guidances: guidances; 1 is the plain model.
      batches: numbers of masks per call, padded to a multiple of the local devices.
      seconds: duration of each measurement (`clock`).

    Returns:
      The result of `circumstances`; "dtype", "image_size"; "parameters" of "model" and
      "autoencoder"; "gmacs" of one image: "velocity", "mask" and a reference's "style" by hand,
      the same as XLA counts them ("velocity_xla" and so on), and "decode_xla"; "peak_bytes" of a
      device, or of the
      process on a CPU, so far; "cases", each with "batch", "solver", "steps", "guidance",
      "velocities", "gmacs_per_image" (decoding not counted), "status" and, if it is "measured",
      "seconds_per_image", "seconds_per_image_latents" (without decoding), "images_per_second",
      "images_per_second_latents", "calls" per median, "arguments_bytes" and
      "temporary_bytes" of a device as XLA planned the program with the decoder; else "reason".
    """
    config = synthesizer.config
    macs, by_xla = generator(config).macs(), xla_macs(config)
    combinations = [
        (batch, SamplingOptions(steps=number, solver=solver, guidance=guidance))
        for batch, solver, number, guidance in itertools.product(batches, solvers, steps, guidances)
    ]
    program_of = lambda batch, options: (batch, jax.tree.structure(options))
    programs = {program_of(*combination): combination for combination in combinations}
    timed = {
        program: unless_too_large(partial(time_synthesis, synthesizer, batch, options, seconds))
        for program, (batch, options) in over(list(programs.items()), unit="program", desc="speed")
    }
    cases = []
    for batch, options in combinations:
        passes = 2 if options.guided else 1
        velocities = passes * options.steps * rectified.VELOCITIES[options.solver]
        masks = 1 + (passes - 1) / batch  # the null mask is encoded once a batch
        case = {
            "batch": batch,
            "solver": options.solver,
            "steps": options.steps,
            "guidance": options.guidance,
            "velocities": velocities,
            "gmacs_per_image": (masks * macs.mask + velocities * macs.velocity) / GIGA,
        }
        cases.append(case | timed[program_of(batch, options)])
    return {
        **circumstances(),
        "dtype": config.dtype,
        "image_size": config.image_size,
        "parameters": {
            "model": count(synthesizer.params),
            "autoencoder": count(synthesizer.autoencoder),
        },
        "gmacs": {
            **{name: count / GIGA for name, count in macs._asdict().items()},
            **{f"{name}_xla": count / GIGA for name, count in by_xla._asdict().items()},
            "decode_xla": decode_xla_macs(synthesizer.autoencoder, config) / GIGA,
        },
        "peak_bytes": peak_memory(),
        "cases": cases,
    }


def decode_xla_macs(autoencoder: Autoencoder, config: Config) -> int:
    """Half of XLA's operations for decoding one image."""
    latents = floats(1, config.latent_size, config.latent_size, config.latent_channels)
    return counted_macs(Autoencoder.from_latents, autoencoder, latents)


def time_synthesis(
    synthesizer: Synthesizer, batch: int, options: SamplingOptions, seconds: float
) -> dict[str, Any]:
    """Time one program; return the measurements of a case of `measure_speed`.

    Raises:
      DoesNotFit: if the memory that XLA plans is more than there is.
    """
    batched = dataclasses.replace(synthesizer, batch_size=batch)
    style = batched.no_style() if batched.has_style else None  # any style costs the same
    plan = batched.memory(batch, options, style=style)
    check_fit(plan["temporary"])  # weights are already there
    labels = random_labels(synthesizer.config, batch)
    decoded = clock(lambda: batched.images(labels, options, style=style), seconds)

    mesh = local_mesh()
    rows, size = batch_sharding(mesh), whole_batch(batch, mesh)
    inputs = (
        synthesizer.params,
        jax.device_put(noise_keys(0, 0, size), rows),
        jax.device_put(fill_up(labels, size), rows),
        options,
        style and jax.device_put(style.repeat(size).tokens, rows),
    )
    program = under_mesh(mesh, synthesize_latents.lower)(synthesizer.config, *inputs).compile()
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


def speed_tables(result: dict[str, Any]) -> list[Table]:
    """Tables of the result of `measure_speed`."""
    return [_cost_table(result), _time_table(result)]


def _cost_table(result: dict[str, Any]) -> Table:
    gmacs, parameters = result["gmacs"], result["parameters"]
    by_xla, style = gmacs["velocity_xla"], gmacs.get("style")
    style_by_xla = gmacs.get("style_xla")  # older reports lack it
    on_cpu = result["device"] == "cpu"
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
            *([["GMACs of a style, XLA's count", style_by_xla]] if style_by_xla else []),
            ["GMACs of decoding, XLA's count", gmacs["decode_xla"]],
            [f"peak memory of the {'process' if on_cpu else 'device'}, GiB",
             result["peak_bytes"] / GIB],
        ],
        f"One image of {result['image_size']} pixels. A step of euler or ab2 takes one velocity, "
        "one of midpoint or heun two; guidance doubles velocities and encodes one more mask a "
        "batch. A model that draws in one pass takes one velocity an image. XLA counts norms, "
        "activations and resizing too. Peak memory is the maximum so far, over everything that the "
        "process has done.",
    )  # fmt: skip


def _time_table(result: dict[str, Any]) -> Table:
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
        [line(case) for case in result["cases"]],
        f"{where(result)}: medians of {LEAST_CALLS} calls or more (fewer if they take long), "
        "without compilation. All guidances but 1 are one program, timed once. Memory is that of a "
        "device, as XLA planned it, with decoding.",
    )  # fmt: skip
