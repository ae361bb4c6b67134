"""LongLiveDecode: latents of a stream -> images, block by block."""

from collections.abc import Iterable, Iterator

from comfy_api.v0_0_2 import io
from torch import Tensor

from . import host
from .io_types import CATEGORY, SCENES_KEY, found_by
from .vaes import decoded, gathered, pieces, stream_vae


class LongLiveDecode(io.ComfyNode):
    """The frames of a stream again, as an IMAGE batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveDecode",
            display_name="LongLive: Decode",
            category=CATEGORY,
            **found_by("vae decode, decode video, latent to video, wan"),
            description=(
                "Decodes the latents of a stream to images, block by block: the very frames of its video, "
                "scene cuts included. For long videos use the video itself: all images are held in memory."
            ),
            inputs=[
                io.Latent.Input("latent", tooltip="The LATENT of LongLive: Stream."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model: a Wan 2.1 VAE, or Mini's."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    tooltip="All frames of whole blocks, so up to 11 more than the video has.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, latent: dict, vae) -> io.NodeOutput:
        samples, scenes = latent["samples"], latent.get(SCENES_KEY, ())
        progress = host.Progress(cls.hidden.unique_id, len(pieces(samples.shape[2], scenes)))
        parts = watched(decoded(stream_vae(vae), samples, scenes), progress)
        return io.NodeOutput(gathered(samples, parts).flatten(0, 1))


def watched(parts: Iterable[Tensor], progress: host.Progress) -> Iterator[Tensor]:
    """The same parts, each a step of progress; raises when the user presses stop."""
    for part in parts:
        progress.step()
        yield part
