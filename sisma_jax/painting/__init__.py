"""A page to paint masks on and see their faces (`python -m sisma_jax.paint`).

starts     masks to begin with
studio     what the page does: faces, edited photos, files
canvas     label maps as the page's canvas has them
look       what it calls things
easel.js   the canvas with its brushes; page.css, the style
limits     what visitors may ask for
temporary  files that visitors upload and download
gate       what the network may send
accounts   who may use the page
handlers   what happens when a part of the page is used
style_panel  the page's part for references, where the model takes a style
app        the page: its parts, where they stand, what each of them calls

Only `handlers`, `style_panel` and `app` import gradio, and only `gate` what it stands on; only
`paint` imports those.
"""
