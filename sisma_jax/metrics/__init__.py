"""What pictures and masks are scored by."""

from sisma_jax.metrics.image_quality import psnr, ssim

__all__ = ["psnr", "ssim"]
