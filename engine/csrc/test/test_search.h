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
    CHECK_STATUS(bw_manifest_write(folder, uuid, generation, names, segments, &fingerprints, &error), BW_OK);
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
