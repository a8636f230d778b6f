"""SISMA on CelebAMask-HQ at 256 pixels (arXiv 2509.17651): the reproduction recipe.

    python -m sisma_jax.prepare --source CelebAMask-HQ --out data/celeba-256 --size 256
    python -m sisma_jax.cache_latents --data data/celeba-256 \
        --autoencoder hf://stabilityai/sd-vae-ft-ema --out data/celeba-256-latents
    python -m sisma_jax.train --config configs/celeba.py \
        --config.autoencoder.cache=data/celeba-256-latents

The paper publishes a figure of the architecture and scores (FID 18.3, LPIPS diversity 0.61, 8.5 s
per image on an RTX 4090), but neither sizes nor training settings. Those here are ours, after DiT
and U-Shape Mamba. GMAC are those of a forward pass of one image, including the mask encoder.

    variant   parameters   GMAC   width   blocks   tokens
    small           61 M     12     384       12   16 x 16
    base           138 M    102     512       16   32 x 32
    large          231 M    169     768       12   32 x 32   the size of the reported scores
    xlarge         456 M    336     768       24   32 x 32
    512            236 M    677     768       12   64 x 64   512 pixels: prepare with --size 512
    debug                                                    a minute on a laptop, same data format

Expected, not measured: 400,000 steps of 64 images take 36 hours at 200 images per second on one
H200 (25 % of a matrix rate of 790 TFLOP/s for `large`), and a quarter of that on four devices. The
state of `large` takes 3.7 GB; the memory of its activations at batch 64 is unknown. model.remat and
train.accumulate lower it, mesh.fsdp=-1 with mesh.data=1 shards the state over the devices.

Measured on two CPU cores: three steps of one image (16 s each from cached latents), and 15 s to
compile the step, whatever the depth. No variant has been trained to the end yet or run on a GPU, so
hours, memory and scores are unknown.
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

    # Data prepared by `sisma_jax.prepare`; in a raw folder, ids from test_from on are test data.
    config.data = ConfigDict()
    config.data.path = f"data/celeba-{pixels}"
    config.data.size = pixels
    config.data.synthetic_count = 0
    config.data.test_from = 28000
    config.data.flip = True
    config.data.threads = 16

    # First stage with factor 8: 256 x 256 pixels <-> 32 x 32 x 4 latents
    config.autoencoder = ConfigDict()
    config.autoencoder.path = "hf://stabilityai/sd-vae-ft-ema"
    config.autoencoder.scaling_factor = 0.0  # 0: that of the weights
    config.autoencoder.dtype = ""  # "": that of the weights
    config.autoencoder.cache = ""  # output of sisma_jax.cache_latents; "": encode in every step

    # Model
    config.model = ConfigDict()
    config.model.latent_size = pixels // 8
    config.model.latent_channels = 4
    config.model.factor = 8
    config.model.num_classes = 19
    config.model.update(SIZES[variant])
    config.model.mixer = "mamba"  # or "attention", the twin for comparison
    config.model.attention_head = 64  # channels per head, twin only
    config.model.modulation = "gate"  # or "shift", the literal reading of the paper's figure
    config.model.state = 16
    config.model.expand = 2
    config.model.orders = 1
    config.model.ff_ratio = 4
    config.model.mask_channels = 64
    config.model.dtype = "float32" if debug else "bfloat16"
    # "block" and "dots" save memory and take more time.
    config.model.remat = "block" if variant == "512" else "none"
    config.model.scan = "auto"

    # Flow
    config.flow = ConfigDict()
    config.flow.sampling = "logit_normal"
    config.flow.drop = 0.1
    config.flow.class_balance = 0.0  # above 0, small classes weigh more than their area

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
    config.train.profile_at = 0  # first traced step; 0 for no trace
    config.train.profile_steps = 5

    config.samples = ConfigDict()
    config.samples.masks = 2 if debug else 8
    config.samples.per_mask = 1 if debug else 4
    config.samples.steps = 25
    config.samples.solver = "euler"
    config.samples.guidance = 1.0

    # Loss of the averaged weights on the test split, by intervals of training time
    config.evaluation = ConfigDict()
    config.evaluation.every = 10 if debug else 5000
    config.evaluation.items = 4 if debug else 512
    config.evaluation.bins = 5
    config.evaluation.hook = ""  # "module:function" for further metrics

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 10 if debug else 5000
    config.checkpoint.keep = 3
    config.checkpoint.keep_every = 0 if debug else 50_000  # never deleted

    # Devices; -1 takes those that the other axis leaves
    config.mesh = ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    return config
