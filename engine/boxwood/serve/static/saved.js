// What is kept: the session (saved by itself, in the browser first and then on the server), the list of
// sessions, and concepts.
import { $, ago, announce, button, copyText, count, dismiss, h, notice, number, openDialog } from "./dom.js";
import { connection, get, path, post, send } from "./api.js";
import { store } from "./state.js";
import { dialogHead, results } from "./results.js";
import { runQuery } from "./query.js";
import { refineAgain } from "./refine.js";

const DELAY = 800;
const draftKey = (id) => `boxwood:draft:${id ?? "new"}`;

let timer = 0;
let localTimer = 0;
let dirty = false;
let saving = null;
let conflict = false;

// ---- in this browser ----

/** What is not on the server yet lies in this browser, so that closing the page loses nothing. */
function keepLocal() {
    clearTimeout(localTimer);
    if (!dirty || !store.collection) return;
    try {
        const draft = { collection: store.collection.name, session: store.session, state: store.toJSON() };
        localStorage.setItem(draftKey(store.session.id), JSON.stringify(draft));
    } catch {
        // Storage is full or blocked: the server has the session but for the last second.
    }
}

function readLocal(id) {
    try {
        return JSON.parse(localStorage.getItem(draftKey(id)));
    } catch {
        return null;
    }
}

function dropLocal(id) {
    clearTimeout(localTimer);
    try { localStorage.removeItem(draftKey(id)); } catch { /* blocked: nothing was kept */ }
}

// ---- on the server ----

const worthSaving = () => store.session.id !== null || store.data.marks.size > 0 || store.data.query !== null || store.session.name !== "";

function schedule(delay = DELAY) {
    clearTimeout(timer);
    timer = setTimeout(save, delay);
}

export async function save() {
    clearTimeout(timer);
    if (saving) { await saving; return dirty && !conflict ? save() : undefined; }
    if (!dirty || conflict || !store.collection || !worthSaving()) return undefined;
    dirty = false;
    const { session } = store;
    // A list of unnamed sessions helps nobody: until somebody names one, its first words do.
    session.name ||= store.data.typed.words.trim().slice(0, 60);
    const body = { name: session.name, state: store.toJSON() };
    saving = (async () => {
        try {
            if (session.id === null) {
                const made = await post("sessions", { ...body, collection: store.collection.name });
                session.id = String(made.id);
                session.revision = made.revision;
                dropLocal(null);
                if (session === store.session) address();
            } else {
                session.revision = (await send("PUT", path("sessions", session.id), { ...body, revision: session.revision })).revision;
            }
            if (!dirty) dropLocal(session.id);
            dismiss("save");
        } catch (error) {
            if (session !== store.session) return;
            dirty = true;
            keepLocal();
            unsaved(error);
        }
    })();
    await saving;
    saving = null;
    drawName();
    return undefined;
}

function unsaved(error) {
    if (error.status === 409) {
        conflict = true;
        notice("This session was changed elsewhere, in another window or by somebody else. What you see here is not saved.", {
            key: "save",
            actions: [["Load the other one", () => open(store.session.id, { fresh: true })], ["Save mine as a new session", saveAsNew]],
        });
    } else if (error.status === 404) {
        // Deleted elsewhere, or kept in the memory of a server that has started anew.
        saveAsNew();
    } else if (error.status === 413 && store.data.undo.steps.length) {
        // So many marks that the session is too large: what can't be kept is how they came about.
        store.forgetHistory();
    } else if (error.kind === "away" || error.kind === "timeout" || error.status === 429 || error.status >= 500) {
        schedule(5000);
    } else {
        notice(`The session is not saved: ${error.message}`, { key: "save", actions: [["Try again", () => { dirty = true; save(); }]] });
    }
}

function saveAsNew() {
    dropLocal(store.session.id);
    store.session = { id: null, revision: 0, name: store.session.name && `${store.session.name} (copy)` };
    conflict = false;
    dirty = true;
    return save();
}

function address() {
    const url = new URL(location.href);
    if (store.session.id) url.searchParams.set("session", store.session.id);
    else url.searchParams.delete("session");
    url.searchParams.delete("token");
    if (url.href !== location.href) history.replaceState(null, "", url);
}

/** Takes a session into the page, and shows what it showed last. */
async function take(collection, session, state) {
    conflict = false;
    dirty = false;
    results.clear();
    dismiss("save");
    store.setCollection(collection);
    if (!store.collection) {
        notice(`The session's collection “${collection}” is not in this database.`, { key: "session" });
        store.setCollection(store.collections[0]?.name);
        store.reset();
        address();
        return;
    }
    store.load(state, session);
    address();
    drawName();
    const { shown, query } = store.data;
    if (shown?.act === "refine") await refineAgain(shown.body);
    else if (shown?.act === "open") await results.run({ act: "open", name: shown.name });
    else if (query) await runQuery();
    // Showing it again changes nothing worth saving.
    if (!results.main) return;
    announce(`${session.name || "The session"} is open again.`);
}

/** Saves before the page goes on to another session. False: this one is nowhere yet, so it stays. */
async function leave() {
    await save();
    if (!dirty || store.session.id !== null || !worthSaving()) return true;
    notice("This session is not saved yet, as the server can't be reached: it would be lost.", { key: "leave" });
    return false;
}

/** Opens a session of the server; what this browser has not saved of it is not lost. */
export async function open(id, { fresh = false } = {}) {
    if (!(await leave())) return;
    const draft = fresh ? null : readLocal(id);
    dismiss("session");
    let kept;
    try {
        kept = await get(path("sessions", id));
    } catch (error) {
        if (error.status === 404 && draft) await takeDraft(draft, id);
        else notOpened(id, error);
        return;
    }
    const session = { id: String(kept.id), revision: kept.revision, name: kept.name };
    // A page that is closed sends its last changes and never hears that they arrived.
    const equal = (key) => JSON.stringify(draft.state[key]) === JSON.stringify(kept.state[key]);
    const unsaved = draft && !["marks", "query"].every(equal);
    if (unsaved && draft.session.revision === kept.revision) {
        await take(draft.collection, { ...session, name: draft.session.name }, draft.state);
        dirty = true;
        schedule();
        return;
    }
    await take(kept.collection, session, kept.state);
    if (!unsaved) { dropLocal(id); return; }
    notice("This browser has marks of this session that were never saved, and the session was changed elsewhere since.", {
        key: "draft",
        actions: [["Open mine as a new session", () => takeDraft(draft, id)], ["Forget mine", () => dropLocal(id)]],
    });
}

/** What only this browser has goes on as a session of its own. */
async function takeDraft(draft, id) {
    const { name } = draft.session;
    await take(draft.collection, { id: null, revision: 0, name: name && `${name} (copy)` }, draft.state);
    dropLocal(id);
    dirty = true;
    schedule();
}

function notOpened(id, error) {
    if (error.status === 404) {
        notice("This session is not there any more.", { key: "session" });
        store.reset();
        address();
        drawName();
        return;
    }
    notice(error.message, { key: "session", actions: [["Try again", () => open(id)]] });
    connection.addEventListener("back", () => {
        if (document.querySelector('.notice[data-key="session"]')) open(id);
    }, { once: true });
}

/** A session that starts anew; the one before stays in the list. False: it could not be left. */
export async function startNew(collection = store.collection?.name) {
    if (!(await leave())) return false;
    conflict = false;
    dirty = false;
    results.clear();
    store.setCollection(collection);
    store.reset();
    address();
    drawName();
    $("#words").focus();
    return true;
}

/** On the first load: the session of the address, or marks that were never saved, or an empty page. */
export async function openFirst() {
    const id = new URL(location.href).searchParams.get("session");
    const draft = id ? null : readLocal(null);
    if (id) await open(id);
    else if (draft && store.collections.some(({ name }) => name === draft.collection)) {
        await take(draft.collection, { id: null, revision: 0, name: draft.session.name ?? "" }, draft.state);
        dirty = true;
        schedule();
    }
}

function drawName() {
    $("#session-name").textContent = store.session.name || "Sessions";
    $("#session").setAttribute("aria-label", store.session.name ? `${store.session.name}: sessions` : "Sessions");
    document.title = store.session.name ? `${store.session.name} – Boxwood` : "Boxwood";
}

export function startSaved() {
    store.on("change", () => {
        dirty = true;
        clearTimeout(localTimer);
        localTimer = setTimeout(keepLocal, 150);
        schedule();
    });
    addEventListener("pagehide", () => { keepLocal(); });
    document.addEventListener("visibilitychange", () => { if (document.hidden) { keepLocal(); save(); } });
    connection.addEventListener("back", () => save());
    addEventListener("popstate", () => location.reload());
    $("#session").addEventListener("click", showSessions);
    $("#save-concept").addEventListener("click", showConcepts);
}

// ---- dialogs ----

/** A button that asks once more before it destroys something. */
function certain(label, name, act) {
    const press = () => {
        if (asked.dataset.sure) { act(); return; }
        asked.dataset.sure = "1";
        asked.textContent = "Really?";
        asked.setAttribute("aria-label", `Really ${label.toLowerCase()} ${name}?`);
        announce(`Press again to ${label.toLowerCase()} ${name}.`);
    };
    const asked = button({ class: "quiet", "aria-label": `${label} ${name}`, onclick: press }, label);
    return asked;
}

/** Fills a list from the server; a failure says so in its place and can be tried again. */
async function fill(list, ask, draw, none) {
    list.replaceChildren(h("li", { class: "hint" }, "Loading…"));
    try {
        const all = await ask();
        list.replaceChildren(...(all.length ? all.map(draw) : [h("li", { class: "hint" }, none)]));
    } catch (error) {
        const again = button({ icon: "retry", onclick: () => fill(list, ask, draw, none) }, "Try again");
        list.replaceChildren(h("li", { class: "warn" }, error.message, " ", again));
    }
}

async function showSessions() {
    const dialog = $("#sessions-dialog");
    const list = h("ul", { class: "entries", id: "session-list", "aria-label": "All sessions" });
    const name = h("input", {
        id: "session-title", type: "text", maxLength: 200, value: store.session.name, placeholder: "Unnamed",
        autocomplete: "off",
    });
    dialog.replaceChildren(...dialogHead("sessions-title", "Sessions", dialog),
        h("p", { class: "hint" }, "Marks, searches and rounds are saved by themselves."),
        h("form", { class: "fields", id: "session-form", onsubmit: async (event) => {
            event.preventDefault();
            store.session.name = name.value.trim();
            dirty = true;
            await save();
            drawName();
            redraw();
            notice(conflict || dirty ? "The name is not saved yet." : "Saved.", { kind: "good", key: "named" });
        } },
            h("label", { for: "session-title" }, "Name of this session"), name,
            h("button", { type: "submit" }, "Save the name")),
        h("div", { class: "buttons" },
            button({ id: "session-new", icon: "plus", onclick: () => { dialog.close(); startNew(); } }, "New session"),
            button({ id: "session-link", icon: "copy", onclick: async () => {
                dirty ||= store.session.id === null;
                await save();
                if (!store.session.id) {
                    notice("There is nothing to share yet: search or mark first.", { kind: "info", key: "link" });
                    return;
                }
                await copyText(location.href);
                notice("The address of this session was copied.", { kind: "good", key: "link" });
            } }, "Copy its address")),
        h("h3", {}, "All sessions"), list);
    const redraw = () => fill(list, () => get("sessions"), (one) => h("li", {
        data: { session: String(one.id) }, class: String(one.id) === store.session.id ? "current" : "",
    },
        h("div", {}, h("strong", {}, one.name || "Unnamed"), h("span", { class: "hint" },
            ` ${one.collection} · ${number(one.positives)} right, ${number(one.negatives)} wrong`,
            ` · ${count(one.rounds, "round")} · ${ago(one.updated)}`)),
        String(one.id) === store.session.id
            ? h("span", { class: "hint" }, "open")
            : button({
                "aria-label": `Open ${one.name || "the unnamed session"}`,
                onclick: () => { dialog.close(); open(String(one.id)); },
            }, "Open"),
        certain("Delete", one.name || "the unnamed session", async () => {
            try {
                await send("DELETE", path("sessions", one.id), null);
                dropLocal(String(one.id));
                if (String(one.id) === store.session.id) { dirty = false; clearTimeout(timer); await startNew(); }
            } catch (error) {
                notice(error.message, { key: "delete" });
            }
            redraw();
        })), "There are no sessions yet.");
    openDialog(dialog);
    redraw();
    await save();
    if (dialog.open) redraw();
}

function showConcepts() {
    const dialog = $("#concepts-dialog");
    const { name: collection } = store.collection;
    const list = h("ul", { class: "entries", id: "concept-list", "aria-label": "Concepts" });
    const name = h("input", {
        id: "concept-name", type: "text", required: true, maxLength: 63, autocomplete: "off", placeholder: "leopard",
        pattern: "[A-Za-z_][A-Za-z0-9_]*", title: "Letters, digits and _, no digit first: it is a name in SQL, too",
    });
    const note = h("input", { id: "concept-note", type: "text", maxLength: 2000, autocomplete: "off" });
    const able = Boolean(results.main?.model);
    const keep = async (replace) => {
        try {
            await results.whole(() => post(path("collections", collection, "concepts"), {
                name: name.value.trim(), view: results.main.view, note: note.value, replace,
            }));
            dismiss("concept");
            const saved = name.value.trim();
            notice(`The concept ${saved} is saved. In SQL it is the view concepts.${saved}.`, { kind: "good", key: "concept" });
            redraw();
        } catch (error) {
            notice(error.message, {
                key: "concept", actions: error.status === 409 && !replace ? [["Replace it", () => keep(true)]] : [],
            });
        }
    };
    dialog.replaceChildren(...dialogHead("concepts-title", "Concepts", dialog),
        h("p", { class: "hint" },
            "A concept is what was learned, under a name: it covers pictures that are added later, too."),
        able ? h("form", {
            class: "fields", id: "concept-form", onsubmit: (event) => { event.preventDefault(); keep(false); },
        },
            h("label", { for: "concept-name" }, "Name"), name, h("label", { for: "concept-note" }, "Note"), note,
            h("button", { type: "submit", class: "primary", icon: "save" }, "Save as a concept"))
            : h("p", { class: "hint" }, "Refine first: then what was learned can be saved here."),
        h("h3", {}, `Concepts of ${collection}`), list);
    const redraw = () => fill(list, () => get(path("collections", collection, "concepts")), (one) => h("li", { data: { concept: one.name } },
        h("div", {}, h("strong", {}, one.name), h("span", { class: "hint" },
            ` version ${one.version}${one.count === null ? "" : ` · ${count(one.count, "picture")}`}`,
            ` · ${number(one.positives)} right, ${number(one.negatives)} wrong · ${ago(one.created)}`),
        one.note ? h("p", { class: "hint" }, one.note) : "",
        one.current === false ? h("p", { class: "warn" }, "The collection was coded anew since: take over its marks, refine, and save it again.") : ""),
        button({ disabled: one.current === false, "aria-label": `Open ${one.name}`, onclick: async () => {
            dialog.close();
            const recipe = { act: "open", name: one.name };
            if (await results.run(recipe, { words: `Opening ${one.name}…` })) store.setShown(recipe);
        } }, "Open"),
        button({ "aria-label": `Take over the marks of ${one.name}`, onclick: async () => {
            try {
                const full = await get(path("collections", collection, "concepts", one.name));
                const wrong = new Map(full.negatives.map((id) => [String(id), "wrong"]));
                const marks = new Map([...full.positives.map((id) => [String(id), "right"]), ...wrong]);
                store.replaceMarks(marks);
                dialog.close();
                notice(`${count(marks.size, "mark")} taken over from ${one.name}. Undo brings yours back.`, { kind: "good", key: "taken" });
            } catch (error) {
                notice(error.message, { key: "concept" });
            }
        } }, "Its marks"),
        certain("Delete", one.name, async () => {
            try {
                await send("DELETE", path("collections", collection, "concepts", one.name), null);
            } catch (error) {
                notice(error.message, { key: "concept" });
            }
            redraw();
        })), "There are none yet.");
    openDialog(dialog);
    redraw();
}
