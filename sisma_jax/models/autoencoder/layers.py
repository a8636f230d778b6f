"""Encoder and decoder of Stable Diffusion's autoencoder, and their layers.

Submodules are named as in diffusers' AutoencoderKL, with "_" for the "." before an index:
`encoder.down_blocks.0.resnets.1.conv1` is `encoder/down_blocks_0/resnets_1/conv1`. Arrays are
NHWC. Convolutions and attention run in the configuration's dtype; parameters, residual sums, norms
and the softmax are float32.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from sisma_jax.models.autoencoder.config import AutoencoderConfig
from sisma_jax.models.layers.attention import attention

NORM_EPSILON = 1e-6
"""PyTorch's default of 1e-5 would visibly change flat images."""
NEAREST_BLOCK = 1024
"""Codebook entries compared with the latents at a time: 8192 would take 128 MiB per image of 256
pixels at factor 4."""


def norm(
    config: AutoencoderConfig, x: Float[Array, "b h w c"], name: str
) -> Float[Array, "b h w c"]:
    """Group normalisation, computed and returned in float32.

    The variance is computed from centred values: with E[x^2] - E[x]^2 the small variance of a flat
    image would be lost to rounding.
    """
    layer = nn.GroupNorm(
        config.norm_groups,
        epsilon=NORM_EPSILON,
        use_fast_variance=False,
        dtype=jnp.float32,
        name=name,
    )
    return layer(x.astype(jnp.float32))


def compute(config: AutoencoderConfig) -> dict[str, Any]:
    """Compute dtype and precision of layers; float32 is exact even where TF32 is the default.

    Raises:
      ValueError: if the configuration leaves the dtype open.
    """
    if config.dtype == "auto":
        raise ValueError(
            "the dtype 'auto' is for `Autoencoder`, which chooses one by platform: give the module "
            "'float32' or 'bfloat16'"
        )
    exact = config.dtype == "float32"
    precision = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT
    return {"dtype": jnp.dtype(config.dtype), "precision": precision}


def conv(
    config: AutoencoderConfig,
    channels: int,
    name: str | None = None,
    *,
    size: int = 3,
    zero: bool = False,
    **options: Any,
) -> nn.Conv:
    """A convolution that keeps the image's size; `zero` initialises it to zero."""
    start = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    options = {"kernel_init": start, "name": name} | compute(config) | options
    return nn.Conv(channels, (size, size), **options)


def dense(config: AutoencoderConfig, features: int, name: str | None = None) -> nn.Dense:
    return nn.Dense(features, name=name, **compute(config))


def add(x: Float[Array, "*shape"], h: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The residual sum in float32; rounding it in every block would cost one grey level."""
    return x.astype(jnp.float32) + h.astype(jnp.float32)


class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution on x if channels differ."""

    config: AutoencoderConfig
    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w channels"]:
        cfg = self.config
        h = conv(cfg, self.channels, "conv1")(nn.silu(norm(cfg, x, "norm1")))
        h = conv(cfg, self.channels, "conv2")(nn.silu(norm(cfg, h, "norm2")))
        if x.shape[-1] != self.channels:
            x = conv(cfg, self.channels, "conv_shortcut", size=1)(x)
        return add(x, h)


class Attention(nn.Module):
    """Single-head self-attention over all positions, with a residual connection."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        batch, height, width, channels = x.shape

        cfg = self.config
        tokens = norm(cfg, x, "group_norm").reshape(batch, height * width, channels)
        head = lambda part: dense(cfg, channels, f"to_{part}")(tokens)[:, :, None]
        mixed = attention(*map(head, "qkv"), precision=compute(cfg)["precision"])[:, :, 0]
        return add(x, dense(cfg, channels, "to_out_0")(mixed).reshape(x.shape))


class MidBlock(nn.Module):
    """The coarsest resolution: residual block, attention, residual block."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = ResnetBlock(self.config, x.shape[-1], name="resnets_0")(x)
        if self.config.mid_attention:
            x = Attention(self.config, name="attentions_0")(x)
        return ResnetBlock(self.config, x.shape[-1], name="resnets_1")(x)


class Downsample(nn.Module):
    """Halve the image by a stride-2 convolution, padded with zeros below and to the right only."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
        padding = ((0, 1), (0, 1))
        return conv(self.config, x.shape[-1], "conv", strides=2, padding=padding)(x)


class Upsample(nn.Module):
    """Double the image by repeating pixels, then convolve."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        return conv(self.config, x.shape[-1], "conv")(x)


class DownBlock(nn.Module):
    """The encoder's residual blocks of one resolution, then down-sampling."""

    config: AutoencoderConfig
    channels: int
    downsample: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ channels"]:
        for i in range(self.config.layers_per_block):
            x = ResnetBlock(self.config, self.channels, name=f"resnets_{i}")(x)
        return Downsample(self.config, name="downsamplers_0")(x) if self.downsample else x


class UpBlock(nn.Module):
    """The decoder's residual blocks of one resolution, then up-sampling."""

    config: AutoencoderConfig
    channels: int
    upsample: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ channels"]:
        for i in range(self.config.layers_per_block + 1):
            x = ResnetBlock(self.config, self.channels, name=f"resnets_{i}")(x)
        return Upsample(self.config, name="upsamplers_0")(x) if self.upsample else x


class Encoder(nn.Module):
    """Maps images to the input of `quant_conv`."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b _ _ moments"]:
        cfg = self.config
        x = fold_pixels(images, cfg.fold)
        x = conv(cfg, cfg.block_channels[0], "conv_in")(x)
        for i, channels in enumerate(cfg.block_channels):
            downsample = i < len(cfg.block_channels) - 1
            x = DownBlock(cfg, channels, downsample, name=f"down_blocks_{i}")(x)
        x = MidBlock(cfg, name="mid_block")(x)
        x = nn.silu(norm(cfg, x, "conv_norm_out"))
        return conv(cfg, cfg.moments, "conv_out", zero=cfg.linear_skip)(x)


class Decoder(nn.Module):
    """Maps the output of `post_quant_conv` to images."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, z: Float[Array, "b h w c"]) -> Float[Array, "b _ _ image_channels"]:
        cfg = self.config
        x = conv(cfg, cfg.block_channels[-1], "conv_in")(z)
        x = MidBlock(cfg, name="mid_block")(x)
        for i, channels in enumerate(reversed(cfg.block_channels)):
            upsample = i < len(cfg.block_channels) - 1
            x = UpBlock(cfg, channels, upsample, name=f"up_blocks_{i}")(x)
        x = nn.silu(norm(cfg, x, "conv_norm_out"))
        folded = cfg.image_channels * cfg.fold**2
        return unfold_pixels(conv(cfg, folded, "conv_out", zero=cfg.linear_skip)(x), cfg.fold)


def published_entries(key: PRNGKeyArray, shape: tuple[int, int], dtype: Any) -> Float[Array, "k c"]:
    """Initialise a codebook of k entries as VQ-GAN does: uniform in [-1/k, 1/k]."""
    return jax.random.uniform(key, shape, dtype, -1 / shape[0], 1 / shape[0])


class Quantiser(nn.Module):
    """Maps each latent to its nearest codebook entry and index, always in float32."""

    config: AutoencoderConfig

    def setup(self) -> None:
        cfg = self.config
        self.embedding = nn.Embed(
            cfg.codebook, cfg.latent_channels, embedding_init=published_entries
        )

    def __call__(
        self, z: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b h w c"], Int32[Array, "b h w"]]:
        indices = nearest(self.embedding.embedding, z.reshape(-1, z.shape[-1]))
        return self.embedding(indices).reshape(z.shape), indices.reshape(z.shape[:-1])


def nearest(entries: Float[Array, "k c"], z: Float[Array, "n c"]) -> Int32[Array, " n"]:
    """Return the index of each row's nearest entry in squared Euclidean distance.

    Ties go to the lowest index. |z|^2, the same for all entries, is left out of
    |e|^2 - 2 e.z + |z|^2, since it would only add rounding. No gradient passes.
    """
    entries, z = jax.lax.stop_gradient((entries.astype(jnp.float32), z.astype(jnp.float32)))
    size = min(len(entries), NEAREST_BLOCK)
    padding = (0, -len(entries) % size)
    norms = jnp.pad(jnp.sum(jnp.square(entries), axis=-1), padding, constant_values=jnp.inf)
    blocks = jnp.pad(entries, (padding, (0, 0))).reshape(-1, size, entries.shape[-1])
    starts = jnp.arange(0, len(norms), size, dtype=jnp.int32)

    def compare(best: tuple[Array, Array], block: tuple[Array, Array, Array]) -> tuple:
        distance, index = best
        start, norms, entries = block
        distances = norms[None] - 2.0 * jnp.matmul(z, entries.T, precision="highest")
        closest = jnp.min(distances, axis=-1)
        its_index = start + jnp.argmin(distances, axis=-1).astype(jnp.int32)
        closer = closest < distance
        return (jnp.where(closer, closest, distance), jnp.where(closer, its_index, index)), None

    first = jnp.full_like(z[:, 0], jnp.inf), jnp.zeros_like(z[:, 0], jnp.int32)
    (_, index), _ = jax.lax.scan(compare, first, (starts, norms.reshape(-1, size), blocks))
    return index


def fold_pixels(images: Float[Array, "b h w c"], factor: int) -> Float[Array, "b _ _ _"]:
    """Move each `factor` x `factor` patch of pixels into channels (space to depth)."""
    return rearrange(images, "b (h i) (w j) c -> b h w (i j c)", i=factor, j=factor)


def unfold_pixels(patches: Float[Array, "b h w d"], factor: int) -> Float[Array, "b _ _ _"]:
    """Undo `fold_pixels`."""
    return rearrange(patches, "b h w (i j c) -> b (h i) (w j) c", i=factor, j=factor)
