"""SCA-DM on CelebAMask-HQ at 256 pixels (arXiv 2403.12743): faces from mask and reference style.

    python -m sisma_jax.prepare --source CelebAMask-HQ --out data/celeba-256 --size 256
    python -m sisma_jax.cache_latents --data data/celeba-256 --images \
        --autoencoder vq-f4.safetensors --out data/celeba-256-latents
    python -m sisma_jax.train --config configs/scadm.py \
        --config.autoencoder.path=vq-f4.safetensors \
        --config.autoencoder.cache=data/celeba-256-latents

Model, noise and optimizer are those of the paper's published code: LDM's U-Net with SPADE in middle
and decoder and mask-conditioned cross-attention to style tokens, 486.9 M parameters and 18.1 M in
the style encoder; latents of VQ-f4, 64 x 64 x 3; batches of 48, learning rate 9.6e-5, EMA decay
0.9999. Published scores in the style of the face itself: FID 16.85, SSIM 0.54, mIoU 81.78, accuracy
94.67. Sampling is DDIM, samples.solver "euler", with 50 to 200 steps. The small variants predict
the velocity, on a schedule with zero terminal SNR (docs/styles.md).

The first stage is latent diffusion's VQ-f4, as safetensors in CompVis' or diffusers' naming
(docs/autoencoder.md), or trained by configs/autoencoder.py:vq-f4.

    variant     parameters
    published        505 M   as above
    synthetic        6.1 M   synthetic faces of 64 pixels, for two CPU cores, after
        python -m sisma_jax.train_autoencoder --config configs/autoencoder.py:vq \
            --workdir runs/autoencoder-vq
    64              6.1 M   CelebAMask-HQ at 64 pixels, for two CPU cores (docs/photographs.md),
        with the first stage of configs/celeba.py:64

It has not been trained at the published size or run on a GPU, so hours, memory and scores are
unknown.
"""

from ml_collections import ConfigDict

from sisma_jax.configs import common


def get_config(variant: str = "published") -> ConfigDict:
    if variant not in ("published", "synthetic", "64"):
        raise ValueError("choose 'published', 'synthetic' or '64'")
    config = common.scadm()
    config.model.latent_channels = 3
    config.flow.sampling = "uniform"
    config.flow.drop = 0.0  # masks are never dropped
    config.samples.per_mask = 2

    if variant != "published":
        # Short trainings do not learn the noise of the noisiest steps well enough to hold colours.
        config.flow.prediction = "velocity"
        config.flow.zero_terminal_snr = True

    if variant == "published":
        common.generator_on_celebamask_hq(config)

        # First stage with factor 4: 256 x 256 pixels <-> 64 x 64 x 3 latents with a scaling factor
        # of 1
        config.autoencoder.path = "vq-f4.safetensors"

        config.model.latent_size = 64
        config.model.channels = 224
        config.model.multipliers = (1, 2, 3, 4)
        config.model.blocks = 2
        config.model.attention_sizes = (32, 16, 8)
        config.model.spade_hidden = 128
        config.model.norm_groups = 32
        config.model.style_levels = 5
        config.model.style_features = 256
        config.model.style_colours = False  # as published
        config.flow.style_class_drop = 0.0  # as published

        config.train.steps = 290_000  # 500 epochs of 28,000 faces
        config.train.batch_size = 48
        config.train.learning_rate = 9.6e-5
        config.train.warmup = 0
        config.train.weight_decay = 0.01
        config.samples.steps = 50

    if variant == "synthetic":
        config.autoencoder.path = "runs/autoencoder-vq"
        config.train.steps = 3000
        config.train.ema_decay = 0.95
        config.train.log_every = 20
        config.train.sample_every = 1000
        config.evaluation.every = 500
        config.checkpoint.every = 500

    if variant == "64":
        common.generator_on_small_photographs(config, 64)
        config.samples.guidance = 1.0  # masks are never dropped
        config.train.optimizer = "adamw"
        config.train.learning_rate = 2e-3
        config.train.ema_decay = 0.998
        config.train.steps = 12_000
    return config
