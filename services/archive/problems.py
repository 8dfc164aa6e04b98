"""What reading bars left out or changed: each problem as a sentence, many of one kind as a few lines."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SHOWN = 3
"""Of each kind; the others are counted."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that was left out or changed. Problems of one `kind` are shown together; without one `what` is it."""

    where: str
    """The file, and its row where there is one."""
    what: str
    symbol: str = ""
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.symbol} {self.what}" if self.symbol else f"{self.where} {self.what}"


def several_currencies(where: str, symbol: str, currencies: Iterable[str]) -> Problem:
    """A symbol is left out, because its bars have these currencies."""
    named = ", ".join(currencies)
    return Problem(where, f"is left out: it has the currencies {named}", symbol, "is left out: several currencies")


def by_kind(problems: Iterable[Problem]) -> list[tuple[str, Sequence[str]]]:
    """The lines to show, each with what it only counts: of every kind a few problems, and how many there are more."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind or problem.what, []).append(str(problem))
    lines: list[tuple[str, Sequence[str]]] = []
    for kind, sentences in kinds.items():
        lines += [(sentence, ()) for sentence in sentences[:SHOWN]]
        if hidden := sentences[SHOWN:]:
            lines.append((f'and {len(hidden):,} more of the kind "{kind}"', hidden))
    return lines


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many there are more.

    >>> listed(["A", "B", "C", "D", "E"])
    'A, B, C and 2 more'
    """
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def joined(clauses: Iterable[object]) -> str:
    """The first of some clauses, and how many there are more.

    >>> joined(["a.csv is empty", "b.csv is empty", "c.csv is empty", "d.csv is empty"])
    'a.csv is empty; b.csv is empty; c.csv is empty; and 1 more'
    """
    texts = [str(clause) for clause in clauses]
    return "; ".join([*texts[:SHOWN], *([f"and {len(texts) - SHOWN:,} more"] if len(texts) > SHOWN else [])])
