"""Measure the curvature of any PyTorch language model: one forward and one backward pass a batch.

Labels are drawn from the model's own softmax: no targets are needed, and what is measured is the KL divergence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pgolf.common import ranks, scratch
from pgolf.common.progress import Counted
from pgolf.errors import CurvatureError
from pgolf.models import blueprint
from pgolf.models.logits import Logits, device_of, first_bad_module, logits_of, original, undisturbed
from pgolf.quant.curvature import across_ranks, softmax
from pgolf.quant.curvature.batches import batches_of, rows_of_a_pass
from pgolf.quant.curvature.store import CONVOLUTION, GRADIENT, SIDES, Curvature, Key, Sums
from pgolf.quant.curvature.trace import Rectangle, Tracer
from pgolf.quant.slices import sides

MAX_FULL_OUTPUTS = 4096  # taller outputs (a head's vocabulary) keep only the diagonal of G
STRIPE = 256  # columns of a Gram matrix at a time: narrower saves no more, for smaller products run slower
SKETCH_TOKENS = 512  # tokens whose summed gradient is one sample of the factors of a parameter that is not followed
SIGN_ROWS = 1 << 24  # random signs drawn at a time: as int64 they are four times the logits of a large vocabulary


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    output_side: bool = True,
    full_output: bool = True,
    plain: bool = False,
    tokens: int | None = None,
    seed: int = 0,
    logits: Callable[..., Any] | str | None = None,
    progress: Counted | None = None,
) -> Curvature:
    """H = E[x xᵀ] and G = E[g gᵀ] of every matrix and bank slice of `model`, in nats per token: see store.py.

    batches: int64 [B, T] token ids, or one tensor [sequences, T], or what a DataLoader gives, see batches.py; many small
    ones make the scale of G more exact.
    tokens: use at most so many. output_side=False skips the backward pass: no G. full_output=False keeps its diagonal.
    plain=True also keeps all of E[g gᵀ], not its diagonal alone, for `Curvature.get(weighted=False)`; Gram matrices are most
    of the work beside the passes, and the factors that quantizers use by default weight each vector by the other side's length.
    logits: a callable or method name that takes ids to logits [B, T, V]; by default `forward_logits`, `logits` or the
    model. progress(tokens done, total or None). The model is left as it was: modes, gradients, hooks, RNG states,
    weights. In a process group every rank gives batches of its own (`tokens` counts for each) and all get the same
    sums. Raises ModelError (no logits) and CurvatureError (the batches, or what the model makes of them).
    """
    blueprint.refuse_unready(model)
    model = original(model)

    def collect() -> Curvature:
        refuse_sharded(model)
        run = logits_of(model, logits)
        collector = Collector(model, output_side=output_side, full_output=full_output, plain=plain)
        generator = torch.Generator(device_of(model)).manual_seed(seed + ranks.rank())
        total = tokens if not isinstance(batches, Tensor) else min(tokens or batches.numel(), batches.numel())
        with undisturbed(model, gradients=output_side):
            for batch in batches_of(batches, tokens):
                ids = run.prepare(batch.to(device_of(model)))
                for few in rows_of_a_pass(ids, run.vocabulary):
                    for part in torch.split(few, 1) if run.alone else _parts(few, collector.curvature):
                        collector.batch(run, part, generator)
                    if progress:
                        progress(collector.curvature.tokens, total)
        return collector.result()

    found = across_ranks.summed(collect)
    if not found.tokens:
        raise CurvatureError("there are no calibration tokens: every batch is empty")
    return found


def refuse_sharded(model: nn.Module) -> None:
    """CurvatureError for parameters that are not whole here: pieces of them would pass for other matrices."""
    for name, parameter in model.named_parameters():
        kind = type(parameter.data).__name__ if type(parameter) is nn.Parameter else type(parameter).__name__
        if "DTensor" in kind or kind == "FlatParameter":
            raise CurvatureError(
                f"parameter {name!r} is sharded over ranks ({kind}), and pgolf has to see products with all of it: calibrate a "
                "plain module, which loads get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))"
            )
        if hasattr(parameter, "ds_id"):  # DeepSpeed's ZeRO-3 marks what it has split
            raise CurvatureError(
                f"parameter {name!r} is split over ranks by DeepSpeed's ZeRO-3: calibrate a model that holds it whole, with "
                "the weights that zero_to_fp32.py writes"
            )
        if parameter.is_meta:
            raise CurvatureError(f"parameter {name!r} is on the meta device and has no values: load the weights first")


def _parts(ids: Tensor, so_far: Curvature) -> Sequence[Tensor]:
    """The rows of a batch a few at a time where whole gradients are all that is known of a parameter: each is one sample."""
    blind = any(key.use == GRADIENT and len(so_far.shapes[key.name]) > 1 for key in so_far.sums)
    return torch.split(ids, max(1, SKETCH_TOKENS // ids.shape[-1])) if blind and ids.dim() == 2 else [ids]


class Last(NamedTuple):
    """The product executed last: see Sink.product. version: of y, when it was made."""

    rectangles: Sequence[Rectangle]
    x: Tensor
    y: Tensor
    version: int
    flat: Callable[[Tensor], Tensor]
    hook: Any


class Collector:
    """The tracer's sink: adds every use's vectors to the sums of the matrix they met."""

    def __init__(self, model: nn.Module, *, output_side: bool, full_output: bool, plain: bool) -> None:
        self._model = model
        self._output_side = output_side
        self._full_output = full_output
        self._plain = plain
        self._has_full: dict[str, bool] = {}  # by parameter, settled at its first product
        self._named = dict(model.named_parameters())
        self._large = sum(p.numel() for p in self._named.values()) >= scratch.MANY
        every = dict(model.named_parameters(remove_duplicate=False))
        first = {id(p): name for name, p in self._named.items()}
        self.curvature = Curvature(
            shapes={name: tuple(p.shape) for name, p in self._named.items()},
            ties={name: first[id(p)] for name, p in every.items() if first[id(p)] != name},
        )
        self._gram: tuple[Tensor, tuple[Any, ...], Tensor] | None = None
        self._last: Last | None = None
        self._squares: dict[str, Tensor] = {}
        self._listening = True  # off while gradients flow that are not the loss's
        self._elementwise: bool | None = None  # whether the last product feeds the logits elementwise, once known

    def batch(self, run: Logits, ids: Tensor, generator: torch.Generator) -> None:
        """One forward and one backward pass over ids [B, T]."""
        with Tracer(self._named, self):
            logits = run(ids)
        if not softmax.all_finite(logits.detach().flatten(0, -2)):
            where = first_bad_module(self._model, run, ids) or "the logits"
            raise CurvatureError(f"the model gives NaN or infinity on a calibration batch, first in {where}")
        if self._output_side:
            self._backward(logits, generator)
        self._gram = self._last = None
        self.curvature.tokens += ids.numel()
        if self._large:
            scratch.give_back()

    def _backward(self, logits: Tensor, generator: torch.Generator) -> None:
        if not logits.requires_grad:
            raise CurvatureError(
                "the model's logits carry no gradient: is there a no_grad in it? (output_side=False needs none)"
            )
        self._exact_head(logits)
        slope = softmax.drawn_gradient(logits.detach().flatten(0, -2), generator).view(logits.shape)
        named = {name: p for name, p in self._named.items() if p.requires_grad}
        hooks = [p.register_hook(partial(self._gradient, name)) for name, p in named.items()]  # type: ignore[no-untyped-call]
        try:
            torch.autograd.grad(logits, list(named.values()), slope, allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
        self.curvature.batches += 1

    def _gradient(self, name: str, gradient: Tensor) -> Tensor:
        """Add up what is wanted of a parameter's gradient, and let go of it: together they are as large as the model."""
        strided = gradient.layout == torch.strided
        dense = gradient.detach() if strided else gradient.detach().to_dense()
        if dense.numel() and dense.dim() > 1:
            squares = _squares(dense)
            self._squares[name] = self._squares.get(name, torch.zeros_like(squares)) + squares
        if dense.numel() and self.curvature.covered(name) != "traced":
            self._sketch(name, dense.float().reshape(sides(tuple(dense.shape))))
        return dense.new_zeros(()).expand(dense.shape) if strided else gradient

    def _sketch(self, name: str, gradient: Tensor) -> None:
        """Add ∇∇ᵀ and ∇ᵀ∇ of every slice [n, R, C] of a parameter whose use is not followed: see store.py."""
        vector = len(self.curvature.shapes[name]) < 2
        for k, slope in enumerate(gradient):
            if not slope.any():
                continue
            sums = self.curvature.sums.setdefault(Key(name, k, GRADIENT), Sums())
            for side, vectors in (("rows", slope.mT), ("cols", slope)):
                low = vectors.shape[1] <= MAX_FULL_OUTPUTS and not vector
                part = _gram(vectors) if low else vectors.square().sum(0)
                have = getattr(sums, side)
                setattr(sums, side, part if have is None else have + part)
            sums.uses += 1

    def product(self, rectangles: Sequence[Rectangle], x: Tensor, y: Tensor, flat: Callable[[Tensor], Tensor]) -> None:
        """See trace.Sink."""
        if x.shape[0] == 0:  # an expert that no token chose
            return
        with torch.no_grad():
            gram = self._shared_gram(x)
        for rectangle in rectangles:
            self._seen(rectangle)
            sums = self._sums(rectangle)
            share = self._share(rectangle)
            side, where = ("rows", rectangle.rows) if rectangle.transposed else ("cols", rectangle.cols)
            self._add(
                sums, side, rectangle, where, gram[rectangle.inputs, rectangle.inputs] * (share * rectangle.scale**2)
            )
            sums.uses += share * x.shape[0]
        if not self._output_side:
            return
        if not y.requires_grad:
            for rectangle in rectangles:
                self.unknown(rectangle.name, "a product under no_grad")
            return

        x = x.detach()

        def hook(g: Tensor) -> None:
            if self._listening:
                self._outputs(rectangles, x, flat(g.detach()))

        self._last = Last(rectangles, x, y, y._version, flat, y.register_hook(hook))  # type: ignore[no-untyped-call]

    def lookup(self, rectangle: Rectangle, ids: Tensor, y: Tensor, without: int | None = None) -> None:
        """See trace.Sink."""
        if ids.numel() == 0:
            return
        self._seen(rectangle)
        sums = self._sums(rectangle, "lookup")
        height = len(range(rectangle.rows.stop)[rectangle.rows])
        rows = ids.flatten() % height
        counts = torch.bincount(rows, minlength=height).float()
        self._add(sums, "rows", rectangle, rectangle.rows, counts)
        sums.uses += ids.numel()
        if self._output_side and y.requires_grad:

            def hook(g: Tensor) -> None:
                flat = g.detach().reshape(-1, g.shape[-1])
                if without is not None:
                    flat = flat * (rows != without)[:, None]
                gram = _gram(flat)
                self._add(sums, "cols", rectangle, rectangle.cols, gram)
                self._add(sums, "far_cols", rectangle, rectangle.cols, gram)  # the other side is one-hot: of length 1
                energy = flat.float().square().sum(1)
                strong = torch.bincount(rows, weights=energy, minlength=height).float()
                self._add(sums, "far_rows", rectangle, rectangle.rows, strong)

            y.register_hook(hook)  # type: ignore[no-untyped-call]

    def unknown(self, name: str, function: str) -> None:
        """See trace.Sink."""
        self.curvature.unknown.setdefault(name, set()).add(function)

    def _outputs(self, rectangles: Sequence[Rectangle], x: Tensor, g: Tensor) -> None:
        """Gradients g [N, O] at the outputs of a product with x [N, I]."""
        whole = any(self._keeps_plain(rectangle) for rectangle in rectangles)
        self._add_outputs(rectangles, _gram(g) if whole else g.float().square().sum(0))
        for rectangle in rectangles:
            inputs, outputs = x[:, rectangle.inputs].float() * rectangle.scale, g[:, rectangle.outputs].float()
            lengths = inputs.square().sum(1, keepdim=True)
            weighted = outputs * lengths.sqrt()
            self._add_outputs(
                [rectangle], _gram(weighted) if self._full(rectangle) else weighted.square().sum(0), far=True
            )
            self._add_inputs(rectangle, inputs, outputs.square().sum(1))

    def _add_inputs(self, rectangle: Rectangle, inputs: Tensor, energy: Tensor) -> None:
        """Add Σ |g|² x xᵀ to the inputs' side of a rectangle; energy [N]: |g|² of every use."""
        side, where = ("far_rows", rectangle.rows) if rectangle.transposed else ("far_cols", rectangle.cols)
        self._add(self._sums(rectangle), side, rectangle, where, _gram(inputs * energy.sqrt()[:, None]))

    def _add_outputs(self, rectangles: Sequence[Rectangle], G: Tensor, *, far: bool = False) -> None:
        """Add Σ g gᵀ [O, O], or its diagonal [O], to the outputs' side of the rectangles; far: G is of the only one."""
        for rectangle in rectangles:
            side, where = ("cols", rectangle.cols) if rectangle.transposed else ("rows", rectangle.rows)
            if far:
                self._add(self._sums(rectangle), f"far_{side}", rectangle, where, G)
                continue
            part = G[rectangle.outputs] if G.dim() == 1 else G[rectangle.outputs, rectangle.outputs]
            part = part.diagonal() if part.dim() == 2 and not self._keeps_plain(rectangle) else part
            self._add(self._sums(rectangle), side, rectangle, where, part)

    def _exact_head(self, logits: Tensor) -> None:
        """Add the exact covariance of the gradients at the last product, and drop the drawn ones, where that is right.

        Between the head's product and the logits there is at most an elementwise function (a softcap, a temperature), so
        the covariance of its gradients is known, diag(p) - p pᵀ; drawn labels would give rare pieces of the vocabulary
        either nothing or far too much. Whether the function is elementwise is tested, not assumed.
        """
        if self._last is None:
            return
        last = self._last
        self._listening = False
        slope = self._slope(logits, last)
        self._listening = True
        if slope is None:
            return
        last.hook.remove()
        with torch.no_grad():
            self._add_head(last, logits.detach().flatten(0, -2), last.flat(slope))

    def _add_head(self, last: Last, logits: Tensor, slope: Tensor) -> None:
        """The head's outputs, whose gradients c·(p − onehot) [N, V] have the covariance diag(c²p) − (cp)(cp)ᵀ.

        p: the softmax of logits [N, V]; c: slope [N, V].
        """
        plain = any(self._keeps_plain(rectangle) for rectangle in last.rectangles)
        full = plain or any(self._full(rectangle) for rectangle in last.rectangles)
        lengths = [(last.x[:, r.inputs].float() * r.scale).square().sum(1, keepdim=True) for r in last.rectangles]
        energy = [torch.zeros(len(logits), dtype=torch.float32, device=logits.device) for _ in last.rectangles]
        for part in softmax.blocks(len(logits), 1 if full else logits.shape[1]):  # covariances want many rows at a time
            p, c = logits[part].float().softmax(-1), slope[part].float()
            cp = c * p
            variance = c * cp * (1 - p)
            G = _softmax_covariance(cp, variance.sum(0)) if plain else variance.sum(0)
            self._add_outputs(last.rectangles, G)
            for rectangle, length, strength in zip(last.rectangles, lengths, energy, strict=True):
                mine, length = variance[:, rectangle.outputs], length[part]
                strength[part] = mine.sum(1)
                G = (mine * length).sum(0)
                if self._full(rectangle):
                    G = _softmax_covariance(cp[:, rectangle.outputs] * length.sqrt(), G)
                self._add_outputs([rectangle], G, far=True)
        for rectangle, strength in zip(last.rectangles, energy, strict=True):
            self._add_inputs(rectangle, last.x[:, rectangle.inputs].float() * rectangle.scale, strength)

    def _slope(self, logits: Tensor, last: Last) -> Tensor | None:
        """∂logits/∂y [as y], where the logits are an elementwise function of y; None otherwise.

        The first batch tests it: only a diagonal Jacobian J has Jᵀs = s·(Jᵀ1) for random signs s.
        """
        y = last.y
        alike = y.numel() == logits.numel() and y.shape[-1] == logits.shape[-1] and y._version == last.version
        if self._elementwise is False or not alike:
            return None
        slope = _pulled(logits, y, torch.ones_like(logits))
        if self._elementwise is None:
            signs = _signs(logits)
            error = (_pulled(logits, y, signs) - slope * signs.reshape(slope.shape).to(slope)).abs().max()
            self._elementwise = bool(slope.any()) and bool(error <= 1e-2 * slope.abs().max())
        return slope if self._elementwise else None

    def _full(self, rectangle: Rectangle) -> bool:
        """Whether all of G is kept of a rectangle's outputs: a table that is looked up too can use its diagonal only."""
        looked_up = Key(rectangle.name, rectangle.index, "lookup") in self.curvature.sums
        low = self._outputs_of(rectangle) <= MAX_FULL_OUTPUTS
        return self._has_full.setdefault(rectangle.name, self._full_output and low and not looked_up)

    def _keeps_plain(self, rectangle: Rectangle) -> bool:
        """Whether all of the unweighted G is kept: where rows are inputs, gptq feeds errors along the outputs."""
        return self._full(rectangle) and (self._plain or rectangle.transposed)

    def _share(self, rectangle: Rectangle) -> float:
        """How many of the matrix's outputs the rectangle has: parts that share them out make up one use together."""
        used = rectangle.cols if rectangle.transposed else rectangle.rows
        outputs = self._outputs_of(rectangle)
        return len(range(outputs)[used]) / outputs

    def _outputs_of(self, rectangle: Rectangle) -> int:
        """Outputs of the matrix that the rectangle lies in."""
        return _key(rectangle).length(self.curvature.shapes[rectangle.name], "cols" if rectangle.transposed else "rows")

    def _sums(self, rectangle: Rectangle, use: str = "") -> Sums:
        return self.curvature.sums.setdefault(_key(rectangle, use), Sums())

    def _add(self, sums: Sums, side: str, rectangle: Rectangle, where: slice, part: Tensor) -> None:
        """Add to the stretch `where` of one side."""
        have = getattr(sums, side)
        size = _key(rectangle).length(self.curvature.shapes[rectangle.name], side)
        if have is None:
            shape = (size,) * part.dim()
            filed = self._large and part.device.type == "cpu"
            have = (
                torch.from_numpy(scratch.zeros(shape, np.float32))
                if filed
                else torch.zeros(shape, dtype=torch.float32, device=part.device)
            )
            setattr(sums, side, have)
        have[(where,) * part.dim()] += part
        if self._large:
            scratch.worked_on(4 * have.numel())

    def _seen(self, rectangle: Rectangle) -> None:
        bounds = (
            rectangle.rows.start,
            rectangle.rows.stop,
            rectangle.rows.step,
            rectangle.cols.start,
            rectangle.cols.stop,
            rectangle.cols.step,
        )
        used, shape = self.curvature.used.setdefault(rectangle.name, set()), self.curvature.shapes[rectangle.name]
        if not rectangle.whole or len(shape) != 3:
            used.add((rectangle.index, *bounds))
        elif bounds[3:] == (0, prod(shape[1:]), 1):  # whole slices
            used |= {(k, 0, shape[1], 1, 0, shape[2], 1) for k in range(shape[0])[rectangle.rows]}

    def _shared_gram(self, x: Tensor) -> Tensor:
        """Σ x xᵀ, once for q, k and v: kept until another tensor comes. It is held, so its address stays its own."""
        key = (x.data_ptr(), x.shape, x.stride(), x._version)
        if self._gram is None or self._gram[1] != key:
            self._gram = (x, key, _gram(x))
        return self._gram[2]

    def result(self) -> Curvature:
        """The sums, where the model is; CurvatureError where a gradient overflowed."""
        for key, sums in self.curvature.sums.items():
            for side in SIDES:
                found = getattr(sums, side)
                if found is not None and not found.isfinite().all():
                    raise CurvatureError(f"activations or gradients at {key.name} overflow: calibrate in float32")
        self.curvature.squares = {name: squares.tolist() for name, squares in self._squares.items()}
        return self.curvature


def _squares(gradient: Tensor) -> Tensor:
    """float64 [n]: the sum of the squares of every slice."""
    slices = gradient.reshape(sides(tuple(gradient.shape))).flatten(1)
    parts = [slices[:, part].float().square().sum(1).double() for part in scratch.pieces(slices.shape[1], 1)]
    return torch.stack(parts).sum(0)


def _key(rectangle: Rectangle, use: str = "") -> Key:
    """Of the sums that a use of the rectangle adds to."""
    usual = CONVOLUTION if rectangle.whole else "transposed" if rectangle.transposed else "linear"
    return Key(rectangle.name, rectangle.index, use or usual)


def _signs(like: Tensor) -> Tensor:
    """Random signs of the shape and dtype of `like`, the same for the same shape."""
    generator, signs = torch.Generator().manual_seed(0), torch.empty_like(like, requires_grad=False)
    for part in torch.split(signs.view(-1), SIGN_ROWS):
        part.copy_(torch.randint(2, part.shape, generator=generator))
    return signs.mul_(2).sub_(1)


def _softmax_covariance(cp: Tensor, variance: Tensor) -> Tensor:
    """Σ_n diag(c²p) − (cp)(cp)ᵀ over rows c·p [N, V]; its diagonal is `variance`, Σ_n c²p(1 − p): the difference of sums
    would cancel where the model is sure."""
    covariance = -_gram(cp)
    covariance.diagonal().copy_(variance)
    return covariance


def _gram(x: Tensor) -> Tensor:
    """Σ x xᵀ over the rows of x [N, I]: float32 [I, I]. Only the lower half is multiplied out."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        x = x.float()
        out = x.new_empty(x.shape[1], x.shape[1])
        for start in range(0, len(out), STRIPE):
            stripe = slice(start, start + STRIPE)
            out[stripe, : stripe.stop] = x[:, stripe].mT @ x[:, : stripe.stop]
            out[:start, stripe] = out[stripe, :start].mT
        return out


def _pulled(logits: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """Jᵀv of the function from y to the logits; zeros where there is none."""
    (out,) = torch.autograd.grad(logits, y, v, retain_graph=True, allow_unused=True)
    return torch.zeros_like(y) if out is None else out
