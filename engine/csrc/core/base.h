/* base.h - errors, allocation, checked sizes, checksums, files. The lowest floor of the core: libc alone. */
#ifndef BW_BASE_H
#define BW_BASE_H

#include "boxwood.h"

#include <stdbool.h>

/* ---- errors ---- */

/* Fills *error (may be NULL) and returns `code`, so that a failing function can `return bw_fail(...)`. */
int32_t bw_fail(bw_error *error, int32_t code, const char *format, ...) __attribute__((format(printf, 3, 4)));
int32_t bw_fail_nomem(bw_error *error, size_t bytes);

/* ---- memory: the one allocator. bw_free (boxwood.h) releases all of it. ---- */

void *bw_alloc(size_t bytes);                    /* NULL when out of memory; never NULL for 0 */
void *bw_alloc_zero(size_t count, size_t size);  /* NULL when out of memory or count * size overflows */
void *bw_alloc_array(size_t count, size_t size); /* likewise, not cleared */
void *bw_realloc_array(void *old, size_t count, size_t size); /* `old` stays valid on failure */
void *bw_alloc_aligned(size_t bytes); /* 64-byte aligned; released by bw_free like the rest */

static inline bool bw_mul_overflows(uint64_t a, uint64_t b, uint64_t *product) {
    return __builtin_mul_overflow(a, b, product);
}

/* A text under construction. After a failed append `failed` stays set and further appends do nothing. */
typedef struct bw_text {
    char *data; /* NUL-terminated; owned: bw_free */
    size_t length;
    size_t capacity;
    bool failed;
} bw_text;
void bw_text_append(bw_text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- random numbers: SplitMix64 (Steele, Lea, Flood 2014), the same on every machine ---- */

typedef struct bw_random {
    uint64_t state;
} bw_random;
uint64_t bw_random_next(bw_random *random);
uint64_t bw_random_below(bw_random *random,
                         uint64_t bound); /* uniform in 0 .. bound - 1, without bias; bound > 0 */

/* ---- checksums ---- */

uint32_t bw_crc32c(uint32_t crc, const void *data,
                   size_t bytes); /* CRC-32C (Castagnoli); start with 0, may be chained */

/* ---- time ---- */

uint64_t bw_now(void); /* nanoseconds, monotonic */

/* ---- files ---- */

/* Whether a name is one that files in an index folder may have (docs/FORMAT.md): none leads out of the
 * folder. */
bool bw_name_ok(const char *name);

/* A file that appears whole or not at all: written beside its name, synced, renamed. */
typedef struct bw_writer bw_writer;
int32_t bw_writer_open(const char *folder, const char *name, bw_writer **writer, bw_error *error);
int32_t bw_writer_write(bw_writer *writer, const void *data, size_t bytes, bw_error *error);
int32_t bw_writer_rewrite(bw_writer *writer, uint64_t offset, const void *data, size_t bytes,
                          bw_error *error);
uint64_t bw_writer_offset(const bw_writer *writer);
int32_t bw_writer_commit(bw_writer *writer,
                         bw_error *error); /* sync, rename, sync folder; frees the writer either way */
void bw_writer_abandon(bw_writer *writer); /* removes the temporary file; frees the writer */

/* A read-only map of a whole file. The map outlives a rename or removal of the file. */
typedef struct bw_map {
    const uint8_t *data;
    size_t bytes;
    uint64_t device, inode, modified_ns; /* identity, to see whether a path still means this file */
    bool settled; /* old enough when opened that any later write must change modified_ns */
} bw_map;
int32_t bw_map_open(const char *path, bw_map *map,
                    bw_error *error); /* BW_MISSING when there is no such file */
/* Of what has been written so far. */
int32_t bw_writer_map(const bw_writer *writer, bw_map *map, bw_error *error);
void bw_map_close(bw_map *map);
/* Of a file or folder; BW_MISSING when there is none. */
int32_t bw_file_identity(const char *path, uint64_t *device, uint64_t *inode, uint64_t *modified_ns,
                         uint64_t *bytes, bw_error *error);
char *bw_path_join(const char *folder, const char *name); /* owned: bw_free; NULL when out of memory */

/* ---- threads: runs task(context, worker) on `threads` threads (0: one a core, at most 64), the caller's
 * included. Workers that can't be started are done without. ---- */
uint32_t bw_thread_count(uint32_t asked);
void bw_parallel(uint32_t threads, void (*task)(void *context, uint32_t worker), void *context);

/* ---- faults for tests: the n-th call of a kind from now on fails. Compiled in only with BW_FAULTS. ---- */
#ifdef BW_FAULTS
enum { BW_FAULT_ALLOC, BW_FAULT_WRITE, BW_FAULT_SYNC, BW_FAULT_RENAME, BW_FAULT_MAP, BW_FAULT_KINDS };
/* countdown < 0: off; 0: the next call fails, and every later one. Exported: Python's tests inject faults,
 * too. */
__attribute__((visibility("default"))) void bw_fault_set(int kind, long countdown);
#endif

#endif
