import pytest
from browser import Browser, find_chromium
from finished_run import JIGSAW, ROTATION, finish_run, shards_with_losses

from training.report.page import write_report

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed"
)

WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")

ROWS = """[...document.querySelectorAll("table.sortable tbody tr")].map(
    row => [...row.cells].map(cell => cell.dataset.value ?? cell.textContent.trim()))"""
HEADS = """[...document.querySelectorAll("table.sortable thead th")].map(
    head => [head.textContent.trim(), head.getAttribute("aria-sort")])"""
# Texts whose contrast with their background is below WCAG 2.2, 1.4.3 (AA).
FAINT = """(() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = element => {
    const color = parse(getComputedStyle(element).backgroundColor);
    return color[3] === 0 ? behind(element.parentElement) : color;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const faint = [];
  for (let node; node = walker.nextNode();) {
    const element = node.parentElement, style = getComputedStyle(element);
    const onPicture = element.closest(".source, .tiles, script");
    if (!node.data.trim() || onPicture || !element.checkVisibility()) continue;
    const ink = light(parse(element.closest("svg") ? style.fill : style.color));
    const ground = light(behind(element.closest("svg")?.parentElement ?? element));
    const ratio = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
    if (ratio < 4.5) faint.push([node.data.trim().slice(0, 40), ratio]);
  }
  return faint;
})()"""


@pytest.fixture(scope="module")
def pages(shards, tmp_path_factory):
    """The page of one run, and that of two runs whose transfers differ."""
    root = tmp_path_factory.mktemp("browser")
    told = shards_with_losses(shards, root / "shards")
    knn = [{"name": "knn", "neighbours": [1, 5]}]
    runs = [
        finish_run(root / "a <run>", told, JIGSAW).out,
        finish_run(root / "b", told, ROTATION, knn, view_px=64).out,
    ]
    pages = {"one": write_report(runs[0], lambda _: None)}
    return pages | {"several": write_report(runs, lambda _: None)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(params=["one", "several"])
def tab(browser, pages, request):
    browser.show(1280, "light")
    browser.open(pages[request.param].as_uri())
    return browser


def test_the_page_opens_without_a_complaint_or_a_request(tab):
    assert tab.run("document.images.length") >= 24
    assert tab.run("[...document.images].every(image => image.complete && image.naturalWidth)")
    assert tab.seen("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded") == []
    asked = [sent["request"]["url"] for sent in tab.seen("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:image/")] == [tab.run("location.href")]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_can_be_read(tab, width, scheme):
    tab.show(width, scheme)
    tab.run("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert tab.run("innerWidth") == width
    assert tab.run("document.scrollingElement.scrollWidth") <= width
    dark = tab.run("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    assert tab.run(FAINT) == []


def _column(rows, number):
    return [float(row[number]) if row[number] else None for row in rows]


def test_a_click_sorts_and_says_so(tab):
    before, heads = tab.run(ROWS), [name for name, _ in tab.run(HEADS)]
    assert [state for _, state in tab.run(HEADS)] == [None] * len(heads)
    column = heads.index("Mean")
    place = f"""(() => {{
      const button = document.querySelectorAll("table.sortable thead th")[{column}].firstChild;
      button.scrollIntoView({{ block: "center", inline: "center", behavior: "instant" }});
      const {{ x, y, width, height }} = button.getBoundingClientRect();
      return [x + width / 4, y + height / 2];
    }})()"""
    for state, reverse in (("descending", True), ("ascending", False)):
        tab.click(*tab.run(place))
        rows = tab.run(ROWS)
        assert _column(rows, column) == sorted(_column(before, column), reverse=reverse)
        assert sorted(rows) == sorted(before)
        assert [name for name, found in tab.run(HEADS) if found == state] == ["Mean"]
        assert sum(found is not None for _, found in tab.run(HEADS)) == 1
        status = tab.run("document.getElementById('all-status').textContent")
        assert status == f"Sorted by Mean, {state}."


def test_without_script_the_table_is_whole_and_has_no_dead_button(browser, pages):
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(pages["several"].as_uri())
        heads, rows = browser.run(HEADS), browser.run(ROWS)
        assert browser.run("document.querySelectorAll('button').length") == 0
    finally:
        browser.ask("Emulation.setScriptExecutionDisabled", value=False)
    browser.open(pages["several"].as_uri())
    assert browser.run("document.querySelectorAll('button').length") == len(heads) == 12
    assert browser.run(ROWS) == rows


@pytest.mark.parametrize(("key", "code", "text"), [("Enter", 13, "\r"), (" ", 32, " ")])
def test_the_keyboard_sorts_and_keeps_its_place(tab, key, code, text):
    before, heads = tab.run(ROWS), [name for name, _ in tab.run(HEADS)]
    column = heads.index("Layer")
    tab.run("document.querySelector('table.sortable').closest('[tabindex]').focus()")
    for _ in range(column + 1):
        tab.press("Tab", 9)
    assert tab.run("document.activeElement.textContent") == "Layer"
    assert tab.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.press(key, code, text)
    layers = [row[column] for row in tab.run(ROWS)]
    assert layers == sorted(row[column] for row in before)
    assert layers != [row[column] for row in before]
    assert tab.run(HEADS)[column] == ["Layer", "ascending"]
    assert tab.run("document.activeElement.textContent") == "Layer"


def test_tab_reaches_the_link_that_skips_to_the_content(tab):
    tab.press("Tab", 9)
    assert tab.run("document.activeElement.className") == "skip"
    box = tab.run("(({ x, y }) => [x, y])(document.activeElement.getBoundingClientRect())")
    assert min(box) >= 0
    tab.press("Enter", 13, "\r")
    assert tab.run("location.hash") == "#main"


def test_headings_are_in_order_and_pictures_have_words(tab):
    levels = tab.run("[...document.querySelectorAll('h1,h2,h3,h4')].map(e => +e.tagName[1])")
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip([0, *levels], levels, strict=False))
    assert tab.run("[...document.images].every(image => image.alt.length > 3)")
    nameless = "svg:not([aria-hidden]):not([aria-label]):not([aria-labelledby])"
    assert tab.run(f"document.querySelectorAll('{nameless}').length") == 0
    regions = tab.run(
        "[...document.querySelectorAll('[role=region]')].map(e => e.getAttribute('aria-label'))"
    )
    assert len(set(regions)) == len(regions)
    for landmark in ("header", "nav[aria-label]", "main"):
        assert tab.run(f"document.querySelectorAll('{landmark}').length") == 1
