"""Private networks: what a function reaches, and that it is the kernel who says so."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from eventrouter import App, Event, Network, egress, on
from eventrouter.config import load_config
from eventrouter.errors import ConfigError
from eventrouter.network import inner_rules, leading
from eventrouter.operations import describe_function
from eventrouter.plugins import Plugins
from eventrouter.runtimes.netns import CLOSED, mechanism, refusal
from hosts import Host
from served import Place, wait_for
from servers import free_port, program
from support import LOCAL, make_app, until

HANDLERS = Path(__file__).with_name("networked.py")
SUBNETS = ("10.0.1.0/24", "10.0.2.0/24")
privileged = pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="networks with rules need root on Linux")
refused = "ConnectionRefusedError"


# Values


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: Network("plant", ["10.0.1.0/24"]), "network 'plant': 1 of the two or more subnets"),
        (lambda: Network("plant", ["10.0.0.0/16", "10.0.1.0/24"]), "subnets 10.0.0.0/16 and 10.0.1.0/24 overlap"),
        (lambda: Network("plant", ["10.0.1.0/24", "fd00:1::/64", "fd00::/16"]), "subnets fd00:1::/64 and fd00::/16 overlap"),
        (lambda: Network("plant", ["10.0.1.0/24", "10.0.2/24"]), "network 'plant': '10.0.2/24' is no CIDR; write one such as"),
        (lambda: Network("plant", ["10.0.1.0/24", "10.0.2.7/24"]), "'10.0.2.7/24' says one host; write the network, 10.0.2.0/24"),
        (lambda: Network("plant", ["10.0.1.0/24", "10.0.2.7"]), "'10.0.2.7' says one host; write the network, 10.0.2.7/32"),
        (lambda: Network("plant", ["10.0.1.0/24", "127.0.0.0/8"]), "'127.0.0.0/8' is loopback"),
        (lambda: Network("plant", "10.0.1.0/24"), "subnets='10.0.1.0/24': write a list"),  # type: ignore[arg-type]
        (lambda: Network("a plant", SUBNETS), "network 'a plant': a name is of letters"),
        (lambda: Network("plant", SUBNETS, ["tcp"]), "takes egress(...), not 'tcp'"),  # type: ignore[list-item]
        (lambda: Network("plant", SUBNETS, [egress("tcp", "10.0.3.0/24", 1)]), "tcp to 10.0.3.0/24 port 1: that is in none of its subnets"),
        (lambda: egress("tpc", "10.0.1.0/24"), "egress: protocol 'tpc'; did you mean 'tcp'?"),
        (lambda: egress("tcp", "db", 5432), "egress: 'db' is no CIDR"),
        (lambda: egress("tcp", "10.0.1.0/24", 0), "egress: port=0: write one of 1 to 65535"),
        (lambda: egress("tcp", "10.0.1.0/24", 65536), "port=65536"),
        (lambda: egress("udp", "10.0.1.0/24", "9-5"), "port='9-5'"),
        (lambda: egress("udp", "10.0.1.0/24", "5-"), "port='5-'"),
        (lambda: egress("all", "10.0.1.0/24", 80), "egress: all has no ports"),
        (lambda: egress("icmp", "10.0.1.0/24", 80), "egress: icmp has no ports"),
    ],
)
def test_what_cannot_be(make: Callable[[], Any], fault: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert fault in str(error.value)
    assert isinstance(error.value, ValueError)


def test_without_nat_the_rules_are_cut_down_to_the_subnets() -> None:
    rules = [egress("tcp", "0.0.0.0/0", 443), egress("udp", "10.0.2.53/32", "53-54"), egress("icmp", "10.0.0.0/8")]
    inside = Network("plant", [*SUBNETS, "fd00:1::/64"], rules)
    assert list(map(str, inside.reachable())) == [
        "tcp to 10.0.1.0/24 port 443",
        "tcp to 10.0.2.0/24 port 443",
        "udp to 10.0.2.53/32 port 53-54",
        "icmp to 10.0.1.0/24",
        "icmp to 10.0.2.0/24",
    ]
    assert inside.versions == {4}
    assert Network("plant", SUBNETS, rules, nat=True).reachable() == tuple(rules)
    assert Network("plant", SUBNETS).reachable() == ()


def test_what_is_link_local_is_outside_of_every_wide_rule() -> None:
    wide = inner_rules(
        {"f0": Network("plant", SUBNETS, [egress("tcp", "0.0.0.0/0", 80), egress("tcp", "169.254.169.254/32", 80)], nat=True)}, "out"
    )
    lines = [line for line in wide.partition("chain forward")[0].splitlines() if "daddr" in line and "tcp" in line]
    assert lines == [
        "ip daddr 169.254.169.254/32 tcp dport 80 accept",
        "ip daddr 169.254.0.0/16 meta l4proto tcp reject with tcp reset",
        "ip6 daddr fe80::/10 meta l4proto tcp reject with tcp reset",
        "ip daddr 0.0.0.0/0 tcp dport 80 accept",
    ]


def test_the_interfaces_that_lead_there() -> None:
    routes = [("0.0.0.0/0", "wan"), ("10.0.1.0/24", "lan"), ("10.0.1.128/25", "lab"), ("10.0.0.0/8", "vpn"), ("fd00::/64", "six")]
    assert leading(routes, [egress("tcp", "10.0.1.0/25")]) == {"lan"}
    assert leading(routes, [egress("tcp", "10.0.1.0/24")]) == {"lan", "lab"}
    assert leading(routes, [egress("tcp", "10.0.0.0/16")]) == {"vpn", "lan", "lab"}
    assert leading(routes, [egress("tcp", "192.168.0.0/24"), egress("tcp", "fd00::1/128")]) == {"wan", "six"}


# Configuration


PLANT = '[networks.plant]\nsubnets = ["10.0.1.0/24", "10.0.2.0/24"]\n'


def test_networks_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "eventrouter.toml").write_text(
        PLANT + 'security_group = [{ protocol = "tcp", cidr = "10.0.1.0/24", port = 5432 }, { protocol = "all", cidr = "10.0.2.0/24" }]\n'
    )
    found = load_config({}, folder=tmp_path, environ={"EVENTROUTER_NETWORKS__PLANT__NAT": "true"}).networks
    assert found == {"plant": Network("plant", SUBNETS, [egress("tcp", "10.0.1.0/24", 5432), egress("all", "10.0.2.0/24")], nat=True)}


@pytest.mark.parametrize(
    ("toml", "fault"),
    [
        ("[networks.plant]\n", "[networks.plant] $: object missing required field subnets"),
        (PLANT + "nta = true\n", "[networks.plant] unknown key 'nta'; did you mean 'nat'?"),
        (PLANT + "nat = 'maybe'\n", "[networks.plant] nat: expected bool, got str"),
        (
            PLANT + "security_group = [{ protocl = 'tcp' }]\n",
            "[networks.plant] security_group: unknown key 'protocl'; did you mean 'protocol'?",
        ),
        (PLANT + "security_group = [{ protocol = 'tcp', cidr = '10.0.3.0/24' }]\n", "tcp to 10.0.3.0/24: that is in none of its subnets"),
        (
            PLANT + "security_group = [{ protocol = 'tcp', cidr = '10.0.1.0/24', port = 0 }]\n",
            "[networks.plant] security_group[0]: egress: port=0",
        ),
        ("[networks]\nplant = 3\n", "[networks.plant] must be a table"),
        (
            PLANT + "[functions.isolated]\nnetwork = 'plnt'\n",
            "isolated: network='plnt': there is no [networks.plnt]; did you mean 'plant'?",
        ),
        (PLANT + "[functions.isolated]\nnetwork = 3\n", "[functions.isolated]: network=3"),
        (PLANT + "[functions.inline]\nnetwork = 'plant'\n", 'inline: network= needs isolation="process"'),
    ],
)
def test_errors_of_the_configuration(tmp_path: Path, toml: str, fault: str) -> None:
    (tmp_path / "app.py").write_text(
        "from eventrouter import on\n@on(isolation='process')\ndef isolated(payload): ...\n@on()\nasync def inline(payload): ...\n"
    )
    (tmp_path / "eventrouter.toml").write_text(toml)
    with pytest.raises(ConfigError) as error:
        App(str(tmp_path / "app.py"), config=load_config({}, folder=tmp_path), plugins=Plugins([LOCAL]))
    assert fault in str(error.value)


def test_a_network_in_code_is_anothers_of_that_name_only_if_they_are_the_same(tmp_path: Path) -> None:
    text = """
from eventrouter import Network, egress, on
plant = Network("plant", ["10.0.1.0/24", "10.0.2.0/24"])

@on(isolation="process", network=plant)
def one(payload): ...

@on(isolation="process", network=Network("plant", ["10.0.1.0/24", "10.0.%d.0/24"]))
def two(payload): ...
"""
    app_of = lambda toml: make_named(tmp_path, toml)  # noqa: E731
    (tmp_path / "app.py").write_text(text % 2)
    assert {function.network for function in app_of("").functions.values()} == {Network("plant", SUBNETS)}
    (tmp_path / "app.py").write_text(text % 3)
    with pytest.raises(ConfigError, match="two networks are named 'plant'; give one another name"):
        app_of("")
    ours = app_of('[networks.plant]\nsubnets = ["10.7.0.0/16", "10.8.0.0/16"]\n')  # what the file says comes before
    assert {function.network for function in ours.functions.values()} == {Network("plant", ["10.7.0.0/16", "10.8.0.0/16"])}
    described = describe_function(ours.functions["one"])["policy"]["network"]
    assert described == {"name": "plant", "subnets": ("10.7.0.0/16", "10.8.0.0/16"), "security_group": (), "nat": False}


def make_named(folder: Path, toml: str) -> App:
    sys.modules.pop("app", None)
    (folder / "eventrouter.toml").write_text(toml)
    return App(str(folder / "app.py"), config=load_config({}, folder=folder), plugins=Plugins([LOCAL]))


def test_show_prints_the_rules(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("from eventrouter import on\n@on(isolation='process', network='plant')\ndef f(payload): ...\n")
    (tmp_path / "eventrouter.toml").write_text(PLANT)
    with Place(tmp_path) as place:
        shown = place.run("show", "f").split("\n")
        assert [line.split() for line in shown if "network" in line or "reaches" in line] == [
            ["network", "plant:", "10.0.1.0/24,", "10.0.2.0/24"],
            ["reaches", "nothing"],
        ]


# The kernel


@contextmanager
def hosts() -> Iterator[tuple[Host, Host]]:
    with Host() as inside, Host() as outside:
        yield inside, outside


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Host, Host]]:
    with hosts() as both:
        yield both


def rule(protocol: str, cidr: str, port: int | str | None = None) -> dict[str, Any]:
    return {"protocol": protocol, "cidr": cidr, **({} if port is None else {"port": port})}


def settings(world: tuple[Host, Host], rules: list[dict[str, Any]], wide: list[dict[str, Any]]) -> str:
    """plant, without nat, and wide, with it; and closed, which has no rules."""
    inside, _ = world
    text = '[journal]\nurl = "memory"\n'
    for name, group, nat in (("plant", rules, "false"), ("wide", wide, "true"), ("closed", [], "false")):
        listed = ", ".join("{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in each.items()) + " }" for each in group)
        text += f'[networks.{name}]\nsubnets = ["{inside.subnet}", "{inside.subnet6}"]\nnat = {nat}\nsecurity_group = [{listed}]\n'
        text += f'[functions.{name}]\nnetwork = "{name}"\n'
    return text


@asynccontextmanager
async def running(folder: Path, toml: str) -> AsyncIterator[Callable[..., Any]]:
    """Yields what calls a function and returns its result."""
    (folder / "eventrouter.toml").write_text(toml)
    plugins = Plugins([LOCAL])
    async with App(str(HANDLERS), config=load_config(plugins.by_name, folder=folder), plugins=plugins) as app:

        async def call(name: str, payload: Any) -> Any:
            outcome = await app.run_now(name, Event("invoke", "lambda.invoke", name, json.dumps(payload).encode()), {})
            assert hasattr(outcome, "result"), outcome
            return outcome.result

        yield call


EVERYTHING = [("tcp", 5432), ("tcp", 8080), ("udp", 514), ("dns", 53), ("icmp", 1)]


@privileged
async def test_a_network_without_nat(tmp_path: Path, world: tuple[Host, Host]) -> None:
    inside, outside = world
    rules = [
        rule("tcp", "0.0.0.0/0", 5432), rule("udp", inside.subnet, 53), rule("icmp", f"{inside.address}/32"),
        rule("tcp", inside.subnet6, "8000-8100"), rule("udp", "::/0"),
    ]  # fmt: skip
    async with running(tmp_path, settings(world, rules, [])) as call:
        got = await call("plant", [(kind, inside.address, port) for kind, port in EVERYTHING])
        assert got == [inside.near, refused, refused, "10.9.8.7", "hello"]
        got = await call("plant", [(kind, inside.address6, port) for kind, port in EVERYTHING[:4]])
        assert got == [refused, inside.near6, "hello", "10.9.8.7"]
        everything = [(kind, address, port) for address in (outside.address, outside.address6) for kind, port in EVERYTHING[:4]]
        assert await call("plant", everything) == [refused] * 8
        assert outside.forwarding == ("0", "0")  # it is switched on where it is needed alone
        assert await call("free", everything) == [
            *(outside.near, outside.near, "hello", "10.9.8.7"),
            *(outside.near6, outside.near6, "hello", "10.9.8.7"),
        ]


@privileged
async def test_a_network_with_nat(tmp_path: Path, world: tuple[Host, Host]) -> None:
    inside, outside = world
    wide = [rule("tcp", inside.subnet), rule("tcp", outside.subnet, 8080), rule("all", outside.subnet6), rule("udp", outside.subnet, 53)]
    async with running(tmp_path, settings(world, [], wide)) as call:
        got = await call("wide", [(kind, inside.address, port) for kind, port in EVERYTHING])
        assert got == [inside.near, inside.near, refused, refused, refused]
        got = await call("wide", [(kind, outside.address, port) for kind, port in EVERYTHING])
        assert got == [refused, outside.near, refused, "10.9.8.7", refused]
        got = await call("wide", [(kind, outside.address6, port) for kind, port in EVERYTHING[:4]])
        assert got == [outside.near6, outside.near6, "hello", "10.9.8.7"]
        got = await call("wide", [(kind, inside.address6, port) for kind, port in EVERYTHING[:4]])
        assert got == [refused] * 4


@privileged
async def test_the_machine_itself_is_out_of_reach(tmp_path: Path, world: tuple[Host, Host]) -> None:
    inside, outside = world
    everything = [rule("all", inside.subnet), rule("all", inside.subnet6)]
    wide = [*everything, rule("all", outside.subnet), rule("all", outside.subnet6), rule("all", "169.254.0.0/16")]
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        port = server.getsockname()[1]
        datagrams.bind(("::", port))
        name = f"eventrouter-{port}"
        abstract.bind("\0" + name)
        abstract.listen()
        addresses = ["127.0.0.1", "::1", inside.near, inside.near6, outside.near, outside.near6]
        targets = [(kind, address, port) for address in addresses for kind in ("tcp", "udp")]
        toml = settings(world, everything, wide) + '[functions.looks]\nnetwork = "wide"\n'
        async with running(tmp_path, toml) as call:
            for function in ("plant", "wide", "closed"):
                got = await call(function, targets)
                # The machine's kernel is sparing with ICMP, of which alone UDP hears.
                allowed = {"tcp": {refused, "OSError"}, "udp": {refused, "OSError", "TimeoutError"}}
                assert all(each in allowed[kind] for each, (kind, *_) in zip(got, targets, strict=True)), (function, got)
            looked = await call("looks", name)
            assert (looked["heard"], looked["interfaces"], looked["resolvers"]) == (False, ["eth0", "lo"], False)
        server.settimeout(0)
        datagrams.settimeout(0)
        for each in (server.accept, lambda: datagrams.recv(1)):
            with pytest.raises(BlockingIOError):  # not even heard of
                each()


@privileged
async def test_in_a_closed_network_there_is_a_loopback_of_its_own(tmp_path: Path, world: tuple[Host, Host]) -> None:
    toml = settings(world, [], []) + '[functions.looks]\nnetwork = "closed"\n'
    async with running(tmp_path, toml) as call:
        assert (await call("looks", "x"))["interfaces"] == ["lo"]
        inside, outside = world
        targets = [("tcp", address, 5432) for address in (inside.address, inside.address6, outside.address, outside.address6)]
        assert await call("closed", targets) == ["OSError"] * 4
        assert await call("closed", [("tcp", "127.0.0.1", 1)]) == [refused]  # not "unreachable"


@privileged
async def test_functions_of_one_network_do_not_meet(tmp_path: Path, world: tuple[Host, Host]) -> None:
    rules = [rule("all", world[0].subnet)]
    toml = settings(world, rules, []) + '[functions.looks]\nnetwork = "plant"\n[functions.attacks]\nnetwork = "plant"\n'
    async with running(tmp_path, toml) as call:
        spaces = {(await call("looks", "x"))["namespace"], str(Path("/proc/self/ns/net").readlink())}
        assert len(spaces) == 2
        others = [("tcp", f"169.254.0.{number}", 1) for number in (1, 2, 3)]
        assert set(await call("plant", others)) == {refused}


@privileged
async def test_rules_are_where_a_function_has_no_way_to(tmp_path: Path, world: tuple[Host, Host]) -> None:
    inside, outside = world
    toml = settings(world, [rule("tcp", inside.subnet, 5432)], []) + '[functions.attacks]\nnetwork = "plant"\n'
    async with running(tmp_path, toml) as call:
        targets = [("tcp", inside.address, 8080), ("tcp", outside.address, 5432), ("tcp", inside.near, 5432), ("udp", inside.address, 53)]
        assert await call("plant", targets) == [refused] * 4
        got = await call("attacks", targets)
        assert set(got) <= {refused, "OSError", "TimeoutError"}


@privileged
async def test_a_function_has_no_way_into_another_namespace(tmp_path: Path, world: tuple[Host, Host]) -> None:
    inside, outside = world
    toml = settings(world, [rule("tcp", inside.subnet, 5432)], []) + "".join(
        f'[functions.{name}]\nnetwork = "plant"\n' for name in ("looks", "leaves")
    )
    async with running(tmp_path, toml) as call:
        assert not (await call("looks", "x"))["capable"]
        assert await call("leaves", [("tcp", outside.address, 5432)]) == [refused]


@privileged
async def test_the_machines_forwarding_is_as_it_was(tmp_path: Path, world: tuple[Host, Host]) -> None:
    inside, outside = world
    before = inside.reaches("tcp", outside.address, 8080), inside.reaches("tcp", outside.address6, 8080)
    was = inside.forwarding, outside.forwarding
    assert was == (("0", "0"), ("0", "0"))
    assert before == ("TimeoutError", "TimeoutError")
    wide = [rule("tcp", subnet) for host in (inside, outside) for subnet in (host.subnet, host.subnet6)]
    async with running(tmp_path, settings(world, [], wide)) as call:
        assert await call("wide", [("tcp", outside.address, 8080)]) == [outside.near]
        assert (inside.forwarding, outside.forwarding) == (("1", "1"), ("1", "1"))
        assert inside.reaches("tcp", outside.address, 8080) == "TimeoutError"
        assert inside.reaches("tcp", outside.address6, 8080) == "TimeoutError"
        command(f"{program('nft', 'nftables')} flush chain inet eventrouter forward")
        await until(lambda: inside.reaches("tcp", outside.address, 8080) == inside.address)  # so it was its rules
    await until(lambda: (inside.forwarding, outside.forwarding) == was)
    assert not left_behind()


def left_behind() -> list[str]:
    """Links and tables of routers."""
    text = command(f"{program('ip', 'iproute2')} -o link show") + command(f"{program('nft', 'nftables')} list tables")
    return [line for line in text.splitlines() if "er-" in line or "inet eventrouter" in line]


def command(words: str) -> str:
    return subprocess.run(words.split(), capture_output=True, text=True, check=True).stdout


@privileged
def test_what_a_killed_router_leaves(tmp_path: Path, world: tuple[Host, Host]) -> None:
    inside, _ = world
    toml = settings(world, [rule("tcp", inside.subnet, 5432)], []) + f"[http]\nport = {free_port()}\n"
    (tmp_path / "eventrouter.toml").write_text(toml.replace('url = "memory"', ""))
    with Place(tmp_path) as place:

        def invoked(*words: str) -> Any:
            return json.loads(place.result("invoke", *words).stdout)

        place.serve(str(HANDLERS))
        target = json.dumps([("tcp", inside.address, 5432)])
        assert invoked("plant", target) == [inside.near]
        pid = invoked("looks", '"x"')["pid"]
        assert [line for line in left_behind() if "er-" in line]
        assert place.stop(signal.SIGKILL) == -signal.SIGKILL
        wait_for(lambda: not Path(f"/proc/{pid}").exists())
        # Its rules and links go by themselves; forwarding stays on, and so do the rules that keep it from being of any use.
        wait_for(lambda: not [line for line in left_behind() if "er-" in line])
        assert inside.forwarding[0] == "1"
        assert left_behind() == ["table inet eventrouter"]
        place.serve(str(HANDLERS))
        assert invoked("plant", target) == [inside.near]
        assert place.stop() == 0
    wait_for(lambda: inside.forwarding == ("0", "0"))
    assert not left_behind()


@privileged
async def test_two_routers_on_one_machine(tmp_path: Path, world: tuple[Host, Host]) -> None:
    inside, _ = world
    toml = settings(world, [rule("tcp", inside.subnet, 5432)], [])
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    target = [("tcp", inside.address, 5432)]
    async with running(folders[0], toml) as one:
        async with running(folders[1], toml) as two:
            assert await one("plant", target) == await two("plant", target) == [inside.near]
        assert await one("plant", target) == [inside.near]  # the other has left it what it needs
    assert inside.forwarding == ("0", "0")


@privileged
def test_services_that_look_up_names_are_hidden_and_their_servers_known(tmp_path: Path) -> None:
    script = f"""
set -e
mount -t tmpfs none /run
mkdir -p /run/systemd/resolve /run/nscd
echo 'nameserver 10.0.1.53' > /run/systemd/resolve/resolv.conf
echo 'nameserver 127.0.0.53' > /run/systemd/resolve/stub-resolv.conf
touch /run/systemd/resolve/io.systemd.Resolve /run/nscd/socket
{sys.executable} -c 'from eventrouter.runtimes.netns import enter; enter("{CLOSED}")
import os; os.execvp("sh", ["sh", "-c", "cd /run; cat systemd/resolve/stub-resolv.conf; ls systemd/resolve nscd"])'
ls /run/nscd
"""
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["nameserver", "10.0.1.53", "nscd:", "systemd/resolve:", "resolv.conf", "stub-resolv.conf", "socket"], (
        done.stderr
    )


# Without privilege


@privileged
def test_without_root_a_closed_network_is_enforced_and_others_are_refused(tmp_path: Path) -> None:
    code = f"""
import ctypes, os, socket
from eventrouter import Network, egress
from eventrouter.runtimes.netns import enter, mechanism, refusal
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, which a change of user takes away
print(refusal(Network("plant", {SUBNETS})))
print(refusal(Network("plant", {SUBNETS}, [egress("tcp", "10.0.1.0/24", 5432)])))
print(*mechanism())
enter("{CLOSED}")
print(os.getuid(), [name for _, name in socket.if_nameindex()])
with socket.socket() as server, socket.socket() as client:
    server.listen()
    print(client.connect_ex(server.getsockname()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    needs = (
        "a network with rules needs root, or CAP_NET_ADMIN and CAP_SYS_ADMIN; run the router so. One without, in which nothing can be "
        "reached, needs neither"
    )
    words = f"False networks in which nothing can be reached are enforced by network namespaces; others are refused: {needs}"
    assert done.stdout.splitlines() == ["", needs, words, "65534 ['lo']", "0"], done.stderr


@privileged
def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network("plant", SUBNETS, [egress("tcp", "10.0.1.0/24", 5432)])
    assert refusal(network) == ""
    assert mechanism()[0]
    monkeypatch.setattr("eventrouter.runtimes.netns._PATH", "/nowhere")
    assert refusal(network) == "`ip` is not installed; apt-get install iproute2"


def test_what_cannot_be_enforced_is_refused_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventrouter.app.refusal", lambda network: "there is no kernel; get one")

    @on(isolation="process", network=Network("plant", SUBNETS))
    def f(payload: Any) -> None: ...

    with pytest.raises(ConfigError, match=r"test_network.py:\d+: f: network 'plant' can't be enforced: there is no kernel; get one"):
        make_app(tmp_path, f)
