"""Archive of a bundle for a board, which needs Python 3.10, NumPy and TensorRT (or ONNX Runtime) there.

    packed = write_archive(bundle_path, Path("mbs-net-small.device.tar.gz"))
    root = unpack_archive(packed.path, Path("there"))     # or: tar xf, on the board
    ./run self-test

In it lie the chosen graphs with their weights, sealed anew; the golden vectors; the model card and the attribution; the
licence; of MBS-Net, the C project, for a board without Python; and the code of `edgese.device` with all that it imports
of ours, edgese renamed to edgese_device. Equal input gives equal bytes.
"""

from __future__ import annotations

import ast
import dataclasses
import gzip
import hashlib
import io
import os
import re
import shutil
import tarfile
import textwrap
import zlib
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from typing import Any

from edgese import __version__
from edgese.atomic_file import PartialFile, shown
from edgese.device.content import BUNDLE, SUMS, Content, choose
from edgese.errors import OutputError, VerificationError, clone
from edgese.graphs.audio_facts import open_bundle
from edgese.graphs.opening import wanted_metadata
from edgese.graphs.segments import Segments
from edgese.native.artefact import STORED
from edgese.native.project import project_files
from edgese.native.weights import OtherNetworkError, native_weights
from export import ExportError
from export.bundle import ATTRIBUTION, MODEL_CARD, WEIGHTS, Bundle, Graph, seal_bundle
from export.manifest import MANIFEST
from export.staging import StagedFolder, temporary_folder, write_all

SUFFIX = ".tar.gz"

_FOLDERS = ("edgese", "export", "calib", "runtimes")  # of the distribution, beside each other however it is installed
_HERE = Path(__file__).resolve().parents[2]
_ENTRY = "edgese.device.__main__"
_RENAMED = re.compile(r"^(\s*(?:from|import)\s+)edgese(?=[.\s])", re.MULTILINE)
_DEVICE = "edgese_device"
_MTIME = 1_577_836_800  # 2020-01-01; zero makes tar complain
_BLOCK = 1 << 20
C_PROJECT = "c"
MOST_MEMBERS = 10_000
MOST_BYTES = 2_000_000_000  # of all members, unpacked

_MAIN = '''"""`python3 -m edgese_device`: as ./run, from the bundle's root."""

import sys

from edgese_device.device.__main__ import main

sys.exit(main())
'''

_README = """\
{name}: speech enhancement on this device
{underline}
{what}

Needed: Python 3.10 or later, NumPy, and TensorRT 10.3 or later as JetPack has it (or onnxruntime). Nothing else: no
pip, no torch, no internet. Unpacked with: tar xf {archive}; then, in this folder:

    ./run self-test                      does every graph give here what PyTorch gave? The last line says it
    ./run runtimes                       what opens here: TensorRT, ONNX Runtime
    ./run build                          TensorRT engines for this very device; minutes for each graph, once
    ./run bench --json > bench.json      how long calls take; on a Jetson also clocks, temperatures and energy
    ./run enhance noisy.wav clean.wav    WAV of any rate, any channels

./run COMMAND -h lists the options; `--precision fp16 --block 1` keeps to some of the graphs. Engines are kept in
engines/ (--cache DIR), for this TensorRT and GPU; another one gets its own. If ./run is not allowed to run:
python3 run self-test. Exit codes: 0 done and passed, 1 failed, 2 wrong usage.
{in_c}
LICENSE holds for code and weights. bundle/{card} says what the graphs are, bundle/manifest.json how they were
verified and within which limits.
sha256sum -c {sums} shows whether a file was changed; every command checks that first.
Made by edgese {version}.
"""

_README_C = """
Without Python, with a C compiler and make alone: cd c && make, then

    ./selftest                           the same proof, and the time of a hop
    ./enhance noisy.wav clean.wav        WAV of 16 kHz and more
"""


@dataclasses.dataclass(frozen=True)
class Packed:
    """Facts of an archive that was written."""

    path: Path
    n_bytes: int
    sha256: str
    graphs: tuple[str, ...]
    n_files: int

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self) | {"path": str(self.path), "graphs": list(self.graphs)}


def archive_name(bundle: Bundle) -> str:
    """File name of this bundle's archive: mbs-net-small.device.tar.gz."""
    return f"{_root_name(bundle)}{SUFFIX}"


def write_archive(
    bundle: Bundle,
    archive: Path,
    *,
    precisions: Collection[str] = (),
    blocks: Collection[int] = (),
    replace: bool = False,
) -> Packed:
    """Pack graphs of a bundle for a board; what was written is unpacked and checked before it gets its name.

    Args:
        precisions, blocks: of the graphs; nothing named: all. Variants come along.
        replace: an archive that lies there may be replaced.

    Raises:
        ExportError: the bundle lacks such graphs or what a device needs; the name does not end in .tar.gz.
        VerificationError: the bundle did not pass its verification, or sets no limits for a precision.
        OutputError: the archive exists, or cannot be written.
        ArtefactError: a graph that cannot be read, or that lacks a file of its weights.
    """
    if not archive.name.endswith(SUFFIX):
        raise ExportError(f"{shown(archive)}: the file name must end in {SUFFIX}")
    if os.path.lexists(archive) and not replace:
        raise OutputError(f"{shown(archive)}: exists already; choose another name or let it be replaced (--force)")
    if not bundle.verified:
        raise VerificationError(f"{bundle.path}: this bundle did not pass its verification: export it again")
    graphs = choose(bundle, precisions, blocks)
    with temporary_folder() as folder, PartialFile(archive) as partial:
        _copy_bundle(bundle, graphs, folder / BUNDLE)
        files = {f"{BUNDLE}/{file.name}": file.read_bytes() for file in (folder / BUNDLE).iterdir()}
        files |= {name: content.encode() for name, content in _code().items()}
        in_c = _c_project(bundle, graphs, Content(folder, open_bundle(folder / BUNDLE), len(files)))
        files |= {f"{C_PROJECT}/{name}": content for name, content in in_c.items()}
        files |= {"README.txt": _readme(bundle, graphs, bool(in_c)).encode(), "LICENSE": _licence().encode()}
        sums = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
        files[SUMS] = sums.encode()
        try:
            content = _archived(_root_name(bundle), files)
            write_all(partial.fd, content)
        except OSError as error:
            raise partial.error(error) from error
        packed = Content.open(unpack_archive(partial.path, folder / "again"))
        for graph in packed.bundle.graphs:
            packed.limits(graph.precision)
            packed.golden_vectors(graph.variant)
        _ = packed.audio  # raises where the manifest does not say
        partial.publish(replace=replace)
    digest = hashlib.sha256(content).hexdigest()
    return Packed(archive, len(content), digest, tuple(graph.file for graph in graphs), len(files))


def unpack_archive(archive: Path, folder: Path) -> Path:
    """Unpack a device bundle into `folder`, which must be new; returns its root, all files as they were packed.

    Only plain files and folders below one root are taken, whatever else an archive may hold; all of them or none, and
    no more than a device bundle can have.

    Raises:
        ExportError: not a device bundle, truncated, damaged, holding what leads outside; `folder` exists.
        VerificationError: its graphs did not pass their verification.
    """
    if os.path.lexists(folder):
        raise ExportError(f"{folder}: exists already; choose another place")
    try:
        with StagedFolder(folder.parent) as staged:
            with gzip.open(archive) as stream:
                roots = _extract_all(stream, staged.path, archive)
            if len(roots) != 1:
                raise ExportError(f"{archive}: found {len(roots)} folders at its root, wanted one; not a device bundle")
            (root,) = roots
            Content.open(staged.path / root)
            staged.publish(folder, replace=False)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise ExportError(f"{archive}: truncated, or no device bundle ({error}); make or copy it again") from error
    except OSError as error:
        raise ExportError(f"{archive}: cannot be unpacked to {folder} ({error.strerror or error})") from error
    return folder / root


def _extract_all(stream: gzip.GzipFile, folder: Path, archive: Path) -> set[str]:
    """Extract the members of a tar below `folder`; returns the names of the folders at its root.

    Headers are read one by one, not by `tarfile.open`: that believes what extended headers and sparse files say of
    their sizes, and this needs neither.
    """
    roots, n_members, n_bytes = set(), 0, 0
    while any(head := stream.read(tarfile.BLOCKSIZE)):
        member = tarfile.TarInfo.frombuf(head, "utf-8", "strict")
        n_members, n_bytes = n_members + 1, n_bytes + member.size
        if n_members > MOST_MEMBERS or n_bytes > MOST_BYTES:
            raise ExportError(
                f"{archive}: holds more than {MOST_MEMBERS} files or {MOST_BYTES / 1e9:.0f} GB; no device bundle does"
            )
        roots.add(_extract(stream, member, folder, archive))
    if len(head) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends before its end is marked")
    while stream.read(_BLOCK):  # to its end, where its length and checksum are
        n_bytes += _BLOCK
        if n_bytes > MOST_BYTES:
            raise ExportError(f"{archive}: does not end where its files do; do not use it")
    return roots


def _extract(stream: gzip.GzipFile, member: tarfile.TarInfo, folder: Path, archive: Path) -> str:
    """Extract one member below `folder`; returns the name of the root folder that it lies in."""
    name = PurePosixPath(member.name)
    is_plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) and "\0" not in member.name
    if name.is_absolute() or ".." in name.parts or not name.parts or not is_plain or member.size < 0:
        raise ExportError(
            f"{archive}: holds {shown(member.name)}, which is no plain file below its root; do not use it"
        )
    target = folder / name
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return name.parts[0]
    if len(name.parts) < 2:
        raise ExportError(f"{archive}: holds {shown(member.name)} outside of a root; not a device bundle")
    target.parent.mkdir(parents=True, exist_ok=True)
    left = member.size
    with target.open("xb") as file:
        while left and (content := stream.read(min(left, _BLOCK))):
            left -= file.write(content)
    padding = -member.size % tarfile.BLOCKSIZE
    if left or len(stream.read(padding)) < padding:
        raise ExportError(f"{archive}: truncated at {shown(member.name)}; make or copy it again")
    target.chmod(0o755 if member.mode & 0o100 else 0o644)
    return name.parts[0]


def _copy_bundle(bundle: Bundle, graphs: tuple[Graph, ...], folder: Path) -> None:
    """Copy these graphs, their weights, golden vectors and model card into `folder` as a bundle of their own."""
    reference = bundle.manifest["reference"].get("file")
    if reference is None:
        raise ExportError(f"{bundle.path}: holds no golden vectors, a device could not test itself; export it again")
    names = [graph.file for graph in graphs] + [str(reference)]
    for graph in graphs:
        names += bundle.weight_files(graph)
    names += [name for name in (MODEL_CARD, ATTRIBUTION) if name in bundle.manifest["files"]]
    folder.mkdir()
    for name in dict.fromkeys(names):
        if name not in bundle.manifest["files"] or "/" in name:
            raise ExportError(
                f"{bundle.path}: {name} is not among its files, or not beside the graphs; export it again"
            )
        shutil.copyfile(bundle.file(name), folder / name)
    seal_bundle(folder, _manifest(bundle, graphs))


def _manifest(bundle: Bundle, graphs: tuple[Graph, ...]) -> dict[str, Any]:
    """Manifest of these graphs only, with the metadata that a device checks them by."""
    files, precisions = {graph.file for graph in graphs}, {graph.precision for graph in graphs}
    whole = {key: value for key, value in bundle.manifest.items() if key not in ("files", "schema_version")}
    verification = dict(whole["verification"])
    verification["limits"] = _only(verification.get("limits", {}), precisions)
    verification["results"] = [one for one in verification.get("results", []) if one.get("graph") in files]
    plans = _only(whole.get("precisions", {}), precisions)
    calibrated = any(plan.get("calibration") for plan in plans.values())
    return whole | {
        "graphs": graphs,
        "verification": verification,
        "calibration": whole["calibration"] if calibrated else None,
        **({"precisions": plans} if "precisions" in whole else {}),
        "device": {
            "edgese": __version__,
            "manifest": hashlib.sha256((bundle.path / MANIFEST).read_bytes()).hexdigest(),  # of what was packed
            "metadata": {graph.file: wanted_metadata(bundle, graph) for graph in graphs},
        },
    }


def _c_project(bundle: Bundle, graphs: tuple[Graph, ...], content: Content) -> dict[str, bytes]:
    """Files of the C project, in the most exact of the precisions; none of a network that C does not run."""
    if WEIGHTS not in bundle.manifest["files"]:
        return {}
    packed = {graph.precision for graph in graphs}
    precision = next(name for name in STORED if name in packed)
    metadata = {"edgese.bundle": str(bundle.manifest["name"]), "edgese.weights": bundle.manifest["files"][WEIGHTS]}
    try:
        weights = native_weights(bundle.file(WEIGHTS), stored=STORED[precision], metadata=metadata)
    except OtherNetworkError:
        return {}
    return project_files(weights, *content.golden_vectors(), content.limits(precision)["snr_db"])


def _only(entries: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: entry for name, entry in entries.items() if name in names}


def _code() -> dict[str, str]:
    """Sources by name in the archive: the entry, all runtimes, and our modules that they import, lazily too."""
    found: dict[str, str] = {}
    waiting = [_ENTRY, *(f"runtimes.{path.stem}" for path in _path("runtimes").glob("*.py") if path.stem != "__init__")]
    while waiting:
        module = waiting.pop()
        path = _file_of(module)
        name = path.relative_to(_HERE).as_posix()
        if name in found:
            continue
        found[name] = path.read_text(encoding="utf-8")
        waiting += [".".join(module.split(".")[:depth]) for depth in range(1, module.count(".") + 1)]
        if path.name != "__init__.py":  # the root's names are imported when asked for, and no board asks
            waiting += _imports(found[name])
    code = {
        re.sub(r"^edgese/", f"{_DEVICE}/", name): _RENAMED.sub(rf"\1{_DEVICE}", text) for name, text in found.items()
    }
    run = (Path(__file__).parents[1] / "device" / "run.py").read_text(encoding="utf-8")
    return code | {"run": run, f"{_DEVICE}/__main__.py": _MAIN}


def _imports(source: str) -> Iterator[str]:
    """Names of our modules that a source imports."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.module, "ours import by full names"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [node.module, *(name for name in inner if _is_module(name))]
        yield from (name for name in names if _is_module(name))


def _is_module(name: str) -> bool:
    return name.partition(".")[0] in _FOLDERS and (_path(name).with_suffix(".py").is_file() or _path(name).is_dir())


def _file_of(module: str) -> Path:
    path = _path(module)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _path(module: str) -> Path:
    return _HERE.joinpath(*module.split("."))


def _archived(root: str, files: Mapping[str, bytes]) -> bytes:
    """Bytes of a .tar.gz of these files below `root`, the same for the same files."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in sorted(files.items()):
            info = tarfile.TarInfo(f"{root}/{name}")
            info.size, info.mtime, info.mode = len(content), _MTIME, 0o755 if name == "run" else 0o644
            tar.addfile(info, io.BytesIO(content))
    packed = io.BytesIO()
    with gzip.GzipFile("", "wb", 9, packed, mtime=0) as stream:  # its header is the same in all Pythons
        stream.write(plain.getvalue())
    return packed.getvalue()


def _readme(bundle: Bundle, graphs: tuple[Graph, ...], in_c: bool) -> str:
    name = str(bundle.manifest["name"])
    kinds: dict[str, list[int]] = {}
    for graph in graphs:
        kinds.setdefault(f"{graph.precision} {graph.variant}".strip(), []).append(graph.block)
    listed = "; ".join(f"{kind} of {', '.join(map(str, sorted(blocks)))}" for kind, blocks in kinds.items())
    rate_hz, latency = bundle.manifest["audio"]["sample_rate_hz"], bundle.manifest["latency"]["ms"]
    late = f"algorithmic latency {latency} ms"
    if Segments.of(bundle.manifest) is not None:
        late = f"not live: the network looks ahead, a sample comes out after its whole segment of {latency} ms"
    what = f"Waveform in, waveform out, {rate_hz} Hz, {late}. Hops a call: {listed}."
    return _README.format(
        name=name,
        underline="=" * (len(name) + len(": speech enhancement on this device")),
        what=textwrap.fill(what, 120),
        archive=archive_name(bundle),
        card=MODEL_CARD if MODEL_CARD in bundle.manifest["files"] else MANIFEST,
        sums=SUMS,
        in_c=_README_C if in_c else "",
        version=__version__,
    )


def _licence() -> str:
    """Text of our licence, which asks to travel with every copy: from the clone, or as pip installed it."""
    folder = clone()
    text = (folder / "LICENSE").read_text(encoding="utf-8") if folder else None
    try:
        text = text or distribution("edgese").read_text("licenses/LICENSE")
    except PackageNotFoundError:
        text = None
    if text is None:
        raise ExportError("found no LICENSE beside edgese, wanted it for the archive; install edgese anew")
    return text


def _root_name(bundle: Bundle) -> str:
    return f"{bundle.file_name}.device"
