"""How many workers a device has room for, and how each is held to its share."""

import pytest
from gpu_scaling.executors.memory import GIB, MIB, Room, Sizing, Usage, cpu_room, own_memory

GPU = Room(free=40 * GIB, total=80 * GIB, context=500 * MIB)


def after(own: int, *, alone: bool = True, **settings) -> Sizing:
    """Return the sizing after one step that took `own` bytes within PyTorch."""
    sizing = Sizing(GPU, share=0.8, cores=16, **settings)
    modules = 100 * MIB  # loaded with the first step, and counted by nobody
    free = GPU.free - GPU.context - modules - own
    sizing.learn(Usage(peak=own, now=own, free=free, short=False), alone)
    return sizing


def test_one_worker_until_a_step_was_measured():
    assert Sizing(GPU, share=0.8, cores=16).workers == 1


def test_workers_follow_from_free_memory_and_footprint():
    sizing = after(own=3 * GIB)
    assert sizing.footprint == 3 * GIB + 600 * MIB
    assert sizing.workers == int(32 * GIB / sizing.footprint) == 8


def test_cores_are_the_most_and_one_the_least():
    assert after(own=10 * MIB).workers == 16
    assert after(own=39 * GIB).workers == 1


def test_by_hand_is_by_hand():
    assert after(own=39 * GIB, by_hand=5).workers == 5


@pytest.mark.parametrize("own", [10 * MIB, 3 * GIB, 12 * GIB])
def test_all_workers_at_their_limit_stay_within_the_share(own):
    sizing = after(own)
    at_limit = sizing.fraction * GPU.total + sizing.overhead
    assert own <= at_limit
    assert sizing.workers * at_limit <= 0.8 * GPU.free * 1.001


def test_a_step_that_ran_short_leaves_room_for_fewer():
    sizing = after(own=3 * GIB)
    before = sizing.fraction
    sizing.learn(Usage(peak=3 * GIB, now=0, free=0, short=True), alone=False)
    assert sizing.workers == 5
    assert sizing.fraction > before
    sizing.learn(Usage(peak=30 * MIB, now=0, free=0, short=True), alone=False)  # it asked for 2**60
    assert sizing.workers == 5


def test_on_the_cpu_there_is_no_limit_to_set():
    room = cpu_room()
    assert 0 < room.free <= room.total
    assert Sizing(room, share=0.8, cores=2).fraction is None
    assert 10 * MIB < own_memory() < room.total
