"""The panel of another mask, whose shapes parts of the painting take when faces are made.

A visitor's state is the other mask, or None. The painting stays as it is.
"""

from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np

from sisma_jax.data.classes import ClassSet
from sisma_jax.painting import canvas, look
from sisma_jax.painting.handlers import Handlers, show_errors

_SIDE = 96
"""Least side in pixels at which the other mask is shown."""


def lay_out(classes: ClassSet) -> SimpleNamespace:
    """Lay out the panel's parts, most of which appear with the other mask."""
    small = {"size": "sm", "min_width": 80}
    with gr.Accordion("Shapes of another mask", open=False, elem_id="shapes"):
        with gr.Row(equal_height=True):
            painted = gr.Button("Take the painting", elem_id="shape-painted", **small)
            upload = gr.UploadButton("Upload another mask", elem_id="shape-upload", **small)
            clear = gr.Button("No other mask", elem_id="no-shape", **small)
        with gr.Row():
            picture = gr.Image(
                interactive=False, format="png", buttons=[], show_label=False, visible=False,
                height=_SIDE + 16, min_width=120, elem_id="shape-mask",
            )  # fmt: skip
            parts = gr.Dropdown(
                list(zip(look.spoken(classes.names), classes.names, strict=True)),
                multiselect=True, label="Parts", info="that take its shapes; none: all",
                buttons=[], visible=False, min_width=160, elem_id="shape-parts",
            )  # fmt: skip
            share = gr.Slider(
                0, 1, 1, step=0.05, label="Share", info="0: as painted, 1: as in the other mask",
                buttons=[], visible=False, min_width=160, elem_id="shape-share",
            )  # fmt: skip
        note = gr.Markdown(look.NO_SHAPE, elem_id="shape-note")
    return SimpleNamespace(
        other=gr.State(None), painted=painted, upload=upload, clear=clear, picture=picture,
        parts=parts, share=share, note=note,
    )  # fmt: skip


def connect(
    handlers: Handlers, desk: SimpleNamespace, panel: SimpleNamespace, read: dict[str, Any]
) -> None:
    """Connect the panel's parts to their handlers; making and editing read the panel by themselves.

    `read` holds the queue options of events that decode uploads.
    """
    own = ShapeHandlers(handlers)
    shown = {
        "outputs": [panel.other, panel.picture, panel.parts, panel.share, panel.note],
        "show_progress": "hidden",
    }  # fmt: skip
    panel.painted.click(own.take_painted, desk.easel, **shown)
    panel.upload.upload(own.upload_other, panel.upload, **shown, **read)
    panel.clear.click(own.clear_other, None, **shown)


class ShapeHandlers:
    """Event handlers of the panel; they return: other mask, its picture, parts, share, note."""

    def __init__(self, handlers: Handlers):
        self.handlers, self.studio = handlers, handlers.studio

    def show(self, other: np.ndarray | None) -> tuple:
        some = other is not None
        picture = canvas.thumbnail(other, self.studio.classes, _SIDE) if some else None
        return (
            other,
            gr.Image(picture, visible=some),
            gr.Dropdown(visible=some),
            gr.Slider(visible=some),
            look.shapes_taken(repaired=not self.studio.soft_masks) if some else look.NO_SHAPE,
        )

    @show_errors
    def take_painted(self, easel: Any) -> tuple:
        return self.show(self.handlers.labels(easel))

    @show_errors
    def upload_other(self, path: str | None) -> tuple:
        return self.show(self.studio.read_mask(self.handlers.files.uploaded(path)))

    def clear_other(self) -> tuple:
        return self.show(None)
