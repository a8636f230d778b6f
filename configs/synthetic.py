"""SISMA on synthetic faces of 64 pixels: the default, for two CPU cores.

    python -m sisma_jax.train_autoencoder --config configs/autoencoder.py --workdir runs/autoencoder
    python -m sisma_jax.train --config configs/synthetic.py

The faces are written to data/synthetic if they do not exist. Variants: "" (the demo, about three
minutes of training on two cores) and "long" (about half an hour).
"""

from ml_collections import ConfigDict

from sisma_jax.configs import common


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "long"):
        raise ValueError("choose 'long', or no variant")
    config = common.sisma()
    config.model.remat = "names"  # less memory traffic than "none", also on a CPU
    config.train.steps = 360
    config.train.learning_rate = 1.5e-2
    config.train.warmup = 30
    config.train.log_every = 20
    config.train.sample_every = 360
    config.samples.steps = 12
    config.samples.guidance = 1.5
    config.evaluation.every = 180
    config.checkpoint.every = 120

    if variant == "long":
        config.data = common.long_synthetic_faces()
        config.autoencoder.path = "runs/autoencoder-long"
        config.model.depth = 6
        config.train.steps = 2000
        config.train.learning_rate = 1e-2
        config.train.warmup = 100
        config.train.ema_decay = 0.95
        config.train.log_every = 50
        config.train.sample_every = 500
        config.evaluation.every = 1000
        config.checkpoint.every = 500
    return config
