"""`edgese serve` as a command: its log, its end, wrong usage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from ..helpers.command_line import ROOT, edgese


@pytest.mark.slow
def test_it_listens_until_sigterm_and_says_so_in_json(identity_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgese", "serve", "--model", identity_bundle, "--port", "0", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "EDGESE_TOKEN": "secret"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        try:
            lines = [json.loads(process.stderr.readline()) for _ in range(2)]
            assert "estimate: this machine holds" in lines[0]["message"]
            address = lines[1]["message"].split()[2].rstrip(":")
            with urllib.request.urlopen(address.replace("ws://", "http://") + "/health", timeout=60) as page:
                assert page.read() == b"ok\n"
            process.send_signal(signal.SIGTERM)
            said = [json.loads(line)["message"] for line in process.stderr]
            assert said == ["stopping", "stopped"]
            assert process.stdout.read() == ""
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_usage_that_cannot_be_is_told(tmp_path: Path) -> None:
    done = edgese("serve", "--tls-key", "key.pem", cwd=tmp_path, code=2)
    assert b"tls_key: found no tls_cert beside it" in done.stderr
    done = edgese("serve", "--max-streams", "0", cwd=tmp_path, code=2)
    assert b"--max-streams" in done.stderr
    done = edgese("serve", "--model", "nothing", cwd=tmp_path, code=1)
    assert b"nothing" in done.stderr
