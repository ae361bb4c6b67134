"""UMT5-XXL text encoder: files of every published layout -> PromptEncoder, prompt -> text embeddings.

- Wan's `models_t5_umt5-xxl-enc-bf16.pth`, with its tokenizer in `google/umt5-xxl` in the same folder;
- a Hugging Face folder: safetensors (sharded or not), tokenizer in it or in `tokenizer` in or next to it;
- ComfyUI's `umt5_xxl_*.safetensors`, also fp8 with scales, which contain their tokenizer.

The network is transformers' own. Its matrices keep the dtype of the file and are upcast one at a time when
they are used: 8-bit files stay 8-bit in memory, and on a CPU a memory-mapped file is never copied.
"""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..fast.products import stored_linear
from ..weights.files import INDEX_SUFFIX, TensorFile, open_tensors
from ..weights.names import SCALE, family, misfits, renamed, shapes_in
from ..weights.quantize import dequantised
from .tokens import TEXT_TOKENS, Tokenizer, find_tokenizer, library, load_tokenizer, tokenizer_from_pieces

TOKENIZER_PAGE = "https://huggingface.co/Wan-AI/Wan2.1-T2V-1.3B/tree/main/google/umt5-xxl"
PRECISIONS = (torch.bfloat16, torch.float32)  # fp16 overflows in this model
STORED = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
PIECES = "spiece_model"
_DECODER = re.compile(r"^(decoder\.|lm_head\.)")  # files of a whole UMT5 load too; the decoder is ignored
_RENAMES = (  # Wan's names -> transformers'
    (r"^(token_embedding|encoder\.embed_tokens)\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.", r"encoder.block.\1.layer."),
    (r"\.norm1\.", ".0.layer_norm."),
    (r"\.attn\.", ".0.SelfAttention."),
    (r"\.pos_embedding\.embedding\.", ".0.SelfAttention.relative_attention_bias."),
    (r"\.norm2\.", ".1.layer_norm."),
    (r"\.ffn\.gate\.0\.", ".1.DenseReluDense.wi_0."),
    (r"\.ffn\.fc1\.", ".1.DenseReluDense.wi_1."),
    (r"\.ffn\.fc2\.", ".1.DenseReluDense.wo."),
)


class PromptEncoder:
    """Callable: prompt -> text embeddings [1, 512, text dim] in `dtype`; rows after `</s>` are zero."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, dtype: torch.dtype):
        self.model, self.tokenizer, self.dtype = model, tokenizer, dtype

    def __call__(self, prompt: str) -> Tensor:
        return self.embed(self.tokenizer(prompt))

    @torch.no_grad()
    def embed(self, tokens: list[int]) -> Tensor:
        """Token ids, `</s>` included -> [1, 512, text dim] on the encoder's device.

        Padding is not computed, its rows are zero. Raises ValueError when an embedding is not finite.
        """
        device = self.model.get_input_embeddings().stored.device
        ids = torch.tensor([tokens], dtype=torch.long, device=device)
        rows = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        if not rows.isfinite().all():
            raise ValueError("the text embeddings are not finite: the text encoder's file is damaged")
        return F.pad(rows, (0, 0, 0, TEXT_TOKENS - len(tokens))).to(self.dtype)


def load_umt5(
    path: Path | str,
    tokenizer: Path | str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
) -> PromptEncoder:
    """Load the encoder of a file or folder; `tokenizer` None finds the one in it or next to it.

    `dtype`, bfloat16 or float32, is that of the embeddings, and of the arithmetic on a GPU; a CPU computes in
    float32, since most are slow in bfloat16. Raises ValueError for everything that is wrong with the files.
    """
    if dtype not in PRECISIONS:
        raise ValueError(f"UMT5 cannot compute in {dtype}; choose torch.bfloat16 or torch.float32")
    path = Path(path)
    file = open_tensors(_weights_path(path))
    encoder = [name for name in file.tensors if name != PIECES and not _DECODER.match(name)]
    names = renamed(encoder, _transformers_name)
    tensors = {ours: file.tensors[theirs] for ours, theirs in names.items()}
    model = _checked_skeleton(file, tensors)
    words = _tokenizer(file, path, tokenizer)
    if words.size > model.config.vocab_size:
        raise ValueError(
            f"{path} has only {model.config.vocab_size} tokens, its tokenizer {words.size}; use umt5-xxl's"
        )
    fill_umt5(model, tensors, torch.float32 if torch.device(device).type == "cpu" else dtype)
    return PromptEncoder(model.to(device), words, dtype)


def encoder_identity(
    path: Path | str, tokenizer: Path | str | None = None, dtype: torch.dtype = torch.bfloat16
) -> str:
    """Key of an encoder in the cache: dtype, names, sizes and times of files; ValueError if one is absent."""
    weights = _weights_path(Path(path))
    folder = weights.parent if weights.name.endswith(INDEX_SUFFIX) else weights
    words = Path(tokenizer) if tokenizer else find_tokenizer(Path(path))
    files = [*_files(folder, "*.safetensors"), *(_files(words, "*") if words else [])]
    if absent := [file for file in files if not file.exists()]:
        raise ValueError(f"{absent[0]} does not exist")
    stamps = [(file.name, file.stat()) for file in files]
    return "; ".join([f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stamps] + [str(dtype)])


def _files(path: Path, pattern: str) -> list[Path]:
    return sorted(path.glob(pattern)) if path.is_dir() else [path]


def _weights_path(path: Path) -> Path:
    """Folder or file of the weights: diffusers keeps them in `text_encoder`."""
    return path / "text_encoder" if (path / "text_encoder").is_dir() else path


def _transformers_name(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _checked_skeleton(file: TensorFile, tensors: dict[str, Tensor]) -> nn.Module:
    """The encoder on `meta`; ValueError unless every tensor, by transformers' name, belongs to it."""
    scales = {name: name.removesuffix(SCALE) for name in tensors if name.endswith(SCALE)}
    shapes = {name: shape for name, shape in shapes_in(tensors).items() if name not in scales}
    model = umt5_skeleton(shapes)
    if model is None:
        raise _misfit(file, "its tensors are not named or shaped like one")
    expected = shapes_in(dict(model.named_parameters()))
    expected.pop("encoder.embed_tokens.weight", None)  # tied to shared.weight
    strange = [name for name in shapes if tensors[name].dtype not in STORED]
    if wrong := misfits(expected, shapes, strange):
        raise _misfit(file, wrong)
    for scale, weight in scales.items():
        if weight not in shapes or tensors[scale].numel() not in (1, shapes[weight][0]):
            raise _misfit(file, f"{scale} is no scale of a weight or of its rows")
    return model


def umt5_skeleton(shapes: dict[str, tuple[int, ...]]) -> nn.Module | None:
    """The encoder on `meta`, its sizes inferred from shapes by transformers' names; None if it is no UMT5."""
    first = "encoder.block.0.layer"
    try:
        vocabulary, dim = shapes["shared.weight"]
        buckets, heads = shapes[f"{first}.0.SelfAttention.relative_attention_bias.weight"]
        inner, _ = shapes[f"{first}.0.SelfAttention.q.weight"]
        ffn_dim, _ = shapes[f"{first}.1.DenseReluDense.wi_0.weight"]
    except (KeyError, ValueError):
        return None
    if min(vocabulary, dim, buckets, heads, ffn_dim) < 1 or inner % heads or not inner:
        return None
    transformers = library("transformers")
    config = transformers.UMT5Config(
        vocab_size=vocabulary,
        d_model=dim,
        d_kv=inner // heads,
        d_ff=ffn_dim,
        num_heads=heads,
        num_layers=sum(name.endswith(".SelfAttention.q.weight") for name in shapes),
        relative_attention_num_buckets=buckets,
        attn_implementation="eager",
    )
    with torch.device("meta"):
        return transformers.UMT5EncoderModel(config).eval()


def _misfit(file: TensorFile, reason: str) -> ValueError:
    return ValueError(
        f"{file.path} is no whole UMT5 encoder: {reason}; it looks like {family(file.shapes)}. Choose Wan's "
        "models_t5_umt5-xxl-enc-bf16.pth, ComfyUI's umt5_xxl_*.safetensors or a Hugging Face folder"
    )


def fill_umt5(model: nn.Module, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Put weights and scales into a skeleton; only norms and position biases are copied, to `dtype`."""

    def stored(name: str) -> tuple[Tensor, Tensor | None]:
        return tensors[f"{name}.weight"], tensors.get(f"{name}.weight{SCALE}")

    for name, module in [*model.named_modules()]:
        if isinstance(module, nn.Linear):
            model.set_submodule(name, StoredLinear(*stored(name)))
    model.set_input_embeddings(StoredEmbedding(*stored("shared"), dtype))
    small = [name for name, _ in model.named_parameters()]
    full = {name: dequantised(*stored(name.removesuffix(".weight"))).to(dtype) for name in small}
    model.load_state_dict(full, assign=True, strict=False)
    model.requires_grad_(False)


class StoredLinear(nn.Module):
    """Linear layer, x [..., in] -> [..., out]: weight [out, in] in any dtype, scale [1] or [out] or None."""

    weight = None  # transformers casts the input to this weight's dtype where there is one

    def __init__(self, stored: Tensor, scale: Tensor | None):
        super().__init__()
        self.register_buffer("stored", stored)
        self.register_buffer("scale", None if scale is None else scale.float().flatten())

    def forward(self, x: Tensor) -> Tensor:
        return stored_linear(x, self.stored, self.scale)


class StoredEmbedding(nn.Module):
    """Embedding table [ids, dim] in any dtype: ids [...] -> rows [..., dim] in `dtype`."""

    def __init__(self, stored: Tensor, scale: Tensor | None, dtype: torch.dtype):
        super().__init__()
        self.register_buffer("stored", stored)
        scale = torch.ones(1) if scale is None else scale.float().flatten()
        self.register_buffer("scale", scale.expand(len(stored)))
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        return (self.stored[ids].float() * self.scale[ids, None]).to(self.dtype)


def _tokenizer(file: TensorFile, path: Path, given: Path | str | None) -> Tokenizer:
    if given:
        return load_tokenizer(Path(given))
    if PIECES in file.shapes:
        return tokenizer_from_pieces(bytes(file.tensors[PIECES].numpy()), f"{PIECES} in {file.path}")
    if found := find_tokenizer(path):
        return load_tokenizer(found)
    raise ValueError(
        f"{path} has no tokenizer in it or next to it: download tokenizer.json from {TOKENIZER_PAGE} "
        f"into the folder {path.parent / 'google' / 'umt5-xxl'}, or pass one as `tokenizer`"
    )
