"""What the figures have to show, and whether they do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.record import Record

HALF, FLA, BLOCK, SERVER, P99, MEMORY = 1.6, 1.10, 0.6, 0.85, 4.0, 0.01
BATCH = 16
P99_SHARE = 0.7


class NotMeasured(Exception):
    """There is no figure; the message says why."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target.

    Attributes:
        target: in words.
        wanted: likewise.
        measured: likewise; "" where there is nothing.
        verdict: "met", "not met" or "not measured".
        remark: what is to be known with it, or "".
    """

    target: str
    wanted: str
    measured: str
    verdict: str
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure of a target: whether it is as wanted, in words, and a remark."""

    met: bool
    text: str
    remark: str = ""


def verdicts(record: Record) -> list[Verdict]:
    """All targets. On a CPU none of them is measured, whatever the figures are."""
    targets: list[tuple[str, str, str, Callable[[Record], Measured]]] = [
        ("raw", f"float16 against float32, session alone, batch {BATCH}", f"≥ {HALF}", half),
        ("fla", "YOLOv8n with attention against without, time", f"≤ {FLA:.2f}", attention),
        ("block", "our attention block against the plain trace, time", f"≤ {BLOCK}", block),
        ("server", "server at saturation against the pipeline", f"≥ {SERVER}", saturation),
        ("server", "p99 at 70 % load against the time of batch 1", f"≤ {P99:.0f} times", tail),
        ("memory", "GPU memory after the soak against after the warm-up", "within 1 %", memory),
    ]
    return [judged(record, *each) for each in targets]


def judged(
    record: Record, part: str, target: str, wanted: str, look: Callable[[Record], Measured]
) -> Verdict:
    """One target's verdict."""
    try:
        found = look(record)
    except NotMeasured as why:
        return Verdict(target, wanted, "", "not measured", str(why))
    remarks = [found.remark] if found.remark else []
    if record["parts"][part]["status"] != "complete":
        remarks.append(f"part {part} was {record['parts'][part]['status']}")
    verdict = "met" if found.met else "not met"
    if record["device"] == "cpu":
        verdict = "not measured"
        remarks.insert(0, "on a CPU")
    return Verdict(target, wanted, found.text, verdict, "; ".join(remarks))


def half(record: Record) -> Measured:
    """Target 1: with the options that the run was told to take."""
    rows = rows_of(record, "raw", "fp16_to_fp32")
    for row in rows:
        if row["variant"] == "plain" and row["batch"] == BATCH:
            return Measured(row["ratio"]["median"] >= HALF, spread_text(row["ratio"]))
    raise NotMeasured(f"no pair at batch {BATCH}")


def attention(record: Record) -> Measured:
    """Target 2: the worst of all precisions and batches."""
    rows = [row for row in rows_of(record, "fla", "rows") if row["variant"] == "plain"]
    worst = worst_of(rows, "time_ratio")
    where = f"worst of {len(rows)}: {worst['precision']}, batch {worst['batch']}"
    ratio = worst["time_ratio"]
    return Measured(ratio["median"] <= FLA, spread_text(ratio), where)


def block(record: Record) -> Measured:
    """Target 3: the worst of all sizes and precisions, without CUDA graphs, as by default."""
    rows = [row for row in rows_of(record, "block", "rows") if not row["graph"]]
    worst = worst_of(rows, "time_ratio")
    size = f"{worst['tokens']} x {worst['channels']}"
    where = f"worst of {len(rows)}: {worst['precision']}, batch {worst['batch']}, {size}"
    ratio = worst["time_ratio"]
    return Measured(ratio["median"] <= BLOCK, spread_text(ratio), where)


def saturation(record: Record) -> Measured:
    """Target 4: of the arrangement that brought the most images a second."""
    row = best_arrangement(record)
    remark = f"{row['http_workers']} HTTP worker(s), {row['clients']} clients"
    remark += f"; {row['to_raw']['median']:.2f} of the session alone"
    if any(load["generator_limits"] for load in row["loads"]):
        remark += "; the generator may have been the limit"
    ratio = row["to_pipeline"]
    return Measured(ratio["median"] >= SERVER, spread_text(ratio), remark)


def tail(record: Record) -> Measured:
    """Target 5: of the same arrangement."""
    row = best_arrangement(record)
    for load in row["rates"]:
        if load["share"] == P99_SHARE:
            if load["p99_ms"] is None:
                raise NotMeasured("no good answer at 70 % load")
            times = load["p99_ms"] / row["batch_1_ms"]
            text = f"{times:.1f} times: {load['p99_ms']:.1f} by {row['batch_1_ms']:.2f} ms"
            limits = "the generator was late" if load["generator_limits"] else ""
            remark = f"{row['http_workers']} HTTP worker(s)"
            return Measured(times <= P99, text, "; ".join(filter(None, (remark, limits))))
    raise NotMeasured("no load of 70 %")


def memory(record: Record) -> Measured:
    """Target 6."""
    figures = figures_of(record, "memory")
    if figures.get("relative_difference") is None:
        raise NotMeasured("the soak did not end")
    difference = figures["relative_difference"]
    remark = f"{figures['batches']} batches"
    return Measured(difference <= MEMORY, f"{100 * difference:.2f} %", remark)


def best_arrangement(record: Record) -> Mapping[str, Any]:
    """The server's row with the most images a second."""
    rows = [row for row in rows_of(record, "server", "arrangements") if "to_pipeline" in row]
    if not rows:
        raise NotMeasured("no server was measured at saturation")
    best: Mapping[str, Any] = max(rows, key=lambda row: row["images_per_s"]["median"])
    return best


def figures_of(record: Record, part: str) -> Mapping[str, Any]:
    """A part's figures."""
    known = record["parts"].get(part)
    if known is None:
        raise NotMeasured(f"part {part} was not run")
    figures: Mapping[str, Any] | None = known.get("figures")
    if not figures:
        raise NotMeasured(f"part {part}: {known['status']}")
    return figures


def rows_of(record: Record, part: str, key: str) -> list[Mapping[str, Any]]:
    """Rows of a part's figures; at least one."""
    rows: list[Mapping[str, Any]] = figures_of(record, part).get(key) or []
    if not rows:
        raise NotMeasured(f"part {part} has no such figure")
    return rows


def worst_of(rows: list[Mapping[str, Any]], key: str) -> Mapping[str, Any]:
    """The row with the largest median."""
    if not rows:
        raise NotMeasured("no such pair")
    return max(rows, key=lambda row: row[key]["median"])


def spread_text(values: Mapping[str, Any], digits: int = 2) -> str:
    """A median with the lowest and the highest of its rounds."""
    median, lowest, highest = (
        f"{values[key]:,.{digits}f}" for key in ("median", "lowest", "highest")
    )
    return f"{median} ({lowest} to {highest})"
