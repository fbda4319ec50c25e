"""The KL from one model's distributions to another's, some positions at a time.

A head's logits are the largest arrays of a step: 50 MB for 256 tokens and a vocabulary of 49,152, four times for the
two models and the gradient. So the models are run up to their heads, and the heads, with whatever a model does to its
logits, over a few positions, forward and backward, before the next ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from toolchain.system.threads import pieces

POSITIONS = 64  # whose logits are there at a time
Head = Callable[[torch.Tensor], torch.Tensor]


class _Reached(Exception):
    """Raised in place of the head: what the body of a model gave, which the head would read."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs


class Parted:
    """A causal language model of transformers in two parts, each computed in its own time and in any thread.

    The model itself does what it did before.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, body = model, model.base_model
        self._whole, self._running = body.forward, threading.local()
        body.forward = self._forward
        inside = {id(parameter) for parameter in body.parameters()}
        # a bias of the head; asked for after it is known which parameters are trained
        self._of_head = [parameter for parameter in model.parameters() if id(parameter) not in inside]

    def __getstate__(self) -> dict[str, Any]:
        """What a copy of the model, with these two parts, has of them: all but what threads are doing."""
        return {name: value for name, value in vars(self).items() if name != "_running"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _running=threading.local())

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters of the head that have a gradient."""
        return [parameter for parameter in self._of_head if parameter.requires_grad]

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        """The body's forward; of a thread that asks for one part alone, its beginning or its end."""
        given = getattr(self._running, "given", None)
        if given is not None:
            return given
        outputs = self._whole(*args, **kwargs)
        if getattr(self._running, "body_alone", False):
            raise _Reached(outputs)
        return outputs

    def states(self, tokens: torch.Tensor) -> tuple[torch.Tensor, Head]:
        """What the head reads of tokens [count, length], float32 [count, length, width], and the head to it.

        The head gives logits [count, some, vocabulary] of states [count, some, width]. Where a model does not call its
        body as a whole, the states are its logits.
        """
        self._running.body_alone = True
        try:
            return self._model(input_ids=tokens, use_cache=False).logits, lambda states: states
        except _Reached as reached:
            outputs = reached.outputs
        finally:
            self._running.body_alone = False
        ids = tokens[:, :1]  # nothing reads them; some models ask for their number

        def logits(states: torch.Tensor) -> torch.Tensor:
            self._running.given = (
                (states, *outputs[1:]) if isinstance(outputs, tuple) else type(outputs)(last_hidden_state=states)
            )
            try:
                found: torch.Tensor = self._model(input_ids=ids, use_cache=False).logits
                return found
            finally:
                self._running.given = None

        return outputs[0], logits


class _Divergence(torch.autograd.Function):
    """What divergence() says; the gradients are made along with the value, for the logits are gone afterwards."""

    @staticmethod
    def forward(ctx, states, head, guide, guide_head, *trained):  # type: ignore[no-untyped-def]
        loss, rows = states.new_zeros(()), states[..., 0].numel()
        of_states, sums = torch.empty_like(states), [torch.zeros_like(parameter) for parameter in trained]
        for some in pieces(states.shape[1], max(POSITIONS // len(states), 1)):
            wanted = torch.log_softmax(guide_head(guide[:, some]), dim=-1)
            with torch.enable_grad():
                part = states[:, some].detach().requires_grad_()
                found = torch.log_softmax(head(part), dim=-1)
                own = nn.functional.kl_div(found, wanted, reduction="sum", log_target=True) / rows
            of_states[:, some], *others = torch.autograd.grad(own, [part, *trained], allow_unused=True)
            loss += own.detach()
            for total, gradient in zip(sums, others):
                if gradient is not None:
                    total += gradient
        ctx.gradients = (of_states, sums)
        return loss

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        of_states, sums = ctx.gradients
        return of_states.mul_(gradient), None, None, None, *(total * gradient for total in sums)


def divergence(
    states: torch.Tensor, head: Head, guide: torch.Tensor, guide_head: Head, trained: Sequence[nn.Parameter] = ()
) -> torch.Tensor:
    """Mean KL, in nats a token, from softmax(guide_head(guide)) to softmax(head(states)); a scalar.

    states, guide: float32 [count, length, width], of any two widths. Gradients go to states and to `trained`, what
    the head has of parameters.
    """
    loss: torch.Tensor = _Divergence.apply(states, head, guide, guide_head, *trained)
    return loss
