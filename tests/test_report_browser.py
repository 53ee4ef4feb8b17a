"""The report in a real browser: it loads alone, sorts, fits a phone, turns dark, and prints."""

import dataclasses
import os
import shutil

import pytest
import report_sources

from ape_jax.reporting import html

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = os.environ.get("APE_JAX_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
]

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"needs one of {', '.join(NAMES)}, or APE_JAX_BROWSER"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page with every section; shares are unknown in one row, returns have many digits."""
    shares = {
        ("limited", "sampled"): 0.5,
        ("limited", "tempered"): -0.3,
        ("limited", "greedy"): 0.2,
    }
    audit = report_sources.audit(shares=report_sources.CLONES | shares)
    rows = list(audit.rows)
    rows[5] = dataclasses.replace(rows[5], fraction=None)  # The mixture attacks nobody.
    audit = dataclasses.replace(audit, rows=tuple(rows))
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html.render(report_sources.sources(audit=audit)), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, address):
    """Opens the page; whatever it complains about or asks the network for fails the test."""
    wrong, pages = [], []

    def open_page(width=1200, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        pages.append(page)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked(request.url))
        page.goto(address)
        return page

    def asked(url):
        if url != address and not url.startswith("data:"):
            wrong.append(url)

    yield open_page
    for page in pages:
        page.close()
    assert not wrong


def column(page, index):
    """Sorting values from top to bottom."""
    cells = page.locator(f"#audit-table tbody td:nth-child({index + 1})")
    return cells.evaluate_all("cells => cells.map(cell => cell.dataset.value)")


def sorted_by(page):
    states = page.locator("#audit-table th").evaluate_all(
        "headers => headers.map(header => header.getAttribute('aria-sort'))"
    )
    return {index: state for index, state in enumerate(states) if state != "none"}


def test_page_opens_without_complaint_or_request(opened):
    page = opened()
    assert page.title() == "some run: GridWorld-ape"
    assert page.locator("h2").count() == 6


def test_first_order_is_by_return_from_the_top(opened):
    page = opened()
    returns = [float(value) for value in column(page, 4)]
    assert returns == sorted(returns, reverse=True)
    assert sorted_by(page) == {4: "descending"}


def test_click_on_a_header_sorts_up_and_then_down(opened):
    page = opened()
    header = page.get_by_role("button", name="clone return")
    header.click()
    returns = [float(value) for value in column(page, 4)]
    assert returns == sorted(returns)
    assert [str(value) for value in returns] != sorted(map(str, returns))  # As numbers, not words.
    assert sorted_by(page) == {4: "ascending"}
    header.click()
    assert [float(value) for value in column(page, 4)] == returns[::-1]
    assert sorted_by(page) == {4: "descending"}


def test_rows_stay_whole_and_unknown_shares_come_last(opened):
    page = opened()
    rows = page.locator("#audit-table tbody tr")
    before = sorted(rows.all_inner_texts())
    for direction in ("ascending", "descending"):
        page.get_by_role("button", name="share").click()
        shares = column(page, 5)
        assert shares[-1] == ""
        known = [float(value) for value in shares[:-1]]
        assert known == sorted(known, reverse=direction == "descending")
        assert sorted_by(page) == {5: direction}
    assert sorted(rows.all_inner_texts()) == before


def test_keyboard_sorts(opened):
    page = opened()
    page.locator("#filter").focus()
    for _ in range(3):  # The table's box, and its first two headers.
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    names = column(page, 1)
    assert names == sorted(names)
    assert sorted_by(page) == {1: "ascending"}
    page.keyboard.press("Space")
    assert column(page, 1) == sorted(names, reverse=True)


def test_filter_shows_rows_that_hold_the_text(opened):
    page = opened()
    page.locator("#filter").fill("GREEDY")
    shown = page.locator("#audit-table tbody tr:visible").all_inner_texts()
    assert len(shown) == 3
    assert all("greedy" in text for text in shown)
    page.locator("#filter").fill("")
    assert page.locator("#audit-table tbody tr:visible").count() == 9


@pytest.mark.parametrize("width", [1200, 390])
def test_every_figure_can_be_seen_and_the_page_does_not_scroll_sideways(opened, width):
    page = opened(width)
    boxes = [figure.bounding_box() for figure in page.locator("figure img").all()]
    assert len(boxes) == 6
    assert all(box["width"] > 300 and box["height"] > 100 for box in boxes)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.evaluate("scrollTo(10000, 0)")
    assert page.evaluate("scrollX") == 0


def test_table_scrolls_in_its_own_box_on_a_phone(opened):
    page = opened(390)
    box = page.locator(".scroll:has(#audit-table)")
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    assert box.bounding_box()["width"] <= 390


def colours(page):
    """Background, text, muted text, verdicts and links, as numbers from 0 to 255."""
    found = page.evaluate(
        """() => {
          const of = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
          return [of("body", "backgroundColor"), of("body", "color"), of(".note", "color"),
            of(".kept_out dt", "color"), of(".not_kept_out dt", "color"),
            of(".undecided dt", "color"), of("a", "color")];
        }"""
    )
    return [[int(x) for x in one[4:-1].split(",")] for one in found]


def contrast(one, other):
    """Contrast of two colours, from 1 to 21, as the guidelines of WCAG 2 define it."""

    def luminance(colour):
        shares = [x / 255 for x in colour]
        linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_dark_mode_changes_colours_and_both_modes_can_be_read(opened):
    light, dark = (colours(opened(scheme=scheme)) for scheme in ("light", "dark"))
    assert all(one != other for one, other in zip(light, dark, strict=True))
    for background, *texts in (light, dark):
        for text in texts:
            assert contrast(background, text) >= 4.5


def test_print_leaves_controls_out_and_is_light(opened):
    page = opened(scheme="dark")
    controls = page.locator(".control")
    assert controls.count() == 2
    assert all(control.is_visible() for control in controls.all())
    page.emulate_media(media="print")
    assert not any(control.is_visible() for control in controls.all())
    assert page.locator("#audit-table th").all_inner_texts()[0] == "ensemble"
    assert colours(page)[0] == [255, 255, 255]


def test_page_prints_to_pdf(opened):
    page = opened()
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF-")
    assert 2 <= printed.count(b"/Type /Page\n") <= 12
