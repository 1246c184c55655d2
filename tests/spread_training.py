"""Small trainings that one process does alone or two do together; as a script, one of the two.

WORLD_SIZE=2 RANK=… python -m tests.spread_training BASE FOLDER      # started by tests/test_ranks.py
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

from pipeline.errors import Interrupted
from pipeline.stage import Follower
from stages.engines import grpo_run, ranks
from stages.engines.samplers import Completion, Sampling, TransformersSampler
from stages.grpo import GRPO
from stages.training import Lora
from tests import test_grpo, test_sft


class ByPrompt(TransformersSampler):
    """Gives a prompt the same responses in whichever process it is sampled."""

    calls = 0

    def generate(self, prompts: Sequence[str], n: int, sampling: Sampling) -> Any:
        self.calls += 1
        seeds = [crc32(prompt.encode()) + self.calls for prompt in prompts]
        return [
            super(ByPrompt, self).generate([prompt], n, replace(sampling, seed=seed))[0]
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]


class FlatForTheFirst(test_grpo.FirstByte):
    """Responses to the first two of each four problems, all of rank 0's, get equal rewards: nothing to train on."""

    def score(self, problems: Sequence[Any], completions: Sequence[Completion], fraction: float) -> Any:
        rows = super().score(problems, completions, fraction)
        is_flat = [int(problem["id"][1:]) % 4 < 2 for problem in problems]
        flat = {"reward": 0.0, "reward/accuracy": 0.0}
        return [flat if known else row for known, row in zip(is_flat, rows, strict=True)]


SGD = {"optim": "sgd", "learning_rate": 0.5, "max_steps": 3, "max_completion_length": 12}
GRPO_SETTINGS: dict[str, tuple[type[GRPO], dict[str, Any]]] = {
    "dapo with lora": (test_grpo.FirstByte, {"lora": Lora(rank=4, alpha=8), "learning_rate": 5.0}),
    "bnpo with a reference": (test_grpo.FirstByte, {"loss_type": "bnpo", "beta": 0.1}),
    "nothing to train on in one process": (FlatForTheFirst, {"trl": {"shuffle_dataset": False}}),
}


def grpo(name: str, base: Path, folder: Path) -> None:
    kind, settings = GRPO_SETTINGS[name]
    budget = 20 if ranks.is_main() else 4096  # the processes cut their shares into unlike numbers of micro-batches
    stage = test_grpo.toy(kind, **{**SGD, **settings, "token_budget": budget})
    _run(stage, test_grpo.ToyInputs(base, test_grpo.problems()), _workdir(folder))


def sft(base: Path, folder: Path) -> None:
    stage = test_sft.stage(optim="sgd", learning_rate=0.5, eval_share=0.2)
    _run(stage, test_sft.ToyInputs(base, test_sft.demos()), _workdir(folder))


def stopped(base: Path, folder: Path, in_process: int = 1) -> None:
    """A signal reaches one process, between two updates on one batch; then the training goes on."""
    stage = test_grpo.toy(num_iterations=2, save_steps=3)
    inputs, first = test_grpo.ToyInputs(base, test_grpo.problems()), _workdir(folder)
    if ranks.world_size() > 1 and int(os.environ["RANK"]) == in_process:
        first.stop_after = 3
    try:
        _run(stage, inputs, first)
    except Interrupted:
        _run(stage, inputs, _workdir(folder))


class SignalledFollower(Follower, test_grpo.SignalledWorkdir):
    """Writes nothing, and may get the signal."""

    def log(self, step: int, metrics: Any) -> None:
        if step == self.stop_after - 1:
            os.kill(os.getpid(), test_grpo.signal.SIGTERM)


def _workdir(folder: Path) -> Any:
    return (test_grpo.SignalledWorkdir if ranks.is_main() else SignalledFollower)(folder)


def _run(stage: Any, inputs: Any, work: Any) -> None:
    try:
        stage.run(inputs, work)
    except SystemExit:  # what the other process does when training is over
        return


def all_of_them(base: Path, folder: Path) -> None:
    """Every training, each in a folder of its own."""
    own = grpo_run.open_sampler
    grpo_run.open_sampler = lambda stage, source, tokenizer, device, model=None: ByPrompt(model, tokenizer)
    runs: dict[str, Callable[[Path, Path], None]] = {
        name: (lambda base, folder, name=name: grpo(name, base, folder)) for name in GRPO_SETTINGS
    }
    try:
        for name, run in {**runs, "sft": sft}.items():
            run(base, folder / name)
    finally:
        grpo_run.open_sampler = own


if __name__ == "__main__":
    all_of_them(Path(sys.argv[1]), Path(sys.argv[2]))
    stopped(Path(sys.argv[1]), Path(sys.argv[2]) / "whole", in_process=-1)
    stopped(Path(sys.argv[1]), Path(sys.argv[2]) / "stopped")
