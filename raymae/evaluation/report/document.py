"""Documents of paragraphs, tables and pictures, as Markdown and as self-contained HTML."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #d0d7de; }
.table { overflow-x: auto; margin: .8rem 0; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e4e8ec; }
th { background: #f6f8fa; vertical-align: bottom; } td:first-child, th:first-child, .text { text-align: left; }
td { white-space: nowrap; } td.long { white-space: normal; overflow-wrap: anywhere; min-width: 24rem; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; } figcaption { color: #57606a; font-size: .9em; }
nav a { margin-right: 1rem; white-space: nowrap; }
"""
LONG = 60
"""Characters in a cell above which it may wrap."""


@dataclass(frozen=True)
class Table:
    """A table; the first column and those named in `text` are left-aligned, the others right-aligned."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: frozenset[str] = frozenset()

    def left(self) -> list[bool]:
        """Whether each column is left-aligned."""
        return [place == 0 or name in self.text for place, name in enumerate(self.header)]


@dataclass(frozen=True)
class Picture:
    """A figure, in a file next to the page."""

    file: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading and the blocks below it."""

    title: str
    blocks: Sequence[str | Table | Picture] = field(default_factory=tuple)


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The document as Markdown: tables with aligned columns, pictures as links."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        for block in section.blocks:
            if isinstance(block, Table):
                parts.append(result_table(block.header, block.rows, block.text))
            elif isinstance(block, Picture):
                parts.append(f"![{block.caption}]({block.file})")
            else:
                parts.append(block)
    return "\n\n".join(parts) + "\n"


def result_table(header: Sequence[str], rows: Sequence[Sequence[str]], text: frozenset[str] = frozenset()) -> str:
    """A `Table` in Markdown, with aligned columns."""
    table = Table(header, rows, text)
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in (table.header, *table.rows)]
    left = table.left()
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(table.header))]
    rule = ["-" * width if to_left else "-" * (width - 1) + ":" for width, to_left in zip(widths, left, strict=True)]
    aligned = [
        [
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(line, widths, left, strict=True)
        ]
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)


def page(title: str, sections: Sequence[Section], pictures: Mapping[str, bytes]) -> str:
    """The document as one HTML file, with the PNGs of `pictures` (by `Picture.file`) embedded."""
    links = "".join(f'<a href="#s{number}">{html.escape(s.title)}</a> ' for number, s in enumerate(sections))
    parts = [f"<h1>{html.escape(title)}</h1>", f"<nav>{links}</nav>"]
    for number, section in enumerate(sections):
        parts.append(f'<h2 id="s{number}">{html.escape(section.title)}</h2>')
        for block in section.blocks:
            if isinstance(block, Table):
                parts.append(_table(block))
            elif isinstance(block, Picture):
                parts.append(_figure(block, pictures[block.file]))
            else:
                parts.append(f"<p>{html.escape(block)}</p>")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _table(table: Table) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        inner = (
            f'<{tag} class="{"text" * (name in table.text)} {"long" * (len(cell) > LONG)}">{html.escape(cell)}</{tag}>'
            for cell, name in zip(cells, table.header, strict=True)
        )
        return f"<tr>{''.join(inner)}</tr>".replace(' class=" "', "")

    body = "\n".join(line("td", row) for row in table.rows)
    return f'<div class="table"><table><thead>{line("th", table.header)}</thead>\n<tbody>{body}</tbody></table></div>'


def _figure(picture: Picture, png: bytes) -> str:
    source = base64.b64encode(png).decode()
    caption = html.escape(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{source}"><figcaption>{caption}</figcaption></figure>'
    )
