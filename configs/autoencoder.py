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


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "long", "parts", "vq", "celeba", "vq-f4"):
        raise ValueError("choose 'long', 'parts', 'vq', 'celeba' or 'vq-f4', or no variant")
    vq, vq_f4, parts = (variant == name for name in ("vq", "vq-f4", "parts"))
    long = parts or variant == "long"
    celeba = variant in ("celeba", "vq-f4")
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
    config.autoencoder = ConfigDict()
    config.autoencoder.image_channels = 3
    config.autoencoder.latent_channels = 3 if vq or vq_f4 else 4
    config.autoencoder.block_channels = (
        (128, 256, 512) if vq_f4 else (128, 256, 512, 512) if celeba else (64,)
    )
    config.autoencoder.layers_per_block = 2 if celeba else 1
    config.autoencoder.codebook = 8192 if vq_f4 else 512 if vq else 0
    config.autoencoder.norm_groups = 32 if celeba else 8
    config.autoencoder.mid_attention = celeba
    config.autoencoder.fold = 1 if celeba else 4
    config.autoencoder.linear_skip = not celeba
    config.autoencoder.scaling_factor = 1.0  # measured on the latents after training
    config.autoencoder.dtype = "bfloat16" if celeba else "float32"

    # Loss
    config.loss = ConfigDict()
    config.loss.kl_weight = 1e-4 if celeba else 5e-3  # without a codebook
    config.loss.commitment = 0.25  # with one
    config.loss.class_balance = 0.6 if parts else 0.0  # small classes weigh more than their area

    # Training
    config.train = ConfigDict()
    config.train.steps = 200_000 if celeba else 4000 if long else 1000 if vq else 360
    config.train.batch_size = 32 if celeba else 8
    config.train.accumulate = 1
    config.train.optimizer = "adamw" if celeba else "muon"
    config.train.learning_rate = 1e-4 if celeba else 1e-2
    config.train.warmup = 1000 if celeba else 25
    config.train.schedule = "cosine"
    config.train.weight_decay = 0.0
    config.train.clip = 1.0
    config.train.ema_decay = 0.999 if celeba else 0.9
    config.train.init_from = ""
    config.train.skip_limit = 10
    config.train.log_every = 100 if celeba else 50
    config.train.sample_every = 5000 if celeba else 2000 if long else 1000 if vq else 360
    config.train.profile_at = 0  # first traced step; 0 for no trace
    config.train.profile_steps = 5

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 5000 if celeba else 1000 if long else 500 if vq else 180
    config.checkpoint.keep = 2
    config.checkpoint.keep_every = 0

    # Devices; -1 takes those that the other axis leaves
    config.mesh = ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    return config
