"""The KL between two models' logits and its slope, in parts: over a large vocabulary a float32 copy is what a model takes."""

from __future__ import annotations

import torch
from torch import Tensor

PART = 1 << 22  # logits that are worked on at once, about five float32 copies of them


def pull(teacher: Tensor, student: Tensor) -> tuple[float, Tensor]:
    """(Σ KL(teacher ‖ student), its slope by the student's logits, in their dtype) over logits [..., V].

    The slope of a token's KL by the student's logits is softmax(student) − softmax(teacher): a sum, not a mean, for that of a
    thousand tokens would vanish in float16. What the teacher says cannot be (a logit of −∞) costs nothing. The slope takes the
    place of the teacher's logits where it is of their kind: they are lost.
    """
    alike = teacher.dtype == student.dtype and teacher.device == student.device and teacher.is_contiguous()
    slope = teacher if alike else torch.empty_like(student, memory_format=torch.contiguous_format)
    rows = max(1, PART // student.shape[-1])
    total = torch.zeros((), dtype=torch.float32, device=student.device)
    with torch.no_grad():
        flat = (logits.flatten(0, -2) for logits in (teacher.to(student.device), student.detach(), slope))
        for t, s, out in zip(*(torch.split(logits, rows) for logits in flat), strict=True):
            p, q = t.float().log_softmax(-1), s.float().log_softmax(-1)
            share = p.exp()
            total += (share * p.sub_(q).masked_fill_(share == 0, 0)).sum()
            out.copy_(q.exp_().sub_(share))
    return float(total), slope
