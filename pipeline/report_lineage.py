"""Where a run's results come from and what they cost, for the report: graph, data, reward models, time and memory.

Reads manifests, and `counts.json` of every data set that a stage made. Makes plain values for the template.

Command: `make report RUN=NAME`
"""

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from pipeline.artifact import read_or_empty
from pipeline.refs import DATASET, REWARD_MODEL
from pipeline.report_measures import as_text, duration, finite, gibibytes
from pipeline.report_plots import Node
from pipeline.report_run import CardUse, Run, StageRecord

REWARD_MODEL_FACTS = {
    "accuracy": "held-out pairs: the better text scores higher",
    "accuracy_better_is_shorter": "… where it is the shorter one",
    "accuracy_better_is_longer": "… where it is the longer one",
    "accuracy_of_texts": "held-out texts on the right side of one half",
    "length_correlation": "correlation of score and length",
    "eval_loss": "held-out loss",
}


def lineage_nodes(run: Run) -> list[Node]:
    """The boxes of the graph: models from outside, then every stage but evaluations, with what was measured."""
    made = [stage for stage in run.stages if stage.kind != "evaluate"]
    parents = {stage.name: _parents(stage) for stage in made}
    outside = dict.fromkeys(ref for refs in parents.values() for ref in refs if not ref.startswith("stage:"))
    nodes = [Node(ref, _short_ref(ref), ("from outside", *_box_score(run, ref))) for ref in outside]
    for stage in made:
        ref, done = f"stage:{stage.name}", stage.state.startswith("done")
        lines = (stage.kind, *(() if done else (stage.state,)), *_box_score(run, ref), *_box_fact(stage))
        nodes.append(Node(ref, stage.name, lines, tuple(parents[stage.name]), done))
    return nodes


def _parents(stage: StageRecord) -> list[str]:
    """The references of a stage to models and to what other stages made; cards have a table of their own."""
    recorded = [parent.ref for parents in stage.manifest.inputs.values() for parent in parents]
    refs = dict.fromkeys([*_texts(stage.settings), *recorded])
    return [ref for ref in refs if ref.startswith(("stage:", "run:", "hub:", "path:"))]


def _texts(value: Any) -> Iterator[str]:
    """Every text inside nested settings: a reward, too, may name a model."""
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _texts(part)


def _short_ref(ref: str) -> str:
    """`hub:Org/Model@abc` -> `Model`, `path:a/b` -> `b`, `stage:x` -> `x`."""
    return ref.partition(":")[2].partition("@")[0].rstrip("/").rpartition("/")[2]


def _box_score(run: Run, ref: str) -> tuple[str, ...]:
    evaluation = run.evaluation_of(ref)
    measure = evaluation.value("pass_at_1") if evaluation else None
    return (f"pass@1 {as_text('pass_at_1', measure.value)}",) if measure else ()


def _box_fact(stage: StageRecord) -> tuple[str, ...]:
    """How a reward model does on held-out pairs."""
    accuracy = finite(stage.manifest.metrics.get("accuracy")) if stage.manifest.artifact == REWARD_MODEL else None
    return () if accuracy is None else (f"pairs right {100 * accuracy:.1f} %",)


Counts = list[tuple[str, str]]  # (what, how many)


def data_sets(run: Run) -> list[tuple[str, dict[str, Counts]]]:
    """(stage, group of counts -> counts) for every data set a stage made, from its `counts.json`.

    Counts outside any group stand under "in all".
    """
    found = []
    for stage in run.stages:
        if stage.manifest.artifact == DATASET and stage.folder:
            counts = read_or_empty(stage.folder / "counts.json") or stage.manifest.metrics
            groups = {name: part for name, part in counts.items() if isinstance(part, dict)}
            ungrouped = {name: part for name, part in counts.items() if name not in groups}
            tables = {_words(name): _counts(part) for name, part in {"in_all": ungrouped, **groups}.items()}
            found.append((stage.name, {name: lines for name, lines in tables.items() if lines}))
    return found


def _counts(raw: Mapping[str, Any], prefix: str = "") -> Counts:
    """The numbers in `raw`; those of a group inside it with the group's name before theirs."""
    lines: Counts = []
    for name, value in raw.items():
        if isinstance(value, dict):
            lines += _counts(value, f"{prefix}{name}: ")
        elif (number := finite(value)) is not None:
            lines.append((prefix + _words(str(name)), plain(number)))
    return lines


def _words(name: str) -> str:
    return name.removeprefix("num_").replace("_", " ")


def plain(number: float) -> str:
    """`12,480`, `0.734`."""
    return f"{number:,.0f}" if number == int(number) and abs(number) != 1 else f"{number:.3g}"


def reward_models(run: Run) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The reward models of a run, and (what, value of each) for whatever was measured on held-out pairs."""
    stages = [stage for stage in run.stages if stage.manifest.artifact == REWARD_MODEL]
    metrics = [stage.manifest.metrics for stage in stages]
    counts = dict.fromkeys(name for found in metrics for name in found if name.startswith("num_"))
    labels = REWARD_MODEL_FACTS | {name: name.removeprefix("num_").replace("_", " ") for name in counts}
    values = {label: [finite(found.get(name)) for found in metrics] for name, label in labels.items()}
    rows = [
        (label, ["–" if value is None else plain(value) for value in found])
        for label, found in values.items()
        if any(value is not None for value in found)
    ]
    return [stage.name for stage in stages], rows


def cost_rows(run: Run) -> list[dict[str, Any]]:
    """Seconds and memory of every finished stage beside their forecast, with its share of the longest for the bar."""
    finished = [(stage, stage.manifest) for stage in run.stages if stage.manifest.seconds is not None]
    longest = max((manifest.seconds or 0 for _, manifest in finished), default=0) or 1
    return [
        {
            "stage": stage.name,
            "percent": round(100 * (manifest.seconds or 0) / longest, 1),
            "duration": duration(manifest.seconds),
            "memory": gibibytes(manifest.peak_memory_gib),
            "gpu_memory": gibibytes(manifest.peak_gpu_memory_gib),
            "forecast_memory": gibibytes(manifest.forecast.peak_gib),
            "step": seconds(step_seconds(stage)),
            "forecast_step": seconds(manifest.forecast.seconds_per_step),
        }
        for stage, manifest in finished
    ]


def step_seconds(stage: StageRecord) -> float | None:
    """The median over the steps; None for a stage without."""
    values = [value for _, value in stage.curves.get("step_seconds", []) if value is not None]
    return median(values) if values else None


def seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g} s"


def cards(run: Run) -> list[tuple[str, str, str]]:
    """(name, revision, licence) of every card that a stage read."""
    return sorted({_card_facts(card) for stage in run.stages for card in stage.manifest.cards})


def _card_facts(card: CardUse) -> tuple[str, str, str]:
    licence = card.licence if isinstance(card.licence, str) else ", ".join(card.licence or ())
    return card.name, str(card.revision or "–"), licence or "–"


def packages(run: Run) -> list[tuple[str, str]]:
    """(package, version) for every package that a stage ran with."""
    return sorted({(name, str(version)) for s in run.stages for name, version in s.manifest.packages.items()})
