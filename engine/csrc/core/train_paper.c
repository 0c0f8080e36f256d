/* clang-format off */
/* train_paper.c - decision branches as published: "Fast Search-By-Classification for Large-Scale Databases
 * Using Index-Aware Decision Trees and Random Forests" (VLDB 2023), with the settings of the service in
 * "CLIP-Branches: Interactive Fine-Tuning for Text-Image Retrieval" (SIGIR 2024). A box grows from one
 * positive in a small set of dimensions that was fixed beforehand (the papers index such sets), side by side,
 * as long as the Gini impurity falls; then all that is inside is done with. The option prior = 0 chooses it;
 * train_branch.c is our own.
 *
 * Everything is integer arithmetic, and "/" rounds down. The specification, which tests/learner_twin.py
 * follows word by word:
 *
 * Subsets. 104 sets of dimensions, the same in every training: 64 of 4 dimensions, then 32 of 6, then 8 of 8.
 * Each is drawn from one SplitMix64 with seed 0: for i = 0 .. size - 1: j = i + below(32 - i); swap places i
 * and j of 0, 1, .. 31; the first `size`, in ascending order. A set that came before is drawn again.
 *
 * Rows are the positives, the given negatives and the random ones, numbered in this order; a negative is a
 * negative, and negative_weight has no say. All other random numbers come from a SplitMix64 with the
 * training's seed. Memory: some 180 bytes a row.
 *
 * Estimators, one after the other. A branch takes every row once. In an ensemble each estimator draws as many
 * times below(rows) as there are rows, anew until there is a positive; a row that is drawn c times counts c
 * times. Below, every number of rows is one by count, and rows that are not drawn do not exist.
 *
 * Growth of a branch. While positives remain, more than one row does, there are fewer than 30 boxes, and
 * fewer than 5 failures came one after the other:
 *   1. The seed is the remaining positive that holds place below(how many there are).
 *   2. Subsets are drawn: half of them (52) for a branch, the root of their number (11) for an estimator of
 *      an ensemble, as in random forests (with half of them answers are as good, in three times the time):
 *      for i = 0 .. drawn - 1: j = i + below(104 - i); swap places i and j of 0, 1, .. 103; the first
 *      `drawn`. They are tried in ascending order, each with its dimensions in random order: for i = 0 ..
 *      size - 2: j = i + below(size - i); swap places i and j.
 *   3. Each gives a box (4 - 6) or none. The one of the least impurity stays, the first of those: so small
 *      subsets are preferred. None is a failure.
 *   4. The box starts between the seed and what is nearest to it. E are all remaining rows. For each
 *      dimension, x being the seed's value: hi is one less than the least value above x in E. Where there is
 *      none, hi is the least value above x among the remaining positives, or else x. Likewise lo. Rows with
 *      other values than x leave E.
 *   5. What is left of E, the seed and its equals, is inside. If there are negatives among it and the
 *      impurity is above that of one positive inside, the subset gives no box.
 *   6. For each dimension, downwards and then upwards: S are the remaining rows beyond the border that are
 *      inside the other dimensions' ranges, v_1, v_2, .. their different values from the border outwards. If
 *      there are positives among S (else growth stops early on this side), up to 10 values are taken in: as
 *      many as give the least impurity, the fewest on ties; none if it is not less than before. Let e be the
 *      last value taken in, or else the old border. The new border is
 *          the middle between e and the next value v, (e + v) / 2, rounded towards e, if there is one; else
 *          0 or 255 in an ensemble: the side is open; else
 *          e + distance(e, t) * below(65536) / 65536 outwards in the last of the dimensions, where t is the
 *              outermost value of the remaining rows; else
 *          f + distance(e, f) * below(65536) / 65536 outwards, at most to 0 or 255, where f is the outermost
 *              value of the remaining positives, if that lies beyond e; else e.
 *      So a box of a branch, which nothing else bounds, ends somewhere beyond the positives. Those of an
 *      ensemble bound each other and may be open, as in the authors' experiments; with such ends everywhere,
 *      a majority hardly ever agrees when there are few positives.
 *   7. All rows inside the box that stays, positive or negative, are done with.
 *
 * Impurity. With p positives and q negatives inside, of P and Q that remain: part(p, q) + part(P - p, Q - q),
 * where part(a, b) = 4096 * a * b / (a + b), or 0 where a + b = 0. But for the rounding that is the Gini
 * impurity of the division in inside and outside, times 2048 and the number of rows.
 *
 * A range is closed: a value on a border is inside. A border between two values thus becomes the last code
 * that is not beyond it, whence the roundings. Where the published program takes a random stretch towards the
 * extreme for one certain dimension of a subset in step 4, if no row bounds it, all dimensions are alike
 * here.
 *
 * Model: as in train.h. An estimator whose positives all equal negatives has no boxes. */
/* clang-format on */
#include "train.h"

#include <string.h>

#define SUBSETS 104
#define BRANCH_SUBSETS 52
#define ENSEMBLE_SUBSETS 11
#define MAX_SUBSET 8
#define MAX_BOXES 30
#define MAX_FAILURES 5
#define MAX_STEPS 10
#define BLOCK 256 /* rows that the box kernel takes */
#define BLOCK_WORDS (BLOCK / 64)

typedef struct subset {
    uint8_t size;
    uint8_t dims[MAX_SUBSET];
} subset;

/* A box at work: ranges of a subset's dimensions, in the order in which they grow. */
typedef struct growing {
    uint32_t size;
    uint8_t dims[MAX_SUBSET], lo[MAX_SUBSET], hi[MAX_SUBSET];
    int64_t positives, negatives; /* inside */
} growing;

/* Rows beyond the borders of a box in one dimension, by value. If there are no positives on either side, only
 * the nearest negatives are present, uncounted. */
typedef struct values {
    bool positives_below, positives_above;
    uint64_t present[BLOCK / 64];
    uint32_t positives[BLOCK], negatives[BLOCK];
} values;

/* Bitmaps have a bit a row, in `words` words: whole blocks; the bits past the last row are never set. */
typedef struct learner {
    const bw_training *training;
    const bw_kernels *kernels;
    bw_random random;
    subset subsets[SUBSETS];
    size_t rows, stride, words;         /* rows below n_positives are positives */
    uint8_t *columns;                   /* [32][stride]: the codes by dimension */
    uint32_t *sorted;                   /* [32][rows]: rows by value, then by number */
    uint32_t first[BW_DIMS][BLOCK + 1]; /* in sorted: where a value's rows begin */

    /* the estimator at work */
    uint32_t *weights; /* 0: the row is not drawn, or done with */
    uint64_t *remaining, *nothing;
    int64_t positives, negatives;          /* that remain */
    uint32_t positives_at[BW_DIMS][BLOCK]; /* remaining positives by value */

    /* the seed at work */
    uint8_t seed[BW_DIMS];
    uint8_t near_lo[BW_DIMS], near_hi[BW_DIMS]; /* up to the nearest positives */
    bool near_known[BW_DIMS];                   /* bitmap near + d * words is filled */
    uint64_t *near;

    uint64_t *suffix; /* [MAX_SUBSET][words]: rows inside the ranges from a place on */
    uint64_t *prefix; /* rows inside the ranges before a place */
    uint32_t *list;   /* of rows; scratch */
    uint32_t *used;   /* words of bitmaps; scratch */
    values values;    /* counts are zero between uses */

    /* the model so far */
    uint32_t *first_box;
    bw_ranges *boxes;
    size_t box_capacity;
} learner;

/* ---- rows ---- */

static void draw_subsets(subset subsets[SUBSETS]) {
    bw_random random = {0};
    for (uint32_t s = 0; s < SUBSETS;) {
        subset *at = &subsets[s];
        bool drawn[BW_DIMS] = {false}, new = true;
        uint8_t dims[BW_DIMS], count = 0;
        for (uint32_t d = 0; d < BW_DIMS; d++) {
            dims[d] = (uint8_t)d;
        }
        *at = (subset){.size = s < 64 ? 4 : s < 96 ? 6 : 8};
        for (uint32_t i = 0; i < at->size; i++) {
            uint32_t j = i + (uint32_t)bw_random_below(&random, BW_DIMS - i);
            uint8_t d = dims[j];
            dims[j] = dims[i];
            drawn[d] = true;
        }
        for (uint32_t d = 0; d < BW_DIMS; d++) {
            if (drawn[d]) {
                at->dims[count++] = (uint8_t)d;
            }
        }
        for (uint32_t i = 0; i < s; i++) {
            new = new && memcmp(&subsets[i], at, sizeof *at) != 0;
        }
        s += new;
    }
}

static void add_columns(learner *l, const uint8_t *codes, size_t n, size_t first) {
    for (size_t i = 0; i < n; i++) {
        for (uint32_t d = 0; d < BW_DIMS; d++) {
            l->columns[d * l->stride + first + i] = codes[i * BW_DIMS + d];
        }
    }
}

static void sort_rows(learner *l) {
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        const uint8_t *column = l->columns + d * l->stride;
        uint32_t *sorted = l->sorted + d * l->rows, *first = l->first[d], place[BLOCK];
        memset(first, 0, sizeof l->first[d]);
        for (size_t i = 0; i < l->rows; i++) {
            first[column[i] + 1]++;
        }
        for (uint32_t v = 0; v < BLOCK; v++) {
            first[v + 1] += first[v];
            place[v] = first[v];
        }
        for (size_t i = 0; i < l->rows; i++) {
            sorted[place[column[i]]++] = (uint32_t)i;
        }
    }
}

static void draw_rows(learner *l, bool bootstrap) {
    size_t n_positives = l->training->n_positives;
    l->positives = 0;
    while (l->positives == 0) {
        for (size_t i = 0; i < l->rows; i++) {
            l->weights[i] = !bootstrap;
        }
        for (size_t i = 0; bootstrap && i < l->rows; i++) {
            l->weights[bw_random_below(&l->random, l->rows)]++;
        }
        for (size_t i = 0; i < n_positives; i++) {
            l->positives += l->weights[i];
        }
    }
    l->negatives = (int64_t)l->rows - l->positives;
    memset(l->remaining, 0, l->words * sizeof *l->remaining);
    for (size_t i = 0; i < l->rows; i++) {
        l->remaining[i / 64] |= (uint64_t)(l->weights[i] > 0) << i % 64;
    }
    memset(l->positives_at, 0, sizeof l->positives_at);
    for (size_t i = 0; i < n_positives; i++) {
        for (uint32_t d = 0; d < BW_DIMS; d++) {
            l->positives_at[d][l->columns[d * l->stride + i]] += l->weights[i];
        }
    }
}

static void remove_row(learner *l, size_t row) {
    if (row < l->training->n_positives) {
        l->positives -= l->weights[row];
        for (uint32_t d = 0; d < BW_DIMS; d++) {
            l->positives_at[d][l->columns[d * l->stride + row]] -= l->weights[row];
        }
    } else {
        l->negatives -= l->weights[row];
    }
    l->weights[row] = 0;
    l->remaining[row / 64] &= ~(UINT64_C(1) << row % 64);
}

/* The nearest value beyond x (up: +1, down: -1) of remaining positives; -1: there is none. */
static int32_t next_positive(const learner *l, uint32_t d, int32_t x, int32_t up) {
    for (int32_t v = x + up; v >= 0 && v < BLOCK; v += up) {
        if (l->positives_at[d][v] > 0) {
            return v;
        }
    }
    return -1;
}

static bool remains(const learner *l, uint32_t d, int32_t v) {
    const uint32_t *sorted = l->sorted + d * l->rows;
    for (uint32_t i = l->first[d][v]; i < l->first[d][v + 1]; i++) {
        if (l->weights[sorted[i]] > 0) {
            return true;
        }
    }
    return false;
}

/* The first value of remaining rows from x on; -1: there is none. */
static int32_t next_value(const learner *l, uint32_t d, int32_t x, int32_t up) {
    for (int32_t v = x; v >= 0 && v < BLOCK; v += up) {
        if (remains(l, d, v)) {
            return v;
        }
    }
    return -1;
}

/* ---- bitmaps ---- */

/* to = those of `rows` inside a range. */
static void filter(const learner *l, uint32_t d, uint8_t lo, uint8_t hi, const uint64_t *rows, uint64_t *to) {
    const bw_ranges range = {.count = 1, .lo = {lo}, .hi = {hi}};
    const uint8_t *column = l->columns + d * l->stride;
    for (size_t w = 0; w < l->words; w += BLOCK_WORDS) {
        if (rows[w] | rows[w + 1] | rows[w + 2] | rows[w + 3]) {
            l->kernels->box(column + 64 * w, 0, &range, rows + w, to + w);
        } else {
            memset(to + w, 0, BLOCK_WORDS * sizeof *to);
        }
    }
}

/* Remaining rows between the positives nearest to the seed. */
static const uint64_t *near_rows(learner *l, uint32_t d) {
    uint64_t *rows = l->near + d * l->words;
    if (!l->near_known[d]) {
        filter(l, d, l->near_lo[d], l->near_hi[d], l->remaining, rows);
        l->near_known[d] = true;
    }
    return rows;
}

static int64_t part(int64_t a, int64_t b) {
    return a + b == 0 ? 0 : bw_quotient(4096 * a * b, a + b); /* a + b <= 2,100,000 */
}

static int64_t impurity(const learner *l, int64_t positives, int64_t negatives) {
    return part(positives, negatives) + part(l->positives - positives, l->negatives - negatives);
}

/* ---- boxes ---- */

/* Steps 4 and 5; false: no box. */
static bool start_box(learner *l, growing *box) {
    uint32_t n = 0;
    size_t n_positives = l->training->n_positives;
    for (uint32_t i = 0; i < box->size; i++) {
        uint32_t d = box->dims[i];
        const uint8_t *column = l->columns + d * l->stride;
        int32_t x = l->seed[d], below = -1, above = BLOCK;
        if (i == 0) {
            const uint32_t *sorted = l->sorted + d * l->rows;
            int32_t value = next_value(l, d, x + 1, 1);
            below = next_value(l, d, x - 1, -1);
            above = value < 0 ? BLOCK : value;
            for (uint32_t j = l->first[d][x]; j < l->first[d][x + 1]; j++) {
                l->list[n] = sorted[j];
                n += l->weights[sorted[j]] > 0;
            }
        } else {
            uint32_t kept = 0;
            for (uint32_t j = 0; j < n; j++) {
                int32_t value = column[l->list[j]];
                below = value < x && value > below ? value : below;
                above = value > x && value < above ? value : above;
                l->list[kept] = l->list[j];
                kept += value == x;
            }
            n = kept;
        }
        box->lo[i] = below >= 0 ? (uint8_t)(below + 1) : l->near_lo[d];
        box->hi[i] = above < BLOCK ? (uint8_t)(above - 1) : l->near_hi[d];
    }
    box->positives = box->negatives = 0;
    for (uint32_t j = 0; j < n; j++) {
        uint32_t row = l->list[j];
        *(row < n_positives ? &box->positives : &box->negatives) += l->weights[row];
    }
    return box->negatives == 0 || impurity(l, 1, 0) >= impurity(l, box->positives, box->negatives);
}

/* Lists the rows that are in the first two bitmaps and not in the third, into l->list; gives how many. Words
 * are mostly empty or hold a row or two in no order a CPU could guess: hence no branches on them. */
static size_t list_rows(learner *l, const uint64_t *before, const uint64_t *after, const uint64_t *but) {
    size_t n = 0, used = 0;
    for (size_t w = 0; w < l->words; w++) {
        uint64_t rows = before[w] & after[w] & ~but[w];
        l->used[used] = (uint32_t)w;
        used += rows != 0;
    }
    for (size_t i = 0; i < used; i++) {
        uint32_t w = l->used[i];
        for (uint64_t rows = before[w] & after[w] & ~but[w]; rows;) {
            for (int k = 0; k < 3; k++) {
                l->list[n] = 64 * w + (uint32_t)__builtin_ctzll(rows | UINT64_C(1) << 63);
                n += rows != 0;
                rows &= rows - 1;
            }
        }
    }
    return n;
}

/* Drops rows inside lo .. hi from the n in l->list; gives how many are left. */
static size_t drop_inside(learner *l, const uint8_t *column, uint8_t lo, uint8_t hi, size_t n) {
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        uint8_t x = column[l->list[i]];
        l->list[kept] = l->list[i];
        kept += x < lo || x > hi;
    }
    return kept;
}

/* Fills *v, which was clear, with the n rows in l->list, all outside lo .. hi. */
static void find_values(const learner *l, const uint8_t *column, uint8_t lo, uint8_t hi, size_t n,
                        values *v) {
    size_t i = 0, n_positives = l->training->n_positives;
    v->positives_below = v->positives_above = false;
    memset(v->present, 0, sizeof v->present);
    for (; i < n && l->list[i] < n_positives; i++) {
        uint8_t x = column[l->list[i]];
        v->positives_below = v->positives_below || x < lo;
        v->positives_above = v->positives_above || x > hi;
        v->positives[x] += l->weights[l->list[i]];
        v->present[x / 64] |= UINT64_C(1) << x % 64;
    }
    if (v->positives_below || v->positives_above) {
        for (; i < n; i++) {
            uint8_t x = column[l->list[i]];
            v->negatives[x] += l->weights[l->list[i]];
            v->present[x / 64] |= UINT64_C(1) << x % 64;
        }
        return;
    }
    int32_t below = -1, above = BLOCK;
    for (; i < n; i++) {
        int32_t x = column[l->list[i]], at_most = x < lo ? x : -1, at_least = x < lo ? BLOCK : x;
        below = at_most > below ? at_most : below;
        above = at_least < above ? at_least : above;
    }
    if (below >= 0) {
        v->present[below / 64] |= UINT64_C(1) << below % 64;
    }
    if (above < BLOCK) {
        v->present[above / 64] |= UINT64_C(1) << above % 64;
    }
}

static void clear_values(values *v) {
    for (uint32_t w = 0; w < BLOCK / 64; w++) {
        for (uint64_t present = v->present[w]; present; present &= present - 1) {
            uint32_t x = 64 * w + (uint32_t)__builtin_ctzll(present);
            v->positives[x] = v->negatives[x] = 0;
        }
    }
}

/* The first value present beyond x; -1: there is none. */
static int32_t next_present(const values *v, int32_t x, int32_t up) {
    for (x += up; x >= 0 && x < BLOCK; x = up > 0 ? (x | 63) + 1 : (x & ~63) - 1) {
        uint64_t word = v->present[x / 64];
        word = up > 0 ? word >> (x % 64) << (x % 64) : word << (63 - x % 64) >> (63 - x % 64);
        if (word) {
            return (x & ~63) + (up > 0 ? __builtin_ctzll(word) : 63 - __builtin_clzll(word));
        }
    }
    return -1;
}

/* Where a side ends that nothing bounds. */
static int32_t open_border(learner *l, uint32_t d, int32_t e, int32_t up, bool last) {
    if (l->training->options->learner == BW_LEARNER_ENSEMBLE) {
        return up > 0 ? BLOCK - 1 : 0;
    }
    if (last) {
        int32_t t = next_value(l, d, up > 0 ? BLOCK - 1 : 0, -up);
        return e + (t - e) * up * (int32_t)(bw_random_next(&l->random) % 65536) / 65536 * up;
    }
    for (int32_t f = up > 0 ? BLOCK - 1 : 0; (f - e) * up > 0; f -= up) {
        if (l->positives_at[d][f] > 0) {
            f += (f - e) * up * (int32_t)(bw_random_next(&l->random) % 65536) / 65536 * up;
            return f < 0 ? 0 : f > BLOCK - 1 ? BLOCK - 1 : f;
        }
    }
    return e;
}

/* Step 6 for one side; gives the border. */
static int32_t move_border(learner *l, growing *box, uint32_t place, const values *v, bool positives,
                           int32_t up) {
    uint32_t d = box->dims[place];
    int32_t border = up > 0 ? box->hi[place] : box->lo[place], e = border;
    if (positives) {
        int64_t best = impurity(l, box->positives, box->negatives);
        int64_t a = box->positives, b = box->negatives;
        int32_t value = next_present(v, border, up);
        for (uint32_t step = 0; step < MAX_STEPS && value >= 0; step++) {
            a += v->positives[value];
            b += v->negatives[value];
            int64_t now = impurity(l, a, b);
            if (now < best) {
                best = now;
                box->positives = a;
                box->negatives = b;
                e = value;
            }
            value = next_present(v, value, up);
        }
    }
    int32_t next = next_present(v, e, up);
    if (next < 0) {
        return open_border(l, d, e, up, place + 1 == box->size);
    }
    return e + (next - e) * up / 2 * up;
}

/* Steps 4 to 6; false: no box. */
static bool grow_box(learner *l, growing *box) {
    values *v = &l->values;
    if (!start_box(l, box)) {
        return false;
    }
    const uint64_t *before = l->remaining;
    for (uint32_t i = box->size; i-- > 1;) {
        uint32_t d = box->dims[i];
        uint64_t *to = l->suffix + i * l->words;
        const uint64_t *after = i + 1 < box->size ? l->suffix + (i + 1) * l->words : l->remaining;
        if (box->lo[i] == l->near_lo[d] && box->hi[i] == l->near_hi[d]) {
            const uint64_t *near = near_rows(l, d);
            for (size_t w = 0; w < l->words; w++) {
                to[w] = near[w] & after[w];
            }
        } else {
            filter(l, d, box->lo[i], box->hi[i], after, to);
        }
    }
    for (uint32_t i = 0; i < box->size; i++) {
        uint32_t d = box->dims[i];
        const uint8_t *column = l->columns + d * l->stride;
        const uint64_t *after = i + 1 < box->size ? l->suffix + (i + 1) * l->words : l->remaining;
        bool is_near = box->lo[i] == l->near_lo[d] && box->hi[i] == l->near_hi[d];
        size_t n = list_rows(l, before, after, is_near ? near_rows(l, d) : l->nothing);
        n = is_near ? n : drop_inside(l, column, box->lo[i], box->hi[i], n);
        find_values(l, column, box->lo[i], box->hi[i], n, v);
        box->lo[i] = (uint8_t)move_border(l, box, i, v, v->positives_below, -1);
        box->hi[i] = (uint8_t)move_border(l, box, i, v, v->positives_above, 1);
        clear_values(v);
        if (i + 1 < box->size) {
            uint64_t *to = l->prefix + (i % 2) * l->words;
            filter(l, d, box->lo[i], box->hi[i], before, to);
            before = to;
        }
    }
    return true;
}

static int32_t keep_box(learner *l, uint32_t estimator, const growing *box, bw_error *error) {
    uint32_t number = l->first_box[estimator + 1];
    if (number == l->box_capacity) {
        size_t capacity = l->box_capacity ? l->box_capacity * 2 : 64;
        bw_ranges *boxes = bw_realloc_array(l->boxes, capacity, sizeof *boxes);
        if (!boxes) {
            return bw_fail_nomem(error, capacity * sizeof *boxes);
        }
        l->boxes = boxes;
        l->box_capacity = capacity;
    }
    bw_ranges *ranges = &l->boxes[number];
    *ranges = (bw_ranges){0};
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        for (uint32_t i = 0; i < box->size; i++) {
            if (box->dims[i] == d) {
                ranges->dim[ranges->count] = (uint8_t)d;
                ranges->lo[ranges->count] = box->lo[i];
                ranges->hi[ranges->count++] = box->hi[i];
            }
        }
    }
    l->first_box[estimator + 1]++;
    return BW_OK;
}

static void remove_inside(learner *l, const growing *box) {
    const uint64_t *rows = l->remaining;
    for (uint32_t i = 0; i < box->size; i++) {
        uint64_t *to = l->prefix + (i % 2) * l->words;
        filter(l, box->dims[i], box->lo[i], box->hi[i], rows, to);
        rows = to;
    }
    for (size_t w = 0; w < l->words; w++) {
        for (uint64_t inside = rows[w]; inside; inside &= inside - 1) {
            remove_row(l, 64 * w + (size_t)__builtin_ctzll(inside));
        }
    }
}

/* Step 1. */
static void draw_seed(learner *l) {
    size_t row = 0;
    uint64_t place = bw_random_below(&l->random, (uint64_t)l->positives);
    while (place >= l->weights[row]) {
        place -= l->weights[row++];
    }
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        uint8_t x = l->columns[d * l->stride + row];
        int32_t lo = next_positive(l, d, x, -1), hi = next_positive(l, d, x, 1);
        l->seed[d] = x;
        l->near_lo[d] = lo < 0 ? x : (uint8_t)lo;
        l->near_hi[d] = hi < 0 ? x : (uint8_t)hi;
        l->near_known[d] = false;
    }
}

/* Steps 2 and 3; false: a failure. */
static bool find_box(learner *l, uint32_t count, growing *best) {
    uint8_t order[SUBSETS];
    bool drawn[SUBSETS] = {false}, found = false;
    int64_t least = 0;
    for (uint32_t s = 0; s < SUBSETS; s++) {
        order[s] = (uint8_t)s;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t j = i + (uint32_t)bw_random_below(&l->random, SUBSETS - i);
        uint8_t s = order[j];
        order[j] = order[i];
        drawn[s] = true;
    }
    for (uint32_t s = 0; s < SUBSETS; s++) {
        if (!drawn[s]) {
            continue;
        }
        growing box = {.size = l->subsets[s].size};
        memcpy(box.dims, l->subsets[s].dims, sizeof box.dims);
        for (uint32_t i = 0; i + 1 < box.size; i++) {
            uint32_t j = i + (uint32_t)bw_random_below(&l->random, box.size - i);
            uint8_t d = box.dims[j];
            box.dims[j] = box.dims[i];
            box.dims[i] = d;
        }
        if (grow_box(l, &box)) {
            int64_t now = impurity(l, box.positives, box.negatives);
            if (!found || now < least) {
                found = true;
                least = now;
                *best = box;
            }
        }
    }
    return found;
}

static int32_t grow_branch(learner *l, uint32_t estimator, uint32_t subsets, bw_error *error) {
    uint32_t boxes = 0, failures = 0;
    int32_t status = BW_OK;
    l->first_box[estimator + 1] = l->first_box[estimator];
    while (!status && l->positives > 0 && l->positives + l->negatives > 1 && boxes < MAX_BOXES &&
           failures < MAX_FAILURES) {
        growing box = {0};
        draw_seed(l);
        status = bw_training_cancelled(l->training, error);
        if (!status && find_box(l, subsets, &box)) {
            status = keep_box(l, estimator, &box, error);
            remove_inside(l, &box);
            boxes++;
            failures = 0;
        } else {
            failures++;
        }
    }
    return status;
}

/* ---- the learner ---- */

static int32_t allocate(learner *l, uint32_t estimators, bw_error *error) {
    l->columns = bw_alloc_zero(l->stride, BW_DIMS);
    l->sorted = bw_alloc_array(l->rows, BW_DIMS * sizeof *l->sorted);
    l->weights = bw_alloc_array(l->rows, sizeof *l->weights);
    l->list = bw_alloc_array(l->rows + 3, sizeof *l->list);
    l->used = bw_alloc_array(l->words + 1, sizeof *l->used);
    l->remaining = bw_alloc_array(l->words, sizeof *l->remaining);
    l->nothing = bw_alloc_zero(l->words, sizeof *l->nothing);
    l->near = bw_alloc_array(l->words, BW_DIMS * sizeof *l->near);
    l->suffix = bw_alloc_array(l->words, MAX_SUBSET * sizeof *l->suffix);
    l->prefix = bw_alloc_array(l->words, 2 * sizeof *l->prefix);
    l->first_box = bw_alloc_zero((size_t)estimators + 1, sizeof *l->first_box);
    if (!l->columns || !l->sorted || !l->weights || !l->list || !l->used || !l->remaining || !l->nothing ||
        !l->near || !l->suffix || !l->prefix || !l->first_box) {
        return bw_fail_nomem(error, l->rows * BW_DIMS * sizeof *l->sorted);
    }
    return BW_OK;
}

int32_t bw_train_paper(const bw_training *training, bw_model **model, bw_error *error) {
    bool ensemble = training->options->learner == BW_LEARNER_ENSEMBLE;
    uint32_t estimators = bw_training_estimators(training);
    learner *l = bw_alloc_zero(1, sizeof *l);
    if (!l) {
        return bw_fail_nomem(error, sizeof *l);
    }
    l->training = training;
    l->kernels = bw_kernels_get();
    l->random = (bw_random){training->options->seed};
    l->rows = training->n_positives + training->n_negatives + training->n_randoms;
    l->words = (l->rows + BLOCK - 1) / BLOCK * BLOCK_WORDS;
    l->stride = 64 * l->words + 64; /* columns that begin in different places of the cache */
    int32_t status = allocate(l, estimators, error);
    if (!status) {
        size_t given = training->n_positives + training->n_negatives;
        draw_subsets(l->subsets);
        add_columns(l, training->positives, training->n_positives, 0);
        add_columns(l, training->negatives, training->n_negatives, training->n_positives);
        add_columns(l, training->randoms, training->n_randoms, given);
        sort_rows(l);
    }
    for (uint32_t e = 0; e < estimators && !status; e++) {
        draw_rows(l, ensemble);
        status = grow_branch(l, e, ensemble ? ENSEMBLE_SUBSETS : BRANCH_SUBSETS, error);
    }
    if (!status) {
        status = bw_training_vote(training, l->first_box, l->boxes, model, error);
    }
    bw_free(l->columns);
    bw_free(l->sorted);
    bw_free(l->weights);
    bw_free(l->list);
    bw_free(l->used);
    bw_free(l->remaining);
    bw_free(l->nothing);
    bw_free(l->near);
    bw_free(l->suffix);
    bw_free(l->prefix);
    bw_free(l->first_box);
    bw_free(l->boxes);
    bw_free(l);
    return status;
}
