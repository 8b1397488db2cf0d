"""How a pretrained encoder is changed by fine-tuning, by name: from nothing at all to every weight.

| name | what is trained | what is served | source |
|---|---|---|---|
| `lora` | a low-rank update of query and value | merged: costs nothing | Hu et al. 2021, arXiv:2106.09685 |
| `adalora` | the same as P·Λ·Q, its ranks dealt out by importance | merged | Zhang et al. 2023, arXiv:2303.10512 |
| `bottleneck` | a small network behind each sublayer | two small products | Houlsby et al. 2019, arXiv:1902.00751 |
| `prefix` | key and value vectors in front of each layer | so many tokens more | Li & Liang 2021, arXiv:2101.00190 |
| `full` | all weights | as the pretrained one | |
| `none` | nothing: only the projection is learned | as the pretrained one | |

LoRA, AdaLoRA and prefix tuning are those of `peft`; it has no bottleneck adapter, so that one is here.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.run.options import AdapterName
from xplat_stream.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import PreTrainedModel

    from trainer.run.options import TrainOptions

_ATTENTION: Final = ("query", "value", "q_proj", "v_proj", "q_lin", "v_lin")
"""What BERT, ModernBERT-like and DistilBERT models call their query and value layers."""

_SUBLAYER_ENDS: Final = (".output.dense", ".out_lin", ".lin2", ".attn.Wo", ".mlp.Wo")
"""How the last layers of attention and feed-forward sublayers are called, in BERT, DistilBERT and ModernBERT."""

LEARNING_RATES: Final[Mapping[str, float]] = {"prefix": 10.0, "full": 0.1}
"""Times `encoder_lr`: few weights far from the output have to move far, a whole encoder must not."""

_LORA_DROPOUT: Final = 0.1
_INITIAL_RANK: Final = 1.5
"""AdaLoRA starts with half as many ranks again as it may keep, as its authors do."""

_RANK_WARM_UP: Final = 0.1
_RANK_SETTLED: Final = 0.3
"""Shares of the steps before AdaLoRA takes ranks away, and after it has done so."""


class Adapter:
    """An encoder under adaptation. `backbone` is what to run; its trainable weights are what to train."""

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone

    def penalty(self) -> Tensor | float:
        """Return what the adapter's own structure adds to the loss."""
        return 0.0

    def after_step(self, step: int) -> None:
        """Take note that the optimizer made step `step`, counted from 0; gradients are still there."""

    def state(self) -> dict[str, Any]:
        """Return what a resumed training needs to know beside the weights."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""


class _AdaLora(Adapter):
    """Zhang et al. 2023: keeps P and Q near orthogonal, and takes away the ranks that matter least."""

    def __init__(self, backbone: Any) -> None:
        super().__init__(backbone)
        self._tuner = backbone.base_model
        self._config = backbone.peft_config["default"]
        self._factors = [
            (weight, "lora_A" in name)
            for name, weight in backbone.named_parameters()
            if "lora_A" in name or "lora_B" in name
        ]

    def penalty(self) -> Tensor | float:
        total: Tensor | float = 0.0
        for weight, is_first in self._factors:
            gram = weight @ weight.T if is_first else weight.T @ weight  # (rank, rank)
            total = total + torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device))
        weight_of: float = self._config.orth_reg_weight
        return weight_of * total / len(self._factors)

    def after_step(self, step: int) -> None:
        self._tuner.update_and_allocate(step)

    def state(self) -> dict[str, Any]:
        allocator = self._tuner.rankallocator
        kept = {name: dict(getattr(allocator, name)) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}
        return kept | {"rank_pattern": self._config.rank_pattern}

    def load(self, state: Mapping[str, Any]) -> None:
        for name in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
            setattr(self._tuner.rankallocator, name, dict(state[name]))
        self._config.rank_pattern = state["rank_pattern"]


class Bottleneck(nn.Module):
    """A layer followed by down ▸ GELU ▸ up around it, which begins as nothing (Houlsby et al. 2019).

    Shapes as the layer's own: (texts, tokens, hidden) where it ends a sublayer.
    """

    def __init__(self, layer: nn.Linear, width: int) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.out_features, width)
        self.up = nn.Linear(width, layer.out_features)
        nn.init.normal_(self.down.weight, std=1e-2)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the layer's answer with the bottleneck's added."""
        answer: Tensor = self.layer(hidden)
        added: Tensor = self.up(functional.gelu(self.down(answer)))
        return answer + added


def adapt(model: PreTrainedModel, options: TrainOptions, *, steps: int, where: str) -> Adapter:
    """Prepare a pretrained encoder for fine-tuning by `options.adapter`; weights that are not trained are frozen.

    `steps`: optimizer steps to come, at the most; `where` names the encoder in errors. Raises `DataError` for an
    adapter that is unknown or that this encoder cannot take.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = options.encoder_dropout
    model.requires_grad_(options.adapter == "full")
    match options.adapter:
        case "lora" | "adalora":
            return _low_rank(model, options, steps, where)
        case "bottleneck":
            return Adapter(_with_bottlenecks(model, options.bottleneck_width, where))
        case "prefix":
            return Adapter(_with_prefix(model, options, where))
        case "full":
            for name, parameter in model.named_parameters():
                if "pooler" in name:  # nobody reads it, so it has no gradient
                    parameter.requires_grad_(requires_grad=False)
            return Adapter(model)
        case "none":
            return Adapter(model)
    raise DataError(
        f"there is no adapter {options.adapter!r}",
        where="adapter",
        expected=f"one of {', '.join(get_args(AdapterName))}",
        fix="Correct `adapter`; `lora` is the usual one.",
    )


def merged(backbone: nn.Module) -> nn.Module:
    """Fold an update of weights into them, where the adapter is one; others stay and are exported as they are."""
    if hasattr(backbone, "merge_and_unload"):
        whole: nn.Module = backbone.merge_and_unload()  # type: ignore[operator]
        return whole
    return backbone


def _low_rank(model: PreTrainedModel, options: TrainOptions, steps: int, where: str) -> Adapter:
    from peft import AdaLoraConfig, LoraConfig, get_peft_model

    rank = options.lora_rank
    targets = sorted({name.rpartition(".")[2] for name, _ in model.named_modules()} & set(_ATTENTION))
    if not targets:
        raise _refused(model, where, "layer to put LoRA on", f"attention layers called one of {', '.join(_ATTENTION)}")
    shared = {"lora_alpha": 2 * rank, "lora_dropout": _LORA_DROPOUT, "target_modules": targets}
    if options.adapter == "lora":
        return Adapter(get_peft_model(model, LoraConfig(r=rank, **shared)))
    config = AdaLoraConfig(
        init_r=max(rank + 1, round(rank * _INITIAL_RANK)),
        target_r=rank,
        tinit=int(steps * _RANK_WARM_UP),
        tfinal=int(steps * _RANK_SETTLED),
        deltaT=max(1, steps // 50),
        total_step=max(1, steps),
        **shared,
    )
    return _AdaLora(get_peft_model(model, config))


def _with_bottlenecks(model: PreTrainedModel, width: int, where: str) -> PreTrainedModel:
    ends = [(name, layer) for name, layer in _sublayer_ends(model) if isinstance(layer, nn.Linear)]
    if not ends:
        raise _refused(
            model, where, "layer to put a bottleneck behind", f"layers that end in one of {', '.join(_SUBLAYER_ENDS)}"
        )
    for name, layer in ends:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, Bottleneck(layer, width))
    return model


def _sublayer_ends(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, layer) for name, layer in model.named_modules() if name.endswith(_SUBLAYER_ENDS))


def _with_prefix(model: PreTrainedModel, options: TrainOptions, where: str) -> nn.Module:
    from peft import PrefixTuningConfig, get_peft_model

    room = getattr(model.config, "max_position_embeddings", 0) - options.prefix_tokens
    if "past_key_values" not in inspect.signature(model.forward).parameters or room < options.max_tokens:
        raise _refused(
            model,
            where,
            f"room for a prefix of {options.prefix_tokens} tokens",
            f"an encoder that takes `past_key_values` and {options.prefix_tokens + options.max_tokens} positions",
        )
    config = PrefixTuningConfig(num_virtual_tokens=options.prefix_tokens, task_type="FEATURE_EXTRACTION")
    prefixed: nn.Module = get_peft_model(model, config)
    return prefixed


def _refused(model: PreTrainedModel, where: str, what: str, expected: str) -> DataError:
    return DataError(
        f"{type(model).__name__} has no {what}",
        where=where,
        expected=expected,
        fix="Choose another `adapter`, or another encoder as `base`.",
    )
