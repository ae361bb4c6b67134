"""Run by a checkout's Python: a stock MODEL in every quantised format of this ComfyUI -> flows that agree.

Arguments: checkout, pack, models folder, folder for the quantised files. Prints for each format the largest
difference from our own loader on the same weights dequantised, and how far a LoRA on it is from correlating.
"""

import json
import sys
from pathlib import Path

from pack_of import pack_of

checkout, pack, models, made = sys.argv[1:]
ours = pack_of(checkout, pack)

import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

try:
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
except ImportError:
    QUANT_ALGOS = {}  # 0.3.64 has none

host, shared = ours("nodes.host"), ours("nodes.shared_model")
checkpoints, sdpa = ours("longlive_core.weights.checkpoints"), ours("longlive_core.model.attention").sdpa
WindowConfig = ours("longlive_core.config").WindowConfig
Scene = ours("longlive_core.rollout.scene").Scene
LoraChoice = ours("longlive_core.weights.lora").LoraChoice
FILE, LORA = (
    f"{models}/diffusion_models/small_wan.safetensors",
    Path(f"{models}/loras/small_lora.safetensors"),
)
ROTATED = {"convrot_groupsize": 64}  # the usual 256 do not divide our small model
OPTIONS = {"convrot_w4a4": ROTATED, "asym_w4a8_int8": ROTATED}


def kinds() -> dict[str, tuple[str, dict]]:
    """Name -> (format, what its file says of it)."""
    found = {name: (name, OPTIONS.get(name, {})) for name in QUANT_ALGOS}
    if "int8_tensorwise" in found:
        found["int8_rotated"] = ("int8_tensorwise", {"convrot": True, **ROTATED})
    return found


def write(name: str, kind: str, options: dict) -> tuple[str, str]:
    """The small model quantised as ComfyUI's loader reads it, and the same weights dequantised: two files."""
    packed, plain = {}, {}
    for key, weight in load_file(FILE).items():
        packed[key] = plain[key] = weight
        if key.startswith("blocks.") and weight.ndim == 2:
            rows = {"per_channel": True} if "convrot" in options else {}  # a scale a row: it needs them
            layout = QUANT_ALGOS[kind]["comfy_tensor_layout"]
            small = QuantizedTensor.from_float(weight, layout, **options, **rows)
            plain[key] = small.dequantize().float().contiguous()
            note = torch.tensor(list(json.dumps({"format": kind, **options}).encode()), dtype=torch.uint8)
            del packed[key]
            packed |= small.state_dict(key) | {key.replace(".weight", ".comfy_quant"): note}
    files = f"{made}/{name}.safetensors", f"{made}/{name}_dequantised.safetensors"
    for path, state in zip(files, (packed, plain), strict=True):
        save_file({key: weight.contiguous() for key, weight in state.items()}, path)
    return files


def flow(transformer) -> torch.Tensor:
    """Two steps of a block."""
    torch.manual_seed(0)
    text = transformer.encode_text(torch.randn(1, 512, 4096))
    latents = torch.randn(1, 16, 3, 4, 4)
    scene = Scene(transformer, latents, WindowConfig(), 3)
    scene.open(0, 3)
    return torch.stack([scene.flow(latents, sigma, text) for sigma in (1.0, 0.9)])


def of_stock(model) -> torch.Tensor:
    host.load([host.Managed(model, lambda: None)])
    return flow(shared.shared_transformer(model, shared.shared_config(model), sdpa)).float()


def of_file(path: str, *loras) -> torch.Tensor:
    return flow(checkpoints.load_transformer(path, loras, "fp32").transformer)


def main() -> None:
    for name, (kind, options) in kinds().items():
        packed, plain = write(name, kind, options)
        model = comfy.sd.load_diffusion_model(packed)
        found, expected = of_stock(model), of_file(plain)
        print("STATE", name, f"{(found - expected).abs().max() / expected.abs().max():.2e}")
        patched = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(LORA)), 1.0, 0)[
            0
        ]
        both = torch.stack((of_stock(patched).flatten(), of_file(plain, LoraChoice(Path(LORA))).flatten()))
        print("STATE", f"{name}-lora", f"{1 - torch.corrcoef(both)[0, 1]:.2e}")


with torch.inference_mode():
    main()
