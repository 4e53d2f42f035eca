"""The static pages: built from result files, self-contained, and opened in a real browser."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.lab.test_claims import Coin
from tokenry.lab.evidence.results import load, save
from tokenry.lab.evidence.run import reproduce
from tokenry.lab.pages.compare import write_page
from tokenry.lab.pages.figure import arm_bars, quality_figure
from tokenry.lab.pages.report import build

PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for system, lift in (("idpruner", 0.4), ("todre", -0.4), ("eet", 0.0)):
        claim = Coin(lift)
        claim.system, claim.statement = system, "Better <b>beats</b> worse & more"
        result = reproduce(claim, scale="smoke", seeds=2, out=folder)
        if system == "idpruner":
            result.scale, result.verdict, result.comparisons = "small", None, []
            save(result, folder)
    return build(folder, tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    rows = [
        {"method": m, "keep": k, "quality": k, "low": 0.8 * k, "high": 1.1 * k, "kept": 16 * k, "total": 16.0, "time_ratio": k,
         "memory_ratio": k, "cache_ratio": k, "note": "", "outcomes": [1.0, 0.0]}
        for m, k in (("none", 1.0), ("random", 0.5), ("random", 0.25), ("idpruner", 0.5), ("idpruner", 0.25))
    ]  # fmt: skip
    kept = {
        m: {"0.5": [[0, 1, 2, 3, 4, 5, 6, 7]] * 2, "0.25": [[0, 1, 2, 3], [12, 13, 14, 15]]} for m in ("random", "idpruner")
    }
    items = [{"image": PIXEL, "question": f"what </script> is {i} ?", "answer": "7", "grid": [4, 4]} for i in range(2)]
    result = {"model": "m", "data": "d", "quality": "accuracy", "items": 2, "rows": rows, "maps": {"items": items, "kept": kept},
              "environment": {"torch": "2"}, "settings": {"batch": 1, "device": "cpu", "seed": 0}}  # fmt: skip
    write_page(result, quality_figure(result, folder / "quality.png"), folder / "index.html")
    return folder / "index.html"


def test_the_report_lists_every_claim_also_failing_and_unfinished_ones(site):
    text = site.read_text()
    assert "&lt;b&gt;beats&lt;/b&gt;" in text
    assert 'class="verdict fails"' in text
    page = (site.parent / "systems" / "idpruner.html").read_text()
    assert "incomplete" in page
    assert "tokenry reproduce idpruner --scale smoke --seeds 2" in page
    assert "seed (planned)" in text


def test_a_page_shows_the_adjusted_p_and_explains_vacuous(site):
    vacuous, failing = ((site.parent / "systems" / f"{slug}.html").read_text() for slug in ("eet", "todre"))
    assert vacuous.count('<td class="verdict vacuous">vacuous</td>') == 2
    assert "Vacuous: every difference is zero" in vacuous
    assert '<td class="number">1.000</td>' in vacuous
    assert "adjusted for the 2 comparisons" in failing
    assert "acuous" not in failing.split("</style>")[1]


def test_pages_ask_for_nothing_outside(site, comparison):
    for path in [site, comparison, *(site.parent / "systems").glob("*.html")]:
        text = path.read_text()
        assert not re.findall(r'(?:src|href)="(?:https?:)?//', text)
        assert "@import" not in text
        for link in re.findall(r'href="([^"#:]+)"', text):
            assert (path.parent / link).is_file(), link
    assert (comparison.parent / "quality.png").stat().st_size > 5000


def test_bars_say_what_they_show():
    means = {"a <b>": 0.5, "cheap $x$": -0.25, "best": 1.1234}
    text = arm_bars(means, "accuracy & <more>")
    assert text == arm_bars(means, "accuracy & <more>")  # the same report, the same bytes
    assert text.startswith('<svg role="img" aria-label="accuracy &amp; &lt;more&gt; per arm"')
    for word in ("a &lt;b&gt;", "cheap $x$", "best", "0.500", "-0.250", "1.123"):
        assert re.search(rf">{re.escape(word)}</text>", text.replace("\u2212", "-")), word


@pytest.fixture(scope="module")
def browser():
    program, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
                 "--disable-sync", "--no-first-run", "--disable-dev-shm-usage"):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


def visit(browser, path: Path, width=1200):
    browser.get_log("browser")
    browser.get_log("performance")
    browser.set_window_size(width, 900)
    browser.get(path.as_uri())
    problems = [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    requests = [
        m["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (m := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
    ]
    assert problems == []
    assert all(url.startswith(("file:", "data:")) for url in requests), requests
    overflow = browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0, f"{path.name} is {overflow} px too wide at {width}"


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 500])
def test_the_report_in_a_browser(browser, site, width):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    visit(browser, site, width)
    assert "Claims and evidence" in browser.title or "claims" in browser.title.lower()
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB, Keys.TAB)
    focused = browser.switch_to.active_element
    assert focused.tag_name == "a"
    focused.send_keys(Keys.ENTER)
    assert "systems" in browser.current_url
    visit(browser, site.parent / "systems" / "todre.html", width)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 500])
def test_the_comparison_in_a_browser(browser, comparison, width):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    visit(browser, comparison, width)
    tiles = browser.find_elements(By.CSS_SELECTOR, ".map svg")
    assert ": 2 items, batch 1" in browser.find_element(By.CLASS_NAME, "lead").text
    assert [t.get_attribute("aria-label") for t in tiles] == ["random keeps 4 of 16 patches", "idpruner keeps 4 of 16 patches"]
    slider = browser.find_element(By.ID, "budget")
    slider.send_keys(Keys.ARROW_RIGHT)
    labels = [t.get_attribute("aria-label") for t in browser.find_elements(By.CSS_SELECTOR, ".map svg")]
    assert labels == ["random keeps 8 of 16 patches", "idpruner keeps 8 of 16 patches"]
    slider.send_keys(Keys.ARROW_LEFT)
    before = browser.find_element(By.CSS_SELECTOR, ".map path").get_attribute("d")
    browser.find_element(By.ID, "item").send_keys(Keys.ARROW_DOWN)
    assert browser.find_element(By.CSS_SELECTOR, ".map path").get_attribute("d") != before


def test_a_result_is_not_changed_by_reporting(site, tmp_path):
    claim = Coin()
    reproduce(claim, scale="smoke", seeds=1, out=tmp_path)
    before = load(tmp_path / "coin.smoke.json")
    build(tmp_path, tmp_path / "site")
    assert load(tmp_path / "coin.smoke.json") == before
