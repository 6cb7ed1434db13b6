"""Measures training on several ranks, and compares it with the cost model of docs/src/distributed.md.

    python benches/ranks.py measure BINARY [--rounds 3] [--width 64] [--batch 128] [--shards 2]
    python benches/ranks.py memory BINARY [--rows 1000000] [--dims 128] [--with 'KMeans(…)']
    python benches/ranks.py link [--ranks 2]
    python benches/ranks.py model

`measure` needs Open MPI, a C compiler, Linux and idle cores. Each round trains a ResNet-18 for a few steps in three ways:
on one process with one thread, on one process with as many threads as ranks, and on ranks with one thread each. The time
of a step is computed from the difference between a longer and a shorter run, so it excludes start and end. Prints the
medians, their ratios, the share of the time that ranks spend in MPI, waiting included, and the bytes that each rank
receives per step.

`memory` clusters random rows on one process and on ranks, and prints the peak resident memory of each rank. It fails
unless all write the same bytes.

`link` measures the operations of Open MPI that a step uses, between ranks on this machine or on those of `--host`.

`model` prints the tables of the page.
"""

import argparse
import array
import ctypes
import glob
import math
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time

STEPS = (1, 4)
RECIPE = """Recipe(
    name: "ranks",
    data: Shapes(count: 2048, size: 32, classes: 4, seed: 1),
    views: [(count: 2, ops: [RandomResizedCrop(size: 32)])],
    encoder: ResNet18(stem: Small, width: {width}),
    projector: Mlp(dims: [{features}, 128]),
    objective: [(term: InfoNce())],
    optimizer: Sgd(lr: 0.05),
    train: (epochs: 1, batch: {batch}, shards: {shards}),
    probes: [],
    baselines: [],
)
"""
VIEWS, DIMS, FLOAT = 2, 128, 4


def run(command, environment):
    """Runs a command, which has to succeed, and returns its seconds."""
    began = time.monotonic()
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return time.monotonic() - began


def launcher(ranks):
    """Returns the command that starts ranks."""
    return ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]


def library(folder):
    """Compiles the library that measures MPI."""
    found = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    mpi = next((line.split()[-1] for line in found.splitlines() if "libmpi.so.40 " in line), None)
    if mpi is None:
        raise SystemExit("there is no libmpi.so.40: install openmpi-bin")
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "mpi_times.c")
    built = os.path.join(folder, "mpi_times.so")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", built, source, mpi], check=True)
    return built


class Measurement:
    """Trainings of one recipe."""

    def __init__(self, options, folder):
        self.binary, self.folder = os.path.abspath(options.binary), folder
        self.times = os.path.join(folder, "times")
        self.library = library(folder)
        self.recipe = os.path.join(folder, "recipe.ron")
        values = vars(options) | {"features": 8 * options.width}
        with open(self.recipe, "w", encoding="utf-8") as file:
            file.write(RECIPE.format(**values))

    def train(self, ranks, threads, steps):
        """Trains, and returns the seconds and, for each rank, its seconds in MPI, calls and bytes."""
        out = tempfile.mkdtemp(dir=self.folder)
        arguments = ["--threads", str(threads), "run", self.recipe, "--max-steps", str(steps), "--out", out]
        if ranks == 1:
            return run([self.binary, *arguments], {}), []
        environment = {"PAUC_MPI": self.library, "PAUC_MPI_TIMES": self.times}
        seconds = run([*launcher(ranks), self.binary, *arguments], environment)
        with open(self.times, encoding="utf-8") as file:
            of_ranks = [[float(value) for value in line.split()] for line in file]
        os.remove(self.times)
        return seconds, of_ranks

    def step(self, ranks, threads):
        """Returns means over the ranks: seconds of a step, the share of them in MPI, and bytes that a rank receives."""
        (short, before), (long, after) = (self.train(ranks, threads, steps) for steps in STEPS)
        count = STEPS[1] - STEPS[0]

        def per_step(column):
            total = [sum(of_rank[column] for of_rank in of_ranks) for of_ranks in (before, after)]
            return (total[1] - total[0]) / count / ranks

        seconds = (long - short) / count
        # Every operation moves the same number of bytes between any two ranks.
        return (seconds, 0, 0) if ranks == 1 else (seconds, per_step(0) / seconds, (ranks - 1) * per_step(2))


def measure(options):
    """Prints the table of the ways to train."""
    ways = {
        "1 process, 1 thread": (1, 1),
        f"1 process, {options.ranks} threads": (1, options.ranks),
        f"{options.ranks} ranks, 1 thread": (options.ranks, 1),
    }
    with tempfile.TemporaryDirectory() as folder:
        measurement = Measurement(options, folder)
        steps = {name: [] for name in ways}
        for number in range(options.rounds):
            order = list(ways) if number % 2 == 0 else list(reversed(ways))
            for name in order:
                steps[name].append(measurement.step(*ways[name]))
    medians = {name: [statistics.median(column) for column in zip(*of_way)] for name, of_way in steps.items()}
    threads = medians[f"1 process, {options.ranks} threads"][0]
    print(f"{'':22}{'s per step':>12}{'throughput':>12}{'in MPI':>9}{'received':>14}{'predicted':>14}")
    for name, (seconds, share, received) in medians.items():
        ranks = ways[name][0]
        predicted = step_bytes(resnet18(options.width, 1, 3), options.batch, ranks, options.shards)
        print(f"{name:22}{seconds:12.3f}{threads / seconds:12.3f}{share:9.1%}{received:14.0f}{predicted:14.0f}")
    spread = {name: [round(step[0], 3) for step in of_way] for name, of_way in steps.items()}
    print(f"each round: {spread}")


def write_rows(path, rows, dims):
    """Writes random rows as a .npy file of float32: one block of numbers, shifted a little further each time."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dims}), }}"
    header = header.ljust(117) + "\n"
    noise = random.Random(0)
    block = array.array("f", (noise.gauss(0, 1) for _ in range(1 << 20)))
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
        left = rows * dims
        while left > 0:
            block.append(block.pop(0))
            file.write(block[:left].tobytes())
            left -= len(block)


def peaks(command, binary):
    """Runs a command, and returns the largest resident memory of each process of the binary, in bytes."""
    found = {}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        for status in glob.glob("/proc/[0-9]*/status"):
            folder = os.path.dirname(status)
            try:
                if os.readlink(f"{folder}/exe") == binary:
                    with open(status, encoding="utf-8") as file:
                        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
                    found[folder] = 1024 * peak
            except (OSError, StopIteration):
                continue
        time.sleep(0.02)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return list(found.values())


def memory(options):
    """Prints the memory of ranks that cluster together."""
    binary = os.path.realpath(options.binary)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows, out = os.path.join(folder, "rows.npy"), os.path.join(folder, "clusters.safetensors")
        write_rows(rows, options.rows, options.dims)
        cluster = [binary, "--threads", "1", "cluster", rows, "--with", getattr(options, "with"), "--out", out]
        alone = written = None
        for ranks in (1, *options.ranks):
            of_ranks = peaks(cluster if ranks == 1 else [*launcher(ranks), *cluster], binary)
            with open(out, "rb") as file:
                content = file.read()
            os.remove(out)
            if ranks == 1:
                alone, written = of_ranks[0], content
            if content != written:
                raise SystemExit(f"{ranks} ranks write other clusters than one process")
            shares = ", ".join(f"{peak / 1e6:.0f} MB ({peak / alone:.0%})" for peak in of_ranks)
            print(f"{ranks} rank{'s' * (ranks > 1)}: {shares}")


def operations():
    """Measures an exchange and a gather as one of the ranks, which all call this. Rank 0 prints the medians."""
    mpi = ctypes.CDLL("libmpi.so.40", mode=ctypes.RTLD_GLOBAL)
    world, byte = (
        ctypes.c_void_p(ctypes.addressof(ctypes.c_char.in_dll(mpi, name)))
        for name in ("ompi_mpi_comm_world", "ompi_mpi_byte")
    )
    mpi.MPI_Init(None, None)
    rank, ranks = ctypes.c_int(), ctypes.c_int()
    mpi.MPI_Comm_rank(world, ctypes.byref(rank))
    mpi.MPI_Comm_size(world, ctypes.byref(ranks))
    for size in (8, 1 << 20, 1 << 26):
        part = size // ranks.value
        sent, received = ctypes.create_string_buffer(size), ctypes.create_string_buffer(size)
        for name, function in (("exchange", mpi.MPI_Alltoall), ("gather", mpi.MPI_Allgather)):
            seconds = []
            for _ in range(15 if size > 8 else 2000):
                mpi.MPI_Barrier(world)
                began = time.monotonic()
                function(sent, part, byte, received, part, byte, world)
                seconds.append(time.monotonic() - began)
            if rank.value == 0:
                median = statistics.median(seconds)
                rate = size * (ranks.value - 1) / ranks.value / median / 1e9
                print(f"{name} of {size} bytes on {ranks.value} ranks: {median * 1e6:.1f} µs, {rate:.2f} GB/s received")
    mpi.MPI_Finalize()


# The cost model. Networks: parameters, with those of the projector, and statistics of batch normalization.


def resnet18(width, channels, kernel):
    """The network of RECIPE, or torchvision's ResNet-18 with another projector."""
    convolutions, normalized = [(channels, width, kernel)], width
    for stage in range(4):
        outputs = width << stage
        inputs = outputs // 2 if stage else outputs
        convolutions += [(inputs, outputs, 3)] + 3 * [(outputs, outputs, 3)] + ([(inputs, outputs, 1)] if stage else [])
        normalized += outputs * (5 if stage else 4)
    weights = sum(inputs * outputs * side * side for inputs, outputs, side in convolutions)
    features = 8 * width
    return weights + 2 * normalized + features * (features + DIMS), 2 * normalized


NETWORKS = {"ResNet-18": resnet18(64, 3, 7), "ResNet-50": (23_508_032 + 2048 * (2048 + DIMS), 2 * 26_560)}
# Bytes per second, and the seconds of a message.
LINKS = {"10 Gb/s": (1.25e9, 30e-6), "100 Gb/s": (12.5e9, 5e-6), "NVLink": (450e9, 5e-6)}


def step_bytes(network, batch, ranks, shards):
    """Returns the bytes that a rank receives in a step: slices of gradients and of their sum, rows and moments."""
    parameters, statistics = network
    others = (ranks - 1) / ranks
    gradients = 2 * others * FLOAT * parameters
    rows = others * FLOAT * (batch * VIEWS * DIMS + shards * statistics)
    return gradients + rows


def step_seconds(network, batch, ranks, shards, link):
    """Returns the seconds of these transfers: an exchange of slices, and two gathers."""
    bandwidth, latency = LINKS[link]
    messages = (ranks - 1) + 2 * math.ceil(math.log2(ranks)) if ranks > 1 else 0
    return step_bytes(network, batch, ranks, shards) / bandwidth + messages * latency


def k_means(samples, prototypes, ranks, link):
    """Returns the bytes that a rank receives in an iteration, the seconds of that, and the bytes of memory."""
    block = min(math.ceil(prototypes / (4 * ranks)) * DIMS, 1 << 19)
    stages = math.ceil(prototypes * DIMS / block) + 2 * ranks - 1 if ranks > 1 else 0
    # A label and a distance of each sample, and two blocks of sums in every stage.
    received = 8 * samples * (ranks - 1) / ranks + stages * 2 * 8 * block
    bandwidth, latency = LINKS[link]
    memory = FLOAT * samples * DIMS / ranks + prototypes * DIMS * (4 * FLOAT + 8) + 50 * samples
    return received, received / bandwidth + stages * latency, memory


def model():
    """Prints the tables of docs/src/distributed.md."""
    links = " | ".join(LINKS)
    print(f"| batch | ranks | ResNet-18 | {links} | ResNet-50 | {links} |\n|{10 * '--:|'}")
    for batch in (256, 4096, 32_768):
        for ranks in (2, 8, 64, 1024):
            # A shard needs two images or more.
            if batch < 2 * ranks:
                continue
            columns = []
            for network in NETWORKS.values():
                columns.append(f"{step_bytes(network, batch, ranks, ranks) / 1e6:.0f} MB")
                times = [step_seconds(network, batch, ranks, ranks, link) * 1e3 for link in LINKS]
                columns += [f"{value:.{0 if value >= 10 else 1}f} ms" for value in times]
            print(f"| {batch} | {ranks} | {' | '.join(columns)} |")
    print("\n| ranks | operations of a rank | received | 10 Gb/s | 100 Gb/s | memory |\n|--:|--:|--:|--:|--:|--:|")
    for ranks in (1, 2, 8, 32, 128):
        compared = 2 * 1.28e6 * 1e5 * DIMS / ranks / 1e12
        received, ten, memory = k_means(1_280_000, 100_000, ranks, "10 Gb/s")
        hundred = k_means(1_280_000, 100_000, ranks, "100 Gb/s")[1]
        sent = f"{received / 1e6:.0f} MB | {ten:.2f} s | {hundred:.2f} s"
        print(f"| {ranks} | {compared:.1f} TFLOP | {sent} | {memory / 1e6:.0f} MB |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("model")
    measuring = verbs.add_parser("measure")
    measuring.add_argument("binary")
    for name, default in (("rounds", 3), ("width", 64), ("batch", 128), ("shards", 2), ("ranks", 2)):
        measuring.add_argument(f"--{name}", type=int, default=default)
    holding = verbs.add_parser("memory")
    holding.add_argument("binary")
    holding.add_argument("--rows", type=int, default=1_000_000)
    holding.add_argument("--dims", type=int, default=128)
    holding.add_argument("--with", default="KMeans(k: [10000], iterations: 1, init: Random)")
    holding.add_argument("--ranks", type=int, nargs="+", default=[2])
    holding.add_argument("--folder", help="folder for the file of rows")
    linked = verbs.add_parser("link")
    linked.add_argument("--ranks", type=int, default=2)
    linked.add_argument("--host", help="as for mpirun, such as node1,node2")
    verbs.add_parser("operations")
    options = parser.parse_args()
    if options.verb == "model":
        model()
    elif options.verb == "operations":
        operations()
    elif options.verb == "link":
        hosts = ["--host", options.host] if options.host else []
        start = [*launcher(options.ranks), *hosts]
        subprocess.run([*start, sys.executable, os.path.abspath(__file__), "operations"], check=True)
    elif options.verb == "memory":
        memory(options)
    else:
        measure(options)


if __name__ == "__main__":
    main()
