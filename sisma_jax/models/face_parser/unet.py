"""The face-parsing U-Net, from images to class logits per pixel.

The architecture is that of Ronneberger et al., arXiv 1505.04597, as in the CelebAMask-HQ repository
(face_parsing/unet.py): two 3x3 convolutions per resolution, each with a norm and a ReLU; 2x2 max
pooling down; a transposed 2x2 convolution up; features of the finer resolution concatenated before
those of the coarser. With five resolutions the submodules are conv1 .. conv4, center, up_concat4 ..
up_concat1 and final.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from sisma_jax.models.face_parser.config import FaceParserConfig
from sisma_jax.models.face_parser.layers import (
    Affine,
    ParserNetwork,
    UpConv,
    check_sides,
    conv,
    halve,
)


class TwoConvs(nn.Module):
    """relu(norm(conv(x))), twice."""

    config: FaceParserConfig
    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w channels"]:
        cfg = self.config
        for name in ("conv1", "conv2"):
            x = conv(self.channels, f"{name}_0", dtype=cfg.dtype)(x)
            if cfg.norm == "affine":
                norm = Affine(name=f"{name}_1")
            else:
                norm = nn.GroupNorm(
                    cfg.norm_groups, use_fast_variance=False, dtype=jnp.float32, name=f"{name}_1"
                )
            x = nn.relu(norm(x.astype(jnp.float32))).astype(cfg.dtype)
        return x


class Up(nn.Module):
    """Up-samples the coarser features, prepends the finer ones, and convolves."""

    config: FaceParserConfig
    channels: int

    @nn.compact
    def __call__(
        self, finer: Float[Array, "b h w c"], coarser: Float[Array, "b _ _ d"]
    ) -> Float[Array, "b h w channels"]:
        doubled = UpConv(self.channels, self.config.dtype, name="up")(coarser)
        both = jnp.concatenate([finer, doubled], axis=-1)
        return TwoConvs(self.config, self.channels, name="conv")(both)


class FaceParserUNet(ParserNetwork):
    """The U-Net, whose logits are in the order of class ids."""

    config: FaceParserConfig

    @property
    def factor(self) -> int:
        return self.config.factor

    @nn.compact
    def outputs(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b h w classes"], Float[Array, "b _ _ d"]]:
        """Return the logits and the activations of the coarsest resolution, both float32."""
        cfg = self.config
        check_sides(images, self.factor)
        x = images.astype(cfg.dtype)
        *above, coarsest = cfg.channels
        levels = list(enumerate(above, start=1))
        features = {}
        for level, channels in levels:
            features[level] = TwoConvs(cfg, channels, name=f"conv{level}")(x)
            x = halve(features[level])
        deepest = x = TwoConvs(cfg, coarsest, name="center")(x)
        for level, channels in reversed(levels):
            x = Up(cfg, channels, name=f"up_concat{level}")(features[level], x)
        logits = conv(cfg.num_classes, "final", size=1)(x.astype(jnp.float32))
        return logits, deepest.astype(jnp.float32)
