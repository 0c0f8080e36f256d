// Puts the page together: the bar at the top, panels, keys, and the first load.
import { $, announce, decorate, dismiss, h, isPhone, notice, number } from "./dom.js";
import { connection, get } from "./api.js";
import { preferred, store } from "./state.js";
import { results } from "./results.js";
import { addToQuery, runQuery, searchEarly, searchLike, startQuery } from "./query.js";
import { startMarks } from "./marks.js";
import { refine, startRefine } from "./refine.js";
import { openId, openRank, startViewer } from "./viewer.js";
import { drawFacets, startFilters } from "./filters.js";
import { openFirst, startNew, startSaved } from "./saved.js";
import { startExports } from "./exports.js";
import { keysOn, showHelp, startKeys } from "./help.js";

const remember = (key, value) => { try { localStorage.setItem(`boxwood:${key}`, value); } catch { /* blocked */ } };
const recall = (key) => { try { return localStorage.getItem(`boxwood:${key}`); } catch { return null; } };

// ---- panels: beside the results, and on a phone sheets above them ----

const panels = { left: ["#left", "#tab-marks"], right: ["#right", "#tab-filters"] };

function setPanel(side, on, opener = null) {
    const [selector, tab] = panels[side];
    const panel = $(selector);
    if (isPhone()) for (const other of Object.keys(panels)) if (other !== side) closeSheet(other);
    if (side === "right") panel.hidden = !on;
    panel.classList.toggle("sheet-open", on);
    $(tab).setAttribute("aria-expanded", String(on));
    if (side === "right") { $("#filters-toggle").setAttribute("aria-expanded", String(on)); if (on) drawFacets(); }
    // In a sheet the focus goes in, and back to what opened it.
    if (on && (isPhone() || side === "right")) {
        panel.opener = opener ?? document.activeElement;
        panel.querySelector(".close-sheet").focus();
    } else if (!on && panel.contains(document.activeElement)) {
        (panel.opener?.isConnected && panel.opener.offsetParent ? panel.opener : $("#results")).focus();
    }
}

const closeSheet = (side) => { if (isOpen(side)) setPanel(side, false); };
const isOpen = (side) => $(panels[side][0]).classList.contains("sheet-open");
const toggle = (side) => setPanel(side, !isOpen(side));

function startPanels() {
    $("#tab-marks").addEventListener("click", () => toggle("left"));
    $("#tab-filters").addEventListener("click", () => toggle("right"));
    for (const side of Object.keys(panels)) {
        $(`${panels[side][0]} .close-sheet`).addEventListener("click", () => setPanel(side, false));
        $(panels[side][0]).addEventListener("keydown", (event) => {
            if (event.key === "Escape" && isOpen(side)) { event.stopPropagation(); setPanel(side, false); }
        });
    }
    // What was learned is seen behind the sheet: it goes.
    results.addEventListener("result", () => { if (isPhone()) closeSheet("left"); });
}

// ---- the bar at the top ----

function startTheme() {
    $("#theme").addEventListener("click", () => {
        const dark = document.documentElement.dataset.theme
            ? document.documentElement.dataset.theme === "dark"
            : matchMedia("(prefers-color-scheme: dark)").matches;
        document.documentElement.dataset.theme = dark ? "light" : "dark";
        remember("theme", dark ? "light" : "dark");
        announce(dark ? "Light" : "Dark");
    });
}

function drawCollections() {
    const chooser = $("#collection");
    chooser.replaceChildren(...store.collections.map(({ name, rows }) => h("option", { value: name }, `${name} (${number(rows)})`)));
    chooser.disabled = !store.collections.length;
    if (store.collection) chooser.value = store.collection.name;
}

async function move(step) {
    if (!step) return false;
    const n = step.changes.length;
    announce(step.query ? "The search before is back." : `${number(n)} ${n === 1 ? "mark" : "marks"} put back.`);
    if (step.query) await runQuery();
    return true;
}

function startHistory() {
    const undo = () => { move(store.undo()); };
    const redo = () => { move(store.redo()); };
    const draw = () => { $("#undo").disabled = !store.canUndo; $("#redo").disabled = !store.canRedo; };
    $("#undo").addEventListener("click", undo);
    $("#redo").addEventListener("click", redo);
    store.on("marks query loaded", draw);
    return { undo, redo };
}

function startSize() {
    const size = $("#size");
    const apply = () => { size.value = String(store.data.size); results.grid.resize(store.data.size); };
    size.addEventListener("input", () => {
        store.setSize(Number(size.value));
        results.grid.resize(store.data.size);
        preferred.size = store.data.size;
        remember("size", size.value);
    });
    store.on("loaded", apply);
    preferred.size = store.data.size = Number(recall("size")) || (isPhone() ? 150 : 180);
    apply();
}

// ---- the server comes and goes ----

connection.addEventListener("away", () => {
    notice("The server can't be reached. Your marks are kept in this browser; the page goes on when it is back.", { key: "away" });
});
connection.addEventListener("back", () => {
    dismiss("away");
    notice("The server is back.", { kind: "good", key: "back" });
    if (!store.info) boot();
});

async function boot() {
    dismiss("boot");
    try {
        [store.info, store.collections] = await Promise.all([get("info"), get("collections")]);
    } catch (error) {
        if (error.kind !== "away") notice(error.message, { key: "boot", actions: [["Try again", boot]] });
        return;
    }
    const known = store.collections.find(({ name }) => name === recall("collection")) ?? store.collections[0];
    store.setCollection(known?.name);
    if (!known) {
        notice("There is no collection in this database yet. `boxwood add` makes one from a folder of pictures.", { kind: "info", key: "none" });
        return;
    }
    results.clear();
    await openFirst();
    await searchEarly();
}

function start() {
    decorate();
    results.start({ open: openRank, keysOn, similar: searchLike });
    startQuery();
    startMarks({ open: openId });
    startRefine();
    startViewer({ keysOn, searches: { like: searchLike, add: addToQuery } });
    startFilters({ toggle: () => toggle("right") });
    startSaved();
    startExports();
    startPanels();
    startTheme();
    startSize();
    const { undo, redo } = startHistory();
    store.on("collection", drawCollections);
    $("#collection").addEventListener("change", async () => {
        const before = store.data.marks.size;
        if (!(await startNew($("#collection").value))) { drawCollections(); return; }
        remember("collection", store.collection.name);
        if (before) notice("A new session has begun. The one before is kept under Sessions.", { kind: "info", key: "new" });
    });
    startKeys({
        refine, undo, redo,
        single: {
            "/": () => $("#words").focus(), "?": showHelp, g: () => results.grid.focus(results.grid.active), d: () => results.decide(),
            f: () => toggle("right"), Escape: () => (results.shown === results.main ? false : results.back()),
        },
    });
    boot();
}

start();
