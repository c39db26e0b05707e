"""What a weight error costs: the Kronecker factors of every matrix's Fisher information, summed, merged and kept.

Derivation. Perturb a matrix by E and let L be the mean loss over N tokens, its labels drawn from the model's softmax.
The KL divergence from the unperturbed model is ½ vec(E)ᵀ F vec(E) + O(E³) nats per token, with the Fisher matrix
F = (1/N) Σ_n E[∇ℓ_n ∇ℓ_nᵀ]. Scores of different positions are uncorrelated, so with the gradient of the *summed* loss
∇ = Σ_u g_u x_uᵀ, where u runs over all U times the matrix met a vector x_u (positions × loops) and g_u = ∂(Σℓ)/∂y_u,
F = E[vec ∇ vec ∇ᵀ] / N. K-FAC (Martens & Grosse 2015; "expand" in Eschenhagen et al. 2023) drops the terms between
different u and takes g as independent of x:

    F ≈ (1/N) Σ_u E[g gᵀ] ⊗ E[x xᵀ] = (Σ_u g gᵀ / U) ⊗ (Σ_u x xᵀ / N) = G ⊗ H,    rise ≈ ½ tr(G E H Eᵀ).

H sums over the uses of a token: a layer that a loop uses three times counts three times, with G or without.
A lookup y_u = W[v_u] has the one-hot vector of v_u for x: its factors are diag(count_v / N) over the rows and
Σ g gᵀ / U over the columns. Several uses of one matrix (a tied head) add terms R_k ⊗ C_k; `MatrixCurvature` is the one
product with the same two partial traces, R = Σ_k tr(C_k) R_k and C = Σ_k tr(R_k) C_k over Σ_k tr(R_k) tr(C_k): the cost
of an error that is equally large all along a row, or all down a column, is exactly that of the sum.

A matrix whose use is not followed (an autograd.Function of its own, a fused attention, an elementwise gain) still has a
gradient, and the product with the same partial traces as F comes from it alone: E[∇ᵀ∇] = tr(G)·H, E[∇∇ᵀ] = tr(H)·G.

The dropped terms matter where attention averages over positions: the bare product foresees 0.35 to 0.6 of what errors in
the value matrices of a small trained model cost. |∇|² of a batch estimates N·tr F with all its terms, so `get` scales G
until tr G · tr H agrees. One batch scatters by 10 to 30%, so n of them correct by the power n / (n + 1).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pgolf.common.files import replacing
from pgolf.errors import CurvatureError
from pgolf.quant.slices import matrix_shape, sides

FORMAT = 3  # of the file that `save` writes; 1 lacks the sums of gradients, 2 those of vectors and convolutions


@dataclass(frozen=True)
class MatrixCurvature:
    """½·tr(G E H Eᵀ) is the rise of the loss, in nats per token, that a weight error E [R, C] makes.

    H: float32 [C, C], of the inputs x. G: float32 [R] (a diagonal), [R, R] or None (= 1): of the gradients g at the
    outputs, with labels drawn from the model's own softmax. plain: E[x xᵀ] alone, where H is weighted by |g|².
    """

    H: Tensor
    G: Tensor | None = None
    plain: Tensor | None = None

    @property
    def inputs(self) -> Tensor:
        """E[x xᵀ] [C, C], as the contest's GPTQ knows it."""
        return self.H if self.plain is None else self.plain

    @property
    def num_bytes(self) -> int:
        """Of all sides together."""
        return sum(side.numel() * side.element_size() for side in (self.H, self.G, self.plain) if side is not None)


class Key(NamedTuple):
    """Which sums: parameter, number of the slice of a bank (0 in a matrix), and how it is used.

    use: "linear" (rows are outputs), "transposed" (rows are inputs), "lookup" (rows are looked up), CONVOLUTION (rows are
    outputs, columns [I·k...] inputs), or GRADIENT: the use is not followed, and what is summed over batches is ∇∇ᵀ (rows)
    and ∇ᵀ∇ (cols); of a vector ∇² (rows) and its sum.
    """

    name: str
    k: int
    use: str

    def length(self, shape: tuple[int, ...], side: str) -> int:
        """How long a side of the sums is in a parameter of this shape."""
        _, rows, cols = (1, shape[0], prod(shape[1:])) if self.use == CONVOLUTION else sides(shape)
        return rows if side.endswith("rows") else cols


SIDES = ("rows", "cols", "far_rows", "far_cols")
GRADIENT = "gradient"
CONVOLUTION = "convolution"
VECTOR_PRIOR = 2.0  # samples that the mean of a vector's squared gradients counts for in each of them


@dataclass
class Sums:
    """Sums over `uses` vectors, not means, so that merging is adding; None if not measured.

    rows: float32 [R, R] or [R] (a diagonal); cols: [C, C] or [C].
    far_rows, far_cols: of the same shapes, every vector weighted by the squared length of the one on the other side.
    A part that has a share of the matrix's outputs counts for this share of a use, and its inputs' side likewise.
    """

    rows: Tensor | None = None
    cols: Tensor | None = None
    uses: float = 0.0
    far_rows: Tensor | None = None
    far_cols: Tensor | None = None

    def __iadd__(self, other: Sums) -> Sums:
        for side in SIDES:
            setattr(self, side, _added(getattr(self, side), getattr(other, side)))
        self.uses += other.uses
        return self


def _added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return a if b is None else b.clone()
    if a.shape != b.shape:
        raise CurvatureError("curvatures of different kinds (full and diagonal) cannot be merged: calibrate both alike")
    return a + b


WIDEST = 8192  # columns of a bank as one matrix: beyond, factoring their H would take longer than it is worth
MAX_SLICES = 1 << 16  # of a bank in a file
Rectangle = tuple[int, int, int, int, int, int, int]  # slice; start, stop, step of its rows and of its columns


@dataclass
class Curvature:
    """The curvature of every matrix of a model, over `tokens` tokens.

    shapes: of every parameter, by name. sums: see Sums. used: which rectangles of a parameter were seen in use.
    unknown: functions through which a parameter could not be followed. ties: other names of a parameter -> its first.
    squares: Σ over `batches` batches of |∇|² in every slice, see above; none were measured without the output side.
    notes: what a user should know of the text that it was collected on.
    """

    tokens: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)
    sums: dict[Key, Sums] = field(default_factory=dict)
    used: dict[str, set[Rectangle]] = field(default_factory=dict)
    unknown: dict[str, set[str]] = field(default_factory=dict)
    squares: dict[str, list[float]] = field(default_factory=dict)
    batches: int = 0
    notes: list[str] = field(default_factory=list)

    def get(self, name: str, *, weighted: bool = True, scaled: bool = True) -> list[MatrixCurvature | None] | None:
        """One curvature for every slice of the parameter (one for a matrix), None where a slice was never used.

        None if the parameter has no curvature at all. A tied name may be asked for. Rows are the stored matrix's rows
        even where these are inputs (`transposed`). weighted=False takes x and g as independent: H = E[x xᵀ], G = E[g gᵀ].
        scaled=False leaves out the correction for terms between positions.
        """
        name, seen = self.ties.get(name, name), self.seen(name)
        if not seen:
            return None
        slices = 1 if self._convolved(name) else sides(self.shapes[name])[0]
        return [self._slice(name, k, weighted, scaled) if k in seen else None for k in range(slices)]

    def _slice(self, name: str, k: int, weighted: bool, scaled: bool) -> MatrixCurvature | None:
        followed = {key: sums for key, sums in sorted(self.sums.items()) if key[:2] == (name, k)}
        gradient = followed.pop(Key(name, k, GRADIENT), None)
        if gradient is not None and self.covered(name) != "traced":
            return (_of_vector if len(self.shapes[name]) < 2 else _from_gradients)(gradient, self.tokens)
        terms = [sums for sums in followed.values() if sums.uses]
        if not terms:
            return None
        found = _kronecker(terms, self.tokens, min(followed).length(self.shapes[name], "cols"))
        if weighted and (better := _weighted(terms, self.tokens)):
            found = replace(better, plain=found.H)
        if not scaled or name not in self.squares or found.G is None:
            return found
        squares = sum(self.squares[name]) if self._convolved(name) else self.squares[name][k]
        product, whole = _trace(found.G) * _trace(found.H), squares / self.tokens
        if product <= 0 or whole <= 0:
            return found
        return replace(found, G=found.G * (whole / product) ** (self.batches / (self.batches + 1)))

    def seen(self, name: str) -> set[int]:
        """The slices of the parameter that were used, 0 of a matrix. A tied name may be asked for."""
        name = self.ties.get(name, name)
        if self._convolved(name):
            return set(range(self.shapes[name][0]))
        return {key.k for key, sums in self.sums.items() if key.name == name and sums.uses}

    def matrices(self, name: str) -> list[MatrixCurvature | None] | None:
        """As `get`, for the matrices that the parameter is quantized as: see slices.py."""
        name = self.ties.get(name, name)
        found = self.get(name)
        stack = matrix_shape(self.shapes[name]) if found else None
        if found is None or stack is None or stack[0] == len(found):
            return found
        if len(found) == 1 and found[0] is not None:
            return _unstacked(found[0], stack)
        return [_flattened(found, self.shapes[name])] if stack[2] <= WIDEST else None

    def _convolved(self, name: str) -> bool:
        """Whether the sums of a parameter are those of one matrix [O, I·k...]."""
        return self._uses(name) == {CONVOLUTION} and self.covered(name) == "traced"

    def _uses(self, name: str) -> set[str]:
        """The ways in which a parameter was followed."""
        return {key.use for key in self.sums if key.name == name} - {GRADIENT}

    @property
    def unreached(self) -> set[str]:
        """Matrices and banks that no token came to (the expert that none chose): nothing tells what an error costs."""
        reached = {key.name for key, sums in self.sums.items() if sums.uses} | self.unknown.keys()
        reached |= {name for name, squares in self.squares.items() if any(squares)}
        return {name for name, shape in self.shapes.items() if len(shape) > 1} - reached

    @property
    def transposed(self) -> list[str]:
        """Parameters whose rows are inputs (y = x @ w): to feed errors on along inputs, quantize w.mT with G for H."""
        return sorted({key.name for key in self.sums if key.use == "transposed"})

    @property
    def coverage(self) -> dict[str, str]:
        """For every parameter "traced", "partly", "untraced", "never used" or "not a matrix"."""
        return {name: self.covered(name) for name in self.shapes}

    def covered(self, name: str) -> str:
        """How much of a parameter's use was followed: see `coverage`."""
        shape, used = self.shapes[name], self.used.get(name, set())
        if len(shape) < 2:
            return "not a matrix"
        if not used:
            return "untraced" if self.unknown.get(name) else "never used"
        mixed = CONVOLUTION in (uses := self._uses(name)) and len(uses) > 1
        return "partly" if mixed or self.unknown.get(name) or not _covers(used, shape) else "traced"

    def merge(self, others: Iterable[Curvature]) -> Curvature:
        """The curvature over everybody's tokens: sums add up, in any order. CurvatureError for different models."""
        total = Curvature(shapes=dict(self.shapes), ties=dict(self.ties))
        for part in (self, *others):
            if part.shapes != self.shapes:
                raise CurvatureError(f"curvatures of different models cannot be merged: {_difference(self, part)}")
            total.tokens += part.tokens
            total.batches += part.batches
            total.notes += [note for note in part.notes if note not in total.notes]
            for name, squares in part.squares.items():
                so_far = total.squares.get(name, [0.0] * len(squares))
                total.squares[name] = [a + b for a, b in zip(so_far, squares, strict=True)]
            for key, sums in part.sums.items():
                total.sums.setdefault(key, Sums()).__iadd__(sums)
            for name, rectangles in part.used.items():
                total.used.setdefault(name, set()).update(rectangles)
            for name, functions in part.unknown.items():
                total.unknown.setdefault(name, set()).update(functions)
        return total

    def save(self, path: str | Path) -> None:
        """Write safetensors, the same bytes every time, to a temporary sibling that then takes the place of `path`."""
        tensors: dict[str, Tensor] = {}
        for i, (_, sums) in enumerate(sorted(self.sums.items())):
            for side in SIDES:
                if (value := getattr(sums, side)) is not None:
                    tensors[f"{i:06d}.{side}"] = value.detach().cpu().contiguous()
        told = {"pgolf.curvature": json.dumps(self._header(), sort_keys=True)}
        path = Path(path)
        try:
            with replacing(path) as file:
                for part in _safetensors(tensors, told):
                    file.write(part)
        except OSError as error:
            raise CurvatureError(f"cannot write {path}: {error.strerror}") from error

    def _header(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "tokens": self.tokens,
            "batches": self.batches,
            "squares": self.squares,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "ties": self.ties,
            "sums": [[*key, sums.uses] for key, sums in sorted(self.sums.items())],
            "used": {name: sorted(rectangles) for name, rectangles in self.used.items()},
            "unknown": {name: sorted(functions) for name, functions in self.unknown.items()},
        } | ({"notes": self.notes} if self.notes else {})

    @staticmethod
    def load(path: str | Path, device: torch.device | str = "cpu") -> Curvature:
        """Read what `save` wrote, onto `device`; CurvatureError if it is something else, damaged or of a later version."""
        try:
            with safe_open(path, "pt", device=str(device)) as file:
                text = (file.metadata() or {}).get("pgolf.curvature")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise CurvatureError(f"{path} cannot be read as a curvature file: {error}") from error
        if text is None:
            raise CurvatureError(f"{path} is a safetensors file, but not one that `pgolf calibrate` wrote")
        try:
            return _parsed(json.loads(text), tensors)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
            raise CurvatureError(f"{path} is a damaged curvature file: {error}") from error


def _safetensors(tensors: Mapping[str, Tensor], told: Mapping[str, str]) -> Iterator[Any]:
    """A safetensors file of float32 tensors in parts: its own writer would hold all of them in memory once more."""
    head: dict[str, Any] = {"__metadata__": dict(told)}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + 4 * tensors[name].numel()
        head[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    data = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    data += b" " * (-len(data) % 8)
    yield len(data).to_bytes(8, "little") + data
    for name in sorted(tensors):
        yield tensors[name].numpy().data


def _parsed(header: Any, tensors: Mapping[str, Tensor]) -> Curvature:
    if header["format"] not in (1, 2, FORMAT):
        raise ValueError(f"format {header['format']}, this version reads 1 to {FORMAT}")
    out = Curvature(
        tokens=int(header["tokens"]),
        shapes={name: _shape(shape) for name, shape in header["shapes"].items()},
        ties=dict(header["ties"]),
        used={name: {_rectangle(r) for r in rectangles} for name, rectangles in header["used"].items()},
        unknown={name: set(functions) for name, functions in header["unknown"].items()},
        squares={name: [float(v) for v in squares] for name, squares in header["squares"].items()},
        batches=int(header["batches"]),
        notes=[str(note)[:1000] for note in list(header.get("notes", []))[:20]],
    )
    _check_numbers(out)
    left = dict(tensors)
    for i, (name, index, use, uses) in enumerate(header["sums"]):
        sums, key = Sums(uses=float(uses)), Key(name, int(index), str(use))
        if not 0 <= sums.uses < math.inf:
            raise ValueError(f"{name} was used {uses} times")
        for side in SIDES:
            value, size = left.pop(f"{i:06d}.{side}", None), key.length(out.shapes[name], side)
            if value is not None and (value.shape not in ((size,), (size, size)) or value.dtype != torch.float32):
                raise ValueError(f"{name} has sums of shape {list(value.shape)} for a side of {size}")
            setattr(sums, side, value)
        out.sums[key] = sums
    if left:
        raise ValueError(f"{len(left)} tensors belong to nothing")
    return out


def _check_numbers(found: Curvature) -> None:
    if not 0 < found.tokens < 1 << 53 or not 0 <= found.batches < 1 << 53:
        raise ValueError(f"it says {str(found.tokens)[:20]} tokens in {str(found.batches)[:20]} batches")
    for name, squares in found.squares.items():
        shape = found.shapes[name]
        if len(squares) != sides(shape)[0] or not all(map(math.isfinite, squares)):
            raise ValueError(f"{name} has other gradients than slices")


def _shape(sizes: Any) -> tuple[int, ...]:
    """ValueError unless it is the shape of a parameter; a bank has fewer slices than MAX_SLICES."""
    shape = _integers(sizes)
    if min(shape, default=0) < 0 or prod(shape) >= 1 << 40 or (len(shape) == 3 and shape[0] >= MAX_SLICES):
        raise ValueError(f"{str(sizes)[:80]} is the shape of no parameter")
    return shape


def _rectangle(bounds: Any) -> Rectangle:
    slice_, r0, r1, r2, c0, c1, c2 = _integers(bounds)
    return slice_, r0, r1, r2, c0, c1, c2


def _integers(values: Any) -> tuple[int, ...]:
    if not all(type(v) is int for v in values):
        raise ValueError(f"{str(values)[:80]} are not all integers")
    return tuple(values)


def _difference(a: Curvature, b: Curvature) -> str:
    names = [name for name in sorted(a.shapes.keys() | b.shapes.keys()) if a.shapes.get(name) != b.shapes.get(name)]
    return f"{names[0]} is {a.shapes.get(names[0])} in one and {b.shapes.get(names[0])} in the other"


def _covers(rectangles: set[Rectangle], shape: tuple[int, ...]) -> bool:
    """Whether every element of a matrix or bank lies in one of the rectangles."""
    n, R, C = sides(shape)
    if len({r[0] for r in rectangles if r[1:] == (0, R, 1, 0, C, 1)}) == n:
        return True
    seen = torch.zeros(n, R, C, dtype=torch.bool)
    for k, *bounds in rectangles:
        seen[k, slice(*bounds[:3]), slice(*bounds[3:])] = True
    return int(seen.sum()) == prod(shape)


def _weighted(terms: list[Sums], tokens: int) -> MatrixCurvature | None:
    """The product with the partial traces of Σ_u (x xᵀ) ⊗ (g gᵀ) itself, where all terms were measured so.

    They are Σ |g|² x xᵀ and Σ |x|² g gᵀ, both of trace Σ |x|² |g|²: strong inputs that meet strong gradients count more.
    On golf3m this won 0.02 to 0.045 bits a weight at equal loss over taking x and g as independent.
    """
    R = _alike([_mean(t.far_rows, tokens) for t in terms if t.far_rows is not None])
    C = _alike([_mean(t.far_cols, tokens) for t in terms if t.far_cols is not None])
    if len(R) != len(terms) or len(C) != len(terms):
        return None
    rows, cols = sum(R[1:], R[0]), sum(C[1:], C[0])
    total = _trace(rows)
    if total <= 0:
        return None
    return MatrixCurvature((cols.diag() if cols.dim() == 1 else cols).float(), (rows / total).float())


def _from_gradients(term: Sums, tokens: int) -> MatrixCurvature | None:
    """The factors from whole gradients: E[∇ᵀ∇] = tr(G)·H and E[∇∇ᵀ] = tr(H)·G, scaled so that tr(H)·tr(G) is E|∇|²
    a token (the sketch of YAQA, arXiv 2505.22988, section 3)."""
    assert term.rows is not None
    assert term.cols is not None
    rows = _shrunk(term.rows.double(), term.uses * _rank(term.cols))
    cols = _shrunk(term.cols.double(), term.uses * _rank(term.rows))
    total = _trace(rows)
    if total <= 0:
        return None
    H = cols / tokens
    return MatrixCurvature((H.diag() if H.dim() == 1 else H).float(), (rows / total).float())


def _of_vector(term: Sums, tokens: int) -> MatrixCurvature | None:
    """The diagonal E[∇²] of a vector, as the rows of one column; few samples lean on their mean."""
    assert term.rows is not None
    mean = float(term.rows.double().mean())
    if mean <= 0:
        return None
    squares = (term.uses * term.rows.double() + VECTOR_PRIOR * mean) / (term.uses + VECTOR_PRIOR)
    return MatrixCurvature(torch.ones(1, 1, dtype=torch.float32, device=squares.device), (squares / tokens).float())


def _shrunk(m: Tensor, samples: float) -> Tensor:
    """A full sum with its off-diagonals shrunk as so few samples deserve (OAS: Chen et al., arXiv 0907.4698, equation 23,
    toward the diagonal); a diagonal as it is."""
    if m.dim() == 1:
        return m
    scale = m.diagonal().clamp(min=1e-300).rsqrt()
    whole, p = float((m * scale[:, None] * scale).square().sum()), len(m)
    share = min(1.0, (whole * (1 - 2 / p) + p * p) / max((samples + 1 - 2 / p) * (whole - p), 1e-300))
    return (1 - share) * m + share * m.diagonal().diag()


def _rank(m: Tensor) -> float:
    """tr(m)² / tr(m²): how many directions of equal strength a sum is worth."""
    return _trace(m) ** 2 / max(float(m.square().sum()), 1e-300)


def _kronecker(terms: list[Sums], tokens: int, width: int) -> MatrixCurvature:
    """The single product with the partial traces of the terms' sum; see the derivation above."""
    full = [t for t in terms if t.rows is not None and t.cols is not None]
    if not full:
        return _one_sided(terms, tokens, width)
    R = _alike([_mean(t.rows, t.uses) for t in full if t.rows is not None])
    C = _alike([_mean(t.cols, tokens) for t in full if t.cols is not None])
    r, c = [_trace(m) for m in R], [_trace(m) for m in C]
    total = sum(a * b for a, b in zip(r, c, strict=True))
    share = [a / max(sum(r), 1e-300) for a in r]  # H is a mean of the terms', so that G carries the unit of g²
    H = sum((s * m for s, m in zip(share, C, strict=True)), torch.zeros_like(C[0]))
    G = sum((b * m for b, m in zip(c, R, strict=True)), torch.zeros_like(R[0])) * (sum(r) / max(total, 1e-300))
    return MatrixCurvature((H.diag() if H.dim() == 1 else H).float(), G.float())


def _one_sided(terms: list[Sums], tokens: int, width: int) -> MatrixCurvature:
    """Without gradients: the inputs' side alone, with 1 for the other."""
    cols = [t.cols for t in terms if t.cols is not None]
    if cols:
        H = sum(cols[1:], cols[0]) / tokens
        return MatrixCurvature(H.diag() if H.dim() == 1 else H)
    rows = _alike([t.rows for t in terms if t.rows is not None])
    G = sum(rows[1:], rows[0]) / tokens
    return MatrixCurvature(torch.eye(width, dtype=torch.float32, device=G.device), G)


def _flattened(slices: list[MatrixCurvature | None], shape: tuple[int, ...]) -> MatrixCurvature:
    """Of a bank [n, R, C] as one matrix [n, R·C], whose rows are the slices: their G_k ⊗ H_k are the rows' costs.

    The single product with the same two partial traces; slices that were never used cost nothing.
    """
    n, rows, cols = shape
    place = next(found.H.device for found in slices if found is not None)
    costs, across = (torch.zeros(size, dtype=torch.float32, device=place) for size in ((n,), (rows, cols, rows, cols)))
    for k, found in enumerate(slices):
        if found is None:
            continue
        G = torch.ones(rows, dtype=torch.float32, device=place) if found.G is None else found.G
        G = G.diag() if G.dim() == 1 else G
        costs[k] = _trace(G) * _trace(found.H)
        across += torch.einsum("ij,kl->ikjl", G, found.H)
    total = float(costs.sum())
    H = across.reshape(rows * cols, rows * cols)
    return MatrixCurvature(H, costs / total if total else costs)


def _unstacked(whole: MatrixCurvature, stack: tuple[int, int, int]) -> list[MatrixCurvature | None]:
    """Of one matrix [n, R·C] as a bank [n, R, C]: for each slice the product with the same partial traces."""
    n, rows, cols = stack
    four = whole.H.reshape(rows, cols, rows, cols)
    H, outputs = torch.einsum("ijik->jk", four), torch.einsum("ijkj->ik", four)
    G = torch.ones(n, dtype=torch.float32, device=H.device) if whole.G is None else whole.G
    costs = G.diagonal() if G.dim() == 2 else G
    total = max(_trace(H), 1e-300)
    return [MatrixCurvature(H, outputs * (float(cost) / total)) for cost in costs]


def mean_of(found: list[MatrixCurvature]) -> MatrixCurvature:
    """The mean of curvatures of one shape."""
    G = [m.G for m in found if m.G is not None]
    plain = [m.plain for m in found if m.plain is not None]
    H = sum((m.H for m in found[1:]), found[0].H) / len(found)
    whole = _alike(G) if len(G) == len(found) else []
    return MatrixCurvature(
        H,
        sum(whole[1:], whole[0]) / len(whole) if whole else None,
        sum(plain[1:], plain[0]) / len(plain) if len(plain) == len(found) else None,
    )


def _alike(matrices: list[Tensor]) -> list[Tensor]:
    """All full, or all diagonals if one of them is."""
    if all(m.dim() == 2 for m in matrices):
        return matrices
    return [m.diagonal() if m.dim() == 2 else m for m in matrices]


def _mean(total: Tensor, count: float) -> Tensor:
    """float64, with one copy: sides of wide matrices are the largest of all sums."""
    return total.to(torch.float64, copy=True).div_(count)


def _trace(m: Tensor) -> float:
    return float(m.sum() if m.dim() == 1 else m.trace())
