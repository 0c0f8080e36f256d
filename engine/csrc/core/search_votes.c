/* search_votes.c - a search: morsels handed out to threads, votes of the estimators, scores, matching rows.
 *
 * Votes are counted for 64 blocks or 256 rows at once in bit-sliced counters: plane p holds bit p of every
 * count.
 *
 * What the statistics mean: a block is contained when its zones alone say that all its rows match, even if
 * codes are then read for their votes or scores; it is scanned when only its codes could tell. Bytes are 256
 * for each column that a block's boxes looked at, once a block; all 32 columns, or 32 for each row, where
 * scores were computed; and for each group of blocks the zones of the model's dimensions, 128 each. */
#include "search.h"

#include <stdatomic.h>
#include <string.h>

#define PLANES 11 /* counts to 1,024 */
#define MORSEL_BLOCKS (BW_MORSEL_ROWS / BW_BLOCK_ROWS)
#define ROW_SCORES 64 /* matching rows of a block from which on all its scores are computed at once */

_Static_assert(BW_MAX_ESTIMATORS < 1 << PLANES, "votes must fit the counter");
_Static_assert(MORSEL_BLOCKS % BW_GROUP_BLOCKS == 0, "a morsel is a number of whole groups");

struct bw_search {
    const bw_index *index; /* own hold */
    const bw_kernels *kernels;
    bw_program program;
    uint32_t planes; /* enough for the votes of all estimators */
    uint32_t threshold;
    bool count_only;
    bool has_score;
    bw_score score;
    int64_t *table;          /* of the score, for bw_kernels.scores; NULL without a score */
    uint64_t *first_morsels; /* segments + 1 entries */
    uint64_t morsels;
    uint64_t opened; /* bw_now() */
    _Atomic uint64_t next;
    _Atomic uint64_t rows, pruned, contained, scanned, bytes, nanoseconds;
};

/* What one thread needs during a morsel. */
typedef struct scratch {
    uint64_t *overlaps; /* for each box: blocks of the group that may hold rows of it */
    uint64_t *open;     /* for each estimator: blocks where only the codes tell whom it votes for */
    int64_t scores[BW_BLOCK_ROWS];
} scratch;

/* One morsel's work: where matching rows go, and what was done. */
typedef struct task {
    const bw_search *search;
    const bw_segment *segment;
    scratch *scratch;
    bw_batch *batch; /* NULL: only count */
    bool want_votes; /* exact votes are needed, for the caller or for the score */
    bool want_scores;
    bw_stats stats;
} task;

/* ---- bit-sliced counters: `words` words a plane ---- */

static inline void counter_add(uint64_t *counter, uint32_t planes, uint32_t words, const uint64_t *bits) {
    uint64_t carry[4];
    memcpy(carry, bits, words * sizeof *carry);
    for (uint32_t p = 0; p < planes; p++) {
        uint64_t any = 0;
        for (uint32_t w = 0; w < words; w++) {
            uint64_t plane = counter[p * words + w];
            counter[p * words + w] = plane ^ carry[w];
            carry[w] &= plane;
            any |= carry[w];
        }
        if (!any) {
            break;
        }
    }
}

/* Bits of the places that have counted to n or more. */
static inline void counter_reaches(const uint64_t *counter, uint32_t planes, uint32_t words, uint32_t n,
                                   uint64_t *reached) {
    memset(reached, n >> planes ? 0 : 255, words * sizeof *reached);
    for (uint32_t p = 0; p < planes; p++) {
        for (uint32_t w = 0; w < words; w++) {
            uint64_t plane = counter[p * words + w];
            reached[w] = n >> p & 1 ? reached[w] & plane : reached[w] | plane;
        }
    }
}

static inline uint32_t counter_read(const uint64_t *counter, uint32_t planes, uint32_t words,
                                    uint32_t place) {
    uint32_t count = 0;
    for (uint32_t p = 0; p < planes; p++) {
        count |= (uint32_t)(counter[p * words + place / 64] >> place % 64 & 1) << p;
    }
    return count;
}

static inline bool any_of(const uint64_t mask[4]) {
    return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
}

static inline uint64_t count_of(const uint64_t mask[4]) {
    uint64_t count = 0;
    for (int w = 0; w < 4; w++) {
        count += (uint64_t)__builtin_popcountll(mask[w]);
    }
    return count;
}

/* The first n bits, n <= 256. */
static void first_bits(uint32_t n, uint64_t mask[4]) {
    for (uint32_t w = 0; w < 4; w++, n = n > 64 ? n - 64 : 0) {
        mask[w] = n >= 64 ? ~(uint64_t)0 : ((uint64_t)1 << n) - 1;
    }
}

/* ---- one block ---- */

/* Asks the estimators that are open on the block, `open` of them, after `certain` ones have voted for all its
 * rows. Fills `counter` with the votes of the open ones and `match` with the rows that reach the threshold.
 * False as soon as no row can reach it any more; the counter is not complete then. */
static bool count_votes(task *task, uint32_t bit, const uint8_t *block, size_t stride, uint32_t certain,
                        uint32_t open, const uint64_t valid[4], uint64_t counter[PLANES * 4], uint32_t planes,
                        uint64_t match[4], uint32_t *dims) {
    const bw_program *program = &task->search->program;
    uint32_t threshold = task->search->threshold;
    uint32_t need = threshold > certain ? threshold - certain : 0;
    memset(counter, 0, (size_t)planes * 4 * sizeof *counter);
    memcpy(match, valid, 4 * sizeof *match);
    for (uint32_t e = 0; open > 0 && e < program->estimators; e++) {
        if (!(task->scratch->open[e] >> bit & 1)) {
            continue;
        }
        uint32_t first = program->first_box[e], n = program->first_box[e + 1] - first;
        uint64_t mask[4];
        *dims |= bw_boxes_scan(block, stride, task->search->kernels, program->boxes + first,
                               program->box_dims + first, n, task->scratch->overlaps + first, bit, mask);
        counter_add(counter, planes, 4, mask);
        open--;
        if (need > open) { /* a row that has none of the votes so far may be out */
            counter_reaches(counter, planes, 4, need - open, match);
            for (int w = 0; w < 4; w++) {
                match[w] &= valid[w];
            }
            if (!any_of(match)) {
                return false;
            }
        }
    }
    return true;
}

/* Scores of the rows in `match`, without their votes, to scratch->scores. */
static void find_scores(task *task, const uint8_t *block, size_t stride, const uint64_t match[4],
                        uint32_t *dims) {
    const bw_search *search = task->search;
    int64_t *scores = task->scratch->scores;
    uint64_t rows = count_of(match);
    if (rows >= ROW_SCORES) {
        search->kernels->scores(block, stride, search->table, search->score.constant, scores);
        *dims = UINT32_MAX;
        return;
    }
    for (uint32_t w = 0; w < 4; w++) {
        for (uint64_t left = match[w]; left; left &= left - 1) {
            uint32_t r = 64 * w + (uint32_t)__builtin_ctzll(left);
            int64_t sum = search->score.constant;
            for (uint32_t d = 0; d < BW_DIMS; d++) {
                sum += search->table[d * 256 + block[d * stride + r]];
            }
            scores[r] = sum;
        }
    }
    task->stats.bytes += rows * BW_DIMS;
}

/* One block that may hold matching rows: `certain` estimators vote for all of them, `open` ones for some. */
static void search_block(task *task, uint32_t number, uint32_t bit, uint32_t certain, uint32_t open) {
    const bw_search *search = task->search;
    size_t stride;
    const uint8_t *block = bw_segment_block(task->segment, number, &stride);
    uint64_t match[4], counter[PLANES * 4];
    uint32_t planes = 0, dims = 0;
    first_bits(bw_segment_block_rows(task->segment, number), match);
    if (open > 0 && (certain < search->threshold || task->want_votes)) {
        uint64_t valid[4];
        memcpy(valid, match, sizeof valid);
        planes = 32 - (uint32_t)__builtin_clz(open);
        if (!count_votes(task, bit, block, stride, certain, open, valid, counter, planes, match, &dims)) {
            task->stats.bytes += (uint64_t)BW_BLOCK_ROWS * (uint32_t)__builtin_popcount(dims);
            return;
        }
    }
    if (search->has_score && task->want_scores) {
        find_scores(task, block, stride, match, &dims);
    }
    task->stats.bytes += (uint64_t)BW_BLOCK_ROWS * (uint32_t)__builtin_popcount(dims);
    if (!task->batch && !search->score.has_threshold) {
        task->stats.rows += count_of(match);
        return;
    }
    bw_batch *batch = task->batch;
    const int64_t *ids = task->segment->ids + (size_t)number * BW_BLOCK_ROWS;
    for (uint32_t w = 0; w < 4; w++) {
        for (uint64_t left = match[w]; left; left &= left - 1) {
            uint32_t r = 64 * w + (uint32_t)__builtin_ctzll(left);
            uint32_t votes = certain + counter_read(counter, planes, 4, r);
            int64_t score = votes;
            if (search->has_score && task->want_scores) {
                score = task->scratch->scores[r] + votes * search->score.votes;
                if (search->score.has_threshold && score < search->score.threshold) {
                    continue;
                }
            }
            task->stats.rows++;
            if (batch) {
                uint64_t place = batch->rows++;
                if (batch->ids) {
                    batch->ids[place] = ids[r];
                }
                if (batch->votes) {
                    batch->votes[place] = (int32_t)votes;
                }
                if (batch->scores) {
                    batch->scores[place] = score;
                }
            }
        }
    }
}

/* ---- one group of 64 blocks ---- */

static void search_group(task *task, uint32_t first) {
    const bw_search *search = task->search;
    const bw_program *program = &search->program;
    uint64_t upper[PLANES] = {0},
             lower[PLANES] = {0}; /* votes that a row of each block may have, and that it must have */
    uint32_t blocks = task->segment->blocks - first;
    uint64_t valid = blocks < BW_GROUP_BLOCKS ? ((uint64_t)1 << blocks) - 1 : ~(uint64_t)0;
    uint64_t possible = valid, whole;
    task->stats.bytes += (uint64_t)2 * BW_GROUP_BLOCKS * (uint32_t)__builtin_popcount(program->dims);
    for (uint32_t e = 0; e < program->estimators && possible; e++) {
        uint32_t box = program->first_box[e], n = program->first_box[e + 1] - box,
                 left = program->estimators - e - 1;
        uint64_t alive, certain;
        bw_boxes_zones(task->segment, search->kernels, first, program->boxes + box, n,
                       task->scratch->overlaps + box, &alive, &certain);
        counter_add(upper, search->planes, 1, &alive);
        counter_add(lower, search->planes, 1, &certain);
        task->scratch->open[e] = alive & ~certain;
        if (search->threshold > left) {
            counter_reaches(upper, search->planes, 1, search->threshold - left, &possible);
            possible &= valid;
        }
    }
    if (search->threshold > program->estimators) {
        possible = 0; /* some estimators have no boxes */
    }
    counter_reaches(lower, search->planes, 1, search->threshold, &whole);
    whole = search->score.has_threshold ? 0 : whole & possible;
    task->stats.blocks_pruned += (uint32_t)__builtin_popcountll(valid & ~possible);
    task->stats.blocks_contained += (uint32_t)__builtin_popcountll(whole);
    task->stats.blocks_scanned += (uint32_t)__builtin_popcountll(possible & ~whole);
    for (uint64_t left = possible; left; left &= left - 1) {
        uint32_t bit = (uint32_t)__builtin_ctzll(left);
        if (!task->batch && whole >> bit & 1) {
            task->stats.rows += bw_segment_block_rows(task->segment, first + bit);
            continue;
        }
        uint32_t certain = counter_read(lower, search->planes, 1, bit);
        uint32_t open = counter_read(upper, search->planes, 1, bit) - certain;
        search_block(task, first + bit, bit, certain, open);
    }
}

/* ---- one morsel ---- */

static void scratch_free(scratch *s) {
    if (s) {
        bw_free(s->overlaps);
        bw_free(s->open);
        bw_free(s);
    }
}

static int32_t scratch_new(const bw_search *search, scratch **made, bw_error *error) {
    const bw_program *program = &search->program;
    size_t boxes = program->first_box[program->estimators];
    scratch *s = bw_alloc_zero(1, sizeof *s);
    if (s) {
        s->overlaps = bw_alloc_array(boxes, sizeof *s->overlaps);
        s->open = bw_alloc_array(program->estimators, sizeof *s->open);
    }
    if (!s || !s->overlaps || !s->open) {
        scratch_free(s);
        return bw_fail_nomem(error, sizeof *s + boxes * sizeof(uint64_t));
    }
    *made = s;
    return BW_OK;
}

/* Takes the next morsel and searches it; false when none is left. */
static bool search_morsel(bw_search *search, scratch *scratch, bw_batch *batch, uint64_t *morsel) {
    uint64_t number = atomic_fetch_add_explicit(&search->next, 1, memory_order_relaxed);
    if (number >= search->morsels) {
        return false;
    }
    uint32_t low = 0, high = search->index->info.segments;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (search->first_morsels[middle] <= number) {
            low = middle;
        } else {
            high = middle;
        }
    }
    task t = {.search = search, .segment = search->index->segments[low], .scratch = scratch};
    t.batch = search->count_only ? NULL : batch;
    t.want_scores = search->score.has_threshold || (t.batch && batch->scores);
    t.want_votes =
        (t.batch && batch->votes) || (t.want_scores && (!search->has_score || search->score.votes != 0));
    uint32_t first = (uint32_t)(number - search->first_morsels[low]) * MORSEL_BLOCKS;
    for (uint32_t b = first; b < first + MORSEL_BLOCKS && b < t.segment->blocks; b += BW_GROUP_BLOCKS) {
        search_group(&t, b);
    }
    atomic_fetch_add_explicit(&search->rows, t.stats.rows, memory_order_relaxed);
    atomic_fetch_add_explicit(&search->pruned, t.stats.blocks_pruned, memory_order_relaxed);
    atomic_fetch_add_explicit(&search->contained, t.stats.blocks_contained, memory_order_relaxed);
    atomic_fetch_add_explicit(&search->scanned, t.stats.blocks_scanned, memory_order_relaxed);
    atomic_fetch_add_explicit(&search->bytes, t.stats.bytes, memory_order_relaxed);
    uint64_t now = bw_now() - search->opened;
    uint64_t last = atomic_load_explicit(&search->nanoseconds, memory_order_relaxed);
    while (last < now && !atomic_compare_exchange_weak(&search->nanoseconds, &last, now)) {
    }
    if (morsel) {
        *morsel = number;
    }
    return true;
}

/* ---- the object ---- */

int32_t bw_search_open(const bw_index *index, const bw_model *model, uint32_t flags, bw_search **search,
                       bw_error *error) {
    if (!index || !model || !search) {
        return bw_fail(error, BW_INVALID, "a search needs an index, a model and a place for the result");
    }
    if (flags & ~(uint32_t)BW_COUNT_ONLY) {
        return bw_fail(error, BW_INVALID, "unknown search flags 0x%x: use 0 or BW_COUNT_ONLY", flags);
    }
    const char *ours = index->info.fingerprints.quantizer;
    if (model->quantizer[0] && strncmp(model->quantizer, ours, BW_FINGERPRINT_BYTES) != 0) {
        return bw_fail(error, BW_MISMATCH,
                       "the model is for codes of quantizer \"%.32s\", but the index holds codes of "
                       "quantizer \"%.32s\": "
                       "train it again on this collection, or search the collection it was trained on",
                       model->quantizer, ours);
    }
    uint64_t opened = bw_now();
    bw_search *s = bw_alloc_zero(1, sizeof *s);
    if (!s) {
        return bw_fail_nomem(error, sizeof *s);
    }
    s->opened = opened;
    s->kernels = bw_kernels_get();
    s->count_only = flags & BW_COUNT_ONLY;
    s->threshold = model->threshold;
    s->has_score = model->has_score;
    bw_sample sample = {0};
    int32_t status = bw_sample_draw(index, BW_BLOCK_ROWS, &sample, error);
    if (status == BW_OK) {
        status = bw_program_make(model, &sample, s->kernels, &s->program, error);
    }
    bw_free(sample.codes);
    if (status != BW_OK) {
        bw_search_close(s);
        return status;
    }
    s->planes = s->program.estimators ? 32 - (uint32_t)__builtin_clz(s->program.estimators) : 1;
    s->first_morsels = bw_alloc_array((size_t)index->info.segments + 1, sizeof *s->first_morsels);
    if (model->has_score) {
        s->score = model->score;
        s->table = bw_alloc_array(BW_DIMS * 256, sizeof *s->table);
    }
    if (!s->first_morsels || (model->has_score && !s->table)) {
        bw_search_close(s);
        return bw_fail_nomem(error, BW_DIMS * 256 * sizeof(int64_t));
    }
    if (model->has_score) {
        bw_score_table(&model->score, s->table);
    }
    for (uint32_t i = 0; i < index->info.segments; i++) {
        s->first_morsels[i] = s->morsels;
        s->morsels += (index->segments[i]->blocks + (uint64_t)MORSEL_BLOCKS - 1) / MORSEL_BLOCKS;
    }
    s->first_morsels[index->info.segments] = s->morsels;
    s->index = bw_index_retain(index);
    *search = s;
    return BW_OK;
}

void bw_search_close(bw_search *search) {
    if (search) {
        bw_index_close((bw_index *)search->index);
        bw_program_free(&search->program);
        bw_free(search->table);
        bw_free(search->first_morsels);
        bw_free(search);
    }
}

uint64_t bw_search_morsels(const bw_search *search) {
    return search ? search->morsels : 0;
}

int32_t bw_search_next(bw_search *search, bw_batch *batch, uint64_t *morsel, bw_error *error) {
    if (!search || (!batch && !search->count_only)) {
        return bw_fail(error, BW_INVALID,
                       "the next rows of a search need a search and a batch to put them in");
    }
    if (batch) {
        batch->rows = 0;
    }
    if (atomic_load_explicit(&search->next, memory_order_relaxed) >= search->morsels) {
        return BW_OK;
    }
    scratch *scratch;
    int32_t status = scratch_new(search, &scratch, error);
    if (status == BW_OK) {
        while (search_morsel(search, scratch, batch, morsel) && (search->count_only || batch->rows == 0)) {
        }
        scratch_free(scratch);
    }
    return status;
}

void bw_search_stats(const bw_search *search, bw_stats *stats) {
    stats->rows = atomic_load(&search->rows);
    stats->blocks = search->index->first_blocks[search->index->info.segments];
    stats->blocks_pruned = atomic_load(&search->pruned);
    stats->blocks_contained = atomic_load(&search->contained);
    stats->blocks_scanned = atomic_load(&search->scanned);
    stats->bytes = atomic_load(&search->bytes);
    stats->nanoseconds = atomic_load(&search->nanoseconds);
}

/* ---- a whole search ---- */

typedef struct run {
    bw_search *search;
    bw_rows *pieces; /* for each morsel, its rows; NULL when only counting */
    const volatile int32_t *cancel;
    _Atomic int32_t status; /* the first failure, which stops the others */
    bw_error error;         /* its message; written by whoever set the status */
} run;

static void rows_release(bw_rows *rows) {
    bw_free(rows->ids);
    bw_free(rows->votes);
    bw_free(rows->scores);
    memset(rows, 0, sizeof *rows);
}

static bool rows_allocate(bw_rows *rows, uint64_t n) {
    rows->rows = n;
    rows->ids = bw_alloc_array(n, sizeof *rows->ids);
    rows->votes = bw_alloc_array(n, sizeof *rows->votes);
    rows->scores = bw_alloc_array(n, sizeof *rows->scores);
    if (!rows->ids || !rows->votes || !rows->scores) {
        rows_release(rows);
        return false;
    }
    return true;
}

static void rows_copy(bw_rows *to, uint64_t at, const bw_rows *from) {
    memcpy(to->ids + at, from->ids, from->rows * sizeof *to->ids);
    memcpy(to->votes + at, from->votes, from->rows * sizeof *to->votes);
    memcpy(to->scores + at, from->scores, from->rows * sizeof *to->scores);
}

void bw_rows_free(bw_rows *rows) {
    if (rows) {
        rows_release(rows);
        bw_free(rows);
    }
}

static void run_fail(run *run, int32_t status, const bw_error *error) {
    int32_t none = BW_OK;
    if (atomic_compare_exchange_strong(&run->status, &none, status)) {
        run->error = *error;
    }
}

static void run_worker(void *context, uint32_t worker) {
    (void)worker;
    run *run = context;
    bw_error error = {0};
    bw_rows buffer = {0};
    scratch *scratch = NULL;
    int32_t status = scratch_new(run->search, &scratch, &error);
    if (status == BW_OK && run->pieces && !rows_allocate(&buffer, BW_MORSEL_ROWS)) {
        status = bw_fail_nomem(&error, BW_MORSEL_ROWS * 20);
    }
    while (status == BW_OK && atomic_load_explicit(&run->status, memory_order_relaxed) == BW_OK) {
        if (run->cancel && *run->cancel) {
            status = bw_fail(&error, BW_CANCELLED, "the search was cancelled");
            break;
        }
        bw_batch batch = {0, buffer.ids, buffer.votes, buffer.scores};
        uint64_t morsel;
        if (!search_morsel(run->search, scratch, &batch, &morsel)) {
            break;
        }
        if (batch.rows > 0) {
            bw_rows found = buffer;
            found.rows = batch.rows;
            if (rows_allocate(&run->pieces[morsel], batch.rows)) {
                rows_copy(&run->pieces[morsel], 0, &found);
            } else {
                status = bw_fail_nomem(&error, batch.rows * 20);
            }
        }
    }
    if (status != BW_OK) {
        run_fail(run, status, &error);
    }
    rows_release(&buffer);
    scratch_free(scratch);
}

/* Joins the pieces in morsel order, releasing them. */
static int32_t run_join(run *run, bw_rows **rows, bw_error *error) {
    uint64_t n = 0;
    for (uint64_t m = 0; m < run->search->morsels; m++) {
        n += run->pieces[m].rows;
    }
    bw_rows *all = bw_alloc_zero(1, sizeof *all);
    if (!all || !rows_allocate(all, n)) {
        bw_free(all);
        return bw_fail_nomem(error, n * 20);
    }
    uint64_t at = 0;
    for (uint64_t m = 0; m < run->search->morsels; m++) {
        uint64_t piece = run->pieces[m].rows;
        if (piece > 0) {
            rows_copy(all, at, &run->pieces[m]);
            rows_release(&run->pieces[m]);
            at += piece;
        }
    }
    *rows = all;
    return BW_OK;
}

int32_t bw_search_run(const bw_index *index, const bw_model *model, uint32_t flags, uint32_t threads,
                      const volatile int32_t *cancel, bw_rows **rows, bw_stats *stats, bw_error *error) {
    bool count_only = flags & BW_COUNT_ONLY;
    if (!rows && !count_only) {
        return bw_fail(error, BW_INVALID, "a search that does not only count needs a place for its rows");
    }
    run run = {.cancel = cancel};
    int32_t status = bw_search_open(index, model, flags, &run.search, error);
    if (status != BW_OK) {
        return status;
    }
    uint64_t morsels = run.search->morsels;
    if (rows) {
        run.pieces = bw_alloc_zero(morsels, sizeof *run.pieces);
        if (!run.pieces) {
            bw_search_close(run.search);
            return bw_fail_nomem(error, morsels * sizeof *run.pieces);
        }
    }
    threads = bw_thread_count(threads);
    bw_parallel(threads < morsels ? threads : morsels ? (uint32_t)morsels : 1, run_worker, &run);
    status = atomic_load(&run.status);
    if (status != BW_OK) {
        if (error) {
            *error = run.error;
        }
    } else if (rows) {
        status = run_join(&run, rows, error);
    }
    if (status == BW_OK && stats) {
        bw_search_stats(run.search, stats);
    }
    for (uint64_t m = 0; run.pieces && m < morsels; m++) {
        rows_release(&run.pieces[m]);
    }
    bw_free(run.pieces);
    bw_search_close(run.search);
    return status;
}
