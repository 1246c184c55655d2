"""The report: what it says, that it says it of broken runs too, and that a model's text stays text."""

import json
import math
import os
import random
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline import report, report_lineage, report_plots, report_samples, report_tables
from pipeline.artifact import read_json, seal, write_json
from pipeline.errors import ArtifactError
from pipeline.report_measures import Measure
from pipeline.report_run import Curve, StageRecord, read_run
from pipeline.report_tables import Column
from tests.toy_run import HOSTILE, NUM_PROBLEMS, NUM_STEPS, curve_row, measures, write_toy_run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_toy_run(tmp_path, curves=("reward",))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return report.write_report(write_toy_run(tmp_path_factory.mktemp("runs"))).read_text(encoding="utf-8")


class Page(HTMLParser):
    """The tags, attributes and text of a page as a browser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words += data


def written(run_dir: Path, **options: Any) -> dict[str, Any]:
    """report.json of a run, read strictly: NaN is not JSON."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in report.json")

    assert report.write_report(run_dir, **options) == run_dir / "report.html"
    Page((run_dir / "report.html").read_text(encoding="utf-8"))
    return json.loads((run_dir / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)


def rewrite(path: Path, text: str) -> None:
    """Changes a file of an artifact as if its stage had written it like that."""
    path.write_text(text)
    record = {key: value for key, value in read_json(path.parent / "manifest.json").items() if key != "files"}
    seal(path.parent, record)


def states(found: dict[str, Any]) -> list[str]:
    return [stage["state"] for stage in found["stages"]]


# --- what it says ----------------------------------------------------------------------------------


def test_report_json_has_the_promised_shape(run_dir: Path) -> None:
    found = written(run_dir)
    head = {"recipe": "r1-zero", "scale": "mini", "run": "toy", "seed": 0}
    assert {name: found[name] for name in head} == head
    assert [stage["name"] for stage in found["stages"]] == ["eval_base", "r1_zero", "eval_r1_zero"]
    assert states(found) == ["done"] * 3
    assert found["stages"][2]["metrics"]["pass_at_1"] == measures(0.842, 46.4, 500)["pass_at_1"]
    assert found["stages"][2]["by_domain"]["arithmetic"]["pass_at_1"]["n"] == 250
    assert len(found["curves"]["r1_zero"]["reward"]) == NUM_STEPS
    assert [entry["stage"] for entry in found["lineage"]] == ["eval_base", "r1_zero", "eval_r1_zero"]
    assert found["cost"]["total_seconds"] == pytest.approx(21.4 + 214.7 + 21.4)


def test_nan_becomes_null(tmp_path: Path) -> None:
    assert written(write_toy_run(tmp_path, curves=("kl",)))["curves"]["r1_zero"]["kl"][6] == [7, None]
    assert report.strict({"a": [math.inf, (math.nan, 1.0)]}) == {"a": [None, [None, 1.0]]}


def test_the_closing_line_says_what_was_learned_and_where_the_report_is(run_dir: Path) -> None:
    assert report.summary_line(run_dir) == (
        "Held-out pass@1 rose from 27.4 % [23.5, 31.3] to 84.2 % [81.0, 87.4]; the mean response grew "
        f"from 17 to 46 tokens. Report: {run_dir / 'report.html'}"
    )


def change_to(run_dir: Path, pass_at_1: float, tokens: float = 17.2, n: int = 500) -> str:
    """The sentence when the trained model measures `pass_at_1`."""
    rewrite(run_dir / "eval_r1_zero" / "metrics.json", json.dumps(measures(pass_at_1, tokens, n)))
    return report.learned(read_run(run_dir))


def test_where_no_reasoning_was_measured_the_closing_line_tells_of_what_was(run_dir: Path) -> None:
    for stage, value in (("eval_base", 0.2), ("eval_r1_zero", 0.6)):
        measure = {"value": value, "ci95": [value - 0.05, value + 0.05], "n": 401}
        rewrite(run_dir / stage / "metrics.json", json.dumps({"instruction_following": measure}))
    learned = report.learned(read_run(run_dir))
    assert learned == "Held-out instructions followed rose from 20.0 % [15.0, 25.0] to 60.0 % [55.0, 65.0]."


def test_a_fall_is_called_a_fall(run_dir: Path) -> None:
    assert change_to(run_dir, 0.05, tokens=6).startswith("Held-out pass@1 fell from 27.4 %")
    assert "the mean response shrank from 17 to 6.0 tokens" in change_to(run_dir, 0.05, tokens=6)


def test_a_difference_that_may_be_none_is_no_change(run_dir: Path) -> None:
    sentence = change_to(run_dir, 0.30)
    assert "rose" not in sentence
    assert "the 95 % interval of the difference holds 0, so this shows no change" in sentence


def test_best_is_marked_only_where_it_differs_from_every_other() -> None:
    low, high, near = Measure(0.2, (0.1, 0.3), 9), Measure(0.8, (0.7, 0.9), 9), Measure(0.75, (0.6, 0.85), 9)

    def best(metric: str, *measured: Measure) -> list[bool]:
        (row,) = report_tables.metric_rows([Column("m", {metric: measure}) for measure in measured])
        return [cell["best"] for cell in row["cells"]]

    assert best("pass_at_1", low, high) == [False, True]
    assert best("pass_at_1", low, high, near) == [False] * 3
    assert best("truncated_rate", low, high) == [True, False]
    assert best("mean_response_tokens", low, high) == [False, False]
    assert best("pass_at_1", low, Measure(0.8)) == [False, False]


def test_evaluations_under_other_conditions_are_pointed_out(run_dir: Path) -> None:
    assert not report.comparison_notes(read_run(run_dir))
    manifest = read_json(run_dir / "eval_r1_zero" / "manifest.json")
    manifest["settings"]["num_samples"] = 4
    write_json(run_dir / "eval_r1_zero" / "manifest.json", manifest)
    assert "eval_r1_zero differs from eval_base in num_samples" in report.comparison_notes(read_run(run_dir))[0]


def test_samples_show_one_of_each_change_and_count_them_all(run_dir: Path) -> None:
    (shown,) = report.samples(read_run(run_dir))
    assert (shown["stage"], shown["before"], shown["after"]) == ("r1_zero", "base", "r1_zero")
    assert sum(count for _, count in shown["counts"]) == NUM_PROBLEMS
    changes = [(problem["before"]["right"], problem["after"]["right"]) for problem in shown["problems"]]
    assert changes == [(False, True), (True, True), (False, False), (True, False)]
    assert report.samples(read_run(run_dir)) == [shown]


def test_without_a_measured_base_only_the_completions_after_are_shown(run_dir: Path) -> None:
    (run_dir / "eval_base").rename(run_dir / "eval_base.old1")
    (shown,) = report.samples(read_run(run_dir))
    assert shown["before"] is None and {change for change, _ in shown["counts"]} == {"right", "wrong"}
    assert {problem["before"] for problem in shown["problems"]} == {None}
    written(run_dir)


def test_downsampling_keeps_long_curves_small() -> None:
    draw = random.Random(0)
    rows = [curve_row(step, draw) for step in range(20_000)]
    curves = {name: [(int(row["step"]), row[name]) for row in rows] for name in ("reward", "reward/accuracy", "kl")}
    assert sum(len(drawing.svg) for drawing in report_plots.draw_curves(curves)) < 120_000


def test_panels_without_data_are_skipped_and_loss_stands_in_for_reward() -> None:
    only_loss = report_plots.draw_curves(
        {"loss": [(1, 2.0), (2, 1.5)], "kl": [(1, None)], "learning_rate": [(1, 1e-4)]}
    )
    assert [drawing.title for drawing in only_loss] == ["Loss"]
    with_reward = report_plots.draw_curves({"loss": [(1, 0.0)], "reward": [(1, 0.5)]})
    assert [drawing.title for drawing in with_reward] == ["Reward and its parts"]


def test_published_points_stand_behind_the_curve_they_belong_to() -> None:
    curves: dict[str, Curve] = {"pass_at_1": [(1, 0.1), (2, 0.2)], "kl": [(1, 0.0), (2, 0.1)]}
    published: dict[str, Curve] = {"pass_at_1": [(100, 0.25), (450, 0.5)], "entropy": [(1, 2.0)]}
    ours, both = report_plots.draw_curves(curves), report_plots.draw_curves(curves, published)
    assert [drawing.title for drawing in ours] == [drawing.title for drawing in both]
    assert [label for label, _ in both[0].legend] == ["pass_at_1", "pass_at_1, as published"] and not ours[0].legend
    assert both[0].svg != ours[0].svg and both[1].svg.count("<path") == ours[1].svg.count("<path")


def test_the_page_names_the_source_of_what_was_published(run_dir: Path) -> None:
    recipe = read_json(run_dir / "recipe.json")
    published = {"source": "<b>a notebook</b>", "curves": {"pass_at_1": {"100": 0.25}}}
    write_json(run_dir / "recipe.json", {**recipe, "published": published})
    assert read_run(run_dir).published == {"pass_at_1": [(100, 0.25)]}
    assert "as published, &lt;b&gt;a notebook&lt;/b&gt;" in report.write_report(run_dir).read_text()


def test_the_rolling_mean_keeps_constants_and_both_ends() -> None:
    assert report_plots.rolling_mean([3.0] * 50).tolist() == pytest.approx([3.0] * 50)
    assert report_plots.rolling_mean([1.0, 9.0]).tolist() == [1.0, 9.0]


def test_lineage_joins_what_two_branches_made(run_dir: Path) -> None:
    recipe = read_json(run_dir / "recipe.json")
    recipe["stages"]["second_sft"] = {
        "kind": "sft",
        "model": "run:other/r1_zero",
        "demos": ["stage:r1_zero", "card:x"],
    }
    recipe["stages"]["final_rl"] = {
        "kind": "grpo",
        "model": "stage:second_sft",
        "rewards": [{"model": "stage:r1_zero"}],
    }
    write_json(run_dir / "recipe.json", recipe)
    nodes = {node.ref: node for node in report_lineage.lineage_nodes(read_run(run_dir))}
    assert nodes["stage:second_sft"].parents == ("run:other/r1_zero", "stage:r1_zero")
    assert nodes["stage:final_rl"].parents == ("stage:second_sft", "stage:r1_zero")
    assert nodes["stage:r1_zero"].lines == ("grpo", "pass@1 84.2 %") and "stage:eval_base" not in nodes
    drawing = report_plots.draw_lineage(list(nodes.values()))
    assert drawing and "final_rl" in drawing.svg


def test_the_readme_picture_is_a_png(tmp_path: Path) -> None:
    run_dir = write_toy_run(tmp_path)
    report.save_curve_png(run_dir, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ArtifactError, match="no learning curve of eval_base"):
        report.save_curve_png(run_dir, tmp_path / "none.png", stage="eval_base")


# --- a model's text stays text, and the page needs nothing but itself -------------------------------


def test_text_from_a_model_stays_text(run_dir: Path) -> None:
    for stage in ("eval_base", "eval_r1_zero"):  # only hostile completions, so that they are the ones shown
        path = run_dir / stage / "completions.jsonl"
        rewrite(path, "".join(path.read_text().splitlines(keepends=True)[: len(HOSTILE) - 1]))
    page = Page(report.write_report(run_dir).read_text(encoding="utf-8"))
    assert not {"script", "img", "iframe", "object", "link"} & page.tags
    assert "<script>alert(1)</script>" in page.words
    assert "</pre></div><img src=x onerror=alert(2)> {{ 7 * 7 }} {% raw %}" in page.words
    assert "[U+202E]right to left[U+202C] ␛[31mred␇ � a lone surrogate, " in page.words
    assert "[U+200F][U+009B]4[U+200B]2[U+E0041]" in page.words


def test_chinese_and_tags_are_shown(page: str) -> None:
    seen = Page(page)
    assert "<think>" in seen.words
    assert re.search(r'<b class="tag">&lt;think&gt;</b>', page)


def test_marking_tags_loses_nothing() -> None:
    for text in (*HOSTILE, "", "a < b > c", "<think><think>", "<|im_end|>x"):
        assert "".join(piece for piece, _ in report_samples.marked(text)) == text
    assert report_samples.marked("a<think>b") == [("a", False), ("<think>", True), ("b", False)]


def test_the_first_of_every_change_and_of_every_domain_is_shown() -> None:
    def pair(before: bool, after: bool, domain: str) -> report_samples.Pair:
        return {"right": before}, {"right": after, "domain": domain}

    changes = {"a": (False, True), "b": (True, True), "c": (False, False), "d": (True, False)}
    pairs = {name: pair(*change, "sums") for name, change in changes.items()}
    pairs |= {"e": pair(True, True, "sums"), "f": pair(True, True, "countdown"), "g": pair(True, True, "sums")}
    assert report_samples._pick(pairs) == ["a", "b", "c", "d", "f"]
    assert report_samples._pick({name: pairs[name] for name in "beg"}) == ["b", "e", "g"]


def test_the_page_fetches_nothing(page: str) -> None:
    fetching = {"src", "srcset", "data", "poster", "action", "background"}
    for tag, name, value in Page(page).attributes:
        assert name not in fetching, f"<{tag} {name}={value}>"
        assert tag == "a" or not name.endswith("href") or value.startswith("#"), f"<{tag} {name}={value}>"
    assert "default-src 'none'" in page
    assert "@import" not in page and not re.search(r"url\((?!#)", page)


def test_drawings_follow_the_theme(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert "currentColor" in page and "var(--series-1)" in page
    for stand_in in report_plots.CSS_COLOURS:
        assert stand_in not in page


def test_names_of_metrics_are_escaped_in_drawings(run_dir: Path) -> None:
    with (run_dir / "r1_zero" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 81, "reward/<script>$x": 1.0, "reward": 1.0}) + "\n")
    assert "script" not in Page(report.write_report(run_dir).read_text(encoding="utf-8")).tags


# --- unfinished and broken runs ---------------------------------------------------------------------


def cut_off(run_dir: Path, stage: str = "r1_zero") -> Path:
    """Makes `stage` look as if its process was killed at step 57, long ago."""
    partial = (run_dir / stage).rename(run_dir / f"{stage}.partial")
    (partial / "manifest.json").unlink()
    (partial / "progress.json").write_text(json.dumps({"step": 57, "total": 80, "note": ""}))
    for path in (*partial.iterdir(), partial):
        os.utime(path, (1e9, 1e9))
    return partial


def test_a_partial_stage_is_cut_off_or_running_by_its_last_sign_of_life(run_dir: Path) -> None:
    partial = cut_off(run_dir)
    assert states(written(run_dir)) == ["done", "cut off at step 57 of 80", "done"]
    os.utime(partial / "progress.json", (time.time(), time.time()))
    found = written(run_dir)
    assert states(found)[1] == "running, step 57 of 80"
    assert len(found["curves"]["r1_zero"]["reward"]) == NUM_STEPS, "curves of a partial stage are shown"


def test_a_failed_stage_says_why(run_dir: Path) -> None:
    partial = cut_off(run_dir)
    write_json(partial / "error.json", {"type": "ResourceError", "message": "the disk is full", "hint": "free some"})
    found = written(run_dir)
    assert states(found)[1] == "failed at step 57 of 80"
    assert "r1_zero failed: the disk is full (next: free some)" in found["notes"]


def test_the_plan_wins_over_the_folders(run_dir: Path) -> None:
    found = written(run_dir, plan_states={"r1_zero": "stale (learning_rate 1e-05 → 2e-05)"})
    assert states(found) == ["done", "stale (learning_rate 1e-05 → 2e-05)", "done"]
    assert any("belong to the older settings" in note for note in found["notes"])


def test_a_run_that_only_has_a_recipe_is_to_do(run_dir: Path) -> None:
    for stage in ("eval_base", "r1_zero", "eval_r1_zero"):
        (run_dir / stage).rename(run_dir / f"{stage}.old1")
    found = written(run_dir)
    assert states(found) == ["to do"] * 3
    assert found["learned"] == "No model has been measured yet." and found["cost"]["total_seconds"] == 0


def test_with_one_measured_model_nothing_is_claimed(run_dir: Path) -> None:
    (run_dir / "eval_r1_zero").rename(run_dir / "eval_r1_zero.old1")
    learned = written(run_dir)["learned"]
    assert learned == "Held-out pass@1 of base is 27.4 % [23.5, 31.3]; no other model has been measured yet."


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "null", '{"files": 3}', '{"fingerprint": {}}', '{"cards": [{"nam": 1}]}', "\udcff"],
)
def test_a_damaged_manifest_becomes_a_sentence(run_dir: Path, text: str) -> None:
    (run_dir / "eval_base" / "manifest.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    found = written(run_dir)
    assert states(found) == ["damaged", "done", "done"]
    assert sum("eval_base" in note for note in found["notes"]) == 1


def test_a_missing_file_makes_a_stage_damaged(run_dir: Path) -> None:
    (run_dir / "eval_base" / "metrics.json").unlink()
    found = written(run_dir)
    assert states(found)[0] == "damaged"
    assert any("metrics.json is missing" in note for note in found["notes"])
    assert not found["stages"][0]["metrics"], "numbers of a damaged stage are not shown"


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"pass_at_1": NaN}', '{"x": {"pass_at_1": {"value": "much"}}}', "nul"]
)
def test_strange_measurements_never_stop_the_report(run_dir: Path, text: str) -> None:
    for stage, name in [("eval_base", "metrics.json"), ("eval_base", "by_domain.json")]:
        rewrite(run_dir / stage / name, text)
    rewrite(run_dir / "eval_r1_zero" / "completions.jsonl", text)
    assert len(written(run_dir)["stages"]) == 3


@pytest.mark.parametrize(
    "rows",
    [
        "",
        "\n\n",
        '{"step": 1}\n{"ste',
        '{"step": NaN, "reward": 1}\n',
        '{"reward": 1}\n[]\n',
        '{"step": 1, "kl": NaN}\n',
    ],
)
def test_empty_and_torn_curves_never_stop_the_report(run_dir: Path, rows: str) -> None:
    (cut_off(run_dir) / "metrics.jsonl").write_text(rows)
    assert all(len(curve) <= 1 for curve in written(run_dir)["curves"].get("r1_zero", {}).values())


def test_a_step_logged_again_after_a_resume_counts_once(run_dir: Path) -> None:
    rows = [{"step": 2, "reward": 9}, {"step": 1, "reward": 1}, {"step": 2, "reward": 2}]
    (cut_off(run_dir) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert written(run_dir)["curves"]["r1_zero"]["reward"] == [[1, 1.0], [2, 2.0]]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"stages": ["eval_base"]}'])
def test_without_a_recipe_the_folders_tell(run_dir: Path, text: str | None) -> None:
    (run_dir / "recipe.json").unlink()
    if text is not None:
        (run_dir / "recipe.json").write_text(text)
    found = written(run_dir)
    assert {stage["name"] for stage in found["stages"]} == {"eval_base", "r1_zero", "eval_r1_zero"}
    assert any("names no stages" in note for note in found["notes"])


@pytest.mark.parametrize("published", ["x", {"curves": 3}, {"curves": {"pass_at_1": {"late": 1}}}])
def test_published_points_that_are_none_become_a_sentence(run_dir: Path, published: Any) -> None:
    recipe = json.loads((run_dir / "recipe.json").read_text()) | {"published": published}
    (run_dir / "recipe.json").write_text(json.dumps(recipe))
    assert any("what others have published" in note for note in written(run_dir)["notes"])


def test_there_is_no_report_of_no_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no run at"):
        report.write_report(tmp_path / "nothing")


def test_nothing_is_left_beside_the_two_files(run_dir: Path) -> None:
    before = {path.name for path in run_dir.iterdir()}
    written(run_dir)
    assert {path.name for path in run_dir.iterdir()} - before == {"report.json", "report.html"}


def test_a_bug_of_ours_raises(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StageRecord, "value", lambda self, metric: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write_report(run_dir)


def test_importing_the_report_imports_no_heavy_library() -> None:
    heavy = {"torch", "trl", "prefect", "matplotlib", "jinja2"}
    code = f"import sys, pipeline.report; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
