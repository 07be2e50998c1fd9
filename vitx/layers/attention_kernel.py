"""What every fused attention kernel declares, and how it replaces the reference: where possible, or always.

In shapes: b batch, q queries, k keys, d size of a head.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jaxtyping import Array, Bool, Float

from vitx.console import print_message
from vitx.errors import UserError
from vitx.layers.layouts import Core

Bias = Float[Array, "..."] | None
Mask = Bool[Array, "..."] | None
Queries = Float[Array, "b q heads d"]
Keys = Float[Array, "b k heads d"]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A fused attention kernel of one platform.

    Attributes:
        title: name of the kernel in messages.
        attend: called as attend(q, k, v), with mask=mask where there is one; never with a bias.
        find_obstacle: called as find_obstacle(q, k, bias=bias, mask=mask); returns why the kernel cannot run, as
            "found X; expected Y", or None if it can. It reads shapes and types only.
        min_keys: number of keys from which the kernel is preferred to the reference.
        falls_back: name of the implementation that falls back by itself.
    """

    title: str
    attend: Core
    find_obstacle: Callable[..., str | None]
    min_keys: int
    falls_back: str

    def prefer(self, reference: Core) -> Core:
        """Returns attention by the kernel where it can run and sequences are long enough, else by the reference.

        A line is logged where long sequences fall back to the reference, once for each reason.
        """

        def attend(q: Queries, k: Keys, v: Keys, *, bias: Bias = None, mask: Mask = None) -> Queries:
            if k.shape[1] < self.min_keys:
                return reference(q, k, v, bias=bias, mask=mask)
            if obstacle := self.find_obstacle(q, k, bias=bias, mask=mask):
                log_once(f"attention is computed by XLA instead of {self.title}: {obstacle}")
                return reference(q, k, v, bias=bias, mask=mask)
            return self._attend(q, k, v, mask)

        return attend

    def force(self) -> Core:
        """Returns attention by the kernel alone, which raises `UserError` where the kernel cannot run."""

        def attend(q: Queries, k: Keys, v: Keys, *, bias: Bias = None, mask: Mask = None) -> Queries:
            if obstacle := self.find_obstacle(q, k, bias=bias, mask=mask):
                raise UserError(
                    f"attention by {self.title} is not possible: {obstacle}. Set implementation to "
                    f"{self.falls_back!r}, which falls back by itself, or to 'reference'"
                )
            return self._attend(q, k, v, mask)

        return attend

    def _attend(self, q: Queries, k: Keys, v: Keys, mask: Mask) -> Queries:
        return self.attend(q, k, v) if mask is None else self.attend(q, k, v, mask=mask)


@functools.cache  # every block of a model, and every retrace, would log the same
def log_once(message: str) -> None:
    """Prints a line on standard error the first time; of several processes only the first prints."""
    if jax.process_index() == 0:
        print_message(message)
