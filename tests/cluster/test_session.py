import subprocess
import sys

import pytest
from command import ROOT, without_ray

pytestmark = [pytest.mark.ray, pytest.mark.multiprocess]

# Started as a command does it, with a home of its own; then looked at from inside and outside.
LOOK = """
import os, stat, subprocess, sys
from pathlib import Path
from cluster.session import ensure_ray
ensure_ray()
import ray
from ray_nodes import family
path = Path.home() / ".ray" / "auth_token"
print("mode", oct(stat.S_IMODE(path.stat().st_mode)), "partials", len(list(path.parent.glob(".*"))))
own, inodes = family(os.getpid()), set()
for pid in own:
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try: inodes.add(os.readlink(link))
        except OSError: pass
for table in ("tcp", "tcp6"):
    for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and f"socket:[{words[9]}]" in inodes: print("listens", words[1])
join = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]); print('in')"
address = ray.get_runtime_context().gcs_address
for mode, token in (("disabled", None), ("token", "wrong" * 8), ("token", None)):
    env = {**os.environ, "RAY_AUTH_MODE": mode, "RAY_gcs_server_request_timeout_seconds": "2"}
    if token: env["RAY_AUTH_TOKEN"] = token
    call = [sys.executable, "-c", join, address]
    done = subprocess.run(call, env=env, capture_output=True, text=True)
    said = done.stdout.strip() == "in", "InvalidAuthToken" in done.stderr
    print("join", mode, token is None, *said)
    assert path.read_text() not in done.stderr
"""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_local_ray_listens_on_loopback_and_wants_a_token_that_only_its_owner_reads(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        env=without_ray(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}", HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["mode", "0o600", "partials", "0"] in lines
    listening = [line[1].partition(":")[0] for line in lines if line[0] == "listens"]
    assert len(listening) > 4
    assert set(listening) <= LOOPBACK
    joins = [line[1:] for line in lines if line[0] == "join"]
    assert joins == [
        ["disabled", "True", "False", "True"],
        ["token", "False", "False", "True"],
        ["token", "True", "True", "False"],
    ]
    assert (tmp_path / ".ray/auth_token").read_text() not in done.stdout + done.stderr
