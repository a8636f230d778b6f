"""SISMA: a velocity model for latents, conditioned on a semantic mask (arXiv 2509.17651).

    z_t -> patchify -> + position -> N blocks -> final layer -> unpatchify -> velocity
    labels -> mask encoder -> S_M -> every block's Cross-Mamba
    t -> embedding -> shift, scale and gate of every sub-layer (adaLN-Zero)
    reference and its labels -> style encoder -> every block's style sub-layer, with `style`

A block has three residual sub-layers, x + gate * f(shift + (1 + scale) * LayerNorm(x)), where f is
Self-Mamba, Cross-Mamba and a feed-forward network, in this order. Gates and the last linear map
start at zero: a new model predicts zero velocity, and its blocks are the identity.

There are two ablations. `mixer="attention"`, the twin, replaces the Mamba mixers by self- and
cross-attention (`attention_mixers`). `modulation="shift"` reads the paper's figure literally, which
prints "Shift" after the operator where related models have a gate:

    x + f(shift + (1 + scale) * LayerNorm(x)) + shift_out

The map of t is the same and starts at zero, and the last linear map still makes the velocity of a
new model zero. Its blocks are not the identity, because no gate suppresses f: they are those of a
plain pre-norm transformer, x + f(LayerNorm(x)), for every t.

With `style`, our addition (the paper names references as future work), a fourth sub-layer after
Cross-Mamba reads one token per class that encodes the style of a reference face (`style_encoder`,
`style_mixers`). Without a reference the tokens are those of absent classes.

The blocks are one `nn.scan`: parameters are stacked along a leading axis, and the program compiles
once, whatever the depth. If parameters are sharded over devices, each block gathers its own before
use. They are kept for the backward pass, unless `remat` recomputes the blocks.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int32, UInt8

from sisma_jax.devices.placement import replicate
from sisma_jax.models.layers.adaptive_norm import adaptive_layer_norm, gated_sum, shifted_sum
from sisma_jax.models.layers.embeddings import Positions, TimeEmbedding
from sisma_jax.models.layers.style_encoder import (
    OF_ALL_CLASSES,
    class_shares,
    make_style_encoder,
    no_style,
)
from sisma_jax.models.sisma import kept
from sisma_jax.models.sisma.attention_mixers import CrossAttention, MaskKeys, SelfAttention
from sisma_jax.models.sisma.config import SISMAConfig
from sisma_jax.models.sisma.kept import projected
from sisma_jax.models.sisma.mamba import CrossMamba, MaskStream, SelfMamba, xavier
from sisma_jax.models.sisma.mask_encoder import MaskEncoder
from sisma_jax.models.sisma.scan_orders import block_orders
from sisma_jax.models.sisma.style_mixers import StyleAttention, StyleKeys, StyleMamba

MaskFeatures = MaskStream | MaskKeys
"""What a block, or the whole model, computes from the mask only; depends on `mixer`."""
StyleFeatures = StyleKeys | MaskStream
"""What it computes from mask and style only; depends on `style`."""
ENCODERS = ("mask_encoder", "style_encoder")
"""Parts of the model that do not depend on t."""
FLOAT32_PARAMETERS = ("A_log", "D", "delta_bias", "table")
"""Parameters outside norms and encoders that are computed with in float32."""
Placed = tuple[Float[Array, "b s token"], Float[Array, "b l s"]]
"""Style tokens, and the shares of classes in each cell of the grid."""


@flax.struct.dataclass
class Features:
    """Features of mask and style, which a model with a style computes once before solving."""

    mask: Any
    style: Any


class SISMABlock(nn.Module):
    """Self-Mamba, Cross-Mamba, style (optional) and feed-forward; the body of the scan."""

    config: SISMAConfig

    def setup(self) -> None:
        cfg = self.config
        zeros = nn.initializers.zeros
        features = 3 * cfg.sublayers * cfg.width
        self.modulation = nn.Dense(features, kernel_init=zeros, dtype=cfg.dtype)
        attention = dict(width=cfg.width, head=cfg.attention_head, dtype=cfg.dtype)
        mamba = dict(
            width=cfg.width,
            grid=cfg.grid,
            state=cfg.state,
            expand=cfg.expand,
            orders=cfg.orders,
            dtype=cfg.dtype,
            implementation=cfg.scan,
        )
        if cfg.mixer == "attention":
            self.self_mixer = SelfAttention(**attention, name="self_attention")
            self.cross_mixer = CrossAttention(**attention, name="cross_attention")
        else:
            self.self_mixer = SelfMamba(**mamba, name="self_mamba")
            self.cross_mixer = CrossMamba(**mamba, name="cross_mamba")
        if cfg.style == "mamba":
            self.style_mixer = StyleMamba(cfg.width, cfg.grid, mamba, cfg.dtype, name="style_mamba")
        elif cfg.style != "none":
            masked = cfg.style == "attention"
            self.style_mixer = StyleAttention(**attention, masked=masked, name="style_attention")
        self.ff_in = nn.Dense(cfg.ff_ratio * cfg.width, kernel_init=xavier, dtype=cfg.dtype)
        self.ff_out = nn.Dense(cfg.width, kernel_init=xavier, dtype=cfg.dtype)

    def streams(
        self, _: None, mask_tokens: Float[Array, "b l width"], placed: Placed | None
    ) -> tuple[None, MaskFeatures | Features]:
        """What this block computes from the mask and the style only."""
        mask = self.cross_mixer.mask_stream(mask_tokens)
        return None, mask if placed is None else Features(
            mask, self.style_mixer.style_stream(*placed)
        )

    def with_streams(
        self,
        x: Float[Array, "b l width"],
        t: Float[Array, "b width"],
        features: MaskFeatures | Features,
        order: Int32[Array, "k l"],
    ) -> tuple[Float[Array, "b l width"], None]:
        """The block applied to tokens `x`, with the features of mask and style precomputed."""
        cfg = self.config
        scanned = (order,) if cfg.mixer == "mamba" else ()
        styled = cfg.style != "none"
        mask = features.mask if styled else features
        sublayers = [
            lambda h: self.self_mixer(h, *scanned),
            lambda h: self.cross_mixer(h, mask, *scanned),
            lambda h: projected(self.ff_out(nn.gelu(projected(self.ff_in(h))))),
        ]
        if styled:
            ordered = (order,) if cfg.style == "mamba" else ()
            sublayers.insert(2, lambda h: self.style_mixer(h, features.style, *ordered))
        modulation = jnp.split(projected(self.modulation(nn.silu(t))), 3 * len(sublayers), axis=-1)
        add = gated_sum if cfg.modulation == "gate" else shifted_sum
        for i, sublayer in enumerate(sublayers):
            shift, scale, last = modulation[3 * i : 3 * i + 3]
            h = sublayer(adaptive_layer_norm(x, shift, scale, cfg.dtype))
            x = add(x, h, last)
        return x, None

    def __call__(
        self,
        x: Float[Array, "b l width"],
        t: Float[Array, "b width"],
        mask_tokens: Float[Array, "b l width"],
        order: Int32[Array, "k l"],
        placed: Placed | None = None,
    ) -> tuple[Float[Array, "b l width"], None]:
        """The whole block; in training the mask's features are recomputed with it, not kept."""
        return self.with_streams(x, t, self.streams(None, mask_tokens, placed)[1], order)


class FinalLayer(nn.Module):
    """LayerNorm, modulation by t, and a linear map that starts at zero."""

    features: int
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l width"], t: Float[Array, "b width"]
    ) -> Float[Array, "b l features"]:
        zeros = nn.initializers.zeros
        modulation = nn.Dense(2 * x.shape[-1], kernel_init=zeros, dtype=self.dtype)(nn.silu(t))
        shift, scale = jnp.split(modulation, 2, axis=-1)
        h = adaptive_layer_norm(x, shift, scale, self.dtype)
        return nn.Dense(self.features, kernel_init=zeros, dtype=self.dtype)(h)


class SISMA(nn.Module):
    """Predicts the velocity of latents given a mask. See the module docstring.

    `apply(params, z_t, t, labels)` is the whole model, for training. In synthesis the mask is the
    same at every solver step: `method="encode_mask"` computes once what depends on it only, and
    `method="velocity"` takes the result. With `config.style`, `method="encode_style"` returns the
    style tokens of references, an optional last argument of `__call__` and `encode_mask`.
    """

    config: SISMAConfig

    def setup(self) -> None:
        cfg = self.config
        self.patch_in = nn.Dense(cfg.width, kernel_init=xavier, dtype=cfg.dtype)
        self.positions = Positions(cfg.grid)
        self.time = TimeEmbedding(cfg.width, cfg.dtype)
        self.mask_encoder = MaskEncoder(
            cfg.width, cfg.num_classes, cfg.downsampling, cfg.mask_channels, cfg.dtype
        )
        along_depth = dict(
            variable_axes={"params": 0}, split_rngs={"params": True}, length=cfg.depth
        )
        broadcast = nn.broadcast
        methods = {
            "__call__": dict(in_axes=(broadcast, broadcast, 0, broadcast), **along_depth),
            "streams": dict(in_axes=(broadcast, broadcast), **along_depth),
            "with_streams": dict(in_axes=(broadcast, 0, 0), **along_depth),
        }
        block = nn.map_variables(
            SISMABlock,
            "params",
            trans_in_fn=replicate,
            init=self.is_initializing(),
            methods=[*methods],
        )
        if cfg.remat != "none":
            policy = kept.POLICIES[cfg.remat]
            block = nn.remat(block, prevent_cse=False, policy=policy, methods=[*methods])
        self.blocks = nn.scan(block, methods=methods)(cfg)
        self.final = FinalLayer(cfg.patch**2 * cfg.latent_channels, cfg.dtype)
        if cfg.style != "none":
            self.style_encoder = make_style_encoder(cfg)

    def __call__(
        self,
        z_t: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        labels: UInt8[Array, "b H W"],
        style: Float[Array, "b s token"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Return the velocity at latents `z_t` and times `t` in [0, 1], float32.

        Labels are class ids; 255 is unlabelled, and a map of 255 everywhere is the null mask.
        `style` is the output of `encode_style`, or None for no reference.

        Raises:
          ValueError: if latents or labels do not have the configuration's size, or `style` is given
            to a model without style conditioning.
        """
        mask, placed = self._condition(labels, style)
        blocks = lambda x, t, orders: self.blocks(x, t, mask, orders, placed)
        return self._through_blocks(z_t, t, blocks)

    def encode_style(
        self, images: Float[Array, "b H W 3"], labels: UInt8[Array, "b H W"]
    ) -> Float[Array, "b s token"]:
        """Return one style token per class of each reference, in [-1, 1], float32.

        Args:
          images: references in [-1, 1].
          labels: their class ids. A class without pixels gets the token of "no style".

        Raises:
          ValueError: if the labels do not have the configuration's size.
        """
        self._check_labels(labels)
        return self.style_encoder(images, labels)

    def no_style(self) -> Float[Array, "1 s token"]:
        """Return the style tokens that represent no reference."""
        return no_style(self.style_encoder, self.config.image_size)

    def encode_mask(
        self, labels: UInt8[Array, "b H W"], style: Float[Array, "b s token"] | None = None
    ) -> MaskFeatures | Features:
        """Return what depends on mask and style only, for `velocity`; the first axis is blocks."""
        return self.blocks.streams(None, *self._condition(labels, style))[1]

    def velocity(
        self, z_t: Float[Array, "b h w c"], t: Float[Array, " b"], features: MaskFeatures | Features
    ) -> Float[Array, "b h w c"]:
        """Return the velocity like `__call__`, from the features of `encode_mask`."""
        blocks = lambda x, t, orders: self.blocks.with_streams(x, t, features, orders)
        return self._through_blocks(z_t, t, blocks)

    def _condition(self, labels: Array, style: Array | None) -> tuple[Array, Placed | None]:
        """Mask tokens, and style tokens with the cells that they belong to."""
        cfg = self.config
        self._check_labels(labels)
        mask = self.mask_encoder(labels)
        if cfg.style == "none":
            if style is not None:
                raise ValueError(
                    "this model has no style conditioning: give no style, or train with model.style"
                )
            return mask, None
        if style is None:
            style = jnp.repeat(self.no_style(), len(labels), axis=0)
        return mask, (style, class_shares(labels, cfg.grid, cfg.num_classes))

    def _through_blocks(self, z_t: Array, t: Array, blocks: Callable) -> Array:
        cfg = self.config
        expected = (cfg.latent_size, cfg.latent_size, cfg.latent_channels)
        if z_t.shape[1:] != expected:
            raise ValueError(f"latents of shape {z_t.shape[1:]} do not fit the model's {expected}")
        patches = rearrange(z_t, "b (h p) (w q) c -> b (h w) (p q c)", p=cfg.patch, q=cfg.patch)
        # As in Mamba, the residual stream is float32 whatever the compute type.
        x = self.positions(self.patch_in(patches).astype(jnp.float32))
        t = self.time(t)
        orders = jnp.asarray(block_orders(*cfg.grid, cfg.depth, cfg.orders))
        x, _ = blocks(x, t, orders)
        h, w = cfg.grid
        return rearrange(
            self.final(x, t).astype(jnp.float32),
            "b (h w) (p q c) -> b (h p) (w q) c",
            h=h,
            w=w,
            p=cfg.patch,
            q=cfg.patch,
        )

    def _check_labels(self, labels: Array) -> None:
        size = self.config.image_size
        if labels.shape[1:] != (size, size):
            raise ValueError(
                f"label maps of {labels.shape[2]}x{labels.shape[1]} pixels do not fit the model's "
                f"{size}x{size}"
            )


def init_params(config: SISMAConfig, key: Array) -> dict:
    """Return new float32 parameters of `SISMA(config)`, for `apply({"params": ...})`."""
    size, latent = config.image_size, config.latent_size
    return SISMA(config).init(
        key,
        jnp.zeros((1, latent, latent, config.latent_channels)),
        jnp.zeros((1,)),
        jnp.zeros((1, size, size), jnp.uint8),
    )["params"]


def in_compute_type(config: SISMAConfig, params: dict) -> dict:
    """The parameters, with those that blocks and ends of the model use in `config.dtype` rounded to
    it in advance. Velocities are unchanged, and a solver then rounds no weights in its steps.

    float32 stay those that are computed with in float32 (A_log, D, the bias of delta, norms,
    depthwise convolutions, positions), and the encoders of mask and style, which run once.
    """

    def stored(path: tuple, leaf: Array | np.ndarray) -> Array | np.ndarray:
        first, module, name = path[0].key, path[-2].key, path[-1].key
        exact = first in ENCODERS or module in ("norm", "conv") or name in FLOAT32_PARAMETERS
        return leaf if exact else leaf.astype(config.dtype)

    return jax.tree_util.tree_map_with_path(stored, params)


def gather_parameters(params: dict) -> dict:
    """The parameters replicated on every device, except those of blocks, which gather their own."""
    return {name: leaf if name == "blocks" else replicate(leaf) for name, leaf in params.items()}


def matrix_axes(path: tuple, leaf: Array) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return (input axes, output axes) of a parameter that is a linear map, else None.

    It is None for A_log, D, depthwise kernels, positions, norms and biases.
    """
    module, name = path[-2].key if len(path) > 1 else "", path[-1].key
    if name not in ("kernel", "delta_weight") or module == "conv":
        return None
    last = leaf.ndim - 1
    # The input axes of the encoders' convolutions include their window. Other axes are blocks,
    # orders or, in the style encoder, classes.
    first = {"mask_encoder": 0, "style_encoder": 0 if module in OF_ALL_CLASSES else 1}
    return tuple(range(first.get(path[0].key, last - 1), last)), (last,)
