"""`python docs/rooms.py` draws docs/rooms.svg: the rooms of longlive_core and who imports whom.

A line runs from a room down to one it imports; lines that follow from others are left out. A room stands one
floor above the highest room it imports.
"""

import ast
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parent.parent
CORE = ROOT / "longlive_core"
WIDTH, LEFT, FLOOR = 920, 70, 92  # pixels
BOX_WIDTH, BOX_HEIGHT = 124, 44
STYLE = "font-family='sans-serif' font-size='15' text-anchor='middle'"
PASSAGE = 0.3  # width that a line takes on a floor it passes, as a share of a room's
SWEEPS = 6

Place = str | tuple[str, str]  # a room, or the passage of a line between two rooms


def room_of(file: Path) -> str:
    return file.relative_to(CORE).with_suffix("").parts[0]


def imported(file: Path) -> set[str]:
    """Rooms that a file imports from the top of the package."""
    depth, found = len(file.relative_to(CORE).parts), set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found


def rooms() -> tuple[dict[str, set[str]], dict[str, int]]:
    """Every room with the rooms it imports, and with its lines."""
    doors: dict[str, set[str]] = {}
    lines: dict[str, int] = {}
    for file in sorted(CORE.rglob("*.py")):
        room = room_of(file)
        if not room.startswith("__"):
            doors.setdefault(room, set()).update(imported(file) - {room})
            lines[room] = lines.get(room, 0) + len(file.read_text("utf-8").splitlines())
    return doors, lines


def floors(doors: dict[str, set[str]]) -> list[list[str]]:
    """Rooms floor by floor, the lowest first."""

    @cache
    def floor(room: str) -> int:
        return 1 + max((floor(other) for other in doors[room]), default=-1)

    return [[room for room in doors if floor(room) == n] for n in range(1 + max(map(floor, doors)))]


def needed(doors: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Arrows that do not follow from other arrows."""

    @cache
    def below(room: str) -> frozenset[str]:
        return frozenset(doors[room]).union(*(below(other) for other in doors[room]))

    return [
        (room, other)
        for room, others in doors.items()
        for other in sorted(others)
        if not any(other in below(third) for third in others - {other})
    ]


def paths_of(storeys: list[list[str]], arrows: list[tuple[str, str]]) -> list[dict[int, Place]]:
    """The places of each arrow by floor: a line over several floors gets a passage on those between."""
    level = {room: n for n, storey in enumerate(storeys) for room in storey}
    return [
        {level[upper]: upper, level[lower]: lower}
        | {n: (upper, lower) for n in range(level[lower] + 1, level[upper])}
        for upper, lower in arrows
    ]


def ordered(storeys: list[list[str]], paths: list[dict[int, Place]]) -> dict[Place, float]:
    """Where each place stands from left to right; places stand near those they are joined to."""
    rows: list[list[Place]] = [
        [*storey, *(path[n] for path in paths if isinstance(path.get(n), tuple))]
        for n, storey in enumerate(storeys)
    ]
    joined: dict[Place, list[Place]] = {}
    for path in paths:
        for n in sorted(path)[1:]:
            joined.setdefault(path[n], []).append(path[n - 1])
            joined.setdefault(path[n - 1], []).append(path[n])
    places = {place: x for row in rows for place, x in spread(row).items()}
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 else reversed(rows):
            row.sort(key=lambda place: mean(places[other] for other in joined[place]))
            places |= spread(row)
    return places


def spread(row: list[Place]) -> dict[Place, float]:
    """The places of a floor from left to right."""
    widths = [1 if isinstance(place, str) else PASSAGE for place in row]
    step = (WIDTH - LEFT) / sum(widths)
    ends = [LEFT + step * sum(widths[: n + 1]) for n in range(len(row))]
    return {place: end - step * width / 2 for place, end, width in zip(row, ends, widths, strict=True)}


def drawn() -> str:
    """The rooms as SVG."""
    doors, lines = rooms()
    storeys = floors(doors)
    paths = paths_of(storeys, needed(doors))
    places, height = ordered(storeys, paths), FLOOR * len(storeys)
    parts = [f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' {STYLE}>"]
    parts.append("<rect width='100%' height='100%' fill='white'/>")
    for n in range(len(storeys)):
        top = height - FLOOR * (n + 1)
        shade = "#f4f6fa" if n % 2 else "white"
        parts.append(f"<rect y='{top}' width='100%' height='{FLOOR}' fill='{shade}'/>")
        parts.append(f"<text x='30' y='{top + FLOOR / 2 + 5}' fill='#678'>{n}</text>")
    parts += [line_of(path, places, height) for path in paths]
    for n, storey in enumerate(storeys):
        parts += [box(room, lines[room], places[room], middle(n, height)) for room in storey]
    return "\n".join([*parts, "</svg>"]) + "\n"


def middle(floor: int, height: int) -> float:
    return height - FLOOR * (floor + 0.5)


def line_of(path: dict[int, Place], places: dict[Place, float], height: int) -> str:
    """A line from the highest place of a path to the lowest."""
    points = [(places[path[n]], middle(n, height)) for n in sorted(path, reverse=True)]
    half, pull = BOX_HEIGHT / 2, FLOOR / 4
    curve = f"M{points[0][0]:.0f} {points[0][1] + half:.0f}"
    for (x1, y1), (x2, y2) in pairwise(points):
        start, end = y1 + half, y2 - half
        curve += f" L{x1:.0f} {start:.0f} C{x1:.0f} {start + pull:.0f}"
        curve += f" {x2:.0f} {end - pull:.0f} {x2:.0f} {end:.0f}"
    return f"<path d='{curve}' fill='none' stroke='#7088b0' stroke-width='1.6'/>"


def box(room: str, lines: int, x: float, y: float) -> str:
    """A room with its name and its number of lines."""
    corner = f"x='{x - BOX_WIDTH / 2:.0f}' y='{y - BOX_HEIGHT / 2:.0f}'"
    return (
        f"<rect {corner} width='{BOX_WIDTH}' height='{BOX_HEIGHT}' rx='6' fill='#e3ecf9' stroke='#456'/>"
        f"<text x='{x:.0f}' y='{y - 2:.0f}' font-weight='bold'>{room}</text>"
        f"<text x='{x:.0f}' y='{y + 15:.0f}' font-size='12' fill='#567'>{lines} lines</text>"
    )


if __name__ == "__main__":
    (ROOT / "docs" / "rooms.svg").write_text(drawn(), "utf-8")
