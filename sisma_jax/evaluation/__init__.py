"""What a trained model is measured to do: pictures made, scored, reported (`sisma_jax.evaluate`).

pictures      sets of pictures: a split, reconstructions, a folder
generation    faces for every mask, one file each, resumed file by file
judges        networks that look at pictures, and what they measured, kept by what it is of
scoring       the rows of the table
foreign       pictures of any origin, paired by name
nearest       the training pictures closest to samples
tables, report  the numbers as JSON, Markdown and HTML
"""
