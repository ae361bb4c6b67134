"""Old name of `weights.files.first_line`."""

from .weights.files import first_line as reason_of  # noqa: F401
