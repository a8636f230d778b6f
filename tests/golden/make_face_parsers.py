"""Write `face_parsers.npz`: what the published face parsers make of the recipe.

    pip install torch && python -m tests.golden.make_face_parsers

The graphs are written down here from the descriptions and scripts of switchablenorms/CelebAMask-HQ
(face_parsing) and zllrunning/face-parsing.PyTorch, with modules of the same names, so that their
state dicts are those of the published files. Per network: names and shapes of its tensors (JSON),
some of the logits' pixels in its own order of classes, and the deepest activations averaged over
the image, float32. Weights of BiSeNet's heads for training are there, too; their outputs are not.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.golden import face_parsers_recipe as recipe

FILE = Path(__file__).with_name("face_parsers.npz")


class TwoConvs(nn.Module):
    def __init__(self, old: int, new: int):
        super().__init__()
        for name, channels in (("conv1", old), ("conv2", new)):
            layers = nn.Conv2d(channels, new, 3, padding=1), nn.BatchNorm2d(new), nn.ReLU()
            setattr(self, name, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class Up(nn.Module):
    def __init__(self, old: int, new: int):
        super().__init__()
        self.conv = TwoConvs(old, new)
        self.up = nn.ConvTranspose2d(old, new, kernel_size=2, stride=2)

    def forward(self, finer: Tensor, coarser: Tensor) -> Tensor:
        return self.conv(torch.cat([finer, self.up(coarser)], dim=1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        sizes = (3, 16, 32, 64, 128, 256)
        for level in range(1, 5):
            setattr(self, f"conv{level}", TwoConvs(sizes[level - 1], sizes[level]))
            setattr(self, f"up_concat{level}", Up(sizes[level + 1], sizes[level]))
        self.center = TwoConvs(128, 256)
        self.final = nn.Conv2d(16, 19, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        finer = []
        for level in range(1, 5):
            x = getattr(self, f"conv{level}")(x)
            finer.append(x)
            x = F.max_pool2d(x, 2)
        deepest = x = self.center(x)
        for level in range(4, 0, -1):
            x = getattr(self, f"up_concat{level}")(finer[level - 1], x)
        return self.final(x), deepest


def plain_conv(old: int, new: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(old, new, size, stride=stride, padding=size // 2, bias=False)


class ConvBlock(nn.Module):
    def __init__(self, old: int, new: int, size: int = 3):
        super().__init__()
        self.conv = plain_conv(old, new, size)
        self.bn = nn.BatchNorm2d(new)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class BasicBlock(nn.Module):
    def __init__(self, old: int, new: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = plain_conv(old, new, 3, stride), nn.BatchNorm2d(new)
        self.conv2, self.bn2 = plain_conv(new, new, 3), nn.BatchNorm2d(new)
        self.downsample = nn.Sequential()
        if old != new or stride > 1:
            self.downsample = nn.Sequential(plain_conv(old, new, 1, stride), nn.BatchNorm2d(new))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.downsample(x) + h)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = plain_conv(3, 64, 7, 2), nn.BatchNorm2d(64)
        sizes = (64, 64, 128, 256, 512)
        for layer in range(1, 5):
            old, new = sizes[layer - 1], sizes[layer]
            blocks = BasicBlock(old, new, 2 if layer > 1 else 1), BasicBlock(new, new, 1)
            setattr(self, f"layer{layer}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        features = []
        for layer in range(1, 5):
            x = getattr(self, f"layer{layer}")(x)
            features.append(x)
        return features[1:]


class Attention(nn.Module):
    def __init__(self, old: int, new: int):
        super().__init__()
        self.conv = ConvBlock(old, new)
        self.conv_atten, self.bn_atten = plain_conv(new, new, 1), nn.BatchNorm2d(new)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.bn_atten(self.conv_atten(F.adaptive_avg_pool2d(x, 1))).sigmoid()


class Context(nn.Module):
    def __init__(self):
        super().__init__()
        self.resnet = ResNet()
        self.arm16, self.arm32 = Attention(256, 128), Attention(512, 128)
        self.conv_head16, self.conv_head32 = ConvBlock(128, 128), ConvBlock(128, 128)
        self.conv_avg = ConvBlock(512, 128, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at8, at16, at32 = self.resnet(x)
        size = lambda like: tuple(like.shape[2:])
        average = F.interpolate(self.conv_avg(F.adaptive_avg_pool2d(at32, 1)), size(at32))
        x = self.conv_head32(F.interpolate(self.arm32(at32) + average, size(at16)))
        x = self.conv_head16(F.interpolate(self.arm16(at16) + x, size(at8)))
        return at8, x, at32


class Fusion(nn.Module):
    def __init__(self):
        super().__init__()
        self.convblk = ConvBlock(256, 256, 1)
        self.conv1, self.conv2 = plain_conv(256, 64, 1), plain_conv(64, 256, 1)

    def forward(self, *x: Tensor) -> Tensor:
        fused = self.convblk(torch.cat(x, dim=1))
        gate = self.conv2(F.relu(self.conv1(F.adaptive_avg_pool2d(fused, 1)))).sigmoid()
        return fused * gate + fused


class Head(nn.Module):
    def __init__(self, old: int, middle: int):
        super().__init__()
        self.conv = ConvBlock(old, middle)
        self.conv_out = plain_conv(middle, 19, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv(x))


class BiSeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.cp, self.ffm = Context(), Fusion()
        self.conv_out, self.conv_out16, self.conv_out32 = (
            Head(256, 256),
            Head(128, 64),
            Head(128, 64),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spatial, context, deepest = self.cp(x)
        logits = self.conv_out(self.ffm(spatial, context))
        size = tuple(x.shape[2:])
        return F.interpolate(logits, size, mode="bilinear", align_corners=True), deepest


NETWORKS = {
    "unet": (UNet, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "bisenet": (BiSeNet, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""With the mean and the deviation that normalise its inputs, of RGB in [0, 1]."""


@torch.no_grad()
def outputs(name: str) -> dict[str, np.ndarray]:
    build, mean, deviation = NETWORKS[name]
    model = build().eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    weights = {key: torch.from_numpy(recipe.tensor(key, shape)) for key, shape in shapes.items()}
    model.load_state_dict(weights)
    inputs = torch.from_numpy(recipe.images()).permute(0, 3, 1, 2) / 255
    column = lambda values: torch.tensor(values)[:, None, None]
    logits, deepest = model((inputs - column(mean)) / column(deviation))
    return {
        f"{name}/shapes": np.array(json.dumps(shapes)),
        f"{name}/logits": logits.numpy()[recipe.KEPT[1]].transpose(0, 2, 3, 1),
        f"{name}/features": deepest.mean(dim=(2, 3)).numpy(),
    }


def main() -> None:
    arrays = {key: value for name in NETWORKS for key, value in outputs(name).items()}
    np.savez_compressed(FILE, **arrays)
    for key, value in arrays.items():
        if not key.endswith("shapes"):
            print(f"{key:20s} {value.shape} {value.min():8.3f} .. {value.max():8.3f}")
            print(f"{'':20s} per image, deviation {value.std(axis=tuple(range(1, value.ndim)))}")
    print(f"{FILE.name}: {FILE.stat().st_size / 1024:.0f} KiB, torch {torch.__version__}")


if __name__ == "__main__":
    main()
