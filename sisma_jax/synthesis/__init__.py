"""From masks and styles to images: synthesis, styles of references, editing."""
