"""Pixels <-> latent frames <-> tokens <-> blocks <-> seconds. Integers in, integers out; no torch.

Latent frame 0 holds one pixel frame, every later one holds four (Wan 2.1 VAE), so a video of T latent
frames has 4T - 3 pixel frames, the first block of three gives 9 of them and every later block 12.
"""

import math

FRAME_RATE = 16
TIME_STRIDE = 4
SPACE_STRIDE = 8
PATCH = 2
PIXEL_MULTIPLE = SPACE_STRIDE * PATCH
MAX_SIDE = 8192  # pixels; H.264 ends at 16,384
_TIME_EPS = 1e-6


def num_frames(latent_frames: int) -> int:
    """Pixel frames that decode from the first `latent_frames` latent frames of a video."""
    return max(0, TIME_STRIDE * (latent_frames - 1) + 1) if latent_frames > 0 else 0


def num_latent_frames(frames: int) -> int:
    """Fewest latent frames that decode to at least `frames` pixel frames."""
    return 1 + math.ceil((frames - 1) / TIME_STRIDE) if frames > 0 else 0


def frames_of_seconds(seconds: float) -> int:
    """Pixel frames of a video of that many seconds: round(seconds * 16)."""
    return round(seconds * FRAME_RATE)


def num_blocks(frames: int, block_latent_frames: int) -> int:
    """Fewest blocks whose latent frames decode to at least `frames` pixel frames."""
    return math.ceil(num_latent_frames(frames) / block_latent_frames)


def block_first_frame(block: int, block_latent_frames: int) -> int:
    """Index of the first pixel frame that block `block` adds to the video."""
    return num_frames(block * block_latent_frames)


def block_seconds(block: int, block_latent_frames: int) -> float:
    """When block `block` begins in the video, in seconds."""
    return block_first_frame(block, block_latent_frames) / FRAME_RATE


def block_at(seconds: float, block_latent_frames: int) -> int:
    """The first block that begins at or after `seconds`: where a cue of that time takes effect."""
    frame = math.ceil(seconds * FRAME_RATE - _TIME_EPS)
    return max(0, math.ceil(num_latent_frames(frame) / block_latent_frames)) if frame > 0 else 0


def latent_size(width: int, height: int) -> tuple[int, int]:
    """(height, width) of the latents of a video of that many pixels.

    Raises ValueError unless both are multiples of 16 (8 for the VAE, 2 for the patches) up to 8,192.
    """
    if max(width, height) > MAX_SIDE:
        raise ValueError(f"size {width}x{height} is not possible: a side has at most {MAX_SIDE} pixels")
    if width < PIXEL_MULTIPLE or height < PIXEL_MULTIPLE or width % PIXEL_MULTIPLE or height % PIXEL_MULTIPLE:
        nearest = "x".join(str(max(1, round(n / PIXEL_MULTIPLE)) * PIXEL_MULTIPLE) for n in (width, height))
        raise ValueError(
            f"size {width}x{height} is not possible: width and height must be multiples of {PIXEL_MULTIPLE}; "
            f"try {nearest}"
        )
    return height // SPACE_STRIDE, width // SPACE_STRIDE


def tokens_per_frame(latent_height: int, latent_width: int) -> int:
    """Tokens of one latent frame: one for every 2x2 latent patch."""
    return (latent_height // PATCH) * (latent_width // PATCH)
