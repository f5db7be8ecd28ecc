"""`mlc provenance`: does one version descend from the training run that another records?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...registry.errors import BadParameter, OverLimit
from ..context import Session
from ..options import complete_rev

if TYPE_CHECKING:
    from ...registry.ids import CommitId

EPILOG = """Examples:
  mlc provenance v2 suspect --data new.txt                   the file that v2 was trained on
  mlc provenance v2 suspect --data new.txt --reference twin  twin read the same rows in another order
  mlc provenance v2 suspect --data new.txt --exit-code       exit 5 unless it descends

What was read late is remembered better. The order of A's run is stored with it; rho is the correlation of that order with B's losses, less
the reference's. In a model that never saw this run, every order is as likely: p says how often one this strong would come by chance."""


def run(
    session: Session,
    a: Annotated[str, typer.Argument(metavar="A", help="An update: the run whose order is looked for.", autocompletion=complete_rev)],
    b: Annotated[str, typer.Argument(metavar="B", help="The version that may descend from it.", autocompletion=complete_rev)],
    data: Annotated[str, typer.Option("--data", metavar="FILE", help="A file that A was trained on; its digest is checked.")],
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="REV",
            help="A version that never read these rows in this order.",
            show_default="A's parent",
            autocompletion=complete_rev,
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(metavar="P", help="Below this p, B is said to descend from A.")] = 1e-4,
    limit: Annotated[int, typer.Option(metavar="N", help="Rows to measure at most, evenly spaced over the run.")] = 10_000,
    permutations: Annotated[int, typer.Option(metavar="N", help="Random orders for the p by permutation.")] = 9999,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 5 unless B descends from A.")] = False,
) -> None:
    """Test whether a version descends from a recorded training run."""
    if not 0 < alpha < 1:
        raise BadParameter(f"--alpha is between 0 and 1, not {alpha:g}", hint="--alpha 1e-4")
    if limit < 1 or permutations < 1:
        raise BadParameter("--limit and --permutations are at least 1", hint="leave them out")
    made, suspect = session.repo.resolve(a), session.repo.resolve(b)
    document = _examined(session, made, suspect, reference, data, limit, permutations)
    document |= {"alpha": alpha, "descends": document["p"] < alpha}
    session.show(document, lambda: _render(session, document))
    if exit_code and not document["descends"]:
        raise OverLimit(f"{suspect[:12]} does not show the order of {made[:12]}'s run (p = {document['p']:.2g}).", hint="mlc log --graph")


def _examined(
    session: Session, made: CommitId, suspect: CommitId, reference: str | None, data: str, limit: int, permutations: int
) -> dict[str, Any]:
    from ...ops.catalog import load
    from ...ops.data.stream import KIND, read_stream
    from ...ops.evaluate.provenance import course, order_test, require_same_tokenizer, row_losses, trained_rows

    commit = session.repo.commit(made)
    if commit.op.name != "update":
        raise BadParameter(f"{made[:12]} is no update: it was made by {commit.op.name}", hint="mlc log --op update")
    record = next((one for one in commit.artifacts if one.kind == KIND), None)
    if record is None:
        raise BadParameter(
            f"{made[:12]} does not say in which order it read its rows: it is of an older version of mlc", hint="train it again"
        )
    beside = session.repo.resolve(reference) if reference is not None else commit.parents[0]
    stream, start = read_stream(session.repo.blob(record.digest)), session.repo.view(commit.parents[0])
    op: Any = load("update").from_params(commit.op.params)
    views = {"suspect": session.repo.view(suspect), "reference": session.repo.view(beside)}
    for name, view in views.items():
        require_same_tokenizer(start, view, suspect[:12] if name == "suspect" else beside[:12])
    trained = trained_rows(op, start, stream, data, limit)
    begin = trained.begin if commit.op.version >= 2 else None  # older updates read the documents of a row as one text
    losses: dict[str, list[float]] = {}
    for name, view in views.items():
        told = lambda done, name=name: session.progress(name, done, len(trained.rows))  # noqa: E731
        losses[name] = row_losses(view, trained.rows, told, begin)
    differences = [x - y for x, y in zip(losses["suspect"], losses["reference"], strict=True)]
    return {
        "a": made,
        "b": suspect,
        "reference": beside,
        "stream": record.digest,
        "steps": stream.steps,
        "times_seen": trained.times,
        **order_test(trained.steps, differences, permutations=permutations).to_json(),
        **{f"loss_{name}": sum(own) / len(own) for name, own in losses.items()},
        "course": course(trained.steps, differences),
    }


def _render(session: Session, document: dict[str, Any]) -> None:
    paint = session.paint
    a, b, beside = (paint.yellow(document[name][:12]) for name in ("a", "b", "reference"))
    word = paint.green("descends from") if document["descends"] else "does not show the order of"
    session.line(
        f"{b} {word} the run of {a}: rho {document['rho']:+.4f}, p {document['p']:.2g} (by permutation {document['p_permutation']:.2g})."
    )
    often = "once" if document["times_seen"] == 1 else f"up to {document['times_seen']} times"
    session.line(f"{document['rows']:,} rows, read {often} in {document['steps']:,} steps; losses less those of {beside}, by step:")
    session.line(paint.dim(f"  {'steps':>13}  {'rows':>6}  {'nats':>9}"))
    for part in document["course"]:
        session.line(f"  {part['first_step']:>6}-{part['last_step']:<6}  {part['rows']:>6,}  {part['difference']:>+9.4f}")
