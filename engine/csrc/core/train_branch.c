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
#include "index.h"
#include "model.h"

#include <stdlib.h>
#include <string.h>

#define MAX_LABELS 1000000
#define MAX_RANDOMS 100000
#define POSITIVE_LIMIT 2048 /* rows an estimator: training stays below a second, */
#define NEGATIVE_LIMIT 4096 /* sums of squares and of weights far below 2^63 */
#define PRIOR_ROWS 512      /* its distances take PRIOR_ROWS^2 * 32 steps, a few milliseconds */
#define PRIOR_NEIGHBOURS 4
#define PRIOR_MINIMUM 8
#define PRIOR_ALONE 16384 /* 8^2 in 1/256 */
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
#define VOTE_SHIFT 21

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
    bool *covered;    /* of p */
    neighbour *near;  /* of p */
    uint32_t *inside; /* of n: scratch */
    uint32_t *draws;  /* scratch for bootstraps */
    uint32_t n_given; /* the first so many of n are given negatives */
    uint32_t boxes_grown, leaves, max_leaves;
    struct node *nodes;                        /* of the tree at work */
    uint32_t *node_positives, *node_negatives; /* rows of p and n, each node's in one run */

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

/* Shares of the uncovered positives and of the negatives inside a box. */
static void shares(const learner *l, const growing *box, int64_t *a, int64_t *b) {
    int64_t positives = 0, negatives = 0;
    for (uint32_t i = 0; i < l->p.count; i++) {
        positives += !l->covered[i] && contains(box, l->p.codes[i], BW_DIMS) ? l->p.weights[i] : 0;
    }
    for (uint32_t i = 0; i < l->n.count; i++) {
        negatives += contains(box, l->n.codes[i], BW_DIMS) ? l->n.weights[i] : 0;
    }
    *a = positives * SHARE_ONE / l->p_total;
    *b = negatives * SHARE_ONE / l->n_total;
}

/* ---- prior ---- */

static const uint8_t *prior_row(const learner *l, size_t i, size_t n) {
    if (l->n_randoms >= PRIOR_MINIMUM) {
        return l->randoms + i * l->n_randoms / n * BW_DIMS;
    }
    size_t row = i * (l->n_negatives + l->n_randoms) / n;
    return row < l->n_negatives ? l->negatives + row * BW_DIMS
                                : l->randoms + (row - l->n_negatives) * BW_DIMS;
}

static void find_prior(learner *l) {
    size_t n = l->n_randoms >= PRIOR_MINIMUM ? l->n_randoms : l->n_negatives + l->n_randoms;
    n = n < PRIOR_ROWS ? n : PRIOR_ROWS;
    uint32_t k = n - 1 < PRIOR_NEIGHBOURS ? (uint32_t)n - 1 : PRIOR_NEIGHBOURS;
    int64_t sums[BW_DIMS] = {0};
    for (size_t i = 0; i < n; i++) {
        const uint8_t *code = prior_row(l, i, n);
        neighbour near[PRIOR_NEIGHBOURS];
        uint32_t found = 0;
        for (size_t j = 0; j < n; j++) {
            uint32_t distance = squared_distance(code, prior_row(l, j, n));
            if (j == i || (found == k && (k == 0 || distance >= near[k - 1].distance))) {
                continue;
            }
            uint32_t place = found < k ? found++ : k - 1;
            for (; place > 0 && near[place - 1].distance > distance; place--) {
                near[place] = near[place - 1];
            }
            near[place] = (neighbour){distance, (uint32_t)j};
        }
        for (uint32_t m = 0; m < k; m++) {
            const uint8_t *other = prior_row(l, near[m].row, n);
            for (uint32_t d = 0; d < BW_DIMS; d++) {
                int64_t difference = (int64_t)code[d] - other[d];
                sums[d] += difference * difference;
            }
        }
    }
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        int64_t value = k == 0 ? PRIOR_ALONE : 128 * sums[d] / ((int64_t)n * k);
        l->prior[d] = value > 256 ? value : 256;
    }
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

/* Weight of the negatives in the range of each of the estimator's dimensions: all of them, or the n in
 * l->inside. */
static void weigh_ranges(const learner *l, const growing *box, bool all, uint32_t n,
                         int64_t weights[BW_DIMS]) {
    memset(weights, 0, BW_DIMS * sizeof *weights);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t row = all ? i : l->inside[i];
        const uint8_t *code = l->n.codes[row];
        for (uint32_t j = 0; j < l->n_dims; j++) {
            uint32_t d = l->dims[j];
            weights[d] += code[d] >= box->lo[d] && code[d] <= box->hi[d] ? l->n.weights[row] : 0;
        }
    }
}

static void choose_dims(learner *l, growing *box) {
    bool used[BW_DIMS] = {false};
    int64_t alone[BW_DIMS], left[BW_DIMS];
    uint32_t inside = l->n.count, limit = l->n_dims < MAX_BOX_DIMS ? l->n_dims : MAX_BOX_DIMS;
    for (uint32_t i = 0; i < inside; i++) {
        l->inside[i] = i;
    }
    weigh_ranges(l, box, true, l->n.count, alone);
    for (uint32_t step = 0; step < limit; step++) {
        uint32_t best = BW_DIMS, kept = 0;
        if (step == 0) {
            memcpy(left, alone, sizeof left);
        } else {
            weigh_ranges(l, box, false, inside, left);
        }
        for (uint32_t j = 0; j < l->n_dims; j++) {
            uint32_t d = l->dims[j];
            if (!used[d] && (best == BW_DIMS || left[d] < left[best] ||
                             (left[d] == left[best] && alone[d] < alone[best]))) {
                best = d;
            }
        }
        used[best] = true;
        for (uint32_t i = 0; i < inside; i++) {
            uint8_t x = l->n.codes[l->inside[i]][best];
            l->inside[kept] = l->inside[i];
            kept += x >= box->lo[best] && x <= box->hi[best];
        }
        inside = kept;
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

/* Step 4 for one border. `up` is 1 for hi and -1 for lo; places are counted outwards from the old border. */
static void move_border(const learner *l, growing *box, uint32_t seed, uint32_t d, int32_t up) {
    int64_t positives[256] = {0}, negatives[256] = {0}, gains[256];
    int32_t band = (int32_t)(box->half[d] / 128), old = up > 0 ? box->hi[d] : box->lo[d];
    int32_t x = l->p.codes[seed][d];
    for (uint32_t i = 0; i < l->p.count; i++) {
        if (!l->covered[i] && contains(box, l->p.codes[i], d)) {
            positives[l->p.codes[i][d]] += l->p.weights[i];
        }
    }
    for (uint32_t i = 0; i < l->n.count; i++) {
        if (contains(box, l->n.codes[i], d)) {
            negatives[l->n.codes[i][d]] += l->n.weights[i];
        }
    }
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

/* The mass of a node that lies in dimension d at places up to `place`. `first` and `all` are mass_below at
 * the node's lo, and how much it rises up to its end. */
static int64_t mass_left(const growing *box, const node *v, uint32_t d, int32_t place, int64_t first,
                         int64_t all) {
    return all > 0 ? v->mass * (mass_below(box, d, (int64_t)place + 1) - first) / all : v->mass / 2;
}

static int64_t gini(int64_t p, int64_t n) {
    return p + n == 0 ? 0 : 16 * (p * p + n * n) / (p + n);
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

/* Finds the best cut of a node; false: all its rows have the same codes. */
static bool find_cut(const learner *l, const growing *box, const node *v, struct cut *cut) {
    int64_t best = -1, best_gap = -1;
    for (uint32_t j = 0; j < l->n_dims; j++) {
        uint32_t d = l->dims[j];
        int64_t positives[256] = {0}, negatives[256] = {0}, p = v->mass, n = 0, a = 0, b = 0;
        int64_t first = mass_below(box, d, v->lo[d]), all = mass_below(box, d, (int64_t)v->hi[d] + 1) - first;
        int32_t last = -1;
        for (uint32_t i = v->positives; i < v->positives_end; i++) {
            uint32_t row = l->node_positives[i];
            positives[l->p.codes[row][d]] += (int64_t)WEIGHT_ONE * l->p.weights[row];
            p += (int64_t)WEIGHT_ONE * l->p.weights[row];
        }
        for (uint32_t i = v->negatives; i < v->negatives_end; i++) {
            uint32_t row = l->node_negatives[i];
            negatives[l->n.codes[row][d]] += l->n.weights[row];
            n += l->n.weights[row];
        }
        for (int32_t x = v->lo[d]; x <= v->hi[d]; x++) {
            if (positives[x] + negatives[x] == 0) {
                continue;
            }
            if (last >= 0) {
                int32_t place = (last + x) / 2;
                int64_t mass = mass_left(box, v, d, place, first, all), left = a + mass, away = x - last;
                int64_t gain = gini(left, b) + gini(p - left, n - b);
                int64_t gap = away * away * SHARE_ONE / l->prior[d];
                if (gain > best || (gain == best && gap > best_gap)) {
                    best = gain;
                    best_gap = gap;
                    *cut = (struct cut){d, place, mass};
                }
            }
            a += positives[x];
            b += negatives[x];
            last = x;
        }
    }
    return best >= 0;
}

/* Step 6; gives the number of nodes. */
static uint32_t grow_tree(learner *l, const growing *box) {
    uint32_t count = 1, limit = (l->max_leaves - l->leaves) / 2;
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
    for (uint32_t i = 0; i < l->n_given; i++) {
        if (contains(box, l->n.codes[i], BW_DIMS)) {
            l->node_negatives[root->negatives_end++] = i;
        }
    }
    for (uint32_t i = 0; i < count && (count + 1) / 2 < limit; i++) {
        node *v = &l->nodes[i], *left = &l->nodes[count], *right = left + 1;
        struct cut cut;
        if (v->negatives == v->negatives_end || (v->positives == v->positives_end && v->mass == 0) ||
            !find_cut(l, box, v, &cut)) {
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
        grow_box(l, seed, &box);
        for (uint32_t i = 0; i < box.n_chosen; i++) {
            move_border(l, &box, seed, box.chosen[i], 1);
            move_border(l, &box, seed, box.chosen[i], -1);
        }
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
        status = cut_box(l, estimator, &first, error);
    }
    return status;
}

/* ---- the public functions ---- */

static int32_t check_options(const bw_train_options *options, bw_error *error) {
    if (!options) {
        return bw_fail(error, BW_INVALID, "train: no options");
    }
    if (options->learner != BW_LEARNER_BRANCH && options->learner != BW_LEARNER_ENSEMBLE) {
        return bw_fail(error, BW_INVALID, "train: unknown learner %d; it is %d (branch) or %d (ensemble)",
                       options->learner, BW_LEARNER_BRANCH, BW_LEARNER_ENSEMBLE);
    }
    if (options->learner == BW_LEARNER_ENSEMBLE &&
        (options->estimators < 1 || options->estimators > BW_MAX_ESTIMATORS)) {
        return bw_fail(error, BW_INVALID, "train: estimators: %u is out of range 1..%d", options->estimators,
                       BW_MAX_ESTIMATORS);
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

static int32_t check_counts(size_t positives, size_t negatives, bw_error *error) {
    if (positives == 0) {
        return bw_fail(error, BW_INVALID, "train: there are no positives; mark at least one image as right");
    }
    if (positives > MAX_LABELS || negatives > MAX_LABELS) {
        return bw_fail(error, BW_INVALID, "train: %zu %s; at most %d are allowed",
                       positives > MAX_LABELS ? positives : negatives,
                       positives > MAX_LABELS ? "positives" : "negatives", MAX_LABELS);
    }
    return BW_OK;
}

static int32_t make_model(const learner *l, const bw_train_options *options, const char *quantizer,
                          bw_model **model, bw_error *error) {
    bool ensemble = options->learner == BW_LEARNER_ENSEMBLE;
    uint32_t estimators = ensemble ? options->estimators : 1;
    int64_t n = (int64_t)l->n_positives;
    bw_score score = {.votes = INT64_C(1) << VOTE_SHIFT, .shift = VOTE_SHIFT};
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        int64_t sum = 0;
        for (size_t i = 0; i < l->n_positives; i++) {
            sum += l->positives[i * BW_DIMS + d];
        }
        int64_t mean = (2 * sum + n) / (2 * n);
        score.linear[d] = 2 * mean;
        score.square[d] = -1;
        score.constant -= mean * mean;
    }
    /* The weight in hundredths is exact enough to read and the same whatever the locale. */
    bw_text training = {0};
    uint32_t hundredths = (uint32_t)(options->negative_weight * 100 + 0.5);
    bw_text_append(&training,
                   "{\"positives\":%zu,\"negatives\":%zu,\"random_negatives\":%zu,\"negative_weight\":%u.%"
                   "02u,\"seed\":%llu}",
                   l->n_positives, l->n_negatives, l->n_randoms, hundredths / 100, hundredths % 100,
                   (unsigned long long)options->seed);
    if (training.failed) {
        bw_free(training.data);
        return bw_fail_nomem(error, 256);
    }
    int32_t status = bw_model_new(ensemble ? "ensemble" : "branch", quantizer, estimators, l->first_box,
                                  l->boxes, estimators / 2 + 1, &score, training.data, model, error);
    bw_free(training.data);
    return status;
}

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
    l->inside = bw_alloc_array(n, sizeof *l->inside);
    l->draws = bw_alloc_array(longest, sizeof *l->draws);
    l->node_positives = bw_alloc_array(p, sizeof *l->node_positives);
    l->node_negatives = bw_alloc_array(n, sizeof *l->node_negatives);
    l->nodes = bw_alloc_array(MAX_NODES, sizeof *l->nodes);
    l->first_box = bw_alloc_zero((size_t)estimators + 1, sizeof *l->first_box);
    if (!l->p.codes || !l->p.weights || !l->covered || !l->near || !l->n.codes || !l->n.weights ||
        !l->inside || !l->draws || !l->node_positives || !l->node_negatives || !l->nodes || !l->first_box) {
        return bw_fail_nomem(error, longest * sizeof *l->draws);
    }
    return BW_OK;
}

int32_t bw_train_codes(const uint8_t *positives, size_t n_positives, const uint8_t *negatives,
                       size_t n_negatives, const uint8_t *randoms, size_t n_randoms,
                       const bw_train_options *options, const char *quantizer, bw_model **model,
                       bw_train_stats *stats, bw_error *error) {
    uint64_t start = bw_now();
    int32_t status = check_options(options, error);
    if (!status) {
        status = check_counts(n_positives, n_negatives, error);
    }
    if (!status && n_randoms > MAX_RANDOMS) {
        status = bw_fail(error, BW_INVALID, "train: %zu random negatives; at most %d are allowed", n_randoms,
                         MAX_RANDOMS);
    }
    if (!status && n_negatives + n_randoms == 0) {
        status = bw_fail(error, BW_INVALID,
                         "train: there is nothing to tell the positives from: mark negatives, or set "
                         "random_negatives to 1 or more in a collection that has other images");
    }
    if (status) {
        return status;
    }
    bool ensemble = options->learner == BW_LEARNER_ENSEMBLE;
    uint32_t estimators = ensemble ? options->estimators : 1;
    learner l = {.positives = positives,
                 .negatives = negatives,
                 .randoms = randoms,
                 .n_positives = n_positives,
                 .n_negatives = n_negatives,
                 .n_randoms = n_randoms,
                 .negative_weight = (uint32_t)(options->negative_weight * WEIGHT_ONE + 0.5),
                 .random = {options->seed}};
    l.max_leaves = BW_MAX_BOXES / estimators < MAX_LEAVES ? BW_MAX_BOXES / estimators : MAX_LEAVES;
    status = allocate(&l, estimators, error);
    if (!status) {
        find_prior(&l);
    }
    for (uint32_t e = 0; e < estimators && !status; e++) {
        draw_estimator(&l, ensemble);
        status = grow_branch(&l, e, error);
    }
    if (!status) {
        status = make_model(&l, options, quantizer, model, error);
    }
    if (!status && stats) {
        *stats =
            (bw_train_stats){(uint32_t)n_positives,   (uint32_t)n_negatives, (uint32_t)n_randoms, estimators,
                             l.first_box[estimators], bw_now() - start};
    }
    bw_free(l.p.codes);
    bw_free(l.p.weights);
    bw_free(l.covered);
    bw_free(l.near);
    bw_free(l.n.codes);
    bw_free(l.n.weights);
    bw_free(l.inside);
    bw_free(l.draws);
    bw_free(l.node_positives);
    bw_free(l.node_negatives);
    bw_free(l.nodes);
    bw_free(l.first_box);
    bw_free(l.boxes);
    return status;
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
typedef struct labels {
    int64_t *ids; /* n_positives + n_negatives, then room for all of them and the random ones */
    uint8_t *codes;
    size_t positives, negatives, randoms;
} labels;

static int32_t collect(const bw_index *index, const int64_t *positives, size_t n_positives,
                       const int64_t *negatives, size_t n_negatives, const bw_train_options *options,
                       labels *s, bw_error *error) {
    size_t given = n_positives + n_negatives, wanted = options->random_negatives;
    s->ids = bw_alloc_array(2 * given + wanted, sizeof *s->ids);
    s->codes = bw_alloc_array(given + wanted, BW_DIMS);
    if (!s->ids || !s->codes) {
        return bw_fail_nomem(error, (given + wanted) * BW_DIMS);
    }
    memcpy(s->ids, positives, n_positives * sizeof *s->ids);
    s->positives = make_set(s->ids, n_positives);
    int64_t *ids_negative = s->ids + s->positives;
    if (n_negatives > 0) {
        memcpy(ids_negative, negatives, n_negatives * sizeof *s->ids);
        s->negatives = make_set(ids_negative, n_negatives);
    }
    given = s->positives + s->negatives;
    int64_t *all = s->ids + given, *drawn = all + given;
    memcpy(all, s->ids, given * sizeof *all);
    qsort(all, given, sizeof *all, compare_ids);
    for (size_t i = 1; i < given; i++) {
        if (all[i] == all[i - 1]) {
            return bw_fail(error, BW_INVALID,
                           "train: id %lld is both a positive and a negative; take it out of one of them",
                           (long long)all[i]);
        }
    }
    int32_t status = bw_index_codes(index, s->ids, given, s->codes, NULL, error);
    if (!status && wanted > 0) {
        status = bw_index_draw(index, options->seed, wanted, all, given, drawn, &s->randoms, error);
    }
    if (!status && s->randoms > 0) {
        status = bw_index_codes(index, drawn, s->randoms, s->codes + given * BW_DIMS, NULL, error);
    }
    return status;
}

int32_t bw_train(const bw_index *index, const int64_t *positives, size_t n_positives,
                 const int64_t *negatives, size_t n_negatives, const bw_train_options *options,
                 bw_model **model, bw_train_stats *stats, bw_error *error) {
    uint64_t start = bw_now();
    labels s = {0};
    int32_t status = check_options(options, error);
    if (!status) {
        status = check_counts(n_positives, n_negatives, error);
    }
    if (!status) {
        status = collect(index, positives, n_positives, negatives, n_negatives, options, &s, error);
    }
    if (!status) {
        const uint8_t *code = s.codes;
        status = bw_train_codes(code, s.positives, code + s.positives * BW_DIMS, s.negatives,
                                code + (s.positives + s.negatives) * BW_DIMS, s.randoms, options,
                                index->info.fingerprints.quantizer, model, stats, error);
    }
    if (!status && stats) {
        stats->nanoseconds = bw_now() - start;
    }
    bw_free(s.ids);
    bw_free(s.codes);
    return status;
}
