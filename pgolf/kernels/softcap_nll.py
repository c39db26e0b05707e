"""`softcap_nll`: the negative log-likelihood of each target, in float32, from logits as the head wrote them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.kernels.device import jit, tl, triton
from pgolf.kernels.launch import FLOATS, launch, require

BLOCK = 8192  # logits of a row in registers at once: 32 a thread
WARPS = 8
CHUNK_BYTES = 1 << 26  # of logits that exist at once: enough rows to keep a GPU busy with the next matmul


def softcap_nll_reference(logits: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    """See `softcap_nll`."""
    exact = logits.float()
    if softcap is not None:
        exact = softcap * torch.tanh(exact / softcap)
    return F.cross_entropy(exact, targets, reduction="none")


def softcap_nll(logits: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    """float32 [N]: −log softmax(softcap · tanh(logits / softcap))[target], in nats; without a softcap, of the logits.

    logits: [N, V] of any float dtype, rows apart by any stride; the kernel reads them once, and float32
    copies exist in registers only. targets: int64 [N], of any stride; one outside the vocabulary reads nothing and gives
    NaN on a GPU, as do logits that are not finite. Raises ValueError for operands of another kind.
    """
    logits = logits.float() if logits.dtype == torch.float64 else logits
    check(logits, targets)
    if logits.is_cuda:
        return launch_softcap_nll(logits, targets, softcap)
    return softcap_nll_reference(logits, targets, softcap)


def head_nll(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    """float32 [N]: `softcap_nll` of hidden [N, D] @ weight [V, D].T, some rows at a time. targets: int64 [N].

    No more than CHUNK_BYTES of logits exist at once.
    """
    rows = max(1, CHUNK_BYTES // (weight.shape[0] * hidden.element_size()))
    parts = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    return torch.cat([softcap_nll(F.linear(some, weight), wanted, softcap) for some, wanted in parts])


def check(logits: Tensor, targets: Tensor) -> None:
    """Raises ValueError for what is no logits [N, V] and targets [N] of one device."""
    require("logits", logits, (None, None), FLOATS, logits, contiguous=False)
    require("targets", targets, (logits.shape[0],), (torch.int64,), logits, contiguous=False)


def launch_softcap_nll(logits: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    """The kernel, whatever the device."""
    rows, vocab = logits.shape
    out = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows == 0:
        return out
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    launch(
        softcap_nll_kernel, (rows,), logits, targets.contiguous(), out, logits.stride(0), softcap or 0.0,
        VOCAB=vocab, CAPPED=softcap is not None, BLOCK=min(triton.next_power_of_2(vocab), BLOCK), num_warps=WARPS,
    )  # fmt: skip
    return out


@jit
def softcap_nll_kernel(  # type: ignore[no-untyped-def]  # Triton gives the types
    logits, targets, out, stride, softcap,
    VOCAB: tl.constexpr, CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row of logits a program, its maximum and sum kept while it goes; see `softcap_nll`."""
    row = tl.program_id(0).to(tl.int64)
    highest = -float("inf")
    total = 0.0
    for start in range(0, VOCAB, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < VOCAB
        x = tl.load(logits + row * stride + column, inside, other=-float("inf")).to(tl.float32)
        if CAPPED:
            x = tl.where(inside, capped(x, softcap), -float("inf"))
        top = tl.maximum(highest, tl.max(x, 0))
        total = total * tl.exp(highest - top) + tl.sum(tl.exp(x - top), 0)
        highest = top
    target = tl.load(targets + row)
    known = (target >= 0) & (target < VOCAB)
    chosen = tl.load(logits + row * stride + target, known, other=float("nan")).to(tl.float32)
    if CAPPED:
        chosen = capped(chosen, softcap)
    tl.store(out + row, highest + tl.log(total) - chosen)


@jit
def capped(x, softcap):  # type: ignore[no-untyped-def]  # Triton gives the types
    """softcap · tanh(x / softcap), from exp alone: the interpreter has no libdevice."""
    return softcap * (1.0 - 2.0 / (tl.exp(x * (2.0 / softcap)) + 1.0))
