"""Organisations and their projects."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.access.audit import SYSTEM, Actor, Audit
from gateway.access.key import check_name
from gateway.errors import Conflict, NotFound
from gateway.store.database import Store
from gateway.store.tables import organisations, projects

_NAMES_AT_ONCE = 500


@dataclass(slots=True, frozen=True)
class Project:
    """A project and whose it is; ``created_at`` in seconds since the epoch."""

    name: str
    organisation: str
    created_at: float


class Tenants:
    """Reads and makes them; every change is audited."""

    def __init__(self, store: Store, audit: Audit, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._audit = audit
        self._clock = clock

    async def organisations(self, *, after: str = "", limit: int = 100) -> list[str]:
        """Return organisations in order of name."""
        column = organisations.c.name
        async with self._store.read() as connection:
            rows = await connection.execute(sa.select(column).where(column > after).order_by(column).limit(limit))
            return [row.name for row in rows]

    async def projects(self, *, organisation: str | None = None, after: str = "", limit: int = 100) -> list[Project]:
        """Return projects in order of name, of one organisation or of all."""
        query = sa.select(projects).where(projects.c.name > after).order_by(projects.c.name).limit(limit)
        if organisation is not None:
            query = query.where(projects.c.organisation == organisation)
        async with self._store.read() as connection:
            rows = await connection.execute(query)
            return [Project(row.name, row.organisation, row.created_at / 1e6) for row in rows]

    async def organisation_of(self, project: str) -> str | None:
        """Return the organisation of ``project``, or None if there is no such project."""
        async with self._store.read() as connection:
            return await organisation_of(connection, project)

    async def owned(self, names: Collection[str], organisation: str) -> set[str]:
        """Return those projects of ``names`` that belong to ``organisation``."""
        query = sa.select(projects.c.name).where(projects.c.organisation == organisation)
        async with self._store.read() as connection:
            return await names_among(connection, query, projects.c.name, names)

    async def create_organisation(self, name: str, actor: Actor = SYSTEM) -> None:
        """Make an organisation. Raises ``Conflict`` if the name is taken, ``Invalid`` if it is none."""
        check_name("name", name)
        async with self._audit.operation(actor, "organisation.create", name) as operation:
            if await _exists(operation.connection, name):
                raise Conflict("There is an organisation of this name already.", param="name")
            await self._add_organisation(operation.connection, name)

    async def create_project(self, name: str, organisation: str, actor: Actor = SYSTEM) -> None:
        """Make a project. Raises ``Conflict``, ``NotFound`` for its organisation, ``Invalid``."""
        check_name("name", name)
        async with self._audit.operation(actor, "project.create", name) as operation:
            if not await _exists(operation.connection, organisation):
                raise NotFound("There is no such organisation.", param="organisation")
            if await organisation_of(operation.connection, name) is not None:
                raise Conflict("There is a project of this name already.", param="name")
            await self._add_project(operation.connection, name, organisation)
            operation.details.update(organisation=organisation)

    async def ensure_project(self, project: str, organisation: str, actor: Actor = SYSTEM) -> None:
        """Make an organisation and a project where they are missing.

        Raises ``Conflict`` if the project belongs to another organisation, ``Invalid`` for a name.
        """
        check_name("project", project)
        check_name("organisation", organisation)
        owner = await self.organisation_of(project)
        if owner is None:
            async with self._audit.operation(actor, "project.create", project) as operation:
                owner = await organisation_of(operation.connection, project)
                if owner is None:
                    if not await _exists(operation.connection, organisation):
                        await self._add_organisation(operation.connection, organisation)
                    await self._add_project(operation.connection, project, organisation)
                    owner = organisation
                operation.details.update(organisation=organisation)
        if owner != organisation:
            raise Conflict("There is a project of this name already.", param="project")

    async def _add_organisation(self, connection: AsyncConnection, name: str) -> None:
        now = int(self._clock() * 1_000_000)
        await connection.execute(sa.insert(organisations).values(name=name, created_at=now))

    async def _add_project(self, connection: AsyncConnection, name: str, organisation: str) -> None:
        now = int(self._clock() * 1_000_000)
        await connection.execute(sa.insert(projects).values(name=name, organisation=organisation, created_at=now))


async def organisation_of(connection: AsyncConnection, project: str) -> str | None:
    """Return the organisation of ``project`` on a connection at hand."""
    query = sa.select(projects.c.organisation).where(projects.c.name == project)
    owner: str | None = (await connection.execute(query)).scalar()
    return owner


async def names_among(
    connection: AsyncConnection, query: sa.Select[Any], column: sa.Column[str], names: Collection[str]
) -> set[str]:
    """Return those of ``names`` that ``query`` selects by ``column``, some hundreds a statement."""
    asked, found = sorted(names), set[str]()
    for begin in range(0, len(asked), _NAMES_AT_ONCE):
        some = query.where(column.in_(asked[begin : begin + _NAMES_AT_ONCE]))
        found.update([str(row[0]) for row in await connection.execute(some)])
    return found


async def _exists(connection: AsyncConnection, organisation: str) -> bool:
    query = sa.select(organisations.c.name).where(organisations.c.name == organisation)
    return (await connection.execute(query)).first() is not None
