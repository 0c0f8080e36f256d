/* clang-format off */
/* train_branch.c - learners of decision branches, after "CLIP-Branches: Interactive Fine-Tuning for
 * Text-Image Retrieval" (SIGIR 2024): a branch is a union of boxes that are grown bottom-up around the
 * positives, with borders set by Gini between positives and negatives; an ensemble votes among branches on
 * bootstraps. What is ours: the size of a box comes from a variance with a prior, so that a few labels make a
 * box that generalises, and a tree inside each box takes away what the user marked as wrong.
 *
 * Everything is integer arithmetic; "/" rounds down, and isqrt is the integer square root. The specification,
 * which tests/learner_twin.py follows word by word:
 *
 * Training set. Rows are positives, given negatives and random negatives, in the order given. Random numbers
 * come from one SplitMix64 with the seed; below(n) is bw_random_below. Every negative weighs 256,
 * but for one step (7).
 *
 * Prior. Out of the random negatives (or, when they are fewer than 8, the given negatives followed by the
 * random ones) n = min(rows, 512) evenly spaced rows i * rows / n are taken, and for each the k = min(4, n -
 * 1) others nearest to it (squared distance, ties by place).
 *     prior[d] = max(256, 128 * (sum of the squared differences in d) / (n * k)), or 16384 where n = 1:
 * half the mean squared difference of neighbours is the variance inside small neighbourhoods; here in 1/256.
 *
 * Estimators, one after the other.
 *   ensemble: 16 dimensions are drawn (for i = 0 .. 15: j = i + below(32 - i); swap places i and j of 0, 1,
 *     .. 31; the first 16), then a bootstrap of the positives, and, after the given negatives, one of the
 *     random negatives: min(rows, limit) times below(rows), with limits 2048 and 4096. A row that is drawn c
 *     times counts c times. Given negatives are taken whole, as every estimator must know them; above 4096 of
 *     them they are drawn from likewise.
 *   branch: all 32 dimensions; a list longer than its limit is drawn from likewise, any other is taken whole.
 * Let P be the number of positives, W the weight of the negatives, both by count. The share of some positives
 * is their count * 65536 / P, that of some negatives their weight (times count) * 65536 / W. For two such
 * shares a and b
 *     purity(a, b) = part(a, b) + part(65536 - a, 65536 - b)
 *     part(a, b) = a * a / (a + 16 * b), or 0 where a = 0,
 * which rises as the Gini impurity of the division falls when the negatives weigh 16 times the positives:
 * what people look for is rare in a collection.
 *
 * Growth of a branch. While there are uncovered positives, fewer than 16 boxes, fewer leaves (6) than L =
 * min(128, 65536 / estimators), and fewer than 32 seeds were drawn:
 *   1. The seed is uncovered positive number below(how many there are), in the order of rows.
 *   2. The uncovered positives are sorted by squared distance to the seed, ties by row. Groups are the
 *      nearest m of them, for m = all, m / 2, m / 4, .. 1. Each group gives a box (3). Boxes that do not
 *      contain the seed are dropped; the one of the highest purity stays, on ties that of the larger group. a
 *      counts uncovered positives.
 *   3. The box of a group with n positives by count in u rows, with sum S and sum of squares Q in a
 *      dimension:
 *          scatter = 256 * (n * Q - S * S) * u / (n * n)
 *          scale = min(320, (4096 + sum over 32 dimensions of 256 * scatter / prior) / (16 + 32 * (u - 1)))
 *          local = max(256, prior * scale / 256)
 *          variance = (4 * local + scatter) * (u + 1) / ((u + 3) * u)
 *          z = 154 + 154 / (4 + u)
 *          half = max(16, isqrt(variance * z * z / 4096))
 *          center = (32 * S + n) / (2 * n)
 *          lo = max(0, ceiling((center - half) / 16)), hi = min(255, (center + half) / 16)
 *      This is a posterior predictive interval of z / 64 standard deviations, with half and center in 1/16.
 *      The 32 dimensions together tell how wide the group is against neighbourhoods in the collection, even
 *      when it has two rows: that is scale, in 1/256. Dimensions are then chosen out of the estimator's, 6 of
 *      them, one by one: the one that leaves the least weight of negatives inside the box so far; on ties,
 *      the one with the least weight of all negatives in its range; then the lowest.
 *   4. Borders of the box: for each chosen dimension in ascending order hi, then lo. The slab is the
 *      uncovered positives and the negatives inside the other chosen ranges. Candidates are the places within
 *      half / 128 of the border that stay in 0 .. 255 and leave the seed inside; the purity of each is that
 *      of the rows of the slab in the range that ends there. A border of the highest purity stays. Otherwise
 *      it goes to the middle (rounded towards the old border) of the nearest run of neighbouring candidates
 *      of the highest purity, on ties the run that makes the box larger: that is midway between the last row
 *      inside and the next one outside.
 *   5. The box is kept if the share of the uncovered positives inside it is more than twice that of the
 *      negatives. If it is, it is cut (6, 7). Then the positives inside it are covered, and the seed in any
 *      case. A branch left without boxes keeps its first one, and cuts it when all positives count as
 *      uncovered.
 *   6. Cuts. A tree (after CART) divides the box. Its root holds the uncovered positives and the given
 *      negatives inside the box, and a mass of 8192: positives nobody has marked yet, as many as 32, spread
 *      over the box, so that a cut shall cost little of it. Random negatives have no say, as positives nobody
 *      has marked are among them. The nodes are visited in the order in which they were made. A node with
 *      negatives and with positives or mass is divided, as long as the tree has fewer leaves than max(1, (L -
 *      leaves of the branch's earlier trees) / 2). Candidates are, in each of the estimator's dimensions, the
 *      places (x + y) / 2 between neighbouring different values x < y of the node's rows: rows up to the
 *      place go left. Mass m of a node with range lo .. hi (as cut so far, else 0 .. 255) in a
 *      box of range l .. h goes left by m * (F(place + 1) - F(lo)) / (F(hi + 1) - F(lo)), or m / 2 where that
 *      divides by 0, with the triangular distribution over T = h + 1 - l places,
 *          F(v) = 131072 * (v - l)^2 / T^2 in the lower half (2 * (v - l) <= T),
 *                 65536 - 131072 * (h + 1 - v)^2 / T^2 in the upper, 0 below l, 65536 above h.
 *      For a child with p = mass + 256 * count of positives and n = weight of negatives, let gini = 16 * (p *
 *      p + n * n) / (p + n), or 0 where p + n = 0. The candidate of the largest sum of both ginis is taken,
 *      on ties that of the largest (y - x)^2 * 65536 / prior; then the lowest dimension and place.
 *   7. Pruning, from the leaves up. To drop a node costs its p. To keep it whole costs the count of its
 *      negatives times floor(256 * negative_weight + 1/2). To keep it divided costs 128 and what its children
 *      cost. It is dropped unless keeping whole costs less; and divided if that costs less than either. What
 *      is kept whole is a box of the model, with the chosen dimensions and those that were cut.
 *
 * negative_weight enters in 7 only, with the cost of keeping whole: if it rises, a node that was divided or
 * dropped is never kept whole, and one that was dropped stays dropped. So no row ever gets more votes by a
 * higher weight.
 *
 * Model. One vote an estimator, threshold estimators / 2 + 1; score = votes * 2^21 - squared distance to the
 * mean positive (2 * S + n) / (2 * n). Squared distances are at most 2,080,800 < 2^21, so votes lead. */
/* clang-format on */
#include "train.h"

#include <stdlib.h>
#include <string.h>

#define POSITIVE_LIMIT 2048 /* rows an estimator: training stays below a second, */
#define NEGATIVE_LIMIT 4096 /* sums of squares and of weights far below 2^63 */
#define PRIOR_MINIMUM 8
#define PRIOR_STRENGTH 4  /* the prior counts as 4 - 1 positives, */
#define SCALE_STRENGTH 16 /* its scale as 16 differences in one dimension */
#define MAX_SCALE 320     /* groups of several classes are wide: do not take that for a wide class */
#define WEIGHT_ONE 256
#define SHARE_ONE INT64_C(65536)
#define NEGATIVE_MASS 16
#define DRAWN_DIMS 16
#define MAX_BOX_DIMS 6
#define MAX_BOXES 16
#define MAX_SEEDS 32
#define MAX_LEAVES 128       /* of an estimator: bounds the work; BW_MAX_BOXES may allow fewer */
#define MAX_NODES MAX_LEAVES /* a tree has at most MAX_LEAVES / 2 leaves */
#define BOX_MASS 8192
#define CUT_COST 128

/* Rows of one kind with how often each counts. */
typedef struct rows {
    uint32_t count;
    const uint8_t **codes;
    uint32_t *weights;
} rows;

typedef struct neighbour {
    uint32_t distance;
    uint32_t row;
} neighbour;

typedef struct learner {
    const bw_training *training;
    const uint8_t *positives, *negatives, *randoms;
    size_t n_positives, n_negatives, n_randoms;
    uint32_t negative_weight;
    bw_random random;
    int64_t prior[BW_DIMS];

    /* the estimator at work */
    uint8_t dims[BW_DIMS]; /* ascending */
    uint32_t n_dims;
    rows p, n;
    int64_t p_total, n_total;
    bool *covered;   /* of p */
    neighbour *near; /* of p */

    /* The negatives by dimension, and bitmaps of them in `words` words: whole blocks of the box kernel; bits
     * past the last row are not set in `every`, and so in none. */
    const bw_kernels *kernels;
    size_t stride, words;
    uint8_t *columns; /* [32][stride] */
    uint64_t *every;
    uint64_t *digits; /* [n_digits][words]: the rows' weights / WEIGHT_ONE in binary */
    uint32_t n_digits;
    uint64_t *within;   /* [32][words]: rows inside the range of a dimension */
    uint64_t *inside;   /* rows inside the box at work */
    uint64_t *weighing; /* [n_digits][words]: scratch */

    uint32_t *draws;  /* scratch for bootstraps */
    uint32_t n_given; /* the first so many of n are given negatives */
    uint32_t boxes_grown, leaves, max_leaves;
    struct node *nodes;                        /* of the tree at work */
    uint32_t *node_positives, *node_negatives; /* rows of p and n, each node's in one run */
    int32_t mass[BW_DIMS][257];                /* mass_below of the box at work */

    /* the model so far */
    uint32_t *first_box;
    bw_ranges *boxes;
    size_t box_capacity;
} learner;

/* A box at work: ranges in all dimensions, of which `chosen` (ascending) count. */
typedef struct growing {
    int32_t lo[BW_DIMS], hi[BW_DIMS];
    int64_t half[BW_DIMS];
    uint8_t chosen[MAX_BOX_DIMS];
    uint32_t n_chosen;
} growing;

/* A node of the tree inside a box. `left` is 0 in a leaf; the right child comes after the left one. */
typedef struct node {
    uint8_t lo[BW_DIMS], hi[BW_DIMS];
    uint32_t positives, positives_end, negatives, negatives_end; /* in node_positives and node_negatives */
    uint32_t left;
    int64_t mass, cost;
    enum { DROPPED, WHOLE, DIVIDED } state;
} node;

static uint32_t squared_distance(const uint8_t *a, const uint8_t *b) {
    uint32_t sum = 0;
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        int32_t difference = (int32_t)a[d] - b[d];
        sum += (uint32_t)(difference * difference);
    }
    return sum;
}

static int64_t integer_root(int64_t value) {
    int64_t root = 0;
    for (int64_t bit = INT64_C(1) << 31; bit > 0; bit >>= 1) {
        int64_t trial = root | bit;
        if (trial * trial <= value) {
            root = trial;
        }
    }
    return root;
}

static int64_t part(int64_t a, int64_t b) {
    return a == 0 ? 0 : a * a / (a + NEGATIVE_MASS * b);
}

static int64_t purity(int64_t a, int64_t b) {
    return part(a, b) + part(SHARE_ONE - a, SHARE_ONE - b);
}

static bool contains(const growing *box, const uint8_t *code, uint32_t but_dim) {
    for (uint32_t i = 0; i < box->n_chosen; i++) {
        uint32_t d = box->chosen[i];
        if (d != but_dim && (code[d] < box->lo[d] || code[d] > box->hi[d])) {
            return false;
        }
    }
    return true;
}

/* ---- bitmaps of negatives ---- */

#define BLOCK_WORDS (BW_BLOCK_ROWS / 64)
#define MAX_DIGITS 13 /* NEGATIVE_LIMIT draws of one row */

/* Fills l->within of one dimension. */
static void find_within(learner *l, uint32_t d, int32_t lo, int32_t hi) {
    const bw_ranges range = {.count = 1, .lo = {(uint8_t)lo}, .hi = {(uint8_t)hi}};
    for (size_t w = 0; w < l->words; w += BLOCK_WORDS) {
        l->kernels->box(l->columns + d * l->stride + 64 * w, 0, &range, l->every + w,
                        l->within + d * l->words + w);
    }
}

/* How many bits two bitmaps have in common: sums of ever wider groups of bits, which compilers vectorise. */
static int64_t count_common(const uint64_t *a, const uint64_t *b, size_t words) {
    int64_t count = 0;
    for (size_t first = 0; first < words; first += 7 * BLOCK_WORDS) {
        size_t end = first + 7 * BLOCK_WORDS < words ? first + 7 * BLOCK_WORDS : words;
        uint64_t bytes = 0; /* at most 28 * 8 each */
        for (size_t w = first; w < end; w++) {
            uint64_t x = a[w] & b[w];
            x -= x >> 1 & UINT64_C(0x5555555555555555);
            x = (x & UINT64_C(0x3333333333333333)) + (x >> 2 & UINT64_C(0x3333333333333333));
            bytes += (x + (x >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
        }
        bytes = (bytes & UINT64_C(0x00ff00ff00ff00ff)) + (bytes >> 8 & UINT64_C(0x00ff00ff00ff00ff));
        count += (int64_t)(bytes * UINT64_C(0x0001000100010001) >> 48);
    }
    return count;
}

/* The weight of `rows`. */
static int64_t weigh(const learner *l, const uint64_t *rows) {
    int64_t sum = 0;
    for (uint32_t k = 0; k < l->n_digits; k++) {
        sum += count_common(rows, l->digits + k * l->words, l->words) << k;
    }
    return WEIGHT_ONE * sum;
}

/* Fills l->within for the chosen dimensions of a box, and l->inside. */
static void find_inside(learner *l, const growing *box) {
    memcpy(l->inside, l->every, l->words * sizeof *l->inside);
    for (uint32_t i = 0; i < box->n_chosen; i++) {
        uint32_t d = box->chosen[i];
        find_within(l, d, box->lo[d], box->hi[d]);
        for (size_t w = 0; w < l->words; w++) {
            l->inside[w] &= l->within[d * l->words + w];
        }
    }
}

/* Shares of the uncovered positives inside a box, and of the negatives, which are l->inside. */
static void shares(const learner *l, const growing *box, int64_t *a, int64_t *b) {
    int64_t positives = 0;
    for (uint32_t i = 0; i < l->p.count; i++) {
        positives += !l->covered[i] && contains(box, l->p.codes[i], BW_DIMS) ? l->p.weights[i] : 0;
    }
    *a = positives * SHARE_ONE / l->p_total;
    *b = weigh(l, l->inside) * SHARE_ONE / l->n_total;
}

/* ---- prior ---- */

static void find_prior(learner *l) {
    bool enough = l->n_randoms >= PRIOR_MINIMUM;
    size_t rows = enough ? l->n_randoms : l->n_negatives + l->n_randoms;
    size_t n = rows < BW_PRIOR_ROWS ? rows : BW_PRIOR_ROWS;
    const uint8_t *codes[BW_PRIOR_ROWS];
    for (size_t i = 0; i < n; i++) {
        size_t row = i * rows / n;
        bool random = enough || row >= l->n_negatives;
        codes[i] = random ? l->randoms + (enough ? row : row - l->n_negatives) * BW_DIMS
                          : l->negatives + row * BW_DIMS;
    }
    bw_training_prior(codes, n, l->prior);
}

/* ---- estimators ---- */

/* Adds a list to `to`: whole, or drawn from. */
static void take_rows(learner *l, const uint8_t *codes, size_t n, size_t limit, bool bootstrap,
                      uint32_t weight, rows *to) {
    size_t draws = n < limit ? n : limit;
    if (n == 0) {
        return;
    }
    if (!bootstrap && n <= limit) {
        for (size_t i = 0; i < n; i++) {
            to->codes[to->count] = codes + i * BW_DIMS;
            to->weights[to->count++] = weight;
        }
        return;
    }
    memset(l->draws, 0, n * sizeof *l->draws);
    for (size_t i = 0; i < draws; i++) {
        l->draws[bw_random_below(&l->random, n)]++;
    }
    for (size_t i = 0; i < n; i++) {
        if (l->draws[i] > 0) {
            to->codes[to->count] = codes + i * BW_DIMS;
            to->weights[to->count++] = weight * l->draws[i];
        }
    }
}

static int64_t total_weight(const rows *r) {
    int64_t sum = 0;
    for (uint32_t i = 0; i < r->count; i++) {
        sum += r->weights[i];
    }
    return sum;
}

static void index_negatives(learner *l) {
    uint32_t most = 0;
    l->words = (l->n.count + BW_BLOCK_ROWS - 1) / BW_BLOCK_ROWS * BLOCK_WORDS;
    for (uint32_t i = 0; i < l->n.count; i++) {
        most |= l->n.weights[i] / WEIGHT_ONE;
    }
    for (l->n_digits = 0; most >> l->n_digits > 0; l->n_digits++) {
    }
    for (size_t w = 0; w < l->words; w++) {
        size_t first = 64 * w, n = l->n.count > first ? l->n.count - first : 0;
        n = n < 64 ? n : 64;
        l->every[w] = n < 64 ? (UINT64_C(1) << n) - 1 : UINT64_MAX;
        for (uint32_t k = 0; k < l->n_digits; k++) {
            uint64_t digit = 0;
            for (size_t i = 0; i < n; i++) {
                digit |= (uint64_t)(l->n.weights[first + i] / WEIGHT_ONE >> k & 1) << i;
            }
            l->digits[k * l->words + w] = digit;
        }
        for (uint32_t j = 0; j < l->n_dims; j++) {
            uint32_t d = l->dims[j];
            for (size_t i = 0; i < n; i++) {
                l->columns[d * l->stride + first + i] = l->n.codes[first + i][d];
            }
        }
    }
}

static void draw_estimator(learner *l, bool bootstrap) {
    l->n_dims = BW_DIMS;
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        l->dims[d] = (uint8_t)d;
    }
    if (bootstrap) {
        bool drawn[BW_DIMS] = {false};
        for (uint32_t i = 0; i < DRAWN_DIMS; i++) {
            uint32_t j = i + (uint32_t)bw_random_below(&l->random, BW_DIMS - i);
            uint8_t d = l->dims[j];
            l->dims[j] = l->dims[i];
            l->dims[i] = d;
            drawn[d] = true;
        }
        l->n_dims = 0;
        for (uint32_t d = 0; d < BW_DIMS; d++) {
            if (drawn[d]) {
                l->dims[l->n_dims++] = (uint8_t)d;
            }
        }
    }
    l->p.count = 0;
    l->n.count = 0;
    take_rows(l, l->positives, l->n_positives, POSITIVE_LIMIT, bootstrap, 1, &l->p);
    take_rows(l, l->negatives, l->n_negatives, NEGATIVE_LIMIT, false, WEIGHT_ONE, &l->n);
    l->n_given = l->n.count;
    take_rows(l, l->randoms, l->n_randoms, NEGATIVE_LIMIT, bootstrap, WEIGHT_ONE, &l->n);
    l->p_total = total_weight(&l->p);
    l->n_total = total_weight(&l->n);
    index_negatives(l);
    memset(l->covered, 0, l->p.count * sizeof *l->covered);
}

/* ---- boxes ---- */

/* Ranges of all dimensions around the first m rows of l->near. */
static void set_ranges(const learner *l, uint32_t m, growing *box) {
    int64_t n = 0, sums[BW_DIMS] = {0}, squares[BW_DIMS] = {0}, u = m;
    for (uint32_t i = 0; i < m; i++) {
        const uint8_t *code = l->p.codes[l->near[i].row];
        int64_t weight = l->p.weights[l->near[i].row];
        n += weight;
        for (uint32_t d = 0; d < BW_DIMS; d++) {
            sums[d] += weight * code[d];
            squares[d] += weight * code[d] * code[d];
        }
    }
    int64_t z = 154 + 154 / (4 + u), scatter[BW_DIMS], ratios = 0;
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        /* n and u are at most 2048, so the product's largest part is below 256 * 2^22 * 2^16 * 2^11 = 2^57.
         */
        scatter[d] = 256 * (n * squares[d] - sums[d] * sums[d]) * u / (n * n);
        ratios += 256 * scatter[d] / l->prior[d];
    }
    int64_t scale = (256 * SCALE_STRENGTH + ratios) / (SCALE_STRENGTH + BW_DIMS * (u - 1));
    scale = scale < MAX_SCALE ? scale : MAX_SCALE;
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        int64_t local = l->prior[d] * scale / 256;
        local = local > 256 ? local : 256;
        int64_t variance = (PRIOR_STRENGTH * local + scatter[d]) * (u + 1) / ((u + PRIOR_STRENGTH - 1) * u);
        int64_t half = integer_root(variance * z * z / 4096);
        int64_t center = (32 * sums[d] + n) / (2 * n);
        half = half > 16 ? half : 16;
        box->half[d] = half;
        box->lo[d] = center > half ? (int32_t)((center - half + 15) / 16) : 0;
        box->hi[d] = (center + half) / 16 < 255 ? (int32_t)((center + half) / 16) : 255;
    }
}

/* Step 3's choice; fills l->inside. */
static void choose_dims(learner *l, growing *box) {
    bool used[BW_DIMS] = {false};
    int64_t alone[BW_DIMS], left[BW_DIMS];
    uint32_t limit = l->n_dims < MAX_BOX_DIMS ? l->n_dims : MAX_BOX_DIMS;
    for (uint32_t j = 0; j < l->n_dims; j++) {
        uint32_t d = l->dims[j];
        find_within(l, d, box->lo[d], box->hi[d]);
        left[d] = alone[d] = weigh(l, l->within + d * l->words);
    }
    memcpy(l->inside, l->every, l->words * sizeof *l->inside);
    for (uint32_t step = 0; step < limit; step++) {
        uint32_t best = BW_DIMS;
        for (uint32_t j = 0; j < l->n_dims; j++) {
            uint32_t d = l->dims[j];
            if (!used[d] && (best == BW_DIMS || left[d] < left[best] ||
                             (left[d] == left[best] && alone[d] < alone[best]))) {
                best = d;
            }
        }
        used[best] = true;
        for (size_t w = 0; w < l->words; w++) {
            l->inside[w] &= l->within[best * l->words + w];
        }
        for (uint32_t k = 0; k < l->n_digits; k++) {
            for (size_t w = 0; w < l->words; w++) {
                l->weighing[k * l->words + w] = l->inside[w] & l->digits[k * l->words + w];
            }
        }
        for (uint32_t j = 0; j < l->n_dims && step + 1 < limit; j++) {
            uint32_t d = l->dims[j];
            left[d] = 0;
            for (uint32_t k = 0; !used[d] && k < l->n_digits; k++) {
                left[d] += count_common(l->within + d * l->words, l->weighing + k * l->words, l->words) << k;
            }
        }
    }
    box->n_chosen = 0;
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        if (used[d]) {
            box->chosen[box->n_chosen++] = (uint8_t)d;
        }
    }
}

static int compare_neighbours(const void *a, const void *b) {
    const neighbour *x = a, *y = b;
    if (x->distance != y->distance) {
        return x->distance < y->distance ? -1 : 1;
    }
    return (x->row > y->row) - (x->row < y->row);
}

/* Steps 2 and 3: the best box around the seed. */
static void grow_box(learner *l, uint32_t seed, growing *best) {
    uint32_t n = 0;
    int64_t best_purity = -1;
    for (uint32_t i = 0; i < l->p.count; i++) {
        if (!l->covered[i]) {
            l->near[n++] = (neighbour){squared_distance(l->p.codes[i], l->p.codes[seed]), i};
        }
    }
    qsort(l->near, n, sizeof *l->near, compare_neighbours);
    for (uint32_t m = n; m > 0; m /= 2) {
        growing box;
        int64_t a, b;
        set_ranges(l, m, &box);
        choose_dims(l, &box);
        if (contains(&box, l->p.codes[seed], BW_DIMS)) {
            shares(l, &box, &a, &b);
            if (purity(a, b) > best_purity) {
                best_purity = purity(a, b);
                *best = box;
            }
        }
    }
}

/* Step 4 for one border. `up` is 1 for hi and -1 for lo; places are counted outwards from the old border.
 * positives and negatives are the weights in the slab by value. */
static void move_border(const learner *l, growing *box, uint32_t seed, uint32_t d, int32_t up,
                        const int64_t positives[256], const int64_t negatives[256]) {
    int64_t gains[256];
    int32_t band = (int32_t)(box->half[d] / 128), old = up > 0 ? box->hi[d] : box->lo[d];
    int32_t x = l->p.codes[seed][d];
    int32_t first = -band, last = band;
    if (first < (x - old) * up) {
        first = (x - old) * up;
    }
    int32_t room = up > 0 ? 255 - old : old;
    last = last < room ? last : room;
    int64_t a = 0, b = 0, best = -1;
    int32_t start = up > 0 ? box->lo[d] : box->hi[d];
    for (int32_t t = start; (t - old) * up <= last; t += up) {
        a += positives[t];
        b += negatives[t];
        int32_t place = (t - old) * up;
        if (place >= first) {
            int64_t gain = purity(a * SHARE_ONE / l->p_total, b * SHARE_ONE / l->n_total);
            gains[place - first] = gain;
            best = gain > best ? gain : best;
        }
    }
    if (gains[-first] == best) {
        return;
    }
    int32_t chosen = 0, nearest = INT32_MAX;
    for (int32_t place = first; place <= last; place++) {
        int32_t end = place;
        if (gains[place - first] != best) {
            continue;
        }
        while (end < last && gains[end + 1 - first] == best) {
            end++;
        }
        int32_t away = place > 0 ? place : -end;
        if (away <= nearest) { /* runs come from the inside out */
            nearest = away;
            chosen = (place + end) / 2;
        }
        place = end;
    }
    *(up > 0 ? &box->hi[d] : &box->lo[d]) = old + chosen * up;
}

/* Step 4. l->within holds the chosen ranges, and does so afterwards. */
static void move_borders(learner *l, growing *box, uint32_t seed) {
    for (uint32_t i = 0; i < box->n_chosen; i++) {
        uint32_t d = box->chosen[i];
        const uint8_t *column = l->columns + d * l->stride;
        int64_t positives[256] = {0}, negatives[256] = {0};
        for (uint32_t r = 0; r < l->p.count; r++) {
            if (!l->covered[r] && contains(box, l->p.codes[r], d)) {
                positives[l->p.codes[r][d]] += l->p.weights[r];
            }
        }
        for (size_t w = 0; w < l->words; w++) {
            uint64_t slab = l->every[w];
            for (uint32_t j = 0; j < box->n_chosen; j++) {
                slab &= j == i ? UINT64_MAX : l->within[box->chosen[j] * l->words + w];
            }
            for (; slab; slab &= slab - 1) {
                size_t row = 64 * w + (size_t)__builtin_ctzll(slab);
                negatives[column[row]] += l->n.weights[row];
            }
        }
        move_border(l, box, seed, d, 1, positives, negatives);
        move_border(l, box, seed, d, -1, positives, negatives);
        find_within(l, d, box->lo[d], box->hi[d]);
    }
}

/* ---- cuts ---- */

/* The share of the mass at places below x, of 65536. */
static int64_t mass_below(const growing *box, uint32_t d, int64_t x) {
    int64_t low = x - box->lo[d], high = box->hi[d] + 1 - x, all = low + high;
    if (low <= 0) {
        return 0;
    }
    if (high <= 0) {
        return SHARE_ONE;
    }
    return 2 * low <= all ? 2 * SHARE_ONE * low * low / (all * all)
                          : SHARE_ONE - 2 * SHARE_ONE * high * high / (all * all);
}

/* For p, n < 2^23. */
static int64_t gini(int64_t p, int64_t n) {
    return p + n == 0 ? 0 : bw_quotient(16 * (p * p + n * n), p + n);
}

/* Moves the rows of a run with codes up to `place` to its front; gives the end of these. */
static uint32_t divide_rows(const rows *r, uint32_t *run, uint32_t first, uint32_t end, uint32_t d,
                            int32_t place) {
    for (uint32_t i = first; i < end; i++) {
        uint32_t row = run[i];
        if (r->codes[row][d] <= place) {
            run[i] = run[first];
            run[first++] = row;
        }
    }
    return first;
}

struct cut {
    uint32_t dim;
    int32_t place;
    int64_t mass; /* that goes left */
};

/* Fills l->mass of a dimension for a box. */
static void find_mass(learner *l, const growing *box, uint32_t d) {
    for (int32_t x = 0; x <= 256; x++) {
        l->mass[d][x] = (int32_t)mass_below(box, d, x);
    }
}

/* Weights of a node's rows in one dimension by value. */
typedef struct values {
    uint64_t present[256 / 64];
    int32_t positives[256], negatives[256]; /* zero where not present, and between uses */
} values;

static void find_values(const learner *l, const node *v, uint32_t d, values *values) {
    const uint8_t *column = l->columns + d * l->stride;
    memset(values->present, 0, sizeof values->present);
    for (uint32_t i = v->positives; i < v->positives_end; i++) {
        uint32_t row = l->node_positives[i];
        uint8_t x = l->p.codes[row][d];
        values->positives[x] += (int32_t)(WEIGHT_ONE * l->p.weights[row]);
        values->present[x / 64] |= UINT64_C(1) << x % 64;
    }
    for (uint32_t i = v->negatives; i < v->negatives_end; i++) {
        uint32_t row = l->node_negatives[i];
        uint8_t x = column[row];
        values->negatives[x] += (int32_t)l->n.weights[row];
        values->present[x / 64] |= UINT64_C(1) << x % 64;
    }
}

/* Finds the best cut of a node; false: all its rows have the same codes. */
static bool find_cut(const learner *l, const node *v, values *values, struct cut *cut) {
    int64_t best = -1, best_gap = -1, p = v->mass, n = 0;
    for (uint32_t i = v->positives; i < v->positives_end; i++) {
        p += (int64_t)WEIGHT_ONE * l->p.weights[l->node_positives[i]];
    }
    for (uint32_t i = v->negatives; i < v->negatives_end; i++) {
        n += l->n.weights[l->node_negatives[i]];
    }
    for (uint32_t j = 0; j < l->n_dims; j++) {
        uint32_t d = l->dims[j];
        const int32_t *below = l->mass[d];
        int64_t first = below[v->lo[d]], all = below[v->hi[d] + 1] - first, a = 0, b = 0;
        int32_t last = -1;
        find_values(l, v, d, values);
        for (uint32_t w = 0; w < 256 / 64; w++) {
            for (uint64_t present = values->present[w]; present; present &= present - 1) {
                int32_t x = (int32_t)(64 * w) + __builtin_ctzll(present);
                if (last >= 0) {
                    int32_t place = (last + x) / 2;
                    int64_t mass = v->mass / 2, away = x - last;
                    if (all > 0) {
                        mass = v->mass * (below[place + 1] - first);
                        mass = all == SHARE_ONE ? mass / SHARE_ONE : bw_quotient(mass, all);
                    }
                    int64_t left = a + mass, gain = gini(left, b) + gini(p - left, n - b);
                    if (gain >= best) {
                        int64_t gap = away * away * SHARE_ONE / l->prior[d];
                        if (gain > best || gap > best_gap) {
                            best = gain;
                            best_gap = gap;
                            *cut = (struct cut){d, place, mass};
                        }
                    }
                }
                a += values->positives[x];
                b += values->negatives[x];
                values->positives[x] = values->negatives[x] = 0;
                last = x;
            }
        }
    }
    return best >= 0;
}

/* Step 6; gives the number of nodes. l->inside is the box's. */
static uint32_t grow_tree(learner *l, const growing *box) {
    uint32_t count = 1, limit = (l->max_leaves - l->leaves) / 2;
    values values = {0};
    node *root = &l->nodes[0];
    *root = (node){.mass = BOX_MASS};
    memset(root->hi, 255, sizeof root->hi);
    for (uint32_t i = 0; i < box->n_chosen; i++) {
        uint32_t d = box->chosen[i];
        root->lo[d] = (uint8_t)box->lo[d];
        root->hi[d] = (uint8_t)box->hi[d];
    }
    for (uint32_t i = 0; i < l->p.count; i++) {
        if (!l->covered[i] && contains(box, l->p.codes[i], BW_DIMS)) {
            l->node_positives[root->positives_end++] = i;
        }
    }
    for (uint32_t w = 0; 64 * w < l->n_given; w++) {
        for (uint64_t rows = l->inside[w]; rows; rows &= rows - 1) {
            uint32_t row = 64 * w + (uint32_t)__builtin_ctzll(rows);
            if (row < l->n_given) {
                l->node_negatives[root->negatives_end++] = row;
            }
        }
    }
    for (uint32_t j = 0; j < l->n_dims && root->negatives_end > 0; j++) {
        find_mass(l, box, l->dims[j]);
    }
    for (uint32_t i = 0; i < count && (count + 1) / 2 < limit; i++) {
        node *v = &l->nodes[i], *left = &l->nodes[count], *right = left + 1;
        struct cut cut;
        if (v->negatives == v->negatives_end || (v->positives == v->positives_end && v->mass == 0) ||
            !find_cut(l, v, &values, &cut)) {
            continue;
        }
        *left = *right = *v;
        left->mass = cut.mass;
        right->mass = v->mass - left->mass;
        left->hi[cut.dim] = (uint8_t)cut.place;
        right->lo[cut.dim] = (uint8_t)(cut.place + 1);
        left->positives_end = right->positives =
            divide_rows(&l->p, l->node_positives, v->positives, v->positives_end, cut.dim, cut.place);
        left->negatives_end = right->negatives =
            divide_rows(&l->n, l->node_negatives, v->negatives, v->negatives_end, cut.dim, cut.place);
        v->left = count;
        count += 2;
    }
    l->leaves += (count + 1) / 2;
    return count;
}

static int32_t keep_node(learner *l, uint32_t estimator, const growing *box, const node *v, bw_error *error) {
    uint32_t number = l->first_box[estimator + 1];
    bool chosen[BW_DIMS] = {false};
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
    for (uint32_t i = 0; i < box->n_chosen; i++) {
        chosen[box->chosen[i]] = true;
    }
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        if (chosen[d] || v->lo[d] > 0 || v->hi[d] < 255) {
            ranges->dim[ranges->count] = (uint8_t)d;
            ranges->lo[ranges->count] = v->lo[d];
            ranges->hi[ranges->count++] = v->hi[d];
        }
    }
    l->first_box[estimator + 1]++;
    return BW_OK;
}

/* Steps 6 and 7. Boxes come in the order of nodes. */
static int32_t cut_box(learner *l, uint32_t estimator, const growing *box, bw_error *error) {
    uint32_t count = grow_tree(l, box);
    bool alive[MAX_NODES] = {true};
    int32_t status = BW_OK;
    for (uint32_t i = count; i-- > 0;) {
        node *v = &l->nodes[i];
        int64_t whole = 0;
        v->cost = v->mass;
        v->state = DROPPED;
        for (uint32_t j = v->positives; j < v->positives_end; j++) {
            v->cost += (int64_t)WEIGHT_ONE * l->p.weights[l->node_positives[j]];
        }
        for (uint32_t j = v->negatives; j < v->negatives_end; j++) {
            whole += (int64_t)(l->n.weights[l->node_negatives[j]] / WEIGHT_ONE) * l->negative_weight;
        }
        if (whole < v->cost) {
            v->cost = whole;
            v->state = WHOLE;
        }
        if (v->left > 0 && CUT_COST + l->nodes[v->left].cost + l->nodes[v->left + 1].cost < v->cost) {
            v->cost = CUT_COST + l->nodes[v->left].cost + l->nodes[v->left + 1].cost;
            v->state = DIVIDED;
        }
    }
    for (uint32_t i = 0; i < count && !status; i++) {
        const node *v = &l->nodes[i];
        if (alive[i] && v->state == DIVIDED) {
            alive[v->left] = alive[v->left + 1] = true;
        } else if (alive[i] && v->state == WHOLE) {
            status = keep_node(l, estimator, box, v, error);
        }
    }
    l->boxes_grown++;
    return status;
}

static int32_t grow_branch(learner *l, uint32_t estimator, bw_error *error) {
    growing first = {0};
    int32_t status = BW_OK;
    l->first_box[estimator + 1] = l->first_box[estimator];
    l->boxes_grown = l->leaves = 0;
    for (uint32_t seeds = 0; seeds < MAX_SEEDS && !status; seeds++) {
        uint32_t uncovered = 0, seed = 0;
        for (uint32_t i = 0; i < l->p.count; i++) {
            uncovered += !l->covered[i];
        }
        if (uncovered == 0 || l->boxes_grown == MAX_BOXES || l->leaves >= l->max_leaves) {
            break;
        }
        uint64_t skip = bw_random_below(&l->random, uncovered);
        while (l->covered[seed] || skip > 0) {
            skip -= !l->covered[seed];
            seed++;
        }
        growing box;
        int64_t a, b;
        status = bw_training_cancelled(l->training, error);
        if (status) {
            break;
        }
        grow_box(l, seed, &box);
        find_inside(l, &box);
        move_borders(l, &box, seed);
        find_inside(l, &box);
        shares(l, &box, &a, &b);
        if (seeds == 0) {
            first = box;
        }
        if (a > 2 * b) {
            status = cut_box(l, estimator, &box, error);
        }
        for (uint32_t i = 0; i < l->p.count; i++) {
            l->covered[i] = l->covered[i] || i == seed || contains(&box, l->p.codes[i], BW_DIMS);
        }
    }
    if (!status && l->boxes_grown == 0) {
        memset(l->covered, 0, l->p.count * sizeof *l->covered);
        find_inside(l, &first);
        status = cut_box(l, estimator, &first, error);
    }
    return status;
}

/* ---- the learner ---- */

static int32_t allocate(learner *l, uint32_t estimators, bw_error *error) {
    size_t p = l->n_positives < POSITIVE_LIMIT ? l->n_positives : POSITIVE_LIMIT;
    size_t n = (l->n_negatives < NEGATIVE_LIMIT ? l->n_negatives : NEGATIVE_LIMIT) +
               (l->n_randoms < NEGATIVE_LIMIT ? l->n_randoms : NEGATIVE_LIMIT);
    size_t longest = l->n_positives > l->n_negatives ? l->n_positives : l->n_negatives;
    longest = longest > l->n_randoms ? longest : l->n_randoms;
    l->p.codes = bw_alloc_array(p, sizeof *l->p.codes);
    l->p.weights = bw_alloc_array(p, sizeof *l->p.weights);
    l->covered = bw_alloc_array(p, sizeof *l->covered);
    l->near = bw_alloc_array(p, sizeof *l->near);
    l->n.codes = bw_alloc_array(n, sizeof *l->n.codes);
    l->n.weights = bw_alloc_array(n, sizeof *l->n.weights);
    l->stride = (n + BW_BLOCK_ROWS - 1) / BW_BLOCK_ROWS * BW_BLOCK_ROWS + 64;
    l->columns = bw_alloc_zero(l->stride, BW_DIMS);
    l->every = bw_alloc_array(l->stride / 64, sizeof *l->every);
    l->digits = bw_alloc_array(l->stride / 64, MAX_DIGITS * sizeof *l->digits);
    l->within = bw_alloc_array(l->stride / 64, BW_DIMS * sizeof *l->within);
    l->inside = bw_alloc_array(l->stride / 64, sizeof *l->inside);
    l->weighing = bw_alloc_array(l->stride / 64, MAX_DIGITS * sizeof *l->weighing);
    l->draws = bw_alloc_array(longest, sizeof *l->draws);
    l->node_positives = bw_alloc_array(p, sizeof *l->node_positives);
    l->node_negatives = bw_alloc_array(n, sizeof *l->node_negatives);
    l->nodes = bw_alloc_array(MAX_NODES, sizeof *l->nodes);
    l->first_box = bw_alloc_zero((size_t)estimators + 1, sizeof *l->first_box);
    if (!l->p.codes || !l->p.weights || !l->covered || !l->near || !l->n.codes || !l->n.weights ||
        !l->columns || !l->every || !l->digits || !l->within || !l->inside || !l->weighing || !l->draws ||
        !l->node_positives || !l->node_negatives || !l->nodes || !l->first_box) {
        return bw_fail_nomem(error, longest * sizeof *l->draws);
    }
    return BW_OK;
}

int32_t bw_train_branch(const bw_training *training, bw_model **model, bw_error *error) {
    const bw_train_options *options = training->options;
    bool ensemble = options->learner == BW_LEARNER_ENSEMBLE;
    uint32_t estimators = bw_training_estimators(training);
    learner l = {.training = training,
                 .positives = training->positives,
                 .negatives = training->negatives,
                 .randoms = training->randoms,
                 .n_positives = training->n_positives,
                 .n_negatives = training->n_negatives,
                 .n_randoms = training->n_randoms,
                 .negative_weight = (uint32_t)(options->negative_weight * WEIGHT_ONE + 0.5),
                 .random = {options->seed},
                 .kernels = bw_kernels_get()};
    l.max_leaves = BW_MAX_BOXES / estimators < MAX_LEAVES ? BW_MAX_BOXES / estimators : MAX_LEAVES;
    int32_t status = allocate(&l, estimators, error);
    if (!status) {
        find_prior(&l);
    }
    for (uint32_t e = 0; e < estimators && !status; e++) {
        draw_estimator(&l, ensemble);
        status = grow_branch(&l, e, error);
    }
    if (!status) {
        status = bw_training_vote(training, l.first_box, l.boxes, model, error);
    }
    bw_free(l.p.codes);
    bw_free(l.p.weights);
    bw_free(l.covered);
    bw_free(l.near);
    bw_free(l.n.codes);
    bw_free(l.n.weights);
    bw_free(l.columns);
    bw_free(l.every);
    bw_free(l.digits);
    bw_free(l.within);
    bw_free(l.inside);
    bw_free(l.weighing);
    bw_free(l.draws);
    bw_free(l.node_positives);
    bw_free(l.node_negatives);
    bw_free(l.nodes);
    bw_free(l.first_box);
    bw_free(l.boxes);
    return status;
}
