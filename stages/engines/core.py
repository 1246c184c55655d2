"""The model in training as the core computes it: what it may use of the GPU, and the plan for each step.

Used on CUDA for a frozen decoder with a LoRA adapter (`can_go_layerwise`); everything else goes the way of the
libraries. How much memory a step may take: what the stage was told (`memory_gb`), or what is free when it begins.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.training_args import OptimizerNames

from pipeline.errors import ResourceError
from stages.engines.decoder_layer import Prepared
from stages.engines.flat_rows import FlatRows
from stages.engines.layer_weights import gathered, stacks
from stages.engines.layerwise import LineTerms, can_go_layerwise, line_terms
from stages.engines.long_attention import padded_length
from stages.engines.outer_weights import OuterWeights
from stages.engines.token_budget import lowered
from stages.memory_plan import CONTEXT_BYTES, GIB, MAX_TOKENS, Plan, Setup, Shape, make_plan, resident_bytes

# Of what is free, as the allocator cannot fill it to the last byte.
_USABLE = 0.9
# Less than this share of the first step's allowance and no step will ever fit.
_LEAST = 0.2


class Core:
    """See the module docstring."""

    def __init__(self, model: Any, optim: str, memory_gb: float | None = None) -> None:
        config = model.config.get_text_config()
        trained = _in_order(model)
        rank = next(iter(model.peft_config.values())).r
        is_quantized = bool(getattr(model, "is_loaded_in_4bit", False))
        self.model, self.device = model, trained[0].device
        self._gather(trained)
        self.shape = Shape.of(config.to_dict())
        self.setup = Setup(rank, is_quantized, 2 if "8bit" in OptimizerNames(optim).value else 8)
        self.memory_gb, self.share = memory_gb, 1.0
        self.outer = OuterWeights(model.get_base_model())
        self.plan = Plan(MAX_TOKENS, "gpu", True, MAX_TOKENS, MAX_TOKENS)

    def _gather(self, trained: list[torch.nn.Parameter]) -> None:
        """All weights in one, and all gradients, each a view: an optimiser has one weight and not some hundreds.

        In fp32: TRL rounds a quantised model's adapter to bf16, where small steps are lost. Passes compute with a copy
        in the model's type, made once a step. The old weights go before the new ones come: there may be room for one.
        """
        base, sizes = self.model.get_base_model(), [weight.numel() for weight in trained]
        shapes = [weight.shape for weight in trained]
        together = torch.cat([weight.detach().cpu().float().flatten() for weight in trained])
        for weight in trained:
            weight.data = weight.data.new_empty(0)
        self._gradient, gradients = _without_room(together, torch.float32, self.device, shapes)
        self._copy, copies = _without_room(together, base.lm_head.weight.dtype, self.device, shapes)
        together = torch.nn.Parameter(together.to(self.device))
        self.optimized = torch.nn.ParameterDict({"adapter": together})
        for weight, data, shape in zip(trained, together.detach().split(sizes), shapes, strict=True):
            weight.data = data.view(shape)
        self._trained = list(zip(trained, gradients, strict=True))
        by_weight = {id(weight): copy for weight, copy in zip(trained, copies, strict=True)}
        self._prepared = Prepared(gathered(base.model), by_weight)

    def rest(self) -> None:
        """Between steps, when others want the memory and the model: what the next step makes anew is gone, and all
        weights are on the GPU.
        """
        if self._trained[0][0].grad is None:
            for made_anew in (self._gradient, self._copy):
                _give_room(made_anew)
        self.outer.come_back()

    def begin(self) -> None:
        """Once the step is planned, before gradients are added: from zero, unless some are there already."""
        if self._trained[0][0].grad is None:
            _take_room(self._gradient)
            self._gradient.zero_()
            for weight, gradient in self._trained:
                weight.grad = gradient
            self.optimized["adapter"].grad = self._gradient

    def end(self) -> None:
        """After gradients were added, by all processes: where none came up there is none, and no optimiser moves."""
        if not self._gradient.any():
            self.optimized["adapter"].grad = None
            for weight, _ in self._trained:
                weight.grad = None

    def plan_step(self, longest: int, batch_tokens: int) -> Plan:
        """The plan for a step whose longest row and whose rows together have so many tokens.

        The embedding and the head go where it says, until `rest`.
        """
        if self.device.type == "cuda":
            allowed = lowered(int(self._allowed() * self.share))
            gone = sum(tensor.nbytes for tensor in (self._gradient, self._copy) if not _has_room(tensor))
            here = torch.cuda.memory_allocated(self.device) + self.outer.away_bytes + gone
            resident = max(here, resident_bytes(self.shape, self.setup))
            self.plan = make_plan(self.shape, self.setup, allowed, padded_length(longest), batch_tokens, resident)
        if self.plan.outer == "host":
            self.outer.leave()
        else:
            self.outer.come_back()
        _take_room(self._copy)
        self._copy.copy_(self.optimized["adapter"].detach())
        return self.plan

    def lower(self) -> str:
        """After running out of memory: less from now on. Returns a note; ResourceError when nothing is left to give."""
        self.share *= 0.8
        if self.share < _LEAST or not self.plan.fits:
            raise ResourceError(
                f"the GPU's memory is too small even for the smallest plan ({self.plan.peak_bytes / GIB:.1f} GiB)",
                hint="shorten the responses, set quantization: nf4 and optim: adamw_8bit, or lower lora.rank",
            )
        return f"out of GPU memory: going on with {self.share:.0%} of it"

    def terms(self, line: FlatRows, temperature: float = 1.0) -> LineTerms:
        """See `line_terms`; of the adapter as it was at the last `plan_step`."""
        return line_terms(self.model, line, self.plan, temperature, self._prepared)

    def _allowed(self) -> int:
        if self.memory_gb is not None:
            return int(self.memory_gb * 1e9) - CONTEXT_BYTES
        free, _ = torch.cuda.mem_get_info(self.device)
        return torch.cuda.memory_reserved(self.device) + int(free * _USABLE)


def _without_room(
    like: Tensor, dtype: torch.dtype, device: torch.device, shapes: list[torch.Size]
) -> tuple[Tensor, list[Tensor]]:
    """A tensor like `like` and its parts as views, all without memory until `_take_room`."""
    whole = torch.empty_like(like, dtype=dtype, device=device)
    parts = [part.view(shape) for part, shape in zip(whole.split([s.numel() for s in shapes]), shapes, strict=True)]
    _give_room(whole)
    return whole, parts


def _has_room(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() > 0


def _take_room(tensor: Tensor) -> None:
    if not _has_room(tensor):
        tensor.untyped_storage().resize_(tensor.nbytes)


def _give_room(tensor: Tensor) -> None:
    tensor.untyped_storage().resize_(0)


def _in_order(model: Any) -> list[torch.nn.Parameter]:
    """What is trained; the A of layers with the same input next to each other, so that they are one matrix."""
    adapted = [[layer for layer in stack if hasattr(layer, "lora_A")] for stack in stacks(model.get_base_model().model)]
    names = [(stack, side) for stack in adapted for side in ("lora_A", "lora_B")]
    weights = [weight for stack, side in names for layer in stack for weight in getattr(layer, side).parameters()]
    return [weight for weight in weights if weight.requires_grad]


def core_of(model: Any, device: torch.device, optim: str, memory_gb: float | None = None) -> Core | None:
    """The core for a model in training; None where it is not for this model or machine."""
    return Core(model, optim, memory_gb) if device.type == "cuda" and can_go_layerwise(model) else None


def scattered(values: Tensor, line: FlatRows, like: Tensor) -> Tensor:
    """What was found of each predicted token, (N,), in the rectangle it came from; 0 elsewhere."""
    places = line.rows.to(values.device), line.columns.to(values.device)
    return torch.zeros(like.shape, dtype=values.dtype, device=values.device).index_put(places, values)
