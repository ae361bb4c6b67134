"""A pack for tests only: small stand-ins for large files, and nodes that show what others hide."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import comfy.cli_args
import comfy.ldm.wan.vae
import comfy.model_management
import comfy.sd
import comfy.text_encoders.t5
import comfy.text_encoders.wan
import folder_paths
import safetensors.torch
import sentencepiece
import torch
from comfy import sd1_clip

from . import counts  # noqa: F401 (adds its route)

TEXT = [f"a {word} {other} drifts over" for word in ("red", "blue", "green") for other in ("star", "circle")]
CONFIG = {
    "d_ff": 32,
    "d_kv": 16,
    "d_model": 4096,
    "num_heads": 2,
    "num_layers": 1,
    "vocab_size": 64,
    "model_type": "umt5",
    "is_gated_act": True,
    "dense_act_fn": "gelu_pytorch_tanh",
}


def fill(module: torch.nn.Module, seed: int, scale: float = 0.5) -> None:
    """Random weights of a size that keeps activations finite."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.state_dict().items():
        noise = torch.randn(weight.shape, generator=generator)
        fan_in = max(1, weight[0].numel()) if weight.ndim > 1 else 1
        is_gain = weight.ndim == 1 or name.endswith(("gamma", "norm.weight"))
        value = 1 + 0.1 * noise if is_gain and "bias" not in name else noise * scale / fan_in**0.5
        weight.copy_(value.to(weight.dtype))


class SmallT5(sd1_clip.SDClipModel):
    """UMT5 as the host builds it, one narrow layer deep."""

    def __init__(self, device="cpu", dtype=None, model_options={}, **_):  # noqa: B006 (the host's signature)
        super().__init__(
            device=device,
            layer="last",
            textmodel_json_config=CONFIG,
            dtype=dtype,
            special_tokens={"end": 1, "pad": 0},
            model_class=comfy.text_encoders.t5.T5,
            enable_attention_masks=True,
            zero_out_masked=True,
            model_options=model_options,
        )


class SmallEncoder(sd1_clip.SD1ClipModel):
    """What the host's `wan.te` is, on SmallT5."""

    def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006
        super().__init__(
            device=device, dtype=dtype, model_options=model_options, name="umt5xxl", clip_model=SmallT5
        )


class Target:
    """What comfy.sd.CLIP asks for."""

    params: dict = {}
    clip = SmallEncoder
    tokenizer = comfy.text_encoders.wan.WanT5Tokenizer


class SmallClip:
    """The host's own CLIP object of type wan, 4096 wide."""

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        vocabulary = folder_paths.get_temp_directory()
        Path(vocabulary).mkdir(parents=True, exist_ok=True)
        prefix = str(Path(vocabulary, "small"))
        ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXT), model_prefix=prefix, vocab_size=40, hard_vocab_limit=False, **ids
        )
        pieces = torch.frombuffer(bytearray(Path(prefix + ".model").read_bytes()), dtype=torch.uint8)
        clip = comfy.sd.CLIP(Target, tokenizer_data={"spiece_model": pieces})
        fill(clip.cond_stage_model, 0)
        return (clip,)


class MakeVae:
    """Writes a random Wan VAE in the host's own layout to models/vae."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING", {}), "dim": ("INT", {})}}

    def make(self, name, dim):
        layout = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
        vae = comfy.ldm.wan.vae.WanVAE(dim=dim, z_dim=16, attn_scales=[], dropout=0.0, **layout)
        fill(vae, 1, scale=1.0)
        path = Path(folder_paths.get_folder_paths("vae")[0], name)
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(vae.state_dict(), path)
        return {}


class Dump:
    """Writes tensors as they are to output/NAME.pt."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "dump"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        kinds = ("IMAGE", "LATENT", "CONDITIONING", "LONGLIVE_SCHEDULE")
        return {
            "required": {"name": ("STRING", {})},
            "optional": {kind.lower(): (kind, {}) for kind in kinds},
        }

    def dump(self, name, image=None, latent=None, conditioning=None, longlive_schedule=None):
        found = image if latent is None else latent["samples"]
        if conditioning is not None:
            found = conditioning[0][0]
        if longlive_schedule is not None:
            found = {p: longlive_schedule.embeds_of(p) for p in longlive_schedule.embeds}
        torch.save(found, Path(folder_paths.get_output_directory(), f"{name}.pt"))
        return {}


class Inspect:
    """Writes to output/NAME.json whether the weights of what we run are the host's, and counted by it."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "inspect"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"name": ("STRING", {}), "model": ("LONGLIVE_MODEL", {})},
            "optional": {"host_model": ("MODEL", {}), "after": ("LATENT", {})},
        }

    def inspect(self, name, model, host_model=None, after=None):
        management = comfy.model_management
        patcher = model.transformer.patcher
        counted = any(loaded.model is patcher for loaded in management.current_loaded_models)
        ours = model.transformer.bind()
        seen = {"counted": counted, "size": patcher.model_size(), "loaded": patcher.loaded_size()}
        seen["weights"] = sum(weight.nbytes for weight in ours.state_dict().values())
        if host_model is not None:
            theirs = {w.data_ptr() for w in host_model.model.diffusion_model.parameters()}
            seen["shared"] = sum(w.nbytes for w in ours.parameters() if w.data_ptr() in theirs)
        management.unload_all_models()
        seen["freed"] = not any(loaded.model is patcher for loaded in management.current_loaded_models)
        Path(folder_paths.get_output_directory(), f"{name}.json").write_text(json.dumps(seen))
        return {}


class DisableMetadata:
    """Turns `--disable-metadata` on or off in a running server."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "disable"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"is_disabled": ("BOOLEAN", {})}}

    @classmethod
    def IS_CHANGED(cls, is_disabled):
        return float("nan")

    def disable(self, is_disabled):
        comfy.cli_args.args.disable_metadata = is_disabled
        return {}


class BreakMemory:
    """A LONGLIVE_MODEL that runs out of memory after so many passes."""

    RETURN_TYPES = ("LONGLIVE_MODEL",)
    FUNCTION = "break_it"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("LONGLIVE_MODEL", {}), "passes": ("INT", {"default": 0, "max": 999})}}

    def break_it(self, model, passes):
        def bind():
            transformer, left = copy.copy(model.transformer.bind()), iter(range(passes))
            forward = transformer.forward

            def fail(*args):
                if next(left, None) is None:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
                return forward(*args)

            transformer.forward = fail
            return transformer

        return (replace(model, transformer=replace(model.transformer, bind=bind)),)


class NoImages:
    """An IMAGE batch of none."""

    INPUT_TYPES = classmethod(lambda _: {"required": {}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "make", "test"

    def make(self):
        return (torch.zeros(0, 64, 64, 3),)


NODE_CLASS_MAPPINGS = {
    "TestNoImages": NoImages,
    "TestSmallClip": SmallClip,
    "TestMakeVae": MakeVae,
    "TestDump": Dump,
    "TestInspect": Inspect,
    "TestDisableMetadata": DisableMetadata,
    "TestBreakMemory": BreakMemory,
}
