"""Identify the weights that a model holds."""

import hashlib
from typing import Any


def fingerprint(model: Any) -> str:
    """Return a hash of the first weights of every parameter: other weights under the same name are another model."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        if weight.device.type != "meta":  # else offloaded: on disk, out of sight
            digest.update(weight.detach().flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()
