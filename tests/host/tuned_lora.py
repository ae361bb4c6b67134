"""Run by a checkout's Python: a LoRA that `longlive_training convert` wrote, by ComfyUI's own loader.

Arguments: checkout, checkpoint, LoRA. Prints how many weights it changes, how many tensors it has, and the
largest error as a share of the largest change. Keys that find no place are reported on stderr.
"""

import sys

checkout, base, lora = sys.argv[1:]
sys.path.insert(0, checkout)

from comfy.cli_args import args  # noqa: E402

args.cpu = True  # before comfy looks for a GPU

import comfy.sd  # noqa: E402
import torch  # noqa: E402
from comfy.model_management import load_models_gpu  # noqa: E402
from comfy.utils import load_torch_file  # noqa: E402


def weights(model) -> dict[str, torch.Tensor]:
    load_models_gpu([model])
    return {name: weight.float() for name, weight in model.model.diffusion_model.state_dict().items()}


@torch.inference_mode()
def main() -> None:
    tensors = load_torch_file(lora)
    plain = {name: weight.clone() for name, weight in weights(comfy.sd.load_diffusion_model(base)).items()}
    tuned = weights(
        comfy.sd.load_lora_for_models(comfy.sd.load_diffusion_model(base), None, tensors, 1.0, 0.0)[0]
    )
    changed = {name: tuned[name] - weight for name, weight in plain.items() if not weight.equal(tuned[name])}
    errors, largest = [], max(float(change.abs().max()) for change in changed.values())
    for name, change in changed.items():
        stem = "diffusion_model." + name.removesuffix("weight")
        expected = tensors[stem + "lora_B.weight"] @ tensors[stem + "lora_A.weight"]
        errors.append(float((change - expected).abs().max()))
    print("CHANGED", len(changed))
    print("TENSORS", len(tensors))
    print("ERROR", max(errors) / largest)


main()
