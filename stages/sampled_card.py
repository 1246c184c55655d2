"""The data card of sampled demos: what was asked, what was dropped for what, how hard the problems were."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.card import Card, load_card, parse_card_ref
from pipeline.markdown import inline
from pipeline.refs import Ref
from stages.dataset import table, write_card

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
    found = {str(ref): card.licence for ref, card in _cards(stage)}
    front = {
        "language": sorted({name.rpartition(", ")[2] for name, number in counts["kept_by_domain"].items() if number}),
        "license": next(iter(found.values())) if len(set(found.values())) == 1 else "other",
        "tags": ["synthetic", "rejection-sampling", "reasoning"],
        "configs": [
            {"config_name": "default", "data_files": "rows/*.parquet"},
            {"config_name": "problems", "data_files": "problems.parquet"},
        ],
    }
    body = _origin(stage, found) + _samples(counts["samples"]) + _problems(counts) + _benchmarks(stage, counts)
    write_card(folder, f"Demos sampled from {stage.model}", front, counts["samples"]["kept"], body)


def _origin(stage: "RejectionSampling", found: Mapping[str, str]) -> str:
    rule = "right ones" if stage.verify else "responses, right or wrong,"
    if not isinstance(stage.verify, bool):
        rule = f"right ones (in {', '.join(stage.verify)}; of other domains right or wrong)"
    many = "all" if stage.keep is None else f"at most {stage.keep}"
    rows = [(f"`{ref}`", found.get(str(ref), "see its own folder")) for ref in stage.problems]
    warnings = "".join(f"**Note:** {inline(warning)}.\n\n" for _, card in _cards(stage) for warning in card.warnings)
    return (
        f"{stage.num_samples} responses to each problem, temperature {stage.temperature:g}, top-p {stage.top_p:g}, at "
        f"most {stage.max_completion_length} tokens, template `{stage.template}`. Of the {rule} that pass the filters, "
        f"{many} of each problem were kept, {ORDER[stage.choose]}.\n\n"
        f"{table(('problems from', 'licence'), rows)}{warnings}"
        "The responses are a model's own text: the licences of the model and of the problems apply to them.\n\n"
    )


def _cards(stage: "RejectionSampling") -> list[tuple[Ref, Card]]:
    """The references that are cards; another one's licences are told in its own folder."""
    return [(ref, load_card(parse_card_ref(ref.target).name)) for ref in stage.problems if ref.scheme == "card"]


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


def _benchmarks(stage: "RejectionSampling", counts: Mapping[str, Any]) -> str:
    if not counts["benchmarks"]:
        return "## Benchmarks\n\nNo evaluation set was named, so nothing was left out for being in one.\n"
    rows = [
        (f"`{name}`", kind, number) for name, kinds in counts["benchmarks"].items() for kind, number in kinds.items()
    ]
    return (
        "## Benchmarks\n\nProblems left out because an evaluation set holds them: to the letter, or "
        f"{stage.overlap.coverage:.0%} of the n-grams of the shorter text. An n-gram of more than "
        f"{stage.overlap.max_problems} problems is a phrase and counts for nothing.\n\n"
        + table(("evaluation set", "in common", "problems left out"), rows)
    )
