"""Budgets: one trained model at several costs."""

import dataclasses

from flax import linen as nn

from vitx.configuration import override
from vitx.errors import UserError
from vitx.layers.dynamic_tokens import DynamicTokens


def with_token_budget(model: nn.Module, num_tokens: int) -> nn.Module:
    """Returns the model with another budget of its reducer; one without a reducer gets `DynamicTokens`.

    Args:
        model: a model of any family.
        num_tokens: tokens of a clip that its encoder reads, class tokens not counted.

    Raises:
        UserError: the model has no tokens, a reducer without a budget, or fewer or more tokens than the budget.
    """
    if not hasattr(model, "reducer"):
        raise UserError(
            f"{type(model).__name__} has no tokens, and a budget counts them; expected a Transformer, such as ViViT"
        )
    reducer = DynamicTokens(num_tokens) if model.reducer is None else model.reducer
    if not hasattr(reducer, "budget"):
        raise UserError(
            f"reducer is {reducer}, which has no budget; expected None or one that has, such as DynamicTokens: set "
            "model.reducer to None"
        )
    return override(model, {"reducer": dataclasses.replace(reducer, budget=num_tokens)})
