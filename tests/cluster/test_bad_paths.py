"""Every path of every command: missing, unreadable, unwritable, full, of the wrong kind.

Tests may run as root, whom no mode bits stop. So what nobody can write lies below a regular file
or in /proc, what nobody can read is a loop of links, and a disk is full by a limit on file sizes.
"""

import tarfile
from pathlib import Path

import pytest
import yaml
from command import refused, tessera

from cluster.cli import COMMANDS

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo"
ROTATION = {"name": "rotation", "crop_px": 48}
SVM = {"name": "svm", "map_side": 2, "costs": [0.01]}

# Of each command: its words, of which {in:...} and {out:...} name a path that is read or written.
CALLS = {
    "shard": "shard {in:images} --out {out:dir} --config {in:shard_config} --json {out:file}",
    "index": "index {in:tar} --out {out:dir} --json {out:file}",
    "pretrain": "pretrain {in:config} data.manifest={in:shards} out={out:dir} --local",
    "transfer": "transfer {in:config} out={out:dir} --json {out:file} --local",
    "report": "report {in:run}",
    "submit": "submit {in:config}",
    "demo": "demo --images {in:images} --out {out:dir}",
    "audit": "audit {in:config} {in:shards} --images 40 --out {out:dir} --json {out:file}",
    "explain": "explain {in:shards} --config {in:config} --epoch 0 --step 0 --save {out:dir}"
    " --json {out:file}",
    "explain run": "explain {in:run} --epoch 0 --step 0",
    "permutations": "permutations --size 4 --tiles 4 --out {out:npy} --plot {out:png}"
    " --json {out:file}",
    "preview": "preview {in:config} {in:shards} --out {out:dir}",
    "inspect": "inspect {in:shards} --page {out:file} --json {out:file}",
    "verify": "verify {in:shards} --json {out:file}",
    "repair": "repair {in:shards} --out {out:dir} --json {out:file}",
    "purge": "purge {in:shards} --hashes {in:hashes} --json {out:file}",
    "merge": "merge {in:shards} {in:shards} --out {out:dir}",
    "split": "split {in:shards} a=0.5 b=0.5 --out {out:dir}",
    "config": "config --out {out:file}",
    "bench loader": "bench loader --data {in:images} --json {out:file}",
    "bench shard": "bench shard --data {in:images} --json {out:file}",
    "bench transfer": "bench transfer --data {in:images} --json {out:file}",
    "bench walk": "bench walk --json {out:file}",
    "bench faults": "bench faults --json {out:file}",
    "bench soak": "bench soak --data {in:shards} --json {out:file}",
    "data": "data get cifar10 --source {in:known} --out {out:dir}",
}
IN_FAULTS = ("missing", "loop", "below_file", "wrong_kind", "garbage")
OUT_FAULTS = ("below_file", "proc", "loop", "wrong_kind")


def slots(call):
    return [word for word in call.replace("=", " ").split() if word.startswith("{")]


def cases():
    for name, call in CALLS.items():
        for number, slot in enumerate(slots(call)):
            faults = IN_FAULTS if slot.startswith("{in") else OUT_FAULTS
            for fault in faults:
                if fault == "garbage" and slot == "{in:tar}":
                    continue  # Damage, whose exit code is 1.
                if fault == "loop" and slot.startswith("{out") and slot != "{out:dir}":
                    continue  # A file takes the place of a link.
                yield pytest.param(name, number, fault, id=f"{name}-{number}{slot}-{fault}")


@pytest.fixture(scope="module")
def sound(tmp_path_factory, shards):
    """What each kind of input is if nothing is wrong."""
    folder = tmp_path_factory.mktemp("sound")
    raw = yaml.safe_load((DEMO / "pretrain.yaml").read_text())
    raw["data"]["manifest"], raw["out"] = str(shards), str(folder / "unused")
    raw["order"] = {"global_batch": 64, "num_lanes": 4, "window": 16}
    raw |= {"pretext": ROTATION, "trunk": {"name": "small"}}
    raw["train"] = {"epochs": 1}
    raw["transfer"] = {"view_px": 48, "test_share": 0.4, "seeds": [1], "jobs": [SVM]}
    (folder / "run.yaml").write_text(yaml.safe_dump(raw))
    (folder / "shard.yaml").write_text("min_side: 32\n")
    (folder / "hashes.txt").write_text("0" * 32 + "\n")
    images = folder / "images" / "one"
    images.mkdir(parents=True)
    with tarfile.open(shards / "shard-000000.tar") as tar:
        for member in tar.getmembers()[:8]:
            if member.name.endswith(".jpg"):
                (images / member.name).write_bytes(tar.extractfile(member).read())
    return {
        "images": folder / "images",
        "shards": shards,
        "tar": shards / "shard-000000.tar",
        "config": folder / "run.yaml",
        "shard_config": folder / "shard.yaml",
        "hashes": folder / "hashes.txt",
        "known": folder / "known",
    }


def faulty(fault, kind, folder):
    """A path with a fault; `kind` is what it should be."""
    is_folder = kind in {"images", "shards", "run", "known", "dir"}
    path = folder / f"faulty-{kind}"
    match fault:
        case "missing":
            return path
        case "loop":
            path.symlink_to(path)
            return path
        case "below_file":
            (folder / "file").write_text("a regular file")
            return folder / "file" / "below"
        case "proc":
            return Path("/proc/nothing") / "below"
        case "wrong_kind":
            path.write_text("a regular file") if is_folder else path.mkdir()
            return path
        case "garbage":
            file = path / "manifest.json" if is_folder else path
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(b"\x00\xff garbage" * 100)
            return path
    raise AssertionError(fault)


def words(call, sound, folder, bad=None, fault=None):
    """The arguments of a call, one of its paths faulty, and that path."""
    path = None
    for number, slot in enumerate(slots(call)):
        side, kind = slot.strip("{}").split(":")
        if number == bad:
            filled = path = faulty(fault, kind, folder)
        elif side == "in":
            filled = sound[kind]
        else:
            ending = {"npy": ".npy", "png": ".png"}.get(kind, "")
            filled = folder / f"out-{number}{ending}"
        call = call.replace(slot, str(filled), 1)
    return call.split(), path


@pytest.mark.parametrize(("name", "number", "fault"), list(cases()))
def test_a_bad_path_is_one_line(name, number, fault, sound, tmp_path):
    call, _ = words(CALLS[name], sound, tmp_path, number, fault)
    assert refused(tessera(*call), "tessera: ")


def test_every_command_is_tried():
    assert {name.split()[0] for name in CALLS} == set(COMMANDS)
