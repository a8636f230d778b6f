"""SISMA on CelebAMask-HQ at 256 pixels (arXiv 2509.17651).

    python -m sisma_jax.cache_latents --data data/celeba-256 \
        --autoencoder hf://stabilityai/sd-vae-ft-ema --out data/celeba-256-latents
    python -m sisma_jax.train --config configs/celeba.py \
        --config.autoencoder.cache=data/celeba-256-latents

The paper publishes its architecture's figure and its scores (FID 18.3, LPIPS diversity 0.61), but
no sizes and no training settings: those here are ours, after DiT and U-Shape Mamba. The default is
the size the scores are reported for (231 M parameters); variants "small" (61 M, patch 2), "base"
(138 M), "xlarge" (456 M) and "debug" (a minute on a laptop, on whatever data it is given).

Nothing here has been trained to the end yet; hours, memory and scores are not known.
"""

from ml_collections import ConfigDict

SIZES = {
    "small": dict(width=384, depth=12, patch=2),
    "base": dict(width=512, depth=16, patch=1),
    "large": dict(width=768, depth=12, patch=1),
    "xlarge": dict(width=768, depth=24, patch=1),
    "debug": dict(width=64, depth=2, patch=2),
}


def get_config(variant: str = "large") -> ConfigDict:
    if variant not in SIZES:
        raise ValueError(f"choose one of {', '.join(SIZES)}")
    debug = variant == "debug"
    config = ConfigDict()
    config.seed = 0

    # Data: as `sisma_jax.prepare` writes it; of a raw folder, ids from test_from on are for tests.
    config.data = ConfigDict()
    config.data.path = "data/celeba-256"
    config.data.size = 256
    config.data.synthetic_count = 0
    config.data.test_from = 28000
    config.data.flip = True
    config.data.threads = 16

    # First stage with factor 8: 256x256 pixels <-> 32x32x4 latents. Any path of one will do.
    config.autoencoder = ConfigDict()
    config.autoencoder.path = "hf://stabilityai/sd-vae-ft-ema"
    config.autoencoder.scaling_factor = 0.0  # of the weights
    config.autoencoder.dtype = ""  # of the weights
    config.autoencoder.cache = ""  # a folder of sisma_jax.cache_latents; "" encodes in every step

    # Model
    config.model = ConfigDict()
    config.model.latent_size = 32
    config.model.latent_channels = 4
    config.model.factor = 8
    config.model.num_classes = 19
    config.model.update(SIZES[variant])
    config.model.state = 16
    config.model.expand = 2
    config.model.orders = 1
    config.model.ff_ratio = 4
    config.model.mask_channels = 64
    config.model.dtype = "float32" if debug else "bfloat16"
    config.model.remat = "none"  # "block" or "dots": less memory for more time
    config.model.scan = "auto"

    # Flow
    config.flow = ConfigDict()
    config.flow.sampling = "logit_normal"
    config.flow.drop = 0.1

    # Training
    config.train = ConfigDict()
    config.train.steps = 20 if debug else 400_000
    config.train.batch_size = 4 if debug else 64
    config.train.accumulate = 1
    config.train.optimizer = "adamw"
    config.train.learning_rate = 1e-4
    config.train.warmup = 1000
    config.train.schedule = "constant"
    config.train.weight_decay = 0.0
    config.train.clip = 1.0
    config.train.ema_decay = 0.9999
    config.train.init_from = ""
    config.train.skip_limit = 10
    config.train.log_every = 5 if debug else 100
    config.train.sample_every = 10 if debug else 5000
    config.train.profile_at = 0  # a step; 0 for no trace
    config.train.profile_steps = 5

    config.samples = ConfigDict()
    config.samples.masks = 2 if debug else 8
    config.samples.per_mask = 1 if debug else 4
    config.samples.steps = 25
    config.samples.solver = "euler"
    config.samples.guidance = 1.0

    # Loss on the test split by parts of the training time, of the averaged weights
    config.evaluation = ConfigDict()
    config.evaluation.every = 0 if debug else 5000
    config.evaluation.items = 2048
    config.evaluation.bins = 5
    config.evaluation.hook = ""  # "module:function" for further metrics

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 10 if debug else 5000
    config.checkpoint.keep = 3
    config.checkpoint.keep_every = 0

    # Devices: -1 takes what the other axis leaves
    config.mesh = ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    return config
