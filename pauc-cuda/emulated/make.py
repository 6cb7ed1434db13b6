#!/usr/bin/env python3
"""make.py OUT: builds the emulated GPU in the folder OUT: five shared libraries with the names of NVIDIA's.

See README.md beside this file. Needs gcc, g++ and objcopy, and cargo to find the sources of dfdx.
"""
import concurrent.futures
import glob
import hashlib
import json
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
KERNELS = os.path.abspath(os.path.join(HERE, "..", "src", "kernels"))
# Libraries and their sources. The driver also contains all kernels.
LIBRARIES = {"libcublas.so.13": "cublas.c", "libcudnn.so.9": "cudnn.c", "libnvrtc.so.13": "nvrtc.c",
             "libnccl.so.2": "nccl.c"}
DRIVER = "libcuda.so.1"
OWN_FLAGS = ["-O2", "-Wall", "-fPIC"]
# -w: the warnings are in dfdx's code, and CUDA is not quite C++.
KERNEL_FLAGS = ["-std=c++17", "-O2", "-w", "-fPIC"]


def read(path):
    with open(path) as file:
        return file.read()


def run(*command):
    subprocess.run(command, check=True)


def dfdx_sources():
    """Returns the folder with the sources of this workspace's version of dfdx."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    found = subprocess.run(command, cwd=HERE, check=True, capture_output=True, text=True).stdout
    manifest = next(p["manifest_path"] for p in json.loads(found)["packages"] if p["name"] == "dfdx")
    return os.path.join(os.path.dirname(manifest), "src", "tensor_ops")


def unit(source, names, uses_fibers, defines=""):
    """Returns a translation unit: CUDA code, and the registration of its kernels with whether each uses fibers."""
    registered = "".join(f"EMU_REGISTER({name}, {int(uses_fibers(name))})\n" for name in names)
    return f'#include "cuda_on_host.h"\n{defines}namespace {{\n{source}\n{registered}}}\n'


def own_units():
    """Yields one unit per file of this project's kernels."""
    for path in sorted(glob.glob(f"{KERNELS}/*.cu")):
        # Each kernel with everything up to the next one, by name.
        parts = re.split(r'extern "C" __global__ void (\w+)', read(path))[1:]
        bodies = dict(zip(parts[::2], parts[1::2]))
        # By convention, functions with barriers are called block_….
        waits = lambda name: "block_" in bodies[name] or "__syncthreads" in bodies[name]
        source = f'#include "{KERNELS}/common.cuh"\n#include "{path}"'
        yield "pauc_" + os.path.basename(path)[:-3], unit(source, bodies, waits)


def dfdx_kernel_names(path, include):
    """Returns the kernels of a file of dfdx, most of which macros define."""
    command = ["g++", *KERNEL_FLAGS, "-E", "-P", *include, "-include", "cuda_on_host.h", "-x", "c++", path]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    own = text[text.rfind("struct EmuCall"):]
    names = dict.fromkeys(re.findall(r'extern "C"\s+void (\w+)\s*\(', own))
    return [name for name in names if not name.startswith("emu_")]


def dfdx_units(dfdx, include):
    """Yields units for dfdx's files of kernels and for the sources that it passes to NVRTC."""
    for path in sorted(glob.glob(f"{dfdx}/*/*.cu")):
        name, text = os.path.basename(path)[:-3], read(path)
        waits = any(sign in text for sign in ("chunk_", "__syncthreads", "binary_op_macros"))
        # fill_with is a helper in several files; keep one copy.
        names = [k for k in dfdx_kernel_names(path, include) if not k.startswith("fill_with") or name == "max_to"]
        defines = ""
        if name == "convtrans2d":
            # Two kernels share names with conv2d's; driver.c distinguishes them by this prefix.
            defines = "".join(f"#define {k} ct_{k}\n" for k in names)
            names = [f"ct_{k}" for k in names]
        yield name, unit(f'#include "{path}"', names, lambda _: waits, defines)
    for path in sorted(glob.glob(f"{dfdx}/*/cuda_kernel.rs")):
        text, operation = read(path), os.path.basename(os.path.dirname(path))
        if "compile_ptx_with_opts" not in text:
            continue
        for constant, code in re.findall(r'const (\w*KERNEL\w*): &str = "(.*?)";\r?\n', text, re.S):
            code = code.replace('\\"', '"').replace("\\n", "\n")
            code = re.sub(r"#if __WORDSIZE.*?#endif", "", code, flags=re.S)
            if operation == "to_dtype":
                # The only template whose kernel has no name of its own.
                for source in ("float", "double"):
                    for target in ("float", "double"):
                        kernel = f"kernel_{source}_{target}"
                        typed = code.replace("$Src", source).replace("$Dst", target).replace(" kernel(", f" {kernel}(")
                        yield f"nvrtc_{kernel}", unit(typed, [kernel], lambda _: False)
                continue
            typed = code.replace("$Ty", "float").replace("$T", "float")
            names = re.findall(r"__global__ void (\w+)\(", typed)
            yield f"nvrtc_{operation}_{constant.lower()}", unit(typed, names, lambda _: False)


def compile_unit(name, text, include, state, folder):
    """Returns the unit's object file, rebuilt only if its inputs have changed."""
    digest = hashlib.sha256((text + state).encode()).hexdigest()[:16]
    made = os.path.join(folder, f"{name}-{digest}.o")
    if not os.path.exists(made):
        source = os.path.join(folder, f"{name}.cpp")
        with open(source, "w") as file:
            file.write(text)
        run("g++", *KERNEL_FLAGS, *include, "-c", source, "-o", made + ".part")
        # Kernels register themselves, so no symbol has to be visible, and files may use the same names.
        run("objcopy", "--keep-global-symbol=none", made + ".part")
        os.rename(made + ".part", made)
    return made


def link_library(out, name, inputs):
    """Links a shared library whose functions have its name as their symbol version, like NVIDIA's."""
    versions = os.path.join(out, f"{name}.map")
    with open(versions, "w") as file:
        file.write(f"{name} {{ global: *; }};\n")
    run("g++", "-shared", f"-Wl,-soname,{name}", f"-Wl,--version-script={versions}", "-o", os.path.join(out, name), *inputs)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = os.path.abspath(sys.argv[1])
    objects = os.path.join(out, "objects")
    os.makedirs(objects, exist_ok=True)
    dfdx = dfdx_sources()
    include = [f"-I{HERE}", f"-I{dfdx}/utilities"]
    units = [*own_units(), *dfdx_units(dfdx, include)]
    # Any change of an included file rebuilds all units; that is rare.
    included = [*glob.glob(f"{HERE}/*.h"), *glob.glob(f"{KERNELS}/*"), *glob.glob(f"{dfdx}/**/*.cu*", recursive=True)]
    state = " ".join(KERNEL_FLAGS) + "".join(read(path) for path in sorted(included))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(lambda u: compile_unit(*u, include, state, objects), units))
    for stem in ["driver", *(source[:-2] for source in LIBRARIES.values())]:
        run("gcc", *OWN_FLAGS, "-c", f"{HERE}/{stem}.c", "-o", f"{objects}/{stem}.o")
    run("g++", "-shared", f"-Wl,-soname,{DRIVER}", "-o", f"{out}/{DRIVER}", f"{objects}/driver.o", *compiled)
    for library, source in LIBRARIES.items():
        link_library(out, library, [f"{objects}/{source[:-2]}.o"])


if __name__ == "__main__":
    main()
