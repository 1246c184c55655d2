"""Rewards: one small file each, and one table.

A stage's settings list rewards as `{kind: accuracy, weight: 1.0, ...}`; `AnyReward` is the type of such an
entry. To add one, write a file beside these and enter its class in both lines below.
"""

from typing import Annotated

from pydantic import Field

from stages.rewards.accuracy import Accuracy
from stages.rewards.format import Format
from stages.rewards.harmlessness import Harmlessness
from stages.rewards.helpfulness import Helpfulness
from stages.rewards.language import Language
from stages.rewards.length import Length
from stages.rewards.repetition import Repetition
from stages.rewards.reward import PreferenceReward, Reward, Sample, Scorer, score_all, score_many

AnyReward = Annotated[
    Accuracy | Format | Length | Repetition | Language | Helpfulness | Harmlessness, Field(discriminator="kind")
]

REWARDS: dict[str, type[Reward]] = {
    "accuracy": Accuracy,
    "format": Format,
    "length": Length,
    "repetition": Repetition,
    "language": Language,
    "helpfulness": Helpfulness,
    "harmlessness": Harmlessness,
}

__all__ = ["REWARDS", "AnyReward", "PreferenceReward", "Reward", "Sample", "Scorer", "score_all", "score_many"]
