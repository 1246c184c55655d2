"""What a stage will need of a machine, worked out from its settings and its model's shape: nothing is loaded.

Reads a stage and its model's `config.json` as a mapping; makes bytes by phase (weights, adapter, optimiser,
activations, the rollout's cache) and seconds a step. Training on CUDA with an adapter goes by the very plan that the
training follows (`stages/memory_plan.py`); the rest by the same estimate that cuts its micro-batches. Seconds are an
estimate and no more: operations and bytes over what a GPU can do at best, times the shares that were measured (see
`TRAINING_SHARE`, `LAYER_SECONDS`), at full length (`docs/performance.md` holds them against measured ones).

Imports no torch, so that `make doctor` answers at once and a stage that cannot fit is refused before anything loads.
"""

import math
from dataclasses import dataclass

from pipeline.stage import Stage
from stages.grpo import GRPO
from stages.memory_plan import (
    CONTEXT_BYTES,
    CPU_TOKENS,
    GIB,
    NF4_BYTES,
    Setup,
    Shape,
    bytes_per_token,
    fused_head_bytes,
    make_plan,
    resident_bytes,
)
from stages.reward_model import RewardModel
from stages.sampling import SamplingStage
from stages.sft import SFT
from stages.training import Lora, TrainingStage

PROMPT_TOKENS = 256
"""What a prompt is taken to have: the data are not read here."""
CACHED_TOKENS = 65536
"""Most tokens whose keys and values are kept at once where transformers samples."""
ASLEEP_BYTES = GIB
"""What vLLM keeps of a GPU while it sleeps, its recorded graphs above all; seen on an H100."""


@dataclass(frozen=True)
class Device:
    """What computes: a GPU with its memory, or the machine's CPU (`cores`) with the machine's."""

    name: str
    total_bytes: float
    is_gpu: bool = True
    has_vllm: bool = False
    cores: int = 1

    def allowed_bytes(self, beside_vllm: bool = False) -> float:
        """What is left for tensors."""
        taken = CONTEXT_BYTES + (ASLEEP_BYTES if beside_vllm else 0)
        return self.total_bytes - (taken if self.is_gpu else 0)

    @property
    def bytes_per_number(self) -> int:
        """bf16 on CUDA, fp32 on a CPU."""
        return 2 if self.is_gpu else 4


@dataclass(frozen=True)
class Forecast:
    """Bytes by phase, and seconds of a step (None: the stage has no steps, or the device is not known)."""

    weights: float
    adapter: float
    optimiser: float
    """The moments and the gradients."""
    activations: float
    micro_batch_tokens: int
    cache: float
    """Keys and values of a rollout; with vLLM the share of the GPU that it takes, its own weights included."""
    least_activations: float
    least_cache: float
    """The same with one row in a micro-batch, and one group in a rollout (vLLM: its weights and one response)."""
    allowed: float
    """What the device leaves for tensors."""
    seconds_per_step: float | None = None

    @property
    def held(self) -> float:
        """What is there in every phase."""
        return self.weights + self.adapter + self.optimiser

    @property
    def peak(self) -> float:
        """Training and rollout take turns."""
        return self.held + max(self.activations, self.cache)

    @property
    def least(self) -> float:
        """The peak when every phase is as small as can be."""
        return self.held + max(self.least_activations, self.least_cache)

    def as_json(self) -> dict[str, float | int | None]:
        """GiB and seconds, as the manifest holds them."""
        names = ("weights", "adapter", "optimiser", "activations", "cache", "peak")
        sizes = {f"{name}_gib": round(getattr(self, name) / GIB, 3) for name in names}
        seconds = self.seconds_per_step and round(self.seconds_per_step, 3)
        return {**sizes, "micro_batch_tokens": self.micro_batch_tokens, "seconds_per_step": seconds}


def forecast(stage: Stage, shape: Shape, device: Device) -> Forecast | None:
    """What `stage` needs on `device`; None for a stage that neither trains nor samples."""
    if not isinstance(stage, TrainingStage | SamplingStage):
        return None
    seconds, stage = _seconds(stage, shape, device), at_its_longest(stage)
    weights, adapter, optimiser = _held(stage, shape, device)
    cache, least_cache = _cache(stage, shape, device) if isinstance(stage, SamplingStage) else (0.0, 0.0)
    allowed = min(device.allowed_bytes(uses_vllm(stage, device)), _told(stage))
    copied = _copied(stage, shape, device)
    cache += copied if copied <= (allowed - weights - adapter - optimiser) / 2 else 0.0
    tokens, activations, least = 0, 0.0, 0.0
    if isinstance(stage, TrainingStage):
        tokens, activations = _planned(stage, shape, device, allowed - weights - adapter - optimiser)
        least = _planned(stage, shape, device, 0)[1]
    return Forecast(
        weights=weights,
        adapter=adapter,
        optimiser=optimiser,
        activations=activations,
        micro_batch_tokens=tokens,
        cache=cache,
        least_activations=least,
        least_cache=least_cache,
        allowed=allowed,
        seconds_per_step=seconds,
    )


def at_its_longest(stage: Stage) -> Stage:
    """The stage in the phase with the longest responses: what fits then fits before."""
    if not isinstance(stage, GRPO) or not stage.lengthening:
        return stage
    return stage.in_phase(max(stage.lengthening, key=lambda phase: (phase.length, phase.generations)))


# --- memory ---------------------------------------------------------------------------------------


def num_weights(shape: Shape) -> int:
    """Of the layers' linear maps, the embedding and the head; norms and biases are next to nothing."""
    return shape.layers * shape.linear_weights + shape.vocab * shape.hidden * (1 if shape.tied else 2)


def _told(stage: Stage) -> float:
    """What a stage was told to stay within."""
    told = getattr(stage, "memory_gb", None)
    return told * 1e9 - CONTEXT_BYTES if told else math.inf


def is_planned(stage: Stage, device: Device) -> bool:
    """Whether training goes by `memory_plan`: frozen weights with an adapter on CUDA, and a language model's head."""
    is_plain = isinstance(stage, GRPO | SFT) and stage.lora is not None and not stage.lora.dropout
    return is_plain and device.is_gpu


def _held(stage: Stage, shape: Shape, device: Device) -> tuple[float, float, float]:
    """Bytes of weights (a KL reference with them), of the adapter, and of gradients and moments."""
    if not isinstance(stage, TrainingStage):
        return 0.0 if uses_vllm(stage, device) else float(device.bytes_per_number * num_weights(shape)), 0.0, 0.0
    of_each = 4.0 + stage.moments_bytes
    if stage.lora is None:
        copies = 2 if getattr(stage, "beta", 0) else 1
        return 4.0 * copies * num_weights(shape), 0.0, of_each * num_weights(shape)
    trained = shape.adapter_weights(stage.lora.rank)
    adapter, optimiser = 4.0 * trained, of_each * trained
    if not device.is_gpu:
        return 4.0 * num_weights(shape), adapter, optimiser
    return resident_bytes(shape, _setup(stage, stage.lora)) - adapter - optimiser, adapter, optimiser


def _setup(stage: TrainingStage, lora: Lora) -> Setup:
    return Setup(lora.rank, stage.quantization == "nf4", stage.moments_bytes)


def uses_vllm(stage: Stage, device: Device) -> bool:
    """Whether vLLM samples in the stage's own process."""
    wanted = getattr(stage, "sampler", None)
    return wanted == "vllm" or (wanted == "auto" and device.is_gpu and device.has_vllm)


def _cache(stage: SamplingStage, shape: Shape, device: Device) -> tuple[float, float]:
    """Bytes for a rollout: as it is planned, and the least with which it goes on at all."""
    row, each = _row_tokens(stage), 2 * shape.layers * shape.keys * device.bytes_per_number
    if stage.sampler == "vllm_server":
        return 0.0, 0.0
    if uses_vllm(stage, device):
        is_packed = getattr(stage, "quantization", None) == "nf4"
        packed = shape.layers * shape.linear_weights * (2 - NF4_BYTES) if is_packed else 0
        weights, told = 2.0 * num_weights(shape) - packed, stage.vllm.kv_cache_memory_gb
        planned = weights + told * GIB if told else stage.vllm.gpu_memory_utilization * device.total_bytes
        return planned, weights + each * row
    group = row * _group(stage)
    return float(each * max(group, min(CACHED_TOKENS, group * _num_problems(stage)))), float(each * group)


def _copied(stage: Stage, shape: Shape, device: Device) -> float:
    """Bytes of the plain copy that is sampled from (`stages/engines/plain_copy.py`); it is made where there is room."""
    if not isinstance(stage, GRPO) or stage.lora is None or stage.sampler == "vllm_server" or uses_vllm(stage, device):
        return 0.0
    return float(device.bytes_per_number * shape.layers * shape.linear_weights)


def _group(stage: Stage) -> int:
    """Responses to one problem."""
    return int(getattr(stage, "num_generations", 0) or getattr(stage, "num_samples", 1))


def _num_problems(stage: Stage) -> int:
    """Of one rollout."""
    return int(getattr(stage, "num_problems", 0) or CACHED_TOKENS)


def _row_tokens(stage: Stage) -> int:
    """The longest row: a prompt with its response, a demo, or a pair of texts."""
    if isinstance(stage, SamplingStage):
        return PROMPT_TOKENS + stage.max_completion_length
    return int(getattr(stage, "max_length", 1024)) * (2 if isinstance(stage, RewardModel) else 1)


def _step_tokens(stage: Stage) -> int:
    """Tokens of a step at full length."""
    rows = _num_problems(stage) * _group(stage) if isinstance(stage, GRPO) else int(getattr(stage, "batch_size", 1))
    return rows * _row_tokens(stage)


def _planned(stage: TrainingStage, shape: Shape, device: Device, room: float) -> tuple[int, float]:
    """Tokens of a micro-batch in `room` bytes, and the bytes of its activations; one row at least."""
    longest, whole = _row_tokens(stage), _step_tokens(stage)
    if stage.lora and is_planned(stage, device):
        setup = _setup(stage, stage.lora)
        held = resident_bytes(shape, setup)
        plan = make_plan(shape, setup, int(held + room), longest, whole if room else longest)
        return plan.tokens, float(plan.peak_bytes - held)
    sizes = shape.hidden, shape.inner, shape.layers
    each = bytes_per_token(*sizes, stage.gradient_checkpointing, device.bytes_per_number)
    found = int(0.8 * room / each) if device.is_gpu else min(CPU_TOKENS, int(0.1 * device.total_bytes / each))
    budget = found if stage.token_budget == "auto" else stage.token_budget
    tokens = min(whole, max(budget if room else 0, longest))
    return tokens, float(each * tokens + fused_head_bytes(shape.vocab, tokens))


# --- time -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """Operations and bytes a second."""

    operations: float
    bytes: float


_BEST = {  # by the makers' data sheets: dense, 16 bits
    "H200": Speed(989e12, 4.8e12),
    "H100": Speed(989e12, 3.35e12),
    "A100": Speed(312e12, 1.9e12),
    "L40S": Speed(362e12, 0.86e12),
    "A6000": Speed(155e12, 0.77e12),
    "V100": Speed(125e12, 0.9e12),
    "L4": Speed(121e12, 0.3e12),
    "A10": Speed(125e12, 0.6e12),
    "T4": Speed(65e12, 0.3e12),
    "5090": Speed(209e12, 1.79e12),
    "4090": Speed(165e12, 1.0e12),
    "4080": Speed(97e12, 0.72e12),
    "4070": Speed(58e12, 0.5e12),
    "3090": Speed(71e12, 0.94e12),
    "3080": Speed(60e12, 0.76e12),
    "3060": Speed(25e12, 0.36e12),
}
TRAINING_SHARE = 0.15
"""Of a GPU's best operations: on an H100 1.5B with 8 x 1,042 tokens a step reached 0.11, 8B with 8 x 20,480 0.29."""
LAYER_SECONDS = {"vllm": 0.00018, "transformers": 0.001}
"""Of a layer for each token of the longest response, however few rows there are. vLLM on an H100: 5.3 ms for the 30
layers of a 135M model with CUDA graphs; transformers: about 1 ms a layer."""
CORE = Speed(35e9, 10e9)
"""What a CPU's core reaches, from the mini scale's r1_zero on two of them."""


def speed_on(device: Device) -> Speed | None:
    """What training reaches, and memory at best; None for a GPU that is not in the table."""
    if not device.is_gpu:
        return Speed(CORE.operations * device.cores, CORE.bytes)
    words = device.name.replace("-", " ").split()
    best = next((speed for name, speed in _BEST.items() if name in words), None)
    return best and Speed(TRAINING_SHARE * best.operations, best.bytes)


def _seconds(stage: Stage, shape: Shape, device: Device) -> float | None:
    speed = speed_on(device)
    if speed is None or not isinstance(stage, TrainingStage):
        return None
    sampling = _sampling_seconds(stage, shape, device, speed) if isinstance(stage, GRPO) else 0.0
    return sampling + _operations(stage, shape, device) / speed.operations


def _operations(stage: TrainingStage, shape: Shape, device: Device) -> float:
    """Two for each weight and token forward, as many back to the inputs, as many for the weights that learn."""
    recomputes = stage.gradient_checkpointing or is_planned(stage, device)
    passes = 2 + (stage.lora is None) + recomputes
    matrices = 2 * (shape.layers * shape.linear_weights + shape.vocab * shape.hidden)
    attention = 2 * _row_tokens(stage) * shape.queries * shape.layers
    return float(_step_tokens(stage) * passes * (matrices + attention))


def _sampling_seconds(stage: GRPO, shape: Shape, device: Device, speed: Speed) -> float:
    """Every token of the longest response reads the weights once for all rows that are sampled together."""
    rows, row = _num_problems(stage) * _group(stage), _row_tokens(stage)
    each = 2 * shape.layers * shape.keys * device.bytes_per_number
    waves = math.ceil(rows * row * each / max(_cache(stage, shape, device)[0], each * row))
    read = device.bytes_per_number * num_weights(shape) + rows / waves * row / 2 * each
    overhead = LAYER_SECONDS["vllm" if uses_vllm(stage, device) else "transformers"] * shape.layers
    return waves * stage.max_completion_length * (read / speed.bytes + overhead)
