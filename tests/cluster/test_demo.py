import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command import without_ray
from PIL import Image

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.multiprocess, pytest.mark.timeout(900)]


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", "demo", *map(str, arguments)],
        env=without_ray(PYTHONPATH=str(ROOT)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # So that a signal reaches the demo and all it starts, not pytest.
    )


def finish(process):
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((96, 72), Image.Resampling.BICUBIC).save(path, "JPEG")


@pytest.fixture
def pictures(tmp_path):
    """160 images in 2 classes, one of them twice, and one that is no image."""
    folder = tmp_path / "pictures"
    for seed in range(160):
        draw(folder / f"class{seed % 2}" / f"{seed}.jpg", seed)
    draw(folder / "class0" / "again.jpg", 0)
    (folder / "class1" / "page.jpg").write_text("<html>404</html>")
    return folder


def live_processes(session):
    """Processes of a session that still run; a killed one waits there as a zombie, state Z."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


def test_the_demo_runs_every_stage_on_a_folder_of_images(pictures, tmp_path):
    out = tmp_path / "out"
    code, shown, err = finish(start("--images", pictures, "--out", out, "--minutes", "0.1"))
    assert code == 0, err
    results = json.loads((out / "results.json").read_text())
    ledger = results["ledger"]
    assert (ledger["inputs"], ledger["accepted"], ledger["duplicate"]) == (162, 160, 1)
    assert ledger["reasons"]["quarantined"] == {"not_image": 1}
    assert results["pretrain"]["images_per_s"] > 0
    assert results["pretrain"]["chance"] == 0.01
    scores = results["transfer"]
    assert set(scores["random"]) == set(scores["pretrained"])
    assert scores["best_pretrained"] == max(scores["pretrained"].values())
    assert set(results["seconds"]) == {"shard", "pretrain", "transfer", "report"}
    assert (out / "report.html").stat().st_size > 10_000
    for name in ("report.html", "trunk.safetensors", "results.json"):
        assert name in shown


def test_ctrl_c_ends_all_processes_and_resume_does_all_that_needs_no_labels(pictures, tmp_path):
    flat, out = tmp_path / "flat", tmp_path / "out"
    flat.mkdir()
    for path in pictures.rglob("*.jpg"):
        path.rename(flat / path.name)
    process = start("--images", flat, "--out", out, "--minutes", "5")
    deadline = time.monotonic() + 240
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the pretraining did not start"
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    code, _, err = finish(process)
    assert code == 75, err  # Stopped, and can be resumed.
    assert "--resume" in err.splitlines()[-1]
    deadline = time.monotonic() + 20
    while live_processes(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert live_processes(process.pid) == []
    assert (out / "shards" / "manifest.json").exists()
    code, shown, err = finish(start("--images", flat, "--out", out, "--minutes", "0.1", "--resume"))
    assert code == 2, shown + err
    assert err.splitlines()[-1].startswith("tessera: the transfer was skipped:")
    results = json.loads((out / "results.json").read_text())
    assert results["pretrain"]["steps"] > 0
    assert "at least 2" in results["transfer"]["skipped"]
    assert (out / "report.html").exists()
