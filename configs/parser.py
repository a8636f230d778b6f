"""A face parser, with which `sisma_jax.evaluate` measures whether faces follow their masks.

    python -m sisma_jax.train_parser --config configs/parser.py --workdir runs/parser

The U-Net of CelebAMask-HQ's repository, with group instead of batch normalisation. Variants: ""
(synthetic faces of 64 pixels, for the demo, two and a half minutes on two CPU cores), "long" (for
`configs/synthetic.py:long`), "celeba-64" and "celeba-128" (CelebAMask-HQ at 64 and 128 pixels, for
two CPU cores; small classes weigh more than their area) and "celeba" (the repository's sizes on
CelebAMask-HQ at 256 pixels; not trained yet, an alternative to the published weights).
"""

from ml_collections import ConfigDict

from sisma_jax.configs import common


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "long", "celeba-64", "celeba-128", "celeba"):
        raise ValueError("choose 'long', 'celeba-64', 'celeba-128' or 'celeba', or no variant")
    config = common.parser()
    config.train.steps = 600
    config.train.batch_size = 16
    config.train.sample_every = 600
    config.checkpoint.every = 200

    if variant == "long":
        config.data = common.long_synthetic_faces()
        config.train.steps = 2000
        config.train.sample_every = 1000
        config.checkpoint.every = 500

    if variant in ("celeba-64", "celeba-128"):
        common.on_small_photographs(config, int(variant.removeprefix("celeba-")))
        config.parser.channels = (24, 48, 96, 192, 384)
        config.loss.class_balance = 0.6
        config.train.steps = 4000
        config.train.log_every = 100
        config.train.sample_every = 2000
        config.checkpoint.every = 500

    if variant == "celeba":
        common.on_celebamask_hq(config)
        config.parser.channels = (16, 32, 64, 128, 256)
        config.train.steps = 40_000
        config.train.batch_size = 32
        config.train.warmup = 500
        config.train.ema_decay = 0.999
    return config
