"""The page in a real browser: what people do there, by mouse, keys and touch, and what goes wrong.

Every test fails, too, if the browser's console has an error (a violation of the CSP is one) that
the test did not provoke. Screenshots of the main states are left in build/browser/.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
pytest.importorskip("playwright", reason="needs playwright")
pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python")

import pyarrow.parquet as pq
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright

import boxwood
from browser_support import FLAGS, MANY, Person, Server, Watch, World, chromium, make_world

pytestmark = [
    pytest.mark.one_duckdb,
    pytest.mark.skipif(chromium() is None, reason="needs Chromium: BOXWOOD_CHROMIUM names one"),
]

QUERY = "a red circle"
PATIENCE = 15_000
"""Milliseconds to wait for anything; far more than it takes."""

NewPerson = Callable[..., Person]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[Server]:
    server = Server(world.database)
    server.start()
    server.warm()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def new_person(browser: Browser, server: Server, watch: Watch) -> Iterator[NewPerson]:
    """Somebody with a browser of their own, on the page."""
    contexts: list[BrowserContext] = []

    def make(path: str = "", **options: Any) -> Person:
        options.setdefault("viewport", {"width": 1280, "height": 800})
        context = browser.new_context(reduced_motion="reduce", accept_downloads=True, **options)
        context.set_default_timeout(PATIENCE)
        watch.follow(context)
        contexts.append(context)
        return Person(context.new_page(), server.url).come(path)

    yield make
    for context in contexts:
        context.close()
    assert not watch.unexpected()


@pytest.fixture
def person(new_person: NewPerson) -> Person:
    return new_person()


def choose(person: Person, collection: str) -> None:
    person.find("#collection").select_option(collection)
    expect(person.find("#total")).to_have_text("No search yet")


def refined(person: Person, world: World, query: str = QUERY) -> Any:
    """Somebody who has searched, looked at the first screen and refined."""
    person.search(query)
    person.look(person.shown(), world.truth(query))
    return person.refine()


# --- the workflow -----------------------------------------------------------------------------


def test_the_whole_workflow(person: Person, world: World) -> None:
    expect(person.find("#empty")).to_contain_text("What are you looking for?")
    expect(person.find("#refine")).to_be_disabled()
    person.shot("start")
    first = person.search(QUERY)
    assert first["total"] == 60
    expect(person.find("#total")).to_have_text("60 results")
    expect(person.find('.cell[data-mark="right"]')).to_have_count(0)  # nothing is marked for one
    person.shot("results")
    truth = world.truth(QUERY)
    begin = world.quality([item["id"] for item in first["items"]], QUERY)
    shown = person.shown()
    assert len(shown) >= 12
    person.look(shown, truth)
    right = [i for i in shown if i in truth]
    person.counts(len(right), len(shown) - len(right))

    second = person.refine()
    expect(person.find("#total")).to_have_text(re.compile(rf"^{second['total']} results?$"))
    better = world.quality(person.results(second["view"]), QUERY)
    assert better.f1 > begin.f1 + 0.2
    assert better.recall >= 0.8

    expect(person.find("#run-stats")).to_contain_text("Training")
    expect(person.find("#run-stats")).to_contain_text("Search")
    expect(person.find("#run-path")).not_to_be_empty()
    person.find("#sql-box summary").click()
    expect(person.find("#sql")).to_have_text(second["sql"])
    person.shot("refined")

    person.look(person.shown(), truth)
    third = person.refine()
    assert world.quality(person.results(third["view"]), QUERY).f1 >= better.f1
    changes = third["changes"]
    assert changes["gone"] > 0
    expect(person.find("#changes")).to_contain_text(f"{changes['new']} new")
    person.find("#rounds-box summary").click()
    expect(person.find("#rounds li")).to_have_count(2)
    person.shot("again")
    person.find("#look-gone").click()
    expect(person.find("#gone-dialog li")).to_have_count(changes["gone"])
    person.shot("gone")
    person.accessible()


def test_a_sample_to_begin_with(person: Person, world: World) -> None:
    """Also the way into a collection that cannot be searched by words."""
    choose(person, "zillion")
    answer = person.answer("/sample", lambda: person.find("#look-around").click())
    assert answer["total"] == 60
    expect(person.find("#total")).to_have_text("A sample of 60 pictures")
    person.mark(person.shown()[:3], "right")
    assert person.refine()["total"] > 3
    choose(person, "scenes")
    person.answer("/sample", lambda: person.find("#look-around").click())
    expect(person.find("#empty")).to_be_hidden()
    person.shot("sample")
    more = person.answer("/sample", lambda: person.find("#more").click())
    assert more["total"] == len(world.ids)
    person.accessible()


def test_a_click_counts_once(person: Person) -> None:
    person.search(QUERY)
    one, other = person.shown()[:2]
    person.cell(one).click()
    person.counts(1, 0)
    expect(person.cell(one)).to_have_attribute("data-mark", "right")
    person.find("#undo").click()
    person.counts(0, 0)
    expect(person.find("#undo")).to_be_disabled()  # one click was one step
    person.cell(one).dblclick()
    person.counts(0, 0)
    person.brush("wrong")
    person.cell(one).click()
    person.counts(0, 1)
    person.cell(other).hover()
    person.cell(other).locator("[data-act=right]").click()
    person.counts(1, 1)
    person.brush("open")
    person.cell(one).click()
    expect(person.find("#viewer")).to_be_visible()
    person.counts(1, 1)


def test_hostile_words(person: Person) -> None:
    person.page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    hostile = [
        "a red/blue circle", "either 'this' or \"that\"; DROP TABLE scenes; --",
        "köszönöm 赤い丸 🔴 \u202eabc", "100% %2F ../.. \\ & ? # +", "a " * 900,
        "<script>alert(1)</script><img src=x onerror=alert(2)>",
    ]  # fmt: skip
    for words in hostile:
        answer = person.search(words)
        assert answer["total"] == 60
        expect(person.find("#total")).to_have_text("60 results")
        expect(person.find("#sql")).to_have_text(answer["sql"])
    # The same after a name and a reload, which show the words in more places.
    person.find("#session").click()
    person.find("#session-title").fill(words)
    person.find("#session-form button").click()
    expect(person.find("#session-list .current strong")).to_have_text(words)
    person.page.keyboard.press("Escape")
    person.saved()
    person.page.reload()
    expect(person.find("#total")).to_have_text("60 results")
    expect(person.find("#words")).to_have_value(words)
    expect(person.find("#session-name")).to_have_text(words)


def test_nothing_but_the_page_itself_runs(person: Person, watch: Watch) -> None:
    """The CSP holds in a browser, and these tests would see a violation."""
    ran = person.page.evaluate(
        """async () => {
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
            document.body.insertAdjacentHTML("beforeend", "<p style='color: red'>x</p>");
            try { await fetch("http://127.0.0.2:9/"); } catch { /* refused */ }
            return window.ran ?? false;
        }"""
    )
    assert ran is False
    violations = [f for f in watch.faults if "Content Security Policy" in f]
    assert {"script-src", "style-src", "connect-src"} <= {
        word for f in violations for word in re.findall(r"[a-z]+-src", f)
    }
    watch.allow("Content Security Policy|127.0.0.2")


def test_text_minus_text(person: Person, world: World) -> None:
    plain = person.search("a circle")
    body = person.asked("/search$", lambda: (
        person.find("#but").fill("red"), person.find("#strength").select_option("1"),
        person.find("#words").press("Enter"),
    ))  # fmt: skip
    assert [text["words"] for text in body["query"]["texts"]] == ["a circle", "red"]
    assert [text["weight"] for text in body["query"]["texts"]] == [1, -1]
    less = person.answer("/search$", lambda: person.find("#go").click())
    red = world.truth("a red circle")
    assert len(red & {item["id"] for item in less["items"]}) < len(
        red & {item["id"] for item in plain["items"]}
    )


def drop_files(page: Page, *files: Path) -> None:
    data = page.evaluate_handle(
        """(files) => {
            const data = new DataTransfer();
            for (const [name, type, bytes] of files) {
                data.items.add(new File([new Uint8Array(bytes)], name, { type }));
            }
            return data;
        }""",
        [[f.name, f"image/{f.suffix[1:].replace('jpg', 'jpeg')}", list(f.read_bytes())]
         for f in files],
    )  # fmt: skip
    page.dispatch_event("#grid", "dragenter", {"dataTransfer": data})
    expect(page.locator("#drop")).to_be_visible()
    page.dispatch_event("#grid", "dragover", {"dataTransfer": data})
    page.dispatch_event("#grid", "drop", {"dataTransfer": data})
    expect(page.locator("#drop")).to_be_hidden()


def test_pictures_as_query(person: Person, world: World, watch: Watch, tmp_path: Path) -> None:
    own, other = world.ids[7], world.ids[20]
    with person.page.expect_file_chooser() as chooser:
        person.find("#add-image").click()
    uploaded = person.answer("/search$", lambda: chooser.value.set_files(world.picture(own)))
    # What is uploaded is stored as a JPEG: it is still the nearest to itself.
    assert own in [item["id"] for item in uploaded["items"]][:3]
    expect(person.find("#query-images .chip")).to_have_count(1)

    both = person.answer("/search$", lambda: drop_files(person.page, world.picture(other)))
    expect(person.find("#query-images .chip")).to_have_count(2)
    assert [item["id"] for item in both["items"]] != [item["id"] for item in uploaded["items"]]
    person.find("#query-images .turn").first.click()  # less like the first
    expect(person.find("#query-images .chip.less")).to_have_count(1)
    body = person.asked("/search$", lambda: person.find("#go").click())
    assert [image["weight"] for image in body["query"]["images"]] == [-1, 1]

    like = person.shown()[4]
    person.cell(like).focus()
    found = person.answer("/search$", lambda: person.page.keyboard.press("s"))
    assert found["items"][0]["id"] == like
    expect(person.find("#query-images .chip")).to_have_count(1)
    person.shot("by-picture")

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    watch.allow("/api/uploads")
    with person.page.expect_file_chooser() as chooser:
        person.find("#add-image").click()
    chooser.value.set_files(broken)
    expect(person.find("#notices")).to_contain_text("broken.png was not taken")
    expect(person.find("#query-images .chip")).to_have_count(1)


def test_mark_all(person: Person) -> None:
    person.search(QUERY)
    everything = person.find("#mark-all")
    expect(everything).to_contain_text("All 60")
    everything.locator("[data-mark=right]").click()
    person.counts(60, 0)
    everything.locator("[data-mark=wrong]").click()
    person.counts(0, 60)
    person.find("#undo").click()
    person.counts(60, 0)
    everything.locator("[data-mark=none]").click()
    person.counts(0, 0)
    # From one to another, with the shift key.
    shown = person.shown()
    person.cell(shown[2]).click()
    person.cell(shown[6]).click(modifiers=["Shift"])
    person.counts(5, 0)


def test_undo_redo_and_the_list_of_marks(person: Person) -> None:
    person.search(QUERY)
    a, b, c, d = person.shown()[:4]
    person.mark([a, b], "right")
    person.mark([c, d], "wrong")
    person.counts(2, 2)
    person.page.keyboard.press("Control+z")
    person.page.keyboard.press("Control+z")
    person.counts(2, 0)
    person.page.keyboard.press("Control+Shift+z")
    person.counts(2, 1)
    person.find("#redo").click()
    person.counts(2, 2)
    expect(person.find("#redo")).to_be_disabled()

    person.find(f'#right-list [data-id="{a}"] .remove').click()
    person.counts(1, 2)
    expect(person.cell(a)).to_have_attribute("data-mark", "none")
    person.find("#clear-wrong").click()
    person.counts(1, 0)
    person.find("#undo").click()
    person.counts(1, 2)
    person.find(f'#right-list [data-id="{b}"] .look').click()
    expect(person.find("#viewer-place")).to_contain_text(f"id {b}")
    person.page.keyboard.press("Escape")

    # A search is a step, too.
    person.search("a blue star")
    person.answer("/search$", lambda: person.find("#undo").click())
    expect(person.find("#words")).to_have_value(QUERY)
    person.counts(1, 2)


def test_learners_and_sliders_change_the_request(person: Person) -> None:
    person.search(QUERY)
    shown = person.shown()
    person.mark(shown[:5], "right")
    person.mark(shown[10:13], "wrong")
    for name in ("branch", "ensemble", "tree", "forest", "cover"):
        person.find(f"#learners [data-learner={name}]").click()
        expect(person.find(f"#learners [data-learner={name}] .hint")).to_be_visible()
        body = person.asked("/refine$", lambda: person.find("#refine").click())
        assert body["learner"] == name
        assert (len(body["positives"]), len(body["negatives"])) == (5, 3)
        assert "random_negatives" not in body  # the learner's own default
    person.find("#exact-random_negatives").fill("1234")
    person.find("#option-negative_weight").focus()
    person.page.keyboard.press("End")
    person.find("#more-options summary").click()
    person.find("#option-seed").fill("7")
    person.find("#option-seed").press("Tab")
    person.shot("options")
    body = person.asked("/refine$", lambda: person.find("#refine").click())
    assert body["random_negatives"] == 1234
    assert body["negative_weight"] == 100
    assert body["seed"] == 7
    person.find("#sliders [data-option=random_negatives] .link").click()
    body = person.asked("/refine$", lambda: person.find("#refine").click())
    assert "random_negatives" not in body


def test_filters_sort_and_facets(person: Person, world: World) -> None:
    every = set(person.results(refined(person, world, "a star")["view"]))
    on_black = world.truth("a shape on a black background")
    person.find("#filters-toggle").click()
    black = person.find("[data-column=background] .tick", has_text="black")
    n = int(black.locator(".n").inner_text())
    assert 0 < n < len(every)
    answer = person.answer("/arrange$", lambda: black.locator("input").check())
    assert answer["total"] == n
    expect(person.find("#total")).to_have_text(f"{n} results of {len(every)}")
    expect(person.find("#active-filters")).to_contain_text("background: black")
    assert set(person.results(answer["view"])) == every & on_black
    person.shot("filters")
    person.answer("/arrange$", lambda: (
        person.find("[data-key='stars/low']").fill("4"),
        person.find("[data-key='stars/low']").press("Tab"),
    ))  # fmt: skip
    answer = person.answer(
        "/arrange$", lambda: person.find("#active-filters .remove").first.click()
    )
    assert set(person.results(answer["view"])) == {i for i in every if i % 5 + 1 >= 4}
    person.find("[data-column=caption]:not([open]) summary").click()
    caption = person.find("[data-key='caption/contains']")
    answer = person.answer("/arrange$", lambda: (
        caption.fill("circle"), caption.press("Enter"),
    ))  # fmt: skip
    assert 0 < answer["total"] < n
    person.answer("/arrange$", lambda: person.find("#active-filters .remove").last.click())
    person.answer("/arrange$", lambda: person.find("#sort").select_option("taken"))
    answer = person.answer("/arrange$", lambda: person.find("#sort-direction").click())
    ids = [item["id"] for item in answer["items"]]
    dated = [i for i in ids if i % 10]
    assert dated == sorted(dated, reverse=True)
    assert person.shown() == ids[: len(person.shown())]
    # Of a search they are the nearest among those that pass, not what passes among the nearest.
    answer = person.search("a black background")
    assert answer["total"] == 60
    assert {item["id"] % 5 + 1 for item in answer["items"]} == {4, 5}


# --- a closer look ----------------------------------------------------------------------------


def test_large_view(person: Person, world: World) -> None:
    refined(person, world)
    first, second = person.shown()[:2]
    person.cell(first).focus()
    person.page.keyboard.press("Enter")
    expect(person.find("#viewer")).to_be_visible()
    expect(person.find("#viewer-place")).to_contain_text(f"id {first}")
    facts = person.find("#viewer-facts")
    expect(facts).to_contain_text("background")
    expect(facts).to_contain_text("64 × 64")
    expect(person.find("#viewer-why h3")).to_have_text("Why it is in")
    expect(person.find("#viewer-why .sentences li").first).not_to_be_empty()
    neighbours = person.find("#viewer-neighbours .look")
    expect(neighbours.first).to_be_visible()
    assert neighbours.count() >= 20
    person.shot("large-view")
    person.accessible()
    person.page.keyboard.press("w")
    expect(person.find("#viewer-wrong")).to_have_attribute("aria-pressed", "true")
    person.page.keyboard.press("ArrowRight")
    expect(person.find("#viewer-place")).to_contain_text(f"id {second}")
    person.page.keyboard.press("ArrowLeft")
    expect(person.find("#viewer-place")).to_contain_text(f"id {first}")
    neighbours.first.click()
    expect(person.find("#viewer-place")).not_to_contain_text(f"id {first}")
    with person.page.expect_download() as download:
        person.find("#viewer-original").click()
    assert Path(download.value.suggested_filename).suffix in (".png", ".jpg")
    person.find("#viewer-close").click()
    expect(person.find("#viewer")).to_be_hidden()
    expect(person.cell(first)).to_have_attribute("data-mark", "wrong")


def test_border_and_what_changed(person: Person, world: World) -> None:
    refined(person, world)
    border = person.answer("/border$", lambda: person.find("#decide").click())
    inside = [item["inside"] for item in border["items"]]
    assert set(inside) == {True, False}
    expect(person.find("#aside-bar")).to_contain_text("nearest to the border")
    expect(person.find(".badge.outside").first).to_be_visible()
    person.shot("border")
    person.look(person.shown()[:12], world.truth(QUERY))
    person.find("#aside-back").click()
    expect(person.find("#aside-bar")).to_be_hidden()
    second = person.refine()
    assert world.quality(person.results(second["view"]), QUERY).f1 > 0.8
    # Another learner draws the border elsewhere.
    person.find("#learners [data-learner=branch]").click()
    third = person.refine()
    changes = third["changes"]
    new = [item["id"] for item in third["items"] if item["new"]]
    assert len(new) == min(changes["new"], 120)
    assert new
    shown = person.shown()
    for image in shown:
        badge = person.cell(image).locator(".badge.new")
        expect(badge).to_have_count(1 if image in new else 0)
    before, after = (set(person.results(view["view"])) for view in (second, third))
    assert (changes["new"], changes["gone"]) == (len(after - before), len(before - after))
    assert set(map(int, changes["gone_ids"])) <= before - after


# --- keeping ----------------------------------------------------------------------------------


def test_concepts(person: Person, world: World) -> None:
    answer = refined(person, world)
    kept = person.results(answer["view"])
    marks = person.find("#right-count").inner_text()
    person.find("#save-concept").click()
    person.find("#concept-name").fill("red_circle")
    person.find("#concept-note").fill("from <b>the</b> tests")
    person.find("#concept-form button").click()
    entry = person.find("#concept-list li", has_text="red_circle")
    expect(entry).to_be_visible()
    person.shot("concepts")
    person.accessible()
    person.page.keyboard.press("Escape")
    person.find("#clear-right").click()
    person.search("a blue star")
    person.find("#save-concept").click()
    opened = person.answer(
        "/open$", lambda: entry.get_by_role("button", name=re.compile("^Open")).click()
    )
    assert person.results(opened["view"]) == kept
    person.find("#save-concept").click()
    entry.get_by_role("button", name=re.compile("marks", re.I)).click()
    expect(person.find("#right-count")).to_have_text(marks)
    person.find("#save-concept").click()
    entry.get_by_role("button", name=re.compile("^Delete")).click()
    entry.get_by_role("button", name=re.compile("^Really")).click()
    expect(entry).to_have_count(0)


def test_exports(person: Person, world: World, tmp_path: Path) -> None:
    answer = person.search(QUERY)
    ids = [item["id"] for item in answer["items"]]
    person.find("#export").click()

    def export(kind: str) -> Path:
        person.find(f"#export-form input[value={kind}]").check()
        person.find("#export-start").click()
        link = person.find("#export-file")
        expect(link).to_have_attribute("download", re.compile(rf"\.{kind}$"))
        with person.page.expect_download() as download:
            link.click()
        file = tmp_path / download.value.suggested_filename
        download.value.save_as(file)
        assert file.suffix == f".{kind}"
        return file

    rows = list(csv.DictReader(io.StringIO(export("csv").read_text("utf-8-sig"))))
    assert [int(row["id"]) for row in rows] == ids
    assert {row["background"] for row in rows} <= {"white", "black", "gray"}
    person.shot("export")
    person.accessible()
    assert pq.read_table(export("parquet"))["id"].to_pylist() == ids
    text = json.loads(export("json").read_text())
    listed = text if isinstance(text, list) else text["files"]
    assert [entry["id"] for entry in listed] == ids
    assert Path(listed[0]["uri"]).name == world.picture(ids[0]).name
    with zipfile.ZipFile(export("zip")) as archive:
        best = world.picture(ids[0])
        names = [name for name in archive.namelist() if name.endswith((".png", ".jpg"))]
        assert len(names) == 60
        stored = next(name for name in names if name.endswith(best.name))
        assert archive.read(stored) == best.read_bytes()


def test_reload_keeps_everything(person: Person, world: World) -> None:
    refined(person, world)
    person.find("#exact-negative_weight").fill("3")
    person.find("#exact-negative_weight").press("Tab")
    person.page.keyboard.press("f")
    person.answer("/arrange$", lambda: person.find("#sort").select_option("caption"))
    marks = [person.find(s).inner_text() for s in ("#right-count", "#wrong-count", "#total")]
    shown = person.shown()
    # At once: what was not saved yet is kept in the browser.
    person.cell(shown[0]).focus()
    person.page.keyboard.press("n")
    person.page.keyboard.press("r")
    after = [person.find(s).inner_text() for s in ("#right-count", "#wrong-count", "#total")]
    person.answer("/refine$", lambda: person.page.reload())
    for selector, text in zip(("#right-count", "#wrong-count", "#total"), after, strict=True):
        expect(person.find(selector)).to_have_text(text)
    assert marks[2] == after[2]
    expect(person.find("#words")).to_have_value(QUERY)
    expect(person.find("#exact-negative_weight")).to_have_value("3")
    expect(person.find("#sort")).to_have_value("caption")
    assert person.shown()[: len(shown)] == shown  # the panel beside them is closed again
    expect(person.cell(shown[0])).to_have_attribute("data-mark", "right")
    person.find("#undo").click()
    expect(person.cell(shown[0])).to_have_attribute("data-mark", "none")


def test_sessions_are_named_reopened_and_shared(
    person: Person, new_person: NewPerson, world: World
) -> None:
    refined(person, world)
    total = person.find("#total").inner_text()
    right = person.find("#right-count").inner_text()
    person.find("#session").click()
    person.find("#session-title").fill("Red circles")
    person.find("#session-form button").click()
    expect(person.find("#session-list .current strong")).to_have_text("Red circles")
    person.shot("sessions")
    person.accessible()
    person.find("#sessions-dialog .dialog-head button").click()
    expect(person.find("#session-name")).to_have_text("Red circles")
    shared = person.saved()

    person.find("#session").click()
    person.find("#session-new").click()
    person.counts(0, 0)
    expect(person.find("#total")).to_have_text("No search yet")
    assert "session=" not in person.page.url
    person.find("#session").click()
    entry = person.find(f'#session-list [data-session="{shared}"]')
    person.answer("/refine$", lambda: entry.get_by_role("button", name="Open").click())
    expect(person.find("#total")).to_have_text(total)

    other = new_person(f"?session={shared}")
    expect(other.find("#total")).to_have_text(total)
    expect(other.find("#right-count")).to_have_text(right)
    expect(other.find("#session-name")).to_have_text("Red circles")


def test_two_tabs_conflict(person: Person, new_person: NewPerson, watch: Watch) -> None:
    watch.allow("status of 409")
    person.search(QUERY)
    first, second = person.shown()[:2]
    session = person.saved()
    other = new_person(f"?session={session}")
    expect(other.find("#total")).to_have_text("60 results")
    with person.page.expect_response(lambda r: r.request.method == "PUT" and r.ok):
        person.mark([first], "right")
    other.mark([second], "wrong")
    notice = other.find("#notices")
    expect(notice).to_contain_text("changed elsewhere")
    other.counts(0, 1)  # nothing is lost
    other.shot("conflict")
    notice.get_by_role("button", name="Load the other one").click()
    other.counts(1, 0)
    # And the other way out: kept as a session of its own.
    with other.page.expect_response(lambda r: r.request.method == "PUT" and r.ok):
        other.mark([second], "right")
    person.mark([second], "wrong")
    person.find("#notices").get_by_role("button", name="Save mine as a new session").click()
    person.page.wait_for_url(lambda url: "session=" in url and session not in url)
    person.counts(1, 1)


# --- other ways to use it ---------------------------------------------------------------------


def test_keyboard_alone(person: Person, world: World) -> None:
    page, keyboard = person.page, person.page.keyboard
    page.evaluate(
        "() => { window.pointers = 0; document.addEventListener('pointerdown',"
        " () => { window.pointers += 1; }, true); }"
    )

    def tab_to(selector: str, most: int = 120) -> None:
        for _ in range(most):
            if page.evaluate("(s) => document.activeElement?.matches(s)", selector):
                return
            keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {selector}")

    keyboard.press("/")
    keyboard.type(QUERY)
    person.answer("/search$", lambda: keyboard.press("Enter"))
    tab_to(".cell[data-rank]", 40)
    truth, shown = world.truth(QUERY), person.shown()
    columns = int(person.find("#grid").get_attribute("aria-colcount") or 0)
    for rank in range(2 * columns):
        expect(person.find(f'.cell[data-rank="{rank}"]')).to_be_focused()
        keyboard.press("r" if shown[rank] in truth else "w")
        keyboard.press("ArrowRight")
    right = len([i for i in shown[: 2 * columns] if i in truth])
    person.counts(right, 2 * columns - right)
    keyboard.press("Control+End")
    expect(person.find('.cell[data-rank="59"]')).to_be_focused()
    keyboard.press("PageUp")
    keyboard.press("Control+Home")
    expect(person.find('.cell[data-rank="0"]')).to_be_focused()
    answer = person.answer("/refine$", lambda: keyboard.press("Control+Enter"))
    assert world.quality(person.results(answer["view"]), QUERY).f1 > 0.5

    keyboard.press("g")
    expect(person.find('.cell[data-rank="0"]')).to_be_focused()
    keyboard.press("Enter")
    expect(person.find("#viewer")).to_be_visible()
    keyboard.press("ArrowRight")
    expect(person.find("#viewer-place")).to_contain_text("2 of")
    keyboard.press("Escape")
    expect(person.find('.cell[data-rank="1"]')).to_be_focused()
    person.answer("/border$", lambda: keyboard.press("d"))
    keyboard.press("Escape")
    expect(person.find("#aside-bar")).to_be_hidden()
    keyboard.press("f")
    expect(person.find("#right")).to_be_visible()
    tab_to("[data-key='background/=black']")
    person.answer("/arrange$", lambda: keyboard.press("Space"))
    keyboard.press("Escape")
    expect(person.find("#right")).to_be_hidden()
    keyboard.press("?")
    expect(person.find("#help-dialog")).to_be_visible()
    person.shot("help")
    person.accessible()
    keyboard.press("Escape")
    expect(person.find("#help-dialog")).to_be_hidden()
    assert page.evaluate("window.pointers") == 0


PHONE = {
    "viewport": {"width": 390, "height": 844}, "device_scale_factor": 2,
    "is_mobile": True, "has_touch": True,
}  # fmt: skip


def fits(person: Person) -> None:
    """Nothing scrolls sideways, and what is to be hit can be."""
    page = person.page
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, a[href], select, summary, input")]
            .filter((e) => e.checkVisibility({ visibilityProperty: true }) && !e.matches(".skip"))
            .filter((e) => {
                const { width, height } = (e.closest("label") ?? e).getBoundingClientRect();
                const least = e.closest(".bins") ? 24 : 40;  // bars share the width of the panel
                return width && (width < least || height < least);
            })
            .map((e) => e.outerHTML.slice(0, 120))"""
    )
    assert not small


def test_phone(new_person: NewPerson, world: World) -> None:
    person = new_person(**PHONE)
    person.find("#words").fill(QUERY)
    fits(person)
    found = person.answer("/search$", lambda: person.find("#go").tap())
    first = world.quality([item["id"] for item in found["items"]], QUERY)
    expect(person.find("#total")).to_have_text("60 results")
    fits(person)
    person.shot("phone-results")
    person.accessible()
    truth = world.truth(QUERY)
    shown = person.shown()
    assert len(shown) >= 4
    wrong = [i for i in shown if i not in truth]
    for image in [i for i in shown if i in truth]:
        person.cell(image).tap()
    if wrong:
        person.find("#brush label", has=person.find("input[value=wrong]")).tap()
        for image in wrong:
            person.cell(image).tap()
    expect(person.find("#tab-marks")).to_contain_text(f"({len(shown)})")
    person.find("#tab-marks").tap()
    expect(person.find("#left")).to_be_visible()
    person.counts(len(shown) - len(wrong), len(wrong))
    fits(person)
    person.shot("phone-marks")
    person.accessible()
    person.find("#left .close-sheet").tap()
    answer = person.answer("/refine$", lambda: person.find("#tab-refine").tap())
    assert world.quality(person.results(answer["view"]), QUERY).f1 > first.f1
    person.shot("phone-refined")
    person.find("#tab-filters").tap()
    expect(person.find("[data-column=background] .tick").first).to_be_visible()
    fits(person)
    person.shot("phone-filters")
    person.find("#right .close-sheet").tap()
    person.find("#brush label", has=person.find("input[value=open]")).tap()
    person.cell(person.shown()[0]).tap()
    expect(person.find("#viewer-neighbours .look").first).to_be_visible()
    fits(person)
    person.shot("phone-large-view")
    person.accessible()


def test_dark(new_person: NewPerson, world: World) -> None:
    person = new_person(color_scheme="dark")
    refined(person, world)
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = person.page.evaluate(ground)
    person.shot("dark")
    person.accessible()
    person.find("#theme").click()
    light = person.page.evaluate(ground)
    assert light != dark
    person.page.reload()
    assert person.page.evaluate(ground) == light
    person.find("#theme").click()
    assert person.page.evaluate(ground) == dark


def test_accessible(person: Person, world: World) -> None:
    person.accessible()
    person.search(QUERY)
    person.accessible()
    person.find("#filters-toggle").click()
    expect(person.find("[data-column=background] .tick").first).to_be_visible()
    person.find("#more-options summary").click()
    person.accessible()
    person.look(person.shown()[:8], world.truth(QUERY))
    person.refine()
    person.find("#sql-box summary").click()
    person.find("#rounds-box summary").click()
    person.accessible()
    expect(person.find("#announcer")).to_contain_text("result")
    # It holds at 200% and 400%, where a wide screen is as narrow as a phone's.
    person.page.set_viewport_size({"width": 640, "height": 400})
    assert person.page.evaluate("document.scrollingElement.scrollWidth") <= 640
    person.shot("zoomed")
    person.page.set_viewport_size({"width": 320, "height": 256})
    assert person.page.evaluate("document.scrollingElement.scrollWidth") <= 320


def test_first_paint(new_person: NewPerson) -> None:
    times = []
    for _ in range(3):
        page = new_person().page
        times.append(
            page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        )
    assert min(times) < 1000, times


# --- what goes wrong --------------------------------------------------------------------------


def test_server_stops_and_starts_again(
    person: Person, world: World, server: Server, watch: Watch
) -> None:
    watch.allow("ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE")
    first = person.search(QUERY)
    asked = [(first["sql"], person.results(first["view"]))]
    person.look(person.shown(), world.truth(QUERY))
    second = person.refine()
    asked.append((second["sql"], person.results(second["view"])))
    border = person.answer("/border$", lambda: person.find("#decide").click())
    asked.append((border["sql"], person.results(border["view"])))
    person.find("#aside-back").click()
    person.page.keyboard.press("f")
    filtered = person.answer(
        "/arrange$", lambda: person.find("[data-key='background/=gray']").check()
    )
    asked.append((filtered["sql"], person.results(filtered["view"])))
    person.saved()
    right, wrong = (person.find(f"#{m}-count").inner_text() for m in ("right", "wrong"))

    code, said = server.stop()
    assert code == 130, said
    assert "Traceback" not in said
    try:
        # The SQL that was shown gives what was shown.
        with boxwood.connect(world.database) as con:
            for sql, ids in asked:
                assert [row[0] for row in con.execute(sql).fetchall()] == ids, sql
        person.find("#refine").click()
        expect(person.find("#notices")).to_contain_text("can't be reached")
        expect(person.find("#busy")).to_be_hidden()
        image = person.shown()[0]
        before = person.cell(image).get_attribute("data-mark")
        person.brush("wrong")
        person.cell(image).click()  # marking goes on meanwhile
        expect(person.cell(image)).not_to_have_attribute("data-mark", before or "")
        person.find("#undo").click()
        person.shot("server-away")
    finally:
        server.start()
    # What was asked in vain is asked again by itself, and the marks are those of before.
    expect(person.find("#notices")).to_contain_text("The server is back")
    expect(person.find("#notices")).not_to_contain_text("can't be reached")
    person.idle()
    expect(person.find("#right-count")).to_have_text(right)
    expect(person.find("#wrong-count")).to_have_text(wrong)
    # A view that the new server does not know is asked for again.
    watch.allow("status of 404")
    person.answer(
        "/arrange$|/refine$", lambda: person.find("[data-key='background/=gray']").uncheck()
    )
    expect(person.find("#total")).to_have_text(re.compile(f"^{second['total']} results?$"))
    person.answer("/border$", lambda: person.find("#decide").click())


def test_views_that_are_gone(person: Person, world: World, watch: Watch) -> None:
    """The page in its own words: 404 "gone" means ask again."""
    watch.allow("status of 404")
    refined(person, world)
    gone = {"error": {"kind": "gone", "message": "this view is not kept any more"}}
    once = [True]

    def forget(route: Route) -> None:
        if once:
            once.clear()
            route.fulfill(status=404, json=gone)
        else:
            route.continue_()

    person.page.route("**/api/views/*/border", forget)
    person.answer("/refine$", lambda: person.find("#decide").click())
    expect(person.find("#aside-bar")).to_be_visible()
    expect(person.find("#notices .notice.error")).to_have_count(0)


def test_missing_and_broken_files(person: Person, world: World, watch: Watch) -> None:
    watch.allow("images/.*(404|status of 404)|status of 404.*images/|status of 415.*images/")
    choose(person, "torn")
    asked: list[str] = []
    person.page.on("request", lambda r: asked.append(r.url) if "/images/" in r.url else None)
    answer = person.search("a shape")
    assert answer["total"] == 12
    for image in (world.missing, world.broken):
        expect(person.cell(image).locator(".missing")).to_be_visible()
    expect(person.find(".cell .missing")).to_have_count(2)
    person.shot("missing")
    for image in (world.missing, world.broken):
        person.cell(image).focus()
        person.page.keyboard.press("r")
    person.counts(2, 0)
    person.cell(world.missing).focus()
    person.page.keyboard.press("Enter")
    expect(person.find("#viewer .missing.large")).to_be_visible()
    expect(person.find("#viewer-facts .warn")).not_to_be_empty()
    expect(person.find("#viewer-original")).to_be_hidden()
    person.shot("missing-large")
    person.page.keyboard.press("Escape")
    expect(person.find("#notices .notice")).to_have_count(0)
    # A picture that fails is not asked for again and again.
    thumbnails = [u for u in asked if f"/images/{world.missing}/thumbnail?side=320" in u]
    assert len(thumbnails) <= 2


def test_empty_result(person: Person) -> None:
    person.search(QUERY)
    person.find("#filters-toggle").click()
    person.find("[data-column=caption]:not([open]) summary").click()
    caption = person.find("[data-key='caption/contains']")
    person.answer("/arrange$", lambda: (
        caption.fill("nowhere to be found"), caption.press("Enter"),
    ))  # fmt: skip
    expect(person.find("#total")).to_have_text("0 results that pass the filters")
    expect(person.find("#empty")).to_contain_text("Nothing matches")
    person.shot("empty")
    person.accessible()
    person.answer("/arrange$", lambda: person.find("#empty button").click())
    expect(person.find("#total")).to_have_text("60 results")


def test_faster_than_the_page(new_person: NewPerson) -> None:
    """What is searched for before the collections are known is searched for then."""
    person = new_person()
    held: list[Route] = []
    person.page.route("**/api/collections", lambda route: held.append(route), times=1)
    person.page.reload()
    person.page.wait_for_function("() => document.querySelector('#go svg')")  # the page has started
    person.find("#words").fill(QUERY)
    person.find("#words").press("Enter")
    expect(person.find("#total")).to_have_text("No search yet")
    answer = person.answer("/search$", lambda: held[0].continue_())
    assert answer["total"] == 60
    expect(person.find("#words")).to_have_value(QUERY)


@pytest.mark.parametrize("how", ["500", "no answer", "not JSON", "no training data"])
def test_failing_refine(person: Person, watch: Watch, how: str) -> None:
    watch.allow("/refine")
    person.search(QUERY)
    shown = person.shown()
    person.mark(shown[:3], "right")

    def fail(route: Route) -> None:
        if how == "500":
            error = {"kind": "internal", "message": "something went wrong"}
            route.fulfill(status=500, json={"error": error})
        elif how == "not JSON":
            route.fulfill(status=502, body="<html>Bad gateway</html>")
        else:
            route.abort()

    if how == "no training data":  # a real one: a tree needs something that is wrong
        person.find("#learners [data-learner=tree]").click()
        person.find("#exact-random_negatives").fill("0")
        person.find("#exact-random_negatives").press("Tab")
    else:
        person.page.route("**/refine", fail, times=1)
    person.find("#refine").click()
    notice = person.find('#notices .notice.error[data-key="run"]')
    if how != "no answer":  # then the page finds by itself that the server is there, and asks again
        expect(notice).to_be_visible()
        assert len(notice.locator("p").inner_text()) > 10
        person.shot(f"failed-{how.replace(' ', '-')}")
    expect(person.find("#busy")).to_be_hidden()
    person.counts(3, 0)
    if how == "no training data":
        person.find("#learners [data-learner=cover]").click()
        person.refine()
    elif how == "no answer":
        expect(person.find("#total")).not_to_have_text("60 results")
    else:
        expect(person.find("#total")).to_have_text("60 results")  # what was there stays
        person.answer("/refine$", lambda: notice.get_by_role("button", name="Try again").click())
    expect(notice).to_have_count(0)
    expect(person.find("#refine")).to_be_enabled()


def test_a_slow_answer_is_cancelled(person: Person) -> None:
    person.search(QUERY)
    person.mark(person.shown()[:3], "right")
    held: list[Route] = []
    person.page.route("**/refine", lambda route: held.append(route), times=1)
    person.find("#refine").click()
    expect(person.find("#cancel")).to_be_visible()
    expect(person.find("#busy-words")).to_contain_text("Learning")
    expect(person.find("#refine")).to_be_disabled()
    person.shot("busy")
    person.find("#cancel").click()
    expect(person.find("#busy")).to_be_hidden()
    expect(person.find("#total")).to_have_text("60 results")
    person.counts(3, 0)
    assert len(held) == 1
    person.refine()
    expect(person.find("#total")).not_to_have_text("60 results")


# --- a hundred thousand -----------------------------------------------------------------------


def test_scrolling_100_000_results(person: Person) -> None:
    choose(person, "zillion")
    person.find("#save-concept").click()
    entry = person.find("#concept-list li", has_text="everything")
    opened = person.answer(
        "/open$", lambda: entry.get_by_role("button", name=re.compile("^Open")).click()
    )
    assert opened["total"] == MANY
    expect(person.find("#total")).to_have_text("100,000 results")

    def right_items(start: int) -> None:
        person.page.wait_for_function(
            """(start) => {
                const cells = [...document.querySelectorAll(".cell")];
                return cells.length && !cells.some((c) => c.classList.contains("waiting"))
                    && cells.some((c) => Number(c.dataset.rank) >= start);
            }""",
            arg=start,
        )  # fmt: skip
        got = person.page.evaluate(
            "[...document.querySelectorAll('.cell')].map((c) => [+c.dataset.rank, +c.dataset.id])"
        )
        first = min(rank for rank, _ in got)
        assert first >= start
        items = person.page.request.get(
            f"{person.url}api/views/{opened['view']}/items?start={first}&limit=500"
        ).json()["items"]
        of_rank = {item["rank"]: item["id"] for item in items}
        offset = min(of_rank) - first
        assert all(of_rank[rank + offset] == image for rank, image in got)

    # Ten seconds of wheel, as fast as it turns: how long frames take, and how much is in the page.
    frames, most = person.page.evaluate(
        """async () => {
            const grid = document.querySelector("#grid");
            const frames = [];
            let most = 0;
            let last = await new Promise(requestAnimationFrame);
            for (let turn = 0; turn < 90; turn += 1) {
                grid.scrollTop += 400;
                const now = await new Promise(requestAnimationFrame);
                frames.push(now - last);
                last = now;
                most = Math.max(most, document.querySelectorAll("*").length);
            }
            return [frames.sort((a, b) => a - b), most];
        }"""
    )
    assert most < 2500
    assert frames[len(frames) // 2] < 50, frames
    page = person.page
    page.evaluate(
        "() => { const g = document.querySelector('#grid'); g.scrollTop = g.scrollHeight / 2; }"
    )
    right_items(MANY // 2 - 200)
    expect(person.find("#mark-all-label")).to_have_text(re.compile(r"^[1-9]\d* on screen$"))
    person.shot("middle-of-100000")
    page.evaluate(
        "() => { const g = document.querySelector('#grid'); g.scrollTop = g.scrollHeight; }"
    )
    right_items(MANY - 200)
    expect(person.find(f'.cell[data-rank="{MANY - 1}"]')).to_be_visible()
    # The keys reach both ends, too.
    person.find(f'.cell[data-rank="{MANY - 1}"]').focus()
    page.keyboard.press("Control+Home")
    expect(person.find('.cell[data-rank="0"]')).to_be_focused()
    page.keyboard.press("Control+End")
    expect(person.find(f'.cell[data-rank="{MANY - 1}"]')).to_be_focused()
    page.keyboard.press("r")
    person.counts(1, 0)
    assert page.evaluate("document.querySelectorAll('*').length") < 2500
