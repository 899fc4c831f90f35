"""A bundle is whole or is not there; what was changed, or not verified, says so."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from export import ExportError
from export.bundle import Bundle, Graph, seal_bundle, stage_bundle
from export.manifest import MANIFEST, SCHEMA_VERSION
from runtimes.base import TensorSpec


def make_graph(block: int, precision: str = "fp32") -> Graph:
    x = TensorSpec("x", ("streams", 3 * block), "float32")
    total = TensorSpec("total", ("streams", 1), "float32")
    y = TensorSpec("y", x.shape, "float32")
    after = TensorSpec("total_next", total.shape, "float32")
    return Graph(f"toy_{precision}_{block}.onnx", precision, block, (x, total), (y, after), {"total": "total_next"})


GRAPHS = (make_graph(1), make_graph(8), make_graph(8, "fp16"))


def make_manifest(passed: bool = True) -> dict[str, Any]:
    return {
        "name": "toy",
        "model": {"layers": 2},
        "audio": {},
        "latency": {"samples": 4, "ms": 0.25, "overlap_samples": 3},
        "parameters": {"mix": 12},
        "macs_per_frame": {"mix": 9},
        "graphs": list(GRAPHS),
        "tools": {"numpy": "2"},
        "calibration": None,
        "verification": {
            "passed": passed,
            "limits": {"fp32": {"snr_db": 100}},
            "results": [{"graph": "toy", "snr_db": 140.5}],
        },
        "reference": {"file": "reference.npz", "digest": "0" * 64},
    }


def fill(staging: Path) -> None:
    for graph in GRAPHS:
        (staging / graph.file).write_bytes(graph.file.encode())
    (staging / "notes").mkdir()
    (staging / "notes" / "card.md").write_text("A toy.\n")


def write_toy(path: Path, **changes: Any) -> Path:
    with stage_bundle(path) as staging:
        fill(staging)
        seal_bundle(staging, {**make_manifest(), **changes})
    return path


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest).replace('"NESTED"', '{"a":' * 40_000 + "0" + "}" * 40_000))


def nested(levels: int) -> Any:
    """Objects in objects; JSON's writer refuses as many as its reader should meet, `edit_manifest` writes those."""
    value: Any = "NESTED" if levels > 1000 else 0
    for _ in range(levels if levels <= 1000 else 0):
        value = {"a": value}
    return value


def test_a_bundle_comes_back_as_it_was_sealed(tmp_path: Path) -> None:
    bundle = Bundle.open(write_toy(tmp_path / "toy"))
    assert bundle.path == tmp_path / "toy"
    assert bundle.verified is True
    assert bundle.graphs == GRAPHS
    for key, value in make_manifest().items():
        if key != "graphs":
            assert bundle.manifest[key] == value
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_the_manifest_holds_the_sha256_of_every_file(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy", schema_version=99, files={"old": "0"})
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["schema_version"] == SCHEMA_VERSION
    present = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    del present[MANIFEST]
    assert manifest["files"] == {k: hashlib.sha256(file.read_bytes()).hexdigest() for k, file in present.items()}


def test_equal_bundles_have_equal_manifests(tmp_path: Path) -> None:
    first, second = write_toy(tmp_path / "first"), write_toy(tmp_path / "second")
    assert (first / MANIFEST).read_bytes() == (second / MANIFEST).read_bytes()


def test_a_graph_is_found_by_block_and_precision(tmp_path: Path) -> None:
    bundle = Bundle.open(write_toy(tmp_path / "toy"))
    assert bundle.graph(block=1) == GRAPHS[0]
    assert bundle.graph(block=8) == GRAPHS[1]
    assert bundle.graph(block=8, precision="fp16") == GRAPHS[2]


def test_a_graph_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    bundle = Bundle.open(write_toy(tmp_path / "toy"))
    with pytest.raises(ExportError, match=r"no graph of block 1 \(fp16\).*1 \(fp32\), 8 \(fp32\), 8 \(fp16\)"):
        bundle.graph(block=1, precision="fp16")


def test_one_changed_byte_is_refused_with_both_digests(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy")
    file = path / GRAPHS[1].file
    wanted = hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(ExportError, match=f"{file.name}: changed .* found SHA-256 {found}, wanted {wanted}; fetch"):
        Bundle.open(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy")
    (path / "notes" / "card.md").unlink()
    with pytest.raises(ExportError, match=r"card\.md: cannot be read \(No such file or directory\); fetch or export"):
        Bundle.open(path)


@pytest.mark.parametrize("make", ["nothing", "a file", "an empty folder"])
def test_what_is_not_a_bundle_is_refused(tmp_path: Path, make: str) -> None:
    path = tmp_path / "toy"
    if make == "a file":
        path.write_text("hello")
    elif make == "an empty folder":
        path.mkdir()
    with pytest.raises(ExportError, match=r"not a bundle|is .* a bundle\?"):
        Bundle.open(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"null"])
def test_a_manifest_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    path = write_toy(tmp_path / "toy")
    (path / MANIFEST).write_bytes(content)
    with pytest.raises(ExportError, match=r"manifest\.json: (not JSON|found a .*, wanted an object)"):
        Bundle.open(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=2), "schema_version is 2, wanted 1"),
        (lambda m: m.pop("schema_version"), "schema_version is None, wanted 1"),
        (lambda m: m.pop("latency"), "lacks latency"),
        (lambda m: m.pop("files"), "lacks files"),
        (lambda m: m.update(files=["a"]), "not in the form of schema 1"),
        (lambda m: m["graphs"][0].pop("states"), r"form of schema 1: graphs\[0\]: lacks states"),
        (lambda m: m.update(graphs=[]), "holds no graph"),
        (lambda m: m["graphs"][0].update(file="other.onnx"), r"graph other\.onnx is not among the bundle's files"),
        (lambda m: m.update(verification={}), "verification: lacks passed"),
        (lambda m: m["verification"].update(passed="yes"), "verification.passed: found 'yes', wanted true or false"),
        (lambda m: m["files"].update({"../escape": "0" * 64}), r"names '\.\./escape', which lies outside"),
        (lambda m: m["files"].update({"/etc/hostname": "0" * 64}), "names '/etc/hostname', which lies outside"),
        (lambda m: m["files"].update({"a\0b": "0" * 64}), r"names 'a\\x00b', which"),
        (lambda m: m["files"].update({"./toy_fp32_1.onnx": "0" * 64}), "wanted it in the plain form 'toy_fp32_1.onnx'"),
        (lambda m: m.update(name="../../x"), r"name: found '\.\./\.\./x', wanted a name"),
        (lambda m: m.update(name=["toy"]), "name: found a list of 1, wanted a name"),
        (
            lambda m: m["graphs"][0].update(block=1e30),
            r"graphs\[0\]\.block: found 1e\+30, wanted a whole number of 1 to",
        ),
        (lambda m: m["graphs"][0].update(block=True), r"graphs\[0\]\.block: found True, wanted a whole number"),
        (
            lambda m: m["graphs"][0]["inputs"][0].update(shape=[10**40]),
            r"shape\[0\]: found .* about 10\^40, wanted a whole",
        ),
        (lambda m: m["latency"].update(ms=float("nan")), r"not JSON \(found NaN, wanted finite numbers\)"),
        (
            lambda m: m["verification"].update(limits={"fp32": [3]}),
            r"limits\.fp32: found a list of 1, wanted an object",
        ),
        (lambda m: m.update(model=nested(200)), "wanted values of JSON, at most 32 levels deep"),
        (lambda m: m.update(model=nested(40_000)), "nested too deeply"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = write_toy(tmp_path / "toy")
    edit_manifest(path, change)
    with pytest.raises(ExportError, match=message):
        Bundle.open(path)


def test_what_was_not_verified_is_kept_aside_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "toy"
    with stage_bundle(path) as staging:
        fill(staging)
        seal_bundle(staging, make_manifest(passed=False))
    assert [found.name for found in tmp_path.iterdir()] == ["toy.unverified"]
    assert Bundle.open(tmp_path / "toy.unverified").verified is False


def test_what_was_not_verified_is_kept_aside_also_when_the_caller_raises(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy")
    before = (path / MANIFEST).read_bytes()

    def fail_to_verify() -> None:
        with stage_bundle(path, replace=True) as staging:
            fill(staging)
            seal_bundle(staging, make_manifest(passed=False))
            raise ValueError("not verified")

    for _ in range(2):  # the second replaces what the first left
        with pytest.raises(ValueError, match="not verified"):
            fail_to_verify()
    assert sorted(found.name for found in tmp_path.iterdir()) == ["toy", "toy.unverified"]
    assert (path / MANIFEST).read_bytes() == before


def test_an_error_before_sealing_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with stage_bundle(tmp_path / "toy") as staging:
            fill(staging)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_was_not_sealed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="was not sealed"), stage_bundle(tmp_path / "toy") as staging:
        fill(staging)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["toy.partial", "toy.old", "toy.unverified.old"])
def test_folders_of_the_users_beside_it_are_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("mine")
    for _ in range(2):
        with stage_bundle(tmp_path / "toy", replace=True) as staging:
            fill(staging)
            seal_bundle(staging, make_manifest())
    assert sorted(found.name for found in tmp_path.iterdir()) == ["toy", name]
    assert (tmp_path / name / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["toy", "toy.unverified"])
def test_a_bundle_with_a_letter_in_it_is_not_replaced(name: str, tmp_path: Path) -> None:
    with stage_bundle(tmp_path / "toy") as staging:
        fill(staging)
        seal_bundle(staging, make_manifest(passed=name == "toy"))
    (tmp_path / name / "thesis.txt").write_text("mine")
    with (
        pytest.raises(ExportError, match=rf"{name}: holds thesis\.txt, no part of the bundle"),
        stage_bundle(tmp_path / "toy", replace=True),
    ):
        pytest.fail("entered")
    assert (tmp_path / name / "thesis.txt").read_text() == "mine"


def test_a_folder_named_like_what_is_kept_aside_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "toy.unverified").mkdir()
    (tmp_path / "toy.unverified" / "thesis.txt").write_text("mine")
    with pytest.raises(ExportError, match="is not a bundle; it is not replaced"), stage_bundle(tmp_path / "toy"):
        pytest.fail("entered")
    assert (tmp_path / "toy.unverified" / "thesis.txt").read_text() == "mine"


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"toy: cannot be written \(No space left"), stage_bundle(tmp_path / "toy"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", "", "a\0b", "x" * 300, "ö/ü"])
def test_a_name_is_no_way_out_of_a_folder(name: str, tmp_path: Path) -> None:
    bundle = dataclasses.replace(Bundle.open(write_toy(tmp_path / "toy")), manifest={"name": name})
    assert bundle.file_name not in ("", ".", "..")
    assert Path(tmp_path, bundle.file_name).parent == tmp_path
    (tmp_path / f"{bundle.file_name}.device.tar.gz").touch()


def test_a_place_that_is_taken_is_refused_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy")
    with pytest.raises(ExportError, match="exists already"), stage_bundle(path):
        pytest.fail("entered")
    with stage_bundle(path, replace=True) as staging:
        fill(staging)
        seal_bundle(staging, {**make_manifest(), "name": "second"})
    assert Bundle.open(path).manifest["name"] == "second"
    assert [found.name for found in tmp_path.iterdir()] == ["toy"]


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "home"
    path.mkdir()
    (path / "letter.txt").write_text("dear all")
    with pytest.raises(ExportError, match="is not a bundle; it is not replaced"), stage_bundle(path, replace=True):
        pytest.fail("entered")
    assert (path / "letter.txt").read_text() == "dear all"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"graphs": []}, "holds no graph"),
        ({"graphs": [make_graph(2)]}, r"graph toy_fp32_2\.onnx is not among the bundle's files"),
        ({"verification": {"passed": 1}}, r"verification\.passed must be true or false"),
        ({"latency": {"ms": float("inf")}}, "a value that JSON cannot"),
        ({"tools": {"path": Path("a")}}, "a value that JSON cannot"),
    ],
)
def test_a_manifest_that_cannot_be_is_not_sealed(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        write_toy(tmp_path / "toy", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_lacks_a_key_is_not_sealed(tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    manifest = make_manifest()
    del manifest["reference"], manifest["tools"]
    with pytest.raises(ExportError, match="the manifest lacks tools, reference"):
        seal_bundle(tmp_path / "staging", manifest)


def test_reading_bundles_needs_no_torch_and_no_onnx() -> None:
    code = "import sys, export.bundle; print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def replace_by(file: Path, what: str) -> None:
    file.unlink()
    if what == "pipe":
        os.mkfifo(file)
    elif what == "folder":
        file.mkdir()
    else:
        file.symlink_to(what)


@pytest.mark.parametrize("name", ["toy_fp32_8.onnx", MANIFEST])
@pytest.mark.parametrize("what", ["pipe", "folder", "/dev/zero"])
def test_what_is_no_regular_file_is_refused_before_it_is_read(tmp_path: Path, name: str, what: str) -> None:
    path = write_toy(tmp_path / "toy")
    replace_by(path / name, what)
    with pytest.raises(ExportError, match=rf"{name}: found a (pipe|folder|link|device), wanted"):
        Bundle.open(path)


def test_a_link_to_the_right_file_is_refused_too(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy")
    (path / "notes").rename(tmp_path / "notes")
    (path / "notes").symlink_to(tmp_path / "notes")
    with pytest.raises(ExportError, match=r"notes: found a link, wanted a file of its own: copy the whole with cp -rL"):
        Bundle.open(path)


def test_a_file_that_the_manifest_does_not_list_is_refused(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy")
    (path / ".DS_Store").write_bytes(b"a desktop's own")
    assert Bundle.open(path)
    (path / "notes" / "weights.bin").write_bytes(b"0")
    with pytest.raises(ExportError, match=r"found notes/weights\.bin, which the manifest does not list"):
        Bundle.open(path)


def test_a_file_is_reached_only_if_the_manifest_lists_it(tmp_path: Path) -> None:
    bundle = Bundle.open(write_toy(tmp_path / "toy"))
    assert bundle.file("notes/card.md") == bundle.path / "notes" / "card.md"
    with pytest.raises(ExportError, match=r"\.hidden is not among the files that its manifest lists"):
        bundle.file(".hidden")


def test_a_manifest_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy")
    with (path / MANIFEST).open("wb") as stream:
        stream.truncate(1 << 40)  # holds nothing on the disk
    with pytest.raises(ExportError, match=r"found more than 16,000,000 bytes"):
        Bundle.open(path)


def test_a_graph_whose_weights_are_not_listed_is_refused(tmp_path: Path) -> None:
    weights = onnx.TensorProto(name="w", dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=".w.bin")
    model = onnx.ModelProto(graph=onnx.GraphProto(initializer=[weights]))
    path = write_toy(tmp_path / "toy")
    (path / ".w.bin").write_bytes(bytes(4))
    (path / GRAPHS[0].file).write_bytes(model.SerializeToString())
    digest = hashlib.sha256(model.SerializeToString()).hexdigest()
    edit_manifest(path, lambda m: m["files"].update({GRAPHS[0].file: digest}))
    bundle = Bundle.open(path)
    with pytest.raises(ExportError, match=r"\.w\.bin is not among the files that its manifest lists"):
        bundle.graph_file(GRAPHS[0])
    edit_manifest(path, lambda m: m["files"].update({".w.bin": hashlib.sha256(bytes(4)).hexdigest()}))
    assert Bundle.open(path).graph_file(GRAPHS[0]) == path / GRAPHS[0].file


@pytest.mark.skipif(
    not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed: apt-get install openssh-client"
)
def test_a_signature_of_the_manifest_holds_for_the_bundle(tmp_path: Path) -> None:
    """As docs/security.md has it."""
    path, key, signers = write_toy(tmp_path / "toy"), tmp_path / "key", tmp_path / "signers"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    sign = ["ssh-keygen", "-Y", "sign", "-n", "edgese-bundle", "-f", key, path / MANIFEST]
    subprocess.run(sign, check=True, capture_output=True)
    signers.write_text(f"ann@example.org {key.with_suffix('.pub').read_text()}")
    verify = ["ssh-keygen", "-Y", "verify", "-n", "edgese-bundle", "-f", signers, "-I", "ann@example.org"]
    verify += ["-s", path / "manifest.json.sig"]

    def is_signed() -> bool:
        manifest = (path / MANIFEST).read_bytes()
        return subprocess.run(verify, input=manifest, capture_output=True, check=False).returncode == 0

    assert Bundle.open(path)
    assert is_signed()
    edit_manifest(path, lambda manifest: manifest.update(name="other"))
    assert Bundle.open(path)
    assert not is_signed()
