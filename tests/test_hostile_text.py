"""Text from models, data sets and configs stays where it belongs: no HTML runs, no path leaves, no secret is kept."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import new_card, recipe, report
from pipeline.card import load_card
from pipeline.card_rows import storable
from pipeline.errors import CardError, ConfigError, DataError
from pipeline.markdown import inline
from pipeline.model_card import write_model_cards
from pipeline.places import stays_inside
from pipeline.refs import Ref
from pipeline.settings import parse_yaml
from pipeline.sources import read_rows
from pipeline.stage import Workdir, read_jsonl
from stages.dataset_card import table, write_card
from tests.conftest import TOY_CLI
from tests.hostile_completions import ROWS
from tests.toy_run import write_toy_run

SCRIPT = "<script>alert(1)</script>`|\n# not a heading"
SECRETS = {"HF_TOKEN": "hf_" + "a1B2" * 9, "WANDB_API_KEY": "w4ndb" * 8, "OPENAI_API_KEY": "sk-" + "c3D4" * 9}
SECRETS |= {"DB_PASSWORD": "correct.horse(battery)"}


# --- pages and cards ----------------------------------------------------------------------------------------


def test_a_cell_of_a_table_keeps_its_markdown_and_nothing_else() -> None:
    assert table(("`a`", "**b**"), [(SCRIPT, 3)]).splitlines()[2] == (
        r"| &lt;script&gt;alert(1)&lt;/script&gt;`\| # not a heading | 3 |"
    )


@given(st.text(st.characters()))
def test_inline_text_is_one_line_without_html(text: str) -> None:
    shown = inline(text)
    assert len((shown + "x").splitlines()) == 1 and "<" not in shown


def test_a_row_ends_where_its_line_does_whatever_it_says(tmp_path: Path) -> None:
    texts = ["a\u2028b", "\u2029", "one\u0085two", "\x0b\x0c\x1c\x1d\x1e", "\r\n", *[row[1] for row in ROWS]]
    rows = [{"completion": storable(text)} for text in texts]
    Workdir(tmp_path).write_jsonl("samples.jsonl", rows)
    assert read_jsonl(tmp_path / "samples.jsonl") == rows


@pytest.mark.parametrize("text", [*[row[1] for row in ROWS if len(row[1]) < 10_000][:40], SCRIPT])
def test_a_data_set_s_card_is_one_card_whatever_a_domain_is_called(text: str, tmp_path: Path) -> None:
    write_card(tmp_path, "toy", {"language": ["en"]}, 3, table(("domain", "number"), [(text, 1)]))
    body = (tmp_path / "README.md").read_text(encoding="utf-8").split("# toy\n", 1)[1]
    assert len(body.strip().splitlines()) == 3 and "<" not in body


def test_what_a_data_card_says_stays_text_in_model_cards_and_reports(tmp_path: Path) -> None:
    run_dir = write_toy_run(tmp_path)
    manifest = run_dir / "r1_zero/manifest.json"
    used = {"name": "mini_arithmetic", "revision": SCRIPT, "licence": SCRIPT}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"cards": [used]}))
    [card] = write_model_cards(run_dir)
    assert "<script" not in card.read_text()
    assert r"| &lt;script&gt;alert(1)&lt;/script&gt;'\| # not a heading |" in card.read_text()
    assert "<script" not in report.write_report(run_dir).read_text()


# --- paths --------------------------------------------------------------------------------------------------

OUTSIDE = ["/etc", "..", "../x", "a/../../x", "~/x", "a/..", "", "a\0b", "a\nb"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_that_leaves_its_folder_is_seen(path: str) -> None:
    assert not stays_inside(path) and stays_inside("a/b..c/*.json")
    with pytest.raises(ValueError, match="path:"):
        Ref.parse(f"path:{path}")


@pytest.mark.parametrize("target", ["../x", "..", ".hidden/x", "a/../b", "/etc"])
def test_a_reference_to_a_run_stays_in_the_runs(target: str) -> None:
    with pytest.raises(ValueError, match="run:RUN/STAGE"):
        Ref.parse(f"run:{target}")


@pytest.mark.parametrize("pattern", ["../secret.jsonl", "/etc/passwd", "x/../../secret.jsonl", ""])
def test_a_data_card_reads_no_file_outside_the_mirror(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R1_CARDS", str(tmp_path))
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/README.md").write_text(f"---\nr1: {{rows: text, mirror: {{train: '{pattern}'}}}}\n---\n")
    with pytest.raises(CardError, match="leaves the folder"):
        load_card("toy")


@pytest.mark.parametrize("name", ["../x", "..", ".hidden", "a/b", ""])
def test_a_run_or_a_stage_with_a_path_for_a_name_is_refused(name: str, toy: Path) -> None:
    if name:
        with pytest.raises(ConfigError, match="cannot be called"):
            recipe.load_recipe("toy", "mini", run=name)
        with pytest.raises(ConfigError, match="no recipe"):
            recipe.load_recipe(f"../recipes/{name}", "mini")
    (toy / "configs/recipes/bad.yaml").write_text(f"stages: {{'{name}': {{kind: count}}}}\n")
    with pytest.raises(ConfigError, match=r"recipe bad: stages\."):
        recipe.load_recipe("bad", "mini")


def test_a_recipe_that_extends_itself_is_refused(toy: Path) -> None:
    (toy / "configs/recipes/one.yaml").write_text("extends: two\n")
    (toy / "configs/recipes/two.yaml").write_text("extends: one\n")
    with pytest.raises(ConfigError, match="extends"):
        recipe.load_recipe("one", "mini")


# --- the terminal -------------------------------------------------------------------------------------------

CLEARS_THE_SCREEN, HALF_A_PAIR, RIGHT_TO_LEFT = "\x1b[2J\x1b]0;evil\x07", "\ud800", "\u202e"


@pytest.fixture
def odd_rows(tmp_path: Path) -> Path:
    odd = CLEARS_THE_SCREEN + HALF_A_PAIR + RIGHT_TO_LEFT
    rows = [{"question": f"1+1 {odd}?", "answer": f"one #### {odd}", odd: "x"}, {"question": "2", "answer": odd}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


def test_a_terminal_obeys_no_text_of_a_data_set(odd_rows: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "card-check", "gsm8k", "--file", str(odd_rows)]
    said = subprocess.run(command, capture_output=True, check=False).stdout.decode()
    assert r"has more: \x1b[2J" in said and "rows are used" in said
    assert not {*CLEARS_THE_SCREEN, *RIGHT_TO_LEFT} & {*said} - {*"[2J]0;evil"}


def test_a_card_is_started_from_rows_with_half_a_character(
    odd_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_card, "DATA_CARDS", tmp_path)
    folder = new_card.start_card("my_odd", odd_rows)
    assert (folder / "README.md").read_text()
    assert list(read_rows(folder / "examples.jsonl")) == list(read_rows(odd_rows))


def test_an_error_shows_control_characters_and_no_terminal_obeys_them(r1: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code, output = r1("unpack", f"{CLEARS_THE_SCREEN}{RIGHT_TO_LEFT}é中\t.tar.gz")
    assert code == 2 and "\\x1b[2J\\x1b]0;evil\\x07\\u202eé中\t.tar.gz is no packed run" in output


def test_a_damaged_file_s_name_is_shown_and_no_terminal_obeys_it(toy: Path, r1: Any) -> None:
    r1("run", "toy", "--until", "data")
    manifest = toy / "runs/toy-mini/data/manifest.json"
    record = json.loads(manifest.read_text())
    record["files"][f"{CLEARS_THE_SCREEN}.txt"] = {"size": 1, "sha256": "0"}
    manifest.write_text(json.dumps(record))
    for verb in (["plan", "toy"], ["run", "toy"], ["verify", "toy-mini"]):
        _, output = r1(*verb)
        assert "]0;evil" in output and not {"\x1b", "\x07"} & {*output}


# --- what fuzzing found -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word", ["stages=3", "stages.data.kind=[a]", "count=3", "null=1", "seed=x", "scales=[]", "seed=&a [*a]"]
)
def test_a_setting_of_the_wrong_type_is_refused_in_a_sentence(word: str, toy: Path) -> None:
    if word == "scales=[]":
        assert recipe.load_recipe("toy", "mini", args=[word])
    else:
        with pytest.raises(ConfigError):
            recipe.load_recipe("toy", "mini", args=[word])


@pytest.mark.parametrize("text", ["1: x", "a: {null: 1}", "[{2: 3}]", "!!timestamp 2001-99-99", "[" * 3000])
def test_yaml_that_cannot_be_meant_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_yaml(text, "here")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", b"null"),
        ("rows.jsonl", b'{"a": "\xff"}'),
        ("rows.json", b"[" * 100_000),
        ("rows.jsonl.gz", b"no gzip"),
        ("rows.parquet", b"PAR1"),
        ("rows.csv", b"a,b\n\0,\xff"),
    ],
)
def test_a_damaged_file_of_rows_is_told_in_a_sentence(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        list(read_rows(tmp_path / name))


# --- secrets ------------------------------------------------------------------------------------------------


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return list(SECRETS.values())


KINDS_OF_SECRET = {
    "a token by its form": "hf_" + "e5F6" * 9,
    "another": "sk-" + "g7H8" * 9,
    "a password in an address": "http://me:swordfish@host:8000",
    **{f"the value of {name}": value for name, value in SECRETS.items()},
}


@pytest.mark.parametrize("secret", KINDS_OF_SECRET.values(), ids=KINDS_OF_SECRET)
@pytest.mark.parametrize("place", ["a setting", "ARGS alone", "RUN", "a recipe", "a scale", "base.yaml", "a card"])
def test_a_token_or_a_password_is_refused_wherever_it_is_written_and_is_not_repeated(
    place: str, secret: str, toy: Path, secrets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R1_CARDS", str(toy / "cards"))
    files = {
        "a recipe": ("configs/recipes/toy.yaml", f"description: {secret}\nstages: {{data: {{kind: count}}}}\n"),
        "a scale": ("configs/scales/mini.yaml", f"count: {{trouble: '{secret}'}}\n"),
        "base.yaml": ("configs/base.yaml", f"count: {{trouble: '{secret}'}}\n"),
        "a card": ("cards/toy/README.md", f"---\nr1: {{revision: '{secret}'}}\n---\n"),
    }
    if place in files:
        name, text = files[place]
        (toy / name).parent.mkdir(parents=True, exist_ok=True)
        (toy / name).write_text(text)
    args = {"a setting": [f"stages.data.trouble={secret}"], "ARGS alone": [secret]}.get(place, [])
    with pytest.raises(ConfigError, match="token") as error:
        recipe.load_recipe("toy", "mini", args=args, run=secret if place == "RUN" else None)
        load_card("toy")
    assert secret not in str(error.value) and "swordfish" not in str(error.value)


def test_what_only_looks_like_a_token_is_a_setting_as_any_other(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT_KEY", "count")  # also the name of a kind of stage
    for text in ("task-sk-8", "http://host:8000/a@b", "hf_hub", "a" * 40, "hub:org/name@" + "0" * 40, "count"):
        stage = recipe.load_recipe("toy", "mini", args=[f"stages.data.trouble='{text}'"]).stages["data"]
        assert stage.model_dump()["trouble"] == text


def test_a_run_that_is_refused_for_a_token_leaves_nothing_behind(toy: Path, r1: Any, secrets: list[str]) -> None:
    code, said = r1("run", "toy", "--args", f"stages.data.trouble={secrets[0]}")
    assert code == 2 and secrets[0] not in said and not list((toy / "runs").iterdir())


@pytest.mark.parametrize("engine", ["plain", pytest.param("prefect", marks=pytest.mark.long)])
@pytest.mark.parametrize("trouble", ["", "bug", "data", "token"])
def test_no_secret_of_the_environment_is_written_anywhere(
    trouble: str, engine: str, toy: Path, secrets: list[str]
) -> None:
    def say(*words: str) -> tuple[int, str]:
        done = subprocess.run([sys.executable, TOY_CLI, *words], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    code, said = say("run", "toy", "--engine", engine, "--args", f"stages.data.trouble={trouble or 'none'}")
    assert code == (2 if trouble else 0) and "Prefect is not" not in said, said
    assert say("pack", "toy-mini", "--file", str(toy / "packed.tar.gz"))[0] == 0
    files = [file for file in (toy / "runs").rglob("*") if file.is_file()]
    written = [said.encode(), gzip.decompress((toy / "packed.tar.gz").read_bytes())]
    written += [file.read_bytes() for file in files]
    assert any(file.name == "prefect.db" for file in files) == (engine == "prefect") and len(written) > 5
    assert not [secret for secret in secrets for text in written if secret.encode() in text]
