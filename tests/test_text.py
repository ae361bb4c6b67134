"""UMT5 from every layout against the goldens, its tokenizers, its cache, and files that are none.

Weights are a pure function of the seed and of the reference's names, so only the results are carried.
"""

import errno
import gc
import hashlib
import importlib.util
import io
import itertools
import json
import logging
import os
import pickle
import sys
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from longlive_core.fast.products import upcast
from longlive_core.text.cache import CachedEncoder, default_folder, encode_all
from longlive_core.text.tokens import TEXT_TOKENS, clean_prompt, load_tokenizer
from longlive_core.text.umt5 import (
    PromptEncoder,
    StoredLinear,
    encoder_identity,
    fill_umt5,
    load_umt5,
    umt5_skeleton,
)
from longlive_core.text.words import WordEncoder

GOLDEN = Path(__file__).parent / "golden"
SEED = 20250922
ATOL = 2e-6
FP8_MAX = 448.0
PROMPT = "a red fox runs over the snow"

_spec = importlib.util.spec_from_file_location("seeded", GOLDEN / "seeded.py")
seeded = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(seeded)

PARTS = {
    "norm1": "0.layer_norm",
    **{f"attn.{name}": f"0.SelfAttention.{name}" for name in "qkvo"},
    "pos_embedding.embedding": "0.SelfAttention.relative_attention_bias",
    "norm2": "1.layer_norm",
    "ffn.gate.0": "1.DenseReluDense.wi_0",
    "ffn.fc1": "1.DenseReluDense.wi_1",
    "ffn.fc2": "1.DenseReluDense.wo",
}


def about(folder: Path) -> dict[str, str]:
    """The metadata of a folder's golden."""
    with safe_open(folder / "t5_golden.safetensors", "pt") as file:
        return file.metadata()


def settings(folder: Path) -> dict[str, int]:
    return json.loads(about(folder)["cfg"])


def rounding(folder: Path) -> float:
    """How the rounding of fp32 grows with a golden's sizes (measured against fp64 up to 128 by 6 layers)."""
    cfg = settings(folder)
    return cfg["num_layers"] * cfg["dim"] ** 0.5


def wan_weights(meta: dict[str, str]) -> dict[str, Tensor]:
    """The seeded encoder under the reference's names."""
    cfg, seed = json.loads(meta["cfg"]), int(meta.get("seed", SEED))
    dim, inner, ffn = cfg["dim"], cfg["dim_attn"], cfg["dim_ffn"]
    layer = {
        "norm1": (dim,),
        **{f"attn.{name}": (inner, dim) for name in "qkv"},
        "attn.o": (dim, inner),
        "pos_embedding.embedding": (cfg.get("num_buckets", 32), cfg["num_heads"]),
        "norm2": (dim,),
        "ffn.gate.0": (ffn, dim),
        "ffn.fc1": (ffn, dim),
        "ffn.fc2": (dim, ffn),
    }
    shapes = {"token_embedding.weight": (cfg["vocab"], dim), "norm.weight": (dim,)}
    for index, (part, shape) in itertools.product(range(cfg["num_layers"]), layer.items()):
        shapes[f"blocks.{index}.{part}.weight"] = shape
    return {name: seeded.t5_param(seed, name, shape) for name, shape in shapes.items()}


def transformers_weights(wan: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same under the names of Hugging Face and ComfyUI."""
    named = {
        "shared.weight": wan["token_embedding.weight"],
        "encoder.final_layer_norm.weight": wan["norm.weight"],
    }
    for name, tensor in wan.items():
        if name.startswith("blocks."):
            _, index, part = name.removesuffix(".weight").split(".", 2)
            named[f"encoder.block.{index}.layer.{PARTS[part]}.weight"] = tensor
    return named


def fp8(weights: dict[str, Tensor], scale_name: str) -> dict[str, Tensor]:
    """Matrices of the layers in 8 bits with one scale each, as ComfyUI's repack stores them."""
    repacked = dict(weights)
    for name, weight in weights.items():
        if weight.ndim == 2 and "encoder.block" in name and "bias" not in name:
            scale = weight.abs().max() / FP8_MAX
            repacked[name] = (weight / scale).to(torch.float8_e4m3fn)
            repacked[name.replace(".weight", f".{scale_name}")] = scale
    return repacked


@pytest.fixture(scope="session")
def pieces() -> bytes:
    """A tiny sentencepiece model, its special ids where umt5's are."""
    return train_pieces(pad_id=0, eos_id=1, bos_id=2, unk_id=3)


def train_pieces(**ids: int) -> bytes:
    words = ["a", "red", "blue", "green", "fox", "circle", "square", "runs", "drifts", "over", "the", "snow"]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(" ".join(pair) for pair in itertools.permutations(words, 2)),
        model_writer=model,
        vocab_size=100,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        minloglevel=2,
        **ids,
    )
    return model.getvalue()


def json_tokenizer(pieces: bytes, file: Path) -> None:
    """The same tokenizer in Hugging Face's format, with settings that must not matter."""
    spm = sentencepiece.SentencePieceProcessor()
    spm.LoadFromSerializedProto(pieces)
    vocabulary = [(spm.id_to_piece(i), spm.get_score(i)) for i in range(spm.get_piece_size())]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=3))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(file))


def smallest_tokenizer(folder: Path) -> Path:
    """A tokenizer that no vocabulary is too small for."""
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizers.Tokenizer(tokenizers.models.Unigram(words, unk_id=2)).save(str(folder / "smallest.json"))
    return folder / "smallest.json"


class Layouts:
    """The tiny encoder saved the way every publisher saves it."""

    def __init__(self, folder: Path, pieces: bytes):
        self.folder, self.pieces = folder, pieces
        self.wan = wan_weights(about(GOLDEN))
        self.named = transformers_weights(self.wan)

    def wan_pth(self) -> Path:
        json_tokenizer(self.pieces, self.folder / "wan/google/umt5-xxl/tokenizer.json")
        torch.save(self.wan, self.folder / "wan/models_t5_umt5-xxl-enc-bf16.pth")
        return self.folder / "wan/models_t5_umt5-xxl-enc-bf16.pth"

    def wan_safetensors(self) -> Path:
        (self.folder / "kijai/google/umt5-xxl").mkdir(parents=True)
        (self.folder / "kijai/google/umt5-xxl/spiece.model").write_bytes(self.pieces)
        save_file(self.wan, self.folder / "kijai/umt5-xxl-enc-bf16.safetensors")
        return self.folder / "kijai/umt5-xxl-enc-bf16.safetensors"

    def hugging_face(self) -> Path:
        folder = self.folder / "umt5"
        json_tokenizer(self.pieces, folder / "tokenizer.json")
        (folder / "config.json").write_text('{"model_type": "umt5"}')
        decoder = {
            "decoder.block.0.layer.0.layer_norm.weight": torch.ones(3),
            "lm_head.weight": torch.ones(3),
        }
        tied = {"encoder.embed_tokens.weight": self.named["shared.weight"].clone()}
        save_file(self.named | decoder | tied, folder / "model.safetensors")
        return folder

    def diffusers(self) -> Path:
        folder = self.folder / "diffusers"
        json_tokenizer(self.pieces, folder / "tokenizer/tokenizer.json")
        (folder / "text_encoder").mkdir()
        names = sorted(self.named)
        shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
        for shard, part in shards.items():
            save_file({name: self.named[name] for name in part}, folder / "text_encoder" / shard)
        weight_map = {name: shard for shard, part in shards.items() for name in part}
        index = folder / "text_encoder/model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
        return folder

    def comfyui(self) -> Path:
        return self._repack("umt5_xxl_fp16.safetensors", self.named)

    def comfyui_fp8(self, scale_name: str = "scale_weight") -> Path:
        weights = fp8(self.named, scale_name)
        if scale_name == "scale_weight":
            weights["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
            return self._repack("umt5_xxl_fp8_e4m3fn_scaled.safetensors", weights)
        note = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
        for name in [name for name in weights if name.endswith(".weight_scale")]:
            weights[name.replace("weight_scale", "comfy_quant")] = note.clone()
            weights[name.replace("weight_scale", "input_scale")] = torch.tensor(1.5)
        return self._repack("umt5_xxl_fp8_new.safetensors", weights)

    def _repack(self, name: str, weights: dict[str, Tensor]) -> Path:
        pieces = torch.tensor(list(self.pieces), dtype=torch.uint8)
        save_file(weights | {"spiece_model": pieces}, self.folder / name)
        return self.folder / name


@pytest.fixture
def layouts(tmp_path: Path, pieces: bytes) -> Layouts:
    return Layouts(tmp_path, pieces)


def test_golden(golden_dir: Path, layouts: Layouts) -> None:
    """The reference's encoder in fp32, prompts of any length, to 2e-6; padding exactly zero."""
    if not (golden_dir / "t5_golden.safetensors").exists():
        pytest.skip(f"no t5 golden in {golden_dir}")
    stored = golden_dir / "t5_weights.safetensors"
    layouts.wan = load_file(stored) if stored.exists() else wan_weights(about(golden_dir))
    encoder = load_umt5(layouts.wan_pth(), smallest_tokenizer(layouts.folder), dtype=torch.float32)
    golden = load_file(golden_dir / "t5_golden.safetensors")
    growth = max(1.0, rounding(golden_dir) / rounding(GOLDEN))
    for ids, mask, expected in zip(golden["ids"], golden["mask"], golden["prompt_embeds"], strict=True):
        num_tokens = int(mask.sum())
        embeds = encoder.embed(ids[:num_tokens].tolist())
        assert embeds.shape == (1, TEXT_TOKENS, expected.shape[-1])
        torch.testing.assert_close(embeds[0, : len(expected)], expected, atol=ATOL * growth, rtol=0)
        assert not embeds[0, num_tokens:].any()


def test_every_layout_gives_the_same_numbers(layouts: Layouts) -> None:
    saved = ("wan_pth", "wan_safetensors", "hugging_face", "diffusers", "comfyui")
    embeds = [load_umt5(getattr(layouts, name)(), dtype=torch.float32)(PROMPT) for name in saved]
    assert embeds[0].abs().max() > 1
    assert all(torch.equal(embeds[0], other) for other in embeds[1:])


def test_old_pickles_without_a_zip_load_too(layouts: Layouts) -> None:
    path = layouts.wan_pth()
    expected = load_umt5(path)(PROMPT)
    torch.save(layouts.wan, path, _use_new_zipfile_serialization=False)
    assert torch.equal(load_umt5(path)(PROMPT), expected)


@pytest.mark.parametrize("scale_name", ["scale_weight", "weight_scale"])
def test_fp8_is_what_its_scales_make_of_it(layouts: Layouts, scale_name: str) -> None:
    """Exactly the dequantised weights, and within 0.3 (rms 0.06) of the original, whose std is 1."""
    encoder = load_umt5(layouts.comfyui_fp8(scale_name), dtype=torch.float32)
    linears = [module for module in encoder.model.modules() if isinstance(module, StoredLinear)]
    assert {linear.stored.dtype for linear in linears} == {torch.float8_e4m3fn}
    original = load_umt5(layouts.comfyui(), dtype=torch.float32)
    repacked = fp8(layouts.named, "weight.scale")
    layouts.named = {
        name: weight.float() * repacked.get(f"{name}.scale", 1.0)
        for name, weight in repacked.items()
        if not name.endswith(".scale")
    }
    dequantised = load_umt5(layouts.comfyui(), dtype=torch.float32)
    ids = [*range(20, 119), 1]
    torch.testing.assert_close(encoder.embed(ids), dequantised.embed(ids), atol=1e-5, rtol=0)
    error = (encoder.embed(ids) - original.embed(ids))[0, : len(ids)]
    print("fp8 against the original:", error.abs().max(), error.square().mean().sqrt())
    assert error.abs().max() < 0.3 and error.square().mean().sqrt() < 0.06


def test_scales_of_rows_and_of_the_table(layouts: Layouts) -> None:
    """A scale may belong to a whole weight or to each of its rows, in the embedding table too."""
    expected = load_umt5(layouts.comfyui(), dtype=torch.float32)(PROMPT)
    for name in ("shared.weight", "encoder.block.0.layer.1.DenseReluDense.wo.weight"):
        rows = torch.linspace(0.5, 2, len(layouts.named[name]))
        layouts.named[name] = layouts.named[name] / rows[:, None]
        layouts.named[name.replace(".weight", ".weight_scale")] = rows
    norm = "encoder.final_layer_norm.weight"
    layouts.named[norm], layouts.named["encoder.final_layer_norm.weight_scale"] = (
        layouts.named[norm] / 3,
        torch.tensor(3.0),
    )
    scaled = load_umt5(layouts.comfyui(), dtype=torch.float32)(PROMPT)
    torch.testing.assert_close(scaled, expected, atol=1e-5, rtol=0)


def test_every_8_bit_float_is_upcast_exactly() -> None:
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(torch.float8_e4m3fn)
    numbers = codes.float()
    assert torch.equal(upcast(codes, torch.float32)[~numbers.isnan()], numbers[~numbers.isnan()])
    assert torch.equal(upcast(codes.float().bfloat16(), torch.float32)[:100], numbers[:100])


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_half_precision_stays_on_disk_as_it_is(layouts: Layouts, stored: torch.dtype) -> None:
    """On the CPU half weights are computed with in fp32; the result has the dtype that was asked for."""
    layouts.wan = {name: tensor.to(stored) for name, tensor in layouts.wan.items()}
    path = layouts.wan_pth()
    encoder = load_umt5(path)
    assert encoder.model.get_input_embeddings().stored.dtype == stored
    embeds = encoder(PROMPT)
    assert embeds.dtype == torch.bfloat16
    layouts.wan = {name: tensor.float() for name, tensor in layouts.wan.items()}
    assert torch.equal(embeds, load_umt5(layouts.wan_pth())(PROMPT))


@pytest.mark.parametrize("stored", ["half", "fp8"])
def test_arithmetic_in_bfloat16(layouts: Layouts, stored: str) -> None:
    """What a GPU does: every step in bfloat16, whatever the file stores; near the result in fp32."""
    weights = fp8(layouts.named, "weight.scale") if stored == "fp8" else layouts.named
    scales = {name: tensor for name, tensor in weights.items() if name.endswith(".scale")}
    weights = {n: t.half() if t.dtype == torch.float32 else t for n, t in weights.items()} | scales
    shapes = {name: tuple(tensor.shape) for name, tensor in layouts.named.items()}
    ids, embeds = [*range(20, 119), 1], {}
    for dtype in (torch.bfloat16, torch.float32):
        model = umt5_skeleton(shapes)
        fill_umt5(model, weights, dtype)
        embeds[dtype] = PromptEncoder(model, None, dtype).embed(ids)
    assert embeds[torch.bfloat16].dtype == torch.bfloat16
    error = (embeds[torch.bfloat16].float() - embeds[torch.float32])[0, : len(ids)]
    assert error.square().mean().sqrt() < 0.03


def test_numbers_that_are_not_finite_are_refused(layouts: Layouts) -> None:
    layouts.wan["norm.weight"][3] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        load_umt5(layouts.wan_pth())(PROMPT)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("  a\tred \n\n fox  ", "a red fox"),
        ("fish &amp;amp; chips", "fish & chips"),
        ("&amp;lt;b&amp;gt;", "<b>"),
        ("schÃ¶n", "schön"),
        ("“quoted” ﬁre", '"quoted" fire'),
        ("wide\u3000space\xa0here", "wide space here"),
        ("a lone \ud83d surrogate", "a lone \ufffd surrogate"),
        ("\0 \x07bell", "bell"),
        ("", ""),
    ],
)
def test_cleaning(prompt: str, expected: str) -> None:
    assert clean_prompt(prompt) == expected


def test_tokens_end_with_the_end_and_are_at_most_512(layouts: Layouts, tmp_path: Path) -> None:
    """Both formats give the same ids; padding and truncation written into a tokenizer.json do not count."""
    (tmp_path / "spiece.model").write_bytes(layouts.pieces)
    json_tokenizer(layouts.pieces, tmp_path / "json/tokenizer.json")
    by_pieces, by_json = load_tokenizer(tmp_path), load_tokenizer(tmp_path / "json")
    assert by_pieces.size == by_json.size
    for prompt in ("", PROMPT, "ünknown  wörds &amp; the red fox runs", "red fox " * 1000):
        ids = by_pieces(prompt)
        assert ids == by_json(prompt) and ids[-1] == 1 and ids.count(1) == 1
    assert by_pieces("") == [1] and len(by_pieces("red fox " * 1000)) == TEXT_TOKENS
    encoder = load_umt5(layouts.comfyui())
    assert encoder("red fox " * 1000).shape == (1, TEXT_TOKENS, 32)
    assert encoder("")[0, 0].any() and not encoder("")[0, 1:].any()


def test_a_given_tokenizer_wins(layouts: Layouts, tmp_path: Path) -> None:
    json_tokenizer(layouts.pieces, tmp_path / "mine/tokenizer.json")
    path = layouts.wan_safetensors()
    (path.parent / "google/umt5-xxl/spiece.model").write_bytes(b"not one")
    with pytest.raises(ValueError, match="no readable sentencepiece model"):
        load_umt5(path)
    for given in (tmp_path / "mine", str(tmp_path / "mine/tokenizer.json")):
        assert load_umt5(path, given)(PROMPT).any()


def test_tokenizers_that_are_none(layouts: Layouts, tmp_path: Path) -> None:
    path = layouts.wan_safetensors()
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "other.model").write_bytes(train_pieces(pad_id=-1, eos_id=2, bos_id=1, unk_id=0))
    wrong = {
        "missing": "choose tokenizer.json, spiece.model or a folder",
        "bad.json": "not a readable tokenizer",
        "other.model": "another model",
        path.name: "choose tokenizer.json, spiece.model or a folder",
    }
    for name, reason in wrong.items():
        with one_sentence(reason):
            load_umt5(path, tmp_path / name)
    (path.parent / "google/umt5-xxl/spiece.model").unlink()
    with one_sentence("https://huggingface.co/Wan-AI/Wan2.1-T2V-1.3B"):
        load_umt5(path)


def test_a_tokenizer_of_a_larger_model(layouts: Layouts) -> None:
    layouts.named["shared.weight"] = layouts.named["shared.weight"][:20].clone()
    with one_sentence("only 20"):
        load_umt5(layouts.comfyui())


def one_sentence(reason: str):
    """A ValueError of one line that gives the reason."""
    return pytest.raises(ValueError, match=rf"^[^\n]*{reason}[^\n]*$")


def without(*parts: str) -> Callable[[dict], dict]:
    return lambda weights: {n: t for n, t in weights.items() if not any(part in n for part in parts)}


WRONG = {
    "a layer without a norm": (without("block.1.layer.0.layer_norm"), "1 tensor missing"),
    "T5 v1.1, one position bias": (without("block.1.layer.0.SelfAttention.relative"), "1 tensor missing"),
    "no table": (without("shared"), "not named or shaped like one"),
    "nothing known": (lambda weights: {"x": torch.ones(3)}, "not named or shaped like one"),
    "a tensor too many": (lambda weights: weights | {"head.weight": torch.ones(3)}, "1 tensor unexpected"),
    "a far layer": (
        lambda weights: weights | {"encoder.block.999999999.layer.0.layer_norm.weight": torch.ones(32)},
        "1 tensor unexpected",
    ),
    "a bent tensor": (
        lambda weights: weights | {"encoder.final_layer_norm.weight": torch.ones(31)},
        "1 tensor of another shape",
    ),
    "a quantisation of 4 bits": (
        lambda weights: (
            weights
            | {
                "encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(32, 32, dtype=torch.uint8),
            }
        ),
        "1 tensor of an unsupported dtype",
    ),
    "scales of blocks": (
        lambda weights: weights | {"encoder.block.0.layer.0.SelfAttention.q.weight_scale": torch.ones(32, 2)},
        "no scale of",
    ),
    "a scale of nothing": (lambda weights: weights | {"x.scale_weight": torch.ones(1)}, "no scale of"),
    "a LoRA": (
        lambda weights: {f"blocks.0.self_attn.q.lora_{side}.weight": torch.ones(2, 3) for side in "AB"},
        "looks like a LoRA",
    ),
    "a Wan transformer": (
        lambda weights: {"patch_embedding.weight": torch.ones(5120, 16, 1, 2, 2)},
        "looks like a Wan 14B",
    ),
    "a VAE": (lambda weights: {"decoder.conv1.weight": torch.ones(2, 3)}, "looks like a VAE"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_other_models_are_named(layouts: Layouts, kind: str) -> None:
    change, reason = WRONG[kind]
    layouts.named = change(layouts.named)
    with one_sentence(reason):
        load_umt5(layouts.comfyui())


@pytest.mark.parametrize("layout", ["wan_pth", "comfyui_fp8"])
def test_damaged_files(layouts: Layouts, layout: str) -> None:
    """Truncated anywhere, or with flipped bits: an error of one sentence, or an encoder that works."""
    path = getattr(layouts, layout)()
    whole = path.read_bytes()
    for cut in range(0, len(whole), len(whole) // 20):
        path.write_bytes(whole[:cut])
        with one_sentence(path.name):
            load_umt5(path)
    for place in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            load_umt5(path)(PROMPT)
        except ValueError as error:
            assert "\n" not in str(error)
    path.write_bytes(whole)
    assert load_umt5(path)(PROMPT).any()


class Exploit:
    def __reduce__(self):
        return (os.mkdir, ("should-not-exist",))


def test_a_pickle_with_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Exploit()}, "models_t5.pth")
    Path("raw.pth").write_bytes(pickle.dumps(Exploit()))
    for name in ("models_t5.pth", "raw.pth"):
        with one_sentence("could run code"):
            load_umt5(name)
    assert not Path("should-not-exist").exists()


def test_paths_that_hold_no_encoder(layouts: Layouts, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero.safetensors").touch()
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for name in ("missing.pth", "empty", "zero.safetensors", "model.gguf"):
        with one_sentence(name):
            load_umt5(tmp_path / name)
    with one_sentence("torch.float16"):
        load_umt5(layouts.comfyui(), dtype=torch.float16)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with one_sentence(r"pip install \w+$"):
        clean_prompt("anything")


def test_identity_follows_the_files(layouts: Layouts) -> None:
    path = layouts.wan_pth()
    first = encoder_identity(path)
    assert first == encoder_identity(str(path)) and "models_t5_umt5-xxl-enc-bf16.pth" in first
    assert first != encoder_identity(path, dtype=torch.float32)
    assert first != encoder_identity(path, tokenizer=layouts.comfyui())
    with one_sentence("missing.pth does not exist"):
        encoder_identity("missing.pth")
    os.utime(path, (1, 1))
    assert first != encoder_identity(path)
    folder = layouts.diffusers()
    assert "model-2.safetensors" in encoder_identity(folder)
    os.utime(folder / "text_encoder/model-2.safetensors", (1, 1))
    assert "model-2.safetensors" in encoder_identity(folder / "text_encoder/model.safetensors.index.json")


class FakeEncoder:
    """Stands for the large encoder: every prompt gets rows of its length, then zeros."""

    def __init__(self, loader: "Loader"):
        self.loader = loader

    def __call__(self, prompt: str) -> Tensor:
        self.loader.prompts.append(prompt)
        self.loader.on_prompt()
        rows = torch.zeros(1, 8, 4, dtype=torch.bfloat16)
        rows[0, : min(8, len(prompt))] = 1 + torch.arange(4)
        return rows


class Loader:
    """A `load` that counts, and remembers its encoders weakly."""

    def __init__(self):
        self.encoders: list[weakref.ref] = []
        self.prompts: list[str] = []
        self.on_prompt: Callable[[], None] = lambda: None

    def __call__(self) -> FakeEncoder:
        encoder = FakeEncoder(self)
        self.encoders.append(weakref.ref(encoder))
        return encoder

    def alive(self) -> int:
        gc.collect()
        return sum(encoder() is not None for encoder in self.encoders)


@pytest.fixture
def loader() -> Loader:
    return Loader()


def test_the_encoder_is_loaded_only_for_new_prompts(tmp_path: Path, loader: Loader) -> None:
    cached = CachedEncoder(loader, "one", tmp_path / "deep/cache")
    assert not loader.encoders
    first = cached("a fox")
    assert torch.equal(cached(" a  fox\n"), first) and loader.prompts == ["a fox"]
    again = CachedEncoder(loader, "one", tmp_path / "deep/cache")
    assert torch.equal(again("a fox"), first) and first.dtype == torch.bfloat16
    assert len(loader.encoders) == 1
    assert torch.equal(again(""), torch.zeros(1, 8, 4, dtype=torch.bfloat16)) and len(loader.encoders) == 2
    CachedEncoder(loader, "another", tmp_path / "deep/cache")("a fox")
    assert len(loader.encoders) == 3


def test_a_prompt_that_fills_all_tokens_is_warned_of_also_from_the_cache(tmp_path, loader, caplog) -> None:
    with caplog.at_level(logging.WARNING, "longlive"):
        CachedEncoder(loader, "one", tmp_path)("a fox")
        assert not caplog.text
        for _ in range(2):
            CachedEncoder(loader, "one", tmp_path)("a fox that runs")
            assert "'a fox that runs' takes all 8 tokens: the words after them are cut off" in caplog.text
            caplog.clear()
    assert len(loader.encoders) == 2


def test_files_of_earlier_versions_are_read(tmp_path: Path, loader: Loader) -> None:
    """The format and the key of a cached prompt, written out: what a user's cache holds stays valid."""
    rows = torch.arange(1, 13, dtype=torch.bfloat16).view(3, 4)
    checksum = zlib.crc32(rows.view(torch.uint8).numpy(), zlib.crc32(b"8"))
    key = hashlib.sha256(b"one\0a fox").hexdigest()
    notes = {"tokens": "8", "checksum": f"{checksum:08x}"}
    save_file({"rows": rows}, tmp_path / f"prompt-{key}.safetensors", notes)
    embeds = CachedEncoder(loader, "one", tmp_path)("a fox")
    assert embeds.shape == (1, 8, 4) and not loader.encoders
    assert torch.equal(embeds[0, :3], rows) and not embeds[0, 3:].any()


def test_damaged_entries_are_encoded_again(tmp_path: Path, loader: Loader) -> None:
    cached = CachedEncoder(loader, "one", tmp_path)
    expected = cached("a fox")
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    for place in range(len(whole)):
        entry.write_bytes(whole[:place] + bytes([whole[place] ^ 0x04]) + whole[place + 1 :])
        assert torch.equal(cached("a fox"), expected), place
    for damaged in (b"", whole[:-1], whole[:20], whole + b"x"):
        entry.write_bytes(damaged)
        assert torch.equal(cached("a fox"), expected)
        assert len(entry.read_bytes()) == len(whole)


def test_the_least_recently_used_entries_go_first(
    tmp_path: Path, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longlive_core.text.cache.CACHE_BYTES", 500)
    (tmp_path / "mine.safetensors").write_bytes(b"x" * 9000)
    cached = CachedEncoder(loader, "one", tmp_path)
    for index, prompt in enumerate(["one", "two", "three"]):
        cached(prompt)
        newest = max(tmp_path.glob("prompt-*"), key=lambda entry: entry.stat().st_mtime_ns)
        os.utime(newest, (index, index))
    cached("one")
    cached("four")
    left = sum(entry.stat().st_size for entry in tmp_path.glob("prompt-*"))
    assert left <= 500 and (tmp_path / "mine.safetensors").exists()
    loader.prompts.clear()
    for prompt in ("four", "one", "two"):
        cached(prompt)
    assert loader.prompts == ["two"]


def test_a_cache_that_cannot_be_written_only_warns(
    tmp_path: Path, loader: Loader, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cached = CachedEncoder(loader, "one", tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING, "longlive"):
        assert cached("a fox").any()
    assert "cannot be cached" in caplog.text


def test_a_cache_on_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, loader: Loader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("longlive_core.text.cache.os.replace", fails)
    with caplog.at_level(logging.WARNING, "longlive"):
        assert CachedEncoder(loader, "one", tmp_path)("a fox").any()
    assert "No space left" in caplog.text and not [*tmp_path.iterdir()]


def test_the_default_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_folder() == Path.home() / ".cache/longlive/text"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/longlive/text")


def test_the_encoder_is_unloaded_before_the_rollout(tmp_path: Path, loader: Loader) -> None:
    seen = []
    loader.on_prompt = lambda: seen.append((len(loader.prompts), loader.alive()))
    cached = CachedEncoder(loader, "one", tmp_path)
    lookup = encode_all(cached, ["a fox", "a bear", "a fox"])
    assert seen == [(1, 1), (2, 1)] and loader.prompts == ["a fox", "a bear"]
    assert loader.alive() == 0
    assert lookup("a bear").shape == (1, 8, 4) and len(loader.encoders) == 1
    assert lookup("a new one").any() and len(loader.encoders) == 2 and loader.alive() == 0
    new = weakref.ref(lookup("a newer one"))
    gc.collect()
    assert new() is None, "prompts that come one after the other do not pile up"


def test_the_encoder_stays_when_asked_to(tmp_path: Path, loader: Loader) -> None:
    lookup = encode_all(CachedEncoder(loader, "one", tmp_path), ["a fox"], keep=True)
    assert loader.alive() == 1
    assert lookup("a new one").any() and len(loader.encoders) == 1


def test_the_real_encoder_is_unloaded_too(layouts: Layouts, tmp_path: Path) -> None:
    path, models = layouts.comfyui_fp8(), []

    def load():
        encoder = load_umt5(path)
        models.append(weakref.ref(encoder.model))
        return encoder

    cached = CachedEncoder(load, encoder_identity(path), tmp_path / "cache")
    lookup = encode_all(cached, [PROMPT])
    gc.collect()
    assert models[0]() is None
    assert torch.equal(lookup(PROMPT), load_umt5(path)(PROMPT))


def test_the_encoder_is_unloaded_when_encoding_stops(tmp_path: Path, loader: Loader) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    loader.on_prompt = stop
    with pytest.raises(KeyboardInterrupt):
        encode_all(CachedEncoder(loader, "one", tmp_path), ["a fox", "a bear"])
    assert loader.prompts == ["a fox"] and loader.alive() == 0


def test_minis_encoder_is_where_it_was() -> None:
    assert WordEncoder(("red",), 4, 8)(["red"]).shape == (1, 4, 8)
