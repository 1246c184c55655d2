"""Several processes on one host that train one model together (`LAUNCH=ddp`), each on its own GPU; or just one.

Each process has a rank and computes its share of a step's rows: its own problems, its own rollouts, its own
micro-batches, as many as it needs. Nothing is exchanged meanwhile, so a process without a row to train on keeps nobody
waiting. Then the gradients are averaged, once a step, where DDP would do so in every backward pass. The update is that
of one process on the same batch (`tests/test_ranks.py`). Rank 0, the main one, writes all that is written.

Through accelerate: its process group (NCCL on CUDA, gloo on a CPU), its sharing out of the batches.
"""

import atexit
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from pipeline.errors import ConfigError

T = TypeVar("T")

# Of a step's row, what the processes have together rather than on average.
_SUMMED = ("sampled_tokens", "num_further_problems")


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Which of this host's GPUs is this process's."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_main() -> bool:
    """Whether this process has rank 0."""
    return int(os.environ.get("RANK", 0)) == 0


def join(device: torch.device) -> None:
    """Meets the others and takes this process's own GPU; before a model is loaded."""
    if world_size() > 1:
        PartialState(cpu=device.type == "cpu")
        atexit.register(_part)


def _part() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def leave_unless_main() -> None:
    """After training: what is left to do is the main process's."""
    if not is_main():
        raise SystemExit(0)


def share_of(num_rows: int, what: str) -> int:
    """The rows of one process; ConfigError where they cannot be shared out evenly."""
    if num_rows % world_size():
        raise ConfigError(
            f"{what} {num_rows} cannot be shared out among {world_size()} processes",
            hint=f"set a multiple of {world_size()}, or PROCESSES to a number that divides it",
        )
    return num_rows // world_size()


def from_main(compute: Callable[[], T]) -> T:
    """What the main process computes, in every process."""
    found = [compute() if is_main() else None]
    return broadcast_object_list(found)[0] if world_size() > 1 else found[0]  # type: ignore[return-value]


def any_of(flag: bool) -> bool:
    """Whether it is so in some process."""
    return any(gathered([flag]))


def gathered(values: list[T]) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    return list(gather_object(values)) if world_size() > 1 else values


def mean(value: torch.Tensor) -> torch.Tensor:
    """Over the processes."""
    if world_size() > 1:
        value = value.clone()
        torch.distributed.all_reduce(value)
        value /= world_size()
    return value


def together(row: Mapping[str, float]) -> dict[str, float]:
    """A step's row over all processes: means over those that have a figure, sums where they have it together."""
    if world_size() == 1:
        return dict(row)
    rows = gathered([dict(row)])
    values = {name: [r[name] for r in rows if name in r] for name in dict.fromkeys(name for r in rows for name in r)}
    return {name: sum(found) / (1 if name in _SUMMED else len(found)) for name, found in values.items()}


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """The mean over all processes; where one has none, it counts as zero. Where none has any, nothing is learned."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if world_size() == 1 or not any_of(any(parameter.grad is not None for parameter in trained)):
        return
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    under_way = [torch.distributed.all_reduce(gradient, async_op=True) for gradient in gradients]
    for gradient, one in zip(gradients, under_way, strict=True):
        one.wait()
        gradient /= world_size()


@contextmanager
def alone(accelerator: Any) -> Iterator[None]:
    """Meanwhile nothing is exchanged: TRL's losses gather their figures at every call, and calls differ in number."""
    names = ("gather", "gather_for_metrics", "reduce")
    for name in names:
        setattr(accelerator, name, _kept)
    try:
        yield
    finally:
        for name in names:
            delattr(accelerator, name)


def _kept(tensor: Any, *args: Any, **options: Any) -> Any:
    return tensor
