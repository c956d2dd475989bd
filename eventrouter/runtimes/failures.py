"""What a handler raised, as an outcome."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Final

from eventrouter.errors import InvalidPayload, Reject, Retry
from eventrouter.model import Failed

_ROUTER: Final = f"{Path(__file__).parents[1]}/"


def failure(error: BaseException) -> Failed:
    """What a handler raised, as Lambda tells it: type, message, and the trace without the router's own frames."""
    if isinstance(error, Retry):
        return Failed("Retry", str(error), retry_after=error.after)
    if isinstance(error, InvalidPayload):
        return Failed("InvalidPayload", str(error), final=True)
    if isinstance(error, Reject):
        return Failed("Reject", str(error), final=True)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_ROUTER)]
    return Failed(type(error).__name__, str(error), [line for frame in frames for line in traceback.format_list([frame])])
