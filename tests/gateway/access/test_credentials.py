from __future__ import annotations

import base64

import pytest

from gateway.access.credentials import find_credential
from gateway.errors import Malformed


def basic(text: str) -> bytes:
    return b"Basic " + base64.b64encode(text.encode())


@pytest.mark.parametrize(
    ("headers", "credential"),
    [
        ([], None),
        ([(b"authorization", b"Bearer abc")], "abc"),
        ([(b"authorization", b"bearer   abc ")], "abc"),
        ([(b"x-api-key", b"abc")], "abc"),
        ([(b"authorization", basic("user:abc:d"))], "abc:d"),
        ([(b"authorization", basic("abc"))], ""),
        ([(b"authorization", b"Basic !!!")], ""),
        ([(b"authorization", b"Digest abc")], ""),
        ([(b"authorization", b"")], ""),
        ([(b"authorization", b"Bearer " + b"a" * 65536)], ""),
        ([(b"x-forwarded-for", b"1.2.3.4"), (b"x-user", b"root")], None),
    ],
)
def test_where_a_credential_stands(headers, credential):
    assert find_credential(headers, {}) == credential


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer a")],
        [(b"authorization", b"Bearer a"), (b"x-api-key", b"a")],
    ],
)
def test_two_credentials_are_refused(headers):
    with pytest.raises(Malformed):
        find_credential(headers, {})


def test_a_key_in_the_url_is_none_and_never_beside_another():
    assert find_credential([], {"api_key": ["abc"]}) is None
    with pytest.raises(Malformed):
        find_credential([(b"x-api-key", b"abc")], {"api_key": ["abc"]})
