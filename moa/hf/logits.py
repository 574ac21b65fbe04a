"""Compute hidden states of a model's decoder, and the logits that its own head makes of them, some positions at a time.

Logits of 8,192 positions of a large vocabulary would not fit in memory at once. So the decoder runs alone; then the
model's own forward pass runs on chunks of the hidden states, with a stand-in decoder that returns them. Whatever the
model does after its decoder (norms, scales, caps, a head with layers of its own), it does here too.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from moa.plans.errors import Unsupported

HEAD_CHUNK = 256
"""Number of positions whose logits are computed at once."""

PROBE = 8
"""Tokens of the text on which a head is compared with the whole model."""

CLOSE = 1e-2
"""Largest difference of logits, as a share of their standard deviation, that may be rounding."""

_outputs: WeakKeyDictionary[Any, type[ModelOutput]] = WeakKeyDictionary()


def hidden_of(model: Any, ids: Tensor, cache: Any = None, **where: Tensor) -> Tensor:
    """Return the last hidden states [n, d] of one text, or of the next tokens of a text in a cache.

    Args:
        model: A transformers causal language model, bare or wrapped (peft).
        ids: Token ids [1, n].
        cache: Holds the text before them, and takes them in; None where they are the whole text.
        where: Arguments that say their positions (`moa.hf.calls.parts`).
    """
    return _run_decoder(_causal(model), ids, cache, **where)["last_hidden_state"][0]  # type: ignore[no-any-return]


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """Return float32 logits [rows, vocabulary] of last hidden states [rows, d], as the model's own head makes them.

    Raises:
        Unsupported: As for `check_head`.
    """
    check_head(model)
    return _head(_causal(model), hidden)


@torch.no_grad()
def check_head(model: Any) -> None:
    """Compare, once for each model, the result of `logits_of` with that of the whole model on a short text.

    The model must run dense at the first call.

    Raises:
        Unsupported: They differ, or there is no decoder below the model's head.
    """
    causal = _causal(model)
    if causal in _outputs:
        return
    ids = torch.arange(PROBE, device=causal.device)[None] % causal.config.get_text_config().vocab_size
    found = _run_decoder(causal, ids)
    _outputs[causal] = type(found)
    try:
        logits = _head(causal, found["last_hidden_state"][0])
        expected = model(input_ids=ids, use_cache=False, return_dict=True).logits[0].float()
        if not (logits - expected).abs().max() <= CLOSE * expected.std():
            raise Unsupported(
                f"{type(causal).__name__} does more to its logits than its head does to its decoder's hidden states, "
                "so they cannot be made a few positions at a time"
            )
    except BaseException:
        del _outputs[causal]
        raise


def decoder_below(model: Any) -> PreTrainedModel:
    """Return the model that makes hidden states, below the head that makes logits of them.

    Raises:
        Unsupported: There is none.
    """
    return _decoder(_causal(model))


def _causal(model: Any) -> PreTrainedModel:
    """Return the model with a head, below whatever wraps it."""
    found = next(
        (m for m in model.modules() if isinstance(m, PreTrainedModel) and isinstance(m, GenerationMixin)), None
    )
    if found is None or _decoder(found) is found:
        raise Unsupported(f"{type(model).__name__} has no decoder below a head that makes logits")
    return found


def _decoder(causal: PreTrainedModel) -> PreTrainedModel:
    """Return the module that `causal` takes hidden states from; `causal` itself where there is none."""
    found = causal.get_decoder()  # for some models a linear head of that name
    found = found if isinstance(found, PreTrainedModel) else causal.base_model
    if found is causal:  # of Llama-4's text model transformers looks for it under a name of its multimodal one
        found = next((m for m in causal.children() if isinstance(m, PreTrainedModel)), causal)
    return found


def _run_decoder(causal: PreTrainedModel, ids: Tensor, cache: Any = None, **where: Tensor) -> ModelOutput:
    cached: dict[str, Any] = {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}
    found: ModelOutput = _decoder(causal)(input_ids=ids, return_dict=True, **cached, **where)
    return found


def _head(causal: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Run the model's forward pass over `hidden` [rows, d], with a stand-in decoder that returns them."""
    decoder, output = _decoder(causal), _outputs[causal](last_hidden_state=hidden[None])
    before = vars(decoder).get("forward")
    decoder.forward = lambda *_args, **_kwargs: output
    try:
        ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        logits: Tensor = causal(input_ids=ids, use_cache=False, return_dict=True).logits[0].float()
    finally:
        del decoder.forward
        if before is not None:
            decoder.forward = before
    return logits
