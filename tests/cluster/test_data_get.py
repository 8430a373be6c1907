import functools
import hashlib
import http.server
import io
import json
import pickle
import tarfile
import threading

import numpy as np
import pytest
from command import tessera
from foreign_shards import contents, picture
from PIL import Image
from rich.console import Console
from scipy.io import savemat
from torchvision import datasets

from cluster.data import get_data
from pipeline.config import ConfigError
from pipeline.shards.manifest import read_manifest
from pipeline.shards.store import Store
from training.transfer.images.data import TaskOptions, open_task
from training.transfer.images.pool import SplitRule


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


def put(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(number))


def caltech101(root):
    for number in range(12):
        name = ("crab", "ant", "BACKGROUND_Google")[number % 3]
        put(root / f"caltech101/101_ObjectCategories/{name}/image_{number:04}.jpg", number)
    return {"all": {"ant": 4, "crab": 4}}


def imagenette(root):
    for number in range(9):
        side, wnid = ("train", "train", "val")[number % 3], ("n01440764", "n03888257")[number % 2]
        put(root / f"imagenette2/{side}/{wnid}/{number}.JPEG", number)
    return {"train": {"tench": 3, "parachute": 3}, "test": {"tench": 2, "parachute": 1}}


def flowers102(root):
    for number in range(1, 9):
        put(root / f"flowers-102/jpg/image_{number:05}.jpg", number)
    folder = root / "flowers-102"
    savemat(folder / "imagelabels.mat", {"labels": [[1, 2, 1, 2, 102, 1, 2, 1]]})
    savemat(folder / "setid.mat", {"trnid": [[8, 2]], "valid": [[3]], "tstid": [[1, 4, 5, 6, 7]]})
    first, second, last = (datasets.Flowers102.classes[k] for k in (0, 1, 101))
    return {"train": {first: 2, second: 1}, "test": {first: 2, second: 2, last: 1}}


def pets(root):
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    rows = {"trainval": ("Sphynx_1 2 1 1", "great_pyrenees_7 1 2 1"), "test": ("Sphynx_2 2 1 1",)}
    for name, lines in rows.items():
        (folder / f"annotations/{name}.txt").write_text("#Image CLASS-ID\n" + "\n".join(lines))
        for line in lines:
            put(folder / f"images/{line.split()[0]}.jpg", len(line))
    return {"train": {"great pyrenees": 1, "Sphynx": 1}, "test": {"Sphynx": 1}}


@pytest.mark.parametrize("fake", [caltech101, imagenette, flowers102, pets])
def test_a_copy_that_is_there_becomes_shards_with_the_official_split(tmp_path, console, fake):
    wanted = fake(tmp_path / "root")
    made = get_data(fake.__name__, tmp_path / "out", console, source=tmp_path / "root")
    assert made.keys() == wanted.keys()
    for side, counts in wanted.items():
        store = Store(tmp_path / "out" if side == "all" else tmp_path / "out" / side)
        names = [store.manifest.classes[label] for label in store.labels()]
        assert {name: names.count(name) for name in set(names)} == counts
        assert store.manifest.config["data_set"] == fake.__name__
        for number in range(store.manifest.num_samples):
            about = json.loads(store.members(number)["json"])
            assert about["label"] == names[number]
    again = get_data(fake.__name__, tmp_path / "out", console, source=tmp_path / "gone")
    assert again == made


def test_the_shards_are_a_task(tmp_path, console):
    imagenette(tmp_path / "root")
    get_data("imagenette", tmp_path / "out", console, source=tmp_path / "root")
    options = TaskOptions(rule=SplitRule(folds=1))
    task = open_task(tmp_path / "out", options=options, pretrain=None, folder=tmp_path)
    assert task.classes == ("tench", "parachute")
    assert (len(task.train.targets), len(task.test.targets)) == (6, 3)


def test_a_stopped_call_goes_on(tmp_path, console):
    imagenette(tmp_path / "root")
    get_data("imagenette", tmp_path / "whole", console, source=tmp_path / "root")
    get_data("imagenette", tmp_path / "out", console, source=tmp_path / "root")
    (tmp_path / "out/test/manifest.json").unlink()
    (tmp_path / "out/test/shard-000000.json").unlink()
    get_data("imagenette", tmp_path / "out", console, source=tmp_path / "root")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_images_that_cannot_be_used_are_named(tmp_path, console):
    caltech101(tmp_path / "root")
    name = "caltech101/101_ObjectCategories/ant/image_0001.jpg"
    (tmp_path / "root" / name).write_bytes(picture(1)[:-100])
    made = get_data("caltech101", tmp_path / "out", console, source=tmp_path / "root")
    assert made["all"].ledger.quarantined == {"truncated": 1}
    printed = console.file.getvalue()
    assert "note: 1 images cannot be used: truncated" in printed
    assert "caltech101: 7 images of 2 classes" in printed


CIFAR_PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3072), np.uint8)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A CIFAR-10 of 4 and 2 images, its archive on a local server; returns the archive's bytes."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as tar:
        kind, files = datasets.CIFAR10, {}
        rows = {"data_batch_1": slice(0, 4), "test_batch": slice(4, 6)}
        for name, part in rows.items():
            labels = list(range(6))[part]
            files[name] = {"data": CIFAR_PIXELS[part], "labels": [n % 2 for n in labels]}
        files["batches.meta"] = {"label_names": ["airplane", "automobile"]}
        sums = {}
        for name, value in files.items():
            data = pickle.dumps(value)
            sums[name] = hashlib.md5(data).hexdigest()
            info = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    archive = sink.getvalue()
    monkeypatch.setattr(kind, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums["batches.meta"]})
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive).hexdigest())
    return archive


@pytest.fixture
def serve(monkeypatch):
    """A function (folder) that serves the folder where CIFAR-10 is downloaded from."""
    servers = []

    def start(folder):
        handler = functools.partial(_Quiet, directory=folder)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        servers.append((server, thread))
        url = f"http://127.0.0.1:{server.server_port}/{datasets.CIFAR10.filename}"
        monkeypatch.setattr(datasets.CIFAR10, "url", url)

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def check_cifar(out):
    for side, part in (("train", slice(0, 4)), ("test", slice(4, 6))):
        store = Store(out / side)
        assert store.manifest.classes == ("airplane", "automobile")
        assert store.labels().tolist() == [n % 2 for n in range(6)][part]
        for number, wanted in enumerate(CIFAR_PIXELS[part].reshape(-1, 3, 32, 32)):
            found = Image.open(io.BytesIO(store.members(number)["png"]))
            assert (np.asarray(found) == wanted.transpose(1, 2, 0)).all()


def test_a_download_becomes_shards_without_loss(tmp_path, console, cifar, serve):
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / datasets.CIFAR10.filename).write_bytes(cifar)
    serve(tmp_path / "www")
    get_data("cifar10", tmp_path / "out", console)
    check_cifar(tmp_path / "out")
    assert not (tmp_path / "out-files" / ".getting").exists()


def test_without_network_it_says_what_to_get_and_where_to_put_it(tmp_path, console, cifar, serve):
    (tmp_path / "www").mkdir()
    serve(tmp_path / "www")  # Every request is answered 404.
    text = r"cifar10 cannot be downloaded \(HTTP Error 404.*get cifar-10-python.tar.gz from https"
    with pytest.raises(ConfigError, match=text) as caught:
        get_data("cifar10", tmp_path / "out", console)
    assert f"put the files into {tmp_path / 'out-files'}, and run" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out-files" / datasets.CIFAR10.filename).write_bytes(cifar)
    get_data("cifar10", tmp_path / "out", console)
    check_cifar(tmp_path / "out")


def test_a_damaged_download_is_refused(tmp_path, console, cifar, serve):
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / datasets.CIFAR10.filename).write_bytes(cifar[:-9])
    serve(tmp_path / "www")
    with pytest.raises(ConfigError, match=r"cannot be downloaded \(File not found or corrupted"):
        get_data("cifar10", tmp_path / "out", console)


def test_what_a_killed_call_unpacked_is_unpacked_again(tmp_path, console, cifar):
    root = tmp_path / "out-files"
    (root / datasets.CIFAR10.base_folder).mkdir(parents=True)
    (root / datasets.CIFAR10.base_folder / "data_batch_1").write_bytes(b"half")
    (root / ".getting").touch()
    (root / datasets.CIFAR10.filename).write_bytes(cifar)
    get_data("cifar10", tmp_path / "out", console)
    check_cifar(tmp_path / "out")


def test_a_copy_with_other_bytes_is_not_unpickled(tmp_path, console, cifar):
    folder = tmp_path / "root" / datasets.CIFAR10.base_folder
    folder.mkdir(parents=True)
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps({"data": 1}))
    with pytest.raises(ConfigError, match="or its files are damaged"):
        get_data("cifar10", tmp_path / "out", console, source=tmp_path / "root")


def test_the_folder_of_another_set_is_refused(tmp_path, console):
    caltech101(tmp_path / "root")
    pets(tmp_path / "root")
    get_data("caltech101", tmp_path / "out", console, source=tmp_path / "root")
    with pytest.raises(ConfigError, match=r"holds caltech101 at .* choose another folder"):
        get_data("pets", tmp_path / "out", console, source=tmp_path / "root")
    assert read_manifest(tmp_path / "out").num_samples == 8


def test_the_command_ends_with_one_line(tmp_path):
    caltech101(tmp_path / "root")
    out, root = str(tmp_path / "out"), str(tmp_path / "root")
    done = tessera("data", "get", "caltech101", "--out", out, "--source", root)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == f"caltech101: 8 images of 2 classes in {out}"
    for args, text in {
        ("mnist",): "tessera: name (=mnist) must be one of caltech101, ",
        ("pets",): f"tessera: source (={root}) holds no oxford-iiit-pet; ",
    }.items():
        failed = tessera("data", "get", *args, "--out", f"{out}2", "--source", root)
        assert failed.exit_code == 2
        assert failed.stderr.startswith(text)
        assert failed.stderr.count("\n") == 1
