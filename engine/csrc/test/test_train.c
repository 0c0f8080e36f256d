/* test_train.c - the learner: errors, determinism, sets of labels, and what a sensible model finds. The
 * comparison with an independent implementation is tests/test_learner.py. */
#include "index.h"
#include "model.h"
#include "test.h"

#include <math.h>

#define ROWS 3000
#define CLUSTER 200 /* rows of the cluster that is looked for: ids 0, 7, 14, .. */

static bw_error error;
static const bw_train_options ensemble = {.learner = BW_LEARNER_ENSEMBLE,
                                          .estimators = 25,
                                          .random_negatives = 500,
                                          .negative_weight = 1.0,
                                          .seed = 1,
                                          .prior = 1};
static const bw_train_options cover = {
    .learner = BW_LEARNER_COVER, .random_negatives = 30000, .negative_weight = 1.0, .guard = 1};
static const bw_train_options branch = {
    .learner = BW_LEARNER_BRANCH, .random_negatives = 500, .negative_weight = 1.0, .seed = 1, .prior = 1};

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
    CHECK_STATUS(bw_manifest_write(folder, spec.uuid, 1, &name, NULL, 1, &spec.fingerprints, &error), BW_OK);
    CHECK_STATUS(bw_index_open(folder, &index, &error), BW_OK);
    if (!index) {
        exit(1);
    }
    return index;
}

static int32_t train_codes(const uint8_t *positives, size_t p, const uint8_t *negatives, size_t n,
                           const uint8_t *randoms, size_t r, const bw_train_options *options,
                           const char *quantizer, bw_model **model, bw_train_stats *stats) {
    bw_labels labels = {.positives = positives,
                        .negatives = negatives,
                        .randoms = randoms,
                        .n_positives = p,
                        .n_negatives = n,
                        .n_randoms = r,
                        .quantizer = quantizer};
    return bw_train_codes(&labels, options, model, stats, &error);
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
    options.learner = 4;
    CHECK_STATUS(bw_train(index, one, 1, NULL, 0, &options, &model, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("unknown learner 4");
    options = ensemble;
    options.prior = 2;
    CHECK_STATUS(bw_train(index, one, 1, NULL, 0, &options, &model, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("prior: 2 is not 0 or 1");
    const double weights[] = {0, 0.0099, 100.5, -1, NAN, INFINITY};
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++) {
        options = ensemble;
        options.negative_weight = weights[i];
        CHECK_STATUS(bw_train(index, one, 1, NULL, 0, &options, &model, NULL, &error), BW_INVALID);
        CHECK_MESSAGE("out of range 0.01..100");
    }
    CHECK_STATUS(bw_train(index, one, 1, NULL, 0, NULL, &model, NULL, &error), BW_INVALID);
    CHECK_STATUS(train_codes(codes[0], 1, NULL, 0, NULL, 0, &ensemble, NULL, &model, NULL), BW_INVALID);
    CHECK_STATUS(train_codes(codes[0], 1, NULL, 0, codes[0], 100001, &ensemble, NULL, &model, NULL),
                 BW_INVALID);
    CHECK_STATUS(train_codes(codes[0], 1000001, NULL, 0, codes[0], 1, &ensemble, NULL, &model, NULL),
                 BW_INVALID);
    CHECK(model == NULL);
}

/* The same sets, whatever order they come in and however often an id is named. */
static void test_sets(const bw_index *index) {
    int64_t p[] = {0, 70, 7, 700, 49}, q[] = {49, 700, 0, 7, 70, 7, 49}, n[] = {7000, 10500, 14000},
            m[] = {14000, 7000, 10500};
    const bw_train_options *options[] = {&branch, &ensemble};
    for (int i = 0; i < 4; i++) {
        bw_train_options chosen = *options[i / 2];
        chosen.prior = i % 2;
        char *a = trained(index, p, 5, n, 3, &chosen), *b = trained(index, q, 7, m, 3, &chosen);
        CHECK(strcmp(a, b) == 0);
        CHECK(strstr(a, "\"quantizer\":\"feed\"") != NULL);
        CHECK(strstr(a, "\"training\":{\"positives\":5,\"negatives\":3,\"random_negatives\":500,\"negative_"
                        "weight\":1.00,\"seed\":1,\"prior\":") != NULL);
        CHECK(strstr(a, chosen.prior ? "\"prior\":1}" : "\"prior\":0}") != NULL);
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
            CHECK_STATUS(bw_model_evaluate(model, codes[0], NULL, ROWS, votes, scores, match, &error), BW_OK);
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
            CHECK_STATUS(
                train_codes(codes[0], 40, codes[40], 20, codes[CLUSTER], 500, &weighted, NULL, &model, NULL),
                BW_OK);
            CHECK_STATUS(bw_model_evaluate(model, codes[40], NULL, 20, NULL, NULL, match, &error), BW_OK);
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
    CHECK_STATUS(train_codes(p[0], 12, NULL, 0, n[0], 400, &branch, NULL, &model, NULL), BW_OK);
    CHECK_STATUS(bw_model_evaluate(model, p[0], NULL, 12, NULL, NULL, match, &error), BW_OK);
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
    bw_train_options options = {.learner = BW_LEARNER_ENSEMBLE,
                                .estimators = 1,
                                .negative_weight = 100.0,
                                .seed = UINT64_MAX,
                                .prior = 1};
    for (int kind = 0; kind < 4; kind++) {
        options.learner = kind % 2 ? BW_LEARNER_ENSEMBLE : BW_LEARNER_BRANCH;
        options.prior = kind / 2;
        bw_model *model = NULL;
        CHECK_STATUS(train_codes(mixed, 3000, black, many, mixed, 5000, &options, "q", &model, NULL), BW_OK);
        bw_model_free(model);
        CHECK_STATUS(train_codes(black, 5000, mixed, 10, NULL, 0, &options, "q", &model, NULL), BW_OK);
        bw_model_free(model);
        CHECK_STATUS(train_codes(mixed, 1, black, 1, NULL, 0, &options, "q", &model, NULL), BW_OK);
        bw_model_free(model);
        CHECK_STATUS(train_codes(black, 2, black, 3, black, 9, &options, "q", &model, NULL), BW_OK);
        bw_model_free(model);
    }
    free(black);
    free(mixed);
}

/* `cover` on extremes, with fine codes and boxes, and its own errors; estimates are shares. */
static void test_cover(const bw_index *index) {
    size_t many = 20000;
    uint8_t *black = test_alloc(many * BW_FINE_DIMS), *mixed = test_alloc(many * BW_FINE_DIMS);
    bw_random random = {12};
    for (size_t i = 0; i < many * BW_FINE_DIMS; i++) {
        mixed[i] = bw_random_next(&random) & 1 ? 255 : 0;
    }
    const uint8_t *sides[] = {black, mixed};
    for (int kind = 0; kind < 32; kind++) {
        const uint8_t *p = sides[kind & 1], *n = sides[kind >> 1 & 1], *r = sides[kind >> 2 & 1];
        bw_train_options options = cover;
        bw_model *model = NULL;
        bw_train_stats stats;
        options.boxes = kind >> 3 & 1 ? 64 : 0;
        options.rerank = kind >> 4 & 1;
        options.query = kind & 1 ? mixed : NULL;
        options.negative_weight = kind & 1 ? 100 : 0.01;
        const size_t sizes[][3] = {
            {3, 0, 0}, {1, 2, 9}, {40, many, 3000}, {17000, 100, 20000}, {2, 0, 20000}};
        for (int i = 0; i < (kind % 9 == 1 ? 5 : 2); i++) { /* the large ones take long under sanitizers */
            bw_labels labels = {p, n, r, sizes[i][0], sizes[i][1], sizes[i][2], p, n, r, 1000000, "q", "f"};
            CHECK_STATUS(bw_train_codes(&labels, &options, &model, &stats, &error), BW_OK);
            CHECK(isnan(stats.recall) ||
                  (stats.recall_low >= 0 && stats.recall_low <= stats.recall &&
                   stats.recall <= stats.recall_high && stats.recall_high <= 1 && stats.precision_low >= 0 &&
                   stats.precision_low <= stats.precision && stats.precision <= stats.precision_high &&
                   stats.precision_high <= 1));
            CHECK((isnan(stats.rows) ? labels.n_randoms < 8 : stats.rows >= 0) && stats.held_out <= 16384);
            bw_model_free(model);
        }
    }
    free(black);
    free(mixed);

    bw_train_options options = cover;
    bw_model *model = NULL;
    uint8_t query[BW_DIMS];
    memcpy(query, codes[1], sizeof query);
    options.query = query;
    CHECK_STATUS(bw_train(index, NULL, 0, ids + ROWS - 5, 5, &options, &model, NULL, &error), BW_OK);
    bw_model_free(model);
    model = NULL;
    options.rerank = 1;
    CHECK_STATUS(bw_train(index, ids, 5, NULL, 0, &options, &model, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("fine codes");
    options = cover;
    options.boxes = 65;
    CHECK_STATUS(bw_train(index, ids, 5, NULL, 0, &options, &model, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("boxes");
    options = ensemble;
    options.boxes = 1;
    CHECK_STATUS(bw_train(index, ids, 5, NULL, 0, &options, &model, NULL, &error), BW_INVALID);
    options = ensemble;
    options.rerank = 1;
    CHECK_STATUS(bw_train(index, ids, 5, NULL, 0, &options, &model, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("rerank");
    options = cover;
    options.guard = 2;
    CHECK_STATUS(bw_train(index, ids, 5, NULL, 0, &options, &model, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("guard");
    options = cover;
    options.learner = 4;
    CHECK_STATUS(bw_train(index, ids, 5, NULL, 0, &options, &model, NULL, &error), BW_INVALID);
    CHECK(model == NULL);

    static uint8_t match[ROWS]; /* a few labels find most of the cluster, and little else */
    for (size_t p = 2; p <= 32; p *= 2) {
        CHECK_STATUS(bw_train(index, ids, p, NULL, 0, &cover, &model, NULL, &error), BW_OK);
        CHECK_STATUS(bw_model_evaluate(model, codes[0], NULL, ROWS, NULL, NULL, match, &error), BW_OK);
        int inside = 0, outside = 0;
        for (int r = 0; r < ROWS; r++) {
            inside += r < CLUSTER && match[r];
            outside += r >= CLUSTER && match[r];
        }
        CHECK(inside >= CLUSTER * 3 / 4);
        CHECK(outside <= CLUSTER / 10);
        bw_model_free(model);
        model = NULL;
    }
}

/* The flag stops every learner, whose model then is left alone. */
static void test_cancel(const bw_index *index) {
    volatile int32_t cancel = 1;
    for (int kind = 0; kind < 5; kind++) {
        bw_model *model = NULL;
        bw_train_options options = kind == 4 ? cover : kind % 2 ? ensemble : branch;
        options.prior = kind / 2 == 1;
        options.cancel = &cancel;
        cancel = 1;
        CHECK_STATUS(bw_train(index, ids, 5, NULL, 0, &options, &model, NULL, &error), BW_CANCELLED);
        CHECK_MESSAGE("cancelled");
        CHECK(model == NULL);
        cancel = 0;
        CHECK_STATUS(bw_train(index, ids, 5, NULL, 0, &options, &model, NULL, &error), BW_OK);
        bw_model_free(model);
    }
}

/* The papers' method: what is the same on both sides gives no box; the model is legal and matches nothing. */
static void test_paper(void) {
    bw_train_options options = branch;
    bw_train_stats stats;
    bw_model *model = NULL;
    uint8_t match[20];
    options.prior = 0;
    CHECK_STATUS(train_codes(codes[0], 1, codes[0], 1, NULL, 0, &options, NULL, &model, &stats), BW_OK);
    CHECK(stats.boxes == 0 && stats.estimators == 1);
    CHECK_STATUS(bw_model_evaluate(model, codes[0], NULL, 20, NULL, NULL, match, &error), BW_OK);
    CHECK(memchr(match, 1, sizeof match) == NULL);
    bw_model_free(model);
    CHECK_STATUS(train_codes(codes[0], 20, NULL, 0, codes[CLUSTER], 2000, &options, NULL, &model, &stats),
                 BW_OK);
    CHECK(stats.boxes >= 1 && stats.boxes <= 20);
    CHECK_STATUS(bw_model_evaluate(model, codes[0], NULL, 20, NULL, NULL, match, &error), BW_OK);
    CHECK(memchr(match, 0, sizeof match) == NULL);
    bw_model_free(model);
}

#ifdef BW_FAULTS
static void test_faults(const bw_index *index, bw_train_options options) {
    int64_t n[] = {7000, 7007};
    int32_t status = BW_NOMEM;
    for (long at = 0; status == BW_NOMEM && at < 1000; at++) {
        bw_model *model = NULL;
        bw_fault_set(BW_FAULT_ALLOC, at);
        status = bw_train(index, ids, 12, n, 2, &options, &model, NULL, &error);
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
    test_cancel(index);
    test_paper();
    test_cover(index);
#ifdef BW_FAULTS
    bw_train_options paper = ensemble, boxed = cover;
    paper.prior = 0;
    boxed.boxes = 6;
    test_faults(index, ensemble);
    test_faults(index, paper);
    test_faults(index, cover);
    test_faults(index, boxed);
#endif
    bw_index_close(index);
    test_remove_folder(folder);
    return test_finish();
}
