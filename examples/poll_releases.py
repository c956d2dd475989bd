"""An API that sends no webhooks is asked every so often, and each new item starts the function once.

eventrouter serve poll_releases.py
"""

import os

import msgspec

from eventrouter import on
from eventrouter_webhook import poll

URL = os.environ.get("RELEASES", "https://api.github.com/repos/python/cpython/releases?per_page=5")


class Release(msgspec.Struct):
    tag_name: str


@on(poll(URL, every="15 minutes", items="$", id="$.id"))
async def announce(release: Release) -> None:
    print(f"{release.tag_name} is out", flush=True)
