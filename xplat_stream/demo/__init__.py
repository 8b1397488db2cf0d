"""`xplat demo`: the whole system on one machine, watched, refreshed while it runs, and proven exact at the end."""

from xplat_stream.demo.flow import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
