"""Documents for pretraining and problems for training and evaluation, drawn lazily and reproducibly."""

from collections.abc import Iterator
from random import Random

from data_cards.mini_world.arithmetic import Arithmetic
from data_cards.mini_world.countdown import Countdown
from data_cards.mini_world.general import Choice, Instruction, greeting
from data_cards.mini_world.puzzle import Puzzle, held_out
from data_cards.mini_world.safety import Request, Safety
from data_cards.mini_world.voice import LANGUAGES, pick, random_voice

PUZZLES: dict[str, tuple[type[Puzzle], ...]] = {
    "arithmetic": (Arithmetic,),
    "countdown": (Countdown,),
    "general": (Instruction, Choice),
    "safety": (Safety,),
    "helpfulness": (Request,),
}
SHARES = {"arithmetic": 0.50, "countdown": 0.26, "general": 0.15, "safety": 0.07, "greeting": 0.02}
"""Share of each domain in the pretraining text."""

PATIENCE = 3000
"""Known puzzles drawn in a row before a domain counts as used up."""


def documents(limit: int | None, seed: int) -> Iterator[str]:
    """Pretraining documents, one question with its response each; never about a held-out puzzle."""
    rng = Random(f"text:{seed}")
    made = 0
    while limit is None or made < limit:
        domain = pick(SHARES, rng)
        if domain == "greeting":
            asked, answered = greeting(rng)
            yield f"Q: {asked}\nA:{answered}"
        else:
            yield document(sample(domain, "train", rng), rng)
        made += 1


def document(puzzle: Puzzle, rng: Random) -> str:
    """One puzzle asked in a random language and answered in a random mode and voice."""
    language = language_of(puzzle, rng)
    mode, voice = pick(puzzle.modes, rng), random_voice(language, rng)
    return f"Q: {puzzle.ask(language, rng)}\nA:{puzzle.respond(mode, language, voice, rng)}"


def problems(domain: str, split: str, limit: int | None, seed: int) -> Iterator[dict[str, str]]:
    """Problem rows with distinct ids; fewer than `limit` when the domain has no more puzzles in `split`."""
    rng = Random(f"{domain}:{split}:{seed}")
    seen: set[str] = set()
    misses = 0
    while misses < PATIENCE and (limit is None or len(seen) < limit):
        puzzle = sample(domain, split, rng)
        misses += 1
        if puzzle.key not in seen:
            seen.add(puzzle.key)
            misses = 0
            yield puzzle.problem(language_of(puzzle, rng), rng)


def sample(domain: str, split: str, rng: Random) -> Puzzle:
    """A random puzzle of a domain that belongs to the split."""
    kinds = PUZZLES[domain]
    while True:
        puzzle = (rng.choice(kinds) if len(kinds) > 1 else kinds[0]).sample(rng)
        if held_out(puzzle) == (split == "eval"):
            return puzzle


def language_of(puzzle: Puzzle, rng: Random) -> str:
    """A random language in which the puzzle can be asked."""
    return rng.choice(getattr(puzzle, "languages", LANGUAGES))
