"""`python docs/thumbnails.py` makes the images of workflows/: frames of Mini, drawn ones for downloads."""

import json
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from icon import PAPER, QUIET, canvas, colour, hue_at, loop
from PIL import Image, ImageDraw, ImageFont

from longlive_core import PromptSchedule, load_pipeline
from longlive_core.config import WindowConfig
from longlive_core.control import Control
from longlive_core.footage import newest
from longlive_core.pipeline import Source, as_uint8

WORKFLOWS = Path(__file__).parents[1] / "workflows"
SIDE, QUALITY = 480, 80  # pixels, of the JPEG
TYPED = """8s => a blue circle drifts right over navy
16s => blend 3s: a blue star drifts right over navy
23s => cut: a green square rests over slate
"""


def values_of(workflow: dict, kind: str) -> list[list]:
    """The widget values of all nodes of a kind."""
    return [node["widgets_values"] for node in workflow["nodes"] if node["type"] == kind]


def sheet(rows: int, columns: int, prompts: str, seconds: float, **request) -> np.ndarray:
    """Evenly spaced frames of a video, time along the rows."""
    made = np.concatenate([as_uint8(part) for part in load_pipeline().stream(prompts, seconds, **request)])
    chosen = made[np.linspace(8, len(made) - 1, rows * columns).round().astype(int)]
    return rearrange(chosen, "(row column) h w rgb -> (row h) (column w) rgb", column=columns)


def frames(workflow: dict) -> Image.Image:
    """What Mini makes of it; a live one with prompts as somebody may type them."""
    schedules = [values[0] for values in values_of(workflow, "LongLivePromptSchedule")]
    streams, windows = values_of(workflow, "LongLiveStream"), values_of(workflow, "LongLiveFrameSink")
    seconds, seed, prompts = sum(values[2] for values in streams), streams[0][3], schedules[0]
    for kind in ("LongLiveSource", "ImageFromBatch", "ThresholdMask"):
        if used := values_of(workflow, kind):
            return joined(streams, schedules, kind, used[0])
    if "real time" in streams[0]:
        prompts, seconds = prompts + TYPED, 30
    if len(windows) == 2:
        halves = [WindowConfig(window_latent_frames=w, sink_latent_frames=sink) for w, sink, *_ in windows]
        parts = [sheet(2, 4, prompts, streams[0][2], seed=seed, window=half) for half in halves]
        picture = np.concatenate(parts)
    else:
        for values, later in zip(streams, schedules[1:], strict=False):
            cues = PromptSchedule.parse(later).cues
            prompts += "".join(f"{values[2] + cue.seconds}s => {cue.prompt}\n" for cue in cues if cue.seconds)
        picture = sheet(3, 3, prompts, seconds, seed=seed)
    return Image.fromarray(picture).resize((SIDE, SIDE))


def joined(streams: list[list], schedules: list[str], kind: str, used: list) -> Image.Image:
    """What Mini makes of a clip, in a row, and what it makes from the clip, below."""
    mini = load_pipeline()
    (_, _, seconds, seed, *_), later = streams
    clip = torch.cat(list(mini.stream(schedules[0], seconds, seed=seed)))
    if used[0] == "transform":
        request = {"source": Source(clip, used[1])}
    elif used[0] == "continue":
        request = {"past": mini.encode(newest([clip], 12))}
    elif kind == "ThresholdMask":
        request = {"control": Control((clip[..., :1] > used[0]).float().expand(clip.shape))}
    else:
        request = {"given": mini.encode(clip[used[0] : used[0] + 1])}
    made = torch.cat(list(mini.stream(schedules[1], later[2], seed=later[3], **request)))
    rows = [row[torch.linspace(0, len(row) - 1, 4).round().long()] for row in (clip, *made.tensor_split(3))]
    picture = rearrange(as_uint8(torch.stack(rows)), "row column h w rgb -> (row h) (column w) rgb")
    return Image.fromarray(picture).resize((SIDE, SIDE))


def drawn(workflow: dict, name: str) -> Image.Image:
    """The loop, the name, and the cues as bars over the length of the video."""
    image, draw = canvas((SIDE, SIDE))
    side = image.width
    loop(draw, (side / 2, 0.24 * side), 0.3 * side, 0.085 * side)
    shown = name.partition(" (download)")[0].removeprefix("Direct ")
    model, _, what = shown.partition(" ")
    centred(draw, model, 0.43 * side, 0.12 * side, PAPER)
    centred(draw, what, 0.6 * side, 0.075 * side, PAPER)
    seconds = values_of(workflow, "LongLiveStream")[0][2]
    cues = PromptSchedule.parse(values_of(workflow, "LongLivePromptSchedule")[0][0]).cues
    starts = [cue.seconds / seconds for cue in cues]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], 1], strict=True)):
        box = (side * (0.08 + 0.84 * start), 0.76 * side, side * (0.07 + 0.84 * end), 0.84 * side)
        hue = hue_at(number / len(cues))
        draw.rounded_rectangle(box, 0.01 * side, colour(hue, 0.28), colour(hue), side // 200)
    centred(draw, f"{seconds:.0f} s · needs a download", 0.88 * side, 0.045 * side, QUIET)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def centred(
    draw: ImageDraw.ImageDraw, text: str, top: float, size: float, fill: tuple[int, int, int]
) -> None:
    font = ImageFont.load_default(size)
    draw.text(((draw.im.size[0] - draw.textlength(text, font)) / 2, top), text, fill, font)


def main() -> None:
    for file in sorted(WORKFLOWS.glob("*.json")):
        workflow = json.loads(file.read_text("utf-8"))
        picture = drawn(workflow, file.stem) if "(download)" in file.stem else frames(workflow)
        picture.save(file.with_suffix(".jpg"), quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
