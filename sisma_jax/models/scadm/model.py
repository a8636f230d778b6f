"""SCA-DM (arXiv 2403.12743): predicts the noise in latents from a mask and a reference's style.

    x_t -> encoder -> middle -> decoder -> prediction, at the latents' resolution
    t -> embedding -> every residual block
    labels -> one channel per class -> SPADE in every block of the middle and the decoder
    reference -> style encoder -> a token per class -> cross-attention of every transformer,
                                  where a pixel sees the token of its own class only (by labels)

Sizes and wiring are those of the published code. The U-Net has 486,895,363 parameters (the
published one 17,024 more, in an unused embedding of classes), the style encoder 18,069,304. A new
model predicts zero, because the last layers of residual blocks, transformers and U-Net start at
zero, as published.

x_t and t are DDPM's, and the prediction is the noise, as published, or the velocity: see
`sisma_jax.flows.diffusion`. Labels outside 0..num_classes-1 (255:
unlabelled) have no class: their input to SPADE is zero, and cross-attention averages all tokens.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, PRNGKeyArray, UInt8

from sisma_jax.models.cost.by_hand import style_encoder
from sisma_jax.models.layers.embeddings import StepEmbedding
from sisma_jax.models.layers.spade import Modulation, ResBlock, conv, double
from sisma_jax.models.layers.spatial_transformer import SpatialTransformer, transformer_macs
from sisma_jax.models.layers.style_encoder import OF_ALL_CLASSES, make_style_encoder, no_style
from sisma_jax.models.layers.unet import (
    BlockSizes,
    UNetOfMask,
    residual_macs,
    spade_macs,
    unet,
    unet_blocks,
)
from sisma_jax.models.scadm.config import SCADMConfig

IMAGE_CHANNELS = 3


@flax.struct.dataclass
class MaskFeatures:
    """What the U-Net computes from the mask alone, the same at every step.

    semantics (b, h, w, k): one channel per class, at the latents' size, in the compute type.
    modulations: gamma and beta of every SPADE, by block and norm.
    """

    semantics: Any
    modulations: Any


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
        modulations: dict[str, dict[str, Modulation]] | None = None,
    ) -> Float32[Array, "b h w c"]:
        cfg = self.config
        norms = dict(groups=cfg.norm_groups, dtype=cfg.dtype)
        block = partial(ResBlock, hidden=cfg.spade_hidden, scale_shift=False, zero=True, **norms)
        seen = semantics if cfg.mask_attention else None

        def attention(h: Array, name: str) -> Array:
            layer = SpatialTransformer(head_width=cfg.head_width, name=name, **norms)
            return layer(h, style, seen)

        time = StepEmbedding(cfg.channels, cfg.time_width, name="time")(t)
        h = unet(
            cfg,
            conv(cfg.channels, cfg.dtype, "conv_in")(x_t),
            time,
            semantics if modulations is None else modulations,
            block=block,
            attention=attention,
            halve=lambda h, name: conv(h.shape[-1], cfg.dtype, name, stride=2)(h),
            double=lambda h, name: conv(h.shape[-1], cfg.dtype, name)(double(h)),
        )
        return conv(cfg.latent_channels, "float32", "conv_out", zero=True)(h)


class SCADM(nn.Module):
    """Predicts from label maps and styles. See the module docstring."""

    config: SCADMConfig

    def setup(self) -> None:
        c = self.config
        self.unet = UNet(c)
        self.style_encoder = make_style_encoder(c, c.style_grouping)

    def __call__(
        self,
        x_t: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        labels: UInt8[Array, "b H W"],
        style: Float32[Array, "b k token"],
    ) -> Float32[Array, "b h w c"]:
        """Return the prediction, float32.

        Args:
          x_t: noisy latents.
          t: diffusion steps, 0 (least noisy) to 999, not necessarily integers.
          labels: class ids at the image's size; 255 is unlabelled.
          style: output of `encode_style`.

        Raises:
          ValueError: if latents, labels or style do not have the configuration's size.
        """
        _check_size(self.config, labels)
        self._check_inputs(x_t, style)
        return self.unet(x_t, t, _semantics(self.config, labels), style)

    def with_mask(
        self,
        x_t: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        mask: MaskFeatures,
        style: Float32[Array, "b k token"],
    ) -> Float32[Array, "b h w c"]:
        """Return the prediction like `__call__`, from the features of `encode_mask`."""
        self._check_inputs(x_t, style)
        return self.unet(x_t, t, mask.semantics, style, mask.modulations)

    def _check_inputs(self, x_t: Array, style: Array) -> None:
        c = self.config
        latents = (c.latent_size, c.latent_size, c.latent_channels)
        if x_t.shape[1:] != latents:
            raise ValueError(f"latents {x_t.shape[1:]} do not have the model's size {latents}")
        tokens = (c.num_classes, c.style_width)
        if style.shape[1:] != tokens:
            raise ValueError(f"styles {style.shape[1:]} do not have the model's size {tokens}")

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
        _check_size(self.config, images)
        _check_size(self.config, labels)
        return self.style_encoder(images, labels)

    def no_style(self) -> Float32[Array, "1 k token"]:
        """Return the style tokens that represent no reference."""
        return no_style(self.style_encoder, self.config.image_size)


def encode_mask(config: SCADMConfig, params: dict, labels: UInt8[Array, "b H W"]) -> MaskFeatures:
    """Return what depends on the mask only, for `SCADM.with_mask`.

    At the published size it takes 62 MB per mask in bfloat16.

    Args:
      config: sizes of the model.
      params: its parameters.
      labels: class ids at the image's size; 255 is unlabelled.

    Raises:
      ValueError: if the labels do not have the configuration's size.
    """
    _check_size(config, labels)
    semantics = _semantics(config, labels)[:, :: config.factor, :: config.factor]
    of_mask = UNetOfMask(config, config.latent_size, config.channels)
    return MaskFeatures(semantics, of_mask.apply({"params": params["unet"]}, semantics))


def _check_size(config: SCADMConfig, pixels: Array) -> None:
    size = (config.image_size, config.image_size)
    if pixels.shape[1:3] != size:
        what = "images" if pixels.ndim == 4 else "label maps"
        raise ValueError(f"{what} {pixels.shape[1:3]} do not have the model's size {size}")


def _semantics(config: SCADMConfig, labels: UInt8[Array, "b H W"]) -> Float[Array, "b H W k"]:
    return jax.nn.one_hot(labels, config.num_classes, dtype=config.dtype)


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
    """Return the multiply-accumulates of one prediction for one image with given style.

    They are counted as in `sisma_jax.models.cost` and include `scadm_mask_macs`, which synthesis
    spends once. A solver step takes one pass, or two with guidance.
    """
    c = config
    time = c.channels * c.time_width + c.time_width**2
    last = c.multipliers[0] * c.channels
    ends = c.latent_size**2 * 9 * c.latent_channels * (c.channels + last)
    encoder, decoder = unet_blocks(c, c.latent_size, c.channels)
    blocks = sum(_block_macs(c, block) for block in encoder + decoder)
    return time + ends + blocks + scadm_mask_macs(c)


def scadm_mask_macs(config: SCADMConfig) -> int:
    """Return the multiply-accumulates of `encode_mask` for one mask: SPADE's convolutions."""
    c = config
    _, decoder = unet_blocks(c, c.latent_size, c.channels)
    return sum(
        spade_macs(block, c.num_classes, c.spade_hidden) for block in decoder if not block.resamples
    )


def style_macs(config: SCADMConfig) -> int:
    """Return the multiply-accumulates of encoding the style of one reference."""
    return style_encoder(config)


def _block_macs(c: SCADMConfig, block: BlockSizes) -> int:
    """MACs of one block without SPADE, with the transformer after it, or of one resampling."""
    width, length = block.outputs, block.size_out**2
    if block.resamples:
        return length * 9 * width**2
    total = residual_macs(block) + c.time_width * width
    if block.attention:
        total += transformer_macs(length, width, c.num_classes, c.style_width)
    return total
