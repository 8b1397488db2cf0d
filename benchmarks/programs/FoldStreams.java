import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.state.KeyValueStore;

/**
 * The peer: Kafka Streams, an aggregate in RocksDB with a changelog; its record cache is what makes one output of many
 * changes of a user between two commits. Arguments are Streams settings, name=value.
 */
public final class FoldStreams {
    private static final int KEEP = 50;
    private static final long HORIZON_MS = 90L * 86_400_000L;

    /** What is kept of an event, ordered by time, then id. */
    record Kept(long time, String id, String action, String item) implements Comparable<Kept> {
        @Override
        public int compareTo(Kept other) {
            int byTime = Long.compare(time, other.time);
            return byTime != 0 ? byTime : id.compareTo(other.id);
        }
    }

    @JsonIgnoreProperties(ignoreUnknown = true)
    record Item(String id) {}

    @JsonIgnoreProperties(ignoreUnknown = true)
    record Data(String action, Item object) {}

    @JsonIgnoreProperties(ignoreUnknown = true)
    record Event(String id, String time, Data data) {
        Kept kept() {
            return new Kept(Instant.parse(time).toEpochMilli(), id, data.action(), data.object().id());
        }
    }

    private FoldStreams() {}

    /** Add one event to a window, in place: the newest 50 within 90 days; one that is there changes nothing. */
    static List<Kept> fold(List<Kept> window, Kept event) {
        int at = window.isEmpty() || event.compareTo(window.get(window.size() - 1)) > 0
            ? -window.size() - 1 : Collections.binarySearch(window, event);
        if (at < 0) {
            window.add(-at - 1, event);
        }
        long start = window.get(window.size() - 1).time() - HORIZON_MS;
        int drop = Math.max(0, window.size() - KEEP);
        while (window.get(drop).time() < start) {
            drop++;
        }
        window.subList(0, drop).clear();
        return window;
    }

    /** Windows as bytes: for each event the time, then three texts with a length byte. */
    static final class WindowSerde implements Serde<List<Kept>>, Serializer<List<Kept>>, Deserializer<List<Kept>> {
        @Override
        public byte[] serialize(String topic, List<Kept> window) {
            if (window == null) {
                return null;
            }
            List<byte[]> texts = new ArrayList<>(3 * window.size());
            int size = 0;
            for (Kept event : window) {
                for (String text : new String[] {event.id(), event.action(), event.item()}) {
                    byte[] encoded = text.getBytes(StandardCharsets.UTF_8);
                    texts.add(encoded);
                    size += 1 + encoded.length;
                }
            }
            ByteBuffer packed = ByteBuffer.allocate(size + 8 * window.size());
            for (int i = 0; i < window.size(); i++) {
                packed.putLong(window.get(i).time());
                for (int j = 3 * i; j < 3 * i + 3; j++) {
                    packed.put((byte) texts.get(j).length).put(texts.get(j));
                }
            }
            return packed.array();
        }

        @Override
        public List<Kept> deserialize(String topic, byte[] packed) {
            if (packed == null) {
                return null;
            }
            List<Kept> window = new ArrayList<>(KEEP + 1);
            ByteBuffer from = ByteBuffer.wrap(packed);
            while (from.hasRemaining()) {
                window.add(new Kept(from.getLong(), text(from), text(from), text(from)));
            }
            return window;
        }

        private static String text(ByteBuffer from) {
            int length = from.get() & 0xff;
            String text = new String(from.array(), from.position(), length, StandardCharsets.UTF_8);
            from.position(from.position() + length);
            return text;
        }

        @Override
        public void configure(Map<String, ?> settings, boolean isKey) {}

        @Override
        public void close() {}

        @Override
        public Serializer<List<Kept>> serializer() {
            return this;
        }

        @Override
        public Deserializer<List<Kept>> deserializer() {
            return this;
        }
    }

    public static void main(String[] arguments) throws InterruptedException {
        Properties settings = new Properties();
        for (String argument : arguments) {
            String[] pair = argument.split("=", 2);
            settings.put(pair[0], pair[1]);
        }
        ObjectReader events = new ObjectMapper().readerFor(Event.class);
        StreamsBuilder builder = new StreamsBuilder();
        builder.stream(System.getenv("BENCH_SOURCE"), Consumed.with(Serdes.String(), Serdes.ByteArray()))
            .mapValues(value -> {
                try {
                    return events.<Event>readValue(value).kept();
                } catch (IOException error) {
                    throw new UncheckedIOException(error);
                }
            })
            .groupByKey()
            .aggregate(
                () -> new ArrayList<Kept>(),
                (user, event, window) -> fold(window, event),
                Materialized.<String, List<Kept>, KeyValueStore<Bytes, byte[]>>as("windows")
                    .withKeySerde(Serdes.String())
                    .withValueSerde(new WindowSerde()))
            .toStream()
            .mapValues(window ->
                "{\"end\":" + window.get(window.size() - 1).time() + ",\"events\":" + window.size() + "}")
            .to(System.getenv("BENCH_OUTPUT"), Produced.with(Serdes.String(), Serdes.String()));
        KafkaStreams streams = new KafkaStreams(builder.build(), settings);
        CountDownLatch ended = new CountDownLatch(1);
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            ended.countDown();
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
        ended.await();
        System.exit(1); // only a failure ends it from inside; closing runs in the hook
    }
}
