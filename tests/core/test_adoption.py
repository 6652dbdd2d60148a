"""What is adopted from the segment: whole, checked, of the right epoch. Else it is counted and the last one stays."""

import numpy as np
import pytest

from shm_layout._segment import ffi, lib
from shm_layout.layout import REJECTS
from shm_layout.segment import DirectiveData
from tests.core.farm import Farm, whole_curve


def rejected(farm):
    counts = farm.balancer.worker()["rejected"]
    return {name: int(n) for name, n in zip(REJECTS, counts, strict=True) if n}


def curves_for(farm, level, **fields):
    fields = {"sequence": 100, "issued_ns": farm.now, **fields}
    return DirectiveData(ids=farm.ids, rule="bids", curves=[whole_curve([level, level + 1])] * len(farm.ids), **fields)


def publish_raw(farm, payload, epoch, *, settings=False):
    """Publish bytes that no writer of ours would let through."""
    header = ffi.cast("struct segment_header *", farm.segment.base)
    words = np.frombuffer(bytes(payload), dtype=np.uint64)
    block = header.off_settings if settings else header.off_directive
    with ffi.from_buffer(words) as data:
        assert lib.segment_publish(farm.segment.base, block, data, words.nbytes, epoch) == 0
    return block


def bid(farm):
    farm.refresh()
    return farm.dispatch().bid


def test_a_newer_directive_replaces_the_older():
    with Farm(2) as farm:
        farm.curves([[1, 2], [1, 2]])
        assert bid(farm) == 1
        farm.curves([[5, 6], [5, 6]])
        assert bid(farm) == 5
        worker = farm.balancer.worker()
        assert (worker["directive_sequence"], worker["directive_epoch"]) == (2, farm.epoch)
        assert rejected(farm) == {}


BAD = {
    "value": [
        ("curves", lambda array: array.fill(np.nan)),
        ("curves", lambda array: array[0].fill(-1.0)),
        ("curves", lambda array: array[0].put(5, 0.5)),  # falls
        ("curves", lambda array: array[0].put(103, np.inf)),
    ],
    "bounds": [
        ("n_servers", 3),
        ("n_servers", 0),
        ("n_servers", 2**31),
        ("off_curves", 2**40),
        ("off_ids", 2**63),
        ("off_curves", 0),
    ],
}


@pytest.mark.parametrize(("reason", "what"), [(reason, what) for reason, cases in BAD.items() for what in cases])
def test_a_bad_directive_is_counted_once_and_the_last_good_one_stays(reason, what):
    name, change = what
    with Farm(2) as farm:
        farm.curves([[1, 2], [1, 2]])
        directive = curves_for(farm, 5, epoch=farm.epoch)
        words = directive.encode().copy()
        memory = words.view(np.uint8)
        from shm_layout.layout import CURVE_POINTS, DIRECTIVE

        head = memory[: DIRECTIVE.itemsize].view(DIRECTIVE)[0]
        if name == "curves":
            start = int(head["off_curves"])
            change(memory[start : start + 8 * CURVE_POINTS].view(np.float32).reshape(2, CURVE_POINTS))
        else:
            head[name] = change
        publish_raw(farm, words.tobytes(), farm.epoch)
        for _ in range(3):
            assert bid(farm) == 1
        assert rejected(farm) == {reason: 1}
        farm.curves([[7, 8], [7, 8]], sequence=101)
        assert bid(farm) == 7


@pytest.mark.parametrize(
    ("rule", "arrays", "reason"),
    [
        ("maglev", {"table": [0, 1, 2]}, "table"),
        ("alias", {"alias_keep": [0, 0], "alias_other": [0, 2]}, "table"),
        ("wrr", {"weights": [0, 0]}, "value"),
        ("wrr", {"weights": [1, np.nan]}, "value"),
        ("wrr", {"weights": [1, -1]}, "value"),
        ("alias", {"weights": [1, 1]}, "bounds"),
        ("classic", {"weights": [1, 1]}, "bounds"),
    ],
)
def test_a_rule_is_not_taken_without_sound_tables(rule, arrays, reason):
    with Farm(2) as farm:
        farm.curves([[1, 2], [1, 2]])
        directive = DirectiveData(ids=farm.ids, rule=rule, sequence=5, issued_ns=farm.now, epoch=farm.epoch, **arrays)
        publish_raw(farm, directive.encode().tobytes(), farm.epoch)
        assert bid(farm) == 1
        assert rejected(farm) == {reason: 1}


def test_bytes_that_changed_after_publication_are_refused_by_their_crc():
    with Farm(2) as farm:
        farm.curves([[1, 2], [1, 2]])
        directive = curves_for(farm, 5, epoch=farm.epoch)
        block = publish_raw(farm, directive.encode().tobytes(), farm.epoch)
        head = ffi.cast("struct block *", farm.segment.base + block)
        payload = farm.segment.base + head.off_buffer[head.latest] + ffi.sizeof("struct block_buffer")
        ffi.cast("uint8_t *", payload)[300] ^= 1
        assert bid(farm) == 1
        assert rejected(farm) == {"crc": 1}


def test_a_directive_that_is_being_written_is_tried_again():
    with Farm(2) as farm:
        farm.curves([[1, 2], [1, 2]])
        block = publish_raw(farm, curves_for(farm, 5, epoch=farm.epoch).encode().tobytes(), farm.epoch)
        head = ffi.cast("struct block *", farm.segment.base + block)
        buffer = ffi.cast("struct block_buffer *", farm.segment.base + head.off_buffer[head.latest])
        buffer.sequence += 1  # as a writer leaves it that was killed here
        assert bid(farm) == 1
        assert rejected(farm) == {"torn": 1}
        buffer.sequence += 1
        assert bid(farm) == 5


def test_a_controller_that_lost_its_lock_is_not_listened_to():
    with Farm(2) as farm:
        old = farm.epoch
        farm.curves([[1, 2], [1, 2]])
        lib.segment_controller_begin(farm.segment.base, 1, farm.now)  # another one takes over …
        publish_raw(farm, curves_for(farm, 5, epoch=old + 1).encode().tobytes(), old + 1)
        assert bid(farm) == 5
        publish_raw(farm, curves_for(farm, 9, epoch=old, sequence=200).encode().tobytes(), old)  # … the first goes on
        assert bid(farm) == 5
        assert rejected(farm) == {"epoch": 1}


def test_a_newer_epoch_is_taken_though_the_controller_block_lags():
    with Farm(2) as farm:
        farm.curves([[1, 2], [1, 2]])
        publish_raw(farm, curves_for(farm, 5, epoch=farm.epoch + 3, sequence=1).encode().tobytes(), farm.epoch + 3)
        assert bid(farm) == 5


def test_within_an_epoch_sequences_never_go_back():
    with Farm(2) as farm:
        farm.curves([[1, 2], [1, 2]], sequence=50)
        publish_raw(farm, curves_for(farm, 5, epoch=farm.epoch, sequence=49).encode().tobytes(), farm.epoch)
        assert bid(farm) == 1
        assert rejected(farm) == {"epoch": 1}


def test_the_epoch_in_the_payload_must_be_its_writers():
    with Farm(2) as farm:
        farm.curves([[1, 2], [1, 2]])
        publish_raw(farm, curves_for(farm, 5, epoch=farm.epoch + 1).encode().tobytes(), farm.epoch)
        assert bid(farm) == 1
        assert rejected(farm) == {"epoch": 1}


def test_bad_settings_leave_the_last_good_ones_in_force():
    with Farm(2) as farm:
        farm.curves([[1, 2], [3, 4]])
        payload = bytearray(farm.settings.encode())
        payload[8:12] = (1000).to_bytes(4, "little")  # n_slots
        publish_raw(farm, payload, 1, settings=True)
        assert not farm.balancer.refresh(farm.now)
        assert bid(farm) == 1
        assert rejected(farm) == {"bounds": 1}
        assert farm.balancer.worker()["settings_version"] == 1


def test_refresh_says_when_the_settings_changed():
    with Farm(2) as farm:
        assert not farm.balancer.refresh(farm.now)
        farm.publish_settings()
        assert farm.balancer.refresh(farm.now)
        assert not farm.balancer.refresh(farm.now)
        assert farm.balancer.worker()["settings_version"] == 2


def test_a_directive_for_fewer_or_more_servers_than_there_are_counts_for_those_it_names():
    with Farm(3, max_servers=4) as farm:
        farm.direct("bids", curves=[whole_curve([1, 2])], ids=[1])
        award = farm.dispatch()
        assert (award.bid, award.price) == (1, 1)  # the unknown two bid like the known one
        farm.direct("bids", curves=[whole_curve([k, k + 1]) for k in (4, 3, 2, 1)], ids=[1, 2, 3, 4])
        assert farm.dispatch().bid == 2
