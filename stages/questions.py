r"""Which questions are worth answering: what makes one unfit by its wording alone, in mathematics and in code.

Reads a row with a prompt; gives the name of the first rule that it fails (`Questions.reason_to_drop`).

Source: OpenThoughts v1 (open_thoughts/): no mathematics with figures, several parts or a proof; no code with links or
images, of fewer than 200 characters, or without tests. How we differ: v1 looks for words anywhere, so "the image of
the point" and "two-digit figure" go too; here a question must point at a picture, or hold one, and each of two parts
must ask something: conditions (i) and (ii) are no questions. Rows of other domains pass. A proof that a source marks as
one is left out by its card already.
"""

import re
from collections.abc import Callable, Mapping

from pydantic import BaseModel, ConfigDict, Field

from stages.rewards.code_tests import read_gold

_PICTURE = r"(?:figure|diagram|picture|image|sketch|drawing)s?"
_FIGURE = re.compile(
    rf"\[asy\]|\\includegraphics|\\begin\{{(?:tikzpicture|asy)\}}|!\[[^\[\]]*\]\(|<img\b"
    rf"|\b(?:in|see|from|on|by|of)\s+the\s+(?:\w+\s+){{0,3}}?{_PICTURE}\b(?!\s+of\b)"
    rf"|\b{_PICTURE}\s+(?:\w+\s+)?(?:below|above|at\s+(?:the\s+)?(?:right|left)|shows?\b|on\s+the\s+(?:right|left))"
    rf"|\bsee\s+{_PICTURE}\b|\bas\s+(?:shown|pictured|illustrated|drawn)\b|\b(?:shown|pictured)\s+(?:below|above|here)\b",
    re.IGNORECASE,
)
_ASKS = (
    r"\s+(?:(?:\w+\s+){0,2}?(?:find|determine|compute|calculate|evaluate|prove|show|what|how|which|solve|give|state)"
    r"|is|are|does|do|can)\b"
)
_PARTS = re.compile(
    rf"(?:\(?\ba\){_ASKS}.{{1,1000}}?\(?\bb\)|\(?\bi\){_ASKS}.{{1,1000}}?\(?\bii\)){_ASKS}"
    rf"|\bpart\s+\(?(?:a|1|i)\)?\W{_ASKS}.{{1,1000}}?\bpart\s+\(?(?:b|2|ii)\)?\W{_ASKS}",
    re.DOTALL | re.IGNORECASE,
)
_PROOF = re.compile(r"(?:^|[.;:!?]\s+|\)\s*)(?:prove|show)\s+that\b|\bprove\s*:", re.IGNORECASE)
MAX_CHARS = 20_000
"""No question in mathematics goes on for longer; what follows is not looked at."""
_LINK = re.compile(r"https?://|\bwww\.|!\[[^\[\]]*\]\(|<img\b", re.IGNORECASE)


class Questions(BaseModel):
    """What a question must be like; false or null switches a rule off."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    figures: bool = Field(True, description="mathematics: nothing that has to be seen")
    parts: bool = Field(True, description="mathematics: one question, not (a) and (b)")
    proofs: bool = Field(True, description="mathematics: an answer is asked for, not a proof")
    links: bool = Field(True, description="code: no address and no image")
    min_code_chars: int | None = Field(200, ge=1, description="code: the fewest characters of a question")
    tests: bool = Field(True, description="code: a problem has tests that can be run")

    def reason_to_drop(self, row: Mapping[str, str]) -> str | None:
        """The name of the first rule that the question fails, None if it passes all. No text raises."""
        rules = FAILS.get(row.get("domain", ""), {})
        return next((name for name, fails in rules.items() if fails(self, row)), None)


def _is_too_short(questions: Questions, row: Mapping[str, str]) -> bool:
    return questions.min_code_chars is not None and len(row["prompt"]) < questions.min_code_chars


def _has_no_tests(questions: Questions, row: Mapping[str, str]) -> bool:
    return questions.tests and row.get("checker") == "code" and read_gold(row["answer"]) is None


FAILS: dict[str, dict[str, Callable[[Questions, Mapping[str, str]], bool]]] = {
    "math": {
        "figure": lambda questions, row: questions.figures and bool(_FIGURE.search(row["prompt"][:MAX_CHARS])),
        "several_parts": lambda questions, row: questions.parts and bool(_PARTS.search(row["prompt"][:MAX_CHARS])),
        "proof": lambda questions, row: questions.proofs and bool(_PROOF.search(row["prompt"][:MAX_CHARS])),
    },
    "code": {
        "link": lambda questions, row: questions.links and bool(_LINK.search(row["prompt"])),
        "too_short": _is_too_short,
        "no_tests": _has_no_tests,
    },
}
"""Domain -> name of the rule in counts and cards -> the rule."""
