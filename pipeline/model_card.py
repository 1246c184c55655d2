"""Model cards: a Hugging Face `README.md` in the folder of every finished model of a run.

Reads manifests, `mix.json` and the measurements of a run through `report_run`; writes what the model is, which
stages and data made it, under which licences, what was measured, and how to load it with transformers, PEFT and
vLLM. Like the report it is a view: nothing is measured here, the card is no part of the sealed files, and it is
written again whenever the report is. The report explains what each metric means.

    make report RUN=NAME
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.artifact import MANIFEST, read_json
from pipeline.card import load_card, parse_card_ref
from pipeline.card_block import licence_warnings
from pipeline.errors import PipelineError
from pipeline.markdown import read_template
from pipeline.refs import CHECKPOINT, REWARD_MODEL, Ref
from pipeline.report_run import Manifest, Run, StageRecord, read_rows, read_run
from pipeline.stage import locate
from stages.chat import TEMPLATES

CARD = "README.md"
QUESTION = "How many legs have three cats?"
MOST_CHARACTERS = 200  # of the question in the example
MOST_NEW_TOKENS = 256  # of the example; a stage's own limit may be lower


@dataclass(frozen=True)
class Step:
    """One finished stage on the way to a model, of this run (`name`) or another (`run/name`)."""

    name: str
    folder: Path
    manifest: Manifest

    @property
    def refs(self) -> list[Ref]:
        """Whatever it read, each once."""
        parents = (parent.ref for parents in self.manifest.inputs.values() for parent in parents)
        return [Ref.parse(ref) for ref in dict.fromkeys(parents)]

    @property
    def model(self) -> Ref | None:
        """The model it started from, if any."""
        parents = self.manifest.inputs.get("model", [])
        return Ref.parse(parents[0].ref) if parents else None


def write_model_cards(run_dir: Path) -> list[Path]:
    """Writes the card of every finished model of the run at `run_dir`; returns the files, in the recipe's order.

    Raises ArtifactError when there is no such run. A stage that is unfinished or damaged gets no card, and a
    README.md that is one of a stage's sealed files is left alone.
    """
    run = read_run(run_dir)
    return [_write(run, stage) for stage in run.stages if _wants_card(stage)]


def lineage(folder: Path, run_dir: Path) -> list[Step]:
    """The stages that the artifact in `folder` rests on, the earliest first and itself last, as far as they exist."""
    found: dict[Path, Step] = {}
    _collect(folder, run_dir, found)
    return list(found.values())


def _wants_card(stage: StageRecord) -> bool:
    return stage.manifest.artifact in (CHECKPOINT, REWARD_MODEL) and CARD not in stage.manifest.files


def _write(run: Run, stage: StageRecord) -> Path:
    assert stage.folder, "a stage with a manifest has a folder"
    card = stage.folder / CARD
    temporary = card.with_name(f".{CARD}.tmp")
    temporary.write_text(read_template("model_card.md.j2").render(_content(run, stage, stage.folder)), encoding="utf-8")
    temporary.replace(card)
    return card


def _collect(folder: Path, run_dir: Path, found: dict[Path, Step]) -> None:
    manifest = _manifest(folder)
    if manifest is None or folder in found:
        return
    name = folder.name if folder.parent == run_dir else f"{folder.parent.name}/{folder.name}"
    step = Step(name, folder, manifest)
    for ref in step.refs:
        if ref.scheme in ("stage", "run"):
            _collect(locate(ref, folder.parent), run_dir, found)
    found[folder] = step


def _manifest(folder: Path) -> Manifest | None:
    """What can be read of a manifest; None where there is none, because a card with a gap tells more than none."""
    with suppress(PipelineError, ValidationError):
        return Manifest.model_validate(read_json(folder / MANIFEST))
    return None


# --- what stands in a card ------------------------------------------------------------------------


def _content(run: Run, stage: StageRecord, folder: Path) -> dict[str, Any]:
    """Everything the template shows, by name."""
    steps = lineage(folder, run.path)
    base = _base(steps)
    data = list(_data(steps))
    is_classifier = stage.manifest.artifact == REWARD_MODEL
    facts = stage.manifest
    return {
        "front": yaml.safe_dump(_front(stage, base, data, is_classifier), sort_keys=False, allow_unicode=True),
        "title": f"{run.name}: {stage.name}",
        "stage": stage.name,
        "kind": stage.kind,
        "recipe": run.recipe,
        "scale": run.scale,
        "base": base,
        "warnings": _warnings(data),
        "lineage": [_lineage_row(step) for step in steps],
        "data": data,
        "mix": _mix(folder),
        **_measured(run, stage),
        "is_classifier": is_classifier,
        "auto_class": "AutoModelForSequenceClassification" if is_classifier else "AutoModelForCausalLM",
        "base_of_adapter": _base_of_adapter(steps[-1], is_classifier),
        **_example(facts.settings, _question(run, stage)),
        "settings": yaml.safe_dump(facts.settings, sort_keys=False, allow_unicode=True),
        "made_on": facts.hardware.gpu or facts.hardware.cpu or "an unknown machine",
        "packages": ", ".join(f"{name} {version}" for name, version in facts.packages.items()) or "unknown packages",
        "commit": facts.git.commit,
        "fingerprint": facts.fingerprint,
    }


def _front(stage: StageRecord, base: str | None, data: list[dict[str, Any]], is_classifier: bool) -> dict[str, Any]:
    """The front matter that the Hugging Face hub reads; what is not known is left out."""
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if is_classifier else "text-generation",
        "license": "other",
        "license_name": "that-of-the-base-and-of-the-data",
        "tags": ["r1-pipeline", stage.kind],
    }
    if base and base.startswith("hub:"):
        front["base_model"] = base.removeprefix("hub:").partition("@")[0]
    datasets = dict.fromkeys(row["hub"] for row in data if row["hub"])
    return front | ({"datasets": list(datasets)} if datasets else {})


def _base(steps: list[Step]) -> str | None:
    """The model from outside at the beginning of the last step's history: `hub:…` or `path:…`."""
    by_folder = {step.folder: step for step in steps}
    step: Step | None = steps[-1]
    while step and (model := step.model):
        if model.scheme not in ("stage", "run"):
            return str(model)
        step = by_folder.get(locate(model, step.folder.parent))
    return None


def _lineage_row(step: Step) -> dict[str, Any]:
    return {"name": step.name, "kind": step.manifest.kind, "parents": [f"`{ref}`" for ref in step.refs]}


def _data(steps: Iterable[Step]) -> Iterator[dict[str, Any]]:
    """Every card that one of the steps read, with the licence and revision of that time."""
    readers: dict[str, list[Step]] = {}
    for step in steps:
        for ref in step.refs:
            if ref.scheme == "card":
                readers.setdefault(str(ref), []).append(step)
    for ref_text, found in readers.items():
        name = parse_card_ref(ref_text).name
        used = next((use for use in found[-1].manifest.cards if use.name == name), None)
        yield {
            "ref": ref_text,
            "card": name,
            "stages": [f"`{step.name}`" for step in found],
            "licence": _words(used.licence if used else None) or "not recorded",
            "revision": str(used.revision if used else "not recorded"),
            "hub": _hub_id(name),
        }


def _words(licence: str | list[str] | None) -> str:
    return ", ".join(licence) if isinstance(licence, list) else licence or ""


def _hub_id(card: str) -> str | None:
    with suppress(PipelineError):
        hub = load_card(card).block.hub
        return hub.id if hub else None
    return None  # a card that is gone by now


def _warnings(data: Iterable[dict[str, Any]]) -> list[str]:
    found = [warning for row in data for warning in licence_warnings(row["card"], row["licence"])]
    return list(dict.fromkeys(found))


def _mix(folder: Path) -> list[dict[str, Any]]:
    """What an SFT stage learned of each source; nothing for other stages."""
    with suppress(PipelineError, KeyError, TypeError):
        return list(read_json(folder / "mix.json")["sources"])
    return []


def _measured(run: Run, stage: StageRecord) -> dict[str, Any]:
    """The measurements of the stage that evaluates this one, or else the stage's own numbers."""
    evaluation = run.evaluation_of(f"stage:{stage.name}")
    source = evaluation or stage
    rows = [
        {
            "name": name,
            "value": f"{measure.value:.4g}",
            "interval": f"{measure.ci95[0]:.4g} to {measure.ci95[1]:.4g}" if measure.ci95 else "",
            "n": "" if measure.n is None else measure.n,
        }
        for name, measure in source.metrics.items()
        if measure.value is not None
    ]
    if evaluation is None:
        return {"measures": rows, "measured_by": "While it was made:"}
    inputs = evaluation.manifest.inputs.items()
    asked = [f"`{parent.ref}`" for field, parents in inputs if field != "model" for parent in parents]
    on = f", on {', '.join(asked)}" if asked else ""
    return {"measures": rows, "measured_by": f"By the stage `{source.name}`{on}:"}


# --- how to load it -------------------------------------------------------------------------------


def _base_of_adapter(step: Step, is_classifier: bool) -> str | None:
    """Arguments of `from_pretrained` for the model under `adapter/`, as code; None where there is no adapter."""
    if not (step.folder / "adapter" / "adapter_config.json").is_file() or step.model is None:
        return None
    options = ["num_labels=1"] if is_classifier else []
    if step.model.scheme == "hub":
        name, _, revision = step.model.target.partition("@")
        return ", ".join([json.dumps(name), f"revision={json.dumps(revision)}", *options])
    path = os.path.relpath(locate(step.model, step.folder.parent), step.folder)
    return ", ".join([json.dumps(path), *options])


class _CallWritten:
    """Stands in for a tokenizer: writes down the call that would make the prompt, instead of making it."""

    chat_template = "the tokenizer's own"

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        return f"tokenizer.apply_chat_template({messages!r}, {given})"


def _question(run: Run, stage: StageRecord) -> str:
    """The first short problem that the model was measured on: one it may know; ours where there is none."""
    evaluation = run.evaluation_of(f"stage:{stage.name}")
    rows = read_rows(evaluation.folder / "completions.jsonl") if evaluation and evaluation.folder else []
    texts = (str(row.get("prompt", "")) for row in rows)
    return next(
        (text for text in texts if text.isprintable() and "`" not in text and 0 < len(text) <= MOST_CHARACTERS),
        QUESTION,
    )


def _example(settings: dict[str, Any], question: str) -> dict[str, str]:
    """Code that writes a prompt as the stage wrote it, and the options that go with it."""
    template = TEMPLATES.get(str(settings.get("template")), TEMPLATES["mini"])
    written = template.prompt(question, _CallWritten())
    stop = json.dumps(template.stop)
    longest = min(MOST_NEW_TOKENS, int(settings.get("max_completion_length") or MOST_NEW_TOKENS))
    return {
        "prompt_code": json.dumps(written, ensure_ascii=False) if template.pattern else written,
        # A chat template writes the begin token itself.
        "tokenizer_options": "" if template.pattern else ", add_special_tokens=False",
        "generate_options": f", stop_strings={stop}, tokenizer=tokenizer" if template.stop else "",
        "vllm_options": f", stop={stop}" if template.stop else "",
        "max_new_tokens": str(longest),
    }
