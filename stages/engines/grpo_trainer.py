"""GRPO on TRL's trainer, from rollouts to checkpoints: responses of our own samplers, and an exact resume.

TRL keeps what GRPO is: advantages, the loss (in micro-batches: `grpo_loss.py`), the optimiser loop. Replaced here:

- responses come from a `Sampler` (TRL would carry finished rows along, or stream all weights to vLLM);
- the order of problems, the place inside a generation block and the reference are part of a checkpoint, so a
  resumed run is the uninterrupted run.

Shapes: B = P problems × G responses, C completion tokens.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from datasets import Dataset
from trl import GRPOConfig

from pipeline.errors import ConfigError
from stages.engines import ranks
from stages.engines.curves import note, reward_curves, reward_table, sampling_curves
from stages.engines.dynamic_sampling import Group, other_problems, refilled
from stages.engines.engine_correction import AGREES, check_agreement
from stages.engines.grpo_loss import TokenBudgetLoss
from stages.engines.hacking import HackingWatch
from stages.engines.models import copy_policy, peak_memory_gib
from stages.engines.samplers import Completion, Sampler, Sampling, encode_prompts
from stages.engines.schedule import EpochSampler, Late, LateSampler
from stages.engines.token_budget import Batch
from stages.lengthening import Lengthening

# Rewards of one batch: (problem rows, their completions, share of training done) -> one mapping a completion with
# `reward/<kind>` for each part, None where it does not apply.
Score = Callable[[Sequence[dict[str, Any]], Sequence[Completion], float], list[dict[str, float | None]]]


class TokenBudgetGRPOTrainer(TokenBudgetLoss):
    """See the module docstring. `problems`: the `prompt` a model continues, and the `row` that `score` wants."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        args: GRPOConfig,
        problems: list[dict[str, Any]],
        sampler: Sampler,
        sampling: Sampling,
        score: Score,
        reward_weights: dict[str, float],
        token_budget: int | None = None,
        reference_every: int = 0,
        mask_truncated: bool = False,
        late: Late | None = None,
        hacking: HackingWatch | None = None,
        dynamic_sampling: int = 0,
        lengthening: Lengthening | None = None,
        memory_gb: float | None = None,
    ) -> None:
        """`reward_weights`: weight of each `reward/<kind>`; `token_budget` None = found from memory.

        `reference_every`: the KL reference becomes the current policy every so many steps (0 = never).
        `mask_truncated`: responses cut at the length limit have no part in the loss.
        `late`: the last of the problems enter late; `hacking`: looks for reward hacking after each step.
        `dynamic_sampling`: times that groups without a signal are replaced by further problems.
        `lengthening`: ends this training, with a checkpoint, where another phase begins.
        `memory_gb`: what the whole process may take of the GPU (None = what is free).
        """
        args.reward_weights = list(reward_weights.values())
        super().__init__(
            token_budget=token_budget,
            corrects_engine=sampler.trained_elsewhere and args.vllm_importance_sampling_correction,
            memory_gb=memory_gb,
            model=model,
            reward_funcs=[_named(kind) for kind in reward_weights],
            args=args,
            train_dataset=Dataset.from_list(problems),
            processing_class=tokenizer,
        )
        self.sampler, self.sampling, self.score = sampler, sampling, score
        self.reference_every = reference_every
        self.mask_truncated = mask_truncated
        self.late, self.hacking = late, hacking
        self.dynamic_sampling, self.lengthening = dynamic_sampling, lengthening
        self._engine_gap: float | None = None
        self._groups: list[Group] = []
        self._step_began = time.perf_counter()

    # --- the order of problems ---------------------------------------------------------------------

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler | LateSampler:
        problems = dataset if dataset is not None else self.train_dataset
        pattern = {
            "mini_repeat_count": self.num_generations,
            "batch_size": self.args.generation_batch_size // self.num_generations,
            "repeat_count": self.num_iterations * self.args.steps_per_generation,
            "shuffle": self.shuffle_dataset,
            "seed": self.args.seed,
        }
        if self.late:
            return LateSampler(self.late, len(problems), self.args.max_steps, **pattern)
        return EpochSampler(lambda: int((self.state.epoch or 0.0) + 1e-6), data_source=problems, **pattern)

    # --- sampling and scoring ----------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Batch:
        """Samples and scores a group for each problem, replaces flat ones if that is asked for, and lets TRL work out
        advantages; `inputs` holds every problem G times, in a row."""
        problems = inputs[:: self.num_generations]
        first = self._sampled(problems, 0)
        self._note_sampling(first)
        others = self._other_problems(problems) if self.dynamic_sampling else iter(())
        self._groups, further = refilled(first, self.dynamic_sampling, others, self._sampled)
        if self.dynamic_sampling:
            self._step_metrics["num_further_problems"] = float(len(further))
            self._step_metrics["sampled_tokens"] += sum(len(c.token_ids) for g in further for c in g.completions)
        rows = [group.problem for group in self._groups for _ in range(self.num_generations)]
        output = (
            self._with_rollout_logps(rows) if self._reuses_logps() else super()._generate_and_score_completions(rows)
        )
        if self.multi_objective_aggregation == "sum_then_normalize":
            # Equal rewards have no advantage; rounding in their mean would leave a trace of one.
            flat = [group.is_flat for group in self._groups for _ in range(self.num_generations)]
            output["advantages"][torch.tensor(flat)] = 0.0
        if self.mask_truncated:  # TRL's own test would call a response that ended at a stop text cut off
            whole = torch.tensor([not c.truncated for c in self._completions], device=output["completion_mask"].device)
            output["completion_mask"] = output["completion_mask"] * whole[:, None]
            output["num_items_in_batch"] = gather(output["completion_mask"].sum()).sum()
        return output

    def _reuses_logps(self) -> bool:
        """Whether the engine's log-probabilities stand for the old ones: they did agree, and none is missing."""
        if not self._corrects_engine or self._block == 1 or self._engine_gap is None or self._engine_gap > AGREES:
            return False
        return not any(math.isnan(value) for completion in self._completions for value in completion.logprobs)

    def _with_rollout_logps(self, rows: list[dict[str, Any]]) -> Batch:
        """TRL's batch without its pass for the old log-probabilities."""
        steps = self.args.gradient_accumulation_steps
        self.args.gradient_accumulation_steps = self._block  # then TRL takes the current ones for the old ones
        try:
            output = super()._generate_and_score_completions(rows)
        finally:
            self.args.gradient_accumulation_steps = steps
        old = {"old_per_token_logps": output["sampling_per_token_logps"], "old_is_rollout": torch.tensor(1)}
        return output | old

    @property
    def _block(self) -> int:
        """Updates between two rollouts."""
        return int(self.args.steps_per_generation * self.num_iterations)

    def _other_problems(self, problems: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """This process's part of the problems that no process has in this step, in a random order."""
        order = other_problems(self.train_dataset, ranks.gathered(problems), f"{self.args.seed} {self._step} 0")
        return islice(order, self._process, None, ranks.world_size())

    def _sampled(self, problems: list[dict[str, Any]], number: int) -> list[Group]:
        """G responses to each problem, scored; `number` counts the rounds of a step."""
        began = time.perf_counter()
        if self.core:
            self.core.rest()
        self.sampler.sync(self.accelerator.unwrap_model(self.model), self.state.global_step)
        sampling = _reseeded(self.sampling, self.args.seed, self._step, self._process, number)
        prompts = [problem["prompt"] for problem in problems]
        groups = self.sampler.generate(prompts, self.num_generations, sampling)
        self.sampler.sleep()
        seconds = self._step_metrics.get("generate_seconds", 0.0) + time.perf_counter() - began
        self._step_metrics["generate_seconds"] = seconds
        fraction = self.state.global_step / max(1, self.args.max_steps)
        rows = [problem["row"] for problem in problems for _ in range(self.num_generations)]
        parts = iter(self.score(rows, [completion for group in groups for completion in group], fraction))
        return [
            Group(problem, group, [next(parts) for _ in group]) for problem, group in zip(problems, groups, strict=True)
        ]

    def _note_sampling(self, groups: list[Group]) -> None:
        """What a step's own problems say of the policy; those that took the place of others would flatter it."""
        rewards, rows = self._table(groups), [group.problem["row"] for group in groups for _ in group.parts]
        flat = [group.is_flat for group in groups]
        self._step_metrics |= sampling_curves([completion for group in groups for completion in group.completions])
        self._step_metrics |= reward_curves(rewards, self.reward_func_names, rows)
        self._step_metrics |= {
            "reward": (rewards * self.reward_weights.to(rewards.device)).nansum(1).mean().item(),
            "zero_variance_share": sum(flat) / len(flat),
        }
        if self.hacking:
            self.hacking.note(gather(rewards), self.reward_func_names, self.num_generations)

    def _table(self, groups: list[Group]) -> torch.Tensor:
        parts = [part for group in groups for part in group.parts]
        return reward_table(parts, self.reward_func_names).to(self.accelerator.device)

    def _generate(self, prompts: list[str]) -> tuple[Any, ...]:
        """What was sampled, as TRL wants it."""
        token_ids = [c.token_ids for c in self._completions]
        logprobs = [c.logprobs for c in self._completions] if self._corrects_engine else None
        texts = [c.text for c in self._completions]
        return encode_prompts(self._tokenizer, prompts), token_ids, None, texts, logprobs, {}, None, []

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        """What was scored, (B, kinds)."""
        return gather(self._table(self._groups))

    @property
    def _completions(self) -> list[Completion]:
        return [completion for group in self._groups for completion in group.completions]

    @property
    def _process(self) -> int:
        return int(self.accelerator.process_index)

    # --- the reference -----------------------------------------------------------------------------

    def refresh_reference(self) -> None:
        """The KL reference becomes the current policy (paper: every 400 steps)."""
        reference = None if self.ref_model is None else self.accelerator.unwrap_model(self.ref_model)
        copy_policy(self.accelerator.unwrap_model(self.model), reference)

    # --- metrics and checkpoints -------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One row of `metrics.jsonl` for each step; TRL's and transformers' own logging is left out."""
        self._metrics["train"].clear()
        if "grad_norm" not in logs:  # the summary at the end of training
            return
        now = time.perf_counter()
        seconds, self._step_began = now - self._step_began, now
        row = ranks.together(self._step_metrics) | {k: logs[k] for k in ("loss", "grad_norm", "learning_rate")}
        if (self._step - 1) % self._block == 0:  # the model was still the one that sampled
            self._engine_gap = row.get("engine_gap", self._engine_gap)
            check_agreement(self._engine_gap)
        tokens = row.pop("sampled_tokens", 0.0)
        row |= {"step_seconds": seconds, "tokens_per_s": tokens / seconds, **peak_memory_gib()}
        if self.hacking:
            if self.core:
                self.core.rest()
            row |= self.hacking.after_step(
                self.accelerator.unwrap_model(self.model), self.state.global_step, self.control
            )
            self._step_began = time.perf_counter()
        self.work.log(self.state.global_step, row)
        self.work.progress(self.state.global_step, self.args.max_steps, note(row))
        self._step_metrics = {}
        self._begin_phase(row.get("clipped_share"))
        if self.reference_every and self.state.global_step % self.reference_every == 0:
            self.refresh_reference()

    def _begin_phase(self, clipped_share: float | None) -> None:
        """Stops here when another phase begins, but never between two updates on one batch of responses."""
        is_between = self._step % self._block == 0
        if self.lengthening and is_between and self.lengthening.after_step(self.state.global_step, clipped_share):
            self.control.should_training_stop = self.control.should_save = True

    def save_extra(self, folder: Path) -> None:
        """The place inside a block of generated batches, the batches still to be used, a refreshed reference, and
        what was seen of reward hacking."""
        state: dict[str, Any] = {"step": self._step, "engine_gap": self._engine_gap}
        if self._step % self._block:
            state |= {"buffered": self._buffered_inputs, "processes": ranks.world_size()}
        if self.reference_every and self.ref_model is not None:
            state["reference"] = self.accelerator.unwrap_model(self.ref_model).state_dict()
        if self.hacking:
            state["hacking"] = self.hacking.watch.state
        if self.lengthening and ranks.is_main():
            self.lengthening.save(folder)
        torch.save(state, folder / self._state_file)

    @property
    def _state_file(self) -> str:
        """Of this process: the batches still to be used are its own."""
        return f"grpo_state-{self._process}.pt" if self._process else "grpo_state.pt"

    @property
    def kept_step(self) -> int | None:
        """A step whose checkpoint is kept however old it is."""
        return self.hacking.kept_step if self.hacking else None

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        file = Path(checkpoint) / self._state_file
        file = file if file.exists() else file.with_name("grpo_state.pt")
        state = torch.load(file, weights_only=True, map_location=self.accelerator.device.type)
        if "buffered" in state and (count := state.get("processes", 1)) != ranks.world_size():
            raise ConfigError(
                f"this stage stopped between two updates on responses that {count} processes had sampled",
                hint=f"LAUNCH=ddp PROCESSES={count} goes on from there, REBUILD begins again",
            )
        self._step, self._buffered_inputs = state["step"], state.get("buffered")
        self._engine_gap = state.get("engine_gap")
        if "reference" in state:
            self.accelerator.unwrap_model(self.ref_model).load_state_dict(state["reference"])
        if self.hacking and "hacking" in state:
            self.hacking.watch.restore(state["hacking"])


def _named(kind: str) -> Callable[..., list[float]]:
    """TRL wants a function for each reward; ours are scored together, so only the name is used."""

    def placeholder(**kwargs: Any) -> list[float]:
        raise NotImplementedError(kind)

    placeholder.__name__ = kind
    return placeholder


def _reseeded(sampling: Sampling, seed: int, step: int, process: int, number: int) -> Sampling:
    """A random stream for each (seed, step, process, round): a resume samples the same without saved state."""
    mixed = (seed * 1_000_003 + step) * 1_009 + process + (number << 44)
    return Sampling(**{**vars(sampling), "seed": mixed % 2**63})
