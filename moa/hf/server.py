"""Start transformers' own server on a model that is prepared first."""

from collections.abc import Callable
from typing import Any

from moa.plans.errors import MoaError


def serve(name: str, prepare: Callable[[Any], object], *, host: str, port: int) -> None:
    """Serve a model until the process is interrupted. It answers one request at a time, and batches none.

    Args:
        name: The model, as transformers takes it.
        prepare: Called with the model once it is loaded.
        host, port: Where to listen.

    Raises:
        MoaError: The server's dependencies are not installed.
    """
    from transformers.cli.serve import Serve
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise MoaError("transformers' server needs more packages: pip install 'transformers[serving]'")
    load = ModelManager._load_model

    def loaded(self: Any, *args: Any, **kwargs: Any) -> Any:
        model = load(self, *args, **kwargs)
        prepare(model.eval())
        return model

    ModelManager._load_model = loaded
    try:
        Serve(force_model=name, host=host, port=port, continuous_batching=False)
    finally:
        ModelManager._load_model = load
