"""Longer responses as training goes on: phases inside one stage, each with a higher length limit and more responses.

Source: DeepScaleR (Agentica, 2025): 8K tokens and 8 responses until step 1,040 of about 1,750, then 16K and 16, from
step 1,520 on 24K. DeepSeek-R1-Zero went from 32,768 to 65,536 tokens after 8,200 of 10,400 steps (section 2.2).
How we differ: they stopped by hand and started another script; here the phases are settings of one stage, a phase may
also begin by itself when too many responses are cut off, and a stage killed in any phase goes on in that phase.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

STATE_FILE = "lengthening.json"
WINDOW = 10
"""Steps over which the share of cut-off responses is averaged."""


class Phase(BaseModel):
    """A part of the training with limits of its own, as multiples of the stage's: so they follow the scale."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    from_fraction: float = Field(gt=0, lt=1, description="share of the steps after which it begins, at the latest")
    clipped_share: float | None = Field(
        None, gt=0, le=1, description=f"it begins earlier when so many responses are cut off, over {WINDOW} steps"
    )
    length: float = Field(1.0, ge=1, description="times the stage's max_completion_length")
    generations: float = Field(1.0, ge=1, description="times the stage's num_generations")


@dataclass
class Lengthening:
    """Where a run is in its phases; `current` is 0 before the first of them."""

    phases: Sequence[Phase]
    max_steps: int
    current: int = 0
    clipped: list[float] = field(default_factory=list)
    """The share of cut-off responses in the last steps of this phase."""

    @classmethod
    def resumed(cls, phases: Sequence[Phase], max_steps: int, checkpoint: Path | None) -> Self:
        """As it was saved in a checkpoint; from the beginning without one."""
        file = checkpoint / STATE_FILE if checkpoint else None
        state = json.loads(file.read_text()) if file and file.is_file() else {}
        return cls(phases, max_steps, **state)

    def save(self, checkpoint: Path) -> None:
        (checkpoint / STATE_FILE).write_text(json.dumps({"current": self.current, "clipped": self.clipped}))

    @property
    def phase(self) -> Phase:
        """What holds now."""
        begins_at_once = Phase.model_construct(from_fraction=0.0)  # which no phase of the settings may
        return self.phases[self.current - 1] if self.current else begins_at_once

    def after_step(self, step: int, clipped_share: float | None) -> bool:
        """Whether another phase begins after this step; then it has become the current one."""
        if clipped_share is not None:
            self.clipped = [*self.clipped, clipped_share][-WINDOW:]
        if self.current == len(self.phases) or step >= self.max_steps:
            return False
        following = self.phases[self.current]
        is_cut = following.clipped_share is not None and len(self.clipped) == WINDOW
        begins = step >= following.from_fraction * self.max_steps
        if begins or (is_cut and fmean(self.clipped) >= (following.clipped_share or 0)):
            self.current, self.clipped = self.current + 1, []
            return True
        return False
