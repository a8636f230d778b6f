"""SISMA with the style of reference faces, on synthetic faces of 64 pixels, for two CPU cores.

    python -m sisma_jax.train_autoencoder --config configs/autoencoder.py --workdir runs/autoencoder
    python -m sisma_jax.train --config configs/synthetic_style.py --workdir runs/demo-style

As configs/synthetic.py, with a style sub-layer in every block and a small style encoder, for twice
the steps. Variants: "attention" (the default), "mamba" and "full_attention", the other values of
`model.style`, for comparison, and "long" (with the faces and the depth of configs/synthetic.py:long
and the autoencoder of configs/autoencoder.py:parts).
"""

from pathlib import Path

from ml_collections import ConfigDict

from sisma_jax.common.config import load_config


def get_config(variant: str = "attention") -> ConfigDict:
    if variant not in ("attention", "mamba", "full_attention", "long"):
        raise ValueError("choose 'attention', 'mamba', 'full_attention' or 'long'")
    long = variant == "long"
    config = load_config(str(Path(__file__).with_name("synthetic.py")) + (":long" if long else ""))

    # Style
    config.model.style = "attention" if long else variant
    config.model.style_channels = 4
    config.model.style_levels = 3
    config.model.style_features = 32
    config.model.style_colours = True  # so short a training would not learn them
    config.flow.style_drop = 0.5  # share of faces
    config.flow.style_class_drop = 0.1  # share of classes of the other faces
    config.flow.class_balance = 0.75 if long else 0.0  # eyes weigh more than their area

    if long:
        config.autoencoder.path = "runs/autoencoder-parts"
    else:
        config.train.steps = 720
        config.train.sample_every = 720
        config.evaluation.every = 180
        config.checkpoint.every = 240
    return config
