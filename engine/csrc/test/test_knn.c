/* Exact nearest neighbours against all distances sorted, with many ties. */
#include "test_search.h"

typedef struct neighbour {
    uint32_t distance;
    int64_t id;
} neighbour;

static int by_distance(const void *a, const void *b) {
    const neighbour *x = a, *y = b;
    if (x->distance != y->distance) {
        return x->distance < y->distance ? -1 : 1;
    }
    return x->id < y->id ? -1 : x->id > y->id;
}

static void check_queries(bw_random *random, const bw_index *index, int kind) {
    uint64_t rows = index->info.rows;
    int64_t *ids = test_alloc(rows * sizeof *ids);
    uint8_t *codes = test_alloc(rows * BW_DIMS);
    neighbour *all = test_alloc(rows * sizeof *all);
    bw_error error;
    CHECK_STATUS(bw_index_rows(index, 0, rows, ids, codes, &error), BW_OK);
    for (int round = 0; round < 6; round++) {
        size_t n = 1 + bw_random_below(random, 4);
        uint32_t k = 1 + (uint32_t)bw_random_below(random, round < 4 ? 70 : BW_MAX_K);
        uint8_t queries[4 * BW_DIMS];
        test_fill_codes(random, (int)bw_random_below(random, 2) ? kind : DATA_UNIFORM, queries, n);
        if (bw_random_below(random, 2)) {
            memcpy(queries, codes + bw_random_below(random, rows) * BW_DIMS, BW_DIMS);
        }
        int64_t *found = test_alloc(n * k * sizeof *found);
        uint32_t *distances = test_alloc(n * k * sizeof *distances), counts[4],
                 room = rows < k ? (uint32_t)rows : k;
        bw_stats stats;
        test_choose_isa(bw_random_below(random, 4));
        CHECK_STATUS(bw_knn(index, queries, n, k, 1 + (uint32_t)bw_random_below(random, 4), found, distances,
                            counts, &stats, &error),
                     BW_OK);
        unsigned wrong = 0;
        for (size_t q = 0; q < n; q++) {
            for (uint64_t r = 0; r < rows; r++) {
                uint32_t sum = 0;
                for (int d = 0; d < BW_DIMS; d++) {
                    int difference = codes[r * BW_DIMS + (uint64_t)d] - queries[q * BW_DIMS + (size_t)d];
                    sum += (uint32_t)(difference * difference);
                }
                all[r] = (neighbour){sum, ids[r]};
            }
            qsort(all, rows, sizeof *all, by_distance);
            wrong += counts[q] != room;
            for (uint32_t i = 0; i < room; i++) {
                wrong += found[q * k + i] != all[i].id || distances[q * k + i] != all[i].distance;
            }
        }
        CHECK_EQUAL(wrong, 0);
        CHECK_EQUAL(stats.rows, n * room);
        CHECK_EQUAL(stats.blocks, n * index->first_blocks[index->info.segments]);
        CHECK_EQUAL(stats.blocks_pruned + stats.blocks_contained + stats.blocks_scanned, stats.blocks);
        CHECK(stats.bytes >= stats.blocks_scanned * BW_BLOCK_ROWS * BW_DIMS);
        free(found);
        free(distances);
    }
    free(ids);
    free(codes);
    free(all);
}

static void test_random(void) {
    bw_random random = {31};
    for (int round = 0; round < 60; round++) {
        uint64_t rows[3];
        uint32_t segments = 1 + (uint32_t)bw_random_below(&random, 3);
        for (uint32_t s = 0; s < segments; s++) {
            rows[s] = test_sizes[bw_random_below(&random, TEST_SIZES - 4)];
        }
        bw_index *index = test_make_index(&random, "test_knn.d", round % DATA_KINDS, rows, segments);
        check_queries(&random, index, round % DATA_KINDS);
        bw_index_close(index);
    }
}

/* Zones must spare most of a clustered index. */
static void test_pruning(void) {
    bw_random random = {32};
    uint64_t rows = 20000;
    bw_index *index = test_make_index(&random, "test_knn.d", DATA_CLUSTERED, &rows, 1);
    uint8_t query[BW_DIMS];
    int64_t ids[10];
    uint32_t distances[10], count;
    bw_stats stats;
    bw_error error;
    CHECK_STATUS(bw_index_rows(index, 777, 1, ids, query, &error), BW_OK);
    CHECK_STATUS(bw_knn(index, query, 1, 10, 1, ids, distances, &count, &stats, &error), BW_OK);
    CHECK_EQUAL(count, 10);
    CHECK(stats.blocks_scanned < stats.blocks / 2);
    bw_index_close(index);
}

static void test_arguments(void) {
    bw_random random = {33};
    uint8_t query[BW_DIMS] = {0};
    int64_t ids[4] = {-7, -7, -7, -7};
    uint32_t distances[4], counts[1] = {9};
    bw_error error;
    bw_index *index = test_make_index(&random, "test_knn.d", DATA_UNIFORM, NULL, 0);
    bw_stats stats;
    CHECK_STATUS(bw_knn(index, query, 1, 4, 1, ids, distances, counts, &stats, &error), BW_OK);
    CHECK_EQUAL(counts[0], 0);
    CHECK_EQUAL(ids[0], -7);
    CHECK_EQUAL(stats.blocks, 0);
    CHECK_STATUS(bw_knn(index, NULL, 0, 4, 1, NULL, NULL, NULL, NULL, &error), BW_OK);
    CHECK_STATUS(bw_knn(index, query, 1, 0, 1, ids, distances, counts, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("k is 0");
    CHECK_STATUS(bw_knn(index, query, 1, BW_MAX_K + 1, 1, ids, distances, counts, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("10000");
    CHECK_STATUS(bw_knn(index, query, SIZE_MAX / 2, 4, 1, ids, distances, counts, NULL, &error), BW_INVALID);
    CHECK_STATUS(bw_knn(index, NULL, 1, 4, 1, ids, distances, counts, NULL, &error), BW_INVALID);
    CHECK_STATUS(bw_knn(NULL, query, 1, 4, 1, ids, distances, counts, NULL, &error), BW_INVALID);
    bw_index_close(index);
}

#ifdef BW_FAULTS
static void test_faults(void) {
    bw_random random = {34};
    uint64_t rows = 1000;
    bw_index *index = test_make_index(&random, "test_knn.d", DATA_UNIFORM, &rows, 1);
    uint8_t queries[2 * BW_DIMS] = {0};
    int64_t ids[8];
    uint32_t distances[8], counts[2];
    bw_error error;
    int32_t status = BW_NOMEM;
    for (long countdown = 0; status != BW_OK && countdown < 100; countdown++) {
        bw_fault_set(BW_FAULT_ALLOC, countdown);
        status = bw_knn(index, queries, 2, 4, 1, ids, distances, counts, NULL, &error);
        bw_fault_set(BW_FAULT_ALLOC, -1);
        CHECK(status == BW_OK || (countdown < 2 && status == BW_NOMEM && error.code == BW_NOMEM));
    }
    CHECK_EQUAL(status, BW_OK);
    bw_index_close(index);
}
#endif

int main(void) {
    test_random();
    test_pruning();
    test_arguments();
#ifdef BW_FAULTS
    test_faults();
#endif
    test_remove_folder("test_knn.d");
    return test_finish();
}
