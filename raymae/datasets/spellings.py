"""Labels that are equal up to case, blanks or Unicode form: most likely one class, written in several ways."""

from __future__ import annotations

import logging
from collections import defaultdict
from unicodedata import normalize

import pyarrow as pa
import pyarrow.compute as pc

from raymae.datasets.checks import place
from raymae.datasets.labels import SEPARATOR, label_lists
from raymae.datasets.tables.locate import EXAMPLES

log = logging.getLogger(__name__)


def key_of(label: str) -> str:
    """What all spellings of a label have in common."""
    return "".join(normalize("NFKC", normalize("NFKC", label).casefold()).split())


def spellings(rows: pa.Table) -> list[dict[str, int]]:
    """Every label with several spellings: how often each occurs, in the order of their first rows."""
    counts = pc.value_counts(label_lists(rows["scene_label"], "multi").flatten()).to_pylist()
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for item in counts:
        found[key_of(item["values"])][item["values"]] = item["counts"]
    return [one for one in found.values() if len(one) > 1]


def check_spellings(rows: pa.Table) -> None:
    """Raise ValueError where a label has several spellings, with the first row of each."""
    found = spellings(rows)
    if found:
        lists = label_lists(rows["scene_label"], "multi")
        parents, shown = pc.list_parent_indices(lists), names_of(found[0])
        examples = []
        for label, count in list(found[0].items())[:EXAMPLES]:
            first = parents[pc.index(lists.flatten(), label).as_py()].as_py()
            clips = f", {count} clips" if count > 1 else ""
            examples.append(f"{shown[label]} ({place(rows.slice(first, 1).to_pylist()[0])}{clips})")
        more = f" (and {len(found) - 1} more labels)" if len(found) > 1 else ""
        raise ValueError(
            f"column scene_label: {' and '.join(examples)}{more} are equal up to case, blanks or Unicode form: give a "
            "class one spelling, or merge them to the most frequent one by --data.merge-labels"
        )


def names_of(one: dict[str, int]) -> dict[str, str]:
    """Each spelling for a message: as text, or escaped where two of them look alike."""
    alike = len({normalize("NFC", label) for label in one}) < len(one)
    return {label: ascii(label) if alike else repr(label) for label in one}


def merge_spellings(rows: pa.Table) -> pa.Table:
    """The rows with every label in its most frequent spelling, the first one on ties; logs what was merged."""
    found = spellings(rows)
    if not found:
        return rows
    best = {label: max(one, key=lambda name: one[name]) for one in found for label in one}
    log.info("data.merge_labels: merged %s", "; ".join(merge_line(one, best) for one in found))
    encoded = rows["scene_label"].combine_chunks().dictionary_encode()
    texts = [merged(text, best) for text in encoded.dictionary.to_pylist()]
    labels = pa.array(texts, pa.string()).take(encoded.indices)
    return rows.set_column(rows.column_names.index("scene_label"), "scene_label", labels)


def merge_line(one: dict[str, int], best: dict[str, str]) -> str:
    """The spellings of a label that are given up, with their counts, and the one that stays."""
    shown, kept = names_of(one), best[next(iter(one))]
    others = ", ".join(f"{shown[name]} ({count})" for name, count in one.items() if name != kept)
    return f"{others} into {shown[kept]} ({one[kept]})"


def merged(text: str, best: dict[str, str]) -> str:
    """A label with every class in its spelling in `best`."""
    return SEPARATOR.join(best.get(name, name) for name in map(str.strip, text.split(SEPARATOR)))
