"""The shape of the project: import order, light imports, complete tables, golden texts."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.written import names
from stages import STAGES
from tests.golden import golden_files, loaded, resolved

ROOT = Path(__file__).parent.parent
ORDER = [
    "places",
    "credentials",
    "errors",
    "markdown",
    "refs",
    "durable",
    "disk",
    "lock",
    "artifact",
    "settings",
    "wrong_setting",
    "sources",
    "bad_rows",
    "card_block",
    "card_rows",
    "card",
    "stage",
    "stages",
    "written",
    "fingerprints",
    "recipe",
    "provenance",
    "needs",
    "plan",
    "dry_run",
    "verify",
    "pack",
    "estimates",
    "machine",
    "doctor",
    "worker",
    "runner",
    "launch",
    "report_measures",
    "report_run",
    "report_paper",
    "report_tables",
    "report_samples",
    "report_plots",
    "report_lineage",
    "report",
    "model_card",
    "views",
    "card_table",
    "card_check",
    "new_card",
    "console",
    "doctor_table",
    "flow",
    "execution",
    "cli",
]
HEAVY = ("torch", "transformers", "trl", "peft", "vllm", "prefect", "datasets", "matplotlib")


def imports_at_load(file: Path) -> set[str]:
    """Modules a file imports when it is loaded (not those inside functions)."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("name", [n for n in ORDER if n != "stages"])
def test_a_module_of_the_machine_imports_only_what_stands_before_it(name):
    file = ROOT / "pipeline" / f"{name}.py"
    later = ORDER[ORDER.index(name) + 1 :]
    wrong = {f"pipeline.{other}" for other in later} & imports_at_load(file)
    assert not wrong
    if ORDER.index(name) < ORDER.index("stages"):
        assert not {module for module in imports_at_load(file) if module.split(".")[0] == "stages"}


def test_every_module_of_the_machine_has_its_place_in_the_order():
    assert {file.stem for file in ROOT.glob("pipeline/[!_]*.py")} == set(ORDER) - {"stages"}


def test_only_the_flow_imports_prefect_and_only_engines_import_heavy_libraries():
    for file in [
        *ROOT.glob("pipeline/**/*.py"),
        *ROOT.glob("stages/*.py"),
        *ROOT.glob("stages/rewards/*.py"),
    ]:
        heavy = {module for module in imports_at_load(file) if module.split(".")[0] in HEAVY}
        assert not heavy, f"{file.relative_to(ROOT)} imports {heavy}"
    importers = {f.name for f in ROOT.glob("pipeline/*.py") if "import prefect" in f.read_text()}
    assert importers == {"flow.py"}


@pytest.mark.parametrize(
    "words", [["--help"], ["plan", "r1-zero"], ["cards"], ["show", "r1-zero"], ["doctor", "r1-zero"]]
)
def test_a_fast_verb_answers_at_once_and_imports_nothing_heavy(words):
    code = (
        "import sys; from pipeline.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\n"
        f"print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        seconds.append(time.monotonic() - started)
    assert done.stdout.rstrip().endswith("HEAVY []")
    assert min(seconds) < 3.0  # about 0.4 s on a quiet machine; the bound is for a busy one


def test_there_are_kinds_recipes_and_scales():
    assert {"pretrain", "sft", "grpo", "evaluate"} <= set(STAGES)
    assert {"r1-zero", "mini-base"} <= set(names("recipes"))
    assert {"mini", "smollm2-135m", "qwen-0.5b", "qwen-1.5b", "llama-8b"} <= set(names("scales"))


@pytest.mark.parametrize("file", golden_files(), ids=lambda file: file.stem)
def test_every_recipe_resolves_at_every_scale_to_its_golden_text(file):
    assert file.is_file(), "write it with `make golden`, and read the difference"
    assert file.read_text() == resolved(file), "`make golden` writes it again; read the difference"


def test_every_recipe_with_a_page_belongs_to_every_scale_but_those_of_the_students():
    pages = {page.stem for page in (ROOT / "docs/recipes").glob("*.md")} - {"README", "distill"}
    scales = {scale.stem for scale in (ROOT / "configs/scales").glob("*.yaml") if not scale.stem.startswith("distill-")}
    assert {f"{recipe}@{scale}" for recipe in pages for scale in scales} <= {file.stem for file in golden_files()}


def test_there_is_a_golden_text_for_every_recipe_and_scale_and_no_other():
    assert set(golden_files()) == set((ROOT / "tests/golden").glob("*.yaml"))
    assert len(golden_files()) >= 10


def test_no_recipe_keeps_weights_in_4_bits_without_an_adapter_to_train():
    for file in golden_files():
        for name, stage in loaded(*file.stem.split("@")).stages.items():
            frozen = getattr(stage, "quantization", None) is not None
            assert not frozen or stage.lora is not None, f"{file.stem}: {name}"
