/* test_train.c - the learner: errors, determinism, sets of labels, and what a sensible model finds. The
 * comparison with an independent implementation is tests/test_learner.py. */
#include "index.h"
#include "model.h"
#include "test.h"

#include <math.h>

#define ROWS 3000
#define CLUSTER 200 /* rows of the cluster that is looked for: ids 0, 7, 14, .. */

static bw_error error;
static const bw_train_options ensemble = {BW_LEARNER_ENSEMBLE, 25, 500, 1.0, 1};
static const bw_train_options branch = {BW_LEARNER_BRANCH, 0, 500, 1.0, 1};

static uint8_t codes[ROWS][BW_DIMS];
static int64_t ids[ROWS];

/* CLUSTER rows near one place, the others all over. */
static void make_rows(void) {
    bw_random random = {5};
    uint8_t center[BW_DIMS];
    for (int d = 0; d < BW_DIMS; d++) {
        center[d] = (uint8_t)(60 + bw_random_below(&random, 130));
    }
    for (int i = 0; i < ROWS; i++) {
        ids[i] = 7 * (int64_t)i;
        for (int d = 0; d < BW_DIMS; d++) {
            uint64_t noise = bw_random_below(&random, 13) + bw_random_below(&random, 13);
            uint64_t anywhere = bw_random_below(&random, 120) + bw_random_below(&random, 120);
            codes[i][d] = (uint8_t)(i < CLUSTER ? center[d] + noise - 12 : anywhere);
        }
    }
}

static bw_index *make_index(const char *folder) {
    bw_segment_spec spec = {.rows = ROWS, .ids = ids, .codes = codes[0], .uuid = {9}, .generation = 1};
    const char *name = "1-0.segment";
    bw_index *index = NULL;
    strcpy(spec.fingerprints.quantizer, "feed");
    CHECK_STATUS(bw_segment_write(folder, name, &spec, NULL, NULL, &error), BW_OK);
    CHECK_STATUS(bw_manifest_write(folder, spec.uuid, 1, &name, 1, &spec.fingerprints, &error), BW_OK);
    CHECK_STATUS(bw_index_open(folder, &index, &error), BW_OK);
    if (!index) {
        exit(1);
    }
    return index;
}

static char *trained(const bw_index *index, const int64_t *positives, size_t p, const int64_t *negatives,
                     size_t n, const bw_train_options *options) {
    bw_model *model = NULL;
    char *json = NULL;
    CHECK_STATUS(bw_train(index, positives, p, negatives, n, options, &model, NULL, &error), BW_OK);
    if (!model || bw_model_to_json(model, &json, &error) != BW_OK) {
        exit(1);
    }
    bw_model_free(model);
    return json;
}

static void test_errors(const bw_index *index) {
    bw_model *model = NULL;
    int64_t one[] = {0}, two[] = {7, 0}, absent[] = {7, 8}, negative_id[] = {-3};
    bw_train_options options = ensemble;
    CHECK_STATUS(bw_train(index, one, 0, two, 2, &options, &model, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("no positives");
    CHECK_STATUS(bw_train(index, one, 1, two, 2, &options, &model, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("id 0 is both");
    CHECK_STATUS(bw_train(index, absent, 2, NULL, 0, &options, &model, NULL, &error), BW_MISSING);
    CHECK_MESSAGE("8");
    CHECK_STATUS(bw_train(index, one, 1, negative_id, 1, &options, &model, NULL, &error), BW_MISSING);
    CHECK_MESSAGE("-3");
    options.random_negatives = 0;
    CHECK_STATUS(bw_train(index, one, 1, NULL, 0, &options, &model, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("nothing to tell the positives from");
    options.random_negatives = 100001;
    CHECK_STATUS(bw_train(index, one, 1, NULL, 0, &options, &model, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("random_negatives: 100001 is out of range 0..100000");
    options = ensemble;
    options.estimators = 0;
    CHECK_STATUS(bw_train(index, one, 1, NULL, 0, &options, &model, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("estimators: 0 is out of range 1..1024");
    options.estimators = 1025;
    CHECK_STATUS(bw_train(index, one, 1, NULL, 0, &options, &model, NULL, &error), BW_INVALID);
    options = ensemble;
    options.learner = 3;
    CHECK_STATUS(bw_train(index, one, 1, NULL, 0, &options, &model, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("unknown learner 3");
    const double weights[] = {0, 0.0099, 100.5, -1, NAN, INFINITY};
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++) {
        options = ensemble;
        options.negative_weight = weights[i];
        CHECK_STATUS(bw_train(index, one, 1, NULL, 0, &options, &model, NULL, &error), BW_INVALID);
        CHECK_MESSAGE("out of range 0.01..100");
    }
    CHECK_STATUS(bw_train(index, one, 1, NULL, 0, NULL, &model, NULL, &error), BW_INVALID);
    CHECK_STATUS(bw_train_codes(codes[0], 1, NULL, 0, NULL, 0, &ensemble, NULL, &model, NULL, &error),
                 BW_INVALID);
    CHECK_STATUS(
        bw_train_codes(codes[0], 1, NULL, 0, codes[0], 100001, &ensemble, NULL, &model, NULL, &error),
        BW_INVALID);
    CHECK_STATUS(
        bw_train_codes(codes[0], 1000001, NULL, 0, codes[0], 1, &ensemble, NULL, &model, NULL, &error),
        BW_INVALID);
    CHECK(model == NULL);
}

/* The same sets, whatever order they come in and however often an id is named. */
static void test_sets(const bw_index *index) {
    int64_t p[] = {0, 70, 7, 700, 49}, q[] = {49, 700, 0, 7, 70, 7, 49}, n[] = {7000, 10500, 14000},
            m[] = {14000, 7000, 10500};
    const bw_train_options *options[] = {&branch, &ensemble};
    for (int i = 0; i < 2; i++) {
        char *a = trained(index, p, 5, n, 3, options[i]), *b = trained(index, q, 7, m, 3, options[i]);
        CHECK(strcmp(a, b) == 0);
        CHECK(strstr(a, "\"quantizer\":\"feed\"") != NULL);
        CHECK(strstr(a, "\"training\":{\"positives\":5,\"negatives\":3,\"random_negatives\":500,\"negative_"
                        "weight\":1.00,"
                        "\"seed\":1}") != NULL);
        bw_free(a);
        bw_free(b);
    }
    bw_train_options other = ensemble;
    other.seed = 2;
    char *a = trained(index, p, 5, n, 3, &ensemble), *b = trained(index, p, 5, n, 3, &other);
    CHECK(strcmp(a, b) != 0);
    bw_free(a);
    bw_free(b);
}

/* A few labels find most of the cluster, and little else; votes rank before nearness. */
static void test_finds(const bw_index *index) {
    static int32_t votes[ROWS];
    static int64_t scores[ROWS];
    static uint8_t match[ROWS];
    const bw_train_options *options[] = {&branch, &ensemble};
    for (int i = 0; i < 2; i++) {
        for (size_t p = 4; p <= 32; p *= 2) {
            bw_model *model = NULL;
            bw_train_stats stats;
            CHECK_STATUS(bw_train(index, ids, p, ids + ROWS - 10, 10, options[i], &model, &stats, &error),
                         BW_OK);
            CHECK(stats.positives == p && stats.negatives == 10 && stats.random_negatives == 500 &&
                  stats.nanoseconds > 0);
            CHECK(stats.estimators == (i ? 25 : 1) && stats.boxes >= stats.estimators);
            CHECK_EQUAL(model->threshold, i ? 13 : 1);
            CHECK_STATUS(bw_model_evaluate(model, codes[0], ROWS, votes, scores, match, &error), BW_OK);
            int inside = 0, outside = 0;
            for (int r = 0; r < ROWS; r++) {
                inside += r < CLUSTER && match[r];
                outside += r >= CLUSTER && match[r];
                int64_t rest = scores[r] - ((int64_t)votes[r] << 21);
                CHECK(rest <= 0 && rest > -(1 << 21));
            }
            CHECK(inside >= CLUSTER * 3 / 4);
            CHECK(outside <= CLUSTER / 10);
            bw_model_free(model);
        }
    }
}

/* Rows of the cluster that are marked wrong do not come back, unless they weigh next to nothing. */
static void test_given_negatives(void) {
    const bw_train_options *options[] = {&branch, &ensemble};
    for (int i = 0; i < 2; i++) {
        int before = CLUSTER;
        for (int heavy = 0; heavy < 2; heavy++) {
            bw_model *model = NULL;
            bw_train_options weighted = *options[i];
            uint8_t match[20];
            int inside = 0;
            weighted.negative_weight = heavy ? 1.0 : 0.01;
            CHECK_STATUS(bw_train_codes(codes[0], 40, codes[40], 20, codes[CLUSTER], 500, &weighted, NULL,
                                        &model, NULL, &error),
                         BW_OK);
            CHECK_STATUS(bw_model_evaluate(model, codes[40], 20, NULL, NULL, match, &error), BW_OK);
            for (int r = 0; r < 20; r++) {
                inside += match[r];
            }
            CHECK(heavy ? inside <= 2 && inside < before : inside >= 10);
            before = inside;
            bw_model_free(model);
        }
    }
}

/* Two clusters far apart with nothing between them need a box each. */
static void test_union(void) {
    uint8_t p[12][BW_DIMS], n[400][BW_DIMS], match[12];
    bw_random random = {3};
    for (int i = 0; i < 400; i++) {
        for (int d = 0; d < BW_DIMS; d++) {
            n[i][d] = (uint8_t)(60 + bw_random_below(&random, 130));
        }
    }
    for (int i = 0; i < 12; i++) {
        for (int d = 0; d < BW_DIMS; d++) {
            p[i][d] = (uint8_t)((i < 6 ? 10 : 235) + bw_random_below(&random, 8));
        }
    }
    bw_model *model = NULL;
    CHECK_STATUS(bw_train_codes(p[0], 12, NULL, 0, n[0], 400, &branch, NULL, &model, NULL, &error), BW_OK);
    CHECK_STATUS(bw_model_evaluate(model, p[0], 12, NULL, NULL, match, &error), BW_OK);
    for (int i = 0; i < 12; i++) {
        CHECK(match[i]);
    }
    bw_model_free(model);
}

/* Extremes of sizes and values stay within all limits (the sanitizers watch the arithmetic). */
static void test_extremes(void) {
    size_t many = 20000;
    uint8_t *black = test_alloc(many * BW_DIMS), *mixed = test_alloc(many * BW_DIMS);
    bw_random random = {11};
    for (size_t i = 0; i < many * BW_DIMS; i++) {
        mixed[i] = bw_random_next(&random) & 1 ? 255 : 0;
    }
    bw_train_options options = {BW_LEARNER_ENSEMBLE, 1, 0, 100.0, UINT64_MAX};
    for (int kind = 0; kind < 2; kind++) {
        options.learner = kind ? BW_LEARNER_ENSEMBLE : BW_LEARNER_BRANCH;
        bw_model *model = NULL;
        CHECK_STATUS(
            bw_train_codes(mixed, 3000, black, many, mixed, 5000, &options, "q", &model, NULL, &error),
            BW_OK);
        bw_model_free(model);
        CHECK_STATUS(bw_train_codes(black, 5000, mixed, 10, NULL, 0, &options, "q", &model, NULL, &error),
                     BW_OK);
        bw_model_free(model);
        CHECK_STATUS(bw_train_codes(mixed, 1, black, 1, NULL, 0, &options, "q", &model, NULL, &error), BW_OK);
        bw_model_free(model);
        CHECK_STATUS(bw_train_codes(black, 2, black, 3, black, 9, &options, "q", &model, NULL, &error),
                     BW_OK);
        bw_model_free(model);
    }
    free(black);
    free(mixed);
}

#ifdef BW_FAULTS
static void test_faults(const bw_index *index) {
    int64_t n[] = {7000, 7007};
    int32_t status = BW_NOMEM;
    for (long at = 0; status == BW_NOMEM && at < 1000; at++) {
        bw_model *model = NULL;
        bw_fault_set(BW_FAULT_ALLOC, at);
        status = bw_train(index, ids, 5, n, 2, &ensemble, &model, NULL, &error);
        bw_fault_set(BW_FAULT_ALLOC, -1);
        CHECK(status == BW_OK || (status == BW_NOMEM && model == NULL));
        CHECK(status == BW_NOMEM || at > 10);
        bw_model_free(model);
    }
    CHECK(status == BW_OK);
}
#endif

int main(void) {
    make_rows();
    const char *folder = test_make_folder("test_train_index");
    bw_index *index = make_index(folder);
    test_errors(index);
    test_sets(index);
    test_finds(index);
    test_given_negatives();
    test_union();
    test_extremes();
#ifdef BW_FAULTS
    test_faults(index);
#endif
    bw_index_close(index);
    test_remove_folder(folder);
    return test_finish();
}
