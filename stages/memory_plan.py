"""What a training pass over a frozen model with a LoRA adapter needs of a GPU's memory, and the fastest plan that fits.

Reads a model's `config.json` as a mapping and a few numbers; imports no torch, loads nothing. Used before a run (the
forecast) and in it (`stages/engines/layerwise.py`). How to use it:

    shape = Shape.of(config)                              # a mapping with hidden_size, num_hidden_layers, …
    setup = Setup(rank=32, quantized=True, optimizer_bytes=2)
    resident_bytes(shape, setup)                          # weights, adapter, gradients, optimiser
    plan = make_plan(shape, setup, allowed_bytes, longest=1042, batch_tokens=8336)
    plan.peak_bytes, plan.fits                            # resident memory and the pass, both phases of it

A plan says how many tokens ride in one pass, where the layers' inputs wait for the backward pass (`keep`: on the GPU
or in pinned host memory), whether the attention's outputs wait with them, how many tokens the wide parts of a layer
(the gated MLP, the head's logits) take at once, and where the embedding and the head are meanwhile. Everything that a
plan changes costs little speed; what costs most is given up last. The bytes are an estimate from the shapes, checked
against one H100 in `docs/performance.md`.

All sizes are bytes of torch's allocator: the CUDA context (`CONTEXT_BYTES`) comes on top.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

GIB = 2**30
# What CUDA, its libraries and the kernels' code take of a card beside the allocator: 0.73 to 0.80 GiB in training on an
# H100 (docs/results/core.json), and recorded graphs.
CONTEXT_BYTES = GIB * 7 // 8
# cuBLAS keeps 32 MiB of the allocator's memory for each of its handles and streams, on an H100.
WORKSPACE_BYTES = 2**27
# What the allocator cannot use because of the sizes of its blocks, as a share.
FRAGMENTATION = 0.05

HALF, SINGLE = 2, 4  # bytes of a bf16 and an fp32 number
# bitsandbytes: 4 bits a weight, a scale of 8 bits for 64 of them, and a scale of the scales for 256 of those.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# Beyond these the matrices are so large that more tokens at once are no faster; of a narrow model it takes more tokens.
MAX_TOKENS, MAX_NUMBERS = 16384, 2**25
MIN_TILE = 256
TILES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
HEAD_TILES = (1024, 512, 256, 128, 64)
# Of a head that waits on the host, so much comes at once.
SLICE_BYTES = 2**26
# On a CPU a micro-batch that fits the caches is faster than a bigger one; measured on the mini model.
CPU_TOKENS = 8192

# A coarse model of time, from profiles on an H100: with all that Python does around it a kernel takes about 70 µs to
# send (16,002 took 1.15 s) while the GPU computes at about 200 TFLOP/s (0.3 s for 6,544 tokens of 1.5B), attention at
# 300, and pinned memory is read at 20 GB/s.
SECONDS_A_KERNEL, MATRIX_FLOPS, ATTENTION_FLOPS, HOST_BYTES_A_SECOND = 70e-6, 2e14, 3e14, 2e10
# What sending costs where the GPU is busy longer: next to nothing.
HIDDEN = 0.05
# Kernels of a layer, and of each of its tiles and the head's, forward and backward.
LAYER_KERNELS, TILE_KERNELS, HEAD_KERNELS = 75, 38, 10


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder, from its configuration."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    tied: bool
    context: int = 0
    """The most tokens, prompt and response together; 0 = not known."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shape":
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        return cls(
            hidden=hidden,
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            inner=config.get("intermediate_size") or 4 * hidden,
            vocab=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", False)),
            context=config.get("max_position_embeddings") or 0,
        )

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def linear_weights(self) -> int:
        """Of one layer."""
        return self.hidden * (2 * self.queries + 2 * self.keys + 3 * self.inner)

    def adapter_weights(self, rank: int) -> int:
        """Of a LoRA of this rank on every linear layer."""
        ins_and_outs = 2 * (self.hidden + self.queries) + 2 * (self.hidden + self.keys) + 3 * (self.hidden + self.inner)
        return self.layers * rank * ins_and_outs


@dataclass(frozen=True)
class Setup:
    """What is trained, and how."""

    rank: int
    quantized: bool
    optimizer_bytes: int
    """A weight's two moments: 2 with an 8-bit optimiser, else 8."""
    adapter_bytes: int = SINGLE


@dataclass(frozen=True)
class Plan:
    """How a batch goes through the model; see the module docstring."""

    tokens: int
    """Of one pass, at most; a single longer row goes alone."""
    keep: Literal["gpu", "host"]
    keeps_attention: bool
    tile: int
    """Tokens of the MLP at once."""
    head_tile: int
    """Tokens whose logits exist at once."""
    outer: Literal["gpu", "host"] = "gpu"
    """Where the embedding and the head are during a pass; from the host they come in slices."""
    peak_bytes: int = 0
    fits: bool = True


def resident_bytes(shape: Shape, setup: Setup) -> int:
    """Weights, adapter with a copy in bf16, its gradient, the optimiser's moments, and cuBLAS's own memory."""
    per_weight = NF4_BYTES if setup.quantized else HALF
    adapter = shape.adapter_weights(setup.rank) * (2 * setup.adapter_bytes + HALF + setup.optimizer_bytes)
    return int(shape.layers * shape.linear_weights * per_weight + outer_bytes(shape) + adapter) + WORKSPACE_BYTES


def outer_bytes(shape: Shape) -> int:
    """The embedding and the head, one where they are tied."""
    return shape.vocab * shape.hidden * HALF * (1 if shape.tied else 2)


def sampling_bytes(shape: Shape, new_tokens: int) -> float:
    """Of a token in a batch that is sampled: its keys and values, and its part of a row's logits, of which there are
    one in bf16 and five in fp32 while a token is drawn.
    """
    return 2 * shape.layers * shape.keys * HALF + shape.vocab * (HALF + 5 * SINGLE) / new_tokens


def vocab_slice(vocab: int, hidden: int) -> int:
    """Rows of the head that come from the host at once, in slices of the same size."""
    return ceil(vocab / ceil(vocab * hidden * HALF / SLICE_BYTES))


def pass_bytes(shape: Shape, plan: Plan) -> int:
    """What forward and backward over `plan.tokens` tokens need at their peak."""
    hidden, queries, keys = (plan.tokens * width * HALF for width in (shape.hidden, shape.queries, shape.keys))
    kept_layers = shape.layers if plan.keep == "gpu" else 2  # of the host's, one in use and one on its way
    kept = kept_layers * (hidden + (queries if plan.keeps_attention else 0))
    out = 0 if plan.keeps_attention else queries
    # The norm's output; queries, keys and values before and after rotation; the gradients of the output and of the
    # queries, which the kernel adds up in fp32, and of keys and values, which it writes for every query head.
    attention = hidden + out + 7 * queries + 5 * keys + (2 * queries if shape.heads != shape.kv_heads else 0)
    attention_weights = 2 * shape.hidden * (shape.queries + shape.keys) * HALF
    tile = min(plan.tile, plan.tokens)
    mlp = hidden + out + tile * (5 * shape.inner + 3 * shape.hidden) * HALF + 3 * shape.hidden * shape.inner * HALF
    at_once = vocab_slice(shape.vocab, shape.hidden) if plan.outer == "host" else shape.vocab
    head = 2 * hidden + min(plan.head_tile, plan.tokens) * at_once * (SINGLE + HALF)
    if plan.outer == "host":  # a slice in use and one on its way; gradients are added up in fp32
        head += 2 * at_once * shape.hidden * HALF + 2 * hidden
    return int(kept + hidden + max(attention_weights + attention, attention_weights + mlp, head))


def seconds(shape: Shape, plan: Plan, longest: int, batch_tokens: int) -> float:
    """Of a step, about: the longer of sending its kernels and computing, and the copies of the head.

    A matrix is used three times and a bit: forward, again before the backward pass, and for the gradient of its input.
    """
    passes, tiles = ceil(batch_tokens / plan.tokens), ceil(min(plan.tokens, batch_tokens) / plan.tile)
    kernels = passes * shape.layers * (LAYER_KERNELS * (1 if plan.keeps_attention else 1.25) + tiles * TILE_KERNELS)
    slices = ceil(shape.vocab / vocab_slice(shape.vocab, shape.hidden)) if plan.outer == "host" else 1
    kernels += slices * ceil(batch_tokens / plan.head_tile) * HEAD_KERNELS
    computing = 7 * batch_tokens * shape.layers * shape.linear_weights / MATRIX_FLOPS
    if not plan.keeps_attention:
        computing += 2 * shape.layers * batch_tokens * longest * shape.queries / ATTENTION_FLOPS
    copies = (2 * passes + 1) * outer_bytes(shape) / HOST_BYTES_A_SECOND if plan.outer == "host" else 0.0
    sending = kernels * SECONDS_A_KERNEL
    return max(sending, computing) + HIDDEN * sending + copies


def estimated(shape: Shape, setup: Setup, plan: Plan, allowed_bytes: int, resident: int) -> Plan:
    """The plan with its peak and whether that is allowed.

    Between steps embedding and head are there again, but neither the gradient nor the copy of the adapter.
    """
    during = resident - (outer_bytes(shape) if plan.outer == "host" else 0)
    between = resident - shape.adapter_weights(setup.rank) * (setup.adapter_bytes + HALF)
    peak = max(between, during + int(pass_bytes(shape, plan) * (1 + FRAGMENTATION)))
    return replace(plan, peak_bytes=peak, fits=peak <= allowed_bytes)


def most_tokens(hidden: int) -> int:
    """Of a pass: that many hidden states keep a GPU busy between two kernels."""
    return max(MAX_TOKENS, MAX_NUMBERS // hidden)


def candidates(hidden: int, longest: int, batch_tokens: int) -> Iterator[Plan]:
    """All plans; of two that take as long, the simpler comes first."""
    tokens = max(longest, min(batch_tokens, most_tokens(hidden)))
    places: tuple[Literal["gpu", "host"], ...] = ("gpu", "host")
    while True:
        yield from (
            Plan(tokens, keep, keeps_attention, tile, head_tile, outer)
            for outer in places
            for keep in places
            for keeps_attention in (True, False)
            for tile in tiles_of(tokens)
            for head_tile in HEAD_TILES
        )
        if tokens <= longest:
            return
        tokens = max(longest, tokens // 2)


def tiles_of(tokens: int) -> list[int]:
    """Tiles of about the same size, in multiples of 64, from all tokens to some hundreds."""
    return [ceil(tokens / number / 64) * 64 for number in TILES if number <= max(1, tokens // MIN_TILE)]


def make_plan(
    shape: Shape, setup: Setup, allowed_bytes: int, longest: int, batch_tokens: int, resident: int | None = None
) -> Plan:
    """The fastest plan within `allowed_bytes`; where none fits, the one that needs least, with `fits` False.

    `longest`: tokens of the longest row, prompt and response; `batch_tokens`: of all rows of a step; `resident`: what
    is there beside the pass, where that was measured.
    """
    there = resident_bytes(shape, setup) if resident is None else resident
    found = [
        estimated(shape, setup, plan, allowed_bytes, there) for plan in candidates(shape.hidden, longest, batch_tokens)
    ]
    fitting = [plan for plan in found if plan.fits]
    if not fitting:
        return min(found, key=lambda plan: plan.peak_bytes)
    return min(fitting, key=lambda plan: seconds(shape, plan, longest, batch_tokens))


# --- the libraries' way, for a model that the plan is not made for ----------------------------------


def bytes_per_token(hidden: int, inner: int, layers: int, checkpointing: bool, bytes_per_number: int) -> int:
    """An estimate of what one token keeps in memory between forward and backward.

    About 18 hidden-sized and 5 intermediate-sized (`inner`) numbers a layer (norms, attention, gated MLP, and LoRA's
    own copies); with checkpointing one hidden-sized number a layer and the inside of a single layer.
    """
    layer = 18 * hidden + 5 * inner
    numbers = layers * hidden + layer if checkpointing else layers * layer
    return bytes_per_number * (numbers + 8 * hidden)


def fused_head_bytes(vocab: int, tokens: int = 4096) -> int:
    """Of TRL's fused head, which works in tiles of 4096 tokens × 32768 vocabulary entries, whatever the batch."""
    return 3 * min(tokens, 4096) * min(vocab, 32768) * SINGLE
