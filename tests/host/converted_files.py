"""Run by a checkout's Python: checkpoint and LoRA, the converted file, and that file by the stock loader.

Arguments: checkout, pack, models folder, a precision, the file to write. Prints the largest difference of the
latents of each from those of checkpoint and LoRA. ATEN_CPU_CAPABILITY is avx2: we compute in fp32 as
ComfyUI does.
"""

import sys
from pathlib import Path

from pack_of import pack_of

checkout, pack, models, precision, out = sys.argv[1:]
ours = pack_of(checkout, pack)

import comfy.sd  # noqa: E402
import torch  # noqa: E402

host, shared, loaders = ours("nodes.host"), ours("nodes.shared_model"), ours("nodes.loaders")
checkpoints, sdpa = ours("longlive_core.weights.checkpoints"), ours("longlive_core.model.attention").sdpa
convert = ours("longlive_core.weights.convert").convert
LoraChoice = ours("longlive_core.weights.lora").LoraChoice
noises, rollouts = ours("longlive_core.rollout.noise"), ours("longlive_core.rollout.rollout")
BASE = Path(models) / "diffusion_models" / "longlive_base.pt"
LORAS = [LoraChoice(Path(models) / "loras" / "longlive_lora.pt")]
OUT = Path(out)


def latents(transformer, preset) -> torch.Tensor:
    """Three blocks, with another prompt at the last."""
    torch.manual_seed(0)
    switches = {at: rollouts.Switch(torch.randn(1, 512, 4096)) for at in (0, 2)}
    shape = (1, 16, preset.window.block_latent_frames, 4, 4)
    noise, sigmas = noises.SeededNoise(0, shape), noises.shifted_sigmas(preset.sigmas)
    blocks = rollouts.rollout(transformer, switches.get, noise, sigmas, preset.window, range(3))
    return torch.cat([block.latents for block in blocks], dim=2)


@torch.inference_mode()
def main() -> None:
    convert(BASE, LORAS, precision, OUT)
    right = checkpoints.load_transformer(BASE, LORAS, precision)
    expected = latents(right.transformer, right.preset)
    assert right.transformer.dtype == torch.float32 and expected.std() > 0.1
    found = checkpoints.load_transformer(OUT, (), precision)
    print("OURS", (latents(found.transformer, found.preset) - expected).abs().max().item())
    model = comfy.sd.load_diffusion_model(str(OUT))
    host.load([host.Managed(model, lambda: None)])
    stock = shared.shared_transformer(model, shared.shared_config(model), sdpa)
    preset = loaders.preset_of(model, "auto")
    print("STOCK", (latents(stock, preset) - expected).abs().max().item())


main()
