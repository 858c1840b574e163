"""The contract of Sketch: inputs of every family, bad input, ids, merging, what is read back."""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lev
from lev import bounds
from lev.cpu import threads

RNG = np.random.default_rng(0)
KEYS = RNG.standard_normal((700, 4))
KEYS[123] *= 50


def state(sketch):
    return sketch.to_bytes(), sketch.count, sketch._ids


# -- input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        lambda keys: keys.tolist(),
        np.asfortranarray,
        lambda keys: np.repeat(np.repeat(keys, 2, 0), 2, 1)[::2, ::2],
        lambda keys: keys.astype(">f8"),
        lambda keys: keys[::-1][::-1],
        lambda keys: keys.astype(np.longdouble),
    ],
)
def test_any_layout_is_the_same_keys(form):
    assert lev.Sketch(4, 0.1).update(form(KEYS)) == lev.Sketch(4, 0.1).update(KEYS)


@settings(max_examples=60)
@given(st.data())
def test_any_strides_are_the_same_keys(data):
    """Broadcast, expanded, reversed and overlapping arrays, too."""
    heads = data.draw(st.sampled_from([(), (2,), (2, 3)]))
    shape = (*heads, data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4)))
    steps = data.draw(st.lists(st.integers(-5, 5), min_size=len(shape), max_size=len(shape)))
    numbers = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal(200)
    keys = np.lib.stride_tricks.as_strided(numbers[100:], shape, [8 * step for step in steps])
    for make in (lev.Sketch, lev.CausalSketch):
        taken, plain = (make(shape[-1], 0.1, heads=heads) for _ in range(2))
        assert taken.update(keys).update(keys) == plain.update(keys.copy()).update(keys.copy())


def test_memory_maps_are_read_block_by_block(tmp_path):
    np.save(tmp_path / "keys.npy", KEYS)
    mapped = np.load(tmp_path / "keys.npy", mmap_mode="r")
    assert lev.Sketch(4, 0.1).update(mapped) == lev.Sketch(4, 0.1).update(KEYS)


def test_dlpack_arrays_are_taken():
    class Foreign:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    assert lev.Sketch(4, 0.1).update(Foreign(KEYS)) == lev.Sketch(4, 0.1).update(KEYS)


def test_torch_tensors_come_back_as_torch_tensors():
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    tensor = torch.tensor(KEYS, dtype=torch.bfloat16, requires_grad=True)
    sketch = lev.Sketch(4, 0.1).update(tensor)
    found = sketch.universal_set()
    assert found.keys.dtype == torch.bfloat16
    assert found.scores.dtype == torch.float64
    assert found.indices.tolist() == [123]
    assert torch.equal(found.keys, tensor.detach()[found.indices])
    assert isinstance(lev.leverage_scores(tensor), torch.Tensor)
    assert sketch.normalizer(tensor)[0].shape == (700,)
    assert found.top(1).indices.tolist() == [123]


@pytest.mark.parametrize("options", [{}, {"p": 3.0}, {"heads": (2,)}, {"payload_dim": 2}, {"sample": 0.5}])
def test_bfloat16_rows_are_what_they_widen_to_in_any_split(options):
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    heads = options.get("heads", ())
    keys = torch.randn((*heads, 700, 4), generator=torch.Generator().manual_seed(1)).bfloat16()
    extra = {"payload": keys[..., :2]} if "payload_dim" in options else {}
    whole = lev.Sketch(4, 0.02, **options).update(keys.float(), **{name: one.float() for name, one in extra.items()})
    parts = lev.Sketch(4, 0.02, **options)
    for some in (slice(0, 1), slice(1, 600), slice(600, 700)):
        parts.update(keys[..., some, :], **{name: one[..., some, :] for name, one in extra.items()})
    assert parts == whole
    mask = np.zeros((*heads, 700), bool)
    masked = lev.Sketch(4, 0.02, **options).update(keys, mask=mask, **extra)
    assert masked == whole
    for bad in (5, 690):
        broken = keys.clone()
        broken[..., bad, 1] = float("nan")
        with pytest.raises(ValueError, match=f"row {bad} holds NaN"):
            lev.Sketch(4, 0.02, **options).update(broken, **extra)


def test_update_neither_writes_nor_keeps_the_rows():
    keys = KEYS.copy()
    sketch = lev.Sketch(4, 0.1).update(keys)
    np.testing.assert_array_equal(keys, KEYS)
    before = state(sketch)
    keys[:] = 0
    assert state(sketch) == before


def test_mixed_dtypes_keep_the_widest():
    sketch = lev.Sketch(2, 0.1).update(np.ones((1, 2), np.float32)).update(np.array([[1.0, -1.0]], np.float64))
    assert sketch.universal_set().keys.dtype == np.float64
    only = lev.Sketch(2, 0.1).update(np.zeros((0, 2))).update(np.ones((1, 2), np.float32))
    assert only.universal_set().keys.dtype == np.float32


# -- bad input -------------------------------------------------------------------------------------------------


def with_bad(value, row):
    keys = KEYS.copy()
    keys[row, 2] = value
    return keys


BAD_UPDATES = [
    ({"keys": with_bad(np.nan, 5)}, ValueError, r"keys must be finite; row 5 holds NaN or infinity"),
    ({"keys": with_bad(np.inf, 699)}, ValueError, "row 699 holds"),
    ({"keys": with_bad(-np.inf, 0)}, ValueError, "row 0 holds"),
    ({"keys": KEYS[:, :3]}, ValueError, r"keys must have shape \(m, 4\); got \(700, 3\)"),
    ({"keys": KEYS[0]}, ValueError, r"keys must have shape \(m, 4\); got \(4,\)"),
    ({"keys": KEYS[None]}, ValueError, r"got \(1, 700, 4\)"),
    ({"keys": KEYS + 1j}, TypeError, "keys must be real numbers; got dtype complex128"),
    ({"keys": KEYS.astype(object)}, TypeError, "keys must be real numbers; got dtype object"),
    ({"keys": [["a", "b", "c", "d"]]}, TypeError, "keys must be real numbers; got dtype <U1"),
    ({"keys": [[1, 2, 3, 4], [1, 2]]}, ValueError, "keys is not a rectangular array"),
    ({"keys": np.full((1, 4), 2**53 + 1)}, ValueError, "keys holds the integer 9007199254740993"),
    ({"keys": None}, TypeError, "keys must be real numbers"),
    ({"keys": KEYS[:2], "indices": [3, 3]}, ValueError, "indices must be unique; 3 came 2 times"),
    ({"keys": KEYS[:2], "indices": [3, -1]}, ValueError, "got -1"),
    ({"keys": KEYS[:2], "indices": [3, 2**53]}, ValueError, "got 9007199254740992"),
    ({"keys": KEYS[:2], "indices": [3]}, ValueError, r"indices must have shape \(2,\); got \(1,\)"),
    ({"keys": KEYS[:2], "indices": [[3, 4]]}, ValueError, r"got \(1, 2\)"),
    ({"keys": KEYS[:2], "indices": [0.0, 1.0]}, TypeError, "indices must be integers; got dtype float64"),
    ({"keys": KEYS[:2], "indices": [50, 1]}, ValueError, "indices holds id 1, which this sketch has seen already"),
    ({"keys": KEYS[:2], "payload": np.ones((2, 1))}, ValueError, r"payload must have shape \(2, 0\); got \(2, 1\)"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_UPDATES)
def test_a_refused_update_names_what_came_and_changes_nothing(arguments, error, message):
    sketch = lev.Sketch(4, 0.1).update(KEYS[:20])
    before = state(sketch)
    with pytest.raises(error, match=message):
        sketch.update(**arguments)
    assert state(sketch) == before
    sketch.update(KEYS[20:])
    assert sketch == lev.Sketch(4, 0.1).update(KEYS)


def test_the_first_bad_row_is_named_across_blocks():
    keys = RNG.standard_normal((90_000, 4)).astype(np.float32)
    sketch = lev.Sketch(4, 0.1).update(keys[:100])
    before = state(sketch)
    keys[[77_777, 80_000], 1] = np.nan
    with pytest.raises(ValueError, match="row 77777 holds"):
        sketch.update(keys)
    with pytest.raises(ValueError, match="row 77777 holds"):
        lev.leverage_scores(keys)
    assert state(sketch) == before


def test_payload_is_needed_when_it_was_announced():
    with pytest.raises(ValueError, match=r"payload must have shape \(700, 2\); got None"):
        lev.Sketch(4, 0.1, payload_dim=2).update(KEYS)
    with pytest.raises(ValueError, match=r"payload must have shape \(700, 2\); got \(3, 2\)"):
        lev.Sketch(4, 0.1, payload_dim=2).update(KEYS, payload=np.ones((3, 2)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dim": 0}, ValueError, "dim must be >= 1; got 0"),
        ({"dim": 2.5}, TypeError, "dim must be an integer; got 2.5"),
        ({"dim": True}, TypeError, "dim must be an integer"),
        ({"epsilon": 0}, ValueError, r"epsilon must be in \(0, 1\]; got 0"),
        ({"epsilon": 1.5}, ValueError, "got 1.5"),
        ({"epsilon": float("nan")}, ValueError, "got nan"),
        ({"epsilon": "a"}, TypeError, "epsilon must be a real number; got 'a'"),
        ({"p": np.inf}, ValueError, "p must be positive and finite; got inf"),
        ({"p": 0}, ValueError, "p must be positive and finite; got 0"),
        ({"p": -1}, ValueError, "p must be positive and finite; got -1"),
        ({"p": np.nan}, ValueError, "p must be positive and finite; got nan"),
        ({"p": 10**400}, ValueError, "p must be positive and finite; got 1000"),
        ({"p": 1025}, ValueError, r"p must be in \[2\^-10, 2\^10\]; got 1025"),
        ({"p": 1e-4}, ValueError, r"p must be in \[2\^-10, 2\^10\]; got 0.0001"),
        ({"epsilon": 10**400}, ValueError, r"epsilon must be in \(0, 1\]; got 1000"),
        ({"epsilon": -(10**400)}, ValueError, r"epsilon must be in \(0, 1\]; got -1000"),
        ({"dim": 10**30}, ValueError, r"dim must be at most 2\^20; got 1000"),
        ({"decay": 0}, ValueError, r"decay must be in \(0, 1\]; got 0"),
        ({"decay": 1.1}, ValueError, r"decay must be in \(0, 1\]; got 1.1"),
        ({"decay": "a"}, TypeError, "decay must be a real number; got 'a'"),
        ({"heads": (2, 0)}, ValueError, "heads must be >= 1; got 0"),
        ({"heads": 2}, TypeError, "heads must be a tuple of integers; got 2"),
        ({"start": -1}, ValueError, "start must be >= 0; got -1"),
        ({"payload_dim": -1}, ValueError, "payload_dim must be >= 0; got -1"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        lev.Sketch(**{"dim": 4, "epsilon": 0.1, **arguments})


def test_a_smaller_epsilon_than_the_sketch_is_refused():
    sketch = lev.Sketch(4, 0.1).update(KEYS)
    with pytest.raises(ValueError, match=r"epsilon must be at least the sketch's 0.1, .* got 0.05"):
        sketch.universal_set(0.05)
    with pytest.raises(ValueError, match="epsilon must be at least"):
        sketch.heavy_hitters(KEYS[:1], 0.05)


@pytest.mark.parametrize(
    ("queries", "message"),
    [(KEYS[:2, :3], r"queries must have shape \(m, 4\)"), (with_bad(np.nan, 3), "queries must be finite; row 3")],
)
def test_bad_queries_are_named(queries, message):
    sketch = lev.Sketch(4, 0.1).update(KEYS)
    with pytest.raises(ValueError, match=message):
        sketch.heavy_hitters(queries)
    with pytest.raises(ValueError, match=message):
        sketch.normalizer(queries)


def test_a_width_that_does_not_hold_the_ids_is_refused():
    with pytest.raises(ValueError, match="width must be >= 124; got 100"):
        lev.Sketch(4, 0.1).update(KEYS).heavy_hitters(KEYS[:1], width=100)


# -- ids and merging -------------------------------------------------------------------------------------------


def test_ids_run_on_from_the_largest_seen():
    sketch = lev.Sketch(1, 0.01, start=10).update([[1.0]])
    sketch.update([[1.0], [1.0]], indices=[99, 50]).update([[1.0]])
    assert sketch.universal_set().indices.tolist() == [10, 50, 99, 100]
    assert sketch.heavy_hitters([[2.0]]).shape == (1, 101)
    assert sketch.heavy_hitters([[2.0]], width=500).shape == (1, 500)


def test_merging_takes_the_larger_epsilon():
    left, right = lev.Sketch(4, 0.1).update(KEYS[:300]), lev.Sketch(4, 0.2, start=300).update(KEYS[300:])
    assert left.merge(right).epsilon == 0.2
    assert left.universal_set().indices.tolist() == [123]


def test_merged_ids_go_on_after_the_largest_and_are_known():
    left, right = lev.Sketch(4, 0.1).update(KEYS[:300]), lev.Sketch(4, 0.1, start=300).update(KEYS[300:])
    left.merge(right)
    with pytest.raises(ValueError, match="has seen already"):
        left.merge(lev.Sketch(4, 0.1, start=650).update(KEYS[:5]))
    assert left.update(KEYS[:1] * 1e3).universal_set().indices.tolist() == [123, 700]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda one: lev.Sketch(5, 0.1), "other has dim=5; merging needs dim=4"),
        (lambda one: lev.Sketch(4, 0.1, intercept=True), "other has intercept=True"),
        (lambda one: lev.Sketch(4, 0.1, payload_dim=1), "other has payload_dim=1"),
        (lambda one: one, "this sketch itself or its copy"),
        (copy.copy, "this sketch itself or its copy"),
        (copy.deepcopy, "this sketch itself or its copy"),
        (lambda one: pickle.loads(pickle.dumps(one)), "has seen already"),
        (lambda one: lev.Sketch(4, 0.1).update(KEYS[:1]), "has seen already"),
        (lambda one: lev.Sketch(4, 1.0, start=600).update(KEYS), "has seen already"),
        (
            lambda one: lev.Sketch(4, 0.1).update(KEYS[:1] * 1e3, indices=[123]),
            "id 123, which this sketch has seen already; give each its own start",
        ),
    ],
)
def test_a_refused_merge_changes_neither_sketch(other, message):
    one = lev.Sketch(4, 0.1).update(KEYS)
    other = other(one)
    before = state(one), state(other)
    with pytest.raises(ValueError, match=message):
        one.merge(other)
    assert (state(one), state(other)) == before


def test_merge_refuses_what_is_no_sketch():
    with pytest.raises(TypeError, match="other must be a Sketch; got list"):
        lev.Sketch(4, 0.1).merge([])
    with pytest.raises(ValueError, match="sketches must hold at least one sketch"):
        lev.merge([])


# -- what is read ----------------------------------------------------------------------------------------------


def test_an_empty_sketch_is_empty():
    sketch = lev.Sketch(3, 0.2)
    found = sketch.universal_set()
    assert (len(found), found.omitted, found.exact, found.count, sketch.rank, sketch.retained) == (0, 0, True, 0, 0, 0)
    assert found.keys.shape == (0, 3)
    lower, upper = sketch.normalizer([[1.0, 2.0, 3.0]])
    assert lower.tolist() == upper.tolist() == [0]
    assert sketch.heavy_hitters([[1.0, 2.0, 3.0]]).shape == (1, 0)
    assert lev.Sketch.from_bytes(sketch.to_bytes()) == sketch
    assert lev.universal_set(np.zeros((0, 3)), 0.2).indices.tolist() == []
    assert sketch.update(np.zeros((0, 3))).count == 0


def test_the_normalizer_brackets_the_sum():
    sketch = lev.Sketch(4, 0.1).update(KEYS)
    queries = RNG.standard_normal((20, 4)) * 10.0 ** np.arange(-10, 10)[:, None]
    lower, upper = sketch.normalizer(queries)
    truth = ((queries @ KEYS.T) ** 2).sum(axis=1)
    assert np.all(lower <= truth * (1 + 1e-14))
    assert np.all(truth * (1 - 1e-14) <= upper)
    np.testing.assert_allclose(lower, upper, rtol=2e-9)


def test_the_universal_set_holds_what_it_says():
    found = lev.universal_set(KEYS, 0.1)
    assert found.indices.dtype == np.int64
    np.testing.assert_array_equal(found.keys, KEYS[found.indices])
    assert (found.epsilon, found.p, found.count, found.exact, found.payload) == (0.1, 2.0, 700, True, None)
    assert found.omitted < 0.1
    assert "1 of 700 keys" in repr(found)
    with pytest.raises(ValueError, match="k must be >= 0; got -1"):
        found.top(-1)
    with pytest.raises(TypeError, match=r"k must be an integer; got 1\.5"):
        found.top(1.5)


def test_a_key_that_rounding_leaves_undecided_is_kept_and_the_set_not_called_exact():
    turn = np.linalg.qr(RNG.standard_normal((4, 4)))[0]
    keys = RNG.standard_normal((500, 4)) * [1, 1e-3, 1e-6, 1e-10] @ turn
    scores = lev.universal_set(keys, 0.01).scores
    middle = np.sort(scores)[len(scores) // 2]
    undecided = lev.universal_set(keys, middle)
    assert not undecided.exact
    assert undecided.scores.min() == middle
    assert lev.universal_set(keys * [1, 1, 1, 0], 0.01).exact


def test_top_k_takes_the_highest_and_says_what_it_leaves():
    keys = np.diag([3.0, 2.0, 1.0]).repeat([1, 2, 4], axis=0)
    best = lev.universal_set(keys, 0.2).top(2)
    assert best.indices.tolist() == [0, 1]
    assert best.omitted == pytest.approx(0.5)
    assert len(lev.universal_set(keys, 0.2).top(99)) == 7


def test_a_sketch_is_not_hashable_and_shows_itself():
    sketch = lev.Sketch(4, 0.1).update(KEYS)
    with pytest.raises(TypeError):
        hash(sketch)
    assert repr(sketch) == "Sketch(dim=4, epsilon=0.1, p=2, count=700, retained=1)"
    assert sketch != "sketch"
    assert sketch.resolution == bounds.resolution(4)
    assert sketch.nbytes > 0


def test_memory_does_not_grow_with_the_stream():
    sketch = lev.Sketch(8, 0.02)
    block = RNG.standard_normal((20_000, 8)).astype(np.float32)
    held = []
    for _ in range(30):
        sketch.update(block)
        held.append(sum(stream.retained for stream in sketch._streams))
    assert max(held[2:]) <= 2 * bounds.max_members(8, 0.02) + sketch._block_rows()
    assert sketch.retained == 0


# -- threads ---------------------------------------------------------------------------------------------------


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    keys = RNG.standard_normal((70_000, 32)).astype(np.float32)
    monkeypatch.setattr(threads, "cores", lambda: 1)
    alone = lev.Sketch(32, 0.001).update(keys).to_bytes()
    monkeypatch.setattr(threads, "cores", lambda: 2)
    assert lev.Sketch(32, 0.001).update(keys).to_bytes() == alone


def test_blas_threads_are_given_back_after_updates_in_parallel():
    from concurrent.futures import ThreadPoolExecutor

    import threadpoolctl

    def blas_threads():
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]

    before = blas_threads()
    keys = RNG.standard_normal((40_000, 16)).astype(np.float32)
    with ThreadPoolExecutor(4) as pool:
        sketches = list(pool.map(lambda _: lev.Sketch(16, 0.1).update(keys), range(8)))
    assert all(sketch == sketches[0] for sketch in sketches)
    assert blas_threads() == before


def test_tasks_run_on_one_thread_of_every_blas():
    code = """
import numpy as np, threadpoolctl, lev
from lev import backend
def pools(_):
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
before = backend.run(pools, range(2))
lev.Sketch(4, 0.1).update(np.eye(4)).universal_set()  # loads what it computes with
(found, _), free = backend.run(pools, range(2)), pools(0)
assert len(found) == len(free) == len(before[0]) and set(found) == {1} and max(free) > 1, (before, found, free)
"""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    if threads.cores() < 2:
        pytest.skip("one core")
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_worker_has_threads_of_its_own():
    import multiprocessing

    keys = RNG.standard_normal((40_000, 16)).astype(np.float32)
    wanted = lev.Sketch(16, 0.1).update(keys).to_bytes()
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this platform cannot fork")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_sketched, [keys, keys]) == [wanted, wanted]


def _sketched(keys):
    return lev.Sketch(16, 0.1).update(keys).to_bytes()


def test_what_is_no_sketch_is_refused_by_name():
    with pytest.raises(TypeError, match="sketches must hold Sketch alone; got int"):
        lev.merge([1])
    with pytest.raises(TypeError, match="sketches must be sketches; got int"):
        lev.merge(5)
    with pytest.raises(TypeError, match="path must be that of a file; got int"):
        lev.load(3)


def test_masked_numbers_are_refused_and_a_mask_that_hides_nothing_is_not():
    hidden = np.ma.array(KEYS, mask=np.zeros(KEYS.shape, bool))
    assert np.array_equal(lev.leverage_scores(hidden), lev.leverage_scores(KEYS))
    hidden[3, 1] = np.ma.masked
    sketch = lev.Sketch(4, 0.1)
    for refused in (sketch.update, lev.leverage_scores, lambda keys: lev.heavy_entries(KEYS, keys, 0.1)):
        with pytest.raises(ValueError, match="keys holds masked numbers; leave the rows out, or fill them"):
            refused(hidden)
    assert sketch.count == 0


@pytest.mark.skipif(np.finfo(np.longdouble).max == np.finfo(np.float64).max, reason="there are no wider numbers here")
def test_numbers_beyond_float64_are_not_finite():
    with pytest.raises(ValueError, match="keys must be finite; row 0 holds NaN or infinity"):
        lev.Sketch(4, 0.1).update(KEYS.astype(np.longdouble) * np.longdouble(2) ** 5000)
