"""Sketches across real processes: torch.distributed over gloo on this machine, and Dask with two workers."""

import itertools
import json
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EPSILONS, cuts, streams
from test_laws import assert_universal

import lev
from lev import bounds
from lev.cluster import torch_distributed

ROOT = Path(lev.__file__).parent.parent
KEYS = np.random.default_rng(0).standard_normal((6000, 8))
KEYS[::600] *= 20
WANTED = lev.universal_set(KEYS, 0.01)


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


# -- torch.distributed -----------------------------------------------------------------------------------------

PROLOGUE = """
import datetime, json, os, sys
import numpy as np, torch.distributed as dist
import lev
from lev.cluster import torch_distributed as cluster

rank, ranks, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=ranks)
keys = np.random.default_rng(0).standard_normal((6000, 8))
keys[::600] *= 20
first, last = 6000 * rank // ranks, 6000 * (rank + 1) // ranks
sketch = lev.Sketch(8, 0.01, start=first, payload_dim=1).update(keys[first:last], payload=np.ones((last - first, 1)))
"""


def ranks_run(tmp_path, body, ranks=3):
    """Run the body on each rank and return what each printed as JSON, or its last line of standard error."""
    pytest.importorskip("torch.distributed", reason="needs the torch extra")
    code = PROLOGUE + textwrap.dedent(body)
    command = [sys.executable, "-c", code]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(ranks), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for rank in range(ranks)
    ]
    done = [process.communicate(timeout=180) for process in started]
    return [json.loads(out) if out else error for out, error in done]


def test_every_rank_ends_with_the_same_sketch_and_the_words_are_counted(tmp_path):
    found = ranks_run(
        tmp_path,
        """
        answers, sent, exchange = [], [], cluster._exchange
        def counted(data, *rest):
            sent[-1] += len(data)
            return exchange(data, *rest)
        cluster._exchange = counted
        before = sketch.to_bytes()
        for rounds in (1, 2):
            sent.append(0)
            merged = cluster.all_merge(sketch, rounds=rounds, timeout=60)
            members = merged.universal_set()
            answers.append([merged.to_bytes().hex(), members.indices.tolist(), members.payload.sum(), merged.count])
        assert sketch.to_bytes() == before
        print(json.dumps([answers, sent, sketch.retained]))
        """,
    )
    answers = [answer for answer, _, _ in found]
    assert answers[0] == answers[1] == answers[2]
    for _, indices, payload, count in answers[0]:
        assert indices == WANTED.indices.tolist()
        assert (payload, count) == (len(indices), 6000)
    # words a rank sends: the form and its rows, or the form and its share of the rows that matter to all
    header = 2500
    form = 8 * (2 * 8**2 + 3 * 8)
    row = 8 * (8 + 3)
    for _, sent, retained in found:
        assert sent[0] <= form + retained * row + header
        assert sent[0] <= form + bounds.max_members(8, 0.01) * row + header
    assert sum(sent[1] for _, sent, _ in found) <= 3 * (form + 2 * header) + len(WANTED) * row
    assert sum(sent[1] for _, sent, _ in found) < sum(sent[0] for _, sent, _ in found)


@pytest.mark.parametrize("rounds", [1, 2])
@settings(max_examples=30)
@given(data=st.data())
def test_nothing_is_missed_by_either_protocol(data, rounds):
    """Ranks as threads: the protocol alone, on hypothesis's streams."""
    keys = data.draw(streams(tuple(sorted({"gaussian", "integers", "repeated", "sparse", "low_rank"}))))
    epsilon, positions = data.draw(EPSILONS), data.draw(cuts(len(keys)))
    parts = list(itertools.pairwise(positions))
    box, barrier = [b""] * len(parts), threading.Barrier(len(parts), timeout=30)

    def exchange(sent, rank, _):
        box[rank] = sent
        barrier.wait()
        came = list(box)
        barrier.wait()
        return came

    def work(rank):
        first, last = parts[rank]
        mine = lev.Sketch(keys.shape[1], epsilon, start=first).update(keys[first:last])
        return torch_distributed.all_merge(mine, rank, rounds=rounds)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(parts)) as pool:
        patch.setattr(torch_distributed, "_exchange", exchange)
        patch.setattr(torch_distributed, "_distributed", lambda: SimpleNamespace(get_rank=lambda rank: rank))
        merged = list(pool.map(work, range(len(parts))))
    assert all(other == merged[0] for other in merged)
    assert_universal(merged[0].universal_set(), keys, merged[0])


def test_sketches_on_a_device_are_merged_and_stay_there(tmp_path):
    body = """
    import torch
    from lev.device import DeviceSketch
    block = torch.from_numpy(np.stack([keys, keys[:, ::-1] ** 3]).astype(np.float32))
    mine = DeviceSketch(8, 0.01, heads=(2,), start=first).update(block[:, first:last])
    whole = cluster.all_merge(mine, rounds=2, timeout=60)
    more = whole.update(torch.zeros(2, 1, 8)).universal_set()
    none = "merged"
    try:
        cluster.all_merge(mine if rank else DeviceSketch(8, 0.01, heads=(2,)), timeout=60)
    except ValueError as error:
        none = str(error)
    print(json.dumps([[u.indices.tolist() for u in more], whole.count, mine.count, type(more[0].keys).__name__, none]))
    """
    found = ranks_run(tmp_path, body)
    wanted = [lev.universal_set(part.astype(np.float32), 0.01).indices.tolist() for part in (KEYS, KEYS[:, ::-1] ** 3)]
    assert [answer[0] for answer in found] == [wanted] * 3
    assert [answer[1:4] for answer in found] == [[6001, 2000, "Tensor"]] * 3
    assert "must have been given keys" in found[0][4]
    assert [answer[4] for answer in found[1:]] == ["merged"] * 2


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_peer_that_is_gone_is_an_error_not_a_wait(tmp_path, rounds):
    found = ranks_run(
        tmp_path,
        f"""
        if rank == 1:
            os._exit(0)
        import time
        started = time.monotonic()
        try:
            cluster.all_merge(sketch, timeout=5, rounds={rounds})
        except RuntimeError as error:
            print(json.dumps(["raised", time.monotonic() - started]))
            sys.stdout.flush()
        os._exit(0)
        """,
    )
    for said, seconds in (found[0], found[2]):
        assert said == "raised"
        assert seconds < 15, "three times the timeout, for a busy machine"


def test_a_peer_that_dies_between_two_exchanges_is_an_error(tmp_path):
    found = ranks_run(
        tmp_path,
        """
        exchange, times = cluster._exchange, []
        def dies(*arguments):
            times.append(1)
            if rank == 1 and len(times) == 2:
                os._exit(0)
            return exchange(*arguments)
        cluster._exchange = dies
        try:
            cluster.all_merge(sketch, timeout=5, rounds=2)
        except RuntimeError as error:
            print(json.dumps("raised"))
            sys.stdout.flush()
        os._exit(0)
        """,
    )
    assert [found[0], found[2]] == ["raised", "raised"]


def test_overlapping_ranks_and_bad_arguments_are_refused(tmp_path):
    found = ranks_run(
        tmp_path,
        """
        messages = []
        for call in (
            lambda: cluster.all_merge(lev.Sketch(8, 0.1).update(keys[:9]), timeout=60),
            lambda: cluster.all_merge(keys),
            lambda: cluster.all_merge(sketch, rounds=3),
        ):
            try:
                call()
            except (ValueError, TypeError) as error:
                messages.append(str(error))
        print(json.dumps(messages))
        """,
        ranks=2,
    )
    for messages in found:
        assert "which this sketch has seen already" in messages[0]
        assert messages[1:] == ["sketch must be a Sketch; got ndarray", "rounds must be 1 or 2; got 3"]


# -- dask ------------------------------------------------------------------------------------------------------


@pytest.fixture
def dask():
    pytest.importorskip("dask.array", reason="needs the dask extra")
    return pytest.importorskip("lev.cluster.dask")


def test_dask_arrays_with_known_and_unknown_chunks(dask):
    import dask.array as da

    array = da.from_array(KEYS, chunks=(700, 3))
    unknown = array[da.from_array(np.ones(6000, bool), chunks=700)]
    assert np.isnan(unknown.chunks[0][0])
    for chunked in (array, unknown):
        found = dask.sketch(chunked, 0.01)
        np.testing.assert_array_equal(found.universal_set().indices, WANTED.indices)
        assert found.count == 6000
    shifted = dask.sketch(array, 0.01, start=50)
    np.testing.assert_array_equal(shifted.universal_set().indices, WANTED.indices + 50)


def test_lists_of_files(dask, tmp_path):
    for i, part in enumerate(np.array_split(KEYS, 3)):
        np.save(tmp_path / f"{i}.npy", part)
    found = dask.sketch([str(tmp_path / f"{i}.npy") for i in range(3)], 0.01)
    np.testing.assert_array_equal(found.universal_set().indices, WANTED.indices)


def test_bad_sources_are_refused(dask):
    import dask.array as da

    with pytest.raises(TypeError, match="source must be a dask array or a list of files; got ndarray"):
        dask.sketch(KEYS, 0.1)
    with pytest.raises(ValueError, match="must have shape"):
        dask.sketch(da.zeros(5), 0.1)
    with pytest.raises(ValueError, match="row 3 holds"):
        dask.sketch(da.from_array(np.where(np.arange(24).reshape(8, 3) == 10, np.nan, 1.0), chunks=(8, 3)), 0.1)


_CLUSTER = """
import json, os, sys, time
import numpy as np
from pathlib import Path
import dask.array as da
from distributed import Client, LocalCluster
from lev.cluster import dask as cluster

def loses_its_worker(block, flag):
    if block.shape[0] == 500 and block[0, 0] != 1 and not Path(flag).exists():
        Path(flag).touch()
        os._exit(1)
    return block

if __name__ == "__main__":
    keys = np.random.default_rng(0).standard_normal((6000, 8))
    keys[::600] *= 20
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**options) as local, Client(local):
        array = da.from_array(keys, chunks=(500, 8))
        whole = cluster.sketch(array, 0.01)
        lost = cluster.sketch(array.map_blocks(loses_its_worker, sys.argv[1], dtype=float, meta=keys[:0]), 0.01)
    same = whole.to_bytes() == lost.to_bytes()
    print(json.dumps([same, Path(sys.argv[1]).exists(), lost.universal_set().indices.tolist()]))
"""


def test_a_worker_killed_in_mid_work_gives_the_same_bits(dask, tmp_path):
    pytest.importorskip("distributed", reason="needs the dask extra")
    script = tmp_path / "cluster.py"
    script.write_text(_CLUSTER)
    command = [sys.executable, str(script), str(tmp_path / "killed")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    same, killed, indices = json.loads(done.stdout.splitlines()[-1])
    assert same
    assert killed
    assert indices == WANTED.indices.tolist()
