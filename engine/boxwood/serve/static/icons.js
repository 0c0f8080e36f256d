// Icons as paths on a 24 x 24 grid, drawn with strokes. They are built as elements (not `<use>` of a
// file), because browsers disagree on which CSP directive an external `<use>` falls under.
const SVG = "http://www.w3.org/2000/svg";

const paths = {
    check: "M4 12.5l5.5 5.5L20 6.5",
    cross: "M5.5 5.5l13 13M18.5 5.5l-13 13",
    open: "M14 4h6v6M20 4l-7 7M10 20H4v-6M4 20l7-7",
    search: "M10.5 4a6.5 6.5 0 1 0 0 13a6.5 6.5 0 0 0 0-13zM15.5 15.5L21 21",
    image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 8.5v.01",
    similar: "M4 4h11v11H4zM9 19v1h11V9h-1",
    undo: "M8 5L4 9l4 4M4 9h10a6 6 0 0 1 0 12h-4",
    redo: "M16 5l4 4-4 4M20 9H10a6 6 0 0 0 0 12h4",
    help: "M9 9a3 3 0 1 1 4.5 2.6c-1 .6-1.5 1.2-1.5 2.4M12 17.5v.01M12 2.5a9.5 9.5 0 1 0 0 19a9.5 9.5 0 0 0 0-19z",
    theme: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
    session: "M4 6h16M4 12h16M4 18h10",
    filter: "M3 5h18l-7 8v6l-4 2v-8z",
    decide: "M12 3v18M5 8l-3 6h6zM19 8l-3 6h6zM5 8h14",
    save: "M6 3h12v18l-6-4.5L6 21z",
    download: "M12 3v12M7 10.5l5 5 5-5M4 20h16",
    refine: "M4 7h9M17 7h3M15 5v4M4 17h3M11 17h9M9 15v4",
    copy: "M8 8h12v12H8zM16 8V4H4v12h4",
    trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13",
    left: "M15 4l-8 8 8 8",
    right: "M9 4l8 8-8 8",
    marks: "M3 7l3 3 5-6M14 7h7M4 15l5 5M9 15l-5 5M14 17h7",
    missing: "M4 5h16v14H4zM4 19L20 5",
    retry: "M20 11a8 8 0 1 0-2 6M20 5v6h-6",
    turn: "M7 4v16M3 16l4 4 4-4M17 20V4M13 8l4-4 4 4",
    plus: "M12 5v14M5 12h14",
};

export function icon(name) {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "0 0 24 24");
    svg.setAttribute("class", `icon icon-${name}`);
    svg.setAttribute("aria-hidden", "true");
    svg.setAttribute("focusable", "false");
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", paths[name]);
    svg.append(path);
    return svg;
}
