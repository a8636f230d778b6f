"""The first-stage autoencoder, which defines SISMA's latents.

    python -m sisma_jax.train_autoencoder --config configs/autoencoder.py --workdir runs/autoencoder

Variants: "" (factor 4 for synthetic faces of 64 pixels, about a minute on two CPU cores), "long"
(the same in eight minutes, for `configs/synthetic.py:long`), "parts" (as "long", but more accurate
in eyes, brows and lips and less elsewhere, for styles), "vq" (as "" with 3 channels and a codebook
of 512 entries, equally good after four minutes) and, on CelebAMask-HQ at 256 pixels from scratch,
"celeba" (Stable Diffusion's architecture, factor 8) and "vq-f4" (latent diffusion's with a
codebook, the first stage of SCA-DM). The last two have not been trained yet and are alternatives to
the published weights.
"""

from ml_collections import ConfigDict

from sisma_jax.configs import common


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "long", "parts", "vq", "celeba", "vq-f4"):
        raise ValueError("choose 'long', 'parts', 'vq', 'celeba' or 'vq-f4', or no variant")
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
