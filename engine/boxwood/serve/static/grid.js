// The endless grid: any number of results in a scrolling element, of which only the rows on screen
// are in the document. It knows ranks (0 .. total - 1), pages and cells; what a cell looks like and
// where a page comes from is told by its owner.
import { h } from "./dom.js";

const PAGE = 120;
const PAGES_KEPT = 80;
const FETCHES = 3;
const OVERSCAN = 2;
const GAP = 8;
// Browsers cap an element's height (Firefox at about 17 million px). Above this many px the space is
// not as high as its rows: see `#scrolled`.
const HIGHEST = 8e6;
// px per ms: above it somebody drags the scroll bar, and pictures that fly past are not asked for.
const FAST = 6;

export class Grid {
    total = 0;
    active = 0;
    #pages = new Map();
    #fetches = new Map();
    #rows = new Map();
    #columns = 1;
    #cell = 180;
    #size = 180;
    #top = 0;
    #lastScroll = 0;
    #lastTime = 0;
    #fast = false;
    #settle = 0;
    #frame = 0;
    #epoch = 0;

    /**
     * fetchPage(start, limit, signal) -> Promise of items; create() -> an empty cell;
     * fill(cell, item or null, rank, pictures); failed(error) is told once of pages that don't come.
     */
    constructor(scroller, { fetchPage, create, fill, failed, moved }) {
        Object.assign(this, { scroller, fetchPage, create, fill, failed, moved });
        this.space = h("div", { class: "space", role: "presentation" });
        scroller.append(this.space);
        scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
        new ResizeObserver(() => this.#layout()).observe(scroller);
        scroller.addEventListener("focusin", (event) => {
            const cell = event.target.closest("[data-rank]");
            if (cell) this.#activate(Number(cell.dataset.rank));
        });
    }

    // ---- what is shown ----

    /** Shows a result of `total` rows of which the first are known. `keep`: stay where we are. */
    show(total, first, { keep = false } = {}) {
        this.#epoch += 1;
        for (const controller of this.#fetches.values()) controller.abort();
        this.#fetches.clear();
        this.#pages.clear();
        for (let at = 0; at < first.length; at += PAGE) {
            const page = first.slice(at, at + PAGE);
            if (page.length === PAGE || at + page.length >= total) this.#pages.set(at / PAGE, page);
        }
        this.total = total;
        if (!keep) { this.#top = 0; this.active = 0; }
        this.active = Math.max(0, Math.min(this.active, total - 1));
        this.scroller.setAttribute("aria-rowcount", String(Math.ceil(total / this.#columns)));
        const focused = this.scroller.contains(document.activeElement);
        this.#clearRows();
        this.#layout({ anchor: false });
        if (focused) this.focus(this.active);
    }

    resize(size) { this.#size = size; this.#layout(); }

    item(rank) { return this.#pages.get(Math.floor(rank / PAGE))?.[rank % PAGE]; }

    /** The item at a rank, fetched if need be. */
    async load(rank) {
        const page = Math.floor(rank / PAGE);
        if (!this.#pages.has(page)) {
            const epoch = this.#epoch;
            const items = await this.fetchPage(page * PAGE, PAGE);
            if (epoch === this.#epoch) this.#keep(page, items);
            return items[rank % PAGE];
        }
        return this.item(rank);
    }

    /** Fills the cells on screen again (of these ids, or all): marks have changed. */
    refresh(ids = null) {
        for (const row of this.#rows.values()) {
            for (const cell of row.children) if (!ids || ids.has(cell.dataset.id)) this.#fill(cell);
        }
    }

    /** Pages that failed are asked for again. */
    retry() { this.#want(); }

    /** Draws all cells anew: pictures that failed are asked for again. */
    redraw() {
        const focused = this.scroller.contains(document.activeElement);
        this.#clearRows();
        this.#render();
        if (focused) this.#cellOf(this.active)?.focus({ preventScroll: true });
    }

    /** The items that can be seen now, in their order. */
    visible() {
        const first = Math.floor(this.#top / this.#pitch) * this.#columns;
        const seen = Math.ceil((this.#top + this.scroller.clientHeight) / this.#pitch) * this.#columns;
        const items = [];
        for (let rank = first; rank < Math.min(seen, this.total); rank += 1) {
            const item = this.item(rank);
            if (item) items.push(item);
        }
        return items;
    }

    // ---- moving about ----

    get columns() { return this.#columns; }
    /** Of a cell, in px. */
    get side() { return this.#cell; }
    get rowsOnScreen() { return Math.max(1, Math.floor(this.scroller.clientHeight / this.#pitch)); }

    /** Moves the focus to the cell of a rank and scrolls it into view. */
    focus(rank, { steal = true } = {}) {
        if (!this.total) return;
        rank = Math.max(0, Math.min(rank, this.total - 1));
        this.#activate(rank);
        const y = Math.floor(rank / this.#columns) * this.#pitch;
        if (y < this.#top) this.#goTo(y);
        else if (y + this.#pitch > this.#top + this.scroller.clientHeight) this.#goTo(y + this.#pitch - this.scroller.clientHeight + GAP);
        this.#render();
        if (steal) this.#cellOf(rank)?.focus({ preventScroll: true });
    }

    #activate(rank) {
        const old = this.#cellOf(this.active);
        if (old) old.tabIndex = -1;
        this.active = rank;
        const cell = this.#cellOf(rank);
        if (cell) cell.tabIndex = 0;
    }

    #cellOf(rank) {
        return this.#rows.get(Math.floor(rank / this.#columns))?.children[rank % this.#columns] ?? null;
    }

    // ---- layout ----

    get #pitch() { return this.#cell + GAP; }
    get #real() { return Math.max(0, Math.ceil(this.total / this.#columns) * this.#pitch + GAP); }
    get #height() { return Math.min(this.#real, HIGHEST); }
    get #span() { return Math.max(0, this.#real - this.scroller.clientHeight); }
    get #scrollSpan() { return Math.max(1, this.#height - this.scroller.clientHeight); }

    #layout({ anchor = true } = {}) {
        const width = this.scroller.clientWidth - 2 * GAP;
        if (width <= 0) return;
        const rank = Math.floor(this.#top / this.#pitch) * this.#columns;
        const part = (this.#top % this.#pitch) / this.#pitch;
        const columns = Math.max(width < 340 ? 1 : 2, Math.floor((width + GAP) / (this.#size + GAP)));
        const cell = Math.floor((width - GAP * (columns - 1)) / columns);
        if (columns !== this.#columns || cell !== this.#cell) this.#clearRows();
        this.#columns = columns;
        this.#cell = cell;
        this.space.style.setProperty("height", `${this.#height}px`);
        this.space.style.setProperty("--cell", `${cell}px`);
        this.scroller.setAttribute("aria-colcount", String(columns));
        this.scroller.setAttribute("aria-rowcount", String(Math.ceil(this.total / columns)));
        this.#goTo(anchor ? (Math.floor(rank / columns) + part) * this.#pitch : this.#top);
        this.#render();
    }

    #goTo(top) {
        this.#top = Math.max(0, Math.min(top, this.#span));
        this.#sync();
    }

    /** Sets the scroll bar to where `#top` is; no event of its own making moves anything. */
    #sync() {
        const at = this.#real > HIGHEST ? (this.#top / Math.max(1, this.#span)) * this.#scrollSpan : this.#top;
        this.scroller.scrollTop = at;
        this.#lastScroll = this.scroller.scrollTop;
    }

    // Where the space is as high as its rows, the scroll position is the truth. Where it can't be, small
    // moves (wheel, keys, fingers) count px for px, and leaps (the scroll bar dragged) count as a part of
    // the whole; when all is quiet the scroll bar is put where it belongs.
    #scrolled() {
        const at = this.scroller.scrollTop;
        const moved = at - this.#lastScroll;
        if (moved === 0) return;
        const now = performance.now();
        this.#fast = Math.abs(moved) / Math.max(1, now - this.#lastTime) > FAST;
        this.#lastTime = now;
        this.#lastScroll = at;
        if (this.#real <= HIGHEST) this.#top = at;
        else if (at <= 0) this.#top = 0;
        else if (at >= this.#scrollSpan - 1) this.#top = this.#span;
        else if (Math.abs(moved) < 2 * this.scroller.clientHeight) this.#top = Math.max(0, Math.min(this.#top + moved, this.#span));
        else this.#top = (at / this.#scrollSpan) * this.#span;
        if (!this.#frame) this.#frame = requestAnimationFrame(() => { this.#frame = 0; this.#render(); });
        clearTimeout(this.#settle);
        this.#settle = setTimeout(() => {
            this.#fast = false;
            if (this.#real > HIGHEST) this.#sync();
            this.#render();
            this.refresh();
            this.moved?.();
        }, 120);
    }

    #render() {
        const rows = Math.ceil(this.total / this.#columns);
        const first = Math.max(0, Math.floor(this.#top / this.#pitch) - OVERSCAN);
        const last = Math.min(rows, Math.ceil((this.#top + this.scroller.clientHeight) / this.#pitch) + OVERSCAN);
        // The row that has the focus stays, wherever it is: a focus must not fall off the page.
        const held = this.scroller.contains(document.activeElement) ? Math.floor(this.active / this.#columns) : -1;
        for (const [row, element] of this.#rows) {
            if ((row < first || row >= last) && row !== held) this.#drop(row, element);
        }
        for (let row = first; row < last; row += 1) this.#place(row);
        if (held >= 0 && held < rows) this.#place(held);
        // One cell can always be reached with Tab, also after the active one was scrolled away.
        if (!this.#cellOf(this.active) && last > first) {
            this.#activate(Math.min(this.total - 1, Math.ceil(this.#top / this.#pitch) * this.#columns));
        }
        this.#want();
    }

    #place(row) {
        let element = this.#rows.get(row);
        if (!element) {
            element = h("div", { class: "row", role: "row", "aria-rowindex": String(row + 1) });
            const from = row * this.#columns;
            for (let rank = from; rank < Math.min(from + this.#columns, this.total); rank += 1) {
                const cell = this.create();
                cell.dataset.rank = String(rank);
                cell.setAttribute("aria-colindex", String(rank - from + 1));
                cell.tabIndex = rank === this.active ? 0 : -1;
                this.#fill(cell);
                element.append(cell);
            }
            this.#rows.set(row, element);
            // In the order of ranks, as a screen reader reads them.
            let next = null;
            for (const [other, e] of this.#rows) if (other > row && (next === null || other < next[0])) next = [other, e];
            this.space.insertBefore(element, next && next[1].parentNode ? next[1] : null);
        }
        // Relative to the scroll position: the same in a space as high as its rows and in a lower one.
        const y = GAP + row * this.#pitch + (this.#lastScroll - this.#top);
        // A held row far away would stretch the space: it waits at its edge.
        const bounded = Math.max(0, Math.min(y, this.#height - this.#cell));
        element.style.setProperty("transform", `translateY(${bounded}px)`);
        element.classList.toggle("away", bounded !== y && Math.abs(bounded - y) > 1);
    }

    #fill(cell) {
        const rank = Number(cell.dataset.rank);
        this.fill(cell, this.item(rank) ?? null, rank, !this.#fast);
    }

    #drop(row, element) {
        this.#rows.delete(row);
        // A picture that nobody will see is not loaded to its end.
        for (const img of element.querySelectorAll("img")) img.removeAttribute("src");
        element.remove();
    }

    #clearRows() {
        for (const [row, element] of this.#rows) this.#drop(row, element);
    }

    // ---- pages ----

    #want() {
        if (this.#fast || !this.total) return;
        const perPage = PAGE / this.#columns;
        const pages = Math.ceil(this.total / PAGE);
        const first = Math.max(0, Math.floor(this.#top / this.#pitch / perPage));
        const last = Math.min(pages - 1, Math.floor((this.#top + 2 * this.scroller.clientHeight) / this.#pitch / perPage));
        const wanted = new Set();
        for (let page = first; page <= last; page += 1) wanted.add(page);
        for (const [page, controller] of this.#fetches) {
            if (!wanted.has(page)) { controller.abort(); this.#fetches.delete(page); }
        }
        for (const page of wanted) {
            if (this.#fetches.size >= FETCHES) break;
            if (!this.#pages.has(page) && !this.#fetches.has(page)) this.#fetch(page);
        }
    }

    async #fetch(page) {
        const controller = new AbortController();
        const epoch = this.#epoch;
        this.#fetches.set(page, controller);
        try {
            const items = await this.fetchPage(page * PAGE, PAGE, controller.signal);
            if (epoch !== this.#epoch) return;
            this.#fetches.delete(page);
            this.#keep(page, items);
            this.#want();
        } catch (error) {
            if (epoch !== this.#epoch || error.kind === "aborted") return;
            this.#fetches.delete(page);
            this.failed(error);
        }
    }

    #keep(page, items) {
        this.#pages.delete(page);
        this.#pages.set(page, items);
        while (this.#pages.size > PAGES_KEPT) this.#pages.delete(this.#pages.keys().next().value);
        for (const row of this.#rows.values()) {
            for (const cell of row.children) if (Math.floor(cell.dataset.rank / PAGE) === page) this.#fill(cell);
        }
        this.moved?.();
    }
}
