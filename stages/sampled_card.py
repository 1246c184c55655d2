"""The data card of sampled demos: what was asked, what was dropped for what, how hard the problems were."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.card import Card
from stages.dataset_card import benchmarks, cards_of, licence_of, notes, table, write_card

if TYPE_CHECKING:
    from stages.rejection_sampling import RejectionSampling

ORDER = {"shortest": "the shortest first", "first": "in the order sampled", "random": "in random order"}
SAYS = {
    "truncated": "cut off at the length limit",
    "wrong": "the answer is wrong",
    "cannot_tell": "the answer could not be judged in time",
    "gold_unusable": "the problem's own answer cannot be used to judge",
    "no_rule": "the problem has no rule that judges its answers",
    "not_well_formed": "not one think block and one answer block",
    "mixed_languages": "the reasoning is not in the problem's language throughout",
    "long_paragraphs": "a paragraph of the reasoning is too long",
    "code_blocks": "a code block in the reasoning",
    "repetition": "it says the same again and again",
    "duplicate": "the same as another response to this problem",
    "not_chosen": "good, but enough of this problem were kept",
    "kept": "**kept**",
}


def write_sampled_card(stage: "RejectionSampling", counts: Mapping[str, Any], folder: Path) -> None:
    """Writes `README.md` into the stage's folder; `counts` is what `counts.json` holds."""
    cards = cards_of(stage.problems)
    front = {
        "language": sorted({name.rpartition(", ")[2] for name, number in counts["kept_by_domain"].items() if number}),
        "license": licence_of(stage.problems, cards),
        "tags": ["synthetic", "rejection-sampling", "reasoning"],
        "configs": [
            {"config_name": "default", "data_files": "rows/*.parquet"},
            {"config_name": "problems", "data_files": "problems.parquet"},
        ],
    }
    held = benchmarks(counts["benchmarks"], stage.overlap, "problems")
    body = _origin(stage, cards) + _samples(counts["samples"]) + _problems(counts) + held
    write_card(folder, f"Demos sampled from {stage.model}", front, counts["samples"]["kept"], body)


def _origin(stage: "RejectionSampling", cards: Mapping[str, Card]) -> str:
    rule = "right ones" if stage.verify else "responses, right or wrong,"
    if not isinstance(stage.verify, bool):
        rule = f"right ones (in {', '.join(stage.verify)}; of other domains right or wrong)"
    many = "all" if stage.keep is None else f"at most {stage.keep}"
    known = {name: card.licence for name, card in cards.items()}
    rows = [(f"`{ref}`", known.get(str(ref), "see its own folder")) for ref in stage.problems]
    return (
        f"{stage.num_samples} responses to each problem, temperature {stage.temperature:g}, top-p {stage.top_p:g}, at "
        f"most {stage.max_completion_length} tokens, template `{stage.template}`. Of the {rule} that pass the filters, "
        f"{many} of each problem were kept, {ORDER[stage.choose]}.\n\n"
        f"{table(('problems from', 'licence'), rows)}{notes(cards)}"
        "The responses are a model's own text: the licences of the model and of the problems apply to them.\n\n"
    )


def _samples(samples: Mapping[str, int]) -> str:
    rows = [
        (SAYS[name], number, f"{number / samples['sampled']:.1%}") for name, number in samples.items() if name in SAYS
    ]
    return "## Samples\n\nEach is counted once, under the first reason that holds.\n\n" + table(
        ("what became of it", "samples", "share"), [*rows, ("sampled in all", samples["sampled"], "100.0%")]
    )


def _problems(counts: Mapping[str, Any]) -> str:
    problems = [(name.replace("_", " "), number) for name, number in counts["problems"].items()]
    rates = [(name, number) for name, number in counts["pass_rates"].items() if number]
    return (
        "## Problems\n\n"
        + table(("problems", "number"), [*problems, ("with a demo", counts["num_problems_kept"])])
        + "How hard they were: the share of a problem's samples that were right. See `problems.parquet`.\n\n"
        + table(("pass rate", "problems"), rates)
        + table(("demos by domain and language", "number"), counts["kept_by_domain"].items())
    )
