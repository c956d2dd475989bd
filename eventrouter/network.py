"""Networks that functions run in: what is inside, what may be reached of it. Values, and the kernel's rules for them as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import combinations
from typing import Any, Final

import msgspec

from eventrouter.errors import BadOption, ConfigError, explain, suggest

PROTOCOLS: Final = ("tcp", "udp", "icmp", "all")
# Never outside, whatever a wide rule says: a cloud's instance metadata is there, with the machine's own credentials.
_LINK_LOCAL: Final = (ip_network("169.254.0.0/16"), ip_network("fe80::/10"))
# At once, as if nothing listened there: of anything else TCP hears only with its second packet, a second later, and UDP not at all.
_REFUSE: Final = ("meta l4proto tcp reject with tcp reset", "reject with icmpx port-unreachable")


class Egress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a function may reach: hosts of `cidr`, by `protocol`, at `port`, or one of "8000-8100", or any when it is None."""

    protocol: str
    cidr: str
    port: int | str | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise BadOption(f"egress: protocol {self.protocol!r}{suggest(str(self.protocol), PROTOCOLS)}")
        _parse_cidr(self.cidr, "egress")
        if self.port is None:
            return
        if self.protocol not in ("tcp", "udp"):
            raise BadOption(f"egress: {self.protocol} has no ports; drop port={self.port!r}, or say tcp or udp")
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", str(self.port))
        if match is None or not 1 <= int(match[1]) <= int(match[2] or match[1]) <= 65535:
            raise BadOption(f'egress: port={self.port!r}: write one of 1 to 65535, or a range such as "8000-8100"')

    @property
    def hosts(self) -> IPv4Network | IPv6Network:
        return ip_network(self.cidr)

    def __str__(self) -> str:
        """`tcp to 10.0.1.0/24 port 5432`"""
        what = "everything" if self.protocol == "all" else self.protocol
        return f"{what} to {self.cidr}" + (f" port {self.port}" if self.port is not None else "")


def egress(protocol: str, cidr: str, port: int | str | None = None) -> Egress:
    """A rule of a Network's security group: `egress("tcp", "10.0.1.0/24", 5432)`.

    protocol: "tcp", "udp", "icmp" or "all". cidr: IPv4 or IPv6. port: a number, a range such as "8000-8100", or None for every port.
    Raises ValueError (a ConfigError) that names what can't be.
    """
    return Egress(protocol, cidr, port)


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A private network: a function in it reaches what is in `subnets`, as far as a rule of `security_group` allows it; nothing else.

    subnets: two or more CIDRs, IPv4 or IPv6, that don't overlap. security_group: what `egress(...)` makes; none allows nothing.
    nat: whether the outside can be reached, too, as far as a rule allows it.
    The machine that the router runs on is neither inside nor outside: none of its addresses can be reached.
    Raises ValueError (a ConfigError) that names what can't be.
    """

    name: str
    subnets: tuple[str, ...]
    security_group: tuple[Egress, ...] = ()
    nat: bool = False

    def __post_init__(self) -> None:
        place = f"network {self.name!r}"
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w.-]+", self.name):
            raise BadOption(f"{place}: a name is of letters, digits, '-', '_' and '.'")
        for field in ("subnets", "security_group"):
            value = getattr(self, field)
            if not isinstance(value, list | tuple):
                raise BadOption(f"{place}: {field}={value!r}: write a list")
            msgspec.structs.force_setattr(self, field, tuple(value))
        if len(self.subnets) < 2:
            raise BadOption(f"{place}: {len(self.subnets)} of the two or more subnets it takes; name another one")
        parsed = [_parse_cidr(cidr, place) for cidr in self.subnets]
        for one, other in combinations(parsed, 2):
            if _common(one, other) is not None:
                raise BadOption(f"{place}: subnets {one} and {other} overlap; drop one, or make them smaller")
        for rule in self.security_group:
            if not isinstance(rule, Egress):
                raise BadOption(f"{place}: security_group takes egress(...), not {rule!r}")
            if not self.nat and not any(_common(subnet, rule.hosts) for subnet in parsed):
                raise BadOption(f"{place}: {rule}: that is in none of its subnets; add the subnet, or nat=True for the outside")

    def reachable(self) -> tuple[Egress, ...]:
        """The rules, without `nat` cut down to the subnets."""
        if self.nat:
            return self.security_group
        pairs = ((rule, _common(rule.hosts, ip_network(subnet))) for rule in self.security_group for subnet in self.subnets)
        return tuple(Egress(rule.protocol, str(hosts), rule.port) for rule, hosts in pairs if hosts is not None)

    @property
    def versions(self) -> set[int]:
        """Of IP: 4 and 6, where anything can be reached by them."""
        return {rule.hosts.version for rule in self.reachable()}


def make_network(name: str, table: Any, place: str) -> Network:
    """`[networks.NAME]`. Raises ConfigError that begins with `place`."""
    if not isinstance(table, dict):
        raise ConfigError(f"{place} must be a table")
    for key in table:
        if key not in Network.__struct_fields__[1:]:
            raise ConfigError(f"{place} unknown key {key!r}{suggest(key, Network.__struct_fields__[1:])}")
    for rule in table.get("security_group", ()):
        for key in rule if isinstance(rule, dict) else ():
            if key not in Egress.__struct_fields__:
                raise ConfigError(f"{place} security_group: unknown key {key!r}{suggest(key, Egress.__struct_fields__)}")
    try:
        return msgspec.convert({**table, "name": name}, Network, strict=False)  # environment variables are text
    except msgspec.ValidationError as error:
        where, fault = explain(error)
        raise ConfigError(f"{place} {where.removeprefix('$.')}: {fault}") from None


def inner_rules(interfaces: Mapping[str, Network], uplink: str) -> str:
    """What nftables is to do where the functions' interfaces meet: from each, the way out by `uplink` that its network leaves open."""
    chains = "\n".join(f"chain {name} {{\n{_chain(network)}\n}}" for name, network in interfaces.items())
    jumps = ", ".join(f'"{name}" : jump {name}' for name in interfaces)
    refuse = "\n".join(_REFUSE)
    return f"""
table inet functions {{
{chains}
chain forward {{
type filter hook forward priority filter; policy drop;
ct state established,related accept
oifname "{uplink}" iifname vmap {{ {jumps} }}
{refuse}
}}
chain input {{
type filter hook input priority filter; policy drop;
{refuse}
}}
chain postrouting {{
type nat hook postrouting priority srcnat;
oifname "{uplink}" masquerade
}}
}}
"""


def outer_rules(uplink: str) -> str:
    """What the host's own nftables is to do with what comes by `uplink`: let it through, never to the host itself.

    Before the host's own translations, so that what it forwards for others (a container's port, say) is out of reach as well. The table is
    owned, so that no `flush ruleset` removes it while the router lives, and it goes with the router.
    """
    refuse = "\n".join(f'iifname "{uplink}" fib daddr type != unicast {each}' for each in _REFUSE)
    return f"""
table inet {uplink} {{
flags owner;
chain prerouting {{
type filter hook prerouting priority mangle;
{refuse}
}}
chain forward {{
type filter hook forward priority filter - 10;
oifname "{uplink}" ct state established,related accept
oifname "{uplink}" drop
}}
chain postrouting {{
type nat hook postrouting priority srcnat;
iifname "{uplink}" masquerade
}}
}}
"""


def _chain(network: Network) -> str:
    local: list[str] = []
    others: list[str] = []
    for rule in network.reachable():
        near = any(_common(rule.hosts, reserved) == rule.hosts for reserved in _LINK_LOCAL)
        (local if near else others).append(f"{_match(rule)} accept")
    reserved = [f"{_family(hosts)} daddr {hosts} {each}" for hosts in _LINK_LOCAL for each in _REFUSE]
    return "\n".join((*local, *reserved, *others))


def _match(rule: Egress) -> str:
    hosts = rule.hosts
    words = [f"{_family(hosts)} daddr {hosts}"]
    if rule.port is not None:
        words.append(f"{rule.protocol} dport {rule.port}")
    elif rule.protocol != "all":
        words.append(f"meta l4proto {'ipv6-icmp' if rule.protocol == 'icmp' and hosts.version == 6 else rule.protocol}")
    return " ".join(words)


def _family(hosts: IPv4Network | IPv6Network) -> str:
    return "ip" if hosts.version == 4 else "ip6"


def _parse_cidr(cidr: Any, place: str) -> IPv4Network | IPv6Network:
    try:
        hosts = ip_network(cidr if isinstance(cidr, str) else "", strict=False)
    except ValueError:
        raise BadOption(f'{place}: {cidr!r} is no CIDR; write one such as "10.0.1.0/24" or "fd00:1::/64"') from None
    if "/" not in cidr or str(hosts.network_address) != str(ip_network(cidr.partition("/")[0]).network_address):
        raise BadOption(f"{place}: {cidr!r} says one host; write the network, {hosts}")
    if hosts.is_loopback or hosts.is_multicast:
        raise BadOption(f"{place}: {cidr!r} is {'loopback' if hosts.is_loopback else 'multicast'}, which no network leads to")
    return hosts


def _common(one: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network | None:
    """What is in both: of two CIDRs one is in the other, or they have nothing in common."""
    if one.version != other.version or not one.overlaps(other):
        return None
    return one if one.prefixlen >= other.prefixlen else other


def leading(routes: Iterable[tuple[str, str]], rules: Iterable[Egress]) -> set[str]:
    """The interfaces, of routes (a CIDR, an interface), to hosts of the rules: the narrowest to all of a rule's, and those to some."""
    parsed = [(ip_network(hosts), interface) for hosts, interface in routes]
    found = set()
    for rule in rules:
        near = [(hosts, interface) for hosts, interface in parsed if _common(hosts, rule.hosts) is not None]
        narrowest = max((hosts.prefixlen for hosts, _ in near if hosts.prefixlen <= rule.hosts.prefixlen), default=0)
        found |= {interface for hosts, interface in near if hosts.prefixlen >= narrowest}
    return found
