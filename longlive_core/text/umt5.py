"""Files of the UMT5-XXL text encoder -> PromptEncoder; every layout it is published in.

- Wan's `models_t5_umt5-xxl-enc-bf16.pth`, its tokenizer in `google/umt5-xxl` beside it;
- a Hugging Face folder: safetensors (sharded or not), tokenizer in it or in `tokenizer` in or beside it;
- ComfyUI's `umt5_xxl_*.safetensors`, fp8 with scales too, which carry their tokenizer.
"""

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..weights.families import family
from ..weights.files import INDEX_SUFFIX, TensorFile, open_tensors
from ..weights.fit import misfits
from ..weights.quantize import MARKERS, SCALES
from .encoder import PromptEncoder, fill_umt5, umt5_sizes, umt5_skeleton
from .tokens import Tokenizer, load_tokenizer, tokenizer_from_pieces

TOKENIZER_PAGE = "https://huggingface.co/Wan-AI/Wan2.1-T2V-1.3B/tree/main/google/umt5-xxl"
PRECISIONS = (torch.bfloat16, torch.float32)  # fp16 overflows in this model
STORED = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
PIECES = "spiece_model"
_DECODER = re.compile(r"^(decoder\.|lm_head\.)")  # a whole UMT5 is welcome, but only its encoder is used
_WAN_LAYER = re.compile(
    r"^blocks\.(\d+)\.(norm1|norm2|attn|pos_embedding\.embedding|ffn\.\w+(?:\.0)?)\.(.+)$"
)
_WAN_PARTS = {
    "norm1": "0.layer_norm",
    "attn": "0.SelfAttention",
    "pos_embedding.embedding": "0.SelfAttention.relative_attention_bias",
    "norm2": "1.layer_norm",
    "ffn.gate.0": "1.DenseReluDense.wi_0",
    "ffn.fc1": "1.DenseReluDense.wi_1",
    "ffn.fc2": "1.DenseReluDense.wo",
}
_WAN_TOPS = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}


class _Names(NamedTuple):
    """transformers' names -> the file's, for the weights and for their scales."""

    weights: dict[str, str]
    scales: dict[str, str]


def load_umt5(
    path: Path | str,
    tokenizer: Path | str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
) -> PromptEncoder:
    """Load the encoder of a file or folder; `tokenizer` None finds the one in it or beside it.

    `dtype`, bfloat16 or float32, is that of the result, and of the arithmetic on a GPU. On a CPU the
    arithmetic is always float32: few processors compute bfloat16 fast, most many times slower. In memory the
    weights keep the dtype of the file. Raises ValueError in one sentence for everything that is wrong with
    the files.
    """
    if dtype not in PRECISIONS:
        raise ValueError(f"UMT5 cannot compute in {dtype}; choose torch.bfloat16 or torch.float32")
    file = open_tensors(_weights_path(Path(path)))
    names = _names(file)
    model = _skeleton(file, names)
    reader = _tokenizer(file, Path(path), tokenizer)
    vocabulary = file.shapes[names.weights["shared.weight"]][0]
    if reader.size > vocabulary:
        raise ValueError(
            f"the tokenizer knows {reader.size} tokens, but {path} only {vocabulary}: "
            "they belong to different models; use umt5-xxl's for both"
        )
    weights, scales = _tensors(file, names)
    arithmetic = torch.float32 if torch.device(device).type == "cpu" else dtype
    fill_umt5(model, weights, scales, arithmetic)
    return PromptEncoder(model.to(device), reader, dtype)


def encoder_identity(
    path: Path | str, tokenizer: Path | str | None = None, dtype: torch.dtype = torch.bfloat16
) -> str:
    """What a cache must know an encoder by: names, sizes and times of its files, and the dtype.

    Raises ValueError when a file does not exist.
    """
    weights = _weights_path(Path(path))
    is_folder = weights.is_dir() or weights.name.endswith(INDEX_SUFFIX)
    folder = weights if weights.is_dir() else weights.parent
    files = sorted(folder.glob("*.safetensors")) if is_folder else [weights]
    words = Path(tokenizer) if tokenizer else _tokenizer_beside(Path(path))
    files += sorted(words.iterdir()) if words and words.is_dir() else [words] if words else []
    if absent := [file for file in files if not file.exists()]:
        raise ValueError(f"{absent[0]} does not exist")
    stamps = [(file.name, file.stat()) for file in files]
    return "; ".join([f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stamps] + [str(dtype)])


def _weights_path(path: Path) -> Path:
    """Where the weights of a folder are: diffusers keeps them in `text_encoder`."""
    return path / "text_encoder" if (path / "text_encoder").is_dir() else path


def _names(file: TensorFile) -> _Names:
    """Sort the names of a file; those of a decoder, of a tokenizer and of quantisation are left out."""
    names = _Names({}, {})
    for name in file.shapes:
        if name == PIECES or name.endswith(MARKERS) or _DECODER.match(name):
            continue
        if suffix := next((s for s in SCALES if name.endswith(s)), None):
            names.scales[_transformers_name(name.removesuffix(suffix) + ".weight")] = name
        else:
            names.weights[_transformers_name(name)] = name
    return names


def _transformers_name(name: str) -> str:
    """A name of Wan's file or of transformers -> transformers'."""
    if match := _WAN_LAYER.match(name):
        layer, part, rest = match.groups()
        return f"encoder.block.{layer}.layer.{_WAN_PARTS.get(part, part)}.{rest}"
    top, _, rest = name.partition(".")
    if top in _WAN_TOPS:
        return f"{_WAN_TOPS[top]}.{rest}"
    return "shared.weight" if name == "encoder.embed_tokens.weight" else name


def _skeleton(file: TensorFile, names: _Names) -> nn.Module:
    """The module on meta, once every tensor of the file is known to fit it."""
    shapes = {ours: file.shapes[theirs] for ours, theirs in names.weights.items()}
    sizes = umt5_sizes(shapes)
    if sizes is None:
        raise _misfit(file, "its tensors are not named or shaped like one")
    model = umt5_skeleton(sizes)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    expected.pop("encoder.embed_tokens.weight", None)  # the same table as shared.weight
    strange = [ours for ours, theirs in names.weights.items() if file.dtypes[theirs] not in STORED]
    if wrong := misfits(expected, shapes, strange):
        raise _misfit(file, wrong)
    return model


def _misfit(file: TensorFile, reason: str) -> ValueError:
    """The one sentence for a file that is something else."""
    kind = family(file.shapes)
    kind = f"looks like {kind}" if kind.startswith("a ") else "is something else"
    return ValueError(
        f"{file.path} does not hold a whole UMT5 encoder: {reason}; it {kind}. Choose Wan's "
        "models_t5_umt5-xxl-enc-bf16.pth, ComfyUI's umt5_xxl_*.safetensors or a Hugging Face folder"
    )


def _tensors(file: TensorFile, names: _Names) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and scales, memory-mapped, by transformers' names."""
    read = file.read([*names.weights.values(), *names.scales.values()])
    weights = {ours: read[theirs] for ours, theirs in names.weights.items()}
    scales = {ours: read[theirs] for ours, theirs in names.scales.items()}
    for name, scale in scales.items():
        if name not in weights or scale.numel() not in (1, len(weights[name])):
            raise _misfit(file, f"{names.scales[name]} is no scale of a weight or of its rows")
    return weights, scales


def _tokenizer(file: TensorFile, path: Path, given: Path | str | None) -> Tokenizer:
    """The given tokenizer, else the file's own, else the one beside it."""
    if given:
        return load_tokenizer(Path(given))
    if PIECES in file.shapes:
        pieces = file.read([PIECES])[PIECES]
        return tokenizer_from_pieces(bytes(pieces.numpy()), f"{PIECES} in {file.path}")
    if found := _tokenizer_beside(path):
        return load_tokenizer(found)
    raise ValueError(
        f"{path} has no tokenizer in it or beside it: download tokenizer.json from {TOKENIZER_PAGE} "
        f"into the folder {path.parent / 'google' / 'umt5-xxl'}, or name one as `tokenizer`"
    )


def _tokenizer_beside(path: Path) -> Path | None:
    """A folder with a tokenizer where the published layouts keep it."""
    inside = [path, path / "tokenizer"] if path.is_dir() else []
    folders = [*inside, path.parent / "tokenizer", path.parent / "google" / "umt5-xxl"]
    files = ("tokenizer.json", "spiece.model")
    return next((folder for folder in folders if any((folder / file).is_file() for file in files)), None)
