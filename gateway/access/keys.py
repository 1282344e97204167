"""API keys: made, listed, rotated, expired and revoked; every change is audited in its transaction."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.access import keyformat
from gateway.access.audit import SYSTEM, Actor, Audit
from gateway.access.key import (
    OPERATOR,
    OPERATOR_PROJECT,
    IssuedKey,
    Key,
    KeySecret,
    KeySpec,
    VerifiedKey,
    validate,
)
from gateway.access.keyformat import PresentedKey
from gateway.access.pepper import Pepper, PepperError, add_version, load_pepper, read_pepper
from gateway.access.tenants import Tenants, names_among, organisation_of
from gateway.errors import Conflict, Invalid, NotFound
from gateway.redaction import holds_key
from gateway.settings import Settings
from gateway.store.database import Store
from gateway.store.tables import api_keys, key_secrets, peppers, projects
from gateway.types import SCOPES

_MICROSECOND = 1_000_000
_OVERLAP_MAX_S = 90 * 86_400

_VERIFY = (
    sa.select(
        *api_keys.c,
        projects.c.organisation,
        key_secrets.c.digest,
        key_secrets.c.pepper_version,
        key_secrets.c.expires_at.label("secret_expires_at"),
    )
    .join(projects, projects.c.name == api_keys.c.project)
    .join(key_secrets, key_secrets.c.key_id == api_keys.c.key_id)
    .where(
        api_keys.c.key_id == sa.bindparam("presented_key"),
        # Secrets of named rotations stay for their names' sake: however many there were, no digest is made for them.
        sa.or_(key_secrets.c.expires_at.is_(None), key_secrets.c.expires_at > sa.bindparam("now")),
    )
)


@dataclass(slots=True, frozen=True)
class PepperRotation:
    """A version added to the pepper."""

    version: int
    older_keys: int
    """Keys that are not revoked and whose secret is digested with an older version: rotate them to move them."""


class Keys:
    """The API keys of the store. Make one with :meth:`open`."""

    def __init__(
        self, store: Store, audit: Audit, settings: Settings, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Read the pepper, or make it once. Raises :class:`~gateway.access.pepper.PepperError`."""
        self._store = store
        self._audit = audit
        self._clock = clock
        self._tenants = Tenants(store, audit, clock=clock)
        self._settings = settings
        self._pepper: Pepper = load_pepper(settings)
        self._listeners: list[Callable[[str], None]] = []

    async def open(self) -> Keys:
        """Check that the pepper belongs to this store. Raises ``PepperError`` if it does not.

        A store that is not open yet is checked when it opens, before any key is.
        """
        await self._store.when_open(self._check_pepper)
        return self

    async def _check_pepper(self) -> None:
        async with self._store.write() as connection:
            known = {row.version: row.proof for row in await connection.execute(sa.select(peppers))}
            for version in self._pepper.versions:
                proof = self._pepper.proof(version)
                if known.get(version, proof) != proof:
                    raise PepperError("the pepper file is not the one that this store's keys were made with")
                if version not in known:
                    if known and not set(self._pepper.versions) & set(known):
                        raise PepperError("the pepper file is not the one that this store's keys were made with")
                    await connection.execute(
                        sa.insert(peppers).values(version=version, proof=proof, created_at=self._now())
                    )

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call ``listener`` with a key's id after it was changed by this process."""
        self._listeners.append(listener)

    # --- operations

    async def create(self, spec: KeySpec, actor: Actor = SYSTEM) -> IssuedKey:
        """Make a key. Raises ``Invalid`` for a field at fault, ``NotFound`` for an unknown project."""
        return await self._create(spec, actor)

    async def _create(
        self, spec: KeySpec, actor: Actor, *, unless: Callable[[AsyncConnection], Awaitable[None]] | None = None
    ) -> IssuedKey:
        """Make a key; ``unless`` raises, in the same transaction, what speaks against it."""
        validate(spec, self._clock())
        key_id = keyformat.generate_id()
        presented = keyformat.generate(key_id, test=spec.test)
        now = self._now()
        async with self._audit.operation(actor, "key.create", key_id) as operation:
            if unless is not None:
                await unless(operation.connection)
            if await organisation_of(operation.connection, spec.project) is None:
                raise NotFound("There is no such project.", param="project")
            await operation.connection.execute(
                sa.insert(api_keys).values(
                    key_id=key_id,
                    label=spec.label,
                    project=spec.project,
                    scopes=" ".join(sorted(set(spec.scopes))),
                    models=None if spec.models is None else json.dumps(sorted(set(spec.models))),
                    addresses=None if spec.addresses is None else json.dumps(list(spec.addresses)),
                    tier=spec.tier,
                    test=spec.test,
                    created_at=now,
                    expires_at=_micro(spec.expires_at),
                )
            )
            await self._add_secret(operation.connection, presented, now, rotation=None)
            operation.details.update(
                project=spec.project,
                label=spec.label,
                scopes=sorted(set(spec.scopes)),
                models=None if spec.models is None else sorted(set(spec.models)),
                addresses=None if spec.addresses is None else list(spec.addresses),
                tier=spec.tier,
                test=spec.test,
                expires_at=spec.expires_at,
            )
        return IssuedKey(await self.get(key_id), presented.text)

    async def rotate(
        self, key_id: str, actor: Actor = SYSTEM, *, overlap_s: float = 3600.0, rotation: str | None = None
    ) -> IssuedKey:
        """Give a key a new secret; the old one goes on working for ``overlap_s`` seconds.

        The key's id stays. ``rotation`` names the rotation: asking again under the same name changes
        nothing and returns no text. Raises ``NotFound``, ``Conflict`` for a key that is not active,
        ``Invalid``.
        """
        if not 0 <= overlap_s <= _OVERLAP_MAX_S:
            raise Invalid(f"overlap must be between 0 and {_OVERLAP_MAX_S} seconds.", param="overlap_s")
        if rotation is not None and not 1 <= len(rotation) <= 255:
            raise Invalid("rotation must have 1 to 255 characters.", param="rotation")
        if rotation is not None and holds_key(rotation):
            raise Invalid("rotation must not hold an API key.", param="rotation")
        key = await self.get(key_id)
        if rotation is not None and await self._has_rotation(key_id, rotation):
            return IssuedKey(key, None)
        if key.state(self._clock()) != "active":
            raise Conflict("The key is not active.")
        presented = keyformat.generate(key_id, test=key.test)
        now = self._now()
        end = now + int(overlap_s * _MICROSECOND)
        try:
            async with self._audit.operation(actor, "key.rotate", key_id) as operation:
                table = key_secrets
                await operation.connection.execute(
                    sa.update(table)
                    .where(table.c.key_id == key_id, sa.or_(table.c.expires_at.is_(None), table.c.expires_at > end))
                    .values(expires_at=end)
                )
                await operation.connection.execute(
                    sa.delete(table).where(
                        table.c.key_id == key_id, table.c.expires_at <= now, table.c.rotation.is_(None)
                    )
                )
                await self._add_secret(operation.connection, presented, now, rotation=rotation)
                operation.details.update(overlap_s=overlap_s)
        except sa.exc.IntegrityError:
            return IssuedKey(await self.get(key_id), None)  # the same rotation, asked for twice at once
        self._changed(key_id)
        return IssuedKey(await self.get(key_id), presented.text)

    async def revoke(self, key_id: str, actor: Actor = SYSTEM) -> Key:
        """End a key for good; done again it changes nothing. Raises ``NotFound``."""
        if (await self.get(key_id)).revoked_at is None:
            async with self._audit.operation(actor, "key.revoke", key_id) as operation:
                await operation.connection.execute(
                    sa.update(api_keys)
                    .where(api_keys.c.key_id == key_id, api_keys.c.revoked_at.is_(None))
                    .values(revoked_at=self._now())
                )
            self._changed(key_id)
        return await self.get(key_id)

    async def update(self, key_id: str, changes: Mapping[str, Any], actor: Actor = SYSTEM) -> Key:
        """Change ``label``, ``scopes``, ``models``, ``addresses``, ``tier`` or ``expires_at``.

        Raises ``NotFound``, ``Conflict`` for a revoked key, ``Invalid`` for a field at fault.
        """
        key = await self.get(key_id)
        if key.revoked_at is not None:
            raise Conflict("The key is revoked.")
        unknown = set(changes) - {"label", "scopes", "models", "addresses", "tier", "expires_at"}
        if unknown:
            raise Invalid(f"{min(unknown)} cannot be changed.", param=min(unknown))
        merged = {name: changes.get(name, getattr(key, name)) for name in
                  ("label", "scopes", "models", "addresses", "tier", "expires_at")}  # fmt: skip
        validate(KeySpec(project=key.project, test=key.test, **merged), self._clock() if "expires_at" in changes else 0)
        values: dict[str, Any] = dict(changes)
        if "scopes" in values:
            values["scopes"] = " ".join(sorted(set(values["scopes"])))
        for name in ("models", "addresses"):
            if values.get(name) is not None:
                values[name] = json.dumps(list(values[name]))
        if "expires_at" in values:
            values["expires_at"] = _micro(values["expires_at"])
        if values:
            async with self._audit.operation(actor, "key.update", key_id) as operation:
                await operation.connection.execute(
                    sa.update(api_keys).where(api_keys.c.key_id == key_id).values(**values)
                )
                operation.details.update({name: _plain(value) for name, value in changes.items()})
            self._changed(key_id)
        return await self.get(key_id)

    async def get(self, key_id: str) -> Key:
        """Return a key. Raises ``NotFound``."""
        async with self._store.read() as connection:
            found = await self._select(connection, sa.select(api_keys.c.key_id).where(api_keys.c.key_id == key_id))
        if not found:
            raise NotFound("There is no such key.")
        return found[0]

    async def page(
        self, *, organisation: str | None = None, project: str | None = None, after: str = "", limit: int = 100
    ) -> list[Key]:
        """Return up to ``limit`` keys whose id is greater than ``after``, in order of id."""
        query = sa.select(api_keys.c.key_id).where(api_keys.c.key_id > after).order_by(api_keys.c.key_id).limit(limit)
        if project is not None:
            query = query.where(api_keys.c.project == project)
        if organisation is not None:
            query = query.where(
                api_keys.c.project.in_(sa.select(projects.c.name).where(projects.c.organisation == organisation))
            )
        async with self._store.read() as connection:
            return await self._select(connection, query)

    async def owned(self, key_ids: Collection[str], organisation: str) -> set[str]:
        """Return those of ``key_ids`` that belong to ``organisation``."""
        owned = api_keys.join(projects, projects.c.name == api_keys.c.project)
        query = sa.select(api_keys.c.key_id).select_from(owned).where(projects.c.organisation == organisation)
        async with self._store.read() as connection:
            return await names_among(connection, query, api_keys.c.key_id, key_ids)

    async def ensure_project(self, project: str, organisation: str, actor: Actor = SYSTEM) -> None:
        """Make a project as :meth:`Tenants.ensure_project` does."""
        await self._tenants.ensure_project(project, organisation, actor)

    async def bootstrap(self, actor: Actor = SYSTEM) -> IssuedKey:
        """Make the operator's first key, with every scope. Raises ``Conflict`` if one is active."""
        async with self._store.read() as connection:
            await self._no_administrator(connection)  # before a project is made for nothing
        await self.ensure_project(OPERATOR_PROJECT, OPERATOR, actor)
        spec = KeySpec(project=OPERATOR_PROJECT, label="bootstrap", scopes=SCOPES)
        return await self._create(spec, actor, unless=self._no_administrator)

    async def _no_administrator(self, connection: AsyncConnection) -> None:
        """Raise ``Conflict`` if the operator has an active key that may make keys."""
        query = (
            sa.select(api_keys.c.scopes)
            .join(projects, projects.c.name == api_keys.c.project)
            .where(
                projects.c.organisation == OPERATOR,
                api_keys.c.revoked_at.is_(None),
                sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > self._now()),
            )
        )
        if any("keys:admin" in row.scopes.split() for row in await connection.execute(query)):
            raise Conflict("There is an active administrator's key already.")

    # --- verification

    async def verify(self, presented: PresentedKey) -> VerifiedKey | None:
        """Look a presented key up; None if it is unknown, revoked or expired, all in the same time.

        Raises ``Unavailable`` when the store does not answer.
        """
        async with self._store.read() as connection:
            asked = {"presented_key": presented.key_id, "now": self._now()}
            rows = (await connection.execute(_VERIFY, asked)).mappings().all()
        now = self._clock()
        self._learn({row["pepper_version"] for row in rows})
        matched: Mapping[Any, Any] | None = None
        for row in rows:
            if self._pepper.matches(presented.text, row["digest"], row["pepper_version"]):
                matched = row
        if not rows:
            self._pepper.matches(presented.text, "", self._pepper.current)  # time tells nothing of which ids exist
        if matched is None:
            return None
        key, secret_end = _key(matched, ()), _seconds(matched["secret_expires_at"])
        if key.state(now) != "active" or (secret_end is not None and secret_end <= now):
            return None
        ends = [end for end in (key.expires_at, secret_end) if end is not None]
        return VerifiedKey(key, min(ends, default=None))

    async def touch(self, used: Mapping[str, float]) -> None:
        """Note when keys were last used: key id to seconds since the epoch."""
        if not used:
            return
        statement = (
            sa.update(api_keys)
            .where(api_keys.c.key_id == sa.bindparam("used_key"))
            .values(last_used_at=sa.bindparam("used_at"))
        )
        rows = [{"used_key": key_id, "used_at": _micro(at)} for key_id, at in sorted(used.items())]
        async with self._store.write() as connection:
            await connection.execute(statement, rows)

    async def rotate_pepper(self, actor: Actor = SYSTEM) -> PepperRotation:
        """Add a version to the pepper file, which new secrets are digested with; older ones go on with theirs.

        A gateway reads the file again when it meets a version that it does not know, so it must have the file by
        then. Raises ``PepperError`` if the file cannot be written, ``Unavailable``.
        """
        async with self._audit.operation(actor, "pepper.rotate") as operation:
            self._pepper = add_version(self._settings)
            version = self._pepper.current
            operation.object = str(version)
            await operation.connection.execute(
                sa.insert(peppers).values(version=version, proof=self._pepper.proof(version), created_at=self._now())
            )
            older = (
                sa.select(sa.func.count(sa.distinct(key_secrets.c.key_id)))
                .join(api_keys, api_keys.c.key_id == key_secrets.c.key_id)
                .where(
                    key_secrets.c.pepper_version < version,
                    api_keys.c.revoked_at.is_(None),
                    sa.or_(key_secrets.c.expires_at.is_(None), key_secrets.c.expires_at > self._now()),
                )
            )
            keys = int((await operation.connection.execute(older)).scalar_one())
        return PepperRotation(version, keys)

    async def project_organisation(self, project: str) -> str | None:
        """Return the organisation of ``project``, or None if there is no such project."""
        return await self._tenants.organisation_of(project)

    # --- inner

    def _learn(self, versions: set[int]) -> None:
        """Read the pepper file again if a version was added to it since."""
        if versions <= set(self._pepper.versions):
            return
        with contextlib.suppress(PepperError):
            read = read_pepper(self._settings)
            if read.continues(self._pepper):
                self._pepper = read

    def _now(self) -> int:
        return int(self._clock() * _MICROSECOND)

    def _changed(self, key_id: str) -> None:
        for listener in self._listeners:
            listener(key_id)

    async def _has_rotation(self, key_id: str, rotation: str) -> bool:
        query = sa.select(key_secrets.c.digest).where(
            key_secrets.c.key_id == key_id, key_secrets.c.rotation == rotation
        )
        async with self._store.read() as connection:
            return (await connection.execute(query)).first() is not None

    async def _add_secret(
        self, connection: AsyncConnection, presented: PresentedKey, now: int, *, rotation: str | None
    ) -> None:
        await connection.execute(
            sa.insert(key_secrets).values(
                digest=self._pepper.digest(presented.text),
                key_id=presented.key_id,
                pepper_version=self._pepper.current,
                last_four=presented.text[-4:],
                created_at=now,
                expires_at=None,
                rotation=rotation,
            )
        )

    async def _select(self, connection: AsyncConnection, ids: sa.Select[Any]) -> list[Key]:
        """Read the keys whose ids a query selects, with their secrets' dates, in order of id."""
        chosen = ids.subquery()
        columns = [*api_keys.c, projects.c.organisation]
        rows = await connection.execute(
            sa.select(*columns)
            .join(chosen, chosen.c.key_id == api_keys.c.key_id)
            .join(projects, projects.c.name == api_keys.c.project)
            .order_by(api_keys.c.key_id)
        )
        secrets: dict[str, list[KeySecret]] = {}
        for row in await connection.execute(
            sa.select(key_secrets.c.key_id, key_secrets.c.last_four, key_secrets.c.created_at, key_secrets.c.expires_at)
            .join(chosen, chosen.c.key_id == key_secrets.c.key_id)
            .order_by(key_secrets.c.created_at)
        ):
            secret = KeySecret(row.last_four, row.created_at / _MICROSECOND, _seconds(row.expires_at))
            secrets.setdefault(row.key_id, []).append(secret)
        return [_key(row, tuple(secrets.get(row["key_id"], ()))) for row in rows.mappings()]


def _key(row: Mapping[Any, Any], secrets: tuple[KeySecret, ...]) -> Key:
    return Key(
        key_id=row["key_id"],
        label=row["label"],
        project=row["project"],
        organisation=row["organisation"],
        scopes=tuple(row["scopes"].split()),
        models=None if row["models"] is None else tuple(json.loads(row["models"])),
        addresses=None if row["addresses"] is None else tuple(json.loads(row["addresses"])),
        tier=row["tier"],
        test=row["test"],
        created_at=row["created_at"] / _MICROSECOND,
        expires_at=_seconds(row["expires_at"]),
        revoked_at=_seconds(row["revoked_at"]),
        last_used_at=_seconds(row["last_used_at"]),
        secrets=secrets,
    )


def _micro(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * _MICROSECOND)


def _seconds(micro: int | None) -> float | None:
    return None if micro is None else micro / _MICROSECOND


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, set, frozenset)) else value
