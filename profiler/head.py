"""Logits a few positions at a time: 8,192 positions of a large vocabulary would not fit at once."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moa.plans.errors import Unsupported

HEAD_CHUNK = 256
"""Positions whose logits are held at once."""


def logits_of(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """float32 logits [rows, vocabulary] of last hidden states [rows, d], as the model's own head makes them.

    Raises:
        Unsupported: The model scales its logits in a way not known here.
    """
    config = model.config.get_text_config()
    scaled = [name for name in ("logit_scale", "logits_scaling") if getattr(config, name, None) not in (None, 1.0)]
    if scaled:
        raise Unsupported(f"the model scales its logits by {scaled[0]}, which is not known here")
    logits: Tensor = model.get_output_embeddings()(hidden).float()
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)
