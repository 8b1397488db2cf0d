"""Everything that speaks to Kafka through confluent-kafka: topics, codecs, the two SDKs, bounded log reading."""

from xplat_stream.kafka.codec import decode_profile, encode_profile
from xplat_stream.kafka.consumer import ProfileConsumer
from xplat_stream.kafka.producer import EventProducer

__all__ = ["EventProducer", "ProfileConsumer", "decode_profile", "encode_profile"]
