"""The core side by side with TRL and Unsloth: memory and seconds of the training phase, on models of the real shapes.

Each contender runs in a process of its own on the same random weights, lengths, rank and made-up rollouts; a crash or
a lack of memory is a row with an `error` and stops nothing. Rows are printed and written as they come, so a run that is
cut off keeps what it has; rows of the same case, contender and levers are replaced.

The cases named `…whole-step…` are rows with `phase` "step": each contender samples for itself, every response of
exactly the case's length, within the memory that the case gives of the card; `core_vllm` is the core with vLLM on the
4-bit base. `device_used_gib` is then the most that `nvidia-smi` saw since the model was loaded, whoever took it.

    python -m benchmarks.core 1.5b-256-786 --contenders core trl_qlora trl_max unsloth --unsloth-site DIR
    python -m benchmarks.core 1.5b-256-786 --ablate             # the core without each of its levers
    python -m benchmarks.core 1.5b-256-786 --contenders core --caps 2.0 1.8 1.7
    python -m benchmarks.core 1.5b-whole-step-5gb --contenders core unsloth trl_max core_vllm --unsloth-site DIR

Makes `docs/results/core.json`, and a Markdown table beside it.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import command_line, require_gpu, require_package, start
from benchmarks.core_cases import CASES, MODELS, make_model
from benchmarks.core_peers import CONTENDERS as PEERS
from pipeline.places import ROOT
from pipeline.provenance import environment
from stages.training import GROWING_SEGMENTS

Row = dict[str, Any]
OURS = ("core", "core_vllm")
LEVERS = (
    "core",
    "shared-prompts",
    "fused-kernels",
    "offload",
    "kept-attention",
    "cudnn-attention",
    "mlp-tiles",
    "head-tiles",
    "outer-on-host",
    "whole-batch-passes",
    "adam-8bit",
)


def main() -> None:
    """Runs what was asked for, one after the other."""
    chosen = arguments()
    require_all(chosen)
    commit = (environment()["git"] or {}).get("commit")
    for name in chosen.cases:
        folder = chosen.models / CASES[name].shape
        made = multiprocessing.get_context("spawn").Process(target=make_model, args=(CASES[name].shape, folder))
        made.start()  # in a process of its own, whose memory is gone from the card when the others are measured
        made.join()
        runs: list[Row] = [{"contender": c, "cap_gib": cap} for cap in chosen.caps for c in chosen.contenders]
        if chosen.ablate:
            runs += [{"contender": "core", "without": lever} for lever in chosen.levers]
        for run in runs * chosen.repeat:
            found = measured(name, run, folder, chosen)
            row = {"case": name, **{k: v for k, v in run.items() if v}, **found, "commit": commit}
            print("RESULT " + json.dumps(row), flush=True)
            keep(row, chosen.out)
    print(table(json.loads(chosen.out.read_text())))


def arguments() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--contenders", nargs="*", default=["core"], choices=[*OURS, *PEERS])
    parser.add_argument("--ablate", action="store_true", help="also the core without each of its levers")
    parser.add_argument("--levers", nargs="*", default=LEVERS, choices=LEVERS)
    parser.add_argument("--caps", nargs="*", type=float, default=[0.0], help="GiB the card is said to have; 0 = all")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=300, help="seconds of one contender")
    parser.add_argument("--models", type=Path, default=MODELS, help="where random models are made")
    parser.add_argument("--trl-site", default="", help="a folder of packages for TRL's processes")
    parser.add_argument("--unsloth-site", default="", help="a folder of packages for Unsloth's process")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/core.json")
    return parser.parse_args()


def require_all(chosen: argparse.Namespace) -> None:
    """A ResourceError before anything starts, when a GPU or a contender's library is not there."""
    if any(CASES[name].shape != "tiny" for name in chosen.cases):
        require_gpu("every case but the tiny ones")
    if "core_vllm" in chosen.contenders:
        require_package("vllm", "`make setup-gpu` installs it")
    if "unsloth" in chosen.contenders and not Path(chosen.unsloth_site, "unsloth").is_dir():
        require_package("unsloth", "name a folder that holds it: --unsloth-site DIR")


def measured(name: str, run: Row, folder: Path, chosen: argparse.Namespace) -> Row:
    """One contender in a process of its own; a row with `error` where it gives no result."""
    script = "benchmarks.core_ours" if run["contender"] in OURS else "benchmarks.core_peers"
    command = [sys.executable, "-m", script, name, "--model-dir", str(folder)]
    command += ["--contender", run["contender"]]
    command += ["--cap-gib", str(run["cap_gib"])] if run.get("cap_gib") else []
    command += ["--without", run["without"]] if run.get("without") else []
    began = time.monotonic()
    try:
        done = subprocess.run(
            command,
            env=variables(run["contender"], chosen),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=chosen.timeout,
        )
        text = done.stdout
    except subprocess.TimeoutExpired as error:
        text = (error.stdout or b"").decode(errors="replace") + f"\nno result within {chosen.timeout:g} s"
    with chosen.out.with_suffix(".log").open("a") as log:
        log.write(f"===== {name} {run}\n{text}\n")
    results = [line[7:] for line in text.splitlines() if line.startswith("RESULT ")]
    seconds = {"wall_s": round(time.monotonic() - began, 1)}
    return (json.loads(results[-1]) if results else {"phase": "train", "error": reason(text)}) | seconds


def variables(contender: str, chosen: argparse.Namespace) -> dict[str, str]:
    """The environment of a contender: its own packages first."""
    site = {**dict.fromkeys(OURS, ""), "unsloth": chosen.unsloth_site}.get(contender, chosen.trl_site)
    paths = [site, str(ROOT), os.environ.get("PYTHONPATH", "")]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    ours = GROWING_SEGMENTS if contender == "core" else {}  # as the stage's process is started
    return ours | os.environ | offline | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def reason(text: str) -> str:
    """The last line that names an error, else the end of what was printed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or line.startswith(("error:", "no result within"))]
    return (named or lines or ["no output"])[-1][:300]


def keep(row: Row, out: Path) -> None:
    """Adds a row to the file; the best of several runs of the same question stays."""
    rows = json.loads(out.read_text()) if out.exists() else []
    same = [r for r in rows if question(r) == question(row)]
    others = [r for r in rows if question(r) != question(row)]
    seconds = "step_s" if row.get("phase") == "step" else "train_s"
    best = min([*same, row], key=lambda r: r.get(seconds, float("inf")) if r.get("commit") == row["commit"] else 1e9)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps([*others, best], indent=1) + "\n")


def question(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("case", "contender", "without", "cap_gib", "device"))


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| case | contender | peak, GiB | card, GiB | training, s a step | whole step, s | tokens/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: (r["case"], r.get("without", ""), r["contender"])):
        name = row["contender"] + (f" without {row['without']}" if row.get("without") else "")
        name += f", capped at {row['cap_gib']} GiB" if row.get("cap_gib") else ""
        numbers = [row.get(k, "–") for k in ("peak_gib", "device_used_gib", "train_s", "step_s", "tokens_per_s")]
        cells = [row["error"][:90], "", "", "", ""] if "error" in row else numbers
        lines.append("| " + " | ".join(map(str, [row["case"], name, *cells])) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    start(main)
