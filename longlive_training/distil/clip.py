"""The clip that is judged: the newest latent frames, the first of them made a video's first."""

import torch
from torch import Tensor

from longlive_core.vae.autoencoder import WanAutoencoder
from longlive_core.vae.tiny import TinyAutoencoder

from .stream import Chunk


@torch.no_grad()
def judged_clip(
    chunk: Chunk, autoencoder: WanAutoencoder | TinyAutoencoder, length: int
) -> tuple[Tensor, Tensor]:
    """The newest `length` latent frames [B, C, T, H, W], and which of them are supervised: bool [T].

    Teacher and critic know clips that begin with a latent of one frame. So the first one is replaced: the
    frames before the others are decoded, and the last of them is encoded as a video of its own. It is judged
    only; what the stream holds stays as it is.
    """
    new = chunk.latents
    joined = torch.cat((chunk.before, new), dim=2)
    clip = joined[:, :, -length:]
    supervised = torch.arange(length, device=clip.device) >= length - new.shape[2]
    if joined.shape[2] > length:
        before = joined[:, :, : 1 - length]
        if isinstance(autoencoder, TinyAutoencoder):  # a sixth of an iteration with Mini
            before = before[:, :, -1 - autoencoder.looks_back :]
        frames, _ = autoencoder.decode(before)
        first = autoencoder.encode(frames[:, -1:]).to(clip)
        clip = torch.cat((first, clip[:, :, 1:]), dim=2)
    return clip, supervised
