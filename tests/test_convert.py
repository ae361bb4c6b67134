"""`longlive convert`: one file that is, bit for bit, checkpoint and LoRAs at the same precision."""

import errno
import functools
import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from longlive_core.cli import main
from longlive_core.config import RELATIVES, WindowConfig
from longlive_core.fast.products import FP8, stored_linear
from longlive_core.model.causal_wan import CausalWan
from longlive_core.rollout.noise import SeededNoise, shifted_sigmas
from longlive_core.rollout.rollout import Switch, rollout
from longlive_core.weights import convert as room
from longlive_core.weights import files
from longlive_core.weights.checkpoints import NO_LORA, check_finite, load_transformer
from longlive_core.weights.convert import CONVERTED, convert
from longlive_core.weights.lora import LoraChoice
from longlive_core.weights.quantize import layer_linears, to_8_bits

_spec = importlib.util.spec_from_file_location(
    "convert_models", Path(__file__).with_name("host") / "model_files.py"
)
model_files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(model_files)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A small longlive_base.pt and longlive_lora.pt, and a style."""
    folder = tmp_path_factory.mktemp("published")
    model_files.write_models(folder)
    return folder


@pytest.fixture(scope="module")
def base(published) -> Path:
    return published / "diffusion_models" / "longlive_base.pt"


@pytest.fixture(scope="module")
def loras(published) -> list[LoraChoice]:
    names = ("longlive_lora.pt", 1.0), ("small_lora.safetensors", 0.5)
    return [LoraChoice(published / "loras" / name, strength) for name, strength in names]


@pytest.fixture(scope="module")
def converted(base, loras, tmp_path_factory):
    """The converted file of each precision, made once."""

    @functools.cache
    def made(precision: str) -> Path:
        out = tmp_path_factory.mktemp("converted") / f"small-{precision}.safetensors"
        convert(base, loras, precision, out)
        return out

    return made


def latents(transformer: CausalWan) -> Tensor:
    """Three blocks with a switch, whose window is full at the last."""
    torch.manual_seed(0)
    switches = {at: Switch(torch.randn(1, 512, 4096)) for at in (0, 2)}
    noise, sigmas = SeededNoise(0, (1, 16, 3, 4, 4)), shifted_sigmas(RELATIVES["longlive-1.3b"].sigmas)
    window = WindowConfig(window_latent_frames=9)
    blocks = rollout(transformer, switches.get, noise, sigmas, window, range(4))
    return torch.cat([block.latents for block in blocks], dim=2)


@pytest.mark.parametrize(("precision", "loaded"), [("bf16", "bf16"), ("fp8", "fp8"), ("fp8", "fp8-fast")])
@torch.inference_mode()
def test_latents_are_those_of_checkpoint_and_loras(precision, loaded, base, loras, converted) -> None:
    ours = load_transformer(converted(precision), (), loaded)
    theirs = load_transformer(base, loras, loaded)
    weights = ours.transformer.state_dict()
    for name, weight in theirs.transformer.state_dict().items():
        assert torch.equal(weights[name].float(), weight.float()) and weights[name].dtype == weight.dtype
    assert torch.equal(latents(ours.transformer), latents(theirs.transformer))
    assert ours.preset == theirs.preset and ours.notes == ()


@pytest.mark.parametrize("precision", CONVERTED)
def test_weights_are_mapped_and_aligned_as_in_memory(precision, converted) -> None:
    loaded = load_transformer(converted(precision), (), precision).transformer
    (data,) = {weight.untyped_storage().data_ptr() % 64 for weight in layer_weights(loaded)}
    assert data == 0
    with converted(precision).open("rb") as file:
        assert (8 + int.from_bytes(file.read(8), "little")) % 64 == 0


def layer_weights(transformer: CausalWan) -> list[Tensor]:
    return [linear.weight for linear in layer_linears(transformer).values()]


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp8", FP8)])
def test_the_layout_is_that_of_comfyui(precision, dtype, base, converted) -> None:
    found, theirs = load_file(converted(precision)), torch.load(base, weights_only=True)["generator"]
    theirs = {name.removeprefix("model."): weight for name, weight in theirs.items()}
    matrices = {name for name, weight in theirs.items() if name.startswith("blocks.") and weight.ndim == 2}
    scales = {name.replace(".weight", ".scale_weight") for name in matrices} if dtype == FP8 else set()
    assert found.keys() == theirs.keys() | scales | ({"scaled_fp8"} if scales else set())
    for name, weight in theirs.items():
        assert found[name].shape == weight.shape
        assert found[name].dtype == (dtype if name in matrices else torch.float32)
    assert all(found[name].shape == () and found[name].dtype == torch.float32 for name in scales)


def test_fp8_scales_are_powers_of_two_which_every_dtype_multiplies_exactly() -> None:
    weight = torch.randn(64, 32) * torch.logspace(-3, 3, 64)[:, None]
    small, scale = to_8_bits(weight)
    assert (scale == scale[0]).all() and torch.frexp(scale[0]).mantissa == 0.5
    full = small.float() * scale[:, None]
    assert torch.equal(full, (small.bfloat16() * scale[0].bfloat16()).float())
    x, bias = torch.randn(5, 32), torch.randn(64)
    assert torch.equal(stored_linear(x, small, scale, bias), torch.nn.functional.linear(x, full, bias))


def test_preset_window_and_merged_loras_survive(published, tmp_path, loras) -> None:
    small = published / "diffusion_models" / "small_wan.safetensors"
    convert(small, loras[:1], "bf16", tmp_path / "a.safetensors", "causal-forcing-framewise")
    convert(tmp_path / "a.safetensors", loras[1:], "fp8", tmp_path / "b.safetensors")
    preset = load_transformer(tmp_path / "b.safetensors").preset
    assert preset.name == "causal-forcing-framewise"
    assert preset.window == RELATIVES["causal-forcing-framewise"].window
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["config"])["transformer"]["causal_ar"] is True
    assert json.loads(metadata["loras"]) == {choice.path.name: choice.strength for choice in loras}


def test_the_window_of_the_file_counts(converted, tmp_path) -> None:
    def loaded(window: str):
        save_file(load_file(converted("bf16")), tmp_path / "x.safetensors", {**METADATA, "window": window})
        return load_transformer(tmp_path / "x.safetensors").preset.window

    assert loaded('{"window_latent_frames": 9, "sink_latent_frames": 0}') == WindowConfig(3, 0, 9)
    assert loaded('{"window_latent_frames": null}').window_latent_frames is None
    assert loaded("[1]") == loaded("{") == WindowConfig()
    for strange in ('{"window_latent_frames": "9"}', '{"window_latent_frames": 4}', '{"shape": 4}', ODD):
        with pytest.raises(ValueError, match=r"x.safetensors: the window in its metadata is not possible"):
            loaded(strange)


METADATA = {"preset": "longlive-1.3b"}
ODD = '{"block_latent_frames": null}'


def test_notes_tell_of_a_missing_lora_and_of_one_merged_twice(base, loras, converted, tmp_path) -> None:
    assert convert(base, [], "bf16", tmp_path / "bare.safetensors") == (NO_LORA,)
    assert load_transformer(tmp_path / "bare.safetensors").notes == (NO_LORA,)
    _, again = load_transformer(converted("bf16"), loras[:1]).notes
    assert again == "longlive_lora.pt is merged into small-bf16.safetensors already; leave it out"


def test_fp8_with_a_scale_a_row_gets_one_a_matrix(base, converted, tmp_path) -> None:
    packed = {name: weight.clone() for name, weight in load_file(converted("bf16")).items()}
    names = [name for name in packed if name.endswith("ffn.0.weight")]
    for name in names:
        scale = packed[name].float().abs().amax(1, keepdim=True) / 448
        packed[f"{name}_scale"], packed[name] = scale, (packed[name] / scale).to(FP8)
    save_file(packed, tmp_path / "rows.safetensors")
    convert(tmp_path / "rows.safetensors", [], "fp8", tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    for name in names:
        right = packed[name].float() * packed[f"{name}_scale"]
        ours = found[name].float() * found[name.replace("weight", "scale_weight")]
        assert (ours - right).norm() < 0.05 * right.norm()


def test_both_sets_of_sgf_plus_are_in_one_file(published, loras, tmp_path) -> None:
    checkpoint = published / "diffusion_models" / "sgf_plus_chunkwise.pt"
    convert(checkpoint, loras[:1], "fp8", tmp_path / "a.safetensors")
    right = load_transformer(checkpoint, loras[:1], "fp8")
    found = load_transformer(tmp_path / "a.safetensors", (), "fp8")
    assert found.preset == right.preset and found.preset.name == "sgf-plus-chunkwise"
    weights = found.transformer.state_dict()
    for name, weight in right.transformer.state_dict().items():
        assert torch.equal(weights[name].float(), weight.float()), name


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, FP8, torch.float8_e5m2], ids=str
)
def test_one_number_that_is_not_finite_is_found_in_every_dtype(dtype) -> None:
    weight = torch.linspace(-448, 448, 60).view(6, 10).to(dtype)
    check_finite("w", weight, Path("file"))
    for strange in (float("nan"), -float("nan"), *([] if dtype == FP8 else [float("inf"), -float("inf")])):
        broken = weight.clone()
        broken[3, 4] = strange
        with pytest.raises(ValueError, match="file is damaged: w is not finite"):
            check_finite("w", broken, Path("file"))


def command(*arguments: object) -> int:
    return main(["convert", *map(str, arguments)])


def test_the_command_converts_and_shows_what_it_did(base, loras, converted, tmp_path, capsys) -> None:
    given = [f"--lora={choice.path}:{choice.strength}" for choice in loras]
    assert command(base, *given, "--precision", "fp8", "--out", tmp_path / "x.safetensors") == 0
    assert (tmp_path / "x.safetensors").read_bytes() == converted("fp8").read_bytes()
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path / 'x.safetensors'}: 0.0") and "longlive_lora.pt: 40 tensors" in err


def test_what_is_there_stays(base, tmp_path, capsys) -> None:
    out = tmp_path / "mine.safetensors"
    out.write_text("mine")
    assert command(base, "--out", out) == 2
    assert capsys.readouterr().err == f"longlive: {out} exists already; choose another name, or delete it\n"
    assert out.read_text() == "mine" and [*tmp_path.iterdir()] == [out]


def test_the_longest_name_that_a_disk_allows_is_written(base, tmp_path) -> None:
    out = tmp_path / f"{'x' * 243}.safetensors"
    assert command(base, "--out", out) == 0 and [*tmp_path.iterdir()] == [out]


def test_two_runs_do_not_write_one_file(base, tmp_path, monkeypatch, capsys) -> None:
    """They would write into the same part of a file."""
    out, codes, real = tmp_path / "x.safetensors", [], room.prepared
    is_first = iter([True])

    def prepared(*arguments):
        if next(is_first, False):
            codes.append(command(base, "--precision", "fp8", "--out", out))
        return real(*arguments)

    monkeypatch.setattr(room, "prepared", prepared)
    assert command(base, "--out", out) == 0 and codes == [2]
    assert "another run is writing this file" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == [out] and torch.bfloat16 in {t.dtype for t in load_file(out).values()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{base}", "--out", "{tmp}/x.pt"], "choose a name that ends in .safetensors"),
        (["{base}", "--out", "{tmp}/nowhere/x.safetensors"], "choose a file in a folder that exists"),
        (["{tmp}/no.pt", "--out", "{tmp}/x.safetensors"], "no.pt does not exist"),
        (["{base}", "--family", "none", "--out", "{tmp}/x.safetensors"], "unknown model family 'none'"),
        (["{base}", "--lora", "{base}", "--out", "{tmp}/x.safetensors"], "looks like a Wan text-to-video"),
    ],
)
def test_bad_input_is_one_sentence(arguments, said, base, tmp_path, capsys) -> None:
    assert command(*(text.format(base=base, tmp=tmp_path) for text in arguments)) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not [*tmp_path.iterdir()]


def fails_after(count: int, error: BaseException):
    """A stand-in for `prepared` that raises at its `count`th weight."""
    left, real = iter(range(count)), room.prepared

    def prepared(*arguments):
        if next(left, None) is None:
            raise error
        return real(*arguments)

    return prepared


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "No space left on device; free some space"),
        (KeyboardInterrupt(), 130, "longlive: stopped"),
        (ValueError("x is damaged"), 2, "x is damaged"),
    ],
)
def test_what_is_half_written_is_removed(error, code, said, base, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(room, "prepared", fails_after(9, error))
    assert command(base, "--out", tmp_path / "x.safetensors") == code
    assert said in capsys.readouterr().err and not [*tmp_path.iterdir()]


def test_a_disk_that_is_too_full_is_refused_before_anything_is_written(
    base, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    assert command(base, "--out", tmp_path / "x.safetensors") == 2
    assert "are needed, only 0.00 GB are free" in capsys.readouterr().err and not [*tmp_path.iterdir()]
