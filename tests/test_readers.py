"""Readers: every format gives the same rows, in blocks, and says plainly what is wrong with a bad source."""

import io
import itertools
import json
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from lev.readers import open_rows

ROWS = np.random.default_rng(0).standard_normal((103, 5)).astype(np.float32)
HEADS = np.random.default_rng(1).standard_normal((2, 3, 11, 4))


def together(reader):
    return np.concatenate(list(reader))


def bfloat_file(path, rows):
    """Write rows as bfloat16, by hand: NumPy has no such dtype."""
    half = (np.ascontiguousarray(rows, np.float32).view(np.uint32) >> 16).astype("<u2")
    entry = {"dtype": "BF16", "shape": list(rows.shape), "data_offsets": [0, half.nbytes]}
    header = json.dumps({"__metadata__": {"a": "b"}, "key": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + half.tobytes())
    return (half.astype(np.uint32) << 16).view(np.float32)


def written(path, rows):
    """Write rows in the format of the suffix."""
    if path.suffix == ".npy":
        np.save(path, rows)
    elif path.suffix == ".npz":
        np.savez_compressed(path, key=rows)
    elif path.suffix == ".safetensors":
        safetensors.numpy.save_file({"key": np.ascontiguousarray(rows)}, path)
    else:
        pa = pytest.importorskip("pyarrow")
        lists = pa.FixedSizeListArray.from_arrays(np.ascontiguousarray(rows).ravel(), rows.shape[1])
        pytest.importorskip("pyarrow.parquet").write_table(pa.table({"key": lists}), path, row_group_size=17)
    return path


@pytest.fixture
def pipe(monkeypatch):
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    def feed(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Pipe(data)))

    return feed


SUFFIXES = [".npy", ".npz", ".safetensors", ".parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_come_back_in_blocks(tmp_path, suffix, dtype):
    rows = ROWS.astype(dtype)
    reader = open_rows(written(tmp_path / f"a{suffix}", rows), block_rows=16)
    blocks = list(reader)
    assert (reader.rows, reader.dim, reader.first) == (103, 5, 0)
    assert sum(map(len, blocks)) == 103
    assert max(map(len, blocks)) <= 16
    assert blocks[0].dtype == (np.float32 if dtype == np.float16 else dtype)
    assert np.array_equal(np.concatenate(blocks), rows)
    assert np.array_equal(together(reader), rows), "a reader can be read twice"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_range_of_rows(tmp_path, suffix):
    path = written(tmp_path / f"a{suffix}", ROWS)
    for first, end in itertools.product([0, 1, 16, 17, 35, 103], [17, 34, 50, 103, None]):
        if end is not None and end < first:
            continue
        reader = open_rows(path, rows=(first, end), block_rows=8)
        blocks = [np.zeros((0, 5)), *reader]
        assert (reader.rows, reader.first) == (len(ROWS[first:end]), first)
        assert np.array_equal(np.concatenate(blocks), ROWS[first:end])


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
@pytest.mark.parametrize("head", range(6))
def test_heads_count_in_c_order(tmp_path, suffix, head):
    reader = open_rows(written(tmp_path / f"a{suffix}", HEADS), head=head, rows=(2, 9), block_rows=3)
    assert np.array_equal(together(reader), HEADS.reshape(6, 11, 4)[head, 2:9])


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_fortran_order(tmp_path, suffix):
    assert np.array_equal(together(open_rows(written(tmp_path / f"a{suffix}", np.asfortranarray(ROWS)))), ROWS)
    path = written(tmp_path / f"b{suffix}", np.asfortranarray(HEADS))
    assert np.array_equal(together(open_rows(path, head=4, rows=(1, 8), block_rows=3)), HEADS[1, 1, 1:8])


def test_big_endian_and_integers(tmp_path):
    np.save(tmp_path / "a.npy", ROWS.astype(">f4"))
    np.save(tmp_path / "b.npy", np.arange(12).reshape(4, 3))
    assert np.array_equal(together(open_rows(tmp_path / "a.npy")), ROWS)
    assert together(open_rows(tmp_path / "b.npy")).tolist() == np.arange(12).reshape(4, 3).tolist()


def test_bfloat16_widens_without_loss(tmp_path):
    wide = bfloat_file(tmp_path / "a.safetensors", ROWS)
    got = together(open_rows(tmp_path / "a.safetensors", block_rows=10))
    assert got.dtype == np.float32
    assert np.array_equal(got, wide)
    assert np.allclose(got, ROWS, rtol=2**-7)


def test_float_columns_of_parquet(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({f"x{i}": ROWS[:, i] for i in range(5)}), tmp_path / "a.parquet", row_group_size=40)
    assert np.array_equal(together(open_rows(tmp_path / "a.parquet", rows=(30, 90))), ROWS[30:90])
    assert np.array_equal(together(open_rows(tmp_path / "a.parquet", tensor="x3")), ROWS[:, 3:4])


def test_standard_input(pipe):
    pipe(ROWS.tobytes())
    reader = open_rows("-", dim=5, block_rows=10)
    assert (reader.rows, reader.dim) == (None, 5)
    assert np.array_equal(together(reader), ROWS)
    pipe(ROWS.tobytes())
    assert np.array_equal(together(open_rows("-", dim=5, rows=(3, 20), block_rows=8)), ROWS[3:20])


@pytest.mark.parametrize(
    ("data", "rows", "message"),
    [
        (b"", (0, None), "standard input is empty; expected little-endian float32 rows of 5 numbers"),
        (ROWS.tobytes()[:-4], (0, None), "standard input: row 102 is cut off: it has 16 of 20 bytes"),
        (ROWS.tobytes(), (100, 110), "standard input: the rows end after 103; expected 110"),
    ],
)
def test_standard_input_that_ends_badly(pipe, data, rows, message):
    pipe(data)
    with pytest.raises(ValueError, match=f"^{message}$"):
        list(open_rows("-", dim=5, rows=rows))


@pytest.mark.parametrize("dim", [1, 5])
def test_a_file_of_numpy_on_standard_input_is_not_taken_for_rows(pipe, tmp_path, dim):
    np.save(tmp_path / "a.npy", ROWS)
    pipe((tmp_path / "a.npy").read_bytes()[: 20 * 30])
    with pytest.raises(ValueError, match=r"^standard input: a \.npy file stands here; expected its rows alone"):
        list(open_rows("-", dim=dim))


def test_blocks_are_fresh_and_writable(tmp_path):
    first, second = itertools.islice(open_rows(written(tmp_path / "a.npy", ROWS), block_rows=10), 2)
    first[:] = 0
    assert np.array_equal(second, ROWS[10:20])
    assert np.array_equal(np.load(tmp_path / "a.npy"), ROWS)


def test_no_rows(tmp_path):
    for suffix in SUFFIXES[:3]:
        reader = open_rows(written(tmp_path / f"a{suffix}", ROWS[:0]))
        assert (reader.rows, reader.dim, list(reader)) == (0, 5, [])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("two.npz", {}, "2 arrays; choose one with tensor: a, b"),
        ("two.npz", {"tensor": "c"}, "no tensor 'c'; expected one of a, b"),
        ("two.safetensors", {}, "2 arrays; choose one with tensor: a, b"),
        ("two.safetensors", {"tensor": "c"}, "no tensor 'c'; expected one of a, b"),
        ("rows.npy", {"tensor": "a"}, "holds one array without a name; got tensor 'a'"),
        ("heads.npy", {}, r"holds 6 heads, shape \(2, 3, 11, 4\); choose one with head, 0 to 5"),
        ("heads.npy", {"head": 6}, "head must be 0 to 5 for .*; got 6"),
        ("rows.npy", {"head": 1}, "head must be 0 to 0 for .*; got 1"),
        ("rows.npy", {"dim": 4}, "dim is 4, but .* holds rows of 5 numbers"),
        ("rows.npy", {"rows": (0, 104)}, "rows 0:104 reach beyond the 103 of "),
        ("rows.npy", {"rows": (104, None)}, "rows 104: reach beyond the 103 of "),
        ("rows.npy", {"rows": (5, 4)}, "rows must be first:end with 0 <= first <= end; got 5:4"),
        ("rows.npy", {"block_rows": 0}, "block_rows must be >= 1; got 0"),
        ("line.npy", {}, r"expected an array \(n, d\) or \(..., n, d\), d >= 1; got shape \(5,\)"),
        ("text.npy", {}, "expected an array of real numbers; got dtype <U1"),
        ("object.npy", {}, "expected an array of real numbers; got dtype object"),
        ("rows.csv", {}, "must end in .npy, .npz, .safetensors, .parquet"),
        ("-", {}, "dim, the numbers in a row, must be given and >= 1; got None"),
        ("-", {"dim": 3, "tensor": "a"}, "tensor and head are for files"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, name, options, message):
    np.save(tmp_path / "rows.npy", ROWS)
    np.save(tmp_path / "heads.npy", HEADS)
    np.save(tmp_path / "line.npy", ROWS[0])
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    np.save(tmp_path / "object.npy", np.array([[{}]]), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=ROWS, b=ROWS)
    safetensors.numpy.save_file({"a": ROWS, "b": ROWS}, tmp_path / "two.safetensors")
    (tmp_path / "rows.csv").write_text("1,2\n")
    with pytest.raises(ValueError, match=message):
        open_rows(name if name == "-" else tmp_path / name, **options)


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npy: no such file"):
        open_rows(tmp_path / "none.npy")
    with pytest.raises(IsADirectoryError, match="a directory; expected a file of rows"):
        open_rows(tmp_path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_files_name_themselves(tmp_path, suffix):
    path = written(tmp_path / f"a{suffix}", ROWS)
    data = path.read_bytes()
    for damaged in (b"", b"\x93NUMPY", b"nonsense" * 9, data[:7], data[:30], data[: len(data) // 2], data[:-3]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"a{suffix}: "):
            list(open_rows(path))


def npy(header):
    """Return a .npy file of 64 bytes of numbers."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("shape", [(2**55, 4), (10**30, 4), (-4, -4), (4, 5)])
def test_a_shape_that_the_file_cannot_hold_is_refused(tmp_path, shape, fortran):
    path = tmp_path / "a.npy"
    path.write_bytes(npy(repr({"descr": "<f4", "fortran_order": fortran, "shape": shape})))
    with pytest.raises(ValueError, match=r"a\.npy: cut off or damaged: \d+ bytes, and shape"):
        open_rows(path)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.write(path, "a.npy")
    with pytest.raises(ValueError, match=r"a\.npz: cut off or damaged: \d+ bytes, and shape"):
        open_rows(tmp_path / "a.npz")


def test_a_header_that_is_no_python_is_refused(tmp_path):
    (tmp_path / "a.npy").write_bytes(npy("[[[["))
    with pytest.raises(ValueError, match=r"a\.npy: "):
        open_rows(tmp_path / "a.npy")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_file_that_shrinks_while_it_is_read_names_itself(tmp_path, suffix, order):
    rows = np.asarray(np.random.default_rng(0).standard_normal((20_000, 5)), order=order)
    path = tmp_path / f"a{suffix}"
    np.save(path, rows) if suffix == ".npy" else np.savez(path, key=rows)
    blocks = iter(open_rows(path, block_rows=1000))
    if (suffix, order) == (".npz", "F"):  # which is read whole
        os.truncate(path, 9000)
    else:
        next(blocks)
        os.truncate(path, 9000)
    with pytest.raises(ValueError, match=rf"a{suffix}: \w+"):
        list(blocks)


def zipped(path, member="key.npy", method=zipfile.ZIP_STORED, flag=0, number=None, zeros=0):
    """Write rows in a zip file with the flag, the number of its method and the first bytes of its data changed."""
    content = io.BytesIO()
    np.save(content, ROWS)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(member, content.getvalue())
    data = bytearray(path.read_bytes())
    for place in (6, data.index(b"PK\x01\x02") + 8):
        data[place] |= flag
        data[place + 2] = data[place + 2] if number is None else number
    data[60 : 60 + zeros] = bytes(zeros)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"member": "key"}, "0 arrays"),
        ({"flag": 1}, "is encrypted"),
        ({"number": 99}, "compression method is not supported"),
        ({"method": zipfile.ZIP_LZMA, "zeros": 20}, "Corrupt input data"),
        ({"method": zipfile.ZIP_BZIP2, "zeros": 20}, "Invalid data stream"),
    ],
)
def test_foreign_zip_files_name_themselves(tmp_path, change, message):
    pytest.importorskip("lzma")
    pytest.importorskip("bz2")
    zipped(tmp_path / "a.npz", **change)
    with pytest.raises(ValueError, match=rf"a\.npz: .*{message}"):
        list(open_rows(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shape", [float("inf"), 4]),
        ("shape", [4.7, 4]),
        ("shape", [True, 16]),
        ("shape", [-4, -4]),
        ("shape", "44"),
        ("data_offsets", ["0", "64"]),
        ("data_offsets", [0.0, 64.0]),
        ("data_offsets", [0, None]),
        ("data_offsets", [-64, 0]),
        ("data_offsets", [0]),
        ("data_offsets", [0, 60]),
        ("dtype", ["F32"]),
    ],
)
def test_foreign_entries_of_safetensors_are_refused(tmp_path, name, value):
    header = json.dumps({"key": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]} | {name: value}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(ValueError, match=r"a\.safetensors: "):
        open_rows(tmp_path / "a.safetensors")


def test_nulls_in_parquet_are_refused(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"x": [1.0, None, 2.0]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="rows 0 to 2 hold a null"):
        list(open_rows(tmp_path / "a.parquet"))
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="expected one fixed-size list of floats or only float columns; got x int64"):
        open_rows(tmp_path / "a.parquet")


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ImportError, match=r"pip install lev-attention\[parquet\]"):
        open_rows(tmp_path / "a.parquet")


def test_real_keys():
    path = Path(__file__).parents[2] / "shared" / "data" / "smollm2_pydoc.safetensors"
    if not path.exists():
        pytest.skip("the real keys are not on this machine")
    whole = safetensors.numpy.load_file(path)["layer14.key"]
    reader = open_rows(path, tensor="layer14.key", head=2, rows=(100, 7000))
    assert np.array_equal(together(reader), whole[2, 100:7000].astype(np.float32))
