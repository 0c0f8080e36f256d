"""Things to look at: contact sheets, a small plot, and the demo's page.

Pictures need pillow; everything else is text. The page that `page` makes is one file that needs
nothing from elsewhere.
"""

from __future__ import annotations

import base64
import importlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

from boxwood.encode.images import ImageError, load_image
from boxwood.encode.sources import open_uri
from boxwood.errors import InputError, MissingDependency

Mark = Literal["right", "wrong", "none"]

_BORDER: dict[Mark, tuple[int, int, int]] = {
    "right": (28, 148, 62),
    "wrong": (206, 44, 44),
    "none": (214, 214, 214),
}
_PAPER = (255, 255, 255)
_INK = (40, 40, 40)


@dataclass(frozen=True)
class Cell:
    """One picture of a contact sheet: its file, or its uri in a collection, a caption of one line,
    and how it is marked."""

    path: Path
    caption: str = ""
    mark: Mark = "none"


def _pillow(name: str) -> Any:
    try:
        return importlib.import_module(f"PIL.{name}")
    except ImportError as error:
        raise MissingDependency(
            "a contact sheet needs the package 'pillow': pip install 'boxwood[clip]'"
        ) from error


def contact_sheet(
    cells: Sequence[Cell], *, columns: int = 10, side: int = 96, title: str = ""
) -> Any:
    """Draw the pictures in a grid, each fitted into `side` x `side` pixels; a PIL image.

    The border says the mark: green is right, red is wrong, grey is not marked. A picture that
    cannot be read is shown as an empty cell.
    """
    if not cells:
        raise InputError("there are no pictures to put on a contact sheet")
    image_module, ops = _pillow("Image"), _pillow("ImageOps")
    columns = min(columns, len(cells))
    border, gap = max(2, side // 24), max(3, side // 16)
    line = 14 if any(cell.caption for cell in cells) else 0
    head = 22 if title else 0
    width = gap + columns * (side + 2 * border + gap)
    if title:
        ruler = _pillow("ImageDraw").Draw(image_module.new("RGB", (1, 1)))
        width = max(width, int(ruler.textlength(title)) + 2 * gap)
    rows = -(-len(cells) // columns)
    step = side + 2 * border + line + gap
    sheet = image_module.new("RGB", (width, head + gap + rows * step), _PAPER)
    draw = _pillow("ImageDraw").Draw(sheet)
    if title:
        draw.text((gap, 6), title, fill=_INK)
    for i, cell in enumerate(cells):
        x = gap + (i % columns) * (side + 2 * border + gap)
        y = head + gap + (i // columns) * step
        full = side + 2 * border
        draw.rectangle((x, y, x + full - 1, y + full - 1), fill=_BORDER[cell.mark])
        inner = (x + border, y + border, x + border + side - 1, y + border + side - 1)
        draw.rectangle(inner, fill=(244, 244, 244))
        try:
            picture = load_image(open_uri(str(cell.path)))
        except ImageError:
            draw.text((x + border + 4, y + border + 4), "unreadable", fill=_INK)
        else:
            small = ops.contain(picture, (side, side))
            place = (
                x + border + (side - small.width) // 2,
                y + border + (side - small.height) // 2,
            )
            sheet.paste(small, place)
        if cell.caption:
            text = cell.caption
            while text and draw.textlength(text) > full:
                text = text[:-2] + "…" if len(text) > 2 else ""
            draw.text((x, y + full + 1), text, fill=_INK)
    return sheet


def stack(images: Sequence[Any]) -> Any:
    """Pictures below each other as one."""
    width, height = max(image.width for image in images), sum(image.height for image in images)
    sheet = _pillow("Image").new("RGB", (width, height), _PAPER)
    y = 0
    for image in images:
        sheet.paste(image, (0, y))
        y += image.height
    return sheet


def data_uri(image: Any) -> str:
    """A PIL image as a ``data:`` address, JPEG-encoded."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=84, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# --- text ---------------------------------------------------------------------------------------


def cell_text(value: object) -> str:
    """How a value is shown to people: numbers short, nothing for None, text on one line."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if value == value and abs(value) < 1e15 else str(value)
    return " ".join(str(value).split())


_NUMBER = re.compile(r"(-?[0-9][0-9.,]*(e[+-]?[0-9]+)?)?")


def text_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, width: int | None = None
) -> str:
    """An aligned table, numbers to the right; cells are cut so that lines fit into `width`."""
    body = [list(row) for row in rows]
    texts = [[cell_text(value) for value in row] for row in body]
    right = [
        bool(texts) and all(_NUMBER.fullmatch(row[c]) for row in texts) for c in range(len(columns))
    ]
    sizes = [max([len(name), *(len(row[c]) for row in texts)]) for c, name in enumerate(columns)]
    if width is not None:
        # The widest columns give way first; numbers stay whole.
        while sum(sizes) + 2 * (len(sizes) - 1) > width:
            widest = max(range(len(sizes)), key=lambda c: (not right[c], sizes[c]))
            if right[widest] or sizes[widest] <= 8:
                break
            sizes[widest] -= 1

    def line(values: Sequence[str]) -> str:
        parts = []
        for text, size, is_number in zip(values, sizes, right, strict=True):
            if len(text) > size:
                # File names differ at their ends.
                text = "…" + text[-(size - 1) :]
            parts.append(text.rjust(size) if is_number else text.ljust(size))
        return "  ".join(parts).rstrip()

    head = [line(list(columns)), line(["-" * size for size in sizes])]
    return "\n".join([*head, *(line(row) for row in texts)])


# --- page ---------------------------------------------------------------------------------------

_COLOURS = ("#1f77b4", "#d1603d", "#3a923a", "#8a63b3", "#777777")

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px;
       margin: 2em auto; padding: 0 1em }
h1, h2 { line-height: 1.2 } h2 { border-top: 1px solid #ddd; padding-top: 1em; margin-top: 2em }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums }
th, td { padding: .15em .8em; text-align: right; border-bottom: 1px solid #e4e4e4 }
th:first-child, td:first-child { text-align: left } tr.last td { border-bottom-color: #999 }
pre { background: #f5f5f2; padding: .8em; overflow-x: auto; font-size: 13px }
figure { margin: 1em 0 } figure img { max-width: 100% } figcaption { color: #555 }
"""


def plot(
    series: Mapping[str, Sequence[float]],
    *,
    start: Mapping[str, float] | None = None,
    over: str = "round",
    what: str = "F1",
    top: float = 1.0,
) -> str:
    """Lines of values from 0 to `top` as inline SVG, the first of each at 1 of what they go `over`;
    `start` gives dashed reference lines, and `what` says to those who listen what is plotted."""
    width, height, left, above, right, bottom = 560, 280, 44, 14, 120, 34
    rounds = max(len(values) for values in series.values())
    span_x, span_y = width - left - right, height - above - bottom

    def at(i: float, value: float) -> tuple[float, float]:
        x = left + (span_x * i / (rounds - 1) if rounds > 1 else span_x / 2)
        return round(x, 1), round(above + span_y * (1 - value / (top or 1)), 1)

    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(what)} by {escape(over)}" font-family="system-ui, sans-serif" '
        'font-size="12">'
    ]
    for tick in (0.0, top / 4, top / 2, top * 3 / 4, top):
        y = at(0, tick)[1]
        parts.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y}" y2="{y}" stroke="#e2e2e2"/>'
            f'<text x="{left - 6}" y="{y + 4}" text-anchor="end" fill="#555">{tick:.2g}</text>'
        )
    for i in range(0, rounds, -(-rounds // 15)):  # more numbers than 15 would run together
        x, y = at(i, 0)
        parts.append(f'<text x="{x}" y="{y + 18}" text-anchor="middle" fill="#555">{i + 1}</text>')
    parts.append(
        f'<text x="{left + span_x / 2}" y="{height - 3}" text-anchor="middle" fill="#555">'
        f"{escape(over)}</text>"
    )
    labels: list[tuple[float, str, str]] = []
    for name, value in (start or {}).items():
        y = at(0, value)[1]
        parts.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y}" y2="{y}" stroke="#999" '
            'stroke-dasharray="4 4"/>'
        )
        labels.append((y, name, "#777"))
    for i, (name, values) in enumerate(series.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        points = [at(j, value) for j, value in enumerate(values)]
        path = " ".join(f"{x},{y}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if rounds <= 15:
            parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in points]
        labels.append((points[-1][1], name, colour))
    below = -1e9
    for y, name, colour in sorted(labels):
        below = max(y, below + 14)  # names do not cover each other
        parts.append(
            f'<text x="{width - right + 8}" y="{below + 4:.1f}" fill="{colour}">'
            f"{escape(name)}</text>"
        )
    return "".join([*parts, "</svg>"])


def html_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, group: int | None = None
) -> str:
    """An HTML table; with `group`, a stronger line where the value of that column changes."""
    lines = ["<table><tr>", *(f"<th>{escape(name)}</th>" for name in columns), "</tr>"]
    for i, row in enumerate(rows):
        ends = group is not None and (i + 1 == len(rows) or rows[i + 1][group] != row[group])
        cells = "".join(f"<td>{escape(cell_text(value))}</td>" for value in row)
        lines.append(f"<tr{' class=last' if ends else ''}>{cells}</tr>")
    return "".join([*lines, "</table>"])


def figure(image: Any, caption: str) -> str:
    """A picture with its caption, the picture inside the page."""
    words = escape(caption)
    return (
        f'<figure><img alt="{words}" src="{data_uri(image)}"><figcaption>{words}</figcaption>'
        "</figure>"
    )


def code(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page of parts that are HTML already."""
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</html>\n"
    )
