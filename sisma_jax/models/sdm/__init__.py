"""SDM, the diffusion model that SISMA is compared with."""
