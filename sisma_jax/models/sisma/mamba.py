"""Self-Mamba and Cross-Mamba: the two token mixers of a SISMA block.

Both run a selective scan (Gu & Dao, arXiv 2312.00752) over the tokens of an H x W grid. With X the
normalised tokens, d = expand x D channels, n states, and pi a scan order (`scan_orders`):

  Self-Mamba                                      Cross-Mamba, S = the mask's tokens
    [x~, z] = X W_in                                [x~, z] = X W_in;        s~ = S W_s
    x = SiLU(DWConv(x~))                            x = SiLU(DWConv(x~));    s = SiLU(DWConv(s~))
    [delta, B, C] = x W_x                           [delta, B] = s W_s->dtB; C = x W_x->C
    h_l = exp(Delta_l A) h_l-1 + Delta_l B_l x_l    h_l = exp(Delta_l A) h_l-1 + Delta_l B_l s_l
    y_l = <C_l, h_l> + D_skip x_l                   y_l = <C_l, h_l> + D_skip s_l
                          Delta = softplus(delta W_dt + b_dt),  A = -exp(A_log)
                          out = (LayerNorm(y) * SiLU(z)) W_out

Rows are visited in the order pi; y stays in grid order. In Cross-Mamba the image reads a state that
only the mask writes: keys B and values s come from the mask, the query C and the gate z from the
image, and both streams share one depthwise convolution (the wiring of Mamba-ST, arXiv 2409.10385,
with the mask in place of the style). With K orders, W_x, W_dt, b_dt, A_log and D_skip exist once
per order, and the K outputs are summed before the LayerNorm.

Shape letters: b batch, l length = H W, c channels d, k orders K, n state, r rank of delta.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from sisma_jax.kernels import selective_scan
from sisma_jax.models.layers.depthwise_conv import depthwise_conv3x3_silu
from sisma_jax.models.sisma.kept import mixed, projected

xavier = nn.initializers.xavier_uniform()
layer_norm = partial(nn.LayerNorm, epsilon=1e-6)


class GridConv(nn.Module):
    """SiLU(DWConv3x3(x)) of tokens on their grid, not causal."""

    grid: tuple[int, int]
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        channels = x.shape[-1]
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=(0, 1))
        kernel = self.param("kernel", uniform, (3, 3, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        grid = x.reshape(x.shape[0], *self.grid, channels).astype(self.dtype)
        return depthwise_conv3x3_silu(grid, kernel, bias).reshape(x.shape)


def _a_log_init(key: Array, shape: tuple[int, ...]) -> Array:
    """S4D-real: A = -(1, ..., n) in every channel."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=jnp.float32)), shape)


def _delta_weight_init(key: Array, shape: tuple[int, ...]) -> Array:
    """U(-r^-1/2, r^-1/2), which preserves the variance of delta at initialisation."""
    bound = shape[-2] ** -0.5
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def _delta_bias_init(key: Array, shape: tuple[int, ...]) -> Array:
    """softplus^-1 of step sizes that are log-uniform in [1e-3, 1e-1], at least 1e-4."""
    low, high = jnp.log(1e-3), jnp.log(1e-1)
    delta = jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))
    delta = jnp.maximum(delta, 1e-4)
    return delta + jnp.log(-jnp.expm1(-delta))


class PerOrderDense(nn.Module):
    """One bias-free linear map per scan order."""

    features: int
    orders: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "k b l features"]:
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", batch_axis=(0,))
        kernel = self.param("kernel", init, (self.orders, x.shape[-1], self.features))
        return projected(jnp.einsum("blc,kcf->kblf", x, kernel.astype(self.dtype)))


class OrderedScan(nn.Module):
    """The sum of a layer's selective scans, one per order, with the state space parameters."""

    channels: int
    state: int
    rank: int
    orders: int
    dtype: str
    implementation: str

    def setup(self) -> None:
        k, c = self.orders, self.channels
        self.delta_weight = self.param("delta_weight", _delta_weight_init, (k, self.rank, c))
        self.delta_bias = self.param("delta_bias", _delta_bias_init, (k, c))
        self.A_log = self.param("A_log", _a_log_init, (k, c, self.state))
        self.D = self.param("D", nn.initializers.ones, (k, c))

    def raw_step_sizes(self, delta: Float[Array, "k b l r"]) -> Float[Array, "k b l c"]:
        """Return Delta from its low-rank form, before bias and softplus, in `dtype`."""
        return jnp.einsum("kblr,krc->kblc", delta, self.delta_weight.astype(self.dtype))

    def __call__(
        self,
        u: Float[Array, "b l c"],
        delta: Float[Array, "k b l c"],
        B: Float[Array, "k b l n"],
        C: Float[Array, "k b l n"],
        order: Int32[Array, "k l"],
    ) -> Float[Array, "b l c"]:
        """Scan u with the step sizes softplus(delta + bias); delta is that of `raw_step_sizes`."""
        mapped = {
            "delta": delta,
            "A": -jnp.exp(self.A_log),
            "B": B,
            "C": C,
            "D": self.D,
            "delta_bias": self.delta_bias,
            "order": order,
        }
        implementation = None if self.implementation == "auto" else self.implementation
        scan = lambda mapped: selective_scan(
            u, **mapped, delta_softplus=True, implementation=implementation
        )
        if self.orders == 1:
            return mixed(scan(jax.tree.map(lambda x: x[0], mapped)))
        y = mixed(jax.vmap(scan)(mapped))
        return jnp.sum(y, 0, dtype=jnp.float32).astype(self.dtype)


class _Mixer(nn.Module):
    """The shared part of the two mixers: input and output projections, convolution, scan, gate."""

    width: int
    grid: tuple[int, int]
    state: int = 16
    expand: int = 2
    orders: int = 1
    dtype: str = "float32"
    implementation: str = "auto"

    @property
    def channels(self) -> int:
        return self.expand * self.width

    @property
    def rank(self) -> int:
        return -(-self.width // 16)

    def setup(self) -> None:
        dense = partial(nn.Dense, use_bias=False, kernel_init=xavier, dtype=self.dtype)
        self.project_in = dense(2 * self.channels)
        self.conv = GridConv(self.grid, self.dtype)
        self.scan = OrderedScan(
            self.channels, self.state, self.rank, self.orders, self.dtype, self.implementation
        )
        self.norm = layer_norm()
        self.project_out = dense(self.width)

    def _gate_out(self, y: Float[Array, "b l c"], z: Float[Array, "b l c"]) -> Array:
        y = self.norm(y.astype(jnp.float32)).astype(self.dtype)
        return projected(self.project_out(y * nn.silu(z)))


class SelfMamba(_Mixer):
    """Scans the image tokens (module docstring, left column)."""

    def setup(self) -> None:
        super().setup()
        features = self.rank + 2 * self.state
        self.project_x = PerOrderDense(features, self.orders, self.dtype)

    def __call__(
        self, tokens: Float[Array, "b l width"], order: Int32[Array, "k l"]
    ) -> Float[Array, "b l width"]:
        x, z = jnp.split(projected(self.project_in(tokens)), 2, axis=-1)
        x = self.conv(x)
        delta, B, C = jnp.split(self.project_x(x), [self.rank, self.rank + self.state], axis=-1)
        y = self.scan(x, self.scan.raw_step_sizes(delta), B, C, order)
        return self._gate_out(y, z)


@flax.struct.dataclass
class MaskStream:
    """The mask's part of one Cross-Mamba, the same at every solver step.

    u (b, l, c), delta (k, b, l, c) before bias and softplus, which the scan applies at every step,
    and B (k, b, l, n), all of the compute type; for the whole model they have a leading axis of
    blocks.
    """

    u: Any
    delta: Any
    B: Any


class CrossMamba(_Mixer):
    """Lets image tokens read a state written by the mask (module docstring, right column)."""

    def setup(self) -> None:
        super().setup()
        self.project_mask = nn.Dense(
            self.channels, use_bias=False, kernel_init=xavier, dtype=self.dtype
        )
        self.project_s = PerOrderDense(self.rank + self.state, self.orders, self.dtype)
        self.project_c = PerOrderDense(self.state, self.orders, self.dtype)

    def mask_stream(self, mask_tokens: Float[Array, "b l width"]) -> MaskStream:
        s = self.conv(projected(self.project_mask(mask_tokens)))
        delta, B = jnp.split(self.project_s(s), [self.rank], axis=-1)
        return MaskStream(s, self.scan.raw_step_sizes(delta), B)

    def __call__(
        self, tokens: Float[Array, "b l width"], mask: MaskStream, order: Int32[Array, "k l"]
    ) -> Float[Array, "b l width"]:
        x, z = jnp.split(projected(self.project_in(tokens)), 2, axis=-1)
        C = self.project_c(self.conv(x))
        return self._gate_out(self.scan(mask.u, mask.delta, mask.B, C, order), z)
