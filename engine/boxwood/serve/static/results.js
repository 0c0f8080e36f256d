// What is shown: asks for results (search, refine, an opened concept), keeps the view, repeats what
// was asked when the server has dropped it, and fills the head of the page.
import { $, announce, button, count, dismiss, h, ms, notice, number, openDialog } from "./dom.js";
import { connection, get, path, post, thumbnail } from "./api.js";
import { store } from "./state.js";
import { Grid } from "./grid.js";
import { createCell, fillCell, listenToGrid, picture } from "./cells.js";

/** The paper's page shows 60 first results to mark. */
const FIRST = 60;

const sentence = (words) => words[0].toUpperCase() + words.slice(1) + (/[.!?]$/.test(words) ? "" : ".");

class Results extends EventTarget {
    /** The result of the last search, refinement or concept. */
    main = null;
    /** What the grid shows: `main`, or its border. */
    shown = null;
    grid = null;
    #recipe = null;
    #running = null;
    #renewal = null;

    start({ open, keysOn, similar }) {
        this.grid = new Grid($("#grid"), {
            fetchPage: (start, limit, signal) => this.#page(start, limit, signal),
            create: createCell,
            fill: (cell, item, rank, pictures) => fillCell(cell, item, rank, {
                total: this.grid.total, side: this.grid.side, pictures, border: this.shown?.kind === "border",
            }),
            failed: (error) => this.#pageFailed(error),
            moved: () => this.#nameShown(),
        });
        listenToGrid(this.grid, { open, keysOn, similar, brush: () => $("input[name=brush]:checked").value });
        store.on("marks", (ids) => { this.grid.refresh(ids); });
        $("#cancel").addEventListener("click", () => this.cancel());
        $("#aside-back").addEventListener("click", () => this.back());
        $("#decide").addEventListener("click", () => this.decide());
        for (const button of $("#mark-all").querySelectorAll("button")) {
            button.addEventListener("click", () => this.markShown(button.dataset.mark === "none" ? null : button.dataset.mark));
        }
        connection.addEventListener("back", () => { if (this.shown) this.grid.redraw(); });
        this.#empty();
    }

    // ---- asking ----

    get busy() { return this.#running !== null; }

    cancel() { this.#running?.abort(); }

    /**
     * Carries out a recipe: {act: "search", query}, {act: "sample"}, {act: "refine", body} or {act: "open",
     * name}, under the filters and the sort of the moment. Returns the result, or null if there is none: then what
     * was shown stays, and a message says why, with a way to try again.
     */
    async run(recipe, { keep = false, words = "Searching…", again = null } = {}) {
        const result = await this.#job(words, (signal) => this.#ask(recipe, signal), again ?? (() => this.run(recipe, { keep, words })));
        if (!result) return null;
        this.#recipe = recipe;
        this.#show(result, { keep });
        return result;
    }

    /** One piece of work at a time, which can be cancelled; null if nothing came of it. */
    async #job(words, ask, again) {
        this.cancel();
        const controller = new AbortController();
        this.#running = controller;
        this.#busy(words);
        dismiss("run");
        try {
            const answer = await ask(controller.signal);
            return this.#running === controller ? answer : null;
        } catch (error) {
            if (this.#running === controller) this.#refused(error, again);
            return null;
        } finally {
            if (this.#running === controller) { this.#running = null; this.#busy(null); }
        }
    }

    async #ask(recipe, signal) {
        const { filters, sort } = store.data;
        const { name } = store.collection;
        const options = { signal, seconds: 120 };
        if (recipe.act === "sample") return post(path("collections", name, "sample"), { k: recipe.k ?? FIRST, filters, sort }, options);
        if (recipe.act === "search") {
            return post(path("collections", name, "search"), { query: recipe.query, k: recipe.k ?? FIRST, filters, sort }, options);
        }
        if (recipe.act === "open") {
            return post(path("collections", name, "concepts", recipe.name, "open"), { filters, sort }, options);
        }
        const refine = (body) => post(path("collections", name, "refine"), { ...body, filters, sort }, options);
        try {
            return await refine(recipe.body);
        } catch (error) {
            // The round before is forgotten: then there is nothing to compare with, that is all.
            if (error.kind === "gone" && recipe.body.previous) return refine({ ...recipe.body, previous: null });
            throw error;
        }
    }

    #refused(error, again) {
        if (error.kind === "aborted") { announce("Cancelled."); return; }
        const waits = "What you asked for is done when the server is back.";
        notice(error.kind === "away" ? waits : error.message, {
            key: "run", actions: [[error.kind === "away" ? "Try now" : "Try again", again]],
        });
        if (error.kind === "away") {
            connection.addEventListener("back", () => {
                if (document.querySelector('.notice[data-key="run"]')) { dismiss("run"); again(); }
            }, { once: true });
        }
    }

    /** The same results under other filters or in another order: nothing is learned again. */
    async arrange() {
        if (!this.main) return;
        const { filters, sort } = store.data;
        const result = await this.#job("Filtering…", async (signal) => {
            try {
                return await post(path("views", this.main.view, "arrange"), { filters, sort, previous: null }, { signal, seconds: 60 });
            } catch (error) {
                if (error.kind !== "gone") throw error;
                return this.#ask(this.#recipe, signal);
            }
        }, () => this.arrange());
        if (result) this.#show({ ...result, changes: this.main.changes });
    }

    /** "Help me decide": what lies nearest to the border, inside and just outside. */
    async decide() {
        if (!this.main?.model) return;
        if (this.shown?.kind === "border") { this.back(); return; }
        const border = await this.#job("Looking along the border…", (signal) =>
            this.whole(() => post(path("views", this.main.view, "border"), { limit: FIRST }, { signal })), () => this.decide());
        if (!border) return;
        this.shown = border;
        this.grid.show(border.total, border.items);
        $("#aside-bar").hidden = false;
        $("#aside-words").textContent =
            `The ${number(border.total)} pictures nearest to the border, nearest first. Marks here help the next round most.`;
        announce($("#aside-words").textContent);
        this.#empty();
        this.#nameShown();
        this.grid.focus(0, { steal: !document.activeElement?.closest("#left, #right") });
    }

    back() {
        if (!this.main || this.shown === this.main) return;
        this.shown = this.main;
        $("#aside-bar").hidden = true;
        this.grid.show(this.main.total, this.main.items);
        this.#empty();
        this.#nameShown();
        this.grid.focus(0);
    }

    /** Runs `ask`; if the view is gone, repeats what was asked before and tries once more. */
    async whole(ask) {
        try {
            return await ask();
        } catch (error) {
            if (error.kind !== "gone") throw error;
            await this.renew();
            return ask();
        }
    }

    /** The server has dropped the view: asks for the same again, and stays where we are. */
    renew() {
        this.#renewal ??= (async () => {
            try {
                const result = await this.#ask(this.#recipe, null);
                const onBorder = this.shown?.kind === "border";
                this.main = { ...result, changes: result.changes ?? this.main?.changes };
                if (!onBorder) {
                    this.shown = this.main;
                    this.grid.show(result.total, result.items, { keep: true });
                }
                this.#head();
                this.dispatchEvent(new Event("renewed"));
            } finally {
                this.#renewal = null;
            }
        })();
        return this.#renewal;
    }

    async #page(start, limit, signal = null) {
        const ask = () => get(`${path("views", this.shown.view, "items")}?start=${start}&limit=${limit}`, { signal });
        return (await this.whole(ask)).items;
    }

    #pageFailed(error) {
        notice(error.message, { key: "page", actions: [["Try again", () => { dismiss("page"); this.grid.retry(); }]] });
        connection.addEventListener("back", () => dismiss("page"), { once: true });
    }

    // ---- showing ----

    clear() {
        this.cancel();
        this.main = this.shown = this.#recipe = null;
        this.grid.show(0, []);
        $("#aside-bar").hidden = true;
        this.#head();
        this.#empty();
        this.dispatchEvent(new Event("result"));
    }

    #show(result, { keep = false } = {}) {
        this.main = this.shown = result;
        $("#aside-bar").hidden = true;
        this.grid.show(result.total, result.items, { keep });
        this.#head();
        this.#empty();
        this.#nameShown();
        const { changes } = result;
        announce([$("#total").textContent, changes && `${changes.new} new, ${changes.gone} gone`].filter(Boolean).join(". "));
        this.dispatchEvent(new Event("result"));
    }

    #head() {
        const result = this.main;
        const filtered = result && store.data.filters.length;
        // A search among what passes the filters ends where it would without them: there is no "of" to tell.
        const ends = result && (result.kind === "search" || result.kind === "sample");
        const head = (found) => (filtered ? (ends ? `${found} that pass the filters` : `${found} of ${number(result.unfiltered)}`) : found);
        $("#total").textContent = !result ? "No search yet"
            : result.kind === "sample" ? head(`A sample of ${count(result.total, "picture")}`) : head(count(result.total, "result"));
        $("#estimate").textContent = result ? [result.estimate?.words, result.note].filter(Boolean).map(sentence).join(" ") : "";
        this.#offerMore();
        const { changes } = result ?? {};
        $("#changes").replaceChildren(...(changes ? [
            h("span", { class: "badge new" }, `${number(changes.new)} new`), " ",
            changes.gone
                ? button({
                    class: "link", id: "look-gone", onclick: () => this.#gone(changes),
                }, `${number(changes.gone)} gone: look`)
                : h("span", { class: "hint" }, "none gone"),
            h("span", { class: "hint" }, " since the last round"),
        ] : []));
        $("#took").textContent = result?.stats.total_ms ? `in ${ms(result.stats.total_ms)}` : "";
        $("#decide").disabled = !result?.model;
        $("#export").disabled = !result;
    }

    /** A search ends somewhere: who wants to see further, sees ten times as many. */
    #offerMore() {
        const k = this.#recipe?.k ?? FIRST;
        const most = store.info?.limits.results ?? k;
        const more = $("#more");
        more.hidden = !(["search", "sample"].includes(this.main?.kind) && this.main.total >= k && k < most);
        const next = Math.min(10 * k, most);
        more.textContent = `Show ${number(next)}`;
        more.onclick = () => this.run({ ...this.#recipe, k: next }, { keep: true });
    }

    #nameShown() {
        $("#decide").setAttribute("aria-pressed", String(this.shown?.kind === "border"));
        const shown = this.markable();
        const all = this.shown && shown.length === this.shown.total;
        $("#mark-all-label").textContent = all ? `All ${number(shown.length)}` : `${number(shown.length)} on screen`;
        for (const button of $("#mark-all").querySelectorAll("button")) button.disabled = !shown.length;
    }

    /** What "all shown" means: everything if it is few, as first results are, or else what is on screen. */
    markable() {
        if (!this.shown) return [];
        return this.shown.total <= FIRST ? this.shown.items : this.grid.visible();
    }

    markShown(mark) {
        const items = this.markable();
        const changed = store.setMarks(items.map(({ id }) => id), mark);
        announce(`${count(changed, "mark")} changed: ${items.length} shown are ${mark ? `marked ${mark}` : "not marked"}.`);
    }

    #empty() {
        const box = $("#empty");
        const none = this.shown && this.shown.total === 0;
        box.hidden = Boolean(this.shown) && !none;
        $("#grid").hidden = !box.hidden;
        if (box.hidden) return;
        const filtered = none && store.data.filters.length > 0;
        box.replaceChildren(...(none ? [
            h("h3", {}, "Nothing matches"),
            h("p", {},
                filtered ? "No result passes the filters." : "Mark more pictures as right, take some wrong marks away, or search with other words."),
            filtered ? button({ onclick: () => { store.setFilters([]); this.arrange(); } }, "Take the filters away") : null,
        ] : [
            h("h3", {}, "What are you looking for?"),
            h("p", {}, store.collection?.words === false
                ? "This collection can't be searched by words, as its encoder is not there. Begin with a sample of it, with the id of a picture, as in #42, or open a concept."
                : "Say it in words, or drop, paste or upload a picture. Mark some results as right or wrong, and refine: every picture like them is found."),
            store.collection?.rows ? button({ id: "look-around", onclick: () => this.run({ act: "sample" }, { words: "Looking around…" }) }, "Look around: a sample of the collection") : null,
        ]).filter(Boolean));
    }

    #busy(words) {
        $("#busy").hidden = words === null;
        $("#busy-words").textContent = words ?? "";
        $("#results").setAttribute("aria-busy", String(words !== null));
        this.dispatchEvent(new Event("busy"));
    }

    #gone(changes) {
        const dialog = $("#gone-dialog");
        const names = changes.gone_ids.map(String);
        dialog.replaceChildren(
            ...dialogHead("gone-title", `${count(changes.gone, "picture")} gone since the last round`, dialog),
            h("p", { class: "hint" },
                names.length < changes.gone ? `The first ${names.length} are shown. ` : "", "Mark one as right if it should come back."),
            h("ul", { class: "thumbs large" }, names.map((id) => thumbMarks(id))));
        openDialog(dialog);
    }
}

/** Head of a dialog: title, messages, a button that closes it. */
export function dialogHead(id, title, dialog, label = "Close") {
    return [
        h("div", { class: "dialog-head" }, h("h2", { id }, title),
            button({ class: "quiet", icon: "cross", "aria-label": label, onclick: () => dialog.close() })),
        h("div", { class: "notices" }),
    ];
}

/** A thumbnail with the two mark buttons, which stays in step with the marks. */
function thumbMarks(id) {
    const make = (mark, name) => button({
        class: `act ${mark}`, icon: name, "aria-label": `Mark ${id} ${mark}`,
        "aria-pressed": String(store.mark(id) === mark),
        onclick: (event) => {
            store.toggle(id, mark);
            for (const button of event.currentTarget.parentNode.querySelectorAll("button")) {
                button.setAttribute("aria-pressed", String(button.classList.contains(store.mark(id) ?? "none")));
            }
        },
    });
    return h("li", {}, picture(thumbnail(store.collection.name, id, 160), { alt: `Picture ${id}`, title: id }),
        h("span", { class: "pair" }, make("right", "check"), make("wrong", "cross")));
}

export const results = new Results();
