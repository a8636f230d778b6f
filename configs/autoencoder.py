"""The first-stage autoencoder, which defines SISMA's latents.

    python -m sisma_jax.train_autoencoder --config configs/autoencoder.py --workdir runs/autoencoder

    variant      for
    (none)       synthetic faces of 64 pixels, factor 4: about a minute on two CPU cores
    long         the same in eight minutes, for configs/synthetic.py:long
    parts        as "long", more accurate in eyes, brows and lips and less elsewhere, for styles
    vq           as (none), with 3 channels and a codebook of 512 entries: four minutes
    celeba-64    CelebAMask-HQ at 64 pixels, factor 4 with 8 channels, for two CPU cores
    celeba-128   the same at 128 pixels
    celeba       CelebAMask-HQ at 256 pixels, Stable Diffusion's architecture, factor 8
    vq-f4        the same with latent diffusion's codebook, factor 4, the first stage of SCA-DM

The last two are trained from scratch, as alternatives to the published weights. That has not been
done yet.
"""

from ml_collections import ConfigDict

from sisma_jax.configs import common

VARIANTS = ("", "long", "parts", "vq", "celeba-64", "celeba-128", "celeba", "vq-f4")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"choose one of {', '.join(VARIANTS[1:])}, or no variant")
    config = common.autoencoder()
    config.train.steps = 360
    config.train.warmup = 25
    config.train.sample_every = 360
    config.checkpoint.every = 180

    if variant in ("long", "parts"):
        config.data = common.long_synthetic_faces()
        config.train.steps = 4000
        config.train.sample_every = 2000
        config.checkpoint.every = 1000

    if variant == "parts":
        config.loss.class_balance = 0.6

    if variant == "vq":
        config.autoencoder.latent_channels = 3
        config.autoencoder.codebook = 512
        config.train.steps = 1000
        config.train.sample_every = 1000
        config.checkpoint.every = 500

    if variant in ("celeba-64", "celeba-128"):
        common.on_small_photographs(config, int(variant.removeprefix("celeba-")))
        config.autoencoder.latent_channels = 8
        config.train.steps = 14_000
        config.train.log_every = 100
        config.train.sample_every = 7000
        config.checkpoint.every = 1000

    if variant in ("celeba", "vq-f4"):
        common.on_celebamask_hq(config)
        config.autoencoder.block_channels = (128, 256, 512, 512)
        config.autoencoder.layers_per_block = 2
        config.autoencoder.norm_groups = 32
        config.autoencoder.mid_attention = True
        config.autoencoder.fold = 1
        config.autoencoder.linear_skip = False
        config.autoencoder.dtype = "bfloat16"
        config.loss.kl_weight = 1e-4
        config.train.steps = 200_000
        config.train.batch_size = 32
        config.train.optimizer = "adamw"
        config.train.learning_rate = 1e-4
        config.train.warmup = 1000
        config.train.ema_decay = 0.999

    if variant == "vq-f4":
        config.autoencoder.latent_channels = 3
        config.autoencoder.block_channels = (128, 256, 512)
        config.autoencoder.codebook = 8192
    return config
