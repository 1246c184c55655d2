"""From the settings of a GRPO stage to a trained model: loads, checks, builds TRL's config, trains, saves."""

import math
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import ConfigError, DataError
from pipeline.stage import ModelSource, Workdir
from stages.engines import trainers
from stages.engines.engine import open_sampler
from stages.engines.models import (
    choose_device,
    context_length,
    load_for_training,
    load_tokenizer,
    merge_and_save,
    quiet,
)
from stages.engines.samplers import Sampling, encode_prompts

if TYPE_CHECKING:
    from stages.grpo import GRPO

with quiet():
    from trl import GRPOConfig

    from stages.engines.grpo_trainer import NEED_WHOLE_BATCH, TokenBudgetGRPOTrainer

# Settings of GRPOConfig that have the same name in the stage and are passed on as they are.
_PASSED_ON = [
    *("num_generations", "max_completion_length", "temperature", "top_p", "max_steps", "num_iterations"),
    *trainers.PASSED_ON,
    *("loss_type", "beta", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "scale_rewards"),
]
# Settings of GRPOConfig that this stage decides in another way, or that would not reach our trainer.
_OURS = [
    *trainers.OURS,
    *("per_device_train_batch_size", "generation_batch_size", "use_vllm", "reward_weights"),
    *("sync_ref_model", "ref_model_sync_steps", "mask_truncated_completions", "top_k", "min_p"),
]


def check(stage: "GRPO") -> None:
    """Everything that can be refused before a model is loaded; raises ConfigError or ResourceError."""
    device = choose_device(stage.device)
    trainers.check_optimiser(stage.optim, device)
    trainers.check_extra(stage.trl, GRPOConfig, {*_PASSED_ON, *_OURS})
    for name in NEED_WHOLE_BATCH:
        if name in stage.trl:
            raise ConfigError(f"trl: '{name}' looks at the whole batch at once and cannot be cut into micro-batches")
    trainers.check_quantization(stage.quantization, stage.lora)
    stage.score([], [], 0.0)  # refuses a reward that is listed twice
    if stage.ref_model_sync_steps and not stage.beta:
        raise ConfigError(
            "ref_model_sync_steps refreshes the KL reference, but beta is 0: there is none", hint="set beta"
        )


def train(stage: "GRPO", source: ModelSource, problems: list[dict[str, Any]], work: Workdir) -> None:
    """Trains the model at `source` on `problems` and saves it in `work.path`."""
    device = choose_device(stage.device)
    tokenizer = load_tokenizer(source)
    prompts = stage.prompts(problems, tokenizer)
    model = load_for_training(source, device, stage.lora, stage.quantization, stage.seed)
    _check_prompt_lengths(encode_prompts(tokenizer, prompts), problems, context_length(model), stage)
    sampler = open_sampler(stage, source, tokenizer, device, model)
    with quiet():
        trainer = TokenBudgetGRPOTrainer(
            model=model,
            tokenizer=tokenizer,
            args=_config(stage, source, work, device),
            problems=[{**problem, "prompt": prompt} for problem, prompt in zip(problems, prompts, strict=True)],
            sampler=sampler,
            sampling=Sampling(stage.temperature, stage.top_p, stage.max_completion_length, stage.seed, stage.stop),
            score=stage.score,
            reward_weights={reward.kind: reward.weight for reward in stage.rewards},
            token_budget=None if stage.token_budget == "auto" else stage.token_budget,
            reference_every=stage.ref_model_sync_steps,
            mask_truncated=stage.mask_truncated_completions,
        )
        trainers.run_training(trainer, work)
        sampler.close()
        merge_and_save(trainer.accelerator.unwrap_model(trainer.model), tokenizer, work.path)


def _config(stage: "GRPO", source: ModelSource, work: Workdir, device: torch.device) -> GRPOConfig:
    revision = {"model_init_kwargs": {"revision": source.revision}} if source.revision else {}
    try:
        return GRPOConfig(
            **trainers.common_arguments(work, device, stage.save_steps, stage.seed),
            **{name: getattr(stage, name) for name in _PASSED_ON},
            per_device_train_batch_size=stage.num_problems * stage.num_generations,
            gradient_accumulation_steps=1,
            warmup_steps=math.ceil(stage.warmup_ratio * stage.max_steps),
            gradient_checkpointing=stage.gradient_checkpointing,
            **revision,
            **stage.trl,
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"TRL refuses the settings of this stage: {error}") from error


def _check_prompt_lengths(
    prompts: list[list[int]], problems: list[dict[str, Any]], context: int, stage: "GRPO"
) -> None:
    room = context - stage.max_completion_length
    length, problem = max(zip(map(len, prompts), problems, strict=True), key=lambda pair: pair[0])
    if length > room:
        raise DataError(
            f"the prompt of problem {problem['id']!r} has {length} tokens; the model's context of {context} "
            f"leaves {max(0, room)} beside responses of {stage.max_completion_length}",
            hint="lower max_completion_length, or leave long problems out",
        )
