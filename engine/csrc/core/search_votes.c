/* search_votes.c - a search: morsels handed out to threads, votes of the estimators, scores, matching rows.
 *
 * A row goes through up to three stages: votes of boxes, the score of its code, the score of its fine code.
 * The first two in the order that the path says; fine codes are read of the rows that are left alone, some
 * while after they have been asked for from memory.
 *
 * Votes are counted for 64 blocks or 256 rows at once in bit-sliced counters: digit p holds bit p of every
 * count.
 *
 * What the statistics mean: a block is contained when its zones alone say that all its rows match, even if
 * codes are then read for their votes or scores; it is scanned when its codes were read to find out. Bytes
 * are 64 for each word of 64 rows and column that a block's boxes looked at, once a block; all 32 columns of
 * 64 rows, or 32 for each row, where scores were computed, though columns that could not matter any more were
 * left unread; 96 for each dimension of a block's planes; 128 for each fine code; and for each group of
 * blocks the zones of the dimensions of boxes and score, 128 each. */
#include "search.h"

#include <stdatomic.h>
#include <string.h>

#define DIGITS BW_VOTE_DIGITS
#define MORSEL_BLOCKS (BW_MORSEL_ROWS / BW_BLOCK_ROWS)
#define CODES_AHEAD 4      /* blocks whose columns are fetched before they are looked at */
#define IDS_AHEAD 32       /* ids that are fetched before they are needed */
#define FETCH_BOXES 64     /* so few boxes are asked which columns they will look at */
#define FETCH_AHEAD 4      /* blocks whose planes come in from memory while earlier ones are tested */
#define FIRST_ROOM_SHARE 8 /* room for one row in so many at first, */
#define FIRST_ROOM_MOST ((uint64_t)1 << 22) /* but for no more rows than these */
#define FETCH_DIMS 8                        /* of each term of a score, whose columns are fetched ahead */
#define FAR_SCORE ((int64_t)1 << 54)        /* beyond every score */
#define FINE_ROOM 768                       /* rows whose fine codes are on their way from memory, or in it */
#define IDLE 64 /* scratches kept for the next call: as many as there may be threads */

_Static_assert(BW_MAX_ESTIMATORS < 1 << DIGITS, "votes must fit the counter");
_Static_assert(MORSEL_BLOCKS % BW_GROUP_BLOCKS == 0, "a morsel is a number of whole groups");

/* What one thread needs during a morsel. */
typedef struct scratch {
    uint64_t *overlaps; /* for each box: blocks of the group that may hold rows of it */
    uint64_t *open;     /* for each estimator: blocks where only rows tell whom it votes for */
    uint64_t *alive;    /* and blocks where it votes for any */
    int64_t scores[BW_BLOCK_ROWS];
    bw_score_group *score;   /* of the group in hand; NULL where no score cuts */
    uint32_t waiting;        /* rows that have passed all but the fine score, */
    uint32_t row[FINE_ROOM]; /* numbers in the segment, ascending, */
    int32_t votes[FINE_ROOM];
    /* Only on the path of planes: */
    bw_planes planes;
    const bw_segment *binned;             /* what `planes` is set for */
    uint64_t reached[BW_GROUP_BLOCKS][4]; /* rows that planes leave, of the blocks that have any */
    uint8_t *gathered;                   /* such rows of several blocks side by side: BW_GATHER_STRIDE * 32 */
    uint32_t origin[BW_BLOCK_ROWS + 64]; /* their numbers in the segment */
} scratch;

struct bw_search {
    const bw_index *index; /* own hold */
    const bw_kernels *kernels;
    bw_program program;
    bw_estimate estimate;
    uint32_t digits; /* enough for the votes of all estimators */
    uint32_t threshold;
    bool count_only;
    bool places; /* batches get places for ids */
    bool has_fine_cut;
    bw_score *score; /* NULL: none */
    bw_scorer *scorer;
    bool cuts;           /* the score has a threshold */
    int64_t least_score; /* that threshold, brought near the scores that there may be */
    uint32_t score_dims; /* dimensions that the score looks at: how many, */
    uint32_t first_dims; /* and which first, as bits */
    bw_score *fine;
    bw_fine_scorer *fine_scorer;
    uint64_t *first_morsels; /* segments + 1 entries */
    uint64_t morsels;
    uint64_t opened; /* bw_now() */
    _Atomic(scratch *) idle[IDLE];
    _Atomic uint64_t next;
    _Atomic uint64_t rows, pruned, outscored, contained, planes, scanned, fine_rows, bytes, nanoseconds;
};

/* One morsel's work: where matching rows go, and what was done. */
typedef struct task {
    const bw_search *search;
    const bw_segment *segment;
    const bw_dead *dead; /* rows of the segment */
    scratch *scratch;
    bw_batch *batch;      /* NULL: only count */
    uint64_t first_place; /* the place of the segment's first row */
    bool want_votes;      /* exact votes are needed, for the caller or for the score */
    bool want_scores;     /* of codes */
    bool want_fine;
    uint64_t tests; /* of a box on a block's codes */
    bw_stats stats;
} task;

/* ---- bit-sliced counters: `words` words a digit ---- */

static inline void counter_add(uint64_t *counter, uint32_t digits, uint32_t words, const uint64_t *bits) {
    uint64_t carry[4];
    memcpy(carry, bits, words * sizeof *carry);
    for (uint32_t p = 0; p < digits; p++) {
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
static inline void counter_reaches(const uint64_t *counter, uint32_t digits, uint32_t words, uint32_t n,
                                   uint64_t *reached) {
    memset(reached, n >> digits ? 0 : 255, words * sizeof *reached);
    for (uint32_t p = 0; p < digits && !(n >> digits); p++) {
        for (uint32_t w = 0; w < words; w++) {
            uint64_t plane = counter[p * words + w];
            reached[w] = n >> p & 1 ? reached[w] & plane : reached[w] | plane;
        }
    }
}

static inline uint32_t counter_read(const uint64_t *counter, uint32_t digits, uint32_t words,
                                    uint32_t place) {
    uint32_t count = 0;
    for (uint32_t p = 0; p < digits; p++) {
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

/* ---- 256 rows at most ---- */

/* Rows of one block, or such as planes left of several blocks of a group. */
typedef struct rows {
    const uint8_t *codes; /* dimension d's column starts at codes + d * stride */
    size_t stride;
    uint64_t match[4];      /* rows that may match */
    uint64_t blocks;        /* those that the rows are of, as bits of the group */
    const uint64_t *asked;  /* scratch's open or alive: whose votes the rows are asked for; */
    uint32_t undecided;     /* so many estimators are, */
    uint32_t certain;       /* and so many have voted for all of the rows */
    uint32_t first;         /* number of the first row in the segment, where there is no */
    const uint32_t *origin; /* number of each row */
    bool scored;            /* scratch->scores has the scores of rows that may match */
} rows;

/* The rows that an estimator votes for, of those that may match. Returns the dimensions of the boxes that
 * were tried, as bits. */
static uint32_t scan_boxes(task *task, uint32_t estimator, const rows *r, uint64_t mask[4]) {
    const bw_program *program = &task->search->program;
    const bw_kernels *kernels = task->search->kernels;
    const uint64_t *overlaps = task->scratch->overlaps;
    uint32_t dims = 0;
    uint64_t rest[4], inside[4];
    memcpy(rest, r->match, sizeof rest);
    for (uint32_t i = program->first_box[estimator]; i < program->first_box[estimator + 1]; i++) {
        if (!(overlaps[i] & r->blocks)) {
            continue;
        }
        dims |= program->box_dims[i];
        task->tests++;
        if (kernels->box(r->codes, r->stride, &program->boxes[i], rest, inside)) {
            for (int w = 0; w < 4; w++) {
                rest[w] &= ~inside[w];
            }
            if (!any_of(rest)) {
                break;
            }
        }
    }
    for (int w = 0; w < 4; w++) {
        mask[w] = r->match[w] & ~rest[w];
    }
    return dims;
}

/* Leaves in r->match the rows that reach the threshold; `counter` gets their votes of the undecided
 * estimators. False as soon as no row can reach it any more. */
static bool count_votes(task *task, rows *r, uint64_t counter[DIGITS * 4], uint32_t digits, uint32_t *dims) {
    const bw_program *program = &task->search->program;
    uint32_t threshold = task->search->threshold, left = r->undecided;
    uint32_t need = threshold > r->certain ? threshold - r->certain : 0;
    memset(counter, 0, (size_t)digits * 4 * sizeof *counter);
    for (uint32_t e = 0; left > 0 && e < program->estimators; e++) {
        if (!(r->asked[e] & r->blocks)) {
            continue;
        }
        uint64_t mask[4];
        *dims |= scan_boxes(task, e, r, mask);
        counter_add(counter, digits, 4, mask);
        left--;
        if (need > left) { /* a row that has none of the votes so far may be out */
            uint64_t reached[4];
            counter_reaches(counter, digits, 4, need - left, reached);
            for (int w = 0; w < 4; w++) {
                r->match[w] &= reached[w];
            }
            if (!any_of(r->match)) {
                return false;
            }
        }
    }
    return true;
}

/* Scores of the rows that match, without their votes, to scratch->scores. */
static void find_scores(task *task, rows *r) {
    const bw_search *search = task->search;
    int64_t *scores = task->scratch->scores;
    if (search->scorer->exact) {
        bw_scorer_rows(search->scorer, search->kernels, r->codes, r->stride, NULL, 0, r->match, scores);
    }
    for (uint32_t w = 0; w < 4; w++) {
        for (uint64_t left = r->match[w]; left && !search->scorer->exact; left &= left - 1) {
            uint32_t row = 64 * w + (uint32_t)__builtin_ctzll(left);
            scores[row] = bw_score_terms(search->score, BW_DIMS, r->codes + row, r->stride);
        }
    }
    task->stats.bytes += r->origin ? 0 : count_of(r->match) * BW_DIMS;
}

/* Rows of the segment that match go to the caller. */
static void give(task *task, const uint32_t *row, const int64_t *votes, const int64_t *scores, uint32_t n) {
    bw_batch *batch = task->batch;
    task->stats.rows += n;
    if (!batch) {
        return;
    }
    uint64_t to = batch->rows;
    batch->rows += n;
    for (uint32_t i = 0; batch->ids && i < n; i++) { /* rows for now; name_rows makes ids of them */
        batch->ids[to + i] = row[i];
    }
    for (uint32_t i = 0; batch->votes && i < n; i++) {
        batch->votes[to + i] = (int32_t)votes[i];
    }
    for (uint32_t i = 0; batch->scores && i < n; i++) {
        batch->scores[to + i] = scores[i];
    }
}

/* Decides about the rows that wait for their fine scores. */
static void settle_fine(task *task) {
    const bw_search *search = task->search;
    scratch *scratch = task->scratch;
    uint32_t row[FINE_ROOM], n = 0;
    int64_t votes[FINE_ROOM], scores[FINE_ROOM];
    for (uint32_t i = 0; i < scratch->waiting; i++) {
        const uint8_t *code = task->segment->fine + (size_t)scratch->row[i] * BW_FINE_DIMS;
        if (bw_fine_score(search->fine_scorer, search->fine, search->kernels, code, &scores[n])) {
            row[n] = scratch->row[i];
            votes[n++] = scratch->votes[i];
        }
    }
    task->stats.fine_rows += scratch->waiting;
    task->stats.bytes += (uint64_t)scratch->waiting * BW_FINE_DIMS;
    scratch->waiting = 0;
    give(task, row, votes, scores, n);
}

static void ask_fine(task *task, const uint32_t *row, const int64_t *votes, uint32_t n) {
    scratch *scratch = task->scratch;
    if (scratch->waiting + n > FINE_ROOM) {
        settle_fine(task);
    }
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *code = task->segment->fine + (size_t)row[i] * BW_FINE_DIMS;
        __builtin_prefetch(code);
        __builtin_prefetch(code + 64);
        scratch->row[scratch->waiting] = row[i];
        scratch->votes[scratch->waiting++] = (int32_t)votes[i];
    }
}

/* Decides which of the rows match, and hands them out. */
static void settle(task *task, rows *r) {
    const bw_search *search = task->search;
    uint64_t counter[DIGITS * 4];
    uint32_t digits = 0, dims = 0;
    bool some = true;
    if (r->undecided > 0 && (r->certain < search->threshold || task->want_votes)) {
        digits = 32 - (uint32_t)__builtin_clz(r->undecided);
        some = count_votes(task, r, counter, digits, &dims);
    }
    bool scored = search->score && task->want_scores;
    if (!r->origin) { /* gathering has been accounted for */
        task->stats.bytes += (uint64_t)BW_BLOCK_ROWS * (uint32_t)__builtin_popcount(dims);
    }
    if (!some) {
        return;
    }
    if (scored && !r->scored) {
        find_scores(task, r);
    }
    if (!task->batch && !search->cuts && !task->want_fine) {
        task->stats.rows += count_of(r->match);
        return;
    }
    uint8_t places[BW_BLOCK_ROWS];
    uint32_t n = 0;
    for (uint32_t w = 0; w < 4; w++) {
        for (uint64_t left = r->match[w]; left; left &= left - 1) {
            uint32_t place = 64 * w + (uint32_t)__builtin_ctzll(left);
            places[n++] = (uint8_t)place;
        }
    }
    int64_t votes[BW_BLOCK_ROWS], scores[BW_BLOCK_ROWS];
    uint32_t row[BW_BLOCK_ROWS];
    for (uint32_t i = 0; i < n; i++) {
        votes[i] = task->want_votes ? r->certain + counter_read(counter, digits, 4, places[i]) : 0;
        scores[i] = scored ? task->scratch->scores[places[i]] + votes[i] * search->score->votes : votes[i];
    }
    if (search->cuts) {
        uint32_t kept = 0;
        for (uint32_t i = 0; i < n; i++) {
            places[kept] = places[i];
            votes[kept] = votes[i];
            scores[kept] = scores[i];
            kept += scores[i] >= search->score->threshold;
        }
        n = kept;
    }
    for (uint32_t i = 0; i < n; i++) {
        row[i] = r->origin ? r->origin[places[i]] : r->first + places[i];
    }
    if (task->want_fine) {
        ask_fine(task, row, votes, n);
    } else {
        give(task, row, votes, scores, n);
    }
}

/* ---- one group of 64 blocks ---- */

/* What the zones say of a group's blocks, one bit each. */
typedef struct group {
    uint32_t first;
    uint64_t valid;
    uint64_t possible;                     /* rows may match */
    uint64_t outscored;                    /* of the others: by votes they might */
    uint64_t enough;                       /* of those: all rows have the votes */
    uint64_t whole;                        /* of those: all rows match */
    uint64_t upper[DIGITS], lower[DIGITS]; /* votes that a row may have, and that it must have */
} group;

/* Blocks in which a row's score may reach the threshold, with as many votes as its block may have. */
static uint64_t score_zones(task *task, const group *g) {
    const bw_search *search = task->search;
    const bw_score *score = search->score;
    int64_t threshold[BW_GROUP_BLOCKS];
    for (uint32_t i = 0; i < (score->votes ? BW_GROUP_BLOCKS : 1); i++) {
        const uint64_t *votes = score->votes > 0 ? g->upper : g->lower;
        int64_t most = score->votes ? score->votes * counter_read(votes, search->digits, 1, i) : 0;
        threshold[i] = search->least_score - most;
    }
    task->stats.bytes += (uint64_t)2 * BW_GROUP_BLOCKS * search->score_dims;
    return bw_scorer_zones(search->scorer, search->kernels, task->segment, g->first, threshold,
                           score->votes == 0, g->possible, task->scratch->score);
}

static void group_zones(task *task, uint32_t first, group *g) {
    const bw_search *search = task->search;
    const bw_program *program = &search->program;
    uint32_t blocks = task->segment->blocks - first;
    memset(g, 0, sizeof *g);
    g->first = first;
    g->valid = blocks < BW_GROUP_BLOCKS ? ((uint64_t)1 << blocks) - 1 : ~(uint64_t)0;
    g->possible = g->valid;
    if (search->estimate.path != BW_PATH_SCAN) {
        task->stats.bytes += (uint64_t)2 * BW_GROUP_BLOCKS * (uint32_t)__builtin_popcount(program->dims);
    }
    for (uint32_t e = 0; e < program->estimators && g->possible; e++) {
        uint32_t box = program->first_box[e], n = program->first_box[e + 1] - box,
                 left = program->estimators - e - 1;
        uint64_t alive = ~(uint64_t)0, certain = 0;
        if (search->estimate.path == BW_PATH_SCAN) {
            memset(task->scratch->overlaps + box, 255, n * sizeof(uint64_t));
        } else {
            bw_boxes_zones(task->segment, search->kernels, first, program->boxes + box, n,
                           task->scratch->overlaps + box, &alive, &certain);
        }
        counter_add(g->upper, search->digits, 1, &alive);
        counter_add(g->lower, search->digits, 1, &certain);
        task->scratch->alive[e] = alive;
        task->scratch->open[e] = alive & ~certain;
        if (search->threshold > left) {
            uint64_t reached;
            counter_reaches(g->upper, search->digits, 1, search->threshold - left, &reached);
            g->possible &= reached;
        }
    }
    if (search->threshold > program->estimators) {
        g->possible = 0; /* some estimators have no boxes */
    }
    counter_reaches(g->lower, search->digits, 1, search->threshold, &g->enough);
    if (search->cuts && g->possible && search->estimate.path != BW_PATH_SCAN) {
        uint64_t possible = score_zones(task, g);
        g->outscored = g->possible & ~possible;
        g->possible = possible;
    }
    g->enough &= g->possible;
    g->whole = search->cuts || search->has_fine_cut ? 0 : g->enough;
}

static void prefetch_planes(const uint8_t *planes, uint32_t dims) {
    for (; dims; dims &= dims - 1) {
        const uint8_t *at = planes + (size_t)(uint32_t)__builtin_ctz(dims) * 3 * BW_PLANE_BYTES;
        __builtin_prefetch(at);
        __builtin_prefetch(at + 64);
    }
}

/* Tests the planes of `blocks`, two by two, while the next two come in from memory. Returns those that have
 * rows left, which are in scratch->reached. */
static uint64_t group_planes(task *task, const group *g, uint64_t blocks) {
    const bw_search *search = task->search;
    scratch *scratch = task->scratch;
    uint64_t candidates = 0;
    if (!blocks) {
        return 0;
    }
    if (scratch->binned != task->segment) {
        bw_planes_set(&scratch->planes, &search->program, search->threshold, task->segment);
        scratch->binned = task->segment;
    }
    const uint8_t *planes = (const uint8_t *)bw_segment_planes(task->segment, g->first);
    uint32_t dims = scratch->planes.program.dims;
    uint64_t ahead = blocks;
    for (int i = 0; ahead && i < FETCH_AHEAD; i++, ahead &= ahead - 1) {
        prefetch_planes(planes + (size_t)(uint32_t)__builtin_ctzll(ahead) * BW_BLOCK_PLANES_BYTES, dims);
    }
    bw_planes_group(&scratch->planes, scratch->overlaps);
    task->stats.blocks_planes += (uint32_t)__builtin_popcountll(blocks);
    task->stats.bytes +=
        (uint64_t)__builtin_popcountll(blocks) * 3 * BW_PLANE_BYTES * (uint32_t)__builtin_popcount(dims);
    for (uint64_t left = blocks; left;) {
        uint32_t pair[2];
        uint64_t reached[2][4];
        const uint8_t *next[2];
        pair[0] = (uint32_t)__builtin_ctzll(left);
        left &= left - 1;
        pair[1] = left ? (uint32_t)__builtin_ctzll(left) : pair[0];
        left &= left - 1;
        bool more = ahead != 0;
        for (int k = 0; more && k < 2; k++) {
            next[k] =
                ahead ? planes + (size_t)(uint32_t)__builtin_ctzll(ahead) * BW_BLOCK_PLANES_BYTES : next[0];
            ahead &= ahead - 1;
        }
        if (!search->kernels->planes(bw_segment_planes(task->segment, g->first + pair[0]),
                                     bw_segment_planes(task->segment, g->first + pair[1]), more ? next : NULL,
                                     &scratch->planes.program, scratch->planes.overlaps,
                                     (uint64_t)1 << pair[0] | (uint64_t)1 << pair[1], scratch->planes.work,
                                     reached)) {
            continue;
        }
        for (int k = 0; k < 2; k++) {
            uint64_t rows[4];
            first_bits(bw_segment_block_rows(task->segment, g->first + pair[k]), rows);
            bw_keep_live(task->dead, g->first + pair[k], rows);
            for (int w = 0; w < 4; w++) {
                scratch->reached[pair[k]][w] = reached[k][w] & rows[w];
            }
            if (any_of(scratch->reached[pair[k]])) {
                candidates |= (uint64_t)1 << pair[k];
            }
        }
    }
    return candidates;
}

/* Leaves of a block's rows those whose score may reach the threshold. */
static bool score_block(task *task, uint32_t bit, rows *r) {
    const bw_search *search = task->search;
    r->scored = search->scorer->exact;
    task->stats.bytes += BW_BLOCK_ROWS * search->score_dims;
    return bw_scorer_rows(search->scorer, search->kernels, r->codes, r->stride, task->scratch->score, bit,
                          r->match, task->scratch->scores);
}

/* A whole block: `certain` of the estimators alive on it vote for all its rows. */
static void settle_block(task *task, const group *g, uint32_t bit) {
    const bw_search *search = task->search;
    rows r = {.blocks = (uint64_t)1 << bit, .asked = task->scratch->open};
    r.codes = bw_segment_block(task->segment, g->first + bit);
    r.stride = BW_BLOCK_ROWS;
    r.first = (g->first + bit) * BW_BLOCK_ROWS;
    r.certain = counter_read(g->lower, search->digits, 1, bit);
    r.undecided = counter_read(g->upper, search->digits, 1, bit) - r.certain;
    first_bits(bw_segment_block_rows(task->segment, g->first + bit), r.match);
    bw_keep_live(task->dead, g->first + bit, r.match);
    if (!any_of(r.match)) {
        return;
    }
    if (search->estimate.path != BW_PATH_SCORE || score_block(task, bit, &r)) {
        settle(task, &r);
    }
}

/* Rows that planes left: `count` of them have been gathered, of `blocks`. */
static void settle_gathered(task *task, uint32_t count, uint64_t blocks) {
    scratch *scratch = task->scratch;
    rows r = {.codes = scratch->gathered, .stride = BW_GATHER_STRIDE, .blocks = blocks};
    r.origin = scratch->origin;
    r.asked = scratch->alive;
    for (uint32_t e = 0; e < task->search->program.estimators; e++) {
        r.undecided += (scratch->alive[e] & blocks) != 0;
    }
    first_bits(count, r.match);
    settle(task, &r);
}

/* Appends what planes left of a block. */
static void gather(task *task, uint32_t number, const uint64_t wanted[4], uint32_t *count) {
    scratch *scratch = task->scratch;
    const uint8_t *block = bw_segment_block(task->segment, number);
    uint32_t dims = task->want_scores && task->search->score ? UINT32_MAX : task->search->program.dims;
    for (uint32_t w = 0; w < 4; w++) {
        if (!wanted[w]) {
            continue;
        }
        task->search->kernels->gather(block + 64 * w, BW_BLOCK_ROWS, dims, wanted[w],
                                      scratch->gathered + *count);
        task->stats.bytes += (uint64_t)64 * (uint32_t)__builtin_popcount(dims);
        for (uint64_t left = wanted[w]; left; left &= left - 1) {
            scratch->origin[(*count)++] = number * BW_BLOCK_ROWS + 64 * w + (uint32_t)__builtin_ctzll(left);
        }
    }
}

/* A block's columns are short and far apart, so that the hardware does not see them coming. Of each column
 * the lines with wanted rows. */
static void prefetch_codes(const bw_segment *segment, uint32_t number, uint32_t dims,
                           const uint64_t wanted[4]) {
    const uint8_t *block = bw_segment_block(segment, number);
    for (; dims; dims &= dims - 1) {
        const uint8_t *column = block + (size_t)__builtin_ctz(dims) * BW_BLOCK_ROWS;
        for (int w = 0; w < 4; w++) {
            if (!wanted || wanted[w]) {
                __builtin_prefetch(column + 64 * w);
            }
        }
    }
}

static inline __attribute__((always_inline)) void fetch_block(const task *task, const group *g,
                                                              uint64_t tested, uint32_t bit) {
    const bw_program *program = &task->search->program;
    bool apart = !(tested >> bit & 1);
    uint32_t dims = program->dims, boxes = bw_program_boxes(program);
    if (task->search->estimate.path == BW_PATH_SCORE) {
        dims = task->search->first_dims;
    } else if (apart && boxes <= FETCH_BOXES) {
        dims = 0;
        for (uint32_t i = 0; i < boxes; i++) {
            dims |= task->scratch->overlaps[i] >> bit & 1 ? program->box_dims[i] : 0;
        }
    }
    prefetch_codes(task->segment, g->first + bit, dims, apart ? NULL : task->scratch->reached[bit]);
}

static void search_group(task *task, uint32_t first) {
    const bw_search *search = task->search;
    group g;
    group_zones(task, first, &g);
    uint64_t tested = search->estimate.path == BW_PATH_PLANES ? g.possible & ~g.enough : 0;
    uint64_t open = (g.possible & ~tested) | group_planes(task, &g, tested);
    task->stats.blocks_pruned += (uint32_t)__builtin_popcountll(g.valid & ~g.possible);
    task->stats.blocks_outscored += (uint32_t)__builtin_popcountll(g.outscored);
    task->stats.blocks_contained += (uint32_t)__builtin_popcountll(g.whole);
    task->stats.blocks_scanned += (uint32_t)__builtin_popcountll(open & ~g.whole);
    uint32_t count = 0; /* rows gathered, */
    uint64_t of = 0;    /* of these blocks */
    uint64_t ahead = open & ~g.whole;
    for (int i = 0; ahead && i < CODES_AHEAD; i++, ahead &= ahead - 1) {
        fetch_block(task, &g, tested, (uint32_t)__builtin_ctzll(ahead));
    }
    for (uint64_t left = open; left; left &= left - 1) {
        if (ahead) {
            fetch_block(task, &g, tested, (uint32_t)__builtin_ctzll(ahead));
            ahead &= ahead - 1;
        }
        uint32_t bit = (uint32_t)__builtin_ctzll(left);
        if (!task->batch && g.whole >> bit & 1) {
            uint64_t rows[4];
            first_bits(bw_segment_block_rows(task->segment, first + bit), rows);
            bw_keep_live(task->dead, first + bit, rows);
            task->stats.rows += count_of(rows);
            continue;
        }
        bool apart = !(tested >> bit & 1);
        if (count > 0 && (apart || count + count_of(task->scratch->reached[bit]) > BW_BLOCK_ROWS)) {
            settle_gathered(task, count, of); /* rows go out in index order */
            count = 0;
            of = 0;
        }
        if (apart) {
            settle_block(task, &g, bit);
        } else {
            gather(task, first + bit, task->scratch->reached[bit], &count);
            of |= (uint64_t)1 << bit;
        }
    }
    if (count > 0) {
        settle_gathered(task, count, of);
    }
}

/* ---- one morsel ---- */

/* Ids in place of row numbers. They lie all over memory, so that they are fetched well before they are
 * needed. */
static void name_rows(const task *task) {
    const int64_t *ids = task->segment->ids;
    int64_t *rows = task->batch->ids;
    uint64_t n = task->batch->rows;
    for (uint64_t i = 0; i < n; i++) {
        if (i + IDS_AHEAD < n) {
            __builtin_prefetch(ids + rows[i + IDS_AHEAD]);
        }
        rows[i] = task->search->places ? (int64_t)task->first_place + rows[i] : ids[rows[i]];
    }
}

static void scratch_free(scratch *s) {
    if (s) {
        bw_free(s->overlaps);
        bw_free(s->open);
        bw_free(s->alive);
        bw_free(s->gathered);
        bw_free(s->score);
        bw_planes_free(&s->planes);
        bw_free(s);
    }
}

/* One that an earlier call left, or a new one. */
static int32_t scratch_take(bw_search *search, scratch **taken, bw_error *error) {
    for (int i = 0; i < IDLE; i++) {
        scratch *idle = atomic_exchange_explicit(&search->idle[i], NULL, memory_order_acquire);
        if (idle) {
            *taken = idle;
            return BW_OK;
        }
    }
    const bw_program *program = &search->program;
    size_t boxes = bw_program_boxes(program);
    scratch *s = bw_alloc_zero(1, sizeof *s);
    if (s) {
        s->overlaps = bw_alloc_array(boxes, sizeof *s->overlaps);
        s->open = bw_alloc_array(program->estimators, sizeof *s->open);
        s->alive = bw_alloc_array(program->estimators, sizeof *s->alive);
        s->score = search->cuts ? bw_alloc_array(1, sizeof *s->score) : NULL;
    }
    if (!s || !s->overlaps || !s->open || !s->alive || (search->cuts && !s->score)) {
        scratch_free(s);
        return bw_fail_nomem(error, sizeof *s + boxes * sizeof(uint64_t));
    }
    if (search->estimate.path == BW_PATH_PLANES) {
        int32_t status = bw_planes_new(program, &s->planes, error);
        s->gathered = bw_alloc_aligned(BW_GATHER_STRIDE * BW_DIMS);
        if (status == BW_OK && !s->gathered) {
            status = bw_fail_nomem(error, BW_GATHER_STRIDE * BW_DIMS);
        }
        if (status != BW_OK) {
            scratch_free(s);
            return status;
        }
    }
    *taken = s;
    return BW_OK;
}

static void scratch_give_back(bw_search *search, scratch *s) {
    for (int i = 0; i < IDLE && s; i++) {
        scratch *none = NULL;
        if (atomic_compare_exchange_strong_explicit(&search->idle[i], &none, s, memory_order_release,
                                                    memory_order_relaxed)) {
            s = NULL;
        }
    }
    scratch_free(s);
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
    t.dead = &search->index->dead[low];
    t.batch = search->count_only ? NULL : batch;
    t.first_place = search->index->first_blocks[low] * BW_BLOCK_ROWS;
    bool ranked = t.batch && batch->scores;
    t.want_fine = search->has_fine_cut || (search->fine && ranked);
    t.want_scores = search->cuts || (!search->fine && ranked);
    t.want_votes =
        (t.batch && batch->votes) || (t.want_scores && (!search->score || search->score->votes != 0));
    uint32_t first = (uint32_t)(number - search->first_morsels[low]) * MORSEL_BLOCKS;
    for (uint32_t b = first; b < first + MORSEL_BLOCKS && b < t.segment->blocks; b += BW_GROUP_BLOCKS) {
        search_group(&t, b);
    }
    if (scratch->waiting > 0) {
        settle_fine(&t);
    }
    if (t.batch && t.batch->ids) {
        name_rows(&t);
    }
    atomic_fetch_add_explicit(&search->rows, t.stats.rows, memory_order_relaxed);
    atomic_fetch_add_explicit(&search->pruned, t.stats.blocks_pruned, memory_order_relaxed);
    atomic_fetch_add_explicit(&search->outscored, t.stats.blocks_outscored, memory_order_relaxed);
    atomic_fetch_add_explicit(&search->contained, t.stats.blocks_contained, memory_order_relaxed);
    atomic_fetch_add_explicit(&search->planes, t.stats.blocks_planes, memory_order_relaxed);
    atomic_fetch_add_explicit(&search->scanned, t.stats.blocks_scanned, memory_order_relaxed);
    atomic_fetch_add_explicit(&search->fine_rows, t.stats.fine_rows, memory_order_relaxed);
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

/* ---- the choice of a path ---- */

/* What the steps of a search cost, in nanoseconds of one core (Zen 5, AVX-512). Round numbers, set by hand so
 * that the choice falls on the faster path in measurements with each path forced (bw_search_open_path):
 * ensembles of 25 to 93 boxes, trained ones among them, and single boxes, on 1,000,000 rows (in the cache for
 * the most part) and 10,000,000 (in memory); and unions and ensembles of 1 to 75 boxes on uniform codes,
 * where nothing is pruned and half the rows may match; scores that .1 to 50% of realistic rows reach, with
 * and without boxes. What rows cost that match is not in them, since it is the same on every path. The same
 * constants everywhere give the same path everywhere. */
#define COST_ZONES_BOX 5.0       /* a box on the zones of 64 blocks */
#define COST_BLOCK 150.0         /* a block whose codes are looked at, */
#define COST_TEST 35.0           /* and each box there */
#define COST_PLANES 100.0        /* a block whose planes are looked at, */
#define COST_PLANES_BOX 4.0      /* and each box that its zones leave */
#define COST_CANDIDATE 180.0     /* a block of which planes leave rows, */
#define COST_CANDIDATE_ROW 3.0   /* each such row, */
#define COST_CANDIDATE_TEST 0.15 /* and each box of the model on it */
#define COST_ZONES_SCORE 500.0   /* a term of a score on the zones of 64 blocks */
#define COST_SCORE 500.0         /* a term on the codes of a block, most of whose rows are soon given up, */
#define COST_SCORE_ALL 800.0     /* the same where none is, */
#define COST_SCORED 1000.0       /* and a block that it leaves rows of */

#define SURVEY_GROUPS 8 /* groups that are looked at for an estimate: at most, */
#define SURVEY_SHARE 4  /* and one in so many; */
#define SURVEY_PAIRS 2  /* in each so many pairs of blocks on planes, */
#define SURVEY_BLOCKS 1 /* and so many blocks on codes */

/* Of the bits set in `bits`, n evenly spaced ones. */
static uint64_t spread(uint64_t bits, uint32_t n) {
    uint32_t total = (uint32_t)__builtin_popcountll(bits), seen = 0, taken = 0;
    uint64_t some = 0;
    for (; bits; bits &= bits - 1, seen++) {
        if (total <= n || (taken < n && seen == (2 * taken + 1) * total / (2 * n))) {
            some |= bits & -bits;
            taken++;
        }
    }
    return some;
}

/* Looks at a few groups, evenly spaced, and sets search->estimate: with the cheapest path, or with the given
 * one. The same index and model give the same numbers. */
static int32_t survey(bw_search *search, bw_path path, bw_error *error) {
    const bw_index *index = search->index;
    const bw_program *program = &search->program;
    uint64_t groups = 0, passed = 0;
    uint32_t boxes = bw_program_boxes(program), looked = 0, segment = 0;
    for (uint32_t i = 0; i < index->info.segments; i++) {
        groups += (index->segments[i]->blocks + (uint64_t)BW_GROUP_BLOCKS - 1) / BW_GROUP_BLOCKS;
    }
    bool nothing = program->estimators == 0 || search->threshold == 0;
    if (path == BW_PATH_SCORE && !search->cuts) {
        path = BW_PATH_ZONES;
    }
    search->estimate.path = path == BW_PATH_CHOOSE ? BW_PATH_ZONES : path;
    if (groups == 0 || search->threshold > program->estimators || (nothing && !search->cuts)) {
        return BW_OK; /* nothing to choose */
    }
    scratch *scratch;
    search->estimate.path = BW_PATH_PLANES;
    int32_t status = scratch_take(search, &scratch, error);
    if (status != BW_OK) {
        return status;
    }
    uint64_t most = groups / SURVEY_SHARE;
    most = most < 1 ? 1 : most > SURVEY_GROUPS ? SURVEY_GROUPS : most;
    task t = {.search = search, .scratch = scratch, .want_votes = !search->count_only};
    double blocks = 0, open = 0, undone = 0, live = 0, binned = 0, candidates = 0, rows = 0, read = 0;
    double scored = 0, terms = 0, left_blocks = 0;
    for (; looked < most; looked++) {
        uint64_t at = (2 * (uint64_t)looked + 1) * groups / (2 * most), own;
        while (at >= passed + (own = (index->segments[segment]->blocks + (uint64_t)BW_GROUP_BLOCKS - 1) /
                                     BW_GROUP_BLOCKS)) {
            passed += own;
            segment++;
        }
        group g;
        t.segment = index->segments[segment];
        t.dead = &index->dead[segment];
        group_zones(&t, (uint32_t)(at - passed) * BW_GROUP_BLOCKS, &g);
        uint64_t undecided = g.possible & ~g.enough;
        uint64_t tried = search->cuts ? spread(g.possible, 2 * SURVEY_PAIRS) : 0;
        blocks += (double)__builtin_popcountll(g.valid);
        undone += (double)__builtin_popcountll(undecided);
        open += (double)__builtin_popcountll(search->cuts ? g.possible : undecided);
        scored += (double)__builtin_popcountll(tried);
        for (; tried; tried &= tried - 1) {
            struct rows r = {.codes = bw_segment_block(t.segment, g.first + (uint32_t)__builtin_ctzll(tried)),
                             .stride = BW_BLOCK_ROWS};
            first_bits(bw_segment_block_rows(t.segment, g.first + (uint32_t)__builtin_ctzll(tried)), r.match);
            left_blocks += score_block(&t, (uint32_t)__builtin_ctzll(tried), &r);
        }
        for (uint32_t i = 0; search->cuts && i < search->scorer->terms; i++) {
            terms += (double)__builtin_popcountll(scratch->score->alive[i] & g.possible);
        }
        for (uint32_t i = 0; undecided && i < boxes; i++) {
            live += (double)__builtin_popcountll(scratch->overlaps[i] & undecided);
        }
        uint64_t tested = spread(undecided, 2 * SURVEY_PAIRS);
        uint64_t left = group_planes(&t, &g, tested);
        binned += (double)__builtin_popcountll(tested);
        candidates += (double)__builtin_popcountll(left);
        for (; left; left &= left - 1) {
            rows += (double)count_of(scratch->reached[__builtin_ctzll(left)]);
        }
        for (left = spread(undecided, SURVEY_BLOCKS); left; left &= left - 1) {
            settle_block(&t, &g, (uint32_t)__builtin_ctzll(left));
            read++;
        }
    }
    scratch_give_back(search, scratch);
    double tried = read > 0 ? (double)t.tests / read : 0; /* boxes on a block's codes */
    double scale = (double)index->first_blocks[index->info.segments] / blocks;
    double zones = (double)groups *
                   (boxes * COST_ZONES_BOX + (search->cuts ? search->scorer->terms * COST_ZONES_SCORE : 0));
    double share = binned > 0 ? undone * scale / binned : 0; /* blocks that one block tried stands for */
    /* Where boxes come first, scores are wanted in the blocks that these leave. */
    double score = open > 0 ? COST_SCORE_ALL * terms / open : 0, sure = (open - undone) * scale * score;
    double cost[BW_PATHS];
    cost[BW_PATH_ZONES] = zones + sure + undone * scale * (COST_BLOCK + tried * COST_TEST + score);
    cost[BW_PATH_PLANES] = zones + sure + undone * scale * COST_PLANES + live * scale * COST_PLANES_BOX +
                           share * (candidates * (COST_CANDIDATE + score / 2) +
                                    rows * (COST_CANDIDATE_ROW + boxes * COST_CANDIDATE_TEST));
    cost[BW_PATH_SCAN] =
        blocks * scale *
        (COST_BLOCK + (live > 0 ? tried * boxes * undone / live : boxes) * COST_TEST + score);
    cost[BW_PATH_SCORE] =
        zones + terms * scale * COST_SCORE +
        (scored > 0 ? left_blocks / scored : 0) * (open * COST_SCORED + undone * tried * COST_TEST) * scale;
    if (path == BW_PATH_CHOOSE) {
        path = cost[BW_PATH_PLANES] < cost[BW_PATH_ZONES] ? BW_PATH_PLANES : BW_PATH_ZONES;
        path = cost[BW_PATH_SCAN] < cost[path] ? BW_PATH_SCAN : path;
        path = search->cuts && (nothing || cost[BW_PATH_SCORE] < cost[path]) ? BW_PATH_SCORE : path;
    }
    double total = (double)index->first_blocks[index->info.segments];
    double touched = path == BW_PATH_SCAN ? total : open * scale;
    search->estimate = (bw_estimate){path, touched < total ? touched : total, cost[path]};
    return BW_OK;
}

/* ---- the object ---- */

static int32_t check_fingerprints(const bw_index *index, const bw_model *model, bw_error *error) {
    const bw_fingerprints *ours = &index->info.fingerprints;
    if (model->quantizer[0] && strncmp(model->quantizer, ours->quantizer, BW_FINGERPRINT_BYTES) != 0) {
        return bw_fail(error, BW_MISMATCH,
                       "the model is for codes of quantizer \"%.32s\", but the index holds codes of "
                       "quantizer \"%.32s\": "
                       "train it again on this collection, or search the collection it was trained on",
                       model->quantizer, ours->quantizer);
    }
    if (model->fine && !ours->fine[0]) {
        return bw_fail(error, BW_MISMATCH,
                       "the model has a fine score, but the index holds no fine codes: train it without "
                       "reranking, or search a collection that has fine codes");
    }
    if (model->fine && model->fine_quantizer[0] &&
        strncmp(model->fine_quantizer, ours->fine, BW_FINGERPRINT_BYTES) != 0) {
        return bw_fail(error, BW_MISMATCH,
                       "the model is for fine codes of \"%.32s\", but the index holds fine codes of "
                       "\"%.32s\": "
                       "train it again on this collection, or search the collection it was trained on",
                       model->fine_quantizer, ours->fine);
    }
    return BW_OK;
}

/* A copy of a score, and room for its scorer; NULL in *scorer without memory. */
static bw_score *take_score(const bw_score *score, size_t bytes, void **scorer) {
    bw_score *copy = bw_alloc_array(1, sizeof *copy);
    *scorer = copy ? bw_alloc_zero(1, bytes) : NULL;
    if (copy) {
        *copy = *score;
    }
    return copy;
}

/* False without memory. */
static bool open_scores(bw_search *s, const bw_index *index, const bw_model *model) {
    void *scorer;
    if (model->score) {
        s->score = take_score(model->score, sizeof *s->scorer, &scorer);
        s->scorer = scorer;
        if (!scorer) {
            return false;
        }
        bw_scorer_make(index, s->score, s->scorer);
        s->cuts = s->score->has_threshold;
        s->least_score = s->score->threshold;
        s->least_score = s->least_score > FAR_SCORE ? FAR_SCORE : s->least_score;
        s->least_score = s->least_score < -FAR_SCORE ? -FAR_SCORE : s->least_score;
        uint32_t dims = 0;
        for (uint32_t t = 0; t < s->scorer->terms; t++) {
            const bw_quadratic *q = &s->scorer->term[t].q;
            for (uint32_t i = 0; i < 8 * q->groups; i++) {
                dims |= (uint32_t)1 << q->dim[i];
                s->first_dims |= i < FETCH_DIMS ? (uint32_t)1 << q->dim[i] : 0;
            }
        }
        s->score_dims = (uint32_t)__builtin_popcount(dims);
    }
    if (model->fine) {
        s->fine = take_score(model->fine, sizeof *s->fine_scorer, &scorer);
        s->fine_scorer = scorer;
        if (!scorer) {
            return false;
        }
        bw_fine_scorer_make(s->fine, s->fine_scorer);
        s->has_fine_cut = s->fine->has_threshold;
    }
    return true;
}

int32_t bw_search_open(const bw_index *index, const bw_model *model, uint32_t flags, bw_search **search,
                       bw_error *error) {
    return bw_search_open_path(index, model, flags, BW_PATH_CHOOSE, search, error);
}

int32_t bw_search_open_path(const bw_index *index, const bw_model *model, uint32_t flags, bw_path path,
                            bw_search **search, bw_error *error) {
    if (!index || !model || !search) {
        return bw_fail(error, BW_INVALID, "a search needs an index, a model and a place for the result");
    }
    if (flags & ~(uint32_t)BW_COUNT_ONLY) {
        return bw_fail(error, BW_INVALID, "unknown search flags 0x%x: use 0 or BW_COUNT_ONLY", flags);
    }
    int32_t status = check_fingerprints(index, model, error);
    if (status != BW_OK) {
        return status;
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
    status = bw_program_make(index, model, s->kernels, &s->program, error);
    if (status != BW_OK) {
        bw_search_close(s);
        return status;
    }
    s->digits = s->program.estimators ? 32 - (uint32_t)__builtin_clz(s->program.estimators) : 1;
    s->first_morsels = bw_alloc_array((size_t)index->info.segments + 1, sizeof *s->first_morsels);
    if (!s->first_morsels || !open_scores(s, index, model)) {
        bw_search_close(s);
        return bw_fail_nomem(error, sizeof(bw_score) + sizeof(bw_scorer));
    }
    for (uint32_t i = 0; i < index->info.segments; i++) {
        s->first_morsels[i] = s->morsels;
        s->morsels += (index->segments[i]->blocks + (uint64_t)MORSEL_BLOCKS - 1) / MORSEL_BLOCKS;
    }
    s->first_morsels[index->info.segments] = s->morsels;
    s->index = bw_index_retain(index);
    status = survey(s, path, error);
    if (status != BW_OK) {
        bw_search_close(s);
        return status;
    }
    *search = s;
    return BW_OK;
}

void bw_search_close(bw_search *search) {
    if (search) {
        for (int i = 0; i < IDLE; i++) {
            scratch_free(atomic_load_explicit(&search->idle[i], memory_order_acquire));
        }
        bw_index_close((bw_index *)search->index);
        bw_program_free(&search->program);
        bw_free(search->score);
        bw_free(search->scorer);
        bw_free(search->fine);
        bw_free(search->fine_scorer);
        bw_free(search->first_morsels);
        bw_free(search);
    }
}

void bw_search_give_places(bw_search *search) {
    search->places = true;
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
    int32_t status = scratch_take(search, &scratch, error);
    if (status == BW_OK) {
        while (search_morsel(search, scratch, batch, morsel) && (search->count_only || batch->rows == 0)) {
        }
        scratch_give_back(search, scratch);
    }
    return status;
}

void bw_search_stats(const bw_search *search, bw_stats *stats) {
    stats->rows = atomic_load(&search->rows);
    stats->blocks = search->index->first_blocks[search->index->info.segments];
    stats->blocks_pruned = atomic_load(&search->pruned);
    stats->blocks_outscored = atomic_load(&search->outscored);
    stats->blocks_contained = atomic_load(&search->contained);
    stats->blocks_planes = atomic_load(&search->planes);
    stats->blocks_scanned = atomic_load(&search->scanned);
    stats->fine_rows = atomic_load(&search->fine_rows);
    stats->bytes = atomic_load(&search->bytes);
    stats->nanoseconds = atomic_load(&search->nanoseconds);
}

/* ---- a whole search ---- */

/* Where one morsel's rows are. */
typedef struct piece {
    uint32_t worker;
    uint64_t first, rows; /* among the worker's */
} piece;

typedef struct run {
    bw_search *search;
    piece *pieces;    /* for each morsel; NULL when only counting */
    bw_rows *found;   /* for each worker, what its morsels gave, in ascending order of morsels */
    bw_rows *all;     /* the pieces joined */
    uint64_t *places; /* for each morsel, where its rows go */
    uint64_t first_room;
    const volatile int32_t *cancel;
    _Atomic uint64_t next;  /* the next morsel to be copied */
    _Atomic int32_t status; /* the first failure, which stops the others */
    bw_error error;         /* its message; written by whoever set the status */
} run;

static void rows_release(bw_rows *rows) {
    bw_free(rows->ids);
    bw_free(rows->votes);
    bw_free(rows->scores);
    memset(rows, 0, sizeof *rows);
}

/* Room for `room` rows, those there kept; large arrays grow without being copied where realloc can move
 * pages. On failure the rows stay as they were, or a part of the arrays has grown. */
static bool rows_grow(bw_rows *rows, uint64_t room) {
    int64_t *ids = bw_realloc_array(rows->ids, room, sizeof *ids);
    rows->ids = ids ? ids : rows->ids;
    int32_t *votes = bw_realloc_array(rows->votes, room, sizeof *votes);
    rows->votes = votes ? votes : rows->votes;
    int64_t *scores = bw_realloc_array(rows->scores, room, sizeof *scores);
    rows->scores = scores ? scores : rows->scores;
    return ids && votes && scores;
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
    run *run = context;
    bw_error error = {0};
    bw_rows *found = run->pieces ? &run->found[worker] : NULL;
    uint64_t room = 0;
    scratch *scratch = NULL;
    int32_t status = scratch_take(run->search, &scratch, &error);
    while (status == BW_OK && atomic_load_explicit(&run->status, memory_order_relaxed) == BW_OK) {
        if (run->cancel && *run->cancel) {
            status = bw_fail(&error, BW_CANCELLED, "the search was cancelled");
            break;
        }
        bw_batch batch = {0};
        if (found) {
            if (room - found->rows < BW_MORSEL_ROWS) {
                if (atomic_load_explicit(&run->search->next, memory_order_relaxed) >= run->search->morsels) {
                    break; /* nothing is left that would need room */
                }
                room = (room ? 2 * room : run->first_room) + BW_MORSEL_ROWS;
                if (!rows_grow(found, room)) {
                    status = bw_fail_nomem(&error, room * 20);
                    break;
                }
            }
            batch = (bw_batch){0, found->ids + found->rows, found->votes + found->rows,
                               found->scores + found->rows};
        }
        uint64_t morsel;
        if (!search_morsel(run->search, scratch, &batch, &morsel)) {
            break;
        }
        if (found) {
            run->pieces[morsel] = (piece){worker, found->rows, batch.rows};
            found->rows += batch.rows;
        }
    }
    if (status != BW_OK) {
        run_fail(run, status, &error);
    }
    scratch_give_back(run->search, scratch);
}

static void join_worker(void *context, uint32_t worker) {
    (void)worker;
    run *run = context;
    uint64_t morsel;
    while ((morsel = atomic_fetch_add_explicit(&run->next, 1, memory_order_relaxed)) < run->search->morsels) {
        const piece *piece = &run->pieces[morsel];
        const bw_rows *from = &run->found[piece->worker];
        uint64_t to = run->places[morsel];
        if (piece->rows > 0) {
            memcpy(run->all->ids + to, from->ids + piece->first, piece->rows * sizeof *from->ids);
            memcpy(run->all->votes + to, from->votes + piece->first, piece->rows * sizeof *from->votes);
            memcpy(run->all->scores + to, from->scores + piece->first, piece->rows * sizeof *from->scores);
        }
    }
}

/* All rows in morsel order. A single worker's are in that order already and are handed on as they are. */
static int32_t run_join(run *run, uint32_t workers, bw_rows **rows, bw_error *error) {
    uint64_t n = 0, with_rows = 0;
    uint32_t last = 0;
    for (uint32_t w = 0; w < workers; w++) {
        n += run->found[w].rows;
        with_rows += run->found[w].rows > 0;
        last = run->found[w].rows > 0 ? w : last;
    }
    bw_rows *all = bw_alloc_zero(1, sizeof *all);
    if (!all) {
        return bw_fail_nomem(error, sizeof *all);
    }
    if (with_rows <= 1) {
        *all = run->found[last];
        run->found[last] = (bw_rows){0};
        rows_grow(all, n); /* gives back what is not needed; harmless where it can't */
        *rows = all;
        return BW_OK;
    }
    run->places = bw_alloc_array(run->search->morsels, sizeof *run->places);
    if (!run->places || !rows_grow(all, n)) {
        bw_free(run->places);
        bw_rows_free(all);
        return bw_fail_nomem(error, n * 20);
    }
    for (uint64_t m = 0; m < run->search->morsels; m++) {
        run->places[m] = all->rows;
        all->rows += run->pieces[m].rows;
    }
    run->all = all;
    bw_parallel(workers, join_worker, run);
    bw_free(run->places);
    *rows = all;
    return BW_OK;
}

int32_t bw_search_run(const bw_index *index, const bw_model *model, uint32_t flags, uint32_t threads,
                      const volatile int32_t *cancel, bw_rows **rows, bw_stats *stats, bw_error *error) {
    return bw_search_run_path(index, model, flags, BW_PATH_CHOOSE, threads, cancel, rows, stats, NULL, error);
}

int32_t bw_search_run_path(const bw_index *index, const bw_model *model, uint32_t flags, bw_path path,
                           uint32_t threads, const volatile int32_t *cancel, bw_rows **rows, bw_stats *stats,
                           bw_estimate *estimate, bw_error *error) {
    bool count_only = flags & BW_COUNT_ONLY;
    if (!rows && !count_only) {
        return bw_fail(error, BW_INVALID, "a search that does not only count needs a place for its rows");
    }
    run run = {.cancel = cancel};
    int32_t status = bw_search_open_path(index, model, flags, path, &run.search, error);
    if (status != BW_OK) {
        return status;
    }
    uint64_t morsels = run.search->morsels;
    threads = bw_thread_count(threads);
    threads = threads < morsels ? threads : morsels ? (uint32_t)morsels : 1;
    /* Growing copies; pages that nothing is written to cost nothing. */
    run.first_room = index->info.rows / FIRST_ROOM_SHARE / threads;
    run.first_room = run.first_room < FIRST_ROOM_MOST ? run.first_room : FIRST_ROOM_MOST;
    if (rows) {
        run.pieces = bw_alloc_zero(morsels, sizeof *run.pieces);
        run.found = bw_alloc_zero(threads, sizeof *run.found);
        if (!run.pieces || !run.found) {
            status = bw_fail_nomem(error, morsels * sizeof *run.pieces);
        }
    }
    if (status == BW_OK) {
        bw_parallel(threads, run_worker, &run);
        status = atomic_load(&run.status);
        if (status != BW_OK && error) {
            *error = run.error;
        }
    }
    if (status == BW_OK && rows) {
        status = run_join(&run, threads, rows, error);
    }
    if (status == BW_OK && stats) {
        bw_search_stats(run.search, stats);
    }
    if (status == BW_OK && estimate) {
        *estimate = run.search->estimate;
    }
    for (uint32_t w = 0; run.found && w < threads; w++) {
        rows_release(&run.found[w]);
    }
    bw_free(run.found);
    bw_free(run.pieces);
    bw_search_close(run.search);
    return status;
}

const char *bw_path_name(bw_path path) {
    static const char *const names[BW_PATHS] = {"", "zones", "planes", "scan", "score"};
    return names[path];
}
