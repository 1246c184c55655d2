"""From the settings of an SFT stage to a trained model: reads the demos, trains with TRL's SFTTrainer, saves."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from pipeline.card import Row
from pipeline.refs import Ref
from pipeline.stage import ModelSource, Workdir
from stages.chat import TEMPLATES
from stages.engines import ranks, trainers, trl_config
from stages.engines.merging import merge_and_save
from stages.engines.models import choose_device, context_length, load_for_training, load_tokenizer, quiet
from stages.engines.samplers import Sampling, encode_prompts
from stages.engines.sft_demos import Mix, mixed, read_source
from stages.engines.sft_trainer import Evaluation, TokenBudgetSFTTrainer

if TYPE_CHECKING:
    from stages.sft import SFT

with quiet():
    from datasets import Dataset
    from trl import SFTConfig

# Settings of SFTConfig that this stage decides in another way.
_OURS = [
    *("max_length", "packing", "packing_strategy", "padding_free"),
    *("lr_scheduler_kwargs", "num_train_epochs", "completion_only_loss", "assistant_only_loss"),
    *("eval_strategy", "eval_steps", "eval_packing", "do_eval"),
]

SHOWN_TOKENS = 256  # at most, of a sample text


def check(stage: "SFT") -> None:
    """Everything that can be refused before a model is loaded; raises ConfigError or ResourceError."""
    trl_config.check(stage, SFTConfig, _OURS)


def train(stage: "SFT", source: ModelSource, demos: Sequence[tuple[Ref, list[Row]]], work: Workdir) -> dict[str, Any]:
    """Trains the model at `source` on the mix of `demos` and saves it; returns the mix's record (`mix.json`)."""
    device = choose_device(stage.device)
    ranks.join(device)
    tokenizer = load_tokenizer(source)
    model = load_for_training(source, device, stage.lora, stage.quantization, stage.seed)
    limit = min(stage.max_length, context_length(model.config))
    caps = stage.caps or [None] * len(demos)
    read = [read_source(stage, ref, rows, cap, tokenizer, limit) for (ref, rows), cap in zip(demos, caps, strict=True)]
    mix = mixed(stage, read)
    work.write_json("mix.json", mix.record)
    with quiet():
        trainer = TokenBudgetSFTTrainer(
            token_budget=None if stage.token_budget == "auto" else stage.token_budget,
            packing=stage.packing,
            memory_gb=stage.memory_gb,
            evaluation=_evaluation(stage, mix, tokenizer, limit),
            model=model,
            processing_class=tokenizer,
            args=_config(stage, len(mix.train), work, device),
            train_dataset=Dataset.from_list([demo.features for demo in mix.train]),
        )
        if stage.packing and not (trainer.packs or trainer.core):
            work.progress(0, trainer.args.max_steps, "not packed: this model would look from one demo into the next")
        trainers.run_training(trainer, work, stage.deterministic)
        ranks.leave_unless_main()
        merge_and_save(trainer.model, tokenizer, work.path)
    return mix.record


def _evaluation(stage: "SFT", mix: Mix, tokenizer: Any, limit: int) -> Evaluation:
    """Held-out prompts are answered, or learned ones where none are held out; greedily, so every point compares."""
    demos, number = mix.held_out or mix.train, stage.num_samples_shown
    spread = demos[:: max(1, len(demos) // number)] if number else []  # some of every source
    rows = [demo.row for demo in spread[:number]]
    template = TEMPLATES[stage.template]
    prompts = [template.prompt(row["prompt"], tokenizer) for row in rows]
    longest = max(map(len, encode_prompts(tokenizer, prompts))) if prompts else 0
    sampling = Sampling(temperature=0, max_new_tokens=max(1, min(SHOWN_TOKENS, limit - longest)), stop=template.stop)
    return Evaluation(stage.eval_steps, mix.held_out, rows, prompts, sampling)


def _config(stage: "SFT", num_demos: int, work: Workdir, device: torch.device) -> SFTConfig:
    floor = {"min_lr_rate": stage.min_lr_rate} if stage.lr_scheduler_type == "cosine_with_min_lr" else {}
    own = {"lr_scheduler_kwargs": floor, "max_length": None}
    batch_size, steps = ranks.share_of(stage.batch_size, "batch_size"), trl_config.steps_for(stage, num_demos)
    return trl_config.config_of(SFTConfig, stage, work, device, batch_size, steps, **own)
