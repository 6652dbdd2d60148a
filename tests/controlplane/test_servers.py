"""Slots and states of servers: who keeps his slot, who leaves, what a reload may overwrite."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.config import Server
from controlplane.servers import ServerTable, TableFullError, server_id


def config(port: int, **options: object) -> Server:
    return Server.model_validate({"address": f"127.0.0.1:{port}", **options})


def test_a_server_keeps_its_slot_and_id_when_others_come_and_go():
    table = ServerTable(8)
    first = [config(9001), config(9002), config(9003)]
    table.configure(first)
    kept = {server.name: (server.slot, server.id) for server in table}
    table.configure([config(9003), config(9004), config(9001)], first)
    assert {s.name: (s.slot, s.id) for s in table if s.name in kept} == kept
    assert [s.name for s in table if s.leaving] == ["127.0.0.1:9002"]


def test_a_slot_is_reused_only_after_its_server_has_left():
    table = ServerTable(3)
    first = [config(9001), config(9002)]
    table.configure(first)
    table.configure([config(9002), config(9003)], first)
    joined = table.find("127.0.0.1:9003")
    assert joined is not None
    assert joined.slot == 2
    assert table.free([0, 1, 2]) == ["127.0.0.1:9001"]  # of these slots only the leaving one is freed
    table.configure([config(9002), config(9003), config(9004)], [config(9002), config(9003)])
    again = table.find("127.0.0.1:9004")
    assert again is not None
    assert again.slot == 0
    assert again.id != server_id("127.0.0.1:9001", config(9001).address)


def test_a_server_that_comes_back_before_it_has_left_stays_where_it_was():
    table = ServerTable(4)
    both = [config(9001), config(9002)]
    table.configure(both)
    table.configure(both[:1], both)
    slot = table.slots[1]
    assert slot is not None
    assert slot.shown_state == "drain"
    assert table.configure(both, both[:1]) == ["server 127.0.0.1:9002 stays"]
    assert table.slots[1] is slot
    assert slot.takes_flows


def test_what_was_set_by_hand_stays_unless_the_file_changed_it():
    table = ServerTable(4)
    before = [config(9001, weight=10), config(9002, weight=10)]
    table.configure(before)
    for server in table:
        server.weight, server.state = 99, "drain"
    table.configure([config(9001, weight=10), config(9002, weight=20, maxconn=5)], before)
    assert [(s.weight, s.state, s.maxconn) for s in table] == [(99, "drain", 0), (20, "drain", 5)]


def test_servers_that_join_later_ramp_up_and_the_first_do_not():
    table = ServerTable(4)
    table.configure([config(9001)])
    table.configure([config(9001), config(9002)], [config(9001)], slowstart_s=20.0)
    assert [bool(server.slowstart_begin_ns) for server in table] == [False, True]


def test_too_many_servers_are_refused():
    table = ServerTable(2)
    assert table.room_for([config(9001), config(9002)])
    assert not table.room_for([config(9001), config(9002), config(9003)])
    with pytest.raises(TableFullError):
        table.configure([config(9001), config(9002), config(9003)])


def test_ids_depend_on_name_and_address_alone():
    assert server_id("a", config(9001).address) == server_id("a", config(9001).address)
    assert server_id("a", config(9001).address) != server_id("b", config(9001).address)
    assert server_id("a", config(9001).address) != server_id("a", config(9002).address)


@given(st.lists(st.sets(st.integers(9001, 9012), min_size=1, max_size=8), min_size=1, max_size=12), st.randoms())
def test_no_sequence_of_reloads_mixes_up_slots(reloads, random):
    table, before = ServerTable(32), []
    slots = {}
    for ports in reloads:
        wanted = [config(port) for port in sorted(ports)]
        table.configure(wanted, before)
        before = wanted
        assert {s.address.port for s in table if not s.leaving} == ports
        assert len({s.id for s in table}) == len(table)
        for server in table:
            assert table.slots[server.slot] is server
            assert slots.setdefault(server.id, server.slot) == server.slot
        for name in table.free([s.slot for s in table if random.random() < 0.5]):
            slots.pop(server_id(name, config(int(name.rpartition(":")[2])).address))
