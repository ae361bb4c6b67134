"""Whether the tensors of a file are those of a model: one phrase that lists everything that is not."""

from collections.abc import Iterable

from .families import Shapes

_SHOWN = 4


def misfits(expected: Shapes, found: Shapes, no_numbers: Iterable[str] = ()) -> str:
    """`1 missing (a); 2 unexpected (b, c)`, by our names; empty when all fits.

    `no_numbers` are found names whose tensors are of a type that weights cannot have.
    """
    misshapen = [name for name in expected if name in found and expected[name] != found[name]]
    groups = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "misshapen": [f"{name} {list(found[name])} instead of {list(expected[name])}" for name in misshapen],
        "stored in a format that is not read here": list(no_numbers),
    }
    return "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in groups.items() if names)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
