"""Nodes that `benchmarks.comfyui` puts into the ComfyUI that it starts: what random files cannot be."""

import zlib
from pathlib import Path
from typing import Any

import torch

TOKENS, WIDTH, FILLED = 512, 4096, 64  # of UMT5; rows that a prompt of a few sentences fills


class RandomClip:
    """A CLIP that gives every text an embedding of its own, and takes no memory."""

    def tokenize(self, text: str, **_: Any) -> dict[str, list[list[tuple[str, float]]]]:
        return {"random": [[(text, 1.0)]]}

    def encode_from_tokens(self, tokens: dict, **_: Any) -> torch.Tensor:
        """[1, 512, 4096], rows of zeros behind the first ones."""
        text = tokens["random"][0][0][0]
        embeds = torch.zeros(1, TOKENS, WIDTH)
        embeds[:, :FILLED].normal_(generator=torch.Generator().manual_seed(zlib.crc32(text.encode())))
        return embeds


class RandomText:
    """In the place of Load CLIP, whose file nobody would write for a measurement."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "make", "benchmarks"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {}}

    def make(self) -> tuple[RandomClip]:
        return (RandomClip(),)


class WriteVae:
    """Writes a random Wan VAE to models/vae, with ComfyUI's own names."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "write", "benchmarks", True

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"name": ("STRING", {}), "dim": ("INT", {})}}

    def write(self, name: str, dim: int) -> dict:
        import comfy.ldm.wan.vae
        import folder_paths
        from safetensors.torch import save_file

        layout = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
        vae = comfy.ldm.wan.vae.WanVAE(dim=dim, z_dim=16, attn_scales=[], dropout=0.0, **layout)
        state = {name: torch.randn(weight.shape) * 0.02 for name, weight in vae.state_dict().items()}
        save_file(state, Path(folder_paths.get_folder_paths("vae")[0], name))
        return {}


NODE_CLASS_MAPPINGS = {"BenchRandomText": RandomText, "BenchWriteVae": WriteVae}
