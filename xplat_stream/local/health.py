"""Does a server answer? Asked with the clients the rest of the system uses, not by looking at a port.

A broker's port opens about a second before its coordinators have loaded, so a broker counts as healthy once it
has described its cluster and acknowledged a record.
"""

from __future__ import annotations

import importlib
import logging
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic  # where it is typed; `admin` re-exports it silently

from xplat_stream.errors import StackError

HEALTH_TOPIC: Final = "xplat.health.v1"
_LOG: Final = logging.getLogger(__name__)


def kafka_answers(bootstrap: str, *, timeout_s: float) -> bool:
    """Tell whether a broker describes its cluster in time."""
    admin = AdminClient(_quiet(bootstrap))
    try:
        cluster = admin.describe_cluster(request_timeout=timeout_s).result(timeout=timeout_s + 1)
    except (KafkaException, FutureTimeoutError) as error:
        _LOG.debug("kafka does not answer: bootstrap=%s error=%s", bootstrap, error)
        return False
    return bool(cluster.nodes)


def kafka_accepts(bootstrap: str, *, timeout_s: float) -> bool:
    """Tell whether the broker acknowledges a record on `HEALTH_TOPIC`, which is created where it is missing."""
    admin = AdminClient(_quiet(bootstrap))
    topic = NewTopic(HEALTH_TOPIC, num_partitions=1, replication_factor=1, config={"retention.ms": "3600000"})
    try:
        admin.create_topics([topic], request_timeout=timeout_s)[HEALTH_TOPIC].result(timeout=timeout_s + 1)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            return False
    except FutureTimeoutError:
        return False
    acknowledged: list[bool] = []

    def delivered(error: KafkaError | None, _record: Message) -> None:
        acknowledged.append(error is None)

    producer = Producer({**_quiet(bootstrap), "acks": "all", "message.timeout.ms": int(timeout_s * 1000)})
    producer.produce(HEALTH_TOPIC, value=b"up", on_delivery=delivered)
    producer.flush(timeout_s)
    return acknowledged == [True]


def triton_answers(url: str, *, timeout_s: float) -> bool:
    """Tell whether Triton says over gRPC that it is ready."""
    try:
        # Imported here: the package comes with the extras `worker` and `trainer` and takes half a second to load.
        grpc = importlib.import_module("tritonclient.grpc")
    except ImportError as error:
        raise StackError(
            f"Triton's client is not installed: {error}",
            where="tritonclient",
            expected="tritonclient[grpc]",
            fix="Install it: pip install 'xplat-stream[worker,local]'.",
        ) from error
    client = grpc.InferenceServerClient(url)
    try:
        return bool(client.is_server_ready(client_timeout=timeout_s))
    except grpc.InferenceServerException as error:
        _LOG.debug("triton does not answer: url=%s error=%s", url, error)
        return False
    finally:
        client.close()


def _quiet(bootstrap: str) -> dict[str, Any]:
    """Configure a client to try often and to keep librdkafka's line per failed attempt to itself."""
    return {
        "bootstrap.servers": bootstrap,
        "log_level": 0,
        "error_cb": _ignore,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 250,
    }


def _ignore(_error: KafkaError) -> None:
    """Drop librdkafka's report of a failed connection; the caller's deadline speaks."""
