"""What `streams` overrides or uses in faust-streaming 0.15.3 is semi-private: this tells when it changed."""

from __future__ import annotations

import inspect
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version

import pytest

CONTRACT: dict[str, tuple[str, str]] = {
    "faust.transport.consumer:Consumer._drain_messages": (
        "44a2500309e83c630493f6828af50166ec8d96a0b3e4fb2bab735f704ae93417",
        "ChunkConsumer._drain_messages replaces it: what it tracks, when it stops, what it does on errors",
    ),
    "faust.transport.consumer:Consumer.ack": (
        "5fcf41cf45153475de3790dc56fec1b83335956dc8b3bf7ff6bbb2b57627f03f",
        "ChunkConsumer.ack replaces it: the fields of a message it sets",
    ),
    "faust.transport.consumer:Consumer._filter_tps_with_pending_acks": (
        "f6f9239774234e7e230eee7c40c686421a66302be95e59c59a9109c2bba5fbd6",
        "overridden: who calls it and with what",
    ),
    "faust.transport.consumer:Consumer._new_offset": (
        "1d2c7ea89a7ad4f1a216c1d51936e569162cd66bd56f889e13fd29c910b58eb0",
        "overridden: who calls it and what None means",
    ),
    "faust.transport.consumer:Consumer._filter_committable_offsets": (
        "dc5e9baf5d994485473ce80aed1873b9318f02d735fde21e285de3d0c52a5e0e",
        "it has to call _new_offset and _should_commit only",
    ),
    "faust.transport.consumer:Consumer._should_commit": (
        "5ce941793947ad42b5c4298765d32f8fcbb8dd74b4385a50ab4b466fb651781c",
        "it has to compare with _committed_offset only",
    ),
    "faust.transport.consumer:Consumer._commit_tps": (
        "a20e230b05ae8b151ac9f78fa77a102003a948c66c24c9d3588e39cb12859b7e",
        "nothing but _filter_committable_offsets may decide what is committed",
    ),
    "faust.transport.consumer:Consumer._commit_offsets": (
        "1a6979904118844111259d182ca1c6e92ccc16364ccbe55c58e59d6e254a7adb",
        "only assigned partitions are committed, and nothing else is",
    ),
    "faust.transport.consumer:Consumer.commit": (
        "a354437baaa08bf8096d978ca195963e22f7a497d18392960dd53dacb7c9f2d8",
        "who may commit while a rebalance is under way",
    ),
    "faust.transport.consumer:Consumer.perform_seek": (
        "0e8c130ff4b0afd82c0be9c5fd831316e10febc62c94032833911096e156d7c6",
        "it has to call seek_to_committed and to set _read_offset from its answer",
    ),
    "faust.transport.consumer:Consumer.seek": (
        "b86a9fe05f956b30cf299c787b6787c6e0349cbf1ae556f2456a1e97b15dbb22",
        "it has to set _read_offset: ChunkConsumer._is_hole seeks through it",
    ),
    "faust.transport.consumer:Consumer._wait_next_records": (
        "6218e1969a636b3ff504ad1b8e7ad58a113572e43d746cc96d684ed5153032c6",
        "ChunkConsumer._getmany clears not_waiting_next_records because this never does; it has to set it",
    ),
    "faust.transport.consumer:Consumer.wait_for_stopped_flow": (
        "9a686a7f90a4e52b313f59ce4ab24bb3aaaf7b1d33aebb559bc1ee5b0109d889",
        "it has to wait for not_waiting_next_records: streams.app.take_over relies on it",
    ),
    "faust.transport.consumer:Consumer.stop_flow": (
        "cf7e875a2b0d40e8e45df69720709199c47b710c983cf79371cce3a58888a6ac",
        "it has to set suspend_flow: a blocked delivery ends by it",
    ),
    "faust.transport.consumer:Consumer.resume_flow": (
        "db59630f25b5819b092c90649e1046cbea184e91a0aff59368e7747665536dd5",
        "it has to clear suspend_flow",
    ),
    "faust.transport.consumer:Consumer.pause_partitions": (
        "27a1c94bdacd54de06593ec4eb040b32e9e7c9534e9af041f6ed66723df5f922",
        "ChunkConsumer.hold_back: what is paused has to leave the active partitions",
    ),
    "faust.transport.consumer:Consumer.resume_partitions": (
        "afe6b7c02a41d63cd46d47a03f09b547c85289c108de21d682970057d1015c3b",
        "overridden: nothing else may resume what is held back",
    ),
    "faust.transport.consumer:Consumer.on_buffer_full": (
        "c8961679e0bcdce5c23b07143d687ec8814492012e176332552e81b8feb7862c",
        "overridden to do nothing: all it may do is to leave a partition out of the fetch",
    ),
    "faust.transport.consumer:Consumer.on_partitions_revoked": (
        "d04b7ae72c6fc206924a2879d6c90dd383f3e8ba6f4b10a19ca99a921eb8f4db",
        "it has to forget _read_offset and to call the app before ours forgets what was processed",
    ),
    "faust.transport.consumer:Consumer.on_partitions_assigned": (
        "29ce96596f05a18c6738eeb2e0d308dd8ef09e9116854129372c474f8638c069",
        "where the generation is set, and what is paused",
    ),
    "faust.transport.consumer:Consumer.on_stop": (
        "45b1d2210ce2b526339856969472683f8bcc1b1d04c8dc1fb2315b4eb7fbd5e3",
        "a last commit has to follow the shutdown signal",
    ),
    "faust.transport.consumer:ThreadDelegateConsumer._getmany": (
        "f9d47aa9010b5ff2b874ba65f927871f3612718d8a9db00b58601554a35236c4",
        "ChunkConsumer._getmany wraps it",
    ),
    "faust.transport.consumer:ThreadDelegateConsumer.seek_to_committed": (
        "f1d483b861b0328b4f0be90a4abc3f95063d52573c87db4a87b6016105f2b7de",
        "ChunkConsumer.seek_to_committed adds to its answer",
    ),
    "faust.transport.drivers.aiokafka:Consumer._new_consumer_thread": (
        "0870ec53dea75083995e3565c0f0a25a1c63ecceaeb238e92e2585e3623af5a9",
        "ChunkConsumer makes a thread of its own, whose consumer takes batches whole",
    ),
    "faust.transport.drivers.aiokafka:AIOKafkaConsumerThread._create_worker_consumer": (
        "c2701bfc3e6f6cad95c2be36d6a255a86e2c57d18d36cc1082b5fb5c482d99d7",
        "the assignor, max_poll_records and fetch size of ours are passed here",
    ),
    "faust.transport.drivers.aiokafka:AIOKafkaConsumerThread.seek_to_committed": (
        "775ab0adc4b052abee204d5347a556412b1f77ed4de971adde69a55a1cb6f908",
        "it has to answer every assigned partition",
    ),
    "faust.transport.drivers.aiokafka:AIOKafkaConsumerThread.getmany": (
        "26fc5fc9f3b667e104f9657dbc49da3b3b6620d40cc9856761cbaf4da2172557",
        "the fetch has to return at once while the flow is stopped",
    ),
    "faust.transport.drivers.aiokafka:AIOKafkaConsumerThread._fetch_records": (
        "39a2c6c79fc1455a199629912b533458a720c64983bc957420a42feef6593baa",
        "the same, and it takes the active partitions only",
    ),
    "faust.transport.drivers.aiokafka:AIOKafkaConsumerThread._commit": (
        "932852ce7a23f658804273d0296de6affaa7d21c19311c279712c2fae91a3b03",
        "which errors of a commit are swallowed",
    ),
    "faust.transport.drivers.aiokafka:ConsumerRebalanceListener.on_partitions_assigned": (
        "1c1f8406ad3698a6770a4ececb2f8074c0e80bea9ad0a0f4879baacb4ea996da",
        "it has to set app.consumer_generation_id before anything is read",
    ),
    "faust.tables.recovery:Recovery._resume_streams": (
        "d986a6710c1aca98f08c4c723fb3eadc5bf24576ad4eb9da3dd3eecedda2f24e",
        "on_rebalance_complete, then the seek, then the flow: streams.app.take_over stands in between",
    ),
    "faust.tables.recovery:Recovery._restart_recovery": (
        "6bd8a8558a2dffe4c60b8150f23d721baa6b3d658367f911a3ad2187e20efc6f",
        "without tables it has to call _resume_streams and nothing else",
    ),
    "faust.tables.recovery:Recovery.on_rebalance": (
        "aa4d997a1795ceae3880f98311b46935d9ae1a183a699b9a283bb4306bc8641f",
        "the generation check that drops an assignment which is over",
    ),
    "faust.tables.recovery:Recovery.on_recovery_completed": (
        "6ef567acf072e46da3fccbccc6d662371f634f622c3d510972d5df81f70ae3ac",
        "it has to send on_rebalance_complete before it seeks: take_over stops the flow there",
    ),
    "faust.streams:Stream.noack": (
        "921a6f5c674d32d4568445c58e340ad17f896d36ec0e832c1b92c9f99eced5d0",
        "the agent acknowledges by hand",
    ),
    "faust.streams:Stream.events": (
        "c62f4dd3a73fe7aaa7c61fd2658bffe97a05aa9c6926b96f9e4d49dcf3250f93",
        "the agent reads events, not values",
    ),
    "faust.transport.conductor:ConductorCompiler.build": (
        "837cf521368c1ee4b22c235a2b137f665eca03d0e3e01b5ddedb65232ee73bf2",
        "which errors of decoding are acknowledged; ChunkSchema raises none",
    ),
    "faust.app.base:App._on_partitions_assigned": (
        "de932b7927db85b3d5e88971c3c7d2d75c0c7af8111a2ca08d4097bd9f8d2552",
        "the order of pausing, conductor and recovery",
    ),
    "faust.app.base:App._on_partitions_revoked": (
        "d5c895bbe57dc73ae4d7f762f6fdc9fdd3abd02f9e05863ccfd8034082e5682f",
        "flow stopped, queues cleared, then the signal that makes lanes let go",
    ),
    "faust.app.base:App._stop_consumer": (
        "55854a5de12c3f5296b4acf16ddfe359be0b702d0cd7686bcab541847c396077",
        "the fetcher is stopped before the shutdown signal",
    ),
    "faust.app.base:App.on_stop": (
        "bfe5a933defb2324031e00f20e2f650176416c192f16c6d70931006699b21938",
        "the shutdown signal makes lanes let go and closes the outbox",
    ),
    "faust.app.base:App._update_assignment": (
        "39d9f315c122832526a1ba024b0de2e007928249322fed95d1026bc88f05dda8",
        "OwnerAssignor.metadata reads app._assignment",
    ),
    "faust.app.base:App.worker_init_post_autodiscover": (
        "f69e34079ab8a734b4146ff2a059470068fac046c97247a44e6a1cdc3ae846e8",
        "on_worker_init claims the state folder, before the group is joined",
    ),
    "faust.transport.conductor:Conductor._update_indices": (
        "619b3247b96ac7d508b9b571e30fdaceb00378b77c79e4aee12a5d8ee3f41d34",
        "streams.app subscribes to the topics it returns",
    ),
    "faust.transport.conductor:Conductor.on_partitions_assigned": (
        "616e9729131cf0bb7ed8e7108d47bab6c7dacf5d4a028d1165eb0a5a72a8f4ad",
        "the channels of a new topic get a callback here",
    ),
    "faust.assignor.partition_assignor:PartitionAssignor.__init__": (
        "64cb8790c57251c3e1be5a699ffdfe2fffd0fcd8a8b1a5d9659cf78206a62fd4",
        "OwnerAssignor is made by it",
    ),
    "mode.utils.queues:FlowControlEvent.resume": (
        "4dcdc1253fd0dcb40de18a3702503c01d21e9da7e5e55b122fb92615f27648d9",
        "it clears the queues: chunks of before are dropped",
    ),
    "mode.utils.queues:FlowControlQueue.put": (
        "0ba84eb5e357a17e7eb5554b631d72d20dcf4abcec3fa65fddd6237a777c006b",
        "it waits for the flow and for room",
    ),
    "mode.utils.queues:FlowControlQueue.clear": (
        "fa9a86f6b097c90fd4dd86ccb1ce7c57d3c961d8d720d465ba8cb98429b9d578",
        "it wakes nobody, therefore a delivery ends with the flow",
    ),
    "mode.services:Service.wait_first": (
        "feade6a31f8a67897cf687c54c66f5f4535288050bbaac07249ce2063d36ae2e",
        "it has to cancel what is not done first",
    ),
}
"""module:qualified name → (sha256 of the source, what to check again where it differs)."""


def source_hash(name: str) -> str:
    """Return the sha256 of a function's source."""
    module, _, path = name.partition(":")
    found = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    found = getattr(found, "fun", found)  # what `Service.task` wraps
    return sha256(inspect.getsource(inspect.unwrap(found)).encode()).hexdigest()


def test_the_version_is_the_one_this_was_written_against() -> None:
    """Faust is pinned, and so is what this file knows of it."""
    assert version("faust-streaming") == "0.15.3"


@pytest.mark.parametrize("name", CONTRACT)
def test_the_source_is_the_one_this_was_written_against(name: str) -> None:
    """A changed method fails here, with what of `streams` has to be read again, before it loses an event."""
    expected, check = CONTRACT[name]
    assert source_hash(name) == expected, f"{name} is another source than in faust-streaming 0.15.3; check: {check}"
