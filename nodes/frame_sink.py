"""LongLiveFrameSink: how far a block looks back, and what a new prompt does to the KV cache."""

from dataclasses import replace

from comfy_api.v0_0_2 import io

from ..longlive_core.config import SWITCH_POLICIES, Policy, WindowConfig
from ..longlive_core.model.attention import AUTO
from .io_types import CATEGORY, POSITIONS, WindowChoice, WindowType, found_by

DEFAULT = WindowConfig()
MAX_WINDOW, MAX_SINK = 1024, 21
FULL, SMALL = "full", "fp8"

KVCacheInput = io.Combo.Input(
    "kv_cache",
    options=[FULL, SMALL],
    default=FULL,
    optional=True,
    tooltip=(
        "Precision of the KV cache, which holds what a block looks back at. full: as computed. fp8: half the "
        "memory, nearly the same video."
    ),
)


class LongLiveFrameSink(io.ComfyNode):
    """Window, sink, switch policy and positions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveFrameSink",
            display_name="LongLive: Frame Sink",
            category=CATEGORY,
            **found_by("sliding window, context window, attention sink, kv cache, long video, endless video"),
            description=(
                "How far the video looks back: each block sees the first latent frames (the sink), the "
                "newest ones and itself. Leave this node out for the model's own settings."
            ),
            inputs=[
                io.Int.Input(
                    "window",
                    default=DEFAULT.window_latent_frames,
                    min=0,
                    max=MAX_WINDOW,
                    tooltip=(
                        "Latent frames that a block sees: sink, newest ones, its own 3. A latent frame is "
                        "a quarter of a second. 0: everything since the start (memory grows with the video)."
                    ),
                ),
                io.Int.Input(
                    "sink",
                    default=DEFAULT.sink_latent_frames,
                    min=0,
                    max=MAX_SINK,
                    tooltip="First latent frames, kept for the whole video: they anchor it. 0: no sink.",
                ),
                io.Combo.Input(
                    "on_switch",
                    options=[AUTO, *(policy.value for policy in SWITCH_POLICIES)],
                    default=AUTO,
                    tooltip=(
                        "What cues that name no policy do to the KV cache. auto: as the model was trained, "
                        "keep for SGF and SGF+, else recache. recache: the window is computed "
                        "again under the new prompt. refresh: the sink too. keep: nothing is. cut: it is "
                        "emptied, a new scene begins."
                    ),
                ),
                io.Combo.Input(
                    "positions",
                    options=list(POSITIONS),
                    default=POSITIONS[0],
                    tooltip=(
                        "How time is counted. absolute holds the framing better, up to 256 s. endless keeps "
                        "the sink at a bounded distance, without limit. auto: endless for videos over 256 s."
                    ),
                ),
                KVCacheInput,
            ],
            outputs=[
                WindowType.Output(
                    display_name="window", tooltip="Goes into the window input of LongLive: Stream."
                )
            ],
        )

    @classmethod
    def execute(
        cls, window: int, sink: int, on_switch: str, positions: str, kv_cache: str = FULL
    ) -> io.NodeOutput:
        config = replace(
            DEFAULT,
            window_latent_frames=window or None,
            sink_latent_frames=sink,
            has_small_cache=kv_cache == SMALL,
        )
        policy = None if on_switch == AUTO else Policy(on_switch)
        return io.NodeOutput(WindowChoice(config, policy, positions))
