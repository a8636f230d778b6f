"""SISMA with the style of reference faces, on CelebAMask-HQ at 256 pixels.

    python -m sisma_jax.prepare --source CelebAMask-HQ --out data/celeba-256 --size 256
    python -m sisma_jax.train --config configs/celeba_style.py

The recipe and the variants of configs/celeba.py, with SCA-DM's style encoder at its published size
(arXiv 2403.12743; 18 M parameters) and a style sub-layer in every block. SISMA's paper names
references as future work; sizes and sub-layer are ours. Styles are computed from images, so cached
latents cannot be used and every step encodes its batch.

    variant   parameters   for style
    small          100 M    39 M
    base           198 M    60 M
    large          308 M    77 M
    xlarge         593 M   136 M
    512            313 M    77 M

It has not been trained or run on a GPU, so hours, memory and scores are unknown.
"""

from pathlib import Path

from ml_collections import ConfigDict

from sisma_jax.common.config import load_config


def get_config(variant: str = "large") -> ConfigDict:
    config = load_config(f"{Path(__file__).with_name('celeba.py')}:{variant}")

    # Style
    config.model.style = "attention"
    config.model.style_channels = 4
    config.model.style_levels = 5
    config.model.style_features = 256
    config.model.style_colours = True  # our addition; False for SCA-DM's encoder
    config.flow.style_drop = 0.5  # share of faces, as in SCA-DM
    config.flow.style_class_drop = 0.1  # share of the others' classes; ours, for partial styles
    return config
