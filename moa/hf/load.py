"""Load a model and its tokenizer from the hub, a local folder or a `.gguf` file; never runs the model's code."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from moa.hf.environment import multiplies_bfloat16
from moa.plans.errors import MoaError, ModelMismatch, brief, shortened
from moa.plans.model import ModelInfo

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")

Given = str | Path | tuple[Any, Any]
"""A model as public functions take it: a name for `load_model`, or the pair that it gave."""


def load_model(
    name: str | Path,
    *,
    dtype: str = "auto",
    device: "str | torch.device | None" = None,
    device_map: Any = None,
) -> tuple[Any, Any]:
    """Load a causal language model, in evaluation mode, and its tokenizer.

    Its calls give outputs by name, and neither attention weights nor all hidden states, whatever config.json says.

    Args:
        name: Hub id, local folder, or `.gguf` file, whose weights are unpacked to `dtype`.
        dtype: float32, bfloat16, float16, or auto, the checkpoint's own; on a CPU that is float32 unless the
            checkpoint is in bfloat16 and the CPU has instructions for it, since others take several times as long.
        device: Device of the whole model; by default CUDA where there is one, else the CPU.
        device_map: As transformers takes it, for a model larger than one device; excludes `device`.

    Returns:
        The transformers model and tokenizer.

    Raises:
        MoaError: Nothing can be loaded by that name, weights are missing, or a package to read it is.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    if dtype not in DTYPES:
        raise MoaError(f"dtype must be one of {', '.join(DTYPES)}, found {brief(dtype)}")
    if device is not None and device_map is not None:
        raise MoaError(f"give device or device_map, not both: found {brief(device)} and {brief(device_map)}")
    if str(device or device_map).startswith("cuda") and not torch.cuda.is_available():
        raise MoaError(f"device {device or device_map}: torch sees no CUDA device here")
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    where, options = _locate(name)
    if dtype == "auto" and device_map is None and target.type == "cpu":
        may = multiplies_bfloat16() and "gguf_file" not in options
        stored = load_config(name).get_text_config().dtype if may else None
        dtype = "bfloat16" if stored in ("bfloat16", torch.bfloat16) else "float32"
    # Without this a .gguf file may stay packed, where a packed matrix product exists; then it has no gradients.
    unpack = {"quantization_config": GgufConfig(dequantize=True)} if "gguf_file" in options else {}
    with _clear_errors(name), _quiet(progress=not Path(where).is_dir()):
        model, loading = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=dtype,
            device_map=device_map,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, and refused below in one line
            **options,
            **unpack,
        )
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        letters = tokenizer("a", add_special_tokens=False)["input_ids"]  # some broken settings show here first
    if not letters:
        raise MoaError(f"model '{name}': its tokenizer makes no tokens of text: its vocabulary is empty or broken")
    for config in (model.config, model.config.get_text_config()):  # a checkpoint may say otherwise
        config.return_dict, config.output_attentions, config.output_hidden_states = True, False, False
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    if capped and model.config._attn_implementation == "sdpa":  # which drops it; transformers 5.17 loads Gemma-2 so
        model.set_attn_implementation("eager")
    absent = sorted(loading["missing_keys"]) + sorted(key for key, *_ in loading["mismatched_keys"])
    if absent:
        raise MoaError(f"model '{name}': {len(absent)} weights missing or misshapen, first {absent[0]}")
    _check_vocabulary(name, model, tokenizer)
    _check_finite(name, model)
    return (model if device_map is not None else model.to(target)).eval(), tokenizer


def _check_vocabulary(name: str | Path, model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer of another model, whose tokens have no embedding.

    Special tokens added on top may have none: Gemma's tokenizer has one for images, which the text models do not know.
    Other added tokens are found in any text.
    """
    rows, added = model.get_input_embeddings().num_embeddings, set(tokenizer.get_added_vocab())
    special = added & set(tokenizer.all_special_tokens)
    special |= {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    numbered = ((number, token) for token, number in tokenizer.get_vocab().items() if token not in special)
    largest, token = max(numbered, default=(-1, ""))
    if largest >= rows:
        raise MoaError(
            f"model '{name}': its tokenizer numbers {brief(token)} as {largest}, but the model has embeddings for "
            f"{rows} tokens; give the tokenizer that belongs to it"
        )


def _check_finite(name: str | Path, model: Any) -> None:
    """Refuse weights that are damaged, or too large for the dtype that they are loaded in."""
    weights = ((key, value) for key, value in model.named_parameters() if value.device.type != "meta")
    broken = [key for key, value in weights if not value.isfinite().all()]
    if broken:
        raise MoaError(
            f"model {brief(str(name))}: in {model.dtype}, {len(broken)} weights are not finite, first {broken[0]}; "
            "the file is damaged, or --dtype must be a wider one"
        )


def loaded(model: Given, *, dtype: str = "auto", device_map: Any = None) -> tuple[Any, Any]:
    """Return the model and its tokenizer, loaded where a name is given.

    Raises:
        MoaError: As for `load_model`; or a dtype or device map is given for a model that is loaded already.
    """
    if not isinstance(model, tuple):
        return load_model(model, dtype=dtype, device_map=device_map)
    if dtype != "auto" or device_map is not None:
        raise MoaError("dtype and device_map are for a model that is named; this one is loaded already")
    return model


def load_config(name: str | Path) -> Any:
    """Return the transformers config of a model named as for `load_model`; no weights are read.

    Raises:
        MoaError: Nothing can be loaded by that name.
    """
    from transformers import AutoConfig

    where, options = _locate(name)
    with _clear_errors(name), _quiet(progress=False):
        return AutoConfig.from_pretrained(where, **options)


def check_options(
    given: Given, of: Mapping[str, ModelInfo], *, lengths: Sequence[int] = (), backend: str | None = None
) -> Any:
    """Refuse, before any weights are read, options that do not fit this model.

    Args:
        given: The model: its name, or loaded.
        of: The models that files belong to, by the files' names; all must be this model.
        lengths: Lengths to measure at, in tokens.
        backend: Name of the back-end to run on.

    Returns:
        An object whose `config` is the model's.

    Raises:
        MoaError: Nothing can be loaded by that name, or a length is over the model's maximum.
        ModelMismatch: A file belongs to another model; the error names each field that differs.
        Unsupported: The model takes no rules, or the back-end cannot run here.
    """
    from moa.hf.limits import check_length
    from moa.kernels.backend import load

    if backend is not None:
        load(backend)
    model = given[0] if isinstance(given, tuple) else SimpleNamespace(config=load_config(given))
    name = getattr(model, "name_or_path", "this model") if isinstance(given, tuple) else given
    info = ModelInfo.of(model)
    for file, other in of.items():  # a model of text and images may call its text part by another name when loaded
        if differences := [found for found in other.differences(info) if not found.startswith("architecture: ")]:
            raise ModelMismatch(f"{file} is of another model than {name} (its against this): {'; '.join(differences)}")
    for length in lengths:
        check_length(model, length)
    return model


def _locate(name: str | Path) -> tuple[str, dict[str, str]]:
    """Return what `from_pretrained` takes: a folder or hub id, and `gguf_file` when the name is such a file."""
    if not str(name).strip():
        raise MoaError("the model's name is empty; give a hub id, a folder or a .gguf file")
    path, model = Path(name).expanduser(), f"model '{name}'"
    if path.suffix == ".gguf":
        if not path.is_file():
            raise MoaError(f"{model}: no such .gguf file")
        for package in ("gguf", "accelerate"):
            if find_spec(package) is None:
                raise MoaError(f"{model}: reading .gguf files needs {package}: pip install {package}")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise MoaError(f"{model}: the folder has no config.json")
        return str(path), {}
    if path.exists():
        raise MoaError(f"{model}: a file, but not a .gguf one; give a hub id, a folder or a .gguf file")
    if path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") > 1:
        raise MoaError(f"{model}: no such folder or .gguf file, and not a hub id (NAME or OWNER/NAME)")
    return str(name), {}


@contextmanager
def _clear_errors(name: str | Path) -> Iterator[None]:
    """Turn errors of transformers about the files or the name into one line."""
    try:
        yield
    except MoaError:
        raise
    except Exception as error:  # files of the wrong kind make transformers, and what it calls, raise anything
        tried = "" if Path(name).expanduser().exists() else "no such folder or .gguf file, and from the hub: "
        reason, kind = str(error).strip(), type(error).__name__
        if isinstance(error, OSError | ValueError | ImportError) and reason:  # written for users, the first line first
            reason = reason.splitlines()[0]
        else:
            reason = f"{kind}: {reason}" if reason else kind
        if not isinstance(error, OSError):
            reason = f"transformers cannot load it: {reason}"
        raise MoaError(f"model '{name}': {tried}{shortened(reason, 300)}") from error


@contextmanager
def _quiet(*, progress: bool) -> Iterator[None]:
    """Silence transformers' log lines and warnings within the block, and download bars unless `progress`.

    Errors are raised as exceptions too, so that they are reported once.
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    if not progress:
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
