from datetime import UTC, datetime, timedelta
from unittest.mock import patch

import pytest

from clustercert.clusters.discarded_keys import DiscardedKeys, create_ca
from clustercert.issuance.signers.local import local_signer
from clustercert.model import Actor, ClientCA, utc_now
from clustercert.model.clusters import Registration
from clustercert.model.errors import Unavailable
from clustercert.pki.signer import CaRequest, SignerContext
from clustercert.policy.lifetime import BACKDATE
from clustercert.server import clock as clock_module
from clustercert.server.clock import ClockWatch
from clustercert.store.clusters.client_cas import ClientCaQueries
from clustercert.store.engine import database as database_module
from clustercert.store.engine.database import Database
from support.log_capture import captured_lines
from support.ring_sealer import RingSealer
from support.samples import CLUSTER_ID, server_ca_pem
from support.stores import Store


class Fast(datetime):
    @classmethod
    def now(cls, tz: object = None) -> "Fast":
        return cls.fromtimestamp(datetime.now(UTC).timestamp() + 3600, UTC)


async def test_a_fast_clock_is_measured(database: Database, store: Store) -> None:
    assert abs(await database.clock_offset()) < timedelta(minutes=1)
    with patch.object(database_module, "datetime", Fast):
        offset = await database.clock_offset()
    if store.file is not None:
        # SQLite has no clock of its own.
        assert offset == timedelta()
    else:
        assert abs(offset - timedelta(hours=1)) < timedelta(minutes=1)


# A replica whose clock is wrong


async def new_ca(cas: ClientCaQueries, now: datetime) -> ClientCA:
    registration = Registration("prod", "https://192.0.2.1:6443", server_ca_pem())
    request = CaRequest(CLUSTER_ID, registration, "ec-p256", now - BACKDATE, timedelta(days=1), None)
    return await create_ca(local_signer(SignerContext({}, RingSealer())), request, cas)


async def test_a_wrong_clock_creates_no_ca_and_says_so(database: Database, store: Store) -> None:
    cas, clock = ClientCaQueries(database), ClockWatch(database)
    with captured_lines(clock_module) as lines, patch.object(database_module, "datetime", Fast):
        await clock.measure()
        await clock.measure()
        if store.file is not None:
            await new_ca(cas, utc_now())
            assert len(await cas.discarded()) == 1
        else:
            with pytest.raises(Unavailable, match=r"this replica is 3600 seconds ahead of the database's"):
                await new_ca(cas, utc_now())
            assert await cas.discarded() == ()
    with captured_lines(clock_module) as later:
        await clock.measure()
        await clock.measure()
    said = [(line["event"], line["log_level"]) for line in (*lines, *later)]
    assert said == (
        []
        if store.file is not None
        else [
            ("clock differs from the database's: no client CA is created", "warning"),
            ("clock agrees with the database's again", "info"),
        ]
    )


async def test_a_wrong_clock_deletes_no_key_that_another_replica_is_registering(
    database: Database, store: Store
) -> None:
    cas = ClientCaQueries(database)
    ca = await new_ca(cas, utc_now())
    deletions = DiscardedKeys(cas, {"local": local_signer(SignerContext({}, RingSealer()))}, Fast.now)
    with patch.object(database_module, "datetime", Fast):
        await deletions.delete_all()
        left = await cas.discarded()
        assert [each.ca.id for each in left] == ([] if store.file is not None else [ca.id])
    # Once the clocks agree, the CA is an hour old indeed.
    assert len(await deletions.delete_keys_of(CLUSTER_ID, actor=Actor.service())) == len(left)
    assert await cas.discarded() == ()
