"""A face parser, with which `sisma_jax.evaluate` measures whether faces follow their masks.

    python -m sisma_jax.train_parser --config configs/parser.py --workdir runs/parser

The U-Net of CelebAMask-HQ's repository, with group instead of batch normalisation. Variants: ""
(synthetic faces of 64 pixels, for the demo, two and a half minutes on two CPU cores), "long" (for
`configs/synthetic.py:long`) and "celeba" (the repository's sizes on CelebAMask-HQ at 256 pixels;
not trained yet, an alternative to the published weights).
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "long", "celeba"):
        raise ValueError("choose 'long' or 'celeba', or no variant")
    long, celeba = variant == "long", variant == "celeba"
    config = ConfigDict()
    config.seed = 0

    # Data
    config.data = ConfigDict()
    config.data.path = "data/synthetic"
    config.data.size = 64
    config.data.synthetic_count = 4096
    config.data.test_from = 3584
    config.data.flip = True
    config.data.threads = 1
    if long:
        config.data.path = "data/synthetic-long"
        config.data.synthetic_count = 15360
        config.data.test_from = 14848
    if celeba:
        config.data.path = "data/celeba-256"
        config.data.size = 256
        config.data.synthetic_count = 0
        config.data.test_from = 28000
        config.data.threads = 16

    # Model
    config.parser = ConfigDict()
    config.parser.num_classes = 19
    config.parser.channels = (16, 32, 64, 128, 256) if celeba else (16, 32, 64, 128)
    config.parser.norm = "group"
    config.parser.norm_groups = 8
    config.parser.dtype = "float32"

    # Loss
    config.loss = ConfigDict()
    config.loss.dice_weight = 1.0

    # Training
    config.train = ConfigDict()
    config.train.steps = 40_000 if celeba else 2000 if long else 600
    config.train.batch_size = 32 if celeba else 16
    config.train.accumulate = 1
    config.train.optimizer = "muon"
    config.train.learning_rate = 1e-2
    config.train.warmup = 500 if celeba else 50
    config.train.schedule = "cosine"
    config.train.weight_decay = 0.0
    config.train.clip = 1.0
    config.train.ema_decay = 0.999 if celeba else 0.9
    config.train.init_from = ""
    config.train.skip_limit = 10
    config.train.log_every = 100 if celeba else 50
    config.train.sample_every = 5000 if celeba else 1000 if long else 600
    config.train.profile_at = 0  # first traced step; 0 for no trace
    config.train.profile_steps = 5

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 5000 if celeba else 500 if long else 200
    config.checkpoint.keep = 2
    config.checkpoint.keep_every = 0

    # Devices; -1 takes those that the other axis leaves
    config.mesh = ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    return config
