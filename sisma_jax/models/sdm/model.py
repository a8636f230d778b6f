"""SDM: the Semantic Diffusion Model (arXiv 2207.00050), for comparisons of speed with SISMA.

    x_t -> encoder -> middle -> decoder -> noise and variance, at the image's resolution
    t -> embedding -> every residual block
    labels -> one-hot classes and edges -> SPADE in every block of the middle and the decoder

Sizes and wiring are those of the published code for CelebAMask-HQ at 256 pixels. There are no
weights for it and no training here: the cost of a step does not depend on the weights, so they are
random. Layers that the published code initialises to zero are random too, because a GPU multiplies
zeros faster.

Convention: t = 0 is the least noisy of 1,000 steps. Their variances beta_t grow linearly from 1e-4
to 0.02, alpha_t = 1 - beta_t, and A_t is the product of alpha_0 .. alpha_t:

    x_t = sqrt(A_t) x + sqrt(1 - A_t) eps,    eps ~ N(0, I)                                     (1)
"""

import dataclasses
from functools import cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray, UInt8

from sisma_jax.data.classes import UNLABELLED
from sisma_jax.models.layers.embeddings import StepEmbedding
from sisma_jax.models.layers.spade import (
    AttentionBlock,
    ResBlock,
    conv,
    double,
    halve,
)
from sisma_jax.models.layers.unet import (
    BlockSizes,
    check_sizes,
    residual_macs,
    spade_macs,
    unet,
    unet_blocks,
)

DIFFUSION_STEPS = 1000
IMAGE_CHANNELS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class SDMConfig:
    """Sizes of an SDM; the defaults are the published ones (653,062,918 parameters).

    Raises:
      InputError: if a value is out of range, or values contradict each other.
    """

    image_size: int = 256
    num_classes: int = 19
    channels: int = 256
    """Channels of the finest resolution; the embedding of t has four times as many."""
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    """Channels of each resolution over `channels`, finest first; each further level halves the
    image."""
    blocks: int = 2
    """Residual blocks per resolution of the encoder; the decoder has one more."""
    attention_sizes: tuple[int, ...] = (32, 16, 8)
    """Sides, in pixels, of the resolutions with self-attention; the middle always has it."""
    head_width: int = 64
    spade_hidden: int = 128
    norm_groups: int = 32
    dtype: str = "bfloat16"
    """Compute type of convolutions, attention and residual sums."""

    def __post_init__(self) -> None:
        check_sizes(self, "sdm", "image_size")

    @property
    def time_width(self) -> int:
        return 4 * self.channels

    @classmethod
    def tiny(cls, **changes: Any) -> "SDMConfig":
        """A small configuration for tests on a CPU."""
        sizes = dict(
            image_size=16,
            channels=16,
            multipliers=(1, 2),
            blocks=1,
            attention_sizes=(8,),
            head_width=8,
            spade_hidden=8,
            norm_groups=4,
            dtype="float32",
        )
        return cls(**(sizes | changes))


def semantic_map(
    labels: UInt8[Array, "b H W"], num_classes: int, dtype: str = "float32"
) -> Float[Array, "b H W k"]:
    """Return one channel per class, and a last channel that is 1 where a neighbour's label differs.

    Neighbours are above, below, left and right. A label outside 0..num_classes-1 (255: unlabelled)
    has no class, so a map of 255 everywhere is all zero: the null condition.
    """
    down = labels[:, 1:] != labels[:, :-1]
    right = labels[:, :, 1:] != labels[:, :, :-1]
    pad_rows = lambda before, after: jnp.pad(down, ((0, 0), (before, after), (0, 0)))
    pad_columns = lambda before, after: jnp.pad(right, ((0, 0), (0, 0), (before, after)))
    edges = pad_rows(1, 0) | pad_rows(0, 1) | pad_columns(1, 0) | pad_columns(0, 1)
    classes = jax.nn.one_hot(labels, num_classes, dtype=dtype)
    return jnp.concatenate([classes, edges[..., None].astype(dtype)], axis=-1)


class SDM(nn.Module):
    """Predicts noise and variance of noisy images from label maps. See the module docstring."""

    config: SDMConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b H W 3"], t: Int32[Array, " b"], labels: UInt8[Array, "b H W"]
    ) -> Float32[Array, "b H W 6"]:
        """Return three channels of noise, then three that interpolate the variance, float32.

        The latter are about -1 for the smallest variance and 1 for the largest, but unbounded.

        Args:
          x: noisy images.
          t: steps, 0 to 999.
          labels: class ids; 255 is unlabelled, and a map of 255 everywhere is the null condition.

        Raises:
          ValueError: if images or labels do not have the configuration's size.
        """
        cfg = self.config
        size = (cfg.image_size, cfg.image_size)
        if (x.shape[1:3], labels.shape[1:]) != (size, size):
            raise ValueError(
                f"images {x.shape[1:3]} and label maps {labels.shape[1:]} do not both have the "
                f"model's size {size}"
            )
        norms = dict(groups=cfg.norm_groups, dtype=cfg.dtype)
        block = partial(ResBlock, hidden=cfg.spade_hidden, **norms)
        time = StepEmbedding(cfg.channels, cfg.time_width, name="time")(t.astype(jnp.float32))
        semantics = semantic_map(labels, cfg.num_classes, cfg.dtype)

        def attention(h: Array, name: str) -> Array:
            return AttentionBlock(head_width=cfg.head_width, name=name, **norms)(h)

        def halved(h: Array, name: str) -> Array:
            return block(h.shape[-1], resample=halve, name=name)(h, time)

        def doubled(h: Array, name: str) -> Array:
            return block(h.shape[-1], resample=double, name=name)(h, time, semantics)

        h = unet(
            cfg,
            conv(cfg.multipliers[0] * cfg.channels, cfg.dtype, "conv_in")(x),
            time,
            semantics,
            block=block,
            attention=attention,
            halve=halved,
            double=doubled,
        )
        return conv(2 * IMAGE_CHANNELS, "float32", "conv_out")(h)


def init_params(config: SDMConfig, key: PRNGKeyArray) -> dict:
    """Return new float32 parameters of `SDM(config)`, for `apply({"params": ...})`."""
    size = (1, config.image_size, config.image_size)
    images, labels = jnp.zeros((*size, IMAGE_CHANNELS)), jnp.zeros(size, jnp.uint8)
    return SDM(config).init(key, images, jnp.zeros(1, jnp.int32), labels)["params"]


class _Schedule(NamedTuple):
    """Float32 coefficients of `sdm_step` by step t."""

    image_of_x: np.ndarray
    image_of_noise: np.ndarray
    mean_of_image: np.ndarray
    mean_of_x: np.ndarray
    least_log_variance: np.ndarray
    most_log_variance: np.ndarray


@cache
def _schedule() -> _Schedule:
    beta = np.linspace(1e-4, 0.02, DIFFUSION_STEPS)
    product = np.cumprod(1 - beta)
    before = np.append(1.0, product[:-1])
    posterior = beta * (1 - before) / (1 - product)
    # The variance of q(x_{t-1} | x_t, x) is 0 at t = 0, where no noise is added. Any finite
    # logarithm would do; the published code takes that of t = 1.
    posterior[0] = posterior[1]
    numbers = _Schedule(
        image_of_x=np.sqrt(1 / product),
        image_of_noise=np.sqrt(1 / product - 1),
        mean_of_image=beta * np.sqrt(before) / (1 - product),
        mean_of_x=(1 - before) * np.sqrt(1 - beta) / (1 - product),
        least_log_variance=np.log(posterior),
        most_log_variance=np.log(beta),
    )
    return _Schedule(*(row.astype(np.float32) for row in numbers))


@partial(jax.jit, static_argnames=("config", "guidance"))
def sdm_step(
    config: SDMConfig,
    params: dict,
    x_t: Float32[Array, "b H W 3"],
    t: Int32[Array, " b"],
    labels: UInt8[Array, "b H W"],
    key: PRNGKeyArray,
    guidance: float = 1.0,
) -> Float32[Array, "b H W 3"]:
    """Return x_{t-1} after one ancestral sampling step, DDPM's with a learned variance.

    Args:
      config: sizes of the model.
      params: its parameters, possibly rounded by `unet.in_compute_type`, as the published code
        samples from a copy in float16.
      x_t: noisy images.
      t: steps, 0 to 999; the step at t = 0 adds no noise and is the last one.
      labels: class ids; 255 is unlabelled.
      key: random key of the noise.
      guidance: 1 is the plain model in one pass. Other values use eps_null + guidance
        (eps - eps_null), with a pass over twice the batch. Published for faces: 1.5.

    The mean is that of q(x_{t-1} | x_t, x) for the image x that the noise implies, clipped to
    [-1, 1]. The second half of the model's output interpolates the logarithm of the variance
    between those of q and of beta_t (arXiv 2102.09672, equation 15).
    """
    apply = partial(SDM(config).apply, {"params": params})
    if guidance == 1.0:
        noise, share = jnp.split(apply(x_t, t, labels), 2, axis=-1)
    else:
        both = jnp.concatenate([labels, jnp.full_like(labels, UNLABELLED)])
        output = apply(jnp.tile(x_t, (2, 1, 1, 1)), jnp.tile(t, 2), both)
        (noise, share), (null, _) = (
            jnp.split(half, 2, axis=-1) for half in jnp.split(output, 2, axis=0)
        )
        noise = null + guidance * (noise - null)
    s = _Schedule(*(jnp.asarray(row)[t][:, None, None, None] for row in _schedule()))
    image = jnp.clip(s.image_of_x * x_t - s.image_of_noise * noise, -1, 1)
    mean = s.mean_of_image * image + s.mean_of_x * x_t
    share = (share + 1) / 2
    log_variance = share * s.most_log_variance + (1 - share) * s.least_log_variance
    fresh = jax.random.normal(key, x_t.shape) * (t > 0).astype(jnp.float32)[:, None, None, None]
    return mean + jnp.exp(0.5 * log_variance) * fresh


def sdm_macs(config: SDMConfig) -> int:
    """Return the multiply-accumulates of one pass of the model over one image.

    They are counted as in `sisma_jax.models.cost`. A sampling step takes one pass, or two with
    guidance.
    """
    c, first = config, config.multipliers[0] * config.channels
    time = c.channels * c.time_width + c.time_width**2
    ends = c.image_size**2 * 9 * (IMAGE_CHANNELS * first + first * 2 * IMAGE_CHANNELS)
    encoder, decoder = _blocks(c)
    blocks = sum(_block_macs(c, block) for block in encoder + decoder)
    return time + ends + blocks + sdm_mask_macs(c)


def sdm_mask_macs(config: SDMConfig) -> int:
    """Return the multiply-accumulates of SPADE's convolutions, which depend on the mask only.

    Like the published code, `SDM` computes them at every step, although the results are the same.
    """
    classes_and_edges = config.num_classes + 1
    _, decoder = _blocks(config)
    return sum(spade_macs(block, classes_and_edges, config.spade_hidden) for block in decoder)


def _blocks(c: SDMConfig) -> tuple[list[BlockSizes], list[BlockSizes]]:
    return unet_blocks(c, c.image_size, c.multipliers[0] * c.channels)


def _block_macs(c: SDMConfig, block: BlockSizes) -> int:
    """MACs of one block without SPADE, including the attention after it."""
    width, length = block.outputs, block.size_out**2
    total = residual_macs(block) + c.time_width * 2 * width
    return total + block.attention * (length * 4 * width**2 + 2 * length**2 * width)
