"""One run of the project's own trainers on a case of `core_cases.py`; prints one RESULT line. Called by `core.py`.

The stage's trainer with its optimiser, clipping and metrics, on a rollout that is made up; or a whole step, in which
the stage's own engines sample. `--without` takes one lever away, for the table that says what each is worth.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig, SFTConfig

from benchmarks import command_line, require_package, start
from benchmarks.core_cases import (
    CASES,
    GIB,
    RANK,
    SHAPES,
    Case,
    Meter,
    callback,
    completions,
    demos,
    limit_memory,
    open_tokenizer,
    prompts,
    rewards,
    say,
)
from pipeline.stage import ModelSource, Workdir, read_jsonl
from stages.engines import core, flat_rows, fused, grpo_loss, long_attention, sft_trainer, trl_config
from stages.engines.grpo_trainer import TokenBudgetGRPOTrainer
from stages.engines.models import attach_lora, load_model
from stages.engines.samplers import Completion, Sampling
from stages.engines.sft_trainer import Evaluation, TokenBudgetSFTTrainer
from stages.engines.training_sampler import TrainingSampler
from stages.memory_plan import CONTEXT_BYTES, Plan
from stages.sampling import Vllm

CUDA = torch.cuda.is_available()
ENGINES = ("core", "core_vllm")


class MadeUpSampler:
    """Random responses of the case's length."""

    trained_elsewhere = False

    def __init__(self, case: Case) -> None:
        self.tokens = completions(case)

    def sync(self, model: Any, step: int) -> None: ...

    def sleep(self) -> None: ...

    def close(self) -> None: ...

    def generate(self, prompts: Any, n: int, sampling: Sampling) -> list[list[Completion]]:
        return [[self._one() for _ in range(n)] for _ in prompts]

    def _one(self) -> Completion:
        ids = next(self.tokens)
        return Completion(ids, "", False, [0.0] * len(ids))


class EndlessSampler:
    """One of our engines, with responses of exactly the case's length: no token ends one."""

    trained_elsewhere = True

    def __init__(self, engine: Any, meter: Meter) -> None:
        engine._ends = set() if isinstance(engine._ends, set) else engine._ends[:0]
        self.trained_elsewhere = engine.trained_elsewhere
        self.sync, self.sleep, self.close = meter.rollout(engine.sync), meter.rollout(engine.sleep), engine.close
        self.generate = meter.real_rollout(engine.generate, lambda groups: [c.token_ids for g in groups for c in g])


def sampler_of(case: Case, model: Any, tokenizer: Any, folder: Path, contender: str, meter: Meter) -> Any:
    """For a whole step, our own decoder or vLLM on the 4-bit base; else what is made up."""
    if not case.memory_gb:
        sampler = MadeUpSampler(case)
        sampler.generate = meter.rollout(sampler.generate)  # type: ignore[method-assign]
        return sampler
    meter.watch_card()
    if contender == "core":
        return EndlessSampler(TrainingSampler(model, tokenizer, case.memory_gb), meter)
    from stages.engines.vllm_sampler import VllmSampler

    options = Vllm(
        gpu_memory_utilization=case.memory_gb * 1e9 / torch.cuda.mem_get_info()[1],
        kv_cache_memory_gb=case.generations * (case.prompt + case.completion + 64) * cache_bytes(case) / GIB,
        max_model_len=case.prompt + case.completion + 16,
        max_num_seqs=case.generations,
        max_num_batched_tokens=2048,
        attention_backend="FLASH_ATTN",
    )
    engine = VllmSampler(ModelSource(str(folder)), tokenizer, options, 0, case.completion, model)
    import vllm

    vllm.SamplingParams = partial(vllm.SamplingParams, ignore_eos=True)
    return EndlessSampler(engine, meter)


def cache_bytes(case: Case) -> int:
    """Keys and values of a token."""
    _, hidden, layers, heads, kv_heads, *_ = SHAPES[case.shape]
    return 2 * layers * kv_heads * (hidden // heads) * 2


def grpo(case: Case, model: Any, tokenizer: Any, folder: Path, optim: str, sampler: Any) -> Any:
    return TokenBudgetGRPOTrainer(
        model=model,
        tokenizer=tokenizer,
        args=GRPOConfig(
            **trl_config.common_arguments(Workdir(folder), model.device, 10**6, 0),
            max_steps=case.steps,
            per_device_train_batch_size=case.generations,
            num_generations=case.generations,
            max_completion_length=case.completion,
            learning_rate=1e-6,
            optim=optim,
            gradient_checkpointing=False,
        ),
        problems=[{"prompt": text, "row": {"id": str(i)}} for i, text in enumerate(prompts(case))],
        sampler=sampler,
        sampling=Sampling(max_new_tokens=case.completion),
        score=lambda rows, *_: [{"reward": value, "reward/accuracy": value} for value in rewards(len(rows))],
        reward_weights={"accuracy": 1.0},
        memory_gb=told(case),
    )


def sft(case: Case, model: Any, tokenizer: Any, folder: Path, optim: str) -> Any:
    from datasets import Dataset

    rows = [{"input_ids": ids, "labels": ids} for ids in demos(case)]
    return TokenBudgetSFTTrainer(
        token_budget=None,
        packing=True,
        evaluation=Evaluation(10**6, [], [], [], Sampling()),
        memory_gb=told(case),
        model=model,
        processing_class=tokenizer,
        args=SFTConfig(
            **trl_config.common_arguments(Workdir(folder), model.device, 10**6, 0),
            max_steps=case.steps,
            per_device_train_batch_size=case.completion // case.demo,
            learning_rate=1e-6,
            optim=optim,
            max_length=None,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(rows),
    )


def trainer_of(
    case: Case,
    model: Any,
    tokenizer: Any,
    folder: Path,
    optim: str,
    meter: Meter,
    model_dir: Path,
    engine: str = "core",
) -> Any:
    if case.demo:
        return sft(case, model, tokenizer, folder, optim)
    sampler = sampler_of(case, model, tokenizer, model_dir, engine, meter)
    return grpo(case, model, tokenizer, folder, optim, sampler)


def told(case: Case) -> float | None:
    """`memory_gb`: that of the case, or what leaves the allocator what the case allows."""
    if case.memory_gb:
        return case.memory_gb
    return (case.allowed_gib * GIB + CONTEXT_BYTES) / 1e9 if case.allowed_gib else None


def with_plan(**changes: Any) -> Callable[[], None]:
    """A lever that changes every plan."""

    def pull() -> None:
        planned = core.make_plan
        core.make_plan = lambda *args: Plan(**{**vars(planned(*args)), **changes})

    return pull


def without_core() -> None:
    for module in (grpo_loss, sft_trainer):
        module.core_of = lambda *_: None  # type: ignore[attr-defined]


def without_shared_prompts() -> None:
    grpo_loss.flat_completions = partial(flat_rows.flat_completions, share=False)


def without_fused_kernels() -> None:
    fused._compiled = lambda function: function  # type: ignore[assignment]


def without_cudnn_attention() -> None:
    long_attention.helps = lambda q, k: False


LEVERS: dict[str, Callable[[], None]] = {
    "core": without_core,
    "shared-prompts": without_shared_prompts,
    "fused-kernels": without_fused_kernels,
    "offload": with_plan(keep="gpu"),
    "kept-attention": with_plan(keeps_attention=False),
    "cudnn-attention": without_cudnn_attention,
    "mlp-tiles": with_plan(tile=10**9),
    "head-tiles": with_plan(head_tile=10**9),
    "outer-on-host": with_plan(outer="gpu"),
    "whole-batch-passes": with_plan(tokens=1),
    "adam-8bit": lambda: None,
}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--contender", choices=ENGINES, default="core")
    parser.add_argument("--without", choices=LEVERS)
    parser.add_argument("--cap-gib", type=float, default=0.0)
    chosen = parser.parse_args()
    case = CASES[chosen.case]
    if chosen.contender == "core_vllm":
        require_package("vllm", "`make setup-gpu` installs it")
    limit_memory(chosen.cap_gib)
    if chosen.without:
        LEVERS[chosen.without]()
    optim = "adamw_8bit" if CUDA and chosen.without != "adam-8bit" else "adamw_torch_fused"
    torch.manual_seed(0)
    model = attach_lora(load_model(chosen.model_dir, quantization="nf4" if CUDA else None), RANK, RANK)
    meter, tokenizer, folder = Meter(), open_tokenizer(chosen.model_dir), Path(tempfile.mkdtemp())
    made = trainer_of(case, model, tokenizer, folder, optim, meter, chosen.model_dir, chosen.contender)
    made.add_callback(callback(meter))
    made.work = Workdir(folder)
    made.train()
    row = meter.row(case)
    if made.core:
        row["plan"] = {k: v for k, v in vars(made.core.plan).items() if k != "fits"}
    lines = read_jsonl(made.work.metrics_file)
    gaps = {"engine_gaps": [round(line["engine_gap"], 5) for line in lines if "engine_gap" in line]}
    say(row | {"grad_norms": [round(line["grad_norm"], 5) for line in lines]} | (gaps if case.memory_gb else {}))
    if case.memory_gb:
        made.sampler.close()


if __name__ == "__main__":
    start(main)
