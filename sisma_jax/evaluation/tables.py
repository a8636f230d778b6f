"""Tables of a report, in Markdown and HTML."""

import dataclasses
import html
from collections.abc import Sequence

from sisma_jax.evaluation.scoring import LOWER_IS_BETTER, SCORES, Row, heading

Cell = str | int | float | None
DIGITS = {"fid": 2, "fd_parser": 3, "psnr_db": 2}
"""Decimals of scores; the others have three."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with one line of headings."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def markdown(self) -> str:
        lines = [f"### {self.title}", ""]
        lines.append("| " + " | ".join(self.columns) + " |")
        lines.append("|---" * len(self.columns) + "|")
        lines += ["| " + " | ".join(map(shown, row)) + " |" for row in self.rows]
        if self.note:
            lines += ["", self.note]
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        cells = lambda tag, row: "".join(f"<{tag}>{html.escape(shown(x))}</{tag}>" for x in row)
        body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in self.rows)
        note = f"<p class=note>{html.escape(self.note)}</p>" if self.note else ""
        return (
            f"<h3>{html.escape(self.title)}</h3>\n<table>\n<tr>{cells('th', self.columns)}</tr>\n"
            f"{body}\n</table>\n{note}\n"
        )


def shown(cell: Cell) -> str:
    """A cell as text, a dash for None and four digits for a float."""
    if cell is None:
        return "–"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def score_table(rows: Sequence[Row]) -> Table:
    """One line per set of pictures; columns without any score are left out."""
    keys = [key for key in SCORES if any(key in row.scores for row in rows)]
    arrows = {key: "↓" if key in LOWER_IS_BETTER else "↑" for key in keys}
    line = lambda row: [row.name, row.count, *(score(key, row.scores.get(key)) for key in keys)]
    notes = list(dict.fromkeys(note for row in rows for note in row.notes))
    return Table(
        "Scores",
        ["pictures", "n", *(f"{heading(key, rows)} {arrows[key]}" for key in keys)],
        [line(row) for row in rows],
        ". ".join(notes),
    )


def score(key: str, value: float | None) -> str:
    return "–" if value is None else f"{value:.{DIGITS.get(key, 3)}f}"


def class_table(rows: Sequence[Row], parser_quality: dict | None) -> Table | None:
    """Intersection over union by class; None if no row was judged by a parser."""
    judged = [row for row in rows if row.class_iou]
    if not judged:
        return None
    own = (parser_quality or {}).get("class_iou", {})
    columns = ["class", *(["the parser's own test"] if own else []), *(row.name for row in judged)]
    lines = []
    for name in judged[0].class_iou:
        values = [*([own.get(name)] if own else []), *(row.class_iou.get(name) for row in judged)]
        lines.append([name, *(None if value is None else f"{value:.3f}" for value in values)])
    return Table("IoU by class", columns, lines)
