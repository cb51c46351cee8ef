"""The comparison page in a real browser, opened as a file: sorting, the reference, links, copying, a phone's width."""

import json
import shutil

import pytest
from test_reports import made, make_comparison

from meidbench.evaluation.results import GROUPS_SHOWN
from meidbench.report.html import comparison_html
from meidbench.report.text import DASH, format_interval, format_number, format_signed

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if BROWSER is None or DRIVER is None:
    pytest.skip("chromium and chromedriver are not installed", allow_module_level=True)
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
NAMES = ("bce", "meid", "ldam")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.get("about:blank")
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def comparison():
    return make_comparison(NAMES, 157, seeds=("1", "2"), replicates=200, missing=(5,))


@pytest.fixture
def page(browser, comparison, tmp_path):
    return opened(browser, comparison, tmp_path)


def opened(browser, comparison, folder, width=1400):
    """Open the page of a comparison with a fresh log."""
    path = folder / "report.html"
    path.write_text(comparison_html(comparison), encoding="utf-8")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(path.as_uri())
    return browser


def find(page, selector):
    return page.find_elements("css selector", selector)


def texts(page, selector):
    script = "return [...document.querySelectorAll(arguments[0])].map(element => element.firstChild.textContent)"
    return page.execute_script(script, selector)


def column(page, table, place):
    """Return the numbers or words of a column as they are shown."""
    return texts(page, f"#{table} tbody tr > :nth-child({place + 1})")


def choose(page, name):
    from selenium.webdriver.support.select import Select
    from selenium.webdriver.support.wait import WebDriverWait

    Select(find(page, "select")[0]).select_by_visible_text(name)
    WebDriverWait(page, 20).until(lambda _: find(page, "#differences h2")[0].text.startswith(f"Differences to {name}"))


@pytest.mark.parametrize("name", ["one", "three, several seeds", "many classes", "no replicates", "hostile"])
def test_no_page_makes_a_request_or_an_error(browser, tmp_path, name):
    from selenium.webdriver.support.select import Select

    page = opened(browser, made(name), tmp_path)
    for select in find(page, "select"):
        Select(select).select_by_index(1)
        assert page.execute_async_script("setTimeout(arguments[0], 1000, true)")
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert asked == {(tmp_path / "report.html").as_uri()}


def test_a_table_is_sorted_by_click_and_by_key(page, comparison):
    names = [facts.name for facts in comparison.classes]
    ap = [format_number(value) for value in comparison.methods[0].ap]
    head = find(page, "#classes-table thead th")[5]
    button = head.find_element("css selector", "button")
    page.execute_script("arguments[0].click()", button)
    known = sorted((float(text) for text in ap if text != DASH), reverse=True)
    found = column(page, "classes-table", 5)
    assert [float(text) for text in found[:-1]] == known and found[-1] == DASH
    assert head.get_attribute("aria-sort") == "descending"
    button.send_keys("\ue007")  # Enter
    assert [float(text) for text in column(page, "classes-table", 5)[:-1]] == known[::-1]
    assert head.get_attribute("aria-sort") == "ascending"
    first = find(page, "#classes-table thead th")[0]
    first.find_element("css selector", "button").send_keys(" ")
    assert sorted(names) == sorted(column(page, "classes-table", 0)) and head.get_attribute("aria-sort") is None
    assert first.get_attribute("aria-sort") == "ascending"
    # Every table has such buttons; those of numbers put the largest first.
    assert len(find(page, "thead th")) == len(find(page, "thead th button"))
    for table in ("means-table", "differences-table"):
        page.execute_script("arguments[0].click()", find(page, f"#{table} thead th button")[4])
        values = [float(text.replace("\N{MINUS SIGN}", "-")) for text in column(page, table, 4)]
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("name", ["ldam", "meid"])
def test_another_reference_changes_tables_and_charts(page, comparison, name):
    before = page.execute_script("return document.querySelector('#frequency figure .dashed').innerHTML")
    page.execute_script("arguments[0].click()", find(page, "#classes-table thead button")[5])  # sorted rows stay right
    choose(page, name)
    other = comparison.with_reference(name)
    rest = [method for method in other.methods if method.name != name]
    assert column(page, "differences-table", 0) == [method.name for method in rest]
    for place, group in enumerate(GROUPS_SHOWN, 1):
        shown = [format_signed(method.difference[group].value) for method in rest]
        assert column(page, "differences-table", place) == shown
    order = [int(text) for text in column(page, "classes-table", 1)]
    for place, method in enumerate(rest, 8):
        expected = [format_signed(method.ap_difference[index].value) for index in order]
        assert column(page, "classes-table", place) == expected
        assert find(page, "#classes-table thead th")[place].text.endswith(f"difference, {method.name}")
    cell = page.execute_script(
        "return [...document.querySelectorAll('#classes-table tbody tr')].find(row => row.cells[1].textContent === '3')"
        ".cells[8].lastChild.textContent"
    )
    entry = rest[0].ap_difference[3]
    assert cell == format_interval(entry.low, entry.high, with_sign=True)
    assert find(page, ".reference-name")[0].text == name
    assert "reference" in find(page, "#means-table tbody th")[NAMES.index(name)].text
    titles = texts(page, "#differences svg > title")
    assert len(titles) == 8 and f"Difference of average precision by class, bce against {name}" in titles
    # The chart of the reference shows no dashed line, that of the others shows the reference's median.
    dashed = page.execute_script(
        "return [...document.querySelectorAll('#frequency figure')].map(figure => ['.dashed', '.solid']"
        ".map(kind => figure.querySelector(kind).innerHTML))"
    )
    chosen = NAMES.index(name)
    assert before == "" and dashed[chosen][0] == ""
    assert all(dashed[place][0] == dashed[chosen][1] != "" for place in range(3) if place != chosen)
    choose(page, "bce")
    assert find(page, ".reference-name")[0].text == "bce"
    assert page.get_log("browser") == []


def test_links_lead_to_their_headings(page):
    for link in find(page, "nav a, #differences p a, .anchor"):
        target = link.get_attribute("href").partition("#")[2]
        page.execute_script("arguments[0].click()", link)
        assert page.current_url.endswith(f"#{target}")
        top = page.execute_script("return document.getElementById(arguments[0]).getBoundingClientRect().top", target)
        at_end = page.execute_script("return scrollY + innerHeight >= document.documentElement.scrollHeight - 2")
        assert -1 <= top < 100 or (at_end and top < 900)


def paste(page):
    """Return the text of the clipboard, by Ctrl+V into a field."""
    page.execute_script("document.body.prepend(Object.assign(document.createElement('textarea'), {id: 'paste'}))")
    field = find(page, "#paste")[0]
    field.send_keys("\ue009v\ue009")
    text = field.get_attribute("value")
    page.execute_script("arguments[0].remove()", field)
    return text


def press_copy(page, selector):
    button = find(page, f"{selector} .copy")[0]
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    assert page.execute_async_script("setTimeout(arguments[0], 300, true)")
    return button.text


@pytest.mark.parametrize("clipboard", ["there", "missing", "refused"])
def test_the_numbers_of_figures_and_tables_are_copied(browser, comparison, tmp_path, clipboard):
    replaced = {"there": "", "missing": "undefined", "refused": "{writeText: () => Promise.reject(new Error('no'))}"}
    script = f"Object.defineProperty(navigator, 'clipboard', {{value: {replaced[clipboard]}}})"
    source = {"source": script if replaced[clipboard] else ""}
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", source)["identifier"]
    page = opened(browser, comparison, tmp_path)
    browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": added})
    assert press_copy(page, "#means .tools") == "copied"
    lines = [line.split("\t") for line in paste(page).splitlines()]
    assert lines[0][:4] == ["method", "overall", "overall low", "overall high"]
    for method, line in zip(comparison.methods, lines[1:], strict=True):
        numbers = [n for g in GROUPS_SHOWN for n in (method.mAP[g].value, method.mAP[g].low, method.mAP[g].high)]
        assert line == [method.name, *map(format_number, [*numbers, method.accuracy.top1, method.accuracy.top5])]
    # The largest gains of the first method that is compared.
    press_copy(page, "#against-1 + .charts figure:nth-child(2)")
    lines = [line.split("\t") for line in paste(page).splitlines()]
    assert lines[0][:3] == ["class", "group", "training videos"]
    assert lines[0][3:] == ["difference, meid", "difference, meid low", "difference, meid high"]
    changes = zip(comparison.classes, comparison.methods[1].ap_difference, strict=True)
    known = [(facts, change) for facts, change in changes if change.value == change.value]
    largest = sorted(known, key=lambda pair: -pair[1].value)[:6]
    assert lines[1:] == [
        [facts.name, facts.group, str(facts.train_count), *map(format_signed, (change.value, change.low, change.high))]
        for facts, change in largest
    ]
    for selector, width in (("#frequency figure", 4), ("#differences .tools", 33), ("#seeds .tools", 15)):
        press_copy(page, selector)
        assert {line.count("\t") + 1 for line in paste(page).splitlines()} == {width}
    assert page.get_log("browser") == []


def test_what_cannot_be_copied_is_selected_for_the_reader(page):
    page.execute_script(
        "document.execCommand = () => false; Object.defineProperty(navigator, 'clipboard', {value: undefined})"
    )
    assert press_copy(page, "#means .tools") == "press Ctrl+C"
    field = find(page, "textarea")[0]
    assert field.get_attribute("value").startswith("method\toverall\toverall low")
    assert page.execute_script("return arguments[0].selectionEnd - arguments[0].selectionStart", field) > 100
    page.execute_script("arguments[0].blur()", field)
    assert find(page, "textarea") == []


def test_a_name_is_no_formula_for_a_spreadsheet(browser, tmp_path):
    page = opened(browser, make_comparison(("=1+1", "-0.5", "@x\ty")), tmp_path)
    press_copy(page, "#means .tools")
    assert [line.split("\t")[0] for line in paste(page).splitlines()] == ["method", "'=1+1", "-0.5", "'@x y"]


def test_no_label_of_a_gain_or_loss_covers_a_mark_or_a_number(browser, tmp_path):
    names = [f"Putting something on a {'very ' * (index % 9)}long shelf number {index}" for index in range(157)]
    page = opened(browser, make_comparison(NAMES, 157, class_names=names), tmp_path)
    boxes = page.execute_script(
        "return [...document.querySelectorAll('#differences svg')]"
        ".filter(svg => /^(gain|loss)/.test(svg.getAttribute('aria-labelledby')))"
        ".map(svg => [...svg.querySelectorAll('text, .mark, .limits')].map(part => {"
        "const box = part.getBoundingClientRect(); return [part.tagName, box.left, box.top, box.right, box.bottom]; }))"
    )
    assert [sum(box[0] == "path" for box in chart) for chart in boxes] == [18] * 4
    for chart in boxes:
        texts_of = [box for box in chart if box[0] == "text"]
        for kind, *text in texts_of:
            # The lines of a column are nearer than their boxes.
            others = [box for box in chart if box[0] == "path" or abs(box[1] - text[0]) > 20]
            assert not [
                box for box in others
                if box[1] < text[2] and text[0] < box[3] and box[2] < text[3] and text[1] < box[4]
            ], kind  # fmt: skip


@pytest.mark.parametrize("name", ["two", "twelve", "hostile", "no replicates", "one", "three, several seeds"])
def test_a_phone_shows_the_tail_without_scrolling_sideways(browser, tmp_path, name):
    page = opened(browser, made(name), tmp_path, width=390)
    assert page.execute_script("return document.documentElement.scrollWidth") == 390
    for table, place in (("means-table", 4), ("differences-table", 4), ("seeds-table", 5)):
        for cell in find(page, f"#{table} tr > :nth-child({place + 1})"):
            assert cell.rect["x"] >= 0 and cell.rect["x"] + cell.rect["width"] <= 390, (table, cell.text)
            assert page.execute_script("return arguments[0].scrollWidth <= arguments[0].clientWidth + 1", cell)


def test_the_head_of_the_class_table_stays_in_sight(page):
    box = find(page, "#classes .box")[0]
    page.execute_script("arguments[0].scrollTop = 2000; arguments[0].scrollLeft = 50", box)
    assert page.execute_script("return arguments[0].scrollTop", box) == 2000
    head, name = find(page, "#classes-table thead th")[0], find(page, "#classes-table tbody th")[60]
    assert head.rect["y"] - box.rect["y"] < 3 and abs(name.rect["x"] - box.rect["x"]) < 3
    assert name.rect["width"] > 250


def test_without_scripts_the_page_has_its_content_and_no_dead_button(browser, comparison, tmp_path):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page = opened(browser, comparison, tmp_path)
        assert len(find(page, "table")) == 4 and len(find(page, "svg")) == 16
        assert find(page, "button, select, textarea") == []
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_reader(page, scheme):
    wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
    colour = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert colour == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
