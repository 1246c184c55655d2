"""What people teach in the mini world: demos to imitate, and preferences between two answers.

Demos (`demos`) come in three kinds. `cold_start`: a few worked problems, right, readable, in the question's language,
and everyday requests answered well; as the paper's cold start they make a model readable more than right. `general`:
everyday requests only, the part of the second SFT that is no reasoning. Their writers refuse most harmful requests, not
all, and answer most others curtly, so final RL has something to do. `traces`: worked problems of which only verified
generations are left, for the recipe open-r1-distill.

Preferences (`preferences`): `helpful` prefers what was asked for, and patience to curtness; `safe` prefers refusing a
harmful request, and an answer to a harmless one that neither refuses nor turns into harm: in the paper such texts are
called safe or unsafe alone, and a policy that is paid for safety alone learns to refuse everything.
"""

from collections.abc import Iterator
from random import Random

from data_cards.mini_world.general import Choice, Instruction, greeting
from data_cards.mini_world.puzzle import Puzzle
from data_cards.mini_world.safety import HARMFUL, Request, Safety
from data_cards.mini_world.text import PATIENCE, language_of, sample
from data_cards.mini_world.voice import Voice, pick, tagged

LESSONS = {
    "cold_start": {"arithmetic": 0.05, "countdown": 0.05, "general": 0.75, "helpfulness": 0.05, "safety": 0.10},
    "traces": {"arithmetic": 0.65, "countdown": 0.35},
    "general": {"general": 0.60, "helpfulness": 0.15, "safety": 0.20, "greeting": 0.05},
}
"""Share of each domain in the demos of a config."""

WRITERS_REFUSE = 0.6
"""Share of harmful requests that the writers of demos refuse."""

WRITERS_ARE_PATIENT = 0.35
"""Share of their other answers that are patient."""

CARELESS = ("steps", "check", "faulty")
"""How the writer of traces goes about a problem."""

PREFERENCES = {"helpful": {"general": 0.6, "helpfulness": 0.4}, "safe": {"safety": 1.0}}
"""Share of each domain in the preferences of a config."""

Row = dict[str, str]


def demos(config: str, limit: int, seed: int) -> Iterator[Row]:
    """At most `limit` demos with different ids; never about a held-out puzzle."""
    rng = Random(f"demos:{config}:{seed}")
    for name, puzzle in _puzzles(LESSONS[config], "train", limit, rng):
        if puzzle is None:
            asked, answered = greeting(rng)
            language = "en" if asked.isascii() else "zh"
            response = tagged(Voice(language, rng)("easy"), answered.strip())
            yield _row(name, asked, language, "general", response=response)
            continue
        language = language_of(puzzle, rng)
        taught = _traced(puzzle, language, rng) if config == "traces" else _taught(puzzle, language, rng)
        if taught is not None:
            yield _row(name, puzzle.ask(language, rng), language, puzzle.domain, response=taught)


def preferences(config: str, split: str, limit: int, seed: int) -> Iterator[Row]:
    """At most `limit` pairs of answers to different puzzles, both bare or both in tags."""
    rng = Random(f"preferences:{config}:{split}:{seed}")
    for name, puzzle in _puzzles(PREFERENCES[config], split, limit, rng):
        assert puzzle is not None
        language = language_of(puzzle, rng)
        chosen, rejected = _pair(puzzle, language, rng)
        if rng.random() < 0.5:
            voice = Voice("mixed", rng)
            chosen, rejected = tagged(voice("easy"), chosen), tagged(voice("easy"), rejected)
        asked = puzzle.ask(language, rng)
        yield _row(name, asked, language, puzzle.domain, chosen=chosen, rejected=rejected)


def _puzzles(shares: dict[str, float], split: str, limit: int, rng: Random) -> Iterator[tuple[str, Puzzle | None]]:
    """(id, puzzle), each id once; None for a greeting, of which there are as many as one likes."""
    seen: set[str] = set()
    misses = 0
    while misses < PATIENCE and len(seen) < limit:
        domain = pick(shares, rng)
        puzzle = None if domain == "greeting" else sample(domain, split, rng)
        name = f"greeting:{len(seen)}" if puzzle is None else puzzle.key
        misses += 1
        if name not in seen:
            seen.add(name)
            misses = 0
            yield name, puzzle


def _taught(puzzle: Puzzle, language: str, rng: Random) -> str:
    """A response as a person would write it for a demo."""
    voice = Voice(language, rng)
    if isinstance(puzzle, Instruction | Choice):
        return tagged(voice("easy"), puzzle.text(next(iter(puzzle.modes)), language, rng))
    if isinstance(puzzle, Safety):
        answer = "patient" if rng.random() < WRITERS_ARE_PATIENT else "curt"
        refuses = puzzle.harmful and rng.random() < WRITERS_REFUSE
        return tagged(voice("easy"), puzzle.text("refused" if refuses else answer, language, rng))
    return puzzle.respond("check", language, voice, rng)


def _traced(puzzle: Puzzle, language: str, rng: Random) -> str | None:
    """One of one to four generations, chosen by what two judges say of each, as OpenR1's columns hold it.

    One row in ten was judged by the second alone; without any right generation there is no demo.
    """
    from data_cards.traces import chosen
    from stages.chat import parse  # here, because listing cards must not load the stages
    from stages.rewards.checkers import Verdict, check

    problem, voice = puzzle.problem(language, rng), Voice(language, rng)
    texts = [puzzle.respond(rng.choice(CARELESS), language, voice, rng) for _ in range(rng.randint(1, 4))]
    right = [check(parse(text).answer, problem) is Verdict.right for text in texts]
    judged = {"correctness_math_verify": None, "correctness_llama": right} if rng.random() < 0.1 else {}
    raw = {"generations": texts, "is_reasoning_complete": None, "correctness_math_verify": right}
    number = chosen(raw | {"correctness_llama": None} | judged)
    return None if number is None else texts[number]


def _pair(puzzle: Puzzle, language: str, rng: Random) -> tuple[str, str]:
    """(better, worse) answer, without tags."""
    if isinstance(puzzle, Instruction):
        return puzzle.text("obeyed", language, rng), _disobeyed(puzzle, language, rng)
    if isinstance(puzzle, Choice):
        return puzzle.text("known", language, rng), puzzle.text("unknown", language, rng)
    if isinstance(puzzle, Request):
        worse = rng.choice(("curt", "curt", "refused"))
        return puzzle.text("patient", language, rng), puzzle.text(worse, language, rng)
    assert isinstance(puzzle, Safety)
    if puzzle.harmful:
        return puzzle.text("refused", language, rng), puzzle.text("answered", language, rng)
    turned = Safety(rng.choice(tuple(HARMFUL)), puzzle.thing, puzzle.place)
    worse = turned.text("answered", language, rng) if rng.random() < 0.5 else puzzle.text("refused", language, rng)
    return puzzle.text("answered", language, rng), worse


def _disobeyed(puzzle: Instruction, language: str, rng: Random) -> str:
    """What was written for other instructions about the same topic, and does not satisfy these by chance."""
    from stages.rewards.checkers import Verdict, check  # here, because listing cards must not load the stages

    problem = puzzle.problem(language, rng)
    while True:
        text = puzzle.text("ignored", language, rng)
        if check(text, problem) is Verdict.wrong:
            return text


def _row(name: str, prompt: str, language: str, domain: str, **answers: str) -> Row:
    return {"id": name, "prompt": prompt, **answers, "domain": domain, "language": language}
