"""What the peers run, each in an environment of its own: they share the law and its parameters, and nothing else.

Every program reads where to work from the environment: ``BENCH_BOOTSTRAP``, ``BENCH_SOURCE`` and ``BENCH_OUTPUT``
(topics of ``BENCH_PARTITIONS`` partitions) and ``BENCH_FOLDER``, an empty folder of its own.
"""
