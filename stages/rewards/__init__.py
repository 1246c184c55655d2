"""Rewards: one small file each, and one table.

A stage's settings list rewards as `{kind: accuracy, weight: 1.0, ...}`; `AnyReward` is the type of such an
entry. To add one, write a file beside these and enter its class in the union below.
"""

from typing import Annotated, get_args

from pydantic import Field

from stages.rewards.accuracy import Accuracy
from stages.rewards.binary_code import BinaryCode
from stages.rewards.code import Code
from stages.rewards.code_format import CodeFormat
from stages.rewards.correctness import Correctness
from stages.rewards.cosine import Cosine
from stages.rewards.format import Format
from stages.rewards.harmlessness import Harmlessness
from stages.rewards.helpfulness import Helpfulness
from stages.rewards.integer import Int
from stages.rewards.language import Language
from stages.rewards.length import Length
from stages.rewards.reasoning_steps import ReasoningSteps
from stages.rewards.repetition_penalty import RepetitionPenalty
from stages.rewards.reward import PreferenceReward, Reward, Sample, Scorer, score_many, table_of
from stages.rewards.soft_format import SoftFormat
from stages.rewards.soft_overlong_punishment import SoftOverlongPunishment
from stages.rewards.strict_format import StrictFormat
from stages.rewards.tag_count import TagCount
from stages.rewards.xmlcount import XmlCount

# DeepSeek-R1; Open-R1, by its names; Unsloth's GSM8K notebook.
AnyReward = Annotated[
    (Accuracy | Format | Language | Helpfulness | Harmlessness)
    | (TagCount | ReasoningSteps | Cosine | RepetitionPenalty | SoftOverlongPunishment | Length)
    | (Code | BinaryCode | CodeFormat)
    | (Correctness | Int | StrictFormat | SoftFormat | XmlCount),
    Field(discriminator="kind"),
]

REWARDS: dict[str, type[Reward]] = table_of(get_args(get_args(AnyReward)[0]))
"""The class of each kind."""

__all__ = ["REWARDS", "AnyReward", "PreferenceReward", "Reward", "Sample", "Scorer", "score_many"]
