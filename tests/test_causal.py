"""The causal sketch: after every row nothing is missed, whatever the keys and the chunks."""

import itertools
import pickle

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EPSILONS, FAMILIES, cuts, streams

import lev
from lev import bounds, causal, form, prefix, store
from lev.demo import sample
from lev.form import Form
from lev.readers import open_rows

MILD = ["gaussian", "integers", "low_rank", "repeated", "sparse"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(causal, "_SMALLEST_BLOCK", 8)
    monkeypatch.setattr(causal, "_BLOCK_PER_COLUMN", 1)


def sketch_of(keys, epsilon, positions=None, **arguments):
    sketch = lev.CausalSketch(keys.shape[1], epsilon, **arguments)
    for first, last in itertools.pairwise([0, len(keys)] if positions is None else positions):
        sketch.update(keys[first:last])
    return sketch


def seen_scores(keys, resolution):
    """Yield for each prefix the exact scores and what float64 must see of them (see test_laws)."""
    for end in range(1, len(keys) + 1):
        scores, queries = naive.leverage(keys[:end])
        blurs = [naive.blur(keys[:end], query, resolution) for query in queries]
        yield (
            scores,
            [
                score if blur < 1e-9 else max(0.0, float(score) ** 0.5 - blur) ** 2
                for score, blur in zip(scores, blurs, strict=True)
            ],
        )


def assert_causal(lives, keys, epsilon, tight=False):
    """Hold every prefix to the exact scores: nothing missed and, for mild keys, nothing extra."""
    members = np.zeros((len(keys), len(keys)), bool)
    members[:, lives.ids] = lives.mask(np.arange(len(keys)))
    for i, (scores, seen) in enumerate(seen_scores(keys, bounds.resolution(keys.shape[1]))):
        missed = [j for j in range(i + 1) if seen[j] >= epsilon and not members[i, j]]
        assert not missed, f"after row {i} keys {missed} are missed, scores {[float(scores[j]) for j in missed]}"
        assert not members[i, i + 1 :].any()
        if tight:
            assert all(scores[j] >= epsilon * (1 - 2 * bounds.PREFIX_SHARE) for j in np.flatnonzero(members[i]))


def assert_hits(found, wanted, epsilon, mild):
    """Nothing is missed and values agree; where the form is blurred an entry just below epsilon may be listed."""
    both = (found > 0) & (wanted > 0)
    np.testing.assert_allclose(found[both], wanted[both], rtol=1e-6)
    assert np.all(wanted[found == 0] <= epsilon * (1 + 1e-6))
    if mild:
        assert np.all(found[(found > 0) & (wanted == 0)] >= epsilon * (1 - 1e-6))


@settings(max_examples=120)
@given(st.data())
def test_after_every_row_nothing_is_missed(data):
    keys, epsilon = data.draw(streams(most_rows=20, most_columns=3)), data.draw(EPSILONS)
    sketch = sketch_of(keys, epsilon, data.draw(cuts(len(keys))))
    assert_causal(sketch.lifetimes(), keys, epsilon)


@settings(max_examples=50)
@given(st.data())
def test_members_of_mild_streams_are_members_after_every_row(data):
    keys, epsilon = data.draw(streams(MILD, most_rows=20, most_columns=3)), data.draw(EPSILONS)
    lives = sketch_of(keys, epsilon).lifetimes()
    assert_causal(lives, keys, epsilon, tight=True)
    assert np.array_equal(lives.ids, lives.admitted)
    for i in range(len(keys)):
        least = epsilon * (1 - 2 * bounds.PREFIX_SHARE)
        assert lives.mask([i]).sum() <= bounds.max_members(naive.rank(keys[: i + 1]), least)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_missed_in_each_family(family):
    keys = FAMILIES[family](np.random.default_rng(3), 26, 3)
    for epsilon in (0.05, 0.4):
        assert_causal(sketch_of(keys, epsilon).lifetimes(), keys, epsilon)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(4, 7), EPSILONS, st.booleans())
def test_rows_that_raise_the_rank_together_lower_no_score(seed, dim, epsilon, repeats):
    """Blocks that begin below full rank: independent rows go as one, and a dependent one among them is seen."""
    rng = np.random.default_rng(seed)
    keys = rng.integers(-3, 4, (14, dim)).astype(float)
    if repeats:
        keys[rng.permutation(14)[:4]] = keys[rng.permutation(14)[:4]]
    assert_causal(sketch_of(keys, epsilon).lifetimes(), keys, epsilon, tight=True)


def test_the_first_rows_of_full_rank_take_few_factorisations(monkeypatch):
    turns = []
    frames = form.whitening_frame
    monkeypatch.setattr(form, "whitening_frame", lambda *parts: turns.append(parts) or frames(*parts))
    keys = np.random.default_rng(1).standard_normal((40, 8))
    lives = sketch_of(keys, 0.9).lifetimes()
    assert len(turns) <= 2
    np.testing.assert_array_equal(lives.admitted[:8], np.arange(8))
    assert lives.mask([7])[0][:8].all()


def test_a_row_that_just_reaches_epsilon_is_a_member():
    """Equal rows: the last of eight scores 1/8 in its prefix, and the ones before stay with it."""
    sketch = lev.CausalSketch(1, 0.125)
    assert sketch.admit(np.ones((7, 1))).all()
    assert sketch.admit([[1.0]]).all()
    assert not sketch.admit([[1.0]]).any()
    assert sketch.lifetimes().dropped.tolist() == [8] * 8


def test_rows_that_dwarf_all_before_them_are_scored_row_by_row():
    rng = np.random.default_rng(0)
    keys = np.vstack([rng.standard_normal((18, 2)), 1e7 * rng.standard_normal((18, 2))])
    assert_causal(sketch_of(keys, 0.1).lifetimes(), keys, 0.1, tight=True)


@given(st.data())
def test_any_chunks_give_the_same_bits(data):
    keys, epsilon = data.draw(streams()), data.draw(EPSILONS)
    whole, parts = sketch_of(keys, epsilon), sketch_of(keys, epsilon, data.draw(cuts(len(keys))))
    for name in ("ids", "admitted", "dropped"):
        np.testing.assert_array_equal(getattr(whole.lifetimes(), name), getattr(parts.lifetimes(), name))
    for name in ("indices", "keys", "scores", "omitted", "exact", "count"):
        np.testing.assert_array_equal(getattr(whole.universal_set(), name), getattr(parts.universal_set(), name))


@given(st.data())
def test_reads_change_nothing(data):
    keys, epsilon = data.draw(streams()), data.draw(EPSILONS)
    read, unread = lev.CausalSketch(keys.shape[1], epsilon), sketch_of(keys, epsilon)
    for position in data.draw(cuts(len(keys)))[1:]:
        read.update(keys[read.count : position]).lifetimes()
        read.heavy_hitters(keys[:2])
        assert read.retained <= read.count
    np.testing.assert_array_equal(read.lifetimes().dropped, unread.lifetimes().dropped)
    np.testing.assert_array_equal(read.universal_set().scores, unread.universal_set().scores)


@settings(max_examples=50)
@given(st.data())
def test_the_cache_is_the_universal_set_of_the_rows_so_far(data):
    keys, epsilon = data.draw(streams(MILD)), data.draw(EPSILONS)
    sketch = lev.CausalSketch(keys.shape[1], epsilon)
    for position in data.draw(cuts(len(keys)))[1:]:
        found = sketch.update(keys[sketch.count : position]).universal_set()
        scores = naive.leverage(keys[:position])[0]
        assert found.exact
        least = epsilon * (1 - 2 * bounds.margin(keys.dtype))
        assert {j for j, score in enumerate(scores) if score >= epsilon} <= set(found.indices.tolist())
        assert all(least <= scores[j] <= upper for j, upper in zip(found.indices, found.scores, strict=True))
        assert max((s for j, s in enumerate(scores) if j not in found.indices), default=0) <= found.omitted


@settings(max_examples=60)
@given(st.data())
def test_admit_is_row_exact_and_nothing_is_missed(data):
    keys, epsilon = data.draw(streams(most_rows=20, most_columns=3)), data.draw(EPSILONS)
    sketch, answers = lev.CausalSketch(keys.shape[1], epsilon), []
    for position in data.draw(cuts(len(keys)))[1:]:
        block = np.arange(sketch.count, position)
        if data.draw(st.booleans()):
            answers.append((block, sketch.admit(keys[block])))
        else:
            sketch.update(keys[block])
    lives = sketch.lifetimes()
    for block, admitted in answers:
        np.testing.assert_array_equal(admitted, np.isin(block, lives.ids))
    assert_causal(lives, keys, epsilon)


@settings(max_examples=60)
@given(st.data())
def test_each_query_is_answered_over_its_own_prefix(data):
    mild, epsilon = data.draw(st.booleans()), data.draw(EPSILONS)
    keys = data.draw(streams(MILD if mild else tuple(FAMILIES)))
    queries = np.random.default_rng(1).standard_normal(keys.shape) * np.abs(keys).max(initial=1e-300)
    queries[::2] = keys[::2]
    sketch = lev.CausalSketch(keys.shape[1], epsilon)
    for first, last in itertools.pairwise(data.draw(cuts(len(keys)))):
        if data.draw(st.booleans()):
            sketch.update(keys[first:last])
            continue
        found = sketch.attend(keys[first:last], queries[first:last])
        assert found.shape == (last - first, last if last > first else found.shape[1])
        assert found.has_sorted_indices
        for i in range(first, last):
            wanted = lev.heavy_entries(queries[i : i + 1], keys[: i + 1], epsilon).toarray()[0]
            mine = found[[i - first]].toarray()[0]
            assert not mine[i + 1 :].any()
            assert_hits(mine[: i + 1], wanted, epsilon, mild)


@given(streams(), EPSILONS)
def test_heavy_hitters_stand_at_the_last_row(keys, epsilon):
    sketch = sketch_of(keys, epsilon)
    queries = keys[:5] if len(keys) else np.ones((2, keys.shape[1]))
    found, wanted = sketch.heavy_hitters(queries).toarray(), lev.heavy_entries(queries, keys, epsilon).toarray()
    assert_hits(found, wanted, epsilon, False)


def test_ids_payload_and_dtype_travel():
    rng = np.random.default_rng(0)
    keys, values = rng.standard_normal((50, 3)).astype(np.float32), np.arange(100.0).reshape(50, 2)
    sketch = lev.CausalSketch(3, 0.2, payload_dim=2)
    sketch.update(keys[:20], np.arange(100, 120), values[:20]).update(keys[20:], payload=values[20:])
    found = sketch.universal_set()
    assert found.keys.dtype == np.float32
    np.testing.assert_array_equal(found.payload, values[found.indices - 100])
    lives = sketch.lifetimes()
    np.testing.assert_array_equal(lives.ids, lives.admitted + 100)
    twin = sketch.copy()
    twin.update(keys, payload=values)
    assert (sketch.count, twin.count) == (50, 100)


def test_torch_tensors_come_back_as_torch_tensors():
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    sketch = lev.CausalSketch(3, 0.2)
    kept = sketch.admit(torch.eye(3, dtype=torch.bfloat16))
    assert kept.dtype == torch.bool
    assert kept.all()
    assert sketch.universal_set().keys.dtype == torch.bfloat16


# -- affine queries, heads and files -------------------------------------------------------------------------


def with_ones(keys):
    return np.hstack([keys, np.ones((len(keys), 1))])


@settings(max_examples=60)
@given(st.data())
def test_affine_queries_miss_nothing(data):
    keys, epsilon = data.draw(streams(MILD, most_rows=20, most_columns=3)), data.draw(EPSILONS)
    sketch = sketch_of(keys, epsilon, data.draw(cuts(len(keys))), intercept=True)
    assert_causal(sketch.lifetimes(), with_ones(keys), epsilon, tight=True)
    queries = np.random.default_rng(2).standard_normal((3, keys.shape[1] + 1))
    wanted = lev.heavy_entries(queries, with_ones(keys), epsilon).toarray()
    assert_hits(sketch.heavy_hitters(queries).toarray(), wanted, epsilon, False)
    found = lev.CausalSketch(keys.shape[1], epsilon, intercept=True).attend(keys, np.ones((len(keys), 1)) * queries[:1])
    for i in range(len(keys)):
        wanted = lev.heavy_entries(queries[:1], with_ones(keys[: i + 1]), epsilon).toarray()[0]
        assert_hits(found[[i]].toarray()[0, : i + 1], wanted, epsilon, False)


def many_heads(data, most_rows=24):
    n, d = data.draw(st.integers(1, most_rows)), data.draw(st.integers(1, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    names = data.draw(st.lists(st.sampled_from(list(FAMILIES)), min_size=2, max_size=3))
    return np.stack([np.resize(FAMILIES[name](rng, n, d), (n, d)) for name in names])


@settings(max_examples=60)
@given(st.data())
def test_each_head_is_a_sketch_of_its_own(data):
    keys, epsilon = many_heads(data), data.draw(EPSILONS)
    (heads, n, d), intercept = keys.shape, data.draw(st.booleans())
    padded = np.zeros((heads, n), bool)
    if not intercept:
        padded[0] = np.random.default_rng(n).random(n) < 0.3
    blank = np.where(padded[:, :, None], 0, keys)
    arguments = {"intercept": intercept, "payload_dim": 1}
    together = lev.CausalSketch(d, epsilon, heads=(heads,), **arguments)
    alone = [lev.CausalSketch(d, epsilon, **arguments) for _ in range(heads)]
    for first, last in itertools.pairwise(data.draw(cuts(n))):
        block, rows = slice(first, last), keys[:, first:last]
        answer = data.draw(st.sampled_from(["update", "admit", "attend"]))
        more = [rows, blank[:, block]] if answer == "attend" else [rows]
        found = getattr(together, answer)(*more, payload=rows[:, :, :1], mask=padded[:, block])
        for head, sketch in enumerate(alone):
            own = [part[head] for part in ([blank[:, block], blank[:, block]] if len(more) == 2 else [blank[:, block]])]
            wanted = getattr(sketch, answer)(*own, payload=rows[head, :, :1])
            if answer == "admit":
                np.testing.assert_array_equal(found[head], wanted)
            if answer == "attend":
                np.testing.assert_array_equal(found[head].toarray(), wanted.toarray())
    for head, (sketch, found) in enumerate(zip(alone, together.universal_set(), strict=True)):
        wanted = sketch.universal_set()
        assert found.count == n - padded[head].sum()
        for name in ("indices", "keys", "scores", "payload", "omitted", "exact"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
        np.testing.assert_array_equal(together.lifetimes()[head].dropped, sketch.lifetimes().dropped)
    assert together.retained == sum(sketch.retained for sketch in alone)
    indices, scores, there = together.stack(3)
    for head, found in enumerate(together.universal_set()):
        assert set(indices[head][there[head]]) == set(found.top(3).indices)
        assert np.all(np.diff(scores[head]) <= 0)


def test_grouped_queries_share_the_cache_of_their_key_head():
    keys, queries = RNG.standard_normal((2, 40, 3)), RNG.standard_normal((4, 40, 3))
    sketch = lev.CausalSketch(3, 0.2, heads=(2,))
    found = sketch.attend(keys, queries)
    for head, hits in enumerate(found):
        alone = lev.CausalSketch(3, 0.2).attend(keys[head // 2], queries[head])
        np.testing.assert_array_equal(hits.toarray(), alone.toarray())
    assert len(sketch.heavy_hitters(queries[:, :2])) == 4


@settings(max_examples=60)
@given(st.data())
def test_a_saved_sketch_goes_on(data):
    keys, epsilon = many_heads(data), data.draw(EPSILONS)
    heads, n, d = keys.shape
    sketch = lev.CausalSketch(d, epsilon, heads=(heads,), start=7, payload_dim=1)
    for first, last in itertools.pairwise(data.draw(cuts(n))):
        sketch.update(keys[:, first:last], payload=keys[:, first:last, :1])
        read = lev.CausalSketch.from_bytes(sketch.to_bytes())
        assert read == sketch == pickle.loads(pickle.dumps(sketch))
        for one, other in zip(read.lifetimes(), sketch.lifetimes(), strict=True):
            for name in ("ids", "admitted", "dropped"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        sketch = read
    for lives, rows in zip(sketch.lifetimes(), keys, strict=True):
        np.testing.assert_array_equal(lives.ids, lives.admitted + 7)
        assert_causal(causal.Lifetimes(lives.ids - 7, lives.admitted, lives.dropped), rows, epsilon)


def test_files(tmp_path):
    sketch = lev.CausalSketch(3, 0.1).update(KEYS)
    sketch.save(tmp_path / "a.lev")
    assert lev.load(tmp_path / "a.lev") == sketch
    assert sketch != lev.CausalSketch(3, 0.1)
    with pytest.raises(lev.SketchFileError, match="holds a CausalSketch; expected a Sketch"):
        lev.Sketch.from_bytes(sketch.to_bytes())
    with pytest.raises(lev.SketchFileError, match="holds a Sketch; expected a CausalSketch"):
        lev.CausalSketch.from_bytes(lev.Sketch(3, 0.1).to_bytes())


@pytest.mark.parametrize(
    "change",
    [
        lambda fields, tensors: fields.update(dim=4),
        lambda fields, tensors: fields.update(masked=[-1]),
        lambda fields, tensors: fields.update(masked=[]),
        lambda fields, tensors: fields.update(next=-1),
        lambda fields, tensors: fields["streams"][0].update(dropped=-1.0),
        lambda fields, tensors: fields["streams"][0].pop("rows"),
        lambda fields, tensors: tensors.update({"0.since": tensors["0.since"][1:]}),
        lambda fields, tensors: tensors.update({"0.since": tensors["0.since"] / 2}),
        lambda fields, tensors: tensors.update({"0.ended": tensors["0.ended"][:2]}),
        lambda fields, tensors: tensors.update({"0.gram": -tensors["0.gram"]}),
        lambda fields, tensors: tensors.update({"0.keys": tensors["0.keys"] * np.nan}),
        lambda fields, tensors: tensors.update({"9.keys": tensors["0.keys"]}),
        lambda fields, tensors: tensors.pop("0.ended"),
    ],
)
def test_a_hostile_file_is_refused(change):
    fields, tensors = store.unpack(lev.CausalSketch(3, 0.1).update(KEYS).to_bytes())
    change(fields, tensors)
    with pytest.raises(lev.SketchFileError):
        lev.CausalSketch.from_bytes(store.pack(fields, tensors))


RNG = np.random.default_rng(11)
KEYS = np.random.default_rng(0).standard_normal((30, 3))
NAN = np.where(np.arange(90).reshape(30, 3) == 44, np.nan, KEYS)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.update(NAN), ValueError, "keys must be finite; row 14 holds"),
        (lambda s: s.update(KEYS[:, :2]), ValueError, r"keys must have shape \(m, 3\); got \(30, 2\)"),
        (lambda s: s.update(KEYS[:2], [0, 40]), ValueError, "indices holds id 0, which this sketch has seen already"),
        (lambda s: s.update(KEYS, payload=KEYS), ValueError, r"payload must have shape \(30, 0\); got \(30, 3\)"),
        (lambda s: s.admit(NAN), ValueError, "keys must be finite; row 14 holds"),
        (lambda s: s.attend(KEYS, NAN), ValueError, "queries must be finite; row 14 holds"),
        (lambda s: s.attend(KEYS, KEYS[:2]), ValueError, "queries must have one row for each of the 30 keys; got 2"),
        (lambda s: s.attend(KEYS[:1], "q"), TypeError, "queries must be real numbers"),
        (lambda s: s.update(KEYS[None]), ValueError, r"keys must have shape \(m, 3\); got \(1, 30, 3\)"),
        (lambda s: s.update(KEYS, mask=KEYS), TypeError, "mask must be bool"),
        (lambda s: s.stack(-1), ValueError, "k must be >= 0"),
        (lambda s: s.merge(s.copy()), ValueError, "causal sketches do not merge"),
        (lambda s: s.universal_set(0.05), ValueError, "epsilon must be at least the sketch's 0.1"),
        (lambda s: s.heavy_hitters(KEYS[:, :1]), ValueError, r"queries must have shape \(m, 3\)"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(call, error, message):
    sketch = lev.CausalSketch(3, 0.1).update(KEYS)
    before = sketch.to_bytes()
    with pytest.raises(error, match=message):
        call(sketch)
    assert sketch.to_bytes() == before
    twin = lev.CausalSketch(3, 0.1).update(KEYS).update(KEYS)
    np.testing.assert_array_equal(sketch.update(KEYS).lifetimes().dropped, twin.lifetimes().dropped)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 0.1), ValueError, "dim must be >= 1"),
        ((3, 0.0), ValueError, "epsilon must be in"),
        ((3, "x"), TypeError, "epsilon must be a real number"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(ValueError, match="heads must be >= 1"):
        lev.CausalSketch(3, 0.1, heads=(0,))
    with pytest.raises(error, match=message):
        lev.CausalSketch(*arguments)


def test_a_pad_that_is_too_small_would_be_seen():
    """The block formula against longdouble downdates, at the energies where it is still used."""
    rng = np.random.default_rng(5)
    worst = 0.0
    for size in (1.0, 10.0, 100.0):
        base, block = rng.standard_normal((40, 6)), size * rng.standard_normal((30, 6))
        judge = Form.empty(6).add(base, None, 1.0)[0].factor()
        z, _ = prefix._whitened(judge, block)
        lower = np.linalg.cholesky(np.eye(30) + z @ z.T)
        last = 1 - np.square(np.linalg.inv(lower)).sum(axis=0)
        truth = naive.orthonormal_scores(np.vstack([base, block]))[40:]
        allowed = bounds.prefix_error(36, 30 + np.square(z).sum())
        worst = max(worst, np.abs(last - truth).max() / allowed)
    assert worst < 1


# -- real keys -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2():
    with sample() as path:
        return np.concatenate(list(open_rows(path, tensor="key")))


@pytest.mark.parametrize("block", [1, 4])
def test_real_keys_after_every_row(smollm2, monkeypatch, block):
    """All scores of every prefix of the first rows, by float64 Cholesky from the definition."""
    monkeypatch.setattr(causal, "_SMALLEST_BLOCK", 64)
    monkeypatch.setattr(causal, "_BLOCK_PER_COLUMN", block)
    keys, epsilon = smollm2[:400], 0.3
    lives = sketch_of(keys, epsilon, [0, 100, 333, 400]).lifetimes()
    wide = keys.astype(np.float64)
    for i in range(64, len(keys)):
        root = np.linalg.cholesky(wide[: i + 1].T @ wide[: i + 1])
        scores = np.square(np.linalg.solve(root, wide[: i + 1].T)).sum(axis=0)
        members = lives.ids[lives.mask([i])[0]]
        assert set(np.flatnonzero(scores >= epsilon * (1 + 1e-6))) <= set(members)
        assert np.all(scores[members] >= epsilon * (1 - 2 * bounds.PREFIX_SHARE))
    assert len(lives) > 200


@pytest.mark.parametrize("file", ["shipped", "shared"])
def test_all_real_keys_and_their_lifetimes(file, smollm2, monkeypatch, request):
    """8192 rows, one Sherman-Morrison step each; only rows that are members are followed, for scores only fall."""
    monkeypatch.setattr(causal, "_SMALLEST_BLOCK", 64)
    monkeypatch.setattr(causal, "_BLOCK_PER_COLUMN", 4)
    keys, epsilon = smollm2, 0.05
    if file == "shared":
        path = request.getfixturevalue("shared") / "smollm2_pydoc.safetensors"
        keys = np.concatenate(list(open_rows(path, tensor="layer4.key", head=1)))[:3000]
    lives = lev.CausalSketch(64, epsilon).update(keys).lifetimes()
    entered, left = np.full(len(keys), -1), np.full(len(keys), -1)
    entered[lives.ids], left[lives.ids] = lives.admitted, np.minimum(lives.dropped, len(keys))
    wide = keys.astype(np.float64)
    inverse = np.linalg.inv(wide[:200].T @ wide[:200])
    following = np.flatnonzero((entered >= 0) & (entered < 200) & (left > 199))
    for i in range(200, len(keys)):
        along = inverse @ wide[i]
        inverse -= np.outer(along, along / (1 + wide[i] @ along))
        if i % 64 == 0:
            inverse = np.linalg.inv(wide[: i + 1].T @ wide[: i + 1])
        following = np.append(following, i)
        scores = np.einsum("ij,ij->i", wide[following] @ inverse, wide[following])
        members = lives.mask([i])[0]
        assert members.sum() <= 64 / epsilon
        inside = (entered[following] >= 0) & (entered[following] <= i) & (left[following] > i)
        assert np.all(inside[scores >= epsilon * (1 + 1e-6)])
        assert np.all(scores[inside] >= epsilon * (1 - 2 * bounds.PREFIX_SHARE))
        following = following[scores >= epsilon * (1 - 2 * bounds.PREFIX_SHARE)]
    assert len(lives) > 600


def test_masks_are_of_positions():
    life = lev.CausalSketch(2, 0.5).update(np.eye(2)).lifetimes()
    assert life.mask([0, 1]).tolist() == [[True, False], [True, True]]
    for wrong in (np.eye(2), 99, [0.5]):
        with pytest.raises(TypeError, match="positions must be a vector of integers"):
            life.mask(wrong)
