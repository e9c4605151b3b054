"""The page "Try a ticket in your browser", in a headless Chromium, with nothing to reach but the loopback."""

import functools
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
from PIL import Image

import keras_mpt

pytestmark = [pytest.mark.slow, pytest.mark.tensorflow_only]
ROOT = pathlib.Path(__file__).resolve().parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
FLAGS += ["disable-component-update", "disable-sync", "host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
HARNESS = """
<script type="module">
import * as ticket from './ticket.js';
const post = (path, value) => fetch(path, {method: 'POST', body: JSON.stringify(value)});
const numbers = async file => new Float32Array(await (await fetch(file)).arrayBuffer());
const canvas = document.createElement('canvas');
canvas.width = canvas.height = 32;
function strokes(...lines) {
  const paper = document.createElement('canvas'), context = paper.getContext('2d');
  paper.width = paper.height = 256;
  Object.assign(context, {lineWidth: 28, lineCap: 'round'});
  for (const draw of lines) { context.beginPath(); draw(context); context.stroke(); }
  return ticket.digit(paper);
}
try {
  while (document.body.dataset.ticket !== 'ready') {
    await new Promise(later => setTimeout(later, 100));
    const text = document.getElementById('ticket-status').textContent;
    if (/could not load/.test(text)) throw new Error(text);
  }
  const known = await ticket.about(), found = {digits: [], pictures: [], drawn: [], bytes: []};
  const digits = await ticket.load(known.digits.file.name), pictures = await ticket.load(known.pictures.file.name);
  const inputs = await numbers('digits.bin'), pixels = await numbers('pixels.bin');
  const integers = await ticket.load('integers.tflite');
  for (let n = 0; n < 20; n++) {
    found.digits.push([...await ticket.logits(digits, inputs.slice(64 * n, 64 * n + 64), known.digits.shape)]);
    const image = new ImageData(32, 32);
    for (let i = 0; i < 1024; i++) {
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[3072 * n + 3 * i + c];
      image.data[4 * i + 3] = 255;
    }
    canvas.getContext('2d', {willReadFrequently: true}).putImageData(image, 0, 0);
    const bytes = Uint8Array.from(pixels.slice(3072 * n, 3072 * n + 3072));
    found.bytes.push([...await ticket.logits(integers, bytes, known.pictures.shape)]);
    const normal = ticket.normalized(canvas, known.pictures);
    found.pictures.push([...await ticket.logits(pictures, normal, known.pictures.shape)]);
  }
  const zero = strokes(c => c.ellipse(128, 128, 60, 95, 0, 0, 7));
  const one = strokes(c => { c.moveTo(90, 80); c.lineTo(140, 40); c.lineTo(140, 220); });
  const seven = strokes(c => { c.moveTo(60, 40); c.lineTo(190, 40); c.lineTo(110, 220); });
  for (const drawn of [zero, one, seven]) found.drawn.push([...await ticket.logits(digits, drawn, known.digits.shape)]);
  found.table = [...document.querySelectorAll('#ticket-sizes tr')].map(row => [...row.cells].map(c => c.textContent));
  document.querySelector('img[src="ship.png"]').click();
  await new Promise(later => setTimeout(later, 1500));
  const picture = document.getElementById('ticket-picture');
  found.sample = [...picture.getContext('2d', {willReadFrequently: true}).getImageData(0, 0, 32, 32).data];
  found.shown = document.getElementById('ticket-class').textContent;
  await post('/result', found);
} catch (error) {
  await post('/result', {error: `${error}`});
}
</script>
"""


class Handler(http.server.SimpleHTTPRequestHandler):
    results: list = []
    arrived = threading.Event()

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.results.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()
        self.arrived.set()


def in_browser(folder):
    """Open `index.html` of a folder; return what its script sends."""
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/index.html"
        flags = [f"--{flag}" for flag in FLAGS]
        with open(folder / "chromium.log", "wb") as log:
            browser = subprocess.Popen(
                [CHROMIUM, *flags, f"--user-data-dir={folder / 'profile'}", address], stdout=log, stderr=log
            )
            try:
                assert Handler.arrived.wait(240), (folder / "chromium.log").read_text()[-2000:]
            finally:
                browser.terminate()
                browser.wait(30)
                server.shutdown()
    return Handler.results[-1]


def test_the_page_computes_what_keras_does(tmp_path):
    markdown = pytest.importorskip("markdown")
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    if not CHROMIUM or not shutil.which("npm"):
        pytest.skip("needs Chromium and npm")
    folder = tmp_path / "browser"
    shutil.copytree(ROOT / "docs/browser", folder, ignore=shutil.ignore_patterns("build", "node_modules"))
    subprocess.run(["npm", "ci", "--silent", "--prefix", str(folder)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(folder / "build.py")], check=True, env=environment)

    signs = keras_mpt.zoo.get_preset("conv4_mpt11_s50")
    keras_mpt.convert.to_tflite(
        signs.path, folder / "build/integers.tflite", preprocess=signs, labels=signs.classes, weights="integer"
    )
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 32, 32, 3))
    digits = (sklearn_datasets.load_digits().images[:20, ..., None] / 8 - 1).astype("<f4")
    pixels.astype("<f4").tofile(folder / "pixels.bin")
    digits.tofile(folder / "digits.bin")
    page = markdown.markdown((folder / "index.md").read_text("utf-8"), extensions=["fenced_code", "attr_list"])
    html = f'<!doctype html><meta charset="utf-8"><body>{page}{HARNESS}</body>'
    (folder / "index.html").write_text(html, encoding="utf-8")
    found = in_browser(folder)
    assert "error" not in found, found

    known = json.loads((folder / "build/models.json").read_text())
    preset = keras_mpt.zoo.get_preset(known["pictures"]["name"])
    assert preset.accuracy == max(p.accuracy for p in keras_mpt.zoo.list_presets())
    for name, model, inputs in (
        ("digits", keras_mpt.load_ticket(folder / "digits.mpt"), digits),
        ("pictures", preset.model(), preset.preprocess(pixels)),
    ):
        expected = keras.ops.convert_to_numpy(model(inputs))
        assert len(found[name]) == 20
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    expected = keras.ops.convert_to_numpy(signs.model()(signs.preprocess(pixels)))
    same = np.abs(np.array(found["bytes"]) - expected).max(axis=1) <= 1e-5 * np.abs(expected).max()
    assert same.sum() >= 18  # rounding in the float stem may turn a first sign
    assert np.argmax(found["drawn"], axis=1).tolist() == [0, 1, 7]
    assert [row[0] for row in found["table"]] == ["digits", preset.name]
    assert all("KB" in row[1] and row[3].endswith(" ms") and row[5].endswith(" ms") for row in found["table"])
    image = Image.open(folder / "ship.png").convert("RGB").resize((32, 32), Image.Resampling.BOX)
    sample = np.reshape(found["sample"], (32, 32, 4))[..., :3]
    assert np.abs(sample - np.asarray(image, float)).mean() < 8  # the whole picture, not a corner of it
    assert any(name in found["shown"] for name in preset.classes)
