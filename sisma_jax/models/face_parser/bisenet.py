"""BiSeNet as trained by face-parsing.PyTorch on CelebAMask-HQ, for its published weights.

The architecture is that of Yu et al., arXiv 1808.00897, with features of a ResNet-18 at 1/8 of the
image's size in place of the spatial path. Batch norms are `Affine`. Only the first of its three
heads is implemented; the others serve training only.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from sisma_jax.models.face_parser.layers import (
    Affine,
    ParserNetwork,
    check_sides,
    conv,
    per_channel,
    repeat_twice,
    resize_corners,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
"""Standard deviation of RGB values in [0, 1], as IMAGENET_MEAN."""


class ConvBlock(nn.Module):
    """relu(norm(conv(x)))."""

    channels: int
    size: int = 3

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w channels"]:
        x = conv(self.channels, "conv", size=self.size, bias=False)(x)
        return nn.relu(Affine(name="bn")(x))


class BasicBlock(nn.Module):
    """ResNet's block of two 3x3 convolutions, with a 1x1 convolution on x if shapes differ."""

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ channels"]:
        h = conv(self.channels, "conv1", stride=self.stride, bias=False)(x)
        h = nn.relu(Affine(name="bn1")(h))
        h = Affine(name="bn2")(conv(self.channels, "conv2", bias=False)(h))
        if h.shape != x.shape:
            shortcut = conv(self.channels, "downsample_0", size=1, stride=self.stride, bias=False)
            x = Affine(name="downsample_1")(shortcut(x))
        return nn.relu(x + h)


class ResNet18(nn.Module):
    """Features at 1/8, 1/16 and 1/32 of the image's size."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> list[Float[Array, "b _ _ _"]]:
        x = conv(64, "conv1", size=7, stride=2, bias=False)(x)
        x = nn.relu(Affine(name="bn1")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        features = []
        for layer, channels in enumerate((64, 128, 256, 512), start=1):
            for block in range(2):
                stride = 2 if layer > 1 and block == 0 else 1
                x = BasicBlock(channels, stride, name=f"layer{layer}_{block}")(x)
            features.append(x)
        return features[1:]


def average(x: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 c"]:
    return x.mean(axis=(1, 2), keepdims=True)


class AttentionRefinement(nn.Module):
    """Multiplies features by a gate per channel, computed from their averages."""

    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w channels"]:
        x = ConvBlock(self.channels, name="conv")(x)
        gate = conv(self.channels, "conv_atten", size=1, bias=False)(average(x))
        gate = nn.sigmoid(Affine(name="bn_atten")(gate))
        return x * jnp.broadcast_to(gate, x.shape)


class ContextPath(nn.Module):
    """ResNet's features at 1/8, the context at 1/8, and ResNet's features at 1/32."""

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b _ _ _"], ...]:
        eighth, sixteenth, thirtysecond = ResNet18(name="resnet")(images)
        context = ConvBlock(128, size=1, name="conv_avg")(average(thirtysecond))
        x = AttentionRefinement(128, name="arm32")(thirtysecond)
        x = repeat_twice(x + jnp.broadcast_to(context, x.shape))
        x = ConvBlock(128, name="conv_head32")(x)
        x = repeat_twice(AttentionRefinement(128, name="arm16")(sixteenth) + x)
        return eighth, ConvBlock(128, name="conv_head16")(x), thirtysecond


class FeatureFusion(nn.Module):
    """Mixes both paths: x + x times a gate per channel, computed from averages of x."""

    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w channels"]:
        x = ConvBlock(self.channels, size=1, name="convblk")(x)
        gate = nn.relu(conv(self.channels // 4, "conv1", size=1, bias=False)(average(x)))
        gate = nn.sigmoid(conv(self.channels, "conv2", size=1, bias=False)(gate))
        return x * jnp.broadcast_to(gate, x.shape) + x


class Head(nn.Module):
    """Maps features to logits."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w classes"]:
        x = ConvBlock(256, name="conv")(x)
        return conv(self.num_classes, "conv_out", size=1, bias=False)(x)


class BiSeNet(ParserNetwork):
    """BiSeNet, whose logits are in the class order of the weights' last layer."""

    num_classes: int = 19

    @property
    def factor(self) -> int:
        return 32

    @nn.compact
    def outputs(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b h w classes"], Float[Array, "b _ _ d"]]:
        """Return the logits and ResNet's activations at 1/32 of the image's size."""
        check_sides(images, self.factor)
        mean, deviation = (per_channel(jnp.array(x)) for x in (IMAGENET_MEAN, IMAGENET_DEVIATION))
        spatial, context, deepest = ContextPath(name="cp")(((images + 1) / 2 - mean) / deviation)
        fused = FeatureFusion(256, name="ffm")(jnp.concatenate([spatial, context], axis=-1))
        logits = Head(self.num_classes, name="conv_out")(fused)
        return resize_corners(logits, *images.shape[1:3]), deepest
