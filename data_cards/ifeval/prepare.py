"""IFEval: the demands of a prompt as the gold that `stages/rewards/ifeval.py` checks.

Reads `{prompt, instruction_id_list, kwargs}`; makes the gold. On the hub each entry of `kwargs` has every key there is,
null where it does not apply; those are left away.
"""

import json
from collections.abc import Mapping
from typing import Any


def row(raw: Mapping[str, Any], config: str | None) -> dict[str, str]:
    """The gold: instruction ids, and the settings of each."""
    settings = [{key: value for key, value in given.items() if value is not None} for given in raw["kwargs"]]
    gold = {"instruction_id_list": raw["instruction_id_list"], "kwargs": settings}
    return {"id": f"ifeval-{raw['key']}", "answer": json.dumps(gold, ensure_ascii=False)}
