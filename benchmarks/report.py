"""Tables and plots of the last figures: build/bench/report.md and, if asked, docs/BENCHMARKS.md."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

SCANS = ("AVX2 scan, plain", "AVX2 scan, early out")
"""The baseline: the better of these. The same in index order is shown beside it."""
WHERE = "DuckDB WHERE"
SORTED_SCAN = "AVX2 scan, early out, index order"
RECALLS = (0.95, 0.98, 0.99)
Row = dict[str, Any]


# --- figures --------------------------------------------------------------------------------------


def at_recall(curve: Iterable[tuple[float, float, float]], target: float) -> float | None:
    """Milliseconds at a recall, between the points (recall, ms, setting) of a method; None where
    it never gets there. Points that another one beats in both count for nothing."""
    best: list[tuple[float, float]] = []
    for ms, share in sorted((ms, share) for share, ms, _ in curve):
        if not best or share > best[-1][0]:
            best.append((share, ms))
    for place, (share, ms) in enumerate(best):
        if share >= target:
            if not place:
                return ms
            low, cheap = best[place - 1]
            return cheap + (ms - cheap) * (target - low) / (share - low)
    return None


def microseconds(ms: float | None) -> str:
    return "—" if ms is None else f"{1000 * ms:,.1f}" if ms < 1 else f"{1000 * ms:,.0f}"


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """The b of ms = a * rows ** b, by least squares on logarithms."""
    if len({rows for rows, _ in points}) < 2:
        return math.nan
    rows, ms = np.log(np.asarray(points, float)).T
    return float(np.polyfit(rows, ms, 1)[0])


def _median(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.median(there)) if there else None


def _number(value: float | None, digits: int = 2) -> str:
    if value is None or math.isnan(value):
        return "—"
    size = abs(value)
    if digits and size < 1000:
        digits = 1 if size >= 100 else digits if size >= 1 or not size else digits + 1
        digits += size < 0.1 and size > 0
    return f"{value:,.{0 if size >= 1000 else digits}f}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]


def last(con: duckdb.DuckDBPyConnection) -> list[Row]:
    """The rows of the last run of each workload, kind of data and size; of growth, all sizes."""
    found = con.execute(
        "SELECT * FROM measurements QUALIFY run = max(run) OVER "
        "(PARTITION BY workload, data, CASE WHEN workload <> 'growth' THEN rows END) ORDER BY date"
    )
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


class Ensembles:
    """The rows of ensembles and branches of one size and kind of data, by model and method."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.ms: dict[tuple[str, str, int, int, str], float] = {}
        for r in rows:
            key = (r["workload"], r["model"], r["number"], r["threads"], r["method"])
            self.ms[key] = r["median_ms"]

    def models(self) -> list[tuple[str, str]]:
        return list(dict.fromkeys((r["workload"], r["model"]) for r in self.rows))

    def numbers(self, workload: str, model: str) -> list[int]:
        return sorted({key[2] for key in self.ms if key[:2] == (workload, model)})

    def scan(self, workload: str, model: str, number: int, threads: int) -> float | None:
        known = [self.ms.get((workload, model, number, threads, name)) for name in SCANS]
        return min((ms for ms in known if ms is not None), default=None)

    def median(self, workload: str, model: str, threads: int, method: str) -> float | None:
        numbers = self.numbers(workload, model)
        if method == "scan":
            return _median(self.scan(workload, model, n, threads) for n in numbers)
        return _median(self.ms.get((workload, model, n, threads, method)) for n in numbers)

    def ratio(self, workload: str, model: str, threads: int, method: str, to: str) -> float | None:
        """How many times as long as `to` a method takes: the median over models."""
        found = []
        for n in self.numbers(workload, model):
            one = (self.scan(workload, model, n, threads) if method == "scan"
                   else self.ms.get((workload, model, n, threads, method)))  # fmt: skip
            two = self.ms.get((workload, model, n, threads, to))
            if one is not None and two:
                found.append(one / two)
        return _median(found)

    def speedup(self, workload: str, model: str, method: str) -> float | None:
        """One thread against two."""
        found = []
        for n in self.numbers(workload, model):
            one = self.ms.get((workload, model, n, 1, method))
            two = self.ms.get((workload, model, n, 2, method))
            if one is not None and two:
                found.append(one / two)
        return _median(found)


def _groups(rows: list[Row], *workloads: str) -> dict[tuple[str, int], list[Row]]:
    groups: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        if row["workload"] in workloads:
            groups[row["data"], row["rows"]].append(row)
    return dict(sorted(groups.items(), key=lambda item: (item[0][0], item[0][1])))


def _curves(rows: list[Row]) -> dict[str, list[tuple[float, float, float]]]:
    curves: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for row in rows:
        if row["workload"] == "knn":
            curves[row["method"]].append((row["recall"], row["median_ms"], row["setting"]))
    return dict(curves)


# --- goals ----------------------------------------------------------------------------------------


def goals(rows: list[Row]) -> list[list[str]]:
    """Each goal of the index with what was measured: (goal, measured, reached)."""
    found: list[list[str]] = []

    def goal(text: str, value: float | None, enough: float, unit: str, least: bool = True,
             more: str = "") -> None:  # fmt: skip
        if value is None:
            return
        reached = value >= enough if least else value <= enough
        found.append([text, f"{_number(value)}{unit}{more}", "yes" if reached else "no"])

    both = {key: Ensembles(group) for key, group in _groups(rows, "ensemble", "branch").items()}
    large = both.get(("realistic", 10_000_000)) or both.get(("synthetic", 10_000_000))
    if large:
        for model, enough in (("wide", 3.5), ("tight", 6), ("tiny", 12)):
            goal(f"ensemble, {model}, 10M: {enough:g} times the AVX2 scan, 1 thread",
                 large.ratio("ensemble", model, 1, "scan", "Boxwood C"), enough, "×")  # fmt: skip
        goal("ensemble, wide, 10M: 1.6 times more on 2 threads",
             large.speedup("ensemble", "wide", "Boxwood C"), 1.6, "×")  # fmt: skip
        for threads in (1, 2):
            goal(f"ensemble, wide, 10M: 100 times DuckDB's WHERE, {threads} thread(s)",
                 large.ratio("ensemble", "wide", threads, "DuckDB WHERE", "Boxwood C"),
                 100, "×")  # fmt: skip
    worst: tuple[float, str] | None = None
    for (data, size), group in both.items():
        for workload, model, number, threads, method in group.ms:
            scan = group.scan(workload, model, number, threads)
            if method == "Boxwood C" and scan is not None:
                ratio = scan / group.ms[workload, model, number, threads, method]
                where = f"{workload} {model}, {size:,} {data} rows, {threads} thread(s)"
                worst = min(worst or (math.inf, ""), (ratio, where))
    if worst:
        goal("never more than 5% slower than the scan, on any data", worst[0], 0.95, "×",
             more=f" ({worst[1]})")  # fmt: skip
    for (data, size), points in _groups(rows, "knn").items():
        if size != 1_000_000:
            continue
        curves = _curves(points)
        peers = [name for name in curves if not name.startswith("Boxwood")]
        for target in RECALLS:
            mine = at_recall(curves.get("Boxwood", []), target)
            theirs = [(ms, name) for name in peers
                      if (ms := at_recall(curves[name], target)) is not None]  # fmt: skip
            if mine and theirs:
                enough = 1.5 if data == "realistic" else 1.0
                goal(f"k-NN, {data}, 1M, recall {target:g}: {enough:g} times the best peer",
                     min(theirs)[0] / mine, enough, "×", more=f" ({min(theirs)[1]})")  # fmt: skip
        flat, exact = curves.get("faiss flat"), curves.get("Boxwood exact")
        if flat and exact:
            goal(f"k-NN, {data}, 1M, exact: 5 times faiss flat", flat[0][1] / exact[0][1], 5, "×")
    builds = {(r["data"], r["rows"]): r for r in rows if r["workload"] == "build"}
    for size, enough in ((1_000_000, 3), (10_000_000, 30)):
        built = builds.get(("realistic", size)) or builds.get(("synthetic", size))
        if built:
            goal(f"build of {size:,} rows: under {enough} s", built["build_s"], enough, " s",
                 least=False)  # fmt: skip
            goal(f"build of {size:,} rows: at most 3 times the segment in memory",
                 built["peak_bytes"] / built["bytes"], 3, "×", least=False,
                 more=" (the rows themselves included)")  # fmt: skip
            goal(f"{size:,} rows: at most 64 bytes a row", built["bytes_per_row"], 64, "",
                 least=False)  # fmt: skip
    paper = {r["method"]: r for r in rows if r["workload"] == "paper-scale"
             and r["rows"] == 260_000_000}  # fmt: skip
    for method, enough in (("refine, warm", 1000), ("k-NN, recall 0.95, warm", 5)):
        if method in paper:
            goal(f"260M rows from SQL, {method}: under {enough:,} ms",
                 paper[method]["median_ms"], enough, " ms", least=False)  # fmt: skip
    return found


# --- text -----------------------------------------------------------------------------------------


def _machines(rows: list[Row]) -> list[str]:
    lines = []
    for fields in dict.fromkeys(
        (r["cpu"], r["cores"], r["memory_gb"], r["system"], r["versions"]) for r in reversed(rows)
    ):
        cpu, cores, memory, system, versions = fields
        mine = [r for r in rows if r["versions"] == versions and r["cpu"] == cpu]
        kernels = sorted({r["isa"] for r in mine if r["workload"] != "instructions"})
        listed = ", ".join(f"{name} {version}" for name, version in json.loads(versions).items())
        dates = sorted({f"{r['date']:%Y-%m-%d}" for r in mine})
        commits = list(dict.fromkeys(r["commit"] for r in mine if r["commit"]))
        lines.append(
            f"- {' and '.join(dict.fromkeys((dates[0], dates[-1])))}: {cpu}, {cores} cores, "
            f"{memory:g} GiB, {system}; kernels {', '.join(kernels) or 'as listed'}; {listed}"
            + (f"; commit {', '.join(commits)}" if commits else "")
        )
    return [*lines, ""]


def _ensemble_text(rows: list[Row]) -> list[str]:
    lines: list[str] = []
    for (data, size), group in _groups(rows, "ensemble", "branch").items():
        those = Ensembles(group)
        lines += [f"### {size:,} {data} rows", ""]
        listed = []
        for workload, model in those.models():
            mine = [r for r in group if (r["workload"], r["model"]) == (workload, model)]
            line: list[object] = [f"{workload}, {model}", _number(_median(
                r["results"] for r in mine if r["method"] == "Boxwood C"), 0)]  # fmt: skip
            for threads in (1, 2):
                for method in ("Boxwood C", "Boxwood SQL", "scan", "DuckDB WHERE"):
                    line.append(_number(those.median(workload, model, threads, method)))
            line += [
                _number(those.median(workload, model, 1, SORTED_SCAN)),
                _number(those.median(workload, model, 1, "numpy")),
                _number(those.median(workload, model, 1, "scikit-learn predict")),
            ]
            listed.append(line)
        lines += _table(
            ("median ms", "rows found", "Boxwood C, 1", "SQL, 1", "AVX2 scan, 1", "DuckDB, 1",
             "Boxwood C, 2", "SQL, 2", "AVX2 scan, 2", "DuckDB, 2", "scan in index order, 1",
             "numpy, 1", "sklearn, 1"), listed,
        )  # fmt: skip
        ratios = []
        for workload, model in those.models():
            line = [f"{workload}, {model}"]
            for threads in (1, 2):
                line += [
                    _number(those.ratio(workload, model, threads, "scan", "Boxwood C")),
                    _number(those.ratio(workload, model, threads, SORTED_SCAN, "Boxwood C")),
                    _number(those.ratio(workload, model, threads, WHERE, "Boxwood C"), 0),
                    _number(those.ratio(workload, model, threads, WHERE, "Boxwood SQL"), 0),
                ]  # fmt: skip
            line.append(_number(those.speedup(workload, model, "Boxwood C")))
            blocks = [r for r in group if (r["workload"], r["model"], r["method"], r["threads"])
                      == (workload, model, "Boxwood C", 1)]  # fmt: skip
            for field in ("blocks_pruned", "blocks_contained", "blocks_planes", "blocks_scanned"):
                share = _median(r[field] / r["blocks"] for r in blocks if r["blocks"])
                line.append("—" if share is None else f"{share:.1%}")
            ratios.append(line)
        lines += _table(
            ("times as fast as", "scan, 1", "scan in index order, 1", "DuckDB, 1",
             "SQL to SQL, 1", "scan, 2", "scan in index order, 2", "DuckDB, 2", "SQL to SQL, 2",
             "2 threads to 1", "blocks pruned", "contained", "planes", "scanned"), ratios,
        )  # fmt: skip
    return lines


def _knn_text(rows: list[Row]) -> list[str]:
    lines: list[str] = []
    many = _groups(rows, "knn batch")
    for (data, size), group in _groups(rows, "knn").items():
        curves = _curves(group)
        first = {name: next(r for r in group if r["method"] == name) for name in curves}
        lines += [f"### {size:,} {data} rows", ""]
        listed = []
        for name, curve in curves.items():
            line: list[object] = [name]
            line += [microseconds(at_recall(curve, target)) for target in RECALLS]
            for threads in (1, 2):
                for target in (0.95, 0.99):
                    rate = max(
                        (r["per_second"] for r in many.get((data, size), ())
                         if r["method"] == name and r["threads"] == threads
                         and r["recall"] >= target), default=None,
                    )  # fmt: skip
                    line.append(_number(rate, 0))
            line += [_number(first[name]["build_s"], 1), _number(first[name]["bytes_per_row"], 0),
                     first[name]["note"] or ""]  # fmt: skip
            listed.append(line)
        lines += _table(
            ("", "µs at recall .95", ".98", ".99", "queries/s in a batch at .95, 1 thread",
             "at .99", "at .95, 2 threads", "at .99", "build s", "bytes/row", ""), listed,
        )  # fmt: skip
        asked = [r for r in group if r["method"] == "Boxwood"]
        lines += _table(
            ("Boxwood, recall asked for", *(f"{r['setting']:g}" for r in asked)),
            [["found", *(f"{r['recall']:.4f}" for r in asked)],
             ["µs", *(microseconds(r["median_ms"]) for r in asked)],
             ["KB read", *(_number((r["bytes"] or 0) / 1000, 0) for r in asked)]],
        )  # fmt: skip
    return lines


def _growth_text(rows: list[Row]) -> list[str]:
    lines: list[str] = []
    for data in dict.fromkeys(r["data"] for r in rows if r["workload"] == "growth"):
        mine = [r for r in rows if r["workload"] == "growth" and r["data"] == data]
        sizes = sorted({r["rows"] for r in mine})
        cells = {(r["method"], r["threads"], r["rows"]): r for r in mine}
        lines += [f"### {data}", ""]
        listed: list[list[object]] = []
        for method, threads in dict.fromkeys((r["method"], r["threads"]) for r in mine):
            there = [cells.get((method, threads, size)) for size in sizes]
            points = [(r["rows"], r["median_ms"]) for r in there if r]
            read = [(r["rows"], r["bytes"]) for r in there if r and r["bytes"]]
            listed.append([
                f"{method}, {threads} thread(s)",
                *(_number(r["median_ms"] if r else None) for r in there),
                _number(exponent(points)), _number(exponent(read)),
            ])  # fmt: skip
        lines += _table(("median ms", *(f"{s:,}" for s in sizes), "exponent of time",
                         "of bytes read"), listed)  # fmt: skip
        one = {r["rows"]: r for r in mine}
        listed = [
            ["build s", *(_number(one[s]["build_s"], 1) for s in sizes)],
            ["bytes a row", *(_number(one[s]["bytes_per_row"], 1) for s in sizes)],
            ["segments", *(one[s]["segments"] for s in sizes)],
            ["most memory of a building process, MiB",
             *(_number(one[s]["peak_bytes"] / 2**20, 0) for s in sizes)],
            ["index resident after the queries, MiB",
             *(_number(one[s]["resident_bytes"] / 2**20, 0) for s in sizes)],
        ]  # fmt: skip
        for method in ("ensemble, wide", "ensemble, tiny", "k-NN, exact", "k-NN, recall 0.95"):
            there = [cells.get((method, 1, size)) for size in sizes]
            listed.append(
                [
                    f"{method}: MB read",
                    *(_number((r["bytes"] or 0) / 1e6 if r else None) for r in there),
                ]
            )
        lines += _table(("", *(f"{s:,}" for s in sizes)), listed)
    return lines


def _build_text(rows: list[Row]) -> list[str]:
    opened = {(r["data"], r["rows"]): r["median_ms"] for r in rows if r["workload"] == "open"}
    listed = [
        [r["data"], f"{r['rows']:,}", r["segments"], _number(r["build_s"], 1),
         _number(r["rows"] / r["build_s"], 0), _number(r["bytes_per_row"], 1),
         _number(r["peak_bytes"] / (r["bytes"] / r["segments"])),
         _number(r["extra_bytes"] / (r["bytes"] / r["segments"])),
         _number(opened.get((r["data"], r["rows"])), 0)]
        for r in rows if r["workload"] == "build" and r["bytes"] and r["rows"] >= 1_000_000
    ]  # fmt: skip
    return (
        _table(
            (
                "data",
                "rows",
                "segments",
                "seconds",
                "rows/s",
                "bytes a row",
                "most memory / segment",
                "beyond the rows",
                "opened cold, ms",
            ),
            listed,
        )
        if listed
        else []
    )


def _paper_text(rows: list[Row]) -> list[str]:
    mine = [r for r in rows if r["workload"] == "paper-scale" and r["median_ms"] is not None]
    built = [r for r in rows if r["workload"] == "paper-scale" and r["method"] == "build"]
    found = [r for r in rows if r["workload"] == "paper-scale" and r["recall"] is not None]
    if not mine:
        return []
    last_row = mine[-1]
    lines = [
        f"{last_row['rows']:,} {last_row['data']} rows in {last_row['segments']} segments, "
        f"{last_row['bytes_per_row']:.1f} bytes a row, {last_row['threads']} threads; most memory "
        f"of the process {max(r['peak_bytes'] for r in mine) / 1e9:.1f} GB, pages of the index "
        "included."
        + (f" Built in {built[-1]['build_s'] / 60:.1f} min, while the same cores generated the "
           f"rows, in {built[-1]['peak_bytes'] / 1e9:.1f} GB of memory." if built else "")
        + (f" k-NN asked for recall 0.95 found {found[-1]['recall']:.3f}." if found else ""),
        "",
    ]  # fmt: skip
    return lines + _table(
        ("from SQL", "runs", "median ms", "least", "rows", ""),
        [[r["method"], r["repeats"], _number(r["median_ms"], 1), _number(r["min_ms"], 1),
          "" if r["results"] is None else f"{r['results']:,}", r["note"] or ""] for r in mine],
    )  # fmt: skip


def _instruction_text(rows: list[Row]) -> list[str]:
    mine = [r for r in rows if r["workload"] == "instructions"]
    totals = {(r["model"], r["isa"]): r["instructions"] for r in mine if r["method"] == "all"}
    kinds = list(dict.fromkeys(isa for _, isa in totals))
    listed = []
    for model in dict.fromkeys(model for model, _ in totals):
        isa = kinds[-1] if (model, kinds[-1]) in totals else kinds[0]
        best = next(
            (
                i
                for i in reversed(kinds)
                if any(r["model"] == model and r["isa"] == i and r["method"] != "all" for r in mine)
            ),
            isa,
        )
        top = [f"`{r['method']}` {r['instructions'] / totals[model, best]:.0%}" for r in mine
               if (r["model"], r["isa"]) == (model, best) and r["method"] != "all"][:4]  # fmt: skip
        millions = [totals.get((model, i)) for i in kinds]
        listed.append([model, *(_number(m / 1e6 if m else None) for m in millions),
                       ", ".join(top)])  # fmt: skip
    return _table(("million instructions", *kinds, "most of it"), listed) if listed else []


def text(rows: list[Row], plots: Sequence[str]) -> str:
    lines = [
        "# Benchmarks", "",
        "Written by `benchmarks/bench.py`; `benchmarks/README.md` says how to run it and how each "
        "figure is taken. Every table is of one run and compares only what ran in it, in turn.", "",
        "## Machine", "", *_machines(rows),
    ]  # fmt: skip
    parts = [
        ("Goals", _table(("goal", "measured", "reached"), goals(rows)) if goals(rows) else []),
        ("Ensembles and single branches", _ensemble_text(rows)),
        ("Nearest neighbours", _knn_text(rows)),
        ("Growth", _growth_text(rows)),
        ("Build", _build_text(rows)),
        ("The paper's size", _paper_text(rows)),
        ("Instructions", _instruction_text(rows)),
    ]
    pictures = {Path(plot).stem: plot for plot in plots}
    where = {"Ensembles and single branches": "ensembles", "Nearest neighbours": "knn",
             "Growth": "growth"}  # fmt: skip
    for title, body in parts:
        if body:
            lines += [f"## {title}", ""]
            if where.get(title) in pictures:
                lines += [f"![{title}]({pictures[where[title]]})", ""]
            lines += body
    return "\n".join(lines).rstrip() + "\n"


# --- plots ----------------------------------------------------------------------------------------


def plot(rows: list[Row], folder: Path) -> list[Path]:
    """The plots that the rows allow, as PNG files; none without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print("left out: plots: matplotlib is not installed (pip install 'boxwood[bench]')")
        return []
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []

    def panels(count: int) -> tuple[Any, list[Any]]:
        across = min(count, 2)
        down = -(-count // across)
        figure, axes = plt.subplots(down, across, figsize=(6 * across, 3.8 * down), squeeze=False)
        flat = list(axes.flat)
        for unused in flat[count:]:
            unused.set_visible(False)
        return figure, flat

    def save(figure: Any, name: str, legend: Any = None) -> None:
        figure.tight_layout()
        if legend is not None:  # one for all panels, below them
            handles, labels = legend.get_legend_handles_labels()
            figure.legend(handles, labels, fontsize=7, ncols=4, loc="upper center",
                          bbox_to_anchor=(0.5, 0))  # fmt: skip
        figure.savefig(folder / f"{name}.png", dpi=80, bbox_inches="tight")
        plt.close(figure)
        made.append(folder / f"{name}.png")

    groups = {key: Ensembles(g) for key, g in _groups(rows, "ensemble").items()}
    if groups:
        figure, axes = panels(len(groups))
        for ax, ((data, size), those) in zip(axes, groups.items(), strict=False):
            models = [model for _, model in those.models()]
            methods = ("Boxwood C", "Boxwood SQL", "scan", SORTED_SCAN, "numpy",
                       "scikit-learn predict", "DuckDB WHERE")  # fmt: skip
            for place, method in enumerate(methods):
                values = [those.median("ensemble", model, 1, method) for model in models]
                at = np.arange(len(models)) + 0.8 * (place / len(methods) - 0.5)
                ax.bar(at, [v or np.nan for v in values], 0.8 / len(methods),
                       label="AVX2 scan" if method == "scan" else method)  # fmt: skip
            ax.set_xticks(range(len(models)), models)
            ax.set_yscale("log")
            ax.set_ylabel("ms, one thread")
            ax.set_title(f"ensembles of 25, {size:,} {data} rows", fontsize=10)
        save(figure, "ensembles", axes[0])
    found = _groups(rows, "knn")
    if found:
        figure, axes = panels(len(found))
        for ax, ((data, size), group) in zip(axes, found.items(), strict=False):
            for name, curve in _curves(group).items():
                points = sorted((1 - share, ms) for share, ms, _ in curve)
                lost = [max(share, 5e-4) for share, _ in points]
                ax.plot(lost, [1000 * ms for _, ms in points], marker="o", markersize=3,
                        linewidth=2 if name.startswith("Boxwood") else 1, label=name)  # fmt: skip
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.set_xlim(0.3, 4e-4)
            ax.set_xlabel("1 - recall@60 (0.0005: none lost)")
            ax.set_ylabel("µs a query, one thread")
            ax.grid(alpha=0.3, which="both", linewidth=0.4)
            ax.set_title(f"k-NN, {size:,} {data} rows", fontsize=10)
        save(figure, "knn", axes[0])
    grown = [r for r in rows if r["workload"] == "growth" and r["threads"] == 1]
    if grown:
        figure, axes = panels(2)
        for ax, field, label in ((axes[0], "median_ms", "ms, one thread"),
                                 (axes[1], "bytes", "bytes read")):  # fmt: skip
            for data, method in dict.fromkeys((r["data"], r["method"]) for r in grown):
                points = sorted(
                    (r["rows"], r[field])
                    for r in grown
                    if (r["data"], r["method"]) == (data, method) and r[field]
                )
                if points:
                    b = exponent(points)
                    ax.plot(*zip(*points, strict=True), marker="o", markersize=3,
                            label=f"{method}, exponent {b:.2f}")  # fmt: skip
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.set_xlabel("rows")
            ax.set_ylabel(label)
            ax.grid(alpha=0.3, linewidth=0.4)
            ax.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=2)
        save(figure, "growth")
    return made


def write(out: Path, con: duckdb.DuckDBPyConnection, docs: Path | None) -> None:
    """report.md with its plots in `out`, and docs/BENCHMARKS.md with docs/bench/*.png."""
    rows = last(con)
    if not rows:
        print("there are no measurements yet: run `bench.py all`")
        return
    plots = plot(rows, out / "plots")
    (out / "report.md").write_text(text(rows, [f"plots/{p.name}" for p in plots]), "utf-8")
    print(f"report: {out / 'report.md'}")
    if docs is not None:
        docs.mkdir(parents=True, exist_ok=True)
        made = plot(rows, docs / "bench")
        (docs / "BENCHMARKS.md").write_text(text(rows, [f"bench/{p.name}" for p in made]), "utf-8")
        print(f"written: {docs / 'BENCHMARKS.md'}")
