"""Other models, timed in the same run: an attention twin of SISMA, SCA-DM, CA2-SIS, and an SDM.

Two claims of the paper (arXiv 2509.17651) are measured: that SISMA's cost is linear in the number
of tokens, in comparison with a twin that has attention in place of Mamba, and that SISMA takes a
third of the time of SDM (arXiv 2207.00050) for an image. SCA-DM (arXiv 2403.12743) and CA2-SIS
(arXiv 2308.16071) are timed beside these two. Weights are random, since times do not depend on
them.

Every network is timed for one step of sampling, at batch 1 and on one device. Weights are rounded
to the compute type beforehand where a synthesis rounds them once, before the solver's first step
(`Generator.in_compute_type`), and those of SDM as in its published sampling code. A style is given
as tokens, and encoding its reference is timed separately.
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
from sisma_jax.models import SISMAConfig
from sisma_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from sisma_jax.models.autoencoder import parameter_shapes as autoencoder_shapes
from sisma_jax.models.ca2sis.config import CA2SISConfig
from sisma_jax.models.cost.by_hand import mask_macs, velocity_macs
from sisma_jax.models.cost.by_xla import counted_macs, xla_macs
from sisma_jax.models.generators import Config, generator, parameter_shapes
from sisma_jax.models.layers.unet import in_compute_type as sdm_in_compute_type
from sisma_jax.models.scadm.config import SCADMConfig
from sisma_jax.models.sdm.model import (
    DIFFUSION_STEPS,
    SDMConfig,
    sdm_macs,
    sdm_step,
)
from sisma_jax.models.sdm.model import init_params as init_sdm

TOKENS = (256, 1024, 4096, 16384)
STEPS = 25
"""Steps of Euler's method (for SCA-DM, of DDIM) of an image, unless a model draws in one pass."""
GUIDANCE = 1.5
"""SDM's published guidance for faces, used for all models; any value but 1 costs the same."""
PUBLISHED_SDM = SDMConfig()
System = tuple[Config, AutoencoderConfig | None]
"""Sizes of a generator and of the autoencoder that decodes its latents, if it has one."""
SYSTEMS: dict[str, System] = {
    "sisma": (SISMAConfig.large(), AutoencoderConfig.stable_diffusion()),
    "scadm": (SCADMConfig(), AutoencoderConfig.vq_f4()),
    "ca2sis": (CA2SISConfig(), None),
}
"""Configurations that are timed, for each `model.kind`: our default for 256 pixels, and the
published sizes of the others."""
OURS, TWIN, THEIRS = "SISMA", "attention twin", "SDM"


def random_weights(shapes: Any) -> Any:
    """Random arrays with the shapes and dtypes of a tree, none of them all zero.

    They are drawn on the host, since drawing on the device would compile a program for each shape.
    """
    random = np.random.default_rng(0)
    draw = lambda leaf: 0.02 * random.standard_normal(leaf.shape, np.float32)
    return jax.tree.map(lambda leaf: jnp.asarray(draw(leaf), leaf.dtype), shapes)


def measure_peers(
    config: Config,
    *,
    tokens: Sequence[int] = TOKENS,
    systems: Sequence[System] = tuple(SYSTEMS.values()),
    sdm: SDMConfig | None = PUBLISHED_SDM,
    dtype: str | None = None,
    seconds: float = 1.0,
    patience: float = 60.0,
) -> dict[str, Any]:
    """Time SISMA and its twin by number of tokens, and an image of several systems and of SDM.

    Args:
      config: sizes of SISMA and its twin: width, depth and the rest. The latents' size follows
        from `tokens`, with patches of one latent. Of other models there is no twin.
      tokens: square numbers.
      systems: what is timed for an image besides SDM.
      sdm: sizes of SDM; None leaves it out.
      dtype: compute type of all; by default "float32" on a CPU, else "bfloat16".
      seconds: duration of each measurement (`speed.clock`).
      patience: limit in seconds for the steps of each of `systems` and of SDM, each with and
        without guidance; the first step of each is always timed.

    Returns:
      The result of `circumstances`; "dtype"; "sizes" of the twins; "over_tokens", cases of SISMA
      and its twin with "model", "tokens", "pixels", "parameters", "gmacs" of a velocity,
      "mask_gmacs", "status" and, if it is "measured", "seconds" of a velocity with an encoded mask,
      the "calls" timed, "mask_seconds", and "temporary_bytes" as XLA planned the velocity;
      "images", cases with "model", "guidance", "parameters", "pixels", "gmacs_per_step",
      "gmacs_per_step_xla" (XLA's count), "steps", "gmacs_per_image" (decoding and references not
      counted), "style_gmacs" and "style_gmacs_xla" of a reference, "status" and, if measured,
      "seconds_per_step", "calls" timed, "seconds_once" (mask and decoding), "style_seconds" of a
      reference (None for a model without style), "temporary_bytes", "seconds_per_image"
      (seconds_once + steps x seconds_per_step) and, of all but SISMA, "times_sisma", the ratio to
      SISMA's seconds_per_image. A case that does not fit has a "reason" instead. A model that draws
      in one pass has no case with guidance.

    Raises:
      InputError: if a number of tokens is not a square.
    """
    dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    twinned = tokens if isinstance(config, SISMAConfig) else ()
    pairs = [(number, *pair) for number in twinned for pair in twins(config, number, dtype).items()]
    alike = lambda sizes: sizes and dataclasses.replace(sizes, dtype=dtype)
    compared = [
        (
            generator(one).name,
            not generator(one).one_pass,
            partial(_image, alike(one), alike(decoder)),
        )
        for one, decoder in systems
    ]
    if sdm is not None:
        compared.append((THEIRS, True, partial(_sdm_image, alike(sdm))))
    timed = [
        (name, guidance, measure)
        for guidance in (1.0, GUIDANCE)
        for name, takes_guidance, measure in compared
        if guidance == 1.0 or takes_guidance
    ]
    over_tokens, images = [], []
    with bar(total=len(pairs) + len(timed), unit="case", desc="peers", leave=False) as progress:
        for number, model, sizes in pairs:
            progress.set_description(f"{model}, {number:,} tokens")
            over_tokens.append(_velocity_case(model, number, sizes, seconds))
            progress.update()
        for name, guidance, measure in timed:
            progress.set_description(f"{name}, guidance {guidance:g}")
            images.append(measure(guidance, seconds, patience))
            progress.update()
    _compare(images)
    return {
        **circumstances(),
        "devices": 1,
        "dtype": dtype,
        "sizes": dataclasses.asdict(alike(config)),
        "over_tokens": over_tokens,
        "images": images,
    }


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
        "parameters": count(parameter_shapes(config)),
        "gmacs": velocity_macs(config) / GIGA,
        "mask_gmacs": mask_macs(config) / GIGA,
    }

    def measure() -> dict[str, Any]:
        mask, velocity, temporary = time_generator(config, 1, seconds)
        return {
            "seconds": velocity.seconds,
            "calls": velocity.calls,
            "mask_seconds": mask.seconds,
            "temporary_bytes": temporary,
        }

    return case | unless_too_large(measure)


def _image(
    config: Config,
    autoencoder: AutoencoderConfig | None,
    guidance: float,
    seconds: float,
    patience: float,
) -> dict[str, Any]:
    model, passes = generator(config), 1 if guidance == 1.0 else 2
    macs, by_xla = model.macs(), xla_macs(config)
    steps = 1 if model.one_pass else STEPS
    case = {
        "model": model.name,
        "guidance": guidance,
        "pixels": config.image_size,
        "parameters": count(parameter_shapes(config)),
        "gmacs_per_step": passes * macs.velocity / GIGA,
        "gmacs_per_step_xla": passes * by_xla.velocity / GIGA,
        "steps": steps,
        "gmacs_per_image": passes * (macs.mask + steps * macs.velocity) / GIGA,
        "style_gmacs": macs.style / GIGA,
        "style_gmacs_xla": by_xla.style / GIGA,
    }

    def measure() -> dict[str, Any]:
        mask, velocity, temporary = time_generator(config, passes, seconds, patience)
        once, style = mask.seconds, None
        if autoencoder is not None:
            once += time_decoding(autoencoder, config.latent_size, seconds, patience).seconds
        if model.has_style:
            style = time_style(config, seconds, patience).seconds
        return {"style_seconds": style} | _extrapolated(steps, once, velocity, temporary)

    return case | unless_too_large(measure)


def _sdm_image(
    config: SDMConfig, guidance: float, seconds: float, patience: float
) -> dict[str, Any]:
    passes = 1 if guidance == 1.0 else 2
    step = passes * sdm_macs(config) / GIGA
    case = {
        "model": THEIRS,
        "guidance": guidance,
        "pixels": config.image_size,
        "parameters": count(_sdm_shapes(config)),
        "gmacs_per_step": step,
        "gmacs_per_step_xla": passes * _sdm_xla_macs(config) / GIGA,
        "steps": DIFFUSION_STEPS,
        "gmacs_per_image": DIFFUSION_STEPS * step,
        "style_gmacs": 0.0,
        "style_gmacs_xla": 0.0,
    }

    def measure() -> dict[str, Any]:
        timing, temporary = time_sdm(config, guidance, seconds, patience)
        extrapolated = _extrapolated(DIFFUSION_STEPS, 0.0, timing, temporary)
        return {"style_seconds": None} | extrapolated

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


def _compare(images: list[dict[str, Any]]) -> None:
    """Add the ratio to the time of SISMA with the same guidance, where both were measured."""
    measured = [case for case in images if case["status"] == MEASURED]
    ours = {case["guidance"]: case for case in measured if case["model"] == OURS}
    for case in measured:
        if case["model"] != OURS and case["guidance"] in ours:
            seconds = ours[case["guidance"]]["seconds_per_image"]
            case["times_sisma"] = case["seconds_per_image"] / seconds


@cache
def _sdm_xla_macs(config: SDMConfig) -> int:
    step = lambda params, x, t, labels: sdm_step(
        config, params, x, t, labels, jax.random.key(0), 1.0
    )
    x, t, labels = _sdm_inputs(config)
    return counted_macs(step, _sdm_shapes(config), x, t, labels)


@cache
def _sdm_shapes(config: SDMConfig) -> Any:
    init = lambda key: sdm_in_compute_type(config, init_sdm(config, key))
    return jax.eval_shape(init, jax.random.key(0))


def time_generator(
    config: Config, batch: int, seconds: float, patience: float = PATIENCE
) -> tuple[Timing, Timing, int]:
    """Time the encoding of `batch` masks, and a velocity of as many latents with encoded masks.

    A model with style conditioning gets style tokens.

    Returns:
      Both times, for the whole batch, and the temporary bytes that XLA planned for the velocity.

    Raises:
      DoesNotFit: if the memory that XLA plans is more than there is.
    """
    model, size, shapes = generator(config), config.latent_size, _rounded_shapes(config)
    labels, style = random_labels(config, batch), _style_tokens(config, batch)
    z, t = jnp.ones((batch, size, size, config.latent_channels)), jnp.full((batch,), 0.5)
    encode_program = _compile(jax.jit(model.encode).lower(shapes, labels, style))
    encoded = jax.eval_shape(model.encode, shapes, labels, style)
    velocity_program = _compile(jax.jit(model.velocity).lower(shapes, z, t, encoded))
    weights = random_weights(shapes)
    encode = lambda: jax.block_until_ready(encode_program(weights, labels, style))
    encoded = encode()
    step = lambda: velocity_program(weights, z, t, encoded).block_until_ready()
    times = clock(encode, seconds, patience), clock(step, seconds, patience)
    return *times, velocity_program.memory_analysis().temp_size_in_bytes


def time_style(config: Config, seconds: float, patience: float = PATIENCE) -> Timing:
    """Time the encoding of one reference's style.

    Raises:
      DoesNotFit: if the memory that XLA plans is more than there is.
    """
    shapes, labels = _rounded_shapes(config), random_labels(config, 1)
    images = jnp.ones((*labels.shape, 3))
    program = _compile(jax.jit(generator(config).encode_style).lower(shapes, images, labels))
    weights = random_weights(shapes)
    return clock(lambda: program(weights, images, labels).block_until_ready(), seconds, patience)


def _rounded_shapes(config: Config) -> Any:
    return jax.eval_shape(generator(config).in_compute_type, parameter_shapes(config))


def _style_tokens(config: Config, count: int) -> Any:
    """Style tokens for `count` images; None for a model without style."""
    model = generator(config)
    if not model.has_style:
        return None
    shape = jax.eval_shape(model.no_style, parameter_shapes(config)).shape
    return jnp.full((count, *shape[1:]), 0.5)


def time_decoding(
    config: AutoencoderConfig, latent_size: int, seconds: float, patience: float = PATIENCE
) -> Timing:
    """Time the decoding of one image's latents.

    Raises:
      DoesNotFit: if the memory that XLA plans is more than there is.
    """
    shapes = Autoencoder(config, autoencoder_shapes(config))
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
    shapes, key = _sdm_shapes(config), jax.random.key(0)
    x, t, labels = _sdm_inputs(config)
    program = _compile(sdm_step.lower(config, shapes, x, t, labels, key, guidance))
    weights = random_weights(shapes)
    step = lambda: program(weights, x, t, labels, key).block_until_ready()
    return clock(step, seconds, patience), program.memory_analysis().temp_size_in_bytes


def _sdm_inputs(config: SDMConfig) -> tuple[jax.Array, jax.Array, np.ndarray]:
    """An image, its step and its label map."""
    size = (1, config.image_size, config.image_size)
    labels = np.random.default_rng(0).integers(0, config.num_classes, size, np.uint8)
    return jnp.ones((*size, 3)), jnp.full((1,), 500, jnp.int32), labels


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
        # Older reports have neither XLA's counts nor styles.
        cells = [case["model"], case["pixels"], case["guidance"], case["parameters"] / 1e6,
                 case["gmacs_per_step"], case.get("gmacs_per_step_xla"),
                 case.get("style_gmacs") or None, case.get("style_gmacs_xla") or None,
                 case["steps"], case["gmacs_per_image"]]  # fmt: skip
        if case["status"] == MEASURED:
            cells += [case["seconds_per_step"], case["calls"], case.get("style_seconds"),
                      case["seconds_per_image"]]  # fmt: skip
        else:
            cells += [case["status"], None, None, None]
        rows.append([*map(_readable, cells), case.get("times_sisma")])
    return Table(
        "Systems: cost and seconds per image",
        ["model", "pixels", "guidance", "parameters M", "GMACs/step", "XLA's count",
         "GMACs/style", "XLA's count", "steps", "GMACs/image", "s/step", "steps timed", "s/style",
         "s/image", "× of SISMA's time"],
        rows,
        f"{where(result)}, batch 1, random weights. Seconds per image are extrapolated from the "
        "steps timed (their median): the mask and the decoding once, and the steps of euler (for "
        "SCA-DM, of DDIM). GMACs are by hand and without decoding. Styles are encoded once a "
        "reference and are not contained in an image. A guided step is one pass over a batch of "
        "two.",
    )  # fmt: skip


def _readable(cell: Cell) -> Cell:
    """Format large numbers without an exponent."""
    return f"{cell:,.0f}" if isinstance(cell, float) and cell >= 1e4 else cell
