"""The defaults of all configs, and every key's comment.

    from sisma_jax.configs import common

    config = common.sisma()         # or scadm, ca2sis, autoencoder, parser
    common.on_celebamask_hq(config)
    config.model.width = 768        # what differs

The defaults describe short trainings on synthetic faces of 64 pixels, which take minutes on two CPU
cores. `on_celebamask_hq` and `generator_on_celebamask_hq` apply the changes that all long trainings
on photographs share, `on_small_photographs` and `generator_on_small_photographs` those of trainings
on photographs of 64 or 128 pixels. A config file states what differs from them, and last, in `if`
blocks, what its variants change.
"""

from ml_collections import ConfigDict

from sisma_jax.synthesis.options import SamplingOptions


def sisma() -> ConfigDict:
    """Defaults of SISMA."""
    config = _generator()
    config.model.patch = 1  # side, in latent pixels, of a token
    config.model.width = 96  # channels of a token
    config.model.depth = 4  # number of blocks
    config.model.mixer = "mamba"  # or "attention", the twin for comparison, which has no scan
    config.model.attention_head = 32  # channels per head of an attention
    config.model.modulation = "gate"  # or "shift", the literal reading of the paper's figure
    config.model.state = 8  # state size per channel of the scan
    config.model.expand = 2  # ratio of scanned channels to width
    config.model.orders = 1  # scan orders per layer: 1, 2 or 4
    config.model.ff_ratio = 4  # ratio of the feed-forward network's hidden channels to width
    config.model.mask_channels = 32  # of the mask encoder's first convolution
    config.model.remat = "none"  # "names", "dots" and "block" recompute more and keep less
    config.model.scan = "auto"  # implementation of the selective scan; "auto": the best one here
    return config


def add_style(config: ConfigDict) -> None:
    """Add to a config of SISMA the keys for the style of reference faces."""
    config.model.style = "attention"  # or "full_attention", not conditioned on the mask, or "mamba"
    _add_style_encoder(config)


def scadm() -> ConfigDict:
    """Defaults of SCA-DM."""
    config = _generator()
    config.model.kind = "scadm"  # without this key the model is SISMA
    config.model.channels = 64  # at the finest resolution
    config.model.multipliers = (1, 2)  # channels of each resolution over `channels`, finest first
    config.model.blocks = 1  # residual blocks per resolution of the encoder
    config.model.attention_sizes = (8,)  # sides, in latent pixels, of resolutions with attention
    config.model.head_width = 32  # channels per head of the attention
    config.model.spade_hidden = 32  # hidden channels of a SPADE layer
    config.model.norm_groups = 16  # groups of the normalisations
    config.model.mask_attention = True  # False: the paper's ablation, attention to all classes
    config.flow.prediction = "noise"  # or "velocity", that of Salimans and Ho (arXiv 2202.00512)
    config.flow.zero_terminal_snr = False  # True: the last step is noise alone (arXiv 2305.08891)
    _add_style_encoder(config)
    config.model.style_grouping = "separate"  # "published": mix classes as the published code does
    return config


def ca2sis() -> ConfigDict:
    """Defaults of CA2-SIS, those published for 256 pixels."""
    config = _training()
    config.train.optimizer = "adamw"  # Adam, since there is no weight decay
    config.train.betas = (0.0, 0.9)  # of the generator and the discriminator
    config.train.learning_rate = 1e-4  # of the generator
    config.train.warmup = 0  # none, as published
    config.train.schedule = "linear"  # to 0 in the second half
    config.train.clip = float("inf")  # no limit, as published

    config.model = ConfigDict()
    config.model.kind = "ca2sis"  # without this key the model is SISMA
    config.model.num_classes = 19  # of the label maps
    config.model.draw_background = False  # whether class 0 has a mask code, too
    config.model.mask_size = 128  # side to which masks are reduced
    config.model.grid = 16  # side of the first stage's image; each further stage doubles it
    config.model.stem_width = 512  # channels to which the mask codes of all classes are mapped
    config.model.widths = (256, 128, 64, 32, 32)  # channels of the stages, coarsest first
    config.model.heads = 8  # of the attentions of all stages but the last
    config.model.head_width = 64  # channels per head
    config.model.last_heads = 4  # of the last stage's attention
    config.model.last_head_width = 32  # channels per head of the last stage
    config.model.attention_sizes = (16, 32, 64)  # sides of the stages with self-attention
    config.model.norm_groups = 32  # groups of the normalisations
    config.model.style_channels = 4  # channels per class of the style encoder's first convolution
    config.model.style_levels = 5  # number of resolutions from which it takes features
    config.model.style_features = 256  # features per class and level
    config.model.style_colours = False  # it also reads mean colours; ours, for short trainings
    config.model.style_grouping = "separate"  # "published" mixes classes as the authors' code does
    config.model.noise_width = 16  # numbers from which random styles are made
    config.model.mapping_width = 512  # channels of the network that makes them
    config.model.output_tanh = True  # False for weights published before December 2023
    config.model.remat = "block"  # "none" recomputes nothing and keeps more
    config.model.dtype = "float32"  # of convolutions and attention; or "bfloat16"

    config.discriminator = _discriminator()

    config.loss = ConfigDict()
    config.loss.styles = "own"  # "random" is the second stage, which trains the mapping network
    # Weights of the terms of the generator's loss (sisma_jax/training/adversarial.py)
    config.loss.adversarial = 1.0  # of the discriminator's judgement
    config.loss.feature_matching = 10.0  # of the distance of the discriminator's features
    config.loss.perceptual = 10.0  # of the distance of VGG-19's features
    config.loss.attention = 1.0  # of each class's attention at its own pixels
    config.loss.reconstruction = 0.0  # of the error of the pixels; ours, for short trainings
    config.loss.diversity = 0.0  # of the second stage: draws faces of one mask apart
    config.loss.perceptual_network = ""  # torchvision's VGG-19 as safetensors; "": no such term

    config.samples = ConfigDict()
    config.samples.masks = 8  # of the test split

    config.evaluation = ConfigDict()
    config.evaluation.every = 500  # steps between two evaluations; 0 for none
    config.evaluation.items = 64  # of the test split
    return config


def on_celebamask_hq(config: ConfigDict) -> None:
    """Change a config to CelebAMask-HQ at 256 pixels and to the intervals of a long training."""
    config.data = celebamask_hq()
    config.train.log_every = 100
    config.train.sample_every = 5000
    config.checkpoint.every = 5000


def generator_on_celebamask_hq(config: ConfigDict) -> None:
    """Change a config of SISMA or SCA-DM to a training of days on CelebAMask-HQ at 256 pixels."""
    on_celebamask_hq(config)
    config.model.dtype = "bfloat16"
    config.train.optimizer = "adamw"
    config.train.schedule = "constant"
    config.train.ema_decay = 0.9999
    config.evaluation.every = 5000
    config.evaluation.items = 512
    config.checkpoint.keep = 3
    config.checkpoint.keep_every = 50_000


def on_small_photographs(config: ConfigDict, size: int) -> None:
    """Change a config to CelebAMask-HQ at 64 or 128 pixels, for two CPU cores."""
    config.data = celebamask_hq(size)
    config.data.threads = 1


def generator_on_small_photographs(config: ConfigDict, size: int) -> None:
    """Change a config of SISMA or SCA-DM to CelebAMask-HQ at 64 or 128 pixels, and to the intervals
    of a training of hours on two CPU cores."""
    on_small_photographs(config, size)
    config.autoencoder.path = f"runs/autoencoder-celeba-{size}"
    config.model.latent_size = size // 4
    config.model.latent_channels = 8
    config.train.warmup = 100
    config.train.log_every = 50
    config.train.sample_every = 2000
    config.evaluation.every = 1000
    config.evaluation.items = 256
    config.checkpoint.every = 500
    config.samples.steps = 12
    config.samples.guidance = 1.5


def autoencoder() -> ConfigDict:
    """Defaults of the first-stage autoencoder."""
    config = _training()

    # The model, whose down-sampling factor is fold x 2^(resolutions - 1)
    config.autoencoder = ConfigDict()
    config.autoencoder.image_channels = 3  # red, green and blue
    config.autoencoder.latent_channels = 4  # of a latent pixel
    config.autoencoder.block_channels = (64,)  # at each resolution, finest first
    config.autoencoder.layers_per_block = 1  # residual blocks per resolution of the encoder
    config.autoencoder.codebook = 0  # number of entries; 0: a diagonal Gaussian per latent instead
    config.autoencoder.norm_groups = 8  # groups of the normalisations
    config.autoencoder.mid_attention = False  # self-attention at the coarsest resolution
    config.autoencoder.fold = 4  # side of the pixel patches that are folded into channels
    config.autoencoder.linear_skip = True  # linear maps parallel to encoder and decoder
    config.autoencoder.scaling_factor = 1.0  # measured on the latents after training
    config.autoencoder.dtype = "float32"  # of convolutions and attention; or "bfloat16"

    config.loss = ConfigDict()
    config.loss.kl_weight = 5e-3  # of the posterior's KL divergence; without a codebook
    config.loss.commitment = 0.25  # weight of the distance to codebook entries; with a codebook
    config.loss.class_balance = 0.0  # above 0, small classes weigh more than their area
    config.loss.perceptual_weight = 0.0  # of the distance of VGG-16's features; 0: not computed
    config.loss.perceptual_network = ""  # torchvision's VGG-16 as safetensors
    config.loss.perceptual_linear = ""  # LPIPS' weights of the channels; "": all weigh alike
    config.loss.perceptual_levels = 5  # number of VGG-16's levels that are compared, finest first
    config.loss.adversarial_weight = 0.0  # of a loss against a discriminator; 0: there is none

    config.discriminator = _discriminator()
    config.discriminator.scales = 1  # latent diffusion has one scale
    return config


def parser() -> ConfigDict:
    """Defaults of the face parser."""
    config = _training()

    config.parser = ConfigDict()
    config.parser.num_classes = 19  # of the label maps
    config.parser.channels = (16, 32, 64, 128)  # at each resolution, finest first
    config.parser.norm = "group"  # "affine" is for published weights only
    config.parser.norm_groups = 8  # groups of the normalisations
    config.parser.dtype = "float32"  # of convolutions; or "bfloat16"

    config.loss = ConfigDict()
    config.loss.dice_weight = 1.0  # of the Dice loss beside the cross-entropy
    config.loss.class_balance = 0.0  # above 0, small classes weigh more than their area

    # The largest random changes of training pictures; 0 for none
    config.augment = ConfigDict()
    config.augment.turn = 0.0  # degrees
    config.augment.zoom = 0.0  # 0.25: scales from 1 / 1.25 to 1.25
    config.augment.shift = 0.0  # share of the picture's side
    config.augment.brightness = 0.0  # share of the range from black to white
    config.augment.contrast = 0.0  # change of the factor of distances from the picture's mean
    config.augment.saturation = 0.0  # change of the factor of distances from grey
    return config


def synthetic_faces() -> ConfigDict:
    """The section `data` of the small set of synthetic faces."""
    data = ConfigDict()
    data.path = "data/synthetic"  # a raw folder, or a prepared one (sisma_jax.prepare)
    data.size = 64  # side of images and label maps in pixels
    data.synthetic_count = 4096  # faces to write if there are none at `path`; 0: never write any
    data.test_from = 3584  # in a raw folder, ids from here on are test data
    # "exchange": half of the training images are mirrored, with left and right labels exchanged;
    # "plain": mirrored, with these labels left as they are; "none": not mirrored.
    data.flip = "exchange"  # or "plain" or "none"
    data.threads = 1  # number of threads that read ahead
    return data


def long_synthetic_faces() -> ConfigDict:
    """The section `data` of the larger set of synthetic faces, of the variants "long"."""
    data = synthetic_faces()
    data.path = "data/synthetic-long"
    data.synthetic_count = 15360
    data.test_from = 14848
    return data


def celebamask_hq(size: int = 256) -> ConfigDict:
    """The section `data` of CelebAMask-HQ, prepared at `size` pixels."""
    data = synthetic_faces()
    data.path = f"data/celeba-{size}"
    data.size = size
    data.synthetic_count = 0
    data.test_from = 28000
    data.threads = 16
    return data


def _training() -> ConfigDict:
    """The sections that all trainings have."""
    config = ConfigDict()
    config.seed = 0  # of the initial weights, the order of the data and the noise
    config.data = synthetic_faces()

    # A training this short needs Muon, a high learning rate, and a cosine instead of averaging.
    config.train = ConfigDict()
    config.train.steps = 1000  # number of optimizer steps
    config.train.batch_size = 8  # over all devices and hosts
    config.train.accumulate = 1  # number of parts of a batch, computed in turn to save memory
    config.train.optimizer = "muon"  # or "adamw"
    config.train.learning_rate = 1e-2  # after the warm-up
    config.train.warmup = 50  # steps in which the learning rate grows from 0
    # After the warm-up, "cosine" decays to 5 % at the last step, "linear" to 0 in the second half
    config.train.schedule = "cosine"  # or "constant"
    config.train.betas = (0.9, 0.999)  # AdamW's, of the averages of gradients and their squares
    config.train.weight_decay = 0.0  # of matrices only
    config.train.clip = 1.0  # global norm to which larger gradients are clipped
    config.train.ema_decay = 0.9  # of the running average of the weights
    config.train.init_from = ""  # run whose averaged weights are the initial ones; "": random ones
    config.train.skip_limit = 10  # number of steps in a row, not finite, that end the run
    config.train.log_every = 50  # steps between two rows of metrics
    config.train.sample_every = 500  # steps between two grids of samples
    config.train.profile_at = 0  # first traced step; 0 for no trace
    config.train.profile_steps = 5  # number of traced steps

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 250  # steps between two checkpoints
    config.checkpoint.keep = 2  # number of newest checkpoints that are kept
    config.checkpoint.keep_every = 0  # multiples of this are never deleted; 0 for none

    # Devices along each axis; -1 takes those that the other axis leaves.
    config.mesh = ConfigDict()
    config.mesh.data = -1  # divides the batches; the parameters are replicated
    config.mesh.fsdp = 1  # divides the batches, the parameters and the optimizer's state
    return config


def _discriminator() -> ConfigDict:
    """The keys of a discriminator of patches, with CA2-SIS's values."""
    section = ConfigDict()
    section.learning_rate = 4e-4  # with the optimizer and schedule of `train`
    section.channels = 64  # of the first layer; each further one doubles them
    section.layers = 3  # that halve the picture, at each scale
    section.scales = 2  # number of scales, each at half the size of the one before
    return section


def _generator() -> ConfigDict:
    """The sections and keys that SISMA and SCA-DM share."""
    config = _training()

    # The trained autoencoder, here with factor 4: 64 x 64 pixels <-> 16 x 16 x 4 latents
    config.autoencoder = ConfigDict()
    config.autoencoder.path = "runs/autoencoder"  # a run, a weight file or hf://owner/name
    config.autoencoder.scaling_factor = 0.0  # 0: that of the weights
    config.autoencoder.dtype = "auto"  # bfloat16 on a GPU or TPU, float32 on a CPU; or one of them
    config.autoencoder.cache = ""  # output of sisma_jax.cache_latents; "": encode in every step

    config.model = ConfigDict()
    config.model.latent_size = 16  # data.size / factor
    config.model.latent_channels = 4  # of the autoencoder
    config.model.factor = 4  # downsampling factor of the autoencoder
    config.model.num_classes = 19  # of the label maps
    config.model.dtype = "float32"  # of linear maps and convolutions; or "bfloat16"

    config.flow = ConfigDict()
    config.flow.sampling = "logit_normal"  # distribution of training times; or "uniform"
    config.flow.drop = 0.1  # share of masks that are dropped, for guidance
    config.flow.class_balance = 0.0  # above 0, small classes weigh more than their area

    # The grids that are sampled during training
    sampling = SamplingOptions()
    config.samples = ConfigDict()
    config.samples.masks = 8  # of the test split
    config.samples.per_mask = 3  # samples of each mask
    config.samples.steps = sampling.steps  # of the solver
    config.samples.solver = sampling.solver  # "euler" (SCA-DM: DDIM), "midpoint", "heun" or "ab2"
    config.samples.guidance = sampling.guidance  # scale of the guidance by the mask; 1 for none

    # Loss of the averaged weights on the test split, by intervals of training time
    config.evaluation = ConfigDict()
    config.evaluation.every = 250  # steps between two evaluations; 0 for none
    config.evaluation.items = 64  # of the test split
    config.evaluation.bins = 5  # number of intervals
    config.evaluation.hook = ""  # "module:function" for further metrics
    return config


def _add_style_encoder(config: ConfigDict) -> None:
    """Add the keys of the style encoder of SISMA and SCA-DM and of its training."""
    config.model.style_channels = 4  # channels per class of its first convolution
    config.model.style_levels = 3  # number of resolutions from which it takes features
    config.model.style_features = 32  # features per class and level
    config.model.style_colours = True  # it also reads mean colours; ours, for short trainings
    config.flow.style_drop = 0.5  # share of faces whose style is dropped, as in SCA-DM
    config.flow.style_class_drop = 0.1  # share of the others' classes; ours, for partial styles
