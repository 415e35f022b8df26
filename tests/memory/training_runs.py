"""Training steps of tiny transformers models, measured: every tensor that lives, at every operation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from openautoglm.families.debug import debug_config

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}


def make_model(model_type: str, dtype: torch.dtype, **overrides: object) -> PreTrainedModel:
    """Return a tiny model of a family with attention that keeps no scores."""
    config = AutoConfig.for_model(**{**debug_config(model_type), **SIZES, **overrides})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    model.config.use_cache = False
    return model.train()


@dataclass
class LiveBytes(TorchDispatchMode):
    """Sums the storages that live after each operation, those of `known` tensors included; `peak` is the most."""

    known: tuple[torch.Tensor, ...] = ()
    peak: int = 0
    _live: dict[int, tuple[StorageWeakRef, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._note(self.known)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self._note(value for value in tree_leaves(result) if isinstance(value, torch.Tensor))
        self.peak = max(self.peak, self.now())
        return result

    def now(self) -> int:
        """Bytes that live now."""
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        return sum(num_bytes for _, num_bytes in self._live.values())

    def _note(self, tensors) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            self._live[reference.cdata] = (reference, storage.nbytes())


@contextmanager
def saved_for_backward(model: torch.nn.Module) -> Iterator[dict[int, int]]:
    """Collect the storages that autograd keeps, parameters left out: {address: bytes}."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(storage)  # an address is not used again while its storage is held
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


class Adapter(torch.nn.Module):
    """A linear layer frozen, and low-rank matrices in fp32 beside it: the forward pass of PEFT's lora.Linear."""

    def __init__(self, base: torch.nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = torch.nn.Linear(base.in_features, rank, bias=False, dtype=torch.float32)
        self.up = torch.nn.Linear(rank, base.out_features, bias=False, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.base(x)
        return (result + self.up(self.down(x.to(torch.float32))) * 2.0).to(result.dtype)


def add_adapters(model: PreTrainedModel, targets: tuple[str, ...], rank: int) -> None:
    """Freeze a model and put adapters on its projections."""
    model.requires_grad_(False)
    for layer in model.model.layers:
        for module, names in ((layer.self_attn, ("q", "k", "v", "o")), (layer.mlp, ("gate", "up", "down"))):
            for name in names:
                if name in targets:
                    attribute = f"{name}_proj"
                    setattr(module, attribute, Adapter(getattr(module, attribute), rank))
