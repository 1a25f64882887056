"""What `benchmarks.gpu` found, as Markdown."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def report(found: dict[str, Any]) -> str:
    """A line about the device, a table per preset, training, and what is missing."""
    peaks = ", ".join(f"{name} {value:.3g}" for name, value in found["peak_tflops"].items())
    parts = [
        f"**{found['device']}**, torch {found['torch']}, CUDA {found['cuda']}, cuDNN "
        f"{found['cudnn']}, Python {found['python']}, {found['threads']} CPU threads, "
        f"{found['when']}; product of two matrices: {peaks} TFLOP/s. {found['seconds']:.0f} s in "
        "all."
    ]
    networks = [row for row in found["rows"] if row["kind"] == "network"]
    for preset in dict.fromkeys(row["preset"] for row in networks):
        rows = [row for row in networks if row["preset"] == preset]
        parts.append(_table(preset, rows, found))
    parts += [_other(row) for row in found["rows"] if row["kind"] != "network"]
    parts += _failures(found["rows"])
    if found["dropped"]:
        parts.append(f"No time was left for: {'; '.join(found['dropped'])}.")
    return "\n\n".join(parts)


def _table(preset: str, rows: list[Row], found: dict[str, Any]) -> str:
    batches = found["batches"]
    lines = [
        f"| {preset}, crops/s | "
        + " | ".join(f"batch {batch}" for batch in batches)
        + " | best | ms | share of peak | MiB | error |",
        "|---|" + "---:|" * (len(batches) + 5),
    ]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        mine = {row["batch"]: row for row in rows if row["variant"] == variant}
        cells = [_cell(mine.get(batch)) for batch in batches]
        rated = [row for row in mine.values() if "rate" in row]
        best = max(rated, key=lambda row: row["rate"]) if rated else None
        lines.append(f"| {variant} | " + " | ".join(cells) + f" | {_best(best, found)} |")
    return "\n".join(lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row['rate']:,.4g}" if "rate" in row else "failed"


def _best(row: Row | None, found: dict[str, Any]) -> str:
    if row is None:
        return " |  |  |  | "
    peaks = found["peak_tflops"]
    peak = peaks.get("bf16", peaks["fp32"])
    error = f"{row['error_of_maps']:.0e}" if "error_of_maps" in row else ""
    return (
        f"{row['batch']} | {row['ms']:.3g} | {row['tflops'] / peak:.2f} | "
        f"{row['memory_mib']:,.0f} | {error}"
    )


def _other(row: Row) -> str:
    if "error" in row:
        named = " ".join(str(row[name]) for name in ("kind", "preset", "flags") if name in row)
        return f"{named}: failed, {row['error']}"
    if row["kind"] == "person-net":
        return f"person-net: {row['rate']:,.0f} pictures/s of 640 x 480"
    case = f"{row['preset']} at {row['size']} px, batch {row['batch']} {row['flags']}".strip()
    if row["kind"] == "profile":
        top = "\n".join(
            f"| {milliseconds:.2f} | {name[:90]} |" for name, milliseconds in row["top"]
        )
        return (
            f"A training step of {case}, {row['sum_ms']:.1f} ms:\n\n"
            f"| ms | operation |\n|---:|---|\n{top}"
        )
    return (
        f"Training {case}: {row['rate']:,.0f} samples/s, cutting crops "
        f"{row['cut_share']:.1%}, {row['memory_mib']:,.0f} MiB"
    )


def _failures(rows: list[Row]) -> list[str]:
    lines = [
        f"- {row['preset']} {row['variant']}, batch {row['batch']}: {row['error']}"
        for row in rows
        if "error" in row and row["kind"] == "network"
    ]
    compiled = [
        f"- {row['preset']}: compiled in {row['compile_s']:.0f} s"
        for row in rows
        if "compile_s" in row
    ]
    return ["\n".join(part) for part in (lines, compiled) if part]
