"""Networks × methods × neurons × T × seeds, measured alike, in a file that grows cell by cell; tables and figures."""

from parspike.bench.file import Bench, bench_names
from parspike.bench.result import Benched
from parspike.bench.run import BenchNetwork, bench
from parspike.bench.speed import Speed, speed

__all__ = ["Bench", "BenchNetwork", "Benched", "Speed", "bench", "bench_names", "speed"]
