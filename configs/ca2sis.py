"""CA2-SIS on CelebAMask-HQ at 256 pixels (arXiv 2308.16071): a face from a mask and a style per
class, in one pass of a GAN.

    python -m sisma_jax.prepare --source CelebAMask-HQ --out data/celeba-256 --size 256
    python -m sisma_jax.train --config configs/ca2sis.py \
        --config.loss.perceptual_network=vgg19.safetensors

Model, losses, optimizers and rates are those of the authors' public code: 48.99 M parameters (and
28.24 M of the mapping network), hinge losses at two scales, feature matching, VGG-19's features
(torchvision's weights as safetensors; without a path the run goes on without them), attention loss;
Adam with betas 0 and 0.9, 1e-4 for the generator and 4e-4 for the discriminator, which fall to 0 in
the second half of 100 epochs. The text of the paper could not be read, so what it says beyond the
code is not known. Ours: the average of the weights, left and right labels that are exchanged when
an image is mirrored (data.flip), images that are not cropped, and classes that are kept apart in
the style encoder (model.style_grouping "published" mixes them).

    variant     parameters
    published   77.2 M   as above; `model` has no latents and no first stage
    synthetic    4.6 M   synthetic faces of 64 pixels, for two CPU cores
    64           4.6 M   CelebAMask-HQ at 64 pixels, for two CPU cores (docs/photographs.md)

The second stage trains the mapping network, for faces without a reference, on a finished first one:

    python -m sisma_jax.train --config configs/ca2sis.py:synthetic --workdir runs/ca2sis-random \
        --config.train.init_from=runs/ca2sis-synthetic --config.loss.styles=random

It has not been trained at the published size or run on a GPU, so scores are unknown. By plans of
the compiled step (docs/results.md) a batch of 16 needs 37 GB, and 175,000 steps take at least 8.5
hours on an H200.
"""

from ml_collections import ConfigDict

from sisma_jax.configs import common


def get_config(variant: str = "published") -> ConfigDict:
    if variant not in ("published", "synthetic", "64"):
        raise ValueError("choose 'published', 'synthetic' or '64'")
    config = common.ca2sis()

    if variant == "published":
        common.on_celebamask_hq(config)
        config.train.steps = 175_000  # 100 epochs of 28,000 faces
        config.train.batch_size = 16
        config.train.ema_decay = 0.999

    if variant in ("synthetic", "64"):
        config.model.mask_size = 64
        config.model.grid = 8
        config.model.stem_width = 256
        config.model.widths = (128, 64, 32, 32)
        config.model.heads = 4
        config.model.head_width = 32
        config.model.last_heads = 2
        config.model.last_head_width = 16
        config.model.attention_sizes = (8, 16)
        config.model.style_levels = 3
        config.model.style_features = 64
        config.model.style_colours = True
        config.model.mapping_width = 128
        config.model.remat = "none"
        config.discriminator.channels = 32
        config.loss.reconstruction = 10.0
        config.train.learning_rate = 5e-4
        config.discriminator.learning_rate = 5e-4
        config.train.steps = 6000
        config.train.ema_decay = 0.998

    if variant == "64":
        common.on_small_photographs(config, 64)
        config.train.log_every = 50
        config.train.sample_every = 2000
        config.checkpoint.every = 500
    return config
