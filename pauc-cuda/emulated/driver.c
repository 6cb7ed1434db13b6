// What this crate calls of the driver beside dfdx: one emulated device.
#include <stdlib.h>
#include <string.h>
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGetName(char *name, int len, int device) { strncpy(name, "emulated", len); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)1 << 30; return 0; }
int cuMemGetInfo_v2(size_t *free_, size_t *total) { *free_ = *total = (size_t)1 << 30; return 0; }
int cuMemHostAlloc(void **p, size_t bytes, unsigned flags) { *p = malloc(bytes ? bytes : 1); return *p ? 0 : 2; }
int cuMemFreeHost(void *p) { free(p); return 0; }
int cuEventElapsedTime(float *ms, void *start, void *end) { *ms = 0.5f; return 0; }
int cuEventQuery(void *event) { return 0; }
int cuEventSynchronize(void *event) { return 0; }
