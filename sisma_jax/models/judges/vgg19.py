"""VGG-19's features of images, which adversarial trainings compare (`training.adversarial`).

They are the first activations of every level, relu1_1 to relu5_1, of torchvision's network trained
on ImageNet. As in pix2pixHD (Wang et al., arXiv 1711.11585), SPADE and CA2-SIS, whose loss this is,
images enter in [-1, 1] and are not normalised by ImageNet's colours.
"""

import dataclasses
import os
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float

from sisma_jax.common.errors import InputError
from sisma_jax.models.judges.backbones import (
    VGG19,
    Backbone,
    activations,
    convolution_parameters,
    read_convolutions,
)


class Vgg19Net(nn.Module):
    """Maps images in [-1, 1] to the first activations of every level.

    The convolutions have JAX's default precision, on NVIDIA GPUs TF32: this is a term of a loss
    and no score.
    """

    backbone: Backbone = VGG19

    @nn.compact
    def __call__(self, images: Float[Array, "n h w 3"]) -> tuple[Float[Array, "n _ _ _"], ...]:
        return tuple(level[0] for level in activations(self.backbone, images, None))


@dataclasses.dataclass(frozen=True)
class Vgg19:
    """VGG-19 up to relu5_1 with its parameters.

    A pytree whose leaves are the parameters: pass it to jitted functions as an argument.
    """

    backbone: Backbone
    params: Any

    def features(self, images: Float[Array, "n h w 3"]) -> tuple[Float[Array, "n _ _ _"], ...]:
        """Return the activations relu1_1, relu2_1, ..., relu5_1, each half as large as the last.

        At 256 x 256 pixels they take 30 MiB per image in float32.

        Args:
          images: images in [-1, 1]; bfloat16 ones are computed in float32.

        Raises:
          InputError: if the images are smaller than `backbone.smallest`, 16 pixels.
        """
        height, width = images.shape[1:3]
        smallest = self.backbone.smallest
        if min(height, width) < smallest:
            raise InputError(
                f"images of {height} x {width} pixels are too small for the features of "
                f"{self.backbone.name}: give at least {smallest} along each side"
            )
        images = images.astype(np.promote_types(images.dtype, np.float32))
        return Vgg19Net(self.backbone).apply({"params": self.params}, images)


jax.tree_util.register_dataclass(Vgg19, data_fields=["params"], meta_fields=["backbone"])


def load_vgg19(path: str | os.PathLike, backbone: Backbone = VGG19) -> Vgg19:
    """Read torchvision's VGG-19 up to relu5_1, which has 12,944,960 parameters.

    Args:
      path: torchvision's VGG-19, `VGG19.file`, converted to safetensors (`weights.RECIPE`). Its
        classifier and the convolutions behind relu5_1 are not read and may be missing.
      backbone: the network's sizes.

    Raises:
      InputError: if the file is missing, pickled, damaged or of another network.
    """
    _, tensors = read_convolutions(path, [backbone])
    return Vgg19(backbone, convolution_parameters(backbone, tensors))
