// Talks to the server: one function for JSON, one for uploads, one for events. Every request has a
// time limit and can be aborted; every failure is an ApiError with words for people.

class ApiError extends Error {
    /** kind: the server's ("gone", "conflict", ...), or "away", "timeout", "aborted". */
    constructor(kind, message, status = 0, body = null) {
        super(message);
        this.kind = kind;
        this.status = status;
        this.body = body;
    }
}

const AWAY = "The server can't be reached. Nothing is lost: your marks are kept in this browser.";

/** Fires "away" when a request finds no server, and "back" when it answers again. */
export const connection = new EventTarget();
let away = false;

async function knock() {
    while (away) {
        await new Promise((wake) => setTimeout(wake, 1500));
        try {
            // Any answer will do, even a refusal: somebody is there.
            await fetch("api/info", { cache: "no-store", signal: AbortSignal.timeout(5000) });
            away = false;
            connection.dispatchEvent(new Event("back"));
        } catch {
            // Still away.
        }
    }
}

function wentAway() {
    if (away) return;
    away = true;
    connection.dispatchEvent(new Event("away"));
    knock();
}

async function request(path, { method = "GET", body = null, type = null, signal = null, seconds = 30 } = {}) {
    const limit = AbortSignal.timeout(seconds * 1000);
    const headers = { Accept: "application/json" };
    if (method !== "GET") headers["X-Boxwood"] = "1";
    if (type) headers["Content-Type"] = type;
    let response, text;
    try {
        response = await fetch(`api/${path}`, {
            method, headers, body, cache: "no-store", signal: signal ? AbortSignal.any([signal, limit]) : limit,
        });
        text = await response.text();
    } catch (error) {
        if (signal?.aborted) throw new ApiError("aborted", "Cancelled.");
        if (limit.aborted) throw new ApiError("timeout", `The server did not answer within ${seconds} seconds.`);
        wentAway();
        throw new ApiError("away", AWAY);
    }
    let answer = null;
    try {
        answer = text ? JSON.parse(text) : null;
    } catch {
        if (response.ok) throw new ApiError("internal", "The server's answer can't be read.", response.status);
    }
    if (!response.ok) {
        const { kind = "internal", message = `The server answered ${response.status}.` } = answer?.error ?? {};
        throw new ApiError(kind, message, response.status, answer);
    }
    return answer;
}

export const get = (path, options = {}) => request(path, options);
export const send = (method, path, data, options = {}) =>
    request(path, { ...options, method, body: data === null ? null : JSON.stringify(data), type: data === null ? null : "application/json" });
export const post = (path, data = {}, options = {}) => send("POST", path, data, options);
export const upload = (file) => request("uploads", { method: "POST", body: file, type: file.type || "image/*", seconds: 60 });

/** A path of the API from its parts, each escaped: a slash in a name stays part of the name. */
export const path = (...parts) => parts.map((part) => encodeURIComponent(part)).join("/");

export const imagePath = (collection, id, ...rest) => path("collections", collection, "images", id, ...rest);
export const thumbnail = (collection, id, side = 320) => `api/${imagePath(collection, id, "thumbnail")}?side=${side}`;
export const uploadUrl = (hash) => `api/${path("uploads", hash)}`;

/**
 * Listens to a job. handlers: progress({done, total, words}), done({bytes, name}), failed(Error).
 * Returns a function that stops listening. Exactly one of done and failed is called, at most once.
 */
export function follow(job, { progress, done, failed }) {
    const source = new EventSource(`api/${path("jobs", job)}/events`);
    let misses = 0;
    const finish = (call, value) => { source.close(); call(value); };
    const parse = (event) => { misses = 0; return JSON.parse(event.data); };
    source.addEventListener("progress", (event) => progress(parse(event)));
    source.addEventListener("done", (event) => finish(done, parse(event)));
    source.addEventListener("failed", (event) => {
        const { error } = parse(event);
        finish(failed, new ApiError("failed", error?.message ?? String(error)));
    });
    source.onerror = () => {
        // The browser tries again by itself, unless the server said that there is no such job.
        misses += 1;
        if (source.readyState !== EventSource.CLOSED && misses <= 4) return;
        finish(failed, new ApiError("away", "The export was lost: the server is away or has started anew."));
    };
    return () => source.close();
}
