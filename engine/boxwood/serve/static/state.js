// The one store: what a session consists of, how it changes, and how that is undone.
// Modules read `store.data` and change it through the methods below; each change fires one event:
//   "marks" (detail: a Set of ids)  "query"  "typed"  "options"  "filters"  "rounds"  "collection"  "loaded"
// and, where there is something to save, then "change".

const MARKS = ["right", "wrong"];

// The server takes 2 MiB a session: beyond these, the oldest steps can no longer be undone.
const STEPS = 300;
const CHANGES = 20000;

/** What a new session begins with where this person has chosen otherwise before. */
export const preferred = { size: 180 };

const fresh = () => ({
    typed: { words: "", but: "", strength: 0.6, images: [] },
    query: null,
    marks: new Map(),
    undo: { steps: [], at: 0 },
    options: {
        // null: the learner's own default.
        learner: "cover", random_negatives: null, negative_weight: null, estimators: null, boxes: null,
        rerank: null, prior: null, seed: 0,
    },
    filters: [],
    sort: { by: "rank", descending: false },
    size: preferred.size,
    rounds: [],
    // What was shown last, to show it again when the session is opened: search, refine or concept.
    shown: null,
});

class Store extends EventTarget {
    info = null;
    collections = [];
    collection = null;
    data = fresh();
    /** What the server knows of this session: {id, revision, name}; id is null until it is saved. */
    session = { id: null, revision: 0, name: "" };

    emit(type, detail = null) {
        this.dispatchEvent(new CustomEvent(type, { detail }));
        if (!["loaded", "collection"].includes(type)) this.dispatchEvent(new CustomEvent("change"));
    }

    on(types, listener) {
        for (const type of types.split(" ")) this.addEventListener(type, (event) => listener(event.detail));
    }

    // ---- marks ----

    mark(id) { return this.data.marks.get(String(id)) ?? null; }

    marked(mark) { return [...this.data.marks].filter(([, m]) => m === mark).map(([id]) => id); }

    /** Marks ids right, wrong or (null) none: one step of undo, whatever their number. */
    setMarks(ids, mark) {
        const changes = [];
        for (const id of new Set([...ids].map(String))) {
            const before = this.mark(id);
            if (before !== mark) changes.push({ id, before, after: mark });
        }
        if (!changes.length) return 0;
        this.#step({ changes, query: null });
        this.#apply(changes, "after");
        return changes.length;
    }

    /** A second time takes the mark away again. */
    toggle(id, mark) { return this.setMarks([id], this.mark(id) === mark ? null : mark); }

    clearMarks(mark = null) {
        return this.setMarks(mark ? this.marked(mark) : [...this.data.marks.keys()], null);
    }

    /** Other marks in the place of all: one step of undo. */
    replaceMarks(marks) {
        const ids = new Set([...this.data.marks.keys(), ...marks.keys()]);
        const changes = [...ids]
            .map((id) => ({ id, before: this.mark(id), after: marks.get(id) ?? null }))
            .filter(({ before, after }) => before !== after);
        if (!changes.length) return;
        this.#step({ changes, query: null });
        this.#apply(changes, "after");
    }

    #apply(changes, side) {
        for (const { id, [side]: mark } of changes) {
            if (mark) this.data.marks.set(id, mark);
            else this.data.marks.delete(id);
        }
        this.emit("marks", new Set(changes.map(({ id }) => id)));
    }

    // ---- what is sought ----

    /** Notes a search in the history. `asked`: {typed, query}. */
    setQuery(asked) {
        const { typed, query } = this.data;
        const before = query && { typed: structuredClone(this.data.asked ?? typed), query };
        if (JSON.stringify(before?.query) !== JSON.stringify(asked.query) && before) {
            this.#step({ changes: [], query: { before, after: structuredClone(asked) } });
        }
        this.data.typed = structuredClone(asked.typed);
        this.data.asked = structuredClone(asked.typed);
        this.data.query = asked.query;
        this.emit("query");
    }

    // ---- undo ----

    get canUndo() { return this.data.undo.at > 0; }
    get canRedo() { return this.data.undo.at < this.data.undo.steps.length; }

    #step(step) {
        const { undo } = this.data;
        undo.steps.length = undo.at;
        undo.steps.push(step);
        let changes = undo.steps.reduce((sum, s) => sum + s.changes.length, 0);
        while (undo.steps.length > STEPS || (changes > CHANGES && undo.steps.length > 1)) {
            changes -= undo.steps.shift().changes.length;
        }
        undo.at = undo.steps.length;
    }

    undo() { return this.canUndo ? this.#move(this.data.undo.steps[--this.data.undo.at], "before") : null; }
    redo() { return this.canRedo ? this.#move(this.data.undo.steps[this.data.undo.at++], "after") : null; }

    forgetHistory() {
        this.data.undo = { steps: [], at: 0 };
        this.emit("query");
    }

    #move(step, side) {
        if (step.query) {
            const { typed, query } = step.query[side];
            this.data.typed = structuredClone(typed);
            this.data.asked = structuredClone(typed);
            this.data.query = query;
            this.emit("query");
        }
        this.#apply(step.changes, side);
        return step;
    }

    // ---- the rest ----

    setOption(name, value) { this.data.options[name] = value; this.emit("options"); }
    setSize(size) { this.data.size = size; this.emit("options"); }
    setFilters(filters) { this.data.filters = filters; this.emit("filters"); }
    setSort(sort) { this.data.sort = sort; this.emit("filters"); }
    addRound(round) { this.data.rounds.push(round); this.emit("rounds"); }
    setShown(shown) { this.data.shown = shown; this.emit("rounds"); }

    // ---- a session as JSON ----

    toJSON() {
        const { asked, marks, ...rest } = this.data;
        return { ...rest, marks: [...marks].map(([id, mark]) => ({ id, mark })) };
    }

    load(state, session) {
        const empty = fresh();
        const { marks = [], ...rest } = state ?? {};
        this.data = { ...empty, ...rest, options: { ...empty.options, ...rest.options } };
        for (const key of Object.keys(empty)) this.data[key] ??= empty[key];
        this.data.typed = { ...empty.typed, ...rest.typed };
        this.data.asked = structuredClone(this.data.typed);
        this.data.marks = new Map(marks.filter(({ mark }) => MARKS.includes(mark)).map(({ id, mark }) => [String(id), mark]));
        for (const step of this.data.undo.steps) {
            step.query ??= null;
            for (const change of step.changes) change.id = String(change.id);
        }
        this.session = session;
        this.emit("loaded");
    }

    reset() { this.load(null, { id: null, revision: 0, name: "" }); }

    setCollection(name) {
        this.collection = this.collections.find((c) => c.name === name) ?? null;
        this.emit("collection");
    }
}

export const store = new Store();
