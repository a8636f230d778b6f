"""SISMA with the style of reference faces, on synthetic faces of 64 pixels, for two CPU cores.

    python -m sisma_jax.train_autoencoder --config configs/autoencoder.py --workdir runs/autoencoder
    python -m sisma_jax.train --config configs/synthetic_style.py --workdir runs/demo-style

As configs/synthetic.py, with a style sub-layer in every block and a small style encoder, for twice
the steps. Variants: "attention" (the default), "mamba" and "full_attention", the other values of
`model.style`, for comparison, and "long" (with the faces and the depth of configs/synthetic.py:long
and the autoencoder of configs/autoencoder.py:parts).
"""

from ml_collections import ConfigDict

from sisma_jax.configs import common, synthetic


def get_config(variant: str = "attention") -> ConfigDict:
    if variant not in ("attention", "mamba", "full_attention", "long"):
        raise ValueError("choose 'attention', 'mamba', 'full_attention' or 'long'")
    config = synthetic.get_config()
    common.add_style(config)
    config.train.steps = 720
    config.train.sample_every = 720
    config.checkpoint.every = 240

    if variant in ("mamba", "full_attention"):
        config.model.style = variant

    if variant == "long":
        config.update(synthetic.get_config("long"))
        config.autoencoder.path = "runs/autoencoder-parts"
        config.flow.class_balance = 0.75  # eyes weigh more than their area
    return config
