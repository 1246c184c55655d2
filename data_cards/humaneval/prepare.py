"""HumanEval: a function to complete, and the tests that judge it.

Reads `{task_id, prompt, entry_point, test, canonical_solution}`; makes a question in words and the gold, which holds
what a sandbox needs to run the tests. The solution is not part of it.
"""

import json
from collections.abc import Mapping

QUESTION = "Complete this Python function. Answer with the whole function, imports included.\n\n```python\n{prompt}```"


def row(raw: Mapping[str, str], config: str | None) -> dict[str, str]:
    """The question and the gold."""
    gold = {name: raw[name] for name in ("prompt", "test", "entry_point")}
    return {"prompt": QUESTION.format(prompt=raw["prompt"]), "answer": json.dumps(gold)}
