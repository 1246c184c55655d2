"""GRPO by plain TRL, for a fair side by side with our `grpo` stage: the same model, problems and rewards.

Reads a model folder and a card; trains a few steps with TRL's own GRPOTrainer, its own sampler and its own
batches. Makes one JSON object (printed, and written to --out): seconds per step, generated tokens per second,
peak memory, rewards, and whether memory ran out. Nothing is saved of the model.

    python -m benchmarks.plain_trl_grpo --model models/mini-base --template mini --lora-rank 0 \\
        --problems card:mini_arithmetic/train --num-problems 32 --num-generations 8 --max-completion-length 64
    python -m benchmarks.plain_trl_grpo --model models/smollm2-135m --vllm --micro-batch-rows 64 \\
        --problems card:gsm8k/train --num-problems 64 --num-generations 16 --max-completion-length 256

TRL has no token budget: --micro-batch-rows is its `per_device_train_batch_size`, and whoever runs it has to
find the largest that fits. Every other option of GRPOConfig goes through --trl KEY=VALUE.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from peft import LoraConfig
from pydantic import TypeAdapter
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks import command_line, require_package, start
from pipeline.card import COLUMNS, Row, load_card, parse_card_ref
from pipeline.errors import ModelError
from stages.chat import TEMPLATES, Template, parse
from stages.rewards import AnyReward, Reward, Sample, score_many

CUDA = torch.cuda.is_available()


def arguments() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--problems", required=True, nargs="+", help="cards, e.g. card:gsm8k/train")
    parser.add_argument("--template", default="chat", choices=TEMPLATES)
    parser.add_argument("--rewards", nargs="+", default=["accuracy=1", "format=1"], metavar="KIND=WEIGHT")
    parser.add_argument("--num-problems", type=int, default=32, help="prompts per step (P)")
    parser.add_argument("--num-generations", type=int, default=8, help="completions per prompt (G)")
    parser.add_argument("--max-completion-length", type=int, default=64)
    parser.add_argument("--max-steps", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--lora-rank", type=int, default=32, help="0 trains all weights")
    parser.add_argument("--micro-batch-rows", type=int, default=8, help="TRL's per_device_train_batch_size")
    parser.add_argument("--vllm", action="store_true", help="vLLM in the same process (colocate)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument("--trl", nargs="+", default=[], metavar="KEY=VALUE", help="more options of GRPOConfig")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    if chosen.num_problems * chosen.num_generations % chosen.micro_batch_rows:
        parser.error("--micro-batch-rows must divide --num-problems times --num-generations")
    return chosen


def pairs(words: list[str]) -> dict[str, Any]:
    """`["beta=0.04", "bf16=false"]` as `{"beta": 0.04, "bf16": False}`."""
    return {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words)}


def config(chosen: argparse.Namespace, output_dir: str) -> GRPOConfig:
    """TRL's settings: P x G rows per step, generated at once, trained in micro-batches."""
    rows = chosen.num_problems * chosen.num_generations
    settings: dict[str, Any] = {
        "output_dir": output_dir,
        "max_steps": chosen.max_steps,
        "per_device_train_batch_size": chosen.micro_batch_rows,
        "gradient_accumulation_steps": rows // chosen.micro_batch_rows,
        "num_generations": chosen.num_generations,
        "max_completion_length": chosen.max_completion_length,
        "learning_rate": chosen.learning_rate,
        "lr_scheduler_type": "constant",
        "temperature": 1.0,
        "seed": chosen.seed,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "bf16": CUDA,
        "use_cpu": not CUDA,
        # TRL would load fp32; our stage trains a LoRA on bf16 weights where there is CUDA.
        "model_init_kwargs": {"dtype": "bfloat16" if CUDA else "float32"},
        "use_vllm": chosen.vllm,
    }
    if chosen.vllm:
        settings |= {"vllm_mode": "colocate", "vllm_max_model_length": 1024}
        settings |= {"vllm_gpu_memory_utilization": 0.3, "vllm_enable_sleep_mode": True}
    return GRPOConfig(**settings | pairs(chosen.trl))


def dataset(problems: list[Row], template: Template, tokenizer: Any) -> Dataset:
    """Problems with the prompt the model sees; the columns of the problem go on to the reward function."""
    seen = [template.prompt(row["prompt"], tokenizer) for row in problems]
    return Dataset.from_list(
        [row | {"question": row["prompt"], "prompt": text} for row, text in zip(problems, seen, strict=True)]
    )


class Scores:
    """Our rewards as one TRL reward function; keeps what each step gave."""

    def __init__(self, rewards: Sequence[Reward], template: Template, ends: set[int], max_tokens: int) -> None:
        self.rewards, self.template, self.ends, self.max_tokens = rewards, template, ends, max_tokens
        self.steps: list[dict[str, float]] = []
        self.__name__ = "our_rewards"  # TRL logs a reward by this name

    def __call__(
        self, completions: list[str], completion_ids: list[list[int]], trainer_state: Any, **columns: Any
    ) -> list[float | None]:
        columns["prompt"] = columns.pop("question")
        problems = [{name: columns[name][i] for name in COLUMNS["problem"]} for i in range(len(completions))]
        samples = [
            Sample(
                problem=problem,
                response=parse(text),
                num_tokens=len(ids),
                truncated=len(ids) >= self.max_tokens and ids[-1] not in self.ends,
                max_tokens=self.max_tokens,
                fraction=trainer_state.global_step / trainer_state.max_steps,
            )
            for problem, text, ids in zip(problems, completions, completion_ids, strict=True)
        ]
        scored = score_many(self.rewards, samples)
        self.steps.append(self._means(scored) | {"tokens": sum(map(len, completion_ids))})
        return [row["reward"] for row in scored]

    @staticmethod
    def _means(scored: list[dict[str, float | None]]) -> dict[str, float]:
        told = {key: [value for row in scored if (value := row[key]) is not None] for key in scored[0]}
        return {key: statistics.fmean(values) for key, values in told.items() if values}


class StepClock(TrainerCallback):
    """Wall-clock seconds of every optimiser step, generation included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._last = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if CUDA:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now
        print(f"step {len(self.seconds)}: {self.seconds[-1]:.2f} s", file=sys.stderr, flush=True)


class DeviceMemory(threading.Thread):
    """Peak memory in use on the GPU, by whomever: vLLM's share is not all in torch's books."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._done = 0, threading.Event()

    def run(self) -> None:
        while CUDA and not self._done.wait(0.05):
            free, total = torch.cuda.mem_get_info()
            self.peak = max(self.peak, total - free)

    def stop(self) -> dict[str, float]:
        self._done.set()
        self.join()
        peaks = {"peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
        if CUDA:
            peaks |= {"peak_gpu_memory_gib": self.peak / 2**30}
            peaks |= {"peak_gpu_allocated_gib": torch.cuda.max_memory_allocated() / 2**30}
        return {name: round(value, 3) for name, value in peaks.items()}


def until_done_or_full(train: Callable[[], Any]) -> str | None:
    """Runs `train`; what was said if memory ran out, else None. Every other error is raised."""
    try:
        train()
    except (torch.OutOfMemoryError, MemoryError) as error:
        return str(error).splitlines()[0][:300]
    return None


def trainer(chosen: argparse.Namespace, scores: Scores, clock: StepClock, tokenizer: Any, folder: str) -> GRPOTrainer:
    problems = [
        row
        for card in map(parse_card_ref, chosen.problems)
        for row in load_card(card.name).rows(card.split or "train", card.config, seed=chosen.seed)
    ]
    lora = LoraConfig(
        r=chosen.lora_rank,
        lora_alpha=2 * chosen.lora_rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return GRPOTrainer(
        model=chosen.model,
        args=config(chosen, folder),
        train_dataset=dataset(problems, scores.template, tokenizer),
        reward_funcs=scores,
        processing_class=tokenizer,
        peft_config=lora if chosen.lora_rank else None,
        callbacks=[clock],
    )


def result(
    chosen: argparse.Namespace, scores: Scores, seconds: list[float], out_of_memory: str | None
) -> dict[str, Any]:
    """The figures; the first step is kept out of the medians (it warms caches and compiles)."""
    settled = seconds[1:] or seconds
    tokens = [step["tokens"] for step in scores.steps[: len(seconds)]][-len(settled) :]
    return {
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(chosen).items()},
        "device": torch.cuda.get_device_name() if CUDA else f"cpu, {torch.get_num_threads()} threads",
        "steps_done": len(seconds),
        "out_of_memory": out_of_memory,
        "first_step_seconds": round(seconds[0], 3) if seconds else None,
        "step_seconds_median": round(statistics.median(settled), 3) if settled else None,
        "tokens_per_s": round(sum(tokens) / sum(settled), 1) if settled else None,
        "step_seconds": [round(value, 3) for value in seconds],
        "steps": scores.steps,
    }


def main() -> None:
    chosen = arguments()
    if not Path(chosen.model, "config.json").is_file():
        raise ModelError(f"there is no model at {chosen.model} (config.json is missing)", "name a model's folder")
    if chosen.vllm:
        require_package("vllm", "`make setup-gpu` installs it")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    tokenizer = AutoTokenizer.from_pretrained(chosen.model, padding_side="left")
    rewards = [{"kind": kind, "weight": weight} for kind, weight in pairs(chosen.rewards).items()]
    scores = Scores(
        TypeAdapter(list[AnyReward]).validate_python(rewards),
        TEMPLATES[chosen.template],
        {tokenizer.eos_token_id},
        chosen.max_completion_length,
    )
    clock, memory = StepClock(), DeviceMemory()
    memory.start()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="plain-trl-") as folder:
        full = until_done_or_full(lambda: trainer(chosen, scores, clock, tokenizer, folder).train())
    figures = result(chosen, scores, clock.seconds, full) | memory.stop()
    figures["total_seconds"] = round(time.perf_counter() - started, 1)
    text = json.dumps(figures, indent=1)
    print(text)
    if chosen.out:
        chosen.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    start(main)
