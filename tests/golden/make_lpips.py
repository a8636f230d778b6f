"""Write `lpips.npz`: what LPIPS makes of the recipe's weights and pictures, with both backbones.

    pip install torch && python -m tests.golden.make_lpips

AlexNet and VGG-16 are written out here after torchvision's, the distance after the package lpips,
and nothing but torch's functions is used. Per backbone the file holds names and shapes of the
tensors (JSON) and the contribution of each of the five levels for each pair.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from tests.golden import judges_recipe as recipe

FILE = Path(__file__).with_name("lpips.npz")
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Weights(recipe.Weights):
    """The recipe's tensors for torch, and convolutions with them."""

    def __call__(self, name, *shape):
        return torch.from_numpy(super().__call__(name, *shape))

    def conv(self, x, index, out, size=3, stride=1, pad=1):
        kernel = self(f"features.{index}.weight", out, x.shape[1], size, size)
        bias = self(f"features.{index}.bias", out)
        return F.relu(F.conv2d(x, kernel, bias, stride=stride, padding=pad))


def alexnet(weights, x):
    one = weights.conv(x, 0, 64, size=11, stride=4, pad=2)
    two = weights.conv(F.max_pool2d(one, 3, 2), 3, 192, size=5, pad=2)
    three = weights.conv(F.max_pool2d(two, 3, 2), 6, 384)
    four = weights.conv(three, 8, 256)
    return one, two, three, four, weights.conv(four, 10, 256)


def vgg16(weights, x):
    levels = []
    for out, indices in (
        (64, (0, 2)), (128, (5, 7)), (256, (10, 12, 14)), (512, (17, 19, 21)), (512, (24, 26, 28))
    ):  # fmt: skip
        x = F.max_pool2d(x, 2, 2) if levels else x
        for index in indices:
            x = weights.conv(x, index, out)
        levels.append(x)
    return levels


def distance(network, weights, a, b):
    """Per pair and level."""

    def normalised(images):
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / (255 / 2) - 1
        shift, scale = (torch.tensor(c)[None, :, None, None] for c in (SHIFT, SCALE))
        levels = network(weights, (x - shift) / scale)
        return [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in levels]

    parts = []
    for number, (p, q) in enumerate(zip(normalised(a), normalised(b), strict=True)):
        kernel = weights(f"lin{number}.model.1.weight", 1, p.shape[1], 1, 1)
        parts.append(F.conv2d((p - q).square(), kernel).mean((1, 2, 3)))
    return torch.stack(parts, 1)


@torch.no_grad()
def main() -> None:
    arrays = {}
    for network in (alexnet, vgg16):
        name, weights = network.__name__, Weights()
        arrays[f"{name}/levels"] = distance(network, weights, *recipe.pairs(name)).numpy()
        arrays[f"{name}/shapes"] = np.array(json.dumps(weights.shapes))
        print(name, arrays[f"{name}/levels"].round(5), sep="\n")
    np.savez_compressed(FILE, **arrays)
    print(f"{FILE.name}: {FILE.stat().st_size / 1024:.0f} KiB, torch {torch.__version__}")


if __name__ == "__main__":
    main()
