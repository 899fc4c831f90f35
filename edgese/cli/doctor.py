"""`edgese doctor`: a check of this installation, with a mend for each fault."""

from __future__ import annotations

import dataclasses
import json

import typer

from edgese.cli.terminal import Json, say


def doctor_command(as_json: Json = False) -> None:
    """Check this installation: packages, runtimes, GPU, what does not go together; with a mend for each fault."""
    from edgese.doctor import examine

    findings = examine()
    wrong = [finding for finding in findings if finding.state == "wrong"]
    if as_json:
        say(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        width = max(len(finding.part) for finding in findings)
        for finding in findings:
            say(f"{finding.state:>6}  {finding.part:<{width}}  {finding.found}")
            if finding.mend:
                say(f"{'':>6}  {'':<{width}}  -> {finding.mend}")
        say(f"{len(wrong)} wrong" if wrong else "nothing is wrong")
    if wrong:
        raise typer.Exit(code=1)
