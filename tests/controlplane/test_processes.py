"""Children: how soon they are restarted, and how their end is told."""

import asyncio

import pytest

from controlplane.processes import Backoff, Child, Controller, ControllerError, ControllerUnavailableError, exit_cause


def test_the_first_restart_is_at_once_then_ever_later_up_to_five_seconds():
    backoff = Backoff()
    delays = [backoff.delay_s(lived_s=0.1) for _ in range(10)]
    assert delays == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert backoff.delay_s(lived_s=10.0) == 0.0
    assert backoff.delay_s(lived_s=0.1) == 0.1


@pytest.mark.parametrize(("code", "cause"), [(0, "exit 0"), (3, "exit 3"), (-9, "SIGKILL"), (-11, "SIGSEGV")])
def test_an_end_is_told_in_words(code, cause):
    assert exit_cause(code) == cause


def script(text: str) -> list[str]:
    return ["-c", text]


def test_a_child_that_ends_is_restarted_until_it_is_told_to_stop():
    async def scenario() -> None:
        child = Child("test", script("import sys; sys.stderr.write('a word\\nhalf'); sys.exit(3)"))
        await child.start()
        while child.restarts < 2:
            await asyncio.sleep(0.01)
        await child.kill()
        assert child.last_exit in ("exit 3", "SIGKILL")
        assert {"a word", "half"} <= set(child.last_lines)
        restarts = child.restarts
        await asyncio.sleep(0.3)
        assert (child.restarts, child.running) == (restarts, False)

    asyncio.run(asyncio.wait_for(scenario(), 30))


ECHO = """
import json, sys
for line in sys.stdin:
    command = json.loads(line)
    if command["cmd"] == "die":
        sys.exit(1)
    if command["cmd"] == "noise":
        print("not json"); print("[]"); print('{"event": "policy", "service": "web"}')
    if command["cmd"] == "silence":
        continue
    ok = command["cmd"] != "refuse"
    print(json.dumps({"id": command["id"], "ok": ok, "error": "no", "cmd": command["cmd"]}), flush=True)
"""


def test_the_controllers_answers_find_their_questions():
    async def scenario() -> None:
        controller = Controller(list)
        controller.argv = script(ECHO)
        events: list[object] = []
        controller.on_event = events.append
        with pytest.raises(ControllerUnavailableError, match="not running"):
            await controller.command(cmd="show")
        await controller.start()
        assert (await controller.first_start)["cmd"] == "start"
        answers = await asyncio.gather(*(controller.command(cmd=f"c{i}") for i in range(20)))
        assert [answer["cmd"] for answer in answers] == [f"c{i}" for i in range(20)]
        assert (await controller.command(cmd="noise"))["ok"]
        assert events == [{"event": "policy", "service": "web"}]
        with pytest.raises(ControllerError, match="no"):
            await controller.command(cmd="refuse")
        with pytest.raises(ControllerUnavailableError, match=r"did not answer within 0\.1 s"):
            await controller.command(0.1, cmd="silence")
        with pytest.raises(ControllerUnavailableError, match="ended"):
            await controller.command(cmd="die")
        while controller.restarts < 1 or not controller.running:
            await asyncio.sleep(0.01)
        assert (await controller.command(cmd="again"))["cmd"] == "again"
        await controller.kill()

    asyncio.run(asyncio.wait_for(scenario(), 30))
