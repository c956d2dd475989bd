"""`secrets init|encrypt|decrypt|rotate`: they work beside a running router, which records them, and reads the keys anew."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from eventrouter.app import open_keys
from eventrouter.cli.common import Place, place_options
from eventrouter.errors import ConfigError, SecretError
from eventrouter.secrets import KeyRing, MasterKeys, rewrap_file, seal, unseal, whose


def _open(config: Path | None, data: str | None) -> tuple[Place, MasterKeys]:
    place = Place(config, data)
    return place, open_keys(place.config, place.plugins)


@click.group("secrets")
def secrets_command() -> None:
    """Encrypted values for the configuration, and the master keys that open them.

    The keys are in DIR/master.keys, in the variable EVENTROUTER_MASTER_KEY, or with a plugin: `[secrets]` says where.
    """


@secrets_command.command("init")
@place_options
def init_command(config: Path | None, data: str | None) -> None:
    """Make the first master key. Keep a copy of its file: without it nothing can be decrypted."""
    place, keys = _open(config, data)
    if not isinstance(keys, KeyRing):
        raise ConfigError("the plugin that [secrets] provider names has the master keys; there is none to make here")
    with place.recorded("secrets_init", keys=keys.where):
        id = keys.create()
    click.echo(f"master key {id} is in {keys.file}; keep a copy of it in a safe place, and never with the configuration")


@secrets_command.command("encrypt")
@click.argument("value", required=False)
@click.option("--function", metavar="F", default="", help="Only this function may decrypt it.")
@click.option("--variable", metavar="V", default="", help="... and only as this variable of its `env`.")
@place_options
def encrypt_command(value: str | None, function: str, variable: str, config: Path | None, data: str | None) -> None:
    """Encrypt VALUE: text, @FILE, or - for standard input [default], which keeps it out of the shell's history.

    Without --function, those functions may decrypt it that have it in their `env`.
    """
    if variable and not function:
        raise ConfigError("secrets encrypt: --variable says of which function's; give --function, too")
    place, keys = _open(config, data)
    plain = _text(value, "value to encrypt")
    with place.recorded("secrets_encrypt", function=function, variable=variable):
        sealed = seal(keys, plain, function, variable)
    click.echo(sealed)


@secrets_command.command("decrypt")
@click.argument("value", required=False)
@place_options
def decrypt_command(value: str | None, config: Path | None, data: str | None) -> None:
    """Print what VALUE was before it was encrypted: `evr1:...`, @FILE, or - for standard input [default]."""
    place, keys = _open(config, data)
    sealed = _text(value, "encrypted value").strip()
    with place.recorded("secrets_decrypt", **whose(sealed)):
        plain = unseal(keys, sealed)
    click.echo(plain)


@secrets_command.command("rotate")
@click.option(
    "--rewrap", "files", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Have the encrypted values in this file use the new key; may be repeated.",
)  # fmt: skip
@place_options
def rotate_command(files: tuple[Path, ...], config: Path | None, data: str | None) -> None:
    """Make a new master key. A running router uses it at once; the old ones stay, for what they have encrypted.

    Where the keys are not in a file, they are rotated there, and --rewrap alone is done here.
    """
    place, keys = _open(config, data)
    ring = keys if isinstance(keys, KeyRing) and (keys.in_file or not files) else None
    if ring is None and not files:
        raise ConfigError("the plugin that [secrets] provider names has the master keys; rotate them there, then use --rewrap FILE here")
    where = keys.where if isinstance(keys, KeyRing) else f"plugin {place.config.secrets.provider}"
    with place.recorded("secrets_rotate", keys=where, files=[str(file.resolve()) for file in files]):
        if ring is not None:
            click.echo(f"master key {ring.rotate()} is the present one; keep a copy of {ring.file}")
        for file in files:
            click.echo(f"{file}: {rewrap_file(keys, file)} values use it")


def _text(value: str | None, what: str) -> str:
    """One line end at the end is none of its own."""
    if value is not None and value.startswith("@"):
        try:
            return _line(Path(value[1:]).read_text())
        except OSError as error:
            raise ConfigError(f"{value[1:]}: {error.strerror}; @FILE names a file with the {what}") from None
        except UnicodeDecodeError:
            raise SecretError(f"{value[1:]} is no text; encode what is binary in base64 first") from None
    if value not in (None, "-"):
        assert value is not None
        return value
    if sys.stdin.isatty():
        asked: str = click.prompt(what.capitalize(), hide_input=True, err=True)
        return asked
    try:
        return _line(sys.stdin.buffer.read().decode())
    except UnicodeDecodeError:
        raise SecretError("standard input is no text; encode what is binary in base64 first") from None


def _line(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")
