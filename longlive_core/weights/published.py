"""Published weights: repositories, their licences, and the model folder of each file."""

from typing import NamedTuple

LONGLIVE = "Efficient-Large-Model/LongLive-1.3B"
WAN = "Wan-AI/Wan2.1-T2V-1.3B"
COMFYUI = "Comfy-Org/Wan_2.1_ComfyUI_repackaged"
_WAN_LICENCE = "Wan2.1's VAE and the UMT5 text encoder are under Apache-2.0."
LICENCES = {  # of every repository in DOWNLOADS
    LONGLIVE: f"""\
LongLive-1.3B has two statements of its licence, and they differ:
- its model card (https://huggingface.co/{LONGLIVE}) says CC-BY-NC-SA 4.0: no commercial use,
  https://creativecommons.org/licenses/by-nc-sa/4.0/
- its repository (https://github.com/NVlabs/LongLive) announced Apache-2.0 on 2025-11-01,
  https://www.apache.org/licenses/LICENSE-2.0""",
    WAN: _WAN_LICENCE,
    COMFYUI: _WAN_LICENCE,
}


class RemoteFile(NamedTuple):
    """A file of a repository; in a models folder it is `kind`/`name`."""

    repo: str
    path: str
    kind: str
    name: str


_TRANSFORMER = (
    RemoteFile(LONGLIVE, "models/longlive_base.pt", "diffusion_models", "longlive_base.pt"),
    RemoteFile(LONGLIVE, "models/lora.pt", "loras", "longlive_lora.pt"),
)
_FP8_ENCODER = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
_ENCODER = "models_t5_umt5-xxl-enc-bf16.pth"
_TOKENIZER = tuple(
    f"google/umt5-xxl/{name}"
    for name in ("special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer_config.json")
)
DOWNLOADS = {
    "longlive-1.3b-transformer": _TRANSFORMER,
    "longlive-1.3b": (
        *_TRANSFORMER,
        RemoteFile(COMFYUI, "split_files/vae/wan_2.1_vae.safetensors", "vae", "wan_2.1_vae.safetensors"),
        RemoteFile(COMFYUI, f"split_files/text_encoders/{_FP8_ENCODER}", "text_encoders", _FP8_ENCODER),
    ),
    "longlive-1.3b-original": (
        *_TRANSFORMER,
        RemoteFile(WAN, "Wan2.1_VAE.pth", "vae", "Wan2.1_VAE.pth"),
        *(RemoteFile(WAN, path, "text_encoders", path) for path in (_ENCODER, *_TOKENIZER)),
    ),
}
