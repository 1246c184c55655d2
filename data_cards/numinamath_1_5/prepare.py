"""NuminaMath-1.5: which problems have an answer that a rule can check.

Reads `answer`, `question_type`, `problem_is_valid` and `solution_is_valid`; leaves out what cannot be checked or was
found invalid, and says which.
"""

from collections.abc import Mapping


def row(raw: Mapping[str, str], config: str | None) -> dict[str, str] | str:
    """Nothing beside the mapped columns, or the reason for leaving the row out."""
    answer = (raw["answer"] or "").strip()
    if answer.casefold() == "proof" or raw["question_type"] == "proof":
        return "a proof"
    if not answer or answer.casefold() == "notfound":
        return "no answer found"
    if (raw["problem_is_valid"], raw["solution_is_valid"]) != ("Yes", "Yes"):
        return "problem or solution not valid"
    return {}
