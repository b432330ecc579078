"""Documents of a verdict, facts, paragraphs, tables and pictures; as Markdown here, as a page in `page`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """A table; the first column and those named in `text` are left-aligned, the others right-aligned."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: frozenset[str] = frozenset()
    bold: frozenset[tuple[int, int]] = frozenset()
    """Row and column of the cells in bold."""

    def left(self) -> list[bool]:
        """Whether each column is left-aligned."""
        return [place == 0 or name in self.text for place, name in enumerate(self.header)]


@dataclass(frozen=True)
class Picture:
    """A figure, in a file next to the page."""

    file: str
    caption: str
    large: bool = field(default=False, kw_only=True)
    """Too fine to be beside something else."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A clip to look at and to listen to; in the page alone."""

    title: str
    lines: Sequence[str]
    picture: bytes
    """A PNG, of any size."""
    audio: bytes
    """An MP3."""


Block = str | Table | Picture | Sample


@dataclass(frozen=True)
class Section:
    """A heading and the blocks below it."""

    title: str
    blocks: Sequence[Block] = ()
    beside: Sequence[Picture] = ()
    """Figures: a single one is beside the blocks where the page is wide, all others below them."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole report."""

    title: str
    decision: str
    """`verdict.Decision`"""
    verdict: str
    notes: Sequence[str]
    facts: Sequence[tuple[str, str]]
    """Names and values: what was evaluated, how and when."""
    sections: Sequence[Section]


def document_text(document: Document) -> str:
    """A whole report as Markdown."""
    head = [f"**{document.verdict}**", *document.notes]
    facts = "\n".join(f"- {name}: {value}" for name, value in document.facts)
    return markdown(document.title, document.sections, [*head, facts])


def markdown(title: str, sections: Sequence[Section], head: Sequence[str] = ()) -> str:
    """Sections as Markdown: tables with aligned columns, pictures as links."""
    parts = [f"# {title}", *head]
    for section in sections:
        parts.append(f"## {section.title}")
        for block in (*section.blocks, *section.beside):
            if isinstance(block, Table):
                parts.append(table_text(block))
            elif isinstance(block, Picture):
                parts.append(f"![{block.caption}]({block.file})")
            elif isinstance(block, str):
                parts.append(block)
    return "\n\n".join(parts) + "\n"


def result_table(header: Sequence[str], rows: Sequence[Sequence[str]], text: frozenset[str] = frozenset()) -> str:
    """A `Table` in Markdown, with aligned columns."""
    return table_text(Table(header, rows, text))


def table_text(table: Table) -> str:
    """A table in Markdown, with aligned columns."""
    rows = [
        [f"**{cell}**" if (row, column) in table.bold else cell for column, cell in enumerate(line)]
        for row, line in enumerate(table.rows)
    ]
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in (table.header, *rows)]
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
