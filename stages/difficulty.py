"""Which problems are worth learning from: those that a model solves sometimes, but not always.

Reads `problems.parquet` of a rejection_sampling stage (one row a problem, with its `pass_rate`). A group of responses
that are all wrong or all right has no gradient (paper §2.1: the advantage is the deviation from the group's mean), so
steps spent on such problems teach nothing. Open-R1 keeps problems with pass rates from 0.1 to 0.9; DAPO samples until
a group differs, which costs the samples thrown away. Here the rates are measured once, by a stage of their own.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.card import Row
from pipeline.errors import DataError
from pipeline.sources import read_rows

FILE = "problems.parquet"


def read_pass_rates(folder: Path) -> dict[str, float]:
    """Prompt -> share of its samples that were right; DataError when the folder holds no such rates."""
    if not (folder / FILE).is_file():
        raise DataError(
            f"pass_rates: {folder.name} has no {FILE}, so nothing says how hard its problems are",
            hint="name a stage of kind rejection_sampling",
        )
    return {row["prompt"]: row["pass_rate"] for row in read_rows(folder / FILE) if row["pass_rate"] is not None}


def within(problems: Sequence[Row], rates: dict[str, float], lowest: float, highest: float) -> list[Row]:
    """The problems with `lowest` <= pass rate <= `highest`, in order; DataError if there is none.

    A problem that was never sampled (a duplicate, or one that an evaluation set holds) has no rate and is left out.
    """
    kept = [problem for problem in problems if lowest <= rates.get(problem["prompt"], -1.0) <= highest]
    if not kept:
        raise DataError(
            f"none of {len(problems)} problems has a pass rate from {lowest:g} to {highest:g}",
            hint="lower min_pass_rate, raise max_pass_rate, or take more samples of each problem",
        )
    return kept
