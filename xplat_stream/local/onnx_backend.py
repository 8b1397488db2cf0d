"""Triton's `onnxruntime` backend for the local server, which ships no other backend than Python.

`xplat_stream.local.triton` copies this file to `<home>/triton/backends/onnxruntime/model.py`, which makes it a
*Python-based backend*: a model folder then holds `config.pbtxt` and `<version>/model.onnx` and no code, exactly
as it does under NVIDIA's image. It is run by Triton's stub process, never imported by this package.

Where NVIDIA's backend refuses a graph whose tensor types differ from the configuration, this one casts and
logs a warning.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort  # ships no types
import triton_python_backend_utils as pb_utils  # exists only inside Triton's stub

GRAPH = "model.onnx"
# onnxruntime's names of the types a model of ours may take; everything else is refused at load.
ONNX_TYPES = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


class TritonPythonModel:
    """One instance of one version; Triton fixes the names of the class and its methods."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the version's graph; anything wrong raises here, so that the load fails and not the first request."""
        config: dict[str, Any] = json.loads(args["model_config"])
        graph = Path(args["model_repository"]) / args["model_version"] / GRAPH
        options = ort.SessionOptions()
        options.intra_op_num_threads = _threads(config, "intra_op_thread_count")
        options.inter_op_num_threads = _threads(config, "inter_op_thread_count")
        # A spinning thread burns a core that the broker and the workers need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self._inputs = {node.name: self._type_of(node, config["input"], graph) for node in self._session.get_inputs()}
        made = {node.name: node for node in self._session.get_outputs()}
        self._outputs = {}
        for output in config["output"]:
            name = output["name"]
            if name not in made:
                message = f"{graph} has no output {name}; it has {', '.join(sorted(made))}"
                raise pb_utils.TritonModelException(message)
            self._type_of(made[name], config["output"], graph)
            self._outputs[name] = np.dtype(pb_utils.triton_string_to_numpy(output["data_type"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request by itself, so that a bad one fails alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            feed = {}
            for name, kind in self._inputs.items():
                tensor = pb_utils.get_input_tensor_by_name(request, name)
                feed[name] = tensor.as_numpy().astype(kind, copy=False)
            wanted = [name for name in self._outputs if name in set(request.requested_output_names())]
            values = self._session.run(wanted, feed)
            tensors = [
                pb_utils.Tensor(name, np.ascontiguousarray(value, dtype=self._outputs[name]))
                for name, value in zip(wanted, values, strict=True)
            ]
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's answer, not the server's end
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{type(error).__name__}: {error}"))
        return pb_utils.InferenceResponse(output_tensors=tensors)

    @staticmethod
    def _type_of(node: Any, declared: list[dict[str, Any]], graph: Path) -> np.dtype[Any]:
        """Return the graph's type of a tensor, once it is known to be declared and convertible."""
        kinds = {tensor["name"]: tensor["data_type"] for tensor in declared}
        if node.name not in kinds or node.type not in ONNX_TYPES:
            message = f"{graph} wants {node.name} as {node.type}; config.pbtxt declares {', '.join(sorted(kinds))}"
            raise pb_utils.TritonModelException(message)
        kind = np.dtype(ONNX_TYPES[node.type])
        configured = np.dtype(pb_utils.triton_string_to_numpy(kinds[node.name]))
        if kind != configured:
            pb_utils.Logger.log_warn(
                f"{graph}: {node.name} is {kind} in the graph and {configured} in config.pbtxt; cast here, "
                "refused by NVIDIA's onnxruntime backend"
            )
        return kind


def _threads(config: dict[str, Any], key: str) -> int:
    """Read a thread count as NVIDIA's backend does; one when the configuration names none."""
    return int(config.get("parameters", {}).get(key, {}).get("string_value", "1"))
