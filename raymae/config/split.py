"""How clips are shared out between training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from raymae.config.values import require, require_choice

SplitKind = Literal["table", "random", "session", "visit", "city_day", "city", "device"]


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How the clips are shared out between training and evaluation (`raymae.splits`)."""

    kind: SplitKind = "table"
    """What is never cut: table, split as the table or loader says (TAU's official fold); session, what one group holds;
    visit, sessions of a city no more than 30 minutes apart; city_day, a day in a city; city, the cities of held_out are
    test; device, the devices of held_out are test_unseen, on groups that training never hears, where the other devices
    are test_seen. random cuts recordings apart: it leaks, and is there to repeat published protocols alone."""
    held_out: tuple[str, ...] = ()
    """Cities (kind = city) or devices (kind = device) that training never hears."""
    test_share: float = 0.2
    """Share of the labelled clips that test gets (kinds random, session, visit, city_day and device)."""
    val_share: float | None = None
    """Share of the labelled clips that val gets, by groups of the training side; the default is 0.1, and with kinds
    table and file what they say."""
    labelled_share: float | None = None
    """Share of the labelled training groups whose labels are kept, for curves over the number of labels; every class
    keeps a group, and the groups of a smaller share are among those of a larger one."""
    seed: int = 0
    """Seed of what is drawn."""
    transductive: bool = False
    """Unlabelled siblings of val and test clips serve pre-training (split pool), as do pool clips of their groups;
    without it they are left out."""
    file: str | None = None
    """A split made before, in place of kind: the folder of its split.json and split.parquet, or either file."""

    def __post_init__(self) -> None:
        require_choice("data.split.kind", self.kind, get_args(SplitKind))
        for name, lowest, highest in (
            ("test_share", "(0", "1)"),
            ("val_share", "[0", "1)"),
            ("labelled_share", "(0", "1]"),
        ):
            value = getattr(self, name)
            inside = (
                value is None or 0 < value < 1 or (value == 0 and lowest == "[0") or (value == 1 and highest == "1]")
            )
            require(inside, f"data.split.{name} = {value} must lie in {lowest}, {highest}")
        require(
            self.test_share + (self.val_share or 0) < 1,
            f"data.split.test_share = {self.test_share} and val_share = {self.val_share} leave nothing for training",
        )
        if self.kind in ("city", "device"):
            wanted = "cities" if self.kind == "city" else "devices"
            require(
                bool(self.held_out), f"data.split.kind = {self.kind} needs data.split.held_out: {wanted} to test on"
            )
        for name in self._unused():
            default = getattr(type(self), name)
            why = "file, which says it" if self.file else f"kind = {self.kind}"
            require(
                getattr(self, name) == default,
                f"data.split.{name} = {getattr(self, name)!r} has no use with data.split.{why}; leave it {default!r}",
            )

    def _unused(self) -> list[str]:
        """Fields that have no effect on this kind of split."""
        if self.file:
            unused = ["kind", "held_out", "test_share", "val_share", "transductive"]
            return unused if self.labelled_share else [*unused, "seed"]
        unused = [] if self.kind in ("city", "device") else ["held_out"]
        unused += ["test_share"] if self.kind in ("table", "city") else []
        unused += ["transductive"] if self.kind == "random" else []
        drawn = self.labelled_share or self.val_share or (self.kind != "table" and self.val_share is None)
        return unused if drawn or self.kind not in ("table", "city") else [*unused, "seed"]
