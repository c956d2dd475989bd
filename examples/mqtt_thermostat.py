"""Thermometers report, heaters are told: readings come by MQTT, commands go out by MQTT."""

from typing import Annotated

import msgspec

from eventrouter import on
from eventrouter_mqtt import Broker, mqtt

broker = Broker()
target = {"kitchen": 21.0}


class Reading(msgspec.Struct):
    celsius: Annotated[float, msgspec.Meta(ge=-90, le=150)]


@on(mqtt("home/{room}/temperature"), retries=5)
async def control(reading: Reading, room: str) -> None:
    """A reading that is no number, or out of range, is a dead letter at once; the others go on."""
    heat = "on" if reading.celsius < target.get(room, 19.0) else "off"
    await broker.publish(f"home/{room}/heater", heat, retain=True)


@on(mqtt("home/{room}/temperature"), where={"celsius": [{"numeric": [">", 60]}]})
async def alarm(reading: Reading, room: str) -> None:
    """Only what is too hot to be true comes here."""
    print(f"{room}: {reading.celsius:g} °C, look after it!", flush=True)


@on(mqtt("home/{room}/target"))
async def set_target(celsius: float, room: str) -> None:
    target[room] = celsius
