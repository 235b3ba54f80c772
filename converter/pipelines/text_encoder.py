"""Text embeddings by transformers' own T5, its encoder whole, quantised, or one block at a time from its files.

The encoder is by far the largest part of a pipeline, and runs once per picture: streamed, it needs the memory of its
largest block, and reads its files once. (On a CPU that has no instructions for bfloat16, float32 is several times
faster.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import Checkpoint, LazyTensor, open_checkpoint
from ..errors import UNQUANTISED, InputError, UsageError, printable, require
from ..nets.net import Memory, Values, Weights
from ..nets.streamed import StockStage, Streamed
from .components import TOKENIZER_MODELS, WO

_ENCODER, _EMBEDDING = "encoder.", "embed_tokens.weight"
_SHARED = "shared.weight"  # the embedding, under the name that it has in files of encoder and decoder
_STAGES = (StockStage("block {}", "block.{}", ("hidden",)), StockStage("output", "", ("output",)))


def tokenize(prompts: Sequence[str], folder: Path, tokens: int) -> tuple[Tensor, Tensor, list[str]]:
    """Prompts as ids, by transformers' own T5 tokenizer: padded or cut to `tokens`, the end of the text among them.

    Args:
        folder: the tokenizer's, with a `spiece.model` or a `tokenizer.json`.

    Returns: ids (B, `tokens`) and mask (B, `tokens`; 1 for a token, 0 for padding), both int64; and for each prompt the
        words that were cut off, '' for none.

    Raises: `InputError` for a folder that holds no tokenizer, `UsageError` for missing packages.

    >>> tokenize(["a cat"], Path("fixtures/golden"), 120)
    Traceback (most recent call last):
    converter.errors.InputError: fixtures/golden: holds no tokenizer: spiece.model or tokenizer.json is missing
    """
    there = [name for name in TOKENIZER_MODELS if (folder / name).is_file()]
    if not there:  # transformers would make one up that knows no words
        raise InputError.at(folder, "", f"holds no tokenizer: {' or '.join(TOKENIZER_MODELS)} is missing")
    require("a prompt", "transformers", *([] if TOKENIZER_MODELS[1] in there else ["sentencepiece", "google.protobuf"]))
    from transformers import T5Tokenizer

    texts = [prompt.encode(errors="replace").decode() for prompt in prompts]  # half characters, of a broken terminal
    try:
        tokenizer = T5Tokenizer.from_pretrained(folder, local_files_only=True)
        whole = tokenizer(texts, verbose=False)["input_ids"]
        short = tokenizer(texts, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt")
        # Of what is kept, the last place is that of the end of the text.
        cut = [tokenizer.decode(ids[tokens - 1 : -1]) if len(ids) > tokens else "" for ids in whole]
    except Exception as error:  # of any kind, whatever is wrong with the files
        raise InputError.at(folder, there[0], f"transformers cannot use this tokenizer: {printable(error)}") from error
    return short["input_ids"], short["attention_mask"], cut


def encode(
    ids: Tensor,
    mask: Tensor,
    folder: Path,
    *,
    how: str,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """The embeddings (B, L, C) of tokens, in `dtype` on `device`; nothing of the encoder stays in memory.

    Args:
        ids, mask: (B, L), as `tokenize` returns them.
        folder: the T5's: `config.json`, and the weights in one file or in shards. A decoder in them is not read.
        how: "whole"; "streamed", the same numbers in the memory of the largest block; "8bit" or "nf4", quantised by
            bitsandbytes, all linear layers but `wo`, a fifth of the weights, of which transformers makes an exception.
        dtype: float32, bfloat16 or float16; under float16 `wo` stays float32, as transformers has it.
        progress: called with 1 after each block, of which `config.json` says how many there are (`num_layers`).

    Raises: `InputError` for a folder that is no T5 text encoder, is damaged, or does not fit the tokenizer, and for
        embeddings that are not finite; `UsageError` for missing packages.

    Source: transformers, `models/t5/modeling_t5.py`.

    >>> encode(torch.tensor([[5, 1]]), torch.ones(1, 2), Path("weights"), how="whole", dtype=torch.float32)
    Traceback (most recent call last):
    converter.errors.InputError: weights: No such file or directory
    """
    if how not in ("whole", "streamed", "8bit", "nf4"):
        raise UsageError(f"`how` {printable(how)}: one of whole, streamed, 8bit, nf4")
    require("encoding a prompt", "transformers")
    if how in ("8bit", "nf4"):
        require(f"a text encoder in {how}", "bitsandbytes", "accelerate", extra="quantize")

    def count(*_: Any) -> None:  # whatever else a hook returns would be the block's output
        if progress:
            progress(1)

    with open_checkpoint(folder) as checkpoint, _quiet(), torch.inference_mode():
        encoder, state = empty_encoder(checkpoint)
        weights = _Weights(state, dtype, device)
        if (last := int(ids.max())) >= (size := state[_EMBEDDING].shape[0]):
            raise InputError.at(folder, "", f"knows {size} tokens, and the tokenizer has one with the id {last}")
        if how == "whole":
            encoder.load_state_dict(dict(weights), assign=True)
        elif how != "streamed":
            encoder = _quantised(folder, how, weights)
        for block in encoder.block:
            block.register_forward_hook(count)
        inputs = {"ids": ids.to(device), "mask": mask.to(device)}
        if how == "streamed":
            embeddings = Streamed(encoder, weights, _STAGES, _call, probes={}).forward(inputs)
            weights.memory = Memory()  # hooks refer to each other in a circle: it would stay until that is collected
        else:
            embeddings = _call(encoder.eval(), inputs)
    if not bool(embeddings.isfinite().all()):
        why = "overflow in float16: use bfloat16 or float32" if dtype == torch.float16 else "are its weights damaged?"
        raise InputError.at(folder, "", f"the text encoder's output is not finite ({why})")
    return embeddings.clone()  # out of inference mode: a tensor like any other


class _Weights(Weights):
    """The weights of an encoder, in the dtypes that transformers gives them (`T5PreTrainedModel`)."""

    def dtype_of(self, key: str) -> torch.dtype:
        return torch.float32 if self.dtype == torch.float16 and WO in key.split(".") else self.dtype


def _call(encoder: Any, values: Values) -> Tensor:
    output: Tensor = encoder(input_ids=values["ids"], attention_mask=values["mask"], return_dict=True)[0]
    return output


def empty_encoder(checkpoint: Checkpoint) -> tuple[Any, dict[str, LazyTensor]]:
    """The encoder that `config.json` describes, without its weights; and those, unread, by its own names."""
    from transformers import T5Config, T5EncoderModel

    state = {key.removeprefix(_ENCODER): tensor for key, tensor in checkpoint.items() if key.startswith(_ENCODER)}
    if _SHARED in checkpoint:
        state.setdefault(_EMBEDDING, checkpoint[_SHARED])
    blocks = len({name.split(".")[1] for name in state if name.startswith("block.")})
    kind, count = (checkpoint.config.get(name) for name in ("model_type", "num_layers"))
    if (kind, count) != ("t5", blocks):  # asked before as many are built as it says
        needed = f"a t5 with {blocks}, as in the weights, is needed"
        rule = f"a {printable(kind)} with num_layers {printable(count)}, where {needed}"
        raise InputError.at(checkpoint.path, "config.json", rule)
    try:
        with torch.device("meta"):
            encoder = T5EncoderModel(T5Config.from_dict(dict(checkpoint.config))).encoder
    except Exception as error:  # of any kind, as what the fields hold
        raise InputError.at(checkpoint.path, "config.json", f"transformers refuses it: {printable(error)}") from error
    wanted = {name: tuple(parameter.shape) for name, parameter in encoder.named_parameters()}
    if differing := sorted(wanted.keys() ^ state.keys()):
        rule = "is missing" if differing[0] in wanted else "is in no T5 with this config.json"
        raise InputError.at(checkpoint.path, _ENCODER + differing[0], rule)
    for name, tensor in state.items():
        if not tensor.dtype.floating or tensor.shape != wanted[name]:
            rule = f"is {tensor.dtype} {list(tensor.shape)}, where config.json asks for floats {list(wanted[name])}"
            remedy = "" if tensor.dtype.floating else f" (quantised weights): {UNQUANTISED}"
            raise InputError.at(checkpoint.path, tensor.key, rule + remedy)
    return encoder, state


def _quantised(folder: Path, how: str, weights: Weights) -> Any:
    """The encoder as transformers and bitsandbytes load and quantise it."""
    from transformers import BitsAndBytesConfig, T5EncoderModel

    four = {"load_in_4bit": True, "bnb_4bit_quant_type": how, "bnb_4bit_compute_dtype": weights.dtype}
    options = BitsAndBytesConfig(**({"load_in_8bit": True} if how == "8bit" else four))
    place = {"device_map": {"": weights.device}, "dtype": weights.dtype, "local_files_only": True}
    try:
        return T5EncoderModel.from_pretrained(folder, quantization_config=options, **place).encoder
    except OSError as error:  # of files that only the reader here takes for weights, such as a variant's
        raise InputError.at(folder, "", f"transformers cannot load it: {printable(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars, and without what bitsandbytes says of every layer."""
    from transformers.utils import logging as bars

    logger, shown = logging.getLogger("bitsandbytes"), bars.is_progress_bar_enabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    bars.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            bars.enable_progress_bar()
