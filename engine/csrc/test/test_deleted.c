/* Dead rows: deletion vectors and their manifests, views without some ids, and every answer against an index
 * that was built anew of the rows that are left. (Searches and neighbours row by row: test_search.c and
 * test_knn.c.) */
#include "search.h"
#include "segment_format.h"
#include "test_search.h"

#define FOLDER "test_deleted.d"
#define ANEW "test_anew.d"

static bw_error error;

static int compare_ids(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* ---- against an index built anew ---- */

/* The live rows in one segment. */
static bw_index *build_anew(const bw_index *index) {
    static uint64_t generation;
    uint64_t rows = index->info.rows, held = rows + index->info.deleted;
    bool fine = index->info.fingerprints.fine[0] != '\0';
    int64_t *ids = test_alloc(held * sizeof *ids);
    uint8_t *codes = test_alloc(held * BW_DIMS), *second = fine ? test_alloc(held * BW_FINE_DIMS) : NULL;
    test_read_live(index, ids, codes, second);
    test_make_folder(ANEW);
    bw_segment_spec spec = {.rows = rows, .ids = ids, .codes = codes, .fine = second};
    spec.generation = ++generation;
    memcpy(spec.uuid, index->info.uuid, 16);
    spec.fingerprints = index->info.fingerprints;
    const char *name = "anew";
    bw_index *anew = NULL;
    CHECK_STATUS(bw_segment_write(ANEW, name, &spec, NULL, NULL, &error), BW_OK);
    CHECK_STATUS(bw_manifest_write(ANEW, spec.uuid, generation, &name, NULL, 1, &spec.fingerprints, &error),
                 BW_OK);
    CHECK_STATUS(bw_index_open(ANEW, &anew, &error), BW_OK);
    free(ids);
    free(codes);
    free(second);
    if (anew == NULL) {
        exit(test_finish());
    }
    return anew;
}

static void check_draws(bw_random *random, const bw_index *index, const bw_index *anew) {
    uint64_t rows = index->info.rows, held = rows + index->info.deleted;
    int64_t *exclude = test_alloc((held + 3) * sizeof *exclude), *drawn = test_alloc(held * sizeof *drawn);
    int64_t *expected = test_alloc(held * sizeof *expected);
    for (int round = 0; round < 6; round++) {
        uint64_t seed = bw_random_next(random), n = 1 + bw_random_below(random, held);
        size_t excluded = 0, some = 9, others = 8;
        for (uint32_t s = 0; s < index->info.segments && round > 1; s++) {
            for (uint64_t r = 0; r < index->segments[s]->rows; r++) { /* dead ones as well */
                exclude[excluded] = index->segments[s]->ids[r];
                excluded += bw_random_below(random, (uint64_t)round) == 0;
            }
        }
        qsort(exclude, excluded, sizeof *exclude, compare_ids);
        CHECK_STATUS(bw_index_draw(index, seed, n, exclude, excluded, drawn, &some, &error), BW_OK);
        CHECK_STATUS(bw_index_draw(anew, seed, n, exclude, excluded, expected, &others, &error), BW_OK);
        CHECK(some == others && memcmp(drawn, expected, some * sizeof *drawn) == 0);
    }
    size_t all = 0;
    CHECK_STATUS(bw_index_draw(index, 1, held, NULL, 0, drawn, &all, &error), BW_OK);
    CHECK_EQUAL(all, rows);
    free(exclude);
    free(drawn);
    free(expected);
}

/* By id: dead rows are as absent as ids that never were. */
static void check_lookups(const bw_index *index, const bw_index *anew) {
    uint64_t held = index->info.rows + index->info.deleted;
    int64_t *ids = test_alloc((held + 2) * sizeof *ids);
    uint8_t *found = test_alloc(held + 2), *known = test_alloc(held + 2);
    uint8_t *codes = test_alloc((held + 2) * BW_FINE_DIMS), *expected = test_alloc((held + 2) * BW_FINE_DIMS);
    uint64_t n = 0, dead = 0;
    for (uint32_t s = 0; s < index->info.segments; s++) {
        memcpy(ids + n, index->segments[s]->ids, index->segments[s]->rows * sizeof *ids);
        n += index->segments[s]->rows;
    }
    ids[n++] = -1;
    ids[n++] = INT64_MAX;
    CHECK_STATUS(bw_index_codes(index, ids, n, codes, found, &error), BW_OK);
    CHECK_STATUS(bw_index_codes(anew, ids, n, expected, known, &error), BW_OK);
    CHECK(memcmp(found, known, n) == 0 && memcmp(codes, expected, n * BW_DIMS) == 0);
    for (uint64_t i = 0; i < n; i++) {
        if (!found[i] && dead++ < 3) {
            CHECK_STATUS(bw_index_codes(index, ids + i, 1, codes, NULL, &error), BW_MISSING);
        }
    }
    CHECK_EQUAL(dead, index->info.deleted + 2);
    if (index->info.fingerprints.fine[0]) {
        CHECK_STATUS(bw_index_fine(index, ids, n, codes, found, &error), BW_OK);
        CHECK_STATUS(bw_index_fine(anew, ids, n, expected, known, &error), BW_OK);
        CHECK(memcmp(found, known, n) == 0 && memcmp(codes, expected, n * BW_FINE_DIMS) == 0);
    }
    free(ids);
    free(found);
    free(known);
    free(codes);
    free(expected);
}

typedef struct row {
    int64_t id, score;
    int32_t votes;
} row;

/* Rows sorted by id. Owned: free. */
static row *rows_of(const bw_index *index, const bw_model *model, bw_path path, uint64_t *n) {
    bw_rows *found = NULL;
    bw_stats stats;
    CHECK_STATUS(bw_search_run_path(index, model, 0, path, 2, NULL, &found, &stats, NULL, &error), BW_OK);
    row *rows = test_alloc(found->rows * sizeof *rows);
    for (uint64_t i = 0; i < found->rows; i++) {
        rows[i] = (row){found->ids[i], found->scores[i], found->votes[i]};
    }
    *n = found->rows;
    CHECK_EQUAL(stats.rows, *n);
    bw_rows_free(found);
    qsort(rows, *n, sizeof *rows, compare_ids);
    return rows;
}

static void check_search(bw_random *random, const bw_index *index, const bw_index *anew,
                         const bw_model *model) {
    uint64_t expected;
    row *right = rows_of(anew, model, BW_PATH_CHOOSE, &expected);
    for (bw_path path = BW_PATH_CHOOSE; path < BW_PATHS; path++) {
        uint64_t n;
        bw_stats stats;
        test_choose_isa(bw_random_below(random, 4));
        row *rows = rows_of(index, model, path, &n);
        bool same = n == expected;
        for (uint64_t i = 0; same && i < n; i++) {
            same = rows[i].id == right[i].id && rows[i].score == right[i].score &&
                   rows[i].votes == right[i].votes;
        }
        CHECK(same);
        free(rows);
        CHECK_STATUS(
            bw_search_run_path(index, model, BW_COUNT_ONLY, path, 1, NULL, NULL, &stats, NULL, &error),
            BW_OK);
        CHECK_EQUAL(stats.rows, expected);
    }
    free(right);
    uint32_t boxes = bw_model_boxes(model);
    bw_box_report *reports = test_alloc(2 * boxes * sizeof *reports), whole, all;
    CHECK_STATUS(bw_explain(index, model, reports, &whole, &error), BW_OK);
    CHECK_STATUS(bw_explain(anew, model, reports + boxes, &all, &error), BW_OK);
    CHECK(whole.rows == expected && all.rows == expected);
    for (uint32_t b = 0; b < boxes; b++) {
        CHECK_EQUAL(reports[b].rows, reports[boxes + b].rows);
    }
    free(reports);
}

static void check_knn(bw_random *random, const bw_index *index, const bw_index *anew, const bw_model *model,
                      const uint8_t *query) {
    enum { MOST = 300 };
    int64_t ids[2][MOST];
    uint32_t distances[2][MOST], counts[2];
    for (int way = 0; way < 4; way++) {
        int64_t some[200];
        for (int i = 0; i < 200; i++) {
            const bw_segment *segment = index->segments[bw_random_below(random, index->info.segments)];
            some[i] = segment->ids[bw_random_below(random, segment->rows)];
        }
        bw_knn_options options = {
            .k = 1 + (uint32_t)bw_random_below(random, MOST), .recall = 1, .threads = 1};
        options.within = way & 1 ? model : NULL;
        options.ids = way & 2 ? some : NULL;
        options.n_ids = way & 2 ? 200 : 0;
        test_choose_isa(bw_random_below(random, 4));
        CHECK_STATUS(bw_knn(index, query, 1, &options, ids[0], distances[0], &counts[0], NULL, &error),
                     BW_OK);
        CHECK_STATUS(bw_knn(anew, query, 1, &options, ids[1], distances[1], &counts[1], NULL, &error), BW_OK);
        CHECK(counts[0] == counts[1] && memcmp(ids[0], ids[1], counts[0] * sizeof(int64_t)) == 0 &&
              memcmp(distances[0], distances[1], counts[0] * sizeof(uint32_t)) == 0);
    }
}

static char *trained(const bw_index *index, const int64_t *ids, const bw_train_options *options,
                     bw_train_stats *stats) {
    bw_model *model = NULL;
    char *json = NULL;
    CHECK_STATUS(bw_train(index, ids, 6, ids + 6, 2, options, &model, stats, &error), BW_OK);
    if (model == NULL || bw_model_to_json(model, &json, &error) != BW_OK) {
        exit(test_finish());
    }
    bw_model_free(model);
    return json;
}

static const bw_train_options all_options[] = {
    {.learner = BW_LEARNER_BRANCH, .random_negatives = 500, .negative_weight = 1, .prior = 1, .seed = 5},
    {.learner = BW_LEARNER_BRANCH, .random_negatives = 90, .negative_weight = 1, .prior = 0, .seed = 6},
    {.learner = BW_LEARNER_ENSEMBLE,
     .estimators = 7,
     .random_negatives = 300,
     .negative_weight = 2,
     .seed = 7},
    /* All rows are background, so that it does not depend on which ones segments sample. */
    {.learner = BW_LEARNER_COVER, .random_negatives = 100000, .negative_weight = 1, .guard = 1},
    {.learner = BW_LEARNER_COVER, .random_negatives = 100000, .negative_weight = 1, .rerank = 1},
};

static unsigned differing;

/* Labels are live rows. */
static void check_training(const bw_index *index, const bw_index *anew, const int64_t *live) {
    for (size_t i = 0; i < sizeof all_options / sizeof *all_options; i++) {
        bw_train_options options = all_options[i];
        options.rerank &= index->info.fingerprints.fine[0] != '\0';
        bw_train_stats stats, others;
        char *json = trained(index, live, &options, &stats), *right = trained(anew, live, &options, &others);
        CHECK(strcmp(json, right) == 0);
        CHECK_EQUAL(stats.random_negatives, others.random_negatives);
        CHECK(memcmp(&stats.rows, &others.rows, sizeof stats.rows) == 0);
        bw_free(json);
        bw_free(right);

        /* Labels that the index lacks are given; and what is given goes before what the index has. */
        enum { LABELS = 8 };
        uint8_t codes[LABELS * BW_DIMS], fine[LABELS * BW_FINE_DIMS];
        bool second = index->info.fingerprints.fine[0] != '\0';
        bw_index *without = NULL;
        CHECK_STATUS(bw_index_codes(index, live, LABELS, codes, NULL, &error), BW_OK);
        if (second) {
            CHECK_STATUS(bw_index_fine(index, live, LABELS, fine, NULL, &error), BW_OK);
        }
        CHECK_STATUS(bw_index_without(index, live, LABELS, &without, &error), BW_OK);
        bw_model *model = NULL;
        CHECK_STATUS(bw_train(without, live, 6, live + 6, 2, &options, &model, NULL, &error), BW_MISSING);
        json = trained(index, live, &options, &stats);
        options.given_ids = live;
        options.given_codes = codes;
        options.given_fine = options.rerank ? fine : NULL;
        options.n_given = LABELS;
        right = trained(index, live, &options, &others);
        CHECK(strcmp(json, right) == 0);
        bw_free(right);
        right = trained(without, live, &options, &others);
        /* cover asks the index how many rows a cut finds, and labels are not among them. */
        CHECK(options.learner == BW_LEARNER_COVER || strcmp(json, right) == 0);
        CHECK_EQUAL(others.random_negatives, stats.random_negatives);
        bw_free(right);
        for (int b = 0; b < LABELS * BW_DIMS; b++) {
            codes[b] ^= 85;
        }
        right = trained(index, live, &options, &others);
        differing += strcmp(json, right) != 0; /* a model without boxes may be the same */
        char *same = trained(without, live, &options, &stats);
        CHECK(options.learner == BW_LEARNER_COVER || strcmp(same, right) == 0);
        bw_free(same);
        bw_free(right);
        bw_free(json);

        const int64_t twice[] = {live[0], live[1], live[0]};
        options.given_ids = twice;
        options.n_given = 3;
        CHECK_STATUS(bw_train(index, live, 6, live + 6, 2, &options, &model, NULL, &error), BW_INVALID);
        CHECK_MESSAGE("given twice");
        options.given_codes = NULL;
        CHECK_STATUS(bw_train(index, live, 6, live + 6, 2, &options, &model, NULL, &error), BW_INVALID);
        CHECK_MESSAGE("given rows");
        if (options.rerank) {
            options.given_codes = codes;
            options.given_fine = NULL;
            CHECK_STATUS(bw_train(index, live, 6, live + 6, 2, &options, &model, NULL, &error), BW_INVALID);
        }
        bw_index_close(without);
    }
}

static void test_anew(void) {
    bw_random random = {61};
    uint64_t trainings = 0;
    for (int round = 0; round < 24; round++) {
        uint64_t rows[4];
        uint32_t segments = 1 + (uint32_t)bw_random_below(&random, 4);
        for (uint32_t s = 0; s < segments; s++) {
            rows[s] = s == 0 ? test_sizes[(size_t)round % TEST_SIZES] : 1 + bw_random_below(&random, 3000);
        }
        bw_index *index =
            test_make_index_with(&random, FOLDER, round % DATA_KINDS, rows, segments, round % 2 > 0);
        index = test_kill(&random, FOLDER, index);
        bw_index *anew = build_anew(index);
        uint64_t held = index->info.rows + index->info.deleted, alive = 0, dead = 0;
        int64_t *live = test_alloc(held * sizeof *live);
        uint8_t *codes = test_alloc(held * BW_DIMS);
        test_read_live(index, live, codes, NULL);
        CHECK_STATUS(bw_index_validate(index, &error), BW_OK);
        for (uint32_t s = 0; s < segments; s++) {
            bw_segment_info info;
            CHECK_STATUS(bw_index_segment(index, s, &info, &error), BW_OK);
            CHECK_EQUAL(info.rows, rows[s]);
            alive += info.rows - info.deleted;
            dead += info.deleted;
        }
        CHECK(alive == index->info.rows && dead == index->info.deleted);
        CHECK_EQUAL(anew->info.rows, index->info.rows);
        check_draws(&random, index, anew);
        check_lookups(index, anew);
        if (index->info.rows >= 20) {
            bw_model *model = NULL;
            bw_train_options options = all_options[round % 4];
            CHECK_STATUS(bw_train(index, live, 8, NULL, 0, &options, &model, NULL, &error), BW_OK);
            check_search(&random, index, anew, model);
            check_knn(&random, index, anew, model, codes);
            bw_model_free(model);
            if (round % 3 == 0) {
                check_training(index, anew, live);
                trainings++;
            }
        }
        free(live);
        free(codes);
        bw_index_close(anew);
        bw_index_close(index);
    }
    CHECK(trainings > 4 && differing > 4 * trainings);
}

/* ---- views ---- */

static void test_views(void) {
    bw_random random = {62};
    uint64_t rows[2] = {1000, 300};
    bw_index *index = test_make_index(&random, FOLDER, DATA_UNIFORM, rows, 2), *first, *second, *none;
    int64_t ids[1300], got[1300];
    CHECK_STATUS(bw_index_rows(index, 0, 1300, ids, NULL, NULL, &error), BW_OK);
    CHECK_STATUS(bw_index_without(NULL, ids, 1, &first, &error), BW_INVALID);
    CHECK_STATUS(bw_index_without(index, NULL, 1, &first, &error), BW_INVALID);
    CHECK_STATUS(bw_index_without(index, ids, 1, NULL, &error), BW_INVALID);
    const int64_t odd[] = {ids[3], -1, ids[700], INT64_MAX, ids[3], INT64_MIN};
    CHECK_STATUS(bw_index_without(index, odd, 6, &first, &error), BW_OK);
    CHECK(first->info.rows == 1298 && first->info.deleted == 2);
    CHECK(first->info.bytes == index->info.bytes && first->info.segments == 2);
    CHECK(first->dead[1].bits == NULL); /* what is untouched is not copied */
    /* A view of a view, which outlives both; and what is held goes on. */
    CHECK_STATUS(bw_index_without(first, ids + 990, 20, &second, &error), BW_OK);
    bw_index_close(index);
    CHECK(bw_index_retain(first) == first);
    bw_index_close(first);
    CHECK_STATUS(bw_index_rows(first, 0, 1300, got, NULL, NULL, &error), BW_OK);
    bw_index_close(first);
    for (int i = 0; i < 1300; i++) {
        CHECK_EQUAL(got[i], i == 3 || i == 700 ? -1 : ids[i]);
    }
    CHECK(second->info.rows == 1278 && second->dead[0].rows == 12 && second->dead[1].rows == 10);
    CHECK_STATUS(bw_index_rows(second, 985, 30, got, NULL, NULL, &error), BW_OK);
    for (int i = 0; i < 30; i++) {
        CHECK_EQUAL(got[i], i >= 5 && i < 25 ? -1 : ids[985 + i]);
    }
    CHECK_STATUS(bw_index_validate(second, &error), BW_OK);
    /* Nothing is left. */
    CHECK_STATUS(bw_index_without(second, ids, 1300, &none, &error), BW_OK);
    bw_index_close(second);
    CHECK(none->info.rows == 0 && none->info.deleted == 1300);
    CHECK_STATUS(bw_index_validate(none, &error), BW_OK);
    size_t drawn = 9;
    uint8_t code[BW_DIMS] = {0};
    CHECK_STATUS(bw_index_draw(none, 1, 5, NULL, 0, got, &drawn, &error), BW_OK);
    CHECK_EQUAL(drawn, 0);
    CHECK_STATUS(bw_index_codes(none, ids, 1, code, NULL, &error), BW_MISSING);
    for (int i = 0; i < 4; i++) {
        bw_knn_options options = {.k = 5, .recall = i % 2 ? 1 : 0.5, .threads = 1, .ids = i / 2 ? ids : NULL};
        options.n_ids = i / 2 ? 1300 : 0;
        uint32_t distances[5], count = 9;
        CHECK_STATUS(bw_knn(none, code, 1, &options, got, distances, &count, NULL, &error), BW_OK);
        CHECK_EQUAL(count, 0);
    }
    bw_model *all = NULL;
    const char *json =
        "{\"boxwood_model\":1,\"learner\":\"t\",\"dims\":32,\"estimators\":[],\"threshold\":0}";
    CHECK_STATUS(bw_model_from_json(json, strlen(json), &all, &error), BW_OK);
    uint64_t n;
    free(rows_of(none, all, BW_PATH_CHOOSE, &n));
    CHECK_EQUAL(n, 0);
    bw_model_free(all);
    bw_index_close(none);
}

/* An id whose old row is dead in one segment and whose new one lives in another. */
static void test_moved(void) {
    static const bw_fingerprints none = {.quantizer = ""};
    enum { N = 500 };
    int64_t ids[N];
    uint8_t codes[N * BW_DIMS], code[BW_DIMS];
    const uint8_t uuid[16] = {3};
    const char *names[] = {"old", "new"}, *deleted[] = {"old.deleted", ""};
    test_make_folder(FOLDER);
    test_make_rows(3, N, 0, 2, ids, codes);
    bw_segment_spec spec = {.rows = N, .ids = ids, .codes = codes, .uuid = {3}, .generation = 1};
    CHECK_STATUS(bw_segment_write(FOLDER, "old", &spec, NULL, NULL, &error), BW_OK);
    for (int i = 0; i < 100 * BW_DIMS; i++) {
        codes[i] ^= 255;
    }
    spec.rows = 100;
    CHECK_STATUS(bw_segment_write(FOLDER, "new", &spec, NULL, NULL, &error), BW_OK);
    CHECK_STATUS(bw_manifest_write(FOLDER, uuid, 1, names, NULL, 2, &none, &error), BW_OK);
    bw_index *index;
    CHECK_STATUS(bw_index_open(FOLDER, &index, &error), BW_OK);
    CHECK_STATUS(bw_index_validate(index, &error), BW_CORRUPT); /* twice alive */
    bw_index_close(index);
    CHECK_STATUS(bw_deleted_write(FOLDER, "old.deleted", "old", ids, 100, &error), BW_OK);
    CHECK_STATUS(bw_manifest_write(FOLDER, uuid, 2, names, deleted, 2, &none, &error), BW_OK);
    CHECK_STATUS(bw_index_open(FOLDER, &index, &error), BW_OK);
    CHECK_STATUS(bw_index_validate(index, &error), BW_OK);
    CHECK(index->info.rows == N && index->info.deleted == 100);
    for (int i = 0; i < N; i++) {
        CHECK_STATUS(bw_index_codes(index, ids + i, 1, code, NULL, &error), BW_OK);
        CHECK(memcmp(code, codes + i * BW_DIMS, BW_DIMS) == 0);
    }
    int64_t drawn[N];
    size_t n;
    CHECK_STATUS(bw_index_draw(index, 3, N, NULL, 0, drawn, &n, &error), BW_OK);
    CHECK_EQUAL(n, N);
    for (int i = 0; i < N; i++) {
        CHECK_EQUAL(drawn[i], 2 * i);
    }
    /* Without it both are gone. */
    bw_index *without;
    CHECK_STATUS(bw_index_without(index, ids, 1, &without, &error), BW_OK);
    CHECK_EQUAL(without->info.rows, N - 1);
    CHECK_STATUS(bw_index_codes(without, ids, 1, code, NULL, &error), BW_MISSING);
    bw_index_close(without);
    bw_index_close(index);
}

/* ---- files ---- */

static void put(uint8_t *at, size_t bytes, uint64_t value) {
    for (size_t i = 0; i < bytes; i++) {
        at[i] = (uint8_t)(value >> (8 * i));
    }
}

static const uint8_t the_uuid[16] = {1, 2, 3}; /* of test_make_index */

static int32_t list(const bw_index *index, const char *const *deleted) {
    const char *names[] = {"0.segment", "1.segment"};
    return bw_manifest_write(FOLDER, the_uuid, 9, names, deleted, 2, &index->info.fingerprints, &error);
}

static void test_files(void) {
    bw_random random = {63};
    uint64_t rows[2] = {700, 300};
    bw_index *index = test_make_index(&random, FOLDER, DATA_CLUSTERED, rows, 2), *opened = NULL, *again;
    bw_index_close(index);
    usleep(150000); /* files that are younger than the clock's tick are opened anew each time */
    CHECK_STATUS(bw_index_open(FOLDER, &index, &error), BW_OK);
    const bw_segment *segment = index->segments[0];
    int64_t some[] = {segment->ids[699], segment->ids[0], segment->ids[64], segment->ids[0]};
    int64_t foreign[] = {segment->ids[5], index->segments[1]->ids[5]};
    CHECK_STATUS(bw_deleted_write(FOLDER, "d", "0.segment", NULL, 1, &error), BW_INVALID);
    CHECK_STATUS(bw_deleted_write(FOLDER, "d", "0.segment", some, 0, &error), BW_INVALID);
    CHECK_STATUS(bw_deleted_write(FOLDER, NULL, "0.segment", some, 1, &error), BW_INVALID);
    CHECK_STATUS(bw_deleted_write(FOLDER, "d/", "0.segment", some, 1, &error), BW_INVALID);
    CHECK_STATUS(bw_deleted_write(FOLDER, "d", "../0.segment", some, 1, &error), BW_INVALID);
    CHECK_STATUS(bw_deleted_write(FOLDER, "d", "2.segment", some, 1, &error), BW_MISSING);
    CHECK_STATUS(bw_deleted_write("none.tmp", "d", "0.segment", some, 1, &error), BW_MISSING);
    CHECK_STATUS(bw_deleted_write(FOLDER, "d", "0.segment", foreign, 2, &error), BW_INVALID);
    CHECK_MESSAGE("is not in segment 0.segment");
    CHECK_EQUAL(test_count_files(FOLDER, NULL), 3);
    CHECK_STATUS(bw_deleted_write(FOLDER, "d", "0.segment", some, 4, &error), BW_OK);

    /* The bytes, by the numbers of FORMAT.md. */
    size_t n, segment_bytes;
    uint8_t *file = test_read_file(FOLDER, "d", &n),
            *data = test_read_file(FOLDER, "0.segment", &segment_bytes);
    CHECK_EQUAL(n, 128 + 32 * 3 + 4);
    CHECK(memcmp(file, "BXWDELE1\1\0\0\0\4\3\2\1", 16) == 0 && memcmp(file + 16, the_uuid, 16) == 0);
    CHECK(memcmp(file + 32, data + 32, 8) == 0 && memcmp(file + 40, "\3\0\0\0\0\0\0\0", 8) == 0);
    CHECK(memcmp(file + 48, "0.segment", 10) == 0 && bw_all_zero(file + 57, 39));
    CHECK(memcmp(file + 96, data + 4092, 4) == 0 && bw_all_zero(file + 100, 28));
    for (size_t r = 0; r < 768; r++) {
        CHECK_EQUAL(file[128 + r / 8] >> r % 8 & 1, r == 0 || r == 64 || r == 699);
    }
    free(data);

    /* In a manifest: there, of its segment, and shared as long as nothing changes. */
    const char *deleted[2] = {"d", NULL}, *crossed[2] = {NULL, "d"}, *absent[2] = {"e", NULL};
    const char *outside[2] = {"../d", NULL};
    CHECK_STATUS(list(index, crossed), BW_MISMATCH);
    CHECK_MESSAGE("another segment");
    CHECK_STATUS(list(index, absent), BW_MISSING);
    CHECK_STATUS(list(index, outside), BW_INVALID);
    usleep(150000);
    CHECK_STATUS(list(index, deleted), BW_OK);
    CHECK_STATUS(bw_index_open(FOLDER, &opened, &error), BW_OK);
    CHECK_STATUS(bw_index_open(FOLDER, &again, &error), BW_OK);
    CHECK(opened == again && opened->segments[0] == segment);
    CHECK(opened->info.rows == 997 && opened->info.deleted == 3 && index->info.rows == 1000);
    bw_index_close(again);
    bw_segment_info info;
    CHECK_STATUS(bw_index_segment(opened, 0, &info, &error), BW_OK);
    CHECK(info.rows == 700 && info.deleted == 3 && strcmp(info.deletions, "d") == 0);
    CHECK_STATUS(bw_index_segment(index, 0, &info, &error), BW_OK);
    CHECK(info.rows == 700 && info.deleted == 0 && info.deletions[0] == '\0');
    size_t listed_bytes;
    uint8_t *manifest = test_read_file(FOLDER, "MANIFEST", &listed_bytes);
    CHECK(memcmp(manifest + 176 + 72, "\3\0\0\0\0\0\0\0", 8) == 0);
    CHECK(memcmp(manifest + 176 + 84, file + n - 4, 4) == 0);
    CHECK(strcmp((const char *)manifest + 176 + 88, "d") == 0);
    CHECK(bw_all_zero(manifest + 176 + 89, 55) && bw_all_zero(manifest + 176 + 144 + 84, 60));

    CHECK(memcmp(manifest + listed_bytes - 4, &opened->info.checksum, 4) == 0);
    CHECK(opened->info.checksum != index->info.checksum);

    /* What is dead in a view, written down: the same bytes as of all these ids. */
    const int64_t more[] = {segment->ids[9], segment->ids[699]};
    const int64_t dead[] = {segment->ids[0], segment->ids[9], segment->ids[64], segment->ids[699]};
    CHECK_STATUS(bw_index_without(opened, more, 2, &again, &error), BW_OK);
    CHECK_STATUS(bw_index_segment(again, 0, &info, &error), BW_OK);
    CHECK(info.deleted == 4 && info.deletions[0] == '\0');
    CHECK_STATUS(bw_index_write_deleted(again, 0, FOLDER, "v", &error), BW_OK);
    CHECK_STATUS(bw_deleted_write(FOLDER, "w", "0.segment", dead, 4, &error), BW_OK);
    size_t sizes[2];
    uint8_t *written[2] = {test_read_file(FOLDER, "v", &sizes[0]), test_read_file(FOLDER, "w", &sizes[1])};
    CHECK(sizes[0] == n && sizes[1] == n && memcmp(written[0], written[1], n) == 0);
    free(written[0]);
    free(written[1]);
    CHECK_STATUS(bw_index_write_deleted(again, 1, FOLDER, "v", &error), BW_INVALID);
    CHECK_MESSAGE("no dead rows");
    CHECK_STATUS(bw_index_write_deleted(again, 2, FOLDER, "v", &error), BW_INVALID);
    CHECK_STATUS(bw_index_write_deleted(again, 0, FOLDER, "../v", &error), BW_INVALID);
    CHECK_STATUS(bw_index_write_deleted(again, 0, NULL, "v", &error), BW_INVALID);
    CHECK_STATUS(bw_index_write_deleted(again, 0, "none.tmp", "v", &error), BW_IO);
    bw_index_close(again);
    CHECK_STATUS(bw_index_without(opened, index->segments[1]->ids, 1, &again, &error), BW_OK);
    CHECK_STATUS(bw_index_segment(again, 0, &info, &error), BW_OK);
    CHECK(strcmp(info.deletions, "d") == 0); /* untouched by the view */
    bw_index_close(again);

    /* Damage: every byte, every length; then fields under a right checksum. */
    uint8_t *copy = test_alloc(n + 64);
    for (size_t at = 0; at < n; at++) {
        memcpy(copy, file, n);
        copy[at] ^= (uint8_t)(1u << at % 8);
        test_write_file(FOLDER, "d", copy, n);
        int32_t code = bw_index_open(FOLDER, &again, &error);
        CHECK(code == BW_CORRUPT || (code == BW_VERSION && at >= 8 && at < 12));
        CHECK_MESSAGE("deletion vector d");
        CHECK_MESSAGE("boxwood repair");
    }
    memcpy(copy, file, n);
    for (size_t length = 0; length < n + 64; length++) {
        if (length != n) {
            test_write_file(FOLDER, "d", copy, length);
            CHECK_STATUS(bw_index_open(FOLDER, &again, &error), BW_CORRUPT);
        }
    }
    const struct {
        size_t offset, size;
        uint64_t value;
        int32_t status;
        const char *message;
    } changes[] = {
        {0, 1, 'b', BW_CORRUPT, "not a deletion vector"},
        {8, 4, 2, BW_VERSION, "format 2"},
        {12, 4, 0x04030201, BW_VERSION, "byte order"},
        {12, 4, 7, BW_CORRUPT, "byte order"},
        {16, 1, 9, BW_MISMATCH, "another segment"},
        {32, 8, 0, BW_CORRUPT, "0 rows"},
        {32, 8, 701, BW_MISMATCH, "another segment"},
        {32, 8, 769, BW_CORRUPT, "769 rows"},
        {32, 8, UINT64_MAX, BW_CORRUPT, "rows"},
        {40, 8, 0, BW_CORRUPT, "0 dead rows"},
        {40, 8, 4, BW_CORRUPT, "4 dead rows"},
        {48, 1, '1', BW_MISMATCH, "another segment"},
        {48, 1, '/', BW_CORRUPT, "header"},
        {48, 1, 0, BW_CORRUPT, "header"},
        {95, 1, 'x', BW_CORRUPT, "header"},
        {96, 1, copy[96] ^ 1u, BW_MISMATCH, "another segment"},
        {127, 1, 1, BW_CORRUPT, "header"},
        {128, 1, 0, BW_CORRUPT, "3 dead rows"},
        {128, 1, 2, BW_MISMATCH, "not the file that the manifest lists"},
        {128 + 87, 1, 16, BW_CORRUPT, "3 dead rows"}, /* row 700 instead of 699 */
        {128 + 95, 1, 128, BW_CORRUPT, "3 dead rows"},
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        memcpy(copy, file, n);
        put(copy + changes[i].offset, changes[i].size, changes[i].value);
        put(copy + n - 4, 4, bw_crc32c(0, copy, n - 4));
        test_write_file(FOLDER, "d", copy, n);
        CHECK_STATUS(bw_index_open(FOLDER, &again, &error), changes[i].status);
        CHECK_MESSAGE(changes[i].message);
        CHECK_MESSAGE("boxwood repair");
    }
    test_remove_file(FOLDER, "d");
    CHECK_STATUS(bw_index_open(FOLDER, &again, &error), BW_CORRUPT);
    CHECK_MESSAGE("lists a deletion vector that is gone");
    test_write_file(FOLDER, "d", file, n);
    const struct {
        size_t offset, size;
        uint64_t value;
        int32_t status;
    } listings[] = {
        {72, 8, 2, BW_MISMATCH},       {84, 4, 1, BW_MISMATCH},  {88, 1, 0, BW_CORRUPT},
        {88 + 47, 1, 'x', BW_CORRUPT}, {88, 1, 'e', BW_CORRUPT}, {136, 1, 1, BW_CORRUPT},
    };
    uint8_t *changed = test_alloc(listed_bytes);
    for (size_t i = 0; i < sizeof listings / sizeof *listings; i++) {
        memcpy(changed, manifest, listed_bytes);
        put(changed + 176 + listings[i].offset, listings[i].size, listings[i].value);
        put(changed + listed_bytes - 4, 4, bw_crc32c(0, changed, listed_bytes - 4));
        test_write_file(FOLDER, "MANIFEST", changed, listed_bytes);
        CHECK_STATUS(bw_index_open(FOLDER, &again, &error), listings[i].status);
    }
    test_write_file(FOLDER, "MANIFEST", manifest, listed_bytes);
    CHECK_STATUS(bw_index_open(FOLDER, &again, &error), BW_OK);
    CHECK_EQUAL(again->info.rows, 997);
    bw_index_close(again);

    /* Another vector in the next manifest; the old index stays as it was. */
    CHECK_STATUS(bw_deleted_write(FOLDER, "f", "0.segment", segment->ids, 700, &error), BW_OK);
    const char *other[2] = {"f", NULL};
    CHECK_STATUS(list(index, other), BW_OK);
    CHECK_STATUS(bw_index_open(FOLDER, &again, &error), BW_OK);
    CHECK(again->info.rows == 300 && again->info.deleted == 700);
    CHECK_STATUS(bw_index_validate(again, &error), BW_OK);
    CHECK_STATUS(bw_index_validate(opened, &error), BW_OK);
    CHECK_EQUAL(opened->info.rows, 997);
    bw_index_close(again);
    bw_index_close(opened);
    bw_index_close(index);
    free(copy);
    free(changed);
    free(manifest);
    free(file);
}

int main(void) {
    test_files();
    test_views();
    test_moved();
    test_anew();
    bw_isa_select(NULL, NULL);
    test_remove_folder(FOLDER);
    test_remove_folder(ANEW);
    return test_finish();
}
