"""Code: does this program pass the tests of its problem?

Reads an answer and the gold `{"prompt": "def add(a, b):\\n", "test": "def check(candidate): …", "entry_point": "add"}`:
HumanEval's form. The program is the last fenced block of the answer, or all of it; it follows the prompt, so a whole
function and a mere body of one both count. It runs in a box (`box.py`), its tests in another, and both are gone after
WALL_LIMIT_S.

Source: HumanEval (arXiv 2107.03374); DeepSeek-R1, section 2.2.2, judges code by tests as well. How we differ: the
program only ever sees the arguments of the calls, and only plain values (numbers, texts, lists, sets, dicts …) come
back; what it does to its arguments is not seen by the tests, and only the standard library can be imported.
"""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

from stages.rewards.box import pipe, running, the_box, wait

Verdict = Literal["right", "wrong", "cannot_tell", "gold_unusable"]

MAX_CHARS = 20_000
_FENCED = re.compile(r"```(?:python3?|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_VERDICTS: dict[int | None, Verdict] = {0: "right", 1: "wrong", 2: "gold_unusable"}


def verdict(answer: str, gold: str) -> Verdict:
    """`right` when every test passes; `cannot_tell` when that is not known in time. No text raises.

    Raises ResourceError where no box holds.
    """
    task = read_gold(gold)
    if task is None:
        return "gold_unusable"
    if not answer.strip() or len(answer) > MAX_CHARS:
        return "wrong"
    program = program_of(answer, task["prompt"], task["entry_point"])
    return _VERDICTS.get(_run(program, task), "cannot_tell")


@lru_cache(maxsize=4096)
def read_gold(gold: str) -> Mapping[str, str] | None:
    """Prompt, test and entry point of a gold answer; None if it is not one."""
    try:
        fields = json.loads(gold)
        task = {name: fields[name] for name in ("prompt", "test", "entry_point")}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    is_text = all(isinstance(value, str) for value in task.values())
    return task if is_text and task["entry_point"].isidentifier() and "def check(" in task["test"] else None


def program_of(answer: str, prompt: str, entry_point: str) -> str:
    """The program that an answer stands for. The body of a function may have lost its first line's indent."""
    blocks = _FENCED.findall(answer)
    code = blocks[-1] if blocks else answer
    is_whole = re.search(rf"^(?:async )?def {entry_point}\b|^{entry_point} *=", code, re.MULTILINE)
    return f"{prompt}\n{code}" if is_whole or code[:1].isspace() else f"{prompt}\n    {code}"


def _run(program: str, task: Mapping[str, str]) -> int | None:
    """The exit code of the tests; None if they are not done in time."""
    box, name = the_box(), task["entry_point"]
    candidate = json.dumps({"program": program, "entry_point": name})
    with pipe() as (calls, asked), pipe() as (answers, replies):
        tested = box.start("candidate", candidate, calls.fileno(), replies.fileno())
        with running(tested):
            tests = box.start("tests", json.dumps(task), answers.fileno(), asked.fileno())
            with running(tests):
                for end in (calls, asked, answers, replies):
                    end.close()
                return wait(tests)
