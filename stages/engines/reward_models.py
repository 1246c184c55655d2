"""Reward models, ready to score: how good is this text as a response to that question?

Reads a checkpoint with a head that gives one number (the logit), and `reward_model.json` beside it, which the
stage `reward_model` writes. A sequence classifier from the hub has no such file; it is asked in its own chat
template where it has one, as it was trained.

Paper: DeepSeek-R1, section 3.1. How we differ: a score is sigmoid(logit - center), in [0, 1], where `center`
is the mean logit of held-out texts after pairwise training (which fixes differences only) and 0 otherwise.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from pipeline.errors import ModelError
from pipeline.stage import ModelSource
from stages.chat import TEMPLATES
from stages.engines.models import Device, choose_device, context_length, load_classifier, load_tokenizer, quiet
from stages.engines.samplers import encode_prompts
from stages.engines.token_budget import plan
from stages.memory_plan import CPU_TOKENS
from stages.sampling import Template

SETTINGS_FILE = "reward_model.json"


class RewardModelSettings(BaseModel):
    """How a reward model was trained, and so how it must be asked; the content of `reward_model.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    template: Template
    """Name of the prompt's template in `stages/chat.py`."""
    scope: Literal["answer", "whole"]
    """The part of a response it learned to judge (`judged_text`)."""
    objective: Literal["pairwise", "pointwise"]
    center: float = 0.0
    """The logit that scores one half."""


class RewardModelScorer:
    """A reward model that scores texts: one of ours, or a sequence classifier from the hub."""

    def __init__(self, source: ModelSource, device: torch.device | Device = "auto", template: str = "chat") -> None:
        """Opens the model at `source`.

        `template` is how a question becomes a prompt where the model does not say it itself. Raises ModelError
        for a checkpoint that cannot be read or has no trained head of one number.
        """
        self.source = source
        self.settings = read_settings(source)
        place = choose_device(device) if isinstance(device, str) else device
        self.tokenizer = load_tokenizer(source)
        self.model = load_classifier(source, device=place)
        self.model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        self.template = self.settings.template if self.settings else template

    def score(self, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        """How good each text (see `judged_text`) is after the question beside it, in [0, 1].

        Raises ModelError if the model gives something that is no number.
        """
        center = self.settings.center if self.settings else 0.0
        logits = torch.tensor(self.logits(prompts, texts), dtype=torch.float64)
        return (logits - center).sigmoid().tolist()

    @torch.no_grad()
    def logits(self, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        """The head's number for each text: higher is better, without bounds. Raises as `score` does."""
        rows = self._encode(prompts, texts) if texts else []
        found = torch.zeros(len(rows))
        for micro in plan([0] * len(rows), [len(row) for row in rows], CPU_TOKENS):
            ids, mask = _right_padded([rows[i] for i in micro.rows], self.tokenizer.pad_token_id)
            place = self.model.device
            logits = self.model(input_ids=ids.to(place), attention_mask=mask.to(place)).logits
            found[list(micro.rows)] = logits.squeeze(-1).float().cpu()
        for prompt, logit in zip(prompts, found.tolist(), strict=True):
            if not math.isfinite(logit):
                raise ModelError(
                    f"the reward model at {self.source.path} gives {logit} for a response to {prompt[:60]!r}",
                    hint="its weights are spoilt: train it again with a lower learning rate",
                )
        return found.tolist()

    def _encode(self, prompts: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
        limit = context_length(self.model.config)
        if self.settings is None and self.tokenizer.chat_template:
            return [self._encode_chat(*pair, limit) for pair in zip(prompts, texts, strict=True)]
        return encode(self.tokenizer, self.template, prompts, texts, limit)

    def _encode_chat(self, prompt: str, text: str, limit: int) -> list[int]:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        written = self.tokenizer.apply_chat_template(turns, tokenize=False)
        return self.tokenizer(written, add_special_tokens=False)["input_ids"][-limit:]


def encode(
    tokenizer: PreTrainedTokenizerBase, template: str, prompts: Sequence[str], texts: Sequence[str], limit: int
) -> list[list[int]]:
    """Token ids of prompt, text and end token, in training and in scoring alike.

    What does not fit into `limit` tokens loses first the beginning of its prompt, then the end of its text.
    """
    how = TEMPLATES[template]
    with quiet():  # transformers remarks on every text that is too long; here it is cut, or counted
        heads = encode_prompts(tokenizer, [how.prompt(prompt, tokenizer) for prompt in prompts])
        tails = tokenizer([how.start + text for text in texts], add_special_tokens=False)["input_ids"]
    rows = []
    for head, tail in zip(heads, tails, strict=True):
        kept = [*tail[: limit - 1], tokenizer.eos_token_id]
        rows.append(head[max(0, len(head) + len(kept) - limit) :] + kept)
    return rows


def read_settings(source: ModelSource) -> RewardModelSettings | None:
    """What `reward_model.json` of a model says; None if there is no such file. ModelError if it is damaged."""
    options: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
    file = cached_file(source.path, SETTINGS_FILE, revision=source.revision, **options)
    if file is None:
        return None
    try:
        return RewardModelSettings.model_validate_json(Path(file).read_bytes())
    except ValidationError as error:
        raise ModelError(f"{file} is damaged: {str(error).splitlines()[0]}") from error


def _right_padded(rows: list[list[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, each (rows, longest)."""
    ids = [torch.tensor(row) for row in rows]
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return pad_sequence(ids, batch_first=True, padding_value=pad_token_id), mask
