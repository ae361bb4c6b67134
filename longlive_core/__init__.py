"""LongLive: timed prompts become one long video, block after block. Knows torch, never ComfyUI."""

from .pipeline import Pipeline, Request, load_pipeline
from .schedule.schedule import PromptSchedule

__all__ = ["Pipeline", "PromptSchedule", "Request", "load_pipeline"]
