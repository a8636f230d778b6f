"""XLA's count of SISMA's arithmetic, for comparison with the hand count of `cost`.

XLA counts the operations of a program before optimising it: two per multiply-accumulate (MAC) of a
matrix product, and also norms, activations, gates and conversions, which `cost` leaves out. Nothing
is compiled or run here.

XLA counts the body of a loop once, however often it runs. So the bodies of loops are also counted
separately and added as often as they are missing:

  - a block, depth - 1 times;
  - a step of the recurrence, length - 1 times. The scan counted is always "sequential", the plain
    recurrence, because other implementations do more or hide their work from XLA. A scan of one
    token is one step plus the work per token outside the loop, so `length` such scans minus one
    scan of all tokens are the missing steps;
  - a block of queries, if attention has several: the missing operations are the difference between
    the attention of all queries at once and the attention in blocks.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from sisma_jax.kernels import selective_scan
from sisma_jax.models.layers.attention import attention, blocked_attention
from sisma_jax.models.sisma.config import SISMAConfig
from sisma_jax.models.sisma.model import SISMA, SISMABlock, in_compute_type, init_params


def xla_macs(config: SISMAConfig) -> int:
    """Return half of XLA's operations for `SISMA.velocity` on one image."""
    one = dataclasses.replace(config, depth=1, scan="sequential")
    params = jax.eval_shape(
        lambda key: in_compute_type(one, init_params(one, key)), jax.random.key(0)
    )
    size, latent = one.image_size, one.latent_size
    z, t = _floats(1, latent, latent, one.latent_channels), _floats(1)
    labels = jax.ShapeDtypeStruct((1, size, size), jnp.uint8)

    encode_mask, velocity = (
        partial(SISMA(one).apply, method=name) for name in ("encode_mask", "velocity")
    )
    features = jax.eval_shape(encode_mask, {"params": params}, labels)
    model = _operations(velocity, {"params": params}, z, t, features)
    # Parameters and features of blocks are stacked.
    block_params, mask = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (params["blocks"], features)
    )
    length = prod(one.grid)
    block = _operations(
        partial(SISMABlock(one).apply, method="with_streams"),
        {"params": block_params},
        _floats(1, length, one.width),
        jax.ShapeDtypeStruct((1, one.width), one.dtype),
        mask,
        jax.ShapeDtypeStruct((one.orders, length), jnp.int32),
    )
    missing = _missing_attention if one.mixer == "attention" else _missing_scan
    # The two mixers of a block have the same loop; a style mixer "mamba" adds a scan.
    loops = 2 * missing(one) + (one.style == "mamba") * _missing_scan(one)
    return round((model + (config.depth - 1) * block + config.depth * loops) / 2)


def _missing_scan(config: SISMAConfig) -> float:
    """Operations of one mixer's scans that XLA does not count."""
    length, channels = prod(config.grid), config.expand * config.width

    def counted(length: int) -> float:
        tokens, states = _floats(1, length, channels), _floats(1, length, config.state)
        scan = partial(selective_scan, implementation="sequential")
        return _operations(scan, tokens, tokens, _floats(channels, config.state), states, states)

    return config.orders * (length * counted(1) - counted(length))


def _missing_attention(config: SISMAConfig) -> float:
    """Operations of one attention that XLA does not count."""
    heads = config.width // config.attention_head, config.attention_head
    tokens = jax.ShapeDtypeStruct((1, prod(config.grid), *heads), config.dtype)
    return _operations(attention, *(tokens,) * 3) - _operations(blocked_attention, *(tokens,) * 3)


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _operations(function: Callable, *arguments: Any) -> float:
    """XLA's count of operations of a program, with the body of every loop once."""
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]
