/* Searches, counts and explanations against bw_model_evaluate, on every instruction set, over random indexes
 * and models. */
#include "search.h"
#include "test_search.h"

#define FOLDER "test_search.d"

typedef struct oracle { /* all live rows of an index, in index order */
    uint64_t rows;
    uint64_t held; /* with dead rows */
    int64_t *ids;
    uint8_t *codes;
    uint8_t *fine; /* NULL: none */
    int32_t *votes;
    int64_t *scores;
    uint8_t *match;
} oracle;

static oracle oracle_of(const bw_index *index) {
    oracle o = {.rows = index->info.rows, .held = index->info.rows + index->info.deleted};
    o.ids = test_alloc(o.held * sizeof *o.ids);
    o.codes = test_alloc(o.held * BW_DIMS);
    o.votes = test_alloc(o.rows * sizeof *o.votes);
    o.scores = test_alloc(o.rows * sizeof *o.scores);
    o.match = test_alloc(o.rows);
    o.fine = index->info.fingerprints.fine[0] ? test_alloc(o.held * BW_FINE_DIMS + 1) : NULL;
    test_read_live(index, o.ids, o.codes, o.fine);
    return o;
}

static void oracle_free(oracle *o) {
    free(o->ids);
    free(o->codes);
    free(o->fine);
    free(o->votes);
    free(o->scores);
    free(o->match);
}

/* Rows that pass all but the fine score of a model that cuts by it: those whose fine codes are read. */
static uint64_t count_candidates(const oracle *o, const bw_model *model) {
    bw_error error;
    bw_model *first = NULL;
    uint64_t candidates = 0;
    if (!model->fine || !model->fine->has_threshold) {
        return 0;
    }
    uint8_t *match = test_alloc(o->rows);
    CHECK_STATUS(bw_model_new("test", "", model->estimators, model->first_box, model->boxes, model->threshold,
                              model->score, NULL, NULL, NULL, &first, &error),
                 BW_OK);
    CHECK_STATUS(bw_model_evaluate(first, o->codes, NULL, o->rows, NULL, NULL, match, &error), BW_OK);
    for (uint64_t r = 0; r < o->rows; r++) {
        candidates += match[r];
    }
    bw_model_free(first);
    free(match);
    return candidates;
}

static uint64_t evaluate(oracle *o, const bw_model *model) {
    bw_error error;
    uint64_t matching = 0;
    CHECK_STATUS(bw_model_evaluate(model, o->codes, o->fine, o->rows, o->votes, o->scores, o->match, &error),
                 BW_OK);
    for (uint64_t r = 0; r < o->rows; r++) {
        matching += o->match[r];
    }
    return matching;
}

/* ---- random models ---- */

/* A box around a row of the index, or anywhere; narrow or wide, of few ranges or many. */
static bw_ranges random_box(bw_random *random, const oracle *o) {
    static const uint8_t counts[] = {0, 1, 1, 2, 2, 3, 4, 5, 6, 8, 16, 32};
    bw_ranges box = {.count = counts[bw_random_below(random, sizeof counts)]};
    bool around = o->rows > 0 && bw_random_below(random, 8) > 0;
    const uint8_t *centre = around ? o->codes + bw_random_below(random, o->rows) * BW_DIMS : NULL;
    uint64_t width = 1 + bw_random_below(random, bw_random_below(random, 2) ? 256 : 40);
    uint32_t dims = 0, made = 0;
    while (made < box.count) {
        dims |= (uint32_t)1 << bw_random_below(random, BW_DIMS);
        made = (uint32_t)__builtin_popcount(dims);
    }
    uint32_t i = 0;
    for (uint8_t d = 0; d < BW_DIMS; d++) {
        if (dims >> d & 1) {
            int x = centre ? centre[d] : (int)bw_random_below(random, 256);
            int lo = x - (int)bw_random_below(random, width), hi = x + (int)bw_random_below(random, width);
            box.dim[i] = d;
            box.lo[i] = (uint8_t)(lo < 0 ? 0 : lo);
            box.hi[i++] = (uint8_t)(hi > 255 ? 255 : hi);
        }
    }
    return box;
}

/* A term of n dimensions: falling from the code of some row, or anything; of coefficients that 16 bits hold
 * with and without rounding, and of the largest. */
static void random_term(bw_random *random, uint32_t n, const uint8_t *centre, bw_term *term) {
    static const int64_t magnitudes[] = {3, 100, 20000, BW_MAX_FINE_SQUARE};
    int64_t most = magnitudes[bw_random_below(random, 4)];
    bool falling = centre && bw_random_below(random, 4) > 0;
    uint64_t used = 1 + bw_random_below(random, 8);
    for (uint32_t d = 0; d < n; d++) {
        if (bw_random_below(random, 8) >= used) {
            continue;
        }
        int64_t square = (int64_t)bw_random_below(random, (uint64_t)most + 1);
        if (falling) {
            term->square[d] = -square;
            term->linear[d] = 2 * square * centre[d] + (int64_t)bw_random_below(random, 3) - 1;
            if (term->linear[d] > BW_MAX_FINE_LINEAR) {
                term->linear[d] = BW_MAX_FINE_LINEAR;
            }
        } else {
            term->square[d] = bw_random_below(random, 2) ? square - most / 2 : 0;
            term->linear[d] = (int64_t)bw_random_below(random, (uint64_t)most * 64) - most * 32;
        }
    }
    term->constant = (int64_t)bw_random_below(random, 2000001) - 1000000;
}

static bw_score random_score(bw_random *random, uint32_t n, const uint8_t *codes, uint64_t rows) {
    static const uint32_t terms[] = {1, 1, 1, 2, 2, 3, 8};
    bw_score score = {.terms = terms[bw_random_below(random, 7)],
                      .shift = (int32_t)bw_random_below(random, 20)};
    for (uint32_t t = 0; t < score.terms; t++) {
        const uint8_t *centre = rows > 0 ? codes + bw_random_below(random, rows) * n : NULL;
        random_term(random, n, centre, &score.term[t]);
    }
    return score;
}

/* A cut at the score of some row, of many rows or few. */
static void random_cut(bw_random *random, const oracle *o, bw_score *score) {
    uint64_t tries = 1 + bw_random_below(random, 3) * 20;
    score->has_threshold = true;
    score->threshold = INT64_MIN;
    for (uint64_t i = 0; i < tries; i++) {
        int64_t other = o->scores[bw_random_below(random, o->rows)];
        score->threshold = other > score->threshold ? other : score->threshold;
    }
    score->threshold += (int64_t)bw_random_below(random, 2);
    if (bw_random_below(random, 20) == 0) {
        score->threshold = bw_random_below(random, 2) ? INT64_MAX : INT64_MIN;
    }
}

static bw_model *random_model(bw_random *random, oracle *o) {
    static const uint32_t sizes[] = {0, 1, 1, 1, 2, 3, 5, 8, 15, 25, 25, 64, 100};
    uint32_t estimators = sizes[bw_random_below(random, sizeof sizes / sizeof sizes[0])];
    uint32_t most = 1 + (uint32_t)bw_random_below(random, 4);
    if (estimators > 0 && estimators <= 3 && bw_random_below(random, 4) == 0) {
        most = 300; /* boxes of many a class, and lists of them longer than any register */
    }
    bw_ranges *boxes = test_alloc((size_t)estimators * most * sizeof *boxes);
    uint32_t *first_box = test_alloc((estimators + 1) * sizeof *first_box);
    uint32_t n = 0;
    bool alike = bw_random_below(random, 2); /* estimators that agree often, as an ensemble's do */
    for (uint32_t e = 0; e < estimators; e++) {
        first_box[e] = n;
        uint32_t count =
            (uint32_t)bw_random_below(random, 10) ? 1 + (uint32_t)bw_random_below(random, most) : 0;
        for (uint32_t b = 0; b < count; b++) {
            boxes[n] = random_box(random, o);
            if (alike && n > 0) {
                boxes[n] = boxes[bw_random_below(random, n)];
                for (uint32_t r = 0; r < boxes[n].count; r++) {
                    boxes[n].hi[r] = (uint8_t)(boxes[n].hi[r] | bw_random_below(random, 4));
                }
            }
            n++;
        }
    }
    first_box[estimators] = n;
    uint32_t threshold = (uint32_t)bw_random_below(random, estimators + 1);
    if (bw_random_below(random, 3) == 0) {
        threshold = estimators ? 1 : 0;
    }
    bool scored = bw_random_below(random, 2), fine = o->fine && bw_random_below(random, 2);
    if (scored && bw_random_below(random, 3) == 0) {
        threshold = 0; /* the score alone */
    }
    bw_score score = random_score(random, BW_DIMS, o->codes, o->rows);
    bw_score second = random_score(random, BW_FINE_DIMS, o->fine, fine ? o->rows : 0);
    if (bw_random_below(random, 3) == 0) {
        score.votes = (int64_t)bw_random_below(random, (uint64_t)1 << 30) - ((int64_t)1 << 28);
    }
    const char *quantizer = bw_random_below(random, 2) ? "q" : "", *fine_quantizer = quantizer[0] ? "f" : "";
    bw_model *model = NULL;
    bw_error error;
    for (int kind = 0; kind < 2 && o->rows > 0; kind++) { /* cut at what rows have */
        bw_score *cut = kind ? &second : &score;
        if ((kind ? fine : scored) && bw_random_below(random, 3) > 0) {
            CHECK_STATUS(bw_model_new("test", quantizer, estimators, first_box, boxes, threshold,
                                      kind ? NULL : &score, fine_quantizer, kind ? &second : NULL, NULL,
                                      &model, &error),
                         BW_OK);
            evaluate(o, model);
            random_cut(random, o, cut);
            bw_model_free(model);
        }
    }
    CHECK_STATUS(bw_model_new("test", quantizer, estimators, first_box, boxes, threshold,
                              scored ? &score : NULL, fine_quantizer, fine ? &second : NULL, NULL, &model,
                              &error),
                 BW_OK);
    free(boxes);
    free(first_box);
    if (model == NULL) {
        exit(test_finish());
    }
    return model;
}

/* ---- searching ---- */

static bw_stats seen; /* over all searches of this test */
static uint64_t chosen[BW_PATHS];

static bw_path random_path(bw_random *random) {
    return (bw_path)bw_random_below(random, BW_PATHS);
}

static void check_stats(const bw_index *index, const bw_stats *stats, uint64_t matching) {
    CHECK_EQUAL(stats->rows, matching);
    CHECK_EQUAL(stats->blocks, index->first_blocks[index->info.segments]);
    uint64_t settled = stats->blocks_pruned + stats->blocks_contained + stats->blocks_scanned;
    CHECK(settled <= stats->blocks && stats->blocks <= settled + stats->blocks_planes);
    CHECK(stats->nanoseconds > 0 || stats->blocks == 0);
    seen.rows += stats->rows;
    CHECK(stats->blocks_outscored <= stats->blocks_pruned);
    seen.blocks_pruned += stats->blocks_pruned;
    seen.blocks_outscored += stats->blocks_outscored;
    seen.fine_rows += stats->fine_rows;
    seen.blocks_contained += stats->blocks_contained;
    seen.blocks_planes += stats->blocks_planes;
    seen.blocks_scanned += stats->blocks_scanned;
}

static void check_run(bw_random *random, const bw_index *index, const oracle *o, const bw_model *model,
                      uint64_t matching) {
    bw_error error;
    bw_stats stats;
    bw_rows *rows = NULL;
    uint32_t threads = 1 + (uint32_t)bw_random_below(random, 4);
    bw_path path = random_path(random);
    bw_estimate estimate = {.blocks = -1};
    CHECK_STATUS(bw_search_run_path(index, model, 0, path, threads, NULL, &rows, &stats, &estimate, &error),
                 BW_OK);
    bool cuts = model->score && model->score->has_threshold;
    CHECK(path == BW_PATH_CHOOSE || estimate.path == (path == BW_PATH_SCORE && !cuts ? BW_PATH_ZONES : path));
    chosen[estimate.path] += path == BW_PATH_CHOOSE;
    CHECK(estimate.path != BW_PATH_CHOOSE && estimate.nanoseconds >= 0);
    CHECK(estimate.blocks >= 0 && estimate.blocks <= (double)stats.blocks * 1.001);
    if (rows == NULL) {
        return;
    }
    CHECK_EQUAL(rows->rows, matching);
    uint64_t at = 0, wrong = 0;
    for (uint64_t r = 0; r < o->rows && at < rows->rows; r++) {
        if (o->match[r]) {
            wrong += rows->ids[at] != o->ids[r] || rows->votes[at] != o->votes[r] ||
                     rows->scores[at] != o->scores[r];
            at++;
        }
    }
    CHECK_EQUAL(wrong, 0);
    check_stats(index, &stats, matching);
    bw_rows_free(rows);
}

static void check_count(bw_random *random, const bw_index *index, const oracle *o, const bw_model *model,
                        uint64_t matching) {
    bw_error error;
    bw_stats stats;
    uint32_t threads = 1 + (uint32_t)bw_random_below(random, 4);
    CHECK_STATUS(bw_search_run_path(index, model, BW_COUNT_ONLY, random_path(random), threads, NULL, NULL,
                                    &stats, NULL, &error),
                 BW_OK);
    check_stats(index, &stats, matching);
    CHECK_EQUAL(stats.fine_rows, count_candidates(o, model));
}

/* Batch by batch, with some of the columns left out. */
static void check_batches(bw_random *random, const bw_index *index, const oracle *o, const bw_model *model,
                          uint64_t matching) {
    bw_error error;
    bw_search *search = NULL;
    uint64_t columns = bw_random_below(random, 8), last = 0, found = 0, wrong = 0, r = 0;
    int64_t *ids = test_alloc(BW_MORSEL_ROWS * sizeof *ids),
            *scores = test_alloc(BW_MORSEL_ROWS * sizeof *scores);
    int32_t *votes = test_alloc(BW_MORSEL_ROWS * sizeof *votes);
    CHECK_STATUS(bw_search_open_path(index, model, 0, random_path(random), &search, &error), BW_OK);
    for (;;) {
        bw_batch batch = {7, columns & 1 ? ids : NULL, columns & 2 ? votes : NULL,
                          columns & 4 ? scores : NULL};
        uint64_t morsel;
        CHECK_STATUS(bw_search_next(search, &batch, &morsel, &error), BW_OK);
        if (batch.rows == 0) {
            break;
        }
        wrong += batch.rows > BW_MORSEL_ROWS || morsel >= bw_search_morsels(search) ||
                 (found > 0 && morsel <= last);
        last = morsel;
        for (uint64_t i = 0; i < batch.rows && r < o->rows; i++, r++) {
            while (r < o->rows - 1 && !o->match[r]) {
                r++;
            }
            wrong += (columns & 1 && ids[i] != o->ids[r]) || (columns & 2 && votes[i] != o->votes[r]) ||
                     (columns & 4 && scores[i] != o->scores[r]);
        }
        found += batch.rows;
    }
    CHECK_EQUAL(wrong, 0);
    CHECK_EQUAL(found, matching);
    bw_stats stats;
    bw_search_stats(search, &stats);
    check_stats(index, &stats, matching);
    bw_search_close(search);
    free(ids);
    free(votes);
    free(scores);
}

static void check_report(const oracle *o, const bw_box_report *report, uint64_t inside) {
    CHECK_EQUAL(report->rows, inside);
    uint64_t settled = report->blocks_pruned + report->blocks_contained + report->blocks_scanned;
    CHECK(settled <= report->blocks && report->blocks <= settled + report->blocks_planes);
    CHECK(strcmp(report->path, "planes") == 0 ||
          (report->blocks_planes == 0 &&
           (strcmp(report->path, "zones") == 0 || strcmp(report->path, "score") == 0 ||
            (strcmp(report->path, "scan") == 0 && report->blocks_scanned == report->blocks))));
    CHECK(report->estimated_nanoseconds >= 0 && report->estimated_blocks >= 0);
    CHECK(report->estimated_blocks <= (double)report->blocks * 1.001);
    if (o->held <= 4096) {
        CHECK(report->estimated_rows == (double)inside); /* the sample is the index */
    } else {
        CHECK(report->estimated_rows >= 0 && report->estimated_rows <= (double)o->held * 1.001);
        CHECK(inside < o->held || report->estimated_rows > (double)o->rows * 0.999);
    }
}

/* Every box by itself, and the whole. */
static void check_explain(const bw_index *index, oracle *o, const bw_model *model, uint64_t matching) {
    bw_error error;
    uint32_t boxes = bw_model_boxes(model), b = 0, ranges = 0;
    bw_box_report *reports = test_alloc(boxes * sizeof *reports), whole;
    CHECK_STATUS(bw_explain(index, model, reports, &whole, &error), BW_OK);
    check_report(o, &whole, matching);
    for (uint32_t e = 0; e < model->estimators; e++) {
        for (uint32_t i = 0; i < model->first_box[e + 1] - model->first_box[e]; i++, b++) {
            const bw_box_report *report = &reports[b];
            const uint32_t first_box[2] = {0, 1};
            bw_model *alone = NULL;
            CHECK_STATUS(bw_model_new("test", "", 1, first_box, &model->boxes[b], 1, NULL, NULL, NULL, NULL,
                                      &alone, &error),
                         BW_OK);
            check_report(o, report, evaluate(o, alone));
            bw_model_free(alone);
            CHECK(report->estimator == e && report->box == i && report->ranges == model->boxes[b].count);
            ranges += report->ranges;
        }
    }
    CHECK(whole.estimator == model->estimators && whole.box == boxes && whole.ranges == ranges);
    free(reports);
}

static void check_models(bw_random *random, const bw_index *index, int models) {
    oracle o = oracle_of(index);
    for (int i = 0; i < models; i++) {
        bw_model *model = random_model(random, &o);
        uint64_t matching = evaluate(&o, model);
        for (uint64_t isa = 0; isa < 4; isa++) {
            if (isa == 0 || bw_random_below(random, 3) == 0) {
                test_choose_isa(bw_random_below(random, 4));
                check_run(random, index, &o, model, matching);
            }
        }
        test_choose_isa(bw_random_below(random, 4));
        check_count(random, index, &o, model, matching);
        check_batches(random, index, &o, model, matching);
        if (i == 0) {
            check_explain(index, &o, model, matching);
        }
        bw_model_free(model);
    }
    oracle_free(&o);
}

static void test_random(void) {
    bw_random random = {21};
    for (int round = 0; round < 45; round++) {
        uint64_t rows[3];
        uint32_t segments = 1 + (uint32_t)bw_random_below(&random, 3);
        for (uint32_t s = 0; s < segments; s++) {
            /* the sizes around blocks and tiles come round in turn */
            rows[s] = s == 0 ? test_sizes[(size_t)round % TEST_SIZES] : 1 + bw_random_below(&random, 3000);
        }
        bw_index *index =
            test_make_index_with(&random, FOLDER, round % DATA_KINDS, rows, segments, round % 2 == 1);
        check_models(&random, index, 8);
        index = test_kill(&random, FOLDER, index);
        check_models(&random, index, 8);
        bw_index_close(index);
    }
    /* Blocks of every fate must have been met often. */
    CHECK(seen.rows > 100000);
    CHECK(seen.blocks_outscored > 1000 && seen.fine_rows > 10000 && chosen[BW_PATH_SCORE] > 30);
    CHECK(seen.blocks_pruned > 1000 && seen.blocks_contained > 1000 && seen.blocks_planes > 1000 &&
          seen.blocks_scanned > 1000);
}

/* Several morsels in a segment. */
static void test_morsels(void) {
    static const uint64_t sizes[][3] = {{32768, 0, 0}, {32769, 0, 0}, {32767, 1, 0}, {70000, 300, 32768}};
    bw_random random = {22};
    for (int i = 0; i < 4; i++) {
        uint32_t segments = sizes[i][2] ? 3 : sizes[i][1] ? 2 : 1;
        bw_index *index = test_make_index_with(&random, FOLDER, DATA_CLUSTERED, sizes[i], segments, i > 1);
        check_models(&random, index, 5);
        index = test_kill(&random, FOLDER, index);
        check_models(&random, index, 5);
        bw_index_close(index);
    }
}

static bw_model *parse(const char *json) {
    bw_error error;
    bw_model *model = NULL;
    CHECK_STATUS(bw_model_from_json(json, strlen(json), &model, &error), BW_OK);
    if (model == NULL) {
        exit(test_finish());
    }
    return model;
}

static void test_empty(void) {
    bw_random random = {23};
    bw_index *index = test_make_index_with(&random, FOLDER, DATA_UNIFORM, NULL, 0, true);
    check_models(&random, index, 20);
    bw_index_close(index);
}

/* As many estimators as there may be, with votes of all numbers. */
static void test_largest(void) {
    bw_random random = {24};
    bw_error error;
    uint64_t rows = 3000;
    bw_index *index = test_make_index(&random, FOLDER, DATA_UNIFORM, &rows, 1);
    oracle o = oracle_of(index);
    bw_ranges *boxes = test_alloc(BW_MAX_ESTIMATORS * sizeof *boxes);
    uint32_t *first_box = test_alloc((BW_MAX_ESTIMATORS + 1) * sizeof *first_box);
    for (uint32_t e = 0; e < BW_MAX_ESTIMATORS; e++) {
        boxes[e] = (bw_ranges){.count = 1, .dim = {5}, .lo = {0}, .hi = {(uint8_t)(e / 5)}};
        first_box[e + 1] = e + 1;
    }
    static const uint32_t thresholds[] = {0, 1, 511, 512, 1000, 1023, 1024};
    for (size_t i = 0; i < sizeof thresholds / sizeof thresholds[0]; i++) {
        bw_model *model = NULL;
        CHECK_STATUS(bw_model_new("test", "", BW_MAX_ESTIMATORS, first_box, boxes, thresholds[i], NULL, NULL,
                                  NULL, NULL, &model, &error),
                     BW_OK);
        uint64_t matching = evaluate(&o, model);
        CHECK((i == 0) == (matching == rows) && matching > 0);
        test_choose_isa(i);
        check_run(&random, index, &o, model, matching);
        check_count(&random, index, &o, model, matching);
        bw_model_free(model);
    }
    free(boxes);
    free(first_box);
    oracle_free(&o);
    bw_index_close(index);
}

/* As many boxes as there may be, of all numbers of ranges. */
static void test_most_boxes(void) {
    bw_random random = {29};
    bw_error error;
    uint64_t rows = 300;
    bw_index *index = test_make_index(&random, FOLDER, DATA_CLUSTERED, &rows, 1);
    oracle o = oracle_of(index);
    bw_ranges *boxes = test_alloc(BW_MAX_BOXES * sizeof *boxes);
    uint32_t *first_box = test_alloc((BW_MAX_ESTIMATORS + 1) * sizeof *first_box);
    for (uint32_t e = 0; e < BW_MAX_ESTIMATORS; e++) {
        first_box[e + 1] = (e + 1) * (BW_MAX_BOXES / BW_MAX_ESTIMATORS);
    }
    for (uint32_t b = 0; b < BW_MAX_BOXES; b++) {
        do {
            boxes[b] = random_box(&random, &o);
        } while (boxes[b].count < 3); /* or too much is inside */
    }
    static const uint32_t thresholds[] = {1, 800};
    for (size_t i = 0; i < sizeof thresholds / sizeof thresholds[0]; i++) {
        bw_model *model = NULL;
        CHECK_STATUS(bw_model_new("test", "", BW_MAX_ESTIMATORS, first_box, boxes, thresholds[i], NULL, NULL,
                                  NULL, NULL, &model, &error),
                     BW_OK);
        uint64_t matching = evaluate(&o, model);
        for (bw_path path = BW_PATH_CHOOSE; path < BW_PATHS; path++) {
            bw_rows *found = NULL;
            test_choose_isa(i + (uint64_t)path);
            CHECK_STATUS(bw_search_run_path(index, model, 0, path, 2, NULL, &found, NULL, NULL, &error),
                         BW_OK);
            CHECK(found && found->rows == matching);
            uint64_t at = 0, wrong = 0;
            for (uint64_t r = 0; found && r < o.rows && at < found->rows; r++) {
                if (o.match[r]) {
                    wrong += found->ids[at] != o.ids[r] || found->votes[at] != o.votes[r];
                    at++;
                }
            }
            CHECK_EQUAL(wrong, 0);
            bw_rows_free(found);
        }
        bw_model_free(model);
    }
    free(boxes);
    free(first_box);
    oracle_free(&o);
    bw_index_close(index);
}

/* The choice of a path: the same every time, and not the codes of all rows where zones or planes say more. */
static void test_choice(void) {
    bw_random random = {30};
    bw_error error;
    uint64_t rows[2] = {150000, 50000};
    bw_index *index = test_make_index(&random, FOLDER, DATA_UNIFORM, rows, 2);
    oracle o = oracle_of(index);
    uint32_t chosen[BW_PATHS] = {0};
    for (int round = 0; round < 40; round++) {
        bw_model *model = random_model(&random, &o);
        bw_estimate first, again;
        bw_stats stats;
        CHECK_STATUS(bw_search_run_path(index, model, BW_COUNT_ONLY, BW_PATH_CHOOSE, 1, NULL, NULL, &stats,
                                        &first, &error),
                     BW_OK);
        test_choose_isa(bw_random_below(&random, 4));
        CHECK_STATUS(bw_search_run_path(index, model, BW_COUNT_ONLY, BW_PATH_CHOOSE, 3, NULL, NULL, &stats,
                                        &again, &error),
                     BW_OK);
        CHECK(first.path == again.path && first.blocks == again.blocks &&
              first.nanoseconds == again.nanoseconds);
        chosen[first.path]++;
        bw_model_free(model);
    }
    CHECK(chosen[BW_PATH_PLANES] > 0 && chosen[BW_PATH_CHOOSE] == 0);
    /* Narrow on uniform codes: zones tell little, planes nearly all. */
    bw_model *narrow =
        parse("{\"boxwood_model\":1,\"learner\":\"test\",\"dims\":32,\"estimators\":[[[[2,0,20],"
              "[3,0,20],[4,0,20],[5,0,20]]],[[[6,9,30],[7,0,20],[8,0,20]]]],\"threshold\":2}");
    bw_rows *found = NULL;
    bw_estimate estimate;
    bw_stats stats;
    CHECK_STATUS(
        bw_search_run_path(index, narrow, 0, BW_PATH_CHOOSE, 1, NULL, &found, &stats, &estimate, &error),
        BW_OK);
    CHECK(estimate.path == BW_PATH_PLANES);
    CHECK(stats.blocks_planes > 0 && stats.blocks_scanned < stats.blocks_planes / 2);
    bw_rows_free(found);
    bw_model_free(narrow);
    oracle_free(&o);
    bw_index_close(index);
}

/* Counting whole blocks, or none, reads no codes. */
static void test_unseen(void) {
    bw_random random = {25};
    bw_error error;
    uint64_t rows = 5000;
    bw_index *index = test_make_index(&random, FOLDER, DATA_CONSTANT, &rows, 1);
    bw_model *all = parse("{\"boxwood_model\":1,\"learner\":\"test\",\"dims\":32,\"estimators\":[[[[2,16,16]]"
                          "]],\"threshold\":1}");
    bw_model *none = parse("{\"boxwood_model\":1,\"learner\":\"test\",\"dims\":32,\"estimators\":[[[[2,0,15]]"
                           "]],\"threshold\":1}");
    bw_stats stats;
    CHECK_STATUS(bw_search_run(index, all, BW_COUNT_ONLY, 1, NULL, NULL, &stats, &error), BW_OK);
    CHECK_EQUAL(stats.rows, rows);
    CHECK_EQUAL(stats.blocks_contained, 20);
    CHECK_EQUAL(stats.bytes, 128); /* the zones of one dimension in one group of 64 blocks */
    CHECK_STATUS(bw_search_run(index, none, BW_COUNT_ONLY, 1, NULL, NULL, &stats, &error), BW_OK);
    CHECK_EQUAL(stats.rows, 0);
    CHECK_EQUAL(stats.blocks_pruned, 20);
    CHECK_EQUAL(stats.bytes, 128);
    bw_model_free(all);
    bw_model_free(none);
    bw_index_close(index);
}

/* Scores that zones bound: nothing is read where they rule every block out, and nothing skipped where a row
 * reaches the threshold exactly, by either of two terms. */
static void test_bounds(void) {
    bw_random random = {31};
    bw_error error;
    uint64_t rows = 5000;
    bw_index *index = test_make_index(&random, FOLDER, DATA_CONSTANT, &rows, 1);
    static bw_score score;
    uint32_t none[1] = {0};
    score.terms = 2;
    score.has_threshold = true;
    score.term[0].linear[2] = 10; /* the rows have 16 there: 160 */
    score.term[0].constant = 3;
    score.term[1].square[3] = -1; /* and 24 there: -576 */
    score.term[1].constant = 576 + 170;
    for (int64_t above = 0; above < 2; above++) {
        for (int isa = 0; isa < 4; isa++) {
            bw_model *model = NULL;
            bw_stats stats;
            score.threshold = 170 + above;
            CHECK_STATUS(bw_model_new("test", "", 0, none, NULL, 0, &score, NULL, NULL, NULL, &model, &error),
                         BW_OK);
            test_choose_isa((uint64_t)isa);
            CHECK_STATUS(bw_search_run(index, model, BW_COUNT_ONLY, 1, NULL, NULL, &stats, &error), BW_OK);
            CHECK_EQUAL(stats.rows, above ? 0 : rows);
            CHECK_EQUAL(stats.blocks_outscored, above ? 20 : 0);
            CHECK_EQUAL(stats.blocks_pruned, above ? 20 : 0);
            if (above) { /* the zones of the eight dimensions that come together; here of both terms */
                CHECK(stats.bytes >= 2 * 128 && stats.bytes <= 16 * 128);
            }
            bw_model_free(model);
        }
    }
    bw_index_close(index);
}

/* Which rows the sample's are: of a segment that is its own sample, and of a larger one. */
static void test_sample_rows(void) {
    bw_random random = {32};
    bw_error error;
    uint64_t rows[2] = {70000, 3000};
    bw_index *index = test_make_index(&random, FOLDER, DATA_UNIFORM, rows, 2);
    bw_sample sample;
    CHECK_STATUS(bw_sample_draw(index, UINT32_MAX, &sample, &error), BW_OK);
    uint64_t wrong = 0, seen_rows = 0;
    for (uint32_t b = 0; b < sample.blocks; b++) {
        const bw_sample_block *block = &sample.block[b];
        for (uint32_t r = 0; r < block->rows; r++, seen_rows++) {
            uint8_t code[BW_DIMS];
            uint32_t row = bw_sample_row(index, block, r);
            bw_index_gather(index, block->segment, row, code);
            for (int d = 0; d < BW_DIMS; d++) {
                wrong += code[d] != block->codes[d * BW_BLOCK_ROWS + (int)r];
            }
        }
    }
    CHECK_EQUAL(wrong, 0);
    CHECK_EQUAL(seen_rows, 32768 + 3000);
    bw_free(sample.block);
    bw_index_close(index);
}

static void test_arguments(void) {
    bw_random random = {26};
    bw_error error;
    uint64_t rows = 5000;
    bw_index *index = test_make_index(&random, FOLDER, DATA_UNIFORM, &rows, 1);
    bw_model *model = parse("{\"boxwood_model\":1,\"learner\":\"test\",\"dims\":32,\"estimators\":[[[[2,0,99]"
                            "]]],\"threshold\":1}");
    bw_model *foreign = parse("{\"boxwood_model\":1,\"learner\":\"test\",\"dims\":32,\"quantizer\":\"other\","
                              "\"estimators\":[[[[2,0,99]]]],\"threshold\":1}");
    bw_search *search = NULL;
    bw_rows *found = NULL;
    bw_stats stats;
    bw_box_report report, whole;
    CHECK_STATUS(bw_search_open(index, foreign, 0, &search, &error), BW_MISMATCH);
    CHECK_MESSAGE("\"other\"");
    CHECK_MESSAGE("\"q\"");
    CHECK_STATUS(bw_search_run(index, foreign, 0, 1, NULL, &found, &stats, &error), BW_MISMATCH);
    CHECK_STATUS(bw_explain(index, foreign, &report, &whole, &error), BW_MISMATCH);
    static bw_score score = {.terms = 1};
    bw_model *fine = NULL;
    uint32_t none[1] = {0};
    CHECK_STATUS(bw_model_new("test", "", 0, none, NULL, 0, NULL, "g", &score, NULL, &fine, &error), BW_OK);
    CHECK_STATUS(bw_search_open(index, fine, 0, &search, &error), BW_MISMATCH);
    CHECK_MESSAGE("holds no fine codes");
    bw_index *both = test_make_index_with(&random, FOLDER, DATA_UNIFORM, &rows, 1, true);
    CHECK_STATUS(bw_search_open(both, fine, 0, &search, &error), BW_MISMATCH);
    CHECK_MESSAGE("\"g\"");
    bw_index_close(both);
    bw_model_free(fine);
    CHECK_STATUS(bw_search_open(index, model, 2, &search, &error), BW_INVALID);
    CHECK_STATUS(bw_search_open(NULL, model, 0, &search, &error), BW_INVALID);
    CHECK_STATUS(bw_search_open(index, NULL, 0, &search, &error), BW_INVALID);
    CHECK_STATUS(bw_search_run(index, model, 0, 1, NULL, NULL, &stats, &error), BW_INVALID);
    CHECK_STATUS(bw_explain(index, model, NULL, &whole, &error), BW_INVALID);
    CHECK(search == NULL && found == NULL);
    volatile int32_t cancel = 1;
    CHECK_STATUS(bw_search_run(index, model, 0, 2, &cancel, &found, &stats, &error), BW_CANCELLED);
    CHECK_STATUS(bw_search_run(index, model, BW_COUNT_ONLY, 2, &cancel, NULL, &stats, &error), BW_CANCELLED);
    CHECK(found == NULL);

    /* A search holds what it needs: index and model may be closed under it. */
    CHECK_STATUS(bw_search_open(index, model, BW_COUNT_ONLY, &search, &error), BW_OK);
    CHECK_STATUS(bw_search_next(search, NULL, NULL, &error), BW_OK);
    bw_search_stats(search, &stats);
    uint64_t matching = stats.rows;
    bw_search_close(search);
    CHECK_STATUS(bw_search_open(index, model, 0, &search, &error), BW_OK);
    bw_index_close(index);
    bw_model_free(model);
    bw_model_free(foreign);
    CHECK_STATUS(bw_search_next(search, NULL, NULL, &error), BW_INVALID);
    int64_t *ids = test_alloc(BW_MORSEL_ROWS * sizeof *ids);
    bw_batch batch = {0, ids, NULL, NULL};
    CHECK_STATUS(bw_search_next(search, &batch, NULL, &error), BW_OK);
    CHECK(batch.rows == matching && matching > 0);
    CHECK_STATUS(bw_search_next(search, &batch, NULL, &error), BW_OK);
    CHECK_EQUAL(batch.rows, 0);
    free(ids);
    bw_search_close(search);
    bw_search_close(NULL);
    bw_rows_free(NULL);
}

/* Threads that share one search take every morsel once. */
typedef struct shared {
    bw_search *search;
    uint64_t rows[4];
    uint64_t sums[4];
    int32_t status[4];
} shared;

static void share(void *context, uint32_t worker) {
    shared *s = context;
    int64_t *ids = test_alloc(BW_MORSEL_ROWS * sizeof *ids);
    bw_batch batch = {1, ids, NULL, NULL};
    while (batch.rows > 0 && s->status[worker] == BW_OK) {
        s->status[worker] = bw_search_next(s->search, &batch, NULL, NULL);
        for (uint64_t i = 0; i < batch.rows; i++) {
            s->sums[worker] += (uint64_t)ids[i];
        }
        s->rows[worker] += batch.rows;
    }
    free(ids);
}

static void test_shared(void) {
    bw_random random = {27};
    bw_error error;
    uint64_t rows[2] = {100000, 40000};
    bw_index *index = test_make_index(&random, FOLDER, DATA_UNIFORM, rows, 2);
    oracle o = oracle_of(index);
    bw_model *model =
        parse("{\"boxwood_model\":1,\"learner\":\"test\",\"dims\":32,\"estimators\":[[[[2,0,99],[9,7,200]]],"
              "[[[4,100,255]]]],\"threshold\":2}");
    uint64_t matching = evaluate(&o, model), sum = 0;
    for (uint64_t r = 0; r < o.rows; r++) {
        sum += o.match[r] ? (uint64_t)o.ids[r] : 0;
    }
    for (int round = 0; round < 5; round++) {
        shared s = {0};
        CHECK_STATUS(bw_search_open_path(index, model, 0, (bw_path)(round % BW_PATHS), &s.search, &error),
                     BW_OK);
        CHECK_EQUAL(bw_search_morsels(s.search), 4 + 2);
        bw_parallel(4, share, &s);
        CHECK_EQUAL(s.rows[0] + s.rows[1] + s.rows[2] + s.rows[3], matching);
        CHECK_EQUAL(s.sums[0] + s.sums[1] + s.sums[2] + s.sums[3], sum);
        CHECK(s.status[0] == BW_OK && s.status[1] == BW_OK && s.status[2] == BW_OK && s.status[3] == BW_OK);
        bw_stats stats;
        bw_search_stats(s.search, &stats);
        check_stats(index, &stats, matching);
        bw_search_close(s.search);
    }
    bw_model_free(model);
    oracle_free(&o);
    bw_index_close(index);
}

#ifdef BW_FAULTS
/* Every allocation in turn fails: an error, or all the same the right answer; and nothing leaks. Past the
 * first hundred some are left out: for every box, bw_explain allocates the same again. */
static void test_faults(void) {
    bw_random random = {28};
    bw_error error;
    uint64_t rows = 600;
    bw_index *index = test_make_index_with(&random, FOLDER, DATA_UNIFORM, &rows, 1, true);
    oracle o = oracle_of(index);
    for (int i = 0; i < 8; i++) {
        bw_model *model = random_model(&random, &o);
        uint64_t matching = evaluate(&o, model);
        bw_box_report *reports = test_alloc(bw_model_boxes(model) * sizeof *reports);
        bool done = false;
        test_choose_isa((uint64_t)i);
        for (long countdown = 0; !done && countdown < 20000; countdown += 1 + countdown / 100) {
            bw_rows *found = NULL;
            bw_stats stats;
            bw_fault_set(BW_FAULT_ALLOC, countdown);
            bw_path path = (bw_path)(i % BW_PATHS);
            int32_t status = bw_search_run_path(index, model, 0, path, 1, NULL, &found, &stats, NULL, &error);
            bool none = status != BW_OK;
            CHECK(none ? status == BW_NOMEM && error.code == BW_NOMEM && !found
                       : found && found->rows == matching);
            bw_fault_set(BW_FAULT_ALLOC, countdown);
            bw_box_report whole;
            status = bw_explain(index, model, reports, &whole, &error);
            bw_fault_set(BW_FAULT_ALLOC, -1);
            CHECK(status == BW_OK ? whole.rows == matching : status == BW_NOMEM);
            done = status == BW_OK && !none;
            bw_rows_free(found);
        }
        CHECK(done);
        free(reports);
        bw_model_free(model);
    }
    oracle_free(&o);
    bw_index_close(index);
}
#endif

int main(void) {
    test_random();
    test_morsels();
    test_empty();
    test_largest();
    test_most_boxes();
    test_choice();
    test_unseen();
    test_bounds();
    test_sample_rows();
    test_arguments();
    test_shared();
#ifdef BW_FAULTS
    test_faults();
#endif
    test_remove_folder(FOLDER);
    return test_finish();
}
