"""Images from masks and styles: the synthesizer, styles of references, editing."""
