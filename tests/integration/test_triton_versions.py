"""Model versions on the real local Triton, under the very configurations that NVIDIA's image serves."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tritonclient import grpc  # type: ignore[import-untyped]  # ships no types

from xplat_stream import local
from xplat_stream.local.process import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xplat_stream.settings import Settings

pytestmark = pytest.mark.integration

CLIENTS = 4
REQUESTS_BETWEEN = 200  # answered by the old version before, and again after, the new one is loaded
TIMEOUT_S = 10.0
WIDTH = 64
# Both numbers as low as the graphs allow, so that NVIDIA's image and older runtimes read them too.
IR_VERSION, OPSET = 8, 17


def _model(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _encoder(factor: float) -> bytes:
    """Return an encoder whose vector is the masked ids times a factor: the answer tells which version gave it."""
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["masked"]),
        helper.make_node("Cast", ["masked"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "factor"], ["vector"]),
    ]
    ids = [helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "n"]) for n in ("input_ids", "attention_mask")]
    vector = [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["b", "n"])]
    constants = [helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])]
    return _model(helper.make_graph(nodes, "encoder", ids, vector, constants))


def _head() -> bytes:
    """Return a head with the real signature: the user vector is the sum of the vectors, a score each event's age."""
    nodes = [
        helper.make_node("Cast", ["vectors"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["wide", "axis"], ["user_vector"], keepdims=0),
        helper.make_node("Add", ["platform", "action"], ["code"]),
        helper.make_node("Cast", ["code"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["number", "age"], ["scores"]),
    ]
    kinds = {"platform": TensorProto.INT32, "action": TensorProto.INT32, "age": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info("vectors", TensorProto.FLOAT16, ["b", "n", WIDTH])]
    inputs += [helper.make_tensor_value_info(name, kind, ["b", "n"]) for name, kind in kinds.items()]
    outputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["b", "n"]),
        helper.make_tensor_value_info("user_vector", TensorProto.FLOAT, ["b", WIDTH]),
    ]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    return _model(helper.make_graph(nodes, "head", inputs, outputs, [axis]))


def _release(repository: Path, model: str, version: int, graph: bytes) -> None:
    """Put a version into the repository as releases do: staged beside it, then renamed."""
    staged = repository.with_name("staging") / f"{model}-{version}"
    staged.mkdir(parents=True)
    (staged / "model.onnx").write_bytes(graph)
    staged.rename(repository / model / str(version))


def _infer(client: Any, model: str, version: int, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    kinds = {"int64": "INT64", "int32": "INT32", "float32": "FP32", "float16": "FP16"}
    inputs = []
    for name, array in arrays.items():
        tensor = grpc.InferInput(name, list(array.shape), kinds[array.dtype.name])
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return client.infer(model, inputs, model_version=str(version), client_timeout=TIMEOUT_S)


def _texts(texts: int, tokens: int) -> dict[str, np.ndarray[Any, Any]]:
    ids = np.arange(texts * tokens, dtype=np.int64).reshape(texts, tokens)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@pytest.fixture
def served(
    stack: Settings, stack_settings: Callable[..., Settings], tmp_path: Path
) -> Iterator[tuple[Path, Any, Callable[[], str]]]:
    """Yield a repository whose encoder and broken second head version were there at the start, and a client."""
    settings = stack_settings(tmp_path)
    repository = Path(settings.model.repository)
    _release(repository, "interest_encoder", 1, _encoder(1.0))
    _release(repository, "interest_head", 1, b"not a graph")
    try:
        state = local.up(settings, report=lambda _line: None, external_kafka=stack.kafka.bootstrap)
        with grpc.InferenceServerClient(state.triton.address) as client:
            yield repository, client, lambda: state.triton.address
    finally:
        local.down(settings, report=lambda _line: None)


def test_a_new_version_is_loaded_beside_the_old_one_without_a_failed_request(
    served: tuple[Path, Any, Callable[[], str]],
) -> None:
    """Requests pinned to version 1 all succeed while version 2 is loaded, and version 1 stays loaded after."""
    repository, client, address = served
    texts, stop = _texts(4, 16), threading.Event()
    answered, failed = [0] * CLIENTS, list[str]()

    def ask(number: int) -> None:
        with grpc.InferenceServerClient(address()) as own:
            while not stop.is_set():
                try:
                    vector = _infer(own, "interest_encoder", 1, texts).as_numpy("vector")
                except grpc.InferenceServerException as error:
                    failed.append(str(error))
                    continue
                if not np.array_equal(vector, texts["input_ids"].astype(np.float32)):
                    failed.append("another version answered")
                answered[number] += 1

    def more_answers() -> Callable[[], bool]:
        until = sum(answered) + REQUESTS_BETWEEN
        return lambda: sum(answered) >= until or bool(failed)

    with ThreadPoolExecutor(CLIENTS) as pool:
        for number in range(CLIENTS):
            pool.submit(ask, number)
        try:
            assert wait_for(more_answers(), timeout_s=60)
            during = sum(answered)
            _release(repository, "interest_encoder", 2, _encoder(2.0))
            client.load_model("interest_encoder", client_timeout=60)
            during = sum(answered) - during
            assert wait_for(more_answers(), timeout_s=60)
        finally:
            stop.set()
    assert failed == []
    assert during > 0
    assert client.is_model_ready("interest_encoder", "1")
    assert client.is_model_ready("interest_encoder", "2")
    doubled = _infer(client, "interest_encoder", 2, texts).as_numpy("vector")
    assert np.array_equal(doubled, 2 * texts["input_ids"].astype(np.float32))


def test_no_model_sets_a_queue_policy(stack: Settings) -> None:
    """Any queue policy makes Triton's batcher let a call wait 500 ms now and then; the configurations have none."""
    configs = list(Path(stack.model.repository).glob("*/config.pbtxt"))
    assert configs
    for config in configs:
        lines = config.read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if "queue_policy" in line and not line.startswith("#")] == []


def test_one_broken_model_takes_nothing_else_down(served: tuple[Path, Any, Callable[[], str]]) -> None:
    """A graph that cannot be read leaves server and other model up; a good next version of it can be loaded."""
    repository, client, _ = served
    assert client.is_server_ready()
    assert client.is_model_ready("interest_encoder", "1")
    assert not client.is_model_ready("interest_head")
    (repository / "interest_head" / "1").rename(repository.with_name("broken"))
    _release(repository, "interest_head", 2, _head())
    client.load_model("interest_head", client_timeout=60)
    assert client.is_model_ready("interest_head", "2")


def test_a_version_that_does_not_load_leaves_the_serving_one_alone(
    served: tuple[Path, Any, Callable[[], str]],
) -> None:
    """`load_model` of an unreadable or unfitting version raises and says why; version 1 goes on answering."""
    repository, client, _ = served
    for version, graph, reason in ((2, b"not a graph", "INVALID_PROTOBUF"), (3, _head(), "interest_encoder/3")):
        _release(repository, "interest_encoder", version, graph)
        with pytest.raises(grpc.InferenceServerException, match=reason):
            client.load_model("interest_encoder", client_timeout=60)
        assert _infer(client, "interest_encoder", 1, _texts(1, 8)).as_numpy("vector").shape == (1, 8)
        (repository / "interest_encoder" / str(version)).rename(repository.with_name(f"broken-{version}"))


def test_the_head_takes_half_precision_and_answers_only_what_is_asked(
    served: tuple[Path, Any, Callable[[], str]],
) -> None:
    """Each input reaches the tensor of its name with its type, and both outputs come back as 32-bit floats."""
    repository, client, _ = served
    (repository / "interest_head" / "1").rename(repository.with_name("broken"))
    _release(repository, "interest_head", 2, _head())
    client.load_model("interest_head", client_timeout=60)
    users, events = 3, 5
    window: dict[str, np.ndarray[Any, Any]] = {
        "vectors": np.full((users, events, WIDTH), 0.5, np.float16),
        "platform": np.full((users, events), 2, np.int32),
        "action": np.full((users, events), 10, np.int32),
        "age": np.full((users, events), 0.25, np.float32),
    }
    answer = _infer(client, "interest_head", 2, window)
    assert np.array_equal(answer.as_numpy("scores"), np.full((users, events), 12.25, np.float32))
    assert np.array_equal(answer.as_numpy("user_vector"), np.full((users, WIDTH), 2.5, np.float32))


def test_a_bad_request_fails_alone(served: tuple[Path, Any, Callable[[], str]]) -> None:
    """Inputs that do not fit each other are that request's error; the next request is answered."""
    _, client, _ = served
    unfitting: dict[str, np.ndarray[Any, Any]] = {**_texts(2, 16), "attention_mask": np.ones((2, 7), np.int64)}
    with pytest.raises(grpc.InferenceServerException, match=r"input_ids|Mul"):
        _infer(client, "interest_encoder", 1, unfitting)
    assert _infer(client, "interest_encoder", 1, _texts(2, 16)).as_numpy("vector").shape == (2, 16)
