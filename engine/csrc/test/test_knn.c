/* Nearest neighbours against all distances sorted: exact ones with many ties, within filters, and the share
 * that approximate ones find. */
#include "search.h"
#include "test_search.h"

#include <math.h>

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

/* All live rows of an index. */
typedef struct everything {
    uint64_t rows;
    int64_t *ids;
    uint8_t *codes;
    uint8_t *fine;   /* NULL: none */
    uint8_t *passes; /* a row may be an answer */
    neighbour *sorted;
} everything;

static everything everything_of(const bw_index *index) {
    everything e = {.rows = index->info.rows};
    uint64_t held = index->info.rows + index->info.deleted;
    e.ids = test_alloc(held * sizeof *e.ids);
    e.codes = test_alloc(held * BW_DIMS);
    e.passes = test_alloc(e.rows);
    e.sorted = test_alloc(e.rows * sizeof *e.sorted);
    e.fine = index->info.fingerprints.fine[0] ? test_alloc(held * BW_FINE_DIMS) : NULL;
    test_read_live(index, e.ids, e.codes, e.fine);
    memset(e.passes, 1, e.rows);
    return e;
}

static void everything_free(everything *e) {
    free(e->ids);
    free(e->codes);
    free(e->fine);
    free(e->passes);
    free(e->sorted);
}

/* The rows that pass, the nearest ones first; returns how many. */
static uint64_t sort_rows(everything *e, const uint8_t *query) {
    uint64_t n = 0;
    for (uint64_t r = 0; r < e->rows; r++) {
        uint32_t sum = 0;
        for (int d = 0; d < BW_DIMS; d++) {
            int difference = e->codes[r * BW_DIMS + (uint64_t)d] - query[d];
            sum += (uint32_t)(difference * difference);
        }
        if (e->passes[r]) {
            e->sorted[n++] = (neighbour){sum, e->ids[r]};
        }
    }
    qsort(e->sorted, n, sizeof *e->sorted, by_distance);
    return n;
}

/* Queries of a kind; now and then a row itself. */
static void make_queries(bw_random *random, const everything *e, int kind, uint8_t *queries, size_t n) {
    test_fill_codes(random, (int)bw_random_below(random, 2) ? kind : DATA_UNIFORM, queries, n);
    if (e->rows && bw_random_below(random, 2)) {
        memcpy(queries, e->codes + bw_random_below(random, e->rows) * BW_DIMS, BW_DIMS);
    }
}

/* The answers to n queries must be those of e, with these options. */
static void check_exact(const bw_index *index, everything *e, const uint8_t *queries, size_t n,
                        const bw_knn_options *options) {
    uint32_t k = options->k, *distances = test_alloc(n * k * sizeof *distances), *counts = test_alloc(n * 4);
    int64_t *ids = test_alloc(n * k * sizeof *ids);
    bw_stats stats;
    bw_error error;
    CHECK_STATUS(bw_knn(index, queries, n, options, ids, distances, counts, &stats, &error), BW_OK);
    unsigned wrong = 0;
    uint64_t expected = 0;
    for (size_t q = 0; q < n; q++) {
        uint64_t all = sort_rows(e, queries + q * BW_DIMS), room = all < k ? all : k;
        wrong += counts[q] != room;
        for (uint64_t i = 0; i < room; i++) {
            wrong += ids[q * k + i] != e->sorted[i].id || distances[q * k + i] != e->sorted[i].distance;
        }
        expected += room;
    }
    CHECK_EQUAL(wrong, 0);
    CHECK_EQUAL(stats.rows, expected);
    CHECK_EQUAL(stats.blocks, n * index->first_blocks[index->info.segments]);
    CHECK_EQUAL(stats.blocks_pruned + stats.blocks_scanned, stats.blocks);
    free(ids);
    free(distances);
    free(counts);
}

static bw_index *random_index(bw_random *random, int kind) {
    uint64_t rows[3];
    uint32_t segments = 1 + (uint32_t)bw_random_below(random, 3);
    for (uint32_t s = 0; s < segments; s++) {
        rows[s] = test_sizes[bw_random_below(random, TEST_SIZES - 4)];
    }
    bw_index *index =
        test_make_index_with(random, "test_knn.d", kind, rows, segments, bw_random_below(random, 2) > 0);
    return bw_random_below(random, 2) ? test_kill(random, "test_knn.d", index) : index;
}

static void test_random(void) {
    bw_random random = {31};
    for (int round = 0; round < 40; round++) {
        bw_index *index = random_index(&random, round % DATA_KINDS);
        everything e = everything_of(index);
        for (int part = 0; part < 6; part++) {
            size_t n = 1 + bw_random_below(&random, 4);
            uint8_t queries[4 * BW_DIMS];
            make_queries(&random, &e, round % DATA_KINDS, queries, n);
            bw_knn_options options = {.recall = 1, .threads = 1 + (uint32_t)bw_random_below(&random, 4)};
            options.k = 1 + (uint32_t)bw_random_below(&random, part < 4 ? 70 : BW_MAX_K);
            test_choose_isa(bw_random_below(&random, 4));
            check_exact(index, &e, queries, n, &options);
        }
        everything_free(&e);
        bw_index_close(index);
    }
}

/* A model of two boxes around rows of the index; wide, narrow, or none at all. */
static bw_model *random_model(bw_random *random, const everything *e) {
    char json[512];
    const uint8_t *row = e->codes + bw_random_below(random, e->rows) * BW_DIMS;
    int width = (int)bw_random_below(random, 3) * 60, at = 0;
    at += snprintf(json, sizeof json,
                   "{\"boxwood_model\":1,\"learner\":\"test\",\"dims\":32,\"quantizer\":\"q\","
                   "\"estimators\":[[");
    for (int box = 0; box < 2; box++) {
        int d = (int)bw_random_below(random, BW_DIMS), lo = row[d] - width, hi = row[d] + width;
        at += snprintf(json + at, sizeof json - (size_t)at, "%s[[%d,%d,%d]]", box ? "," : "", d,
                       lo < 0 ? 0 : lo, hi > 255 ? 255 : hi);
    }
    at += snprintf(json + at, sizeof json - (size_t)at, "]],\"threshold\":%d}",
                   (int)bw_random_below(random, 9) > 0);
    bw_model *model = NULL;
    bw_error error;
    CHECK_STATUS(bw_model_from_json(json, (size_t)at, &model, &error), BW_OK);
    if (bw_random_below(random, 2)) { /* and with scores that cut */
        static bw_score score, fine;
        bw_model *boxes = model;
        score = (bw_score){.terms = 1, .has_threshold = true, .threshold = -40000};
        fine = (bw_score){.terms = 1, .has_threshold = true, .threshold = 100};
        fine.term[0].linear[bw_random_below(random, BW_FINE_DIMS)] = 1;
        for (int d = 0; d < BW_DIMS; d++) {
            score.term[0].linear[d] = 2 * row[d];
            score.term[0].square[d] = -1;
            score.term[0].constant -= row[d] * row[d];
        }
        CHECK_STATUS(bw_model_new("test", "q", boxes->estimators, boxes->first_box, boxes->boxes,
                                  boxes->threshold, &score, "f", e->fine ? &fine : NULL, NULL, &model,
                                  &error),
                     BW_OK);
        bw_model_free(boxes);
    }
    return model;
}

static void test_filters(void) {
    bw_random random = {36};
    for (int round = 0; round < 24; round++) {
        int kind = round % DATA_KINDS;
        bw_index *index = random_index(&random, kind);
        everything e = everything_of(index);
        for (int part = 0; part < 6; part++) {
            uint8_t queries[3 * BW_DIMS];
            make_queries(&random, &e, kind, queries, 3);
            bw_knn_options options = {.threads = 1 + (uint32_t)bw_random_below(&random, 3)};
            options.recall = bw_random_below(&random, 2) ? 1 : 0.5; /* no filter is approximate */
            options.k = 1 + (uint32_t)bw_random_below(&random, part < 4 ? 70 : BW_MAX_K);
            test_choose_isa(bw_random_below(&random, 4));
            bw_model *model = part % 3 == 1 ? NULL : random_model(&random, &e);
            bw_error error;
            memset(e.passes, 1, e.rows);
            if (model) {
                CHECK_STATUS(bw_model_evaluate(model, e.codes, e.fine, e.rows, NULL, NULL, e.passes, &error),
                             BW_OK);
                options.within = model;
            }
            int64_t *ids = NULL;
            if (part % 3 > 0) { /* some twice, some that the index lacks; none at all */
                uint64_t n = bw_random_below(&random, 4) ? 1 + bw_random_below(&random, 2 * e.rows) : 0;
                uint8_t *listed = test_alloc(e.rows);
                ids = test_alloc((n + 3) * sizeof *ids);
                for (uint64_t i = 0; i < n; i++) {
                    uint64_t row = bw_random_below(&random, e.rows);
                    ids[i] = e.ids[row];
                    listed[row] = 1;
                }
                ids[n] = -5;
                ids[n + 1] = INT64_MAX;
                ids[n + 2] = INT64_MAX;
                for (uint64_t r = 0; r < e.rows; r++) {
                    e.passes[r] &= listed[r];
                }
                options.ids = ids;
                options.n_ids = part == 5 ? n : n + 3;
                free(listed);
            }
            check_exact(index, &e, queries, 3, &options);
            bw_model_free(model);
            free(ids);
        }
        everything_free(&e);
        bw_index_close(index);
    }
}

/* Many rows that pass, which are kept as bits, and one query that is shared out among threads. */
static void test_large(void) {
    bw_random random = {37};
    uint64_t rows[2] = {120000, 30001};
    bw_isa_select(NULL, NULL);
    bw_index *index = test_make_index(&random, "test_knn.d", DATA_CLUSTERED, rows, 2);
    everything e = everything_of(index);
    const char *wide = "{\"boxwood_model\":1,\"learner\":\"test\",\"dims\":32,"
                       "\"estimators\":[[[[3,0,200]],[[9,100,255]]]],\"threshold\":1}";
    bw_model *model;
    bw_error error;
    CHECK_STATUS(bw_model_from_json(wide, strlen(wide), &model, &error), BW_OK);
    uint8_t queries[2 * BW_DIMS];
    make_queries(&random, &e, DATA_CLUSTERED, queries, 2);
    for (uint32_t threads = 1; threads <= 4; threads++) {
        bw_knn_options options = {.k = 5000, .recall = 1, .threads = threads};
        check_exact(index, &e, queries, 1, &options);
    }
    uint64_t listed = 0;
    int64_t *ids = test_alloc(e.rows * sizeof *ids);
    uint8_t *match = test_alloc(e.rows);
    CHECK_STATUS(bw_model_evaluate(model, e.codes, e.fine, e.rows, NULL, NULL, match, &error), BW_OK);
    for (uint64_t r = 0; r < e.rows; r++) {
        if (bw_random_below(&random, 8) > 0) {
            ids[listed++] = e.ids[r];
            e.passes[r] = 1;
        } else {
            e.passes[r] = 0;
        }
    }
    CHECK(listed > 100000);
    bw_knn_options options = {.k = 60, .recall = 1, .threads = 2, .ids = ids, .n_ids = listed};
    check_exact(index, &e, queries, 2, &options);
    uint64_t both = 0;
    for (uint64_t r = 0; r < e.rows; r++) {
        e.passes[r] &= match[r];
        both += e.passes[r];
    }
    CHECK(both > 70000 && both < listed);
    options.within = model;
    check_exact(index, &e, queries, 2, &options);
    options.k = BW_MAX_K;
    check_exact(index, &e, queries, 1, &options);
    memcpy(e.passes, match, e.rows);
    options.ids = NULL;
    options.n_ids = 0;
    check_exact(index, &e, queries, 2, &options);
    bw_model_free(model);
    free(ids);
    free(match);
    everything_free(&e);
    bw_index_close(index);
}

/* Codes as embeddings have them: normal about the middle, the first dimensions the widest. */
static void fill_bell(bw_random *random, uint8_t *codes, uint64_t rows) {
    for (uint64_t i = 0; i < rows * BW_DIMS; i++) {
        int sum = 0, width = 44 - (int)(i % BW_DIMS);
        for (int j = 0; j < 4; j++) {
            sum += (int)bw_random_below(random, (uint64_t)width * 2 + 1) - width;
        }
        codes[i] = (uint8_t)(sum < -127 ? 0 : sum > 127 ? 255 : 128 + sum);
    }
}

/* What was promised is found among live rows too, with half of them dead; and nearly so where those that were
 * nearest are dead, which is not what efforts were measured on. */
static void check_recall_of_living(bw_random *random, const bw_index *index, const uint8_t *queries,
                                   size_t n) {
    enum { K = 20, NEAREST = 50 };
    const double recalls[] = {0.7, 0.9, 0.99};
    bw_error error;
    int64_t *found = test_alloc(n * NEAREST * sizeof *found), *dead;
    uint32_t *distances = test_alloc(n * NEAREST * sizeof *distances), *counts = test_alloc(n * 4);
    uint32_t *truth = test_alloc(n * NEAREST * sizeof *truth);
    dead = test_alloc((index->info.rows + n * NEAREST) * sizeof *dead);
    for (int nearest = 0; nearest < 2; nearest++) {
        size_t killed = 0;
        if (nearest) {
            bw_knn_options options = {.k = NEAREST, .recall = 1, .threads = 2};
            CHECK_STATUS(bw_knn(index, queries, n, &options, dead, distances, counts, NULL, &error), BW_OK);
            killed = n * NEAREST;
        }
        for (uint64_t r = 0; r < index->info.rows && !nearest; r++) {
            dead[killed] = (int64_t)r;
            killed += bw_random_below(random, 2);
        }
        bw_index *without = NULL;
        CHECK_STATUS(bw_index_without(index, dead, killed, &without, &error), BW_OK);
        bw_knn_options options = {.k = K, .recall = 1, .threads = 2};
        CHECK_STATUS(bw_knn(without, queries, n, &options, found, truth, counts, NULL, &error), BW_OK);
        for (size_t i = 0; i < sizeof recalls / sizeof *recalls; i++) {
            options.recall = recalls[i];
            CHECK_STATUS(bw_knn(without, queries, n, &options, found, distances, counts, NULL, &error),
                         BW_OK);
            uint64_t hits = 0;
            for (size_t q = 0; q < n; q++) {
                for (uint32_t j = 0; j < K; j++) {
                    hits += distances[q * K + j] <= truth[q * K + K - 1];
                }
            }
            double share = (double)hits / (double)n / K;
            if (!CHECK(share >= recalls[i] - (nearest ? 0.06 : 0.025))) {
                printf("    recall %g of live rows: %g\n", recalls[i], share);
            }
        }
        bw_index_close(without);
    }
    free(found);
    free(distances);
    free(counts);
    free(truth);
    free(dead);
}

/* What was promised is found on average by queries that the index has not seen. */
static void test_recall(void) {
    enum { ROWS = 30000, QUERIES = 200, MOST = 300 };
    static const uint32_t ks[] = {1, 10, 60, MOST};
    static const double recalls[] = {0.5, 0.8, 0.9, 0.95, 0.99, 1};
    bw_random random = {38};
    uint8_t *codes = test_alloc((size_t)ROWS * BW_DIMS), *queries = test_alloc((size_t)QUERIES * BW_DIMS);
    int64_t *ids = test_alloc(ROWS * sizeof *ids);
    bw_error error;
    bw_fingerprints fingerprints = {.quantizer = "q"};
    uint8_t uuid[16] = {7};
    fill_bell(&random, codes, ROWS);
    fill_bell(&random, queries, QUERIES);
    for (int64_t i = 0; i < ROWS; i++) {
        ids[i] = i;
    }
    for (uint32_t segments = 1; segments <= 5; segments += 4) {
        const char *names[5] = {"a", "b", "c", "d", "e"};
        test_make_folder("test_knn.d");
        for (uint32_t s = 0; s < segments; s++) {
            uint64_t first = (uint64_t)ROWS * s / segments, end = (uint64_t)ROWS * (s + 1) / segments;
            bw_segment_spec spec = {.rows = end - first, .generation = segments};
            spec.ids = ids + first;
            spec.codes = codes + first * BW_DIMS;
            spec.fingerprints = fingerprints;
            memcpy(spec.uuid, uuid, sizeof uuid);
            CHECK_STATUS(bw_segment_write("test_knn.d", names[s], &spec, NULL, NULL, &error), BW_OK);
        }
        bw_index *index = NULL;
        CHECK_STATUS(
            bw_manifest_write("test_knn.d", uuid, segments, names, NULL, segments, &fingerprints, &error),
            BW_OK);
        CHECK_STATUS(bw_index_open("test_knn.d", &index, &error), BW_OK);
        if (index == NULL) {
            exit(test_finish());
        }
        int64_t *found = test_alloc((size_t)QUERIES * MOST * sizeof *found);
        uint32_t *distances = test_alloc((size_t)QUERIES * MOST * sizeof *distances), counts[QUERIES];
        uint32_t *truth = test_alloc((size_t)QUERIES * MOST * sizeof *truth);
        for (size_t j = 0; j < sizeof ks / sizeof *ks; j++) {
            bw_knn_options options = {.k = ks[j], .recall = 1, .threads = 2};
            bw_stats stats;
            CHECK_STATUS(bw_knn(index, queries, QUERIES, &options, found, truth, counts, &stats, &error),
                         BW_OK);
            uint64_t bytes_before = 0;
            for (size_t i = 0; i < sizeof recalls / sizeof *recalls; i++) {
                options.recall = recalls[i];
                CHECK_STATUS(
                    bw_knn(index, queries, QUERIES, &options, found, distances, counts, &stats, &error),
                    BW_OK);
                uint64_t hits = 0;
                unsigned wrong = 0;
                for (size_t q = 0; q < QUERIES; q++) {
                    wrong += counts[q] != ks[j];
                    for (uint32_t n = 0; n < ks[j]; n++) {
                        size_t at = q * ks[j] + n;
                        hits += distances[at] <= truth[q * ks[j] + ks[j] - 1];
                        wrong +=
                            n > 0 && (distances[at - 1] > distances[at] ||
                                      (distances[at - 1] == distances[at] && found[at - 1] >= found[at]));
                        uint32_t sum = 0;
                        for (int d = 0; d < BW_DIMS; d++) {
                            int difference = codes[(size_t)found[at] * BW_DIMS + (size_t)d] -
                                             queries[q * BW_DIMS + (size_t)d];
                            sum += (uint32_t)(difference * difference);
                        }
                        wrong += sum != distances[at];
                    }
                }
                double share = (double)hits / QUERIES / ks[j];
                CHECK_EQUAL(wrong, 0);
                if (!CHECK(share >= recalls[i] - (ks[j] == 1 ? 0.06 : 0.025))) {
                    printf("    recall %g of k %u in %u segments: %g\n", recalls[i], ks[j], segments, share);
                }
                if (recalls[i] < 1) { /* more is more work, and less than the whole */
                    CHECK(stats.bytes >= bytes_before && stats.bytes < (uint64_t)QUERIES * ROWS * BW_DIMS);
                    bytes_before = stats.bytes;
                } else {
                    CHECK_EQUAL(share, 1);
                }
            }
        }
        check_recall_of_living(&random, index, queries, QUERIES);
        for (uint32_t s = 0; s < segments; s++) {
            const bw_segment *segment = index->segments[s];
            bw_recall again;
            for (uint32_t threads = 1; threads <= 3; threads++) {
                test_choose_isa(threads);
                CHECK_STATUS(bw_knn_calibrate(segment, threads, &again, NULL, NULL, &error), BW_OK);
                CHECK(memcmp(&again, segment->recall, sizeof again) == 0);
            }
            for (int k = 0; k < BW_RECALL_KS; k++) {
                for (int level = 0; level < BW_RECALL_LEVELS; level++) {
                    uint32_t effort = again.effort[k][level];
                    CHECK(effort >= 1 && effort <= (segment->rows + 63) / 64);
                    CHECK(level == 0 || effort >= again.effort[k][level - 1]);
                    CHECK(k == 0 || effort >= again.effort[k - 1][level]);
                }
            }
        }
        bw_isa_select(NULL, NULL);
        free(found);
        free(distances);
        free(truth);
        bw_index_close(index);
    }
    free(codes);
    free(queries);
    free(ids);
}

/* However little is asked for, there are k rows: different ones, nearest first, at their true distances. */
static void test_never_short(void) {
    bw_random random = {41};
    for (int round = 0; round < 12; round++) {
        uint64_t rows[3] = {9000, 65, 4097};
        bw_index *index = test_make_index(&random, "test_knn.d", round % DATA_KINDS, rows, 1 + round % 3);
        index = round < 3 ? index : test_kill(&random, "test_knn.d", index);
        everything e = everything_of(index);
        uint8_t query[BW_DIMS];
        make_queries(&random, &e, round % DATA_KINDS, query, 1);
        for (uint32_t k = 1; k <= BW_MAX_K; k = k * 3 + (k == 81)) {
            bw_knn_options options = {.k = k, .recall = 0.01, .threads = 1};
            uint32_t *distances = test_alloc(k * sizeof *distances), count = 0;
            int64_t *ids = test_alloc(k * sizeof *ids);
            bw_error error;
            CHECK_STATUS(bw_knn(index, query, 1, &options, ids, distances, &count, NULL, &error), BW_OK);
            CHECK_EQUAL(count, e.rows < k ? e.rows : k);
            unsigned wrong = 0;
            uint8_t *codes = test_alloc((size_t)count * BW_DIMS);
            CHECK_STATUS(bw_index_codes(index, ids, count, codes, NULL, &error), BW_OK);
            for (uint32_t i = 0; i < count; i++) {
                uint32_t sum = 0;
                for (size_t d = 0; d < BW_DIMS; d++) {
                    int difference = codes[i * BW_DIMS + d] - query[d];
                    sum += (uint32_t)(difference * difference);
                }
                wrong += sum != distances[i];
                wrong +=
                    i > 0 && (distances[i - 1] > sum || (distances[i - 1] == sum && ids[i - 1] >= ids[i]));
            }
            CHECK_EQUAL(wrong, 0);
            free(codes);
            free(ids);
            free(distances);
        }
        everything_free(&e);
        bw_index_close(index);
    }
}

/* Segments of fewer rows than k, and of one row. */
static void test_recall_of_few_rows(void) {
    bw_random random = {39};
    for (uint64_t n = 1; n < 400; n = n * 2 + 1) {
        uint64_t rows[2] = {n, 1 + n / 3};
        bw_index *index = test_make_index(&random, "test_knn.d", DATA_UNIFORM, rows, 2);
        everything e = everything_of(index);
        uint8_t query[BW_DIMS];
        make_queries(&random, &e, DATA_UNIFORM, query, 1);
        bw_knn_options options = {.k = 1000, .recall = 0.9, .threads = 1};
        check_exact(index, &e, query, 1, &options);
        everything_free(&e);
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
    bw_knn_options options = {.k = 10, .recall = 1, .threads = 1};
    CHECK_STATUS(bw_index_rows(index, 777, 1, ids, query, NULL, &error), BW_OK);
    CHECK_STATUS(bw_knn(index, query, 1, &options, ids, distances, &count, &stats, &error), BW_OK);
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
    bw_stats stats;
    bw_index *index = test_make_index(&random, "test_knn.d", DATA_UNIFORM, NULL, 0);
    bw_knn_options options = {.k = 4, .recall = 1, .threads = 1};
    for (int i = 0; i < 3; i++) { /* an empty index, plainly, approximately, with a filter */
        options.recall = i == 1 ? 0.9 : 1;
        options.ids = i == 2 ? ids : NULL;
        options.n_ids = i == 2;
        counts[0] = 9;
        CHECK_STATUS(bw_knn(index, query, 1, &options, ids, distances, counts, &stats, &error), BW_OK);
        CHECK_EQUAL(counts[0], 0);
        CHECK_EQUAL(ids[0], -7);
        CHECK_EQUAL(stats.blocks, 0);
    }
    options.ids = NULL;
    CHECK_STATUS(bw_knn(index, query, 1, &options, ids, distances, counts, NULL, &error), BW_INVALID);
    options.n_ids = 0;
    CHECK_STATUS(bw_knn(index, NULL, 0, &options, NULL, NULL, NULL, NULL, &error), BW_OK);
    CHECK_STATUS(bw_knn(index, query, SIZE_MAX / 2, &options, ids, distances, counts, NULL, &error),
                 BW_INVALID);
    CHECK_STATUS(bw_knn(index, NULL, 1, &options, ids, distances, counts, NULL, &error), BW_INVALID);
    CHECK_STATUS(bw_knn(NULL, query, 1, &options, ids, distances, counts, NULL, &error), BW_INVALID);
    CHECK_STATUS(bw_knn(index, query, 1, NULL, ids, distances, counts, NULL, &error), BW_INVALID);
    options.k = 0;
    CHECK_STATUS(bw_knn(index, query, 1, &options, ids, distances, counts, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("k is 0");
    options.k = BW_MAX_K + 1;
    CHECK_STATUS(bw_knn(index, query, 1, &options, ids, distances, counts, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("10000");
    options.k = 4;
    const double bad[] = {0, -0.5, 1.0000001, 2, (double)NAN, (double)INFINITY};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        options.recall = bad[i];
        CHECK_STATUS(bw_knn(index, query, 1, &options, ids, distances, counts, NULL, &error), BW_INVALID);
        CHECK_MESSAGE("recall is");
    }
    bw_index_close(index);
}

typedef struct watch {
    double last;
    unsigned calls, stop_at;
    bool right;
} watch;

static int32_t look(void *context, double done) {
    watch *w = context;
    w->right &= done > w->last && done <= 1;
    w->last = done;
    return ++w->calls == w->stop_at;
}

/* A calibration stopped at each report, which rise to 1, and not asked again. */
static void test_calibration_cancelled(void) {
    bw_random random = {41};
    uint64_t rows = 30000;
    bw_index *index = test_make_index(&random, "test_knn.d", DATA_UNIFORM, &rows, 1);
    const bw_segment *segment = index->segments[0];
    bw_error error;
    for (unsigned stop_at = 1;; stop_at++) {
        watch w = {.stop_at = stop_at, .right = true};
        bw_recall recall;
        int32_t status = bw_knn_calibrate(segment, 1, &recall, look, &w, &error);
        CHECK(w.right);
        if (status == BW_OK) {
            CHECK(w.calls == stop_at - 1 && w.calls >= 16 && w.last > 0.95);
            CHECK(memcmp(&recall, segment->recall, sizeof recall) == 0);
            break;
        }
        CHECK(status == BW_CANCELLED && error.code == BW_CANCELLED && w.calls == stop_at);
    }
    watch w = {.stop_at = 1, .right = true};
    bw_recall recall;
    int32_t status = bw_knn_calibrate(segment, 3, &recall, look, &w, &error);
    CHECK(status == (w.calls ? BW_CANCELLED : BW_OK)); /* the others may do most of it */
    bw_index_close(index);
}

static void test_cancel_and_mismatch(void) {
    bw_random random = {40};
    uint64_t rows = 5000;
    bw_index *index = test_make_index(&random, "test_knn.d", DATA_UNIFORM, &rows, 1);
    uint8_t query[BW_DIMS] = {0};
    int64_t ids[4] = {0};
    uint32_t distances[4], counts[1];
    volatile int32_t cancel = 1;
    bw_error error;
    bw_model *model = NULL;
    bw_knn_options options = {.k = 4, .recall = 1, .threads = 1, .cancel = &cancel};
    CHECK_STATUS(bw_knn(index, query, 1, &options, ids, distances, counts, NULL, &error), BW_CANCELLED);
    options.ids = ids;
    options.n_ids = 1;
    CHECK_STATUS(bw_knn(index, query, 1, &options, ids, distances, counts, NULL, &error), BW_CANCELLED);
    options.ids = NULL;
    options.n_ids = 0;
    const char *other = "{\"boxwood_model\":1,\"learner\":\"test\",\"dims\":32,\"quantizer\":\"other\","
                        "\"estimators\":[[[]]],\"threshold\":1}";
    CHECK_STATUS(bw_model_from_json(other, strlen(other), &model, &error), BW_OK);
    options.within = model;
    CHECK_STATUS(bw_knn(index, query, 1, &options, ids, distances, counts, NULL, &error), BW_MISMATCH);
    options.ids = ids;
    options.n_ids = 1;
    CHECK_STATUS(bw_knn(index, query, 1, &options, ids, distances, counts, NULL, &error), BW_MISMATCH);
    bw_model_free(model);
    bw_index_close(index);
}

#ifdef BW_FAULTS
static void test_faults(void) {
    bw_random random = {34};
    uint64_t rows = 1000;
    bw_index *index = test_make_index(&random, "test_knn.d", DATA_UNIFORM, &rows, 1);
    uint8_t queries[2 * BW_DIMS] = {0};
    int64_t ids[8] = {1}, given[2];
    uint32_t distances[8], counts[2];
    bw_error error;
    bw_recall recall;
    bw_model *model = NULL;
    const char *all =
        "{\"boxwood_model\":1,\"learner\":\"test\",\"dims\":32,\"estimators\":[[[]]],\"threshold\":1}";
    CHECK_STATUS(bw_model_from_json(all, strlen(all), &model, &error), BW_OK);
    CHECK_STATUS(bw_index_rows(index, 0, 2, given, NULL, NULL, &error), BW_OK);
    for (int kind = 0; kind < 5; kind++) { /* exact, approximate, within, ids, calibration */
        bw_knn_options options = {.k = 4, .threads = 1, .recall = kind == 1 ? 0.9 : 1};
        options.within = kind == 2 ? model : NULL;
        options.ids = kind == 3 ? given : NULL;
        options.n_ids = kind == 3 ? 2 : 0;
        int32_t status = BW_NOMEM;
        for (long countdown = 0; status != BW_OK && countdown < 100; countdown++) {
            bw_fault_set(BW_FAULT_ALLOC, countdown);
            status = kind == 4 ? bw_knn_calibrate(index->segments[0], 1, &recall, NULL, NULL, &error)
                               : bw_knn(index, queries, 2, &options, ids, distances, counts, NULL, &error);
            bw_fault_set(BW_FAULT_ALLOC, -1);
            CHECK(status == BW_OK || (status == BW_NOMEM && error.code == BW_NOMEM));
        }
        CHECK_EQUAL(status, BW_OK);
    }
    bw_model_free(model);
    bw_index_close(index);
}
#endif

int main(void) {
    test_random();
    test_filters();
    test_large();
    test_recall();
    test_recall_of_few_rows();
    test_never_short();
    test_pruning();
    test_arguments();
    test_calibration_cancelled();
    test_cancel_and_mismatch();
#ifdef BW_FAULTS
    test_faults();
#endif
    test_remove_folder("test_knn.d");
    return test_finish();
}
