"""Inputs: the rows of each reference by itself, from cards, JSON lines and Parquet shards."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import Field

from pipeline import stage as stage_module
from pipeline.artifact import publish
from pipeline.errors import DataError
from pipeline.refs import DATASET, DatasetRef
from pipeline.stage import Inputs, Stage, Workdir, read_dataset
from stages import STAGES


class Reads(Stage):
    kind: ClassVar[str] = "reads"
    makes: ClassVar[str] = DATASET
    demos: list[DatasetRef] = Field([])

    def run(self, inputs: Any, work: Any) -> dict[str, Any]:
        return {}


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stage_module, "ROOT", tmp_path)
    return tmp_path


def dataset(run_dir: Path, name: str, *shards: list[dict[str, Any]]) -> None:
    """A published data set with these Parquet shards."""
    rows = run_dir / "partial" / "rows"
    rows.mkdir(parents=True)
    for i, shard in enumerate(shards):
        pq.write_table(pa.Table.from_pylist(shard), rows / f"part-{i:05}.parquet")
    (run_dir / "partial" / "metrics.jsonl").write_text('{"step": 1}\n')
    publish(run_dir / "partial", run_dir / name, {"artifact": DATASET, "fingerprint": "f"})


def demos(*ids: str, **more: Any) -> list[dict[str, Any]]:
    row = {"prompt": "2+2?", "response": "四", "domain": "arithmetic", "language": "en"}
    return [{"id": i, **row, **more} for i in ids]


def test_the_parquet_shards_of_a_data_set_are_read_in_order_as_text(run_dir: Path) -> None:
    dataset(run_dir, "sampled", demos("a", "b", pass_rate=0.5), demos("c", pass_rate=1.0))
    rows = Inputs(Reads(demos=["stage:sampled"]), run_dir).rows("demos")
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert rows[0]["pass_rate"] == "0.5" and rows[0]["response"] == "四"


def test_each_reference_gives_its_own_rows_at_most_limit(run_dir: Path) -> None:
    dataset(run_dir, "first", demos("a", "b"), demos("c"))
    dataset(run_dir, "second", demos("d"))
    inputs = Inputs(Reads(demos=["stage:first", "stage:second"]), run_dir)
    found = {str(ref): [row["id"] for row in rows] for ref, rows in inputs.rows_by_source("demos", limit=2)}
    assert found == {"stage:first": ["a", "b"], "stage:second": ["d"]}
    assert [row["id"] for row in inputs.rows("demos", limit=2)] == ["a", "b", "d"]


def test_a_folder_of_json_lines_is_a_data_set_too(run_dir: Path) -> None:
    (run_dir / "mine").mkdir()
    (run_dir / "mine" / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in demos("a", "b")))
    assert len(Inputs(Reads(demos=["path:mine"]), run_dir).rows("demos")) == 2


def test_an_empty_source_is_named(run_dir: Path) -> None:
    dataset(run_dir, "full", demos("a"))
    dataset(run_dir, "empty")
    with pytest.raises(DataError, match="demos: stage:empty has no rows"):
        Inputs(Reads(demos=["stage:full", "stage:empty"]), run_dir).rows("demos")
    with pytest.raises(DataError, match="demos: it names no data set"):
        Inputs(Reads(), run_dir).rows("demos")


@pytest.mark.parametrize(
    ("kind", "field", "missing"),
    [
        ("grpo", "problems", "answer, checker"),
        ("grpo", "late_problems", "answer, checker"),
        ("grpo", "alarm_problems", "answer, checker"),
        ("evaluate", "problems", "answer, checker"),
        ("rejection_sampling", "problems", "answer, checker"),
        ("reward_model", "preferences", "chosen, rejected"),
        ("pretrain", "text", "text"),
        ("sft", "demos", "response"),
    ],
)
def test_rows_of_another_shape_are_refused_before_a_model_is_loaded(
    kind: str, field: str, missing: str, run_dir: Path
) -> None:
    problems = [row | {"answer": "4", "checker": "math"} for row in demos(*map(str, range(40)))]
    dataset(run_dir, "demos", demos("a", "b"))
    dataset(run_dir, "problems", [{k: v for k, v in row.items() if k != "response"} for row in problems])
    (run_dir / "model").mkdir()
    (run_dir / "model/config.json").write_text("{}")
    references: dict[str, Any] = {"model": "path:model"} if kind != "pretrain" else {}
    if kind == "grpo":
        liked = {"rewards": [{"kind": "helpfulness"}], "helpfulness_model": "path:model"}
        references |= {"problems": ["stage:problems"], **liked}
    wrong = "stage:problems" if kind == "sft" else "stage:demos"
    stage = STAGES[kind](device="cpu", **references | {field: wrong if kind == "pretrain" else [wrong]})  # type: ignore[call-arg]
    with pytest.raises(DataError, match=f"{field}: {wrong} has no {missing}, so its rows are no "):
        stage.run(Inputs(stage, run_dir), Workdir(run_dir / "made"))


def test_half_a_character_in_a_folder_of_rows_is_shown_as_a_question_mark(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a\ud800b", "n": ["\udfff"]}) + "\n")
    [row] = read_dataset(tmp_path)
    assert row == {"prompt": "a?b", "n": '["?"]'}
