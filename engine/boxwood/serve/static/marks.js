// The list of marks: thumbnails of what is right and wrong, each with a button that takes it away.
import { $, announce, button, count, h, number } from "./dom.js";
import { thumbnail } from "./api.js";
import { store } from "./state.js";
import { picture } from "./cells.js";

// Thousands may be marked at once; the list shows the newest and says how many more there are.
const SHOWN = 60;

export function startMarks({ open }) {
    let waiting = 0;
    const soon = () => { counts(); waiting ||= requestAnimationFrame(() => { waiting = 0; draw(open); }); };
    store.on("marks loaded collection", soon);
    store.on("marks", (ids) => {
        const [id] = ids;
        const said = ids.size === 1 ? `${store.mark(id) ? `Marked ${store.mark(id)}` : "No mark"}. ` : "";
        announce(`${said}${number(store.marked("right").length)} right, ${number(store.marked("wrong").length)} wrong.`);
    });
    for (const mark of ["right", "wrong"]) {
        $(`#clear-${mark}`).addEventListener("click", () => announce(`${count(store.clearMarks(mark), "mark")} cleared. Undo brings them back.`));
    }
    counts();
}

function counts() {
    for (const mark of ["right", "wrong"]) {
        const n = store.marked(mark).length;
        $(`#${mark}-count`).textContent = `${number(n)} ${mark}`;
        $(`#clear-${mark}`).hidden = !n;
    }
    $("#marks-hint").hidden = store.data.marks.size > 0;
    $("#tab-marks span").textContent = store.data.marks.size ? `Marks (${number(store.data.marks.size)})` : "Marks";
}

function draw(open) {
    for (const mark of ["right", "wrong"]) {
        const ids = store.marked(mark).reverse();
        const list = $(`#${mark}-list`);
        const wanted = ids.slice(0, SHOWN);
        // An id means another picture in another collection.
        const collection = store.collection?.name ?? "";
        if (list.dataset.collection !== collection) list.replaceChildren();
        list.dataset.collection = collection;
        const old = new Map([...list.children].map((item) => [item.dataset.id, item]));
        const held = document.activeElement?.closest?.(".thumbs li");
        const at = held?.parentNode === list ? [...list.children].indexOf(held) : -1;
        list.replaceChildren(...wanted.map((id) => old.get(id) ?? entry(id, mark, open)));
        if (ids.length > SHOWN) list.append(h("li", { class: "more" }, `and ${number(ids.length - SHOWN)} more`));
        // Removing with the keyboard leaves the focus in the list, where the next one can be removed.
        if (at >= 0) (list.children[Math.min(at, list.children.length - 1)]?.querySelector(".remove") ?? $("#left .scroll")).focus();
    }
}

function entry(id, mark, open) {
    return h("li", { data: { id } },
        button({ class: "look", "aria-label": `Look at picture ${id}`, onclick: () => open(id) },
            picture(store.collection ? thumbnail(store.collection.name, id, 160) : "", { title: id })),
        button({
            class: "remove", icon: "cross", "aria-label": `Take the mark of picture ${id} away`,
            onclick: () => store.setMarks([id], null),
        }));
}
