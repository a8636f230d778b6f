"""SISMA: a velocity model for latents, conditioned on a semantic mask (arXiv 2509.17651).

    z_t -> patchify -> + position -> N blocks -> final layer -> unpatchify -> velocity
    labels -> mask encoder -> S_M -> every block's Cross-Mamba
    t -> embedding -> shift, scale and gate of every sub-layer (adaLN-Zero)

A block is three residual sub-layers, x + gate * f(shift + (1 + scale) * LayerNorm(x)), with
f = Self-Mamba, Cross-Mamba and a feed-forward network in this order. Gates and the last linear map
start at zero: a new model is the zero velocity, every block the identity.

Two ablations. `mixer="attention"` puts self- and cross-attention in place of the Mamba mixers: the
twin, see `attention`. `modulation="shift"` reads the paper's figure literally, which prints "Shift"
behind the operator where its siblings have a gate:

    x + f(shift + (1 + scale) * LayerNorm(x)) + shift_out

with the same map of t, which starts at zero here too. The velocity of a new model is still zero, by
the last linear map. Its blocks are no longer the identity, for nothing holds f back: they are those
of a plain pre-norm transformer, x + f(LayerNorm(x)) whatever t.

The blocks are one `nn.scan`: parameters are stacked along a leading axis and the program compiles
once, whatever the depth. Where they are stored in pieces over several devices, each block gathers
its own as it comes to them; those that the backward pass needs are kept until then, unless `remat`
has blocks computed again.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int32, UInt8

from sisma_jax.models.attention import CrossAttention, MaskKeys, SelfAttention
from sisma_jax.models.embeddings import Positions, TimeEmbedding
from sisma_jax.models.mamba import CrossMamba, MaskStream, SelfMamba, layer_norm, xavier
from sisma_jax.models.mask_encoder import MaskEncoder
from sisma_jax.models.placement import whole
from sisma_jax.models.scan_orders import block_orders
from sisma_jax.models.sisma_config import SISMAConfig

MaskFeatures = MaskStream | MaskKeys
"""What a block, or a whole model, computes from the mask alone; by its mixer."""


def modulate(
    x: Float[Array, "b l width"], shift: Float[Array, "b width"], scale: Float[Array, "b width"]
) -> Float[Array, "b l width"]:
    """Scale and shift every token of a sample alike."""
    return x * (1 + scale[:, None]) + shift[:, None]


class SISMABlock(nn.Module):
    """Self-Mamba, Cross-Mamba, feed-forward; the body of the scan over depth."""

    config: SISMAConfig

    def setup(self) -> None:
        cfg = self.config
        zeros = nn.initializers.zeros
        self.modulation = nn.Dense(9 * cfg.width, kernel_init=zeros, dtype=cfg.dtype)
        self.norm = layer_norm(use_scale=False, use_bias=False)
        if cfg.mixer == "attention":
            mixer = dict(width=cfg.width, head=cfg.attention_head, dtype=cfg.dtype)
            self.self_mixer = SelfAttention(**mixer, name="self_attention")
            self.cross_mixer = CrossAttention(**mixer, name="cross_attention")
        else:
            mixer = dict(
                width=cfg.width,
                grid=cfg.grid,
                state=cfg.state,
                expand=cfg.expand,
                orders=cfg.orders,
                dtype=cfg.dtype,
                implementation=cfg.scan,
            )
            self.self_mixer = SelfMamba(**mixer, name="self_mamba")
            self.cross_mixer = CrossMamba(**mixer, name="cross_mamba")
        self.ff_in = nn.Dense(cfg.ff_ratio * cfg.width, kernel_init=xavier, dtype=cfg.dtype)
        self.ff_out = nn.Dense(cfg.width, kernel_init=xavier, dtype=cfg.dtype)

    def mask_stream(
        self, _: None, mask_tokens: Float[Array, "b l width"]
    ) -> tuple[None, MaskFeatures]:
        """What this block computes from the mask alone."""
        return None, self.cross_mixer.mask_stream(mask_tokens)

    def with_stream(
        self,
        x: Float[Array, "b l width"],
        t: Float[Array, "b width"],
        mask: MaskFeatures,
        order: Int32[Array, "k l"],
    ) -> tuple[Float[Array, "b l width"], None]:
        """The block on tokens `x` with the mask's part already computed."""
        scanned = (order,) if self.config.mixer == "mamba" else ()
        sublayers = (
            lambda h: self.self_mixer(h, *scanned),
            lambda h: self.cross_mixer(h, mask, *scanned),
            lambda h: self.ff_out(nn.gelu(self.ff_in(h))),
        )
        modulation = jnp.split(self.modulation(nn.silu(t)), 9, axis=-1)
        for i, sublayer in enumerate(sublayers):
            shift, scale, last = modulation[3 * i : 3 * i + 3]
            h = self.norm(x).astype(self.config.dtype)
            h = sublayer(modulate(h, shift, scale))
            h = last[:, None] * h if self.config.modulation == "gate" else h + last[:, None]
            x = x + h.astype(x.dtype)
        return x, None

    def __call__(
        self,
        x: Float[Array, "b l width"],
        t: Float[Array, "b width"],
        mask_tokens: Float[Array, "b l width"],
        order: Int32[Array, "k l"],
    ) -> tuple[Float[Array, "b l width"], None]:
        """The whole block: in training the mask's part is recomputed with it, not kept."""
        return self.with_stream(x, t, self.mask_stream(None, mask_tokens)[1], order)


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
        h = layer_norm(use_scale=False, use_bias=False)(x).astype(self.dtype)
        h = modulate(h, shift, scale)
        return nn.Dense(self.features, kernel_init=zeros, dtype=self.dtype)(h)


class SISMA(nn.Module):
    """The velocity of latents given a mask. See the module docstring.

    `apply(params, z_t, t, labels)` is the whole model, for training. In synthesis the mask is the
    same at every solver step: `method="encode_mask"` computes once all that depends on it alone,
    and `method="velocity"` takes the result.
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
            "__call__": dict(in_axes=(broadcast, broadcast, 0), **along_depth),
            "mask_stream": dict(in_axes=(broadcast,), **along_depth),
            "with_stream": dict(in_axes=(broadcast, 0, 0), **along_depth),
        }
        block = nn.map_variables(
            SISMABlock,
            "params",
            trans_in_fn=whole,
            init=self.is_initializing(),
            methods=[*methods],
        )
        if cfg.remat != "none":
            kept = _linear_maps(cfg) if cfg.remat == "dots" else None
            block = nn.remat(block, prevent_cse=False, policy=kept, methods=[*methods])
        self.blocks = nn.scan(block, methods=methods)(cfg)
        self.final = FinalLayer(cfg.patch**2 * cfg.latent_channels, cfg.dtype)

    def __call__(
        self,
        z_t: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        labels: UInt8[Array, "b H W"],
    ) -> Float[Array, "b h w c"]:
        """Return the velocity at latents `z_t` and times `t` in [0, 1], in float32.

        Labels are class ids; 255 is unlabelled, and a map of 255 everywhere the null mask.

        Raises:
          ValueError: if the latents or labels have another size than the configuration's.
        """
        self._check_labels(labels)
        return self._through_blocks(z_t, t, self.blocks, self.mask_encoder(labels))

    def encode_mask(self, labels: UInt8[Array, "b H W"]) -> MaskFeatures:
        """Return all that depends on the mask alone, for `velocity`; leading axis: the blocks."""
        self._check_labels(labels)
        return self.blocks.mask_stream(None, self.mask_encoder(labels))[1]

    def velocity(
        self, z_t: Float[Array, "b h w c"], t: Float[Array, " b"], features: MaskFeatures
    ) -> Float[Array, "b h w c"]:
        """Return what `__call__` returns, from `encode_mask`'s features of the labels."""
        return self._through_blocks(z_t, t, self.blocks.with_stream, features)

    def _through_blocks(self, z_t: Array, t: Array, blocks, mask: Array | MaskFeatures) -> Array:
        cfg = self.config
        expected = (cfg.latent_size, cfg.latent_size, cfg.latent_channels)
        if z_t.shape[1:] != expected:
            raise ValueError(f"latents of shape {z_t.shape[1:]} do not fit the model's {expected}")
        patches = rearrange(z_t, "b (h p) (w q) c -> b (h w) (p q c)", p=cfg.patch, q=cfg.patch)
        # The residual stream stays in float32 whatever the compute type, as in Mamba.
        x = self.positions(self.patch_in(patches).astype(jnp.float32))
        t = self.time(t)
        orders = jnp.asarray(block_orders(*cfg.grid, cfg.depth, cfg.orders))
        x, _ = blocks(x, t, mask, orders)
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


def _linear_maps(config: SISMAConfig) -> Callable:
    """The policy for `nn.remat` that keeps the results of linear maps."""
    policies = jax.checkpoint_policies
    if config.mixer == "mamba":
        return policies.dots_saveable
    # Attention's products, of length^2 numbers, are none: batch and heads are axes of both sides.
    return policies.dots_with_no_batch_dims_saveable


def init_params(config: SISMAConfig, key: Array) -> dict:
    """Return new parameters of `SISMA(config)`, as `apply` takes them under "params"."""
    size, latent = config.image_size, config.latent_size
    return SISMA(config).init(
        key,
        jnp.zeros((1, latent, latent, config.latent_channels)),
        jnp.zeros((1,)),
        jnp.zeros((1, size, size), jnp.uint8),
    )["params"]


def gathered(params: dict) -> dict:
    """The parameters on every device, but for those of the blocks, which gather their own."""
    return {name: leaf if name == "blocks" else whole(leaf) for name, leaf in params.items()}


def matrix_axes(path: tuple, leaf: Array) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return (input axes, output axes) of a parameter that is a linear map, else None.

    Not maps: A_log, D, depthwise kernels, positions, norms and biases.
    """
    module, name = path[-2].key if len(path) > 1 else "", path[-1].key
    if name not in ("kernel", "delta_weight") or module == "conv":
        return None
    last = leaf.ndim - 1
    # Convolutions of the mask encoder sum over their window too; other axes are blocks or orders.
    first = 0 if path[0].key == "mask_encoder" else last - 1
    return tuple(range(first, last)), (last,)
