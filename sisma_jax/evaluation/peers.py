"""SISMA's peers, timed in the same run: an attention twin, and an SDM-shaped U-Net.

Two claims of the paper (arXiv 2509.17651) are measured: that SISMA's cost is linear in the number
of tokens, in comparison with a twin that has attention in place of Mamba, and that SISMA takes a
third of the time of SDM (arXiv 2207.00050) for an image. Weights are random, since times do not
depend on them.

Every network is timed for one step of sampling, at batch 1 and on one device. The weights of all
networks are rounded to the compute type beforehand, as in SDM's published sampling code and as in
`Synthesizer`, which rounds them once, before the solver's first step.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Compiled

from sisma_jax.common.errors import InputError
from sisma_jax.common.progress import bar
from sisma_jax.evaluation.speed import (
    GIGA,
    MEASURED,
    MIB,
    PATIENCE,
    Timing,
    check_fit,
    circumstances,
    clock,
    count,
    random_labels,
    unless_too_large,
    where,
)
from sisma_jax.evaluation.tables import Cell, Table
from sisma_jax.models import SISMA, SISMAConfig
from sisma_jax.models.autoencoder import Autoencoder, AutoencoderConfig, parameter_shapes
from sisma_jax.models.cost.by_hand import mask_macs, velocity_macs
from sisma_jax.models.layers.unet import in_compute_type as sdm_in_compute_type
from sisma_jax.models.sdm.model import (
    DIFFUSION_STEPS,
    SDMConfig,
    sdm_macs,
    sdm_step,
)
from sisma_jax.models.sdm.model import init_params as init_sdm
from sisma_jax.models.sisma.model import in_compute_type as sisma_in_compute_type
from sisma_jax.models.sisma.model import init_params as init_sisma

TOKENS = (256, 1024, 4096, 16384)
STEPS = 25
"""Euler steps of SISMA's image, which is compared with SDM's."""
SDM_GUIDANCE = 1.5
"""SDM's published guidance for faces, used for both models; any value but 1 costs the same."""
PUBLISHED_SDM = SDMConfig()
LARGE_SISMA = SISMAConfig.large()
REPORTED_AUTOENCODER = AutoencoderConfig.stable_diffusion()
OURS, TWIN, THEIRS = "SISMA", "attention twin", "SDM"


def random_weights(shapes: Any) -> Any:
    """Random arrays with the shapes and dtypes of a tree, none of them all zero.

    They are drawn on the host, since drawing on the device would compile a program for each shape.
    """
    random = np.random.default_rng(0)
    draw = lambda leaf: 0.02 * random.standard_normal(leaf.shape, np.float32)
    return jax.tree.map(lambda leaf: jnp.asarray(draw(leaf), leaf.dtype), shapes)


def measure_peers(
    config: SISMAConfig,
    *,
    tokens: Sequence[int] = TOKENS,
    sdm: SDMConfig | None = PUBLISHED_SDM,
    sisma: SISMAConfig = LARGE_SISMA,
    autoencoder: AutoencoderConfig = REPORTED_AUTOENCODER,
    dtype: str | None = None,
    seconds: float = 1.0,
    sdm_seconds: float = 60.0,
) -> dict[str, Any]:
    """Time SISMA and its twin by number of tokens, and compare SISMA with SDM.

    Args:
      config: sizes of SISMA and its twin: width, depth and the rest. The latents' size follows
        from `tokens`, with patches of one latent.
      tokens: square numbers.
      sdm: sizes of SDM; None leaves it out.
      sisma: sizes of the SISMA that is compared with SDM.
      autoencoder: sizes of the autoencoder that decodes its latents.
      dtype: compute type of all; by default "float32" on a CPU, else "bfloat16".
      seconds: duration of each measurement (`speed.clock`).
      sdm_seconds: limit for the steps of SDM, and of the SISMA compared with it, each with and
        without guidance; the first step of each is always timed.

    Returns:
      The result of `circumstances`; "dtype"; "sizes" of the twins; "over_tokens", cases of SISMA
      and its twin with "model", "tokens", "pixels", "parameters", "gmacs" of a velocity,
      "mask_gmacs", "status" and, if it is "measured", "seconds" of a velocity with an encoded mask,
      the "calls" timed, "mask_seconds", and "temporary_bytes" as XLA planned the velocity;
      "images", cases of SISMA and SDM with "model", "guidance", "parameters", "pixels",
      "gmacs_per_step", "steps", "gmacs_per_image", "status" and, if measured,
      "seconds_per_step", "calls" timed, "seconds_once" (for SISMA the mask and decoding),
      "temporary_bytes", "seconds_per_image" (seconds_once + steps x seconds_per_step) and, of SDM,
      "times_sisma", the ratio of the two models' seconds_per_image. A case that does not fit
      has a "reason" instead.

    Raises:
      InputError: if a number of tokens is not a square.
    """
    dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    pairs = [(number, *pair) for number in tokens for pair in twins(config, number, dtype).items()]
    over_tokens = []
    cases = len(pairs) + 4 * (sdm is not None)
    with bar(total=cases, unit="case", desc="peers", leave=False) as progress:
        for number, model, sizes in pairs:
            progress.set_description(f"{model}, {number:,} tokens")
            over_tokens.append(_velocity_case(model, number, sizes, seconds))
            progress.update()
        images = []
        if sdm is not None:
            for guided in (False, True):
                guidance = SDM_GUIDANCE if guided else 1.0
                progress.set_description(f"{OURS}, guidance {guidance:g}")
                ours = _retyped(sisma, dtype), _retyped(autoencoder, dtype)
                images.append(_sisma_image(*ours, guidance, seconds, sdm_seconds))
                progress.update()
                progress.set_description(f"{THEIRS}, guidance {guidance:g}")
                images.append(_sdm_image(_retyped(sdm, dtype), guidance, seconds, sdm_seconds))
                progress.update()
                _compare(*images[-2:])
    return {
        **circumstances(),
        "devices": 1,
        "dtype": dtype,
        "sizes": dataclasses.asdict(_retyped(config, dtype)),
        "over_tokens": over_tokens,
        "images": images,
    }


def _retyped(config: Any, dtype: str) -> Any:
    return dataclasses.replace(config, dtype=dtype)


def twins(config: SISMAConfig, tokens: int, dtype: str) -> dict[str, SISMAConfig]:
    """SISMA and its attention twin of the same widths, at a number of tokens.

    Raises:
      InputError: if that is not a square.
    """
    side = math.isqrt(max(tokens, 0))
    if side < 1 or side**2 != tokens:
        raise InputError(f"{tokens} tokens are not a square: give numbers like 256 and 1024")
    change = partial(dataclasses.replace, config, latent_size=side, patch=1, dtype=dtype)
    head = math.gcd(config.width, config.attention_head)
    return {OURS: change(mixer="mamba"), TWIN: change(mixer="attention", attention_head=head)}


def _velocity_case(model: str, tokens: int, config: SISMAConfig, seconds: float) -> dict[str, Any]:
    case = {
        "model": model,
        "tokens": tokens,
        "pixels": config.image_size,
        "parameters": count(_sisma_shapes(config)),
        "gmacs": velocity_macs(config) / GIGA,
        "mask_gmacs": mask_macs(config) / GIGA,
    }

    def measure() -> dict[str, Any]:
        mask, velocity, temporary = time_sisma(config, 1, seconds)
        return {
            "seconds": velocity.seconds,
            "calls": velocity.calls,
            "mask_seconds": mask.seconds,
            "temporary_bytes": temporary,
        }

    return case | unless_too_large(measure)


def _sisma_image(
    config: SISMAConfig,
    autoencoder: AutoencoderConfig,
    guidance: float,
    seconds: float,
    patience: float,
) -> dict[str, Any]:
    passes = 1 if guidance == 1.0 else 2
    case = {
        "model": OURS,
        "guidance": guidance,
        "pixels": config.image_size,
        "parameters": count(_sisma_shapes(config)),
        "gmacs_per_step": passes * velocity_macs(config) / GIGA,
        "steps": STEPS,
        "gmacs_per_image": passes * (mask_macs(config) + STEPS * velocity_macs(config)) / GIGA,
    }

    def measure() -> dict[str, Any]:
        mask, velocity, temporary = time_sisma(config, passes, seconds, patience)
        decoding = time_decoding(autoencoder, config.latent_size, seconds, patience)
        return _extrapolated(STEPS, mask.seconds + decoding.seconds, velocity, temporary)

    return case | unless_too_large(measure)


def _sdm_image(
    config: SDMConfig, guidance: float, seconds: float, patience: float
) -> dict[str, Any]:
    step = (1 if guidance == 1.0 else 2) * sdm_macs(config) / GIGA
    case = {
        "model": THEIRS,
        "guidance": guidance,
        "pixels": config.image_size,
        "parameters": count(_sdm_shapes(config)),
        "gmacs_per_step": step,
        "steps": DIFFUSION_STEPS,
        "gmacs_per_image": DIFFUSION_STEPS * step,
    }

    def measure() -> dict[str, Any]:
        timing, temporary = time_sdm(config, guidance, seconds, patience)
        return _extrapolated(DIFFUSION_STEPS, 0.0, timing, temporary)

    return case | unless_too_large(measure)


def _extrapolated(steps: int, once: float, step: Timing, temporary: int) -> dict[str, Any]:
    """The case of an image of `steps` steps, extrapolated from a timed step."""
    return {
        "seconds_per_step": step.seconds,
        "calls": step.calls,
        "seconds_once": once,
        "temporary_bytes": temporary,
        "seconds_per_image": once + steps * step.seconds,
    }


def _compare(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    if ours["status"] == theirs["status"] == MEASURED:
        theirs["times_sisma"] = theirs["seconds_per_image"] / ours["seconds_per_image"]


@cache
def _sisma_shapes(config: SISMAConfig) -> Any:
    init = lambda key: sisma_in_compute_type(config, init_sisma(config, key))
    return jax.eval_shape(init, jax.random.key(0))


@cache
def _sdm_shapes(config: SDMConfig) -> Any:
    init = lambda key: sdm_in_compute_type(config, init_sdm(config, key))
    return jax.eval_shape(init, jax.random.key(0))


def time_sisma(
    config: SISMAConfig, batch: int, seconds: float, patience: float = PATIENCE
) -> tuple[Timing, Timing, int]:
    """Time the encoding of `batch` masks, and a velocity of as many latents with encoded masks.

    Returns:
      Both times, for the whole batch, and the temporary bytes that XLA planned for the velocity.

    Raises:
      DoesNotFit: if the memory that XLA plans is more than there is.
    """
    size, shapes = config.latent_size, {"params": _sisma_shapes(config)}
    encode_mask, velocity = (
        jax.jit(partial(SISMA(config).apply, method=name)) for name in ("encode_mask", "velocity")
    )
    labels = random_labels(config, batch)
    z, t = jnp.ones((batch, size, size, config.latent_channels)), jnp.full((batch,), 0.5)
    encode_program = _compile(encode_mask.lower(shapes, labels))
    features = jax.eval_shape(encode_mask, shapes, labels)
    velocity_program = _compile(velocity.lower(shapes, z, t, features))
    weights = random_weights(shapes)
    encode = lambda: jax.block_until_ready(encode_program(weights, labels))
    features = encode()
    step = lambda: velocity_program(weights, z, t, features).block_until_ready()
    times = clock(encode, seconds, patience), clock(step, seconds, patience)
    return *times, velocity_program.memory_analysis().temp_size_in_bytes


def time_decoding(
    config: AutoencoderConfig, latent_size: int, seconds: float, patience: float = PATIENCE
) -> Timing:
    """Time the decoding of one image's latents.

    Raises:
      DoesNotFit: if the memory that XLA plans is more than there is.
    """
    shapes = Autoencoder(config, parameter_shapes(config))
    z = jnp.ones((1, latent_size, latent_size, config.latent_channels))
    program = _compile(jax.jit(Autoencoder.decode).lower(shapes, z))
    weights = random_weights(shapes)
    return clock(lambda: program(weights, z).block_until_ready(), seconds, patience)


def time_sdm(
    config: SDMConfig, guidance: float, seconds: float, patience: float
) -> tuple[Timing, int]:
    """Time a step of sampling; return the timing and the temporary bytes that XLA planned.

    Raises:
      DoesNotFit: if the memory that XLA plans is more than there is.
    """
    size, shapes = (1, config.image_size, config.image_size), _sdm_shapes(config)
    labels = np.random.default_rng(0).integers(0, config.num_classes, size, np.uint8)
    x, t, key = jnp.ones((*size, 3)), jnp.full((1,), 500, jnp.int32), jax.random.key(0)
    program = _compile(sdm_step.lower(config, shapes, x, t, labels, key, guidance))
    weights = random_weights(shapes)
    step = lambda: program(weights, x, t, labels, key).block_until_ready()
    return clock(step, seconds, patience), program.memory_analysis().temp_size_in_bytes


def _compile(lowered: jax.stages.Lowered) -> Compiled:
    """Compile a program before its arguments exist; raises DoesNotFit if memory is short."""
    program = lowered.compile()
    plan = program.memory_analysis()
    check_fit(plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes)
    return program


def peer_tables(result: dict[str, Any]) -> list[Table]:
    """Tables of the result of `measure_peers`."""
    tables = {"over_tokens": _token_table, "images": _image_table}
    return [table(result) for name, table in tables.items() if result[name]]


def _token_table(result: dict[str, Any]) -> Table:
    """Rows sorted by model, so that each model's growth can be read downwards."""
    rows = []
    for model in (OURS, TWIN):
        cases = [case for case in result["over_tokens"] if case["model"] == model]
        for case in cases:
            cells: list = [model, f"{case['tokens']:,}", case["parameters"] / 1e6]
            for name, unit in (("gmacs", 1), ("seconds", 1), ("temporary_bytes", MIB)):
                value, first = case.get(name), cases[0].get(name)
                cells.append(None if value is None else value / unit)
                cells.append(value / first if value is not None and first else None)
            if case["status"] != MEASURED:
                cells[5] = case["status"]
            rows.append([*map(_readable, cells), case.get("mask_seconds")])
    sizes, least = result["sizes"], f"{result['over_tokens'][0]['tokens']:,}"
    growth = f"× of {least}"
    return Table(
        "Attention twin: one velocity over the number of tokens",
        ["model", "tokens", "parameters M", "GMACs", growth, "s", growth, "temporary MiB", growth,
         "s of the mask, once"],
        rows,
        f"{where(result)}, batch 1, random weights, {sizes['depth']} blocks of width "
        f"{sizes['width']}, one latent a token. {growth}: over the value at {least} tokens. Memory "
        "is what XLA planned. The twin's attention is JAX's own on any device, not a fused kernel.",
    )  # fmt: skip


def _image_table(result: dict[str, Any]) -> Table:
    rows = []
    for case in result["images"]:
        cells = [case["model"], case["pixels"], case["guidance"], case["parameters"] / 1e6,
                 case["gmacs_per_step"], case["steps"], case["gmacs_per_image"]]  # fmt: skip
        if case["status"] == MEASURED:
            cells += [case["seconds_per_step"], case["calls"], case["seconds_per_image"]]
        else:
            cells += [case["status"], None, None]
        rows.append([*map(_readable, cells), case.get("times_sisma")])
    return Table(
        "SDM-shaped U-Net: seconds per image",
        ["model", "pixels", "guidance", "parameters M", "GMACs/step", "steps", "GMACs/image",
         "s/step", "steps timed", "s/image", "× of SISMA's time"],
        rows,
        f"{where(result)}, batch 1, random weights. Seconds per image are extrapolated from the "
        f"steps timed (their median); SISMA's are the mask and the decoding once and {STEPS} steps "
        "of euler. Its GMACs are without decoding. A guided step is one pass over a batch of two.",
    )  # fmt: skip


def _readable(cell: Cell) -> Cell:
    """Format large numbers without an exponent."""
    return f"{cell:,.0f}" if isinstance(cell, float) and cell >= 1e4 else cell
