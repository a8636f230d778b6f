"""What relates noise to data: rectified flow and diffusion, with their solvers."""
