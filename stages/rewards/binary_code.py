"""Binary code: does the program in the answer pass all tests of its problem?

Formula: as `code`: 1 if all of them pass, else 0; None if the problem has no tests that can run. Range {0, 1}.
Source: Open-R1, `binary_code` (src/open_r1/rewards.py): 1 where its `code`, the share of tests passed, is above 0.99.
How we differ: our `code` pays nothing for a part of the tests, so both say the same; this name is here so that a recipe
can be carried over as it is.
"""

from typing import Literal

from stages.rewards.code import Code


class BinaryCode(Code):
    """1 for a program that passes, 0 for any other."""

    kind: Literal["binary_code"] = "binary_code"  # type: ignore[assignment]
