"""`python docs/rooms.py` draws docs/rooms.svg: the rooms of longlive_core and who imports whom.

An arrow points from a room to one it imports; those that follow from others are left out. A room stands one
floor above the highest room it imports.
"""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORE = ROOT / "longlive_core"
WIDTH, BOX, FLOOR, GAP = 920, (118, 40), 92, 24
STYLE = "font-family='sans-serif' font-size='13' text-anchor='middle'"


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


def drawn() -> str:
    """The picture as SVG."""
    doors, lines = rooms()
    storeys = floors(doors)
    height = FLOOR * len(storeys) + GAP
    places = {}
    for level, storey in enumerate(storeys):
        step = WIDTH / len(storey)
        for index, room in enumerate(storey):
            places[room] = (round(step * (index + 0.5)), height - FLOOR * (level + 0.5) - GAP / 2)
    parts = [f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' {STYLE}>"]
    parts.append("<rect width='100%' height='100%' fill='white'/>")
    for upper, lower in needed(doors):
        (x1, y1), (x2, y2) = places[upper], places[lower]
        ends = f"x1='{x1}' y1='{y1 + BOX[1] / 2}' x2='{x2}' y2='{y2 - BOX[1] / 2}'"
        parts.append(f"<line {ends} stroke='#99a' stroke-width='1.2'/>")
    for room, (x, y) in places.items():
        corner = f"x='{x - BOX[0] / 2}' y='{y - BOX[1] / 2}' width='{BOX[0]}' height='{BOX[1]}' rx='6'"
        parts.append(f"<rect {corner} fill='#eef3fb' stroke='#456'/>")
        parts.append(f"<text x='{x}' y='{y - 2}' font-weight='bold'>{room}</text>")
        parts.append(f"<text x='{x}' y='{y + 14}' font-size='11' fill='#567'>{lines[room]} lines</text>")
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "rooms.svg").write_text(drawn(), "utf-8")
