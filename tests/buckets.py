"""Apps that watch real folders, and a handler that notes down what it gets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from eventrouter import App, on
from eventrouter.plugins import Plugins
from eventrouter_s3 import S3Object, eventrouter_plugin
from support import LOCAL, make_app, until


def app_of(folder: Path, *handlers: Callable[..., Any], toml: str = "") -> App:
    return make_app(folder, *handlers, toml=toml, plugins=Plugins([LOCAL, eventrouter_plugin()]))


@asynccontextmanager
async def watching(folder: Path, *handlers: Callable[..., Any], toml: str = "") -> AsyncIterator[App]:
    async with app_of(folder, *handlers, toml=toml) as app:
        await until(lambda: app.supervisor and app.supervisor.ready.is_set())
        yield app


class Seen:
    """A handler that notes down what it gets."""

    def __init__(self, *triggers: Any) -> None:
        self.objects: list[S3Object] = []

        @on(*triggers)
        async def seen(it: S3Object) -> None:
            self.objects.append(it)

        self.handler = seen

    @property
    def changes(self) -> list[tuple[str, str]]:
        return [(it.event.partition(":")[0].removeprefix("Object"), it.key) for it in self.objects]


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    folder = tmp_path / "buckets" / "uploads"
    folder.mkdir(parents=True)
    return folder


ALL = ("ObjectCreated:*", "ObjectRemoved:*")
