/* Makes the n-th file operation of a process fail.
 *
 * tests/attacks/faults.rs compiles this into a library and loads it in front of libc (LD_PRELOAD). So the program
 * under test is the one that users run: it has no code for faults, and neither its crates nor the standard library
 * can write a file past the counter.
 *
 *   PAUC_FAULTS_UNDER  only operations on files below this folder count
 *   PAUC_FAULTS_LOG    gets one line per operation: its number, its name, the path
 *   PAUC_FAULTS_AT     the operation that fails, counted from 1; none if it is missing
 *   PAUC_FAULTS_ERRNO  the error number; 0 makes a write short, and changes nothing else
 *   PAUC_FAULTS_STAY   if it is set, every later operation of the same kind fails too, as on a full disk
 *   PAUC_FAULTS_SIGNAL the process gets this signal before the operation, which does not fail
 *   PAUC_FAULTS_CLOCK  the reading of a clock that fails, counted from 1: then Rust's standard library panics. Those
 *                      of the libraries that the program loads do not count
 *   PAUC_FAULTS_HANG   if it is set, the operation never ends, as on a network disk without its server
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The next definition of a function: libc's. */
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

enum { FILES = 4096 };
static char *paths[FILES]; /* of open files that count */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static const char *under;
static int log_file = -1;
static long at, count, clock_at, clock_count;
static int number, stay, signaled, hangs;

__attribute__((constructor)) static void begin(void) {
    const char *log = getenv("PAUC_FAULTS_LOG"), *n = getenv("PAUC_FAULTS_AT"), *e = getenv("PAUC_FAULTS_ERRNO");
    const char *s = getenv("PAUC_FAULTS_SIGNAL"), *c = getenv("PAUC_FAULTS_CLOCK");
    under = getenv("PAUC_FAULTS_UNDER");
    at = n ? atol(n) : 0;
    clock_at = c ? atol(c) : 0;
    number = e ? atoi(e) : EIO;
    stay = getenv("PAUC_FAULTS_STAY") != NULL;
    signaled = s ? atoi(s) : 0;
    hangs = getenv("PAUC_FAULTS_HANG") != NULL;
    if (log) log_file = syscall(SYS_openat, AT_FDCWD, log, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
}

static int counts(const char *path) {
    size_t length = under ? strlen(under) : 0;
    return length && path && !strncmp(path, under, length) && (path[length] == '/' || !path[length]);
}

/* Counts an operation. Returns whether it has to fail. `writes` says that it needs space on the disk. */
static int fails(const char *operation, const char *path, int writes) {
    char line[PATH_MAX + 64];
    pthread_mutex_lock(&mutex);
    long n = ++count;
    pthread_mutex_unlock(&mutex);
    int length = snprintf(line, sizeof line, "%ld %s %s\n", n, operation, path);
    if (log_file >= 0) syscall(SYS_write, log_file, line, length);
    if (!at || n < at || (n > at && !(stay && writes))) return 0;
    while (hangs) pause();
    if (signaled && n == at) syscall(SYS_kill, getpid(), signaled);
    return !signaled;
}

/* Whether an operation without a content to cut has to fail. */
static int refused(const char *operation, const char *path, int writes) {
    if (!counts(path) || !fails(operation, path, writes) || !number) return 0;
    errno = number;
    return 1;
}

static const char *path_of(int file) { return file >= 0 && file < FILES ? paths[file] : NULL; }

/* The path of `name` below the folder `folder`. */
static const char *join(int folder, const char *name, char *full) {
    char link[64];
    if (folder == AT_FDCWD || name[0] == '/') return name;
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, full, PATH_MAX);
    if (length < 0) return name;
    snprintf(full + length, PATH_MAX - length, "/%s", name);
    return full;
}

static int opened(int file, const char *path) {
    if (file >= 0 && file < FILES && counts(path)) paths[file] = strdup(path);
    return file;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list list; \
        va_start(list, flags); \
        mode = va_arg(list, mode_t); \
        va_end(list); \
    }

static const char *opening(int flags) { return flags & O_CREAT ? "create" : "open"; }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        MODE(flags) \
        if (refused(opening(flags), path, flags & O_CREAT)) return -1; \
        return opened(REAL(name)(path, flags, mode), path); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        char full[PATH_MAX + 1] = {0}; \
        const char *whole = join(folder, path, full); \
        MODE(flags) \
        if (refused(opening(flags), whole, flags & O_CREAT)) return -1; \
        return opened(REAL(name)(folder, path, flags, mode), whole); \
    }
OPENAT(openat)
OPENAT(openat64)

static int is_program(void *caller) {
    static void *base;
    Dl_info of_caller, of_program;
    if (!base && dladdr((void *)getauxval(AT_ENTRY), &of_program)) base = of_program.dli_fbase;
    return dladdr(caller, &of_caller) && of_caller.dli_fbase == base;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    if (clock_at && is_program(__builtin_return_address(0)) &&
        __atomic_add_fetch(&clock_count, 1, __ATOMIC_RELAXED) == clock_at) {
        errno = EINVAL;
        return -1;
    }
    return REAL(clock_gettime)(clock, time);
}

int close(int file) {
    if (path_of(file)) {
        free(paths[file]);
        paths[file] = NULL;
    }
    return REAL(close)(file);
}

ssize_t write(int file, const void *bytes, size_t length) {
    const char *path = path_of(file);
    if (path && fails("write", path, 1)) {
        if (number) {
            errno = number;
            return -1;
        }
        length = (length + 1) / 2;
    }
    return REAL(write)(file, bytes, length);
}

ssize_t writev(int file, const struct iovec *parts, int n) {
    const char *path = path_of(file);
    if (path && fails("write", path, 1)) {
        if (number) {
            errno = number;
            return -1;
        }
        n = (n + 1) / 2;
    }
    return REAL(writev)(file, parts, n);
}

#define ON_FILE(type, name, what, writes, declared, passed) \
    type name declared { \
        const char *path = path_of(file); \
        return path && refused(what, path, writes) ? (type)-1 : REAL(name) passed; \
    }
ON_FILE(int, fsync, "sync", 0, (int file), (file))
ON_FILE(int, fdatasync, "sync", 0, (int file), (file))
ON_FILE(int, ftruncate, "truncate", 0, (int file, off_t length), (file, length))
ON_FILE(int, ftruncate64, "truncate", 0, (int file, off64_t length), (file, length))
ON_FILE(void *, mmap, "mmap", 0, (void *to, size_t length, int protection, int flags, int file, off_t offset),
        (to, length, protection, flags, file, offset))
ON_FILE(void *, mmap64, "mmap", 0, (void *to, size_t length, int protection, int flags, int file, off64_t offset),
        (to, length, protection, flags, file, offset))

#define ON_PATH(name, what, writes, counted, declared, passed) \
    int name declared { return refused(what, counted, writes) ? -1 : REAL(name) passed; }
ON_PATH(rename, "rename", 1, to, (const char *from, const char *to), (from, to))
ON_PATH(link, "link", 1, to, (const char *from, const char *to), (from, to))
ON_PATH(mkdir, "mkdir", 1, path, (const char *path, mode_t mode), (path, mode))
ON_PATH(unlink, "remove", 0, path, (const char *path), (path))
ON_PATH(rmdir, "remove", 0, path, (const char *path), (path))
ON_PATH(linkat, "link", 1, to, (int from_in, const char *from, int in, const char *to, int flags),
        (from_in, from, in, to, flags))

int unlinkat(int folder, const char *path, int flags) {
    char full[PATH_MAX + 1] = {0};
    return refused("remove", join(folder, path, full), 0) ? -1 : REAL(unlinkat)(folder, path, flags);
}
