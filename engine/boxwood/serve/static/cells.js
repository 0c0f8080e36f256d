// One picture in the grid: what it looks like, and what clicks and keys on it do.
import { button, h } from "./dom.js";
import { icon } from "./icons.js";
import { thumbnail } from "./api.js";
import { store } from "./state.js";

export const WORDS = { right: "marked right", wrong: "marked wrong" };

/** A picture that can fail: then a placeholder with its name is seen instead of a broken icon. */
export function picture(src, { alt = "", title = "", className = "" } = {}) {
    const missing = () => h("span", {
        class: `missing ${className}`, role: "img", "aria-label": alt || `No picture: ${title}`,
        title: "The picture can't be shown", icon: "missing",
    }, h("span", {}, title));
    // A collection of codes alone has no pictures to ask for; what was uploaded can be seen there, too.
    if (store.collection?.pictures === false && src.startsWith("api/collections/")) return missing();
    const img = h("img", { alt, decoding: "async", draggable: false, class: className });
    img.addEventListener("error", () => { if (img.getAttribute("src")) img.replaceWith(missing()); });
    if (src) img.src = src;
    return img;
}

const action = (act, name, label) =>
    button({ class: `act ${act}`, tabIndex: -1, data: { act }, icon: name, "aria-label": label, title: label });

export function createCell() {
    return h("div", { class: "cell", role: "gridcell" },
        h("div", { class: "frame" }),
        h("span", { class: "badges", "aria-hidden": "true" }),
        h("span", { class: "stamp", "aria-hidden": "true" }),
        h("div", { class: "acts" },
            action("right", "check", "Right"), action("wrong", "cross", "Wrong"), action("open", "open", "Open")));
}

/**
 * side: px of the cell; pictures: false while somebody scrolls so fast that loading them would be in
 * vain; border: whether to say on which side of the border the picture lies.
 */
export function fillCell(cell, item, rank, { total, side, pictures, border }) {
    const [frame, badges, stamp, acts] = cell.children;
    cell.classList.toggle("waiting", !item);
    if (!item) {
        cell.setAttribute("aria-label", `${rank + 1} of ${total}, loading`);
        return;
    }
    const id = String(item.id);
    const mark = store.mark(id);
    const drawn = frame.dataset.id === id;
    cell.dataset.id = id;
    if (!drawn && pictures) {
        const pixels = side * devicePixelRatio > 340 ? 640 : 320;
        frame.replaceChildren(picture(thumbnail(store.collection.name, id, pixels), { title: item.title }));
        frame.dataset.id = id;
    }
    cell.dataset.mark = mark ?? "none";
    if (stamp.dataset.mark !== (mark ?? "")) {
        stamp.dataset.mark = mark ?? "";
        stamp.replaceChildren(...(mark ? [icon(mark === "right" ? "check" : "cross")] : []));
    }
    acts.children[0].setAttribute("aria-pressed", String(mark === "right"));
    acts.children[1].setAttribute("aria-pressed", String(mark === "wrong"));
    const said = [];
    if (item.new) said.push("new");
    if (border) said.push(item.inside ? "inside" : "outside");
    if (badges.dataset.said !== said.join()) {
        badges.dataset.said = said.join();
        badges.replaceChildren(...said.map((word) => h("span", { class: `badge ${word}` }, word)));
    }
    cell.title = item.title;
    cell.setAttribute("aria-label", [`${rank + 1} of ${total}: ${item.title}`, mark && WORDS[mark], ...said].filter(Boolean).join(", "));
}

/**
 * Clicks and keys in the grid. `open(rank)` opens the large view, `brush()` says what a click on a
 * picture does, `keysOn()` whether single keys are wanted.
 */
export function listenToGrid(grid, { open, brush, similar, keysOn }) {
    let last = null;
    const element = grid.scroller;

    element.addEventListener("click", (event) => {
        const cell = event.target.closest(".cell");
        if (!cell?.dataset.id || cell.classList.contains("waiting")) return;
        const rank = Number(cell.dataset.rank);
        const act = event.target.closest("[data-act]")?.dataset.act ?? brush();
        grid.focus(rank);
        if (act === "open") { open(rank); return; }
        if (event.shiftKey && last !== null && last !== rank) {
            const ids = [];
            for (let at = Math.min(last, rank); at <= Math.max(last, rank); at += 1) {
                const item = grid.item(at);
                if (item) ids.push(item.id);
            }
            store.setMarks(ids, act);
        } else {
            store.toggle(cell.dataset.id, act);
        }
        last = rank;
    });

    element.addEventListener("keydown", (event) => {
        if (!event.target.closest(".cell")) return;
        const rank = grid.active;
        const item = grid.item(rank);
        const page = grid.rowsOnScreen * grid.columns;
        const start = rank - (rank % grid.columns);
        const moves = {
            ArrowLeft: rank - 1, ArrowRight: rank + 1, ArrowUp: rank - grid.columns, ArrowDown: rank + grid.columns,
            PageUp: rank - page, PageDown: rank + page,
            Home: event.ctrlKey ? 0 : start, End: event.ctrlKey ? grid.total - 1 : start + grid.columns - 1,
        };
        if (event.altKey || event.metaKey) return;
        if (event.key in moves) {
            event.preventDefault();
            const to = moves[event.key];
            // Beyond the first or last row there is nothing: up and down stay in their column.
            if (to >= 0 && to < grid.total) grid.focus(to);
            else if (["PageDown", "End"].includes(event.key)) grid.focus(grid.total - 1);
            else if (event.key === "ArrowDown" && start + grid.columns < grid.total) grid.focus(grid.total - 1);
            else if (event.key === "PageUp") grid.focus(rank % grid.columns);
            return;
        }
        if (event.ctrlKey || !item) return;
        const acts = {
            Enter: () => open(rank),
            " ": () => store.toggle(item.id, "right"),
            r: () => store.toggle(item.id, "right"),
            w: () => store.toggle(item.id, "wrong"),
            n: () => store.setMarks([item.id], null),
            Delete: () => store.setMarks([item.id], null),
            s: () => similar(item),
        };
        const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
        if (!(key in acts) || (/^[a-z]$/.test(key) && !keysOn())) return;
        event.preventDefault();
        event.stopPropagation();
        acts[key]();
    });
}
