"""Batches come back as they were stored, or not at all."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from calib import CalibrationError
from calib.batches import digest_of, read_batches, write_batches

PROVENANCE = {"source": "a running sum", "seed": 3, "files": ["a", "b"]}


def make_batches() -> list[dict[str, NDArray[Any]]]:
    rng = np.random.default_rng(0)
    return [
        {"x": rng.standard_normal((2, 4), dtype=np.float32), "step": np.array(index), "a/b": np.ones(3, np.float16)}
        for index in range(12)
    ]


def test_batches_come_back_as_they_were_stored(tmp_path: Path) -> None:
    batches = make_batches()
    digest = write_batches(tmp_path / "b.npz", batches, PROVENANCE)
    stored = read_batches(tmp_path / "b.npz", digest)
    assert (stored.digest, stored.provenance, len(stored)) == (digest, PROVENANCE, 12)
    for found, wanted in zip(stored.batches, batches, strict=True):
        assert list(found) == list(wanted)
        for name, array in wanted.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(found[name], array)


def test_the_digest_is_of_the_contents_alone(tmp_path: Path) -> None:
    first = write_batches(tmp_path / "first.npz", make_batches(), PROVENANCE)
    again = [dict(reversed(batch.items())) for batch in make_batches()]
    again[0]["x"] = np.asfortranarray(again[0]["x"])
    assert write_batches(tmp_path / "second.npz", again, {"source": "elsewhere"}) == first


def test_the_digest_sees_every_difference() -> None:
    base = {"x": np.zeros((2, 2), np.float32)}
    others: list[list[dict[str, NDArray[Any]]]] = [
        [{"y": base["x"]}],
        [{"x": base["x"].astype(np.float64)}],
        [{"x": np.zeros((1, 4), np.float32)}],
        [{"x": np.zeros((2, 2), np.int32)}],
        [{"x": np.array([[0, 0], [0, 1e-45]], np.float32)}],
        [{"x": np.array([[-0.0, 0], [0, 0]], np.float32)}],
        [base, base],
        [{**base, "z": np.zeros(1, np.float32)}],
    ]
    digests = [digest_of(batches) for batches in [[base], *others]]
    assert len(set(digests)) == len(digests)
    assert digest_of([{"x": np.ones(1)}, {"x": np.zeros(1)}]) != digest_of([{"x": np.zeros(1)}, {"x": np.ones(1)}])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no batches"),
        ([{"x": np.ones(2)}, {}], "batch 1 holds no array"),
        ([{"x": np.ones((0, 3))}], r"batch 0: x is empty, shape \(0, 3\)"),
        ([{"x": np.array([1.0, np.nan])}], "batch 0: x holds NaN or Inf"),
        ([{"x": np.array([np.inf])}], "batch 0: x holds NaN or Inf"),
        ([{"x": np.array(["text"])}], "x is of dtype <U4, wanted numbers"),
        ([{"x": np.array([object()])}], "x is of dtype object, wanted numbers"),
    ],
)
def test_batches_that_are_worth_nothing_are_not_stored(
    tmp_path: Path, batches: list[dict[str, NDArray[Any]]], message: str
) -> None:
    with pytest.raises(CalibrationError, match=message):
        write_batches(tmp_path / "b.npz", batches, {})
    assert list(tmp_path.iterdir()) == []


def test_a_provenance_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="provenance holds a value that JSON cannot"):
        write_batches(tmp_path / "b.npz", make_batches(), {"source": tmp_path})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_one_plain_error(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot be written"):
        write_batches(tmp_path / "none" / "b.npz", make_batches(), {})


def test_other_batches_than_those_asked_for_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.npz"
    digest = write_batches(path, make_batches(), {})
    write_batches(path, make_batches()[:-1], {})
    with pytest.raises(CalibrationError, match=f"these are other batches: the digest is .*, wanted {digest}"):
        read_batches(path, digest)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_batches(tmp_path / "none.npz")


@pytest.mark.parametrize("damage", ["empty", "noise", "half", "without its end"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "b.npz"
    write_batches(path, make_batches(), {})
    whole = path.read_bytes()
    content = {"empty": b"", "noise": np.random.default_rng(0).bytes(500), "half": whole[: len(whole) // 2]}
    path.write_bytes(content.get(damage, whole[:-30]))
    with pytest.raises(CalibrationError, match=r"b\.npz: (not a file of batches|cannot be read)"):
        read_batches(path)


def test_changed_contents_are_found_though_the_archive_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "b.npz"
    write_batches(path, make_batches(), {})
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["3/x"][1, 2] += 1e-3
    np.savez(path, **arrays)
    with pytest.raises(CalibrationError, match="damaged: the digest is"):
        read_batches(path)


@pytest.mark.parametrize("change", ["a batch less", "another batch", "no record"])
def test_an_archive_that_lacks_or_adds_entries_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "b.npz"
    write_batches(path, [{"x": np.ones(2)}, {"x": np.zeros(2)}], {})
    with np.load(path) as archive:
        arrays = dict(archive)
    if change == "another batch":
        arrays["2/x"] = np.ones(2)
    else:
        del arrays["1/x" if change == "a batch less" else "record"]
    np.savez(path, **arrays)
    with pytest.raises(CalibrationError, match=r"b\.npz: (batch 1 holds no array|not a file of batches)"):
        read_batches(path)


def test_a_plain_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(CalibrationError, match="not a file of batches"):
        read_batches(path)


def test_batches_need_numpy_only() -> None:
    code = "import sys, calib.batches; print(sorted({'torch', 'onnx', 'onnxruntime', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def npy(header: str, content: bytes = b"") -> bytes:
    padded = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + content


RECORD = {"provenance": {}, "digest": "0" * 64, "count": 1}


@pytest.mark.parametrize(
    ("record", "array", "found"),
    [
        (RECORD, npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}"), "in 0 bytes"),
        (
            RECORD,
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1)}", bytes(4)),
            "no .npy of plain numbers",
        ),
        (
            RECORD,
            npy("{'descr': '|O', 'fortran_order': False, 'shape': ()}", b"cos\nsystem\n"),
            "no .npy of plain numbers",
        ),
        (
            RECORD | {"count": 10**10},
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", bytes(4)),
            "announced",
        ),
        (
            RECORD | {"count": "many"},
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", bytes(4)),
            "not supp",
        ),
        (b'{"a":' * 40_000, npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", bytes(4)), "recursion"),
    ],
)
def test_a_file_that_claims_more_than_it_holds_is_refused(
    tmp_path: Path, record: dict[str, Any] | bytes, array: bytes, found: str
) -> None:
    path = tmp_path / "a.npz"
    text = record if isinstance(record, bytes) else json.dumps(record).encode()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0/x.npy", array)
        archive.writestr(
            "record.npy", npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({len(text)},)}}", text)
        )
    with pytest.raises(CalibrationError, match=f"not a file of batches .*{found}"):
        read_batches(path)


def test_arrays_that_are_too_large_in_all_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    write_batches(path, [{"x": np.ones(100, np.float32)}], {})
    monkeypatch.setattr("calib.batches.MOST_BYTES", 400)
    with pytest.raises(CalibrationError, match=r"GB of arrays, wanted at most"):
        read_batches(path)
