"""Tables and plots of what `learners.py` measured: report.md and, if asked, docs/LEARNERS.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from learner_methods import METHODS

MEASURES = {
    "f1": "F1 of the returned set",
    "ap": "mean average precision",
    "told_f1": "F1 of the same ranking, cut where its number of rows is the true one",
}
DATA_TITLES = {
    "real": "Real CLIP vectors",
    "scenes": "Scenes, 20,000",
    "scenes .1%": "Scenes, diluted to .1%",
    "scenes .01%": "Scenes, diluted to .01%",
}
SPACE_TITLES = {
    "pca": "PCA, 32 bytes", "shared": "shared directions, 32 bytes",
    "pairs": "head trained on 500 pairs, 32 bytes", "fine": "shared directions, 128 bytes",
    "floats": "the encoder's floats",
}  # fmt: skip
SETTINGS = {False: "random negatives", True: "random and ten hard negatives"}
ORDER = tuple(METHODS)
DEFAULT = ("cover + rerank", "cover", "ensemble")
"""Drawn with thick lines."""
PLOTTED = (
    "nearest, told", "nearest", "tree", "forest", "logistic", "branch, paper", "ensemble, paper",
    "ensemble", "cover", "cover + rerank",
)  # fmt: skip
Row = dict[str, Any]


@dataclass
class Group:
    """The draws of a world in one setting."""

    data: str
    space: str
    hard: bool
    methods: list[str]
    positives: list[int]
    concepts: int
    seeds: int

    @property
    def title(self) -> str:
        return f"{DATA_TITLES.get(self.data, self.data)}: {SPACE_TITLES[self.space]}"


def rows_of(con: duckdb.DuckDBPyConnection, sql: str, parameters: Any = None) -> list[Row]:
    found = con.execute(sql, parameters)
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def ranked(names: Iterable[str], order: Sequence[str]) -> list[str]:
    there = set(names)
    return [n for n in order if n in there] + sorted(there - set(order))


def groups(con: duckdb.DuckDBPyConnection) -> list[Group]:
    found = []
    keys = con.execute("SELECT DISTINCT data, space, hard FROM shown").fetchall()
    key_order = {key: i for i, key in enumerate([*DATA_TITLES])}
    spaces = {key: i for i, key in enumerate(SPACE_TITLES)}
    for data, space, hard in sorted(
        keys, key=lambda k: (key_order.get(k[0], 9), spaces.get(k[1], 9), k[2])
    ):
        [one] = rows_of(
            con,
            "SELECT list(DISTINCT method) AS methods, list(DISTINCT positives) AS positives, "
            "count(DISTINCT concept) AS concepts, count(DISTINCT (split, seed)) AS seeds, "
            "count(DISTINCT split) AS splits FROM shown WHERE data = ? AND space = ? AND hard = ?",
            [data, space, hard],
        )
        found.append(
            Group(data, space, hard, ranked(one["methods"], ORDER), sorted(one["positives"]),
                  one["concepts"], one["seeds"] // one["splits"])
        )  # fmt: skip
    return found


# --- figures --------------------------------------------------------------------------------------


def digits(value: float | None, places: int = 3) -> str:
    if value is None or value != value:
        return "—"
    text = f"{value:.{places}f}"
    return text[1:] if text.startswith("0.") else text


def with_spread(mean: float | None, spread: float | None) -> str:
    if mean is None or spread is None:
        return digits(mean)
    return f"{digits(mean)} ±{digits(spread)}"


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def means(
    con: duckdb.DuckDBPyConnection, group: Group, measure: str
) -> dict[tuple[str, int], tuple[float, float | None]]:
    """By method and positives: the mean over concepts and seeds, and the standard deviation over
    seeds of the mean over concepts (within each half, whose seeds are its own)."""
    found = rows_of(
        con,
        f"""
        WITH by_seed AS (
            SELECT method, positives, split, seed, avg({measure}) AS mean, count({measure}) AS n
            FROM shown WHERE data = $data AND space = $space AND hard = $hard
            GROUP BY ALL
        ), by_split AS (
            SELECT method, positives, split, sum(mean * n) / sum(n) AS mean, sum(n) AS n,
                   stddev_samp(mean) AS spread
            FROM by_seed GROUP BY ALL
        )
        SELECT method, positives, sum(mean * n) / sum(n) AS mean,
               sqrt(sum((n * spread) ** 2)) / sum(n) AS spread
        FROM by_split GROUP BY ALL
        """,
        {"data": group.data, "space": group.space, "hard": group.hard},
    )
    return {(r["method"], r["positives"]): (r["mean"], r["spread"]) for r in found}


def table(con: duckdb.DuckDBPyConnection, group: Group, measure: str) -> str:
    """A measure by method and number of positives."""
    figures = means(con, group, measure)
    return markdown(
        ["method", *map(str, group.positives)],
        [
            [method, *(with_spread(*figures.get((method, p), (None, None)))
                       for p in group.positives)]
            for method in group.methods
        ],
    )  # fmt: skip


def first_from(gains: dict[int, float]) -> int | None:
    """The least number of positives from which on the gains are above 0; None: there is none."""
    first = None
    for positives, gain in sorted(gains.items()):
        if gain <= 0:
            first = None
        elif first is None:
            first = positives
    return first


_SAME_DRAW = (
    "({0}.data, {0}.space, {0}.hard, {0}.concept, {0}.positives, {0}.seed)"
    " = (a.data, a.space, a.hard, a.concept, a.positives, a.seed)"
)


def against_nearest(con: duckdb.DuckDBPyConnection, group: Group) -> str:
    """From how many positives on each method beats nearest neighbours on the draws that both have,
    and in how many of them it is worse."""
    found: dict[str, dict[int, Row]] = {}
    for r in rows_of(
        con,
        f"""
        SELECT a.method, a.positives, avg(a.f1 - fair.f1) AS fair, avg(a.f1 - told.f1) AS told,
               avg((a.f1 < fair.f1)::INT) AS harm, avg((a.f1 < told.f1)::INT) AS strict,
               avg(a.fallback::INT) AS fallback
        FROM shown a
        LEFT JOIN shown fair ON fair.method = 'nearest' AND {_SAME_DRAW.format("fair")}
        LEFT JOIN shown told ON told.method = 'nearest, told' AND {_SAME_DRAW.format("told")}
        WHERE a.data = ? AND a.space = ? AND a.hard = ? GROUP BY ALL
        """,
        [group.data, group.space, group.hard],
    ):
        found.setdefault(r["method"], {})[r["positives"]] = r

    def share(value: float | None) -> str:
        return "—" if value is None else f"{100 * value:.0f}"

    def beats(those: dict[int, Row], rival: str) -> str:
        gains = {p: r[rival] for p, r in those.items() if r[rival] is not None}
        first = first_from(gains)
        return "never" if first is None else str(first)

    rows = []
    for method in group.methods:
        if method.startswith("nearest"):
            continue
        those = found[method]
        listed = [those.get(p, {}) for p in group.positives]
        rows.append([
            method, beats(those, "told"), beats(those, "fair"),
            *(" / ".join(share(r.get(what)) for r in listed)
              for what in ("harm", "strict", "fallback")),
        ])  # fmt: skip
    at = "/".join(map(str, group.positives))
    return markdown(
        ["method", "beats nearest, told, from", "beats nearest from", f"harm, %, at {at}",
         "worse than nearest, told, %", "says that it falls back, %"],
        rows,
    )  # fmt: skip


def cost(con: duckdb.DuckDBPyConnection, group: Group) -> str:
    """What comes back, what is read, and how long it takes."""
    found = {
        r["method"]: r
        for r in rows_of(
            con,
            "SELECT method, avg(precision) AS precision, avg(recall) AS recall, "
            "avg(returned) AS returned, avg(touched) AS touched, median(train_ms) AS train_ms, "
            "max(train_ms) AS slowest, median(search_ms) AS search_ms "
            "FROM shown WHERE data = ? AND space = ? AND hard = ? GROUP BY ALL",
            [group.data, group.space, group.hard],
        )
    }

    def share(value: float | None) -> str:
        return "—" if value is None else f"{100 * value:.2f}%"

    return markdown(
        ["method", "precision", "recall", "returned", "blocks read", "training ms", "search ms"],
        [
            [m, digits(r["precision"]), digits(r["recall"]), share(r["returned"]),
             share(r["touched"]), f"{r['train_ms']:.1f}", f"{r['search_ms']:.2f}"]
            for m, r in ((m, found[m]) for m in group.methods)
        ],
    )  # fmt: skip


GOALS = {
    "cover": (0.66, 0.74, 0.79, 0.82, 0.85),
    "cover + rerank": (0.68, 0.77, 0.83, 0.87, 0.89),
}
"""F1 that we want at these numbers of positives: real, shared directions, random negatives."""
GOAL_POSITIVES = (2, 4, 8, 16, 32)
BEATS_TOLD_FROM = {"cover": 8, "cover + rerank": 4}
FLOATS_WITHIN = 0.02
HARM_BELOW = 0.05
SPEED_GOALS = (
    ("cover", "100 positives, 2,000 negatives", 25.0),
    ("branch", "100 positives, 2,000 negatives", 2.0),
    ("branch, paper", "100 positives, 2,000 negatives", 2.0),
    ("ensemble", "100 positives, 2,000 negatives", 20.0),
    ("ensemble, paper", "100 positives, 2,000 negatives", 20.0),
    ("ensemble", "100 positives, 30,000 random rows", 100.0),
    ("ensemble, paper", "100 positives, 30,000 random rows", 100.0),
    ("cover", "10,000 positives, 2,000 negatives", 1000.0),
)
"""Learner, labels and milliseconds of training that we want at most."""
REAL_GROUP = ("real", "shared", False)


def verdict(good: dict[int, bool]) -> str:
    """Whether a goal is reached, by number of positives."""
    if not good:
        return "not measured"
    if all(good.values()):
        return "reached"
    those = [str(p) for p, there in good.items() if there]
    return f"reached at {', '.join(those)} only" if those else "not reached"


def goal_lines(con: duckdb.DuckDBPyConnection, half: str) -> list[list[str]]:
    """For each goal: what is wanted, measured and whether it is reached, in what `shown` holds."""
    group = next((g for g in groups(con) if (g.data, g.space, g.hard) == REAL_GROUP), None)
    if group is None:
        return []
    f1, ap = means(con, group, "f1"), means(con, group, "ap")
    floats = means(con, Group("real", "floats", False, [], [], 0, 0), "ap")
    counts = [p for p in GOAL_POSITIVES if p in group.positives]

    def of(figures: dict[tuple[str, int], Any], method: str, at: Iterable[int]) -> dict[int, float]:
        return {p: figures[method, p][0] for p in at if (method, p) in figures}

    def listed(values: dict[int, float], signed: bool = False) -> str:
        if signed:
            return " / ".join(f"{'+' if v > 0 else '-'}{digits(abs(v))}" for v in values.values())
        return " / ".join(map(digits, values.values()))

    lines: list[list[str]] = []

    def ahead(goal: str, gain: dict[int, float]) -> None:
        good = {p: v > 0 for p, v in gain.items()}
        lines.append([goal, half, listed(gain, True), verdict(good)])

    for method, wanted in GOALS.items():
        if method not in group.methods:
            continue
        aims = {p: aim for p, aim in zip(GOAL_POSITIVES, wanted, strict=True) if p in counts}
        got = of(f1, method, counts)
        lines.append([f"F1 of {method} at {'/'.join(map(str, counts))}: at least {listed(aims)}",
                      half, listed(got),
                      verdict({p: got[p] >= aims[p] for p in got})])  # fmt: skip
        start = BEATS_TOLD_FROM[method]
        more = [p for p in counts if p >= start]
        told = of(f1, "nearest, told", more)
        gain = {p: got[p] - told[p] for p in told}
        ahead(f"F1 of {method} above nearest, told, from {start} on", gain)
        losses = ranked({m for m, _ in ap if m.startswith("logistic")}, ORDER)
        for rival in losses if method == "cover" else []:
            over = of(ap, rival, counts)
            gain = {p: ap[method, p][0] - over[p] for p in over}
            ahead(f"mAP of {method} above {rival} on the same codes", gain)
        for rival in ("logistic", "logistic, C 10") if method == "cover + rerank" else ():
            over = of(floats, rival, counts)
            gain = {p: ap[method, p][0] - over[p] for p in over}
            if gain:
                good = {p: v >= -FLOATS_WITHIN for p, v in gain.items()}
                lines.append([f"mAP of {method} at most .02 below {rival} on the floats", half,
                              listed(gain, True), verdict(good)])  # fmt: skip
        shares = harm(con, group).get(method, {})
        for what, share in shares.items():
            goal = f"harm of {method} under 5%: {HARMS[what][0]}"
            met = "reached" if share < HARM_BELOW else "not reached"
            lines.append([goal, half, percent(share), met])
    return lines


def goals(con: duckdb.DuckDBPyConnection, split: str) -> str:
    """What we aim at on the real codes and in time beside what is reached; empty without those
    figures. `shown` is that of the split again when it returns."""
    lines = goal_lines(con, split)
    if lines and split != "all":
        show(con, "all")
        both = goal_lines(con, "both")
        show(con, split)
        lines = [line for pair in zip(lines, both, strict=True) for line in pair]
    times = {
        (r["method"], r["what"]): r["ms"]
        for r in rows_of(con, "SELECT method, what, ms FROM speed WHERE part = 'training'")
    }
    for method, what, most in SPEED_GOALS:
        if (method, what) in times:
            took = times[method, what]
            lines.append([f"training {method}, {what}: at most {most:g} ms", "—", f"{took:.1f} ms",
                          "reached" if took <= most else "not reached"])  # fmt: skip
    return markdown(["goal", "half", "measured", ""], lines) if lines else ""


HARMS = {
    "fair": ("F1 below nearest", "a.f1 < fair.f1"),
    "fair_2": ("F1 below nearest by over .02", "a.f1 < fair.f1 - .02"),
    "fair_5": ("F1 below nearest by over .05", "a.f1 < fair.f1 - .05"),
    "told": ("F1 below nearest, told", "a.f1 < told.f1"),
    "ap_2": ("mAP below nearest by over .02", "a.ap < fair.ap - .02"),
}
"""When a draw counts as harmed."""


def percent(share: float | None) -> str:
    return "—" if share is None or share != share else f"{100 * share:.1f}%"


def harm(con: duckdb.DuckDBPyConnection, group: Group) -> dict[str, dict[str, float]]:
    """By method: the share of the draws that are harmed, by each of `HARMS`."""
    listed = ", ".join(f"avg(({test})::INT) AS {name}" for name, (_, test) in HARMS.items())
    return {
        r.pop("method"): r
        for r in rows_of(
            con,
            f"""
            SELECT a.method, {listed} FROM shown a
            JOIN shown fair ON fair.method = 'nearest' AND {_SAME_DRAW.format("fair")}
            JOIN shown told ON told.method = 'nearest, told' AND {_SAME_DRAW.format("told")}
            WHERE a.data = ? AND a.space = ? AND a.hard = ? GROUP BY ALL
            """,
            [group.data, group.space, group.hard],
        )
    }


HARM_METHODS = (
    "logistic", "ensemble", "cover", "cover, no guard", "cover, text", "cover + rerank",
    "cover + rerank, text",
)  # fmt: skip


def harms(con: duckdb.DuckDBPyConnection, all_groups: list[Group]) -> str:
    """Harm by every definition, for codes of 32 bytes, over all numbers of positives."""
    lines = []
    for group in all_groups:
        if group.space in ("pca", "shared", "pairs"):
            found = harm(con, group)
            lines += [
                [group.data, group.space, "hard" if group.hard else "random", method,
                 *(percent(found[method][what]) for what in HARMS)]
                for method in HARM_METHODS if method in found
            ]  # fmt: skip
    names = [title for title, _ in HARMS.values()]
    return markdown(["data", "codes", "negatives", "method", *names], lines)


def ceiling(con: duckdb.DuckDBPyConnection, group: Group) -> str:
    """F1, and that of the same ranking when the true number is told: what the threshold costs."""
    f1, told = means(con, group, "f1"), means(con, group, "told_f1")
    return markdown(
        ["method", *(f"{p}" for p in group.positives)],
        [
            [m, *(f"{digits(f1[m, p][0])} of {digits(told[m, p][0])}" if (m, p) in f1 else "—"
                  for p in group.positives)]
            for m in group.methods if not m.endswith("told")
        ],
    )  # fmt: skip


LABELS = {
    "right": "ten hard negatives, all labels right",
    "wrong": "the same, some labels wrong",
    "words": "words and ten negatives",
}


def labels_table(con: duckdb.DuckDBPyConnection, data: str) -> str:
    """F1 and average precision with right labels, wrong ones, and none that is right."""
    found = rows_of(
        con,
        "SELECT labels, method, positives, avg(f1) AS f1, avg(ap) AS ap FROM shown_labels "
        "WHERE data = ? AND labels <> 'words' GROUP BY ALL",
        [data],
    )
    figures = {(r["labels"], r["method"], r["positives"]): r for r in found}
    counts = sorted({r["positives"] for r in found})

    def pair(key: tuple[str, str, int]) -> str:
        return (
            f"{digits(figures[key]['f1'])}, {digits(figures[key]['ap'])}" if key in figures else "—"
        )

    return markdown(
        ["method", "labels", *map(str, counts)],
        [
            [method, kind, *(pair((kind, method, p)) for p in counts)]
            for method in ranked({r["method"] for r in found}, ORDER)
            for kind in ("right", "wrong")
        ],
    )  # fmt: skip


def words_table(con: duckdb.DuckDBPyConnection, data: str) -> str:
    """F1, average precision, precision and recall with words and negatives alone."""
    found = {
        r["method"]: r
        for r in rows_of(
            con,
            "SELECT method, avg(f1) AS f1, avg(told_f1) AS told_f1, avg(ap) AS ap, "
            "avg(precision) AS precision, avg(recall) AS recall, "
            "count(DISTINCT concept) AS concepts "
            "FROM shown_labels WHERE data = ? AND labels = 'words' GROUP BY ALL",
            [data],
        )
    }
    return markdown(
        ["method", "concepts", "F1", "F1, told", "mAP", "precision", "recall"],
        [
            [m, str(found[m]["concepts"]),
             *(digits(found[m][what]) for what in ("f1", "told_f1", "ap", "precision", "recall"))]
            for m in ranked(found, ORDER)
        ],
    )  # fmt: skip


def training_table(con: duckdb.DuckDBPyConnection) -> str:
    """Milliseconds of training by learner and labels."""
    found = rows_of(con, "SELECT * FROM speed WHERE part = 'training' ORDER BY rowid")
    whats = list(dict.fromkeys(r["what"] for r in found))
    figures = {(r["method"], r["what"]): r for r in found}
    return markdown(
        ["ms", *whats],
        [
            [method, *(f"{r['ms']:.1f} ({r['least_ms']:.1f})" if (r := figures.get((method, what)))
                       else "—" for what in whats)]
            for method in dict.fromkeys(r["method"] for r in found)
        ],
    )  # fmt: skip


def search_table(con: duckdb.DuckDBPyConnection) -> str:
    """Milliseconds of searching, what is read, and what is found."""
    found = rows_of(con, "SELECT * FROM speed WHERE part = 'search' ORDER BY rowid")
    return markdown(
        ["rows", "model", "ms", "found", "blocks read", "planes", "codes", "fine rows",
         "MB", "F1", "precision", "recall", "of cover's rows", "in both, of either"],
        [
            [f"{r['rows']:,}", r["method"], f"{r['ms']:.2f}", f"{r['found']:,.0f}",
             percent(r["touched"]), percent(r["planes"]), percent(r["scanned"]),
             f"{r['fine_rows']:,.0f}", f"{r['bytes'] / 1e6:.1f}",
             *(digits(r[what]) for what in ("f1", "precision", "recall")),
             percent(r["of_exact"]), percent(r["agreement"])]
            for r in found
        ],
    )  # fmt: skip


def covered(con: duckdb.DuckDBPyConnection) -> str:
    """How often the truth lies in the 90% intervals, by data set; empty where none were given."""
    lines = []
    for measure in ("precision", "recall"):
        guess = f"estimated_{measure}"
        lines += [
            [measure, r["data"], r["space"], "hard" if r["hard"] else "random", r["method"],
             str(r["n"]), percent(r["covered"]), digits(r["width"]), digits(r["bias"]),
             digits(r["error"])]
            for r in rows_of(
                con,
                f"""
                SELECT data, space, hard, method, count(*) AS n,
                       avg(({measure} BETWEEN {guess}_low AND {guess}_high)::INT) AS covered,
                       avg({guess}_high - {guess}_low) AS width, avg({guess} - {measure}) AS bias,
                       avg(abs({guess} - {measure})) AS error
                FROM shown WHERE {guess} IS NOT NULL AND NOT isnan({guess})
                AND list_contains(?, method) GROUP BY ALL ORDER BY ALL
                """,
                [["cover", "cover + rerank"]],
            )
        ]  # fmt: skip
    if not lines:
        return ""
    return markdown(
        ["of", "data", "codes", "negatives", "method", "draws", "truth in the interval",
         "its width", "estimate less truth", "off by"],
        lines,
    )  # fmt: skip


def measured(con: duckdb.DuckDBPyConnection) -> str:
    """What the page rests on: by collection, the concepts and seeds of each half."""
    found = rows_of(
        con,
        """
        SELECT data, space, split, count(DISTINCT concept) AS concepts,
               count(DISTINCT seed) AS seeds, count(DISTINCT method) AS methods, count(*) AS n,
               list_sort(list(DISTINCT positives)) AS positives,
               count(DISTINCT hard) AS settings
        FROM draws GROUP BY ALL
        """,
    )
    data = {key: i for i, key in enumerate(DATA_TITLES)}
    spaces = {key: i for i, key in enumerate(SPACE_TITLES)}
    found.sort(key=lambda r: (data.get(r["data"], 9), spaces.get(r["space"], 9), r["split"]))
    return markdown(
        ["collection", "vectors", "half", "concepts", "seeds", "positives", "settings",
         "methods", "answers"],
        [
            [DATA_TITLES.get(r["data"], str(r["data"])), SPACE_TITLES[r["space"]], r["split"],
             str(r["concepts"]), str(r["seeds"]), "/".join(map(str, r["positives"])),
             str(r["settings"]), str(r["methods"]), f"{r['n']:,}"]
            for r in found
        ],
    )  # fmt: skip


def kinds(con: duckdb.DuckDBPyConnection, data: str, space: str) -> str:
    """F1 with 8 positives by kind of concept, with random negatives."""
    found = rows_of(
        con,
        "SELECT kind, method, avg(f1) AS f1, avg(ap) AS ap FROM shown WHERE data = ? AND "
        "space = ? AND NOT hard AND positives = 8 GROUP BY ALL",
        [data, space],
    )
    names = list(dict.fromkeys(sorted(r["kind"] for r in found)))
    figures = {(r["method"], r["kind"]): r for r in found}
    methods = ranked({r["method"] for r in found}, ORDER)
    return markdown(
        ["method", *names],
        [
            [m, *(f"{digits(figures[m, k]['f1'])}, {digits(figures[m, k]['ap'])}"
                  if (m, k) in figures else "—" for k in names)]
            for m in methods
        ],
    )  # fmt: skip


def calibration(con: duckdb.DuckDBPyConnection) -> str:
    """How often the truth lies within the interval that a learner gave, and how far its estimate
    is off, by number of positives, with random negatives; empty where no learner gives one."""
    parts = []
    for measure in ("precision", "recall"):
        guess = f"estimated_{measure}"
        for r in rows_of(
            con,
            f"""
            SELECT data, space, method, positives, count(*) AS n,
                   avg(({measure} BETWEEN {guess}_low AND {guess}_high)::INT) AS covered,
                   avg({guess}_high - {guess}_low) AS width, avg({guess} - {measure}) AS bias,
                   avg(abs({guess} - {measure})) AS error
            FROM shown WHERE {guess} IS NOT NULL AND NOT isnan({guess}) AND NOT hard
            AND space = 'shared' AND method IN ('cover', 'cover + rerank')
            GROUP BY ALL ORDER BY ALL
            """,
        ):
            parts.append([
                measure, r["data"], r["space"], r["method"], str(r["positives"]), str(r["n"]),
                "—" if r["covered"] is None else f"{100 * r['covered']:.0f}%", digits(r["width"]),
                digits(r["bias"]), digits(r["error"]),
            ])  # fmt: skip
    if not parts:
        return ""
    return markdown(
        ["of", "data", "codes", "method", "positives", "draws", "truth in the interval",
         "its width", "estimate less truth", "off by"],
        parts,
    )  # fmt: skip


def session_table(con: duckdb.DuckDBPyConnection, data: str, start: str) -> str:
    """F1, and labels given so far, by round."""
    found = rows_of(
        con,
        """
        WITH by_concept AS (
            SELECT method, round, concept, avg(f1) AS f1, avg("labels") AS given,
                   avg("right") AS hits
            FROM shown_sessions WHERE data = ? AND start = ? GROUP BY ALL
        )
        SELECT method, round, avg(f1) AS f1, avg(given) AS given, avg(hits) AS hits
        FROM by_concept GROUP BY ALL
        """,
        [data, start],
    )
    rounds = sorted({r["round"] for r in found})
    figures = {(r["method"], r["round"]): r for r in found}
    return markdown(
        ["method", *(f"round {n}" for n in rounds)],
        [
            [m, *(f"{digits(figures[m, n]['f1'])} ({figures[m, n]['given']:.0f} labels, "
                  f"{figures[m, n]['hits']:.0f} right)" if (m, n) in figures else "—"
                  for n in rounds)]
            for m in ranked({r["method"] for r in found}, ORDER)
        ],
    )  # fmt: skip


# --- plots ----------------------------------------------------------------------------------------


def plot(con: duckdb.DuckDBPyConnection, all_groups: list[Group], folder: Path) -> dict[str, Path]:
    """By data, a picture of F1 over positives like Figure 3 of the paper, and one of the sessions;
    none without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print("left out: plots: matplotlib is not installed (pip install 'boxwood[bench]')")
        return {}
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, Path] = {}
    colours = {name: f"C{i % 10}" for i, name in enumerate(PLOTTED)}

    def save(figure: Any, axes: Sequence[Any], name: str, key: str) -> None:
        figure.tight_layout()
        entries: dict[str, Any] = {}
        for ax in axes:
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                entries.setdefault(label, handle)
        figure.legend(entries.values(), entries.keys(), fontsize=8, ncols=5, loc="upper center",
                      bbox_to_anchor=(0.5, 0))  # fmt: skip
        figure.savefig(folder / f"{name}.png", dpi=70, bbox_inches="tight")
        plt.close(figure)
        made[key] = folder / f"{name}.png"

    for data in dict.fromkeys(g.data for g in all_groups):
        shown = [g for g in all_groups if g.data == data and g.space in ("pca", "shared")]
        if not shown:
            continue
        figure, grid = plt.subplots(
            -(-len(shown) // 2), min(len(shown), 2),
            figsize=(5 * min(len(shown), 2), 3.4 * -(-len(shown) // 2)), squeeze=False,
        )  # fmt: skip
        axes = list(grid.flat)
        for ax, group in zip(axes, shown, strict=False):
            figures = means(con, group, "f1")
            for method in [m for m in group.methods if m in PLOTTED]:
                points = [(p, figures[method, p][0]) for p in group.positives
                          if (method, p) in figures]  # fmt: skip
                ax.plot(*zip(*points, strict=True), marker="o", markersize=3, label=method,
                        color=colours[method], linewidth=2 if method in DEFAULT else 1,
                        linestyle="--" if method.startswith("nearest") else "-")  # fmt: skip
            ax.set_xscale("log", base=2)
            ax.set_xticks(group.positives, list(map(str, group.positives)))
            ax.set_ylim(0, 1)
            ax.set_xlabel("positives")
            ax.set_ylabel("F1")
            ax.grid(alpha=0.3, linewidth=0.4)
            ax.set_title(f"{group.data}, {SPACE_TITLES[group.space]},\n{SETTINGS[group.hard]}",
                         fontsize=9)  # fmt: skip
        for unused in axes[len(shown) :]:
            unused.set_visible(False)
        name = data.replace(" ", "-").replace(".", "").replace("%", "")
        save(figure, axes, f"f1-{name}", data)
    lines = rows_of(
        con,
        """
        WITH by_concept AS (
            SELECT data, start, method, round, concept, avg(f1) AS f1, avg("labels") AS given
            FROM shown_sessions GROUP BY ALL
        )
        SELECT data, start, method, round, avg(f1) AS f1, avg(given) AS given
        FROM by_concept GROUP BY ALL ORDER BY round
        """,
    )
    panels = list(dict.fromkeys(sorted((r["data"], r["start"]) for r in lines)))
    if panels:
        figure, grid = plt.subplots(
            1, len(panels), figsize=(3.6 * len(panels), 3.2), squeeze=False, sharey=True
        )
        axes = list(grid.flat)
        for ax, (data, start) in zip(axes, panels, strict=True):
            those = [r for r in lines if (r["data"], r["start"]) == (data, start)]
            for method in ranked({r["method"] for r in those}, ORDER):
                mine = [r for r in those if r["method"] == method]
                ax.plot([r["given"] for r in mine], [r["f1"] for r in mine], marker="o",
                        markersize=3, label=method, color=colours.get(method))  # fmt: skip
            ax.set_xlabel("labels given")
            ax.grid(alpha=0.3, linewidth=0.4)
            ax.set_title(f"{data}, from {start}", fontsize=9)
        axes[0].set_ylabel("F1")
        save(figure, axes, "sessions", "sessions")
    return made


# --- the page -------------------------------------------------------------------------------------

INTRODUCTION = """\
# How good the learners are

A person marks a few images; the learner must return the whole set that is meant. This page holds
what `benchmarks/learners.py` measured: every method on the same draws of labels. It is written by
`python benchmarks/learners.py report --docs`, from the figures of the last runs.
"""

METHOD = """\
## How it is measured

- **Real data**: {real}. Images without a label are in the collection: they are drawn as random
  negatives, searched and returned, but nobody knows whether they are right, and they count neither
  way. Their share of the random negatives is as large as their share of the collection. PCA and
  shared directions are fitted on all rows of the collection and on ImageNet's class names.
- **Scenes**: generated pictures whose truth is exact, embedded by the packaged encoder (128
  floats); {scenes}. A concept of two modes is what either of two phrases means.
- **Diluted**: each concept has a collection of its own, of {diluted}. It holds as many matches as
  the prevalence asks for (scenes of the 20,000, and where they are too few, further generated
  scenes that match), all scenes that do not match, and distractors made from these: one that does
  not match, moved up to half the way towards another one that does not, with noise of length .1
  (vectors have length 1), as the head puts them out, before they are quantized. What is made from
  rows that do not match does not match: so their truth is known, though some lie where matches lie.
  There are no floats here, so the methods that need them are left out.
- **Draws**: 2 to 32 positives (more positives of one seed are those of fewer and some more), and
  random rows, drawn by the index itself, with matches among them that nobody marked. In the second
  setting the ten rows that lie nearest to the mean positive and do not match are marked as wrong
  besides (nearest by the encoder's floats; in diluted collections by codes). Concepts with fewer
  than 8 rows left to find are left out.
- **Random rows**: 500, the same for every method, but for `cover`. It learns what a collection is
  like from the samples that an index carries, up to 30,000 rows, the same for every draw (all rows,
  where there are fewer: so in the real data). `cover, 500` takes 500 of these. `logistic, 30,000`
  is logistic regression with 30,000 drawn rows as negatives.
- **Scored** are all rows of known truth except those that were marked, right or wrong; random
  negatives are scored, for nobody looked at them. Average precision is of the ranking of all these
  rows, rows of one score together (scikit-learn's definition). Where a learner re-ranks, the rows
  that pass its first code come first.
- **told** means: the set is the first n rows, n the true number, which nobody knows. `nearest` cuts
  at mean + 1 standard deviation of the positives' distances to the mean of the others; Rocchio
  (weights 1, .75, .15) in the same way by cosines; logistic regression (C = {logistic:g}) and the
  linear SVM (C = {svm:g}), classes weighted equally, at 0. C was chosen on `dev` by average
  precision, one value for all vectors. A first rule, the sum of average precision and F1, had given
  logistic regression C = {f1:g}: a better F1, and a worse ranking of few positives. Both are shown.
- Text methods are measured on the concepts that have words: all of the scenes, and the real classes
  that ImageNet has a name for. So their means are over fewer classes; what they beat is counted on
  the draws that both have.
- **±** is the standard deviation over seeds of the mean over concepts.
- `paper`: `branch` and `ensemble` with `prior` 0, the method of "CLIP-Branches"; without it, boxes
  from a variance with a prior. `6 boxes`: `cover` as boxes around its region, with its score inside
  them; `no guard`: it may not fall back to nearest neighbours.
- **Halves**: concepts are in two halves, `dev` and `test`, with seeds of their own. **This page
  shows {split}.** Dev: {dev}. Test: {test}. The constants of `cover` were chosen on the first,
  third, fifth .. of the real classes (the largest first), which are `dev`, and on words of the
  scene world in a sample of its own; those of them that are concepts here are in `dev` too. The
  halves had their names the other way round before; they were exchanged when it was found that
  `cover` had been tuned on what was called `test`, before this program had measured it on either
  half alone, and C was chosen again. How `cover` works, as against its constants, was worked out
  with all real classes in sight, and its intervals were checked on all: the test half is new to its
  constants, not to its makers. So the goals are shown for both halves together as well.
- The goals come from a study on another collection: 9,338 vectors, of which 16 classes counted.
  Here there are 12 classes in 4,986 rows, 42 to 392 rows each. 32 positives use up 40 to 76% of the
  rows of the six smallest: what is left to find is little, and a method that does not learn from
  more positives has a lower F1 with 32 than with 16.
- One thread; times are medians over all numbers of positives on {cpu}; Boxwood {commit}.
"""
MEASURED = """\
## What was measured

Every collection, half and seed that is here; what is not in this table was not measured.
"""
GOALS_TEXT = """\
## Goals

Real vectors, shared directions, random negatives; `cover` with 32 bytes a row, `cover + rerank`
with 128 more. Differences are of means.
"""
RANKING = """\
## The ranking and the threshold

F1 of the returned set, of F1 that the same ranking has where the true number is told. What the
second lacks to 1 is the ranking's, what the first lacks to the second is the threshold's. Random
negatives.
"""
HARM = """\
## Harm

The share of draws in which a method does worse than the mean positive's nearest neighbours, over
all numbers of positives, by several definitions.
"""
ESTIMATES = """\
## Estimates

What the learner itself said of its set, with intervals of 90%, against the truth.
"""
WRONG = """\
## Wrong labels, and words alone

Shared directions. **Wrong**: of the rows marked as right one in eight (from 8 on) does not match,
but is among the nearest that do not; of the ten marked as wrong one matches. **Right**: the same
draws with ten hard negatives and no such mistake. F1, average precision:
"""
WORDS = """\
No row is marked as right: there are the words, and ten rows marked as wrong, those that the words
find first. Logistic regression gets the words' vector as its one positive; `text, told` looks at
the words alone.
"""
SPEED = """\
## Speed

One thread, {cpu}; {data} codes (`benchmarks/data.py`); fine codes are a rotation of them. What is
sought are the .1% nearest to a row, three times. All are asked in turn; median, and the least in
brackets. Given negatives are rows around what is sought. `cover` reads 30,000 random rows besides,
whatever the labels are; the others only what the column says. Times of Boxwood are those of a call,
ids to model; of scikit-learn those of `fit`.
"""
SEARCHING = """\
Searching with models of 30 random positives and no given negative. Blocks have 256 rows; those read
are the ones that zones neither rule out nor in. The last two columns compare the answers of `cover`
(all rows with S >= t) and of its six boxes.
"""


def text(con: duckdb.DuckDBPyConnection, split: str, plots: dict[str, str], constants: Row) -> str:
    """The page."""
    all_groups = groups(con)

    def names(which: str) -> str:
        found = con.execute(
            "SELECT DISTINCT concept, kind = 'class' AS real FROM draws WHERE split = ? "
            "ORDER BY real DESC, concept", [which],
        ).fetchall()  # fmt: skip
        return ", ".join(name if real else f"“{name}”" for name, real in found) or "none"

    def concepts(kind: str) -> int:
        return int(con.execute(
            f"SELECT count(DISTINCT concept) FROM shown WHERE {kind}"
        ).fetchall()[0][0])  # fmt: skip

    [[cpu, commit]] = con.execute(
        "SELECT arg_max(cpu, date), arg_max(commit, date) FROM draws"
    ).fetchall()
    real = con.execute("SELECT max(rows) FROM shown WHERE data = 'real'").fetchall()[0][0]
    most = con.execute("SELECT max(rows) FROM draws WHERE ends_with(data, '%')").fetchall()[0][0]
    shown = {"all": "both halves together", "dev": "the half `dev`", "test": "the half `test`"}
    parts = [
        INTRODUCTION,
        METHOD.format(
            real=f"CLIP ViT-B/32 vectors of fashion images, {concepts('data = $$real$$')} classes "
            f"with 40 images or more, in one collection of {real:,} rows" if real
            else "not measured here",
            scenes=f"{concepts('data <> $$real$$')} concepts: one attribute, two attributes, "
            "relations, two modes",
            diluted=f"{most:,} rows" if most else "a million rows",
            split=shown[split], dev=names("dev"), test=names("test"), cpu=cpu, commit=commit,
            **constants,
        ),
    ]  # fmt: skip
    parts.append(MEASURED)
    parts.append(measured(con) + "\n")
    aimed = goals(con, split)
    if aimed:
        parts.append(GOALS_TEXT)
        parts.append(aimed + "\n")
    wide = [g for g in all_groups if not g.hard and g.space == "shared"]
    parts.append(RANKING)
    for group in wide:
        parts.append(f"{group.title}, by number of positives:\n\n{ceiling(con, group)}\n")
    parts.append(HARM)
    parts.append(harms(con, all_groups) + "\n")
    for data in dict.fromkeys(g.data for g in all_groups):
        parts.append(f"## {DATA_TITLES.get(data, data)}\n")
        if data in plots:
            parts.append(f"![F1 over positives]({plots[data]})\n")
        for group in (g for g in all_groups if g.data == data):
            parts.append(
                f"### {SPACE_TITLES[group.space][0].upper()}{SPACE_TITLES[group.space][1:]}, "
                f"{SETTINGS[group.hard]}\n\n{group.concepts} concepts, {group.seeds} seeds each.\n"
            )
            for measure in ("f1", "ap"):
                title = MEASURES[measure]
                parts.append(f"{title[0].upper()}{title[1:]}, by number of positives:\n")
                parts.append(table(con, group, measure) + "\n")
            if group.space in ("pca", "shared", "pairs"):
                parts.append(against_nearest(con, group) + "\n")
                parts.append(cost(con, group) + "\n")
        if data != "real":
            parts.append("F1 and average precision by kind of concept, 8 positives, random "
                         "negatives:\n")  # fmt: skip
            parts.append(kinds(con, data, "shared") + "\n")
    calibrated = calibration(con)
    if calibrated:
        parts.append(ESTIMATES)
        parts.append(covered(con) + "\n")
        parts.append("By number of positives, shared directions, random negatives:\n")
        parts.append(calibrated + "\n")
    given = con.execute("SELECT DISTINCT data FROM shown_labels ORDER BY ALL").fetchall()
    if given:
        parts.append(WRONG)
        for (data,) in given:
            parts.append(f"{DATA_TITLES.get(data, data)}:\n\n{labels_table(con, data)}\n")
        parts.append(WORDS)
        for (data,) in given:
            parts.append(f"{DATA_TITLES.get(data, data)}:\n\n{words_table(con, data)}\n")
    timed = con.execute("SELECT arg_max(cpu, date), arg_max(data, date) FROM speed").fetchall()
    if timed[0][0] is not None:
        parts.append(SPEED.format(cpu=timed[0][0], data=timed[0][1]))
        parts.append(training_table(con) + "\n")
        parts.append(SEARCHING)
        parts.append(search_table(con) + "\n")
    started = con.execute("SELECT DISTINCT data, start FROM shown_sessions ORDER BY ALL").fetchall()
    if started:
        parts.append(
            "## Sessions\n\nFive rounds: train, return a set, label the 20 best rows that have no "
            "label yet, train again. They start from the first 20 results by words (up to five "
            "pages, until one is right), or from two random positives. F1 is of the returned set "
            "with the person's labels applied, on all rows of known truth; labels and right ones "
            "are those given before the round. Concepts count equally.\n"
        )
        if "sessions" in plots:
            parts.append(f"![F1 over labels]({plots['sessions']})\n")
        for data, start in started:
            parts.append(f"### {DATA_TITLES.get(data, data)}, from {start}\n")
            parts.append(session_table(con, data, start) + "\n")
    if split != "all":
        show(con, "all")
        parts.append(
            "## Both halves\n\nOn all concepts, those that parameters were chosen on too.\n"
        )
        for group in groups(con):
            if group.space == "shared" and not group.hard:
                parts.append(f"### {group.title}\n\n{group.concepts} concepts.\n")
                for measure in ("f1", "ap"):
                    title = MEASURES[measure]
                    parts.append(f"{title[0].upper()}{title[1:]}:\n")
                    parts.append(table(con, group, measure) + "\n")
        show(con, split)
    return "\n".join(parts)


def show(con: duckdb.DuckDBPyConnection, split: str) -> bool:
    """Make the views `shown`, `shown_sessions` and `shown_labels` of a half (``dev``, ``test``) or
    of ``all``. Whether there is anything in it."""
    views = {"draws": "shown", "sessions": "shown_sessions", "labels": "shown_labels"}
    for name, view in views.items():
        where = "" if split == "all" else f"WHERE split = '{split}'"
        con.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS SELECT * FROM {name} {where}")
    return bool(con.execute("SELECT count(*) FROM shown").fetchall()[0][0])


def write(
    con: duckdb.DuckDBPyConnection, out: Path, split: str, docs: Path | None, constants: Row
) -> None:
    """report.md with its plots in `out`, and docs/LEARNERS.md with docs/learners/*.png."""
    if not show(con, split):
        print(f"there are no measurements of {split} yet: run `learners.py all`")
        return
    places = [(out, "report.md", "plots")]
    if docs is not None:
        places.append((docs, "LEARNERS.md", "learners"))
    for folder, name, plots in places:
        folder.mkdir(parents=True, exist_ok=True)
        show(con, split)
        made = plot(con, groups(con), folder / plots)
        page = text(con, split, {k: f"{plots}/{p.name}" for k, p in made.items()}, constants)
        (folder / name).write_text(page, "utf-8")
        print(f"written: {folder / name}")


def summary(con: duckdb.DuckDBPyConnection, split: str, data: list[str]) -> str:
    """F1 and average precision by method and positives, short, for the terminal."""
    if not show(con, split):
        return ""
    lines = []
    for group in groups(con):
        if group.data not in data:
            continue
        lines.append(f"{group.data}, {group.space}, {SETTINGS[group.hard]}; "
                     f"{group.concepts} concepts, {group.seeds} seeds")  # fmt: skip
        f1, ap = means(con, group, "f1"), means(con, group, "ap")
        header = " ".join(f"{p:>5}" for p in group.positives)
        lines.append(f"  {'':22} F1 {header}   mAP {header}")
        for method in group.methods:
            values = (
                " ".join(f"{digits(figures.get((method, p), (None,))[0]):>5}"
                         for p in group.positives)
                for figures in (f1, ap)
            )  # fmt: skip
            lines.append(f"  {method:22}    {'       '.join(values)}")
        lines.append("")
    return "\n".join(lines)
