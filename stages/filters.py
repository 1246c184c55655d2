"""Which right answers are also good to read: the filters of rejection sampling.

Reads a parsed response; gives the name of the first filter that it fails (`Filters.reason_to_drop`).

Paper: DeepSeek-R1, section 2.3.3: chains of thought with mixed languages, long paragraphs and code blocks are
filtered out; section 2.3.1 filters repetition out of the cold-start data.
How we differ: the paper gives no numbers; ours are settings. Their defaults let every one of a few dozen real
R1 traces pass (least share of English 0.968, longest paragraph 1,421 characters, most repeated 10-grams 4.7 %)
and stop what is clearly worse. Each filter has a switch, because OpenThoughts3 (arXiv 2506.04178) found that
filtering answers gained nothing.
"""

import re
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field

from stages.chat import Response, without_tags
from stages.language import language_share
from stages.rewards.repetition_penalty import repeated_share

REPETITION_NGRAM = 10
"""Words (Chinese: characters) that count as said again; careful reasoning repeats a third of its 3-grams."""

_CODE_BLOCK = re.compile(r"```|~~~|<(?:code|pre)\b|\\begin\{(?:verbatim|lstlisting|minted)\}", re.IGNORECASE)
_PARAGRAPHS = re.compile(r"\n[^\S\n]*\n")


class Filters(BaseModel):
    """What a response must be like beside being right; null or false switches a filter off."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    well_formed: bool = Field(True, description="one think block, one answer block, and nothing around them")
    mixed_languages: float | None = Field(
        0.95, ge=0, le=1, description="lowest share of the reasoning's words that are in the problem's language"
    )
    long_paragraphs: int | None = Field(2000, ge=1, description="most characters of a paragraph of the reasoning")
    code_blocks: bool = Field(True, description="no code block in the reasoning")
    repetition: float | None = Field(0.1, ge=0, le=1, description="highest share of 10-grams that were said before")

    def reason_to_drop(self, response: Response, language: str) -> str | None:
        """The name of the first filter that the response fails, None if it passes all. No text raises."""
        return next((name for name, fails in FAILS.items() if fails(self, response, language)), None)


def _is_mixed(filters: Filters, response: Response, language: str) -> bool:
    if filters.mixed_languages is None:
        return False
    share = language_share(_reasoning(response), language)
    return share is not None and share < filters.mixed_languages


def _has_long_paragraph(filters: Filters, response: Response, language: str) -> bool:
    longest = max(len(paragraph.strip()) for paragraph in _PARAGRAPHS.split(_reasoning(response)))
    return filters.long_paragraphs is not None and longest > filters.long_paragraphs


def _repeats_itself(filters: Filters, response: Response, language: str) -> bool:
    return filters.repetition is not None and repeated_share(response.text, REPETITION_NGRAM) > filters.repetition


def _reasoning(response: Response) -> str:
    return without_tags(response.reasoning or "")


FAILS: dict[str, Callable[[Filters, Response, str], bool]] = {
    "not_well_formed": lambda filters, response, _: filters.well_formed and not response.well_formed,
    "mixed_languages": _is_mixed,
    "long_paragraphs": _has_long_paragraph,
    "code_blocks": lambda filters, response, _: filters.code_blocks and bool(_CODE_BLOCK.search(_reasoning(response))),
    "repetition": _repeats_itself,
}
"""Name of the filter in counts and cards, and its rule; a response is counted under the first that it fails."""
