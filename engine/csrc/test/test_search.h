/* test_search.h - random indexes, shared by the tests that search them. */
#ifndef BW_TEST_SEARCH_H
#define BW_TEST_SEARCH_H

#include "index.h"
#include "test.h"

enum { DATA_CLUSTERED, DATA_UNIFORM, DATA_CONSTANT, DATA_TWO_VALUES, DATA_FEW_VALUES, DATA_KINDS };

static inline void test_fill_codes(bw_random *random, int kind, uint8_t *codes, uint64_t rows) {
    if (kind == DATA_CLUSTERED) {
        int64_t *ids = test_alloc(rows * sizeof *ids);
        test_make_rows(bw_random_next(random), rows, 0, 1, ids, codes);
        free(ids);
        return;
    }
    for (uint64_t i = 0; i < rows * BW_DIMS; i++) {
        switch (kind) {
        case DATA_UNIFORM:
            codes[i] = (uint8_t)bw_random_next(random);
            break;
        case DATA_CONSTANT:
            codes[i] = (uint8_t)(i % BW_DIMS * 8);
            break;
        case DATA_TWO_VALUES:
            codes[i] = bw_random_below(random, 2) ? 255 : 0;
            break;
        default:
            codes[i] = (uint8_t)(i % BW_DIMS < 3 ? bw_random_below(random, 6) * 50 : 100);
        }
    }
}

/* An index of `segments` segments with rows[i] rows each, ids scattered over them; quantizer "q", and "f" of
 * fine codes where it has any. */
static inline bw_index *test_make_index_with(bw_random *random, const char *folder, int kind,
                                             const uint64_t *rows, uint32_t segments, bool fine) {
    static uint64_t generation;
    bw_error error;
    bw_fingerprints fingerprints = {.quantizer = "q", .fine = {fine ? 'f' : '\0'}};
    uint8_t uuid[16] = {1, 2, 3};
    const char *names[8];
    char name[8][BW_NAME_BYTES];
    generation++;
    test_make_folder(folder);
    for (uint32_t s = 0; s < segments; s++) {
        int64_t *ids = test_alloc(rows[s] * sizeof *ids);
        uint8_t *codes = test_alloc(rows[s] * BW_DIMS);
        uint8_t *second = fine ? test_alloc(rows[s] * BW_FINE_DIMS) : NULL;
        test_fill_codes(random, kind, codes, rows[s]);
        for (uint64_t i = 0; i < rows[s]; i++) { /* an odd factor permutes the low bits: no two the same */
            ids[i] = (int64_t)((i * segments + s) * 0x9E3779B1u & 0xFFFFFFFFu);
        }
        snprintf(name[s], sizeof name[s], "%u.segment", s);
        names[s] = name[s];
        if (fine) {
            test_make_fine(rows[s], ids, second);
        }
        bw_segment_spec spec = {.rows = rows[s], .ids = ids, .codes = codes, .fine = second};
        spec.generation = generation;
        memcpy(spec.uuid, uuid, sizeof uuid);
        spec.fingerprints = fingerprints;
        CHECK_STATUS(bw_segment_write(folder, names[s], &spec, NULL, NULL, &error), BW_OK);
        free(ids);
        free(codes);
        free(second);
    }
    bw_index *index = NULL;
    CHECK_STATUS(bw_manifest_write(folder, uuid, generation, names, NULL, segments, &fingerprints, &error),
                 BW_OK);
    CHECK_STATUS(bw_index_open(folder, &index, &error), BW_OK);
    if (index == NULL) {
        exit(test_finish());
    }
    return index;
}

static inline bw_index *test_make_index(bw_random *random, const char *folder, int kind, const uint64_t *rows,
                                        uint32_t segments) {
    return test_make_index_with(random, folder, kind, rows, segments, false);
}

/* The live rows of an index, in index order, by bw_index_rows; `fine` may be NULL. The arrays have room for
 * dead rows too. */
static inline void test_read_live(const bw_index *index, int64_t *ids, uint8_t *codes, uint8_t *fine) {
    bw_error error;
    uint64_t held = index->info.rows + index->info.deleted, n = 0;
    CHECK_STATUS(bw_index_rows(index, 0, held, ids, codes, fine, &error), BW_OK);
    for (uint64_t r = 0; r < held; r++) {
        if (ids[r] != -1) {
            ids[n] = ids[r];
            memmove(codes + n * BW_DIMS, codes + r * BW_DIMS, BW_DIMS);
            if (fine != NULL) {
                memmove(fine + n * BW_FINE_DIMS, fine + r * BW_FINE_DIMS, BW_FINE_DIMS);
            }
            n++;
        }
    }
    CHECK_EQUAL(n, index->info.rows);
}

/* Ids of rows of a segment: none, one, one in twenty, half, a stretch of rows, all but one, or all. */
static inline size_t test_choose_dead(bw_random *random, const bw_segment *segment, bool all, int64_t *ids) {
    uint64_t way = bw_random_below(random, all ? 7 : 6), rows = segment->rows;
    uint64_t one = bw_random_below(random, rows), other = bw_random_below(random, rows);
    size_t n = 0;
    for (uint64_t r = 0; r < rows; r++) {
        bool dead = way == 1   ? r == one
                    : way == 2 ? bw_random_below(random, 20) == 0
                    : way == 3 ? bw_random_below(random, 2) == 0
                    : way == 4 ? (r >= one) == (r < other)
                    : way == 5 ? r != one
                               : way == 6;
        if (dead) {
            ids[n++] = segment->ids[r];
        }
    }
    return n;
}

/* The same index with some of its rows dead, but never all: by deletion vectors, by bw_index_without, or by
 * both. Closes `index`. */
static inline bw_index *test_kill(bw_random *random, const char *folder, bw_index *index) {
    bw_error error;
    uint32_t segments = index->info.segments;
    const char *names[8], *deleted[8] = {NULL};
    char vectors[8][BW_NAME_BYTES];
    bw_index *opened = NULL, *without = NULL;
    uint64_t kept = index->info.rows, marked = 0;
    for (uint32_t s = 0; s < segments; s++) {
        const bw_segment *segment = index->segments[s];
        int64_t *ids = test_alloc(segment->rows * sizeof *ids);
        size_t n = test_choose_dead(random, segment, s > 0, ids);
        names[s] = segment->info.name;
        if (n > 0 && n < kept && bw_random_below(random, 3) > 0) {
            snprintf(vectors[s], sizeof vectors[s], "%u.deleted", s);
            deleted[s] = vectors[s];
            CHECK_STATUS(bw_deleted_write(folder, deleted[s], names[s], ids, n, &error), BW_OK);
            kept -= n;
            marked += n;
        }
        free(ids);
    }
    CHECK_STATUS(bw_manifest_write(folder, index->info.uuid, index->info.generation + 1, names, deleted,
                                   segments, &index->info.fingerprints, &error),
                 BW_OK);
    CHECK_STATUS(bw_index_open(folder, &opened, &error), BW_OK);
    if (opened == NULL) {
        exit(test_finish());
    }
    CHECK(opened->info.rows == kept && opened->info.deleted == marked);
    int64_t *ids = test_alloc(index->first_rows[segments] * sizeof *ids);
    size_t n = 0, more;
    for (uint32_t s = 0; s < segments; s++) {
        more = test_choose_dead(random, index->segments[s], false, ids + n);
        n += bw_random_below(random, 2) ? more : 0;
    }
    CHECK_STATUS(bw_index_without(opened, ids, n, &without, &error), BW_OK);
    if (without->info.rows == 0) {
        bw_index_close(without);
        CHECK_STATUS(bw_index_without(opened, ids, 0, &without, &error), BW_OK);
    }
    CHECK_EQUAL(without->info.rows + without->info.deleted, index->info.rows);
    free(ids);
    bw_index_close(opened);
    bw_index_close(index);
    return without;
}

/* Sets the kernels to number i of those this computer can run. */
static inline void test_choose_isa(uint64_t i) {
    static const char *const names[] = {"generic", "avx2", "avx512", "neon"};
    while (bw_isa_select(names[i % 4], NULL) != BW_OK) {
        i++;
    }
}

static const uint64_t test_sizes[] = {1,    2,    63,   64,    255,   256,   257,  511,
                                      512,  1000, 3840, 4095,  4096,  4097,  4352, 4353,
                                      8192, 8193, 9999, 12288, 16384, 16385, 20000};
#define TEST_SIZES (sizeof test_sizes / sizeof test_sizes[0])

#endif
