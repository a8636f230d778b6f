"""CA2-SIS's generator (arXiv 2308.16071): draws a face from a mask and a style in one pass.

    mask -> embedder -> one code per drawn class ----------> decoder -> image
    image and its mask -> style encoder -> one token per class --^
    noise -> mapping network -> likewise, random styles

The embedder is one linear map of a class's mask, the same for all classes, so mask codes can be
exchanged and interpolated class by class: shapes change without a repaired mask. The decoder reads
the codes as an image of one channel group per class and doubles it stage by stage; in every stage a
residual block is followed by a spatial transformer whose pixels attend to the tokens of all
classes. Self-attention is in the coarse stages only. Nothing is random, and there is no state.

Sizes and wiring are those of the published code, as far as they were read there: 77,229,243
parameters at 256 pixels and 19 classes, of which 28,244,224 are the mapping network's. The paper's
text was not available. `CA2SISConfig` names what departs from it.

Labels outside 0..num_classes-1 (255: unlabelled) have no class: no mask code and no style.
"""

import math
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from sisma_jax.models.ca2sis.config import CA2SISConfig, Stage
from sisma_jax.models.cost import by_hand
from sisma_jax.models.layers.spade import ResBlock, conv, double
from sisma_jax.models.layers.spatial_transformer import SpatialTransformer, transformer_macs
from sisma_jax.models.layers.style_encoder import (
    OF_ALL_CLASSES,
    ClassDense,
    make_style_encoder,
    no_style,
)
from sisma_jax.models.layers.unet import BlockSizes, residual_macs
from sisma_jax.models.layers.wide import wide

IMAGE_CHANNELS = 3
SHARED_LAYERS = 4
"""Layers of the mapping network that all classes share."""
CLASS_LAYERS = 3
"""Layers of each class after them, before the last one."""
PER_CLASS = "class"
"""Start of the names of the mapping network's layers that have a leading axis of classes."""


class MaskEmbedder(nn.Module):
    """One linear map from a class's mask to its code."""

    config: CA2SISConfig

    @nn.compact
    def __call__(
        self, masks: UInt8[Array, "b H W"] | Float[Array, "b H W drawn"]
    ) -> Float[Array, "b drawn code"]:
        c = self.config
        step = c.image_size // c.mask_size
        masks = masks[:, ::step, ::step]  # the first pixel, like PyTorch's nearest interpolation
        if masks.ndim == 3:
            masks = jax.nn.one_hot(masks, c.num_classes)[..., c.num_classes - c.drawn_classes :]
        masks = rearrange(masks, "b h w k -> b k (h w)")
        return nn.Dense(c.code_width, dtype=c.dtype, name="linear")(masks)


class Decoder(nn.Module):
    """Mask codes and style tokens to an image."""

    config: CA2SISConfig

    @nn.compact
    def __call__(
        self, codes: Float[Array, "b drawn code"], styles: Float[Array, "b k token"]
    ) -> tuple[Float[Array, "b H W 3"], tuple[Float[Array, "b _ _ k"], ...]]:
        """Return the image, and the logits of each stage's attention to the tokens."""
        c = self.config
        transformer = nn.remat(SpatialTransformer) if c.remat == "block" else SpatialTransformer
        h = rearrange(codes, "b k (h w) -> b h w k", h=c.grid)
        h = conv(c.stem_width, c.dtype, "conv_in", size=1)(h)
        logits = []
        for i, stage in enumerate(c.stages):
            block = ResBlock(
                stage.width,
                groups=c.norm_groups,
                dtype=c.dtype,
                resample=double if i else None,
                zero=True,
                name=f"block_{i}",
            )
            read = transformer(
                head_width=stage.head_width,
                groups=c.norm_groups,
                dtype=c.dtype,
                width=stage.inner_width,
                self_attention=stage.self_attention,
                logits=True,
                name=f"transformer_{i}",
            )
            h, seen = read(block(h), styles)
            logits.append(seen)
        h = conv(IMAGE_CHANNELS, None, "conv_out", size=1)(h.astype(wide(h.dtype)))
        return (jnp.tanh(h) if c.output_tanh else h), tuple(logits)


class MappingNetwork(nn.Module):
    """Linear maps with ReLU from noise to a token per class, the last ones separate by class."""

    num_classes: int
    width: int
    token: int

    @nn.compact
    def __call__(self, noise: Float[Array, "b n"]) -> Float[Array, "b k token"]:
        h = noise
        for i in range(SHARED_LAYERS):
            h = nn.relu(nn.Dense(self.width, name=f"shared_{i}")(h))
        h = jnp.broadcast_to(h[:, None], (len(h), self.num_classes, self.width))
        for i in range(CLASS_LAYERS + 1):
            last = i == CLASS_LAYERS
            layer = ClassDense(self.token if last else self.width, name=f"{PER_CLASS}_{i}")
            h = layer(rearrange(h, "b k c -> k b c"))
            h = h if last else nn.relu(h)
        return h


class CA2SIS(nn.Module):
    """Draws images from masks and styles. See the module docstring.

    Images and styles are float32, or float64 where images and parameters are and `config.dtype` is
    None. Every method raises ValueError if an argument does not have the configuration's size.
    """

    config: CA2SISConfig

    def setup(self) -> None:
        c = self.config
        self.style_encoder = make_style_encoder(c, c.style_grouping)
        self.mask_embedder = MaskEmbedder(c)
        self.decoder = Decoder(c)
        self.mapping = MappingNetwork(c.num_classes, c.mapping_width, c.style_width)

    def __call__(
        self, images: Float[Array, "b H W 3"], labels: UInt8[Array, "b H W"]
    ) -> Float[Array, "b H W 3"]:
        """Return the reconstruction of images in [-1, 1] from their masks and their own styles."""
        return self.draw(self.mask_codes(labels), self.styles(images, labels))

    def styles(
        self, images: Float[Array, "b H W 3"], labels: UInt8[Array, "b H W"]
    ) -> Float[Array, "b k token"]:
        """Return the style tokens of images in [-1, 1] and their masks, in (-1, 1).

        A class without pixels gets the token of `no_style`, whatever the image shows.
        """
        self._check(images=images, labels=labels)
        return self.style_encoder(images, labels)

    def no_style(self) -> Float[Array, "1 k token"]:
        """Return the tokens of classes without pixels."""
        return no_style(self.style_encoder, self.config.image_size)

    def random_styles(
        self, noise: Float[Array, "b n"], masks: UInt8[Array, "b H W"] | Float[Array, "b H W k"]
    ) -> Float[Array, "b k token"]:
        """Return random style tokens for masks; zeros for classes without pixels.

        Args:
          noise: `noise_width` standard normal numbers per image.
          masks: those that will be drawn: label maps, or one channel per class.
        """
        self._check(**{"labels" if masks.ndim == 3 else "channels": masks, "noise": noise})
        tokens = self.mapping(noise)
        present = has_pixels(masks, self.config.num_classes)
        return jnp.where(present[..., None], tokens, jnp.zeros_like(tokens))

    def mask_codes(
        self, masks: UInt8[Array, "b H W"] | Float[Array, "b H W drawn"]
    ) -> Float[Array, "b drawn code"]:
        """Return one code per drawn class.

        Args:
          masks: label maps; or one channel per drawn class, in the order of the classes and without
            class 0 unless it is drawn. The channels may be soft and may overlap, and a code is
            linear in its channel.
        """
        if masks.ndim == 3:
            self._check(labels=masks)
        else:
            self._check(masks=masks)
        return self.mask_embedder(masks)

    def draw(
        self, mask_codes: Float[Array, "b drawn code"], styles: Float[Array, "b k token"]
    ) -> Float[Array, "b H W 3"]:
        """Return the images of mask codes and style tokens, in (-1, 1) with `output_tanh`."""
        return self.draw_with_attention(mask_codes, styles)[0]

    def draw_with_attention(
        self, mask_codes: Float[Array, "b drawn code"], styles: Float[Array, "b k token"]
    ) -> tuple[Float[Array, "b H W 3"], tuple[Float[Array, "b _ _ k"], ...]]:
        """Return what `draw` returns, and the attention of every stage to the tokens.

        The attention of a stage is (b, size, size, k): the logits that the image was drawn with,
        scaled, before the softmax, averaged over the heads.
        """
        self._check(mask_codes=mask_codes, styles=styles)
        return self.decoder(mask_codes, styles)

    def _check(self, **arguments: Array) -> None:
        """Raise ValueError unless arguments of these names have the configuration's size, the same
        batch, and integers if they are labels, or floats."""
        c = self.config
        side = (c.image_size, c.image_size)
        sizes = dict(
            images=(*side, IMAGE_CHANNELS),
            labels=side,
            masks=(*side, c.drawn_classes),
            channels=(*side, c.num_classes),
            mask_codes=(c.drawn_classes, c.code_width),
            styles=(c.num_classes, c.style_width),
            noise=(c.noise_width,),
        )
        for name, value in arguments.items():
            words = {"labels": "label maps", "channels": "masks"}.get(name, name.replace("_", " "))
            if value.shape[1:] != sizes[name]:
                wanted = ", ".join(map(str, ("batch", *sizes[name])))
                raise ValueError(
                    f"{words} of shape {value.shape} do not have the model's ({wanted})"
                )
            kind, what = (jnp.integer, "integers") if name == "labels" else (jnp.floating, "floats")
            if not jnp.issubdtype(value.dtype, kind):
                raise ValueError(f"{words} are {value.dtype}: give {what}")
        if len(batches := {name: len(value) for name, value in arguments.items()}) > 1:
            (one, first), (other, second) = batches.items()
            if first != second:
                raise ValueError(f"there are {first} {one} and {second} {other}: give as many")


def has_pixels(
    masks: UInt8[Array, "b H W"] | Float[Array, "b H W k"], num_classes: int
) -> Bool[Array, "b k"]:
    """Whether each class has a pixel, in label maps or in one channel per class."""
    if masks.ndim == 4:
        return jnp.any(masks > 0, axis=(1, 2))
    classes = jnp.arange(num_classes, dtype=masks.dtype)
    return jnp.any(masks[..., None] == classes[None, None, None], axis=(1, 2))


def init_params(config: CA2SISConfig, key: PRNGKeyArray) -> dict:
    """Return new float32 parameters of `CA2SIS(config)`, for `apply({"params": ...})`.

    They are drawn as published, which is PyTorch's default: kernels and biases uniform in
    +-1/sqrt(inputs of the map), scales of norms 1 and their biases 0; the last maps of residual
    blocks and of transformers are 0.
    """
    shapes = parameter_shapes(config)
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    kernels = {path[:-1]: leaf for path, leaf in leaves if path[-1].key == "kernel"}

    def limit(path: tuple) -> float | None:
        """The largest value of a parameter that is drawn; None for norms and for zeros."""
        module = path[:-1]
        if module not in kernels or _starts_at_zero(module):
            return None
        kernel = kernels[module]
        inputs, _ = matrix_axes((*module, jax.tree_util.DictKey("kernel")), kernel)
        return math.prod(kernel.shape[axis] for axis in inputs) ** -0.5

    # One draw for all, since hundreds of them take long to compile.
    limits = [limit(path) for path, _ in leaves]
    sizes = [leaf.size if most else 0 for most, (_, leaf) in zip(limits, leaves, strict=True)]
    drawn = jax.random.uniform(key, (sum(sizes),), minval=-1.0)
    parts = jnp.split(drawn, np.cumsum(sizes)[:-1])
    new = [
        most * part.reshape(leaf.shape)
        if most
        else jnp.full(leaf.shape, float(path[-1].key == "scale"))
        for most, part, (path, leaf) in zip(limits, parts, leaves, strict=True)
    ]
    return jax.tree_util.tree_unflatten(tree, new)


def _starts_at_zero(module: tuple) -> bool:
    """Whether the layer at this path is the last of a residual block or of a transformer."""
    names = [part.key for part in module]
    if names[0] != "decoder":
        return False
    return names[-1] == "conv2" or (len(names) == 3 and names[-1] == "out")


@cache  # tracing takes half a second
def parameter_shapes(config: CA2SISConfig) -> dict:
    """Return the shapes and dtypes of the parameters, without computing them."""
    c = config
    struct = lambda shape, dtype=jnp.float32: jax.ShapeDtypeStruct((1, *shape), dtype)
    size = (c.image_size, c.image_size)

    def everything(model: CA2SIS, images: Array, labels: Array, noise: Array) -> tuple:
        return model(images, labels), model.random_styles(noise, labels)

    def new(key: PRNGKeyArray, *arguments: Array) -> dict:
        return CA2SIS(c).init(key, *arguments, method=everything)["params"]

    arguments = struct((*size, IMAGE_CHANNELS)), struct(size, jnp.uint8), struct((c.noise_width,))
    return jax.eval_shape(new, jax.random.key(0), *arguments)


def matrix_axes(path: tuple, leaf: Any) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return (input axes, output axes) of a parameter that is a linear map, else None.

    The input axes of convolutions include their window. Kernels that each class has of its own have
    a leading axis of classes.
    """
    if path[-1].key != "kernel":
        return None
    part, module = path[0].key, path[-2].key
    per_class = part == "style_encoder" and module not in OF_ALL_CLASSES
    per_class |= part == "mapping" and module.startswith(PER_CLASS)
    last = leaf.ndim - 1
    return tuple(range(int(per_class), last)), (last,)


def mask_code_macs(config: CA2SISConfig) -> int:
    """Return the multiply-accumulates of `CA2SIS.mask_codes` for one mask.

    All three counts are as in `sisma_jax.models.cost`.
    """
    return config.drawn_classes * config.mask_size**2 * config.code_width


def style_macs(config: CA2SISConfig) -> int:
    """Return the multiply-accumulates of `CA2SIS.styles` for one image."""
    return by_hand.style_encoder(config)


def draw_macs(config: CA2SISConfig) -> int:
    """Return the multiply-accumulates of `CA2SIS.draw` for one image."""
    c = config
    first = c.grid**2 * c.drawn_classes * c.stem_width
    last = c.image_size**2 * c.widths[-1] * IMAGE_CHANNELS
    return first + last + sum(_stage_macs(c, i, stage) for i, stage in enumerate(c.stages))


def _stage_macs(c: CA2SISConfig, i: int, stage: Stage) -> int:
    size_in = stage.size // 2 if i else stage.size
    block = BlockSizes(
        f"block_{i}", stage.inputs, stage.width, size_in, stage.size, stage.self_attention
    )
    return residual_macs(block) + transformer_macs(
        stage.size**2,
        stage.width,
        c.num_classes,
        c.style_width,
        width=stage.inner_width,
        self_attention=stage.self_attention,
    )
