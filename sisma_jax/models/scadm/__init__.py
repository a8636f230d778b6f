"""SCA-DM, a diffusion model with styles."""
