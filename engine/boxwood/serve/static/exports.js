// Exports of what is shown: started, followed while they run, cancelled, saved.
import { $, announce, button, bytes, count, h, notice, number, openDialog } from "./dom.js";
import { follow, path, post, send } from "./api.js";
import { icon } from "./icons.js";
import { store } from "./state.js";
import { dialogHead, results } from "./results.js";

/** The export that runs or waits to be saved: {job, stop, draw}. Closing the dialog does not end it. */
let running = null;

const FORMATS = [
    ["csv", "CSV", "A table for spreadsheets."],
    ["parquet", "Parquet", "A table for DuckDB, pandas and the like."],
    ["json", "JSON list of files", "Ids and files, for other programs."],
    ["zip", "Zip of the originals", "The pictures themselves."],
];

export function startExports() {
    $("#export").addEventListener("click", show);
}

function show() {
    const dialog = $("#export-dialog");
    const { total } = results.main;
    const { zip_files: files, zip_bytes: size } = store.info.limits;
    const limit = ` ${total > files ? "The best" : "At most"} ${number(files)} files, ${bytes(size)}.`;
    const columns = store.collection.columns.map(({ name }) => name);
    const boxes = columns.map((name) => h("label", { class: "check" }, h("input", {
        type: "checkbox", name: "column", value: name, checked: true,
    }), name));
    const status = h("div", { id: "export-status", role: "status" });
    dialog.replaceChildren(...dialogHead("export-title", `Export ${count(total, "result")}`, dialog),
        h("form", { id: "export-form", onsubmit: (event) => {
            event.preventDefault();
            const form = new FormData(event.currentTarget);
            const chosen = form.getAll("column");
            start(form.get("format"), chosen.length === columns.length ? null : chosen, status);
        } },
            h("fieldset", {},
                h("legend", {}, "As"), FORMATS.map(([value, title, words], at) => h("label", { class: "learner" },
                h("input", { type: "radio", name: "format", value, checked: at === 0 }),
                h("span", {},
                    h("strong", {}, title), h("span", { class: "hint" }, words, value === "zip" ? limit : ""))))),
            boxes.length ? h("details", {}, h("summary", {}, "Columns"), h("div", { class: "columns" }, boxes)) : "",
            h("button", { type: "submit", class: "primary", icon: "download", id: "export-start" }, "Export")),
        status);
    if (running) { running.status = status; running.draw(); }
    openDialog(dialog);
}

async function start(format, columns, status) {
    if (running && !running.ended) { notice("An export is running: wait for it, or cancel it.", { kind: "info", key: "export" }); return; }
    const run = { status, ended: false, job: null, last: { done: 0, total: 0, words: "Starting…" }, stop: () => {} };
    running = run;
    const cancel = async () => {
        run.stop();
        run.ended = true;
        if (running === run) running = null;
        run.status.replaceChildren(h("p", {}, "The export was cancelled."));
        try { if (run.job) await send("DELETE", path("jobs", run.job), null); } catch { /* it ended by itself */ }
    };
    run.draw = () => {
        const { done, total, words } = run.last;
        const bar = h("progress", { max: total || 1, "aria-label": "Progress of the export" });
        if (total) bar.value = done;
        else bar.removeAttribute("value");
        run.status.replaceChildren(h("p", {}, total ? `${words}: ${number(done)} of ${number(total)}` : words), bar,
            button({ id: "export-cancel", onclick: cancel }, "Cancel"));
    };
    run.draw();
    const failed = (error) => {
        run.ended = true;
        if (running === run) running = null;
        run.status.replaceChildren(h("p", { class: "warn", role: "alert" }, error.message),
            button({ icon: "retry", onclick: () => start(format, columns, run.status) }, "Try again"));
    };
    try {
        run.job = (await results.whole(() => post(path("views", results.main.view, "exports"), { format, columns }))).job;
    } catch (error) {
        failed(error);
        return;
    }
    if (run.ended) { send("DELETE", path("jobs", run.job), null).catch(() => {}); return; }
    run.stop = follow(run.job, {
        progress: (state) => { run.last = state; run.draw(); },
        done: ({ bytes: size, name, note }) => {
            run.ended = true;
            run.draw = () => run.status.replaceChildren(h("p", {}, `${name} is ready, ${bytes(size)}. ${note ? `${note}.` : ""}`),
                h("a", {
                    class: "button primary", id: "export-file", href: `api/${path("jobs", run.job, "file")}`,
                    download: name, onclick: () => { if (running === run) running = null; },
                }, icon("download"), "Save the file"));
            run.draw();
            announce(`The export is ready: ${name}.`);
            if (!$("#export-dialog").open) notice(`The export ${name} is ready.`, { kind: "good", key: "export", actions: [["Show it", show]] });
        },
        failed,
    });
}
