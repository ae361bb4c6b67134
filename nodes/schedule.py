"""LongLivePromptSchedule: timed prompts, parsed and encoded."""

from contextlib import suppress
from functools import partial

import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..longlive_core.config import WindowConfig
from ..longlive_core.schedule.schedule import NEVER, PromptSchedule
from ..longlive_core.text.tokens import TEXT_TOKENS, too_long
from . import host
from .io_types import CATEGORY, EncodedSchedule, ScheduleType, found_by

MOVED = 0.4  # seconds: that a cue takes effect so much later is worth a line
EXAMPLE = """0:00 a red circle drifts right over navy
3s => it turns into a blue star
6s => a blue star drifts up over plum
"""


class LongLivePromptSchedule(io.ComfyNode):
    """Which prompt begins when."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLivePromptSchedule",
            display_name="LongLive: Prompt Schedule",
            category=CATEGORY,
            **found_by(
                "timeline, prompt travel, prompt timeline, timed prompts, storyboard, keyframes, "
                "prompt scheduling, multi prompt, long video"
            ),
            description=(
                "Timed prompts for a video, on a timeline or one a line. A prompt takes effect at the next "
                "block (0.75 s; 0.25 s in a frame-wise model); the node says so where that is clearly later."
            ),
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder that belongs to the model: UMT5-XXL (type wan), or Mini's.",
                ),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default=EXAMPLE,
                    tooltip=(
                        "One cue a line: a time (5s, 0:05, 1:02.5), optionally => and a policy "
                        "(recache:, refresh:, keep:, cut:, blend 3s:), then the prompt. The first cue is "
                        "at 0. Next to the policy, with commas, may be a seed for another take (seed 7:), "
                        "and an image of ComfyUI's input folder that a new scene begins with "
                        "(cut, image sea.png:). "
                        "The node reports times for blocks of 3 latent frames (0.75 s), which most "
                        "models make, and those of a frame-wise model (0.25 s) where they differ. "
                        "A first line such as always: film still, rain is put before every prompt. "
                        "Indented lines continue a prompt, lines with # are comments. "
                        "Timeline JSON is read too. The timeline above edits the same text."
                    ),
                ),
            ],
            outputs=[
                ScheduleType.Output(
                    display_name="schedule", tooltip="The timed prompts, encoded. Goes into LongLive: Stream."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @host.plain_errors()
    def execute(cls, clip, prompts: str) -> io.NodeOutput:
        schedule = PromptSchedule.parse(prompts)
        for name in schedule.images:
            host.input_images().file(name)
        lines = [*word_warnings(clip, schedule), *times(schedule)]
        return io.NodeOutput(encoded(clip, schedule), ui=host.shown(cls.hidden.unique_id, lines))

    @classmethod
    def fingerprint_inputs(cls, prompts: str | None = None, **_) -> list[str]:
        """Changes with the images that cues name, so that ComfyUI runs the node again."""
        with suppress(ValueError):
            return [
                host.input_images().facts(name)["sha256"] for name in PromptSchedule.parse(prompts).images
            ]
        return []


def times(schedule: PromptSchedule) -> list[str]:
    """Which cues are late, and which are never seen, in blocks of 3 latent frames and frame-wise."""
    usual, frame_wise = (schedule.resolve(block) for block in (WindowConfig().block_latent_frames, 1))
    unseen = [warning.partition(NEVER)[0] for warning in frame_wise.warnings]
    seen = "except in a frame-wise model, "
    warnings = [seen * (warning.partition(NEVER)[0] not in unseen) + warning for warning in usual.warnings]
    return [*warnings, *usual.report(frame_wise, MOVED)]


def word_warnings(clip, schedule: PromptSchedule) -> list[str]:
    """Warnings about words of all prompts."""
    return [warning for prompt in schedule.prompts for warning in warnings_of(clip, prompt)]


def warnings_of(clip, prompt: str) -> list[str]:
    """Warnings about words that the encoder does not know (only Mini's says so), or that are cut off."""
    if hasattr(clip, "warnings"):
        return clip.warnings(prompt)
    tokens = clip.tokenize(prompt)
    return [too_long(prompt, TEXT_TOKENS)] if cut(tokens) != tokens else []


def encoded(clip, schedule: PromptSchedule) -> EncodedSchedule:
    """Encode every prompt of the schedule once; the result can encode more."""
    embeds: dict[str, Tensor] = {}
    for prompt in schedule.prompts:
        host.throw_if_interrupted()
        embeds[prompt] = encode(clip, prompt)
    about = (partial(encode, clip), partial(host.has_room_for, clip), partial(warnings_of, clip))
    return EncodedSchedule(schedule, embeds, *about)


@torch.inference_mode()
def encode(clip, prompt: str) -> Tensor:
    """The embedding [1, text tokens, text dim] of one prompt, on the CPU."""
    return clip.encode_from_tokens(cut(clip.tokenize(prompt))).cpu()


def cut(tokens: dict[str, list[list[tuple]]]) -> dict[str, list[list[tuple]]]:
    """ComfyUI's tokens, at most 512 with the end last, as the command line cuts them too."""
    return {
        name: [[*batch[: TEXT_TOKENS - 1], *batch[TEXT_TOKENS - 1 :][-1:]] for batch in batches]
        for name, batches in tokens.items()
    }
