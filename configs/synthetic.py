"""SISMA on synthetic faces of 64 pixels: the default, for two CPU cores.

    python -m sisma_jax.train_autoencoder --config configs/autoencoder.py --workdir runs/autoencoder
    python -m sisma_jax.train --config configs/synthetic.py

The faces are written to data/synthetic if they do not exist. Variants: "" (the demo, about three
minutes of training on two cores) and "long" (about half an hour).
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "long"):
        raise ValueError("choose 'long', or no variant")
    long = variant == "long"
    config = ConfigDict()
    config.seed = 0

    # Data
    config.data = ConfigDict()
    config.data.path = "data/synthetic-long" if long else "data/synthetic"
    config.data.size = 64
    config.data.synthetic_count = 15360 if long else 4096
    config.data.test_from = 14848 if long else 3584
    config.data.flip = True
    config.data.threads = 1

    # First stage: 64x64 pixels <-> 16x16x4 latents
    config.autoencoder = ConfigDict()
    config.autoencoder.path = "runs/autoencoder-long" if long else "runs/autoencoder"
    config.autoencoder.scaling_factor = 0.0  # 0: that of the weights
    config.autoencoder.dtype = ""  # "": that of the weights
    config.autoencoder.cache = ""  # output of sisma_jax.cache_latents; "": encode in every step

    # Model
    config.model = ConfigDict()
    config.model.latent_size = 16
    config.model.latent_channels = 4
    config.model.factor = 4
    config.model.num_classes = 19
    config.model.patch = 1
    config.model.width = 96
    config.model.depth = 6 if long else 4
    config.model.mixer = "mamba"  # or "attention", the twin for comparison
    config.model.attention_head = 32  # channels per head, twin only
    config.model.modulation = "gate"  # or "shift", the literal reading of the paper's figure
    config.model.state = 8
    config.model.expand = 2
    config.model.orders = 1
    config.model.ff_ratio = 4
    config.model.mask_channels = 32
    config.model.dtype = "float32"
    config.model.remat = "none"  # "block" and "dots" save memory and take more time
    config.model.scan = "auto"

    # Flow
    config.flow = ConfigDict()
    config.flow.sampling = "logit_normal"
    config.flow.drop = 0.1
    config.flow.class_balance = 0.0  # above 0, small classes weigh more than their area

    # Training. So short a run needs Muon, a high learning rate, and a cosine instead of averaging.
    config.train = ConfigDict()
    config.train.steps = 2000 if long else 360
    config.train.batch_size = 8
    config.train.accumulate = 1
    config.train.optimizer = "muon"
    config.train.learning_rate = 1e-2 if long else 1.5e-2
    config.train.warmup = 100 if long else 30
    config.train.schedule = "cosine"
    config.train.weight_decay = 0.0
    config.train.clip = 1.0
    config.train.ema_decay = 0.95 if long else 0.9
    config.train.init_from = ""
    config.train.skip_limit = 10
    config.train.log_every = 50 if long else 20
    config.train.sample_every = 500 if long else 360
    config.train.profile_at = 0  # first traced step; 0 for no trace
    config.train.profile_steps = 5

    config.samples = ConfigDict()
    config.samples.masks = 8
    config.samples.per_mask = 3
    config.samples.steps = 12
    config.samples.solver = "euler"
    config.samples.guidance = 1.5

    # Loss of the averaged weights on the test split, by intervals of training time
    config.evaluation = ConfigDict()
    config.evaluation.every = 1000 if long else 180
    config.evaluation.items = 64
    config.evaluation.bins = 5
    config.evaluation.hook = ""  # "module:function" for further metrics

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 500 if long else 120
    config.checkpoint.keep = 2
    config.checkpoint.keep_every = 0

    # Devices; -1 takes those that the other axis leaves
    config.mesh = ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    return config
