"""What `vickrey policy show` prints of a policy's state."""

from controlplane.commands.policy import describe


def test_what_is_known_of_each_server_is_a_row_of_a_table():
    servers = [
        {"id": 1, "name": "s1", "active": True, "bids": [1.0, 2.0, 3.0, 4.0, 5.0], "load_ratio": 0.123456},
        {"id": 2, "name": "s2", "active": False, "load_ratio": None, "reserve": 2.0},
    ]
    ledger = {"path": "a.jsonl", "records": 7, "error": None}
    shown = describe("web", {"policy": "auction", "ledger": ledger, "servers": servers}).splitlines()
    assert shown[0] == "web"
    assert ["policy", "auction"] in [line.split() for line in shown]
    assert ["ledger.records", "7"] in [line.split() for line in shown]
    head = next(i for i, line in enumerate(shown) if line.startswith("ID"))
    assert shown[head].split() == ["ID", "NAME", "ACTIVE", "BIDS", "LOAD", "RATIO", "RESERVE"]
    assert shown[head + 1].split() == ["1", "s1", "yes", "1", "2", "3", "4", "…", "0.1235", "-"]
    assert shown[head + 2].split() == ["2", "s2", "no", "-", "-", "2"]


def test_a_policy_without_servers_has_no_table():
    assert describe("web", {"policy": "lsq", "servers": []}) == "web\n  policy   lsq\n  servers  []"
