"""A real browser, without a window."""

from __future__ import annotations

import asyncio
from pathlib import Path

from servers import program

_QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


async def dom(url: str, folder: Path) -> str:
    """The page at `url` as HTML, once its scripts have nothing left to do. folder: for the browser's own files."""
    return await _run(folder, "--virtual-time-budget=20000", "--dump-dom", url)


async def picture(url: str, folder: Path, file: Path, size: str = "1000,900") -> None:
    await _run(folder, "--virtual-time-budget=20000", f"--window-size={size}", f"--screenshot={file}", url)


async def _run(folder: Path, *options: str) -> str:
    command = [program("chromium", "chromium"), *_QUIET, f"--user-data-dir={folder / 'browser'}", *options]
    browser = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(60):
            out, _ = await browser.communicate()
    finally:
        if browser.returncode is None:
            browser.kill()
            await browser.wait()
    return out.decode()
