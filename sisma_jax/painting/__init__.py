"""The painting page: paint masks and generate faces from them (`python -m sisma_jax.paint`).

starts     masks to start a painting from
studio     functions behind the page: faces, edited photos, files
canvas     label maps in the form of the page's canvas
look       texts and style
easel.js   the canvas with its brushes; page.css, the style
limits     limits of visitors' requests
temporary  files that visitors upload and download
gate       limits of HTTP requests
accounts   users and passwords
handlers   event handlers of the page
style_panel  the page's part for references, for models with style conditioning
app        the page: layout and connections to handlers

Only `handlers`, `style_panel` and `app` import gradio, and only `gate` imports Starlette; only
`paint` imports those.
"""
