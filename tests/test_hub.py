"""Tickets on a hub and on the web: a fake of both on the loopback, with the real clients."""

import base64
import hashlib
import http.server
import json
import pathlib
import shutil
import sys
import threading

import keras
import numpy as np
import pytest

import keras_mpt
from keras_mpt import hub, remote
from keras_mpt.layers import MPTDense

pytestmark = pytest.mark.slow_with("jax", "torch")


class FakeHub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's API as one commit and the download of its files need; files are at any other path, too."""

    files: dict = {}  # "owner/name/file" or "/folder/file": content
    requests: list = []
    commit = "0123456789abcdef0123456789abcdef01234567"

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        self.requests.append((self.command, self.path))
        path = self.path.partition("?")[0]
        if "/resolve/" in path:
            repo, _, rest = path[1:].partition("/resolve/")
            path = f"{repo}/{rest.partition('/')[2]}"
        content = self.files.get(path)
        if content is None:
            return self.answer(
                {"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=self.commit
            )
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self.answer(content, ETag=etag, X_Repo_Commit=self.commit, Content_Type="application/octet-stream")

    do_HEAD = do_GET

    def do_POST(self):
        self.requests.append((self.command, self.path))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            return self.answer(
                {"url": f"http://{self.headers['Host']}/{json.loads(body)['organization']}/x", "name": "x"}
            )
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if "/commit/" in self.path:
            repo = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[f"{repo}/{line['value']['path']}"] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/{repo}/commit/{self.commit}"
            return self.answer({"commitUrl": url, "commitOid": self.commit, "success": True})
        self.answer({}, 404)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(FakeHub, "files", {})
    monkeypatch.setattr(FakeHub, "requests", [])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def ticket(tmp_path):
    model = keras.Sequential([keras.Input((4,)), MPTDense(3, seed=0)])
    return keras_mpt.save_ticket(model, tmp_path / "small.mpt", provenance={"data": "none | at all"})


def forget_client():
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]


@pytest.fixture
def client(server, tmp_path, monkeypatch):
    """Let huggingface_hub, which reads its environment when it is imported, take the fake for the hub."""
    pytest.importorskip("huggingface_hub")
    own = {"HF_ENDPOINT": server, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_fake", "no_proxy": "127.0.0.1"}
    for name, value in {**own, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}.items():
        monkeypatch.setenv(name, value)
    forget_client()
    yield
    forget_client()


def test_a_ticket_goes_to_the_hub_and_comes_back(client, ticket, monkeypatch):
    assert hub.push_to_hub(ticket, "me/digits", metadata={"license": "mit"}) == "hf://me/digits"
    assert set(FakeHub.files) == {"me/digits/ticket.mpt", "me/digits/README.md", "me/digits/preset.json"}
    content = ticket.path.read_bytes()
    assert FakeHub.files["me/digits/ticket.mpt"] == content
    preset = json.loads(FakeHub.files["me/digits/preset.json"])
    assert preset == {"name": "digits", "sha256": hashlib.sha256(content).hexdigest(), "data": "none | at all"}
    loaded = keras_mpt.load_ticket("hf://me/digits")
    x = np.ones((1, 4), "float32")
    expected = keras_mpt.load_ticket(ticket.path).predict(x, verbose=0)
    assert np.array_equal(loaded.predict(x, verbose=0), expected)

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = len(FakeHub.requests)
    assert keras_mpt.tickets.Ticket.read("hf://me/digits@main/ticket.mpt").layers == ticket.layers  # from the cache
    with pytest.raises(FileNotFoundError, match="hf://me/other cannot be fetched with HF_HUB_OFFLINE set"):
        keras_mpt.load_ticket("hf://me/other")
    assert len(FakeHub.requests) == before
    monkeypatch.delenv("HF_HUB_OFFLINE")

    with pytest.raises(FileNotFoundError, match="hf://me/no cannot be fetched: "):
        keras_mpt.load_ticket("hf://me/no")
    FakeHub.files["me/digits/preset.json"] = json.dumps({"sha256": 64 * "0"}).encode()
    monkeypatch.setattr(FakeHub, "commit", FakeHub.commit[::-1])
    with pytest.raises(
        ValueError, match=f"hf://me/digits is not the file that was published: SHA-256 .* not {64 * '0'}"
    ):
        keras_mpt.load_ticket("hf://me/digits")
    del FakeHub.files["me/digits/preset.json"]  # without one, the ticket's own checksums are all there is
    monkeypatch.setattr(FakeHub, "commit", 40 * "a")
    assert keras_mpt.tickets.Ticket.read("hf://me/digits").layers == ticket.layers


def test_a_ticket_of_the_web(server, ticket, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    content = ticket.path.read_bytes()
    FakeHub.files["/a/x.mpt"], FakeHub.files["/b/x.mpt"] = content, b"another"
    address, right = f"{server}/a/x.mpt", hashlib.sha256(content).hexdigest()
    for source in (address, f"{address}#sha256={right}"):
        assert keras_mpt.tickets.Ticket.read(source).layers == ticket.layers
    assert len(FakeHub.requests) == 1  # the second time, it was there
    with pytest.raises(keras_mpt.TicketError, match="is not a ticket"):
        keras_mpt.load_ticket(f"{server}/b/x.mpt")
    with pytest.raises((OSError, ValueError), match="cannot be fetched|is not the file"):
        keras_mpt.load_ticket(f"{address}#sha256={64 * '0'}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE"):
        keras_mpt.load_ticket(f"{server}/c/x.mpt")


def test_a_killed_download_leaves_no_part_of_a_ticket(server, ticket, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    FakeHub.files["/a/x.mpt"] = content = ticket.path.read_bytes()

    def killed(_, path, *__):
        pathlib.Path(path).write_bytes(content[: len(content) // 2])
        raise SystemExit  # which Keras does not catch

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("keras.src.utils.file_utils.urlretrieve", killed)
        keras_mpt.tickets.Ticket.read(f"{server}/a/x.mpt")
    assert keras_mpt.tickets.Ticket.read(f"{server}/a/x.mpt").layers == ticket.layers


def test_a_folder_of_keras_that_cannot_be_written_to(server, ticket, tmp_path, monkeypatch):
    """Keras downloads to the folder for temporary files then."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "not there"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    FakeHub.files["/a/x.mpt"] = ticket.path.read_bytes()
    found = keras_mpt.tickets.Ticket.read(f"{server}/a/x.mpt")
    assert found.layers == ticket.layers and tmp_path not in found.path.parents
    shutil.rmtree(found.path.parent)


def test_what_a_provenance_calls_its_own_changes_no_checksum(client, ticket):
    """Nor does a character that two of JSON's escapes stand for become two in YAML, or a line end a table."""
    yaml = pytest.importorskip("yaml")
    provenance, metadata = (
        {"sha256": "of the data", "name": "a", "a | b": 1},
        {"license": "mit", "tags": ["\N{DOG FACE}"]},
    )
    model = keras_mpt.load_ticket(ticket.path)
    hub.push_to_hub(model, "me/digits", metadata=metadata, provenance=provenance)
    assert keras_mpt.tickets.Ticket.read("hf://me/digits").provenance == provenance
    _, block, page = FakeHub.files["me/digits/README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(block)["tags"] == ["\N{DOG FACE}"]
    assert "| a \\| b | 1 |" in page and "| sha256 | of the data |" in page


@pytest.mark.parametrize(
    "source",
    ["hf://me", "hf://me/x/y.txt", "https://host/x.zip", "https://host/x.mpt#sha256=12", "https://host/x.mpt#x"],
)
def test_addresses_of_another_form(source):
    with pytest.raises(ValueError, match=r"`path` must be of the form .* Received: '"):
        keras_mpt.load_ticket(source)


def test_a_folder_with_a_ticket(ticket, tmp_path):
    ticket.path.rename(tmp_path / remote.TICKET)
    assert keras_mpt.tickets.Ticket.read(tmp_path).layers == ticket.layers
    assert keras_mpt.tickets.Ticket.read(str(tmp_path)).size == ticket.size


def test_networks_of_the_zoo_take_addresses(server, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    preset = keras_mpt.zoo.get_preset("conv4_mpt32_s80")
    FakeHub.files["/conv4.mpt"] = preset.path.read_bytes()
    model = keras_mpt.zoo.conv4_mpt(weights=f"{server}/conv4.mpt")
    logits = model(preset.preprocess(preset.golden_images()))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(logits), preset.golden, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="must be a ticket of conv2_mpt"):
        keras_mpt.zoo.conv2_mpt(weights=f"{server}/conv4.mpt")


def test_the_card_has_the_metadata_block(ticket):
    yaml = pytest.importorskip("yaml")
    text = hub.card(ticket, "me/digits", {"license": "mit", "datasets": ["a: b", "#c"]})
    _, block, page = text.split("---\n", 2)
    assert yaml.safe_load(block) == {
        "library_name": "keras_mpt",
        "tags": ["keras", "pruning", "lottery-ticket"],
        "license": "mit",
        "datasets": ["a: b", "#c"],
    }
    assert 'load_ticket("hf://me/digits")' in page and "| weights | 12, of which 6 (50.0%) are kept |" in page
    assert "| data | none \\| at all |" in page


def test_what_cannot_be_pushed(ticket):
    for repo_id in ("digits", "me/a/b", "/x", None):
        with pytest.raises(ValueError, match=r'`repo_id` must be of the form "owner/name". Received: repo_id='):
            hub.push_to_hub(ticket, repo_id)
    with pytest.raises(ValueError, match="`provenance` must be None"):
        hub.push_to_hub(ticket, "me/digits", provenance={"a": 1})


def test_cards_of_the_zoo_have_the_block():
    yaml = pytest.importorskip("yaml")
    for preset in keras_mpt.zoo.list_presets():
        _, block, page = preset.path.with_suffix(".md").read_text(encoding="utf-8").split("---\n", 2)
        known = yaml.safe_load(block)
        (result,) = known["model-index"][0]["results"]
        assert result["metrics"] == [{"type": "accuracy", "value": preset.accuracy}]
        assert known["library_name"] == "keras_mpt" and page.startswith(f"# {preset.name}\n")
