"""SISMA on CelebAMask-HQ at 256 pixels (arXiv 2509.17651): the reproduction recipe.

    python -m sisma_jax.prepare --source CelebAMask-HQ --out data/celeba-256 --size 256
    python -m sisma_jax.cache_latents --data data/celeba-256 \
        --autoencoder hf://stabilityai/sd-vae-ft-ema --out data/celeba-256-latents
    python -m sisma_jax.train --config configs/celeba.py \
        --config.autoencoder.cache=data/celeba-256-latents

The paper publishes its architecture's figure and its scores: FID 18.3, LPIPS diversity 0.61, 8.5 s
an image on an RTX 4090; no sizes and no training settings. Those here are ours, after DiT and
U-Shape Mamba. GMAC are of a forward pass of one image, mask encoder included.

    variant   parameters   GMAC   width   blocks   tokens
    small           61 M     12     384       12   16 x 16
    base           138 M    102     512       16   32 x 32
    large          231 M    169     768       12   32 x 32   the size the scores are reported for
    xlarge         456 M    336     768       24   32 x 32
    512            236 M    677     768       12   64 x 64   512 pixels: prepare with --size 512
    debug                                                    a minute on a laptop, on any such data

Expected, not measured: 400,000 steps of 64 images at 200 images a second on one H200 (25 % of a
matrix rate of 790 TFLOP/s for `large`) take 36 hours; four devices a quarter of that. Memory: a
state of `large` is 3.7 GB, its activations at batch 64 are not known; model.remat and
train.accumulate lower them, mesh.fsdp=-1 with mesh.data=1 spreads the state over the devices.

Measured: on two CPU cores three steps of one image (16 s each from cached latents), and 15 s to
compile the step, whatever the depth. Nothing here has been trained to the end yet, nor run on a
GPU: hours, memory and scores are not known.
"""

from ml_collections import ConfigDict

SIZES = {
    "small": dict(width=384, depth=12, patch=2),
    "base": dict(width=512, depth=16, patch=1),
    "large": dict(width=768, depth=12, patch=1),
    "xlarge": dict(width=768, depth=24, patch=1),
    "512": dict(width=768, depth=12, patch=1),
    "debug": dict(width=64, depth=2, patch=2),
}


def get_config(variant: str = "large") -> ConfigDict:
    if variant not in SIZES:
        raise ValueError(f"choose one of {', '.join(SIZES)}")
    debug, pixels = variant == "debug", 512 if variant == "512" else 256
    config = ConfigDict()
    config.seed = 0

    # Data: as `sisma_jax.prepare` writes it; of a raw folder, ids from test_from on are for tests.
    config.data = ConfigDict()
    config.data.path = f"data/celeba-{pixels}"
    config.data.size = pixels
    config.data.synthetic_count = 0
    config.data.test_from = 28000
    config.data.flip = True
    config.data.threads = 16

    # First stage with factor 8: 256 x 256 pixels <-> 32 x 32 x 4 latents. Any path of one will do.
    config.autoencoder = ConfigDict()
    config.autoencoder.path = "hf://stabilityai/sd-vae-ft-ema"
    config.autoencoder.scaling_factor = 0.0  # of the weights
    config.autoencoder.dtype = ""  # of the weights
    config.autoencoder.cache = ""  # a folder of sisma_jax.cache_latents; "" encodes in every step

    # Model
    config.model = ConfigDict()
    config.model.latent_size = pixels // 8
    config.model.latent_channels = 4
    config.model.factor = 8
    config.model.num_classes = 19
    config.model.update(SIZES[variant])
    config.model.mixer = "mamba"  # "attention": the twin it is compared with
    config.model.attention_head = 64  # channels of a head, of the twin only
    config.model.modulation = "gate"  # "shift": the paper's figure read literally
    config.model.state = 16
    config.model.expand = 2
    config.model.orders = 1
    config.model.ff_ratio = 4
    config.model.mask_channels = 64
    config.model.dtype = "float32" if debug else "bfloat16"
    # "block" and "dots" need less memory and more time.
    config.model.remat = "block" if variant == "512" else "none"
    config.model.scan = "auto"

    # Flow
    config.flow = ConfigDict()
    config.flow.sampling = "logit_normal"
    config.flow.drop = 0.1
    config.flow.class_balance = 0.0  # above 0 small classes count for more than their area

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
    config.evaluation.every = 10 if debug else 5000
    config.evaluation.items = 4 if debug else 512
    config.evaluation.bins = 5
    config.evaluation.hook = ""  # "module:function" for further metrics

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 10 if debug else 5000
    config.checkpoint.keep = 3
    config.checkpoint.keep_every = 0 if debug else 50_000  # these stay for good

    # Devices: -1 takes what the other axis leaves
    config.mesh = ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    return config
