"""The prompts of a finished video as captions: from the settings in it to texts with their times."""

import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Any, NamedTuple

from .. import geometry
from .schedule import PromptSchedule

BLOCK_LATENT_FRAMES = 3  # of settings that do not name them
MIN_SHARED = 12  # characters that captions leave out, as the labels of the timeline do


class Caption(NamedTuple):
    """A text that is shown from `seconds` of the video on, until the next one."""

    seconds: float
    text: str


def captions_of(settings: Mapping[str, Any], seconds: float) -> list[Caption]:
    """The captions of a video of so many seconds: each prompt from the block on where it took effect.

    What all prompts begin with is left out, and so is `always`. A file that begins with an earlier video has
    no captions there: the settings do not hold its prompts. Raises ValueError if they hold no schedule.
    """
    try:
        schedule = PromptSchedule.parse(settings["schedule"])
        block = (settings.get("window") or {}).get("block_latent_frames", BLOCK_LATENT_FRAMES)
        past = settings.get("past_latent_frames", 0)
        made = settings.get("seconds") or seconds
        earlier = geometry.num_frames(past) / geometry.FRAME_RATE
        offset = min(earlier, max(0.0, seconds - made))  # of a file that begins with the earlier video
        segments = schedule.resolve(block, first_block=past // block).segments
    except (AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"the settings hold no schedule that can be read ({error!r})") from error
    shared = shared_start([segment.cue.prompt for segment in segments])
    begins = "\N{HORIZONTAL ELLIPSIS}" if shared else ""
    return [Caption(offset + one.seconds, begins + one.cue.prompt[shared:]) for one in segments]


def shared_start(prompts: list[str]) -> int:
    """How many characters all prompts begin with, in whole words; 0: few, or all of a prompt."""
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*prompts, strict=False))
    start = prompts[0][: len(list(alike))]
    if any(prompt == start for prompt in prompts):
        return 0
    words = re.sub(r"\w+$", "", start)  # not the half of a word
    return len(words) if len(words) >= MIN_SHARED else 0
