"""Keeps up with the logs of all databases that functions have tables in."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import msgspec

from eventrouter import EventRouterError, Router, Source
from eventrouter.errors import ConfigError
from eventrouter_tables import TablesConfig, TableTrigger, database_of
from eventrouter_tables.databases import Database, resolve
from eventrouter_tables.delivery import Delivery
from eventrouter_tables.feed import SqliteFeed
from eventrouter_tables.records import Feed
from eventrouter_tables.rows import Client, Rows

_AGAIN = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds until a database that fails is tried again


class Follower(Protocol):
    async def follow(self, tell: Callable[[str], None]) -> None:
        """Until cancelled, deliver what happens. tell: what is wrong, or empty when all is well. Raises EventRouterError."""

    def line(self) -> str: ...

    def nudge(self) -> None:
        """Something was written here and now."""


class TablesSource(Source[TablesConfig]):
    name = "tables"

    def __init__(self, config: TablesConfig, router: Router) -> None:
        super().__init__(config, router)
        found: dict[Database, list[Any]] = {}
        for binding in router.bindings:
            if isinstance(trigger := binding.trigger, TableTrigger):
                database = resolve(database_of(trigger.database, config), router.base)
                found.setdefault(database, []).append((binding, Feed(*trigger.feed), trigger.starting == "TRIM_HORIZON"))
        self._followers = {database: self._follower(database, Delivery(router, database.name, wants)) for database, wants in found.items()}
        self._faults: dict[str, str] = dict.fromkeys((database.name for database in found), "it starts")
        self._clients: dict[str, tuple[Client, ThreadPoolExecutor]] = {}

    def _follower(self, database: Database, delivery: Delivery) -> Follower:
        if database.kind == "sqlite":
            return SqliteFeed(database.url, delivery)
        try:
            from eventrouter_tables.postgres import PostgresFeed  # noqa: PLC0415 - psycopg is an extra
        except ImportError as error:
            raise EventRouterError(f'tables: {database.name} needs psycopg: pip install "eventrouter[postgres]" ({error})') from None
        return PostgresFeed(database, delivery, self.config.slot)

    def lines(self) -> list[str]:
        return [follower.line() for follower in self._followers.values()]

    async def run(self) -> None:
        if not self._followers:
            self.router.live()
        try:
            async with asyncio.TaskGroup() as group:
                for database, follower in self._followers.items():
                    group.create_task(self._keep(database, follower))
                group.create_task(asyncio.Event().wait())  # it lives without tables, too
        except* Exception as errors:
            raise errors.exceptions[0] from None

    async def _keep(self, database: Database, follower: Follower) -> None:
        failures = 0

        def tell(fault: str) -> None:
            nonlocal failures
            failures = 0
            self._tell(database, fault)

        while True:
            try:
                await follower.follow(tell)
            except (EventRouterError, sqlite3.Error) as error:
                self._tell(database, str(error))
            await self.router.clock.sleep(_AGAIN[min(failures, len(_AGAIN) - 1)])
            failures += 1

    def _tell(self, database: Database, fault: str) -> None:
        self._faults[database.name] = fault
        faults = [f"{name}: {why}" for name, why in self._faults.items() if why and why != "it starts"]
        if faults:
            self.router.lost("; ".join(faults))
        elif not any(self._faults.values()):
            self.router.live()

    def arn(self, url: str | None, table: str) -> str:
        """As roles name it; of another database than that of `[tables]`, with the file's path from the config's folder before it."""
        database, name = resolve(database_of(url, self.config), self.router.base), quote(table, safe="")
        if not self.config.database or database != resolve(self.config.database, self.router.base):
            path = Path(database.url)
            base = self.router.base.resolve()
            name = f"{path.relative_to(base) if path.is_relative_to(base) else path}/{name}"
        return f"arn:aws:dynamodb:local:000000000000:table/{name}"

    async def rows(self, url: str | None, table: str, do: Callable[[Rows], Any]) -> Any:
        """What `do` returns, in a thread. Raises ConfigError when the database isn't SQLite."""
        database = resolve(database_of(url, self.config), self.router.base)
        if database.kind != "sqlite":
            raise ConfigError(f"{database.name}: Table(...) is for SQLite; use psycopg, whose changes are seen all the same")
        loop = asyncio.get_running_loop()
        if database.url not in self._clients:
            executor = ThreadPoolExecutor(1, "tables")
            self._clients[database.url] = await loop.run_in_executor(executor, Client, database.url), executor
        client, executor = self._clients[database.url]
        try:
            return await loop.run_in_executor(executor, partial(client.call, table, do))
        except (sqlite3.Error, OverflowError) as error:
            raise EventRouterError(f"table {table!r}: {error}") from error
        finally:
            if database in self._followers:
                self._followers[database].nudge()

    async def send(self, table: str, item: str, *, database: str = "") -> dict[str, Any]:
        """Put a row, given as a JSON object, into a table of a SQLite database."""
        try:
            row = msgspec.json.decode(item, type=dict[str, Any])
            return msgspec.to_builtins(await self.rows(database or None, table, lambda rows: rows.put(row)))  # type: ignore[no-any-return]
        except msgspec.DecodeError as error:
            raise ConfigError(f"send tables: {item!r}: write the row as a JSON object: {error}") from None
        except ValueError as error:
            raise ConfigError(f"send tables: {error}") from None

    async def close(self) -> None:
        for client, executor in self._clients.values():
            await asyncio.get_running_loop().run_in_executor(executor, client.close)
            executor.shutdown()
        self._clients.clear()
