// The search box: words, words that are not meant, and pictures that are uploaded, dropped, pasted or
// taken from the results.
import { $, announce, button, count, h, notice } from "./dom.js";
import { icon } from "./icons.js";
import { thumbnail, upload, uploadUrl } from "./api.js";
import { store } from "./state.js";
import { results } from "./results.js";
import { picture } from "./cells.js";

const MOST = 16;

/** What is in the box, as it is kept in the session. images: [{id | upload, weight, title}]. */
function typed() {
    return {
        words: $("#words").value, but: $("#but").value, strength: Number($("#strength").value),
        images: store.data.typed.images,
    };
}

/** The API's query of what is typed; null if there is nothing. */
function toQuery({ words, but, strength, images }) {
    const texts = [];
    if (words.trim()) texts.push({ words: words.trim(), weight: 1 });
    if (but.trim()) texts.push({ words: but.trim(), weight: -strength });
    const parts = images.map(({ id, upload: hash, weight }) => (hash ? { upload: hash, weight } : { id, weight }));
    return texts.length || parts.length ? { texts, images: parts } : null;
}

/** Whether somebody has searched before the collections were known. */
let early = false;

export async function searchEarly() {
    if (early) { early = false; await search(); }
}

export async function search() {
    if (!store.collection) { early = true; return; }
    const [, id] = /^#(\d{1,19})$/.exec($("#words").value.trim()) ?? [];
    if (id) { await searchLike({ id, title: `#${id}` }); return; }
    const asked = typed();
    const query = toQuery(asked);
    if (!query) {
        notice("Say in words what to look for, or add a picture.", { kind: "info", key: "query" });
        $("#words").focus();
        return;
    }
    if (!store.collection.words && query.texts.length) {
        notice("This collection can't be searched by words. Search with a picture's id, as in #42.", { key: "query" });
        return;
    }
    store.setQuery({ typed: asked, query });
    await runQuery();
}

/** Searches for the session's query (also after undo, or when a session is opened). */
export async function runQuery() {
    const result = await results.run({ act: "search", query: store.data.query }, { again: runQuery });
    // A session that is opened shows what it showed: it must not count as changed, and so conflict with its owner.
    if (result && store.data.shown?.act !== "search") store.setShown({ act: "search" });
    return result;
}

/** A result as the query: alone, as "more like this". */
export function searchLike(item) {
    $("#words").value = "";
    $("#but").value = "";
    setImages([{ id: String(item.id), weight: 1, title: item.title }]);
    return search();
}

/** A result besides what is sought already. */
export function addToQuery(item, weight = 1) {
    setImages([...store.data.typed.images.filter(({ id }) => id !== String(item.id)), { id: String(item.id), weight, title: item.title }]);
    announce(`${item.title} was added to the search.`);
}

function setImages(images) {
    if (images.length > MOST) {
        notice(`${MOST} pictures at most can be searched with.`, { key: "query" });
        images = images.slice(0, MOST);
    }
    store.data.typed = { ...typed(), images };
    store.emit("typed");
    draw();
}

async function take(files) {
    const pictures = [...files].filter((file) => file.type.startsWith("image/") || !file.type);
    if (!pictures.length) return;
    const { info } = store;
    const added = [];
    for (const file of pictures.slice(0, MOST)) {
        if (info && file.size > info.limits.upload_bytes) {
            notice(`${file.name} is too large: ${Math.round(info.limits.upload_bytes / 2 ** 20)} MB at most.`, { key: file.name });
            continue;
        }
        $("#searchbox").classList.add("uploading");
        try {
            const { upload: hash } = await upload(file);
            added.push({ upload: hash, weight: 1, title: file.name || "a pasted picture" });
        } catch (error) {
            notice(`${file.name || "The picture"} was not taken: ${error.message}`, { key: file.name, actions: [["Try again", () => take([file])]] });
        } finally {
            $("#searchbox").classList.remove("uploading");
        }
    }
    if (!added.length) return;
    setImages([...store.data.typed.images, ...added]);
    announce(`${count(added.length, "picture")} added to the search.`);
    search();
}

function chip(image, at) {
    const url = image.upload ? uploadUrl(image.upload) : thumbnail(store.collection.name, image.id, 160);
    const images = store.data.typed.images;
    return h("li", { class: image.weight < 0 ? "chip image less" : "chip image" },
        button({
            class: "turn", title: `${image.title}: ${image.weight < 0 ? "less" : "more"} like this. Click to turn round.`,
            "aria-label": `${image.title}: ${image.weight < 0 ? "less like this" : "more like this"}. Turn round`,
            onclick: () => setImages(images.map((other, i) => (i === at ? { ...other, weight: -other.weight } : other))),
        }, picture(url, { title: image.title }), h("span", { "aria-hidden": "true" }, image.weight < 0 ? "−" : "+")),
        button({
            class: "remove", "aria-label": `Take ${image.title} out of the search`,
            onclick: () => { setImages(images.filter((_, i) => i !== at)); $("#words").focus(); },
        }, icon("cross")));
}

function draw() {
    const { words, but, strength, images } = store.data.typed;
    if (document.activeElement !== $("#words")) $("#words").value = words;
    if (document.activeElement !== $("#but")) $("#but").value = but;
    $("#strength").value = String(strength);
    $("#strength").hidden = !$("#but").value.trim();
    $("#query-images").replaceChildren(...(store.collection ? images.map(chip) : []));
    const noWords = store.collection && !store.collection.words;
    $("#but").disabled = Boolean(noWords);
    $("#words").placeholder = noWords ? "A picture's id, as in #42" : "What to look for";
}

export function startQuery() {
    const form = $("#search");
    form.addEventListener("submit", (event) => { event.preventDefault(); search(); });
    form.addEventListener("input", () => {
        store.data.typed = typed();
        $("#strength").hidden = !$("#but").value.trim();
        store.emit("typed");
    });
    $("#add-image").addEventListener("click", () => $("#files").click());
    $("#files").addEventListener("change", () => { take([...$("#files").files]); $("#files").value = ""; });
    document.addEventListener("paste", (event) => {
        const files = [...(event.clipboardData?.files ?? [])];
        if (files.length) { event.preventDefault(); take(files); }
    });

    // Dragging over the page's children fires leave and enter again and again: they are counted.
    let over = 0;
    const carries = (event) => event.dataTransfer?.types.includes("Files");
    const hover = (on) => { over = Math.max(0, over + on); $("#drop").hidden = over === 0; };
    document.addEventListener("dragenter", (event) => { if (carries(event)) { event.preventDefault(); hover(1); } });
    document.addEventListener("dragleave", (event) => { if (carries(event)) hover(-1); });
    document.addEventListener("dragover", (event) => { if (carries(event)) event.preventDefault(); });
    document.addEventListener("drop", (event) => {
        over = 0;
        $("#drop").hidden = true;
        if (!carries(event)) return;
        event.preventDefault();
        take([...event.dataTransfer.files]);
    });
    store.on("query loaded collection", draw);
    draw();
}
