"""AMC: answers as numbers, whole where they are.

Reads `problem` and `answer`, a float such as 142.0; makes the answer as a person would write it.
"""

from collections.abc import Mapping
from typing import Any


def row(raw: Mapping[str, Any], config: str | None) -> dict[str, str]:
    """The answer without `.0` behind a whole number."""
    answer = float(raw["answer"])
    return {"answer": str(int(answer)) if answer.is_integer() else str(answer)}
