"""GSM8K: takes the worked solution and the final number apart.

Reads rows `{question, answer}`; makes what `columns:` in the card cannot: the bare gold, and for the configs
`demos` and `socratic` the response of a cold-start demo. In the paper those are R1-Zero's, polished; here people
wrote them.
"""

import re
from collections.abc import Mapping

CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
SUB_QUESTION_MARK = re.compile(r" *\*\* +")


def row(raw: Mapping[str, str], config: str | None) -> dict[str, str]:
    """The gold answer, or for `demos` and `socratic` the response."""
    solution, _, final = raw["answer"].rpartition("####")
    answer = final.strip().replace(",", "")
    if config not in ("demos", "socratic"):
        return {"answer": answer}
    from stages.chat import TEMPLATES  # here, because listing cards must not load the stages

    reasoning = SUB_QUESTION_MARK.sub(" ", CALCULATOR_MARK.sub("", solution)).strip()
    return {"response": TEMPLATES["chat"].response(reasoning, answer)}
