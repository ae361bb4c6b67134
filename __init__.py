"""ComfyUI's door to the pack: where its web files lie, and how its nodes are found."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called once by ComfyUI."""
    from .nodes import LongLiveExtension  # here, not above: pytest imports this file with no host around

    return LongLiveExtension()
