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
    large          231 M    169     768       12   32 x 32   the default
    xlarge         456 M    336     768       24   32 x 32
    512            236 M    677     768       12   64 x 64   512 pixels: prepare with --size 512
    1024           255 M  2,707     768       12   128 x 128 1024 pixels: prepare with --size 1024
    64             2.0 M   0.38      96        6   16 x 16   64 pixels, for two CPU cores
    128            2.2 M   1.50      96        6   32 x 32   128 pixels, for two CPU cores
    debug                                                    a minute on a laptop, same data format

The variants 64 and 128 have a first stage of their own (configs/autoencoder.py:celeba-64 and
celeba-128; docs/photographs.md).

Planned, not measured (benchmarks/plan_bench.py, docs/results.md): a step of 64 images of `large`
needs 36 GB, among them 3.7 GB of state, and takes an H200 at least 0.21 s. So 400,000 steps take at
least 23 hours there, and a quarter of that on four devices. ACCUMULATE below says in how many parts
a batch fits other cards; mesh.fsdp=-1 with mesh.data=1 shards the state over the devices.

Measured on two CPU cores: three steps of one image (16 s each from cached latents), and 15 s to
compile the step, whatever the depth. No variant has been trained to the end yet or run on a GPU, so
true hours and scores are unknown.
"""

from ml_collections import ConfigDict

from sisma_jax.configs import common

# Parts of a batch of 64 by card, so that each step fits the three quarters of its memory that JAX
# takes (planned by benchmarks/plan_bench.py). The default is an A100-80's; others are set by
# --config.train.accumulate.
ACCUMULATE = {
    "small": {"H200": 1, "A100-80": 1, "RTX 4090": 1},
    "base": {"H200": 1, "A100-80": 1, "RTX 4090": 4},
    "large": {"H200": 1, "A100-80": 1, "RTX 4090": 4},
    "xlarge": {"H200": 1, "A100-80": 2, "RTX 4090": 8},
    "512": {"H200": 2, "A100-80": 4, "RTX 4090": 16},
    "1024": {"H200": 8, "A100-80": 16, "RTX 4090": 64},
}
FOR_TWO_CORES = ("64", "128")
VARIANTS = (*ACCUMULATE, *FOR_TWO_CORES, "debug")


def get_config(variant: str = "large") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"choose one of {', '.join(VARIANTS)}")
    config = common.sisma()
    if variant in FOR_TWO_CORES:
        common.generator_on_small_photographs(config, int(variant))
        config.model.depth = 6
        config.model.remat = "names"
        config.train.steps = 16_000
        config.train.ema_decay = 0.998
        return config
    common.generator_on_celebamask_hq(config)

    # Autoencoder with factor 8: 256 x 256 pixels <-> 32 x 32 x 4 latents
    config.autoencoder.path = "hf://stabilityai/sd-vae-ft-ema"

    config.model.latent_size = 32
    config.model.factor = 8
    config.model.width = 768
    config.model.depth = 12
    config.model.attention_head = 64
    config.model.state = 16
    config.model.mask_channels = 64
    config.model.remat = "dots"

    config.train.steps = 400_000
    config.train.batch_size = 64
    config.train.learning_rate = 1e-4
    config.train.warmup = 1000
    config.samples.per_mask = 4

    if variant in ACCUMULATE:
        config.train.accumulate = ACCUMULATE[variant]["A100-80"]

    if variant == "small":
        config.model.width = 384
        config.model.patch = 2

    if variant == "base":
        config.model.width = 512
        config.model.depth = 16

    if variant == "xlarge":
        config.model.depth = 24

    if variant == "512":
        config.data = common.celebamask_hq(512)
        config.model.latent_size = 64

    if variant == "1024":
        config.data = common.celebamask_hq(1024)
        config.model.latent_size = 128

    if variant == "debug":
        config.model.width = 64
        config.model.depth = 2
        config.model.patch = 2
        config.model.dtype = "float32"
        config.model.remat = "none"
        config.train.steps = 20
        config.train.batch_size = 4
        config.train.log_every = 5
        config.train.sample_every = 10
        config.samples.masks = 2
        config.samples.per_mask = 1
        config.evaluation.every = 10
        config.evaluation.items = 4
        config.checkpoint.every = 10
        config.checkpoint.keep_every = 0
    return config
