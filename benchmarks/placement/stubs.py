"""CUDA libraries without a GPU, of the names that onnxruntime's provider asks for. Memory is the host's, copies are
real, kernels are counted and do nothing: no number that comes out of a graph means anything."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

_MEMORY = """
#include <driver_types.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
static long launched, handles = 4096;
static int capturing, failing, full;
long latentrt_launches(void) { return launched; }
void latentrt_fail_captures(void) { failing = 1; }
void latentrt_fill(int is_full) { full = is_full; }
static int host(void **at, size_t size) { *at = aligned_alloc(256, (size + 256) / 256 * 256); return *at ? 0 : 2; }
static int handle(void **at) { *at = (void *)(handles += 64); return 0; }
"""
# By name, its parameters and its body; `size_t n` and the like as in CUDA's reference.
_RUNTIME: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("cudaMalloc", "cudaMallocFromPoolAsync"), ("void **at, size_t n", "return full ? 2 : host(at, n);")
    ),
    **dict.fromkeys(("cudaMallocHost", "cudaHostAlloc"), ("void **at, size_t n", "return host(at, n);")),
    **dict.fromkeys(("cudaFree", "cudaFreeHost", "cudaFreeAsync"), ("void *at", "free(at); return 0;")),
    "cudaMemcpy": ("void *to, const void *from, size_t n", "memcpy(to, from, n); return 0;"),
    "cudaMemcpyAsync": (
        "void *to, const void *from, size_t n, int kind",
        "uploads += kind == 1; memcpy(to, from, n); return 0;",
    ),
    **dict.fromkeys(
        ("cudaMemset", "cudaMemsetAsync"), ("void *to, int value, size_t n", "memset(to, value, n); return 0;")
    ),
    **dict.fromkeys(
        (
            "cudaStreamCreate",
            "cudaStreamCreateWithFlags",
            "cudaEventCreate",
            "cudaEventCreateWithFlags",
            "cudaMemPoolCreate",
        ),
        ("void **at", "return handle(at);"),
    ),
    **dict.fromkeys(
        ("cudaLaunchKernel", "__cudaLaunchKernel", "cudaLaunchKernelExC", "cudaLaunchCooperativeKernel"),
        ("void", "launched++; return 0;"),
    ),
    "cudaGetDeviceCount": ("int *at", "*at = 1; return 0;"),
    "cudaGetDevice": ("int *at", "*at = 0; return 0;"),
    **dict.fromkeys(("cudaDriverGetVersion", "cudaRuntimeGetVersion"), ("int *at", "*at = 13000; return 0;")),
    "cudaMemGetInfo": ("size_t *left, size_t *all", "*left = *all = (size_t)8 << 30; return 0;"),
    "cudaStreamIsCapturing": ("void *stream, int *state", "*state = capturing; return 0;"),
    "cudaStreamBeginCapture": ("void *stream, int mode", "capturing = 1; return 0;"),
    "cudaStreamEndCapture": (
        "void *stream, void **graph",
        "int was = capturing; capturing = 0; if (was == 1 && !failing) return handle(graph); *graph = 0; return 901;",
    ),
    "cudaGraphInstantiate": ("void **graph", "return handle(graph);"),
    "cudaEventElapsedTime": ("float *ms", "*ms = 1; return 0;"),
    "cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags": ("int *count", "*count = 2; return 0;"),
    "cudaFuncGetAttributes": ("void *at", "memset(at, 0, sizeof(struct cudaFuncAttributes)); return 0;"),
    "cudaPointerGetAttributes": (
        "struct cudaPointerAttributes *at",
        "memset(at, 0, sizeof *at); at->type = cudaMemoryTypeDevice; return 0;",
    ),
    "cudaDeviceGetAttribute": (
        "int *at, int which",
        "*at = which == cudaDevAttrComputeCapabilityMajor ? 9 : which == cudaDevAttrComputeCapabilityMinor ? 0"
        " : which == cudaDevAttrMultiProcessorCount ? 132 : which == cudaDevAttrMaxSharedMemoryPerBlockOptin ? 232448"
        " : which == cudaDevAttrMaxSharedMemoryPerBlock ? 49152 : which == cudaDevAttrWarpSize ? 32 : 1; return 0;",
    ),
    "cudaGetDeviceProperties": (
        "struct cudaDeviceProp *at",
        'memset(at, 0, sizeof *at); strcpy(at->name, "stub"); at->major = 9; at->multiProcessorCount = 132;'
        " at->totalGlobalMem = (size_t)8 << 30; at->sharedMemPerBlock = 49152; at->sharedMemPerBlockOptin = 232448;"
        " at->sharedMemPerMultiprocessor = 233472; at->maxThreadsPerBlock = 1024;"
        " at->maxThreadsPerMultiProcessor = 2048;"
        " at->warpSize = 32; at->regsPerBlock = 65536; for (int i = 0; i < 3; i++) {"
        " at->maxGridSize[i] = 65535; at->maxThreadsDim[i] = i < 2 ? 1024 : 64; } at->maxGridSize[0] = 2147483647;"
        " return 0;",
    ),
}
# What CUDA does not allow of a stream in capture, which it ends.
_BARRED = (
    *("cudaMalloc", "cudaFree", "cudaMallocHost", "cudaHostAlloc", "cudaFreeHost", "cudaMemcpy", "cudaMemset"),
    *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpyFromSymbol"),
)
_CUDNN: Mapping[str, tuple[str, str]] = {
    "cudnnBackendExecute": ("void", "launched++; return 0;"),
    "cudnnBackendCreateDescriptor": ("int kind, void **at", "*at = calloc(1, 64); return 0;"),
    "cudnnBackendGetAttribute": (
        "void *of, int name, int type, long asked, long *count, void *at",
        "if (count) *count = 1; if (at && asked > 0 && type != 15)"
        " memset(at, 0, type == 3 || type == 13 || type == 14 ? 8 : 4); return 0;",
    ),
}
_TEXTS = re.compile(r"(Get\w*(ErrorName|ErrorString|StatusName|StatusString))$")


def build_stubs(provider: Path, headers: Path, folder: Path) -> dict[str, int]:
    """Makes the libraries that a provider names, in `folder`, and returns how many functions each has."""
    folder.mkdir(parents=True, exist_ok=True)
    table = subprocess.run(
        ["nm", "-D", "--undefined-only", provider], capture_output=True, text=True, check=True
    ).stdout
    libraries: dict[str, set[str]] = {}
    for name, library in re.findall(r"U (\w+)@(lib(?:cuda|cublas|curand)[\w.]+)", table):
        libraries.setdefault(library, set()).add(name)
    texts = subprocess.run(["strings", "-n", "8", provider], capture_output=True, text=True, check=True).stdout
    libraries["libcudnn.so.9"] = {
        *re.findall(r"^cudnn[A-Z]\w+$", texts, re.MULTILINE),
        *_CUDNN,
        "cudnnGetVersion",
    }  # opened by name
    libraries["libcuda.so.1"] = set(re.findall(r"U (cu[A-Z]\w+)$", table, re.MULTILINE))
    libraries.setdefault("libcurand.so.10", {"curandCreateGenerator"})
    for library, names in libraries.items():
        _build(library, sorted(names), headers, folder)
    return {library: len(names) for library, names in sorted(libraries.items())}


def _build(library: str, names: list[str], headers: Path, folder: Path) -> None:
    source, versions = folder / f"{library}.c", folder / f"{library}.map"
    counted = "".join(f'if (!strcmp(name, "{name}")) return n_{name};' for name in names if _counted(name))
    counts = f"long latentrt_count(const char *name) {{ {counted} return uploads; }}\n"
    source.write_text(_MEMORY + "static long uploads;\n" + "".join(map(_function, names)) + counts)
    versions.write_text(f"{library} {{ global: *; }};\n")
    options = ["-w", "-shared", "-fPIC", f"-I{headers}", f"-Wl,-soname,{library}", f"-Wl,--version-script={versions}"]
    subprocess.run(["cc", *options, "-o", folder / library, source], check=True)


def _function(name: str) -> str:
    parameters, body = {**_RUNTIME, **_CUDNN}.get(name, ("void", "return 0;"))
    if _TEXTS.search(name):
        return f'const char *{name}(int code) {{ return code == 2 ? "out of memory" : "stub"; }}\n'
    if name == "__cudaRegisterFatBinary":
        return f"void *{name}(void *code) {{ return &handles; }}\n"
    if name == "cudnnGetLastErrorString":
        return f"void {name}(char *at, size_t n) {{ if (n) at[0] = 0; }}\n"
    if re.fullmatch(r"cu(blas|blasLt|dnn)Create(_v2|\w*Descriptor)?", name):
        return f"int {name}(void **at) {{ return handle(at); }}\n"
    if name == "cudnnGetVersion":
        return "size_t cudnnGetVersion(void) { return 91900; }\n"
    if name.startswith("cudaGetDriverEntryPoint"):
        return f"int {name}(const char *of, void **at) {{ *at = (void *)latentrt_launches; return 0; }}\n"
    if _counted(name):
        barred = "if (capturing) { capturing = 2; return 900; }" if name in _BARRED else ""
        return f"static long n_{name};\nint {name}({parameters}) {{ n_{name}++; {barred} {body} }}\n"
    return f"int {name}({parameters}) {{ {body} }}\n"


def _counted(name: str) -> bool:
    """Whether `latentrt_count` knows how often a function was called; all else it takes for uploads."""
    return name in _BARRED or name in ("cudaGraphLaunch", "cudaMemcpyAsync", "cudaStreamBeginCapture")
