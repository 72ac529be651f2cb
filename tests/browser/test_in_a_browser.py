"""The pages in a browser: with mouse and keyboard, on a phone, and with the rules of accessibility."""

import random
import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from bodies import SCRIPT
from browsers import skip_without_browser
from playwright.sync_api import expect
from traffic import prime

skip_without_browser()
pytestmark = [pytest.mark.stack, pytest.mark.browser]

PATHS = ("/", "/numbers", "/factors", "/clients", "/projects", "/queue")
ADMIN_PATHS = ("/admin", "/admin/load", "/admin/work", "/admin/letters")
# A number that the agent factored.
FINISHED = "SELECT id FROM composites WHERE is_fully_factored ORDER BY attempt_count DESC LIMIT 1"


@pytest.fixture
def finished(stack):
    """The page of a number that the agent has factored."""
    return f"/numbers/{stack.scalar(FINISHED)}"


@pytest.fixture
def fresh(stack):
    """The page of a number that no client has seen, and the number."""
    value = str(prime(20) * prime(60))
    body = {"client_id": "grace", "composite": value, "parameters": {"b1": 50_000}, "results": {"curves_completed": 1}}
    answer = stack.submit(body)
    return f"/numbers/{answer.json()['composite_id']}", value


@pytest.fixture
def operator(page, stack):
    """A window whose user has logged in."""
    page.goto("/admin")
    page.get_by_label("Admin key").fill((stack.home / "admin.key").read_text().strip())
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Administration", exact=True)).to_be_visible()
    return page


def texts(page, column):
    """Return the texts of a column of the first table, row by row."""
    return [text.strip() for text in page.locator("table").first.locator(f"td:nth-child({column})").all_inner_texts()]


def overflow_width(page):
    """Return by how many pixels a page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_every_page_loads_and_fits(any_page, path):
    answer = any_page.goto(path)
    assert answer.status == 200
    expect(any_page.locator("h1")).to_be_visible()
    assert overflow_width(any_page) <= 0


def test_one_number_loads_and_fits(any_page, finished):
    assert any_page.goto(finished).status == 200
    assert overflow_width(any_page) <= 0
    # Its tree of factors goes down to primes.
    assert set(texts(any_page, 3)) <= {"yes", "no"}
    assert "yes" in texts(any_page, 3)


def test_the_menu_opens_every_page(page):
    page.goto("/")
    for words in ("Numbers", "Factors", "Clients", "Projects", "Queue"):
        page.get_by_role("navigation", name="Pages").get_by_role("link", name=words).click()
        expect(page.locator("h1")).to_have_text(words)
    page.get_by_role("link", name="ECM Coordinator").click()
    expect(page.locator("h1")).to_have_text("Overview")


def test_charts_are_drawn(page, finished):
    page.goto("/")
    for chart in page.locator("svg.hours").all():
        heights = [float(bar.get_attribute("height")) for bar in chart.locator("rect").all()]
        assert len(heights) == 48
        assert max(heights) > 50
        assert chart.bounding_box()["height"] > 60
    page.goto(finished)
    chart = page.locator("#chart svg")
    assert chart.bounding_box()["width"] > 200
    # The curve has been drawn, and falls.
    lines = [re.findall(r"([\d.]+),([\d.]+)", line.get_attribute("points")) for line in chart.locator("polyline").all()]
    points = max(lines, key=len)
    assert len(points) > 50
    assert float(points[0][1]) != float(points[-1][1])
    expect(chart.get_by_text("target")).to_be_visible()


def test_numbers_are_filtered_sorted_searched_and_paged(page, stack):
    page.goto("/numbers")
    page.get_by_label("Project").fill("demonstration")
    page.get_by_label("Sort by").select_option("digits")
    page.get_by_label("largest first").check()
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**sort=digits**")
    digits = list(map(int, texts(page, 2)))
    assert len(digits) == 12
    assert digits == sorted(digits, reverse=True)
    page.get_by_label("State").select_option("fully_factored")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**state=fully_factored**")
    assert set(texts(page, 3)) == {"fully factored"}
    # The form keeps the filters, and the next page has them too.
    expect(page.get_by_label("Project")).to_have_value("demonstration")
    page.goto("/numbers?project=demonstration&limit=7")
    first = texts(page, 1)
    page.get_by_role("link", name="Next page").click()
    page.wait_for_url("**cursor=**")
    assert len(first) == 7
    assert len(texts(page, 1)) == 5
    assert not set(first) & set(texts(page, 1))
    value = stack.scalar("SELECT number FROM composites ORDER BY id LIMIT 1")
    page.get_by_label("Value, expression or beginning").fill(value)
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**text=**")
    assert len(texts(page, 1)) == 1


def test_a_wrong_filter_is_named(page):
    page.expected.append("422")
    assert page.goto("/numbers?min_digits=many").status == 422
    expect(page.get_by_text("min_digits: should be a valid integer")).to_be_visible()


def test_a_new_result_is_shown_without_reloading_the_page(page, stack, fresh):
    path, value = fresh
    page.goto(path)
    page.evaluate("window.hasNotBeenLoadedAgain = true")
    expect(page.locator("#work")).not_to_contain_text("heidi")
    body = {"client_id": "heidi", "composite": value, "parameters": {"b1": 250_000}}
    assert stack.submit(body | {"results": {"curves_completed": 77}}).status_code == 200
    expect(page.locator("#work")).to_contain_text("heidi")
    expect(page.locator("#summary")).to_contain_text("78 curves")
    assert page.evaluate("window.hasNotBeenLoadedAgain")


def test_the_cofactor_is_current_and_a_click_delays_no_update(page, stack):
    found, left = prime(20), prime(60) * prime(61)
    body = {"client_id": "heidi", "composite": str(found * left), "parameters": {"b1": 50_000}}
    answer = stack.submit(body | {"results": {"curves_completed": 1}})
    page.goto(f"/numbers/{answer.json()['composite_id']}")
    page.get_by_role("region", name="Attempts").click()  # it has the focus now
    expect(page.locator("#rest")).to_have_text("")
    body["parameters"]["b1"] = 250_000
    assert stack.submit(body | {"results": {"factor_found": str(found), "curves_completed": 77}}).status_code == 200
    expect(page.locator("#left")).to_have_text(str(left))
    page.locator("#rest").get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == str(left)
    expect(page.get_by_role("region", name="Attempts")).to_contain_text("77")


def test_a_clients_name_is_shown_as_text(page):
    # A dialog would fail the test: conftest.py listens.
    for path in ("/", "/clients", "/queue"):
        page.goto(path)
        expect(page.get_by_text(SCRIPT).first).to_be_visible()


def test_a_value_is_copied(page, fresh):
    path, value = fresh
    page.goto(path)
    page.get_by_role("button", name="Copy").first.click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == value


def test_a_value_is_copied_where_the_browser_has_no_clipboard_for_pages(page, fresh):
    # As on plain HTTP from another machine.
    path, value = fresh
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.goto(path)
    page.get_by_role("button", name="Copy").first.click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("getSelection().toString()") == value


def test_the_keyboard_reaches_every_control(page):
    page.goto("/numbers")
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    page.wait_for_url("**#main")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Value, expression or beginning")).to_be_focused()
    page.keyboard.type("1234567")
    page.keyboard.press("Enter")
    page.wait_for_url("**text=1234567**")
    expect(page.get_by_text("No numbers match.")).to_be_visible()


def serious_violations(page):
    """Return the serious and critical violations that axe-core finds: (rule, places)."""
    found = Axe().run(page).response["violations"]
    return [
        (rule["id"], [node["target"] for node in rule["nodes"]][:3])
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]


def test_pages_have_no_serious_accessibility_violation(any_page, finished, stack):
    for path in (*PATHS, finished, "/admin/login"):
        any_page.goto(path)
        assert serious_violations(any_page) == [], path


# Administration -------------------------------------------------------------------------------------------------------


def test_a_wrong_key_is_refused_and_the_right_one_leads_back(page, stack):
    page.expected.append("403")
    page.goto("/admin/letters")
    page.get_by_label("Admin key").fill("a guess")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("not this server's admin key")
    page.get_by_label("Admin key").fill((stack.home / "admin.key").read_text().strip())
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("h1")).to_have_text("Rejected and failed results")
    page.get_by_role("button", name="Log out").click()
    page.goto("/admin")
    expect(page.get_by_label("Admin key")).to_be_visible()


def test_admin_pages_have_no_serious_accessibility_violation(operator, finished):
    for viewport in ({"width": 1280, "height": 800}, {"width": 390, "height": 844}):
        operator.set_viewport_size(viewport)
        for path in (*ADMIN_PATHS, finished):
            operator.goto(path)
            assert overflow_width(operator) <= 0, path
            assert serious_violations(operator) == [], path


def test_numbers_are_loaded_from_a_list_and_from_a_file(operator, stack, tmp_path):
    pasted, filed = (str(prime(30) * prime(31)) for _ in range(2))
    operator.goto("/admin/load")
    operator.get_by_label("Numbers, one a line").fill(pasted)
    operator.get_by_label("Project").fill("loaded here")
    operator.get_by_role("button", name="Load").click()
    expect(operator.get_by_role("status")).to_contain_text("1 new")
    (tmp_path / "list.csv").write_text(f"number,priority\n{filed},4\nsix,1\n")
    operator.get_by_label("or a file").set_input_files(tmp_path / "list.csv")
    operator.expected.append("422")
    operator.get_by_role("button", name="Load").click()
    expect(operator.get_by_role("alert")).to_contain_text("nothing was stored")
    expect(operator.get_by_role("region", name="Invalid lines")).to_contain_text("six")
    operator.get_by_label("or a file").set_input_files(tmp_path / "list.csv")
    operator.get_by_label("Skip invalid lines").check()
    operator.get_by_role("button", name="Load").click()
    expect(operator.get_by_role("status")).to_contain_text("1 new")
    operator.goto("/numbers?project=loaded here")
    # The form kept the project for the second load.
    assert len(texts(operator, 1)) == 2
    assert stack.scalar("SELECT priority FROM composites WHERE number = :value", value=filed) == 4


def test_a_number_is_given_a_priority_reserved_and_released(operator, fresh):
    path, _ = fresh
    client = f"nfs-{random.randrange(10**9)}"
    operator.goto(path)
    section = operator.get_by_role("region", name="Administration")
    section.get_by_label("Priority").fill("8")
    section.get_by_role("button", name="Set").click()
    expect(operator.get_by_role("status")).to_have_text("The priority is 8; it was 0.")
    section.get_by_label("Reserve for").fill(client)
    section.get_by_role("button", name="Reserve").click()
    expect(operator.get_by_role("status")).to_contain_text(f"reserved for {client}")
    operator.goto("/admin/work")
    row = operator.get_by_role("row").filter(has_text=client)
    row.get_by_role("button", name="Release").click()
    expect(operator.get_by_role("status")).to_contain_text(client)
    expect(operator.get_by_role("row").filter(has_text=client)).to_have_count(0)


def test_a_dead_letter_is_retried(operator, stack):
    operator.goto("/admin/letters")
    row = operator.get_by_role("row").filter(has_text="999983").first
    expect(row).to_contain_text(SCRIPT)
    row.get_by_role("checkbox").check()
    operator.get_by_role("button", name="Retry selected").click()
    expect(operator.get_by_role("status")).to_contain_text("1 result queued again")


def test_effort_is_recalculated_and_the_page_shows_its_progress(operator):
    operator.goto("/admin")
    operator.get_by_role("button", name="Recalculate all").click()
    expect(operator.get_by_role("status")).to_contain_text("Recalculating the effort")
    expect(operator.locator("#recalculation")).to_contain_text(" is done: ")
    expect(operator.get_by_role("region", name="Audit log")).to_contain_text("recalculate")
