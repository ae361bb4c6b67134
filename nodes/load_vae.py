"""LongLiveLoadVAE: a Wan VAE or a tiny decoder from the host's folders -> a VAE that decodes as a stream."""

from comfy_api.latest import io

from ..longlive_core.config import LONGLIVE_1_3B
from ..longlive_core.weights.vae_files import load_vae
from . import host
from .io_types import CATEGORY
from .vaes import OwnVae

FOLDERS = ("vae", "vae_approx")


class LongLiveLoadVAE(io.ComfyNode):
    """For the files that the stock loader does not know, and for decoding in tiles."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveLoadVAE",
            display_name="LongLive: Load VAE",
            category=CATEGORY,
            description=(
                "Loads a tiny decoder of Wan latents (taew2_1: fast, little memory) or a Wan 2.1 VAE, also "
                "in tiles. For the whole pictures of a Wan VAE the stock Load VAE does as well."
            ),
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=host.file_names(*FOLDERS),
                    tooltip="A file in models/vae or models/vae_approx: wan_2.1_vae, taew2_1, lighttaew2_1.",
                ),
                io.Boolean.Input(
                    "tiled",
                    default=False,
                    tooltip="Decode in blended tiles of 256 pixels: slower, with a fraction of the memory.",
                ),
            ],
            outputs=[
                io.Vae.Output(
                    display_name="vae",
                    tooltip="Goes into LongLive: Stream or Decode. Also works with VAE Decode.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, vae_name: str, **_) -> str:
        """Changes with the file; what comes over a link is None here."""
        return "" if vae_name is None else host.file_stamp(vae_name, *FOLDERS)

    @classmethod
    def execute(cls, vae_name: str, tiled: bool) -> io.NodeOutput:
        path = host.file_path(vae_name, *FOLDERS)
        autoencoder = load_vae(path, host.vae_dtype(), host.vae_offload_device())
        return io.NodeOutput(OwnVae(autoencoder, LONGLIVE_1_3B, tiled))
