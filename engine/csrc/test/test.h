/* test.h - checks and helpers of the C tests. A test is a program that exits with 1 when a check fails. */
#ifndef BW_TEST_H
#define BW_TEST_H

#include "base.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static unsigned long test_checks, test_failures;

static inline bool test_check(bool holds, const char *file, int line, const char *what) {
    test_checks++;
    if (!holds) {
        test_failures++;
        printf("%s:%d: FAILED: %s\n", file, line, what);
    }
    return holds;
}

#define CHECK(condition) test_check((condition), __FILE__, __LINE__, #condition)

#define CHECK_EQUAL(a, b)                                                                                    \
    do {                                                                                                     \
        long long test_a = (long long)(a), test_b = (long long)(b);                                          \
        if (!test_check(test_a == test_b, __FILE__, __LINE__, #a " == " #b)) {                               \
            printf("    %lld and %lld\n", test_a, test_b);                                                   \
        }                                                                                                    \
    } while (0)

/* A call that takes &error last. */
#define CHECK_STATUS(call, status)                                                                           \
    do {                                                                                                     \
        error.message[0] = '\0';                                                                             \
        int32_t test_code = (call);                                                                          \
        if (!test_check(test_code == (status), __FILE__, __LINE__, #call " gives " #status)) {               \
            printf("    %s: %s\n", bw_status_name(test_code), test_code == BW_OK ? "" : error.message);      \
        } else if (test_code != BW_OK) {                                                                     \
            test_check(error.code == test_code, __FILE__, __LINE__, #call " sets error.code");               \
            test_check(error.message[0] != '\0', __FILE__, __LINE__, #call " sets error.message");           \
        }                                                                                                    \
    } while (0)

#define CHECK_MESSAGE(text)                                                                                  \
    do {                                                                                                     \
        if (!test_check(strstr(error.message, (text)) != NULL, __FILE__, __LINE__, "message says " #text)) { \
            printf("    %s\n", error.message);                                                               \
        }                                                                                                    \
    } while (0)

static inline int test_finish(void) {
    if (test_failures > 0) {
        printf("%lu of %lu checks FAILED\n", test_failures, test_checks);
        return 1;
    }
    printf("%lu checks passed\n", test_checks);
    return 0;
}

/* Memory that a test cannot go on without. */
static inline void *test_alloc(size_t bytes) {
    void *memory = calloc(bytes > 0 ? bytes : 1, 1);
    if (memory == NULL) {
        printf("out of memory\n");
        exit(1);
    }
    return memory;
}

/* ---- folders and files ---- */

/* Files in a folder; those that begin with `prefix` alone, unless it is NULL. */
static inline unsigned test_count_files(const char *folder, const char *prefix) {
    unsigned count = 0;
    DIR *listing = opendir(folder);
    for (struct dirent *at; listing != NULL && (at = readdir(listing)) != NULL;) {
        bool self = strcmp(at->d_name, ".") == 0 || strcmp(at->d_name, "..") == 0;
        count += !self && (prefix == NULL || strncmp(at->d_name, prefix, strlen(prefix)) == 0);
    }
    if (listing != NULL) {
        closedir(listing);
    }
    return count;
}

static inline void test_empty_folder(const char *folder) {
    DIR *listing = opendir(folder);
    for (struct dirent *at; listing != NULL && (at = readdir(listing)) != NULL;) {
        if (strcmp(at->d_name, ".") != 0 && strcmp(at->d_name, "..") != 0) {
            unlinkat(dirfd(listing), at->d_name, 0);
        }
    }
    if (listing != NULL) {
        closedir(listing);
    }
}

static inline void test_remove_folder(const char *folder) {
    test_empty_folder(folder);
    rmdir(folder);
}

/* An empty folder of this name in the working directory. */
static inline const char *test_make_folder(const char *folder) {
    test_remove_folder(folder);
    if (mkdir(folder, 0777) != 0) {
        printf("cannot make folder %s: %s\n", folder, strerror(errno));
        exit(1);
    }
    return folder;
}

/* Owned: free. */
static inline uint8_t *test_read_file(const char *folder, const char *name, size_t *bytes) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        *bytes = 0;
        return NULL;
    }
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    fseek(file, 0, SEEK_SET);
    uint8_t *data = test_alloc(*bytes);
    if (fread(data, 1, *bytes, file) != *bytes) {
        printf("cannot read %s\n", path);
        exit(1);
    }
    fclose(file);
    return data;
}

/* Writes the file anew, without sync or rename. A new file: some file systems write one that is cut and
 * filled again to disk at once, which takes long. */
static inline void test_write_file(const char *folder, const char *name, const void *data, size_t bytes) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path);
    int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    bool written = file >= 0;
    for (size_t done = 0; written && done < bytes;) {
        ssize_t part = write(file, (const uint8_t *)data + done, bytes - done);
        written = part > 0;
        done += written ? (size_t)part : 0;
    }
    if (!written || close(file) != 0) {
        printf("cannot write %s: %s\n", path, strerror(errno));
        exit(1);
    }
}

static inline void test_remove_file(const char *folder, const char *name) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path);
}

/* ---- rows ---- */

/* Codes in clusters, so that an order has something to find; ids first_id, first_id + step, ... in shuffled
 * order. */
static inline void test_make_rows(uint64_t seed, uint64_t rows, int64_t first_id, int64_t step, int64_t *ids,
                                  uint8_t *codes) {
    bw_random random = {seed};
    uint8_t centres[16][BW_DIMS];
    for (int i = 0; i < 16; i++) {
        for (int dim = 0; dim < BW_DIMS; dim++) {
            centres[i][dim] = (uint8_t)bw_random_below(&random, 224);
        }
    }
    for (uint64_t i = 0; i < rows; i++) {
        const uint8_t *centre = centres[bw_random_below(&random, 16)];
        for (int dim = 0; dim < BW_DIMS; dim++) {
            codes[i * BW_DIMS + (uint64_t)dim] = (uint8_t)(centre[dim] + bw_random_below(&random, 32));
        }
        ids[i] = first_id + (int64_t)i * step;
    }
    for (uint64_t i = rows; i > 1; i--) {
        uint64_t j = bw_random_below(&random, i);
        int64_t swap = ids[i - 1];
        ids[i - 1] = ids[j];
        ids[j] = swap;
    }
}

/* Fine codes that depend on the ids alone. */
static inline void test_make_fine(uint64_t rows, const int64_t *ids, uint8_t *fine) {
    for (uint64_t i = 0; i < rows; i++) {
        bw_random random = {(uint64_t)ids[i]};
        for (int dim = 0; dim < BW_FINE_DIMS; dim++) {
            fine[i * BW_FINE_DIMS + (uint64_t)dim] = (uint8_t)bw_random_next(&random);
        }
    }
}

#endif
