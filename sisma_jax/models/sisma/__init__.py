"""SISMA: the model, its configuration and its parts."""
