"""A model in training with vLLM beside it on one GPU, measured; prints one line of JSON. For the tests marked `gpu`.

python -m tests.colocated nf4      # 4-bit base, adapters swapped
python -m tests.colocated bf16     # weights sent, and dropped while it sleeps
python -m tests.colocated train    # GRPO on the 4-bit base, three batches with two updates each
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from pipeline.stage import ModelSource, Workdir, read_jsonl
from stages.engines.models import load_for_training, load_tokenizer
from stages.engines.samplers import Completion, Sampling, encode_prompts
from stages.grpo import GRPO
from stages.sampling import Vllm
from stages.training import Lora
from tests.test_grpo import ToyInputs, problems

MODEL = Path("models/smollm2-135m")
PROMPTS = [f"What is {a} plus {b}? Answer:" for a, b in ((3, 4), (17, 25), (8, 90), (61, 7))]
VLLM = Vllm(gpu_memory_utilization=0.2, max_model_len=512, enforce_eager=True, attention_backend="FLASH_ATTN")


class Colocated:
    """The model in training, and the engine that is to sample from it."""

    def __init__(self, quantization: Any) -> None:
        from stages.engines.vllm_sampler import VllmSampler

        source, lora = ModelSource(str(MODEL.resolve())), Lora(rank=16, alpha=32)
        self.tokenizer = load_tokenizer(source)
        self.model = load_for_training(source, torch.device("cuda"), lora, quantization, 0)
        options = VLLM.model_copy(update={"sleep_level": 1 if quantization else 2})
        self.sampler = VllmSampler(source, self.tokenizer, options, 0, 128, self.model)

    def change_adapter(self, seed: int) -> None:
        """As training would: B is no longer zero."""
        torch.manual_seed(seed)
        for name, weight in self.model.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(0, 0.02)

    def sample(self, step: int, temperature: float = 1.0) -> list[Completion]:
        """Eight responses to each prompt; the engine sleeps afterwards."""
        self.sampler.sync(self.model, step)
        groups = self.sampler.generate(PROMPTS, 8, Sampling(temperature, 1.0, 64, step))
        self.sampler.sleep()
        return [completion for group in groups for completion in group]

    @torch.no_grad()
    def gap(self, completions: list[Completion]) -> float:
        """Mean difference of log-probabilities between the engine and the model in training, nats a token."""
        differences: list[float] = []
        prompts = [ids for ids in encode_prompts(self.tokenizer, PROMPTS) for _ in range(8)]
        for prompt, completion in zip(prompts, completions, strict=True):
            ids = torch.tensor([prompt + completion.token_ids], device="cuda")
            with torch.autocast("cuda", torch.bfloat16):
                logits = self.model(ids).logits[0, len(prompt) - 1 : -1].float()
            trained = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()
            differences += [abs(a - b) for a, b in zip(trained, completion.logprobs, strict=True)]
        return sum(differences) / len(differences)


def look(quantization: Any) -> dict[str, Any]:
    """How far the engines are apart at three adapters, and what a sleep does."""
    both, gaps, away = Colocated(quantization), [], []
    for step in range(3):
        both.change_adapter(step)
        completions = both.sample(step)
        gaps.append(both.gap(completions))
        both.change_adapter(100 + step)
        away.append(both.gap(completions))
    both.change_adapter(7)
    before = both.sample(3, temperature=0)
    asleep, total = torch.cuda.mem_get_info()
    both.sampler.sync(both.model, 3)
    awake, _ = torch.cuda.mem_get_info()
    after = both.sample(3, temperature=0)
    both.sampler.close()
    sizes = {"free_asleep_gib": asleep, "free_awake_gib": awake, "total_gib": total}
    return {
        "gaps": gaps,
        "gaps_with_another_adapter": away,
        "same_text_after_sleep": [c.token_ids for c in before] == [c.token_ids for c in after],
        **{name: round(size / 2**30, 2) for name, size in sizes.items()},
    }


class OddSum(GRPO):
    """Rewards what differs between the responses of any model."""

    def score(self, problems: Any, completions: Any, fraction: float, models: Any = None) -> list[dict[str, Any]]:
        odd = [float(sum(completion.token_ids) % 2) for completion in completions]
        return [{"reward": value, "reward/accuracy": value} for value in odd]


def trained() -> dict[str, Any]:
    """The gap in every step of a GRPO stage in nf4."""
    settings: dict[str, Any] = {"model": "path:base", "problems": ["path:problems"], "rewards": [{"kind": "accuracy"}]}
    settings |= {"device": "cuda", "sampler": "vllm", "vllm": VLLM, "quantization": "nf4", "optim": "adamw_8bit"}
    settings |= {"lora": Lora(rank=16, alpha=32), "learning_rate": 1e-4, "template": "chat", "num_iterations": 2}
    stage = OddSum(**settings, max_steps=6, num_problems=4, num_generations=8, max_completion_length=64)
    with tempfile.TemporaryDirectory() as folder:
        stage.run(ToyInputs(MODEL.resolve(), problems()), Workdir(Path(folder)))  # type: ignore[arg-type]
        return {"gaps": [row["engine_gap"] for row in read_jsonl(Path(folder) / "metrics.jsonl")]}


if __name__ == "__main__":
    [way] = sys.argv[1:]
    print(json.dumps(trained() if way == "train" else look("nf4" if way == "nf4" else None)))
