"""A report as one HTML file that needs no other: style, script, figures and sounds are inside."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from importlib.resources import files

from raymae.evaluation.report.document import Block, Document, Picture, Sample, Section, Table

LONG, NAME = 60, 16
"""Characters in a cell above which it may wrap; of a name in a narrow window."""

DECISIONS = {
    "deploy": "Deploy it",
    "undecided": "Undecided",
    "reject": "Don't deploy it",
    "unknown": "Not known",
}
"""The heading of a verdict."""
KINDS = {"reconstruction": "colors", "confusion": "wide"}
"""The classes of figures by a part of their file: colors that a dark page leaves as they are; too fine to be made as
narrow as a phone."""


def page(document: Document, pictures: Mapping[str, bytes]) -> str:
    """The document as one HTML file, with the PNGs of `pictures` (by `Picture.file`) embedded."""
    body = "\n".join([_head(document), *(_section(n, one, pictures) for n, one in enumerate(document.sections))])
    return whole(document.title, body)


def whole(title: str, body: str, style: str = "", refresh_seconds: int | None = None) -> str:
    """An HTML file of a body and a style beside that of all pages, which the browser reads again every so often.

    The browser is told to run no other script than the page's own, and to load nothing.
    """
    common, script = (files(__package__).joinpath(name).read_text() for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    refresh = "" if refresh_seconds is None else f'<meta http-equiv="refresh" content="{refresh_seconds}">'
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">{refresh}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{html.escape(title)}</title>'
        f"<style>{common}{style}</style>"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n<main>\n{body}\n</main>\n'
        f"<script>{script}</script>\n</body></html>\n"
    )


def _head(document: Document) -> str:
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in document.notes)
    facts = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in document.facts)
    links = "".join(f'<a href="#s{n}">{html.escape(one.title)}</a> ' for n, one in enumerate(document.sections))
    return (
        f"<h1>{html.escape(document.title)}</h1>\n"
        f'<div class="verdict {html.escape(document.decision)}"><strong>{DECISIONS[document.decision]}</strong>'
        f"<p>{html.escape(document.verdict)}</p>{notes}</div>\n<dl>{facts}</dl>\n<nav>{links}</nav>"
    )


def _section(number: int, section: Section, pictures: Mapping[str, bytes]) -> str:
    parts = [_block(block, pictures) for block in section.blocks]
    if samples := [part for part, block in zip(parts, section.blocks, strict=True) if isinstance(block, Sample)]:
        parts = [part for part in parts if part not in samples]
        parts.append(f'<div class="samples">{"".join(samples)}</div>')
    inner = f'<div class="text">{"".join(parts)}</div>' if parts else ""
    beside = "".join(_block(picture, pictures) for picture in section.beside)
    kind = "pair" if inner and len(section.beside) == 1 else ""
    inner += f'<div class="beside">{beside}</div>' if beside else ""
    return f'<section id="s{number}"><h2>{html.escape(section.title)}</h2>\n<div class="{kind}">{inner}</div></section>'


def _block(block: Block, pictures: Mapping[str, bytes]) -> str:
    if isinstance(block, Table):
        return table_html(block)
    if isinstance(block, Picture):
        return _figure(block, pictures[block.file])
    if isinstance(block, Sample):
        return _sample(block)
    return f"<p>{html.escape(block)}</p>"


def table_html(table: Table) -> str:
    """A table, which the page's script sorts."""
    left = table.left()

    def line(tag: str, cells: Sequence[str], row: int | None = None) -> str:
        inner = []
        for column, cell in enumerate(cells):
            shown = f"<b>{html.escape(cell)}</b>" if (row, column) in table.bold else html.escape(cell)
            scope = ' scope="col"' if tag == "th" else ""
            inner.append(f"<{tag}{scope}{_classes(cell, left=left[column])}>{shown}</{tag}>")
        return f"<tr>{''.join(inner)}</tr>"

    body = "\n".join(line("td", row, number) for number, row in enumerate(table.rows))
    return (
        f'<div class="table" tabindex="0"><table><thead>{line("th", table.header)}</thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def _classes(cell: str, *, left: bool) -> str:
    size = "long" if len(cell) > LONG else "name" if left and len(cell) > NAME else None
    names = " ".join(filter(None, ["left" if left else None, size]))
    return f' class="{names}"' if names else ""


def _figure(picture: Picture, png: bytes) -> str:
    kind = next((f' class="{name}"' for part, name in KINDS.items() if part in picture.file), "")
    caption = html.escape(picture.caption)
    image = f'<img alt="{caption}" src="{_data("image/png", png)}">'
    return f"<figure{kind}>{image}<figcaption>{caption}</figcaption></figure>"


def _sample(sample: Sample) -> str:
    title, lines = html.escape(sample.title), "<br>".join(map(html.escape, sample.lines))
    return (
        f'<figure class="sample colors"><img alt="Log-mel of {title}" src="{_data("image/png", sample.picture)}">'
        f'<audio controls preload="none" src="{_data("audio/mpeg", sample.audio)}"></audio>'
        f"<figcaption><strong>{title}</strong><br>{lines}</figcaption></figure>"
    )


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
