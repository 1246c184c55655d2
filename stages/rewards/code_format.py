"""Code format: a well-formed response whose answer holds its program in one fenced block of the right language.

Formula: 1 if it is so, else 0; problems of other checkers than `code` get None. Range {0, 1}.
Source: Open-R1, `code_format` (src/open_r1/rewards.py): think block, answer block, and in the latter a fenced block.
DeepSeek-R1 has only `format`.
How we differ: an empty block, a second one and one that is never closed earn nothing, and neither does one inside the
reasoning; a block need not stand at the beginning of a line of its own.
"""

import re
from typing import Literal

from stages.rewards.reward import Reward, Sample

_FENCED = re.compile(r"```([\w+#-]*)[ \t]*\n(.*?)```", re.DOTALL)


class CodeFormat(Reward):
    """1 for one program, marked as such."""

    kind: Literal["code_format"] = "code_format"
    scope: Literal["answer"] = "answer"
    programming_language: str = "python"
    """The word behind the opening fence."""

    def applies(self, sample: Sample) -> bool:
        return sample.problem["checker"] == "code" and super().applies(sample)

    def score(self, sample: Sample) -> float:
        answer = sample.response.answer or ""
        blocks = _FENCED.findall(answer)
        if not sample.response.well_formed or len(blocks) != 1 or answer.count("```") != 2:
            return 0.0
        language, program = blocks[0]
        return float(language.lower() == self.programming_language.lower() and bool(program.strip()))
