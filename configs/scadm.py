"""SCA-DM on CelebAMask-HQ at 256 pixels (arXiv 2403.12743): faces by mask and reference style.

    python -m sisma_jax.prepare --source CelebAMask-HQ --out data/celeba-256 --size 256
    python -m sisma_jax.train --config configs/scadm.py --config.autoencoder.path=vq-f4.safetensors

Model, noise and optimizer are those of the paper's published code: LDM's U-Net with SPADE in middle
and decoder, mask-conditioned cross-attention to style tokens, 486.9 M parameters and 18.1 M of the
style encoder; latents of VQ-f4, 64 x 64 x 3; batches of 48 at 9.6e-5, average 0.9999. Published
scores: FID 16.85, SSIM 0.54, mIoU 81.78, accuracy 94.67 in the style of the face itself. Samples
are DDIM's: samples.solver "euler" is that, of 50 to 200 steps.

The first stage is latent diffusion's VQ-f4, as safetensors in CompVis' or diffusers' names
(docs/autoencoder.md), or one trained by configs/autoencoder.py:vq-f4.

    variant     parameters
    published        505 M   the above
    synthetic        6.1 M   on synthetic faces of 64 pixels, for two CPU cores, after
        python -m sisma_jax.train_autoencoder --config configs/autoencoder.py:vq \
            --workdir runs/autoencoder-vq

Not trained at the published size, and not run on a GPU: hours, memory and scores are not known.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "published") -> ConfigDict:
    if variant not in ("published", "synthetic"):
        raise ValueError("choose 'published' or 'synthetic'")
    small = variant == "synthetic"
    config = ConfigDict()
    config.seed = 0

    # Data
    config.data = ConfigDict()
    config.data.path = "data/synthetic" if small else "data/celeba-256"
    config.data.size = 64 if small else 256
    config.data.synthetic_count = 4096 if small else 0
    config.data.test_from = 3584 if small else 28000
    config.data.flip = True
    config.data.threads = 1 if small else 16

    # First stage with factor 4: 256 x 256 pixels <-> 64 x 64 x 3 latents. Styles are taken from
    # images, so the latents cannot be cached.
    config.autoencoder = ConfigDict()
    config.autoencoder.path = "runs/autoencoder-vq" if small else "vq-f4.safetensors"
    config.autoencoder.scaling_factor = 0.0  # of the weights; 1 for VQ-f4
    config.autoencoder.dtype = ""  # of the weights
    config.autoencoder.cache = ""

    # Model
    config.model = ConfigDict()
    config.model.kind = "scadm"
    config.model.latent_size = 16 if small else 64
    config.model.latent_channels = 3
    config.model.factor = 4
    config.model.num_classes = 19
    config.model.channels = 64 if small else 224
    config.model.multipliers = (1, 2) if small else (1, 2, 3, 4)
    config.model.blocks = 1 if small else 2
    config.model.attention_sizes = (8,) if small else (32, 16, 8)
    config.model.head_width = 32
    config.model.spade_hidden = 32 if small else 128
    config.model.norm_groups = 16 if small else 32
    config.model.mask_attention = True  # False: a pixel sees every class, the paper's ablation
    config.model.style_channels = 4
    config.model.style_levels = 3 if small else 5
    config.model.style_features = 32 if small else 256
    config.model.style_colours = small  # ours, for so short a training
    config.model.dtype = "float32" if small else "bfloat16"

    # Diffusion: times are uniform, masks are never dropped
    config.flow = ConfigDict()
    config.flow.sampling = "uniform"
    config.flow.drop = 0.0
    config.flow.class_balance = 0.0  # above 0 small classes count for more than their area
    config.flow.style_drop = 0.5
    config.flow.style_class_drop = (
        0.1 if small else 0.0
    )  # published: none; some, for partial styles

    # Training
    config.train = ConfigDict()
    config.train.steps = 1000 if small else 290_000  # 500 epochs of 28,000 faces
    config.train.batch_size = 8 if small else 48
    config.train.accumulate = 1
    config.train.optimizer = "adamw"
    config.train.learning_rate = 2e-3 if small else 9.6e-5
    config.train.warmup = 50 if small else 0
    config.train.schedule = "cosine" if small else "constant"
    config.train.weight_decay = 0.0 if small else 0.01
    config.train.clip = 1.0
    config.train.ema_decay = 0.95 if small else 0.9999
    config.train.init_from = ""
    config.train.skip_limit = 10
    config.train.log_every = 20 if small else 100
    config.train.sample_every = 500 if small else 5000
    config.train.profile_at = 0  # a step; 0 for no trace
    config.train.profile_steps = 5

    config.samples = ConfigDict()
    config.samples.masks = 8
    config.samples.per_mask = 2
    config.samples.steps = 25 if small else 50
    config.samples.solver = "euler"  # DDIM's
    config.samples.guidance = 1.0

    # Loss on the test split by parts of the training time, of the averaged weights
    config.evaluation = ConfigDict()
    config.evaluation.every = 250 if small else 5000
    config.evaluation.items = 64 if small else 512
    config.evaluation.bins = 5
    config.evaluation.hook = ""  # "module:function" for further metrics

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 250 if small else 5000
    config.checkpoint.keep = 2 if small else 3
    config.checkpoint.keep_every = 0 if small else 50_000  # these stay for good

    # Devices: -1 takes what the other axis leaves
    config.mesh = ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    return config
