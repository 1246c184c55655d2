"""Log-probabilities of a frozen decoder with a LoRA adapter, layer by layer over a line of tokens: the core.

Autograd would keep every layer's inside for the backward pass, or recompute all of it; it would unpack 4-bit weights
for each micro-batch, and compute a prompt once for each of its responses. Here a whole batch goes through one layer
after the other. Only the layers' inputs are kept (`kept.py`), a layer's backward pass is written out
(`decoder_layer.py`), and the gradients of the adapter are added where they belong as they come up. How much at once:
the plan (`stages/memory_plan.py`). Same gradients as the plain computation: `tests/test_layerwise.py`.

To autograd all of it is one function of the adapter, so TRL's losses stand on top as they are.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding
from transformers import LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from stages.engines.decoder_layer import LayerPass, Line, Prepared
from stages.engines.flat_rows import FlatRows
from stages.engines.fused import rms_norm, rms_norm_backward
from stages.engines.kept import Kept
from stages.engines.logprob_head import head_terms
from stages.engines.projection import is_plain
from stages.engines.shared_prompt import has_full_attention
from stages.memory_plan import Plan

NOTHING = Prepared()
FAMILIES = (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)


class LineTerms(NamedTuple):
    """Of each token that is predicted, (N,), fp32; only `logps` has a gradient."""

    logps: Tensor
    entropies: Tensor
    is_top1: Tensor


def can_go_layerwise(model: Any) -> bool:
    """Whether this model is one that is computed here: a family we know, frozen, with a plain LoRA on some layers."""
    base = model.get_base_model() if hasattr(model, "peft_config") else None
    if not isinstance(base, FAMILIES):
        return False
    config = base.config
    others = [p for name, p in model.named_parameters() if "lora_" not in name]
    linears = [m for layer in base.model.layers for m in layer.modules() if hasattr(m, "in_features")]
    outer = [m for m in linears if hasattr(m, "lora_A") or isinstance(m, torch.nn.Linear)]
    return (
        has_full_attention(base)
        and config.hidden_act == "silu"
        and not getattr(config, "attention_dropout", 0)
        and not any(p.requires_grad for p in others)
        and all(is_plain(m) for m in outer)
        and not hasattr(base.lm_head, "lora_A")
        and not hasattr(base.model.embed_tokens, "lora_embedding_A")
    )


def line_terms(
    model: Any, line: FlatRows, plan: Plan, temperature: float = 1.0, prepared: Prepared = NOTHING
) -> LineTerms:
    """Log-probabilities, entropies and top-1 hits of the tokens a line predicts."""
    options = model.get_base_model(), line, plan, temperature, prepared
    trained = next((p for p in model.parameters() if p.requires_grad), None)
    if trained is None or not torch.is_grad_enabled():
        terms, _ = _Pass(*options).forward(needs_gradient=False)
        return terms
    return LineTerms(*_LineTerms.apply(trained, *options))


class _LineTerms(torch.autograd.Function):
    """Says to autograd that a weight was used; its gradient, and all others, are added in `backward`."""

    @staticmethod
    def forward(ctx: Any, trained: Tensor, *options: Any) -> LineTerms:
        ctx.run = _Pass(*options)
        terms, ctx.direction = ctx.run.forward(needs_gradient=True)
        ctx.mark_non_differentiable(terms.entropies, terms.is_top1)
        return terms

    @staticmethod
    def backward(ctx: Any, d_logps: Tensor, *_: Any) -> tuple[None, ...]:
        run, direction = ctx.run, ctx.direction
        ctx.run = ctx.direction = None  # a second backward would find the kept tensors gone
        run.backward(d_logps, direction)
        return (None,) * 6


class _Pass:
    """One line on its way through the model and back."""

    def __init__(self, model: Any, line: FlatRows, plan: Plan, temperature: float, prepared: Prepared) -> None:
        self.model, self.plan, self.temperature, self.prepared = model, plan, temperature, prepared
        self.pieces = line
        self.device, self.dtype = model.model.norm.weight.device, model.lm_head.weight.dtype
        self.reads, self.targets = line.reads.to(self.device), line.targets.to(self.device)
        self.kept = Kept(plan.keep == "host", self.device)

    @torch.no_grad()
    @torch.autocast("cuda", enabled=False)
    def forward(self, needs_gradient: bool) -> tuple[LineTerms, Tensor | None]:
        decoder = self.model.model
        table = decoder.embed_tokens.weight  # the host's, where the plan says so, and the head with it
        hidden = embedding(self.pieces.ids.to(table.device), table).to(self.device, self.dtype)
        cos, sin = decoder.rotary_emb(hidden, self.pieces.positions.to(self.device)[None])
        self.line = Line(self.pieces, cos[0], sin[0], self.plan.tile)
        for layer in decoder.layers:
            following, out, lse = LayerPass(layer, self.line, self.dtype, self.prepared).forward(hidden)
            if needs_gradient:
                self.kept.put(*((hidden, out, lse) if self.plan.keeps_attention else (hidden,)))
            hidden = following
            del following, out, lse
        self.read = hidden[self.reads]
        del hidden
        norm = decoder.norm
        normed = rms_norm(self.read, norm.weight, norm.variance_epsilon)
        terms = head_terms(
            *(normed, self.model.lm_head.weight, self.targets, self.temperature, self.plan.head_tile, needs_gradient)
        )
        return LineTerms(terms.logps, terms.entropies, terms.is_top1), terms.direction

    @torch.no_grad()
    @torch.autocast("cuda", enabled=False)
    def backward(self, d_logps: Tensor, direction: Tensor) -> None:
        """Adds to the gradients of the adapter."""
        decoder = self.model.model
        norm = decoder.norm
        d_read = direction.mul_(d_logps[:, None])
        d_read = rms_norm_backward(d_read, self.read, norm.weight, norm.variance_epsilon)
        d_hidden = torch.zeros(len(self.pieces.ids), d_read.shape[1], dtype=self.dtype, device=self.device)
        d_hidden.index_add_(0, self.reads, d_read)
        del d_read, self.read
        for layer in reversed(decoder.layers):
            hidden, *attention = self.kept.take()
            kept = (attention[0], attention[1]) if attention else None
            d_hidden = LayerPass(layer, self.line, self.dtype, self.prepared).backward(d_hidden, hidden, kept)
