"""More requests to Keystone than it answers at once."""

import asyncio

import pytest

from clustercert.authn.keystone import connection as connection_module
from clustercert.authn.keystone.connection import KeystoneConnection
from clustercert.authn.keystone.settings import Keystone
from clustercert.model.errors import CredentialUnverified
from support.keystone_double import KeystoneDouble
from support.log_capture import captured_lines


async def test_waiting_for_others_is_no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "MAX_CONNECTIONS", 1)
    with KeystoneDouble().running() as double, captured_lines(connection_module) as said:
        settings = double.settings(domain="tests", timeout="3s")
        connection = KeystoneConnection(Keystone.model_validate(settings))
        # As while Keystone works on another request.
        await connection._slots.acquire()

        with pytest.raises(CredentialUnverified, match="slowly") as refused:
            await connection.send("GET", "/users/x", headers={})

        assert refused.value.retry_after == 1
        connection._slots.release()
        assert (await connection.send("GET", "/users/x", headers={})).status == 401
        await connection.close()
    assert said == []


async def test_a_cancelled_request_frees_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "MAX_CONNECTIONS", 1)
    with KeystoneDouble().running() as double:
        configured = Keystone.model_validate(double.settings(domain="tests"))
        connection = KeystoneConnection(configured)
        for _ in range(3):
            request = asyncio.create_task(connection.send("GET", "/users/x", headers={}))
            await asyncio.sleep(0)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request

        assert (await connection.send("GET", "/users/x", headers={})).status == 401
        await connection.close()
