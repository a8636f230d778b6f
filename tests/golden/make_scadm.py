"""Write `scadm.npz`: what PyTorch makes of the recipe's SCA-DM.

    pip install torch && python -m tests.golden.make_scadm

The graph is written down here from arXiv 2403.12743 and ErgastiAlex/SCA-DM, with modules of the
names there, so that its state dict is that of the published code, the embedding of classes that
nothing reads included. It departs from that code once, in the style encoder: here a class's skip
stands beside its own features. There the features of all classes stand ahead of all skips, and the
groups of the next convolution are no longer classes. The paper has a network per class.

Contents: names and shapes of the tensors (JSON), the style tokens, the predicted noise with and
without the mask in cross-attention, float32 and NHWC, and the number of parameters of the published
sizes by part.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.golden import scadm_recipe as recipe

FILE = Path(__file__).with_name("scadm.npz")
PUBLISHED = dict(
    latent_size=64,
    latent_channels=3,
    factor=4,
    num_classes=19,
    channels=224,
    multipliers=(1, 2, 3, 4),
    blocks=2,
    attention_sizes=(32, 16, 8),
    head_width=32,
    spade_hidden=128,
    norm_groups=32,
    style_levels=5,
    style_features=256,
    style_channels=4,
)


def conv(old: int, new: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(old, new, size, stride, padding=size // 2)


def numbered(**layers: nn.Module) -> nn.ModuleDict:
    """Layers by their places, "_2" for the third: those between them have no parameters."""
    return nn.ModuleDict({place[1:]: layer for place, layer in layers.items()})


class Spade(nn.Module):
    def __init__(self, c: SimpleNamespace, channels: int):
        super().__init__()
        self.groups = c.norm_groups
        self.mlp_shared = numbered(_0=conv(c.num_classes, c.spade_hidden))
        self.mlp_gamma, self.mlp_beta = (conv(c.spade_hidden, channels) for _ in range(2))

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        hidden = F.relu(self.mlp_shared["0"](F.interpolate(classes, x.shape[2:], mode="nearest")))
        return F.group_norm(x, self.groups) * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class Residual(nn.Module):
    """`steered` by SPADE, or with norms of its own."""

    def __init__(self, c: SimpleNamespace, old: int, new: int, steered: bool):
        super().__init__()
        self.steered = steered
        if steered:
            self.in_norm, self.out_norm = Spade(c, old), Spade(c, new)
            self.in_layers, self.out_layers = (
                numbered(_1=conv(old, new)),
                numbered(_2=conv(new, new)),
            )
        else:
            norm = lambda channels: nn.GroupNorm(c.norm_groups, channels)
            self.in_layers = numbered(_0=norm(old), _2=conv(old, new))
            self.out_layers = numbered(_0=norm(new), _3=conv(new, new))
        self.emb_layers = numbered(_1=nn.Linear(4 * c.channels, new))
        self.skip_connection = conv(old, new, 1) if old != new else nn.Identity()

    def forward(self, x: Tensor, time: Tensor, classes: Tensor) -> Tensor:
        if self.steered:
            first = lambda h: self.in_layers["1"](F.silu(self.in_norm(h, classes)))
            second = lambda h: self.out_layers["2"](F.silu(self.out_norm(h, classes)))
        else:
            first = lambda h: self.in_layers["2"](F.silu(self.in_layers["0"](h)))
            second = lambda h: self.out_layers["3"](F.silu(self.out_layers["0"](h)))
        h = first(x) + self.emb_layers["1"](F.silu(time))[:, :, None, None]
        return self.skip_connection(x) + second(h)


class Attention(nn.Module):
    def __init__(self, width: int, other_width: int, head: int):
        super().__init__()
        self.head = head
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = (nn.Linear(other_width, width, bias=False) for _ in range(2))
        self.to_out = numbered(_0=nn.Linear(width, width))

    def forward(self, x: Tensor, others: Tensor, seen: Tensor | None = None) -> Tensor:
        heads = lambda h: h.unflatten(2, (-1, self.head)).transpose(1, 2)
        q, k, v = heads(self.to_q(x)), heads(self.to_k(others)), heads(self.to_v(others))
        logits = q @ k.transpose(2, 3) / self.head**0.5
        if seen is not None:
            logits = logits.masked_fill(~seen[:, None], -torch.finfo(logits.dtype).max)
        return self.to_out["0"]((logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    def __init__(self, c: SimpleNamespace, width: int):
        super().__init__()
        self.attn1 = Attention(width, width, c.head_width)
        self.attn2 = Attention(width, c.style_levels * c.style_features, c.head_width)
        widen = nn.ModuleDict({"proj": nn.Linear(width, 8 * width)})
        self.ff = nn.ModuleDict({"net": numbered(_0=widen, _2=nn.Linear(4 * width, width))})
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, tokens: Tensor, seen: Tensor | None) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), tokens, seen)
        net = self.ff["net"]
        value, gate = net["0"]["proj"](self.norm3(x)).chunk(2, dim=-1)
        return x + net["2"](value * F.gelu(gate))


class Transformer(nn.Module):
    def __init__(self, c: SimpleNamespace, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(c.norm_groups, width, eps=1e-6)
        self.proj_in, self.proj_out = (conv(width, width, 1) for _ in range(2))
        self.transformer_blocks = numbered(_0=TransformerBlock(c, width))

    def forward(self, x: Tensor, tokens: Tensor, classes: Tensor | None) -> Tensor:
        pixels = lambda h: h.flatten(2).transpose(1, 2)
        seen = None
        if classes is not None:
            seen = pixels(F.interpolate(classes, x.shape[2:], mode="nearest")) > 0
        h = pixels(self.proj_in(self.norm(x)))
        h = self.transformer_blocks["0"](h, tokens, seen)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:]))


class Down(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.op = conv(width, width, stride=2)


class Up(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = conv(width, width)


class Denoiser(nn.Module):
    def __init__(self, c: SimpleNamespace):
        super().__init__()
        self.c = c
        first = c.channels
        self.time_embed = numbered(
            _0=nn.Linear(first, 4 * first), _2=nn.Linear(4 * first, 4 * first)
        )
        self.label_emb = nn.Embedding(c.num_classes, 4 * first)
        self.input_blocks = nn.ModuleList([nn.ModuleList([conv(c.latent_channels, first)])])
        self.output_blocks = nn.ModuleList()
        skips, width = [first], first
        for level, multiplier in enumerate(c.multipliers):
            if level:
                self.input_blocks.append(nn.ModuleList([Down(width)]))
                skips.append(width)
            for _ in range(c.blocks):
                new = multiplier * first
                self.input_blocks.append(self.stage(level, width, new, steered=False))
                width = new
                skips.append(width)
        self.middle_block = nn.ModuleList(
            [
                Residual(c, width, width, True),
                Transformer(c, width),
                Residual(c, width, width, True),
            ]
        )
        for level, multiplier in reversed(list(enumerate(c.multipliers))):
            for i in range(c.blocks + 1):
                new = multiplier * first
                self.output_blocks.append(self.stage(level, width + skips.pop(), new, steered=True))
                width = new
                if level and i == c.blocks:
                    self.output_blocks[-1].append(Up(width))
        self.out = numbered(
            _0=nn.GroupNorm(c.norm_groups, width), _2=conv(width, c.latent_channels)
        )

    def stage(self, level: int, old: int, new: int, steered: bool) -> nn.ModuleList:
        layers = nn.ModuleList([Residual(self.c, old, new, steered)])
        if self.c.latent_size >> level in self.c.attention_sizes:
            layers.append(Transformer(self.c, new))
        return layers

    def forward(
        self, x: Tensor, t: Tensor, classes: Tensor, tokens: Tensor, masked: bool
    ) -> Tensor:
        half = self.c.channels // 2
        angles = t[:, None] * 10000.0 ** -(torch.arange(half) / half)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        time = self.time_embed["2"](F.silu(self.time_embed["0"](waves)))

        def run(layers: nn.ModuleList, h: Tensor) -> Tensor:
            for layer in layers:
                match layer:
                    case Residual():
                        h = layer(h, time, classes)
                    case Transformer():
                        h = layer(h, tokens, classes if masked else None)
                    case Down():
                        h = layer.op(h)
                    case Up():
                        h = layer.conv(F.interpolate(h, scale_factor=2, mode="nearest"))
                    case _:
                        h = layer(h)
            return h

        h, skips = x, []
        for layers in self.input_blocks:
            h = run(layers, h)
            skips.append(h)
        h = run(self.middle_block, h)
        for layers in self.output_blocks:
            h = run(layers, torch.cat([h, skips.pop()], dim=1))
        return self.out["2"](F.silu(self.out["0"](h)))


class StyleEncoder(nn.Module):
    def __init__(self, c: SimpleNamespace):
        super().__init__()
        self.c = c
        k, levels = c.num_classes, c.style_levels
        width = lambda halvings: k * c.style_channels * 2**halvings
        norm = lambda channels: nn.GroupNorm(k, channels)
        grouped = lambda old, new, stride: nn.Conv2d(old, new, 3, stride, padding=1, groups=k)
        self.Encoder, self.Decoder, self.out = (nn.ModuleDict() for _ in range(3))
        self.Encoder["first_layer"] = numbered(_0=conv(3, width(0)), _1=norm(width(0)))
        for i in range(levels + 1):
            self.Encoder[f"enc_layer_{i}"] = numbered(
                _0=grouped(width(i), width(i + 1), 2), _1=norm(width(i + 1))
            )
        for i in range(levels):
            old, new = width(levels + 1 - i), width(levels - i)
            self.Decoder[f"dec_layer_{i}"] = numbered(
                _1=grouped(2 * old if i else old, new, 1), _2=norm(new)
            )
            self.out[f"out_{i}"] = numbered(_0=nn.Conv1d(new, k * c.style_features, 1, groups=k))

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        k = self.c.num_classes
        by_class = lambda h: h.unflatten(1, (k, -1))
        layer = self.Encoder["first_layer"]
        x, finer = F.relu(layer["1"](layer["0"](x))), []
        for i in range(self.c.style_levels + 1):
            layer = self.Encoder[f"enc_layer_{i}"]
            x = F.relu(layer["1"](layer["0"](x)))
            finer.append(x)
        finer.pop()
        tokens = []
        for i in range(self.c.style_levels):
            layer = self.Decoder[f"dec_layer_{i}"]
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
            x = F.relu(layer["2"](layer["1"](x)))
            own = F.interpolate(classes, x.shape[2:], mode="nearest")[:, :, None]
            means = (by_class(x) * own).sum((3, 4)) / (own.sum((3, 4)) + 1e-5)
            features = self.out[f"out_{i}"]["0"](means.flatten(1)[:, :, None])
            tokens.append(by_class(features[:, :, 0]).tanh())
            x = torch.cat([by_class(x), by_class(finer.pop())], dim=2).flatten(1, 2)
        return torch.cat(tokens, dim=2)


class Both(nn.Module):
    def __init__(self, sizes: dict):
        super().__init__()
        c = SimpleNamespace(**sizes)
        self.unet, self.style_encoder = Denoiser(c), StyleEncoder(c)


@torch.no_grad()
def outputs() -> dict[str, np.ndarray]:
    model = Both(recipe.SIZES).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    weights = {key: torch.from_numpy(recipe.tensor(key, shape)) for key, shape in shapes.items()}
    model.load_state_dict(weights)
    nchw = lambda x: torch.from_numpy(x).permute(0, 3, 1, 2)
    k = recipe.SIZES["num_classes"]
    classes = nchw((recipe.labels()[..., None] == np.arange(k)).astype(np.float32))
    style = model.style_encoder(nchw(recipe.images()), classes)
    noise = lambda masked: (
        model.unet(
            nchw(recipe.latents()), torch.tensor(recipe.STEPS), classes, style, masked=masked
        )
        .permute(0, 2, 3, 1)
        .contiguous()
        .numpy()
    )
    return {
        "shapes": np.array(json.dumps(shapes)),
        "style": style.numpy(),
        "noise": noise(True),
        "noise_without_mask": noise(False),
    }


def published_parameters() -> dict[str, np.ndarray]:
    with torch.device("meta"):
        model = Both(PUBLISHED)
    count = lambda part: np.array(sum(p.numel() for p in part.parameters()))
    return {
        "published/unet": count(model.unet),
        "published/unread_embedding": count(model.unet.label_emb),
        "published/style_encoder": count(model.style_encoder),
    }


def main() -> None:
    arrays = outputs() | published_parameters()
    np.savez_compressed(FILE, **arrays)
    for key, value in arrays.items():
        if key != "shapes":
            print(f"{key:28s} {value.shape} {value.min():12.3f} .. {value.max():.3f}")
    print(f"{FILE.name}: {FILE.stat().st_size / 1024:.0f} KiB, torch {torch.__version__}")


if __name__ == "__main__":
    main()
