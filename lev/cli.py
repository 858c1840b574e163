"""The command line: ``lev scan``, ``merge``, ``show``, ``heavy``, ``plot`` and ``demo``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import lev
from lev import backend, report
from lev.plot import FORMATS
from lev.readers import Reader, open_rows

_UsageError: Any = typer.BadParameter.__base__  # typer exports no name for it

app = typer.Typer(
    name="lev",
    help="Which keys can ever receive heavy attention: one pass over the keys, with proof that none was missed.",
    epilog="A key belongs to the universal set if some query q gives it <q,k>^2 / sum <q,k>^2 >= epsilon.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_KEYS = "Files of keys, .npy, .npz, .safetensors or .parquet, or - for raw little-endian float32 rows on standard input"
_TENSOR = "Name of the array in a file that holds several; in .parquet, of the column."
_HEAD = "Which matrix of an array (..., n, d) to read, counted from 0 in C order."
_SMALLER = "Threshold, at least the sketch's own.  (default: the sketch's)"

Tensor = Annotated[str | None, typer.Option(help=_TENSOR)]
Head = Annotated[int | None, typer.Option(help=_HEAD)]
Epsilon = Annotated[float | None, typer.Option(help=_SMALLER)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
SketchPath = Annotated[Path, typer.Argument(metavar="SKETCH", help="A file that lev scan or lev merge wrote.")]


@app.callback(invoke_without_command=True)
def _lev(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        print(f"lev {lev.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


# -- the commands --------------------------------------------------------------------------------------------


@app.command()
def scan(
    keys: Annotated[list[str], typer.Argument(metavar="KEYS...", help=_KEYS + ".  Several are one stream.")],
    epsilon: Annotated[float, typer.Option(help="Threshold in (0, 1]: find every key that can receive it.")] = 0.05,
    p: Annotated[float, typer.Option(help="Exponent of the weights |<q,k>|^p: exact for 2, else a superset.")] = 2.0,
    tensor: Tensor = None,
    head: Head = None,
    dim: Annotated[int | None, typer.Option(help="Numbers in a row; needed for standard input.")] = None,
    start: Annotated[
        int | None, typer.Option(help="Id of the first row read.  (default: its place in the file)")
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(metavar="A:B", help="Read rows A to B - 1 only, for a scan in parts; merge them after."),
    ] = None,
    decay: Annotated[float, typer.Option(help="Weights fall by this factor with each row, in (0, 1].")] = 1.0,
    intercept: Annotated[bool, typer.Option("--intercept", help="Also for queries <q,k> + b: centred scores.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the sketch here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read keys once and find all that any query can ever give a weight of epsilon."""
    _check_output(output, *keys)
    if len(keys) > 1 and (rows is not None or keys.count("-") > 1):
        raise ValueError(f"KEYS must be one file with --rows, and - may stand once; got {' '.join(keys)}")
    span = _span(rows)
    readers = [open_rows(source, tensor=tensor, head=head, dim=dim, rows=span) for source in keys]
    for reader in readers:
        if reader.dim != readers[0].dim:
            first = readers[0]
            raise ValueError(f"{reader.source} has rows of {reader.dim} numbers, {first.source} of {first.dim}")
    first_id = readers[0].first if start is None else start
    sketch = lev.Sketch(readers[0].dim, epsilon, p, start=first_id, decay=decay, intercept=intercept)
    with report.progress(readers) as advance:
        for reader in readers:
            _absorb(sketch, reader, advance)
    if output is not None:
        sketch.save(output)
    report.sketch(sketch, sketch.universal_set(), as_json=as_json, output=output)


@app.command()
def merge(
    sketches: Annotated[list[Path], typer.Argument(metavar="SKETCH...", help="Sketches of parts of one stream.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Write the merged sketch here.")],
    as_json: AsJson = False,
) -> None:
    """Make one sketch of sketches of different rows: the same set as one scan of them all."""
    _check_output(output)
    merged = _load(sketches[0])
    for path in sketches[1:]:
        part = _load(path)
        try:
            merged.merge(part)
        except ValueError as error:
            raise ValueError(f"{path} does not merge: {error}") from None
    merged.save(output)
    report.sketch(merged, merged.universal_set(), as_json=as_json, output=output)


@app.command()
def show(
    sketch: SketchPath,
    epsilon: Epsilon = None,
    top: Annotated[int | None, typer.Option(metavar="K", help="The K best members only, and what they leave.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the universal set that a sketch holds."""
    held = _load(sketch)
    members = held.universal_set(epsilon)
    report.sketch(held, members, top=top, as_json=as_json)


@app.command()
def heavy(
    sketch: SketchPath,
    queries: Annotated[str, typer.Argument(metavar="QUERIES", help="A file of queries, in any format of lev scan.")],
    epsilon: Epsilon = None,
    tensor: Tensor = None,
    head: Head = None,
    as_json: AsJson = False,
) -> None:
    """List every entry (query, key) that reaches epsilon, with its weight over all keys of the stream.

    It is exact for p = 2; for other p it is known between two proved ends, and what may reach epsilon is listed.
    """
    held = _load(sketch)
    epsilon = held.universal_set(epsilon).epsilon
    reader = open_rows(queries, tensor=tensor, head=head, dim=held.dim if queries == "-" else None)
    found, place = [np.zeros((4, 0))], reader.first
    with report.progress([reader]) as advance:
        for block in reader:
            backend.check_finite(reader.source, block, place)
            hits = held.heavy_hitters(block, epsilon)
            query, key = hits.tocoo().coords
            found.append(np.array([query + place, key, getattr(hits, "lower", hits).data, hits.data]))
            place += len(block)
            advance(len(block))
    report.entries(np.concatenate(found, axis=1), place - reader.first, epsilon, as_json=as_json)


@app.command()
def plot(
    sketch: SketchPath,
    output: Annotated[Path, typer.Option("-o", "--output", help=f"The picture, {' or '.join(FORMATS)}.")],
    queries: Annotated[str | None, typer.Option(metavar="FILE", help="Queries, for a map of their entries.")] = None,
    tensor: Tensor = None,
    head: Head = None,
) -> None:
    """Draw the universal set that a sketch holds: scores, sizes, places and, with queries, heavy entries."""
    from lev.plot import plot as draw

    _check_output(output, sketch, queries)
    held = _load(sketch)
    asked = None if queries is None else list(open_rows(queries, tensor=tensor, head=head))
    draw(held, output, None if asked is None else np.concatenate(asked) if asked else np.zeros((0, held.dim)))
    print(f"wrote {output}")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture.")] = Path("lev_demo.png"),
    as_json: AsJson = False,
) -> None:
    """Find the universal set of real keys that come with the package, and check it against brute force."""
    from lev import demo as demonstration

    _check_output(output)
    outcome = demonstration.demonstrate()
    report.demo(outcome, _picture(outcome.sketch, output), as_json=as_json)
    if not outcome.holds:
        raise typer.Exit(1)


# -- what the commands share ---------------------------------------------------------------------------------


def _span(rows: str | None) -> tuple[int, int | None]:
    first, colon, end = (":" if rows is None else rows).partition(":")
    if not colon or not all(part == "" or (part.isascii() and part.isdigit()) for part in (first, end)):
        raise ValueError(f"--rows must be A:B, such as 0:4096 or 4096:; got {rows}")
    return int(first or 0), int(end) if end else None


def _check_output(path: Path | None, *sources: str | Path | None) -> None:
    """Refuse before the work what could not be written after it, and what is read."""
    if path is None:
        return
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"cannot write {path}: {'it is a directory' if path.is_dir() else 'no such directory'}")
    for source in sources:
        if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
            raise ValueError(f"cannot write {path}: it is what is read")


def _picture(sketch: lev.Sketch, output: Path) -> str:
    """Draw the sketch and return what became of the picture."""
    from lev.plot import plot as draw

    try:
        draw(sketch, output)
    except ImportError as error:
        return f"not drawn: {error}"
    return str(output)


def _load(path: Path) -> lev.Sketch:
    try:
        held = lev.Sketch.from_bytes(path.read_bytes())
    except lev.SketchFileError as error:
        raise ValueError(f"{path}: {error}") from None
    if held.heads:
        raise ValueError(f"{path} holds a sketch with heads={held.heads}; the command line reads those without")
    return held


def _absorb(sketch: lev.Sketch, reader: Reader, advance: Callable[[int], None]) -> None:
    place = reader.first
    for block in reader:
        try:
            sketch.update(block)
        except ValueError:
            backend.check_finite(reader.source, block, place)  # the same refusal, with the row's place in the file
            raise
        place += len(block)
        advance(len(block))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code: 2 and one line on standard error for bad input."""
    try:
        code = app(args=arguments, prog_name="lev", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _UsageError as error:
        message = error.format_message()
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    except (ValueError, TypeError, ImportError, MemoryError) as error:
        message = str(error)
    print("lev:", " ".join(message.split()), file=sys.stderr)
    return 2


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(sys.argv[1:]))
