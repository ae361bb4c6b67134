"""What to make, checked: a request and what follows from it. No model is needed for it."""

import math
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from operator import itemgetter
from typing import Any, Protocol

from torch import Tensor

from .config import ABSOLUTE_LATENT_FRAMES, Policy, Preset, WindowConfig
from .control import Control
from .geometry import FRAME_RATE, SPACE_STRIDE, frames_of_seconds, latent_size, num_blocks, num_frames
from .resume import VideoState
from .rollout.noise import seed_at, shifted_sigmas
from .rollout.rollout import Block, Past
from .schedule.cue import MAX_SECONDS
from .schedule.schedule import PromptSchedule
from .source import Source

NO_IMAGES = "there is no folder for the images that cues name; give images=ImageFolder(folder)"
UNTIL_STOPPED = math.inf  # seconds of a video that a LiveControl stops, after MAX_SECONDS at the latest


class Images(Protocol):
    """The images that cues name, such as a footage.ImageFolder."""

    def frames(self, name: str, width: int, height: int) -> Tensor:
        """[1, height, width, 3] in [0, 1]; ValueError unless it is an image."""

    def facts(self, name: str) -> Mapping[str, Any]:
        """What the settings say of one that was read."""


@dataclass(frozen=True)
class Request:
    """What to make: `seconds` long or UNTIL_STOPPED; None stands for the preset's size and window.

    `positions`: auto (endless where a video outgrows absolute ones), absolute or endless. `past` are clean
    latents [1, C, T, H, W] of an earlier video, which this one continues; `cut_off` pixel frames at their end
    were not shown, so this one begins with them. A `state` instead of both is continued bit for bit. Times
    and `seconds` count from the end of the earlier video. With latents as `given` this video begins: they are
    its first 4T - 3 frames, and count. `steps` are the denoising steps of a block: 4, 3 or 2; None for those
    of the `state`, else all of the preset's. Fewer are faster; first blocks suffer, and with 2 also what a
    switch keeps.

    A `source` is transformed. It begins with the video; a `state` that was made with one goes on in it, and
    takes it from its beginning. 0 seconds are its length. `control` begins, and goes on, in the same way.
    `made_from` is for the settings: what files images and footage are from. `images` reads those that cues
    name.
    """

    schedule: PromptSchedule
    seconds: float
    seed: int = 0
    width: int | None = None
    height: int | None = None
    window: WindowConfig | None = None
    positions: str = "auto"
    past: Tensor | None = None
    cut_off: int = 0
    state: VideoState | None = None
    steps: int | None = None
    given: Tensor | None = None
    source: Source | None = None
    control: Control | None = None
    made_from: Mapping[str, Any] = field(default_factory=dict)
    images: "Images | None" = None


class Plan:
    """A checked request: how many frames and blocks, which window and sigmas, when each prompt begins."""

    def __init__(self, preset: Preset, request: Request):
        self.preset, self.request = preset, request
        state = request.state
        self.width = request.width or (state.width if state else preset.width)
        self.height = request.height or (state.height if state else preset.height)
        steps = state.steps if state and request.steps is None else request.steps
        self.sigmas = shifted_sigmas(preset.sigmas if steps is None else preset.sigmas.fewer(steps))
        latent_height, latent_width = latent_size(self.width, self.height)
        window = request.window or (state.rollout.window if state else preset.window)
        self.is_until_stopped = request.seconds == UNTIL_STOPPED
        if self.is_until_stopped and window.window_latent_frames is None:
            raise ValueError(
                "full attention (a window of 0) needs a video of known length; "
                "choose a window such as 12, or give the seconds"
            )
        block = self.block_latent_frames = window.block_latent_frames
        self.block_shape = (1, preset.model.latent_channels, block, latent_height, latent_width)
        self.notes: list[str] = []
        self.latents = self._latents()
        self.first_block, self.cut_off = self._earlier()
        past_frames = self.past_frames = num_frames(self.first_block * block) - self.cut_off
        had = state and state.source_start
        self.source_start = past_frames if had is None else had
        self.control = request.control if request.control and request.control.scale else None
        had = state and state.control_start
        self.control_start = past_frames if had is None else had
        self.seconds = MAX_SECONDS if self.is_until_stopped else self._asked(past_frames)
        self.frames = checked_frames(self.seconds)
        self.blocks = range(self.first_block, num_blocks(past_frames + self.frames, block))
        if not self.blocks:
            before = "previous video" if request.given is None else "given part"
            raise ValueError(
                f"the {before} already contains these {self.frames} frames; make the "
                f"{'video' if request.given is not None else 'continuation'} longer than "
                f"{self.cut_off / FRAME_RATE:g} s"
            )
        self.window = replace(window, endless=self._is_endless(window))
        if state:
            state.check(preset, self.width, self.height, self.window)
            self._check_control(state)
        self.timeline = request.schedule.resolve(block, self.seconds, self.first_block, self.cut_off)
        self.cue_seeds = self._cue_seeds()
        self._check_cut()
        for name in self.timeline.images:
            self.image(name)

    def image(self, name: str) -> Tensor:
        """Frames [1, H, W, 3] of an image that a cue names; ValueError if it is missing or cannot be read."""
        if self.request.images is None:
            raise ValueError(NO_IMAGES)
        return self.request.images.frames(name, self.width, self.height)

    def _latents(self) -> Tensor | None:
        """The latents that this video begins with or goes on from; a note if their beginning is left out."""
        request, block = self.request, self.block_latent_frames
        if request.given is not None and (request.past is not None or request.state):
            raise ValueError("a video begins with given frames or continues another; leave one of them out")
        latents = request.past if request.given is None else request.given
        if latents is None or request.state:
            return None
        check_latents(latents, self.block_shape)
        beyond = latents.shape[2] % block if self.preset.commits_past else 0
        if beyond and (request.given is not None or latents.shape[2] < block):
            raise ValueError(
                f"{self.preset.name} begins with whole blocks of {block} latent frames, not with "
                f"{latents.shape[2]}; encode {num_frames(block)} frames, such as one image so many times"
            )
        if beyond:
            seconds = num_frames(latents.shape[2] - beyond) / FRAME_RATE
            self.notes.append(f"the last {seconds:.1f} s of the earlier video are what this one goes on from")
        return latents[:, :, beyond:]

    def _earlier(self) -> tuple[int, int]:
        """The first block to be made, and how many frames come before its own in this video.

        Less than 0: so many of its frames are of the earlier video, and not shown again.
        """
        request, block = self.request, self.block_latent_frames
        if request.state:
            return request.state.num_blocks, len(request.state.cut_off)
        if self.latents is None:
            return 0, 0
        had, first_block = self.latents.shape[2], self.latents.shape[2] // block
        if request.given is not None:
            return first_block, num_frames(first_block * block)
        most = num_frames(had) - num_frames((had - 1) // block * block) - 1
        if not 0 <= request.cut_off <= most:
            raise ValueError(
                f"{request.cut_off} frames cannot be cut off from a last block; choose 0 to {most}"
            )
        return first_block, request.cut_off - (num_frames(had) - num_frames(first_block * block))

    def _asked(self, past_frames: int) -> float:
        """The seconds of the request; 0 is what is left of the source."""
        source = self.request.source
        if self.request.seconds or not source:
            return self.request.seconds
        if source.num_frames is None:
            raise ValueError("the length of the source is not known; give the seconds of the video")
        return (source.num_frames + self.source_start - past_frames) / FRAME_RATE

    def with_seeds(self, seeds: tuple[tuple[int, int], ...]) -> "Plan":
        """The same plan with noise of these seeds too: (block, seed); they count before those of cues."""
        plan = copy(self)
        plan.cue_seeds = tuple(sorted((*self._cue_seeds(), *seeds), key=itemgetter(0)))
        return plan

    def _check_control(self, state: VideoState) -> None:
        """Raise ValueError where the earlier video had control and this one has none, or the other way."""
        had = state.control_start is not None
        if had != bool(self.control):
            remedy = "give the same from its beginning" if had else "leave it out"
            raise ValueError(
                f"the earlier video was made with{'' if had else 'out'} control; {remedy}, or continue from "
                "the latents alone"
            )

    def _check_cut(self) -> None:
        """Raise ValueError where the first prompt would drop frames that are given."""
        is_cut = self.timeline.segments[0].cue.policy is Policy.CUT
        if is_cut and (self.num_given or self.request.given is not None):
            raise ValueError(
                "the first prompt cuts, which drops the given frames; give it another policy, or leave "
                "the frames out"
            )

    def _cue_seeds(self) -> tuple[tuple[int, int], ...]:
        """(block, seed) of cues, from which blocks on noise is of another seed than the video's.

        That of an earlier video's cue goes on, unless the video is given another seed.
        """
        state, own = self.request.state, self.timeline.seeds
        goes_on = state and state.cue_seed is not None and state.seed == self.request.seed
        earlier = ((self.first_block, state.cue_seed),) if goes_on else ()
        return (*earlier, *((self.first_block + block, seed) for block, seed in own))

    @property
    def past(self) -> Past | None:
        """What the rollout continues.

        Latents that fit the window were made block by block, and are committed so; all that the preset says.
        """
        if self.request.state:
            return self.request.state.rollout
        if self.latents is None:
            return None
        most = self.window.window_latent_frames or math.inf
        fits = self.request.given is None and self.first_block * self.block_latent_frames <= most
        is_committed = fits or self.preset.commits_past
        return self.latents.split(self.block_latent_frames, dim=2) if is_committed else self.latents

    @property
    def num_given(self) -> int:
        """Latent frames that the first block is made around."""
        return 0 if self.latents is None else self.latents.shape[2] % self.block_latent_frames

    @property
    def whole_blocks(self) -> Tensor | None:
        """The latents of blocks before the first that is made."""
        count = self.first_block * self.block_latent_frames
        return None if self.latents is None or not count else self.latents[:, :, :count]

    def given_blocks(self) -> Iterator[Block]:
        """The whole blocks that the video begins with."""
        if self.request.given is not None and self.first_block:
            for index, latents in enumerate(self.whole_blocks.split(self.block_latent_frames, dim=2)):
                yield Block(index, latents, opens_scene=not index)

    def _is_endless(self, window: WindowConfig) -> bool:
        """What `positions` comes to for a video of this length."""
        is_long = self.blocks.stop * window.block_latent_frames > ABSOLUTE_LATENT_FRAMES
        auto = self.request.state.rollout.window.endless if self.request.state else window.endless or is_long
        choices = {"auto": auto, "absolute": False, "endless": True}
        if self.request.positions not in choices:
            allowed = ", ".join(choices)
            raise ValueError(f"unknown positions {self.request.positions!r}; choose one of {allowed}")
        return choices[self.request.positions]

    def made_with(self) -> dict[str, int]:
        """Size, seed and steps, which a continuation must know."""
        facts = {"seed": self.request.seed, "width": self.width, "height": self.height}
        return facts | {"steps": len(self.sigmas)}

    def facts(self, block: int) -> dict[str, int | None]:
        """The same for a VideoState after a block, with where source and control began, and a cue's seed."""
        starts = {"source_start": self.source_start if self.request.source else None}
        starts |= {"control_start": self.control_start if self.control else None}
        return self.made_with() | starts | {"cue_seed": seed_at(self.cue_seeds, block)}

    def settings(self) -> dict[str, Any]:
        """What a video must carry to be made again with the same model."""
        return {
            "model": self.preset.name,
            "schedule": self.request.schedule.to_text(),
            "seconds": 0 if self.is_until_stopped else self.seconds,
            **self.made_with(),
            "window": asdict(self.window),
            "past_latent_frames": self._past_latent_frames(),
            **self._begins_with(),
        }

    def _past_latent_frames(self) -> int:
        if self.request.given is not None:
            return 0
        return self.first_block * self.block_latent_frames if self.latents is None else self.latents.shape[2]

    def _begins_with(self) -> dict[str, Any]:
        """Settings of a video that was not made of text alone."""
        given, source = self.request.given, self.request.source
        facts = {} if given is None else {"given_latent_frames": given.shape[2]}
        facts |= {"strength": source.strength} if source else {}
        facts |= {"control": self.control.settings()} if self.control else {}
        made_from = dict(self.request.made_from)
        if named := self.timeline.images:
            made_from["images"] = {name: self.request.images.facts(name) for name in named}
        return facts | ({"made_from": made_from} if made_from else {})


def checked_frames(seconds: float) -> int:
    """Pixel frames of a video of that length; ValueError if there can be no such video."""
    if not math.isfinite(seconds) or seconds <= 0 or seconds > MAX_SECONDS:
        raise ValueError(
            f"a video of {seconds} seconds is not possible; choose more than 0 and at most {MAX_SECONDS:g}"
        )
    return max(1, frames_of_seconds(seconds))


def check_latents(latents: Tensor, block_shape: tuple[int, ...]) -> None:
    """Raise ValueError unless these are latents that a video with blocks of that shape can go on from."""
    batch, channels, _, *size = block_shape
    if latents.ndim != 5 or latents.shape[:2] != (batch, channels) or not latents.shape[2]:
        raise ValueError(
            f"latents of shape {list(latents.shape)} cannot be continued: expected [{batch}, {channels}, "
            "latent frames, height, width]; use the latents of one video of this model"
        )
    if list(latents.shape[3:]) != size:
        (had, asked) = (
            [side * SPACE_STRIDE for side in (width, height)] for height, width in (latents.shape[3:], size)
        )
        sides = " and ".join(map(str, dict.fromkeys(had)))
        raise ValueError(
            f"the earlier video is {had[0]}x{had[1]}, this one {asked[0]}x{asked[1]}; "
            f"set width and height to {sides}"
        )
