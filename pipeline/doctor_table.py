"""What `make doctor` prints: this machine, the forecast for each stage, what fits on which card, and what is wrong.

Reads the diagnoses of `doctor.py`; makes text for the terminal.
"""

from collections.abc import Iterable, Mapping, Sequence
from string import ascii_lowercase

from rich.table import Table

from pipeline.console import console, show_note
from pipeline.doctor import CARD_SIZES_GB, Diagnosis
from pipeline.machine import GIB, Machine
from stages.forecast import Forecast

LEGEND = (
    "GiB of tensors. Held all the time: weights, the adapter, Adam's moments with the gradients. In turns: activations "
    "of a micro-batch of so many tokens, and the rollout (with vLLM: its share of the GPU). Minutes come from runs "
    "like it, or from the scale; with ~ they are a rough estimate at full length, from operations and bytes "
    "(docs/performance.md says how far it was off)."
)


def show_machine(machine: Machine) -> None:
    """One line for what computes, one for what is installed."""
    memory, disk = machine.memory_bytes / GIB, machine.free_disk_bytes / GIB
    console.print(f"{machine.cpu}, {machine.cores} cores, {memory:.1f} GiB memory, {disk:.0f} GiB free on disk")
    for gpu in machine.gpus:
        free, total = gpu.free_bytes / GIB, gpu.total_bytes / GIB
        console.print(f"{gpu.name}, {total:.1f} GiB ({free:.1f} free), driver {gpu.driver}")
    built = {None: "no torch", "": "torch for the CPU"}.get(machine.torch_cuda, f"torch for CUDA {machine.torch_cuda}")
    console.print(f"{built}, {f'vLLM {machine.vllm}' if machine.vllm else 'no vLLM'}")
    if machine.gpus and not machine.has_cuda:
        show_note(f"nothing will be computed on the GPU: {machine.why_no_cuda}")


def show_forecast(title: str, found: Sequence[Diagnosis], minutes: Mapping[str, float]) -> None:
    """The stages with bytes by phase and minutes; `minutes` holds those that are known better than by an estimate."""
    console.print(title, style="bold")
    if unknown := [one.stage for one in found if one.found is None]:
        show_note(f"no forecast for {', '.join(unknown)}: the sizes of the model are not known here")
    if len(unknown) == len(found):
        return
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "weights", "LoRA", "Adam", "activ.", "tokens", "rollout", "peak", "min/step"):
        table.add_column(column, justify="left" if column == "stage" else "right", no_wrap=True)
    for one in found:
        if one.found:
            table.add_row(one.stage, *_cells(one.found, minutes.get(one.stage)))
    console.print(table)
    console.print(LEGEND, style="dim")


def _cells(found: Forecast, measured: float | None) -> list[str]:
    sizes = [found.weights, found.adapter, found.optimiser, found.activations]
    step = "–" if found.seconds_per_step is None else f"~{_minutes(found.seconds_per_step / 60)}"
    tokens = f"{found.micro_batch_tokens:,}" if found.micro_batch_tokens else "–"
    return [*map(_gib, sizes), tokens, _gib(found.cache), _gib(found.peak), _minutes(measured) if measured else step]


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size else "–"


def _minutes(minutes: float) -> str:
    return f"{minutes:,.0f}" if minutes >= 100 else f"{minutes:.1f}" if minutes >= 1 else f"{minutes:.2g}"


def show_cards(found: Iterable[Diagnosis]) -> None:
    """Stage by size of card: yes, no, or the letter of the settings with which it fits."""
    table = Table(box=None, pad_edge=False, title="fits on a GPU of", title_justify="left", title_style="bold")
    table.add_column("stage", no_wrap=True)
    for size in CARD_SIZES_GB:
        table.add_column(f"{size} GB")
    letters: dict[str, str] = {"yes": "yes", "no": "no"}
    for one in (one for one in found if one.on_cards):
        cells = [one.on_cards[size] for size in CARD_SIZES_GB]
        for cell in cells:
            letters.setdefault(cell, f"({ascii_lowercase[(len(letters) - 2) % 26]})")
        table.add_row(one.stage, *(letters[cell] for cell in cells))
    if table.row_count:
        console.print(table)
    for words, letter in list(letters.items())[2:]:
        console.print(f"{letter} with {words}", style="dim")


def show_problems(found: Iterable[Diagnosis]) -> int:
    """A sentence for each, with what would fit instead; returns how many there are."""
    problems = dict.fromkeys(problem for one in found for problem in one.problems)
    for problem in problems:
        console.print(f"problem: {problem.sentence}; {problem.instead}", style="red")
    return len(problems)
