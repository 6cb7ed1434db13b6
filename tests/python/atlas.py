"""Uses the page of `pauc-cli atlas` in a real browser: Chromium, driven by Playwright.

    python tests/python/atlas.py target/debug/pauc-cli [chromium]

Needs the package in requirements-browser.txt, and Chromium as Debian packages it. The images are drawn here: blots of
three colors, one folder each. One name contains HTML, one image is a copy, and one is in the wrong folder.
"""

import argparse
import pathlib
import shutil
import struct
import subprocess
import tempfile
import zlib

from playwright.sync_api import sync_playwright

PER_CLASS = 40
COLORS = {"amber": (220, 140, 20), "blue": (30, 70, 200), "green": (20, 160, 60)}
HTML = "<b onclick=alert(1)>&amp;.png"
COPY = "zz-copy.png"
WRONG = "zz-wrong.png"
# What pauc takes for a name: the path within the folder.
HTML_NAME = f"amber/{HTML}"

RECIPE = """Recipe(
    name: "blots",
    data: ImageFolder(root: "images", test_fraction: 0),
    views: [(count: 2, ops: [RandomResizedCrop(size: 16)])],
    encoder: ConvNet(channels: [8, 16], grid: 2),
    projector: Mlp(dims: [8]),
    clusterer: KMeans(k: [4, 8], start: Epochs(0), every: Epochs(1)),
    objective: [(term: InfoNce(temperature: 0.2)), (term: ProtoNce())],
    train: (epochs: 2, batch: 20),
)
"""


def png(pixels):
    """Encodes rows of RGB pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(v for pixel in row for v in pixel) for row in pixels)
    header = struct.pack(">IIBBBBB", len(pixels[0]), len(pixels), 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def blot(color, number):
    """A disk on a light ground; place, size and shade depend on the number."""
    x, y, radius = 8 + 6 * (number % 5), 8 + 6 * (number // 5 % 4), 5 + number % 4
    shade = 0.7 + 0.05 * (number % 7)
    inside = tuple(min(255, int(shade * c)) for c in color)
    ground = (235 - number % 11, 235, 230)
    return [[inside if (i - x) ** 2 + (j - y) ** 2 < radius**2 else ground for i in range(40)] for j in range(32)]


def draw_images(folder):
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            (folder / name / f"{number:03}.png").write_bytes(png(blot(color, number)))
    (folder / "amber" / HTML).write_bytes(png(blot(COLORS["amber"], 55)))
    shutil.copy(folder / "blue" / "007.png", folder / "blue" / COPY)
    (folder / "green" / WRONG).write_bytes(png(blot(COLORS["blue"], 23)))


def make_atlas(program, folder):
    """Trains for two epochs and draws the atlas; returns the page."""
    draw_images(folder / "images")
    (folder / "recipe.ron").write_text(RECIPE)

    def pauc(*arguments):
        done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    pauc("run", "recipe.ron", "--seeds", "0")
    (run,) = (folder / "runs").glob("*/seed0")
    out = pauc("atlas", str(run), "--duplicates", "0.99999")
    print(out.strip())
    return run / "atlas.html"


class Page:
    """The page, and what the tests ask of it."""

    def __init__(self, page):
        self.page = page

    def __getattr__(self, name):
        return getattr(self.page, name)

    def number(self, expression):
        return self.page.evaluate(f"atlas.{expression}")

    def wait(self, expression):
        """Waits until an expression is true. The page's policy forbids Playwright's own way, which evaluates text."""
        for _ in range(200):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never true: {expression}")

    def rest(self):
        """Waits until the map stands still."""
        self.page.wait_for_timeout(450)

    def place(self, name):
        """The place of an image on the screen."""
        return self.page.evaluate(
            """name => {
                const i = [...Array(atlas.data.count).keys()].find(i => atlas.data.nameOf(i) === name);
                const [x, y] = atlas.view.toScreen(i);
                const box = atlas.draw.canvas.getBoundingClientRect();
                return [x + box.left, y + box.top];
            }""",
            name,
        )

    def selected(self):
        return self.page.evaluate("atlas.draw.shown.selected < 0 ? null : atlas.data.nameOf(atlas.draw.shown.selected)")

    def text(self, selector):
        return self.page.inner_text(selector)

    def named(self, selector):
        """The names in a list."""
        return self.page.locator(f"{selector} .item .name").all_inner_texts()


def check_load(page):
    assert page.number("data.count") == 3 * PER_CLASS + 3
    assert page.text("h1") == "blots"
    modes = page.locator("#color option").all_text_contents()
    assert modes == [
        "Class",
        "Prototype",
        "How typical",
        "Concentration of the prototype",
        "Neighbors with another label",
    ], modes
    keys = page.locator("#legend .key .name").all_inner_texts()
    assert keys == list(COLORS), keys
    # Something is drawn in the color of each class.
    drawn = page.evaluate(
        """() => {
            const { canvas } = atlas.draw;
            const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return new Set(new Uint32Array(pixels.buffer)).size;
        }"""
    )
    assert drawn > 10, drawn


def check_zoom_and_pan(page):
    fixed, before = page.place("blue/003.png"), page.place("green/003.png")
    page.mouse.move(*fixed)
    for _ in range(4):
        page.mouse.wheel(0, -240)
    page.rest()
    assert page.number("view.zoom") > 3
    assert page.number("draw.boxes.length") > 0, "thumbnails appear"
    # The point under the pointer stays, and others move away from it. The pointer is at a whole pixel.
    after, zoom = page.place("green/003.png"), page.number("view.zoom")
    assert all(abs(now - then) < zoom for now, then in zip(page.place("blue/003.png"), fixed))
    assert all(abs(a - f - zoom * (b - f)) < zoom for a, b, f in zip(after, before, fixed)), (after, before, fixed, zoom)
    x = page.number("view.state.x")
    page.mouse.down()
    page.mouse.move(fixed[0] + 60, fixed[1], steps=4)
    page.mouse.up()
    moved = (x - page.number("view.state.x")) * page.number("view.state.scale")
    assert abs(moved - 60) < 1, moved
    assert page.selected() is None, "a drag selects nothing"
    page.click("#fit")
    page.rest()
    assert abs(page.number("view.zoom") - 1) < 1e-6


def check_hover_and_click(page):
    page.mouse.move(*page.place(HTML_NAME))
    page.wait_for_selector("#tip:not([hidden])")
    tip = page.text("#tip")
    shown = page.evaluate("atlas.data.nameOf(atlas.draw.shown.hovered)")
    assert shown in tip and "more typical than" in tip and "prototype" in tip, tip
    page.evaluate("name => atlas.goTo([...Array(atlas.data.count).keys()].find(i => atlas.data.nameOf(i) === name))", HTML_NAME)
    page.rest()
    page.mouse.click(*page.place(HTML_NAME))
    assert page.selected() == HTML_NAME
    assert page.text("#selected h2") == HTML_NAME, "a name is text"
    assert page.locator("#selected b").count() == 0
    assert page.locator(".nearest li").count() == 24
    live = page.text("#live")
    assert HTML_NAME in live and "Class: amber" in live and "Nearest: " in live, live
    first = page.locator(".nearest button").first
    other = first.get_attribute("title")
    first.click()
    assert page.selected() == other
    # The copy is the nearest image of what it was copied from.
    page.fill("#search", "blue/007")
    page.press("#search", "Enter")
    page.rest()
    assert page.selected() == "blue/007.png"
    assert page.locator(".nearest button").first.get_attribute("aria-label") == f"blue/{COPY}, cosine 1.00"
    page.keyboard.press("Escape")
    assert page.selected() is None and page.input_value("#search") == ""


def check_search(page):
    page.fill("#search", "zz-")
    page.wait_for_selector("#panel-found:not([hidden])")
    assert page.text("#found-title") == "2 images with “zz-”"
    assert sorted(page.named("#found")) == [f"blue/{COPY}", f"green/{WRONG}"]
    assert page.evaluate("atlas.draw.shown.shades.filter(s => s === atlas.draw.Shade.BRIGHT).length") == 2
    page.fill("#search", "<b on")
    page.wait("document.getElementById('found-title').textContent.startsWith('1 image ')")
    assert page.named("#found") == [HTML_NAME]
    page.fill("#search", "nothing like this")
    page.wait("document.getElementById('found-title').textContent.startsWith('No name')")
    page.keyboard.press("Escape")
    assert not page.is_visible("#tab-found")


def check_lasso(page):
    page.click("#fit")
    page.rest()
    box = page.locator("#map").bounding_box()
    corners = [(2, 2), (box["width"] - 2, 2), (box["width"] - 2, box["height"] - 2), (2, box["height"] - 2), (2, 6)]
    page.click("#lasso")
    assert page.get_attribute("#lasso", "aria-pressed") == "true"
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    for x, y in corners[1:]:
        page.mouse.move(box["x"] + x, box["y"] + y, steps=3)
    page.mouse.up()
    everything = page.number("data.count")
    assert page.text("#found-title") == f"{everything} images inside the lasso"
    assert page.get_attribute("#lasso", "aria-pressed") == "false"
    with page.expect_download() as download:
        page.click("#save")
    lines = pathlib.Path(download.value.path()).read_text().splitlines()
    assert len(lines) == everything and HTML_NAME in lines
    page.click("#copy")
    page.wait("document.getElementById('copy').textContent === 'Copied'")
    page.fill("#search", "")
    page.focus("#search")
    # What was copied is pasted without its line breaks, as into any field of one line.
    page.keyboard.press("Control+v")
    assert HTML_NAME in page.input_value("#search")
    page.keyboard.press("Escape")


def check_colors_and_legend(page):
    for mode in ("prototype", "typicality", "concentration", "disagreement", "class"):
        page.select_option("#color", mode)
        page.rest()
        assert page.locator("#legend summary").is_visible()
        is_scale = mode not in ("prototype", "class")
        assert page.locator("#legend .scale").count() == int(is_scale), mode
    page.locator("#legend .key").nth(1).click()
    shades = page.evaluate("Array.from(atlas.draw.shown.shades)")
    assert sum(1 for shade in shades if shade == 0) == PER_CLASS + 1, "blue stands out"
    page.locator("#legend .key").nth(1).click()
    assert not any(page.evaluate("Array.from(atlas.draw.shown.shades)"))


def check_lists(page):
    page.click("#tab-wrong")
    assert f"green/{WRONG}" in page.named("#wrong"), page.named("#wrong")
    page.click("#tab-duplicates")
    groups = [set(group.locator(".name").all_inner_texts()) for group in page.locator("#duplicates > li").all()]
    assert {"blue/007.png", f"blue/{COPY}"} in groups, groups
    page.click("#tab-outliers")
    assert page.evaluate("document.querySelectorAll('ol#outliers > li').length") == 13
    page.locator("#outliers .item").first.click()
    page.rest()
    assert page.selected() is not None and page.is_visible("#panel-selected")
    page.keyboard.press("Escape")


def check_keyboard(page):
    page.click("#fit")
    page.rest()
    page.focus("#map")
    x = page.number("view.state.x")
    page.keyboard.press("+")
    zoom = page.number("view.zoom")
    assert abs(zoom - 1.4) < 1e-6
    page.keyboard.press("ArrowRight")
    assert page.number("view.state.x") > x
    page.keyboard.press("-")
    page.keyboard.press("Enter")
    first = page.selected()
    assert first is not None
    page.keyboard.press("Shift+ArrowLeft")
    page.rest()
    assert page.selected() not in (None, first)
    page.keyboard.press("Escape")
    assert page.selected() is None
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    # From the map, Tab leads into the lists, and arrow keys from tab to tab.
    page.focus("#tab-selected")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-wrong" and page.is_visible("#panel-wrong")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.selected() == page.named("#wrong")[0]
    page.keyboard.press("Escape")


def check_phone(page):
    """Taps and pinches on a narrow screen."""
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not page.evaluate("document.getElementById('legend').open")
    page.touchscreen.tap(*page.place("green/010.png"))
    assert page.selected() is not None
    finger = """([[x1, y1], [x2, y2]], kind) => [[x1, y1], [x2, y2]].forEach(([x, y], id) =>
        atlas.draw.canvas.dispatchEvent(new PointerEvent(kind, { pointerId: 50 + id, clientX: x, clientY: y,
            pointerType: "touch", bubbles: true })))"""
    # Captures need a real pointer.
    page.evaluate("atlas.draw.canvas.setPointerCapture = () => {}")
    for kind, apart in (("pointerdown", 20), ("pointermove", 40), ("pointermove", 60), ("pointerup", 60)):
        page.evaluate(f"([fingers, kind]) => ({finger})(fingers, kind)", [[[195 - apart, 300], [195 + apart, 300]], kind])
    assert abs(page.number("view.zoom") / 3 - 1) < 0.1, page.number("view.zoom")


def use(browser, address, check, **options):
    """Opens the page, applies checks, and makes sure that nothing was said on the console or loaded."""
    context = browser.new_context(**options)
    page = context.new_page()
    complaints, loaded = [], []
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: loaded.append(request.url) if request.url.startswith("http") else None)
    page.goto(address)
    Page(page).wait("Boolean(window.atlas) && atlas.draw.frames.length > 0")
    for one in check:
        one(Page(page))
    assert not complaints, complaints
    assert not loaded, loaded
    context.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("chromium", nargs="?", default=shutil.which("chromium"))
    options = parser.parse_args()
    desktop = [check_load, check_zoom_and_pan, check_hover_and_click, check_search, check_lasso]
    desktop += [check_colors_and_legend, check_lists, check_keyboard]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        address = make_atlas(options.program.resolve(), pathlib.Path(folder)).as_uri()
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        use(browser, address, desktop, viewport={"width": 1280, "height": 800})
        narrow = {"width": 390, "height": 844}
        use(browser, address, [check_phone], viewport=narrow, has_touch=True, color_scheme="dark", device_scale_factor=2)
        browser.close()
    print(f"the atlas was used in Chromium: {len(desktop) + 1} checks")


if __name__ == "__main__":
    main()
