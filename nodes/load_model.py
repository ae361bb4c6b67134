"""LongLiveLoadModel: a checkpoint and its LoRAs from the host's folders -> a generator."""

from pathlib import Path

from comfy_api.latest import io

from ..longlive_core.fast.compiled import EAGER
from ..longlive_core.model.attention import attention_backend
from ..longlive_core.weights.checkpoints import load_transformer, settle
from ..longlive_core.weights.download import download
from ..longlive_core.weights.lora import LoraChoice
from ..longlive_core.weights.quantize import PRECISIONS, precision_of
from . import host
from .io_types import (
    AUTO,
    CATEGORY,
    LORAS,
    NONE,
    STRENGTHS,
    AttentionInput,
    FamilyInput,
    LoraStrengthInput,
    ModelType,
    SpeedInput,
    StreamModel,
    known_choices,
)

MODELS = "diffusion_models"
DOWNLOAD, PUBLISHED = "LongLive-1.3B (download)", "longlive-1.3b-transformer"

PrecisionInput = io.Combo.Input(
    "precision",
    options=[AUTO, *PRECISIONS],
    default=AUTO,
    tooltip=(
        "How weights are stored. auto: as suits this machine. fp8, int8: half the memory of bf16, nearly the "
        "same video. fp8-fast: also multiplied in fp8, faster on an RTX 40, H100 or newer."
    ),
)

LicenceInput = io.Boolean.Input(
    "accept_licence",
    default=False,
    optional=True,
    tooltip=(
        "Only for the download: accept the licence of the published weights. While it is off, the error "
        "shows sizes and licences. A download that stopped goes on where it was."
    ),
)


class LongLiveLoadModel(io.ComfyNode):
    """Files by name; nothing else is needed to make a generator."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveLoadModel",
            display_name="LongLive: Load Model",
            category=CATEGORY,
            description=(
                "Loads LongLive-1.3B or a relative from files of any layout, .pt or safetensors, and LoRAs. "
                "For a MODEL from a stock loader use LongLive: Use Model."
            ),
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=[*host.file_names(MODELS), DOWNLOAD],
                    tooltip="A file in models/diffusion_models: longlive_base.pt, or another Wan 2.1 1.3B.",
                ),
                io.Combo.Input(
                    "lora",
                    options=[NONE, *host.file_names(LORAS)],
                    default=NONE,
                    tooltip="A file in models/loras. LongLive's own LoRA belongs to longlive_base.",
                ),
                LoraStrengthInput,
                io.Combo.Input(
                    "second_lora",
                    options=[NONE, *host.file_names(LORAS)],
                    default=NONE,
                    tooltip="One more LoRA for Wan 2.1 1.3B, e.g. a style.",
                ),
                io.Float.Input(
                    "second_strength", **STRENGTHS, tooltip="How much of the second LoRA is added."
                ),
                PrecisionInput,
                AttentionInput,
                FamilyInput,
                LicenceInput,
                SpeedInput,
            ],
            outputs=[
                ModelType.Output(display_name="model", tooltip="The generator. Goes into LongLive: Stream.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, lora: str, second_lora: str, **_) -> str:
        """Changes with the files; what comes over a link is None here."""
        files = ((checkpoint, MODELS), (lora, LORAS), (second_lora, LORAS))
        return "|".join(host.file_stamp(*file) for file in files if file[0] not in (None, NONE, DOWNLOAD))

    @classmethod
    def validate_inputs(cls, attention: str, speed: str = EAGER) -> bool:
        """Takes values that older workflows name; what is unknown fails in `execute`."""
        return True

    @classmethod
    def execute(cls, checkpoint, precision, attention, family, accept_licence=False, speed=EAGER, **loras):
        speed, attention, replaced = known_choices(speed, attention)
        precision = own_precision() if precision == AUTO else precision
        loaded = load_transformer(
            *files(checkpoint, accept_licence, loras),
            precision,
            host.offload_device(),
            attention_backend(attention, host.device()),
            None if family == AUTO else family,
            on_progress=host.Progress(cls.hidden.unique_id, 1).at,
        )
        settled = settle(loaded.transformer, precision, host.device())
        notes = (f"{loaded.preset.name}, {precision}", *replaced, *loaded.notes, *settled)
        source = {"attention": attention, "checkpoint": checkpoint, **loras}
        model = StreamModel(loaded.preset, host.managed(loaded.transformer), precision, source, speed)
        return io.NodeOutput(model, ui=host.shown(cls.hidden.unique_id, notes))


def files(checkpoint: str, accept_licence: bool, loras: dict) -> tuple[Path, list[LoraChoice]]:
    """The checkpoint and the LoRAs that were chosen; the published ones are fetched if that was chosen."""
    if checkpoint != DOWNLOAD:
        return host.file_path(checkpoint, MODELS), choices(**loras)
    base, own = fetched(accept_licence)
    added = [LoraChoice(own, loras["lora_strength"])] if loras["lora"] == NONE else []
    return base, [*added, *choices(**loras)]


def fetched(accept_licence: bool) -> list[Path]:
    """LongLive's checkpoint and LoRA; ValueError with sizes and licences unless they are accepted."""
    told: list[str] = []

    def confirm(text: str) -> bool:
        told.append(" ".join(text.split()))
        return accept_licence

    paths = download(PUBLISHED, host.models_folder(), confirm=confirm)
    if not paths:
        raise ValueError(f"nothing was downloaded, because accept_licence is off: {told[0]}")
    return paths


def choices(lora: str, lora_strength: float, second_lora: str, second_strength: float) -> list[LoraChoice]:
    """The LoRAs that were chosen, as files."""
    wanted = ((lora, lora_strength), (second_lora, second_strength))
    return [LoraChoice(host.file_path(name, LORAS), strength) for name, strength in wanted if name != NONE]


def own_precision() -> str:
    """What the host would choose on this machine, by our names."""
    dtype = host.model_dtype()
    return precision_of(dtype.itemsize, dtype)
