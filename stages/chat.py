"""Prompts and responses: the only place that knows `<think>` and `<answer>`.

Reads a question and writes the prompt a model continues (`TEMPLATES[name].prompt`); reads a completion and
finds its reasoning and its answer (`parse`).

Paper: DeepSeek-R1, section 2.2.3 and table 1 (the training template of R1-Zero) and section 2.2.2 (format
reward).
How we differ: the wording of the template is ours; `parse` is stricter than a single regular expression, so
that a format reward can not be earned with nested, repeated or empty blocks; and an answer that stands only
inside the reasoning never counts.

A well-formed response is `<think> reasoning </think><answer> answer </answer>`: one think block with
something in it, then one answer block, only white space around them. All work here is linear in the length of
the text and no text raises.
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import ModelError

MAX_AFTER_BOX = 500  # characters; a text that goes on for longer has no final answer
THINK, END_THINK = "<think>", "</think>"
ANSWER, END_ANSWER = "<answer>", "</answer>"
TAGS = (THINK, END_THINK, ANSWER, END_ANSWER)

# Near misses (<THINK>, < think >, <think/>) are found too, to be refused. The bounds keep it linear.
_ANY_TAG = re.compile(r"<\s{0,3}/?\s{0,3}(?:think|answer)\s{0,3}/?\s{0,3}>", re.IGNORECASE)

# A turn ends at one of these. A decoder that keeps special tokens leaves them in the text.
_END_OF_TURN = re.compile(
    r"<\|endoftext\|>|<\|im_end\|>|<\|eot_id\|>|<\|end_of_text\|>|<｜end▁of▁sentence｜>|<eos>|</s>"
)

_SYSTEM = (
    "First reason about the problem inside <think> </think>, then give only the final answer inside <answer> </answer>."
)
_R1_ZERO = (
    "Below, a User and an Assistant talk. The User asks a question and the Assistant answers it. "
    "The Assistant first works through the problem in its mind and then tells the User the result. "
    "The reasoning stands inside <think> </think> and the result inside <answer> </answer>, like this: "
    "<think> the reasoning </think> <answer> the result </answer>.\nUser: {user}\nAssistant:"
)


@dataclass(frozen=True)
class Response:
    """A completion, taken apart.

    `reasoning` is None when there is no trace of a think block; `answer` is None when no answer can be told apart.
    """

    text: str
    reasoning: str | None
    answer: str | None
    well_formed: bool
    prefilled: bool = False
    """The prompt ended in `<think>`, so `text` starts inside the reasoning."""

    @property
    def turn(self) -> str:
        """What was said up to the first end-of-turn token, with the think tag that the prompt opened."""
        return (THINK if self.prefilled else "") + one_turn(self.text)


@dataclass(frozen=True)
class Template:
    """How a question becomes a prompt, and how a demo's response is written after it."""

    pattern: str = ""
    """Plain-text prompt with `{user}` in it; empty = use the tokenizer's chat template."""
    start: str = ""
    """What stands between the prompt and the think tag (the mini tokenizer writes a space)."""
    between: str = " "
    """What stands between `</think>` and `<answer>`."""
    stop: tuple[str, ...] = ()
    """Strings at which sampling may stop: a base model would go on and play the User too."""
    lead: str = ""
    """What a prefilled response says before its think tag."""

    def prompt(self, user: str, tokenizer: Any | None = None, prefilled: bool = False) -> str:
        """The text a model continues; with `prefilled` it ends in `<think>`, and the completion starts inside the
        reasoning. Raises ModelError if a chat template is needed and there is none.
        """
        return self._question(user, tokenizer) + (self.lead + self.start + THINK if prefilled else "")

    def _question(self, user: str, tokenizer: Any | None) -> str:
        if self.pattern:
            return self.pattern.replace("{user}", user)  # not .format: a question may hold braces
        if getattr(tokenizer, "chat_template", None) is None:
            raise ModelError(
                "the template 'chat' needs a tokenizer with a chat template, and this model has none",
                hint="set template: r1_zero, which is plain text and works for every base model",
            )
        return _chat_prompt(user, tokenizer)

    def response(self, reasoning: str, answer: str) -> str:
        """A demo's response as it follows the prompt, without the end token."""
        return f"{self.start}{THINK} {reasoning} {END_THINK}{self.between}{ANSWER} {answer} {END_ANSWER}"


TEMPLATES: dict[str, Template] = {
    "mini": Template(pattern="Q: {user}\nA:", start=" ", between=""),
    "r1_zero": Template(pattern=_R1_ZERO, start=" ", stop=("\nUser:",)),
    "chat": Template(lead="I take this step by step.\n"),
}


def parse(text: str, *, prefilled: bool = False) -> Response:
    """Take a completion apart.

    Args:
        text: the completion, without the prompt; with or without end-of-turn tokens.
        prefilled: the prompt ended in `<think>` (`Template.prompt`).

    The answer is what stands in the single answer block after the last `</think>`; without any answer block there, what
    stands in the single balanced `\\boxed{}` there; otherwise None. Reasoning that was never closed hides everything
    after it. What follows an end-of-turn token is not part of the response, and makes it not well-formed.
    """
    turn = one_turn(text)
    ran_on = bool(_END_OF_TURN.sub("", text[len(turn) :]).strip())
    whole = THINK + turn if prefilled else turn
    reasoning, rest = _split(whole)
    answer = None if rest is None else _answer(rest)
    return Response(text, reasoning, answer, not ran_on and _is_well_formed(whole), prefilled)


def one_turn(text: str) -> str:
    """The text up to the first end-of-turn token, without it."""
    return _END_OF_TURN.split(text, maxsplit=1)[0]


def has_tags(text: str) -> bool:
    """Whether any of the four tags, or a near miss of one, stands in the text."""
    return _ANY_TAG.search(text) is not None


def without_tags(text: str) -> str:
    """The text with every tag replaced by a space, for measures on words."""
    return _ANY_TAG.sub(" ", text)


def judged_text(response: Response, scope: Literal["answer", "whole"]) -> str | None:
    """The text a reward model reads, in training and in scoring alike; None if there is none.

    `answer`: the parsed answer, or everything when the response has no tags at all (a plain chat reply is its
    own answer). `whole`: everything, reasoning included, with the tags left out. Nothing after an end-of-turn
    token is read.
    """
    turn = one_turn(response.text)
    if scope == "whole":
        text = " ".join(piece.strip() for piece in _ANY_TAG.split(turn) if piece.strip())
    elif response.reasoning is None and not has_tags(turn):
        text = turn
    else:
        text = response.answer or ""
    return text.strip() or None


def boxed(text: str) -> str | None:
    """What stands in the only `\\boxed{}` of the text; None if there is none, more than one, it is not closed, or the
    text goes on for more than MAX_AFTER_BOX characters.
    """
    if text.count(r"\boxed") != 1:
        return None
    start = text.index(r"\boxed") + len(r"\boxed")
    if text[start : start + 1] != "{":
        return None
    depth = 0
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)  # an escaped brace is a character, not a bracket
        if depth == 0 and brace.group() == "}":
            return text[start + 1 : brace.start()] if len(text) - brace.end() <= MAX_AFTER_BOX else None
    return None


def _chat_prompt(user: str, tokenizer: Any) -> str:
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": user}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _split(whole: str) -> tuple[str | None, str | None]:
    """Reasoning, and the rest in which an answer may stand (None while the reasoning is still open)."""
    opened, closed = whole.find(THINK), whole.rfind(END_THINK)
    if closed < 0:
        return (None, whole) if opened < 0 else (whole[opened + len(THINK) :].strip(), None)
    start = opened + len(THINK) if 0 <= opened < closed else 0
    reasoning, rest = whole[start:closed].strip(), whole[closed + len(END_THINK) :]
    return reasoning, (None if THINK in rest else rest)


def _answer(rest: str) -> str | None:
    blocks = rest.count(ANSWER), rest.count(END_ANSWER)
    if blocks == (0, 0):
        found = boxed(rest)
        return None if found is None else found.strip()
    start, end = rest.find(ANSWER) + len(ANSWER), rest.find(END_ANSWER)
    return rest[start:end].strip() if blocks == (1, 1) and start <= end else None


def has_content(reasoning: str, answer: str) -> bool:
    """Whether there is anything in both: a think block of dots or of characters without width is as empty as one of
    spaces; an answer may be a sign that is no letter.
    """
    return any(map(str.isalnum, reasoning)) and any(unicodedata.category(char)[0] not in "CZ" for char in answer)


def _is_well_formed(whole: str) -> bool:
    tags = list(_ANY_TAG.finditer(whole))
    if tuple(tag.group() for tag in tags) != TAGS:
        return False
    cuts = [0, *(edge for tag in tags for edge in tag.span()), len(whole)]
    before, reasoning, between, answer, after = (whole[cuts[i] : cuts[i + 1]] for i in range(0, 10, 2))
    return has_content(reasoning, answer) and not (before.strip() or between.strip() or after.strip())
