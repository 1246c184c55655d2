"""The mini world: problems and text about them, generated without end and without a network.

What it is: kinds of puzzle (`arithmetic`, `countdown`, `general`, `safety`, `helpfulness`). A puzzle can be asked in
English and in Chinese, has a checkable answer, and can be answered in several *modes*: directly, with steps,
with steps and a check, with faulty steps, with broken tags. Text for pretraining is a random mixture of
these modes, so a base model holds good and bad habits side by side and reinforcement learning can choose
among them (DeepSeek-R1, section 2.2). The paper's base has read the web; ours reads only this.

What it makes: `problems(...)` for the `mini_*` problem cards, `documents(...)` for the `mini_text` card, `demos(...)`
and `preferences(...)` for the cards `mini_demos` and `mini_preferences`. A puzzle whose canonical key falls into the
held-out share never stands in a document or a demo, in any wording, order or language.

See it: `python -m data_cards.mini_world`.
"""

from data_cards.mini_world.lessons import demos, preferences
from data_cards.mini_world.puzzle import HELD_OUT, Puzzle, held_out
from data_cards.mini_world.text import PUZZLES, document, documents, problems

__all__ = [
    "HELD_OUT",
    "PUZZLES",
    "Puzzle",
    "demos",
    "document",
    "documents",
    "held_out",
    "preferences",
    "problems",
]
