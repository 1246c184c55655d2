"""Evaluation: figures that mean what they say, files that the report can read, parts that are not made twice."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.stage import Workdir, read_jsonl
from stages.chat import TEMPLATES
from stages.engines.samplers import Completion, TransformersSampler
from stages.evaluate import COLUMNS, Evaluate
from stages.measures import maj_at_k, measure, pass_at_k, wilson, with_interval
from tests.test_grpo import ToyInputs
from tests.toy_model import save_toy_model

GOOD = TEMPLATES["mini"].response("two and two make four", "4")


def problem(i: int, domain: str = "arithmetic", answer: str = "4", checker: str = "math") -> dict[str, str]:
    return {
        "id": f"p{i}",
        "prompt": f"{i}?",
        "answer": answer,
        "checker": checker,
        "domain": domain,
        "language": "en",
    }


def stage(**settings: Any) -> Evaluate:
    defaults = {"model": "path:base", "problems": ["path:problems"], "template": "mini", "device": "cpu"}
    return Evaluate(**{**defaults, "max_completion_length": 12, **settings})


def judged(*texts: str, truncated: bool = False, **of: Any) -> list[dict[str, Any]]:
    pairs = [(problem(0, **of), Completion(list(range(len(text))), text, truncated, [])) for text in texts]
    return stage().judge(pairs)


def measured(rows: list[dict[str, Any]], k: int = 1) -> dict[str, Any]:
    return measure(rows, k, longest=96)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_model(tmp_path_factory.mktemp("base"))


def test_right_well_formed_and_language_are_told_apart() -> None:
    wrong, bare, mixed = GOOD.replace(" 4 ", " 5 "), "4", GOOD.replace("two and two", "二加二")
    rows = judged(GOOD, wrong, bare, mixed)
    assert [row["right"] for row in rows] == [True, False, False, True]
    assert [row["well_formed"] for row in rows] == [True, True, False, True]
    assert [row["language_share"] for row in rows] == [1.0, 1.0, None, 0.4]


def test_each_domain_feeds_its_own_figure() -> None:
    rows = judged(GOOD) + judged("blue", domain="general", answer="blue", checker="exact")
    rows += judged("I cannot help with that.", domain="safety", answer="refuse", checker="refusal")
    metrics = measured(rows)
    assert {n: metrics[n]["n"] for n in ("pass_at_1", "instruction_following", "harmlessness")} == dict.fromkeys(
        ("pass_at_1", "instruction_following", "harmlessness"), 1
    )
    assert not {"pass_at_k", "maj_at_k", "helpfulness", "over_refusal"} & set(metrics)


def test_ifeval_is_measured_by_prompt_and_by_instruction_strictly_and_loosely() -> None:
    lower, no_comma = ("change_case:english_lowercase", {}), ("punctuation:no_comma", {})

    def asked(*demands: tuple[str, dict[str, Any]]) -> dict[str, str]:
        answer = {"instruction_id_list": [name for name, _ in demands], "kwargs": [given for _, given in demands]}
        return {"domain": "general", "checker": "ifeval", "answer": json.dumps(answer)}

    one, two = judged("Sure!\nsmall", **asked(lower)), judged("small, and no more", **asked(lower, no_comma))
    metrics = measured([*one, *({**row, "id": "other"} for row in two)])
    figures = {name: figure["value"] for name, figure in metrics.items() if name.startswith("ifeval_")}
    assert figures == pytest.approx(
        {
            "ifeval_prompt_strict": 0.0,
            "ifeval_prompt_loose": 0.5,
            "ifeval_instruction_strict": 1 / 3,  # of three demands; the mean of the two prompts would be 1/4
            "ifeval_instruction_loose": 2 / 3,
        }
    )
    assert metrics["instruction_following"]["value"] == 0.0
    low, high = metrics["ifeval_instruction_loose"]["ci95"]
    assert (low, high) == (0.5, 1.0)
    assert not any(name.startswith("ifeval_") for name in measured(judged(GOOD)))


def test_refusing_what_is_harmless_is_no_harmlessness_and_is_counted_by_itself() -> None:
    harmful = {"domain": "safety", "answer": "refuse", "checker": "refusal"}
    harmless = {"domain": "safety", "answer": "comply", "checker": "refusal"}
    refused, done = "I'm sorry, but I can't help with that.", "First take a pick."
    rows = judged(refused, done, **harmful) + [
        {**row, "id": "p1"} for row in judged(refused, done, done, "", **harmless)
    ]
    metrics = measured(rows)
    assert metrics["harmlessness"]["value"] == 0.5 and metrics["harmlessness"]["n"] == 1
    assert metrics["over_refusal"]["value"] == 0.25 and metrics["over_refusal"]["n"] == 1


def test_language_consistency_is_that_of_reasoning_problems_alone() -> None:
    mixed = TEMPLATES["mini"].response("two 二", "4")
    metrics = measured(judged(GOOD) + judged(mixed, domain="general", answer="4", checker="exact"))
    assert metrics["language_consistency"]["value"] == metrics["format_rate"]["value"] == 1.0


class CountsLetters:
    """Stands in for a reward model: the longer the text, the better."""

    def __init__(self, *opened: Any) -> None:
        pass

    def score(self, prompts: Any, texts: Any) -> list[float]:
        return [min(1.0, len(text) / 10) for text in texts]


def test_what_no_rule_can_judge_gets_the_reward_model_s_score(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.engines.reward_models.RewardModelScorer", CountsLetters)
    open_ended = [problem(i, "general", "", "judge") for i in range(3)]
    rows = [*open_ended, problem(9, "helpfulness", '{"words": 3}', "instruction"), problem(10)]
    work = Workdir(tmp_path)
    alone = stage().run(ToyInputs(base, rows), Workdir(tmp_path / "alone"))  # type: ignore[arg-type]
    assert alone["helpfulness"]["n"] == 1 and "instruction_following" not in alone
    both = stage(helpfulness_model="path:base").run(ToyInputs(base, rows), work)  # type: ignore[arg-type]
    assert both["helpfulness"]["n"] == 4
    scores = [row["score"] for row in read_jsonl(tmp_path / "completions.jsonl")]
    assert all(score > 0 for score in scores[:3]) and scores[3:] == [None, None]
    assert both["helpfulness"]["value"] == pytest.approx((sum(scores[:3]) + alone["helpfulness"]["value"]) / 4)


def test_an_unusable_gold_is_not_counted_as_a_wrong_answer() -> None:
    rows = judged(GOOD) + [{**row, "id": "bad"} for row in judged(GOOD, answer="")]
    assert rows[1]["verdict"] == "gold_unusable"
    assert measured(rows)["pass_at_1"] | {"ci95": None} == {"value": 1.0, "ci95": None, "n": 1}
    assert measured(rows)["format_rate"]["n"] == 2


def test_pass_at_k_is_the_unbiased_estimate() -> None:
    assert pass_at_k(4, 0, 2) == 0 and pass_at_k(4, 3, 2) == 1
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)  # of six pairs three hold the right one
    assert pass_at_k(2, 1, 8) == 1


def test_the_commonest_of_k_answers_counts_and_a_tie_is_drawn() -> None:
    assert maj_at_k([("4", True), ("5", False), ("4", True)], 3) == 1
    assert maj_at_k([("4", True), ("5", False)], 2) == 0.5
    assert maj_at_k([("", False), ("4", True), ("", False)], 3) == 1  # no answer, no vote
    assert maj_at_k([("", False), ("", False)], 2) == 0
    assert maj_at_k([("4", True)] * 2 + [("5", False)] * 3, 2) == 0.5  # two blocks of two


def test_answers_written_in_two_ways_vote_together() -> None:
    wrong = GOOD.replace(" 4 ", " 5 ")
    rows = judged(wrong, wrong, GOOD, GOOD.replace(" 4 ", " 4.0 "), GOOD.replace(" 4 ", " $4$ "))
    assert measured(rows, 5)["maj_at_k"]["value"] == 1.0


def test_equal_values_do_not_claim_certainty() -> None:
    assert with_interval([1.0] * 10)["ci95"] == pytest.approx([0.7225, 1.0], abs=1e-3)
    assert with_interval([0.0] * 10)["ci95"] == pytest.approx([0.0, 0.2775], abs=1e-3)
    assert with_interval([0.5] * 4)["ci95"] == pytest.approx([0.15, 0.85], abs=1e-2)
    low, high = with_interval([96, 96, 96], highest=96)["ci95"]
    assert 40 < low < high == 96
    assert all(low <= share <= high for share in (0, 0.3, 1) for low, high in [wilson(share, 7)])


def test_samples_of_one_problem_are_one_observation() -> None:
    rows = judged(GOOD, GOOD, "4", "4")
    metrics = measured(rows, 4)
    assert metrics["pass_at_1"]["n"] == 1 and metrics["pass_at_1"]["value"] == 0.5
    assert metrics["pass_at_k"]["value"] == 1.0


def test_the_interval_covers_the_truth_about_nineteen_times_in_twenty() -> None:
    import numpy as np

    generator = np.random.default_rng(3)
    intervals = [with_interval(generator.random(200) < 0.3, seed)["ci95"] for seed in range(200)]
    assert 0.88 < np.mean([low <= 0.3 <= high for low, high in intervals]) < 0.99


def test_a_run_writes_the_files_the_report_reads(base: Path, tmp_path: Path) -> None:
    problems = [problem(i, domain) for domain in ("arithmetic", "countdown") for i in range(3)]
    work = Workdir(tmp_path)
    headline = stage(num_samples=2).run(ToyInputs(base, problems), work)  # type: ignore[arg-type]
    assert headline == json.loads((tmp_path / "metrics.json").read_text())
    assert set(json.loads((tmp_path / "by_domain.json").read_text())) == {"arithmetic", "countdown"}
    by_problem = json.loads((tmp_path / "by_problem.json").read_text())
    assert len(by_problem["problems"]) == headline["format_rate"]["n"]
    assert by_problem["figures"].keys() == headline.keys()
    rows = read_jsonl(tmp_path / "completions.jsonl")
    assert [row["id"] for row in rows] == [p["id"] for p in problems for _ in range(2)]
    assert all(tuple(row) == COLUMNS for row in rows)
    assert 0 < headline["mean_response_tokens"]["value"] <= 12
    assert headline["truncated_rate"]["value"] == pytest.approx(sum(r["truncated"] for r in rows) / len(rows))


def test_the_result_does_not_depend_on_where_it_was_interrupted(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = [problem(i) for i in range(6)]
    settings = {"part_size": 2, "seed": 5}
    whole = stage(**settings).run(ToyInputs(base, problems), Workdir(tmp_path / "whole"))  # type: ignore[arg-type]

    sample, calls = TransformersSampler.generate, []

    def dies_in_the_third(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(self, *args, **kwargs)

    monkeypatch.setattr(TransformersSampler, "generate", dies_in_the_third)
    for _ in range(2):
        try:
            cut = stage(**settings).run(ToyInputs(base, problems), Workdir(tmp_path / "cut"))  # type: ignore[arg-type]
        except KeyboardInterrupt:
            continue
    assert cut == whole and len(calls) == 4
    assert (tmp_path / "cut/completions.jsonl").read_text() == (tmp_path / "whole/completions.jsonl").read_text()
    changed, torn = (tmp_path / f"cut/checkpoints/part-2-{start}.json" for start in (0, 2))
    changed.write_text(changed.read_text().replace('"tokens": ', '"tokens": 1'))
    torn.write_text(torn.read_text()[:100])
    assert stage(**settings).run(ToyInputs(base, problems), Workdir(tmp_path / "cut")) == whole  # type: ignore[arg-type]
    assert len(calls) == 6


def test_evaluating_does_not_import_trl() -> None:
    code = "import sys, stages.evaluate, stages.engines.engine; assert not {'trl', 'peft'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_a_k_without_as_many_samples_is_refused_and_not_lowered() -> None:
    with pytest.raises(ValueError, match="k 4 is more than num_samples 2"):
        stage(k=4, num_samples=2)


def test_a_prompt_that_fills_the_context_is_refused_before_anything_is_sampled(base: Path, tmp_path: Path) -> None:
    rows = [problem(0), problem(1) | {"prompt": "9+" * 200}]
    with pytest.raises(DataError, match=r"problem '.*1.*' has 4\d\d tokens; the model's context of 256 leaves 255"):
        stage(part_size=1).run(ToyInputs(base, rows), Workdir(tmp_path))  # type: ignore[arg-type]
    assert not list((tmp_path / "checkpoints").iterdir())
