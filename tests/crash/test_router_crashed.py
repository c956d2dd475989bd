"""An event that takes the router down with it, time and again, ends as a dead letter; those beside it are handled."""

from __future__ import annotations

import json
from pathlib import Path

from served import Place

APP = """
import os
from eventrouter import on
from eventrouter_http import http

@on(http("POST /{what}", mode="event"))
async def handler(text: str, what: str) -> None:
    if what == "poison":
        os._exit(66)
    with open("got.txt", "a") as got:
        got.write(text)
"""


def test_ten_deaths_in_a_row(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "eventrouter.toml").write_text("[http]\nport = 0\n")
    with Place(tmp_path) as place:
        place.serve()
        place.curl("/poison", "-d", "x", check=False)
        assert place.router is not None
        assert place.router.wait(20) == 66
        for _ in range(9):
            assert place.start().wait(20) == 66
        place.serve()
        place.says("(RouterCrashed): the router died 10 times in a row while running it")
        place.curl("/good", "-d", "x")
        (letter,) = json.loads(place.run("dlq", "list", "--json"))
        assert (letter["reason"], letter["attempts"], letter["function"]) == ("RouterCrashed", 0, "handler")
        assert place.stop() == 0
    assert (tmp_path / "got.txt").read_text() == "x"
