"""Every layout of a checkpoint loads to the same tensors; every bad file ends in one clear error."""

import builtins
import gc
import io
import json
import os
import pickle
import random
import re
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from longlive_core.config import RELATIVES, ModelConfig
from longlive_core.model.causal_wan import CausalWan
from longlive_core.weights import files
from longlive_core.weights.checkpoints import NO_LORA, load_transformer
from longlive_core.weights.lora import LoraChoice
from longlive_core.weights.names import foreign_name, from_wan, our_name
from longlive_core.weights.quantize import compute_dtype, to_8_bits

CONFIG = ModelConfig(
    dim=128, ffn_dim=64, num_heads=1, num_layers=2, latent_channels=16, text_dim=32, freq_dim=32
)
RANK = 4


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Random weights under our names."""
    torch.manual_seed(0)
    return {name: torch.randn_like(tensor) for name, tensor in CausalWan(CONFIG).state_dict().items()}


def spelled(state: dict[str, Tensor], spelling: str = "wan", prefix: str = "") -> dict[str, Tensor]:
    """The weights as a foreign file has them."""
    theirs = {prefix + foreign_name(name, spelling): tensor.clone() for name, tensor in state.items()}
    patch = prefix + "patch_embedding.weight"
    theirs[patch] = theirs[patch].view(CONFIG.dim, CONFIG.latent_channels, 1, 2, 2)
    return theirs


def linears(theirs: dict[str, Tensor]) -> list[str]:
    """The matrices of the layers: what ComfyUI's repacks store in fp8."""
    return [name for name, t in theirs.items() if "blocks." in name and t.ndim == 2]


def write_reference(folder: Path, state: dict[str, Tensor]) -> Path:
    theirs = spelled(state, prefix="model.")
    torch.save(
        {"generator": theirs, "critic": {"junk": torch.zeros(3)}, "step": 7}, folder / "longlive_base.pt"
    )
    return folder / "longlive_base.pt"


def write_ema(folder: Path, state: dict[str, Tensor]) -> Path:
    theirs = spelled(state, prefix="model._fsdp_wrapped_module.")
    theirs = {
        name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): t for name, t in theirs.items()
    }
    torch.save({"generator_ema": theirs}, folder / "self_forcing_dmd.pt")
    return folder / "self_forcing_dmd.pt"


def write_legacy(folder: Path, state: dict[str, Tensor]) -> Path:
    torch.save(spelled(state), folder / "old.pth", _use_new_zipfile_serialization=False)
    return folder / "old.pth"


def write_compiled(folder: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"model": spelled(state, prefix="_orig_mod.")}, folder / "compiled.pt")
    return folder / "compiled.pt"


def write_parallel(folder: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"state_dict": spelled(state, prefix="module.model.")}, folder / "ddp.pt")
    return folder / "ddp.pt"


def write_plain(folder: Path, state: dict[str, Tensor]) -> Path:
    save_file(spelled(state), folder / "wan.safetensors")
    return folder / "wan.safetensors"


def write_comfy(folder: Path, state: dict[str, Tensor]) -> Path:
    save_file(spelled(state, prefix="model.diffusion_model."), folder / "comfy.safetensors")
    return folder / "comfy.safetensors"


def write_diffusers(folder: Path, state: dict[str, Tensor]) -> Path:
    save_file(spelled(state, "diffusers"), folder / "diffusion_pytorch_model.safetensors")
    return folder / "diffusion_pytorch_model.safetensors"


def write_sharded(folder: Path, state: dict[str, Tensor]) -> Path:
    theirs = spelled(state, "diffusers")
    names, weight_map = sorted(theirs), {}
    for shard in range(3):
        file = f"model-{shard + 1:05}-of-00003.safetensors"
        save_file({name: theirs[name] for name in names[shard::3]}, folder / file)
        weight_map |= dict.fromkeys(names[shard::3], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


WRITERS = [f for name, f in sorted(globals().items()) if name.startswith("write_")]


@pytest.mark.parametrize("write", WRITERS, ids=lambda f: f.__name__)
def test_every_layout_loads_to_the_same_tensors_bit_for_bit(write, tmp_path: Path, state) -> None:
    loaded = load_transformer(write(tmp_path, state), precision="fp32").transformer
    assert loaded.config == CONFIG
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_smaller_repacks_are_the_same_numbers_in_fewer_bits(dtype, tmp_path: Path, state) -> None:
    theirs = spelled(state, prefix="model.diffusion_model.")
    stored = set(linears(theirs)) if dtype == torch.float8_e4m3fn else set(theirs)
    save_file(
        {n: t.to(dtype) if n in stored else t for n, t in theirs.items()}, tmp_path / "small.safetensors"
    )
    loaded = load_transformer(tmp_path / "small.safetensors", precision="fp32").transformer.state_dict()
    for name in stored:
        assert torch.equal(loaded[our_name(name)], state[our_name(name)].to(dtype).float())


@pytest.mark.parametrize("precision", ["fp8", "fp8-fast", "int8"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_fp8_without_scales_loads_in_8_bits(dtype, precision: str, tmp_path: Path, state) -> None:
    theirs = spelled(state)
    small = {n: t.to(dtype) if n in linears(theirs) else t for n, t in theirs.items()}
    save_file(small, tmp_path / "small.safetensors")
    loaded = load_transformer(tmp_path / "small.safetensors", precision=precision).transformer
    for name in linears(theirs):
        module = loaded.get_submodule(our_name(name).removesuffix(".weight"))
        right = small[name].float()
        assert (module.weight.float() * module.scale[:, None] - right).norm() < 0.05 * right.norm(), name


def scaled_fp8(theirs: dict[str, Tensor], is_new: bool) -> dict[str, Tensor]:
    """ComfyUI's scaled fp8, one scale a matrix: `scale_weight`, later `weight_scale` and `comfy_quant`."""
    packed = dict(theirs)
    for name in linears(theirs):
        module = name.removesuffix(".weight")
        scale = theirs[name].abs().max() / 448
        packed[name] = (theirs[name] / scale).to(torch.float8_e4m3fn)
        packed[f"{module}.{'weight_scale' if is_new else 'scale_weight'}"] = scale.clone()
        if is_new:
            note = json.dumps({"format": "float8_e4m3fn"}).encode()
            packed[f"{module}.comfy_quant"] = torch.tensor(list(note), dtype=torch.uint8)
    if not is_new:
        packed["model.diffusion_model.scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    return packed


@pytest.mark.parametrize("is_new", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp8"])
def test_scaled_fp8_keeps_its_scales(is_new: bool, precision: str, tmp_path: Path, state) -> None:
    theirs = spelled(state, prefix="model.diffusion_model.")
    packed = scaled_fp8(theirs, is_new)
    save_file(packed, tmp_path / "fp8.safetensors")
    loaded = load_transformer(tmp_path / "fp8.safetensors", precision=precision).transformer
    for name in linears(theirs):
        module = loaded.get_submodule(our_name(name).removesuffix(".weight"))
        scale = theirs[name].abs().max() / 448
        if precision == "fp8":
            assert torch.equal(module.weight.view(torch.uint8), packed[name].view(torch.uint8))
            assert torch.allclose(module.scale, scale.expand(len(packed[name])))
        else:
            assert torch.equal(module.weight, packed[name].float() * scale)


def test_a_scale_that_is_not_finite_is_refused(tmp_path: Path, state) -> None:
    packed = scaled_fp8(spelled(state), is_new=True)
    next(tensor for name, tensor in packed.items() if name.endswith(".weight_scale")).fill_(float("nan"))
    save_file(packed, tmp_path / "fp8.safetensors")
    assert "is not finite" in refusal(tmp_path / "fp8.safetensors")


def noted(theirs: dict[str, Tensor], note: object, dtype: torch.dtype, is_row: bool) -> dict[str, Tensor]:
    """The layers' matrices in 8 bits as ComfyUI's converters store them: weight, scale and a note in JSON."""
    packed, largest = dict(theirs), 127 if dtype == torch.int8 else 448
    for name in linears(theirs):
        module, weight = name.removesuffix(".weight"), theirs[name]
        scale = (weight.abs().amax(1, keepdim=True) if is_row else weight.abs().max()) / largest
        small = weight / scale
        packed[name] = (small.round() if dtype == torch.int8 else small).to(dtype)
        packed[f"{module}.weight_scale"] = scale.clone()
        packed[f"{module}.comfy_quant"] = torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)
    return packed


INT8 = {"format": "int8_tensorwise", "convrot": False, "orig_dtype": "torch.bfloat16"}


@pytest.mark.parametrize("is_row", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "fp8"])
def test_plain_int8_of_comfyui_loads(is_row: bool, precision: str, tmp_path: Path, state) -> None:
    theirs = spelled(state, prefix="model.diffusion_model.")
    packed = noted(theirs, INT8, torch.int8, is_row)
    save_file(packed, tmp_path / "int8.safetensors")
    loaded = load_transformer(tmp_path / "int8.safetensors", precision=precision).transformer
    for name in linears(theirs):
        module = loaded.get_submodule(our_name(name).removesuffix(".weight"))
        right = packed[name].float() * packed[f"{name}_scale"]
        weight = module.weight.float() * (1 if module.scale is None else module.scale[:, None])
        if precision in ("fp32", "int8"):
            assert torch.equal(weight, right), name
        assert (weight - right).norm() < 0.04 * right.norm(), name


def test_the_formats_in_the_metadata_count_too(tmp_path: Path, state) -> None:
    """ComfyUI's other way to say them, for all layers at once."""
    packed = noted(spelled(state), INT8, torch.int8, is_row=True)
    named = [name.removesuffix(".comfy_quant") for name in packed if name.endswith(".comfy_quant")]
    plain = {name: tensor for name, tensor in packed.items() if not name.endswith(".comfy_quant")}
    for format in ("int8_tensorwise", "mxfp8"):
        layers = {name: {"format": format} for name in named}
        save_file(
            plain, tmp_path / "x.safetensors", {"_quantization_metadata": json.dumps({"layers": layers})}
        )
        if format == "mxfp8":
            assert "20 weights are stored as mxfp8" in refusal(tmp_path / "x.safetensors")
        else:
            load_transformer(tmp_path / "x.safetensors", precision="int8")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_scale_counts_whatever_its_weight_is_stored_in(precision: str, tmp_path: Path, state) -> None:
    theirs, name = spelled(state), "blocks.0.ffn.0.weight"
    weight = theirs[name].to(torch.bfloat16)
    save_file({**theirs, name: weight, f"{name}_scale": torch.tensor(4.0)}, tmp_path / "x.safetensors")
    loaded = load_transformer(tmp_path / "x.safetensors", precision=precision).transformer.layers[0].ffn[0]
    assert torch.equal(loaded.weight.float(), weight.float() * 4)


UNREADABLE = {  # what a converter can write -> what the sentence names
    "nvfp4": ({"format": "nvfp4"}, "20 weights are stored as nvfp4"),
    "mxfp8": ({"format": "mxfp8"}, "stored as mxfp8"),
    "rotated": (
        INT8 | {"convrot": True, "convrot_groupsize": 256},
        "int8_tensorwise with convrot, convrot_gr",
    ),
    "of another dtype": ({"format": "float8_e4m3fn"}, r"stored as float8_e4m3fn"),
    "no format": ({}, "stored as an unnamed format"),
    "a list": ([1], "stored as an unnamed format"),
    "hostile": ({"format": ["\x1b[1m", {}]}, r"\x1b[1m"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_format_that_is_not_read_is_named(case: str, tmp_path: Path, state) -> None:
    note, phrase = UNREADABLE[case]
    save_file(noted(spelled(state), note, torch.int8, is_row=True), tmp_path / "odd.safetensors")
    text = refusal(tmp_path / "odd.safetensors")
    assert phrase in text and "LongLive: Use Model" in text and "\x1b" not in text


def test_packed_fours_are_refused_by_name(tmp_path: Path, state) -> None:
    """NVFP4: two numbers in a byte, a scale for each 16 of them, and one for all."""
    packed = noted(spelled(state), {"format": "nvfp4"}, torch.int8, is_row=False)
    for name in linears(spelled(state)):
        packed[name] = packed[name][:, ::2].contiguous().view(torch.uint8)
        packed[f"{name}_scale"] = torch.ones(len(packed[name]), packed[name].shape[1] // 8).to(
            torch.float8_e4m3fn
        )
        packed[f"{name}_scale_2"] = torch.ones(())
    save_file(packed, tmp_path / "nvfp4.safetensors")
    assert "20 weights are stored as nvfp4" in refusal(tmp_path / "nvfp4.safetensors")


def test_int8_that_nothing_explains_is_refused(tmp_path: Path, state) -> None:
    packed = noted(spelled(state), INT8, torch.int8, is_row=True)
    plain = {name: tensor for name, tensor in packed.items() if not name.endswith(".comfy_quant")}
    save_file(plain, tmp_path / "odd.safetensors")
    assert "20 weights are stored as int8 of an unnamed format" in refusal(tmp_path / "odd.safetensors")


SCALES = {  # of a matrix [128, 128]
    "of blocks": torch.ones(8, 16),  # as many numbers as rows
    "of columns": torch.ones(1, 128),
    "of half the rows": torch.ones(64, 1),
    "none": None,
}


@pytest.mark.parametrize("case", SCALES)
def test_another_layout_of_scales_is_refused(case: str, tmp_path: Path, state) -> None:
    packed, name = noted(spelled(state), INT8, torch.int8, is_row=True), "blocks.0.self_attn.q.weight_scale"
    del packed[name]
    packed |= {name: SCALES[case]} if SCALES[case] is not None else {}
    save_file(packed, tmp_path / "odd.safetensors")
    assert "1 scales are not one number for a weight" in refusal(tmp_path / "odd.safetensors")


def test_fp8_storage_computes_nearly_the_same(tmp_path: Path, state) -> None:
    """A row's own scale: the error of a linear stays near e4m3's 3 bits of mantissa."""
    file = write_plain(tmp_path, state)
    exact = load_transformer(file, precision="fp32").transformer.layers[0].ffn[0]
    small = load_transformer(file, precision="fp8").transformer.layers[0].ffn[0]
    x = torch.randn(64, CONFIG.dim)
    ours = small(x.to(compute_dtype("fp8", torch.device("cpu")))).float()
    assert small.weight.element_size() == 1
    assert (ours - exact(x)).norm() / exact(x).norm() < 0.04


def test_fp8_of_zeros_is_zero() -> None:
    weight, scale = to_8_bits(torch.zeros(2, 3))
    assert not weight.float().any() and torch.isfinite(scale).all()


def lora_state(state: dict[str, Tensor], naming: str) -> dict[str, Tensor]:
    """One LoRA on all linears of the layers, alpha = 2, in one of the namings in use."""
    torch.manual_seed(1)
    found = {}
    for name, weight in state.items():
        if not (name.startswith("layers.") and weight.ndim == 2 and name.endswith(".weight")):
            continue
        module = name.removesuffix(".weight")
        down, up = torch.randn(RANK, weight.shape[1]), torch.randn(weight.shape[0], RANK)
        wan, diffusers = (foreign_name(name, s).removesuffix(".weight") for s in ("wan", "diffusers"))
        stem, a, b = {
            "peft": (f"base_model.model.{wan}", "lora_A", "lora_B"),
            "peft-default": (f"base_model.model.{wan}", "lora_A.default", "lora_B.default"),
            "comfy": (f"diffusion_model.{wan}", "lora_down", "lora_up"),
            "kohya": (f"lora_unet_{wan.replace('.', '_')}", "lora_down", "lora_up"),
            "diffusers": (f"transformer.{diffusers}", "lora_A", "lora_B"),
            "diffusers-old": (f"transformer.{diffusers}", "lora.down", "lora.up"),
            "kohya-diffusers": (f"lora_transformer_{diffusers.replace('.', '_')}", "lora_down", "lora_up"),
        }[naming]
        found |= {f"{stem}.{a}.weight": down, f"{stem}.{b}.weight": up}
        if naming in ("comfy", "kohya", "kohya-diffusers"):
            found[f"{stem}.alpha"] = torch.tensor(2.0)
        assert module
    return found


NAMINGS = ["peft", "peft-default", "comfy", "kohya", "diffusers", "diffusers-old", "kohya-diffusers"]


@pytest.mark.parametrize("naming", NAMINGS)
def test_one_lora_in_every_naming_merges_to_the_same_weights(naming: str, tmp_path: Path, state) -> None:
    base = write_plain(tmp_path, state)
    save_file(lora_state(state, naming), tmp_path / "lora.safetensors")
    choice = LoraChoice(tmp_path / "lora.safetensors", strength=0.5, alpha=2.0)
    loaded = load_transformer(base, [choice], precision="fp32")
    reference = lora_state(state, "peft")
    for name, tensor in loaded.transformer.state_dict().items():
        expected = state[name]
        stem = f"base_model.model.{foreign_name(name, 'wan').removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in reference:
            up, down = reference[f"{stem}.lora_B.weight"], reference[f"{stem}.lora_A.weight"]
            expected = expected + 0.5 * (2.0 / RANK) * (up @ down)
        assert torch.allclose(tensor, expected, atol=1e-6), name
    assert "change 20 weights" in loaded.notes[0]


def test_loras_add_up_and_differences_count(tmp_path: Path, state) -> None:
    base = write_plain(tmp_path, state)
    save_file(
        {
            "diffusion_model.blocks.0.norm3.diff": torch.ones(CONFIG.dim),
            "diffusion_model.blocks.0.ffn.0.diff_b": torch.ones(CONFIG.ffn_dim),
            "diffusion_model.blocks.7.ffn.0.diff_b": torch.ones(CONFIG.ffn_dim),
            "diffusion_model.blocks.0.ffn.0.dora_scale": torch.ones(1),
        },
        tmp_path / "diff.safetensors",
    )
    once, twice = (
        [LoraChoice(tmp_path / "diff.safetensors", strength) for strength in strengths]
        for strengths in ([3.0], [1.0, 2.0])
    )
    for loras in (once, twice):
        loaded = load_transformer(base, loras, precision="fp32")
        assert torch.allclose(loaded.transformer.layers[0].norm3.weight, state["layers.0.norm3.weight"] + 3)
        assert torch.allclose(loaded.transformer.layers[0].ffn[0].bias, state["layers.0.ffn.0.bias"] + 3)
    assert "1 are for another model" in loaded.notes[0] and "1 are not supported" in loaded.notes[0]


def merged_with(content: dict[str, Tensor], base: Path, strength: float = 1.0) -> tuple[CausalWan, str]:
    """A model with a LoRA of these tensors, and the line on it."""
    save_file(content, base.parent / "lora.safetensors")
    choice = LoraChoice(base.parent / "lora.safetensors", strength)
    loaded = load_transformer(base, [choice], precision="fp32")
    return loaded.transformer, loaded.notes[0]


Q = "blocks.0.self_attn.q"


def pair(stem: str = f"diffusion_model.{Q}", dim: int = CONFIG.dim) -> dict[str, Tensor]:
    """Two matrices that change one weight."""
    torch.manual_seed(2)
    return {
        f"{stem}.lora_down.weight": torch.randn(RANK, dim),
        f"{stem}.lora_up.weight": torch.randn(dim, RANK),
    }


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("layout", ["rows", "columns", "peft"])
def test_a_dora_is_applied_by_its_definition(layout: str, strength: float, tmp_path: Path, state) -> None:
    """scale * (W + BA) / the norm of its rows; the plain LoRA of the same pairs is something else."""
    pairs = lora_state(state, "peft" if layout == "peft" else "comfy")
    content, lengths, axis = dict(pairs), {}, 0 if layout == "columns" else 1
    for name in (name for name in pairs if ".lora_down." in name or ".lora_A." in name):
        stem = name.rpartition(".lora")[0]
        ours = our_name(stem) + ".weight"
        size = state[ours].norm(dim=axis, keepdim=True)
        lengths[ours] = size * (1 + torch.rand_like(size))
        key, shape = ("lora_magnitude_vector", (-1,)) if layout == "peft" else ("dora_scale", size.shape)
        content[f"{stem}.{key}"] = lengths[ours].reshape(shape).clone()
    model, note = merged_with(content, write_plain(tmp_path, state), strength)
    for ours, length in lengths.items():
        wan = foreign_name(ours, "wan").removesuffix(".weight")
        stem, a, b = (
            ("base_model.model", "lora_A", "lora_B")
            if layout == "peft"
            else ("diffusion_model", "lora_down", "lora_up")
        )
        up, down = (pairs[f"{stem}.{wan}.{part}.weight"] for part in (b, a))
        full = state[ours] + (1.0 if layout == "peft" else 2.0 / RANK) * (up @ down)
        right = length * full / full.norm(dim=axis, keepdim=True)
        expected = state[ours] + strength * (right - state[ours])
        assert torch.allclose(model.get_parameter(ours), expected, atol=1e-5), ours
    assert f"{len(content)} tensors change 20 weights" in note and "not supported" not in note


@pytest.mark.parametrize(
    "kind", ["lora_mid.weight", "reshape_weight", "lora_up.bias", "scalar", "rescale.weight"]
)
def test_what_changes_the_meaning_of_a_pair_is_refused(kind: str, tmp_path: Path, state) -> None:
    name = f"diffusion_model.{Q}.{kind}"
    with pytest.raises(ValueError, match=rf"has {name}, which changes what .*LongLive: Use Model"):
        merged_with(pair() | {name: torch.ones(RANK)}, write_plain(tmp_path, state))


MISFITS = {
    "a dora_scale of another size": pair() | {f"diffusion_model.{Q}.dora_scale": torch.ones(7, 1)},
    "a dora_scale for each block": pair() | {f"diffusion_model.{Q}.dora_scale": torch.ones(8, 16)},
    "a dora_scale and a difference": {
        f"diffusion_model.{Q}.dora_scale": torch.ones(128, 1),
        f"diffusion_model.{Q}.diff": torch.ones(128, 128),
    },
    "a pair and a difference of another size": pair() | {f"diffusion_model.{Q}.diff": torch.ones(3, 3)},
    "half a pair": {f"diffusion_model.{Q}.lora_up.weight": torch.ones(128, RANK)},
    "no rank": {
        f"diffusion_model.{Q}.lora_up.weight": torch.ones(128, 0),
        f"diffusion_model.{Q}.lora_down.weight": torch.ones(0, 128),
        f"diffusion_model.{Q}.diff": torch.ones(128, 128),
    },
}


@pytest.mark.parametrize("case", MISFITS)
def test_parts_that_do_not_fit_together_are_refused(case: str, tmp_path: Path, state) -> None:
    with pytest.raises(
        ValueError, match=r"changes layers\.0\.self_attn\.q\.weight by tensors that do not fit"
    ):
        merged_with(MISFITS[case], write_plain(tmp_path, state))


def test_a_pair_and_a_difference_on_one_weight_both_count(tmp_path: Path, state) -> None:
    both = pair() | {f"diffusion_model.{Q}.diff": torch.ones(128, 128)}
    model, note = merged_with(both, write_plain(tmp_path, state), 0.5)
    up, down = both[f"diffusion_model.{Q}.lora_up.weight"], both[f"diffusion_model.{Q}.lora_down.weight"]
    expected = state["layers.0.self_attn.q.weight"] + 0.5 * (up @ down) + 0.5
    assert torch.allclose(model.layers[0].self_attn.q.weight, expected, atol=1e-5)
    assert "3 tensors change 1 weights" in note


def test_a_tensor_that_comes_twice_is_not_counted_as_used(tmp_path: Path, state) -> None:
    twice = pair() | {f"lora_unet_{Q.replace('.', '_')}.lora_up.weight": torch.ones(128, RANK)}
    assert "1 are not supported" in merged_with(twice, write_plain(tmp_path, state))[1]


@pytest.mark.parametrize("stem", ["diffusion_model.{}", "lora_unet_{}", "{}"])
def test_differences_of_modulations_count(stem: str, tmp_path: Path, state) -> None:
    """`diff_m`, as extracted and distilled LoRAs of Wan have it."""
    names = ["blocks.0", "blocks.1", "head"]
    spell = (lambda name: name.replace(".", "_")) if "unet" in stem else str
    content = {
        f"{stem.format(spell(name))}.diff_m": torch.ones(1, 2 if name == "head" else 6, 128) for name in names
    }
    model, note = merged_with(content, write_plain(tmp_path, state), 0.5)
    for ours in ("layers.0.modulation", "layers.1.modulation", "head.modulation"):
        assert torch.equal(model.get_parameter(ours), state[ours] + 0.5), ours
    assert "3 tensors change 3 weights" in note and "not supported" not in note


def test_loras_of_the_patch_convolution_count(tmp_path: Path, state) -> None:
    stem, ours = "diffusion_model.patch_embedding", "patch_embedding.weight"
    down, up = torch.randn(RANK, 16, 1, 2, 2), torch.randn(128, RANK, 1, 1, 1)
    base = write_plain(tmp_path, state)
    model, _ = merged_with({f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}, base)
    expected = state[ours] + up.flatten(1) @ down.flatten(1)
    assert torch.allclose(model.get_parameter(ours), expected, atol=1e-5)
    model, _ = merged_with({f"{stem}.diff": torch.ones(128, 16, 1, 2, 2)}, base)
    assert torch.equal(model.get_parameter(ours), state[ours] + 1)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("LoKr", ("lokr_w1", "lokr_w2")),
        ("LoKr", ("lokr_w1_a", "lokr_w1_b", "lokr_w2")),
        ("LoHa", ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")),
        ("OFT", ("oft_blocks",)),
        ("BOFT", ("boft_blocks",)),
        ("GLoRA", ("a1.weight", "a2.weight", "b1.weight", "b2.weight")),
    ],
)
@pytest.mark.parametrize("has_pairs", [False, True])
def test_other_adapters_are_named_and_refused(kind, parts, has_pairs, tmp_path: Path, state) -> None:
    content = {f"diffusion_model.{Q}.{part}": torch.ones(4, 4) for part in parts}
    content |= {f"diffusion_model.{Q}.alpha": torch.tensor(1.0)}
    content |= pair("diffusion_model.blocks.0.self_attn.k") if has_pairs else {}
    with pytest.raises(
        ValueError, match=rf"is a {kind}, which .*Load LoRA \(Model only\).*LongLive: Use Model"
    ):
        merged_with(content, write_plain(tmp_path, state))


def test_the_references_own_files_load_through_the_public_loader(golden_dir: Path) -> None:
    base, *others = (
        golden_dir / name
        for name in ("tiny_longlive_base.pt", "dit_weights.safetensors", "dit_inputs.safetensors")
    )
    if absent := [file.name for file in (base, *others) if not file.exists()]:
        pytest.skip(f"{golden_dir} has no {', '.join(absent)}")
    with safe_open(others[1], "pt") as inputs:
        heads = json.loads(inputs.metadata()["set_model"])["num_heads"]
    plain = load_transformer(base, precision="fp32", num_heads=heads)
    assert NO_LORA in plain.notes
    same = from_wan(load_file(others[0]))
    assert all(torch.equal(tensor, same[name]) for name, tensor in plain.transformer.state_dict().items())
    twins = {file: file.with_suffix(".pt") for file in golden_dir.glob("tiny_lora*.safetensors")}
    for twin in (file for file, pickled in twins.items() if pickled.exists()):
        with safe_open(twin, "pt") as file:
            alpha = float(file.metadata()["alpha"])
        first, second = (
            load_transformer(
                base, [LoraChoice(twin.with_suffix(suffix), 1.0, alpha)], "fp32", num_heads=heads
            ).transformer.state_dict()
            for suffix in (".pt", ".safetensors")
        )
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert not torch.equal(first["layers.0.ffn.0.weight"], same["layers.0.ffn.0.weight"])


def test_a_relative_is_known_by_its_name_or_metadata(tmp_path: Path, state) -> None:
    cases = {
        "longlive_base.safetensors": ({}, "longlive-1.3b"),
        "Self_Forcing_DMD.safetensors": ({}, "self-forcing"),
        "reward-forcing.safetensors": ({}, "reward-forcing"),
        "ar_model.safetensors": (
            {"config": '{"transformer": {"causal_ar": true}}'},
            "causal-forcing-framewise",
        ),
        "mine.safetensors": ({"preset": "memflow"}, "memflow"),
        "odd.safetensors": ({"config": "no json"}, "longlive-1.3b"),
        "deep.safetensors": ({"config": "[" * 100_000}, "longlive-1.3b"),
        "long.safetensors": ({"config": "9" * 5000}, "longlive-1.3b"),
    }
    for file, (metadata, preset) in cases.items():
        save_file(spelled(state), tmp_path / file, metadata)
        loaded = load_transformer(tmp_path / file, precision="fp32")
        assert loaded.preset.name == preset
        assert loaded.preset.window == RELATIVES[preset].window and loaded.preset.model == CONFIG
    chosen = load_transformer(tmp_path / "longlive_base.safetensors", precision="fp32", preset="memflow")
    assert chosen.preset.name == "memflow" and not chosen.notes


def test_progress_ends_at_the_whole(tmp_path: Path, state) -> None:
    seen: list[tuple[int, int]] = []
    load_transformer(write_plain(tmp_path, state), on_progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 5 and seen == sorted(seen) and seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("write", WRITERS, ids=lambda f: f.__name__)
def test_every_file_is_opened_once(write, tmp_path: Path, state, monkeypatch) -> None:
    """However many weights are read from it; a pickle once more for its check sums."""
    checkpoint, lora = write(tmp_path, state), tmp_path / "lora.pt"
    torch.save({"generator_lora": lora_state(state, "peft")}, lora)
    suffixes = [file.suffix for file in tmp_path.iterdir()]
    num_pickles = suffixes.count(".pt") + suffixes.count(".pth")
    num_zips = sum(map(zipfile.is_zipfile, tmp_path.iterdir()))
    calls = Counter()

    def count(place: object, name: str) -> None:
        original = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *a, **k: (calls.update([name]), original(*a, **k))[1])

    for place, name in (
        *((torch, "load"), (files, "safe_open"), (zipfile.ZipFile, "testzip")),
        *((builtins, "open"), (io, "open")),
    ):
        count(place, name)
    load_transformer(checkpoint, [LoraChoice(lora)])
    monkeypatch.undo()
    assert calls["load"] == num_pickles and calls["testzip"] == num_zips
    assert calls["safe_open"] == suffixes.count(".safetensors")
    assert calls["open"] == 2 * num_pickles + suffixes.count(".json")


def test_the_reason_of_an_error_is_its_first_line_that_is_no_heading() -> None:
    error = RuntimeError("backend='inductor' raised:\nCompilerError: no cl\n\nmore")
    assert files.first_line(error) == "CompilerError: no cl"
    assert files.first_line(RuntimeError("")) == "RuntimeError"
    assert len(files.first_line(ValueError("x" * 999))) == 200


class RunsCode:
    """A pickle that would leave a file behind if it were ever trusted."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def refusal(path: Path, **options) -> str:
    """The one sentence with which a file is refused."""
    with pytest.raises(ValueError) as caught:
        load_transformer(path, **options)
    text = str(caught.value)
    assert "\n" not in text and path.name in text
    return text


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save({"generator": RunsCode(trap)}, tmp_path / "evil.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(RunsCode(trap)))
    assert "could run code" in refusal(tmp_path / "evil.pt")
    refusal(tmp_path / "raw.pt")
    assert not trap.exists()


class Raw:
    """A pickle's own bytes in place of an object."""

    def __init__(self, found: object):
        self.found = found

    def __reduce__(self):
        return self.found


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("is_zip", [True, False])
def test_no_refusal_advises_to_load_without_safety(protocol: int, is_zip: bool, tmp_path: Path) -> None:
    """Nor carries torch's codes for a terminal, nor a warning."""
    for number, found in enumerate(((os.system, ("true",)), (eval, ("1",)), (Path, ("x",)))):
        file = tmp_path / f"evil{number}.pt"
        if is_zip:
            torch.save({"generator": Raw(found)}, file, pickle_protocol=protocol)
        else:
            file.write_bytes(pickle.dumps({"generator": Raw(found)}, protocol))
        text = refusal(file)
        assert text.isprintable() and "weights_only" not in text
        assert "holds more than tensors" in text or ("other text" in text and protocol == 0 and not is_zip)
        if 0 < protocol < 4 and number < 2:
            assert f"could run code ({os.name}.system)" in text or (number == 1 and "eval)" in text)


def test_a_program_of_torch_is_refused_without_advice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name, content in (
            ("data.pkl", b"\x80\x02}."),
            ("constants.pkl", b"\x80\x02)."),
            ("version", b"3"),
        ):
            archive.writestr(f"script/{name}", content)
    text = refusal(tmp_path / "script.pt")
    assert "weights_only" not in text and "holds more than tensors" in text


def test_damage_is_not_called_code(tmp_path: Path, state) -> None:
    content = write_legacy(tmp_path, state).read_bytes()
    for number, cut in enumerate((10, 30, 180, 190, 200, 250, 400, 1000)):
        (tmp_path / f"cut{number}.pt").write_bytes(content[:cut])
        (tmp_path / f"hit{number}.pt").write_bytes(content[:cut] + b"\xff" + content[cut + 1 :])
        for kind in ("cut", "hit"):
            text = refusal(tmp_path / f"{kind}{number}.pt")
            assert "could run code" not in text and "download it again" in text


PAGES = {
    "a page": b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>",
    "a page with a mark": b"\xef\xbb\xbf\n <html lang=en><body>502 Bad Gateway</body></html>",
    "XML": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "JSON": b'{"error": "Invalid username or password."}',
    "a word": b"Entry not found",
}


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.safetensors", "x.ckpt"])
@pytest.mark.parametrize("case", PAGES)
def test_a_web_page_saved_as_weights_is_called_one(case: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(PAGES[case])
    text = refusal(tmp_path / name)
    assert "is a web page or other text, not weights" in text and "code" not in text


@pytest.mark.parametrize("name", ["x.pt", "x.bin", "x.safetensors", "x.safetensors.index.json"])
def test_a_pointer_of_git_lfs_is_called_one(name: str, tmp_path: Path) -> None:
    digest = "0" * 64
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize 2838276540\n"
    (tmp_path / name).write_text(text)
    assert "is a pointer of Git LFS, not the weights; run `git lfs pull`" in refusal(tmp_path / name)


def test_a_shard_that_is_a_pointer_or_a_page_is_the_one_that_is_named(tmp_path: Path, state) -> None:
    write_sharded(tmp_path, state)
    shard, phrases = tmp_path / "model-00002-of-00003.safetensors", ("pointer of Git LFS", "web page")
    for content, phrase in zip(
        (b"version https://git-lfs.github.com/spec/v1\n", b"<html></html>"), phrases, strict=True
    ):
        shard.write_bytes(content)
        with pytest.raises(ValueError, match=f"{shard.name} is a .*{phrase}"):
            load_transformer(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("<!DOCTYPE html><html></html>")
    assert "is a web page" in refusal(index)


def zipped(file: Path, compression: int, **sizes: int) -> Path:
    """An archive like torch's, of zeros, whose directory may lie about sizes."""
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("bomb/data.pkl", b"\x80\x02}." + bytes(4 << 20))
        archive.writestr("bomb/version", b"3\n")
        vars_of = archive.infolist()[0]
        for name, size in sizes.items():
            setattr(vars_of, name, size)
    return file


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_archive_is_refused_before_it_is_read(method: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(zipfile.ZipFile, "testzip", None)
    monkeypatch.setattr(torch, "load", None)
    bomb = zipped(tmp_path / "bomb.pt", method)
    assert bomb.stat().st_size < 10_000 and "is a compressed archive" in refusal(bomb)
    liar = zipped(tmp_path / "liar.pt", zipfile.ZIP_STORED, file_size=1 << 31)
    assert "is a compressed archive" in refusal(liar)


def test_keys_that_are_no_names_are_read_as_texts(tmp_path: Path) -> None:
    torch.save({0: torch.zeros(1), ("a", 1): torch.zeros(1)}, tmp_path / "odd.pt")
    assert "an unknown kind of model" in refusal(tmp_path / "odd.pt")
    torch.save({f"\x1b[1m{n}": n for n in range(10**5)}, tmp_path / "keys.pt")
    text = refusal(tmp_path / "keys.pt")
    assert text.isprintable() and len(text) < 500


def test_files_that_are_something_else_are_named(tmp_path: Path, state) -> None:
    def sized(dim: int, channels: int = 16) -> dict[str, Tensor]:
        return {"patch_embedding.weight": torch.zeros(dim, channels, 1, 2, 2)}

    cases = {
        "a LoRA": lora_state(state, "kohya"),
        "a VAE": {"decoder.conv1.weight": torch.zeros(1), "encoder.conv1.weight": torch.zeros(1)},
        "a text encoder": {"token_embedding.weight": torch.zeros(2, 2)},
        "a Wan 14B": sized(5120),
        "a Wan 2.2 5B": sized(3072, 48),
        "a Wan image-to-video model": sized(1536, 36),
        "an unknown kind of model": {"anything": torch.zeros(1)},
    }
    for phrase, content in cases.items():
        save_file(content, tmp_path / "other.safetensors")
        assert phrase in refusal(tmp_path / "other.safetensors")


def test_everything_missing_unexpected_and_misshapen_is_listed_at_once(tmp_path: Path, state) -> None:
    theirs = spelled(state)
    del theirs["blocks.1.ffn.2.bias"]
    theirs["blocks.0.surprise.weight"] = torch.zeros(3)
    theirs["head.head.bias"] = torch.zeros(5)
    save_file(theirs, tmp_path / "odd.safetensors")
    text = refusal(tmp_path / "odd.safetensors")
    assert "incomplete or wrong checkpoint: 1 tensor missing (layers.1.ffn.2.bias)" in text
    assert "1 tensor unexpected (layers.0.surprise.weight)" in text
    assert "1 tensor of another shape (head.proj.bias [5] instead of [64])" in text


def test_paths_that_are_no_files(tmp_path: Path, state) -> None:
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    assert "is empty" in refusal(tmp_path / "empty.safetensors")
    assert "is a folder" in refusal(tmp_path / "folder.pt")
    assert "no tensor file" in refusal(tmp_path / "notes.txt")
    assert "does not exist" in refusal(tmp_path / "absent.pt")
    locked = write_plain(tmp_path, state)
    locked.chmod(0)
    if not os.access(locked, os.R_OK):
        assert "may not be read" in refusal(locked)


def test_shards_must_be_complete_and_at_home(tmp_path: Path, state) -> None:
    write_sharded(tmp_path, state)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name = next(iter(content["weight_map"]))
    for file, phrase in (
        ("../../etc/passwd", "outside its folder"),
        ("gone.safetensors", "gone.safetensors"),
    ):
        content["weight_map"][name] = file
        index.write_text(json.dumps(content))
        assert phrase in refusal(index)
    index.write_text("{")
    refusal(index)
    for weight_map in ({}, [], 3, {"a": 1}, {"a": None}, {"a": "x\0"}, {"a": ["b"]}):
        index.write_text(json.dumps({"weight_map": weight_map}))
        refusal(index)
    for names in ("shard-{}.safetensors", "../shard-{}.safetensors", "\x1b[1m{}.safetensors"):
        index.write_text(json.dumps({"weight_map": {str(n): names.format(n) for n in range(100_000)}}))
        text = refusal(index)
        assert len(text) < 500 and text.isprintable()


def test_a_weight_that_is_not_finite_is_refused(tmp_path: Path, state) -> None:
    broken = {name: tensor.clone() for name, tensor in state.items()}
    broken["layers.1.ffn.0.weight"][0, 0] = float("nan")
    assert "layers.1.ffn.0.weight is not finite" in refusal(write_plain(tmp_path, broken))


@pytest.mark.parametrize("part", [r"ffn\.(0\.weight|0\.bias)$", r"(text|time)_embedding\.0\.weight$"])
def test_a_model_of_no_size_is_refused(part, tmp_path: Path, state) -> None:
    """Its weights are whole and finite, but there are none."""
    empty = {n: t[..., :0] if "embedding" in n else t[:0] for n, t in state.items() if re.search(part, n)}
    empty |= {n: t[:, :0] for n, t in state.items() if n.endswith("ffn.2.weight") and "ffn" in part}
    assert "no transformer that can run: a size is 0" in refusal(write_plain(tmp_path, state | empty))


def test_a_damaged_lora_is_the_one_that_is_named(tmp_path: Path, state) -> None:
    lora = {name: tensor.clone() for name, tensor in lora_state(state, "peft").items()}
    next(iter(lora.values()))[0, 0] = float("nan")
    save_file(lora, tmp_path / "style.safetensors")
    with pytest.raises(ValueError, match=r"style\.safetensors is damaged: layers\.0\..* is not finite"):
        load_transformer(write_plain(tmp_path, state), [LoraChoice(tmp_path / "style.safetensors")])


@pytest.mark.parametrize("write", [write_reference, write_plain, write_legacy], ids=lambda f: f.__name__)
def test_truncated_anywhere_a_file_is_refused_and_the_next_one_loads(write, tmp_path: Path, state) -> None:
    whole = write(tmp_path, state)
    content, rng = whole.read_bytes(), random.Random(0)
    for _ in range(20):
        cut = whole.with_name(f"cut{whole.suffix}")
        cut.write_bytes(content[: rng.randrange(len(content))])
        refusal(cut)
    load_transformer(whole)


@pytest.mark.parametrize("write", [write_reference, write_plain, write_legacy], ids=lambda f: f.__name__)
def test_flipped_bits_are_refused_or_harmless(write, tmp_path: Path, state) -> None:
    """Zip records carry check sums; a number that changes inside plain tensors no format can notice."""
    whole = write(tmp_path, state)
    content, rng = whole.read_bytes(), random.Random(1)
    head = 8 + int.from_bytes(content[:8], "little") if whole.suffix == ".safetensors" else len(content)
    refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        damaged[rng.randrange(min(head, len(content)))] ^= 1 << rng.randrange(8)
        bad = whole.with_name(f"bad{whole.suffix}")
        bad.write_bytes(damaged)
        try:
            loaded = load_transformer(bad, precision="fp32").transformer
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert loaded.config == CONFIG
    assert refused or write is write_legacy
    load_transformer(whole)


def test_a_lora_of_another_model_or_no_lora_at_all(tmp_path: Path, state) -> None:
    base = write_plain(tmp_path, state)
    alien = {name: torch.zeros(2, 2) for name in lora_state(state, "peft")}
    for content, phrase in ((alien, "another model"), (spelled(state), "looks like a Wan")):
        save_file(content, tmp_path / "lora.safetensors")
        with pytest.raises(ValueError, match=phrase):
            load_transformer(base, [LoraChoice(tmp_path / "lora.safetensors")])


def test_choices_that_do_not_exist(tmp_path: Path, state) -> None:
    file = write_plain(tmp_path, state)
    with pytest.raises(ValueError, match="fp32, bf16, fp16, fp8"):
        load_transformer(file, precision="int3")
    with pytest.raises(ValueError, match="unknown model family 'wan9'"):
        load_transformer(file, preset="wan9")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
@pytest.mark.parametrize("write", [write_reference, write_plain], ids=lambda f: f.__name__)
def test_a_cast_model_lets_the_file_go_and_an_uncast_one_is_the_file(write, tmp_path: Path, state) -> None:
    """One tensor left on the map would keep every page of the checkpoint that loading touched."""
    file = write(tmp_path, state)

    def is_mapped() -> bool:
        gc.collect()
        return str(file) in Path("/proc/self/maps").read_text()

    cast = load_transformer(file, precision="bf16")
    assert cast.transformer.layers[0].ffn[0].weight.dtype == torch.bfloat16 and not is_mapped()
    uncast = load_transformer(file, precision="fp32")
    assert uncast.transformer.layers[0].ffn[0].weight.dtype == torch.float32 and is_mapped()
