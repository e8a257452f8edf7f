"""Networks × methods × neurons × T × seeds, measured alike, in a file that grows cell by cell; tables and figures."""

from parspike.bench.file import Bench, bench_names
from parspike.bench.result import Benched
from parspike.bench.run import BenchNetwork, bench

__all__ = ["Bench", "BenchNetwork", "Benched", "bench", "bench_names"]
