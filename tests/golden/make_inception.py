"""Write `inception.npz`: what FID's Inception-v3 makes of the recipe's weights and pictures.

    pip install torch && python -m tests.golden.make_inception

The network is written out here after pytorch-fid's and uses nothing but torch's functions. The file
holds the names and shapes of the tensors (JSON) and, for both ways of resizing, the features.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from tests.golden import judges_recipe as recipe

FILE = Path(__file__).with_name("inception.npz")


class Weights(recipe.Weights):
    """The recipe's tensors for torch."""

    def __call__(self, name, *shape):
        return torch.from_numpy(super().__call__(name, *shape))


def network(weights: Weights, images: torch.Tensor) -> torch.Tensor:
    def unit(x, name, out, size=(1, 1), stride=1, pad=(0, 0)):
        x = F.conv2d(
            x, weights(f"{name}.conv.weight", out, x.shape[1], *size), stride=stride, padding=pad
        )
        norm = {
            key: weights(f"{name}.bn.{key}", out)
            for key in ("running_mean", "running_var", "weight", "bias")
        }
        return F.relu(F.batch_norm(x, **norm, training=False, eps=0.001))

    def average(x):
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def block_a(x, name, pooled):
        b5 = unit(x, f"{name}.branch5x5_1", 48)
        b5 = unit(b5, f"{name}.branch5x5_2", 64, (5, 5), pad=(2, 2))
        b3 = unit(x, f"{name}.branch3x3dbl_1", 64)
        b3 = unit(b3, f"{name}.branch3x3dbl_2", 96, (3, 3), pad=(1, 1))
        b3 = unit(b3, f"{name}.branch3x3dbl_3", 96, (3, 3), pad=(1, 1))
        bp = unit(average(x), f"{name}.branch_pool", pooled)
        return torch.cat([unit(x, f"{name}.branch1x1", 64), b5, b3, bp], 1)

    def block_b(x, name):
        b3 = unit(x, f"{name}.branch3x3", 384, (3, 3), stride=2)
        bd = unit(x, f"{name}.branch3x3dbl_1", 64)
        bd = unit(bd, f"{name}.branch3x3dbl_2", 96, (3, 3), pad=(1, 1))
        bd = unit(bd, f"{name}.branch3x3dbl_3", 96, (3, 3), stride=2)
        return torch.cat([b3, bd, F.max_pool2d(x, 3, stride=2)], 1)

    def block_c(x, name, c):
        row, column = dict(size=(1, 7), pad=(0, 3)), dict(size=(7, 1), pad=(3, 0))
        b7 = unit(x, f"{name}.branch7x7_1", c)
        b7 = unit(b7, f"{name}.branch7x7_2", c, **row)
        b7 = unit(b7, f"{name}.branch7x7_3", 192, **column)
        bd = unit(x, f"{name}.branch7x7dbl_1", c)
        bd = unit(bd, f"{name}.branch7x7dbl_2", c, **column)
        bd = unit(bd, f"{name}.branch7x7dbl_3", c, **row)
        bd = unit(bd, f"{name}.branch7x7dbl_4", c, **column)
        bd = unit(bd, f"{name}.branch7x7dbl_5", 192, **row)
        bp = unit(average(x), f"{name}.branch_pool", 192)
        return torch.cat([unit(x, f"{name}.branch1x1", 192), b7, bd, bp], 1)

    def block_d(x, name):
        b3 = unit(x, f"{name}.branch3x3_1", 192)
        b3 = unit(b3, f"{name}.branch3x3_2", 320, (3, 3), stride=2)
        b7 = unit(x, f"{name}.branch7x7x3_1", 192)
        b7 = unit(b7, f"{name}.branch7x7x3_2", 192, (1, 7), pad=(0, 3))
        b7 = unit(b7, f"{name}.branch7x7x3_3", 192, (7, 1), pad=(3, 0))
        b7 = unit(b7, f"{name}.branch7x7x3_4", 192, (3, 3), stride=2)
        return torch.cat([b3, b7, F.max_pool2d(x, 3, stride=2)], 1)

    def block_e(x, name, pool):
        row, column = dict(size=(1, 3), pad=(0, 1)), dict(size=(3, 1), pad=(1, 0))
        b3 = unit(x, f"{name}.branch3x3_1", 384)
        b3 = [
            unit(b3, f"{name}.branch3x3_2a", 384, **row),
            unit(b3, f"{name}.branch3x3_2b", 384, **column),
        ]
        bd = unit(x, f"{name}.branch3x3dbl_1", 448)
        bd = unit(bd, f"{name}.branch3x3dbl_2", 384, (3, 3), pad=(1, 1))
        bd = [
            unit(bd, f"{name}.branch3x3dbl_3a", 384, **row),
            unit(bd, f"{name}.branch3x3dbl_3b", 384, **column),
        ]
        bp = unit(pool(x), f"{name}.branch_pool", 192)
        return torch.cat([unit(x, f"{name}.branch1x1", 320), *b3, *bd, bp], 1)

    x = unit(images, "Conv2d_1a_3x3", 32, (3, 3), stride=2)
    x = unit(x, "Conv2d_2a_3x3", 32, (3, 3))
    x = unit(x, "Conv2d_2b_3x3", 64, (3, 3), pad=(1, 1))
    x = F.max_pool2d(x, 3, stride=2)
    x = unit(x, "Conv2d_3b_1x1", 80)
    x = unit(x, "Conv2d_4a_3x3", 192, (3, 3))
    x = F.max_pool2d(x, 3, stride=2)
    for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = block_a(x, name, pooled)
    x = block_b(x, "Mixed_6a")
    for name, c in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x = block_c(x, name, c)
    x = block_d(x, "Mixed_7a")
    x = block_e(x, "Mixed_7b", average)
    x = block_e(x, "Mixed_7c", lambda y: F.max_pool2d(y, 3, stride=1, padding=1))
    weights("fc.weight", 1008, x.shape[1])
    weights("fc.bias", 1008)
    return x.mean((2, 3))


def resize_tf1(images: torch.Tensor) -> torch.Tensor:
    """Place i of 299 is i * size / 299, between the pixels on both sides of it."""
    for axis in (2, 3):
        size = images.shape[axis]
        places = torch.arange(299, dtype=torch.float32) * (size / 299)
        lower = places.floor().long()
        shape = [299 if i == axis else 1 for i in range(4)]
        share = (places - lower).reshape(shape)
        left = images.index_select(axis, lower)
        right = images.index_select(axis, (lower + 1).clamp(max=size - 1))
        images = left + (right - left) * share
    return images


def resize_half_pixel(images: torch.Tensor) -> torch.Tensor:
    return F.interpolate(images, (299, 299), mode="bilinear", align_corners=False)


@torch.no_grad()
def main() -> None:
    weights = Weights()
    images = recipe.pictures("inception", recipe.INCEPTION_SIZE)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    arrays = {
        "tf1": network(weights, (resize_tf1(x) - 128) / 128).numpy(),
        "half_pixel": network(weights, 2 * resize_half_pixel(x / 255) - 1).numpy(),
    }
    for key, value in arrays.items():
        print(f"{key:12s} {value.shape} {value.min():8.4f} .. {value.max():8.4f}")
    np.savez_compressed(FILE, shapes=np.array(json.dumps(weights.shapes)), **arrays)
    print(f"{FILE.name}: {FILE.stat().st_size / 1024:.0f} KiB, torch {torch.__version__}")


if __name__ == "__main__":
    main()
