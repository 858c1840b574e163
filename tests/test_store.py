"""The file format: whole or not at all, any damage seen, nothing run."""

import json
import os
import pickle
import sys

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import lev
from lev import store

KEYS = np.random.default_rng(0).standard_normal((400, 3))
KEYS[7] *= 30
SKETCH = lev.Sketch(3, 0.1, payload_dim=1).update(KEYS, payload=KEYS[:, :1])
DATA = SKETCH.to_bytes()


def test_a_saved_sketch_loads(tmp_path):
    SKETCH.save(tmp_path / "a.lev")
    assert lev.load(tmp_path / "a.lev") == SKETCH
    assert (tmp_path / "a.lev").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["a.lev"]
    assert lev.Sketch.from_bytes(memoryview(DATA).cast("b")) == SKETCH


def test_every_flipped_bit_is_seen():
    for position in range(len(DATA)):
        damaged = bytearray(DATA)
        damaged[position] ^= 1 << (position % 8)
        with pytest.raises(lev.SketchFileError):
            lev.Sketch.from_bytes(bytes(damaged))


@pytest.mark.parametrize("length", [0, 1, 8, 9, 100, len(DATA) - 1])
def test_truncated_files_are_refused(length):
    with pytest.raises(lev.SketchFileError):
        lev.Sketch.from_bytes(DATA[:length])
    with pytest.raises(lev.SketchFileError):
        lev.Sketch.from_bytes(DATA + b"\0")


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_foreign_bytes_are_refused(data):
    with pytest.raises(lev.SketchFileError):
        lev.Sketch.from_bytes(data)


def test_other_formats_are_refused():
    for data in (pickle.dumps(SKETCH), safetensors.numpy.save({"x": np.ones(3)}), b"{}", b"\x93NUMPY"):
        with pytest.raises(lev.SketchFileError):
            lev.Sketch.from_bytes(data)
    with pytest.raises(TypeError, match="a sketch is read from bytes; got str"):
        lev.Sketch.from_bytes("a.lev")


@pytest.mark.parametrize(
    "change",
    [
        lambda fields, tensors: fields.update(dim=4),
        lambda fields, tensors: fields.update(epsilon=2.0),
        lambda fields, tensors: fields["streams"][0].update(rows=-1),
        lambda fields, tensors: fields["streams"][0].update(rows="x"),
        lambda fields, tensors: fields["streams"][0].update(mass=-1.0),
        lambda fields, tensors: fields["streams"][0].update(masked=-1),
        lambda fields, tensors: fields.update(streams=[]),
        lambda fields, tensors: fields.update(spans=[1]),
        lambda fields, tensors: fields.pop("next"),
        lambda fields, tensors: fields.update(heads=[2]),
        lambda fields, tensors: tensors.update({"0.gram": -tensors["0.gram"]}),
        lambda fields, tensors: tensors.update({"0.gram": tensors["0.gram"][:2]}),
        lambda fields, tensors: tensors.update({"0.exponents": np.full(3, 5000)}),
        lambda fields, tensors: tensors.update({"0.keys": tensors["0.keys"] * np.nan}),
        lambda fields, tensors: tensors.update({"0.ids": tensors["0.ids"].astype(np.int32)}),
        lambda fields, tensors: tensors.pop("0.upper"),
        lambda fields, tensors: tensors.update({"7.upper": np.zeros(1)}),
        lambda fields, tensors: tensors.pop("0.payload"),
        lambda fields, tensors: tensors.update({"0.triangle": np.eye(3)}),
        lambda fields, tensors: tensors.update({"-1.gram": tensors.pop("0.gram")}),
        lambda fields, tensors: tensors.update({"0.other": np.zeros(1)}),
        lambda fields, tensors: fields.update(kind=[]),
        lambda fields, tensors: fields.update(kind={}),
        lambda fields, tensors: fields.update(dim=2**40),
        lambda fields, tensors: fields.update(heads=[2**40]),
        lambda fields, tensors: fields.update(next=10**30),
        lambda fields, tensors: fields.update(spans=[[0, 401]]),
        lambda fields, tensors: fields.update(spans=[[50, 0]]),
        lambda fields, tensors: fields.update(spans=[[-50, 50]]),
        lambda fields, tensors: fields.update(spans=[[0, 50], [10, 60]]),
        lambda fields, tensors: fields.update(spans=[[0.5, 50]]),
        lambda fields, tensors: fields["streams"][0].update(rows=0.5),
        lambda fields, tensors: fields["streams"][0].update(rows=2**70),
        lambda fields, tensors: fields["streams"][0].update(rows=True),
        lambda fields, tensors: fields["streams"][0].update(left=0.5),
        lambda fields, tensors: fields["streams"][0].update(epoch=0.5),
        lambda fields, tensors: fields["streams"][0].update(masked=401),
    ],
)
def test_a_hostile_file_with_a_right_checksum_is_refused(change):
    fields, tensors = store.unpack(DATA)
    change(fields, tensors)
    with pytest.raises(lev.SketchFileError):
        lev.Sketch.from_bytes(store.pack(fields, tensors))


@pytest.mark.parametrize(
    ("sketch", "change"),
    [
        (lev.CausalSketch(3, 0.1), lambda fields: fields.update(masked=[401])),
        (lev.CausalSketch(3, 0.1), lambda fields: fields.update(heads=[2**40])),
        (lev.CausalSketch(3, 0.1), lambda fields: fields.update(spans=[[50, 0]])),
        (lev.CausalSketch(3, 0.1), lambda fields: fields["streams"][0].update(rows=400.5)),
        (lev.SlidingWindowSketch(3, 0.1, 90), lambda fields: fields.update(count=2**60)),
        (lev.SlidingWindowSketch(3, 0.1, 90), lambda fields: fields.update(next=2**60)),
        (lev.SlidingWindowSketch(3, 0.1, 90), lambda fields: fields["blocks"][0].update(rows=5.5)),
    ],
)
def test_counts_that_cannot_be_are_refused_in_sketches_of_each_kind(sketch, change):
    fields, tensors = store.unpack(sketch.update(KEYS).to_bytes())
    change(fields)
    with pytest.raises(lev.SketchFileError):
        type(sketch).from_bytes(store.pack(fields, tensors))


def with_metadata(text):
    return safetensors.numpy.save(safetensors.numpy.load(DATA), metadata={"lev": text})


def metadata():
    header = json.loads(DATA[8 : 8 + int.from_bytes(DATA[:8], "little")])
    return header["__metadata__"]["lev"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_json_has_not_are_refused(number):
    assert '"epsilon":0.1' in metadata()
    with pytest.raises(lev.SketchFileError):
        lev.Sketch.from_bytes(with_metadata(metadata().replace('"epsilon":0.1', f'"epsilon":{number}')))


def test_lists_of_any_depth_are_refused():
    for depth in range(1, sys.getrecursionlimit() + 100, 3):
        with pytest.raises(lev.SketchFileError):
            lev.Sketch.from_bytes(with_metadata(metadata()[:-1] + ',"x":' + "[" * depth + "]" * depth + "}"))


def test_another_version_is_named():
    data = with_metadata(json.dumps(json.loads(metadata()) | {"format": 99}))
    with pytest.raises(lev.SketchFileError, match="sketch format 99 is not known"):
        lev.Sketch.from_bytes(data)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    SKETCH.save(tmp_path / "a.lev")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        lev.Sketch(3, 0.1).save(tmp_path / "a.lev")
    assert os.listdir(tmp_path) == ["a.lev"]
    assert lev.load(tmp_path / "a.lev") == SKETCH


def test_a_missing_file_or_folder_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        lev.load(tmp_path / "none.lev")
    with pytest.raises(FileNotFoundError):
        SKETCH.save(tmp_path / "none" / "a.lev")


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    sketch = lev.Sketch(2, 0.5).update(np.eye(2))
    with pytest.raises(IsADirectoryError, match=f"{tmp_path}'$"):
        sketch.save(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / 'none' / 'a.lev'}'$"):
        sketch.save(tmp_path / "none" / "a.lev")
    assert list(tmp_path.iterdir()) == []
