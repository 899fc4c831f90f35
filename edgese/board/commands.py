"""Self-test and bench on a board: whether it computes what it should, how fast, and with how much energy.

Both report what the board's own commands (edgese/device) found, nothing else: what was not measured there is not
reported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from edgese.board.link import RemoteError
from edgese.board.session import Session
from edgese.graphs.engines import TENSORRT
from export.bundle import Bundle


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Choice of runtimes, precisions and block sizes to run on the board; empty: all."""

    runtimes: Sequence[str] = ()
    precisions: Sequence[str] = ()
    blocks: Sequence[int] = ()

    @property
    def graphs(self) -> list[str]:
        """Options of the board's commands that choose graphs."""
        named = [part for name in self.precisions for part in ("--precision", name)]
        return named + [part for block in self.blocks for part in ("--block", str(block))]

    @property
    def all(self) -> list[str]:
        return self.graphs + [part for name in self.runtimes for part in ("--runtime", name)]


def self_test_there(session: Session, bundle: Bundle, chosen: Chosen) -> dict[str, Any]:
    """Result of the golden vectors in every chosen graph and runtime there: `passed`, `trials`, `left_out`, `machine`.

    Raises:
        RemoteError: it cannot be done there. A graph that fails is in the result.
    """
    session.place(bundle, chosen.runtimes)
    found = session.runtimes(chosen.runtimes)
    return session.result("self-test", "--json", *chosen.all) | {"machine": found["machine"]}


def bench_there(session: Session, bundle: Bundle, chosen: Chosen, *, streams: int, seconds: float) -> dict[str, Any]:
    """Results of building engines, the self-test and timed calls there, in this order: `engines`, `self_test`, `bench`.

    Args:
        streams, seconds: see `edgese.device.latency.measure`.

    Raises:
        RemoteError: no Jetson; an engine cannot be built; a graph does not pass, so that none is measured.
    """
    session.place(bundle, chosen.runtimes)
    found = session.runtimes(chosen.runtimes)
    if found["machine"]["board"] is None:
        raise RemoteError(
            f"{session.host}: found no Jetson ({found['machine']['cpu']}, {found['machine']['system']}), wanted one: "
            "numbers of another machine are not shown for it; edgese verify --host tests any board"
        )
    engines = None
    if TENSORRT in found["found"]:
        engines = session.result("build", "--json", *chosen.graphs, "--most", max(16, streams))
        if engines["failed"]:
            raise RemoteError(
                f"{session.host}: {engines['failed']} engines cannot be built there, nothing was measured: "
                "see above, or choose others (--precision, --block, --runtime)"
            )
    tested = session.result("self-test", "--json", *chosen.all, "--most", max(16, streams))
    require_self_test_passed(session.host, tested)
    load = ("--streams", streams, "--seconds", seconds, "--root", session.root, "--most", max(16, streams))
    return {"engines": engines, "self_test": tested, "bench": session.result("bench", "--json", *chosen.all, *load)}


def require_self_test_passed(host: str, tested: dict[str, Any]) -> None:
    """Check that a board's self-test passed and tried at least one graph.

    Raises:
        RemoteError: a graph failed, or none was tried.
    """
    failed = [trial for trial in tested["trials"] if not trial["passed"]]
    if failed or not tested["passed"]:
        reasons = "; ".join(f"{one['graph']} in {one['runtime']} ({', '.join(one['failures'])})" for one in failed)
        raise RemoteError(
            f"{host}: the self-test failed there, nothing more was done: "
            f"{len(failed)} of {len(tested['trials'])} graphs: {reasons or 'none was tried'}"
        )
