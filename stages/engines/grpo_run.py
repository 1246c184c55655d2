"""From the settings of a GRPO stage to a trained model: loads, checks, builds TRL's config, trains, saves."""

import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import ConfigError, StageFailed
from pipeline.stage import Inputs, ModelSource, Workdir
from stages.alarm import Watch
from stages.engines import checkpoints, ranks, trainers, trl_config
from stages.engines.engine import open_sampler
from stages.engines.hacking import HackingWatch
from stages.engines.merging import merge_and_save
from stages.engines.models import choose_device, context_length, load_for_training, load_tokenizer, quiet
from stages.engines.reward_models import RewardModelScorer
from stages.engines.samplers import Sampler, Sampling, check_prompt_lengths, encode_prompts
from stages.engines.schedule import Late
from stages.lengthening import Lengthening

if TYPE_CHECKING:
    from stages.grpo import GRPO, Problems

with quiet():
    from trl import GRPOConfig

    from stages.engines.grpo_loss import NEED_WHOLE_BATCH
    from stages.engines.grpo_trainer import TokenBudgetGRPOTrainer

# Settings of GRPOConfig that have the same name in the stage and are passed on as they are.
_PASSED_ON = [
    *("num_generations", "max_completion_length", "temperature", "top_p", "num_iterations"),
    *("loss_type", "beta", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "scale_rewards"),
]
# Settings of GRPOConfig that this stage decides in another way, or that would not reach our trainer.
_OURS = [
    *("generation_batch_size", "use_vllm", "reward_weights"),
    *("sync_ref_model", "ref_model_sync_steps", "mask_truncated_completions", "top_k", "min_p"),
]


# Where the model of the last calm look goes when the hacking alarm stops a stage.
LAST_GOOD = "last_good"


def check(stage: "GRPO") -> None:
    """Everything that can be refused before a model is loaded; raises ConfigError or ResourceError."""
    trl_config.check(stage, GRPOConfig, [*_PASSED_ON, *_OURS])
    for name in NEED_WHOLE_BATCH:
        if name in stage.trl:
            raise ConfigError(f"trl: '{name}' looks at the whole batch at once and cannot be cut into micro-batches")
    for reward in stage.rewards:
        reward.check_machine()
    if stage.ref_model_sync_steps and not stage.beta:
        raise ConfigError(
            "ref_model_sync_steps refreshes the KL reference, but beta is 0: there is none", hint="set beta"
        )
    if stage.sampler == "vllm_server" and stage.lora is None:
        raise ConfigError(
            "sampler 'vllm_server' is sent the adapter of each step, and this stage trains all weights",
            hint="set lora: {rank: 32, alpha: 64}, or sampler: vllm",
        )


def train(stage: "GRPO", inputs: Inputs, problems: "Problems", work: Workdir) -> None:
    """Trains the stage's model on `problems` and saves it in `work.path`.

    Raises StageFailed when the hacking alarm stops it; the model of the last calm look is then in `last_good/`.
    """
    device, source = choose_device(stage.device), inputs.checkpoint("model")
    ranks.join(device)
    tokenizer = load_tokenizer(source)
    newest = ranks.from_main(lambda: checkpoints.newest_whole(work.checkpoints))
    lengthening = Lengthening.resumed(stage.lengthening, stage.max_steps, newest)
    longest = stage.in_phase(max([lengthening.phase, *stage.lengthening], key=lambda phase: phase.length))
    rows = problems.early + problems.late
    prompts, watched = stage.prompts(rows, tokenizer), stage.prompts(problems.held_out, tokenizer)
    all_prompts = encode_prompts(tokenizer, prompts + watched)
    model = load_for_training(source, device, stage.lora, stage.quantization, stage.seed)
    check_prompt_lengths(
        all_prompts, rows + problems.held_out, context_length(model.config), longest.max_completion_length
    )
    sampler = open_sampler(longest, source, tokenizer, device, model)
    hacking = _hacking_watch(stage, problems.held_out, watched, sampler)
    models = _reward_models(stage, inputs, device)

    def trainer_of(now: "GRPO", model: Any) -> TokenBudgetGRPOTrainer:
        return TokenBudgetGRPOTrainer(
            model=model,
            tokenizer=tokenizer,
            args=_config(now, source, work, device),
            problems=[{"prompt": prompt, "row": row} for prompt, row in zip(prompts, rows, strict=True)],
            sampler=sampler,
            sampling=_sampling(now, stage.seed),
            score=partial(now.score, models=models) if models else now.score,
            reward_weights={reward.kind: reward.weight for reward in stage.rewards},
            token_budget=None if stage.token_budget == "auto" else stage.token_budget,
            reference_every=stage.ref_model_sync_steps,
            mask_truncated=stage.mask_truncated_completions,
            late=Late(len(problems.late), stage.late_from, stage.late_share) if problems.late else None,
            hacking=hacking,
            dynamic_sampling=stage.dynamic_sampling,
            lengthening=lengthening,
            memory_gb=stage.memory_gb,
        )

    with quiet():
        if ranks.is_main():
            shutil.rmtree(work.path / LAST_GOOD, ignore_errors=True)
        trainer = trainer_of(stage.in_phase(lengthening.phase), model)
        run = partial(trainers.run_training, work=work, deterministic=stage.deterministic)
        while run(trainer) < stage.max_steps and not (hacking and hacking.has_stopped):
            # Another phase has begun. It goes on from its checkpoint as a resumed run would, so both are the same.
            del trainer, model
            model = load_for_training(source, device, stage.lora, stage.quantization, stage.seed)
            trainer = trainer_of(stage.in_phase(lengthening.phase), model)
        sampler.close()
        ranks.leave_unless_main()
        if hacking and hacking.has_stopped:
            raise _stopped(trainer, hacking, work)
        merge_and_save(trainer.model, tokenizer, work.path)


def _reward_models(stage: "GRPO", inputs: Inputs, device: torch.device) -> dict[str, RewardModelScorer]:
    """The stage's reward models, opened, by the kind of reward that asks them."""
    return {
        field.removesuffix("_model"): RewardModelScorer(inputs.checkpoint(field), device, stage.template)
        for field in ("helpfulness_model", "harmlessness_model")
        if getattr(stage, field)
    }


def _sampling(stage: "GRPO", seed: int) -> Sampling:
    return Sampling(stage.temperature, stage.top_p, stage.max_completion_length, seed, stage.stop)


def _hacking_watch(
    stage: "GRPO", held_out: list[dict[str, Any]], prompts: list[str], sampler: Sampler
) -> HackingWatch | None:
    """The alarm, where there are problems to watch. Every look samples with one seed, far from those of the steps."""
    if not held_out:
        return None
    sampling = _sampling(stage, 2**40 + stage.seed)
    return HackingWatch(Watch(stage.alarm), prompts, partial(stage.shares_right, held_out), sampler, sampling)


def _stopped(trainer: Any, hacking: HackingWatch, work: Workdir) -> StageFailed:
    """Writes the model of the last calm look to `last_good/`; the error that says so."""
    hint = (
        "lower the weights of helpfulness and harmlessness or raise their from_fraction; "
        "ARGS=grpo.alarm.action=warn goes on from here"
    )
    calm = checkpoints.folder_of(work.checkpoints, hacking.kept_step or 0)
    if calm.is_dir():  # not if it was rotated away while the alarm was only to warn
        trainer._load_from_checkpoint(str(calm))
        folder = work.path / LAST_GOOD
        merge_and_save(trainer.model, trainer.processing_class, folder)
        hint = f"the model after step {hacking.kept_step} is in {folder}; {hint}"
    return StageFailed(hacking.watch.describe(), hint=hint)


def _config(stage: "GRPO", source: ModelSource, work: Workdir, device: torch.device) -> GRPOConfig:
    revision = {"model_init_kwargs": {"revision": source.revision}} if source.revision else {}
    batch_size = ranks.share_of(stage.num_problems, "num_problems") * stage.num_generations
    own = {name: getattr(stage, name) for name in _PASSED_ON} | revision
    return trl_config.config_of(GRPOConfig, stage, work, device, batch_size, stage.max_steps, **own)
