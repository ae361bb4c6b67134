"""`python -m longlive_training proof`: does tuning by a teacher win, and is it the long videos that win?

The judge's figures of Mini's teacher and of four students, on held-out combinations, against what was asked
for before any of them was measured.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

from longlive_core.config import MINI, Policy
from longlive_core.geometry import latent_size
from longlive_core.mini.loader import WEIGHTS, Mini, load_mini

from .evaluate import (
    LONG_SECONDS,
    BatchNoise,
    Score,
    batches,
    held_out,
    score_video,
    single_prompt_figures,
    switch_figures,
)
from .teacher import CLIP, sampled
from .transformer import Generator, load_generator

Figures = dict[str, float]
LOOKS = "colour", "background"
SWITCHED, DRIFT = "changed_all_in_1.5s", "latent_std_last_to_first"
LEAST = {"colour": 0.99, "background": 0.99, "shape": 0.93, "motion": 0.90}
GAP, CLOSED, CLOSED_BY_CLIPS = 0.10, 0.75, 0.5
DRIFTS = 0.95, 1.05


class Criterion(NamedTuple):
    """What is asked, what was found, and whether that is enough."""

    text: str
    found: str
    holds: bool


def teacher_figures(teacher: Generator, mini: Mini, count: int) -> Figures:
    """The judge's view of the teacher's own clips, of 16 steps each."""
    score, cells = Score(), latent_size(MINI.width, MINI.height)
    for seeds, part in batches(held_out(count)):
        noise = BatchNoise(seeds, (1, MINI.model.latent_channels, CLIP, *cells))(0, 0)
        latents = sampled(teacher, [attributes.prompt() for attributes in part], noise)
        for frames, attributes in zip(mini.autoencoder.decode(latents)[0], part, strict=True):
            score_video(score, frames, attributes)
    return {"videos": count, **score.shares()}


def student_figures(mini: Mini, count: int, seconds: int) -> Figures:
    """The last ten seconds of long videos, and what a switch changes."""
    switched = switch_figures(mini, count, Policy.RECACHE)[SWITCHED]
    return {**single_prompt_figures(mini, count, seconds), SWITCHED: switched}


def criteria(of: dict[str, Figures]) -> list[Criterion]:
    """The four questions; `of` has figures of teacher, packaged, before, after and clips (first ones)."""
    packaged, before, after = (of[name] for name in ("packaged", "before", "after"))
    gaps = {n: packaged[n] - before[n] for n in ("shape", "motion") if packaged[n] - before[n] >= GAP}
    closed, by_clips = (
        {name: (of[student][name] - before[name]) / gap for name, gap in gaps.items()}
        for student in ("after", "clips")
    )
    drift, (low, high) = after.get(DRIFT, 1.0), DRIFTS
    return [
        Criterion("teacher alone", shown(of["teacher"], LEAST), reaches(of["teacher"], LEAST)),
        Criterion(
            f"student before: {GAP:g} below the packaged Mini in shape or motion",
            f"{shown(before, LEAST)}; packaged {shown(packaged, LEAST)}",
            bool(gaps),
        ),
        Criterion("student after", shown(after, LEAST), reaches(after, LEAST)),
        Criterion(f"latent std {low} to {high} of the start", f"{drift:.3f}", low <= drift <= high),
        Criterion(
            f"{CLOSED:.0%} of such a gap closed",
            shown(closed, gaps),
            bool(gaps) and min(closed.values()) >= CLOSED,
        ),
        Criterion(
            "switches not worse than before",
            f"{after[SWITCHED]:.3f}; before {before[SWITCHED]:.3f}",
            after[SWITCHED] >= before[SWITCHED],
        ),
        Criterion(
            f"as many updates on first clips alone close at most {CLOSED_BY_CLIPS:.0%}",
            shown(by_clips, gaps),
            bool(gaps) and max(by_clips.values()) <= CLOSED_BY_CLIPS,
        ),
    ]


def shown(figures: Figures, names: dict[str, float]) -> str:
    return ", ".join(f"{name} {figures[name]:.3f}" for name in names)


def reaches(figures: Figures, least: dict[str, float]) -> bool:
    return all(figures[name] >= bound for name, bound in least.items())


def table(found: list[Criterion]) -> str:
    """Markdown, for docs/tuning.md."""
    rows = [f"| {text} | {figures} | {'yes' if holds else 'no'} |" for text, figures, holds in found]
    return "\n".join(["| asked | found | holds |", "|---|---|---|", *rows])


def proof(
    teacher: Path,
    before: Path,
    after: Path,
    clips: Path,
    packaged: Path = WEIGHTS,
    videos: int = 64,
    seconds: int = LONG_SECONDS,
    out: Path | None = None,
) -> None:
    """Measure all five and print the table; `out` gets every figure as JSON."""
    students = {"packaged": packaged, "before": before, "after": after, "clips": clips}
    minis = {name: load_mini(path) for name, path in students.items()}
    judged = load_generator(teacher).eval()
    figures = {"teacher": teacher_figures(judged, minis["packaged"], videos)}
    figures |= {name: student_figures(mini, videos, seconds) for name, mini in minis.items()}
    if out:
        out.write_text(json.dumps(figures, indent=2) + "\n")
    print(table(criteria(figures)))


def add_command(stages: argparse._SubParsersAction) -> None:
    """Add `proof` to the stages of training."""
    proving = stages.add_parser("proof", help="whether distil-mini won, measured, as a table")
    proving.set_defaults(command=proof)
    add = proving.add_argument
    for name in ("teacher", "before", "after", "clips"):
        add(f"--{name}", type=Path, required=True)
    add("--packaged", type=Path, default=WEIGHTS)
    add("--videos", type=int, default=64)
    add("--seconds", type=int, default=LONG_SECONDS)
    add("--out", type=Path, help="write the figures as JSON")
