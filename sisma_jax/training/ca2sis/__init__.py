"""The training of CA2-SIS."""
