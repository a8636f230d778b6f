"""Write `vq.npz`: what diffusers' VQModel makes of the recipe's weights and inputs.

    pip install torch diffusers && python -m tests.golden.make_vq

Per configuration: names and shapes of the parameters (JSON), the latents of the images, the indices
of the entries nearest to them, and the decoded latents of the recipe with their indices; float32
and NHWC. Also prints VQ-f4's number of parameters, and checks that no index hangs on rounding.
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import torch

from tests.golden import vq_recipe as recipe

FILE = Path(__file__).with_name("vq.npz")


def build(fields: dict) -> diffusers.VQModel:
    return diffusers.VQModel(**{k: v for k, v in fields.items() if k != "_class_name"}).eval()


def indices_of(model: diffusers.VQModel, z: torch.Tensor) -> np.ndarray:
    indices = model.quantize(z)[2][2].reshape(len(z), *z.shape[2:]).numpy()
    rows = z.permute(0, 2, 3, 1).reshape(-1, 1, z.shape[1]).double()
    distances = (rows - model.quantize.embedding.weight.double()).square().sum(-1).sort().values
    assert (distances[:, 1] - distances[:, 0]).min() > 1e-4, "two entries are nearly as near"
    return indices.astype(np.int32)


@torch.no_grad()
def outputs(name: str) -> dict[str, np.ndarray]:
    model = build(recipe.config_fields(name))
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict({k: torch.from_numpy(recipe.tensor(k, s)) for k, s in shapes.items()})
    nchw = lambda x: torch.from_numpy(x).permute(0, 3, 1, 2)
    nhwc = lambda x: x.permute(0, 2, 3, 1).contiguous().numpy()
    encoded, latents = model.encode(nchw(recipe.images())).latents, nchw(recipe.latents())
    return {
        f"{name}/shapes": np.array(json.dumps(shapes)),
        f"{name}/encoded": nhwc(encoded),
        f"{name}/encoded_indices": indices_of(model, encoded),
        f"{name}/latent_indices": indices_of(model, latents),
        f"{name}/decoded": nhwc(model.decode(latents).sample),
    }


def main() -> None:
    arrays = {key: value for name in recipe.ATTENTION for key, value in outputs(name).items()}
    np.savez_compressed(FILE, **arrays)
    for key, value in arrays.items():
        if not key.endswith("shapes"):
            print(f"{key:30s} {value.shape} {value.min():8.3f} .. {value.max():8.3f}")
    for name in recipe.ATTENTION:
        published = dict(block_out_channels=[128, 256, 512], layers_per_block=2)
        published |= dict(norm_num_groups=32, num_vq_embeddings=8192)
        model = build(recipe.config_fields(name) | published)
        count = sum(parameter.numel() for parameter in model.parameters())
        print(f"VQ-f4, {name}: {count:,} parameters")
    print(f"{FILE.name}: {FILE.stat().st_size / 1024:.0f} KiB, diffusers {diffusers.__version__}")


if __name__ == "__main__":
    main()
