"""The U-Net that SDM and SCA-DM share, from its first convolution to its last, and its arithmetic.

    x -> level 0 -> halve -> level 1 -> ... -> middle -> ... -> level 1 -> double -> level 0 -> norm

At every level the encoder has `blocks` residual blocks and the decoder one more. Each decoder block
also reads a skip: x, or the output of a block or a halving of the encoder, last in, first out. The
label map conditions the blocks of middle and decoder only. Attention follows the first block of the
middle, and every block of encoder and decoder whose resolution is among `attention_sizes`.

A model's configuration has these numbers under the names of `sdm.SDMConfig`. The two models differ
in the details of residual blocks, in attention, and in how the image is halved and doubled.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from sisma_jax.common.config import check_counts
from sisma_jax.common.errors import InputError
from sisma_jax.models.layers.spade import Modulation, ResBlock, SPADEOfMask, normalise


def check_sizes(config: Any, section: str, side: str) -> None:
    """Raise InputError unless the sizes of a U-Net are valid.

    Args:
      config: a dataclass with channels, multipliers, norm_groups, head_width, dtype and others.
      section: name of the config's section, for errors.
      side: name of the field that every further resolution halves.
    """
    check_counts(config, section, "multipliers")
    halvings = len(config.multipliers) - 1
    if getattr(config, side) % 2**halvings:
        raise InputError(
            f"{section}.{side} is {getattr(config, side)}: choose a multiple of {2**halvings}, "
            f"because {len(config.multipliers)} resolutions halve it {halvings} times"
        )
    for name in ("norm_groups", "head_width"):
        if config.channels % getattr(config, name):
            raise InputError(
                f"{section}.{name} {getattr(config, name)} does not divide {section}.channels "
                f"{config.channels}: choose a divisor"
            )
    if config.channels % 2:
        raise InputError(
            f"{section}.channels is {config.channels}: choose an even number, for sines and cosines"
        )
    if config.dtype not in ("float32", "bfloat16"):
        raise InputError(f"{section}.dtype is {config.dtype!r}: choose 'float32' or 'bfloat16'")


def unet(
    config: Any,
    x: Float[Array, "b h w channels"],
    time: Float[Array, "b width"],
    mask: Float[Array, "b H W k"] | dict[str, dict[str, Modulation]],
    *,
    block: Callable[..., ResBlock],
    attention: Callable[[Array, str], Array],
    halve: Callable[[Array, str], Array],
    double: Callable[[Array, str], Array],
) -> Float32[Array, "b h w features"]:
    """Return the input of the last convolution.

    Call it within a compact module, which gets the layers.

    Args:
      config: sizes of the model.
      x: output of the first convolution.
      time: embedding of t.
      mask: the label map, one channel per class, or what `UNetOfMask` makes of it.
      block: makes a residual block, given its channels and its name.
      attention: applies attention to an image, in a layer of the given name.
      halve: halves an image, likewise.
      double: doubles an image, likewise.
    """

    def attend(h: Array, name: str) -> Array:
        return attention(h, name) if h.shape[1] in config.attention_sizes else h

    def of_mask(name: str) -> Any:
        return mask[name] if isinstance(mask, dict) else mask

    h, skips = x, [x]
    levels = list(enumerate(config.multipliers))
    for level, multiplier in levels:
        for i in range(config.blocks):
            h = block(multiplier * config.channels, name=f"down_{level}_{i}")(h, time)
            h = attend(h, f"down_{level}_{i}_attention")
            skips.append(h)
        if level < len(levels) - 1:
            h = halve(h, f"halve_{level}")
            skips.append(h)

    h = block(h.shape[-1], name="middle_0")(h, time, of_mask("middle_0"))
    h = attention(h, "middle_attention")
    h = block(h.shape[-1], name="middle_1")(h, time, of_mask("middle_1"))

    for level, multiplier in reversed(levels):
        for i in range(config.blocks + 1):
            h = jnp.concatenate([h, skips.pop()], axis=-1)
            name = f"up_{level}_{i}"
            h = block(multiplier * config.channels, name=name)(h, time, of_mask(name))
            h = attend(h, f"{name}_attention")
        if level:
            h = double(h, f"double_{level}")

    return nn.silu(normalise(h.astype(jnp.float32), config.norm_groups, "norm_out"))


def in_compute_type(config: Any, params: dict) -> dict:
    """The parameters of a U-Net, with those that compute in `config.dtype` rounded to it in
    advance. Its output is unchanged, and a sampler then rounds no weights in its steps.
    """

    def stored(path: tuple, leaf: Array | np.ndarray) -> Array | np.ndarray:
        module = path[-2].key
        exact = "time" in [part.key for part in path] or module.startswith("norm")
        return leaf if exact or module == "conv_out" else leaf.astype(config.dtype)

    return jax.tree_util.tree_map_with_path(stored, params)


class UNetOfMask(nn.Module):
    """What depends on the label map alone in a `unet` whose doublings are not conditioned on it.

    It has the names of the U-Net's parameters, and can be applied to these.

    Attributes:
      config: sizes of the model.
      size, channels: as for `unet_blocks`.
    """

    config: Any
    size: int
    channels: int

    @nn.compact
    def __call__(self, semantics: Float[Array, "b H W k"]) -> dict[str, dict[str, Modulation]]:
        """Return the modulations of all conditioned norms, by block and norm."""
        c = self.config
        _, decoder = unet_blocks(c, self.size, self.channels)
        return {
            block.name: BlockOfMask(block, c.spade_hidden, c.dtype, name=block.name)(semantics)
            for block in decoder
            if not block.resamples
        }


class BlockOfMask(nn.Module):
    """What depends on the label map alone in a `ResBlock` of these sizes."""

    sizes: "BlockSizes"
    hidden: int
    dtype: str

    @nn.compact
    def __call__(self, semantics: Float[Array, "b H W k"]) -> dict[str, Modulation]:
        s = self.sizes
        norms = {"norm1": (s.inputs, s.size_in), "norm2": (s.outputs, s.size_out)}
        return {
            name: SPADEOfMask(*seen, self.hidden, self.dtype, name=name)(semantics)
            for name, seen in norms.items()
        }


class BlockSizes(NamedTuple):
    """Name of a residual block, halving or doubling; channels, and sides of the image, before and
    after it."""

    name: str
    inputs: int
    outputs: int
    size_in: int
    size_out: int
    attention: bool

    @property
    def resamples(self) -> bool:
        return self.size_in != self.size_out


def unet_blocks(config: Any, size: int, channels: int) -> tuple[list[BlockSizes], list[BlockSizes]]:
    """The blocks, halvings and doublings of `unet`: those of the encoder, then all others.

    Args:
      config: sizes of the model.
      size: side of the image.
      channels: channels after the first convolution.
    """
    c = config
    levels = [(multiplier * c.channels, size >> i) for i, multiplier in enumerate(c.multipliers)]
    encoder, skips, inputs = [], [channels], channels
    for level, (width, side) in enumerate(levels):
        attention = side in c.attention_sizes
        for i in range(c.blocks):
            name = f"down_{level}_{i}"
            encoder.append(BlockSizes(name, inputs, width, side, side, attention))
            inputs = width
            skips.append(width)
        if level < len(levels) - 1:
            halving = BlockSizes(f"halve_{level}", width, width, side, side // 2, attention=False)
            encoder.append(halving)
            skips.append(width)
    middle = (inputs, inputs, levels[-1][1], levels[-1][1])
    decoder = [BlockSizes(f"middle_{i}", *middle, attention=not i) for i in range(2)]
    for level, (width, side) in reversed(list(enumerate(levels))):
        attention = side in c.attention_sizes
        for i in range(c.blocks + 1):
            inputs += skips.pop()
            name = f"up_{level}_{i}"
            decoder.append(BlockSizes(name, inputs, width, side, side, attention))
            inputs = width
        if level:
            doubling = BlockSizes(f"double_{level}", width, width, side, 2 * side, attention=False)
            decoder.append(doubling)
    return encoder, decoder


def residual_macs(block: BlockSizes) -> int:
    """MACs of the convolutions of a `ResBlock`, without those of SPADE."""
    skip = block.inputs * block.outputs if block.inputs != block.outputs else 0
    return block.size_out**2 * (9 * block.inputs * block.outputs + 9 * block.outputs**2 + skip)


def spade_macs(block: BlockSizes, classes: int, hidden: int) -> int:
    """MACs of the convolutions of both SPADE norms of a `ResBlock`."""
    norms = (block.inputs, block.size_in), (block.outputs, block.size_out)
    return sum(size**2 * 9 * hidden * (classes + 2 * channels) for channels, size in norms)
