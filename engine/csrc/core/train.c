/* train.c - the entry to every learner: labels by id or by code, checked; random negatives drawn; the model
 * of votes that the learners of boxes share. */
#include "train.h"

#include "index.h"
#include "search.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LABELS 1000000
#define MAX_RANDOMS 100000
#define LEAST_BACKGROUND 8
#define SMALL_INDEX 1000000 /* rows: all blocks of samples are looked at */
#define VOTE_SHIFT 21
#define PRIOR_NEIGHBOURS 4
#define PRIOR_ALONE 16384                 /* 8^2 in 1/256 */
#define PRIOR_STRIDE (BW_PRIOR_ROWS + 64) /* kernels read 64 values at a time */

static int32_t check_options(const bw_train_options *options, bw_error *error) {
    if (!options) {
        return bw_fail(error, BW_INVALID, "train: no options");
    }
    if (options->learner < BW_LEARNER_BRANCH || options->learner > BW_LEARNER_COVER) {
        return bw_fail(error, BW_INVALID,
                       "train: unknown learner %d; it is %d (branch), %d (ensemble) or %d (cover)",
                       options->learner, BW_LEARNER_BRANCH, BW_LEARNER_ENSEMBLE, BW_LEARNER_COVER);
    }
    bool cover = options->learner == BW_LEARNER_COVER;
    if (options->boxes > BW_MAX_COVER_BOXES || (options->boxes > 0 && !cover)) {
        return bw_fail(error, BW_INVALID, "train: boxes: %u; give 0..%d, and 0 for other learners than cover",
                       options->boxes, BW_MAX_COVER_BOXES);
    }
    if ((options->rerank != 0 && options->rerank != 1) || (options->rerank && !cover)) {
        return bw_fail(error, BW_INVALID, "train: rerank: %d is not 0 or 1, or the learner is not cover",
                       options->rerank);
    }
    if (options->query_fine && !options->query) {
        return bw_fail(error, BW_INVALID, "train: query_fine is a query's fine code: give the query as well");
    }
    if (options->guard != 0 && options->guard != 1) {
        return bw_fail(error, BW_INVALID, "train: guard: %d is not 0 or 1", options->guard);
    }
    if (options->learner == BW_LEARNER_ENSEMBLE &&
        (options->estimators < 1 || options->estimators > BW_MAX_ESTIMATORS)) {
        return bw_fail(error, BW_INVALID, "train: estimators: %u is out of range 1..%d", options->estimators,
                       BW_MAX_ESTIMATORS);
    }
    if (options->prior != 0 && options->prior != 1) {
        return bw_fail(error, BW_INVALID, "train: prior: %d is not 0 or 1", options->prior);
    }
    if (options->random_negatives > MAX_RANDOMS) {
        return bw_fail(error, BW_INVALID, "train: random_negatives: %u is out of range 0..%d",
                       options->random_negatives, MAX_RANDOMS);
    }
    if (!(options->negative_weight >= 0.01 && options->negative_weight <= 100)) {
        return bw_fail(error, BW_INVALID, "train: negative_weight: %g is out of range 0.01..100",
                       options->negative_weight);
    }
    return BW_OK;
}

/* At least one row to look for, among the codes and among the fine codes. */
static int32_t check_counts(size_t positives, size_t negatives, const bw_train_options *options,
                            bw_error *error) {
    if (positives == 0 && !options->query) {
        return bw_fail(error, BW_INVALID,
                       "train: there are no positives; mark at least one image as right, or give a query");
    }
    if (positives == 0 && options->rerank && !options->query_fine) {
        return bw_fail(error, BW_INVALID,
                       "train: rerank with a query alone needs the query's fine code: give query_fine, or a "
                       "positive, or leave rerank out");
    }
    if (positives > MAX_LABELS || negatives > MAX_LABELS) {
        return bw_fail(error, BW_INVALID, "train: %zu %s; at most %d are allowed",
                       positives > MAX_LABELS ? positives : negatives,
                       positives > MAX_LABELS ? "positives" : "negatives", MAX_LABELS);
    }
    return BW_OK;
}

int32_t bw_training_cancelled(const bw_training *training, bw_error *error) {
    const volatile int32_t *cancel = training->options->cancel;
    return cancel && *cancel ? bw_fail(error, BW_CANCELLED, "the training was cancelled") : BW_OK;
}

uint32_t bw_training_estimators(const bw_training *training) {
    return training->options->learner == BW_LEARNER_ENSEMBLE ? training->options->estimators : 1;
}

int32_t bw_training_vote(const bw_training *l, const uint32_t *first_box, const bw_ranges *boxes,
                         bw_model **model, bw_error *error) {
    const bw_train_options *options = l->options;
    bool ensemble = options->learner == BW_LEARNER_ENSEMBLE;
    uint32_t estimators = bw_training_estimators(l);
    int64_t n = (int64_t)l->n_positives;
    bw_score score = {.terms = 1, .votes = INT64_C(1) << VOTE_SHIFT, .shift = VOTE_SHIFT};
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        int64_t sum = 0;
        for (size_t i = 0; i < l->n_positives; i++) {
            sum += l->positives[i * BW_DIMS + d];
        }
        int64_t mean = (2 * sum + n) / (2 * n);
        score.term[0].linear[d] = 2 * mean;
        score.term[0].square[d] = -1;
        score.term[0].constant -= mean * mean;
    }
    /* The weight in hundredths is exact enough to read and the same whatever the locale. */
    bw_text text = {0};
    uint32_t hundredths = (uint32_t)(options->negative_weight * 100 + 0.5);
    bw_text_append(&text,
                   "{\"positives\":%zu,\"negatives\":%zu,\"random_negatives\":%zu,\"negative_weight\":%u.%"
                   "02u,\"seed\":%llu,\"prior\":%d}",
                   l->n_positives, l->n_negatives, l->n_randoms, hundredths / 100, hundredths % 100,
                   (unsigned long long)options->seed, (int)options->prior);
    if (text.failed) {
        bw_free(text.data);
        return bw_fail_nomem(error, 256);
    }
    int32_t status = bw_model_new(ensemble ? "ensemble" : "branch", l->quantizer, estimators, first_box,
                                  boxes, estimators / 2 + 1, &score, NULL, NULL, text.data, model, error);
    bw_free(text.data);
    return status;
}

void bw_training_prior(const uint8_t *const *codes, size_t n, int64_t prior[BW_DIMS]) {
    uint32_t k = n < 2 ? 0 : n - 1 < PRIOR_NEIGHBOURS ? (uint32_t)n - 1 : PRIOR_NEIGHBOURS;
    int64_t sums[BW_DIMS] = {0};
    uint8_t columns[BW_DIMS * PRIOR_STRIDE] = {0};
    uint32_t distances[BW_PRIOR_ROWS];
    const bw_kernels *kernels = bw_kernels_get();
    for (size_t i = 0; i < n; i++) {
        for (uint32_t d = 0; d < BW_DIMS; d++) {
            columns[d * PRIOR_STRIDE + i] = codes[i][d];
        }
    }
    for (size_t i = 0; i < n && k > 0; i++) {
        uint32_t nearest[PRIOR_NEIGHBOURS], rows[PRIOR_NEIGHBOURS];
        uint32_t found = 0, limit = UINT32_MAX; /* the distance that is too far */
        for (size_t j = 0; j < n; j += 64) {
            kernels->distances(columns + j, PRIOR_STRIDE, codes[i], distances + j);
        }
        distances[i] = UINT32_MAX;
        for (size_t j = 0; j < n; j++) {
            if (distances[j] >= limit) {
                continue;
            }
            uint32_t place = found < k ? found++ : k - 1;
            for (; place > 0 && nearest[place - 1] > distances[j]; place--) {
                nearest[place] = nearest[place - 1];
                rows[place] = rows[place - 1];
            }
            nearest[place] = distances[j];
            rows[place] = (uint32_t)j;
            limit = found == k ? nearest[k - 1] : UINT32_MAX;
        }
        for (uint32_t m = 0; m < k; m++) {
            for (uint32_t d = 0; d < BW_DIMS; d++) {
                int64_t difference = (int64_t)codes[i][d] - codes[rows[m]][d];
                sums[d] += difference * difference;
            }
        }
    }
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        int64_t value = k == 0 ? PRIOR_ALONE : 128 * sums[d] / ((int64_t)n * k);
        prior[d] = value > 256 ? value : 256;
    }
}

/* How many labelled rows the model matches. */
static int32_t count_labels(const bw_training *t, const bw_model *model, double *rows, bw_error *error) {
    const uint8_t *codes[] = {t->positives, t->negatives}, *fine[] = {t->positives_fine, t->negatives_fine};
    size_t counts[] = {t->n_positives, t->n_negatives};
    for (int k = 0; k < 2; k++) {
        for (size_t from = 0; from < counts[k]; from += BW_BLOCK_ROWS) {
            uint8_t match[BW_BLOCK_ROWS];
            size_t n = counts[k] - from < BW_BLOCK_ROWS ? counts[k] - from : BW_BLOCK_ROWS;
            int32_t status = bw_model_evaluate(model, codes[k] + from * BW_DIMS,
                                               fine[k] ? fine[k] + from * BW_FINE_DIMS : NULL, n, NULL, NULL,
                                               match, error);
            if (status) {
                return status;
            }
            for (size_t i = 0; i < n; i++) {
                *rows += match[i];
            }
        }
    }
    return BW_OK;
}

static int32_t run(bw_training *training, bw_model **model, bw_train_stats *stats, bw_error *error) {
    const bw_train_options *options = training->options;
    uint64_t start = bw_now();
    bw_train_stats own = {.terms = 0};
    own.precision = own.precision_low = own.precision_high = NAN;
    own.recall = own.recall_low = own.recall_high = own.rows = NAN;
    training->stats = &own;
    bool cover = options->learner == BW_LEARNER_COVER;
    size_t given = training->n_positives;
    if (!cover && given == 0) {
        training->positives = options->query;
        training->n_positives = 1;
    }
    if (!cover && training->n_negatives + training->n_randoms == 0) {
        return bw_fail(error, BW_INVALID,
                       "train: there is nothing to tell the positives from: mark negatives, or set "
                       "random_negatives to 1 or more in a collection that has other images");
    }
    int32_t status = cover            ? bw_train_cover(training, model, error)
                     : options->prior ? bw_train_branch(training, model, error)
                                      : bw_train_paper(training, model, error);
    if (!status && cover) {
        status = count_labels(training, *model, &own.rows, error);
        if (status) {
            bw_model_free(*model);
            *model = NULL;
        }
    }
    if (!status && stats) {
        own.positives = (uint32_t)given;
        own.negatives = (uint32_t)training->n_negatives;
        own.random_negatives = (uint32_t)training->n_randoms;
        own.estimators = (*model)->estimators;
        own.boxes = bw_model_boxes(*model);
        own.nanoseconds = bw_now() - start;
        *stats = own;
    }
    return status;
}

static const uint8_t *fine_of_codes(const void *context, size_t row) {
    return (const uint8_t *)context + row * BW_FINE_DIMS;
}

int32_t bw_train_codes(const bw_labels *labels, const bw_train_options *options, bw_model **model,
                       bw_train_stats *stats, bw_error *error) {
    int32_t status = check_options(options, error);
    if (!status) {
        status = check_counts(labels->n_positives, labels->n_negatives, options, error);
    }
    if (!status && labels->n_randoms > MAX_RANDOMS) {
        status = bw_fail(error, BW_INVALID, "train: %zu random negatives; at most %d are allowed",
                         labels->n_randoms, MAX_RANDOMS);
    }
    if (!status && options->rerank &&
        ((labels->n_positives > 0 && !labels->positives_fine) ||
         (labels->n_negatives > 0 && !labels->negatives_fine) ||
         (labels->n_randoms > 0 && !labels->randoms_fine))) {
        status = bw_fail(error, BW_INVALID, "train: rerank needs the fine codes of all rows");
    }
    if (status) {
        return status;
    }
    double n = (double)labels->n_randoms;
    bw_training training = {.positives = labels->positives,
                            .negatives = labels->negatives,
                            .randoms = labels->randoms,
                            .n_positives = labels->n_positives,
                            .n_negatives = labels->n_negatives,
                            .n_randoms = labels->n_randoms,
                            .options = options,
                            .quantizer = labels->quantizer,
                            .rows_each = labels->rows > 0 && n > 0 ? (double)labels->rows / n : 1};
    if (options->rerank) {
        training.positives_fine = labels->positives_fine;
        training.negatives_fine = labels->negatives_fine;
        training.fine = fine_of_codes;
        training.fine_context = labels->randoms_fine;
        training.fine_quantizer = labels->fine_quantizer;
    }
    return run(&training, model, stats, error);
}

static int compare_ids(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Sorts ids and drops repetitions; gives how many are left. */
static size_t make_set(int64_t *ids, size_t n) {
    size_t kept = 0;
    qsort(ids, n, sizeof *ids, compare_ids);
    for (size_t i = 0; i < n; i++) {
        if (kept == 0 || ids[kept - 1] != ids[i]) {
            ids[kept++] = ids[i];
        }
    }
    return kept;
}

/* Everything that bw_train needs but the model: ids as sets and the codes of all, in one place to free. */
typedef struct gathered {
    int64_t *ids; /* positives, negatives; then all of them sorted; then the random ones */
    uint8_t *codes, *fine;
    const uint8_t **randoms_fine; /* where the index has them */
    uint64_t *places;             /* of labelled rows, sorted: segment << 32 | row */
    size_t positives, negatives, randoms;
    size_t indexed; /* labels that the index has a live row of */
} gathered;

static void gathered_free(gathered *g) {
    bw_free(g->ids);
    bw_free(g->codes);
    bw_free(g->fine);
    bw_free(g->randoms_fine);
    bw_free(g->places);
}

static const uint8_t *fine_of_index(const void *context, size_t row) {
    return ((const uint8_t *const *)context)[row];
}

static int compare_places(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

typedef struct drawn_row {
    int64_t id;
    size_t place;
} drawn_row;

/* All rows in the order of their ids, so that training on them does not depend on segments. */
static int32_t sort_sample(gathered *g, bw_error *error) {
    size_t given = g->positives + g->negatives, n = g->randoms;
    const int64_t *drawn = g->ids + 2 * given;
    drawn_row *rows = bw_alloc_array(n + 1, sizeof *rows);
    uint8_t *codes = bw_alloc_array(given + n + 1, BW_DIMS);
    const uint8_t **fine = bw_alloc_array(n + 1, sizeof *fine);
    if (!rows || !codes || !fine) {
        bw_free(rows);
        bw_free(codes);
        bw_free(fine);
        return bw_fail_nomem(error, (given + n) * (BW_DIMS + 24));
    }
    for (size_t i = 0; i < n; i++) {
        rows[i] = (drawn_row){drawn[i], i};
    }
    qsort(rows, n, sizeof *rows, compare_ids); /* the id comes first in it */
    memcpy(codes, g->codes, given * BW_DIMS);
    for (size_t i = 0; i < n; i++) {
        memcpy(codes + (given + i) * BW_DIMS, g->codes + (given + rows[i].place) * BW_DIMS, BW_DIMS);
        fine[i] = g->randoms_fine[rows[i].place];
    }
    bw_free(rows);
    bw_free(g->codes);
    bw_free(g->randoms_fine);
    g->codes = codes;
    g->randoms_fine = fine;
    return BW_OK;
}

/* Live rows of the samples that segments carry, but labelled ones: at most `wanted`, evenly. Reading these
 * costs a few pages a segment, where rows drawn from all would cost two each. */
static int32_t take_sample(const bw_index *index, size_t wanted, gathered *g, bw_error *error) {
    size_t given = g->positives + g->negatives, available = 0, seen = 0, indexed = 0;
    double held = (double)index->info.rows + (double)index->info.deleted;
    int64_t *drawn = g->ids + 2 * given;
    bw_sample sample = {0};
    /* A block of a large segment's sample is an even sample by itself; one of a small segment is not. */
    uint64_t blocks = UINT32_MAX;
    if (index->info.rows > SMALL_INDEX) {
        blocks = (uint64_t)((double)wanted * held / (double)index->info.rows) / BW_BLOCK_ROWS + 1;
    }
    int32_t status = bw_sample_draw(index, (uint32_t)blocks, &sample, error);
    g->places = bw_alloc_array(given + 1, sizeof *g->places);
    g->randoms_fine = bw_alloc_array(wanted + 1, sizeof *g->randoms_fine);
    if (!status && (!g->places || !g->randoms_fine)) {
        status = bw_fail_nomem(error, (given + wanted) * 8);
    }
    for (size_t i = 0; !status && i < given; i++) {
        uint32_t segment, row;
        if (bw_index_find(index, g->ids[i], &segment, &row)) {
            g->places[indexed++] = (uint64_t)segment << 32 | row;
        }
    }
    if (!status) {
        qsort(g->places, indexed, sizeof *g->places, compare_places);
    }
    for (uint32_t s = 0; !status && s < sample.blocks; s++) {
        for (uint32_t w = 0; w < 4; w++) {
            available += (size_t)__builtin_popcountll(sample.block[s].live[w]);
        }
    }
    for (uint32_t s = 0; !status && s < sample.blocks; s++) {
        const bw_sample_block *block = &sample.block[s];
        const bw_segment *segment = index->segments[block->segment];
        for (uint32_t r = 0; r < block->rows; r++) {
            if (!(block->live[r / 64] >> r % 64 & 1)) {
                continue;
            }
            bool even = available <= wanted ||
                        (uint64_t)(seen + 1) * wanted / available > (uint64_t)seen * wanted / available;
            seen++;
            uint32_t row = bw_sample_row(index, block, r);
            uint64_t place = (uint64_t)block->segment << 32 | row;
            if (!even ||
                (indexed > 0 && bsearch(&place, g->places, indexed, sizeof place, compare_places) != NULL)) {
                continue;
            }
            uint8_t *code = g->codes + (given + g->randoms) * BW_DIMS;
            for (uint32_t d = 0; d < BW_DIMS; d++) {
                code[d] = block->codes[d * BW_BLOCK_ROWS + r];
            }
            drawn[g->randoms] = segment->ids[row];
            g->randoms_fine[g->randoms++] = segment->fine ? segment->fine + (size_t)row * BW_FINE_DIMS : NULL;
        }
    }
    bw_free(sample.block);
    return status || available < index->info.rows ? status : sort_sample(g, error);
}

/* Codes of the labels: the given ones, and of the others those in the index. */
static int32_t look_up(const bw_index *index, size_t labels, const bw_train_options *options, gathered *g,
                       bw_error *error) {
    size_t n = options->n_given;
    drawn_row *rows = bw_alloc_array(n + 1, sizeof *rows);
    uint8_t *found = bw_alloc_array(labels + 1, 1);
    g->fine = options->rerank ? bw_alloc_array(labels + 1, BW_FINE_DIMS) : NULL;
    int32_t status = BW_OK;
    if (!rows || !found || (options->rerank && !g->fine)) {
        status = bw_fail_nomem(error, (n + labels) * sizeof *rows);
    }
    for (size_t i = 0; !status && i < n; i++) {
        rows[i] = (drawn_row){options->given_ids[i], i};
    }
    if (!status) {
        qsort(rows, n, sizeof *rows, compare_ids); /* the id comes first in it */
    }
    for (size_t i = 1; !status && i < n; i++) {
        if (rows[i].id == rows[i - 1].id) {
            status = bw_fail(error, BW_INVALID, "train: id %lld is given twice", (long long)rows[i].id);
        }
    }
    if (!status && labels > 0) {
        status = bw_index_codes(index, g->ids, labels, g->codes, found, error);
    }
    if (!status && labels > 0 && options->rerank) {
        status = bw_index_fine(index, g->ids, labels, g->fine, found, error);
    }
    for (size_t i = 0; !status && i < labels; i++) {
        const drawn_row wanted = {g->ids[i], 0};
        const drawn_row *row = n > 0 ? bsearch(&wanted, rows, n, sizeof *rows, compare_ids) : NULL;
        g->indexed += found[i];
        if (row) {
            memcpy(g->codes + i * BW_DIMS, options->given_codes + row->place * BW_DIMS, BW_DIMS);
            if (options->rerank) {
                memcpy(g->fine + i * BW_FINE_DIMS, options->given_fine + row->place * BW_FINE_DIMS,
                       BW_FINE_DIMS);
            }
        } else if (!found[i]) { /* for its message */
            status = bw_index_codes(index, &g->ids[i], 1, g->codes, NULL, error);
        }
    }
    bw_free(rows);
    bw_free(found);
    return status;
}

static int32_t collect(const bw_index *index, const int64_t *positives, size_t n_positives,
                       const int64_t *negatives, size_t n_negatives, const bw_train_options *options,
                       gathered *g, bw_error *error) {
    size_t given = n_positives + n_negatives, wanted = options->random_negatives;
    g->ids = bw_alloc_array(2 * given + wanted, sizeof *g->ids);
    g->codes = bw_alloc_array(given + wanted, BW_DIMS);
    if (!g->ids || !g->codes) {
        return bw_fail_nomem(error, (given + wanted) * BW_DIMS);
    }
    if (n_positives > 0) {
        memcpy(g->ids, positives, n_positives * sizeof *g->ids);
        g->positives = make_set(g->ids, n_positives);
    }
    int64_t *ids_negative = g->ids + g->positives;
    if (n_negatives > 0) {
        memcpy(ids_negative, negatives, n_negatives * sizeof *g->ids);
        g->negatives = make_set(ids_negative, n_negatives);
    }
    given = g->positives + g->negatives;
    int64_t *all = g->ids + given, *drawn = all + given;
    memcpy(all, g->ids, given * sizeof *all);
    qsort(all, given, sizeof *all, compare_ids);
    for (size_t i = 1; i < given; i++) {
        if (all[i] == all[i - 1]) {
            return bw_fail(error, BW_INVALID,
                           "train: id %lld is both a positive and a negative; take it out of one of them",
                           (long long)all[i]);
        }
    }
    int32_t status = look_up(index, given, options, g, error);
    if (status || wanted == 0) {
        return status;
    }
    if (options->learner == BW_LEARNER_COVER) {
        return take_sample(index, wanted, g, error);
    }
    status = bw_index_draw(index, options->seed, wanted, all, given, drawn, &g->randoms, error);
    if (!status && g->randoms > 0) {
        status = bw_index_codes(index, drawn, g->randoms, g->codes + given * BW_DIMS, NULL, error);
    }
    return status;
}

/* What a count on an index needs. */
typedef struct counted {
    const bw_index *index;
    const bw_train_options *options;
} counted;

static int32_t count_rows(const void *context, const bw_score *score, int64_t least, double *rows,
                          bw_error *error) {
    const counted *c = context;
    static const uint32_t first_box[1] = {0};
    bw_score own = *score;
    own.has_threshold = true;
    own.threshold = least;
    bw_model *model = NULL;
    bw_stats stats;
    int32_t status = bw_model_new("cover", c->index->info.fingerprints.quantizer, 0, first_box, NULL, 0, &own,
                                  NULL, NULL, NULL, &model, error);
    if (!status) {
        status = bw_search_run(c->index, model, BW_COUNT_ONLY, 1, c->options->cancel, NULL, &stats, error);
    }
    if (!status) {
        *rows = (double)stats.rows;
    }
    bw_model_free(model);
    return status;
}

int32_t bw_train(const bw_index *index, const int64_t *positives, size_t n_positives,
                 const int64_t *negatives, size_t n_negatives, const bw_train_options *options,
                 bw_model **model, bw_train_stats *stats, bw_error *error) {
    uint64_t start = bw_now();
    gathered g = {0};
    int32_t status = check_options(options, error);
    if (!status) {
        status = check_counts(n_positives, n_negatives, options, error);
    }
    if (!status && options->learner == BW_LEARNER_COVER && options->random_negatives < LEAST_BACKGROUND) {
        status =
            bw_fail(error, BW_INVALID,
                    "train: random_negatives: %u rows of the collection are too few for cover; give %d or "
                    "more, or leave it out",
                    options->random_negatives, LEAST_BACKGROUND);
    }
    if (!status && options->rerank && index->info.fingerprints.fine[0] == '\0') {
        status = bw_fail(error, BW_INVALID,
                         "train: rerank needs fine codes, which this index lacks: make the collection from "
                         "embeddings with fine codes, or leave rerank out");
    }
    if (!status && options->n_given > 0 &&
        (!options->given_ids || !options->given_codes || (options->rerank && !options->given_fine))) {
        status = bw_fail(error, BW_INVALID,
                         "train: given rows need ids and codes, and with rerank fine codes as well");
    }
    if (!status) {
        status = collect(index, positives, n_positives, negatives, n_negatives, options, &g, error);
    }
    if (!status) {
        size_t given = g.positives + g.negatives;
        double left = (double)index->info.rows - (double)g.indexed;
        counted context = {index, options};
        bw_training training = {.positives = g.codes,
                                .negatives = g.codes + g.positives * BW_DIMS,
                                .randoms = g.codes + given * BW_DIMS,
                                .n_positives = g.positives,
                                .n_negatives = g.negatives,
                                .n_randoms = g.randoms,
                                .ids = g.ids,
                                .options = options,
                                .count = count_rows,
                                .count_context = &context,
                                .quantizer = index->info.fingerprints.quantizer,
                                .rows_each = g.randoms > 0 ? left / (double)g.randoms : 1};
        if (options->rerank) {
            training.positives_fine = g.fine;
            training.negatives_fine = g.fine + g.positives * BW_FINE_DIMS;
            training.fine = fine_of_index;
            training.fine_context = g.randoms_fine;
            training.fine_quantizer = index->info.fingerprints.fine;
        }
        status = run(&training, model, stats, error);
    }
    if (!status && stats) {
        stats->nanoseconds = bw_now() - start;
    }
    gathered_free(&g);
    return status;
}
