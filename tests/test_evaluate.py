"""Evaluation: figures that mean what they say, files that the report can read, parts that are not made
twice."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.stage import Workdir, read_jsonl
from stages.chat import TEMPLATES
from stages.engines.samplers import Completion, TransformersSampler
from stages.evaluate import COLUMNS, Evaluate, measure, pass_at_k, with_interval
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
    metrics = measure(rows, 1)
    assert {n: metrics[n]["n"] for n in ("pass_at_1", "instruction_following", "harmlessness")} == dict.fromkeys(
        ("pass_at_1", "instruction_following", "harmlessness"), 1
    )
    assert "pass_at_k" not in metrics and "helpfulness" not in metrics


def test_an_unusable_gold_is_not_counted_as_a_wrong_answer() -> None:
    rows = judged(GOOD) + [{**row, "id": "bad"} for row in judged(GOOD, answer="")]
    assert rows[1]["verdict"] == "gold_unusable"
    assert measure(rows, 1)["pass_at_1"] == {"value": 1.0, "ci95": [1.0, 1.0], "n": 1}
    assert measure(rows, 1)["format_rate"]["n"] == 2


def test_pass_at_k_is_the_unbiased_estimate() -> None:
    assert pass_at_k(4, 0, 2) == 0 and pass_at_k(4, 3, 2) == 1
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)  # of six pairs three hold the right one
    assert pass_at_k(2, 1, 8) == 1


def test_samples_of_one_problem_are_one_observation() -> None:
    rows = judged(GOOD, GOOD, "4", "4")
    metrics = measure(rows, 4)
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


def test_evaluating_does_not_import_trl() -> None:
    code = "import sys, stages.evaluate, stages.engines.engine; assert not {'trl', 'peft'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
