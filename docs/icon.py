"""`python docs/icon.py` draws docs/icon.png (400x400) and docs/banner.png (21:9) of the Comfy registry.

A loop without an end, in the colours of one prompt after the other; on the banner, cues below it.
"""

import math
from colorsys import hls_to_rgb
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

DOCS = Path(__file__).parent
ICON, BANNER = (400, 400), (1680, 720)  # pixels
FINER = 4  # drawn so many times as large, then made smaller: smooth edges
NIGHT, PAPER, QUIET = (20, 24, 44), (238, 240, 248), (120, 128, 160)
HUES = (0.98, 0.14, 0.38, 0.60, 0.88)  # of the cues: red, yellow, green, blue, pink
POINTS = 1500  # of the loop
CUES = (
    *("a red circle drifts right", "it turns yellow", "a green star circles"),
    *("it turns blue", "a pink square rests"),
)

Colour = tuple[int, int, int]


def colour(hue: float, light: float = 0.6) -> Colour:
    return tuple(round(255 * part) for part in hls_to_rgb(hue % 1, light, 0.75))


def hue_at(share: float) -> float:
    """The hue at a share of the loop: blended from cue to cue, the last one into the first."""
    place = share % 1 * len(HUES)
    first, second = HUES[int(place)], HUES[(int(place) + 1) % len(HUES)]
    if abs(second - first) > 0.5:  # the shorter way around the circle of hues
        second += 1 if second < first else -1
    return first + (second - first) * (place % 1)


def loop(draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, width: float) -> None:
    """A lying eight, `radius` to each side, as a line of that width."""
    for step in range(POINTS):
        share = step / POINTS
        angle = 2 * math.pi * share
        scale = radius / (1 + math.sin(angle) ** 2)
        x = centre[0] + scale * math.cos(angle)
        y = centre[1] + 1.25 * scale * math.sin(angle) * math.cos(angle)
        half = width / 2 * (0.8 + 0.2 * math.cos(2 * math.pi * share))
        draw.ellipse((x - half, y - half, x + half, y + half), fill=colour(hue_at(share)))


def canvas(size: tuple[int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", tuple(FINER * side for side in size), NIGHT)
    return image, ImageDraw.Draw(image)


def icon() -> Image.Image:
    image, draw = canvas(ICON)
    width, height = image.size
    loop(draw, (width / 2, height / 2), 0.4 * width, 0.115 * width)
    return image.resize(ICON, Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    image, draw = canvas(BANNER)
    width, height = image.size
    loop(draw, (0.2 * width, 0.37 * height), 0.13 * width, 0.036 * width)
    draw.text((0.38 * width, 0.19 * height), "LongLive", PAPER, ImageFont.load_default(0.22 * height))
    line = "timed prompts, one continuous video"
    draw.text((0.385 * width, 0.45 * height), line, QUIET, ImageFont.load_default(0.062 * height))
    cues(draw, (0.06 * width, 0.68 * height, 0.94 * width, 0.84 * height))
    return image.resize(BANNER, Image.Resampling.LANCZOS)


def cues(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float]) -> None:
    """The cues side by side in a box, each with its prompt, over a ruler of seconds."""
    left, top, right, bottom = box
    length, margin = (right - left) / len(CUES), 0.06 * (bottom - top)
    font = ImageFont.load_default(0.2 * (bottom - top))
    for number, (prompt, hue) in enumerate(zip(CUES, HUES, strict=True)):
        x = left + number * length
        area = (x, top, x + length - margin, bottom)
        draw.rounded_rectangle(area, 2 * margin, colour(hue, 0.28), colour(hue), round(margin / 2))
        draw.text((x + 4 * margin, top + 6 * margin), prompt, PAPER, font)
        draw.text((x, bottom + 3 * margin), f"0:{6 * number:02}", QUIET, font)


def main() -> None:
    icon().save(DOCS / "icon.png", optimize=True)
    banner().save(DOCS / "banner.png", optimize=True)


if __name__ == "__main__":
    main()
