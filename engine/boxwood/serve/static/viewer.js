// The large view: one picture with its marks, metadata, neighbours and why it is among the results.
import { $, announce, button, bytes, h, notice, number, openDialog, short } from "./dom.js";
import { icon } from "./icons.js";
import { get, imagePath, path, thumbnail } from "./api.js";
import { store } from "./state.js";
import { results } from "./results.js";
import { WORDS, picture } from "./cells.js";

let dialog, keysOn, searches;
/** Where we are: a rank of the grid, or null for a picture that was reached by its id. */
let rank = null;
let current = null;
let pending = new AbortController();

export function startViewer(options) {
    ({ keysOn, searches } = options);
    dialog = $("#viewer");
    dialog.addEventListener("keydown", keys);
    dialog.addEventListener("close", () => {
        pending.abort();
        const at = rank;
        current = rank = null;
        dialog.replaceChildren();
        // Back to the picture that was looked at last, not to the one that was opened.
        if (at !== null) results.grid.focus(at);
    });
    store.on("marks", (ids) => { if (current && ids.has(current)) drawMark(); });
}

/** Opens the picture at a rank of what the grid shows. */
export async function openRank(at) {
    rank = at;
    try {
        const item = await results.grid.load(at);
        if (item && rank === at) show(String(item.id), item);
    } catch (error) {
        if (error.kind !== "aborted") notice(error.message, {
            key: "viewer", actions: [["Try again", () => openRank(at)]],
        });
    }
}

/** Opens any picture of the collection. */
export function openId(id) {
    rank = null;
    show(String(id), null);
}

function show(id, item) {
    pending.abort();
    pending = new AbortController();
    const { signal } = pending;
    current = id;
    const collection = store.collection.name;
    const image = picture(`api/${imagePath(collection, id, "picture")}`, {
        alt: item?.title ?? `Picture ${id}`, title: item?.title ?? id, className: "large",
    });
    image.classList.add("loading");
    // The thumbnail is there at once; the picture takes its place when it is loaded.
    image.style.setProperty("background-image", `url("${thumbnail(collection, id, 320)}")`);
    image.addEventListener("load", () => {
        image.classList.remove("loading");
        image.style.removeProperty("background-image");
    });

    const held = dialog.contains(document.activeElement) ? document.activeElement.id : null;
    dialog.replaceChildren(
        h("div", { class: "viewer-stage" },
            button({
                class: "zoom", id: "viewer-zoom", "aria-label": "Full size", "aria-pressed": "false", onclick: zoom,
            }, image),
            button({
                id: "viewer-previous", class: "step previous", icon: "left",
                "aria-label": "The picture before (left arrow)", disabled: rank === null || rank === 0,
                onclick: () => step(-1),
            }),
            button({
                id: "viewer-next", class: "step next", icon: "right", "aria-label": "The next picture (right arrow)",
                disabled: rank === null || rank >= results.grid.total - 1, onclick: () => step(1),
            })),
        h("div", { class: "viewer-side" },
            h("div", { class: "dialog-head" },
                h("h2", { id: "viewer-title", tabIndex: -1 }, item?.title ?? `Picture ${id}`),
                button({
                    class: "quiet", id: "viewer-close", icon: "cross", "aria-label": "Close the large view",
                    onclick: () => dialog.close(),
                })),
            h("p", { class: "hint", id: "viewer-place" },
                rank === null ? `id ${id}` : `${number(rank + 1)} of ${number(results.grid.total)} · id ${id}`),
            h("div", { class: "notices" }),
            h("div", { class: "viewer-marks", role: "group", "aria-label": "Mark" },
                button({
                    class: "mark right", id: "viewer-right", icon: "check", onclick: () => store.toggle(id, "right"),
                }, "Right"),
                button({
                    class: "mark wrong", id: "viewer-wrong", icon: "cross", onclick: () => store.toggle(id, "wrong"),
                }, "Wrong")),
            h("div", { class: "viewer-tools" },
                button({
                    icon: "similar", id: "viewer-like",
                    onclick: () => { dialog.close(); searches.like({ id, title: item?.title ?? id }); },
                }, "More like this"),
                button({
                    icon: "plus", onclick: () => searches.add({ id, title: item?.title ?? id }),
                }, "Add to the search"),
                h("a", {
                    class: "button", id: "viewer-original", href: `api/${imagePath(collection, id, "original")}`,
                    download: "", hidden: true,
                }, icon("download"), "Original")),
            h("section", { id: "viewer-why", hidden: true }), h("section", { id: "viewer-facts" }), h("section", { id: "viewer-neighbours" })));
    openDialog(dialog);
    (held && dialog.querySelector(`#${held}:not(:disabled)`) || $("#viewer-title")).focus();
    drawMark();
    announce(`${item?.title ?? `Picture ${id}`}${store.mark(id) ? `, ${WORDS[store.mark(id)]}` : ""}`);
    part($("#viewer-facts"), signal, () => get(imagePath(collection, id), { signal }), drawFacts);
    part($("#viewer-neighbours"), signal, () => get(`${imagePath(collection, id, "neighbours")}?k=24`, { signal }), drawNeighbours);
    if (results.main?.model) {
        part($("#viewer-why"), signal, () => results.whole(() => get(path("views", results.main.view, "why", id), { signal })), drawWhy);
    }
    // What comes next is most often looked at next.
    if (rank !== null && results.grid.item(rank + 1)) new Image().src = `api/${imagePath(collection, results.grid.item(rank + 1).id, "picture")}`;
}

/** Loads a part of the view; a part that fails says so by itself and can be tried again. */
async function part(section, signal, ask, draw) {
    section.hidden = false;
    section.replaceChildren(h("p", { class: "hint" }, "Loading…"));
    try {
        const answer = await ask();
        if (!signal.aborted) { section.replaceChildren(); draw(section, answer); }
    } catch (error) {
        if (signal.aborted || error.kind === "aborted") return;
        section.replaceChildren(h("p", { class: "hint" }, error.message),
            error.status === 404 ? "" : button({
                icon: "retry", onclick: () => part(section, signal, ask, draw),
            }, "Try again"));
    }
}

function drawMark() {
    const mark = store.mark(current);
    $("#viewer-right")?.setAttribute("aria-pressed", String(mark === "right"));
    $("#viewer-wrong")?.setAttribute("aria-pressed", String(mark === "wrong"));
    $(".viewer-stage", dialog)?.setAttribute("data-mark", mark ?? "none");
}

function drawFacts(section, info) {
    const facts = Object.entries(info.metadata).filter(([, value]) => value !== null && value !== "");
    const { picture: file } = info;
    if (file.width) facts.push(["size", `${number(file.width)} × ${number(file.height)}${file.bytes ? `, ${bytes(file.bytes)}` : ""}`]);
    if (info.uri && !("uri" in info.metadata)) facts.push(["file", info.uri]);
    if (!file.available && file.reason) section.append(h("p", { class: "warn" }, file.reason));
    $("#viewer-original").hidden = !file.available;
    $("#viewer-title").textContent = info.title;
    section.append(h("h3", {}, "About it"), facts.length
        ? h("dl", { class: "stats" },
            facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, written(value))]))
        : h("p", { class: "hint" }, "Nothing more is known about it."));
}

function written(value) {
    if (typeof value === "number") return short(value);
    return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function strip(items) {
    return h("ul", { class: "thumbs strip" }, items.map(({ id, title, distance }) => h("li", {},
        button({
            class: "look", data: { mark: store.mark(id) ?? "none" }, "aria-label": `Look at ${title ?? `picture ${id}`}`,
            title: title ?? (distance === undefined ? "" : `distance ${short(distance)}`), onclick: () => openId(id),
        },
            picture(thumbnail(store.collection.name, id, 160), { title: title ?? String(id) })))));
}

function drawNeighbours(section, result) {
    const items = result.items.filter(({ id }) => String(id) !== current);
    section.append(h("h3", {}, "Neighbours"), items.length ? strip(items) : h("p", { class: "hint" }, "It has none."));
}

function drawWhy(section, why) {
    section.append(h("h3", {}, why.inside ? "Why it is in" : "Why it is not in"),
        h("ul", { class: "sentences" }, why.sentences.map((sentence) => h("li", {}, sentence))));
    if (why.nearest_positives.length) section.append(h("h4", {}, "Nearest of those marked right"), strip(why.nearest_positives));
    if (why.nearest_negatives.length) section.append(h("h4", {}, "Nearest of those marked wrong"), strip(why.nearest_negatives));
    const most = Math.max(...why.dims.map(({ part: p }) => Math.abs(p)), 1e-9);
    const rows = why.dims.map(({ dim, code, part: p }) => h("tr", {}, h("th", { scope: "row" }, `dimension ${dim}`), h("td", {}, String(code)),
        h("td", {}, h("span", {
            class: p < 0 ? "bar less" : "bar", vars: { "--part": String(Math.abs(p) / most) },
        }), short(p))));
    const head = h("tr", {}, ["Of the code", "Value", "Part of the score"].map((name) => h("th", { scope: "col" }, name)));
    const boxes = why.boxes.map(({ estimator, box, ranges }) => h("p", { class: "hint" },
        `Box ${box} of member ${estimator}: ${ranges.map(({ dim, low, high, code }) => `${low} ≤ d${dim} (${code}) ≤ ${high}`).join(", ")}`));
    if (rows.length || boxes.length) {
        section.append(h("details", {}, h("summary", {}, "In numbers"),
            rows.length ? h("table", { class: "dims" }, h("thead", {}, head), h("tbody", {}, rows)) : "",
            boxes));
    }
}

function zoom() {
    const on = $("#viewer-zoom").getAttribute("aria-pressed") !== "true";
    $("#viewer-zoom").setAttribute("aria-pressed", String(on));
    $(".viewer-stage", dialog).classList.toggle("zoomed", on);
}

function step(by) {
    if (rank === null) return;
    const to = rank + by;
    if (to < 0 || to >= results.grid.total) { announce(by > 0 ? "That was the last one." : "That was the first one."); return; }
    openRank(to);
}

function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !current) return;
    const zoomed = $(".viewer-stage", dialog)?.classList.contains("zoomed");
    const acts = {
        r: () => store.toggle(current, "right"), w: () => store.toggle(current, "wrong"), n: () => store.setMarks([current], null),
        s: () => $("#viewer-like").click(), z: zoom,
    };
    if (!zoomed) Object.assign(acts, { ArrowLeft: () => step(-1), ArrowRight: () => step(1) });
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (!(key in acts) || (key.length === 1 && !keysOn())) return;
    event.preventDefault();
    event.stopPropagation();
    acts[key]();
}
