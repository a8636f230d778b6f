"""The panel of references, whose style new faces take, for models with style conditioning.

A visitor's state is the references, and the index of the chosen one: the last that was added until
another is clicked.
"""

import dataclasses
from types import SimpleNamespace
from typing import Any

import gradio as gr

from sisma_jax.common.errors import InputError
from sisma_jax.models.generators import generator
from sisma_jax.painting import limits, look
from sisma_jax.painting.handlers import Handlers, Made, chosen_face, show_errors, viewed, with_face
from sisma_jax.painting.starts import Subject
from sisma_jax.painting.studio import Reference, Studio, between_two
from sisma_jax.synthesis.references import without_one

References = tuple[Reference, ...]


def lay_out(studio: Studio, references: References) -> SimpleNamespace:
    """Lay out the panel's parts, most of which appear with the first reference.

    `references` are those that the page opens with, none or one of all parts.
    """
    some, classes = bool(references), studio.classes
    one_pass = generator(studio.synthesizer.config).one_pass
    small = {"size": "sm", "min_width": 80}
    slider = {"buttons": [], "min_width": 160}
    with gr.Accordion("Style", elem_id="style"):
        with gr.Row(equal_height=True):
            sheet = gr.Button("Take the mask's own face", elem_id="style-sheet", **small)
            made = gr.Button("Take the chosen face", elem_id="style-made", **small)
            upload = gr.UploadButton("Upload a reference", elem_id="style-upload", **small)
        gallery = gr.Gallery(
            pictures(references), selected_index=0 if some else None,
            columns=limits.MOST_REFERENCES, allow_preview=False, show_label=False, container=False,
            format="png", buttons=[], fit_columns=False, visible=some, elem_id="references",
        )  # fmt: skip
        parts = gr.Dropdown(
            list(zip(look.spoken(classes.names), classes.names, strict=True)), multiselect=True,
            label="Parts", info="of the chosen reference; none: all that it shows",
            buttons=[], visible=some, elem_id="parts",
        )  # fmt: skip
        with gr.Row():
            between = gr.Slider(
                0, 1, 0.5, step=0.05, label="Between", info="0: the first, 1: the second",
                visible=False, elem_id="between", **slider,
            )  # fmt: skip
            guidance = gr.Slider(
                0, limits.MOST_STYLE_GUIDANCE, 1, step=0.1, label="Style guidance",
                info="1: the plain model",
                interactive=some, visible=not one_pass, elem_id="style-guidance", **slider,
            )  # fmt: skip
        first = look.REFERENCES_GIVE_ALL if some else no_reference(studio)
        note = gr.Markdown(first, elem_id="style-note")
        with gr.Row():
            remove = gr.Button(
                "Remove the chosen one", visible=some, elem_id="remove-reference", **small
            )
            clear = gr.Button("No style", elem_id="no-style", **small)
    return SimpleNamespace(
        references=gr.State(references), chosen=gr.State(0), sheet=sheet, made=made, upload=upload,
        gallery=gallery, parts=parts, between=between, guidance=guidance, note=note, remove=remove,
        clear=clear,
    )  # fmt: skip


def no_reference(studio: Studio) -> str:
    """The note without references."""
    return look.no_reference(draws_styles=studio.draws_styles)


def pictures(references: References) -> list[tuple[Any, str]]:
    """The gallery of references: pictures with captions."""
    return [(viewed(reference.image), look.caption(reference.parts)) for reference in references]


def connect(
    handlers: Handlers,
    desk: SimpleNamespace,
    faces: SimpleNamespace,
    panel: SimpleNamespace,
    read: dict[str, Any],
) -> None:
    """Connect the panel's parts to their handlers; making faces reads the panel by itself.

    `read` holds the queue options of events that decode uploads.
    """
    own = StyleHandlers(handlers)
    shown = {
        "outputs": [panel.references, panel.chosen, panel.gallery, panel.parts, panel.between,
            panel.guidance, panel.note, panel.remove],
        "show_progress": "hidden",
    }  # fmt: skip
    panel.sheet.click(own.add_sheet, [panel.references, desk.easel, desk.sheet], **shown)
    panel.made.click(own.add_made, [panel.references, desk.easel, faces.made], **shown)
    panel.upload.upload(own.upload, [panel.references, desk.easel, panel.upload], **shown, **read)
    panel.remove.click(own.remove, [panel.references, desk.easel, panel.chosen], **shown)
    panel.clear.click(own.clear, None, **shown)
    for button in (faces.make, faces.other):
        button.click(own.note, [panel.references, desk.easel], panel.note, show_progress="hidden")
    panel.gallery.select(own.choose, panel.references, [panel.chosen, panel.parts])
    panel.parts.input(
        own.use_parts, [panel.references, desk.easel, panel.chosen, panel.parts], **shown
    )


class StyleHandlers:
    """Event handlers of the panel.

    Most return: references, number of the chosen one, gallery, parts, between, guidance, note, and
    the button that removes one.
    """

    def __init__(self, handlers: Handlers):
        self.handlers, self.studio = handlers, handlers.studio

    def show(self, references: References, chosen: int, note: str) -> tuple:
        some = bool(references)
        gallery = gr.Gallery(
            pictures(references),
            selected_index=chosen if some else None,
            visible=some,
        )
        parts = gr.Dropdown(value=list(references[chosen].parts) if some else [], visible=some)
        between = gr.Slider(visible=between_two(references))
        guidance = gr.Slider(interactive=some)
        remove = gr.Button(visible=some)
        return references, chosen, gallery, parts, between, guidance, note, remove

    @show_errors
    def note(self, references: References, easel: Any) -> str:
        """The note on the references for the painting."""
        if not references:
            return no_reference(self.studio)
        labels = self.handlers.labels(easel)
        instead = without_one(self.studio.synthesizer)
        return look.not_given(self.studio.not_given(references, labels), instead)

    def add(self, references: References, easel: Any, subject: Subject, how: str = "") -> tuple:
        if len(references) == limits.MOST_REFERENCES:
            raise InputError(
                f"there are {limits.MOST_REFERENCES} references, the most that are allowed: remove "
                "one first"
            )
        references = (*references, Reference(subject.photo, subject.labels))
        note = f"{how} {self.note(references, easel)}".strip()
        return self.show(references, len(references) - 1, note)

    @show_errors
    def add_sheet(self, references: References, easel: Any, sheet: Subject) -> tuple:
        return self.add(references, easel, with_face(sheet))

    @show_errors
    def add_made(self, references: References, easel: Any, made: Made) -> tuple:
        return self.add(references, easel, chosen_face(made))

    @show_errors
    def upload(self, references: References, easel: Any, path: str | None) -> tuple:
        photo = self.studio.read_photo(self.handlers.files.uploaded(path))
        if self.studio.parser is None:
            subject, how = Subject(self.handlers.labels(easel), photo), look.PAINTED_REFERENCE
        else:
            subject, how = Subject(self.studio.find_mask(photo), photo), look.FOUND_REFERENCE
        return self.add(references, easel, subject, how)

    @show_errors
    def choose(self, references: References, event: gr.SelectData) -> tuple:
        """-> number of the chosen one, parts"""
        chosen = limits.place("reference", event.index, len(references))
        return chosen, list(references[chosen].parts)

    @show_errors
    def use_parts(self, references: References, easel: Any, chosen: int, parts: list[str]) -> tuple:
        limits.place("reference", chosen, len(references))
        changed = dataclasses.replace(references[chosen], parts=tuple(parts))
        references = (*references[:chosen], changed, *references[chosen + 1 :])
        return self.show(references, chosen, self.note(references, easel))

    @show_errors
    def remove(self, references: References, easel: Any, chosen: int) -> tuple:
        left = (*references[:chosen], *references[chosen + 1 :])
        return self.show(left, max(len(left) - 1, 0), self.note(left, easel))

    def clear(self) -> tuple:
        return self.show((), 0, no_reference(self.studio))
