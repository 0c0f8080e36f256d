/* base.c - see base.h. */
#if defined(__linux__)
#define _GNU_SOURCE /* sched_getaffinity */
#endif

#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#endif

_Static_assert(sizeof(size_t) == 8, "files are mapped whole: 64-bit platforms only");
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "files are used as they are mapped: little-endian platforms only"
#endif

#define MAX_THREADS 64u
#define THREAD_STACK_BYTES ((size_t)1 << 20)

/* Writes below this age may be followed by another one that the file's time does not show: clocks of file
 * systems tick every few milliseconds. */
#define SETTLED_NS UINT64_C(100000000)

const char *bw_version(void) {
    return "0.1.0";
}

const char *bw_status_name(int32_t status) {
    switch (status) {
    case BW_OK:
        return "ok";
    case BW_INVALID:
        return "invalid";
    case BW_NOMEM:
        return "out of memory";
    case BW_IO:
        return "io";
    case BW_CORRUPT:
        return "corrupt";
    case BW_MISSING:
        return "missing";
    case BW_VERSION:
        return "version";
    case BW_CANCELLED:
        return "cancelled";
    case BW_MISMATCH:
        return "mismatch";
    default:
        return "unknown";
    }
}

/* ---- faults ---- */

#ifdef BW_FAULTS
static _Atomic long fault_countdowns[BW_FAULT_KINDS] = {-1, -1, -1, -1, -1};

void bw_fault_set(int kind, long countdown) {
    atomic_store(&fault_countdowns[kind], countdown);
}

static bool fault(int kind) {
    long left = atomic_load(&fault_countdowns[kind]);
    while (left > 0 && !atomic_compare_exchange_weak(&fault_countdowns[kind], &left, left - 1)) {
    }
    return left == 0;
}
#else
#define fault(kind) false
#endif

/* ---- errors ---- */

/* A message that did not fit must still end with a whole UTF-8 character. */
static void trim_utf8(char *text, size_t length) {
    size_t start = length;
    while (start > 0 && ((unsigned char)text[start - 1] & 0xC0) == 0x80) {
        start--;
    }
    if (start == 0) {
        return;
    }
    unsigned char lead = (unsigned char)text[start - 1];
    size_t needs = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
    if (length - (start - 1) < needs) {
        text[start - 1] = '\0';
    }
}

int32_t bw_fail(bw_error *error, int32_t code, const char *format, ...) {
    if (error == NULL) {
        return code;
    }
    error->code = code;
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    if (length < 0) {
        error->message[0] = '\0';
    } else if ((size_t)length >= sizeof error->message) {
        trim_utf8(error->message, sizeof error->message - 1);
    }
    return code;
}

int32_t bw_fail_nomem(bw_error *error, size_t bytes) {
    return bw_fail(error, BW_NOMEM, "out of memory: %zu bytes were refused; free memory and try again",
                   bytes);
}

/* strerror_r has two forms in the wild. */
__attribute__((unused)) static const char *reason_of_int(int result, const char *buffer) {
    return result == 0 ? buffer : "unknown error";
}
__attribute__((unused)) static const char *reason_of_text(const char *result, const char *buffer) {
    (void)buffer;
    return result;
}

static const char *advice(int number) {
    switch (number) {
    case ENOSPC:
    case EDQUOT:
        return "make room on this disk and try again";
    case EACCES:
    case EPERM:
        return "give this user the right to do so";
    case EROFS:
        return "the file system is read-only: put the database elsewhere";
    case EMFILE:
    case ENFILE:
        return "raise the limit of open files";
    case ENOENT:
    case ENOTDIR:
        return "the folder must exist";
    case ENOMEM:
        return "free memory and try again";
    default:
        return "check the disk and try again";
    }
}

static int32_t fail_io(bw_error *error, const char *what, const char *path, int number) {
    char buffer[128];
    const char *reason = _Generic(strerror_r(0, buffer, sizeof buffer),
        int: reason_of_int,
        char *: reason_of_text)(strerror_r(number, buffer, sizeof buffer), buffer);
    return bw_fail(error, BW_IO, "cannot %s '%s': %s; %s", what, path, reason, advice(number));
}

/* ---- memory ---- */

void *bw_alloc(size_t bytes) {
    return fault(BW_FAULT_ALLOC) ? NULL : malloc(bytes > 0 ? bytes : 1);
}

void *bw_alloc_zero(size_t count, size_t size) {
    uint64_t bytes;
    if (bw_mul_overflows(count, size, &bytes) || fault(BW_FAULT_ALLOC)) {
        return NULL;
    }
    return calloc(1, bytes > 0 ? bytes : 1);
}

void *bw_alloc_array(size_t count, size_t size) {
    uint64_t bytes;
    return bw_mul_overflows(count, size, &bytes) ? NULL : bw_alloc(bytes);
}

void *bw_realloc_array(void *old, size_t count, size_t size) {
    uint64_t bytes;
    if (bw_mul_overflows(count, size, &bytes) || fault(BW_FAULT_ALLOC)) {
        return NULL;
    }
    return realloc(old, bytes > 0 ? bytes : 1);
}

void *bw_alloc_aligned(size_t bytes) {
    void *memory = NULL;
    if (fault(BW_FAULT_ALLOC) || posix_memalign(&memory, 64, bytes > 0 ? bytes : 64) != 0) {
        return NULL;
    }
    return memory;
}

void bw_free(void *memory) {
    free(memory);
}

void bw_text_append(bw_text *text, const char *format, ...) {
    if (text->failed) {
        return;
    }
    size_t room = text->capacity - text->length;
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(room > 0 ? text->data + text->length : NULL, room, format, arguments);
    va_end(arguments);
    if (length < 0) {
        text->failed = true;
        return;
    }
    if ((size_t)length >= room) {
        size_t capacity = text->capacity < 128 ? 128 : text->capacity;
        while (capacity - text->length <= (size_t)length) {
            if (capacity > SIZE_MAX / 2) {
                text->failed = true;
                return;
            }
            capacity *= 2;
        }
        char *data = bw_realloc_array(text->data, capacity, 1);
        if (data == NULL) {
            if (text->data != NULL) {
                text->data[text->length] = '\0';
            }
            text->failed = true;
            return;
        }
        text->data = data;
        text->capacity = capacity;
        va_start(arguments, format);
        vsnprintf(text->data + text->length, capacity - text->length, format, arguments);
        va_end(arguments);
    }
    text->length += (size_t)length;
}

/* ---- random numbers ---- */

uint64_t bw_random_next(bw_random *random) {
    uint64_t z = random->state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

uint64_t bw_random_below(bw_random *random, uint64_t bound) {
    /* The first 2^64 mod bound numbers would make some remainders more likely. */
    uint64_t unfair = (0 - bound) % bound;
    uint64_t number;
    do {
        number = bw_random_next(random);
    } while (number < unfair);
    return number % bound;
}

/* ---- checksums: eight bytes a step with eight tables (Kounavis and Berry 2005, "slicing-by-8") ---- */

static uint32_t crc_tables[8][256];
static pthread_once_t crc_once = PTHREAD_ONCE_INIT;

static void make_crc_tables(void) {
    for (uint32_t value = 0; value < 256; value++) {
        uint32_t crc = value;
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc >> 1) ^ ((crc & 1) != 0 ? UINT32_C(0x82F63B78) : 0);
        }
        crc_tables[0][value] = crc;
    }
    for (uint32_t value = 0; value < 256; value++) {
        for (int table = 1; table < 8; table++) {
            uint32_t crc = crc_tables[table - 1][value];
            crc_tables[table][value] = (crc >> 8) ^ crc_tables[0][crc & 0xFF];
        }
    }
}

uint32_t bw_crc32c(uint32_t crc, const void *data, size_t bytes) {
    pthread_once(&crc_once, make_crc_tables);
    const uint8_t *at = data;
    crc = ~crc;
    for (; bytes >= 8; bytes -= 8, at += 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        word ^= crc;
        crc = crc_tables[7][word & 0xFF] ^ crc_tables[6][(word >> 8) & 0xFF] ^
              crc_tables[5][(word >> 16) & 0xFF] ^ crc_tables[4][(word >> 24) & 0xFF] ^
              crc_tables[3][(word >> 32) & 0xFF] ^ crc_tables[2][(word >> 40) & 0xFF] ^
              crc_tables[1][(word >> 48) & 0xFF] ^ crc_tables[0][word >> 56];
    }
    for (; bytes > 0; bytes--, at++) {
        crc = (crc >> 8) ^ crc_tables[0][(crc ^ *at) & 0xFF];
    }
    return ~crc;
}

/* ---- time ---- */

static uint64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

uint64_t bw_now(void) {
    return clock_ns(CLOCK_MONOTONIC);
}

/* ---- files ---- */

bool bw_name_ok(const char *name) {
    size_t length = 0;
    for (; name[length] != '\0'; length++) {
        char c = name[length];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (length == BW_NAME_BYTES - 1 ||
            !(letter || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-')) {
            return false;
        }
    }
    return length > 0 && name[0] != '.';
}

char *bw_path_join(const char *folder, const char *name) {
    size_t folder_length = strlen(folder), name_length = strlen(name);
    char *path = bw_alloc(folder_length + 1 + name_length + 1);
    if (path != NULL) {
        memcpy(path, folder, folder_length);
        path[folder_length] = '/';
        memcpy(path + folder_length + 1, name, name_length + 1);
    }
    return path;
}

struct bw_writer {
    int folder;
    int file;
    uint64_t offset;
    char *path; /* for messages */
    char name[BW_NAME_BYTES];
    char temporary[BW_NAME_BYTES + 48];
};

static void free_writer(bw_writer *writer) {
    if (writer->file >= 0) {
        close(writer->file);
    }
    if (writer->folder >= 0) {
        close(writer->folder);
    }
    bw_free(writer->path);
    bw_free(writer);
}

int32_t bw_writer_open(const char *folder, const char *name, bw_writer **result, bw_error *error) {
    static _Atomic uint32_t counter;
    if (!bw_name_ok(name)) {
        return bw_fail(error, BW_INVALID,
                       "a file in an index has a name of 1 to %d letters, digits, '.', '_' or '-' "
                       "that does not begin with a dot",
                       BW_NAME_BYTES - 1);
    }
    bw_writer *writer = bw_alloc_zero(1, sizeof *writer);
    if (writer == NULL) {
        return bw_fail_nomem(error, sizeof *writer);
    }
    writer->folder = writer->file = -1;
    writer->path = bw_path_join(folder, name);
    if (writer->path == NULL) {
        free_writer(writer);
        return bw_fail_nomem(error, strlen(folder) + BW_NAME_BYTES);
    }
    memcpy(writer->name, name, strlen(name) + 1);
    writer->folder = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (writer->folder < 0) {
        int number = errno;
        free_writer(writer);
        return fail_io(error, "open the folder", folder, number);
    }
    /* A name that a crashed process of the same number left behind is passed over. */
    for (int attempt = 0; attempt < 1000 && writer->file < 0; attempt++) {
        snprintf(writer->temporary, sizeof writer->temporary, ".%s.tmp-%ld-%u", name, (long)getpid(),
                 (unsigned)atomic_fetch_add(&counter, 1));
        errno = ENOSPC;
        writer->file = fault(BW_FAULT_WRITE) ? -1
                                             : openat(writer->folder, writer->temporary,
                                                      O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (writer->file < 0 && errno != EEXIST && errno != EINTR) {
            break;
        }
    }
    if (writer->file < 0) {
        int32_t code = fail_io(error, "create", writer->path, errno);
        free_writer(writer);
        return code;
    }
    *result = writer;
    return BW_OK;
}

int32_t bw_writer_rewrite(bw_writer *writer, uint64_t offset, const void *data, size_t bytes,
                          bw_error *error) {
    const uint8_t *at = data;
    while (bytes > 0) {
        /* Some systems refuse single writes of 2 GiB and more. */
        size_t part = bytes < ((size_t)1 << 30) ? bytes : (size_t)1 << 30;
        errno = ENOSPC;
        ssize_t written = fault(BW_FAULT_WRITE) ? -1 : pwrite(writer->file, at, part, (off_t)offset);
        if (written < 0) {
            if (errno == EINTR) {
                continue;
            }
            return fail_io(error, "write", writer->path, errno);
        }
        at += written;
        offset += (uint64_t)written;
        bytes -= (size_t)written;
    }
    return BW_OK;
}

int32_t bw_writer_write(bw_writer *writer, const void *data, size_t bytes, bw_error *error) {
    int32_t code = bw_writer_rewrite(writer, writer->offset, data, bytes, error);
    if (code == BW_OK) {
        writer->offset += bytes;
    }
    return code;
}

uint64_t bw_writer_offset(const bw_writer *writer) {
    return writer->offset;
}

static bool sync_file(int file) {
    errno = EIO;
    if (fault(BW_FAULT_SYNC)) {
        return false;
    }
#if defined(__APPLE__)
    if (fcntl(file, F_FULLFSYNC) == 0) {
        return true;
    }
#endif
    int result;
    do {
        result = fsync(file);
    } while (result != 0 && errno == EINTR);
    return result == 0;
}

int32_t bw_writer_commit(bw_writer *writer, bw_error *error) {
    int32_t code = BW_OK;
    if (!sync_file(writer->file)) {
        code = fail_io(error, "sync", writer->path, errno);
    } else {
        /* Network file systems report a failed write when the file is closed. */
        int closed = close(writer->file);
        writer->file = -1;
        if (closed != 0 && errno != EINTR) {
            code = fail_io(error, "write", writer->path, errno);
        }
    }
    if (code == BW_OK) {
        errno = EIO;
        if (fault(BW_FAULT_RENAME) ||
            renameat(writer->folder, writer->temporary, writer->folder, writer->name) != 0) {
            code = fail_io(error, "rename a temporary file to", writer->path, errno);
        }
    }
    if (code != BW_OK) {
        bw_writer_abandon(writer);
        return code;
    }
    /* Some file systems cannot sync a folder and say so with EINVAL; they have nothing to sync. The new file
     * is in place already, so a failure here means that it may not outlive a power failure. */
    if (!sync_file(writer->folder) && errno != EINVAL) {
        code = fail_io(error, "sync the folder of", writer->path, errno);
    }
    free_writer(writer);
    return code;
}

void bw_writer_abandon(bw_writer *writer) {
    if (writer != NULL) {
        unlinkat(writer->folder, writer->temporary, 0);
        free_writer(writer);
    }
}

static uint64_t modified_ns(const struct stat *status) {
#if defined(__APPLE__)
    const struct timespec *time = &status->st_mtimespec;
#else
    const struct timespec *time = &status->st_mtim;
#endif
    return (uint64_t)time->tv_sec * UINT64_C(1000000000) + (uint64_t)time->tv_nsec;
}

static int32_t fail_open(bw_error *error, const char *path, int number) {
    if (number == ENOENT || number == ENOTDIR) {
        return bw_fail(error, BW_MISSING, "there is no file '%s'", path);
    }
    return fail_io(error, "read", path, number);
}

/* Maps an open file whole; leaves it open. */
static int32_t map_file(int file, const char *path, bw_map *map, bw_error *error) {
    struct stat status;
    if (fstat(file, &status) != 0) {
        return fail_io(error, "read", path, errno);
    }
    if (!S_ISREG(status.st_mode)) {
        return bw_fail(error, BW_CORRUPT, "'%s' is not a regular file", path);
    }
    size_t bytes = (size_t)status.st_size;
    void *data = NULL;
    if (bytes > 0) {
        errno = EIO; /* what an injected fault says */
        data = fault(BW_FAULT_MAP) ? MAP_FAILED : mmap(NULL, bytes, PROT_READ, MAP_SHARED, file, 0);
        if (data == MAP_FAILED) {
            return errno == ENOMEM ? bw_fail_nomem(error, bytes) : fail_io(error, "map", path, errno);
        }
        (void)madvise(data, bytes, MADV_WILLNEED); /* a hint: failing is fine */
    }
    uint64_t modified = modified_ns(&status), now = clock_ns(CLOCK_REALTIME);
    *map = (bw_map){.data = data,
                    .bytes = bytes,
                    .device = (uint64_t)status.st_dev,
                    .inode = (uint64_t)status.st_ino,
                    .modified_ns = modified,
                    .settled = now > modified && now - modified > SETTLED_NS};
    return BW_OK;
}

int32_t bw_map_open(const char *path, bw_map *map, bw_error *error) {
    int file;
    do {
        /* O_NONBLOCK: opening a pipe must not hang; it is refused below. */
        file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    } while (file < 0 && errno == EINTR);
    if (file < 0) {
        return fail_open(error, path, errno);
    }
    int32_t code = map_file(file, path, map, error);
    close(file);
    return code;
}

int32_t bw_writer_map(const bw_writer *writer, bw_map *map, bw_error *error) {
    return map_file(writer->file, writer->path, map, error);
}

void bw_map_close(bw_map *map) {
    if (map->data != NULL) {
        munmap((void *)(uintptr_t)map->data, map->bytes);
    }
    *map = (bw_map){0};
}

int32_t bw_file_identity(const char *path, uint64_t *device, uint64_t *inode, uint64_t *modified,
                         uint64_t *bytes, bw_error *error) {
    struct stat status;
    if (stat(path, &status) != 0) {
        return fail_open(error, path, errno);
    }
    *device = (uint64_t)status.st_dev;
    *inode = (uint64_t)status.st_ino;
    *modified = modified_ns(&status);
    *bytes = (uint64_t)status.st_size;
    return BW_OK;
}

/* ---- threads ---- */

uint32_t bw_thread_count(uint32_t asked) {
    if (asked > 0) {
        return asked < MAX_THREADS ? asked : MAX_THREADS;
    }
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
#if defined(__linux__)
    /* What this process may use can be less than what the machine has. */
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
        cores = CPU_COUNT(&allowed);
    }
#endif
    return cores < 1 ? 1 : cores < (long)MAX_THREADS ? (uint32_t)cores : MAX_THREADS;
}

typedef struct worker {
    pthread_t thread;
    void (*task)(void *context, uint32_t worker);
    void *context;
    uint32_t number;
} worker;

static void *work(void *argument) {
    worker *self = argument;
    self->task(self->context, self->number);
    return NULL;
}

void bw_parallel(uint32_t threads, void (*task)(void *context, uint32_t worker), void *context) {
    worker workers[MAX_THREADS];
    threads = bw_thread_count(threads);
    uint32_t started = 1;
    pthread_attr_t attributes;
    if (threads > 1 && pthread_attr_init(&attributes) == 0) {
        pthread_attr_setstacksize(&attributes, THREAD_STACK_BYTES);
        /* The host's signal handlers belong on the host's threads. */
        sigset_t all, before;
        sigfillset(&all);
        bool masked = pthread_sigmask(SIG_SETMASK, &all, &before) == 0;
        for (; started < threads; started++) {
            workers[started] = (worker){.task = task, .context = context, .number = started};
            if (pthread_create(&workers[started].thread, &attributes, work, &workers[started]) != 0) {
                break;
            }
        }
        if (masked) {
            pthread_sigmask(SIG_SETMASK, &before, NULL);
        }
        pthread_attr_destroy(&attributes);
    }
    task(context, 0);
    for (uint32_t number = 1; number < started; number++) {
        pthread_join(workers[number].thread, NULL);
    }
}
