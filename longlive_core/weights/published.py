"""Published weights: repositories, their licences, and the model folder of each file."""

from typing import NamedTuple

LONGLIVE = "Efficient-Large-Model/LongLive-1.3B"
SGF, SGF_PLUS = "JunhaoZhuang/Self_Gradient_Forcing", "ZihanSu/Self_Gradient_Forcing_Plus"
CAUSAL_FORCING = "zhuhz22/Causal-Forcing"
WAN = "Wan-AI/Wan2.1-T2V-1.3B"
COMFYUI = "Comfy-Org/Wan_2.1_ComfyUI_repackaged"
_WAN_LICENCE = "Wan2.1's models and VAE and the UMT5 text encoder are under Apache-2.0."
LICENCES = {  # of every repository in DOWNLOADS, as its project says; `download` adds what the hub says
    SGF_PLUS: "SGF+: its project (https://github.com/Zihan-Su/Self_Gradient_Forcing_Plus) says Apache-2.0.",
    SGF: "SGF: its project (https://github.com/zhuang2002/Self_Gradient_Forcing) says Apache-2.0.",
    CAUSAL_FORCING: "Causal-Forcing: its project (https://github.com/thu-ml/Causal-Forcing) says Apache-2.0.",
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
_COMFYUI_PARTS = (
    RemoteFile(COMFYUI, "split_files/vae/wan_2.1_vae.safetensors", "vae", "wan_2.1_vae.safetensors"),
    RemoteFile(COMFYUI, f"split_files/text_encoders/{_FP8_ENCODER}", "text_encoders", _FP8_ENCODER),
)


VACE = "vace-1.3b"  # control for any of the others
_VACE = "wan2.1_vace_1.3B_fp16.safetensors"


def _single(repo: str, path: str, name: str) -> tuple[RemoteFile]:
    return (RemoteFile(repo, path, "diffusion_models", f"{name}.pt"),)


_SINGLE = {  # transformers that need no LoRA, by the names of their presets
    "sgf-plus-chunkwise": _single(SGF_PLUS, "chunkwise/model.pt", "sgf_plus_chunkwise"),
    "sgf-plus-framewise": _single(SGF_PLUS, "framewise/model.pt", "sgf_plus_framewise"),
    "sgf-chunkwise": _single(SGF, "chunkwise/ar/model.pt", "sgf_chunkwise"),
    "sgf-framewise": _single(SGF, "framewise/ar/model.pt", "sgf_framewise"),
    "causal-forcing-2step": _single(
        CAUSAL_FORCING, "causal-forcing++/framewise-2step.pt", "causal_forcing_framewise_2step"
    ),
    "causal-forcing-1step": _single(
        CAUSAL_FORCING, "causal-forcing++/framewise-1step.pt", "causal_forcing_framewise_1step"
    ),
}
DOWNLOADS = {
    "sgf-plus": (*_SINGLE["sgf-plus-chunkwise"], *_COMFYUI_PARTS),
    "sgf-plus-transformer": _SINGLE["sgf-plus-chunkwise"],
    **{name: (*files, *_COMFYUI_PARTS) for name, files in _SINGLE.items()},
    "longlive-1.3b-transformer": _TRANSFORMER,
    "longlive-1.3b": (*_TRANSFORMER, *_COMFYUI_PARTS),
    "longlive-1.3b-original": (
        *_TRANSFORMER,
        RemoteFile(WAN, "Wan2.1_VAE.pth", "vae", "Wan2.1_VAE.pth"),
        *(RemoteFile(WAN, path, "text_encoders", path) for path in (_ENCODER, *_TOKENIZER)),
    ),
    VACE: (RemoteFile(COMFYUI, f"split_files/diffusion_models/{_VACE}", "diffusion_models", _VACE),),
}
