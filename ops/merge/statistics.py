"""What a merge asks of an ingredient's own data: Fisher information of every weight, or the Gram matrix of every linear map's inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...registry.errors import CheckFailed, InputNotFound
from ...registry.records import InputRecord
from ..base import Change, SetTensor
from ..data.items import read_items
from ..engine.local import threads
from ..models import load_model, slot, state_names
from ..unlearn.importance import importance, pack, unpack
from ..unlearn.task import batches, task_of
from .checks import FLOATS, check_buffers
from .informed import fisher_mean, fisher_shares, reg_mean
from .layout import lined_up, tie_heads

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..base import Run
    from ..unlearn.task import Rows, Task
    from .layout import Output
    from .stored import Informed

Statistics = dict[str, Tensor]  # by stored tensor
KINDS = {"fisher": "fisher", "regmean": "gram"}


def merged(op: Informed, view: ModelView, run: Run) -> Iterator[Change]:
    """The tensors of the merge that differ from the first version's. Holds the statistics of all versions, and one tensor of each."""
    views = {name: view if at == 0 else run.version(name) for at, name in enumerate(op.ingredients)}
    laid = lined_up(views)
    with threads(1):
        known = [_kept(op, one, at, run) for at, one in enumerate(views.values())]
        shares = _shares(op, known)
        outputs = tie_heads(laid, views)
        informed = 0
        for done, output in enumerate(outputs, 1):
            entries = [views[part.model].entry(part.tensor) for part in output.parts]
            if any(entry.dtype not in FLOATS for entry in entries):
                check_buffers(output.parts, views)
                continue
            if len({entry.digest for entry in entries}) == 1:
                continue
            data, told = _mean(op, output, [views[part.model].tensor(part.tensor) for part in output.parts], known, shares)
            if not bool(torch.isfinite(data).all()):
                raise CheckFailed(f"{output.name} became infinite or no number by {op.method}", hint="mlc merge, with linear as the method")
            informed += told
            yield from (SetTensor(name, data) for name in (output.name, *output.also))
            run.progress("merge", done, len(outputs))
    run.record("informed", {"method": op.method, "tensors": informed})


def _mean(op: Informed, output: Output, tensors: list[Tensor], known: list[Statistics], shares: list[float]) -> tuple[Tensor, bool]:
    """(the merged tensor, whether statistics had a say): a plain mean where there are none, as for buffers, or norms under regmean."""
    own = [statistics.get(output.name) for statistics in known]
    held = [one for one in own if one is not None]
    if len(held) < len(tensors):
        return fisher_mean(tensors, [torch.zeros_like(x, dtype=torch.float32) for x in tensors], shares), False
    if op.method == "fisher":
        return fisher_mean(tensors, held, shares), True
    transposed = f"{output.name}/transposed" in known[0]
    return reg_mean(tensors, held, op.ratio, transposed=transposed), True


def _shares(op: Informed, known: list[Statistics]) -> list[float]:
    norms = None
    if op.norms:
        norms = [float(torch.stack([x.double().square().sum() for x in one.values()]).sum().sqrt()) for one in known]
    found = fisher_shares(norms, len(known))
    return [share * weight for share, weight in zip(found, op.weights or (1.0,) * len(found), strict=True)]


# --- statistics of one version ---------------------------------------------------------------------------


def _kept(op: Informed, view: ModelView, at: int, run: Run) -> Statistics:
    """The statistics of one version and its data: those that are kept, else computed and kept."""
    compute = _fisher if op.method == "fisher" else _grams

    def fresh() -> bytes:
        items = read_items(op.data[at], "retain")
        if items.digest != op.digests[at]:
            raise InputNotFound(f"{items.name} is another file than the one that was named", hint="start the merge anew")
        run.input(InputRecord("data", items.name, items.digest, items.bytes))
        task = task_of(view)
        module, rows = load_model(view, dtype=torch.float32), task.rows(items)
        return pack(compute(view, module, task, rows))

    return unpack(run.artifact(KINDS[op.method], f"{view.snapshot_id}/{op.digests[at]}/{op.method}", fresh))


def _fisher(view: ModelView, module: nn.Module, task: Task, rows: Rows) -> Statistics:
    """Mean over records of the squared gradient of their loss, by stored tensor."""
    found = importance(module, lambda chosen: task.losses(module, rows, chosen), batches(rows, range(len(rows.lengths))))
    first: dict[int, str] = {}
    for name, stored in state_names(module, view).items():
        first.setdefault(id(slot(module, name)), stored)
    return {first[id(p)]: found[name] for name, p in module.named_parameters() if id(p) in first and name in found}


@torch.no_grad()
def _grams(view: ModelView, module: nn.Module, task: Task, rows: Rows) -> Statistics:
    """X^T X over the tokens of the data, divided by their number, for every linear map whose weight is not looked up as a table, too.

    One record at a time: no padding counts. float32, summed in float64.
    """
    stored = state_names(module, view)
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    found, handles = Statistics(), []
    for path, part in module.named_modules():
        weight = getattr(part, "weight", None)
        turned = type(part).__name__ == "Conv1D"
        if weight is None or not (isinstance(part, nn.Linear) or turned) or id(weight) in tables or f"{path}.weight" not in stored:
            continue
        name = stored[f"{path}.weight"]
        if turned:
            found[f"{name}/transposed"] = torch.ones(1)

        def book(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double()
            sums[name] = x.t() @ x + sums[name] if name in sums else x.t() @ x
            counts[name] = counts.get(name, 0) + len(x)

        handles.append(part.register_forward_pre_hook(book))
    module.eval()
    for chosen in batches(rows, range(len(rows.lengths)), 1):
        task.losses(module, rows, chosen)
    for handle in handles:
        handle.remove()
    return found | {name: (total / counts[name]).float() for name, total in sums.items()}
