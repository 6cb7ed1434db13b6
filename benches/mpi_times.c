/* Measures the time that a rank spends in MPI's operations, including waiting.
 *
 * benches/ranks.py compiles this file into a library and names it in PAUC_MPI. The library is linked with Open MPI's
 * libmpi.so.40, where pauc finds all other functions. At the end, it appends a line to the file named in
 * PAUC_MPI_TIMES: the seconds, the number of calls, and the bytes that the rank sent to each other rank.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Handles of Open MPI are pointers. */
typedef void *Handle;

static double seconds;
static long calls, bytes;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

#define TIMED(name, sent, declared, passed) \
    extern int P##name declared; \
    int name declared { \
        double begin = now(); \
        int code = P##name passed; \
        seconds += now() - begin; \
        calls += 1; \
        bytes += sent; \
        return code; \
    }
TIMED(MPI_Allgather, n, (const void *from, int n, Handle a, void *to, int m, Handle b, Handle ranks),
      (from, n, a, to, m, b, ranks))
TIMED(MPI_Alltoall, n, (const void *from, int n, Handle a, void *to, int m, Handle b, Handle ranks),
      (from, n, a, to, m, b, ranks))
TIMED(MPI_Bcast, n, (void *data, int n, Handle type, int from, Handle ranks), (data, n, type, from, ranks))
TIMED(MPI_Barrier, 0, (Handle ranks), (ranks))

extern int PMPI_Finalize(void);
int MPI_Finalize(void) {
    const char *path = getenv("PAUC_MPI_TIMES");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) {
        fprintf(file, "%.9f %ld %ld\n", seconds, calls, bytes);
        fclose(file);
    }
    return PMPI_Finalize();
}
