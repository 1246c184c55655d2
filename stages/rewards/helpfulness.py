"""Helpfulness: how much a person would like the final answer, as a reward model sees it.

Formula: the score of the model `helpfulness` (`helpfulness_model` of the stage) for question and answer; 0 if
there is no answer. Range [0, 1].
Paper: DeepSeek-R1, sections 3.1 and 3.2.2: the helpful reward model looks at the final summary only, so that it
interferes little with the reasoning; it is on in the last 400 of 1,700 steps only (`from_fraction: 0.765`),
because longer training on it led to reward hacking (supplementary B.5).
How we differ: the paper adds an unbounded score; here it is a probability, so that its weight means the same
for every reward model. A response whose answer cannot be told apart scores 0, unless it has no tags at all.
"""

from typing import Literal

from stages.rewards.reward import PreferenceReward


class Helpfulness(PreferenceReward):
    """The helpful reward model's score of the answer."""

    kind: Literal["helpfulness"] = "helpfulness"
    domains: tuple[str, ...] = ("general", "helpfulness")
    scope: Literal["answer", "whole"] = "answer"
