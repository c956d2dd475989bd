"""Machines for tests to talk to: network namespaces on links of their own, with servers in them."""

from __future__ import annotations

import ast
import os
import secrets
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from servers import PATH, program

TCP_PORTS, UDP_PORTS = (5432, 8080), (53, 514)  # at each host


class Host:
    """A machine at `address` and `address6`, on a link whose other end is ours: `near` and `near6`, by which it routes everything.

    Its TCP ports answer who asks by which address, its UDP ports with what they got; port 53 is a DNS server that knows all names.
    """

    def __init__(self) -> None:
        self._name = self.link = f"ert{secrets.token_hex(4)}"
        number = secrets.randbelow(50 * 250)  # others' tests may run on this machine at the same time
        prefix, prefix6 = f"10.{200 + number // 250}.{number % 250}", f"fd5a:{number:x}"
        self.subnet, self.subnet6 = f"{prefix}.0/24", f"{prefix6}::/64"
        self.address, self.address6 = f"{prefix}.4", f"{prefix6}::4"
        self.near, self.near6 = f"{prefix}.1", f"{prefix6}::1"
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        _ip("netns", "add", self._name)
        _ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self._name)
        _ip("addr", "add", f"{self.near}/24", "dev", self.link)
        _ip("addr", "add", f"{self.near6}/64", "dev", self.link, "nodad")
        _ip("link", "set", self.link, "up")
        for words in (
            "link set lo up", "link set eth0 up", f"addr add {self.address}/24 dev eth0", f"addr add {self.address6}/64 dev eth0 nodad",
            f"route add default via {self.near}", f"route add default via {self.near6}",
        ):  # fmt: skip
            _ip("-n", self._name, *words.split())
        self._server = subprocess.Popen(self._inside(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *exc: object) -> None:
        if self._server is not None:
            self._server.communicate()
        _ip("link", "delete", self.link)
        _ip("netns", "delete", self._name)

    def reaches(self, kind: str, host: str, port: int) -> Any:
        """What `reach` says there, within a second."""
        done = subprocess.run(self._inside(kind, host, str(port)), capture_output=True, text=True, check=True)
        return ast.literal_eval(done.stdout)

    def _inside(self, *words: str) -> list[str]:
        return [program("ip", "iproute2"), "netns", "exec", self._name, sys.executable, __file__, *words]

    @property
    def forwarding(self) -> tuple[str, str]:
        """Whether this machine forwards what comes by the link, of IPv4 and IPv6."""
        return (
            Path(f"/proc/sys/net/ipv4/conf/{self.link}/forwarding").read_text().strip(),
            Path(f"/proc/sys/net/ipv6/conf/{self.link}/force_forwarding").read_text().strip(),
        )


def _ip(*words: str) -> None:
    subprocess.run([program("ip", "iproute2"), *words], check=True, env={"PATH": PATH})


def reach(kind: str, host: str, port: int, seconds: float = 5) -> Any:
    """What an attempt to reach that comes to: what the host said, or the kind of error. kind: "tcp", "udp", "dns" or "icmp"."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if kind == "tcp":
            with socket.create_connection((host, port), timeout=seconds) as connection:
                return connection.recv(100).decode()
        with socket.socket(family, socket.SOCK_DGRAM, socket.getprotobyname("icmp") if kind == "icmp" else 0) as sender:
            sender.settimeout(seconds)
            sender.connect((host, port))
            sender.send({"udp": b"hello", "dns": _dns_query("db.plant"), "icmp": b"\x08\0\0\0\0\0\0\1hello"}[kind])
            data = sender.recv(4096)
            return {"udp": data.decode, "dns": lambda: socket.inet_ntoa(data[-4:]), "icmp": data[8:].decode}[kind]()
    except OSError as error:
        return type(error).__name__


def _dns_query(name: str) -> bytes:
    """For its IPv4 address."""
    return b"\0\7\1\0\0\1\0\0\0\0\0\0" + b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0\0\1\0\1"


def _dns_answer(query: bytes) -> bytes:
    """Whatever is asked for is at 10.9.8.7."""
    return query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + query[12:] + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x0a\x09\x08\x07"


def _serve() -> None:
    for port in TCP_PORTS:
        server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        threading.Thread(target=_answer_connections, args=(server,), daemon=True).start()
    for port in UDP_PORTS:
        server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        server.bind(("::", port))
        threading.Thread(target=_answer_datagrams, args=(server, port), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)


def _answer_connections(server: socket.socket) -> None:
    while True:
        connection, (address, *_) = server.accept()
        with connection, suppress(OSError):
            connection.sendall(address.removeprefix("::ffff:").encode())


def _answer_datagrams(server: socket.socket, port: int) -> None:
    while True:
        data, sender = server.recvfrom(4096)
        server.sendto(_dns_answer(data) if port == 53 else data, sender)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(repr(reach(sys.argv[1], sys.argv[2], int(sys.argv[3]), 1)))
    else:
        _serve()
