"""LongLiveLoadMini: the packaged model as a generator, a CLIP and a VAE."""

from comfy_api.latest import io

from ..longlive_core.config import MINI
from ..longlive_core.mini.loader import load_mini
from . import host
from .adapters import MiniClip
from .io_types import CATEGORY, ModelType, StreamModel
from .vaes import OwnVae

PRECISION = "fp32"


class LongLiveLoadMini(io.ComfyNode):
    """Everything LongLive Mini consists of; nothing to download."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveLoadMini",
            display_name="LongLive: Load Mini",
            category=CATEGORY,
            description=(
                "Loads LongLive Mini, the small model that comes with this pack. Nothing to download; "
                "real time on a CPU. It draws one shape on a plain background."
            ),
            inputs=[],
            outputs=[
                ModelType.Output(display_name="model", tooltip="The generator. Goes into LongLive: Stream."),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="The text encoder: a small dictionary. Also works with CLIP Text Encode.",
                ),
                io.Vae.Output(
                    display_name="vae",
                    tooltip="The autoencoder: 8x in space, 4x in time. Also works with VAE Decode.",
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        mini = load_mini()
        model = StreamModel(MINI, host.managed(mini.transformer), PRECISION)
        return io.NodeOutput(model, MiniClip(mini.words), OwnVae(mini.autoencoder, MINI))
