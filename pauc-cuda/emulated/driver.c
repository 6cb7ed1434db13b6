// The CUDA driver. Device memory is host memory, the single stream executes everything at once, and a launch
// runs the blocks of a grid one after another on the calling thread.
//
// The units written by make.py register their kernels here when the library is loaded.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

typedef int Result;
typedef unsigned long long Address;
typedef void (*Kernel)(void **arguments);

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_BINARY_FOR_GPU = 209,
    FILE_NOT_FOUND = 301,
    NOT_FOUND = 500,
};

enum { MAX_KERNELS = 2048, MAX_THREADS = 1024, STACK_BYTES = 1 << 16, NAME_BYTES = 96 };

// ---- Kernels ----

// CUDA's threadIdx, blockIdx, blockDim and gridDim: see cuda_on_host.h.
typedef struct { unsigned x, y, z; } Index;
Index emu_tid, emu_bid, emu_bdim, emu_gdim;

static struct { const char *name; Kernel run; int uses_fibers; } kernels[MAX_KERNELS];
static int kernel_count;

void emu_register(const char *name, Kernel run, int uses_fibers) {
    if (kernel_count == MAX_KERNELS) {
        fprintf(stderr, "[emulated GPU] more than %d kernels\n", MAX_KERNELS);
        abort();
    }
    kernels[kernel_count].name = name;
    kernels[kernel_count].run = run;
    kernels[kernel_count++].uses_fibers = uses_fibers;
}

static Kernel running;
static void **running_arguments;

// ---- Blocks whose threads wait for each other: one fiber per thread ----

static ucontext_t scheduler, fibers[MAX_THREADS];
static char *stacks[MAX_THREADS];
static int done[MAX_THREADS];
static unsigned current;

static void run_fiber(void) {
    running(running_arguments);
    done[current] = 1;
}

// __syncthreads(): the scheduler resumes the other threads before it returns to this one.
void emu_sync(void) { swapcontext(&fibers[current], &scheduler); }

static Result run_block_on_fibers(unsigned threads) {
    for (unsigned t = 0; t < threads; t++) {
        if (!stacks[t] && !(stacks[t] = malloc(STACK_BYTES))) return OUT_OF_MEMORY;
        getcontext(&fibers[t]);
        fibers[t].uc_stack.ss_sp = stacks[t];
        fibers[t].uc_stack.ss_size = STACK_BYTES;
        fibers[t].uc_link = &scheduler;
        makecontext(&fibers[t], run_fiber, 0);
        done[t] = 0;
    }
    for (unsigned left = threads; left;) {
        left = 0;
        for (unsigned t = 0; t < threads; t++) {
            if (done[t]) continue;
            current = t;
            emu_tid.x = t;
            swapcontext(&scheduler, &fibers[t]);
            left += !done[t];
        }
    }
    return SUCCESS;
}

static Result run_block(int on_fibers) {
    unsigned threads = emu_bdim.x;
    if (on_fibers) return run_block_on_fibers(threads);
    for (unsigned t = 0; t < threads; t++) {
        emu_tid.x = t;
        running(running_arguments);
    }
    return SUCCESS;
}

// ---- Modules: the text from nvrtc.c or dfdx's build, and its functions ----

typedef struct {
    char *text;
    // Whether this is dfdx's conv2d, whose kernels share names with those of convtrans2d.
    int is_conv2d;
} Module;

typedef struct {
    char name[NAME_BYTES];
    Module *module;
    Kernel run;
    int is_resolved, uses_fibers;
} Function;

Result cuModuleLoadData(void **module, const void *text) {
    Module *m = calloc(1, sizeof *m);
    if (!m || !(m->text = strdup(text))) return OUT_OF_MEMORY;
    *module = m;
    return SUCCESS;
}
Result cuModuleLoad(void **module, const char *file) { return FILE_NOT_FOUND; }
Result cuModuleUnload(void *module) { return SUCCESS; }

Result cuModuleGetFunction(void **function, void *module, const char *name) {
    Module *m = module;
    char entry[NAME_BYTES + 16];
    snprintf(entry, sizeof entry, ".entry %s(", name);
    // Without a toolkit, dfdx's build leaves its modules empty. Their kernels are found by name alone.
    if (m->text[0] && !strstr(m->text, entry)) {
        fprintf(stderr, "[emulated GPU] the module has no kernel %s\n", name);
        return NOT_FOUND;
    }
    if (!strncmp(name, "sum_transposed_filters", 22)) m->is_conv2d = 1;
    Function *f = calloc(1, sizeof *f);
    if (!f) return OUT_OF_MEMORY;
    snprintf(f->name, sizeof f->name, "%s", name);
    f->module = m;
    *function = f;
    return SUCCESS;
}

static int mentions(const char *text, const char *word) { return strstr(text, word) != NULL; }

// The type that a conversion reads or writes, as recorded by nvrtc.c.
static const char *element_type(const char *text, const char *operation) {
    char f64[32], f32[32];
    snprintf(f64, sizeof f64, "%s.f64", operation);
    snprintf(f32, sizeof f32, "%s.f32", operation);
    return mentions(text, f64) ? "double" : mentions(text, f32) ? "float" : "int";
}

static void resolve(Function *f) {
    char name[NAME_BYTES + 32];
    const char *text = f->module->text;
    int shared_name = mentions(f->name, "_into_patches_") || mentions(f->name, "transpose_filters_");
    if (!strcmp(f->name, "kernel")) {
        snprintf(name, sizeof name, "kernel_%s_%s", element_type(text, "ld.global"), element_type(text, "st.global"));
    } else {
        snprintf(name, sizeof name, "%s%s", shared_name && !f->module->is_conv2d ? "ct_" : "", f->name);
    }
    f->is_resolved = 1;
    for (int i = 0; i < kernel_count; i++) {
        if (strcmp(kernels[i].name, name)) continue;
        f->run = kernels[i].run;
        f->uses_fibers = kernels[i].uses_fibers;
    }
    if (!f->run) fprintf(stderr, "[emulated GPU] %s is not emulated\n", name);
}

Result cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                      unsigned block_z, unsigned shared_bytes, void *stream, void **arguments, void **extra) {
    Function *f = function;
    if (!f->is_resolved) resolve(f);
    if (!f->run) return NO_BINARY_FOR_GPU;
    if (!grid_x || !block_x || block_x > MAX_THREADS) return INVALID_VALUE;
    // Kernels of dfdx and of this project are one-dimensional.
    if (grid_y != 1 || grid_z != 1 || block_y != 1 || block_z != 1) return INVALID_VALUE;
    running = f->run;
    running_arguments = arguments;
    emu_bdim = (Index){block_x, 1, 1};
    emu_gdim = (Index){grid_x, 1, 1};
    emu_tid = (Index){0, 0, 0};
    for (unsigned b = 0; b < grid_x; b++) {
        emu_bid = (Index){b, 0, 0};
        Result result = run_block(f->uses_fibers);
        if (result) return result;
    }
    return SUCCESS;
}

// ---- Memory ----

// New memory is filled with NaN (as f32 and f64), so that reads of uninitialized memory show in results.
static Result allocate(Address *address, size_t bytes) {
    void *memory = NULL;
    if (bytes && posix_memalign(&memory, 256, bytes)) return OUT_OF_MEMORY;
    if (bytes) memset(memory, 0xFF, bytes);
    *address = (Address)memory;
    return SUCCESS;
}
static Result release(Address address) {
    free((void *)address);
    return SUCCESS;
}
static Result copy(void *to, const void *from, size_t bytes) {
    memmove(to, from, bytes);
    return SUCCESS;
}
static Result fill(Address to, unsigned char value, size_t bytes) {
    memset((void *)to, value, bytes);
    return SUCCESS;
}

Result cuMemAlloc_v2(Address *address, size_t bytes) { return allocate(address, bytes); }
Result cuMemAllocAsync(Address *address, size_t bytes, void *stream) { return allocate(address, bytes); }
Result cuMemFree_v2(Address address) { return release(address); }
Result cuMemFreeAsync(Address address, void *stream) { return release(address); }
Result cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) {
    *memory = malloc(bytes ? bytes : 1);
    return *memory ? SUCCESS : OUT_OF_MEMORY;
}
Result cuMemFreeHost(void *memory) {
    free(memory);
    return SUCCESS;
}
Result cuMemcpyHtoD_v2(Address to, const void *from, size_t bytes) { return copy((void *)to, from, bytes); }
Result cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *stream) { return copy((void *)to, from, bytes); }
Result cuMemcpyDtoH_v2(void *to, Address from, size_t bytes) { return copy(to, (void *)from, bytes); }
Result cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *stream) { return copy(to, (void *)from, bytes); }
Result cuMemcpyDtoD_v2(Address to, Address from, size_t bytes) { return copy((void *)to, (void *)from, bytes); }
Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *stream) { return copy((void *)to, (void *)from, bytes); }
Result cuMemsetD8_v2(Address to, unsigned char value, size_t bytes) { return fill(to, value, bytes); }
Result cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void *stream) { return fill(to, value, bytes); }
Result cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
    *free_bytes = *total_bytes = (size_t)1 << 30;
    return SUCCESS;
}
Result cuDeviceGetDefaultMemPool(void **pool, int device) {
    *pool = (void *)0x55;
    return SUCCESS;
}
Result cuMemPoolSetAttribute(void *pool, int attribute, void *value) { return SUCCESS; }

// ---- One device, or several alike ----

Result cuInit(unsigned flags) { return SUCCESS; }
Result cuDeviceGetCount(int *count) {
    const char *number = getenv("PAUC_EMULATED_DEVICES");
    *count = number ? atoi(number) : 1;
    return SUCCESS;
}
Result cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return SUCCESS;
}
// Every attribute is 1: threads per block (by which pauc-cuda recognizes the emulated device),
// multiprocessors, compute capability 1.1.
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = 1;
    return SUCCESS;
}
Result cuDeviceGetName(char *name, int len, int device) {
    snprintf(name, len, "emulated");
    return SUCCESS;
}
Result cuDeviceGetUuid(unsigned char *uuid, int device) {
    memset(uuid, device, 16);
    return SUCCESS;
}
Result cuDeviceTotalMem_v2(size_t *bytes, int device) {
    *bytes = (size_t)1 << 30;
    return SUCCESS;
}
Result cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = (void *)0x11;
    return SUCCESS;
}
Result cuDevicePrimaryCtxRelease_v2(int device) { return SUCCESS; }
Result cuCtxSetCurrent(void *context) { return SUCCESS; }
Result cuGetErrorName(int error, const char **name) {
    *name = "emulated";
    return SUCCESS;
}
Result cuGetErrorString(int error, const char **text) {
    *text = "emulated";
    return SUCCESS;
}

// ---- Streams and events: all work has completed when it is queried ----

Result cuStreamCreate(void **stream, unsigned flags) {
    *stream = (void *)0x33;
    return SUCCESS;
}
Result cuStreamDestroy_v2(void *stream) { return SUCCESS; }
Result cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return SUCCESS; }
Result cuStreamSynchronize(void *stream) { return SUCCESS; }
Result cuEventCreate(void **event, unsigned flags) {
    *event = (void *)0x22;
    return SUCCESS;
}
Result cuEventDestroy_v2(void *event) { return SUCCESS; }
Result cuEventRecord(void *event, void *stream) { return SUCCESS; }
Result cuEventQuery(void *event) { return SUCCESS; }
Result cuEventSynchronize(void *event) { return SUCCESS; }
Result cuEventElapsedTime(float *milliseconds, void *start, void *end) {
    *milliseconds = 0.5f;
    return SUCCESS;
}
