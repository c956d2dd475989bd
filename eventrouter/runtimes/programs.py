"""Functions without Python in them: which program is started for one, and where."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Final

import msgspec

from eventrouter.errors import ConfigError
from eventrouter.functions import Policy

INIT: Final = 10.0  # seconds to ask for work in, as on Lambda; after that it costs time of the first invocation
_BOOTSTRAPS: Final = Path(__file__).with_name("bootstraps")
# As on Lambda: what starts quickly matters more here than what runs quickest in the end.
_JAVA: Final = ("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto")


class Program(msgspec.Struct, frozen=True):
    """command: its first word is a path or is looked for on PATH. folder: where it's started."""

    command: tuple[str, ...]
    folder: Path


def find_program(policy: Policy, base: Path, place: str) -> Program:
    """What speaks the Runtime API for a function of this policy. base: where its `code` starts.

    Raises ConfigError that begins with `place` and names what is missing.
    """
    folder = base / (policy.code or "")
    if not folder.is_dir():
        raise ConfigError(f"{place} code: {folder} is no folder; name the one that the function's files are in")
    first, *rest = policy.command or _usual(policy, folder, place)
    if "/" in first:
        path = folder / first
        if not path.is_file() or not os.access(path, os.X_OK):
            how = "build it there with `go build -o bootstrap`" if policy.runtime == "go" else "put it there and make it executable"
            raise ConfigError(f"{place}: {path} is no program that can be run; {how}, or name another one in command = [...]")
        first = str(path.absolute())
    elif shutil.which(first) is None:
        raise ConfigError(f"{place}: there is no {first!r} on this machine's PATH; install it, or name another one in command = [...]")
    return Program((first, *rest), folder)


def _usual(policy: Policy, folder: Path, place: str) -> tuple[str, ...]:
    """What runs a handler of this runtime when the user names no command."""
    if policy.runtime in ("go", "provided"):
        return ("./bootstrap",)
    if policy.handler is None:
        raise ConfigError(f'{place}: handler= is missing; name what is to run, handler = "index.handler", say')
    if policy.runtime == "nodejs":
        return ("node", str(_BOOTSTRAPS / "node.cjs"))
    if policy.runtime == "java":
        java = shutil.which("java")
        if java is not None and not (Path(java).resolve().parent / "javac").exists():
            raise ConfigError(f"{place}: {java} is of a JRE, which can't compile; install a JDK, or name another java in command = [...]")
        path = os.pathsep.join((str(folder), str(folder / "*"), str(folder / "lib" / "*")))
        return (*_JAVA, "-cp", path, str(_BOOTSTRAPS / "Bootstrap.java"))
    if importlib.util.find_spec("awslambdaric") is None:
        raise ConfigError(f"{place}: awslambdaric is not installed; pip install awslambdaric, or name another Python in command = [...]")
    return (sys.executable, "-m", "awslambdaric", policy.handler)
