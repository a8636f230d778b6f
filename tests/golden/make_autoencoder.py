"""Write `autoencoder.npz`: what diffusers' AutoencoderKL makes of the recipe's weights and inputs.

    pip install torch diffusers && python -m tests.golden.make_autoencoder

Per configuration: names and shapes of the parameters (JSON), mean and logvar of the images, and
the decoded latents, float32 and NHWC. Also checks the recipe's CompVis names against diffusers'
own conversion of such files.
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

from tests.golden import autoencoder_recipe as recipe

FILE = Path(__file__).with_name("autoencoder.npz")


@torch.no_grad()
def outputs(name: str) -> dict[str, np.ndarray]:
    fields = {k: v for k, v in recipe.config_fields(name).items() if k != "_class_name"}
    model = diffusers.AutoencoderKL(**fields).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    weights = {key: torch.from_numpy(recipe.tensor(key, shape)) for key, shape in shapes.items()}
    model.load_state_dict(weights)
    levels = len(fields["block_out_channels"])
    compvis = {f"first_stage_model.{recipe.compvis_name(k, levels)}": v for k, v in weights.items()}
    converted = convert_ldm_vae_checkpoint(compvis, fields)
    assert converted.keys() == weights.keys(), converted.keys() ^ weights.keys()
    assert all(torch.equal(converted[key], weights[key]) for key in weights)
    nchw = lambda x: torch.from_numpy(x).permute(0, 3, 1, 2)
    nhwc = lambda x: x.permute(0, 2, 3, 1).contiguous().numpy()
    posterior = model.encode(nchw(recipe.images(name))).latent_dist
    return {
        f"{name}/shapes": np.array(json.dumps(shapes)),
        f"{name}/mean": nhwc(posterior.mean),
        f"{name}/logvar": nhwc(posterior.logvar),
        f"{name}/decoded": nhwc(model.decode(nchw(recipe.latents(name))).sample),
    }


def main() -> None:
    arrays = {key: value for name in recipe.CONFIGS for key, value in outputs(name).items()}
    np.savez_compressed(FILE, **arrays)
    for key, value in arrays.items():
        if not key.endswith("shapes"):
            print(f"{key:30s} {value.shape} {value.min():8.3f} .. {value.max():8.3f}")
    print(f"{FILE.name}: {FILE.stat().st_size / 1024:.0f} KiB, diffusers {diffusers.__version__}")


if __name__ == "__main__":
    main()
