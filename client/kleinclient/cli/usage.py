"""`klein usage`: totals and records, as a table, as CSV and as lines of JSON. Records are printed as they come."""

import csv
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from kleinclient.client import Client
from kleinclient.usage import UsageRecord, UsageTotal, dollars

Row = UsageTotal | UsageRecord
LEFT = ("caller", "operation")  # of the totals; the other columns are numbers


def show_usage(klein: Client, arguments: Namespace) -> None:
    """Totals by caller and operation, or every record."""
    start, end = arguments.start, arguments.end or datetime.now(UTC)
    interval = f"{_minute(start)} to {_minute(end)} UTC"
    shows: dict[str, Callable[[Iterable[Any]], None]] = {"csv": print_csv, "json": print_json}
    if arguments.what == "records":
        records = klein.usage_records(start, end, caller=arguments.caller, after_record_id=arguments.after)
        shows.get(arguments.format, partial(print_records, interval))(records)
    else:
        totals = klein.usage(start, end, caller=arguments.caller)
        shows.get(arguments.format, partial(print_totals, interval))(totals)


def facts(row: Row) -> dict[str, Any]:
    """The row for programs: flat, amounts as integers, times in ISO 8601."""
    flat = asdict(row)
    flat |= flat.pop("usage", {})
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in flat.items()}


def print_json(rows: Iterable[Row]) -> None:
    for row in rows:
        print(json.dumps(facts(row), ensure_ascii=False), flush=True)


def print_csv(rows: Iterable[Row]) -> None:
    writer = None
    for row in rows:
        flat = facts(row)
        if writer is None:
            writer = csv.DictWriter(sys.stdout, list(flat), lineterminator="\n")
            writer.writeheader()
        writer.writerow(flat)


def print_totals(interval: str, totals: Iterable[UsageTotal]) -> None:
    """A table as wide as its content; a pipe gets the whole width."""
    table = Table(box=None, pad_edge=False)
    cells = [_total_cells(total) for total in totals]
    for heading in cells[0] if cells else ():
        table.add_column(heading, no_wrap=True, justify="left" if heading in LEFT else "right")
    for row in cells:
        table.add_row(*row.values())
    console = Console(highlight=False)
    print(interval)
    if cells:
        console.print(table, width=None if console.is_terminal else 10_000)
    else:
        print("no requests")


def print_records(interval: str, records: Iterable[UsageRecord]) -> None:
    """Line by line, in columns that fit what is usual."""
    line = "{:<19}  {:<16}  {:<9}  {:<9}  {:>9}  {:>5}  {:>9}  {:<36}  {}"
    is_empty = True
    for record in records:
        if is_empty:
            print(interval)
            print(line.format("ended", "caller", "operation", "outcome", "size", "steps", "cost", "record", "reason"))
        is_empty = False
        cells = (
            f"{record.end_time:%Y-%m-%d %H:%M:%S}",
            record.caller,
            record.operation,
            record.outcome,
            f"{record.width}x{record.height}",
            record.steps_run,
            dollars(record.usage.cost_microusd if record.usage.billable else 0),
            record.record_id,
            record.reason,
        )
        print(line.format(*cells).rstrip())
    if is_empty:
        print(f"{interval}\nno requests")


def _total_cells(total: UsageTotal) -> dict[str, str]:
    """Heading and text of each column."""
    return {
        "caller": total.caller,
        "operation": total.operation,
        "requests": f"{total.requests:,}",
        "images": f"{total.images:,}",
        "MP": f"{total.output_megapixels:,}",
        "reference MP": f"{total.reference_megapixels:,}",
        "cost": dollars(total.cost_microusd),
    }


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"
