from __future__ import annotations

import asyncio
import dataclasses
import stat

import pytest

from gateway.access import keyformat
from gateway.access.audit import Audit
from gateway.access.key import OPERATOR, KeySpec
from gateway.access.keys import Keys
from gateway.access.pepper import PepperError, add_version, pepper_file
from gateway.errors import Conflict, Invalid, NotFound, Unavailable
from gateway.types import SCOPES
from tests.gateway.access.support import dump


async def valid(keys, text) -> bool:
    return await keys.verify(keyformat.parse(text)) is not None


async def test_a_key_made_is_verified(keys):
    issued = await keys.create(
        KeySpec("web", "label", ("infer", "usage:read"), ("digits",), ("192.0.2.0/24",), "gold", True)
    )
    found = await keys.verify(keyformat.parse(issued.text))
    assert issued.text.startswith(f"tg_test_{issued.key.key_id}_")
    assert found.key == dataclasses.replace(issued.key, secrets=())  # listed, not needed here
    principal = found.key.principal()
    assert (principal.project, principal.organisation, principal.tier, principal.test) == ("web", "acme", "gold", True)
    assert principal.scopes == {"infer", "usage:read"}
    assert principal.may_use("digits")
    assert not principal.may_use("qa")


async def test_the_database_holds_no_usable_key(keys, store):
    texts = [(await keys.create(KeySpec("web"))).text for _ in range(3)]
    texts += [(await keys.rotate(texts[0].split("_")[2])).text]
    dumped = await dump(store)
    for text in texts:
        assert text.split("_")[2] in dumped
        assert text.split("_")[3] not in dumped


async def test_another_secret_for_a_known_id_is_refused(keys):
    issued = await keys.create(KeySpec("web"))
    assert not await valid(keys, keyformat.generate(issued.key.key_id, test=False).text)
    assert not await valid(keys, keyformat.generate(issued.key.key_id, test=True).text)
    assert not await valid(keys, keyformat.generate("0" * 12, test=False).text)


async def test_rotation_overlaps_and_keeps_the_id(keys, wall):
    first = await keys.create(KeySpec("web"))
    second = await keys.rotate(first.key.key_id, overlap_s=60)
    assert second.key.key_id == first.key.key_id
    assert second.text != first.text
    assert [await valid(keys, text) for text in (first.text, second.text)] == [True, True]
    assert (await keys.verify(keyformat.parse(first.text))).valid_until == wall() + 60
    wall.forward(60)
    assert [await valid(keys, text) for text in (first.text, second.text)] == [False, True]
    third = await keys.rotate(first.key.key_id, overlap_s=0)
    assert [await valid(keys, item.text) for item in (first, second, third)] == [False, False, True]


async def test_a_rotation_never_lengthens_an_older_overlap(keys, wall):
    first = await keys.create(KeySpec("web"))
    await keys.rotate(first.key.key_id, overlap_s=60)
    await keys.rotate(first.key.key_id, overlap_s=3600)
    wall.forward(61)
    assert not await valid(keys, first.text)


async def test_a_named_rotation_happens_once(keys):
    first = await keys.create(KeySpec("web"))
    one = await keys.rotate(first.key.key_id, rotation="november")
    again = await keys.rotate(first.key.key_id, rotation="november")
    assert again.text is None
    assert again.key == one.key
    assert await valid(keys, one.text)
    at_once = await asyncio.gather(*(keys.rotate(first.key.key_id, rotation="december") for _ in range(4)))
    assert len([issued for issued in at_once if issued.text]) == 1
    assert len(at_once[0].key.secrets) == 3


async def test_a_key_expires(keys, wall):
    issued = await keys.create(KeySpec("web", expires_at=wall() + 10))
    assert await valid(keys, issued.text)
    wall.forward(10)
    assert not await valid(keys, issued.text)
    assert (await keys.get(issued.key.key_id)).state(wall()) == "expired"
    with pytest.raises(Conflict):
        await keys.rotate(issued.key.key_id)


async def test_a_revoked_key_is_ended_for_good(keys, wall):
    issued = await keys.create(KeySpec("web"))
    changed = []
    keys.on_change(changed.append)
    revoked = await keys.revoke(issued.key.key_id)
    wall.forward(5)
    assert revoked.state(wall()) == "revoked"
    assert (await keys.revoke(issued.key.key_id)).revoked_at == revoked.revoked_at
    assert changed == [issued.key.key_id]
    assert not await valid(keys, issued.text)
    with pytest.raises(Conflict):
        await keys.update(issued.key.key_id, {"label": "x"})
    with pytest.raises(Conflict):
        await keys.rotate(issued.key.key_id)


async def test_what_may_be_changed_is_changed(keys, wall):
    issued = await keys.create(KeySpec("web", models=("digits",)))
    changed = await keys.update(
        issued.key.key_id,
        {"label": "new", "models": None, "addresses": ("10.0.0.0/8",), "tier": "gold", "expires_at": wall() + 5},
    )
    assert (changed.label, changed.models, changed.addresses, changed.tier) == ("new", None, ("10.0.0.0/8",), "gold")
    assert changed.expires_at == wall() + 5
    with pytest.raises(Invalid, match="project"):
        await keys.update(issued.key.key_id, {"project": "other"})


AT_FAULT = (
    ({"label": "x" * 129}, "label"),
    ({"label": "a\r\nb"}, "label"),
    ({"label": "\x1b[31mred"}, "label"),
    ({"scopes": ()}, "scopes"),
    ({"scopes": ("infer", "root")}, "scopes"),
    ({"models": ("../etc",)}, "models"),
    ({"addresses": ("10.0.0.1/8",)}, "addresses"),
    ({"addresses": ("everywhere",)}, "addresses"),
    ({"tier": "Gold!"}, "tier"),
    ({"project": "../x"}, "project"),
    ({"expires_at": 1.0}, "expires_at"),
)


async def test_fields_at_fault_are_named(keys):
    for values, param in AT_FAULT:
        with pytest.raises(Invalid) as refusal:
            await keys.create(KeySpec(**{"project": "web", **values}))
        assert refusal.value.param == param


async def test_labels_may_hold_anything_that_prints(keys):
    label = "<script>alert('[bold]')</script> \u202f"[:-1] + "鍵"
    issued = await keys.create(KeySpec("web", label=label))
    assert (await keys.get(issued.key.key_id)).label == label


async def test_unknown_keys_and_projects(keys):
    for attempt in (keys.get("nothing"), keys.revoke("nothing"), keys.rotate("nothing"),
                    keys.create(KeySpec("nowhere"))):  # fmt: skip
        with pytest.raises(NotFound):
            await attempt


async def test_keys_are_listed_in_pages_by_project_and_organisation(keys):
    await keys.ensure_project("shop", "other")
    web = sorted([(await keys.create(KeySpec("web"))).key.key_id for _ in range(5)])
    shop = (await keys.create(KeySpec("shop"))).key.key_id
    first = await keys.page(project="web", limit=3)
    rest = await keys.page(project="web", limit=3, after=first[-1].key_id)
    assert [key.key_id for key in first + rest] == web
    assert [key.key_id for key in await keys.page(organisation="other")] == [shop]
    assert len(await keys.page()) == 6
    assert first[0].secrets[0].last_four


async def test_a_project_belongs_to_one_organisation(keys):
    await keys.ensure_project("web", "acme")
    with pytest.raises(Conflict):
        await keys.ensure_project("web", "thief")
    assert await keys.project_organisation("web") == "acme"
    assert await keys.project_organisation("nowhere") is None


async def test_the_first_administrator_is_made_once(keys):
    issued = await keys.bootstrap()
    assert issued.key.organisation == OPERATOR
    assert set(issued.key.scopes) == set(SCOPES)
    with pytest.raises(Conflict):
        await keys.bootstrap()
    await keys.revoke(issued.key.key_id)
    assert (await keys.bootstrap()).key.key_id != issued.key.key_id


async def test_two_who_make_the_first_administrator_at_once_make_one(keys):
    made = await asyncio.gather(*(keys.bootstrap() for _ in range(4)), return_exceptions=True)
    assert sorted(type(result).__name__ for result in made) == ["Conflict"] * 3 + ["IssuedKey"]
    assert len(await keys.page(organisation=OPERATOR)) == 1


async def test_last_use_is_noted(keys, wall):
    issued = await keys.create(KeySpec("web"))
    assert issued.key.last_used_at is None
    await keys.touch({issued.key.key_id: wall() + 7})
    assert (await keys.get(issued.key.key_id)).last_used_at == wall() + 7


async def test_the_pepper_is_a_private_file_made_once(keys, settings):
    path = pepper_file(settings)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    assert len(bytes.fromhex(before.split()[1].decode())) == 32
    assert "versions=[1]" in repr(keys._pepper)
    assert before.split()[1].decode() not in repr(keys._pepper)


async def test_a_lost_pepper_is_not_silently_replaced(keys, store, settings, wall):
    pepper_file(settings).unlink()
    with pytest.raises(PepperError):
        await Keys(store, Audit(store, settings), settings, clock=wall).open()


async def test_a_new_pepper_version_keeps_older_keys_valid(keys, store, settings, wall):
    old = await keys.create(KeySpec("web"))
    assert add_version(settings).versions == (1, 2)
    later = await Keys(store, Audit(store, settings), settings, clock=wall).open()
    new = await later.create(KeySpec("web"))
    assert [await valid(later, item.text) for item in (old, new)] == [True, True]
    lines = pepper_file(settings).read_bytes().splitlines(keepends=True)
    pepper_file(settings).write_bytes(lines[1])  # version 1 withdrawn
    withdrawn = await Keys(store, Audit(store, settings), settings, clock=wall).open()
    assert [await valid(withdrawn, item.text) for item in (old, new)] == [False, True]


async def test_a_pepper_is_rotated_under_running_gateways(keys, audit, store, settings, wall):
    gateway = await Keys(store, Audit(store, settings), settings, clock=wall).open()
    old = await keys.create(KeySpec("web"))
    rotation = await keys.rotate_pepper()
    assert (rotation.version, rotation.older_keys) == (2, 1)
    new = await keys.create(KeySpec("web"))
    assert [await valid(gateway, item.text) for item in (old, new)] == [True, True]
    assert stat.S_IMODE(pepper_file(settings).stat().st_mode) == 0o600
    await keys.rotate(old.key.key_id, overlap_s=0)
    assert (await keys.rotate_pepper()).older_keys == 2  # both are on version 2 by now
    written = [(record.action, record.object) for record in await audit.records() if "pepper" in record.action]
    assert written == [("pepper.rotate", "2"), ("pepper.rotate", "3")]
    assert await Keys(store, Audit(store, settings), settings, clock=wall).open()


async def test_another_stores_pepper_file_is_not_learnt_from(keys, store, settings, wall):
    gateway = await Keys(store, Audit(store, settings), settings, clock=wall).open()
    old = await keys.create(KeySpec("web"))
    await keys.rotate_pepper()
    new = await keys.create(KeySpec("web"))
    pepper_file(settings).write_bytes(b"1 " + b"00" * 32 + b"\n2 " + b"11" * 32 + b"\n")
    assert [await valid(gateway, item.text) for item in (old, new)] == [True, False]
    pepper_file(settings).unlink()
    assert [await valid(gateway, item.text) for item in (old, new)] == [True, False]
    assert not pepper_file(settings).exists()


async def test_old_named_rotations_cost_no_digest(keys, wall, monkeypatch):
    first = await keys.create(KeySpec("web"))
    for number in range(8):
        last = await keys.rotate(first.key.key_id, overlap_s=1, rotation=f"rotation {number}")
        wall.forward(2)
    digests = []
    digest = keys._pepper.digest
    monkeypatch.setattr(keys._pepper, "digest", lambda *given: digests.append(given) or digest(*given))
    assert await valid(keys, last.text)
    assert len(digests) == 1
    assert not await valid(keys, first.text)
    again = await keys.rotate(first.key.key_id, rotation="rotation 0")
    assert again.text is None  # their names are known still


async def test_a_pepper_file_that_is_none_is_refused(store, settings, audit):
    for content in (b"", b"nonsense\n", b"1 abcd\n", b"1 " + b"00" * 32 + b"\n1 " + b"11" * 32):
        pepper_file(settings).write_bytes(content)
        with pytest.raises(PepperError):
            Keys(store, audit, settings)


async def test_no_audit_no_key(keys, audit, store):
    issued = await keys.create(KeySpec("web"))
    audit.anchor_file.unlink()
    audit.anchor_file.mkdir()  # the disk refuses the anchor
    await keys.create(KeySpec("web"))  # committed and signed in the store before the anchor fails
    before = await dump(store)
    for attempt in (keys.create(KeySpec("web")), keys.rotate(issued.key.key_id), keys.revoke(issued.key.key_id),
                    keys.update(issued.key.key_id, {"label": "x"}), keys.ensure_project("new", "new")):  # fmt: skip
        with pytest.raises(Unavailable):
            await attempt
    assert await dump(store) == before
    audit.anchor_file.rmdir()
    await keys.revoke(issued.key.key_id)
    assert (await keys.get(issued.key.key_id)).revoked_at is not None
