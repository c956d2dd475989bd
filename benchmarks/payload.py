"""What every side of a benchmark is given: a reading of 300 bytes. Peers import this from environments without eventrouter."""

from __future__ import annotations

import msgspec


class Reading(msgspec.Struct):
    device: str
    celsius: float
    humidity: float
    labels: dict[str, str]
    history: list[float]


PAYLOAD = msgspec.json.encode(
    Reading("kitchen-7", 21.5, 40.25, {"site": "north", "unit": "celsius", "note": "x" * 90}, [float(n) for n in range(20)])
)
