r"""What the cards of reasoning traces share: choosing one of several, taking it apart, and writing the demo.

A demo of ours is `<think> reasoning </think> <answer> final answer </answer>`. The sources end a trace in a written
solution with a `\boxed{}` in it. Where there is one box, its content is the final answer, and the rest of the solution,
which says the reasoning's end again, is left away: the prompt asks for *only the final answer*, and checkers read no
answer of more than 400 characters. Without a box (code, prose) the whole solution is the answer.

No trace of theirs is `well_formed` here as it stands, and none is changed but for this.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.bad_rows import BadRow

_THOUGHT = re.compile(
    r"\s*<\|begin_of_thought\|>(.*)<\|end_of_thought\|>\s*<\|begin_of_solution\|>(.*)<\|end_of_solution\|>\s*",
    re.DOTALL,
)
BOXED_REQUEST = "Return your final response within \\boxed{}."
CODE_REQUEST = "Generate an executable Python function"


def turn(messages: Sequence[Mapping[str, Any]] | None, *roles: str) -> str:
    """The first turn of one of these roles, "" if there is none. Reads `{role, content}` and `{from, value}`."""
    for message in messages or ():
        if message.get("role", message.get("from")) in roles:
            return str(message.get("content", message.get("value")) or "").strip()
    return ""


def from_think_block(text: str) -> tuple[str, str]:
    """(reasoning, solution) of `<think> … </think> …`. Raises BadRow for a text without one whole block."""
    opening, tag, rest = text.partition("<think>")
    reasoning, closing, solution = (rest if tag else opening).partition("</think>")
    if not closing:
        raise BadRow("the reasoning is never closed")
    return _both(reasoning, solution)


def from_thought_block(text: str) -> tuple[str, str]:
    """(reasoning, solution) of the `begin_of_thought` form of Sky-T1 and OpenThoughts. Raises BadRow for another."""
    found = _THOUGHT.fullmatch(text)
    if not found:
        raise BadRow("not one thought block and one solution block")
    return _both(found[1], found[2])


def chosen(raw: Mapping[str, Any]) -> int | None:
    """Which of a problem's generations, in OpenR1's columns, is learned: the first that is whole and right, if any.

    math-verify's verdict counts first, then the Llama judge's, which is there for about one row in eight. Each of the
    lists beside `generations` may be null.
    """
    complete = raw["is_reasoning_complete"] or [True] * len(raw["generations"])
    for verdicts in (raw["correctness_math_verify"], raw["correctness_llama"]):
        for number, (is_right, is_whole) in enumerate(zip(verdicts or (), complete, strict=False)):
            if is_right and is_whole:
                return number
    return None


def demo(prompt: str, reasoning: str, solution: str) -> dict[str, str]:
    """`prompt` and `response` of a demo; the answer is the solution's box, if it has one."""
    from stages.chat import TEMPLATES, boxed, has_tags  # here, because listing cards must not load the stages

    if has_tags(reasoning) or has_tags(solution):
        raise BadRow("a think or answer tag inside the text")
    answer = boxed(solution)
    return {"prompt": prompt, "response": TEMPLATES["chat"].response(reasoning, (answer or solution).strip())}


def plain_demo(prompt: str, answer: str) -> dict[str, str]:
    """A demo without reasoning: the answer alone in its block. Raises BadRow if there is none."""
    from stages.chat import ANSWER, END_ANSWER, has_tags

    if not answer or has_tags(answer):
        raise BadRow("a think or answer tag inside the text" if answer else "no reply of the assistant")
    return {"prompt": prompt, "response": f"{ANSWER} {answer} {END_ANSWER}"}


def asked(user: str) -> tuple[str, str]:
    """(question, domain) of a user turn of Sky-T1's prompts, without the request for a box in front of it."""
    if user.startswith(BOXED_REQUEST):
        return user.removeprefix(BOXED_REQUEST).strip(), "math"
    return user, "code" if user.startswith(CODE_REQUEST) else "general"


def _both(reasoning: str, solution: str) -> tuple[str, str]:
    if not reasoning.strip() or not solution.strip():
        raise BadRow("no reasoning" if not reasoning.strip() else "no solution after the reasoning")
    return reasoning.strip(), solution.strip()
