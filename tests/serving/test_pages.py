"""The pages in a real browser, against a real server."""

import json
import re
import shutil
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, absent, random_images
from PIL import Image
from serving_fixtures import SPACE, encoded, expected, noise_image, process, until, write_model

from alignseg_tf import Predictor
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.serving.settings import DEFAULT_LITERT

pytestmark = pytest.mark.slow

STATIC = ROOT / "alignseg_tf" / "serving" / "static"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Of the browser's own camera, which shows a moving figure.
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
# LiteRT.js looks for WebGPU when it starts, and the browser and it say that there is none; and the
# browser has advice for who reads a canvas often, as tests do.
NO_COMPLAINTS = ("No available adapters.", "No GPU adapter found", "willReadFrequently")
# Reads a canvas: its pixels as bytes, without those that are transparent.
PIXELS = """id => {
  const canvas = document.getElementById(id);
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return {width: canvas.width, height: canvas.height, data: Array.from(data)};
}"""


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        absent(f"no browser: {', '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *CAMERA])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "quarters"
    folder.mkdir()
    write_model(folder / "1")
    write_tflite(folder / "logits.tflite")
    write_tflite(folder / "ids.tflite", ids=True)
    return folder


@pytest.fixture(scope="module")
def url(folder):
    litert = ROOT / DEFAULT_LITERT
    options = ["--litert", str(litert)] if litert.is_dir() else []
    with process(folder, *options) as (_, address):
        yield address


class Visit:
    """A page, what it asked for, and what it complained of."""

    def __init__(self, browser, url: str, path: str = "/", **options):
        self.context = browser.new_context(
            viewport={"width": 1200, "height": 900}, permissions=["camera"], **options
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.url, self.complaints, self.requests = url, [], []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._listen)
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.goto(url + path)

    def _listen(self, message):
        known = any(words in message.text for words in NO_COMPLAINTS)
        if message.type in ("error", "warning") and not known:
            self.complaints.append(message.text)

    def choose(self, content: bytes, name: str = "street.png"):
        file = {"name": name, "mimeType": "", "buffer": content}
        self.page.locator("#file").set_input_files(file)

    def says(self, text: str, where: str = "#status"):
        """Wait for a text."""
        try:
            self.page.locator(where, has_text=text).wait_for()
        except Exception as error:
            there = self.page.locator("body").inner_text()
            raise AssertionError(f"no {text!r} in {there!r}; {self.complaints}") from error

    def pixels(self, canvas: str) -> np.ndarray:
        read = self.page.evaluate(PIXELS, canvas)
        return np.array(read["data"], np.uint8).reshape(read["height"], read["width"], 4)

    def legend(self) -> list[list[str]]:
        rows = self.page.locator("#legend tr")
        return [row.split("\t") for row in rows.all_inner_texts()]

    def check(self, complaints: int = 0):
        """All went to one host, and the console is quiet."""
        assert len(self.complaints) == complaints, self.complaints
        hosts = {urlsplit(r.url).netloc for r in self.requests if not r.url.startswith("data:")}
        assert hosts <= {urlsplit(self.url).netloc, ""}, hosts
        assert all(r.url.startswith((self.url, "data:", "blob:")) for r in self.requests)
        self.context.close()


@pytest.fixture
def visit(browser, url):
    opened = []

    def open_page(path: str = "/", server: str = "", **options) -> Visit:
        opened.append(Visit(browser, server or url, path, **options))
        return opened[-1]

    yield open_page
    for each in opened:
        each.context.close()


def mask_of(class_map: np.ndarray) -> np.ndarray:
    return np.array(SPACE.palette, np.uint8)[class_map]


def smooth(height: int = 60, width: int = 84) -> np.ndarray:
    """An image that keeps its classes when it is looked at: red rises from left to right."""
    image = noise_image(height, width)
    image[..., 0] = np.linspace(0, 220, width).astype(np.uint8)
    return image


def test_a_image_and_what_the_model_sees(visit):
    image = smooth()
    seen = visit()
    seen.says("model quarters, version 1", "#model")
    seen.choose(encoded(image))
    seen.says("Done: 4 classes in 84 x 60 pixels")
    np.testing.assert_array_equal(seen.pixels("image")[..., :3], image)
    mask = seen.pixels("mask")
    np.testing.assert_array_equal(mask[..., :3], mask_of(expected(image)))
    assert (mask[..., 3] == 255).all()
    shares = np.bincount(expected(image).ravel(), minlength=4) / expected(image).size
    order = np.argsort(-shares, kind="stable")
    assert seen.legend() == [[SPACE.classes[i], f"{100 * shares[i]:.1f} %"] for i in order]
    swatch = seen.page.locator("#legend .swatch").first
    color = ", ".join(map(str, SPACE.palette[order[0]]))
    assert swatch.evaluate("e => getComputedStyle(e).backgroundColor") == f"rgb({color})"

    # The slider, by keyboard.
    seen.page.locator("#opacity").focus()
    seen.page.keyboard.press("End")
    assert seen.page.locator("#mask").evaluate("e => getComputedStyle(e).opacity") == "1"
    assert seen.page.locator("#opacity-text").inner_text() == "100 %"
    # The file is the server's.
    with seen.page.expect_download() as download:
        seen.page.locator("#download").click()
    assert download.value.suggested_filename == "street_classes.png"
    with Image.open(download.value.path()) as classes:
        np.testing.assert_array_equal(np.asarray(classes), expected(image))

    # An unusual camera turns its images.
    exif = Image.Exif()
    exif[0x0112] = 6
    seen.choose(encoded(image, "PNG", exif=exif))
    seen.says("in 60 x 84 pixels")
    upright = np.rot90(image, -1)
    np.testing.assert_array_equal(seen.pixels("image")[..., :3], upright)
    np.testing.assert_array_equal(seen.pixels("mask")[..., :3], mask_of(expected(upright)))
    seen.check()


def test_offsets_at_the_pointer_and_at_the_keyboard(visit):
    """The model's vectors are (column, row) of their own pixel; few of them are sampled."""
    image = smooth()
    seen = visit()
    seen.choose(encoded(image))
    seen.says("Done")
    assert not [r for r in seen.requests if "offsets" in r.url]
    assert not seen.pixels("arrows").any()
    stage = seen.page.locator("#stage")
    box = stage.bounding_box()
    stage.hover(position={"x": box["width"] / 2, "y": box["height"] / 2})
    seen.says("Offset of coarse there", "#point")
    with_arrows = seen.pixels("arrows")
    assert with_arrows[..., 3].any()
    seen.page.locator("#field").select_option("fine")
    seen.says("Offset of fine there:", "#point")
    text = seen.page.locator("#point").inner_text()
    x, y = map(int, re.search(r" at (\d+), (\d+)\.", text).groups())
    assert abs(x - 41.5) < 2 and abs(y - 29.5) < 2
    name = SPACE.classes[expected(image)[y, x]]
    assert text.startswith(f"{name} (")
    # 84 columns are sampled at 64 places, so a vector is up to a spacing away.
    right, down = (float(text.split(word)[0].split()[-1]) for word in (" right", " down"))
    assert abs(right - x) < 1 and abs(down - y) < 1
    assert (seen.pixels("arrows") != with_arrows).any()
    seen.page.mouse.move(0, 0)

    stage.focus()
    for key, place in (("ArrowRight", (x + 1, y)), ("ArrowUp", (x + 1, y - 1)),
                       ("Shift+ArrowLeft", (x - 10, y - 1))):  # fmt: skip
        seen.page.keyboard.press(key)
        seen.says(f"at {place[0]}, {place[1]}.", "#point")
    for _ in range(12):  # not beyond the edge
        seen.page.keyboard.press("Shift+ArrowDown")
    seen.says(f"at {x - 10}, 59.", "#point")
    assert sum("offsets" in r.url for r in seen.requests) == 1
    seen.check()


def test_errors_are_said_in_words(visit):
    seen = visit()
    seen.choose(encoded(smooth()))
    seen.says("Done")
    whole = encoded(noise_image(200, 200))
    for content, words, detail in (
        (b"no image at all", "not an image of a kind that the server reads", "bytes that start"),
        (whole[: len(whole) // 2], "The image is damaged, too small", "not readable as an image"),
        (encoded(noise_image(20, 20)), "The image is damaged, too small", "20 x 20"),
        (bytes(17 * 2**20), "This file has 17.8 MB; the server takes 16.8 MB", ""),
    ):
        seen.choose(content, "broken.png")
        seen.says(words, "#error-text")
        seen.says(detail, "#error")
        assert not seen.page.locator("#result").is_visible()
    assert seen.page.locator("#error").get_attribute("role") == "alert"
    seen.choose(encoded(smooth()))
    seen.says("Done")
    assert not seen.page.locator("#error").is_visible()
    seen.check(complaints=3)  # the browser writes down each status of an error


def test_the_camera_and_the_keyboard(visit):
    seen = visit()
    seen.page.locator("#choose").wait_for()
    for _ in range(9):  # to the button by Tab alone
        seen.page.keyboard.press("Tab")
        if seen.page.evaluate("document.activeElement.id") == "camera":
            break
    seen.page.keyboard.press("Enter")
    seen.page.locator("#shoot:focus").wait_for()
    until(lambda: seen.page.evaluate("document.getElementById('video').videoWidth > 0"))
    seen.page.keyboard.press("Enter")
    seen.says("Done")
    assert seen.page.evaluate("document.activeElement.id") == "result"
    sent = [r for r in seen.requests if r.method == "POST"]
    assert len(sent) == 1  # an image a press
    seen.page.locator("#camera-off").click()
    assert not seen.page.locator("#video").is_visible()
    seen.check()


def test_dropping_and_pasting(visit):
    image = encoded(smooth())
    make = """([kind, bytes]) => {
      const files = new DataTransfer();
      files.items.add(new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"}));
      const options = {bubbles: true, cancelable: true};
      const event = kind == "paste" ? new ClipboardEvent(kind, {...options, clipboardData: files})
        : new DragEvent(kind, {...options, dataTransfer: files});
      document.body.dispatchEvent(event);
    }"""
    for kind in ("drop", "paste"):
        seen = visit()
        seen.says("model quarters", "#model")
        seen.page.evaluate(make, [kind, list(image)])
        seen.says("Done: 4 classes")
        seen.check()


def test_a_token_is_asked_for_and_kept_in_memory(visit, folder, tmp_path):
    (tmp_path / "token").write_text("secret-of-the-server")
    with process(folder, "--token-file", str(tmp_path / "token")) as (_, address):
        seen = visit(server=address)
        seen.says("The server wants an access token.", "#error-text")
        field = seen.page.get_by_label("Token of this server, if it wants one")
        field.fill("wrong")
        seen.page.keyboard.press("Enter")
        seen.says("The server does not know this access token.", "#error-text")
        field.fill("secret-of-the-server")
        seen.page.keyboard.press("Enter")
        seen.says("model quarters", "#model")
        seen.choose(encoded(smooth()))
        seen.says("Done")
        stored = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
        assert seen.page.evaluate(stored) == '[{},{},""]'
        assert not [r for r in seen.requests if "secret" in r.url]
        seen.page.reload()
        seen.says("The server wants an access token.", "#error-text")
        seen.check(complaints=3)


@pytest.mark.parametrize(
    ("path", "scheme", "motion", "animation"),
    [
        ("/", "light", "reduce", "none"), ("/", "dark", "no-preference", "turn"),
        ("/static/device.html", "light", "no-preference", "turn"),
        ("/static/device.html", "dark", "reduce", "none"),
    ],
)  # fmt: skip
def test_the_pages_can_be_read(visit, path, scheme, motion, animation):
    """At 320 pixels nothing is cut off; every control has a name; text stands out."""
    seen = visit(path, color_scheme=scheme, reduced_motion=motion)
    seen.page.set_viewport_size({"width": 320, "height": 640})
    if path == "/":
        seen.choose(encoded(smooth()))
        seen.says("Done")
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 320
    for control in seen.page.locator("button, select, input").all():
        if control.is_visible():
            snapshot = control.aria_snapshot()
            assert '"' in snapshot, snapshot
    for low in seen.page.evaluate(CONTRAST):
        assert low["ratio"] >= 4.5, low
    assert seen.page.locator("#status").get_attribute("aria-live") == "polite"
    assert seen.page.locator("html").get_attribute("lang") == "en"
    assert seen.page.evaluate(ANIMATION) == animation
    seen.check()


ANIMATION = """() => {
  document.getElementById("status").classList.add("working");
  return getComputedStyle(document.getElementById("status"), "::before").animationName;
}"""
# Text, its contrast against the nearest ground that is painted; WCAG 2's formula.
CONTRAST = """() => {
  const channels = (color) => (color.match(/[\\d.]+/g) ?? []).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter((n) => n.nodeType == 3 && n.data.trim());
    if (!text.length || !element.checkVisibility()) continue;
    let ground = element;
    let color = [0, 0, 0, 0];
    for (; ground; ground = ground.parentElement) {
      color = channels(getComputedStyle(ground).backgroundColor);
      if (color.length == 3) break;
    }
    const pair = [light(channels(getComputedStyle(element).color).slice(0, 3)),
      light(color.slice(0, 3))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    found.push({text: text[0].data.trim().slice(0, 40), ratio});
  }
  return found;
}"""


# ---- on the device

SIZE = (48, 64)


def write_tflite(path: Path, ids: bool = False) -> None:
    """A fixed-size model: three classes, by the strongest channel; uint8 in where it gives ids."""
    kind = tf.uint8 if ids else tf.float32
    rng = np.random.default_rng(0)
    kernel = tf.constant(np.eye(3)[None, None] + rng.normal(0, 0.1, (3, 3, 3, 3)), tf.float32)

    @tf.function(input_signature=[tf.TensorSpec((1, *SIZE, 3), kind)])
    def run(images):
        values = tf.cast(images, tf.float32) / 255
        if ids:
            scores = tf.nn.conv2d(values, kernel, 1, "SAME")
            return tf.argmax(scores, -1, output_type=tf.int32)
        return tf.nn.conv2d(values, kernel, 4, "SAME")

    converter = tf.lite.TFLiteConverter.from_concrete_functions([run.get_concrete_function()])
    path.write_bytes(converter.convert())
    space = LabelSpace(("red", "green", "blue"))
    method = zipfile.ZIP_DEFLATED if ids else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.writestr("classes.json", json.dumps(space.to_dict()))


@pytest.fixture
def litert():
    if not (ROOT / DEFAULT_LITERT / "index.js").is_file():
        absent("LiteRT.js is not here: make web")


def mask_ids(seen: Visit, space: LabelSpace) -> np.ndarray:
    colors = seen.pixels("mask")[..., :3].astype(int) @ [65536, 256, 1]
    table = np.array(space.palette) @ [65536, 256, 1]
    return (colors[..., None] == table).argmax(-1)


@pytest.mark.parametrize("name", ["logits.tflite", "ids.tflite"])
@pytest.mark.parametrize("size", [SIZE, (70, 50)])
def test_a_model_runs_on_the_device(visit, litert, folder, name, size):
    image = random_images(1, *size)[0]
    seen = visit("/static/device.html")
    seen.page.locator("#models option").first.wait_for(state="attached")
    seen.page.locator("#models").select_option(f"/v1/models/quarters/files/{name}")
    seen.page.locator("#load").click()
    seen.says(f"{name} is loaded")
    asked = len(seen.requests)
    seen.choose(encoded(image))
    seen.says("Done on this device in")
    # Nothing was asked for with the image or after it, and nothing was ever sent.
    assert len(seen.requests) == asked
    assert {r.method for r in seen.requests} == {"GET"}
    assert not any(r.post_data_buffer for r in seen.requests)
    predictor = Predictor(folder / name)
    assert predictor.label_space == LabelSpace(("red", "green", "blue"))
    wanted = predictor.class_map(image)
    found = mask_ids(seen, predictor.label_space)
    assert found.shape == wanted.shape
    # Browsers resize in another way than Pillow.
    assert (found == wanted).mean() >= (0.999 if size == SIZE else 0.97)
    shares = [float(row[1].split()[0]) for row in seen.legend()]
    wanted_shares = 100 * np.bincount(found.ravel()) / found.size
    np.testing.assert_allclose(shares, sorted(wanted_shares, reverse=True), atol=0.051)
    seen.check()


def test_what_cannot_run_on_the_device_is_said(visit, litert, folder, tmp_path):
    seen = visit("/static/device.html")
    seen.choose(b"no image", "broken.png")
    seen.says("The image is here. Load a model")
    file = seen.page.locator("#model-file")
    (tmp_path / "none.tflite").write_bytes(b"no model" * 100)
    file.set_input_files(tmp_path / "none.tflite")
    seen.says("none.tflite is not a .tflite file that LiteRT.js reads", "#error-text")
    seen.complaints.clear()  # LiteRT.js has written down why
    file.set_input_files(folder / "ids.tflite")
    seen.says("This file is damaged, or not an image", "#error-text")
    seen.choose(encoded(smooth()))
    seen.says("Done on this device")
    seen.check()


def test_a_server_with_few_pixels_and_without_litert(visit, folder, tmp_path):
    with process(folder, "--litert", str(tmp_path), "--max-pixels", "4000") as (_, address):
        seen = visit(server=address)
        seen.says("model quarters", "#model")
        seen.choose(encoded(smooth(120, 168)))
        seen.says("in 74 x 53 pixels. It was made smaller first, to 74 x 53")
        seen.check()
        seen = visit("/static/device.html", server=address)
        seen.page.locator("#models option").first.wait_for(state="attached")
        seen.page.locator("#load").click()
        seen.says("make web", "#error-text")
        seen.check(complaints=1)


def test_no_page_has_scripts_or_styles_inside():
    for path in STATIC.glob("*.html"):
        text = path.read_text()
        assert " style=" not in text and "<style" not in text
        assert text.count("<script") == text.count('<script type="module" src="/static/') == 1
        assert "http://" not in text and "https://" not in text


def test_the_lock_file_names_no_registry():
    lock = json.loads((ROOT / "web" / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert packages["node_modules/@litertjs/core"]["version"] == "2.5.3"
    for entry in packages.values():
        assert "resolved" not in entry
        assert entry["integrity"].startswith("sha512-")
