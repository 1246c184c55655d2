"""Large data sets are read row by row, from files and from the hub: never whole, and never copied."""

import itertools
import json
import tracemalloc
from pathlib import Path

import pytest

from pipeline.card import load_card
from pipeline.errors import DataError
from pipeline.sources import hub_answers, hub_rows
from tests.test_card import Toys, toys

__all__ = ["toys"]

ROW_BYTES = 20_000
NUM_ROWS = 700


def long_rows(file: Path, tail: str = "") -> Path:
    """A file of 14 MB, each row as long as a reasoning trace."""
    with file.open("w", encoding="utf-8") as stream:
        for i in range(NUM_ROWS):
            stream.write(json.dumps({"question": f"{i} {'x' * ROW_BYTES}", "answer": str(i)}) + "\n")
        stream.write(tail)
    return file


@pytest.fixture
def large(toys: Toys) -> Toys:
    toys.card(holdout={})
    toys.source([])
    long_rows(toys.data / "sums.jsonl")
    return toys


def test_no_more_rows_are_read_than_are_taken(large: Toys) -> None:
    card = load_card("toy")
    tally = card.tally("train")
    assert len(list(itertools.islice(card.stream("train", tally=tally), 5))) == 5
    assert tally.num_found == 5


def test_a_sample_of_a_large_file_holds_the_sample_alone(large: Toys) -> None:
    card = load_card("toy")
    assert card.revision  # hashed in pieces, too
    tracemalloc.start()
    rows = card.rows("train", limit=10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows) == 10
    assert peak < 70 * ROW_BYTES  # a tenth of the file


def test_a_streamed_hub_set_is_neither_read_to_its_end_nor_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    (tmp_path / "set").mkdir()
    long_rows(tmp_path / "set" / "train.jsonl", tail="no JSON at all")  # who reads to the end fails
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("pipeline.sources.hub_answers", lambda: True)  # nobody is asked: the set is a folder
    rows = hub_rows(str(tmp_path / "set"), "main", None, "train", hint="", stream=True)
    assert [row["answer"] for row in itertools.islice(rows, 5)] == [str(i) for i in range(5)]
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    with pytest.raises(DataError):
        list(hub_rows(str(tmp_path / "set"), "main", None, "train", hint="", stream=True))


def test_a_streamed_hub_set_is_not_held_whole(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    toys.card(mirror={}, holdout={}, hub={"id": "org/large", "revision": "0" * 40, "splits": ["train"], "stream": True})
    with pytest.raises(DataError, match="is streamed, because it is too large to hold whole") as error:
        load_card("toy").rows("train")
    assert "caps" in error.value.hint


def test_the_largest_sets_are_streamed() -> None:
    for name in ("r1_distill_sft", "dolphin_r1"):
        hub = load_card(name).block.hub
        assert hub and hub.stream


def test_hosts_that_need_no_proxy_are_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"no": "localhost"})
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    assert not hub_answers()
