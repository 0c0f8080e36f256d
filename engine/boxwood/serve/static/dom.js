// Small helpers for the DOM: elements, messages, and how numbers are written.
import { icon } from "./icons.js";

export const $ = (selector, root = document) => root.querySelector(selector);

/**
 * An element. `props`: `on*` are listeners, `data` a dataset, `icon` a leading icon, `vars` CSS
 * properties set through the CSSOM (the page's CSP forbids style attributes); what is a property of
 * the element is set as one, the rest as attributes. null and false are left out. Text is only ever
 * inserted as text nodes.
 */
export function h(tag, props = {}, ...children) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(props)) {
        if (value === null || value === undefined || value === false) continue;
        if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
        else if (key === "class") element.className = value;
        else if (key === "data") Object.assign(element.dataset, value);
        else if (key === "vars") for (const [name, v] of Object.entries(value)) element.style.setProperty(name, v);
        else if (key === "icon") element.append(icon(value));
        else if (key in element && key !== "list" && key !== "form") element[key] = value;
        else element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
    return element;
}

/** A button that does not submit the form around it. */
export const button = (props, ...children) => h("button", { ...props, type: props.type ?? "button" }, ...children);

/** Fills the icons into the page's static markup: `<button data-icon="help">`. */
export function decorate(root = document) {
    for (const element of root.querySelectorAll("[data-icon]")) element.prepend(icon(element.dataset.icon));
}

// ---- numbers ----

const plain = new Intl.NumberFormat("en");
export const number = (n) => plain.format(n);
export const count = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`;
export const ms = (t) => (t === null || t === undefined ? "–" : t < 10 ? `${t.toFixed(1)} ms` : `${number(Math.round(t))} ms`);
export const short = (x) => (Number.isInteger(x) ? number(x) : new Intl.NumberFormat("en", { maximumSignificantDigits: 4 }).format(x));

export function bytes(n) {
    const units = ["B", "KB", "MB", "GB", "TB"];
    let at = 0;
    while (n >= 1000 && at < units.length - 1) { n /= 1000; at += 1; }
    return `${n < 10 && at ? n.toFixed(1) : Math.round(n)} ${units[at]}`;
}

export function ago(iso) {
    const seconds = (Date.now() - Date.parse(iso)) / 1000;
    if (!Number.isFinite(seconds)) return String(iso);
    if (seconds < 60) return "just now";
    if (seconds < 3600) return `${count(Math.floor(seconds / 60), "minute")} ago`;
    if (seconds < 86400) return `${count(Math.floor(seconds / 3600), "hour")} ago`;
    return new Date(iso).toLocaleDateString("en", { year: "numeric", month: "short", day: "numeric" });
}

// ---- what is said to the person ----

let politeTimer = 0;
/** For screen readers only: what a sighted person sees change. The last of a burst is said. */
export function announce(words) {
    clearTimeout(politeTimer);
    politeTimer = setTimeout(() => { $("#announcer").textContent = words; }, 150);
}

/**
 * A message that stays until it is dismissed, replaced (same `key`) or, for good news, has been
 * there for some seconds. `actions`: [[label, function]].
 */
export function notice(words, { kind = "error", key = words, actions = [] } = {}) {
    dismiss(key);
    const box = h("div", { class: `notice ${kind}`, role: kind === "error" ? "alert" : "status", data: { key } },
        h("p", {}, words),
        actions.map(([label, act]) => button({ onclick: () => { box.remove(); act(); } }, label)),
        button({ class: "quiet", icon: "cross", "aria-label": "Dismiss this message", onclick: () => box.remove() }));
    // A modal dialog makes the rest of the page inert: what is said then must stand inside it.
    (document.querySelector("dialog[open] .notices") ?? $("#notices")).append(box);
    if (kind !== "error" && !actions.length) setTimeout(() => box.remove(), 6000);
    return box;
}

export function dismiss(key) {
    for (const box of document.querySelectorAll(".notice")) if (box.dataset.key === key) box.remove();
}

/** Opens a `<dialog>` (the browser traps the focus) and returns the focus to where it was. */
export function openDialog(dialog) {
    if (dialog.open) return;
    const before = document.activeElement;
    dialog.addEventListener("close", () => {
        if (before && before.isConnected && document.activeElement === document.body) before.focus();
    }, { once: true });
    dialog.showModal();
}

export async function copyText(text) {
    try {
        await navigator.clipboard.writeText(text);
    } catch {
        // Without a secure context there is no clipboard API: the older way still works.
        const area = h("textarea", { class: "visually-hidden", value: text });
        (document.querySelector("dialog[open]") ?? document.body).append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
    }
}

const TEXT = "input:not([type=checkbox]):not([type=radio]):not([type=range]), textarea, select, [contenteditable]";
export const isTyping = (target) => Boolean(target.closest?.(TEXT));
export const isPhone = () => matchMedia("(max-width: 760px)").matches;
