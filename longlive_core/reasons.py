"""Why something failed, in the one line that fits into a sentence."""

LONGEST = 200


def reason_of(error: BaseException) -> str:
    """The first line of an error that says something; compilers put a heading before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if not line.endswith(":")), None)
    return (told or type(error).__name__)[:LONGEST]
