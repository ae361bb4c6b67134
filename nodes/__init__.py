"""The nodes of the pack, and the extension that hands them to ComfyUI."""

from comfy_api.v0_0_2 import ComfyExtension, io

from . import routes, stage
from .control import LongLiveControl
from .decode import LongLiveDecode
from .footage import LongLiveSource
from .frame_sink import LongLiveFrameSink
from .loaders import LongLiveLoadMini, LongLiveLoadModel, LongLiveLoadVAE, LongLiveUseModel
from .schedule import LongLivePromptSchedule
from .stream import LongLiveStream

NODES = [
    LongLiveLoadMini,
    LongLiveLoadModel,
    LongLiveUseModel,
    LongLiveLoadVAE,
    LongLivePromptSchedule,
    LongLiveFrameSink,
    LongLiveSource,
    LongLiveControl,
    LongLiveStream,
    LongLiveDecode,
]


class LongLiveExtension(ComfyExtension):
    """All nodes and routes; ComfyUI asks for them once, at start-up."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        routes.register()  # not in on_load, which 0.3.64 never calls
        stage.register()
        return NODES
