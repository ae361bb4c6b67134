"""LongLiveUseModel: a stock MODEL, stock LoRAs and all -> a generator that shares its weights."""

from dataclasses import replace

from comfy_api.latest import io

from ..longlive_core.config import LONGLIVE_1_3B, RELATIVES, Preset
from ..longlive_core.fast.compiled import EAGER
from ..longlive_core.model.attention import attention_backend
from ..longlive_core.weights.checkpoints import NO_LORA
from ..longlive_core.weights.lora import LoraChoice
from ..longlive_core.weights.quantize import precision_of
from . import host
from .io_types import (
    AUTO,
    CATEGORY,
    LORAS,
    NONE,
    AttentionInput,
    FamilyInput,
    LoraStrengthInput,
    ModelType,
    SpeedInput,
    StreamModel,
    known_choices,
)
from .shared_model import shared_config, shared_transformer, with_lora

FRAME_WISE = "causal-forcing-framewise"


class LongLiveUseModel(io.ComfyNode):
    """The door for models that the host loaded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveUseModel",
            display_name="LongLive: Use Model",
            category=CATEGORY,
            description=(
                "Lets a MODEL from a stock loader, with stock LoRAs, make a stream. "
                "The weights stay the host's: nothing is loaded twice."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A Wan 2.1 1.3B: LongLive or a relative, from a stock loader, LoRAs applied.",
                ),
                io.Combo.Input(
                    "lora",
                    options=[NONE, *host.file_names(LORAS)],
                    default=NONE,
                    tooltip="LongLive's own LoRA, unless the MODEL has it; stock nodes cannot read lora.pt.",
                ),
                LoraStrengthInput,
                AttentionInput,
                FamilyInput,
                SpeedInput,
            ],
            outputs=[
                ModelType.Output(display_name="model", tooltip="The generator. Goes into LongLive: Stream.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str, **_) -> str:
        """Changes with the file; what comes over a link is None here."""
        return "" if lora in (None, NONE) else host.file_stamp(lora, LORAS)

    @classmethod
    def validate_inputs(cls, attention: str, speed: str = EAGER) -> bool:
        """Takes values that older workflows name; what is unknown fails in `execute`."""
        return True

    @classmethod
    def execute(cls, model, lora, lora_strength, attention, family, speed=EAGER) -> io.NodeOutput:
        speed, attention, replaced = known_choices(speed, attention)
        attend, config = attention_backend(attention, host.device()), shared_config(model)
        preset = replace(preset_of(model, family), model=config)
        notes = [preset.name, *replaced, *ignored(model)]
        if lora != NONE:
            choice = LoraChoice(host.file_path(lora, LORAS), lora_strength)
            model, report = with_lora(model, config, choice)
            notes.append(report)
        elif preset.needs_lora and not host.is_changed(model):
            notes.append(NO_LORA)
        shared = host.Managed(model, lambda: shared_transformer(model, config, attend))
        source = {"attention": attention, "lora": lora, "lora_strength": lora_strength}
        precision = precision_of(host.bytes_per_weight(model))
        generator = StreamModel(preset, shared, precision, source, speed)
        return io.NodeOutput(generator, ui=host.shown(cls.hidden.unique_id, notes))


def preset_of(model, family: str) -> Preset:
    """The chosen preset, or the one that the host's reading of the file speaks for."""
    if family != AUTO:
        return RELATIVES[family]
    return RELATIVES[FRAME_WISE] if host.is_frame_wise(model) else LONGLIVE_1_3B


def ignored(model) -> list[str]:
    """A warning about what other nodes did to the MODEL, if they did."""
    changes = host.other_changes(model)
    return (
        [f"of this MODEL only its weights and LoRAs are used, not: {', '.join(changes)}"] if changes else []
    )
