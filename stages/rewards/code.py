"""Code: does the program in the answer pass its problem's tests?

Formula: 1 if all of them pass, else 0; None if the problem has no tests that can run. Range {0, 1}.
Paper: DeepSeek-R1, section 2.2.2: accuracy on code is judged by running predefined test cases. The name is Open-R1's.
How we differ: the program runs on this machine, in a box that was attacked before it was trusted (`box.py`); where none
holds, a stage with this reward does not start. Open-R1 pays the share of tests that pass, read from what is printed,
and runs them in a cloud sandbox or without any. Problems of other checkers get None.
"""

from collections.abc import Sequence
from typing import Literal

from stages.rewards.box import the_box
from stages.rewards.code_tests import Verdict, verdicts
from stages.rewards.reward import Reward, Sample

PAYS: dict[Verdict, float | None] = {"right": 1.0, "wrong": 0.0, "cannot_tell": 0.0, "gold_unusable": None}


class Code(Reward):
    """1 for a program that passes, 0 for any other."""

    kind: Literal["code"] = "code"
    scope: Literal["answer"] = "answer"

    def check_machine(self) -> None:
        """Raises ResourceError where programs cannot be run safely."""
        the_box()

    def applies(self, sample: Sample) -> bool:
        return sample.problem["checker"] == "code" and super().applies(sample)

    def score_many(self, samples: Sequence[Sample]) -> list[float | None]:
        pairs = [(sample.response.answer or "", sample.problem["answer"]) for sample in samples]
        return [PAYS[found] for found in verdicts(pairs)]
