"""The model card next to what tuning made: what is known of it is filled in, the rest is asked for."""

import json
from pathlib import Path
from typing import Any

from longlive_core.config import VERSION

from .checkpoint import newest
from .files import write_file

RUN = "run.json"  # in a run's folder: what its checkpoints do not know
OPENING, CLOSING = "<!-- recipe -->", "<!-- /recipe -->"
TEMPLATE = """---
base_model: {base}
pipeline_tag: text-to-video
license: WRITE  # that of the base model and of the teacher allow what?
---

# {name}

WRITE: one sentence on what it does better than its base model, and a video.

## Use

{use}

## Training

Streaming long tuning (LongLive, arXiv 2509.22622, section 3.3).

{opening}
{closing}

WRITE: where the prompts came from, and under which terms.

WRITE: what was measured, on how many videos, next to the base model.

## Limits

WRITE: what it does worse than its base model.
"""
USE = """```
longlive generate --model {base} --lora {file} --vae VAE --text-encoder UMT5 --prompt "..." --seconds 60
```"""
USE_WHOLE = USE.replace("{base} --lora {file}", "{file}")


def keep_facts(folder: Path, files: dict[str, str], num_pairs: int) -> None:
    """Write into a run's folder which files and how many pairs of prompts it is made of."""
    facts = {"files": files, "pairs": num_pairs, "version": VERSION}
    write_file(folder / RUN, lambda part: part.write_text(json.dumps(facts, indent=1), "utf-8"))


def facts_of(run: Path) -> dict[str, Any]:
    """What `keep_facts` wrote; no files where it is missing or damaged."""
    try:
        facts = json.loads((run / RUN).read_text("utf-8"))
        return facts if isinstance(facts["files"], dict) else {"files": {}}
    except (OSError, ValueError, TypeError, KeyError):
        return {"files": {}}


def check_files(run: Path, files: dict[str, str]) -> None:
    """ValueError where a run has a checkpoint that was made from files of other names."""
    before = facts_of(run)["files"]
    differing = [
        f"{n} {before[n]} instead of {file}" for n, file in files.items() if before.get(n, file) != file
    ]
    if differing and newest(run):
        raise ValueError(
            f"{run} has a run from other files: {', '.join(differing)}; give the same files, or choose "
            "another --folder"
        )


def write_card(weights: Path, run: Path, state: dict[str, Any]) -> None:
    """Write `weights` with the ending .md, of a run's checkpoint and what it says of itself.

    Of an earlier model card only the recipe is replaced.
    """
    card, facts = weights.with_suffix(".md"), facts_of(run)
    base = facts["files"].get("model", "WRITE")
    use = USE if state["recipe"]["rank"] else USE_WHOLE
    fresh = TEMPLATE.format(
        name=weights.stem,
        base=base,
        use=use.format(base=base, file=weights.name),
        opening=OPENING,
        closing=CLOSING,
    )
    text = card.read_text("utf-8") if card.exists() else fresh
    if OPENING not in text or CLOSING not in text:
        return  # somebody's own
    before, _, rest = text.partition(OPENING)
    after = rest.partition(CLOSING)[2]
    table = "\n".join(
        ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows(state, facts))]
    )
    text = f"{before}{OPENING}\n{table}\n{CLOSING}{after}"
    write_file(card, lambda part: part.write_text(text, "utf-8"))


def rows(state: dict[str, Any], facts: dict[str, Any]) -> list[tuple[str, Any]]:
    """What is known of a run, to read: its files, its prompts, its recipe."""
    recipe = {name.replace("_", " "): value for name, value in state["recipe"].items()}
    for name in ("window", "sigmas"):
        recipe[name] = ", ".join(f"{of.replace('_', ' ')} {value}" for of, value in recipe[name].items())
    return [
        *facts["files"].items(),
        ("iterations", state["step"]),
        ("pairs of prompts", facts.get("pairs", "WRITE")),
        ("SHA-256 of the prompts", state["prompts"]),
        *recipe.items(),
        ("made with longlive", facts.get("version", VERSION)),
    ]
