"""Run by a checkout's Python: a stock MODEL in the states that ComfyUI may leave it in -> flows that agree.

Arguments: checkout, pack, models folder. Prints the largest difference of each state from our own loader.
"""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from pack_of import pack_of

checkout, pack, models = sys.argv[1:]
ours = pack_of(checkout, pack)

import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402

host, shared = ours("nodes.host"), ours("nodes.shared_model")
checkpoints, sdpa = ours("longlive_core.weights.checkpoints"), ours("longlive_core.model.attention").sdpa
io_types, stream, vaes = ours("nodes.io_types"), ours("nodes.stream"), ours("nodes.vaes")
config_room, pipeline = ours("longlive_core.config"), ours("longlive_core.pipeline")
LONGLIVE_1_3B, WindowConfig = config_room.LONGLIVE_1_3B, config_room.WindowConfig
PromptSchedule = ours("longlive_core.schedule.schedule").PromptSchedule
Scene = ours("longlive_core.rollout.scene").Scene
LoraChoice = ours("longlive_core.weights.lora").LoraChoice
CPU = torch.device("cpu")
FILE, PACKED = (f"{models}/diffusion_models/small_wan{kind}.safetensors" for kind in ("", "_fp8"))
PAIR = f"{models}/diffusion_models/small_sgf_plus.safetensors"
LORA = f"{models}/loras/small_lora.safetensors"


def flow(transformer) -> torch.Tensor:
    """Two steps of a block."""
    torch.manual_seed(0)
    text = transformer.encode_text(torch.randn(1, 512, 4096))
    latents = torch.randn(1, 16, 3, 4, 4)
    scene = Scene(transformer, latents, WindowConfig(), 3)
    scene.open(0, 3)
    return torch.stack([scene.flow(latents, sigma, text) for sigma in (1.0, 0.9)])


def of_stock(patcher) -> torch.Tensor:
    return flow(shared.shared_transformer(patcher, shared.shared_config(patcher), sdpa))


def of_file(path: str, *loras) -> torch.Tensor:
    return flow(checkpoints.load_transformer(path, loras, "fp32").transformer)


def check_room(config) -> None:
    """ComfyUI is asked for all keys and values of full attention on a GPU, and for nothing on a CPU."""
    preset = replace(LONGLIVE_1_3B, model=config)
    model = io_types.StreamModel(preset, host.Managed(None, lambda: None), "bf16")
    vae = vaes.StreamVae(host.Managed(None, lambda: None), preset, "tiny")
    window = WindowConfig(window_latent_frames=None)
    plan = pipeline.Plan(preset, pipeline.Request(PromptSchedule.single("x"), 3.0, window=window))
    parts = stream.Parts(model, SimpleNamespace(text_dim=config.text_dim), vae)
    assert parts.run_bytes(plan) == 0
    host.device = lambda: torch.device("cuda")
    tokens = plan.blocks.stop * window.block_latent_frames * 60 * 104 // 4
    keys_and_values = 2 * config.num_layers * tokens * config.dim * torch.bfloat16.itemsize
    assert keys_and_values < parts.run_bytes(plan) < keys_and_values + 4 * 2**30


def check_two_sets() -> None:
    """One model to ComfyUI, counted, unloaded and loaded again whole; its own loader loses a set."""
    loaded = checkpoints.load_transformer(PAIR, [LoraChoice(Path(LORA))], "fp8", host.offload_device())
    model, preset = loaded.transformer, loaded.preset
    assert preset.has_two_sets
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    part = host.managed(model)
    assert part.patcher.model_size() >= sum(tensor.nbytes for tensor in before.values())
    for _ in range(2):
        assert host.load([part]) == [model]
        assert part.patcher.loaded_size() == part.patcher.model_size()
        comfy.model_management.unload_all_models()
    after = model.state_dict()
    assert all(torch.equal(after[name].float(), before[name].float()) for name in before)
    stock = comfy.sd.load_diffusion_model(PAIR)
    for family in ("auto", preset.name)[host.file_of(stock) is None :]:
        try:
            ours("nodes.loaders").preset_of(stock, family)
        except ValueError as error:
            assert "load the file with LongLive: Load Model" in str(error)
        else:
            raise AssertionError(f"half of SGF+ would run as {family}")
    print("STATE two-sets 0")


def report(state: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    print("STATE", state, f"{(found - expected).abs().max() / expected.abs().max():.2e}")


@torch.inference_mode()
def main() -> None:
    check_two_sets()
    plain, changed = of_file(FILE), of_file(FILE, LoraChoice(Path(LORA)))
    report("a-lora-changes-it", changed, plain)

    model = comfy.sd.load_diffusion_model(FILE)
    host.load([host.Managed(model, lambda: None)])
    report("loaded", of_stock(model), plain)
    state = comfy.utils.load_torch_file(LORA)
    patched = comfy.sd.load_lora_for_models(model, None, state, 1.0, 0)[0]
    host.load([host.Managed(patched, lambda: None)])
    report("patched", of_stock(patched), changed)
    host.load([host.Managed(model, lambda: None)])
    report("unpatched", of_stock(model), plain)
    model.detach()

    patched.load(CPU, lowvram_model_memory=1)
    assert patched.model.lowvram_patch_counter > 0
    report("low-vram", of_stock(patched), changed)
    patched.detach()

    packed = comfy.sd.load_diffusion_model(PACKED)
    host.load([host.Managed(packed, lambda: None)])
    report("fp8", of_stock(packed), of_file(PACKED))

    for_a_gpu = checkpoints.load_transformer(FILE, (), "fp8").transformer
    checkpoints.settle(for_a_gpu, "fp8", torch.device("cuda"))
    assert for_a_gpu.dtype == torch.bfloat16
    report("fp8-for-a-gpu", flow(for_a_gpu).float(), plain)
    check_room(for_a_gpu.config)

    whole = host.managed(checkpoints.load_transformer(FILE, (), "fp32").transformer)
    whole.patcher.partially_load(CPU, 1)
    report("whole", torch.tensor(whole.patcher.loaded_size()), torch.tensor(whole.patcher.model_size()))


main()
