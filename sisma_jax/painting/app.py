"""The page: its layout, and the connections to handlers."""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

import gradio as gr
import numpy as np
from starlette.middleware import Middleware

from sisma_jax.common.errors import InputError
from sisma_jax.painting import canvas, limits, look, shape_panel, style_panel
from sisma_jax.painting.gate import Gate
from sisma_jax.painting.handlers import PHOTO_TAB, THUMBNAILS, Handlers, Made, gallery
from sisma_jax.painting.studio import FACES, Studio
from sisma_jax.painting.temporary import TemporaryFiles

IN_TURN = {"concurrency_id": "device", "concurrency_limit": 1}
"""Queue options of events that compute: one at a time."""
LEAST_END = 2
"""Least end of sliders that begin at 1, which gradio wants even if they are hidden."""
READ = {"concurrency_id": "uploads", "concurrency_limit": 1}
"""Queue options of events that decode uploads: one picture in memory at a time."""


@contextmanager
def served(
    page: gr.Blocks,
    files: TemporaryFiles,
    host: str,
    port: int,
    *,
    size: int,
    accounts: Sequence[tuple[str, str]] = (),
) -> Iterator[str]:
    """Serve a page for as long as the context lasts; yields its address.

    Args:
      page: a page by `build`.
      files: the files that it was built with.
      host, port: address to listen on.
      size: side of the page's canvas in pixels.
      accounts: (user, password) of those who may use it; if empty, everyone.

    Raises:
      InputError: if the port has been taken meanwhile.
    """
    gate = Middleware(
        Gate,
        files=files,
        most_upload=limits.MOST_UPLOAD,
        most_message=limits.most_message(size),
    )
    # gradio checks that it can reach itself, which fails through a proxy.
    own = [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "localhost", "127.0.0.1", host]
    os.environ["no_proxy"] = ",".join(filter(None, own))
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            mcp_server=False,
            run_history=False,
            enable_monitoring=False,
            auth=list(accounts) or None,
            max_file_size=limits.MOST_UPLOAD,
            state_session_capacity=limits.MOST_VISITORS,
            app_kwargs={"middleware": [gate]},
            footer_links=[],
            theme=gr.themes.Default(
                primary_hue="indigo", neutral_hue="slate", font=look.FONT, font_mono=look.MONO
            ),
            css=look.STYLE,
        )
    except OSError as error:
        raise InputError(f"port {port} of {host} cannot be used: {error}") from error
    try:
        yield address
    finally:
        page.close(verbose=False)


def build(studio: Studio, files: TemporaryFiles) -> gr.Blocks:
    """Lay out the page, which opens with a mask and faces of it, and connect its parts.

    Args:
      studio: the model, with its masks and its parser.
      files: folder of uploads, shown pictures and downloads.
    """
    handlers = Handlers(studio, files)
    sheet = studio.starts.read(0)
    references = studio.first_references(sheet)
    if studio.draws_styles or references:
        style = studio.style_of(references, 0.5)
        count = min(FACES, handlers.most_faces)
        faces = studio.faces(sheet.labels, studio.options, count=count, seed=0, style=style)
    else:
        faces = np.empty((0, studio.size, studio.size, 3), np.uint8)
    first = Made(faces, sheet.labels, seed=0)
    with gr.Blocks(
        title="Paint a mask, see faces", analytics_enabled=False, fill_width=True
    ) as page:
        gr.HTML(look.title(studio.name, studio.size, studio.classes), elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=11, min_width=480):
                desk = _desk(handlers, sheet)
            with gr.Column(scale=9, min_width=400):
                with gr.Tabs() as tabs:
                    with gr.Tab("New faces", id="faces"):
                        faces = _faces_tab(handlers, first)
                        style = (
                            style_panel.lay_out(studio, references) if studio.has_style else None
                        )
                    with gr.Tab("Edit a photo", id=PHOTO_TAB):
                        photo = _photo_tab(studio)
                shape = shape_panel.lay_out(studio.classes)
                with gr.Row():
                    settings = _settings(handlers)
        # Hidden, but present in the browser: downloads are fetched through it.
        download = gr.DownloadButton(visible="hidden", elem_id="download")

        def downloads(button: gr.Button, handler: Callable, inputs: list) -> None:
            button.click(handler, inputs, download).success(None, js=look.FETCH)

        taken = {
            "outputs": [tabs, photo.subject, photo.before, photo.result, photo.after, desk.sheet,
                desk.easel, photo.note],
            "show_progress_on": photo.before,
        }  # fmt: skip
        _connect_desk(handlers, desk, downloads)
        settings += [shape.other, shape.parts, shape.share]
        _connect_faces(handlers, desk, faces, settings, style, taken, downloads)
        _connect_photo(handlers, desk, photo, settings, style, taken, downloads)
        shape_panel.connect(handlers, desk, shape, READ)
        if style:
            style_panel.connect(handlers, desk, faces, style, READ)
    files.keep_present()
    # An open API would allow calls of handlers outside the queue and its limits.
    return page.queue(max_size=limits.MOST_WAITING, api_open=False)


def _desk(handlers: Handlers, sheet) -> SimpleNamespace:
    """The gallery of starting masks, and the canvas."""
    studio = handlers.studio
    with gr.Row(visible=studio.starts.count > 1, elem_id="starts-row"):
        starts = gr.Gallery(
            handlers.thumbnails(0), columns=THUMBNAILS, rows=1, allow_preview=False,
            show_label=False, container=False, format="png", buttons=[], fit_columns=False,
            elem_id="starts",
        )  # fmt: skip
        more = gr.Button("Others", size="sm", scale=0, min_width=72)
    easel = gr.HTML(
        canvas.packed(sheet.labels), html_template="<div class='easel'></div>",
        js_on_load=look.EASEL, apply_default_css=False, elem_id="easel",
        easel=look.easel(studio.classes, studio.size), photo=None,
    )  # fmt: skip
    with gr.Row():
        upload = gr.UploadButton("Upload mask", size="sm", elem_id="upload-mask")
        download = gr.Button("Download mask", size="sm", elem_id="download-mask")
    return SimpleNamespace(
        sheet=gr.State(sheet), first=gr.State(0), starts=starts, more=more, easel=easel,
        upload=upload, download=download,
    )  # fmt: skip


def _faces_tab(handlers: Handlers, made: Made) -> SimpleNamespace:
    """The faces; without noise there is one, and neither their number nor a seed."""
    several = handlers.most_faces > 1
    make = gr.Button("Make faces", variant="primary", elem_id="make")
    shown = gr.Gallery(
        **gallery(made), allow_preview=False, show_label=False, container=False, format="png",
        buttons=[], elem_id="faces",
    )  # fmt: skip
    note = gr.Markdown(look.first_faces(len(made.faces)), elem_id="faces-note")
    with gr.Row():
        other = gr.Button("Other faces", size="sm", min_width=80, visible=several)
        use = gr.Button("Edit the chosen one", size="sm", min_width=80, elem_id="use-made")
        download = gr.Button("Download", size="sm", min_width=80, elem_id="download-faces")
    with gr.Row():
        count = gr.Slider(
            1, max(handlers.most_faces, LEAST_END), min(FACES, handlers.most_faces), step=1,
            label="Faces", buttons=[], visible=several, elem_id="count",
        )  # fmt: skip
        seed = gr.Number(
            0, label="Seed", precision=0, buttons=[], visible=several, elem_id="seed",
        )  # fmt: skip
    return SimpleNamespace(
        made=gr.State(made), make=make, gallery=shown, note=note, other=other, use=use,
        download=download, count=count, seed=seed,
    )  # fmt: skip


def _photo_tab(studio: Studio) -> SimpleNamespace:
    edit = gr.Button("Edit the photo", variant="primary", elem_id="edit")
    picture = {"interactive": False, "format": "png", "buttons": [], "min_width": 120}
    with gr.Row():
        before = gr.Image(label="Photo", elem_id="photo", **picture)
        after = gr.Image(label="Edited", elem_id="edited", **picture)
    note = gr.Markdown(look.how_to_start(studio.parser is not None), elem_id="photo-note")
    small = {"size": "sm", "min_width": 80}
    with gr.Row():
        upload = gr.UploadButton("Upload photo", elem_id="upload-photo", **small)
        use = gr.Button("Take the mask's own face", elem_id="use-sheet", **small)
    with gr.Row():
        own = gr.UploadButton("Upload its mask", elem_id="upload-own", **small)
        painted = gr.Button("The painting is its mask", elem_id="own-as-painted", **small)
        back = gr.Button("Back to its mask", elem_id="back", **small)
    with gr.Row():
        keep = gr.Button("Go on from the result", elem_id="keep", **small)
        download = gr.Button("Download the result", elem_id="download-result", **small)
    return SimpleNamespace(
        subject=gr.State(None), result=gr.State(None), edit=edit, before=before, after=after,
        note=note, upload=upload, use=use, own=own, painted=painted, back=back, keep=keep,
        download=download,
    )  # fmt: skip


def _settings(handlers: Handlers) -> list[gr.Slider]:
    """Solver steps and guidance; hidden if the model has neither."""
    options, visible = handlers.studio.options, not handlers.one_pass
    steps = gr.Slider(
        1, max(handlers.most_steps, LEAST_END), options.steps, step=1, label="Steps",
        info="of the solver", buttons=[], min_width=160, elem_id="steps", visible=visible,
    )  # fmt: skip
    guidance = gr.Slider(
        0, handlers.most_guidance, options.guidance, step=0.1, label="Guidance",
        info="1: the plain model", buttons=[], min_width=160, elem_id="guidance", visible=visible,
    )  # fmt: skip
    return [steps, guidance]


def _connect_desk(handlers, desk, downloads) -> None:
    sheet = {"outputs": [desk.sheet, desk.easel], "show_progress": "hidden"}
    desk.more.click(handlers.more, desk.first, [desk.first, desk.starts])
    desk.starts.select(handlers.start, desk.first, **sheet)
    desk.upload.upload(handlers.upload_mask, desk.upload, **sheet, **READ)
    downloads(desk.download, handlers.download_mask, [desk.easel])


def _connect_faces(handlers, desk, faces, settings, style, taken, downloads) -> None:
    styled = [style.references, style.between, style.guidance] if style else []
    make = {
        "fn": handlers.make,
        "inputs": [desk.easel, faces.count, faces.seed, *settings, *styled],
        "outputs": [faces.made, faces.gallery, faces.note],
        "show_progress_on": faces.gallery,
    } | IN_TURN
    faces.make.click(**make)
    faces.other.click(lambda: random.randrange(10**6), None, faces.seed).then(**make)
    faces.gallery.select(handlers.choose, faces.made, faces.made)
    faces.use.click(handlers.use_made, faces.made, **taken)
    downloads(faces.download, handlers.download_faces, [faces.made])


def _connect_photo(handlers, desk, photo, settings, style, taken, downloads) -> None:
    styled = [style.references, style.between] if style else []
    photo.upload.upload(handlers.upload_photo, [photo.upload, desk.easel], **taken, **READ)
    photo.use.click(handlers.use_sheet, desk.sheet, **taken)
    photo.own.upload(handlers.upload_own, [photo.own, photo.subject], **taken, **READ)
    photo.painted.click(handlers.own_as_painted, [desk.easel, photo.subject], **taken)
    photo.back.click(handlers.back, photo.subject, **taken)
    photo.keep.click(handlers.use_result, photo.result, **taken)
    photo.edit.click(
        handlers.edit, [desk.easel, photo.subject, *settings, *styled],
        [photo.result, photo.after, photo.note], show_progress_on=photo.after, **IN_TURN,
    )  # fmt: skip
    downloads(photo.download, handlers.download_result, [photo.result])
