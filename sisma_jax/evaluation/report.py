"""A report on disk: `report.json` for programs, `report.md`, and `report.html` in one file.

The table's rows are separate files (`rows/`), so that several commands with one `--out` share one
table. They must score alike: the protocol of the first is kept in `protocol.json`, and a command
with another protocol is refused.
"""

import base64
import dataclasses
import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import (
    LOCK,
    LOCK_FILES,
    LockedError,
    is_new_or_empty,
    lock,
    read_json,
    write_json,
    write_text,
)
from sisma_jax.data.image_files import save_png
from sisma_jax.evaluation.pictures import digest
from sisma_jax.evaluation.plots import noise_plots, quality_plots
from sisma_jax.evaluation.robustness import noise_tables
from sisma_jax.evaluation.scoring import NOISE, Row
from sisma_jax.evaluation.tables import Table, class_table, score_table

FINDINGS = ("memorisation", "styles", "speed", "peers")
"""Kinds of findings, as keys of `report.json`."""
KINDS = ("real", "reconstruction", "synthesis", "pictures", NOISE)
"""Kinds of rows, in the order of the table."""

DETERMINED_BY = {
    "reference": "--data and --count (or --reference)",
    "face parser": "--parser",
    "Inception": "--weights and --fid-resize",
    "LPIPS": "--weights and --lpips-network",
}
"""The options that determine what all rows of a report share, by its names in the protocol."""

SMALLEST_WIDTH = 800
"""Target width of pictures on the page, which are enlarged by an integer factor."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .7rem; text-align: right; }
td:first-child, th:first-child { text-align: left; } tr:nth-child(even) { background: #f4f4f4; }
th { border-bottom: 1px solid #888; } .note { color: #555; } img { image-rendering: pixelated; }
"""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A sheet of the report, with its caption."""

    file: str
    text: str


@dataclasses.dataclass(frozen=True)
class ReportFolder:
    """Paths inside a report's folder."""

    path: Path

    @property
    def images(self) -> Path:
        """Folders of generated faces."""
        return self.path / "images"

    @property
    def measurements(self) -> Path:
        return self.path / "measurements"

    @property
    def pictures(self) -> Path:
        """Sheets that the report shows."""
        return self.path / "pictures"

    @property
    def rows(self) -> Path:
        return self.path / "rows"

    @property
    def protocol_file(self) -> Path:
        return self.path / "protocol.json"

    @property
    def findings_folder(self) -> Path:
        """Other measurements, and captions, in one file each."""
        return self.path / "findings"

    @property
    def about_file(self) -> Path:
        """Description of the protocol."""
        return self.path / "about.json"

    @property
    def json_file(self) -> Path:
        return self.path / "report.json"

    @contextmanager
    def claim(self, protocol: Mapping[str, str | None]) -> Iterator[None]:
        """Begin a report, or extend the existing one, under a lock.

        Args:
          protocol: by name, identifiers that all rows must share; None for a judge that is not
            available and that another command may add.

        Raises:
          InputError: the folder holds other files, cannot be written, holds a report with another
            protocol, or another command writes there.
        """
        before = read_json(self.protocol_file)
        if before is None and not is_new_or_empty(self.path, besides=LOCK_FILES):
            raise InputError(
                f"{self.path} is not empty and holds no report: give --out a new or empty folder"
            )
        merged = dict(protocol)
        for name, value in (before or {}).items():
            if merged.get(name) is None:
                merged[name] = value
            elif value is not None and merged[name] != value:
                raise InputError(
                    f"all rows of a report share one {name}, but that of {self.path} is {value!r} "
                    f"where this command has {merged[name]!r}: give {DETERMINED_BY[name]} as for "
                    "the report, or give --out a new folder"
                )
        with ExitStack() as held:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                held.enter_context(lock(self.path / LOCK))
                write_json(self.protocol_file, merged)
            except LockedError as error:
                raise InputError(
                    f"the report in {self.path} is being written by {error}: wait for its end, or "
                    "give --out another folder"
                ) from None
            except OSError as error:
                raise InputError(
                    f"report folder {self.path} cannot be written ({error.strerror}): give --out a "
                    "folder that can"
                ) from error
            if before is not None:
                print(f"adding to the report in {self.path}: existing results are kept")
            yield

    def put(self, row: Row) -> None:
        """Save a row in place of one of the same name, whose scores stay if the pictures are the
        same."""
        self.rows.mkdir(exist_ok=True)
        file = self.rows / f"{digest(row.name)[:16]}.json"
        if (content := read_json(file)) is not None:
            before = Row(**content)
            if before.key != row.key:
                print(
                    f"note: {row.name!r} replaces a row of other pictures or masks "
                    "(--name keeps both)"
                )
            row = row.over(before)
        write_json(file, dataclasses.asdict(row))

    def table(self) -> list[Row]:
        """All rows, ordered by kind, settings and name."""
        rows = [Row(**row) for file in self.rows.glob("*.json") if (row := read_json(file))]
        order = lambda row: (
            KINDS.index(row.kind),
            row.settings.get("solver", ""),
            row.settings.get("guidance", 0),
            row.settings.get("steps", 0),
            row.settings.get("noise_strength", 0),
            row.name,
        )
        return sorted(rows, key=order)

    def finding(self, kind: str, name: str, key: str) -> Any:
        """The finding that was saved under these; None if there is none."""
        before = read_json(self._finding_file(kind, name))
        return before["found"] if before is not None and before["key"] == key else None

    def keep(self, kind: str, name: str, key: str, result: Any) -> None:
        """Save a finding.

        Args:
          kind: one of FINDINGS, or "picture".
          name: name of its subject; a finding of another key is replaced.
          key: digest of everything that it depends on.
          result: a value that JSON can hold.
        """
        self.findings_folder.mkdir(exist_ok=True)
        content = {"name": name, "key": key, "found": result}
        write_json(self._finding_file(kind, name), content)

    def _finding_file(self, kind: str, name: str) -> Path:
        return self.findings_folder / f"{kind}-{digest(name)[:16]}.json"

    def findings(self, kind: str) -> dict[str, Any]:
        """All findings of a kind, by the name of their subject."""
        files = sorted(self.findings_folder.glob(f"{kind}-*.json"))
        read = [finding for file in files if (finding := read_json(file))]
        return {one["name"]: one["found"] for one in read}

    def put_picture(self, name: str, caption: str, sheet: UInt8[np.ndarray, "h w 3"]) -> None:
        """Add a sheet to the report, in place of one of the same name."""
        file = f"{re.sub(r'[^a-zA-Z0-9]+', '-', name)}-{digest(name)[:4]}.png"
        self.pictures.mkdir(exist_ok=True)
        save_png(Image.fromarray(sheet), self.pictures / file)
        self.keep("picture", name, digest(file, caption), {"file": file, "text": caption})


def write_report(
    folder: ReportFolder,
    *,
    about: Mapping[str, str],
    missing: Mapping[str, str],
    parser_quality: Mapping[str, Any] | None,
    tables: Sequence[Table],
) -> list[Table]:
    """Write `report.json`, `report.md` and `report.html` from what the folder holds.

    Args:
      folder: the folder with rows, findings and pictures.
      about: description of the protocol, by heading.
      missing: sentences on what was not measured, and why, by score.
      parser_quality: test scores of the face parser, if known. Other entries of earlier commands
        stay in all three.
      tables: tables of findings.

    Returns:
      The tables, as shown.
    """
    rows = folder.table()
    earlier = read_json(folder.about_file) or {"about": {}, "missing": {}, "parser_quality": None}
    about = {**earlier["about"], **about}
    made = {score for row in rows for score in row.scores}
    missing = {
        score: sentence
        for score, sentence in {**earlier["missing"], **missing}.items()
        if score not in made
    }
    parser_quality = parser_quality or earlier["parser_quality"]
    write_json(
        folder.about_file, {"about": about, "missing": missing, "parser_quality": parser_quality}
    )
    clean = [row for row in rows if row.kind != NOISE]
    by_class = class_table(clean, dict(parser_quality) if parser_quality else None)
    scores = [score_table(clean)] if clean else []
    shown = [*scores, *([by_class] if by_class else []), *noise_tables(rows), *tables]
    plots = quality_plots(rows) | noise_plots(rows)
    pictures = [Picture(**picture) for picture in folder.findings("picture").values()]
    pictures = [one for one in pictures if (folder.pictures / one.file).exists()]
    write_json(
        folder.json_file,
        {
            "protocol": about,
            "missing": missing,
            "parser_quality": parser_quality,
            "rows": [dataclasses.asdict(row) for row in rows],
            **{kind: folder.findings(kind) for kind in FINDINGS},
        },
    )
    write_text(folder.path / "report.md", _markdown(about, missing, shown, pictures))
    for name, svg in plots.items():
        folder.pictures.mkdir(exist_ok=True)
        write_text(folder.pictures / f"{name}.svg", svg)
    write_text(folder.path / "report.html", _html(folder, about, missing, shown, pictures, plots))
    return shown


def _markdown(
    about: Mapping[str, str],
    missing: Mapping[str, str],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
) -> str:
    parts = ["# Evaluation", ""]
    parts += [f"- **{name}**: {text}" for name, text in about.items()]
    if missing:
        parts += ["", "Not measured:", "", *(f"- {sentence}" for sentence in missing.values())]
    parts += ["", *(table.markdown() for table in tables)]
    parts += [f"![{one.text}](pictures/{one.file})\n\n*{one.text}*\n" for one in pictures]
    return "\n".join(parts)


def _html(
    folder: ReportFolder,
    about: Mapping[str, str],
    missing: Mapping[str, str],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    plots: Mapping[str, str],
) -> str:
    escape = html.escape
    entries = "".join(f"<li><b>{escape(x)}</b>: {escape(text)}</li>" for x, text in about.items())
    parts = [f"<ul>{entries}</ul>"]
    if missing:
        sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in missing.values())
        parts.append(f"<p>Not measured:</p><ul>{sentences}</ul>")
    parts += [table.html() for table in tables]
    parts += plots.values()
    for one in pictures:
        content = (folder.pictures / one.file).read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            width = image.width * max(1, SMALLEST_WIDTH // image.width)
        source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        parts.append(
            f'<figure><img width="{width}" src="{source}" alt="{escape(one.text)}">'
            f"<figcaption>{escape(one.text)}</figcaption></figure>"
        )
    body = "\n".join(parts)
    return (
        "<!doctype html>\n<html lang=en><meta charset=utf-8><title>Evaluation</title>\n"
        f"<style>{STYLE}</style>\n<h1>Evaluation</h1>\n{body}\n</html>\n"
    )
