// Filters and sort, built from the collection's columns: counts to click on, ranges, text, what is
// missing; and the chips that say which filters are in use.
import { $, announce, button, h, number, short } from "./dom.js";
import { get, path } from "./api.js";
import { icon } from "./icons.js";
import { store } from "./state.js";
import { results } from "./results.js";

// What Boxwood notes of a file itself: it comes after the columns that people made, and folded.
const OWN = new Set(["uri", "width", "height", "bytes", "modified", "hash"]);

let stale = true;
let pending = new AbortController();

const filterOf = (column, op) => store.data.filters.find((f) => f.column === column && f.op === op);

/** Puts a filter in the place of the one on the same column with the same op (null: takes it away). */
function put(column, op, filter) {
    const negate = filterOf(column, op)?.negate ?? false;
    const rest = store.data.filters.filter((f) => !(f.column === column && f.op === op));
    use(filter ? [...rest, { column, op, negate, ...filter }] : rest);
}

function use(filters) {
    store.setFilters(filters);
    results.arrange();
}

export function startFilters({ toggle }) {
    $("#filters-toggle").addEventListener("click", toggle);
    $("#sort").addEventListener("change", () => change({ by: $("#sort").value }));
    $("#sort-direction").addEventListener("click", () => change({ descending: !store.data.sort.descending }));
    store.on("filters loaded collection", () => { stale = true; drawSort(); drawChips(); });
    results.addEventListener("result", () => { stale = true; drawChips(); drawFacets(); });
    drawSort();
}

function change(part) {
    store.setSort({ ...store.data.sort, ...part });
    results.arrange();
}

function drawSort() {
    const columns = store.collection?.columns ?? [];
    const { by, descending } = store.data.sort;
    const sortable = columns.filter(({ kind }) => kind !== "other").map(({ name }) => name);
    $("#sort").replaceChildren(h("option", { value: "rank" }, "Best first"), ...sortable.map((name) => h("option", { value: name }, name)));
    $("#sort").value = by;
    $("#sort-direction").setAttribute("aria-pressed", String(descending));
}

function describe(filter) {
    const { column, op, values, low, high, text, negate } = filter;
    const not = negate ? "not " : "";
    if (op === "in") return `${column}: ${not}${values.map(String).join(", ")}`;
    if (op === "contains") return `${column}: ${not}“${text}”`;
    if (op === "missing") return `${column}: ${negate ? "known" : "missing"}`;
    const from = low ?? null;
    const to = high ?? null;
    if (from === null) return `${column}: ${not}up to ${value(to)}`;
    return `${column}: ${not}${value(from)} ${to === null ? "or more" : `to ${value(to)}`}`;
}

const value = (v) => (typeof v === "number" ? short(v) : String(v).replace(/[T ](00:00:00(\.0+)?|23:59:59\.999999)$/, ""));

function drawChips() {
    const { filters } = store.data;
    $("#active-filters").replaceChildren(
        ...filters.map((filter) => h("li", { class: filter.negate ? "chip not" : "chip" },
            button({
                class: "turn", title: "Turn it round: all but these", "aria-label": `${describe(filter)}. Turn it round`,
                onclick: () => use(filters.map((f) => (f === filter ? { ...f, negate: !f.negate } : f))),
            }, describe(filter)),
            button({
                class: "remove", "aria-label": `Take the filter ${describe(filter)} away`,
                onclick: () => use(filters.filter((f) => f !== filter)),
            }, icon("cross")))),
        ...(filters.length > 1 ? [h("li", {}, button({
            class: "link", onclick: () => { use([]); announce("No filters."); },
        }, "Clear all"))] : []));
    const label = filters.length ? `Filters (${filters.length})` : "Filters";
    $("#filters-toggle span").textContent = label;
    $("#filters-toggle").setAttribute("aria-label", label);
}

/** Asks for the counts, if the panel is open and what is shown has changed. */
export async function drawFacets() {
    if ($("#right").hidden) return;
    const box = $("#facets");
    if (!results.main) { box.replaceChildren(h("p", { class: "hint" }, "Search first: then the counts of its results are here.")); return; }
    if (!stale) return;
    stale = false;
    pending.abort();
    pending = new AbortController();
    const { signal } = pending;
    box.setAttribute("aria-busy", "true");
    try {
        const { facets } = await results.whole(() => get(`${path("views", results.main.view, "facets")}?limit=20`, { signal, seconds: 60 }));
        if (signal.aborted) return;
        const counted = new Map(facets.map((facet) => [facet.column, facet]));
        // What was being typed or clicked keeps the focus although its panel is drawn anew.
        const held = box.contains(document.activeElement) ? document.activeElement.dataset.key : null;
        const open = new Map([...box.querySelectorAll("details[data-column]")].map((d) => [d.dataset.column, d.open]));
        box.replaceChildren(...store.collection.columns.filter((c) => counted.has(c.name) || c.kind !== "other")
            .sort((a, b) => OWN.has(a.name) - OWN.has(b.name))
            .map((column) => facetPanel(column, counted.get(column.name), open.get(column.name))));
        if (!box.children.length) box.append(h("p", { class: "hint" }, "The collection has no columns to filter by."));
        if (held) [...box.querySelectorAll("[data-key]")].find((e) => e.dataset.key === held)?.focus();
    } catch (error) {
        if (signal.aborted || error.kind === "aborted") return;
        stale = true;
        box.replaceChildren(h("p", { class: "warn" }, error.message), button({ icon: "retry", onclick: drawFacets }, "Try again"));
    } finally {
        if (!signal.aborted) box.removeAttribute("aria-busy");
    }
}

function facetPanel(column, facet, open) {
    const { name, kind } = column;
    const used = store.data.filters.some((f) => f.column === name);
    const body = [];
    if (facet?.values) body.push(valueList(name, facet));
    // One bar says nothing: then all have the same value.
    if (facet?.bins?.length === 1) body.push(h("p", { class: "hint" }, `${span(facet.bins[0])}: all ${number(facet.bins[0].count)}`));
    else if (facet?.bins?.length) body.push(bins(name, coarse(facet.bins)));
    if (kind === "number" || kind === "time") body.push(range(name, kind));
    if (kind === "text") body.push(contains(name));
    if (facet?.missing || filterOf(name, "missing")) {
        const set = (on) => put(name, "missing", on ? {} : null);
        body.push(tick(name, "missing", "missing", facet?.missing ?? 0, Boolean(filterOf(name, "missing")), set));
    }
    return h("details", {
        data: { column: name }, class: used ? "facet used" : "facet",
        open: open ?? (used || (!OWN.has(name) && Boolean(facet?.values ?? facet?.bins))),
    }, h("summary", {}, name), body);
}

function tick(column, key, label, n, checked, set) {
    return h("label", { class: "tick" },
        h("input", {
            type: "checkbox", checked, data: { key: `${column}/${key}` },
            onchange: (event) => set(event.currentTarget.checked),
        }),
        h("span", { class: "name" }, label), h("span", { class: "n" }, number(n)));
}

function valueList(column, { values, other }) {
    const chosen = filterOf(column, "in")?.values ?? [];
    // What is chosen stays to be seen, also where no result has it any more.
    const rows = [...values, ...chosen.filter((v) => !values.some(({ value: w }) => w === v)).map((v) => ({ value: v, count: 0 }))];
    return h("div", { role: "group", "aria-label": column }, rows.map(({ value: v, count }) =>
        tick(column, `=${v}`, v === true ? "yes" : v === false ? "no" : String(v), count, chosen.includes(v), (on) => {
            const next = on ? [...chosen, v] : chosen.filter((w) => w !== v);
            put(column, "in", next.length ? { values: next } : null);
        })), other ? h("p", { class: "hint" }, `${number(other)} with other values`) : "");
}

// Bars that a finger can hit: so many fit into the panel.
const BARS = 10;
function coarse(all) {
    const each = Math.ceil(all.length / BARS);
    const merged = [];
    for (let at = 0; at < all.length; at += each) {
        const part = all.slice(at, at + each);
        merged.push({ low: part[0].low, high: part.at(-1).high, count: part.reduce((sum, { count }) => sum + count, 0) });
    }
    return merged;
}

const span = ({ low, high }) => (low === high ? value(low) : `${value(low)} to ${value(high)}`);

function bins(column, all) {
    const most = Math.max(...all.map(({ count }) => count), 1);
    const now = filterOf(column, "range");
    return h("div", { class: "bins", role: "group", "aria-label": `${column}: counts` }, all.map(({ low, high, count }) => {
        const on = now && now.low === low && now.high === high;
        const label = `${span({ low, high })}: ${number(count)}`;
        return button({
            "aria-pressed": String(Boolean(on)), "aria-label": label, title: label, data: { key: `${column}/${low}` },
            vars: { "--part": String(count / most) }, onclick: () => put(column, "range", on ? null : { low, high }),
        });
    }));
}

function range(column, kind) {
    const now = filterOf(column, "range");
    const shown = (v) => (v === null || v === undefined ? "" : kind === "time" ? String(v).slice(0, 10) : String(v));
    const field = (side, label) => h("input", {
        type: kind === "time" ? "date" : "number", step: "any", value: shown(now?.[side]), "aria-label": `${column}: ${label}`,
        data: { key: `${column}/${side}` },
        onchange: (event) => {
            const typed = event.currentTarget.value;
            const sides = { low: now?.low ?? null, high: now?.high ?? null };
            // A day means all of it.
            if (typed === "") sides[side] = null;
            else if (kind === "number") sides[side] = Number(typed);
            else sides[side] = side === "high" ? `${typed}T23:59:59.999999` : typed;
            put(column, "range", sides.low === null && sides.high === null ? null : sides);
        },
    });
    return h("div", { class: "range" },
        field("low", "from"), h("span", { "aria-hidden": "true" }, "to"), field("high", "to"));
}

function contains(column) {
    return h("input", {
        type: "search", class: "contains", placeholder: "contains…", "aria-label": `${column} contains`, maxLength: 500,
        value: filterOf(column, "contains")?.text ?? "", data: { key: `${column}/contains` },
        onchange: (event) => put(column, "contains", event.currentTarget.value ? { text: event.currentTarget.value } : null),
    });
}
