import pytest
import torch
import torch.nn.functional as F

from pgolf.kernels.softcap_nll import head_nll, launch_softcap_nll, softcap_nll, softcap_nll_reference
from tests.helpers import generator
from tests.kernels.places import everywhere, poison

# float32 sums of a few thousand exponentials, and a tanh scaled by 30, against float64
TOLERANCE = 2e-5


def exact(logits, targets, softcap):
    logits = logits.double()
    return F.cross_entropy(softcap * torch.tanh(logits / softcap) if softcap else logits, targets, reduction="none")


def case(rows, vocab, dtype, device, seed=0):
    g = generator(seed)
    logits = (20 * torch.randn(rows, vocab, generator=g)).to(device, dtype)
    return logits, torch.randint(0, vocab, (rows,), generator=g).to(device)


@everywhere
@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize(("rows", "vocab"), [(3, 5), (2, 1000), (1, 8200)])
def test_against_float64(device, rows, vocab, softcap):
    for dtype in (torch.float32, torch.float16):
        logits, targets = case(rows, vocab, dtype, device)
        poison(device)
        nll = launch_softcap_nll(logits, targets, softcap)
        assert nll.dtype == torch.float32
        torch.testing.assert_close(nll.double(), exact(logits, targets, softcap), atol=TOLERANCE, rtol=1e-6)


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_the_reference_against_float64(softcap):
    logits, targets = case(7, 300, torch.bfloat16, "cpu")
    nll = softcap_nll(logits, targets, softcap)
    torch.testing.assert_close(nll.double(), exact(logits, targets, softcap), atol=TOLERANCE, rtol=1e-6)
    assert torch.equal(nll, softcap_nll_reference(logits, targets, softcap))


@everywhere
@pytest.mark.filterwarnings("ignore:invalid value")  # ∞ − ∞, in the interpreter's numpy
def test_what_cannot_be_scored_is_nan(device):
    logits, _ = case(4, 40, torch.float32, device)
    logits[2, 7] = float("nan")
    logits[3, 7] = float("inf")
    nll = launch_softcap_nll(logits, torch.tensor([40, -1, 0, 0], device=device), None)
    assert nll.isnan().all()


@everywhere
def test_rows_may_be_apart_and_extreme(device):
    logits, targets = case(3, 64, torch.float32, device)
    wide = torch.full((3, 100), float("nan"), device=device)
    wide[:, :64] = logits * 1e3
    torch.testing.assert_close(
        launch_softcap_nll(wide[:, :64], targets, None).double(), exact(logits * 1e3, targets, None)
    )
    assert launch_softcap_nll(wide[:0, :64], targets[:0], None).shape == (0,)


def test_a_head_in_chunks_is_a_head(monkeypatch):
    g = generator(0)
    hidden, weight = torch.randn(21, 8, generator=g), torch.randn(50, 8, generator=g)
    targets = torch.randint(0, 50, (21,), generator=g)
    whole = head_nll(hidden, weight, targets, 15.0)
    monkeypatch.setattr("pgolf.kernels.softcap_nll.CHUNK_BYTES", 50 * 4 * 4)
    torch.testing.assert_close(head_nll(hidden, weight, targets, 15.0), whole)
    torch.testing.assert_close(whole.double(), exact(hidden @ weight.T, targets, 15.0), atol=TOLERANCE, rtol=1e-6)


@everywhere
def test_targets_may_be_a_column(device):
    """Targets apart by more than one read other numbers once."""
    logits, targets = case(3, 64, torch.float32, device)
    table = torch.stack([targets, targets.flip(0)], 1)
    nll = launch_softcap_nll(logits, table[:, 0], None)
    torch.testing.assert_close(nll.double(), exact(logits, targets, None), atol=TOLERANCE, rtol=1e-6)
    assert torch.equal(softcap_nll(logits.double(), table[:, 0]), softcap_nll(logits, targets))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, t: (x, t.int()), "targets is int32, not int64"),
        (lambda x, t: (x, t[:2]), r"targets has shape \[2\], not \[3\]"),
        (lambda x, t: (x.long(), t), "logits is int64, not float32 or float16 or bfloat16"),
        (lambda x, t: (x[0], t), r"logits has shape \[64\], not \[any, any\]"),
        (lambda x, t: (x, t.to("meta")), "targets lies on meta, the rest on cpu"),
    ],
)
def test_operands_of_another_kind_are_named(change, said):
    with pytest.raises(ValueError, match=said):
        softcap_nll(*change(*case(3, 64, torch.float32, "cpu")))
