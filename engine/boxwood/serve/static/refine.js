// The learner and its options, the button that learns, and what the run took.
import { $, ago, button, bytes, copyText, count, h, ms, notice, number, short } from "./dom.js";
import { store } from "./state.js";
import { results } from "./results.js";

// Titles and hints of the options; ranges and defaults are the server's.
const OPTIONS = {
    random_negatives: ["Random wrong pictures", "Drawn at random, they count as wrong."],
    negative_weight: ["Weight of wrong marks", "Against 1 for a right one."],
    estimators: ["Members", "How many learners vote."],
    boxes: ["Boxes", "How many boxes the result is made of at most; 0 leaves it free."],
    rerank: ["Rank with fine codes", "Slower, and the best come first more reliably."],
    prior: ["Steady with few marks", "Lets a handful of marks reach further than they strictly say."],
};
const FOLDED = new Set(["estimators", "boxes", "rerank", "prior"]);

// A slider over 0 .. 100,000 must be fine at its low end: positions are spread by a power, or by the
// logarithm where the range starts above 0.
const STEPS = 200;
function scale({ min, max }) {
    if (min > 0 && max / min >= 100) {
        return {
            whole: false,
            from: (v) => (Math.log(v / min) / Math.log(max / min)) * STEPS,
            to: (p) => tidy(min * (max / min) ** (p / STEPS)),
        };
    }
    if (max - min >= 1000) {
        return {
            whole: true,
            from: (v) => ((v - min) / (max - min)) ** (1 / 3) * STEPS,
            to: (p) => Math.round(tidy(min + (max - min) * (p / STEPS) ** 3)),
        };
    }
    return {
        whole: true,
        from: (v) => ((v - min) / (max - min)) * STEPS,
        to: (p) => Math.round(min + ((max - min) * p) / STEPS),
    };
}
const tidy = (v) => Number(v.toPrecision(2));

const learner = () => {
    const { learners = [] } = store.info ?? {};
    return learners.find(({ name }) => name === store.data.options.learner) ?? learners[0];
};

/** What is chosen of an option, as this learner takes it: the range of another one may be wider. */
function chosenOf({ name, min, max }) {
    const value = store.data.options[name];
    return typeof value === "number" ? Math.max(min, Math.min(max, value)) : value;
}

function slider(option) {
    const { name } = option;
    const [title, hint] = OPTIONS[name] ?? [name, ""];
    const { from, to, whole } = scale(option);
    const value = () => chosenOf(option) ?? option.default;
    const range = h("input", {
        id: `option-${name}`, type: "range", min: "0", max: String(STEPS), step: "1", "aria-describedby": `hint-${name}`,
    });
    const exact = h("input", {
        id: `exact-${name}`, type: "number", class: "exact", min: String(option.min), max: String(option.max),
        step: whole ? "1" : "any", "aria-label": `${title}, exactly`,
    });
    const back = button({
        class: "link", "aria-label": `${title}: back to the default`,
        onclick: () => { store.setOption(name, null); draw(); range.focus(); },
    }, "Default");
    const draw = () => {
        back.hidden = value() === option.default;
        range.value = String(from(value()));
        range.setAttribute("aria-valuetext", short(value()));
        exact.value = String(value());
    };
    range.addEventListener("input", () => {
        store.setOption(name, Math.max(option.min, Math.min(option.max, to(Number(range.value)))));
        range.setAttribute("aria-valuetext", short(value()));
        exact.value = String(value());
        back.hidden = value() === option.default;
    });
    exact.addEventListener("change", () => {
        const typed = Number(exact.value);
        if (exact.value !== "" && Number.isFinite(typed)) {
            store.setOption(name, Math.max(option.min, Math.min(option.max, whole ? Math.round(typed) : typed)));
        }
        draw();
    });
    draw();
    return h("div", { class: "option", data: { option: name } },
        h("div", { class: "option-head" }, h("label", { for: range.id }, title), back, exact),
        range, h("p", { class: "hint", id: `hint-${name}` }, hint));
}

function checkbox(option) {
    const { name } = option;
    const [title, hint] = OPTIONS[name] ?? [name, ""];
    const unfit = name === "rerank" && !store.collection?.fine;
    return h("div", { class: "option", data: { option: name } },
        h("label", { class: "check" }, h("input", {
            id: `option-${name}`, type: "checkbox", checked: !unfit && (store.data.options[name] ?? option.default), disabled: unfit,
            "aria-describedby": `hint-${name}`, onchange: (event) => store.setOption(name, event.currentTarget.checked),
        }), title),
        h("p", { class: "hint", id: `hint-${name}` }, unfit ? "This collection has no fine codes." : hint));
}

function drawOptions() {
    const { info } = store;
    if (!info) return;
    const chosen = learner();
    $("#learners").replaceChildren(...info.learners.map((one) => h("label", {
        class: "learner", title: one.words, data: { learner: one.name },
    },
        h("input", {
            type: "radio", name: "learner", value: one.name, checked: one === chosen, disabled: one.available === false,
            onchange: () => {
                store.setOption("learner", one.name);
                drawOptions();
                $(`input[name=learner][value=${one.name}]`).focus();
            },
        }),
        h("span", {},
            h("strong", {}, one.title), h("span", { class: "hint" }, one.words, one.available === false ? " Not installed on this server." : "")))));
    const build = (option) => (typeof option.default === "boolean" ? checkbox(option) : slider(option));
    $("#sliders").replaceChildren(...chosen.options.filter(({ name }) => !FOLDED.has(name)).map(build));
    $("#options").replaceChildren(...chosen.options.filter(({ name }) => FOLDED.has(name)).map(build), seed());
}

function seed() {
    return h("div", { class: "option", data: { option: "seed" } },
        h("div", { class: "option-head" }, h("label", { for: "option-seed" }, "Seed of chance"),
            h("input", {
                id: "option-seed", class: "exact", type: "number", min: "0", step: "1", value: String(store.data.options.seed ?? 0),
                onchange: (event) => {
                    const value = Math.floor(Number(event.currentTarget.value));
                    store.setOption("seed", Number.isSafeInteger(value) && value >= 0 ? value : 0);
                    event.currentTarget.value = String(store.data.options.seed);
                },
            })),
        h("p", { class: "hint" }, "The same marks, options and seed give the same result."));
}

/** What the server is asked: marks, what is sought, and the options that this learner takes. */
function request() {
    const chosen = learner();
    const { options, query } = store.data;
    const body = {
        positives: store.marked("right"), negatives: store.marked("wrong"),
        query: chosen.query === false ? null : query, learner: chosen.name, seed: options.seed ?? 0,
        previous: results.main?.kind === "refine" ? results.main.view : null,
    };
    for (const option of chosen.options) {
        const unfit = option.name === "rerank" && !store.collection.fine;
        const value = chosenOf(option);
        if (!unfit && value !== null && value !== undefined) body[option.name] = value;
    }
    return body;
}

export async function refine() {
    if ($("#refine").disabled) {
        notice($("#refine-why").textContent, { kind: "info", key: "refine" });
        return;
    }
    const body = request();
    const marks = body.positives.length + body.negatives.length;
    const result = await results.run({ act: "refine", body }, { words: `Learning from ${count(marks, "mark")}…`, again: refine });
    if (!result) return;
    store.addRound({
        at: new Date().toISOString(), learner: body.learner, positives: body.positives.length, negatives: body.negatives.length,
        total: result.total, new: result.changes?.new ?? null, gone: result.changes?.gone ?? null,
        train_ms: result.stats.train_ms, search_ms: result.stats.search_ms,
    });
    store.setShown({ act: "refine", body: { ...body, previous: null } });
}

/** Shows the last round of a session that is opened again: with the marks of then. */
export function refineAgain(body) {
    return results.run({ act: "refine", body: body ?? { ...request(), previous: null } }, { words: "Repeating the last round…" });
}

function drawButton() {
    const right = store.marked("right").length;
    const wrong = store.marked("wrong").length;
    const chosen = learner();
    const fromWords = chosen?.query !== false && store.data.query;
    const able = Boolean(store.collection) && (right > 0 || (wrong > 0 && fromWords)) && !results.busy;
    for (const button of [$("#refine"), $("#tab-refine")]) button.disabled = !able;
    $("#refine-why").textContent = results.busy ? "At work…"
        : able ? `with ${number(right)} right and ${number(wrong)} wrong`
            : "Mark at least one picture as right first.";
}

function drawRun() {
    const result = results.main;
    $("#run").hidden = !result;
    if (!result) return;
    const { stats } = result;
    $("#run-path").textContent = stats.path;
    const rows = [
        ["Training", stats.train_ms !== null && ms(stats.train_ms)],
        ["Search", stats.search_ms !== null && ms(stats.search_ms)],
        ["In all", stats.total_ms && ms(stats.total_ms)],
        ["Rows found", stats.rows && number(stats.rows)],
        ["Boxes", stats.boxes !== null && number(stats.boxes)],
        ["Blocks skipped", stats.blocks && `${number(stats.blocks_pruned ?? 0)} of ${number(stats.blocks)}`],
        ["Read", stats.bytes !== null && stats.bytes !== undefined && bytes(stats.bytes)],
        ["Right, wrong, random", stats.positives !== null && stats.positives !== undefined &&
            `${number(stats.positives)}, ${number(stats.negatives ?? 0)}, ${number(stats.random_negatives ?? 0)}`],
        ["Precision, estimated", share(result.estimate?.precision)],
        ["Found of all, estimated", share(result.estimate?.recall)],
    ];
    $("#run-stats").replaceChildren(...rows.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
    $("#sql").textContent = (results.shown ?? result).sql;
}

const percent = (x) => `${Math.round(100 * x)}%`;
const share = (triple) => triple && `${percent(triple[1])} (${percent(triple[0])} to ${percent(triple[2])})`;

function drawRounds() {
    const { rounds } = store.data;
    $("#rounds-box").hidden = !rounds.length;
    const titles = new Map((store.info?.learners ?? []).map(({ name, title }) => [name, title]));
    $("#rounds").replaceChildren(...rounds.slice(-50).map((round, at) => h("li", { value: Math.max(0, rounds.length - 50) + at + 1 },
        `${count(round.total, "result")} from ${number(round.positives)} right, ${number(round.negatives)} wrong`,
        h("span", { class: "hint" }, ` ${titles.get(round.learner) ?? round.learner}`,
            round.new === null || round.new === undefined ? "" : `, ${number(round.new)} new, ${number(round.gone)} gone`, `, ${ago(round.at)}`))));
}

export function startRefine() {
    $("#refine").addEventListener("click", refine);
    $("#tab-refine").addEventListener("click", refine);
    $("#copy-sql").addEventListener("click", async () => {
        await copyText($("#sql").textContent);
        notice("The SQL was copied.", { kind: "good", key: "copied" });
    });
    $("#sql-box").addEventListener("toggle", drawRun);
    store.on("loaded collection", () => { drawOptions(); drawButton(); drawRounds(); });
    store.on("marks query options", drawButton);
    store.on("rounds", drawRounds);
    results.addEventListener("result", () => { drawRun(); drawButton(); });
    results.addEventListener("renewed", drawRun);
    results.addEventListener("busy", () => { drawButton(); drawRun(); });
    drawOptions();
    drawButton();
}

