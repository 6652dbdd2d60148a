"""The fuzz targets hold on every message of the tables, each cut and damaged at many places, under the sanitizers."""

import random
from pathlib import Path

import pytest

from tests.c_build import run_c
from tests.fuzz.run import TARGETS, build_replay
from tests.fuzz.seeds import seeds

BYTES = b'\0\t\n\r :,;="/#%-aA0159\x7f\x80'


def damaged(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(4):
            case 0:
                out[at : at + 1] = bytes([rng.choice(BYTES)])
            case 1:
                out[at:at] = bytes([rng.choice(BYTES)])
            case 2:
                del out[at : at + rng.randint(1, 8)]
            case _:
                out[at:at] = out[max(0, at - rng.randint(1, 40)) : at]
    return bytes(out)


@pytest.mark.parametrize("target", TARGETS)
def test_the_target_holds_on_seeds_and_their_neighbours(target: str, tmp_path: Path) -> None:
    rng = random.Random(7)
    inputs = [data for data in seeds()[target] if data]
    inputs += [damaged(data, rng) for data in inputs if len(data) < 4000 for _ in range(10)]
    files = [tmp_path / str(i) for i in range(len(inputs))]
    for path, data in zip(files, inputs, strict=True):
        path.write_bytes(data)
    done = run_c(build_replay(target), *map(str, files))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(files)} inputs\n"
