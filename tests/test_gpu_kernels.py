"""The CUDA sources of lev/gpu, run on the CPU by an emulator and held to their twins in NumPy and to the definition."""

import inspect

import emulated
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lev import bounds
from lev.cpu import heads as twin
from lev.gpu import heads

KINDS = ["float16", "bfloat16", "float32", "float64"]


def of_kind(rows, kind):
    """Return float64 rows rounded to ``kind``, as the kernels take them."""
    if kind == "bfloat16":
        return (rows.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return rows.astype(kind)


@st.composite
def blocks(draw, most_rows=150, widths=(1, 2, 3, 7, 16, 31, 33, 64, 65, 96, 127, 128, 129, 140)):
    """Keys (heads, n, d) of one kind: no size a multiple of a tile, some rows zero, some alike, sizes apart."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    many, n, d = draw(st.integers(1, 3)), draw(st.integers(1, most_rows)), draw(st.sampled_from(widths))
    rows = rng.standard_normal((many, n, d)) * 2.0 ** draw(st.integers(-8, 3))
    rows *= 2.0 ** rng.integers(-draw(st.sampled_from([0, 4])), 1, d)
    rows[:, rng.random(n) < draw(st.sampled_from([0, 0.3]))] = 0
    rows[:, rng.random(n) < 0.1] = rows[:, :1]
    kind = draw(st.sampled_from(KINDS))
    return of_kind(rows, kind), kind


def test_twins_have_the_same_functions_and_arguments():
    for name in ("wide", "tensor", "gram", "factor", "probe", "screen", "odds", "lewis_roots"):
        assert inspect.signature(getattr(heads, name)) == inspect.signature(getattr(twin, name)), name


@settings(max_examples=60)
@given(blocks(), st.booleans(), st.sampled_from(emulated.ORDERS))
def test_gram_is_within_its_error(block, fast, order):
    keys, kind = block
    with emulated.kernels(order) as kernels:
        found = kernels.gram(keys, kind, fast)
    rows = twin.wide(keys, kind)
    true, size = rows.swapaxes(1, 2) @ rows, np.abs(rows).swapaxes(1, 2) @ np.abs(rows)
    fast = fast and kernels.tensor(kind, keys.shape[2])
    error = bounds.batch_gram_error(keys.shape[1], fast) + bounds.dot_error(keys.shape[1])
    assert np.all(np.abs(found - true) <= error * size)
    np.testing.assert_array_equal(found, found.swapaxes(1, 2))


@settings(max_examples=40)
@given(blocks(), st.integers(0, 2**32), st.sampled_from(emulated.ORDERS))
def test_weighted_gram_and_odds_are_those_of_numpy(block, seed, order):
    keys, kind = block
    rng, (many, n, d) = np.random.default_rng(seed), keys.shape
    factors = 2.0 ** rng.uniform(-9, 9, (many, n)) * (rng.random((many, n)) < 0.9)
    matrix = np.tril(rng.standard_normal((many, d, d)))
    with emulated.kernels(order) as kernels:
        gram, odds = kernels.gram(keys, kind, bool(seed % 2), factors), kernels.odds(keys, kind, matrix)
    rows = twin.wide(keys, kind) * factors[:, :, None]
    size = np.abs(rows).swapaxes(1, 2) @ np.abs(rows)
    error = bounds.batch_gram_error(n, False) + bounds.dot_error(n + 8)
    assert np.all(np.abs(gram - rows.swapaxes(1, 2) @ rows) <= error * size)
    np.testing.assert_allclose(
        gram, twin.gram(keys, kind, False, factors), rtol=0, atol=2 * error * size.max(initial=0)
    )
    np.testing.assert_allclose(odds, twin.odds(keys, kind, matrix), rtol=1e-11)
    assert np.array_equal(odds == 0, ~(twin.wide(keys, kind) != 0).any(axis=2))
    with emulated.kernels(order) as kernels:
        least = [some.odds(keys, kind, 0 * matrix) for some in (kernels, twin)]
    assert all(set(np.unique(found)) <= {0, bounds.SMALLEST_ODDS} for found in least)


@pytest.mark.parametrize("p", [0.3, 0.5, 1.0, 1.5, 3.0, 4.0, 9.0])
def test_lewis_roots_are_those_of_numpy(p):
    odds = np.concatenate([2.0 ** np.linspace(-1000, 60, 3000), [0, np.inf, np.nan, 1]]).reshape(4, -1)
    with emulated.kernels() as kernels:
        found = kernels.lewis_roots(odds, p)
    np.testing.assert_allclose(found, twin.lewis_roots(odds, p), rtol=1e-13)
    assert np.isnan(found[-1, -2])
    some = (odds < np.inf) & (found > 1e-290)
    left = found[some] ** (2 / p) + odds[some] * found[some]
    assert np.all(left >= odds[some] * (1 - 1e-13))  # the root, or a little more
    assert np.all(left <= odds[some] * 1.1)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_long_sums_are_within_their_error(kind):
    """Numbers of one sign, whose sums lose the most: it is more than float64 would and less than was promised."""
    keys = of_kind(np.random.default_rng(0).uniform(0.01, 1, (1, 3000, 40)), kind)
    rows = twin.wide(keys, kind)
    true = rows.swapaxes(1, 2) @ rows
    with emulated.kernels() as kernels:
        fast, slow = (np.abs(kernels.gram(keys, kind, fast) / true - 1).max() for fast in (True, False))
    assert slow < 1e-14 < bounds.batch_gram_error(3000, True) / 100 < fast <= bounds.batch_gram_error(3000, True)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 5, 32, 33, 64, 100, 128, 160]), st.sampled_from(emulated.ORDERS))
def test_factor_is_that_of_numpy(seed, d, order):
    rows = np.random.default_rng(seed).standard_normal((3, d + 20, d))
    gram = rows.swapaxes(1, 2) @ rows
    gram[1, d // 2, d // 2] = -1
    with emulated.kernels(order) as kernels:
        lower, inverse = kernels.factor(gram)
    want, back = twin.factor(gram)
    for head in (0, 2):
        np.testing.assert_allclose(lower[head], want[head], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(inverse[head], back[head], rtol=1e-7, atol=1e-9)
    assert np.isnan(lower[1]).any()
    assert np.isnan(inverse[1]).any()


def sides(keys, kind, seen, scale, limit):
    """Return |X k| + pad |s k| of every row, from the definition."""
    rows = twin.wide(keys, kind)
    roots = np.sqrt(np.square(rows @ seen.swapaxes(1, 2)).sum(axis=2))
    return roots + limit[:, :1] * np.sqrt(np.square(rows * scale[:, None]).sum(axis=2))


SHARES = st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0])


@settings(max_examples=80)
@given(blocks(), st.integers(0, 2**32), SHARES, st.sampled_from(emulated.ORDERS))
def test_screen_drops_no_row_that_reaches_the_limit(block, seed, share, order):
    hold_screen(block, seed, share, order)


@settings(max_examples=60)
@given(blocks(most_rows=1), st.integers(0, 2**32), SHARES, st.sampled_from(emulated.ORDERS))
def test_screen_of_one_row_a_head(block, seed, share, order):
    hold_screen(block, seed, share, order)


def hold_screen(block, seed, share, order):
    keys, kind = block
    rng, (many, n, d) = np.random.default_rng(seed), keys.shape
    matrix = np.tril(rng.standard_normal((many, d, d)))
    matrix /= np.abs(matrix).max(axis=(1, 2), keepdims=True)
    scale = np.exp2(rng.integers(-3, 4, (many, d))).astype(np.float32)
    with emulated.kernels(order) as kernels:
        parts, seen = kernels.probe(matrix, kind)
        limit = np.full((many, 2), 0.01, np.float32)
        truth = sides(keys, kind, seen, scale, limit)
        limit[:, 1] = np.quantile(truth, share, axis=1)
        found, count, peak = kernels.screen(keys, kind, parts, scale, limit)
    assert np.abs(seen - matrix).max() <= 2.0**-16
    size = np.linalg.norm(twin.wide(keys, kind) * scale[:, None], axis=2) * np.linalg.norm(
        seen / scale[:, None], axis=(1, 2)
    ).reshape(-1, 1)
    blur = bounds.screen_error(d, kind) * size + bounds.screen_blur(d) * truth
    for head in range(many):
        rows = found[head, : count[head]]
        assert len(set(rows)) == len(rows)
        assert np.all((rows >= 0) & (rows < n))
        must = np.flatnonzero(truth[head] - blur[head] >= limit[head, 1])
        may = np.flatnonzero(truth[head] + blur[head] >= limit[head, 1])
        assert set(must) <= set(rows) <= set(may)
        short = np.setdiff1d(np.arange(n), rows)
        most = truth[head, short].max(initial=0)
        assert abs(peak[head] - most) <= blur[head].max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_seen(kind, bad):
    rows = np.random.default_rng(3).standard_normal((2, 77, 9))
    rows[1, 70, 8] = bad
    keys = of_kind(rows, kind)
    one = np.ones((2, 9), np.float32)
    with emulated.kernels() as kernels:
        for fast in (False, True):
            finite = np.isfinite(np.diagonal(kernels.gram(keys, kind, fast), axis1=1, axis2=2)).all(axis=1)
            assert finite.tolist() == [True, False]
            assert not np.isfinite(kernels.gram(keys, kind, fast, np.ones((2, 77)))[1]).all()
        assert not np.isfinite(kernels.odds(keys, kind, np.stack([np.eye(9)] * 2))[1, 70])
        parts, _ = kernels.probe(np.stack([np.eye(9)] * 2), kind)
        found, count, _ = kernels.screen(keys, kind, parts, one, np.array([[0, 1e9]] * 2, np.float32))
    assert count.tolist() == [0, 1]
    assert found[1, 0] == 70


BREAKS = [
    ("gram", "rows 2r + 1 left out", ("j < 2; j++)\n        ahead", "j < 1; j++)\n        ahead")),
    ("gram", "the wrong half of a fragment", ("i / 4 * 16 + i % 2 * 8]", "i / 4 * 16 + i % 2 * 4]")),
    (
        "gram",
        "no barrier before the next tile",
        ("    __syncthreads();\n    load(start + TILE);", "    load(start + TILE);"),
    ),
    ("gram", "one row past the slice", ("row + j < last ?", "row + j < n ?")),
    ("gram", "the upper triangle is not written", ("partial[column * d + row] =", "partial[row * d + column] =")),
    ("screen", "a probe cut too soon", ("step * 16 > block * 8 + 7", "step * 16 >= block * 8 + 7 - 16")),
    ("screen", "half of the probe left out", ("int part = 0; part < 2", "int part = 1; part < 2")),
    ("screen", "rows of a group exchanged", ("row = start + quarter * 8 + group", "row = start + group * 4 + quarter")),
    ("screen", "all lanes in one slot", ("found.rows[base + __popc(mask & ((1u << lane) - 1))]", "found.rows[base]")),
    ("screen", "NaN is dropped", ("real && !(bound < least)", "real && bound >= least")),
    (
        "screen",
        "a lane's share of the sum left out",
        ("for (int step = 1; step < 4; step *= 2)", "for (int step = 1; step < 2; step *= 2)"),
    ),
    ("one", "a warp's share left out", ("sums[2] + sums[4] + sums[6]", "sums[2] + sums[4]")),
    ("one", "a component twice", ("row = warp; row < d; row += 4", "row = warp; row < d; row += 3")),
    ("one", "the diagonal left out", ("column = lane; column <= row", "column = lane; column < row")),
    ("one", "no barrier before the sums", ("= norm;\n  __syncthreads();", "= norm;")),
    ("one", "half of the probe", ("+ widen(T{parts[(D + row) * D + column]})", "")),
    ("weighted", "every row with the factor of the first", ("blockIdx.z * n + row]", "blockIdx.z * n]")),
    ("weighted", "factors of the first head", ("factors[(i64)blockIdx.z * n + row]", "factors[row]")),
    ("odds", "an eighth of the columns left out", ("k < DEEP; k++) {", "k < DEEP - 2; k++) {")),
    ("odds", "a lane's share left out", ("step = 1; step < 16; step *= 2", "step = 1; step < 8; step *= 2")),
    ("odds", "small ones are zero", ("some && square[i] < 0x1p-1000 ? 0x1p-1000 : square[i]", "square[i]")),
    ("odds", "rows of the first head", ("keys += (i64)head * n * d, probe +=", "probe +=")),
    ("factor", "column k kept", ("(j == k ? 0 : at(i, j))", "at(i, j)")),
]


def hold_one_block(name, kernels):
    """Hold one kernel to its twin on one block; AssertionError is what a broken one is to raise."""
    rng = np.random.default_rng(5)
    keys = rng.standard_normal((2, 600, 100)).astype(np.float16)
    gram = twin.gram(keys, "float16", False)
    if name == "gram":
        np.testing.assert_allclose(kernels.gram(keys, "float16", True), gram, atol=1e-2)
    elif name == "weighted":
        factors = 2.0 ** rng.uniform(-3, 3, (2, 600))
        np.testing.assert_allclose(
            kernels.gram(keys, "float16", False, factors), twin.gram(keys, "float16", False, factors), atol=1e-8
        )
    elif name == "odds":
        matrix = np.tril(rng.uniform(-1, 1, (2, 100, 100)))
        for size in (1.0, 1e-160):
            given = keys, "float16", matrix * size
            np.testing.assert_allclose(kernels.odds(*given), twin.odds(*given), rtol=1e-11)
    elif name == "factor":
        np.testing.assert_allclose(kernels.factor(gram)[1], twin.factor(gram)[1], atol=1e-9)
    else:
        matrix, one, limit = np.tril(rng.uniform(-1, 1, (2, 100, 100))), np.ones((2, 100), np.float32), np.zeros((2, 2))
        keys[0, 7, 3] = np.nan
        if name == "one":
            hold_first_rows(kernels, keys, matrix, one)
            return
        truth = sides(keys, "float16", matrix, one, limit)
        limit[:, 1] = np.nanquantile(truth, 0.9, axis=1)
        parts, _ = kernels.probe(matrix, "float16")
        found, count, _ = kernels.screen(keys, "float16", parts, one, limit.astype(np.float32))
        for head in range(2):
            near = np.abs(truth[head] / limit[head, 1] - 1) < 1e-4
            got = np.zeros(600, bool)
            got[found[head, : count[head]]] = True
            assert count[head] == got.sum()
            assert np.all((got == ~(truth[head] < limit[head, 1])) | near)


def hold_first_rows(kernels, keys, matrix, one):
    """Hold the kernel for one row a head by limits just above and just below what it is to find."""
    truth = sides(keys, "float16", matrix, one, np.zeros((2, 2)))
    parts, _ = kernels.probe(matrix, "float16")
    for row in range(4):
        for times, passes in ((1 - 1e-5, 1), (1 + 1e-5, 0)):
            limit = np.stack([np.zeros(2), truth[:, row] * times], axis=1).astype(np.float32)
            found, count, _ = kernels.screen(np.ascontiguousarray(keys[:, row : row + 1]), "float16", parts, one, limit)
            assert count.tolist() == [passes] * 2
            assert not passes or found.tolist() == [[0], [0]]


def hold_in_every_order(name, change=None):
    for order in emulated.ORDERS:
        with emulated.kernels(order, change) as kernels:
            hold_one_block(name, kernels)


@pytest.mark.parametrize("name", ["gram", "weighted", "factor", "screen", "one", "odds"])
def test_whole_kernels_pass_what_breaks_do_not(name):
    hold_in_every_order(name)


@pytest.mark.parametrize(("name", "what", "change"), BREAKS, ids=[what for _, what, _ in BREAKS])
def test_a_broken_kernel_is_caught(name, what, change):
    assert change[0] in heads.source({"one": "screen", "odds": "lewis", "weighted": "gram"}.get(name, name)), what
    with pytest.raises((AssertionError, IndexError)):
        hold_in_every_order(name, change)
