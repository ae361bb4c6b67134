"""The only file that knows ComfyUI's insides: devices, memory, models, files, interrupts, what nodes show."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import comfy.ldm.wan.vae
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy.cli_args import args
from comfy_api.v0_0_2 import InputImpl, io, ui
from PIL import Image
from server import PromptServer
from torch import Tensor, nn

from ..longlive_core.footage import FootageError, ImageFolder
from ..longlive_core.rollout.retry import is_out_of_memory
from ..longlive_core.rollout.rollout import RolloutError
from ..longlive_core.schedule.cue import ScheduleError

try:
    from comfy.taesd.taehv import TAEHV
except ImportError:  # 0.3.64 has no tiny video decoders
    TAEHV = ()

PREVIEW_PIXELS = 512  # longest side of a live preview
PREVIEW_ENLARGED = 4  # at most so many times: encoding a large preview takes time that Mini needs
SHOWN_LINES = 12
LISTING_KEY = "longlive_video"
EVERYTHING = 1e32  # how ComfyUI spells "as much memory as it takes"
OFFLOADABLE = {"offloadable": True} if hasattr(comfy.ops, "uncast_bias_weight") else {}  # newer than 0.3.64
LINK_PARTS = 2  # of a link in a prompt: a node's id and the number of its output
T = TypeVar("T")
BUILT: WeakKeyDictionary[nn.Module, tuple[dict[str, Tensor], Any]] = WeakKeyDictionary()

logger = logging.getLogger("longlive")


def device() -> torch.device:
    """Where models run."""
    return comfy.model_management.get_torch_device()


def vae_device() -> torch.device:
    """Where VAEs run; with `--cpu-vae` the CPU."""
    return comfy.model_management.vae_device()


def offload_device() -> torch.device:
    """Where an unloaded transformer is kept."""
    return comfy.model_management.unet_offload_device()


def vae_offload_device() -> torch.device:
    """Where an unloaded VAE is kept."""
    return comfy.model_management.vae_offload_device()


def model_dtype() -> torch.dtype:
    """In what ComfyUI would store a transformer here; bfloat16 before float16."""
    return comfy.model_management.unet_dtype(supported_dtypes=[torch.bfloat16, torch.float16, torch.float32])


def vae_dtype() -> torch.dtype:
    """In what ComfyUI would run a Wan VAE here."""
    return comfy.model_management.vae_dtype(vae_device(), [torch.bfloat16, torch.float16, torch.float32])


@dataclass(frozen=True)
class Managed(Generic[T]):
    """Weights that ComfyUI loads and unloads. `bind` gives what runs on them, until ComfyUI moves them.

    `more` are patchers of further weights of it.
    """

    patcher: Any
    bind: Callable[[], T]
    more: tuple[Any, ...] = ()


class LongLiveWeights(nn.Module):
    """What a patcher is given in place of our module, since it sets attributes on it."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module


class WholePatcher(comfy.model_patcher.ModelPatcher):
    """Loads all or nothing: our layers expect their weights on the device that computes."""

    def partially_load(
        self, device_to: torch.device, extra_memory: float = 0, *args: Any, **kwargs: Any
    ) -> Any:
        return super().partially_load(device_to, EVERYTHING, *args, **kwargs)


def managed(module: nn.Module) -> Managed:
    """A transformer of ours; ComfyUI counts, offloads and frees it like its own."""
    return Managed(WholePatcher(LongLiveWeights(module), device(), offload_device()), lambda: module)


def managed_vae(module: nn.Module, decoder: T) -> Managed[T]:
    """The same for a VAE of ours; `decoder` runs on its weights."""
    patcher = WholePatcher(LongLiveWeights(module), vae_device(), vae_offload_device())
    return Managed(patcher, lambda: decoder)


def load(parts: Sequence[Managed], num_bytes: int = 0) -> list:
    """Load all these weights, with room for `num_bytes` more; returns what runs on them."""
    patchers = [patcher for part in parts for patcher in (part.patcher, *part.more)]
    comfy.model_management.load_models_gpu(patchers, memory_required=num_bytes)
    return [part.bind() for part in parts]


def usable_bytes() -> int:
    """What models could have of their device: neither held by other programs nor reserved for them."""
    management = comfy.model_management
    loaded = [model for model in management.current_loaded_models if model.device == device()]
    free = management.get_free_memory(device()) + sum(model.model_loaded_memory() for model in loaded)
    return int(free - management.extra_reserved_memory())


def free_ram() -> int:
    """Bytes of RAM that nothing uses."""
    return int(comfy.model_management.get_free_memory(torch.device("cpu")))


class OutOfMemory(torch.OutOfMemoryError):
    """As torch's, so that ComfyUI also frees its models, with a sentence that helps."""

    __module__ = "builtins"  # else the page shows little more than the name of the module


def within_memory(run: Callable[[], T], explain: Callable[[], str]) -> T:
    """What `run` returns; when memory does not suffice, OutOfMemory with the explanation.

    It is raised only after the first error is gone, whose traceback would keep all tensors of the run.
    """
    try:
        return run()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    comfy.model_management.soft_empty_cache()
    raise OutOfMemory(explain())


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise the core's errors as Python's own types: of others the page shows the module, and little else."""
    try:
        yield
    except (ScheduleError, FootageError) as error:
        raise ValueError(str(error)) from error
    except RolloutError as error:
        raise RuntimeError(str(error)) from error


def is_wan(model: Any) -> bool:
    """Whether a MODEL is a Wan 2.1 or a relative."""
    return isinstance(model.model, comfy.model_base.WAN21)


def is_frame_wise(model: Any) -> bool:
    """Whether ComfyUI read a frame-wise model from the file (`causal_ar` in its metadata)."""
    return isinstance(model.model, getattr(comfy.model_base, "WAN21_CausalAR", ()))  # 0.3.64 has none


def network_of(model: Any) -> nn.Module:
    """The transformer inside a MODEL, weights wherever they are."""
    return model.model.diffusion_model


def other_changes(model: Any) -> list[str]:
    """What nodes did to a MODEL, other than change its weights."""
    return sorted(key for key, value in model.model_options["transformer_options"].items() if value)


def source_of(model: Any) -> dict[str, Any]:
    """What ComfyUI knows of a MODEL's origin: its class, whether it was patched, from 0.27 on its file."""
    known = {"model_class": type(model.model).__name__, "is_patched": is_changed(model)}
    file = file_of(model)
    return known | ({"checkpoint": file.name} if file else {})


def file_of(model: Any) -> Path | None:
    """The file that a MODEL was loaded from, where ComfyUI knows it (from 0.27 on)."""
    _, arguments, *_ = getattr(model, "cached_patcher_init", None) or (None, ())
    return next((Path(path) for path in arguments[:1] if isinstance(path, str)), None)


def is_changed(model: Any) -> bool:
    """Whether a LoRA or another node changes the weights of a MODEL."""
    return bool(model.patches)


def with_lora(model: Any, tensors: dict[str, Tensor], strength: float) -> Any:
    """A MODEL with a LoRA, whose tensors have ComfyUI's names, as a stock LoRA node returns it."""
    return comfy.sd.load_lora_for_models(model, None, tensors, strength, 0.0)[0]


def compute_dtype(model: Any) -> torch.dtype:
    """In what ComfyUI runs a MODEL."""
    return model.model.manual_cast_dtype or model.model.get_dtype()


def bytes_per_weight(model: Any) -> float:
    """How many bytes a weight of a MODEL takes, as ComfyUI stores it."""
    weights = network_of(model).parameters()
    return model.model_size() / sum(weight.numel() for weight in weights)


def live_weight(module: nn.Module, leaf: str, dtype: torch.dtype, where: torch.device) -> Tensor:
    """A copy of a layer's `weight` or `bias` as ComfyUI would compute with it now, LoRAs included."""
    cast = comfy.ops.cast_bias_weight(module, dtype=dtype, device=where, bias_dtype=dtype, **OFFLOADABLE)
    value = dict(zip(("weight", "bias"), cast, strict=False))[leaf].clone()
    if OFFLOADABLE:
        comfy.ops.uncast_bias_weight(module, *cast)
    return value


def is_wan_vae(vae: Any) -> bool:
    """Whether a VAE is ComfyUI's own of Wan 2.1."""
    return isinstance(getattr(vae, "first_stage_model", None), comfy.ldm.wan.vae.WanVAE)


def is_tiny_vae(vae: Any) -> bool:
    """Whether a VAE is ComfyUI's tiny decoder for raw latents, as lighttaew2_1 is."""
    network = getattr(vae, "first_stage_model", None)
    return isinstance(network, TAEHV) and network.latent_format is None


def built_once(vae: Any, build: Callable[[dict[str, Tensor]], T]) -> T:
    """What `build` makes of the weights of a loaded VAE of ComfyUI's, kept with it while it has the same.

    They are ComfyUI's own parameters: what is built follows when they move, and holds no memory of its own.
    Weights that are on another device, or of another dtype, are copied for each run.
    """
    own = vae.first_stage_model.state_dict(keep_vars=True)
    used = {name: weight.to(vae.device, vae.vae_dtype) for name, weight in own.items()}
    weights, built = BUILT.get(vae.first_stage_model, (None, None))
    if weights is None or any(used[name] is not weight for name, weight in weights.items()):
        built = build(used)
        if all(own[name] is weight for name, weight in used.items()):
            BUILT[vae.first_stage_model] = used, built
    return built


def file_names(*folders: str) -> list[str]:
    """Every model file in these folders of ComfyUI, subfolders included."""
    return list(dict.fromkeys(name for folder in folders for name in folder_paths.get_filename_list(folder)))


def file_path(name: str, *folders: str) -> Path:
    """The path of a model file; ValueError if it is in none of the folders."""
    for folder in folders:
        if path := folder_paths.get_full_path(folder, name):
            return Path(path)
    raise ValueError(
        f"there is no {name} in models/{' or models/'.join(folders)}; refresh the page and choose again"
    )


def sound_files() -> list[str]:
    """Files of ComfyUI's input folder that may have sound, as Load Audio lists them."""
    names = os.listdir(folder_paths.get_input_directory())
    return sorted(folder_paths.filter_files_content_types(names, ["audio", "video"]))


def sound_path(name: str) -> Path:
    """The path of one of these files; ValueError if it is none of them."""
    if name not in sound_files():
        raise ValueError(f"there is no sound file {name[:80]!r} in ComfyUI's input folder; upload it there")
    return Path(folder_paths.get_input_directory(), name)


def input_images(notes: list[str] | None = None) -> ImageFolder:
    """The images of ComfyUI's input folder, which cues name; `notes` takes sentences on them."""
    return ImageFolder(Path(folder_paths.get_input_directory()), "ComfyUI's input folder", notes=notes)


def models_folder() -> Path:
    """The folder of all model folders."""
    return Path(folder_paths.models_dir)


def file_stamp(name: str, *folders: str) -> str:
    """Path, time and size of a model file: what changes when the file does."""
    path = file_path(name, *folders)
    status = path.stat()
    return f"{path}:{status.st_mtime_ns}:{status.st_size}"


def shown_path(path: Path) -> str:
    """A file of the output folder as people find it, `output/longlive/x.mp4`: screenshots are shared."""
    output = Path(folder_paths.get_output_directory())
    return str(path.relative_to(output.parent)) if path.is_relative_to(output) else path.name


def allowed_metadata(metadata: dict[str, T]) -> dict[str, T] | None:
    """What a file may say of how it was made: nothing where the user wants that (`--disable-metadata`)."""
    return None if args.disable_metadata else metadata


def graph_metadata(hidden: Any) -> dict[str, str] | None:
    """The graph of a running node, by the names under which Save Video puts it into a file, if allowed."""
    parts = {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
    return allowed_metadata({name: json.dumps(part) for name, part in parts.items() if part is not None})


def workflow_id(hidden: Any) -> str | None:
    """The id of the workflow that a running node was queued from; None where a script queued it."""
    workflow = (hidden.extra_pnginfo or {}).get("workflow")
    return workflow.get("id") if isinstance(workflow, dict) else None


def is_connected(hidden: Any, slot: int, **values: Any) -> bool:
    """Whether another node of the prompt, with such inputs, takes this output of a running node."""
    link, nodes = [hidden.unique_id, slot], (hidden.prompt or {}).values()
    return any(link in node["inputs"].values() and values.items() <= node["inputs"].items() for node in nodes)


def ancestry(hidden: Any, left_out: Sequence[str] = ()) -> str:
    """A check sum of a running node's inputs, but some, and of all nodes before it: whatever their ids.

    Empty where the prompt does not have the node, as those that another node expands to.
    """
    nodes, known = hidden.prompt or {}, {}

    def of(name: str, left_out: Sequence[str] = ()) -> str:
        if name not in known:
            node = nodes[name]
            own = {key: said(value) for key, value in node["inputs"].items() if key not in left_out}
            text = json.dumps([node["class_type"], own], sort_keys=True)
            known[name] = hashlib.sha256(text.encode()).hexdigest()
        return known[name]

    def said(value: Any) -> Any:
        is_link = isinstance(value, list) and len(value) == LINK_PARTS and value[0] in nodes
        return [of(value[0]), value[1]] if is_link else value

    return of(hidden.unique_id, left_out) if hidden.unique_id in nodes else ""


def output_folder() -> Path:
    return Path(folder_paths.get_output_directory())


def throw_if_interrupted() -> None:
    """Raise ComfyUI's interrupt exception if the user pressed stop."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def is_interrupt(error: BaseException) -> bool:
    """Whether it is ComfyUI's interrupt exception."""
    return isinstance(error, comfy.model_management.InterruptProcessingException)


def has_room_for(clip: Any) -> bool:
    """Whether a CLIP can encode while a model samples: on the CPU, or with enough free memory.

    Otherwise ComfyUI would unload the model that samples.
    """
    patcher = getattr(clip, "patcher", None)
    if patcher is None or patcher.load_device.type == "cpu":
        return True
    management = comfy.model_management
    missing = patcher.model_size() - patcher.loaded_size()
    reserve = 2 * management.minimum_inference_memory()
    return management.get_free_memory(patcher.load_device) > 1.1 * missing + reserve


def wait_for_device() -> None:
    """Wait until a GPU has done all its work."""
    if device().type == "cuda":
        torch.cuda.synchronize(device())


def some_lines(lines: Sequence[str]) -> str:
    """Lines as a node shows them: only the first ones of very many."""
    more = len(lines) - SHOWN_LINES
    return "\n".join(lines if more <= 0 else [*lines[:SHOWN_LINES], f"and {more} more"])


def show_text(node_id: str, text: str) -> None:
    """Write a status text on a node, if there is a server; pages read it as HTML."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text(escape(text, quote=False), node_id, server.client_id)


def shown(node_id: str, lines: Sequence[str]) -> ui.PreviewText:
    """Lines written on a node at once, and as its output, so that a cached run shows them too."""
    text = some_lines(lines)
    show_text(node_id, text)
    return ui.PreviewText(text)


def add_routes(routes: Sequence[tuple[str, str, Any]]) -> None:
    """Routes as (method, path, handler), under /api too; before the server starts, if there is one."""
    server = getattr(PromptServer, "instance", None)
    for method, path, handler in routes if server else ():
        server.routes.route(method, path)(handler)


def broadcast(event: str, data: dict[str, Any]) -> None:
    """Send a WebSocket event to every page."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_sync(event, data)


def num_pages() -> int:
    """How many pages of ComfyUI are open, here or elsewhere."""
    server = getattr(PromptServer, "instance", None)
    return len(server.sockets) if server else 0


def later(seconds: float, call: Callable[[], None]) -> None:
    """Call something in the server's thread after so many seconds; nothing happens without a server."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.loop.call_soon_threadsafe(server.loop.call_later, seconds, call)


class Progress:
    """Progress bar and live preview of one running node."""

    def __init__(self, node_id: str, num_steps: int):
        self._num_steps = num_steps
        self._done = 0
        self._bar = comfy.utils.ProgressBar(num_steps, node_id=node_id)

    def step(self, done: int | None = None) -> None:
        """Count a step, or go to that many; raises ComfyUI's interrupt exception if the user pressed stop."""
        throw_if_interrupted()
        self._done = self._done + 1 if done is None else done
        self._bar.update_absolute(self._done, self._num_steps)

    def at(self, done: int, total: int) -> None:
        """Show `done` of `total`; raises as `step` does."""
        throw_if_interrupted()
        self._bar.update_absolute(done, total)

    def preview(self, frame: np.ndarray) -> None:
        """Show a frame uint8 [H, W, 3] on the node."""
        pixels = min(PREVIEW_PIXELS, PREVIEW_ENLARGED * max(frame.shape[:2]))
        image = ("JPEG", Image.fromarray(frame), pixels)
        self._bar.update_absolute(self._done, self._num_steps, image)


@dataclass
class VideoFile:
    """A video that is being made, in the output folder until it is finished."""

    path: Path
    subfolder: str
    is_passed_on: bool = True
    folder: io.FolderType = io.FolderType.output

    def finish(self) -> None:
        """Move a finished video that is passed on to the temp folder: Save Video keeps it.

        If it cannot be moved (on Windows, while a player has it open), it stays in the output folder.
        """
        if not self.is_passed_on:
            return
        target = Path(folder_paths.get_temp_directory(), self.subfolder, self.path.name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(self.path, target)
        except OSError as error:
            logger.warning("%s stays in the output folder: %s", self.path, error)
            if self.path.exists():
                with suppress(OSError):  # half a copy, on a full disk
                    target.unlink()
            return
        self.path, self.folder = target, io.FolderType.temp

    def as_input(self) -> InputImpl.VideoFromFile:
        """What a VIDEO socket carries."""
        return InputImpl.VideoFromFile(str(self.path))

    def as_listing(self) -> dict[str, list[ui.SavedResult]]:
        """The file in /history.

        Not as ui.PreviewVideo: after a node has put out a video, the page shows no live previews on it.
        """
        listed = ui.SavedResult(self.path.name, self.subfolder, self.folder)
        if not self.is_passed_on:
            listed["format"] = "video/mp4"  # by which ComfyUI's lists of outputs know a video
        return {LISTING_KEY: [listed]}


@contextmanager
def video_file(prefix: str, tag: str, is_passed_on: bool) -> Iterator[VideoFile]:
    """A new file `prefix`_counter_`tag`.mp4 in the output folder.

    One that is passed on moves to temp when the block ends without an error.
    """
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory()
    )
    video = VideoFile(Path(folder, f"{name}_{counter:05}_{tag}.mp4"), subfolder, is_passed_on)
    yield video
    video.finish()
