"""``tidegate keys``: API keys, made and ended from the command line, straight on the store."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from gateway.access.audit import Actor, Audit
from gateway.access.key import IssuedKey, Key, KeySpec, instant
from gateway.access.keys import Keys
from gateway.settings import Settings
from gateway.store.database import Store
from gateway.store.files import create_private
from tidegate.console import JsonFlag, err, fail, file_error, print_json, print_table
from tidegate.store import with_store

app = typer.Typer(
    help="API keys: create, list, show, update, rotate, revoke.\n\n"
    "Example: `tidegate keys create --project web --scope infer`",
    no_args_is_help=True,
)

_Result = TypeVar("_Result")
_CLI = Actor("cli")
_DURATION = re.compile(r"(\d{1,12})([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

WriteFlag = Annotated[
    Path | None, typer.Option("--write", help="Write the key to this new file (mode 0600) instead of printing it.")
]


@app.command()
def create(
    project: Annotated[str, typer.Option(help="Project that the key belongs to; made if it is missing.")],
    organisation: Annotated[str | None, typer.Option(help="Organisation of a new project; default: its name.")] = None,
    label: Annotated[str, typer.Option(help="What people call the key.")] = "",
    scope: Annotated[list[str] | None, typer.Option(help="May be repeated; default: infer.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Model that the key may use; may be repeated.")] = None,
    address: Annotated[list[str] | None, typer.Option(help="Network that it may be used from; repeatable.")] = None,
    tier: Annotated[str, typer.Option(help="Tier of limits.")] = "default",
    test: Annotated[bool, typer.Option("--test", help="A tg_test_ key: metered, never billed.")] = False,
    expires: Annotated[str | None, typer.Option(help="Life time, such as 12h or 90d; default: no end.")] = None,
    write: WriteFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key and show it, once.

    Example: `tidegate keys create --project web --scope infer --scope usage:read --expires 90d`
    """
    spec = KeySpec(
        project=project,
        label=label,
        scopes=tuple(scope or ("infer",)),
        models=tuple(model) if model else None,
        addresses=tuple(address) if address else None,
        tier=tier,
        test=test,
        expires_at=time.time() + _seconds(expires) if expires else None,
    )

    async def make(keys: Keys) -> IssuedKey:
        owner = await keys.project_organisation(project)
        if owner is None or organisation is not None:
            await keys.ensure_project(project, organisation or project, _CLI)
        return await keys.create(spec, _CLI)

    _check_target(write)
    _hand_over(_with_keys(make, create=True), write, as_json)


@app.command()
def bootstrap(write: WriteFlag = None, as_json: JsonFlag = False) -> None:
    """Make the operator's first key, with every scope; once: refused while such a key is active.

    Example: `tidegate keys bootstrap --write admin.key`
    """
    _check_target(write)
    _hand_over(_with_keys(lambda keys: keys.bootstrap(_CLI), create=True), write, as_json)


@app.command("list")
def list_keys(
    project: Annotated[str | None, typer.Option(help="Of this project only.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    after: Annotated[str, typer.Option(help="Go on after this key id.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """List keys, without their secrets.

    Example: `tidegate keys list --project web --json`
    """
    found = _with_keys(lambda keys: keys.page(project=project, limit=limit, after=after))
    if as_json:
        print_json([describe(key) for key in found])
        return
    now = time.time()
    print_table(
        "Keys",
        ("key", "state", "project", "scopes", "label"),
        (
            (
                key.key_id,
                key.state(now),
                key.project,
                " ".join(key.scopes),
                key.label,
            )
            for key in found
        ),
    )


@app.command()
def show(
    key: Annotated[str, typer.Argument(help="Key id, or a key's text up to its secret.")], as_json: JsonFlag = False
) -> None:
    """Show one key, without its secret.

    Example: `tidegate keys show 4hQx0sV9bTzE`
    """
    found = describe(_with_keys(lambda keys: keys.get(_key_id(key))))
    if as_json:
        print_json(found)
    else:
        print_table("Key", ("field", "value"), ((name, _cell(value)) for name, value in found.items()))


@app.command()
def update(
    key: Annotated[str, typer.Argument(help="Key id, or a key's text up to its secret.")],
    label: Annotated[str | None, typer.Option(help="What people call the key.")] = None,
    scope: Annotated[list[str] | None, typer.Option(help="May be repeated; takes the place of all it had.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Model that it may use; may be repeated.")] = None,
    any_model: Annotated[bool, typer.Option("--any-model", help="Let it use every model.")] = False,
    address: Annotated[list[str] | None, typer.Option(help="Network that it may be used from; repeatable.")] = None,
    any_address: Annotated[bool, typer.Option("--any-address", help="Let it be used from anywhere.")] = False,
    tier: Annotated[str | None, typer.Option(help="Tier of limits.")] = None,
    expires: Annotated[str | None, typer.Option(help="Life time from now, such as 12h or 90d, or `never`.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Change a key; what is not named stays as it is.

    Example: `tidegate keys update 4hQx0sV9bTzE --tier gold --expires 30d`
    """
    if (model and any_model) or (address and any_address):
        fail("--any-model excludes --model, and --any-address excludes --address", code=2)
    changes: dict[str, Any] = {
        name: value for name, value in (("label", label), ("scopes", scope), ("tier", tier)) if value is not None
    }
    if model or any_model:
        changes["models"] = None if any_model else tuple(model or ())
    if address or any_address:
        changes["addresses"] = None if any_address else tuple(address or ())
    if expires is not None:
        changes["expires_at"] = None if expires == "never" else time.time() + _seconds(expires)
    if not changes:
        fail("nothing to change was named", code=2)
    found = _with_keys(lambda keys: keys.update(_key_id(key), changes, _CLI))
    if as_json:
        print_json(describe(found))
    else:
        typer.echo(f"changed {found.key_id}: {', '.join(sorted(changes))}")


@app.command()
def rotate(
    key: Annotated[str, typer.Argument(help="Key id, or a key's text up to its secret.")],
    overlap: Annotated[str, typer.Option(help="How long the old secret goes on working, such as 1h or 7d.")] = "1h",
    name: Annotated[str | None, typer.Option(help="Name of this rotation: done again it changes nothing.")] = None,
    write: WriteFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Give a key a new secret and show it, once; its id stays.

    Example: `tidegate keys rotate 4hQx0sV9bTzE --overlap 7d`
    """
    seconds = _seconds(overlap)
    _check_target(write)
    issued = _with_keys(lambda keys: keys.rotate(_key_id(key), _CLI, overlap_s=seconds, rotation=name))
    _hand_over(issued, write, as_json)


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(help="Key id, or a key's text up to its secret.")], as_json: JsonFlag = False
) -> None:
    """End a key for good; every gateway refuses it within TIDEGATE_KEY_CACHE_TTL_S seconds.

    Example: `tidegate keys revoke 4hQx0sV9bTzE`
    """
    found = _with_keys(lambda keys: keys.revoke(_key_id(key), _CLI))
    if as_json:
        print_json(describe(found))
    else:
        typer.echo(f"revoked {found.key_id}")


@app.command("rotate-pepper")
def rotate_pepper(as_json: JsonFlag = False) -> None:
    """Add a version to the pepper file: new secrets are digested with it, the older ones go on working.

    Back the file up again, and where gateways have copies of it, copy it to each before a key is made or rotated.

    Example: `tidegate keys rotate-pepper`
    """
    done = _with_keys(lambda keys: keys.rotate_pepper(_CLI))
    if as_json:
        print_json(dataclasses.asdict(done))
    else:
        typer.echo(f"pepper version {done.version} added; keys still on an older one: {done.older_keys}")


def describe(key: Key) -> dict[str, Any]:
    """Return what may be shown of a key, for JSON: instants as ISO 8601, UTC."""
    shown = dataclasses.asdict(key)
    shown["state"] = key.state(time.time())
    shown["prefix"] = key.prefix
    for name in ("created_at", "expires_at", "revoked_at", "last_used_at"):
        shown[name] = instant(shown[name])
    shown["secrets"] = [
        {
            "last_four": secret.last_four,
            "created_at": instant(secret.created_at),
            "expires_at": instant(secret.expires_at),
        }
        for secret in key.secrets
    ]
    return shown


def _with_keys(work: Callable[[Keys], Awaitable[_Result]], *, create: bool = False) -> _Result:
    async def run(store: Store, settings: Settings) -> _Result:
        return await work(await Keys(store, Audit(store, settings), settings).open())

    return with_store(run, create=create)


def _check_target(write: Path | None) -> None:
    """Refuse before anything is made: a key whose file cannot be written would be lost."""
    if write is not None and (write.exists() or not write.parent.is_dir()):
        fail(f"{write} exists already" if write.exists() else f"there is no folder {write.parent}")


def _hand_over(issued: IssuedKey, write: Path | None, as_json: bool) -> None:
    if issued.text is not None and write is not None:
        try:
            written = create_private(write, issued.text.encode() + b"\n")
        except OSError as error:
            fail(f"{file_error(error)}; the key {issued.key.key_id} was made: revoke it")
        if not written:
            fail(f"{write} exists already; the key {issued.key.key_id} was made: revoke it")
    shown = None if write is not None else issued.text
    if as_json:
        print_json({"key": shown, **describe(issued.key)} if shown else describe(issued.key))
        return
    if issued.text is None:
        err.print(f"This rotation of {issued.key.key_id} was done before; nothing was changed.")
    elif write is not None:
        typer.echo(f"key {issued.key.key_id} written to {write}")
    else:
        typer.echo(issued.text)
        err.print("This key is shown once and stored nowhere: keep it now.", highlight=False)


def _key_id(text: str) -> str:
    parts = text.split("_")
    return parts[2] if len(parts) >= 3 and parts[0] == "tg" else text


def _seconds(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None:
        fail(f"{text!r} is not a duration such as 30m, 12h or 90d")
    return float(int(match[1]) * _UNITS[match[2]])


def _secret(secret: dict[str, Any]) -> str:
    """``…4Gx1 of 2026-11-24T03:09:13+00:00``, and until when."""
    until = f" until {secret['expires_at']}" if secret["expires_at"] else ""
    return f"…{secret['last_four']} of {secret['created_at']}{until}"


def _cell(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_secret(item) if isinstance(item, dict) else str(item) for item in value)
    return "" if value is None else str(value)
