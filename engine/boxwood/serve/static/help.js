// The help panel, and the keys of the whole page.
import { $, h, isTyping, openDialog } from "./dom.js";
import { dialogHead } from "./results.js";

const KEYS = [
    ["Everywhere", [
        ["/", "To the search box"], ["G", "To the results"], ["Ctrl + Enter", "Refine"], ["Ctrl + Z", "Undo"],
        ["Ctrl + Shift + Z", "Redo"], ["D", "Help me decide, and back"], ["F", "Filters and counts"], ["?", "This help"],
    ]],
    ["On a picture in the results", [
        ["Arrows", "Move"], ["Home, End", "First, last of the row; with Ctrl of all results"], ["Page up, down", "A screen up, down"],
        ["R or space", "Right, and back to none"], ["W", "Wrong, and back to none"], ["N or Delete", "No mark"],
        ["S", "Search for pictures like it"], ["Enter", "Large view"], ["Shift + click", "Mark all from the last click to here"],
    ]],
    ["In the large view", [
        ["Left, right", "The picture before, the next one"], ["R, W, N", "Right, wrong, no mark"], ["S", "More like this"],
        ["Z", "Full size"], ["Escape", "Back to the results"],
    ]],
];

const SETTING = "boxwood:keys";
let single = true;
try { single = localStorage.getItem(SETTING) !== "off"; } catch { /* blocked: keys are on */ }

/** Whether single keys work; people who dictate or press keys by accident can switch them off. */
export const keysOn = () => single;

export function showHelp() {
    const dialog = $("#help-dialog");
    dialog.replaceChildren(...dialogHead("help-title", "Help", dialog),
        h("ol", { class: "steps" },
            h("li", {},
                h("strong", {}, "Search. "), "Say in words what you look for, add what is not meant after “but not”, or give a picture: upload, drop or paste it."),
            h("li", {},
                h("strong", {}, "Mark. "), "Mark some of the results as right (✓) or wrong (✕). Three of each are a good start. Nothing is marked for you."),
            h("li", {},
                h("strong", {}, "Refine. "), "Boxwood learns from the marks and finds every picture like them in the whole collection, best first."),
            h("li", {},
                h("strong", {}, "Again. "), "Mark what is wrong among the new ones. “Help me decide” shows those that lie nearest to the border: marks there help most."),
            h("li", {},
                h("strong", {}, "Keep. "), "Save what was learned as a concept, export the results, or copy the SQL.")),
        ...KEYS.map(([title, rows]) => h("table", { class: "keys" }, h("caption", {}, title),
            h("tbody", {},
                rows.map(([key, words]) => h("tr", {}, h("th", { scope: "row" }, h("kbd", {}, key)), h("td", {}, words)))))),
        h("label", { class: "check" },
            h("input", { type: "checkbox", id: "single-keys", checked: single, onchange: (event) => {
            single = event.currentTarget.checked;
            try { localStorage.setItem(SETTING, single ? "on" : "off"); } catch { /* holds for this page only */ }
        } }), "Single letters work as keys"));
    openDialog(dialog);
}

/** acts: {"/": f, g: f, ...} for single keys, and refine, undo, redo for those with Ctrl. */
export function startKeys(acts) {
    $("#help").addEventListener("click", showHelp);
    document.addEventListener("keydown", (event) => {
        if (event.defaultPrevented || event.altKey) return;
        const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
        const command = event.ctrlKey || event.metaKey;
        const modal = document.querySelector("dialog[open]");
        let act = null;
        if (command && key === "Enter" && !modal) act = acts.refine;
        // In a text field these undo typing.
        else if (command && key === "z" && !isTyping(event.target)) act = event.shiftKey ? acts.redo : acts.undo;
        else if (command && key === "y" && !isTyping(event.target)) act = acts.redo;
        else if (!command && !modal && key in acts.single && !isTyping(event.target) && (single || key === "Escape")) act = acts.single[key];
        if (act && act() !== false) event.preventDefault();
    });
}
