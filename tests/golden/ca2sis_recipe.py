"""Weights and inputs of the CA2-SIS in `ca2sis_tiny.npz`, rebuilt from their names and seeds.

`ca2sis_tiny.npz` has what the authors' public code (commit of 2024-04-17) computed in float64 from
these weights and inputs, with the published network's constants exchanged for those of
`CA2SISConfig.tiny()`, a discriminator of width 8 and VGG-19 at a sixteenth of its widths. It is
data only. Arrays are NCHW and under "tiny/":

    param_names, param_shapes, param_sum_f64, param_first4, ...   the tensors, to check the recipe;
        names start with "netG.", "netD." or "vgg."
    label             (4, 64, 64); image 0 lacks class 3, image 3 class 4
    style, z          style tokens and mask codes
    out               the reconstruction
    stage/NAME        image 0 after a layer, at pixels k//2, k//2 + k, ... with k = max(1, size / 8)
    att/logit_meanS   logits of the attention to tokens in stage S, 2 to 6, averaged over the heads
    grad_outw/NAME    gradients of sum(out * cotangent())
    att/..., D/..., loss/..., grad_att/...   for the losses
"""

import json
import zlib

import numpy as np

BATCH, SIZE = 4, 64


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 tensor of this full name and shape; none is zero, as in a trained network."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    values = random.standard_normal(int(np.prod(shape))).reshape(shape)
    leaf = name.rsplit(".", 1)[1]
    if leaf == "bias":
        values = 0.05 * values
    elif leaf in ("weight_u", "weight_v"):  # of spectral normalisation
        values = values / np.linalg.norm(values)
    elif len(shape) == 1:  # scale of a norm
        values = 1.0 + 0.1 * values
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
        if name.endswith("out_conv.weight"):
            values = 0.15 * values
        if ".to_q." in name or ".to_k." in name:
            values = 2.0 * values
        if name.startswith("vgg."):
            values = np.sqrt(2.0) * values
    return values.astype(np.float32)


def tensors(golden: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The tensors whose names start with `prefix`, by their names without it."""
    shapes = zip(golden["tiny/param_names"], golden["tiny/param_shapes"], strict=True)
    return {
        str(name).removeprefix(prefix): tensor(str(name), tuple(json.loads(str(shape))))
        for name, shape in shapes
        if str(name).startswith(prefix)
    }


def images() -> np.ndarray:
    """float32 (4, 64, 64, 3) in [-1, 1]: blocks of 8 x 8 pixels under noise."""
    random = np.random.RandomState(101)
    coarse = random.uniform(-1, 1, (BATCH, 3, SIZE // 8, SIZE // 8))
    fine = random.uniform(-1, 1, (BATCH, 3, SIZE, SIZE))
    blocks = coarse.repeat(8, axis=2).repeat(8, axis=3)
    return (0.7 * blocks + 0.3 * fine).astype(np.float32).transpose(0, 2, 3, 1)


def cotangent() -> np.ndarray:
    """float32 (4, 64, 64, 3): the weights of the image's gradients."""
    random = np.random.RandomState(104)
    return random.standard_normal((BATCH, 3, SIZE, SIZE)).astype(np.float32).transpose(0, 2, 3, 1)
