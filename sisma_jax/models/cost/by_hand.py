"""The arithmetic of SISMA: multiply-accumulates (MACs) of one image, derived by hand.

One MAC is two floating-point operations. A backward pass costs two forward passes, so training
costs three: six operations per image and MAC of `macs`, not counting what `remat` recomputes.

Counted are
  - linear maps and convolutions at every position of their output, including windows that reach
    into zero padding and the zeros of one-hot labels;
  - the selective scan by its recurrence, independent of the implementation: three MACs per token,
    channel, state and order, for the decay of h, the input (Delta u) B, and the sum over C h;
  - the two products of attention over all L tokens: q k^T, and the softmax times v.
Not counted are norms, activations, biases, gates, residuals, positions, the softmax of attention,
and in the scan softplus, exp(Delta A), Delta u and the skip D u.

The letters are those of `mamba`: D width, d = expand x D channels, n states, r rank of delta, L
tokens, K orders. Maps of tokens are counted L times, maps of the time embedding once. A model with
a style has T numbers for each of S classes.

`by_xla` has XLA's count of the same model.
"""

import dataclasses
from typing import Any, NamedTuple

from sisma_jax.models.layers.embeddings import TIME_FREQUENCIES
from sisma_jax.models.sisma.config import SISMAConfig


def macs(config: SISMAConfig) -> int:
    """Return the MACs of one forward pass of the whole model, `SISMA.__call__`.

    With a style, they include encoding its reference.
    """
    return mask_macs(config) + velocity_macs(config) + style_macs(config)


def mask_macs(config: SISMAConfig) -> int:
    """Return the MACs of `SISMA.encode_mask`, which depends on mask and style only."""
    return mask_encoder(config) + config.depth * (mask_stream(config) + style_stream(config))


def style_macs(config: SISMAConfig) -> int:
    """Return the MACs of `SISMA.encode_style`; 0 for a model without style."""
    if config.style == "none":
        return 0
    return style_encoder(config)


def velocity_macs(config: SISMAConfig) -> int:
    """Return the MACs of one velocity in synthesis, `SISMA.velocity`.

    A step of "euler" evaluates one velocity, the other solvers two; guidance doubles the number.
    """
    block = modulation, self_mixer, cross_mixer, style_mixer, feed_forward
    once = patch_in, time_embedding, final_layer
    return config.depth * sum(part(config) for part in block) + sum(part(config) for part in once)


class _Letters(NamedTuple):
    D: int
    d: int
    n: int
    r: int
    L: int
    K: int


def _letters(c: SISMAConfig) -> _Letters:
    rows, columns = c.grid
    D = c.width
    return _Letters(D, d=c.expand * D, n=c.state, r=-(-D // 16), L=rows * columns, K=c.orders)


def patch_in(c: SISMAConfig) -> int:
    D, _, _, _, L, _ = _letters(c)
    return L * c.patch**2 * c.latent_channels * D


def time_embedding(c: SISMAConfig) -> int:
    return TIME_FREQUENCIES * c.width + c.width**2


def modulation(c: SISMAConfig) -> int:
    """The map of t to shift, scale and gate of a block's sub-layers."""
    return c.width * 3 * c.sublayers * c.width


def self_mixer(c: SISMAConfig) -> int:
    """Mamba: W_in, W_out, per order W_x, W_dt, one convolution, the scan. Attention: W_q, W_k, W_v,
    W_out and its products."""
    D, d, n, r, L, K = _letters(c)
    if c.mixer == "attention":
        return L * 4 * D**2 + attention_products(c)
    maps = D * 2 * d + d * D + K * (d * (r + 2 * n) + r * d)
    return L * maps + depthwise_conv(c) + selective_scan(c)


def cross_mixer(c: SISMAConfig) -> int:
    """The image's part. Mamba: W_in, W_out, per order W_x->C, one convolution, the scan. Attention:
    W_q, W_out and its products."""
    D, d, n, _, L, K = _letters(c)
    if c.mixer == "attention":
        return L * 2 * D**2 + attention_products(c)
    maps = D * 2 * d + d * D + K * d * n
    return L * maps + depthwise_conv(c) + selective_scan(c)


def mask_stream(c: SISMAConfig) -> int:
    """The mask's part. Mamba: W_s, per order W_s->dtB, W_dt, one convolution. Attention: W_k,
    W_v."""
    D, d, n, r, L, K = _letters(c)
    if c.mixer == "attention":
        return L * 2 * D**2
    maps = D * d + K * (d * (r + n) + r * d)
    return L * maps + depthwise_conv(c)


def style_mixer(c: SISMAConfig) -> int:
    """The image's part. Attention: W_q, W_out and the products with S classes. Mamba: as
    `cross_mixer`."""
    D, _, _, _, L, _ = _letters(c)
    if c.style == "none":
        return 0
    if c.style == "mamba":
        return cross_mixer(dataclasses.replace(c, mixer="mamba"))
    return L * 2 * D**2 + 2 * L * c.num_classes * D


def style_stream(c: SISMAConfig) -> int:
    """The style's part. Attention: W_k, W_v of S tokens of T numbers. Mamba: the map to the width,
    the products with the shares of classes, and those of `mask_stream`."""
    D, _, _, _, L, _ = _letters(c)
    S, T = c.num_classes, c.style_levels * c.style_features
    if c.style == "none":
        return 0
    if c.style == "mamba":
        return S * T * D + L * S * D + mask_stream(dataclasses.replace(c, mixer="mamba"))
    return S * T * 2 * D


def attention_products(c: SISMAConfig) -> int:
    """q k^T and softmax times v of one attention, over all heads."""
    D, _, _, _, L, _ = _letters(c)
    return 2 * L**2 * D


def depthwise_conv(c: SISMAConfig) -> int:
    """The 3x3 depthwise convolution of one stream."""
    _, d, _, _, L, _ = _letters(c)
    return L * 9 * d


def selective_scan(c: SISMAConfig) -> int:
    """The K scans of one mixer; see the module docstring."""
    _, d, n, _, L, K = _letters(c)
    return L * K * 3 * d * n


def feed_forward(c: SISMAConfig) -> int:
    D, _, _, _, L, _ = _letters(c)
    return L * 2 * D * c.ff_ratio * D


def final_layer(c: SISMAConfig) -> int:
    """Modulation and the map to patches."""
    D, _, _, _, L, _ = _letters(c)
    return D * 2 * D + L * D * c.patch**2 * c.latent_channels


def mask_encoder(c: SISMAConfig) -> int:
    """3x3 convolutions that halve the side and double the channels; the last one maps to D."""
    total, side, inputs, outputs = 0, c.image_size, c.num_classes, c.mask_channels
    while side > c.grid[0]:
        side //= 2
        total += side**2 * 9 * inputs * outputs
        inputs, outputs = outputs, 2 * outputs
    return total + side**2 * 9 * inputs * c.width


def style_encoder(c: Any) -> int:
    """`StyleEncoder` on one image: 3x3 convolutions of each class's channels, sums over its pixels,
    and a linear map per level. Resizing is not counted. `c` is the configuration of any model that
    has one."""
    size, classes = c.image_size, c.num_classes
    levels, features = c.style_levels, c.style_features
    width = [c.style_channels * 2**halvings for halvings in range(levels + 2)]
    total = size**2 * 9 * 3 * classes * width[0]
    for i in range(1, levels + 2):
        total += (size >> i) ** 2 * 9 * classes * width[i - 1] * width[i]
    for i in range(1, levels + 1):
        inputs = width[i + 1] * (1 if i == levels else 2)
        total += (size >> i) ** 2 * 9 * classes * inputs * width[i]
        total += (size >> i) ** 2 * classes * width[i] + classes * width[i] * features
    if c.style_colours:
        total += size**2 * classes * 3 + classes * 4 * features
    return total
