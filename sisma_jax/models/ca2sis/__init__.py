"""CA2-SIS, a GAN that draws a face in one pass from a mask and styles."""
