"""Code: does the program in the answer pass its problem's tests?

Formula: 1 if all of them pass, else 0; None if the problem has no tests that can run. Range {0, 1}.
Paper: DeepSeek-R1, section 2.2.2: accuracy on code is judged by running predefined test cases. The name is Open-R1's.
How we differ: the program runs on this machine, in a box that was attacked before it was trusted (`box.py`); where none
holds, a stage with this reward does not start. Open-R1 pays the share of tests that pass, read from what is printed,
and runs them in a cloud sandbox or without any. Problems of other checkers get None.
"""

from typing import Literal

from stages.rewards.accuracy import Accuracy
from stages.rewards.box import the_box
from stages.rewards.reward import Sample


class Code(Accuracy):
    """1 for a program that passes, 0 for any other."""

    kind: Literal["code"] = "code"  # type: ignore[assignment]

    def check_machine(self) -> None:
        """Raises ResourceError where programs cannot be run safely."""
        the_box()

    def applies(self, sample: Sample) -> bool:
        return sample.problem["checker"] == "code" and super().applies(sample)
