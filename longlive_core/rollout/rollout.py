"""The algorithm of LongLive: block after block, each denoised in a few steps against sink and ring.

Two doors: text embeddings in, latent blocks out. It knows neither strings nor pixels, files, device policy or
progress bars; those watch through a Hook, and cancelling is raising inside one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Policy, WindowConfig
from ..model.cache import KVCache, TextCache
from ..model.causal_wan import CausalWan
from .noise import Sigmas, begun_at, clean_of, renoise, to_device
from .retry import SecondTry
from .scene import RolloutState, Scene


@dataclass(frozen=True)
class Switch:
    """From its block on, `embeds` [1 or B, text tokens, text dim] is the prompt; `policy` is for the past.

    With a cut, clean latents `given` [B, C, T, H, W] may begin the block, which is made around them; as many
    as it has are the block.
    """

    embeds: Tensor
    policy: Policy = Policy.RECACHE
    given: Tensor | None = None


@dataclass(frozen=True)
class Block:
    """Clean latents [B, C, T, H, W] of one block; `opens_scene` for the first, and after a cut."""

    index: int
    latents: Tensor
    opens_scene: bool


class Hook:
    """What a caller may watch. Raise from any of these to stop; what was yielded stays good."""

    def on_note(self, text: str) -> None:
        """A sentence for the user on how the video is made."""

    def on_open(self, scene: Scene) -> None:
        """Before the first block: the scene that all of them are made in."""

    def on_step(self, block: int, step: int, flow: Tensor, clean: Tensor) -> None:
        """After each denoising step: the model's flow and the estimate of the block's clean latents.

        A block that ran out of memory is denoised again from step 0.
        """

    def on_commit(self, block: int, cache: KVCache) -> None:
        """After the block's clean K and V are in the cache."""

    def on_recache(self, block: int, cache: KVCache) -> None:
        """After the window was recomputed under the prompt that begins at `block`."""


class RolloutError(RuntimeError):
    """The model failed in block `block`; all blocks before it were already yielded."""

    def __init__(self, block: int, reason: str):
        super().__init__(f"block {block}: {reason}")
        self.block = block


Script = Callable[[int], Switch | None]  # block -> the prompt that begins there, if one does
Noise = Callable[[int, int], Tensor]  # (block, step) -> [B, C, T, H, W]; step 0 is what the block starts from
Recorded = Callable[[int], Tensor | None]  # block -> its clean latents [B, C, T, H, W], if they are known


@dataclass(frozen=True)
class SourceNoise:
    """Noise for blocks that begin from footage, mixed with it at level `sigma` in (0, 1].

    `latents`, called for block after block with whether it opens a scene, gives the clean latents
    [B, C, T, H, W] of the footage, and None after its end.
    """

    noise: Noise
    latents: Callable[[int, bool], Tensor | None]
    sigma: float

    def __call__(self, block: int, step: int) -> Tensor:
        return self.noise(block, step)


Past = Tensor | tuple[Tensor, ...] | RolloutState


def rollout(
    model: CausalWan,
    script: Script,
    noise: Noise | SourceNoise,
    sigmas: Sigmas,
    window: WindowConfig,
    blocks: range,
    past: Past | None = None,
    hook: Hook | None = None,
    recorded: Recorded = lambda block: None,
) -> Iterator[Block]:
    """Yield the blocks of one video as they are made; a block is committed when the next one is asked for.

    `past`, clean latents [B, C, T, H, W] of any length T, is continued: the cache is rebuilt from its sink
    and its last window, so the seam is smooth but not bit-identical; a tuple of its blocks is committed one
    after the other instead. What is beyond whole blocks begins the first block, which is made around it.
    A first prompt that cuts drops the past. From a RolloutState it continues bit for bit, under the prompt in
    effect there unless the script has one for the first block. SourceNoise makes blocks of footage.
    A ControlledWan in the place of the model gives each block its control.
    A block that was `recorded` is committed as it is: what comes after it is what came after it before.
    What runs out of memory is tried once more, from the same noise, with a note.
    Raises ValueError when there is no prompt for it, RolloutError when the model's output is not finite,
    torch.OutOfMemoryError when memory does not suffice for a second try either.
    """
    hook = hook or Hook()
    is_resumed = isinstance(past, RolloutState)
    switch = Switch(past.tensors["embeds"]) if is_resumed else script(blocks.start)
    if not switch:
        raise ValueError(f"the script has no prompt for the first block ({blocks.start})")
    if switch.policy is Policy.CUT:
        past = None
    tried = SecondTry(model.device, hook.on_note)
    text = tried(blocks.start, encode_prompt, model, switch)
    like = noise(blocks.start, 0)
    past, given = parted(past, like.shape[2])
    given = given if switch.given is None else switch.given
    scene = tried(blocks.start, open_scene, model, text, like, window, len(blocks), past)
    hook.on_open(scene)
    for index in blocks:
        if (is_resumed or index > blocks.start) and (switch := script(index)):
            text, given = tried(index, encode_prompt, model, switch), switch.given
            if tried(index, recache, scene, text, switch.policy):
                hook.on_recache(index, scene.cache)
        levels = sigmas if scene.has_made else sigmas.first
        is_footage = isinstance(noise, SourceNoise)
        begin = tried(index, noise.latents, index, scene.end == 0) if is_footage else None
        if begin is not None:
            levels = begun_at(levels, noise.sigma)
        if model.context_of:
            scene.control(tried(index, model.context_of, index, scene.end == 0, given))
        latents = recorded(index)
        if latents is None:
            latents = tried(index, denoise, scene, text, noise, levels, index, hook, given, begin)
        is_made = given is None or given.shape[2] < latents.shape[2]
        latents, given = latents.to(model.device), None
        yield Block(index, latents, opens_scene=scene.end == 0)
        tried(index, commit, scene, text, latents)
        scene.has_made |= is_made
        hook.on_commit(index, scene.cache)


@torch.no_grad()
def encode_prompt(model: CausalWan, switch: Switch) -> TextCache:
    """Cross-attention K and V of the prompt, once for all its blocks."""
    return model.encode_text(switch.embeds)


@torch.no_grad()
def denoise(
    scene: Scene,
    text: TextCache,
    noise: Noise,
    sigmas: tuple[float, ...],
    block: int,
    hook: Hook,
    given: Tensor | None = None,
    begin: Tensor | None = None,
) -> Tensor:
    """Noise -> clean latents of the next block, one model call a sigma; RolloutError unless finite.

    `given` are its first frames: clean, and at noise level 0, in every step. With `begin`, clean latents of
    footage, the block begins from these at the first sigma.
    """
    x = to_device(noise(block, 0), scene.model.device)
    if begin is not None:
        x = renoise(begin.to(x), x, sigmas[0])
    num_given = 0 if given is None else given.shape[2]
    scene.open(scene.end, x.shape[2])
    if num_given == x.shape[2]:
        return given.to(x)
    clean = x
    for step, sigma in enumerate(sigmas):
        if step:
            x = renoise(clean, to_device(noise(block, step), x.device), sigma)
        if num_given:
            x = torch.cat((given.to(x), x[:, :, num_given:]), dim=2)
        flow = scene.flow(x, sigma, text, num_given)
        clean = clean_of(x, flow, sigma)
        if num_given:
            clean[:, :, :num_given] = given
        hook.on_step(block, step, flow, clean)
    if not torch.isfinite(clean).all():
        raise RolloutError(block, "the model's output is not finite; check the weights and the precision")
    return clean


@torch.no_grad()
def commit(scene: Scene, text: TextCache, latents: Tensor) -> None:
    """Replace the block's noisy K and V, in the same slots, by those of its clean latents."""
    scene.open(scene.end, latents.shape[2])
    scene.fill_cache(latents, text)
    scene.append(latents)


@torch.no_grad()
def recache(scene: Scene, text: TextCache, policy: Policy) -> bool:
    """Bring the past under a new prompt (paper section 3.2); True if the window was recomputed.

    As long as the past fits the window all of it is recomputed, the sink included, whatever the policy.
    Later, with the sink kept, only the ring is; LongLive v1.0 also runs the oldest frames, without effect.
    """
    if policy is Policy.CUT:
        scene.clear()
    if policy in (Policy.CUT, Policy.KEEP) or not scene.end:
        return False
    window, sink = scene.cache.frames, scene.cache.sink
    is_long = scene.end > window
    refresh = is_long and policy is Policy.REFRESH
    count = window - sink if is_long and not refresh else min(scene.end, window)
    scene.open(scene.end - count, count, refresh_sink=refresh)
    scene.fill_cache(scene.newest(count), text)
    return True


def parted(past: Past | None, block: int) -> tuple[Past | None, Tensor | None]:
    """A past in whole blocks, and the latents [B, C, T, H, W] that begin the next one; None for none."""
    given = None
    if isinstance(past, tuple) and past[-1].shape[2] % block:
        *past, given = past
        past = tuple(past) or None
    elif isinstance(past, Tensor) and (beyond := past.shape[2] % block):
        past, given = past.tensor_split([past.shape[2] - beyond], dim=2)
        past = past if past.shape[2] else None
    return past, given


@torch.no_grad()
def open_scene(
    model: CausalWan, text: TextCache, like: Tensor, window: WindowConfig, num_blocks: int, past: Past | None
) -> Scene:
    """An empty past, that of a state, or that of latents in whole blocks.

    Blocks in a tuple are committed; else, where there are more than fit the window, the first ones alone
    become the sink, and the others are computed in one recache.
    """
    is_resumed, block = isinstance(past, RolloutState), like.shape[2]
    alone = past if isinstance(past, tuple) else ()
    latents = torch.cat(alone, dim=2) if alone else past
    past_frames = 0 if past is None else past.end if is_resumed else latents.shape[2]
    scene = Scene(model, like, window, num_blocks * block + past_frames)
    if is_resumed:
        scene.restore(past)
    elif past is not None:
        latents = latents.to(model.device)
        if not alone and past_frames > scene.cache.frames:
            alone = latents[:, :, : scene.cache.sink].split(block, dim=2)
        contexts = model.context_of.of_given(latents).unbind(2) if model.context_of else ()
        for index, piece in enumerate(alone):
            scene.contexts.extend(contexts[index * block : (index + 1) * block])
            scene.open(index * block, piece.shape[2])
            scene.fill_cache(piece.to(model.device), text)
        scene.contexts.extend(contexts[len(alone) * block :])
        scene.append(latents)
        if not isinstance(past, tuple):
            recache(scene, text, Policy.RECACHE)
    return scene
