"""Reward models: how good is this text as a response to that question?"""

from collections.abc import Sequence

from pipeline.stage import ModelSource
from stages.engines.models import Device


class RewardModelScorer:
    """A reward model that is ready to score: one of ours, or a sequence classifier from the hub."""

    def __init__(self, source: ModelSource, device: Device = "auto", template: str = "chat") -> None:
        """Opens the model at `source`; an artifact of ours brings its own template along, which wins."""
        raise NotImplementedError

    def score(self, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        """The score of each text (see `judged_text`) after the question beside it, in [0, 1]."""
        raise NotImplementedError
