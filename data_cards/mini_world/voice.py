"""How the mini world speaks: the few words of reasoning in two languages, and the tags around them.

The world's text is data, and part of it is badly written on purpose, so the tags are spelled out here.
Programs that read or build real prompts and responses use `stages.chat`; a test holds the two together.
"""

from random import Random

LANGUAGES = ("en", "zh")

TAGGED = 0.25
"""Share of the answers to everyday requests that stand in tags."""

# piece of reasoning -> (English, Chinese), with the spaces each language needs around numbers
PIECES = {
    "easy": (" easy", " 简单"),
    "first": (" first ", " 先算"),
    "then": (" then ", "，再算"),
    "check": (" check ", "，检查"),
    "and": (" and ", "，"),
    "ok": (" ok", "，对"),
    "wait": (" wait", "，等等"),
    "try": (" try ", " 试试"),
    "no": (" no ", "不行，"),
    "yes": (" yes", "可以"),
}

# The language of the reasoning hardly depends on that of the question: RL on right answers leaves it so.
SAME, OTHER, MIXED = 0.30, 0.25, 0.45


class Voice:
    """Says pieces of reasoning in one language, or in a random one each time when `language` is "mixed"."""

    def __init__(self, language: str, rng: Random) -> None:
        self.language = language
        self._rng = rng

    def __call__(self, piece: str) -> str:
        if self.language == "mixed":
            return PIECES[piece][self._rng.random() < 0.5]
        return PIECES[piece][self.language == "zh"]


def random_voice(asked_in: str, rng: Random) -> Voice:
    """A voice for a question asked in `asked_in`: the same language, the other one, or both mixed."""
    draw = rng.random()
    if draw < MIXED:
        return Voice("mixed", rng)
    if draw < MIXED + SAME:
        return Voice(asked_in, rng)
    return Voice("en" if asked_in == "zh" else "zh", rng)


def tagged(reasoning: str, answer: str) -> str:
    """A well-formed response in the template `mini` of `stages.chat`; `reasoning` begins with a space."""
    return f" <think>{reasoning} </think><answer> {answer} </answer>"


def badly_tagged(reasoning: str, answer: str, rng: Random) -> str:
    """The same with one tag missing: no such response counts as well-formed."""
    return rng.choice(
        (
            f" <think>{reasoning} <answer> {answer} </answer>",
            f" <think>{reasoning} </think> {answer}",
            f"{reasoning} </think><answer> {answer} </answer>",
            f" <think>{reasoning} </think><answer> {answer}",
        )
    )


def maybe_tagged(text: str, voice: Voice, rng: Random) -> str:
    """An everyday answer: mostly bare, sometimes in tags with hardly a thought before it."""
    return tagged(voice("easy"), text) if rng.random() < TAGGED else f" {text}"


def pick(shares: dict[str, float], rng: Random) -> str:
    """One key of `shares`, as often as its share (they sum to one) says."""
    draw = rng.random()
    for name, share in shares.items():
        draw -= share
        if draw < 0:
            return name
    return next(reversed(shares))
