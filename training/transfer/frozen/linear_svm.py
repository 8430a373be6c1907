"""L2-regularized squared-hinge SVMs for K classes at once.

Minimizes for every column w of W, with y = +1 or -1 and a cost c for every row and class:

    |w|^2 / 2 + sum over rows n of c_n max(0, 1 - y_n (x_n, 1) w)^2

as liblinear does in LinearSVC(loss="squared_hinge"): the bias is a regularized weight of a constant
column. Newton steps by conjugate gradients (Keerthi and DeCoste 2005) need matrix products only,
which the K classes share.
"""

import torch
from torch import Tensor

# Shapes: N rows, D features and the constant column, K classes.


_MAX_STEPS = 60
_MAX_PRODUCTS = 40
"""Conjugate gradient iterations of one Newton step."""
_STEP_ACCURACY = 0.1
_HALVINGS = 12
_TINY = 1e-30
_ROUNDING = 1e-5
"""Share of the first gradient that is rounding error in float32."""
_MOST_AXES = 2500
"""Above this, finding the axes takes longer than it saves."""


def fit_svms(
    rows_ND: Tensor,
    signs_NK: Tensor,
    costs_NK: Tensor,
    *,
    start_DK: Tensor | None = None,
    tolerance: float = 1e-4,
) -> Tensor:
    """Fit K classifiers.

    Args:
        rows_ND: float32, the constant column last (`with_constant`).
        signs_NK: +1 where the row shows the class, -1 where it does not.
        costs_NK: C times the weight of the row; 0 excludes it.
        start_DK: Initial W; a solution for a similar cost saves steps.
        tolerance: A classifier has converged when its objective is at most this share above the
            minimum. By its gradient g: the curvature is at least 1, so at most |g|^2 / 2 can be
            gained. A gradient within rounding error also counts as converged.

    Returns:
        W, float32 (D, K).
    """
    weights = signs_NK.new_zeros(rows_ND.shape[1], signs_NK.shape[1])
    least = _ROUNDING * _gradient(rows_ND, signs_NK, costs_NK, weights).norm(dim=0)
    if start_DK is not None:
        weights = start_DK.clone()
    active = torch.arange(signs_NK.shape[1], device=signs_NK.device)
    for _ in range(_MAX_STEPS):
        signs, costs, current = signs_NK[:, active], costs_NK[:, active], weights[:, active]
        gradient = _gradient(rows_ND, signs, costs, current)
        value, length = objective(rows_ND, signs, costs, current), gradient.norm(dim=0)
        going = (length.square() > 2 * tolerance * value) & (length > least[active])
        active = active[going]
        if not len(active):
            break
        signs, costs, current = signs[:, going], costs[:, going], current[:, going]
        step = _newton_step(rows_ND, signs, costs, current, gradient[:, going])
        weights[:, active] = current + step * _length(rows_ND, signs, costs, current, step)
    return weights


def main_axes(rows_ND: Tensor) -> Tensor | None:
    """Return orthonormal principal axes, (D, at most N), of the rows; None if there are too many.

    Rows @ axes have the same SVMs: solutions are linear combinations of rows, and lengths are kept.
    Newton steps need a tenth of the products there.
    """
    num, dimension = rows_ND.shape
    if min(num, dimension) > _MOST_AXES:
        return None
    if num >= dimension:
        return _axes(rows_ND)
    span_DN: Tensor = torch.linalg.qr(rows_ND.T).Q
    return span_DN @ _axes(rows_ND @ span_DN)


def _axes(rows_ND: Tensor) -> Tensor:
    found: Tensor = torch.linalg.eigh(rows_ND.T @ rows_ND).eigenvectors
    return found


def objective(rows_ND: Tensor, signs_NK: Tensor, costs_NK: Tensor, weights_DK: Tensor) -> Tensor:
    """Return the objective of each class, (K,)."""
    return _value(weights_DK, rows_ND @ weights_DK, signs_NK, costs_NK)


def with_constant(rows: Tensor) -> Tensor:
    """Append a column of ones."""
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def _value(weights_DK: Tensor, scores_NK: Tensor, signs_NK: Tensor, costs_NK: Tensor) -> Tensor:
    short = (1 - signs_NK * scores_NK).clamp(min=0)
    return weights_DK.square().sum(dim=0) / 2 + (costs_NK * short.square()).sum(dim=0)


def _gradient(rows_ND: Tensor, signs_NK: Tensor, costs_NK: Tensor, weights_DK: Tensor) -> Tensor:
    short = (1 - signs_NK * (rows_ND @ weights_DK)).clamp(min=0)
    return weights_DK - 2 * (rows_ND.T @ (costs_NK * signs_NK * short))


def _newton_step(
    rows_ND: Tensor, signs_NK: Tensor, costs_NK: Tensor, weights_DK: Tensor, gradient_DK: Tensor
) -> Tensor:
    """Solve H step = -gradient to a tenth of its length, by conjugate gradients.

    Preconditioned by the diagonal of H, which dominates H in the axes of `main_axes`.
    """
    curvature_NK = 2 * costs_NK * (signs_NK * (rows_ND @ weights_DK) < 1)
    scale_DK = 1 / (1 + rows_ND.square().T @ curvature_NK)
    step = torch.zeros_like(gradient_DK)
    residual = -gradient_DK
    direction = scale_DK * residual
    product = (residual * direction).sum(dim=0)
    enough = residual.square().sum(dim=0) * _STEP_ACCURACY**2
    for _ in range(_MAX_PRODUCTS):
        curved = direction + rows_ND.T @ (curvature_NK * (rows_ND @ direction))
        size = product / (direction * curved).sum(dim=0).clamp(min=_TINY)
        step += size * direction
        residual = residual - size * curved
        if bool((residual.square().sum(dim=0) <= enough).all()):
            break
        scaled = scale_DK * residual
        after = (residual * scaled).sum(dim=0)
        direction = scaled + after / product.clamp(min=_TINY) * direction
        product = after
    return step


def _length(
    rows_ND: Tensor, signs_NK: Tensor, costs_NK: Tensor, weights_DK: Tensor, step_DK: Tensor
) -> Tensor:
    """Return for each class the largest of 1, 1/2, 1/4 ... that lowers the objective, (K,)."""
    scores, change = rows_ND @ weights_DK, rows_ND @ step_DK
    before = _value(weights_DK, scores, signs_NK, costs_NK)
    length = torch.ones_like(before)
    for _ in range(_HALVINGS):
        now = _value(weights_DK + length * step_DK, scores + length * change, signs_NK, costs_NK)
        worse = now > before
        if not bool(worse.any()):
            break
        length = torch.where(worse, length / 2, length)
    return length
