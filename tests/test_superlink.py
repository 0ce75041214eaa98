"""The fault of the pinned release that tools/superlink.py mends is there, and is mended."""

import pytest
from flwr.server.superlink.linkstate import InMemoryLinkState, SqliteLinkState
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from superlink import without_empty


@pytest.mark.parametrize("kind", [InMemoryLinkState, SqliteLinkState])
def test_content_that_is_still_on_its_way_is_no_error(kind):
    parts = (NoOpFederationManager(), ObjectStoreFactory().store())
    state = kind(*([":memory:"] if kind is SqliteLinkState else []), *parts)
    nothing = {"bytes_sent": 0, "bytes_recv": 0}
    with pytest.raises(ValueError, match="cannot be zero"):  # else the mending can go
        state.store_traffic(1, **nothing)
    mended = without_empty(kind.store_traffic)
    mended(state, 1, **nothing)
    with pytest.raises(ValueError, match="Negative traffic"):
        mended(state, 1, bytes_sent=-1, bytes_recv=0)
