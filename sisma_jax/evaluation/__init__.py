"""Evaluation of trained models: make pictures, score and report them (`sisma_jax.evaluate`).

splits        the splits of a data set, opened
pictures      sets of pictures: a split, reconstructions, a folder
generation    faces for every mask, one file each, resumed file by file
noisy_masks, robustness  faces of masks with noise, scored against the clean masks
judges        networks that measure pictures, and a cache of their measurements
scoring       the rows of the table
foreign       pictures of any origin, paired by name
nearest       the training pictures closest to samples
tables, report  the numbers as JSON, Markdown and HTML
"""
