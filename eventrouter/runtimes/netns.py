"""Networks by the kernel: a network namespace for each function that is in one, and one of the router's in the middle, which has the rules.

    function's namespace  eth0 ──── f0  router's namespace  out ─── er-…  host
                                        nftables: what is allowed          nftables: never the host itself; the way back

Nobody but the router has a way into the middle one, and the kernel takes it away with the router, however that ends: with it all links of
functions are cut. On the host's side there are a link and a table, which go likewise, and what `_Forwarding` says.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import secrets
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from eventrouter.errors import ConfigError, EventRouterError
from eventrouter.network import Egress, Network, egress, inner_rules, leading, outer_rules

CLOSED: Final = "closed"  # in place of a path: a namespace with nothing but its own loopback, which needs no privilege
_RESOLVED: Final = "/run/systemd/resolve"
_RESOLVERS: Final = (_RESOLVED, "/run/dbus", "/run/nscd", "/run/nslcd", "/run/avahi-daemon", "/var/lib/sss/pipes")
_NEWNS, _NEWUSER, _NEWNET = 0x20000, 0x10000000, 0x40000000  # of unshare(2) and setns(2); Python has neither before 3.12
_PRIVATE = 0x4000 | 0x40000  # MS_REC | MS_PRIVATE of mount(2): what is mounted here is so here alone
_NET_ADMIN, _SYS_ADMIN = 1 << 12, 1 << 21  # of capabilities(7)
_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # a user's shell may not have them
_JSON: Final = 1 << 4  # of libnftables: the output's form
# Known beforehand, so that nobody need ask for the address of a neighbour, and nobody else can answer.
_OURS, _THEIRS = "02:00:00:00:00:01", "02:00:00:00:00:02"
_GATEWAY, _GATEWAY6 = "169.254.255.254", "fe80::ffff"
_SYSCTL = Path("/proc/sys/net")
_LOCK = Path("/run/eventrouter-networks.lock")


# In the environment


def enter(network: str) -> None:
    """Move this process, of one thread, into a function's namespace: what `Namespaces.path` gave. Raises EventRouterError."""
    try:
        _enter(network)
    except OSError as error:
        raise EventRouterError(f"the function's network can't be entered: {error}") from None


def _enter(network: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if network != CLOSED:
        namespace = os.open(network, os.O_RDONLY | os.O_CLOEXEC)
        _done(libc.setns(namespace, _NEWNET))
        os.close(namespace)
        _hide_resolvers(libc)
        return
    if _privileged():
        _done(libc.unshare(_NEWNET))
    else:
        user, group = os.geteuid(), os.getegid()
        _done(libc.unshare(_NEWUSER | _NEWNET))
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _hide_resolvers(libc)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh22x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP


def _hide_resolvers(libc: Any) -> None:
    """Services that look names up for others listen on sockets in the file system, which are in no network: empty folders take their place.

    systemd's says which servers it asks itself: those are the ones to ask here, as far as a rule leads to them.
    """
    folders = [folder for folder in _RESOLVERS if Path(folder).is_dir()]
    if not folders:
        return
    upstream = b""
    with suppress(FileNotFoundError):
        upstream = Path(_RESOLVED, "resolv.conf").read_bytes()
    _done(libc.unshare(_NEWNS))
    _done(libc.mount(b"none", b"/", None, _PRIVATE, None))
    for folder in folders:
        _done(libc.mount(b"none", folder.encode(), b"tmpfs", 0, b"mode=755,size=64k"))
    if upstream:
        for name in ("resolv.conf", "stub-resolv.conf"):  # /etc/resolv.conf leads to one of them
            Path(_RESOLVED, name).write_bytes(upstream)


def _done(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# In the router


def refusal(network: Network) -> str:
    """Why this machine can't hold a function to it, and what helps; empty when it can."""
    if not sys.platform.startswith("linux"):
        return "only Linux can hold a function to a network; drop network=, or run it there"
    if not network.reachable():
        return "" if _privileged() or _may_unshare() else (
            "the kernel lets only root make a network namespace here; run the router as root, or allow user namespaces (sysctl "
            "user.max_user_namespaces; on Ubuntu kernel.apparmor_restrict_unprivileged_userns)"
        )  # fmt: skip
    if not _privileged():
        return (
            "a network with rules needs root, or CAP_NET_ADMIN and CAP_SYS_ADMIN; run the router so. One without, in which nothing can be "
            "reached, needs neither"
        )
    if shutil.which("ip", path=_PATH) is None:
        return "`ip` is not installed; apt-get install iproute2"
    try:
        _Nftables.library()
    except OSError:
        return "nftables is not installed (libnftables.so.1 is not found); apt-get install nftables"
    if 6 in network.versions and not _SYSCTL.joinpath("ipv6").is_dir():
        return "it has rules for IPv6, which this kernel doesn't speak; drop those"
    if 6 in network.versions and not _forwards_ipv6():
        return (
            "it has rules for IPv6, which before Linux 6.17 is forwarded on all interfaces or on none; sysctl -w "
            "net.ipv6.conf.all.forwarding=1 (the machine then hears router advertisements only where accept_ra is 2), or drop those rules"
        )
    return ""


def mechanism() -> tuple[bool, str]:
    """Whether this machine can hold functions to networks, and by what, or why not: a line for people."""
    refused = refusal(Network("closed", ("10.0.0.0/16", "10.1.0.0/16")))
    open_refused = refusal(Network("open", ("10.0.0.0/16", "10.1.0.0/16"), (egress("all", "10.0.0.0/16"),)))
    if not open_refused:
        return True, f"networks are enforced by network namespaces and nftables{'' if _forwards_ipv6() else ', for IPv4 alone'}"
    if not refused:
        return False, f"networks in which nothing can be reached are enforced by network namespaces; others are refused: {open_refused}"
    return False, f"functions with network= are refused: {refused}"


class Namespaces:
    """Those of functions that are in networks. Made once the router starts, gone when it ends."""

    def __init__(self, networks: Mapping[str, Network]) -> None:
        self._networks = networks
        self._paths = {name: CLOSED for name, network in networks.items() if not network.reachable()}
        self._descriptors: list[int] = []
        self._uplink = ""
        self._host: _Nftables | None = None
        self._forwarding: _Forwarding | None = None

    def path(self, function: str) -> str:
        """What `enter` takes; empty: it stays in the host's network."""
        return self._paths.get(function, "")

    async def build(self) -> None:
        """Raises ConfigError when the kernel won't; nothing is left then."""
        if self._networks:
            await self._in_thread(self._build)

    async def close(self) -> None:
        if self._networks:
            await self._in_thread(self._close)

    async def _in_thread(self, work: Any) -> None:
        # One of its own that ends with it: it goes about in namespaces, and no other work must ever be done in one of them.
        with ThreadPoolExecutor(1) as pool:
            await asyncio.get_running_loop().run_in_executor(pool, work)

    def _build(self) -> None:
        opened = {name: network for name, network in self._networks.items() if name not in self._paths}
        if not opened:
            return
        try:
            self._make(opened)
        except OSError as error:
            self._close()
            names = ", ".join(sorted({network.name for network in opened.values()}))
            raise ConfigError(f"network {names}: this machine can't make it: {error}; see `eventrouter doctor`") from None

    def _make(self, opened: Mapping[str, Network]) -> None:
        middle = self._new()
        uplink = self._uplink = f"er-{secrets.token_hex(4)}"
        six = any(6 in network.versions for network in opened.values())
        self._host = _Nftables()
        self._host.run(outer_rules(uplink))
        # The route is what no two routers can have: so it is known that the address is ours.
        address = _free_address(uplink, self._place(middle))
        local = secrets.token_hex(5)  # an IPv6 network that nobody else has (RFC 4193)
        prefix6 = f"fd{local[:2]}:{local[2:6]}:{local[6:]}"
        address6 = f"{prefix6}::1"
        host = [f"link set {uplink} up", f"neigh replace {address} lladdr {_THEIRS} dev {uplink} nud permanent"]
        inner = ["link set lo up", "link set out up", f"addr add {address}/32 dev out", *_way_out("out", 4)]
        if six:
            host += [f"route add {address6}/128 dev {uplink}", f"neigh replace {address6} lladdr {_THEIRS} dev {uplink} nud permanent"]
            inner += [f"addr add {address6}/128 dev out nodad", *_way_out("out", 6)]
        _ip(host)
        interfaces, outer = {}, []
        for number, (name, network) in enumerate(opened.items()):
            interface, theirs = f"f{number}", self._new()
            interfaces[interface] = network
            self._paths[name] = self._place(theirs)
            inner.append(f"link add {interface} address {_OURS} type veth peer name eth0 address {_THEIRS} netns {self._place(theirs)}")
            inner.append(f"link set {interface} up")
            words = ["link set lo up", "link set eth0 up"]
            # Known in the middle alone, so that every router can give the same.
            own = {4: f"169.254.{number // 250}.{number % 250 + 1}/32", 6: f"{prefix6}:1::{number + 1:x}/128"}
            for version in sorted({4} | network.versions):
                host_part = own[version].partition("/")[0]
                inner.append(f"route add {own[version]} dev {interface}")
                inner.append(f"neigh replace {host_part} lladdr {_THEIRS} dev {interface} nud permanent")
                words += [f"addr add {own[version]} dev eth0{' nodad' if version == 6 else ''}", *_way_out("eth0", version)]
            outer.append((theirs, words))
        with _within(middle):
            inside = _Nftables()
            inside.run(inner_rules(interfaces, "out"))
            inside.close()
            _ip(inner)
            _write("ipv4/ip_forward", "1")
            _write("ipv4/icmp_ratelimit", "0")  # each attempt that is refused is told so at once
            if six:
                _write("ipv6/conf/all/forwarding", "1")
                _write("ipv6/icmp/ratelimit", "0")
        for theirs, words in outer:
            with _within(theirs):
                _ip(words)
                _write("ipv4/ping_group_range", "0 2147483647")  # else only who may open raw sockets could make use of an icmp rule
        self._forwarding = _Forwarding(self._host, uplink, list(opened.values()))

    def _new(self) -> int:
        """A namespace that lives as long as its descriptor here, or a process in it."""
        with _within(None):
            _done(ctypes.CDLL(None, use_errno=True).unshare(_NEWNET))
            self._descriptors.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        return self._descriptors[-1]

    @staticmethod
    def _place(descriptor: int) -> str:
        return f"/proc/{os.getpid()}/fd/{descriptor}"

    def _close(self) -> None:
        if self._forwarding is not None:
            self._forwarding.close()
        if self._uplink:
            with suppress(OSError):  # it was never made
                _ip([f"link delete {self._uplink}"])  # it would go with the namespaces, but later
        while self._descriptors:
            os.close(self._descriptors.pop())
        if self._host is not None:
            self._host.close()
        self._forwarding = self._host = None


class _Forwarding:
    """The host forwards what comes by `uplink`, and the answers to it, and nothing that it wouldn't have forwarded before.

    Where forwarding is off, it is switched on for `uplink` and for the interfaces that lead to what can be reached, with rules that keep
    the latter from forwarding anything else. These and the set of what was switched, in a table of the host's, outlive a router that is
    killed; the next one on this machine puts both back, as does the last one that stops.
    """

    def __init__(self, host: _Nftables, uplink: str, networks: list[Network]) -> None:
        self._host = host
        self._lock: IO[str] = _LOCK.open("a")  # held while the router lives
        self._restore_if_alone()
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        rules = [rule for network in networks for rule in network.reachable()]
        wanted = [("4", dev) for dev in _leading("4", rules)]
        if any(rule.hosts.version == 6 for rule in rules) and not _is("ipv6/conf/all/forwarding", "1"):
            wanted += [("6", dev) for dev in _leading("6", rules)]
            _write(_switch("6", uplink), "1")
        switched = [(version, dev) for version, dev in wanted if _is(_switch(version, dev), "0")]
        if switched:
            host.run(_SWITCHED + "".join(f'add element inet eventrouter switched{version} {{ "{dev}" }}\n' for version, dev in switched))
        for version, dev in switched:
            _write(_switch(version, dev), "1")
        _write(_switch("4", uplink), "1")

    def close(self) -> None:
        self._restore_if_alone()
        self._lock.close()

    def _restore_if_alone(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # the others' networks need it
            return
        with suppress(OSError):  # there is no such table
            found = msgspec.json.decode(self._host.run("list table inet eventrouter", json=True))["nftables"]
            for each in (entry["set"] for entry in found if "set" in entry):
                for dev in each.get("elem", ()):
                    with suppress(FileNotFoundError):  # it has gone
                        _write(_switch(each["name"][-1], dev), "0")
            self._host.run("delete table inet eventrouter")


_SWITCHED: Final = """
add table inet eventrouter
add set inet eventrouter switched4 { type ifname; }
add set inet eventrouter switched6 { type ifname; }
add chain inet eventrouter forward { type filter hook forward priority filter - 20; }
flush chain inet eventrouter forward
add rule inet eventrouter forward meta nfproto ipv4 iifname @switched4 oifname != "er-*" drop
add rule inet eventrouter forward meta nfproto ipv6 iifname @switched6 oifname != "er-*" drop
"""


class _Nftables:
    """libnftables, in the namespace that the calling thread is in. What it owns is gone when it is closed, or this process ends."""

    def __init__(self) -> None:
        self._library = self.library()
        self._context: int | None = self._library.nft_ctx_new(0)
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_buffer_output(self._context)

    @staticmethod
    def library() -> Any:
        library = ctypes.CDLL("libnftables.so.1")
        library.nft_ctx_new.restype = ctypes.c_void_p
        for function in ("nft_ctx_get_error_buffer", "nft_ctx_get_output_buffer"):
            getattr(library, function).restype = ctypes.c_char_p
        for function in ("buffer_error", "get_error_buffer", "buffer_output", "get_output_buffer", "free"):
            getattr(library, f"nft_ctx_{function}").argtypes = [ctypes.c_void_p]
        library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        return library

    def run(self, commands: str, *, json: bool = False) -> bytes:
        """All of them or none. Raises OSError with its words."""
        self._library.nft_ctx_output_set_flags(self._context, _JSON if json else 0)
        failed = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        error = self._library.nft_ctx_get_error_buffer(self._context)
        output: bytes = self._library.nft_ctx_get_output_buffer(self._context)
        if failed:
            raise OSError(f"nftables: {error.decode().splitlines()[0]}")
        return output

    def close(self) -> None:
        if self._context is not None:
            self._library.nft_ctx_free(self._context)
            self._context = None


@contextmanager
def _within(namespace: int | None) -> Iterator[None]:
    """This thread, and what it starts, are in that namespace; None: in whichever they go to."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if namespace is not None:
            _done(libc.setns(namespace, _NEWNET))
        yield
    finally:
        _done(libc.setns(home, _NEWNET))
        os.close(home)


def _ip(commands: list[str]) -> None:
    """Raises OSError with its words."""
    _call_ip("-batch", "-", input="\n".join(commands).encode())


def _call_ip(*words: str, input: bytes = b"") -> bytes:
    path = shutil.which("ip", path=_PATH) or "ip"
    done = subprocess.run([path, *words], input=input, capture_output=True, check=False)  # noqa: S603 - no words of the user's
    if done.returncode:
        raise OSError(f"ip: {' '.join(done.stderr.decode().split())}")
    return done.stdout


def _free_address(uplink: str, middle: str) -> str:
    """Make the link between host and middle; the address of its far end."""
    _ip([f"link add {uplink} address {_OURS} type veth peer name out address {_THEIRS} netns {middle}", f"link set {uplink} up"])
    for _ in range(1000):
        address = f"169.254.{secrets.randbelow(250) + 1}.252"  # functions have .1 to .250
        try:
            _ip([f"route add {address}/32 dev {uplink}"])
        except OSError as error:
            if "File exists" not in str(error):
                raise
        else:
            return address
    raise OSError("other routers have all addresses that are for them")


def _way_out(dev: str, version: int) -> list[str]:
    gateway = _GATEWAY if version == 4 else _GATEWAY6
    onlink = " onlink" if version == 4 else ""
    return [
        f"neigh replace {gateway} lladdr {_OURS} dev {dev} nud permanent",
        f"route add default via {gateway} dev {dev}{onlink}",
    ]


def _leading(version: str, rules: list[Egress]) -> list[str]:
    """The interfaces by which the host's routes lead to what the rules allow."""
    shown = _call_ip("-json", f"-{version}", "route", "show", "table", "all")
    routes = [
        ({"4": "0.0.0.0/0", "6": "::/0"}[version] if route["dst"] == "default" else route["dst"], hop["dev"])
        for route in msgspec.json.decode(shown or b"[]")
        if route.get("type", "unicast") == "unicast"
        for hop in (route, *route.get("nexthops", ()))
        if "dev" in hop
    ]
    return sorted(dev for dev in leading(routes, rules) if dev != "lo" and not dev.startswith("er-"))


def _switch(version: str, dev: str) -> str:
    return f"ipv4/conf/{dev}/forwarding" if version == "4" else f"ipv6/conf/{dev}/force_forwarding"


def _is(name: str, value: str) -> bool:
    return (_SYSCTL / name).read_text().strip() == value


def _write(name: str, value: str) -> None:
    (_SYSCTL / name).write_text(value)


def _forwards_ipv6() -> bool:
    switch = _SYSCTL / "ipv6/conf/lo/force_forwarding"
    return switch.exists() or (_SYSCTL.joinpath("ipv6").is_dir() and _is("ipv6/conf/all/forwarding", "1"))


def _privileged() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16) & (both := _NET_ADMIN | _SYS_ADMIN) == both
    return False


def _may_unshare() -> bool:
    path = shutil.which("unshare", path=_PATH)
    if path is None:
        return False
    return subprocess.run([path, "--map-current-user", "--net", "true"], capture_output=True, check=False).returncode == 0  # noqa: S603
