"""Rejection sampling: only what is right and readable is kept, every sample is accounted for, shards survive."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.artifact import publish
from pipeline.card import load_card
from pipeline.errors import DataError, ResourceError
from pipeline.refs import DATASET, Ref
from pipeline.stage import Workdir, read_dataset
from stages import STAGES
from stages.chat import TEMPLATES
from stages.dataset_card import cards_of, licence_of
from stages.engines.samplers import Completion, TransformersSampler
from stages.filters import Filters
from stages.rejection_sampling import RejectionSampling
from stages.rewards.box import the_box
from stages.sampled_card import SAYS
from tests.test_grpo import ToyInputs
from tests.toy_model import save_toy_model


def good(answer: int, how: str = "we add them up") -> str:
    return TEMPLATES["mini"].response(how, str(answer))


def problem(i: int, **of: str) -> dict[str, str]:
    row = {"id": f"p{i}", "prompt": f"{i}+1?", "answer": str(i + 1), "checker": "math", "domain": "arithmetic"}
    return {**row, "language": "en", **of}


def completion(text: str, truncated: bool = False) -> Completion:
    return Completion(list(range(len(text))), text, truncated, [])


def stage(**settings: Any) -> RejectionSampling:
    defaults = {"model": "path:base", "problems": ["path:problems"], "template": "mini", "device": "cpu"}
    return RejectionSampling(**{**defaults, "max_completion_length": 12, **settings})


def kept(texts: list[str], **settings: Any) -> list[str]:
    demos, _ = stage(keep=None, **settings).shard([problem(3)], [[completion(text) for text in texts]])
    return [demo["response"] for demo in demos]


class Sources(ToyInputs):
    """Problems from one reference, an evaluation set from another."""

    def __init__(self, model: Path, rows: list[dict[str, str]], held_out: list[dict[str, str]] | None = None) -> None:
        super().__init__(model, rows)
        self.held_out = held_out or []

    def rows_by_source(self, field: str, limit: int | None = None) -> list[tuple[Ref, list[dict[str, str]]]]:
        rows = self.problems[:limit] if field == "problems" else self.held_out
        return [(Ref("path", field), rows)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def knows_sums(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The engine answers `i+1?` right, wrong, right, … in turn; the list counts the prompts of each call."""
    calls: list[int] = []

    def answers(self: Any, prompts: list[str], n: int, sampling: Any) -> list[list[Completion]]:
        calls.append(len(prompts))
        numbers = [int(prompt.removeprefix("Q: ").partition("+")[0]) for prompt in prompts]
        return [[completion(good(i + 1 + k % 2, f"way {sampling.seed} {k}")) for k in range(n)] for i in numbers]

    monkeypatch.setattr(TransformersSampler, "generate", answers)
    return calls


def test_a_licence_is_claimed_only_where_every_source_is_known_to_have_it() -> None:
    refs = [Ref.parse("card:gsm8k"), Ref.parse("stage:mine")]
    assert licence_of(refs[:1], cards_of(refs)) == load_card("gsm8k").licence == "mit"
    assert licence_of(refs, cards_of(refs)) == "other"


def test_it_is_a_stage_that_makes_a_data_set() -> None:
    assert STAGES["rejection_sampling"] is RejectionSampling and RejectionSampling.makes == DATASET


def test_right_answers_are_kept_and_wrong_ones_only_where_nothing_is_verified() -> None:
    texts = [good(4), good(5), "4"]
    assert kept(texts) == [good(4)]
    assert kept(texts, verify=False) == [good(4), good(5)]
    assert kept(texts, verify=False, filters=Filters(well_formed=False)) == texts


def test_answers_are_verified_in_the_domains_that_are_named_and_elsewhere_all_pass() -> None:
    """Mathematics by its gold, code by its tests in a sandbox, science by nothing."""
    try:
        the_box()
    except ResourceError:
        pytest.skip("no box holds on this machine: install bubblewrap (`apt install bubblewrap`)")
    test = {"prompt": "", "test": "def check(candidate): assert candidate(2) == 4", "entry_point": "twice"}
    code = problem(1, domain="code", checker="code", answer=json.dumps(test))
    right, wrong = (f"```python\ndef twice(n):\n    return {body}\n```" for body in ("2 * n", "n"))
    science, judged = problem(2, domain="science"), problem(5, domain="puzzle", checker="judge", answer="")
    groups = [
        (problem(3), [good(4), good(5)]),
        (code, [TEMPLATES["mini"].response("we double it", text) for text in (right, wrong)]),
        (science, [good(3), good(9)]),
        (judged, [good(1)]),
    ]
    found = {}
    for verify in (True, False, ["math", "arithmetic", "code"]):
        one = stage(keep=None, verify=verify, filters=Filters(code_blocks=False))
        demos, record = one.shard([p for p, _ in groups], [[*map(completion, texts)] for _, texts in groups])
        found[str(verify)] = [demo["domain"] for demo in demos], record["dropped"]
    everything = ["arithmetic"] * 2 + ["code"] * 2 + ["science"] * 2 + ["puzzle"]
    assert found["True"] == (["arithmetic", "code", "science"], {"wrong": 3, "no_rule": 1})
    assert found["False"] == (everything, {})
    by_domain = ["arithmetic", "code", "science", "science", "puzzle"]
    assert found["['math', 'arithmetic', 'code']"] == (by_domain, {"wrong": 2})


def test_every_sample_is_counted_once_under_the_first_reason() -> None:
    texts = [good(4), good(4), good(5), good(4, "我们 add them"), "4", good(4, "```x = 4```"), good(4, "another way")]
    group = [*map(completion, texts), completion(good(4), truncated=True)]
    demos, record = stage(keep=1, filters=Filters(well_formed=False)).shard([problem(3)], [group])
    assert [demo["response"] for demo in demos] == [good(4)]
    reasons = ("duplicate", "mixed_languages", "code_blocks", "not_chosen", "truncated")
    assert record["dropped"] == {"wrong": 2, **dict.fromkeys(reasons, 1)}
    assert sum(record["dropped"].values()) + len(demos) == len(group)


def test_a_cut_response_is_dropped_even_where_nothing_is_verified() -> None:
    _, record = stage(verify=False).shard([problem(3)], [[completion(good(4), truncated=True)]])
    assert record["dropped"] == {"truncated": 1}


def test_the_shortest_or_the_first_or_a_random_one_is_kept() -> None:
    texts = [good(4, f"we add {'up ' * (9 - k)}way {k}") for k in range(8)]
    group = [[completion(text) for text in texts]]

    def first(**settings: Any) -> str:
        return stage(keep=1, **settings).shard([problem(3)], group)[0][0]["response"]

    assert first(choose="first") == texts[0] and first(choose="shortest") == texts[-1]
    assert first(choose="random") == first(choose="random")
    assert len({first(choose="random", seed=seed) for seed in range(20)}) > 3


def test_the_response_is_the_text_as_sampled_without_end_of_turn() -> None:
    assert kept([good(4) + "<|im_end|>"]) == [good(4)]
    assert kept([good(4, "half a pair \ud83d")]) == [good(4, "half a pair ?")]


def test_the_pass_rate_of_each_problem_is_kept_and_unknown_without_a_usable_gold() -> None:
    groups = [[completion(good(4)), completion(good(5))], [completion(good(4))] * 2]
    demos, record = stage().shard([problem(3), problem(4, answer="")], groups)
    assert [(row["pass_rate"], row["num_right"], row["kept"]) for row in record["problems"]] == [
        (0.5, 1, 1),
        (None, 0, 0),
    ]
    assert demos[0]["pass_rate"] == 0.5 and demos[0]["num_tokens"] == len(good(4))
    assert record["dropped"] == {"wrong": 1, "gold_unusable": 2}


def test_a_run_writes_shards_difficulty_counts_and_a_card(base: Path, tmp_path: Path, knows_sums: list[int]) -> None:
    settings = {"num_samples": 4, "keep": 2, "shard_size": 3, "decontaminate": ["path:decontaminate"]}
    problems, held_out = [problem(i) for i in range(8)], [problem(7)]
    headline = stage(**settings).run(Sources(base, problems, held_out), Workdir(tmp_path))  # type: ignore[arg-type]
    assert knows_sums == [3, 3, 1]
    assert headline == {"num_demos": 14, "num_problems": 7, "kept_share": 0.5, "mean_pass_rate": 0.5}
    demos = [row for file in sorted((tmp_path / "rows").iterdir()) for row in pq.read_table(file).to_pylist()]
    assert len(demos) == 14 and len({demo["id"] for demo in demos}) == 7 and demos[0]["pass_rate"] == 0.5
    difficulty = pq.read_table(tmp_path / "problems.parquet").to_pylist()
    assert len(difficulty) == 7 and all(row["num_right"] == 2 and row["kept"] == 2 for row in difficulty)
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts["problems"] == {"found": 8, "duplicate": 0, "near_duplicate": 0, "contaminated": 1, "sampled": 7}
    assert counts["benchmarks"] == {"path:decontaminate": {"identical": 1, "10-gram": 0}}
    assert set(counts["samples"]) == {"sampled", *SAYS}
    assert counts["samples"]["wrong"] == 14 and counts["samples"]["sampled"] == 28
    card = (tmp_path / "README.md").read_text()
    assert "| the answer is wrong | 14 | 50.0% |" in card and "| `path:decontaminate` | identical | 1 |" in card


def test_the_data_set_is_read_by_a_later_stage_and_by_the_datasets_library(
    base: Path, tmp_path: Path, knows_sums: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Workdir(tmp_path / "data.partial")
    stage(num_samples=2, shard_size=2).run(Sources(base, [problem(i) for i in range(5)]), work)  # type: ignore[arg-type]
    folder = publish(work.path, tmp_path / "data", {"artifact": DATASET, "fingerprint": "f"}).path
    rows = read_dataset(folder)
    assert len(rows) == 5 and rows[0]["response"].startswith(" <think> way") and rows[0]["pass_rate"] == "0.5"
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    import datasets

    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["response"] for row in loaded] == [row["response"] for row in rows]


def test_a_resume_makes_only_the_shards_that_are_missing(base: Path, tmp_path: Path, knows_sums: list[int]) -> None:
    problems = [problem(i) for i in range(7)]

    def run(folder: str) -> dict[str, bytes]:
        stage(num_samples=2, shard_size=2, seed=3).run(Sources(base, problems), Workdir(tmp_path / folder))  # type: ignore[arg-type]
        names = ["problems.parquet", "counts.json", *(f"rows/part-{i:05}.parquet" for i in range(4))]
        return {name: (tmp_path / folder / name).read_bytes() for name in names}

    whole = run("cut")
    (tmp_path / "cut" / "checkpoints" / "shard-2-2.json").unlink()  # killed after the rows, before the mark
    (tmp_path / "cut" / "rows" / ".part-00003.parquet.tmp").write_text("torn")
    knows_sums.clear()
    assert run("cut") == whole and knows_sums == [2]
    (tmp_path / "cut/rows/part-00001.parquet").write_bytes(b"PAR1 torn")
    mark = tmp_path / "cut/checkpoints/shard-2-3.json"
    mark.write_text(mark.read_text().replace("sampled", "simpled").replace('"kept": ', '"kept": 1'))
    knows_sums.clear()
    assert run("cut") == whole and knows_sums == [2, 1]
    knows_sums.clear()
    assert run("cut") == whole == run("other") and knows_sums == [2, 2, 2, 1]


def test_another_shard_size_starts_again(base: Path, tmp_path: Path, knows_sums: list[int]) -> None:
    for size in (2, 3):
        knows_sums.clear()
        settings = {"num_samples": 2, "shard_size": size}
        stage(**settings).run(Sources(base, [problem(i) for i in range(5)]), Workdir(tmp_path))  # type: ignore[arg-type]
    assert knows_sums == [3, 2] and len(list((tmp_path / "rows").iterdir())) == 2


def test_keeping_nothing_is_an_error_that_says_why(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of 6 samples was kept: truncated \d"):
        stage(num_samples=2).run(Sources(base, [problem(i) for i in range(3)]), Workdir(tmp_path))  # type: ignore[arg-type]
    assert json.loads((tmp_path / "counts.json").read_text())["samples"]["kept"] == 0


def test_problems_that_are_all_held_by_a_benchmark_are_an_error(base: Path, tmp_path: Path) -> None:
    inputs = Sources(base, [problem(1), problem(2)], [problem(1), problem(2)])
    with pytest.raises(DataError, match=r"no problem is left to sample .*contaminated 2"):
        stage(decontaminate=["path:x"]).run(inputs, Workdir(tmp_path))  # type: ignore[arg-type]


def test_the_shards_size_and_engine_do_not_change_the_fingerprint_and_filters_do() -> None:
    def name(**settings: Any) -> str:
        return stage(**settings).fingerprint({})

    assert name(shard_size=5, sampler="vllm") == name()
    assert len({name(), name(verify=False), name(filters={"repetition": None}), name(overlap={"coverage": 0})}) == 4
