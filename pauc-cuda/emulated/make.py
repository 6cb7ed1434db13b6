#!/usr/bin/env python3
"""make.py EMULATOR OUT: NVIDIA's libraries as programs of the CPU, for tests without a GPU.

EMULATOR is the folder of an emulator that executes dfdx's CUDA kernels on the host (its make.sh compiles them with g++). This
adds the kernels of this crate and the few functions of the driver and of cuDNN that this crate calls beside dfdx. Point
LD_LIBRARY_PATH to OUT, and run tests one at a time: the emulated device has one thread. Needs gcc, g++, python3 and bash.
"""
import os, re, subprocess, sys

emulator, out = map(os.path.abspath, sys.argv[1:3])
here = os.path.dirname(os.path.abspath(__file__))
kernels = os.path.join(here, "..", "src", "kernels")
os.makedirs(out, exist_ok=True)


def unit(path):
    """A file of kernels as a translation unit. Kernels whose threads wait for each other get threads of their own."""
    text = open(path).read()
    parts = re.split(r'extern "C" __global__ void (\w+)', text)[1:]
    lines = ['#include "emu.h"', "namespace {", f'#include "{kernels}/common.cuh"', f'#include "{path}"']
    for name, body in zip(parts[::2], parts[1::2]):
        waits = int("block_" in body or "__syncthreads" in body)
        lines.append(f'static int emu_r_{name} = (emu_reg("{name}", &EmuInv<&{name}>::go, {waits}), 0);')
    return "\n".join(lines + ["}", ""])


units = []
for file in sorted(os.listdir(kernels)):
    if file.endswith(".cu"):
        units.append(os.path.join(out, f"pauc_{file[:-3]}.cpp"))
        open(units[-1], "w").write(unit(os.path.join(kernels, file)))
run = lambda *command: subprocess.run(command, check=True)
dfdx = subprocess.run("ls -d ${CARGO_HOME:-$HOME/.cargo}/registry/src/*/dfdx-0.13.0 | head -1", shell=True, capture_output=True, text=True).stdout.strip()
run("bash", os.path.join(emulator, "make.sh"), out, dfdx, *units)
objects = [os.path.join(out, "tu", f) for f in os.listdir(os.path.join(out, "tu")) if f.endswith(".o")]
flags = ["-O2", "-w", "-fPIC", "-shared"]
run("gcc", "-O2", "-w", "-fPIC", "-c", f"{here}/driver.c", "-o", f"{out}/driver.o")
run("g++", "-shared", "-Wl,-soname,libcuda.so.1", "-o", f"{out}/libcuda.so.1", f"{out}/emucuda.o", f"{out}/driver.o", *objects)
run("gcc", *flags, "-Wl,-soname,libcudnn.so.9", "-o", f"{out}/libcudnn.so.9", f"{here}/cudnn.c")
run("gcc", *flags, "-Wl,-soname,libcublas.so.13", "-o", f"{out}/libcublas.so.13", os.path.join(emulator, "emublas.c"), f"{here}/cublas.c")
