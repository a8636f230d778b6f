"""SISMA with the style of reference faces, on CelebAMask-HQ at 256 pixels.

    python -m sisma_jax.prepare --source CelebAMask-HQ --out data/celeba-256 --size 256
    python -m sisma_jax.cache_latents --data data/celeba-256 --images \
        --autoencoder hf://stabilityai/sd-vae-ft-ema --out data/celeba-256-latents
    python -m sisma_jax.train --config configs/celeba_style.py \
        --config.autoencoder.cache=data/celeba-256-latents

The recipe and the variants of configs/celeba.py, with SCA-DM's style encoder at its published size
(arXiv 2403.12743; 18 M parameters) and a style sub-layer in every block. SISMA's paper names
references as future work; sizes and sub-layer are ours. Styles are computed from images, so the
cached latents come with them (`--images`). Without a cache every step encodes its batch.

    variant   parameters   for style
    small          100 M    39 M
    base           198 M    60 M
    large          308 M    77 M
    xlarge         593 M   136 M
    512            313 M    77 M
    64             3.5 M   1.5 M   a small style encoder, for two CPU cores (docs/photographs.md)
    128            3.6 M   1.5 M

It has not been trained or run on a GPU, so hours, memory and scores are unknown.
"""

from ml_collections import ConfigDict

from sisma_jax.configs import celeba, common


def get_config(variant: str = "large") -> ConfigDict:
    config = celeba.get_config(variant)
    common.add_style(config)
    if variant not in celeba.FOR_TWO_CORES:
        config.model.style_levels = 5
        config.model.style_features = 256
    return config
