"""SCA-DM (arXiv 2403.12743): predicts the noise in latents from a mask and a reference's style.

    x_t -> encoder -> middle -> decoder -> noise, at the latents' resolution
    t -> embedding -> every residual block
    labels -> one channel per class -> SPADE in every block of the middle and the decoder
    reference -> style encoder -> a token per class -> cross-attention of every transformer,
                                  where a pixel sees the token of its own class only (by labels)

Sizes and wiring are those of the published code. The U-Net has 486,895,363 parameters (the
published one 17,024 more, in an unused embedding of classes), the style encoder 18,069,304. A new
model predicts zero, because the last layers of residual blocks, transformers and U-Net start at
zero, as published.

x_t and t are DDPM's: see `sisma_jax.flows.diffusion`. Labels outside 0..num_classes-1 (255:
unlabelled) have no class: their input to SPADE is zero, and cross-attention averages all tokens.
"""

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, PRNGKeyArray, UInt8

from sisma_jax.models.cost.by_hand import style_encoder
from sisma_jax.models.layers.embeddings import StepEmbedding
from sisma_jax.models.layers.spade import ResBlock, conv, double, normalise
from sisma_jax.models.layers.spatial_transformer import SpatialTransformer, transformer_macs
from sisma_jax.models.layers.style_encoder import OF_ALL_CLASSES, StyleEncoder, no_style
from sisma_jax.models.scadm.config import SCADMConfig

IMAGE_CHANNELS = 3


class UNet(nn.Module):
    """The denoiser; the style encoder is separate."""

    config: SCADMConfig

    @nn.compact
    def __call__(
        self,
        x_t: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        semantics: Float[Array, "b H W k"],
        style: Float[Array, "b k token"],
    ) -> Float32[Array, "b h w c"]:
        cfg = self.config
        norms = dict(groups=cfg.norm_groups, dtype=cfg.dtype)
        block = partial(ResBlock, hidden=cfg.spade_hidden, scale_shift=False, zero=True, **norms)
        seen = semantics if cfg.mask_attention else None

        def attention(h: Array, name: str) -> Array:
            layer = SpatialTransformer(head_width=cfg.head_width, name=name, **norms)
            return layer(h, style, seen)

        def attend(h: Array, name: str) -> Array:
            return attention(h, name) if h.shape[1] in cfg.attention_sizes else h

        time = StepEmbedding(cfg.channels, cfg.time_width, name="time")(t)
        h = conv(cfg.channels, cfg.dtype, "conv_in")(x_t)
        skips = [h]
        levels = list(enumerate(cfg.multipliers))
        for level, multiplier in levels:
            for i in range(cfg.blocks):
                h = block(multiplier * cfg.channels, name=f"down_{level}_{i}")(h, time)
                h = attend(h, f"down_{level}_{i}_attention")
                skips.append(h)
            if level < len(levels) - 1:
                h = conv(h.shape[-1], cfg.dtype, f"halve_{level}", stride=2)(h)
                skips.append(h)

        h = block(h.shape[-1], name="middle_0")(h, time, semantics)
        h = attention(h, "middle_attention")
        h = block(h.shape[-1], name="middle_1")(h, time, semantics)

        for level, multiplier in reversed(levels):
            for i in range(cfg.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(multiplier * cfg.channels, name=f"up_{level}_{i}")(h, time, semantics)
                h = attend(h, f"up_{level}_{i}_attention")
            if level:
                h = conv(h.shape[-1], cfg.dtype, f"double_{level}")(double(h))

        h = nn.silu(normalise(h.astype(jnp.float32), cfg.norm_groups, "norm_out"))
        return conv(cfg.latent_channels, "float32", "conv_out", zero=True)(h)


class SCADM(nn.Module):
    """Predicts the noise in latents from label maps and styles. See the module docstring."""

    config: SCADMConfig

    def setup(self) -> None:
        c = self.config
        self.unet = UNet(c)
        self.style_encoder = StyleEncoder(
            c.num_classes,
            c.style_channels,
            c.style_levels,
            c.style_features,
            c.dtype,
            c.style_colours,
        )

    def __call__(
        self,
        x_t: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        labels: UInt8[Array, "b H W"],
        style: Float32[Array, "b k token"],
    ) -> Float32[Array, "b h w c"]:
        """Return the predicted noise, float32.

        Args:
          x_t: noisy latents.
          t: diffusion steps, 0 (least noisy) to 999, not necessarily integers.
          labels: class ids at the image's size; 255 is unlabelled.
          style: output of `encode_style`.

        Raises:
          ValueError: if latents, labels or style do not have the configuration's size.
        """
        c = self.config
        self._check_size(labels)
        latents = (c.latent_size, c.latent_size, c.latent_channels)
        if x_t.shape[1:] != latents:
            raise ValueError(f"latents {x_t.shape[1:]} do not have the model's size {latents}")
        tokens = (c.num_classes, c.style_width)
        if style.shape[1:] != tokens:
            raise ValueError(f"styles {style.shape[1:]} do not have the model's size {tokens}")
        semantics = jax.nn.one_hot(labels, c.num_classes, dtype=c.dtype)
        return self.unet(x_t, t, semantics, style)

    def encode_style(
        self, images: Float[Array, "b H W 3"], labels: UInt8[Array, "b H W"]
    ) -> Float32[Array, "b k token"]:
        """Return one style token per class of each reference, in (-1, 1).

        Args:
          images: references in [-1, 1].
          labels: their class ids. A class without pixels gets the token of "no style".

        Raises:
          ValueError: if images or labels do not have the configuration's size.
        """
        self._check_size(images)
        self._check_size(labels)
        return self.style_encoder(images, labels)

    def no_style(self) -> Float32[Array, "1 k token"]:
        """Return the style tokens that represent no reference."""
        return no_style(self.style_encoder, self.config.image_size)

    def _check_size(self, pixels: Array) -> None:
        size = (self.config.image_size, self.config.image_size)
        if pixels.shape[1:3] != size:
            what = "images" if pixels.ndim == 4 else "label maps"
            raise ValueError(f"{what} {pixels.shape[1:3]} do not have the model's size {size}")


def init_params(config: SCADMConfig, key: PRNGKeyArray) -> dict:
    """Return new float32 parameters of `SCADM(config)`, for `apply({"params": ...})`."""
    latents = (1, config.latent_size, config.latent_size, config.latent_channels)
    size = (1, config.image_size, config.image_size)
    labels = jnp.zeros(size, jnp.uint8)

    def everything(model: SCADM) -> Array:
        style = model.encode_style(jnp.zeros((*size, IMAGE_CHANNELS)), labels)
        return model(jnp.zeros(latents), jnp.zeros(1), labels, style)

    return SCADM(config).init(key, method=everything)["params"]


def matrix_axes(path: tuple, leaf: Array) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return (input axes, output axes) of a parameter that is a linear map, else None.

    The input axes of convolutions include their window. Kernels of the style encoder have a leading
    axis of classes, except for those shared by all classes.
    """
    if path[-1].key != "kernel":
        return None
    per_class = path[0].key == "style_encoder" and path[-2].key not in OF_ALL_CLASSES
    last = leaf.ndim - 1
    return tuple(range(int(per_class), last)), (last,)


def scadm_macs(config: SCADMConfig) -> int:
    """Return the multiply-accumulates of one noise prediction for one image with given style.

    They are counted as in `sisma_jax.models.cost`. A solver step takes one pass, or two with
    guidance.
    """
    c = config
    time = c.channels * c.time_width + c.time_width**2
    widths = [multiplier * c.channels for multiplier in c.multipliers]
    ends = c.latent_size**2 * 9 * c.latent_channels * (c.channels + widths[0])
    encoder, decoder = _residual_blocks(c)
    blocks = sum(_block_macs(c, block) for block in encoder + decoder)
    spade = sum(
        block.size**2 * 9 * c.spade_hidden * (c.num_classes + 2 * channels)
        for block in decoder
        for channels in (block.inputs, block.outputs)
    )
    resampling = sum(
        9
        * (
            (c.latent_size >> (level + 1)) ** 2 * finer**2
            + (c.latent_size >> level) ** 2 * coarser**2
        )
        for level, (finer, coarser) in enumerate(pairwise(widths))
    )
    return time + ends + blocks + spade + resampling


def style_macs(config: SCADMConfig) -> int:
    """Return the multiply-accumulates of encoding the style of one reference."""
    c = config
    return style_encoder(
        c.image_size, c.num_classes, c.style_channels, c.style_levels, c.style_features,
        c.style_colours,
    )  # fmt: skip


class _Block(NamedTuple):
    inputs: int
    outputs: int
    size: int
    attention: bool


def _residual_blocks(c: SCADMConfig) -> tuple[list[_Block], list[_Block]]:
    """The encoder's blocks, and the blocks with SPADE in middle and decoder."""
    sizes = [c.latent_size >> level for level in range(len(c.multipliers))]
    levels = [
        (multiplier * c.channels, size, size in c.attention_sizes)
        for multiplier, size in zip(c.multipliers, sizes, strict=True)
    ]
    encoder, skips, inputs = [], [c.channels], c.channels
    for level, (width, size, attention) in enumerate(levels):
        for _ in range(c.blocks):
            encoder.append(_Block(inputs, width, size, attention))
            inputs = width
            skips.append(width)
        if level < len(levels) - 1:
            skips.append(width)
    middle = partial(_Block, inputs, inputs, sizes[-1])
    decoder = [middle(attention=True), middle(attention=False)]
    for width, size, attention in reversed(levels):
        for _ in range(c.blocks + 1):
            decoder.append(_Block(inputs + skips.pop(), width, size, attention))
            inputs = width
    return encoder, decoder


def _block_macs(c: SCADMConfig, block: _Block) -> int:
    """MACs of one block without SPADE, including the transformer after it."""
    inputs, width, size, attention = block
    length = size**2
    skip = inputs * width if inputs != width else 0
    total = length * (9 * inputs * width + 9 * width**2 + skip) + c.time_width * width
    if attention:
        total += transformer_macs(length, width, c.num_classes, c.style_width)
    return total
