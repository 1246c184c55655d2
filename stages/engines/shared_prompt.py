"""Log-probabilities of responses where the G responses to a problem share one pass over its prompt.

TRL (and most trainers) compute the prompt again for every response; in GRPO each prompt has 8 to 16 of them,
so half of the work can be prompts. Here each different prompt is read once into a key-value cache that keeps
its gradient, the cache is handed to every response of that prompt, and one pass over the responses does the
rest. Same gradients, less work: `tests/test_token_budget.py` compares both.

Shapes: B rows, U different prompts, P prompt tokens (padded left), C completion tokens (padded right).
"""

from typing import Any

import torch
from transformers import Cache, DynamicCache

from stages.engines.token_budget import same_prompts


def has_full_attention(model: Any) -> bool:
    """Whether every layer attends to all that came before; then a cache can be handed on."""
    config = model.config.get_text_config()
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    return layer_types == {"full_attention"} and not getattr(config, "sliding_window", None)


def completion_logprobs(
    model: Any,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
) -> Any:
    """Output of TRL's fused head (`log_probs`, `entropy`, each (B, C)); 0 where `completion_mask` is 0.

    `model` must carry TRL's fused head (`trl.trainer.utils.add_fused_lm_head`), as inside its trainers.
    """
    first, which = same_prompts(prompt_ids, prompt_mask)
    cache = DynamicCache()
    if prompt_ids.shape[1] > 1:  # the last prompt token is read with the responses: it predicts their first token
        mask = prompt_mask[first, :-1]
        last_logits(model, prompt_ids[first, :-1], mask, (mask.cumsum(1) - 1).clamp(min=0), cache)
        cache.batch_select_indices(which)
    lengths = prompt_mask.sum(1, keepdim=True)
    offsets = torch.arange(completion_ids.shape[1], device=completion_ids.device)
    return model(
        input_ids=torch.cat([prompt_ids[:, -1:], completion_ids[:, :-1]], 1),
        attention_mask=torch.cat([prompt_mask, completion_mask[:, :-1]], 1),
        position_ids=lengths - 1 + offsets,
        past_key_values=cache,
        shift_labels=completion_ids.masked_fill(completion_mask == 0, -100),
        fused_lm_head=True,
    )


def last_logits(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache
) -> torch.Tensor:
    """Logits of the last position, (rows, V); what is read goes into the cache, and gradients flow back through it."""
    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
