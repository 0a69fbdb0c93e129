"""Ranks of one attempt meet each other, never what an earlier attempt left in the launcher's store."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from rlpheads.engine.distributed.meeting import MeetingError, open_meeting


@pytest.fixture
def store():
    return dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)


def meet(store, world_size, order):
    """Ranks come in `order`, each with a connection of its own; return what they share, by rank."""

    def come(rank):
        mine = store.clone()
        part = open_meeting(lambda: [mine], rank, world_size, 20)
        part.set(f"here/{rank}", str(rank))
        return sorted(part.get(f"here/{other}").decode() for other in range(world_size))

    with ThreadPoolExecutor(world_size) as pool:
        found = {rank: pool.submit(come, rank) for rank in order}
        return {rank: each.result() for rank, each in found.items()}


def test_each_attempt_has_a_place_of_its_own_whoever_comes_first(store):
    places = []
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        found = meet(store, 3, order)
        assert all(words == ["0", "1", "2"] for words in found.values())
        places.append(store.get("rlpheads/attempt"))
    assert len(set(places)) == 3


def test_rank_that_comes_before_the_first_one_does_not_take_the_attempt_before(store):
    meet(store, 2, (0, 1))
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(open_meeting, [store.clone()].copy, 1, 2, 20)
        while early.running() and not store.check([f"{store.get('rlpheads/attempt').decode()}/came/1"]):
            pass
        before = store.get("rlpheads/attempt").decode()
        late = open_meeting(lambda: [store], 0, 2, 20)
        late.set("address", "new")
        assert early.result().get("address") == b"new"
    assert store.get("rlpheads/attempt").decode() != before
    assert len(json.loads(store.get(f"{before}/all"))) == 2


def test_ranks_that_do_not_come_are_named(store):
    with pytest.raises(MeetingError, match=r"rank\(s\) 1, 2 of 3 did not come"):
        open_meeting(lambda: [store], 0, 3, 0.2)
    with pytest.raises(MeetingError, match="rank 0 has not begun"):
        open_meeting(lambda: [store], 1, 3, 0.2)


def test_single_rank_waits_for_nobody(store):
    open_meeting(lambda: [store], 0, 1, 0.2).set("key", "value")
