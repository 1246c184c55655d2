"""AIME: answers as whole numbers, whatever they were before.

Reads `problem` and `answer`; makes the answer, an integer from 0 to 999, without zeros in front: sources give it as
"033", 33 or 33.0.
"""

from collections.abc import Mapping
from typing import Any


def row(raw: Mapping[str, Any], config: str | None) -> dict[str, str]:
    """The answer as a bare number."""
    return {"answer": f"{float(raw['answer']):.0f}"}
