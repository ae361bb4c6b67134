"""The nodes that load: LongLive Mini, a checkpoint, a MODEL of ComfyUI, a VAE."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from comfy_api.v0_0_2 import io

from ..longlive_core.config import LONGLIVE_1_3B, MINI, RELATIVES, ModelConfig, Preset
from ..longlive_core.fast.compiled import EAGER, SPEEDS, known_speed
from ..longlive_core.mini.loader import load_mini
from ..longlive_core.model.attention import AUTO, BACKENDS, Attend, attention_backend, known_attention
from ..longlive_core.model.causal_wan import CausalWan
from ..longlive_core.weights.checkpoints import (
    MERGED,
    NO_LORA,
    Progress,
    load_transformer,
    may_have_two_sets,
    preset_of_metadata,
    preset_of_name,
    settle,
)
from ..longlive_core.weights.convert import convert
from ..longlive_core.weights.download import download
from ..longlive_core.weights.files import open_tensors, sha256_of
from ..longlive_core.weights.lora import LoraChoice
from ..longlive_core.weights.published import DOWNLOADS
from ..longlive_core.weights.quantize import PRECISIONS, precision_of
from ..longlive_core.weights.vace import graft
from ..longlive_core.weights.vae_files import load_vae
from . import host
from .adapters import MiniClip
from .io_types import ADVANCED, CATEGORY, ModelType, StreamModel, found_by
from .shared_model import shared_config, shared_transformer, vace_of, with_lora
from .vaes import OwnVae

MODELS, LORAS, NONE = "diffusion_models", "loras", "none"
VAES = ("vae", "vae_approx")
PUBLISHED = {
    "SGF+ (download)": "sgf-plus-transformer",
    "LongLive-1.3B (download)": "longlive-1.3b-transformer",
}
RENAMED = {  # LoRAs that a browser saves under the name of their publisher
    file.name: name
    for file in chain.from_iterable(DOWNLOADS.values())
    if file.kind == LORAS and (name := Path(file.path).name) != file.name
}
FRAME_WISE = "causal-forcing-framewise"
STRENGTHS = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.05}

LoraStrengthInput = io.Float.Input(
    "lora_strength", **STRENGTHS, tooltip="How much of the LoRA is added. 1 for LongLive's own."
)
SecondStrengthInput = io.Float.Input(
    "second_strength", **ADVANCED | STRENGTHS, tooltip="How much of the second LoRA is added."
)
AttentionInput = io.Combo.Input(
    "attention",
    **ADVANCED,
    options=[AUTO, *BACKENDS],
    default=AUTO,
    tooltip=(
        "auto: the fastest exact one for this GPU, flash-attn too where it is installed. sdpa always works. "
        "flash2, flash3, sage and int8 (comfy-kitchen) need their package; sage and int8 round to 8 bits."
    ),
)
FamilyInput = io.Combo.Input(
    "family",
    **ADVANCED,
    options=[AUTO, *RELATIVES],
    default=AUTO,
    tooltip=(
        "Which published model it is: block, window and sink follow from it. auto: from the file's metadata "
        "or, in LongLive: Load Model, its name; else LongLive."
    ),
)
SpeedInput = io.Combo.Input(
    "speed",
    **ADVANCED,
    options=list(SPEEDS),
    default=EAGER,
    optional=True,
    tooltip=(
        "plain: nothing to wait for. compiled: about 1.2 times as fast on an NVIDIA GPU; the first run of a "
        "size waits a minute or two. Where nothing can be compiled, it runs as plain, and LongLive: Stream "
        "shows a note."
    ),
)
PrecisionInput = io.Combo.Input(
    "precision",
    options=[AUTO, *PRECISIONS],
    default=AUTO,
    tooltip=(
        "How weights are stored. auto: as suits this machine. fp8, int8: half the memory of bf16, nearly the "
        "same video. fp8-fast: also multiplied in fp8, faster on an RTX 40, H100 or newer. int8: multiplied "
        "in int8 where comfy-kitchen is faster on this GPU, int8-fast always."
    ),
)
LicenceInput = io.Boolean.Input(
    "accept_licence",
    default=False,
    optional=True,
    tooltip=(
        "Only for the download: accept the licence of the published weights. While it is off, the error "
        "shows sizes and licences. A lost connection resumes. If you stop it, complete files stay; whether "
        "the others resume depends on the version of huggingface_hub."
    ),
)
SaveMergedInput = io.String.Input(
    "save_merged",
    **ADVANCED,
    default="",
    optional=True,
    tooltip=(
        "Name of a file to write into models/diffusion_models: checkpoint and LoRAs in one, in bf16 or fp8. "
        "It loads several times as fast, and stock loaders read it too. Empty: none. No file is replaced."
    ),
)
ModelOutput = ModelType.Output(display_name="model", tooltip="The generator. Goes into LongLive: Stream.")


class LongLiveLoadMini(io.ComfyNode):
    """The built-in model as a generator, a CLIP and a VAE; nothing to download."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveLoadMini",
            display_name="LongLive: Load Mini",
            category=CATEGORY,
            **found_by("longlive mini, text to video, long video, realtime, demo, wan"),
            description=(
                "Loads LongLive Mini, the small video model that comes with this pack. Nothing to download; "
                "real time on a CPU. It draws one shape on a plain background."
            ),
            inputs=[],
            outputs=[
                ModelOutput,
                io.Clip.Output(
                    display_name="clip",
                    tooltip="The text encoder: a small dictionary. Also works with CLIP Text Encode.",
                ),
                io.Vae.Output(
                    display_name="vae",
                    tooltip="The autoencoder: 8x in space, 4x in time. Also works with VAE Decode.",
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        mini = load_mini()
        model = StreamModel(MINI, host.managed(mini.transformer), "fp32", has_vace=True)
        return io.NodeOutput(model, MiniClip(mini.words), OwnVae(mini.autoencoder, MINI))


class LongLiveLoadModel(io.ComfyNode):
    """A checkpoint and its LoRAs from ComfyUI's model folders as a generator."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveLoadModel",
            display_name="LongLive: Load Model",
            category=CATEGORY,
            **found_by(
                "wan, self forcing, causal, sgf, long video, text to video, load video model, realtime"
            ),
            description=(
                "Loads a model for long videos, SGF+, LongLive-1.3B or a relative, from files of any layout, "
                ".pt or safetensors, and LoRAs. For a MODEL from a stock loader use LongLive: Use Model. "
                "SGF+ loads only here."
            ),
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=[*PUBLISHED, *host.file_names(MODELS)],
                    tooltip=(
                        "A file in models/diffusion_models (SGF+, SGF, LongLive or another Wan 2.1 1.3B), or "
                        "a published model to download."
                    ),
                ),
                io.Combo.Input(
                    "lora",
                    options=lora_names(),
                    default=NONE,
                    tooltip="A file in models/loras. LongLive's own LoRA belongs to longlive_base.",
                ),
                LoraStrengthInput,
                io.Combo.Input(
                    "second_lora",
                    **ADVANCED,
                    options=lora_names(),
                    default=NONE,
                    tooltip="One more LoRA for Wan 2.1 1.3B, e.g. a style.",
                ),
                SecondStrengthInput,
                PrecisionInput,
                AttentionInput,
                FamilyInput,
                LicenceInput,
                SpeedInput,
                SaveMergedInput,
                io.Combo.Input(
                    "vace",
                    options=[NONE, *host.file_names(MODELS)],
                    default=NONE,
                    optional=True,
                    tooltip=(
                        "A file with VACE 1.3B in models/diffusion_models, for LongLive: Control, such as "
                        "wan2.1_vace_1.3B_fp16.safetensors. Its other weights are not loaded."
                    ),
                ),
            ],
            outputs=[ModelOutput],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, lora: str, second_lora: str, vace: str = NONE, **_) -> str:
        """Changes with the files; what comes over a link is None here."""
        loras = [(lora_file(name), LORAS) for name in (lora, second_lora)]
        return stamps((checkpoint, MODELS), *loras, (vace, MODELS))

    @classmethod
    def validate_inputs(cls, attention: str, speed: str = EAGER) -> bool:
        """Accept values that older workflows name; `execute` refuses unknown ones."""
        return True

    @classmethod
    def execute(cls, checkpoint, precision, attention, family, accept_licence=False, speed=EAGER, **files):
        speed, attention, replaced = known_choices(speed, attention)
        precision = default_precision() if precision == AUTO else precision
        family, progress = None if family == AUTO else family, host.Progress(cls.hidden.unique_id, 1).at
        path, choices = chosen_files(checkpoint, accept_licence, files)
        merged = files.get("save_merged", "")
        path, choices, saved = merged_file(merged, path, choices, precision, family, progress)
        devices = host.offload_device(), attention_backend(attention, host.device(), replaced.append)
        loaded = load_transformer(path, choices, precision, *devices, family, on_progress=progress)
        vace, grafted = with_vace(loaded.transformer, files.get("vace", NONE), precision, choices, progress)
        settled = settle(loaded.transformer, precision, host.device())
        source = {"checkpoint": path.name, "sha256": sha256_of(path), **added(choices, attention), **vace}
        shared = host.managed(loaded.transformer)
        model = StreamModel(loaded.preset, shared, precision, source, speed, bool(vace))
        notes = (f"{loaded.preset.name}, {precision}", *replaced, *saved, *loaded.notes, *grafted, *settled)
        return io.NodeOutput(model, ui=host.shown(cls.hidden.unique_id, notes))


class LongLiveUseModel(io.ComfyNode):
    """A MODEL of a stock loader, with stock LoRAs, as a generator that shares its weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveUseModel",
            display_name="LongLive: Use Model",
            category=CATEGORY,
            **found_by("wan, self forcing, causal, sgf, long video, text to video, realtime"),
            description=(
                "Lets a Wan MODEL from a stock loader, with stock LoRAs, make a long video. "
                "The weights are shared with ComfyUI: nothing is loaded twice."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A Wan 2.1 1.3B: LongLive or a relative, from a stock loader, LoRAs applied.",
                ),
                io.Combo.Input(
                    "lora",
                    options=lora_names(),
                    default=NONE,
                    tooltip="LongLive's own LoRA, unless the MODEL has it; stock nodes cannot read lora.pt.",
                ),
                LoraStrengthInput,
                AttentionInput,
                FamilyInput,
                SpeedInput,
                io.Combo.Input(
                    "vace",
                    options=[NONE, *host.file_names(MODELS)],
                    default=NONE,
                    optional=True,
                    tooltip=(
                        "A file with VACE 1.3B in models/diffusion_models, for LongLive: Control. The MODEL "
                        "and its weights stay as they are."
                    ),
                ),
            ],
            outputs=[ModelOutput],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str, vace: str = NONE, **_) -> str:
        """Changes with the files; what comes over a link is None here."""
        return stamps((lora_file(lora), LORAS), (vace, MODELS))

    @classmethod
    def validate_inputs(cls, attention: str, speed: str = EAGER) -> bool:
        """Accept values that older workflows name; `execute` refuses unknown ones."""
        return True

    @classmethod
    def execute(cls, model, lora, lora_strength, attention, family, speed=EAGER, vace=NONE):
        speed, attention, replaced = known_choices(speed, attention)
        attend, config = attention_backend(attention, host.device(), replaced.append), shared_config(model)
        preset, file = replace(preset_of(model, family), model=config), host.file_of(model)
        choices = chosen_loras([(lora, lora_strength)])
        source = host.source_of(model) | added(choices, attention)
        notes = [preset.name, *replaced, *unused_changes(model)]
        if preset.needs_lora and not (choices or host.is_changed(model) or metadata_of(file).get(MERGED)):
            notes.append(NO_LORA)
        for choice in choices:
            model, report = with_lora(model, config, choice)
            notes.append(report)
        shared = shared_with_vace(model, config, attend, vace)
        precision = precision_of(host.bytes_per_weight(model))
        source |= {} if vace == NONE else {"vace": vace}
        generator = StreamModel(preset, shared, precision, source, speed, vace != NONE)
        return io.NodeOutput(generator, ui=host.shown(cls.hidden.unique_id, notes))


class LongLiveLoadVAE(io.ComfyNode):
    """A VAE for the files that the stock loader does not know, and for decoding in tiles."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveLoadVAE",
            display_name="LongLive: Load VAE",
            category=CATEGORY,
            **found_by("taehv, taew2_1, tiny vae, wan vae, tiled vae, video vae"),
            description=(
                "Loads what turns latents into video: a tiny decoder of Wan latents (taew2_1: fast, little "
                "memory) or a Wan 2.1 VAE, which may decode in tiles. For a Wan VAE without tiles the stock "
                "Load VAE does as well."
            ),
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=host.file_names(*VAES),
                    tooltip="A file in models/vae or models/vae_approx: wan_2.1_vae, taew2_1, lighttaew2_1.",
                ),
                io.Boolean.Input(
                    "tiled",
                    default=False,
                    tooltip="Decode in blended tiles of 256 pixels: slower, with a fraction of the memory.",
                ),
            ],
            outputs=[
                io.Vae.Output(
                    display_name="vae",
                    tooltip="Goes into LongLive: Stream or Decode. Also works with VAE Decode.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, vae_name: str, **_) -> str:
        """Changes with the file; what comes over a link is None here."""
        return "" if vae_name is None else host.file_stamp(vae_name, *VAES)

    @classmethod
    def execute(cls, vae_name: str, tiled: bool) -> io.NodeOutput:
        path = host.file_path(vae_name, *VAES)
        autoencoder = load_vae(path, host.vae_dtype(), host.vae_offload_device())
        return io.NodeOutput(OwnVae(autoencoder, LONGLIVE_1_3B, tiled))


def stamps(*files: tuple[str | None, str]) -> str:
    """What changes when one of these files, (name, folder), does."""
    return "|".join(host.file_stamp(*file) for file in files if file[0] not in (None, NONE, *PUBLISHED))


def lora_names() -> list[str]:
    """The files in models/loras, those that still have their publisher's name under ours too."""
    names = host.file_names(LORAS)
    return [NONE, *names, *(ours for ours in RENAMED if ours not in names and lora_file(ours) in names)]


def lora_file(name: str | None) -> str | None:
    """What a LoRA is called on this disk: its publisher's name where ours is not there."""
    names = host.file_names(LORAS)
    return RENAMED[name] if name in RENAMED and name not in names and RENAMED[name] in names else name


def known_choices(speed: str, attention: str) -> tuple[str, str, list[str]]:
    """Speed and attention as they are now, and notes where a workflow names one that was replaced."""
    (speed, *notes), (attention, *more) = known_speed(speed), known_attention(attention)
    return speed, attention, [note for note in (*notes, *more) if note]


def default_precision() -> str:
    """The precision that ComfyUI would choose on this machine."""
    dtype = host.model_dtype()
    return precision_of(dtype.itemsize, dtype)


def chosen_files(checkpoint: str, accept_licence: bool, loras: dict) -> tuple[Path, list[LoraChoice]]:
    """The chosen checkpoint and LoRAs; the published ones are downloaded first, if they were chosen."""
    pairs = ("lora", "lora_strength"), ("second_lora", "second_strength")
    choices = chosen_loras((loras[name], loras[strength]) for name, strength in pairs)
    if checkpoint not in PUBLISHED:
        return host.file_path(checkpoint, MODELS), choices
    base, *own = downloaded(PUBLISHED[checkpoint], accept_licence)
    chosen = own if loras["lora"] == NONE else []
    return base, [*(LoraChoice(path, loras["lora_strength"]) for path in chosen), *choices]


def downloaded(name: str, accept_licence: bool) -> list[Path]:
    """A published checkpoint and its LoRA, if any; ValueError with sizes and licences unless accepted."""
    terms: list[str] = []

    def confirm(text: str) -> bool:
        terms.append(" ".join(text.split()))
        return accept_licence

    paths = download(name, host.models_folder(), confirm=confirm)
    if not paths:
        raise ValueError(f"nothing was downloaded, because accept_licence is off: {terms[0]}")
    return paths


def merged_file(
    name: str, path: Path, choices: list[LoraChoice], *how: Any
) -> tuple[Path, list[LoraChoice], list[str]]:
    """What to load, and notes: with a name for it, checkpoint and LoRAs as one file, unless that is there.

    `how` is precision, family and progress. Raises ValueError for a name with folders.
    """
    if not name:
        return path, choices, []
    if Path(name).name != name:
        raise ValueError(f"save_merged is {name!r}; give the name of a file, without folders")
    out = host.models_folder() / MODELS / f"{name.removesuffix('.safetensors')}.safetensors"
    if out.exists():
        return path, choices, [f"{out.name} exists and was not written: choose it as checkpoint"]
    out.parent.mkdir(parents=True, exist_ok=True)
    precision, family, progress = how
    notes = convert(path, choices, precision.removesuffix("-fast"), out, family, progress)
    return out, [], [*notes, f"{out.name} is written: choose it as checkpoint from now on, without a LoRA"]


def with_vace(
    transformer: CausalWan, name: str, precision: str, loras: list[LoraChoice], progress: Progress
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Give a transformer the VACE layers of a file, if one is chosen: what metadata says of it, and notes."""
    if name == NONE:
        return {}, ()
    path = host.file_path(name, MODELS)
    notes = graft(transformer, path, precision, host.offload_device(), tuple(loras), progress)
    return {"vace": path.name}, (f"with VACE of {path.name}", *notes)


def shared_with_vace(model: Any, config: ModelConfig, attend: Attend, name: str) -> host.Managed[CausalWan]:
    """A transformer on the weights of a MODEL, with the VACE layers of a file, if one is chosen."""
    if name == NONE:
        return host.Managed(model, cache(lambda: shared_transformer(model, config, attend)))
    vace = vace_of(host.file_path(name, MODELS), model, config, attend)
    bind = cache(lambda: shared_transformer(model, config, attend, vace))
    return host.Managed(model, bind, (host.managed(vace).patcher,))


def chosen_loras(chosen: Iterable[tuple[str, float]]) -> list[LoraChoice]:
    """(name, strength) of widgets -> files."""
    return [
        LoraChoice(host.file_path(lora_file(name), LORAS), strength)
        for name, strength in chosen
        if name != NONE
    ]


def added(choices: Sequence[LoraChoice], attention: str) -> dict[str, Any]:
    """What a video's metadata names next to its checkpoint."""
    return {"loras": {choice.path.name: choice.strength for choice in choices}, "attention": attention}


def preset_of(model: Any, family: str) -> Preset:
    """The chosen preset, that of the file, or of the kind that ComfyUI takes it for; ValueError for SGF+."""
    file, kind = host.file_of(model), RELATIVES[FRAME_WISE] if host.is_frame_wise(model) else LONGLIVE_1_3B
    found = RELATIVES[family] if family != AUTO else preset_of_metadata(metadata_of(file), file)
    preset = found or kind
    if preset.has_two_sets or (file and may_have_two_sets(file)):
        raise ValueError(
            f"{file.name if file else preset.name} has two sets of weights (SGF+), and ComfyUI's own loader "
            "drops the second; load the file with LongLive: Load Model"
        )
    return preset


def metadata_of(path: Path | None) -> dict[str, str]:
    """What a model file says of itself, as `longlive convert` writes it; empty where there is none."""
    is_read = path is not None and path.suffix == ".safetensors" and path.is_file()
    return open_tensors(path).metadata if is_read else {}


def block_of(checkpoint: str, family: str, stock: str = "") -> int:
    """Latent frames in a block of a checkpoint of LongLive: Load Model, or of a `stock` loader's file.

    LongLive's where nothing says more.
    """
    preset = RELATIVES.get(family, LONGLIVE_1_3B)
    if family not in RELATIVES:
        if checkpoint in PUBLISHED:
            preset = preset_of_name(Path(DOWNLOADS[PUBLISHED[checkpoint]][0].name))
        elif (name := checkpoint or stock) in host.file_names(MODELS):
            path, stamp = host.file_path(name, MODELS), host.file_stamp(name, MODELS)
            preset = preset_of_head(path, stamp, is_stock=not checkpoint) or LONGLIVE_1_3B
    return preset.window.block_latent_frames


@cache
def preset_of_head(path: Path, _stamp: str, is_stock: bool) -> Preset | None:
    """The preset by a file's metadata, else its name; LongLive: Use Model does not go by names."""
    try:
        return preset_of_metadata(metadata_of(path), path) or (None if is_stock else preset_of_name(path))
    except ValueError:  # the run says why
        return None


def unused_changes(model: Any) -> list[str]:
    """A warning about what other nodes did to the MODEL, if they did."""
    changes = ", ".join(host.other_changes(model))
    return [f"of this MODEL only its weights and LoRAs are used, not: {changes}"] if changes else []
