"""The labels by which a study file speaks of its rows: each must be that of a row, or of none."""

from collections.abc import Iterator, Sequence
from itertools import product

from ablation.papers import Claim, row_pairs
from ablation.problems import Problem, nearest
from ablation.studyfile import StudyFile
from ablation.yamlfile import Document, Trail

__all__ = ["check_labels"]


def check_labels(document: Document, file: StudyFile) -> Iterator[Problem]:
    """A problem for each label that must be a row and is not, or is and must not be.

    Rows are those as written, also where they are wrong otherwise.
    """
    axes = _axes(document, file)
    rows = [" / ".join(labels) for labels in product(*axes)] if axes else []
    if not rows:
        return
    named: list[tuple[str, Trail, str]]
    named = [] if file.baseline is None else [(file.baseline, ("baseline",), "baseline")]
    named += [(label, ("published", label), "a label in published") for label in file.published]
    for label, trail, what in named:
        if label not in rows:
            sentence = f"{what} must be a row, got {label!r}.{nearest(label, rows)}"
            yield document.problem(sentence, *trail)
    for label in file.printed:
        if label in rows:
            sentence = f"a label in printed must be no row, got {label!r}. Put it into published."
            yield document.problem(sentence, "printed", label)
    for name, claim in file.claims.items():
        yield from _check_claim(document, name, claim, axes=axes, rows=rows)


def _check_claim(
    document: Document,
    name: str,
    claim: Claim,
    *,
    axes: Sequence[Sequence[str]],
    rows: Sequence[str],
) -> Iterator[Problem]:
    known = list(dict.fromkeys([*rows, *(level for axis in axes for level in axis)]))
    what = "a row or a level" if len(axes) > 1 else "a row"
    wrong = {key: at for key in ("better", "than") if (at := getattr(claim, key)) not in known}
    for key, label in wrong.items():
        sentence = f"{key} must be {what}, got {label!r}.{nearest(label, known)}"
        yield document.problem(sentence, "claims", name, key)
    if not wrong and not [*row_pairs(axes, claim.better, claim.than)]:
        must = "two rows, or two levels of one axis" if len(axes) > 1 else "two rows"
        sentence = f"better and than must be {must}, got {claim.better!r} and {claim.than!r}."
        yield document.problem(sentence, "claims", name)


def _axes(document: Document, file: StudyFile) -> list[list[str]]:
    """Labels as written by axis, the one that a layout runs down first; rows are one axis."""
    rows, grid = document.content.get("rows"), document.content.get("grid")
    if isinstance(rows, dict):
        return [list(rows)]
    if not isinstance(grid, dict):
        return []
    down = file.layout.down if file.layout else None
    axes = [grid[name] for name in sorted(grid, key=lambda name: down is not None and name != down)]
    return [list(axis) if isinstance(axis, dict) else [] for axis in axes]
