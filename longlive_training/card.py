"""`python -m longlive_training evaluate`: all of Mini's figures, printed, as JSON and in its model card."""

import json
from pathlib import Path

from longlive_core.config import SWITCH_POLICIES, Policy, WindowConfig
from longlive_core.mini.loader import WEIGHTS, Mini, load_mini

from .evaluate import LONG_SECONDS, SHORT_SECONDS, autoencoder_figures, single_prompt_figures, switch_figures
from .evaluate_control import control_figures
from .evaluate_given import given_figures

FULL_VIDEOS = 4  # of full attention over four minutes, where a block costs twenty ordinary ones
CARD = WEIGHTS.with_name("README.md")
OPENING, CLOSING = "<!-- figures -->", "<!-- /figures -->"
WINDOWS = {
    "12/3": WindowConfig(),
    "12/3 endless": WindowConfig(endless=True),
    "12/0": WindowConfig(sink_latent_frames=0),
    "6/3": WindowConfig(window_latent_frames=6),
    "full": WindowConfig(window_latent_frames=None),
}


def evaluate(
    weights: Path = WEIGHTS,
    videos: int = 64,
    ablation: int = 0,
    given: int = 0,
    control: int = 0,
    untuned: Path | None = None,
    out: Path | None = None,
    card: bool = False,
) -> None:
    """Print every figure: `videos` for each bar, `ablation` for each row of the paper's tables (0: none).

    `given` for each row of images and footage, `control` for each of silhouettes. `untuned` is a packaged
    Mini as teacher forcing left it: its videos are measured too.
    """
    mini, figures = load_mini(weights), {}
    if videos:
        figures |= {"autoencoder": autoencoder_figures(mini), **bars(mini, videos)}
        if untuned:
            before = bars(load_mini(untuned), videos)
            figures |= {f"teacher forcing alone: {group}": named for group, named in before.items()}
    if ablation:
        figures |= ablations(mini, ablation)
    if given:
        figures |= given_figures(mini, given)
    if control:
        figures |= control_figures(mini, control)
    print(json.dumps(figures, indent=2))
    if out:
        out.write_text(json.dumps(figures, indent=2) + "\n")
    if card:
        CARD.write_text(with_figures(CARD.read_text("utf-8"), figures), "utf-8")


def bars(mini: Mini, count: int) -> dict[str, dict[str, float]]:
    """What Mini must show: one prompt, a switch, and the end of four minutes."""
    return {
        "one prompt, 10 s": single_prompt_figures(mini, count, SHORT_SECONDS),
        "switch at 5 s": switch_figures(mini, count, Policy.RECACHE),
        "one prompt, last 10 s of 240 s": single_prompt_figures(mini, count, LONG_SECONDS),
    }


def ablations(mini: Mini, count: int) -> dict[str, dict[str, float]]:
    """The paper's two ablations: what a switch does to the past, and window and sink over time."""
    policies = {f"switch, {p.value}": switch_figures(mini, count, p) for p in SWITCH_POLICIES}
    windows = {}
    for name, window in WINDOWS.items():
        for seconds in (60, LONG_SECONDS):
            is_slow = window.window_latent_frames is None and seconds == LONG_SECONDS
            videos = min(count, FULL_VIDEOS) if is_slow else count
            group = f"last 10 s of {seconds} s, window {name}"
            windows[group] = single_prompt_figures(mini, videos, seconds, window)
    return policies | windows


def with_figures(card: str, figures: dict[str, dict[str, float]]) -> str:
    """The model card with these groups of figures replaced; groups not measured this time stay."""
    before, rest = card.split(OPENING)
    table, after = rest.split(CLOSING)
    kept = [
        row for row in table.splitlines() if row.startswith("|") and row.split(" | ")[0][2:] not in figures
    ]
    lines = kept or ["| videos | figure | value |", "|---|---|---|"]
    for group, named in figures.items():
        lines += [f"| {group} | {name} | {value:.4g} |" for name, value in named.items()]
    return f"{before}{OPENING}\n" + "\n".join(lines) + f"\n{CLOSING}{after}"
