/* clang-format off */
/* train_cover.c - the learner `cover`: a score that ranks, and where to cut it, from a handful of labels.
 *
 * What it is made of:
 * - A score that is a sum over dimensions of one quadratic each, so that an index can bound it: a ridge
 *   logistic regression of the positives against rows of the collection ("the background", in which further
 *   positives hide), and the log-likelihood ratio of a normal distribution around the positives, whose variance
 *   has a prior, against that of the collection. Each is standardised by the collection, and they are added.
 * - Held-out scores: positives are left out in at most 8 folds, and the regression goes on from the whole
 *   solution. Everything that is said of unseen images rests on these.
 * - One term or two: where the positives fall into two kinds and held-out ones rank clearly higher under the
 *   larger of two terms, the model has two ("red circle or blue star").
 * - A threshold without held-out negatives: near the mean held-out score, and higher the more rows there are
 *   above it than the number of positives allows, which is at most n(t) / TPR(t) for every threshold t
 *   (the bound that Blanchard, Lee and Scott, "Semi-Supervised Novelty Detection", 2010, estimate by).
 * - Where the labels come from the top of a ranking, as in a session, another one: the share of matches by score
 *   is learnt from what is marked right and wrong there, and goes on beyond it.
 * - If the collection has fine codes and rerank is asked for: the same regression on these, for rows that
 *   come near the threshold.
 *
 * tests/cover_twin.py is the specification, in NumPy, and gives the same model to the last digit. Therefore
 * every sum has its order: over rows as they come, over dimensions from 0; exp and log2 are made here;
 * products and sums are not contracted (CMakeLists.txt). Rows of the background are scored in integers.
 *
 * Work is bounded: at most LABELS positives and negatives (evenly spaced ones of more), 2,000 rows of the
 * background in a regression (1,000 with fine codes), 8 Newton steps and 2 more a fold. */
/* clang-format on */
#include "train.h"

#include "kernels.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RIDGE 4.0
#define BACKGROUND 16.0 /* what the background weighs in a regression, against a positive */
#define NEGATIVE 0.3    /* what a given negative weighs when there are many positives */
#define QUERY 0.5
#define SPREAD 0.5 /* the second part of the score against the first */
#define PRIOR_STRENGTH 4.0
#define FOLDS 8
#define STEPS 8
#define FOLD_STEPS 2
#define HALVINGS 8
#define ROWS 2000
#define FINE_ROWS 1000
#define MEASURED 4096 /* background rows that moments and standard deviations are taken from */
#define LEAST_KIND 3  /* positives of each kind, where there are two */
#define MEANS_STEPS 10
#define FEW 8 /* rows of the collection that are too few to learn from */
#define TINY 1e-9
#define NEAR_ZERO 1e-12 /* a gradient of a millionth of the first one's length is none */
#define MARGIN 49152    /* 0.75 bits: how much higher held-out positives must rank for a second term */
#define SCORE_BITS 30
#define MAX_SHIFT 30
#define LABELS 16384
#define ENCLOSED 4096   /* background rows that boxes are made around */
#define MARGIN_FINE 0.5 /* rows so far below the threshold of codes are looked at by their fine codes */
#define BELOW 0.5       /* how far under the mean held-out score the threshold is by itself: most F1 on the */
#define FINE_BELOW 0.7  /* development halves of benchmarks/learners.py */
#define BOX_DIMS 8
#define BOX_TAIL 800    /* one row in so many is left out at each end of a range */
#define BOX_BELOW 0.375 /* rows so far under the threshold are enclosed as well */
#define MANY 0.3        /* a share of the collection that is a lot to match */
#define UNLIKE 1.0 /* a positive whose held-out score is so far under the threshold is unlike the others */
/* Thresholds that are looked at: ranks 1, 2, .. 32, then by sixteenths, to 130,000 and more. */
#define CUTS 192
#define LIKELY 512 /* labels of a kind that a likelihood is made of */
#define SLOPE 2.5
#define SLOPES 2
#define LABEL_POINTS 64
#define POINTS (CUTS + LABEL_POINTS)
#define LOG_4 1.3862943611198906
#define CHUNK 8 /* doubles: columns of matrices are padded to these */

/* Rows of the background that stand for all of it. */
typedef struct chosen {
    uint32_t *rows;
    size_t n, first; /* the first `first` stand for themselves, the others for as many as are left out */
    size_t of;
} chosen;

static double chosen_share(const chosen *c, size_t i) {
    double one = i < c->first ? 1.0 : (double)(c->of - c->first) / (double)(c->n - c->first);
    return one / (double)c->of;
}

typedef struct space {
    uint32_t dims;
    const bw_kernels *kernels;
    size_t measured;  /* rows that standard deviations are taken from, */
    uint8_t *columns; /* [dims][measured] */
    double *values;   /* scratch, one a row */
    double mean[BW_FINE_DIMS], variance[BW_FINE_DIMS], unit;
    double *covariance; /* [dims][dims], of (codes - mean) / unit */
} space;

/* Labels of one regression: rows of space->dims values. */
typedef struct labels {
    const uint8_t **positives, **negatives;
    size_t n_positives, n_negatives;
    const uint8_t *query;
    const double *prior; /* variance in small neighbourhoods; NULL: the regression alone is the score */
    double negative_weight;
} labels;

typedef struct term {
    double linear[BW_FINE_DIMS], square[BW_FINE_DIMS], constant;
} term;

/* A term, and the score of each positive under one that was trained without it. */
typedef struct ranked {
    term whole;
    double *out; /* n_positives */
} ranked;

/* ---- arithmetic ---- */

/* 65536 log2(n), or a few less. */
static int64_t log2_fixed(uint64_t n) {
    int bits = 63 - __builtin_clzll(n);
    uint64_t value = bits <= 31 ? n << (31 - bits) : n >> (bits - 31);
    int64_t result = (int64_t)bits << 16;
    for (int bit = 15; bit >= 0; bit--) {
        value = value * value >> 31;
        if (value >> 32) {
            value >>= 1;
            result |= INT64_C(1) << bit;
        }
    }
    return result;
}

static double power_of_two(int32_t exponent) {
    return ldexp(1, exponent);
}

/* The largest shift that keeps a score below 2^30 when no sum exceeds `bound`. */
static int32_t fitting_shift(double bound) {
    int32_t shift = MAX_SHIFT;
    while (shift > 0 && !(bound * power_of_two(shift) < power_of_two(SCORE_BITS))) {
        shift--;
    }
    return shift;
}

/* Row i of n, evenly, when m of them are wanted. */
static size_t spaced(size_t i, size_t n, size_t m) {
    return (size_t)((uint64_t)i * n / m);
}

/* Solves a y = x for y, in the place of x, by Cholesky's method; `a` is [n][stride], of which the lower half
 * counts, and is lost. */
static void solve(double *a, uint32_t n, uint32_t stride, double *x) {
    double column[BW_FINE_DIMS + 1];
    for (uint32_t k = 0; k < n; k++) {
        double pivot = a[k * stride + k];
        pivot = sqrt(pivot > DBL_MIN ? pivot : DBL_MIN);
        a[k * stride + k] = pivot;
        for (uint32_t i = k + 1; i < n; i++) {
            column[i] = a[i * stride + k] /= pivot;
        }
        for (uint32_t i = k + 1; i < n; i++) {
            double *row = a + (size_t)i * stride, factor = column[i];
            for (uint32_t j = k + 1; j <= i; j++) {
                row[j] -= factor * column[j];
            }
        }
    }
    for (uint32_t k = 0; k < n; k++) {
        x[k] /= a[k * stride + k];
        for (uint32_t i = k + 1; i < n; i++) {
            x[i] -= a[i * stride + k] * x[k];
        }
    }
    for (uint32_t k = n; k-- > 0;) {
        x[k] /= a[k * stride + k];
        for (uint32_t i = 0; i < k; i++) {
            x[i] -= a[k * stride + i] * x[k];
        }
    }
}

static double term_value(const term *t, const uint8_t *code, uint32_t dims) {
    double value = t->constant;
    for (uint32_t d = 0; d < dims; d++) {
        double x = code[d];
        value += (t->linear[d] + t->square[d] * x) * x;
    }
    return value;
}

/* ---- spaces ---- */

static void space_free(space *s) {
    bw_free(s->columns);
    bw_free(s->values);
    bw_free(s->covariance);
}

/* Rows as columns: dimension d's values start at the result + d * n. NULL when out of memory. */
static uint8_t *make_columns(const uint8_t *const *rows, size_t n, uint32_t dims) {
    uint8_t *columns = bw_alloc_array(n, dims);
    for (size_t i = 0; columns && i < n; i++) {
        for (uint32_t d = 0; d < dims; d++) {
            columns[d * n + i] = rows[i][d];
        }
    }
    return columns;
}

/* Moments by c->n >= 1 rows; of the first `measured` of them, columns are kept. */
static int32_t space_make(const uint8_t *const *rows, const chosen *c, size_t measured, uint32_t dims,
                          space *s, bw_error *error) {
    memset(s, 0, sizeof *s);
    size_t n = c->n, stride = (dims + CHUNK) / CHUNK * CHUNK;
    s->kernels = bw_kernels_get();
    s->dims = dims;
    s->measured = measured;
    s->columns = make_columns(rows, measured, dims);
    s->values = bw_alloc_array(measured, sizeof *s->values);
    s->covariance = bw_alloc_array((size_t)dims * dims, sizeof(double));
    double *wide = bw_alloc_zero(n, stride * sizeof *wide), *share = bw_alloc_array(n, sizeof *share);
    double *moments = bw_alloc_array(dims + 1, stride * sizeof *moments);
    bool enough = s->columns && s->values && s->covariance && wide && share && moments;
    for (size_t i = 0; enough && i < n; i++) {
        for (uint32_t d = 0; d < dims; d++) {
            wide[i * stride + d] = rows[i][d];
        }
        wide[i * stride + dims] = 1;
        share[i] = chosen_share(c, i);
    }
    if (enough) {
        double sum = 0;
        s->kernels->hessians(wide, (uint32_t)stride, n, share, dims, moments);
        memcpy(s->mean, moments + dims * stride, dims * sizeof *s->mean);
        for (uint32_t d = 0; d < dims; d++) {
            for (uint32_t e = 0; e <= d; e++) {
                double covariance = moments[d * stride + e] - s->mean[d] * s->mean[e];
                s->covariance[d * dims + e] = s->covariance[e * dims + d] = covariance;
            }
            double variance = s->covariance[d * dims + d];
            s->variance[d] = variance > 1 ? variance : 1;
            sum += s->variance[d];
        }
        s->unit = sqrt(sum / dims);
        for (uint32_t i = 0; i < dims * dims; i++) {
            s->covariance[i] /= s->unit * s->unit;
        }
    }
    bw_free(wide);
    bw_free(share);
    bw_free(moments);
    return enough ? BW_OK : bw_fail_nomem(error, n * stride * sizeof(double));
}

/* Scales a term to mean 0 and standard deviation 1; to nothing when it is constant. */
static void standardise(const space *s, term *t) {
    size_t n = s->measured;
    double sum = 0, squares = 0;
    s->kernels->values(s->columns, n, n, s->dims, t->linear, t->square, t->constant, s->values);
    for (size_t i = 0; i < n; i++) {
        sum += s->values[i];
    }
    double mean = sum / (double)n;
    for (size_t i = 0; i < n; i++) {
        squares += (s->values[i] - mean) * (s->values[i] - mean);
    }
    double sd = sqrt(squares / (double)n);
    bool varies = sd > TINY * (1 + fabs(mean)); /* else what there is comes from rounding */
    for (uint32_t d = 0; d < s->dims; d++) {
        t->linear[d] = varies ? t->linear[d] / sd : 0;
        t->square[d] = varies ? t->square[d] / sd : 0;
    }
    t->constant = varies ? (t->constant - mean) / sd : 0;
}

/* ---- labels ---- */

static double label_mass(const labels *l, size_t positives) {
    return (double)positives + (l->query ? QUERY : 0.0);
}

/* 0 where nothing is left to train on when a positive is taken away. */
static size_t label_folds(const labels *l) {
    size_t n = l->n_positives;
    return n + (l->query ? 1 : 0) < 2 ? 0 : n < FOLDS ? n : FOLDS;
}

/* Whether positive i is trained on when fold f of `folds` is left out; folds: none is. */
static bool kept(size_t i, size_t f, size_t folds) {
    return f == folds || i % folds != f;
}

static size_t kept_count(const labels *l, size_t f, size_t folds) {
    return f == folds ? l->n_positives : l->n_positives - (l->n_positives - f + folds - 1) / folds;
}

/* The mean of the positives but fold f, the query among them. */
static void label_center(const labels *l, size_t f, size_t folds, uint32_t dims, double *center) {
    uint64_t sums[BW_FINE_DIMS] = {0};
    for (size_t i = 0; i < l->n_positives; i++) {
        for (uint32_t d = 0; d < dims && kept(i, f, folds); d++) {
            sums[d] += l->positives[i][d];
        }
    }
    double mass = label_mass(l, kept_count(l, f, folds));
    for (uint32_t d = 0; d < dims; d++) {
        double sum = (double)sums[d];
        if (l->query) {
            sum = sum + QUERY * l->query[d];
        }
        center[d] = sum / mass;
    }
}

/* ---- background rows of a regression ---- */

/* Of `n` rows in order the first wanted / 2, and as many of the others, evenly spaced. Room for `wanted`. */
static void choose(const uint32_t *order, size_t n, size_t wanted, chosen *c) {
    c->of = n;
    c->n = n < wanted ? n : wanted;
    c->first = n <= wanted ? n : wanted / 2;
    for (size_t i = 0; i < c->n; i++) {
        size_t place = i < c->first ? i : c->first + spaced(i - c->first, n - c->first, c->n - c->first);
        c->rows[i] = order ? order[place] : (uint32_t)place;
    }
}

/* Order of n scores from the highest, on ties that of their places. `keys` has room for 2 n. */
static void sort_scores(const int32_t *scores, size_t n, uint64_t *keys, uint32_t *order) {
    uint64_t *from = keys, *to = keys + n;
    for (size_t i = 0; i < n; i++) {
        from[i] = (uint64_t)~((uint32_t)scores[i] ^ 0x80000000u) << 32 | i;
    }
    for (int shift = 32; shift < 64; shift += 8) {
        size_t starts[257] = {0};
        for (size_t i = 0; i < n; i++) {
            starts[(from[i] >> shift & 255) + 1]++;
        }
        for (int i = 0; i < 256; i++) {
            starts[i + 1] += starts[i];
        }
        for (size_t i = 0; i < n; i++) {
            to[starts[from[i] >> shift & 255]++] = from[i];
        }
        uint64_t *other = from;
        from = to;
        to = other;
    }
    for (size_t i = 0; i < n; i++) {
        order[i] = (uint32_t)from[i];
    }
}

/* ---- regression ---- */

/* Rows of a regression, both ways round. */
typedef struct design {
    const bw_kernels *kernels;
    uint32_t dims, stride; /* without the intercept; of rows, with it and padding */
    size_t n, room;
    double *rows, *columns, *right, *weights, *p, *factors;
    double *hessian; /* [dims + 1][stride] */
} design;

static void design_free(design *m) {
    bw_free(m->rows);
    bw_free(m->columns);
    bw_free(m->right);
    bw_free(m->hessian);
}

static int32_t design_make(const space *s, size_t rows, design *m, bw_error *error) {
    memset(m, 0, sizeof *m);
    m->kernels = s->kernels;
    m->dims = s->dims;
    m->stride = (s->dims + CHUNK) / CHUNK * CHUNK;
    m->room = rows;
    m->rows = bw_alloc_array(rows, m->stride * sizeof(double));
    m->columns = bw_alloc_array(rows, m->dims * sizeof(double));
    m->right = bw_alloc_array(rows, 4 * sizeof(double));
    m->hessian = bw_alloc_array(m->dims + 1, m->stride * sizeof(double));
    if (!m->rows || !m->columns || !m->right || !m->hessian) {
        return bw_fail_nomem(error, rows * m->stride * 2 * sizeof(double));
    }
    m->weights = m->right + rows;
    m->p = m->weights + rows;
    m->factors = m->p + rows;
    return BW_OK;
}

static void design_add(design *m, const space *s, const uint8_t *code, double right) {
    double *row = m->rows + m->n * m->stride;
    for (uint32_t d = 0; d < m->dims; d++) {
        row[d] = (code[d] - s->mean[d]) / s->unit;
        m->columns[d * m->room + m->n] = row[d];
    }
    row[m->dims] = 1;
    memset(row + m->dims + 1, 0, (m->stride - m->dims - 1) * sizeof *row);
    m->right[m->n++] = right;
}

/* p of every row, and the gradient (stride entries); gives its squared length. */
static double look(design *m, const double *b, double *gradient) {
    double length = 0;
    m->kernels->logistics(m->columns, m->room, m->n, b, m->dims, m->p);
    for (size_t i = 0; i < m->n; i++) {
        m->factors[i] = m->weights[i] * (m->p[i] - m->right[i]);
    }
    m->kernels->gradients(m->rows, m->stride, m->n, m->factors, gradient);
    for (uint32_t d = 0; d < m->dims; d++) {
        gradient[d] += RIDGE * b[d];
    }
    for (uint32_t d = 0; d <= m->dims; d++) {
        length += gradient[d] * gradient[d];
    }
    return length;
}

/* Ridge logistic regression by Newton's method, from and to b (dims + 1 entries, the last the intercept). A
 * step after which the gradient is longer is halved. */
static void regression(design *m, int steps, double *b) {
    uint32_t dims = m->dims, stride = m->stride;
    double gradient[BW_FINE_DIMS + CHUNK], before[BW_FINE_DIMS + 1];
    double length = look(m, b, gradient), enough = NEAR_ZERO * length;
    for (int step = 0; step < steps && length > enough; step++) {
        for (size_t i = 0; i < m->n; i++) {
            m->factors[i] = m->weights[i] * m->p[i] * (1 - m->p[i]);
        }
        m->kernels->hessians(m->rows, stride, m->n, m->factors, dims, m->hessian);
        for (uint32_t d = 0; d < dims; d++) {
            m->hessian[d * stride + d] += RIDGE;
        }
        m->hessian[dims * stride + dims] += 1e-6;
        solve(m->hessian, dims + 1, stride, gradient);
        double far = length;
        for (uint32_t d = 0; d <= dims; d++) {
            before[d] = b[d];
            b[d] = before[d] - gradient[d];
        }
        length = look(m, b, gradient);
        for (int half = 0; half < HALVINGS && !(length <= far); half++) {
            for (uint32_t d = 0; d <= dims; d++) {
                b[d] = 0.5 * (before[d] + b[d]);
            }
            length = look(m, b, gradient);
        }
    }
}

/* ---- one ranker ---- */

/* How much likelier a row is under a normal distribution around the positives but fold f than under that of
 * the collection, up to constants. */
static void spread(const space *s, const labels *l, size_t f, size_t folds, term *t) {
    double mass = label_mass(l, kept_count(l, f, folds)), center[BW_FINE_DIMS], scatter[BW_FINE_DIMS] = {0};
    label_center(l, f, folds, s->dims, center);
    for (size_t i = 0; i < l->n_positives; i++) {
        for (uint32_t d = 0; d < s->dims && kept(i, f, folds); d++) {
            double difference = l->positives[i][d] - center[d];
            scatter[d] += difference * difference;
        }
    }
    t->constant = 0;
    for (uint32_t d = 0; d < s->dims; d++) {
        double variance = (PRIOR_STRENGTH * l->prior[d] + scatter[d]) / (PRIOR_STRENGTH - 1 + mass);
        variance = variance * (1 + 1 / mass);
        t->linear[d] = 2 * center[d] / variance - 2 * s->mean[d] / s->variance[d];
        t->square[d] = 1 / s->variance[d] - 1 / variance;
    }
}

/* The regression and the spread, each standardised by the collection, as one. */
static void joined(const space *s, const labels *l, size_t f, size_t folds, const double *b, term *t) {
    double variance = 0, center = 0;
    memset(t, 0, sizeof *t);
    if (l->prior) {
        spread(s, l, f, folds, t);
        standardise(s, t);
        for (uint32_t d = 0; d < s->dims; d++) {
            t->linear[d] *= SPREAD;
            t->square[d] *= SPREAD;
        }
        t->constant *= SPREAD;
    }
    for (uint32_t d = 0; d < s->dims; d++) {
        double inner = 0;
        for (uint32_t e = 0; e < s->dims; e++) {
            inner += s->covariance[d * s->dims + e] * b[e];
        }
        variance += b[d] * inner;
        center += b[d] * s->mean[d];
    }
    if (variance > TINY) {
        double sd = s->unit * sqrt(variance);
        for (uint32_t d = 0; d < s->dims; d++) {
            t->linear[d] += b[d] / sd;
        }
        t->constant -= center / sd;
    }
}

/* Trains on labels against chosen rows of the background. r->out has room for all positives. */
static int32_t rank(const bw_training *training, const space *s, const labels *l, const uint8_t *const *rows,
                    const chosen *c, ranked *r, bw_error *error) {
    size_t folds = label_folds(l), n = l->n_positives;
    double b[BW_FINE_DIMS + 1] = {0}, less[BW_FINE_DIMS + 1];
    design m;
    int32_t status = design_make(s, n + c->n + l->n_negatives + 1, &m, error);
    for (size_t i = 0; status == BW_OK && i < n; i++) {
        design_add(&m, s, l->positives[i], 1);
    }
    for (size_t i = 0; status == BW_OK && i < c->n; i++) {
        design_add(&m, s, rows[i], 0);
    }
    for (size_t i = 0; status == BW_OK && i < l->n_negatives; i++) {
        design_add(&m, s, l->negatives[i], 0);
    }
    if (status == BW_OK && l->query) {
        design_add(&m, s, l->query, 1);
    }
    for (size_t round = 0; status == BW_OK && round <= folds; round++) {
        size_t f = round == 0 ? folds : round - 1;
        status = bw_training_cancelled(training, error);
        double mass = label_mass(l, kept_count(l, f, folds)), *weights = m.weights;
        for (size_t i = 0; i < n; i++) {
            *weights++ = kept(i, f, folds) ? 1 : 0;
        }
        for (size_t i = 0; i < c->n; i++) {
            *weights++ = BACKGROUND * mass * chosen_share(c, i);
        }
        for (size_t i = 0; i < l->n_negatives; i++) {
            *weights++ = NEGATIVE * l->negative_weight * mass / (mass + 6);
        }
        *weights = QUERY; /* if there is one */
        if (round == 0) {
            regression(&m, STEPS, b);
            joined(s, l, f, folds, b, &r->whole);
            continue;
        }
        term without;
        memcpy(less, b, sizeof b);
        regression(&m, FOLD_STEPS, less);
        joined(s, l, f, folds, less, &without);
        for (size_t i = f; i < n; i += folds) {
            r->out[i] = term_value(&without, l->positives[i], s->dims);
        }
    }
    design_free(&m);
    return status;
}

/* The same for the distance to the mean positive. */
static void rank_nearest(const space *s, const labels *l, ranked *r) {
    size_t folds = label_folds(l);
    for (size_t round = 0; round <= folds; round++) {
        size_t f = round == 0 ? folds : round - 1;
        term t = {.constant = 0};
        double center[BW_FINE_DIMS];
        label_center(l, f, folds, s->dims, center);
        for (uint32_t d = 0; d < s->dims; d++) {
            t.linear[d] = 2 * center[d];
            t.square[d] = -1;
        }
        standardise(s, &t);
        if (round == 0) {
            r->whole = t;
        }
        for (size_t i = f; round > 0 && i < l->n_positives; i += folds) {
            r->out[i] = term_value(&t, l->positives[i], s->dims);
        }
    }
}

/* ---- scores of the background ---- */

/* The largest of the terms, in integers, on rows of the background. */
typedef struct score {
    bw_score terms;
    double unit;     /* 2^shift */
    int32_t *scores; /* of the rows */
    uint32_t *order; /* the rows, highest score first */
    size_t n;
    double *out; /* of held-out positives; not owned */
    size_t n_out;
} score;

static void score_free(score *s) {
    bw_free(s->scores);
    bw_free(s->order);
}

/* On n rows, dimension d of row i at columns + d * n + i. */
static int32_t score_make(const term *terms, uint32_t n_terms, uint32_t dims, const uint8_t *columns,
                          size_t n, score *s, bw_error *error) {
    memset(s, 0, sizeof *s);
    s->n = n;
    s->scores = bw_alloc_array(n, sizeof *s->scores);
    s->order = bw_alloc_array(n, sizeof *s->order);
    uint64_t *keys = bw_alloc_array(n, 2 * sizeof *keys);
    int32_t status = s->scores && s->order && keys ? BW_OK : bw_fail_nomem(error, n * 24);
    double bound = 0;
    for (uint32_t k = 0; k < n_terms; k++) {
        double sum = 0;
        for (uint32_t d = 0; d < dims; d++) {
            double most = 0;
            for (uint32_t x = 0; x < 256; x++) {
                double value = fabs((terms[k].linear[d] + terms[k].square[d] * x) * x);
                most = value > most ? value : most;
            }
            sum += most;
        }
        sum += fabs(terms[k].constant);
        bound = sum > bound ? sum : bound;
    }
    s->terms.terms = n_terms;
    s->terms.shift = fitting_shift(bound);
    s->terms.has_threshold = true;
    s->unit = power_of_two(s->terms.shift);
    for (uint32_t k = 0; k < n_terms; k++) {
        bw_term *to = &s->terms.term[k];
        for (uint32_t d = 0; d < dims; d++) {
            to->linear[d] = (int64_t)floor(terms[k].linear[d] * s->unit + 0.5);
            to->square[d] = (int64_t)floor(terms[k].square[d] * s->unit + 0.5);
        }
        to->constant = (int64_t)floor(terms[k].constant * s->unit + 0.5);
    }
    int32_t *values = (int32_t *)(void *)s->order; /* until it is needed */
    for (uint32_t k = 0; status == BW_OK && k < n_terms; k++) {
        /* Sums stay below 2^31 (rounding adds less than 2^23), so arithmetic modulo 2^32 gives them. */
        int32_t linear[BW_FINE_DIMS], square[BW_FINE_DIMS];
        for (uint32_t d = 0; d < dims; d++) {
            linear[d] = (int32_t)s->terms.term[k].linear[d];
            square[d] = (int32_t)s->terms.term[k].square[d];
        }
        bw_kernels_get()->whole_values(columns, n, n, dims, linear, square,
                                       (int32_t)s->terms.term[k].constant, k == 0 ? s->scores : values);
        for (size_t i = 0; k > 0 && i < n; i++) {
            s->scores[i] = values[i] > s->scores[i] ? values[i] : s->scores[i];
        }
    }
    if (status == BW_OK) {
        sort_scores(s->scores, n, keys, s->order);
    }
    bw_free(keys);
    return status;
}

/* The score of rank i, 0 the highest. */
static double score_at(const score *s, size_t i) {
    return s->scores[s->order[i]] / s->unit;
}

/* How many rows have at least this score. */
static size_t count_above(const score *s, double value) {
    size_t low = 0, high = s->n;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (score_at(s, middle) >= value) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* How far down the held-out positives come, in bits: 65536 log2 of their ranks, summed. */
static int64_t place(const score *s) {
    int64_t sum = 0;
    for (size_t i = 0; i < s->n_out; i++) {
        sum += log2_fixed(count_above(s, s->out[i]) + 1);
    }
    return sum;
}

/* 1 / (1 + e^-1.702 z), within .01 of the normal distribution function. */
static void smooth_steps(const double *z, size_t n, double *p) {
    static const double b[2] = {1, 0};
    bw_kernels_get()->logistics(z, n, n, b, 1, p);
}

/* What is known about a cut. */
typedef struct cut {
    double at;
    double there;                        /* positives in the background, at most; 0 without held-out scores */
    double width;                        /* of the smoothing of held-out scores */
    double exhausted, precision, recall; /* see exhausted() and go_beyond() */
} cut;

/* Ranks of the background that are looked at as thresholds: 1, 2, .. 32, then by sixteenths. */
static uint32_t list_cuts(const score *s, double *cuts, size_t *counts) {
    uint32_t n = 0;
    for (size_t count = 1; count <= s->n && n < CUTS; n++) {
        cuts[n] = score_at(s, count - 1);
        counts[n] = count;
        count = count + (count / 16 > 1 ? count / 16 : 1);
    }
    return n;
}

static double mean_of(const double *values, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += values[i];
    }
    return sum / (double)n;
}

/* The share of held-out positives above a value, smoothed. `scratch` has room for 2 n_out. */
static double rate_above(const score *s, double at, double width, double *scratch) {
    double rate = 0;
    for (size_t i = 0; i < s->n_out; i++) {
        scratch[i] = 1.702 * ((s->out[i] - at) / width);
    }
    smooth_steps(scratch, s->n_out, scratch + s->n_out);
    for (size_t i = 0; i < s->n_out; i++) {
        rate += scratch[s->n_out + i];
    }
    return rate / (double)s->n_out;
}

/* Where to cut, when a row of the background stands for rows_each of the collection. Without held-out scores:
 * a little under the best rows. */
static cut find_cut(const score *s, double below, double rows_each, double *scratch) {
    size_t n = s->n_out;
    double top = score_at(s, s->n > 10 ? 10 : s->n - 1);
    if (n == 0) {
        return (cut){.at = top - 1.0};
    }
    double mean = mean_of(s->out, n), squares = 0;
    for (size_t i = 0; i < n; i++) {
        squares += (s->out[i] - mean) * (s->out[i] - mean);
    }
    double share = 1.5 / (1.5 + (double)n);
    double middle = (1 - share) * mean + share * top;
    double plain = middle - below;

    /* The most positives that the background may hold: n(t) / TPR(t) for any t. */
    double sd = n > 2 ? sqrt(squares / (double)n) : 0.75;
    sd = sd > 0.3 ? sd : 0.3;
    double width = 0.5 * sd > 0.1 ? 0.5 * sd : 0.1;
    width = width * sqrt(1 + 2 / (double)n);
    double cuts[CUTS], rates[CUTS], highest = 0;
    size_t counts[CUTS];
    uint32_t steps = list_cuts(s, cuts, counts);
    for (uint32_t i = 0; i < steps; i++) {
        double rate = rate_above(s, cuts[i], width, scratch);
        rates[i] = rate > 1e-6 ? rate : 1e-6;
        highest = rates[i] > highest ? rates[i] : highest;
    }
    double least = 0.9 * highest < 0.3 ? 0.9 * highest : 0.3, there = DBL_MAX, best = -1, counted = plain;
    for (uint32_t i = 0; i < steps; i++) {
        if (rates[i] >= least && (double)counts[i] / rates[i] < there) {
            there = (double)counts[i] / rates[i];
        }
    }
    there = there > (double)n / rows_each ? there : (double)n / rows_each; /* as many again as are known */
    for (uint32_t i = 0; i < steps; i++) {
        double right = rates[i] * there < (double)counts[i] ? rates[i] * there : (double)counts[i];
        double f1 = 2 * right / ((double)counts[i] + there);
        if (f1 > best) {
            best = f1;
            counted = cuts[i];
        }
    }
    double deviation = sqrt((4 * 0.65 * 0.65 + squares) / (3 + (double)n));
    double rate, z = 1.702 * ((middle - plain) / deviation);
    smooth_steps(&z, 1, &rate);
    size_t above = count_above(s, plain);
    double precision = there * rate / (double)(above > 1 ? above : 1);
    precision = precision < 1 ? precision : 1;
    double weight = (1 - precision) * (double)n / ((double)n + 8);
    double hardly = 0.1 * fmin(fmax(((double)n - 4) / 4, 0), 1);
    if (precision < hardly) { /* so few of those above the plain threshold can be right */
        weight = 1 - precision / hardly * (1 - weight);
    }
    double at = (1 - weight) * plain + weight * (counted > plain ? counted : plain);
    return (cut){.at = at, .there = there, .width = width};
}

/* Labels of one kind against a logistic share of matches: p is multiplied by their probability, with the
 * exponent apart, for there may be many; the result is how many of them the curve expects to match. Of more
 * than LIKELY labels some stand for all. */
static double likelihood(const double *values, size_t n, bool right, double middle, double slope, double *p,
                         int64_t *exponent) {
    double z[LIKELY], share[LIKELY], matches = 0;
    size_t m = n < LIKELY ? n : LIKELY;
    for (size_t i = 0; i < m; i++) {
        double distance = values[spaced(i, n, m)] - middle;
        z[i] = slope * (right ? distance : -distance);
    }
    smooth_steps(z, m, share);
    for (size_t i = 0; i < m; i++) {
        int e;
        *p = frexp(*p * share[i], &e);
        *exponent += e;
        matches += right ? share[i] : 1 - share[i];
    }
    return m > 0 ? matches * ((double)n / (double)m) : 0;
}

/* value * 2^exponent for an exponent that is not above 0. */
static double scaled(double value, int64_t exponent) {
    return ldexp(value, exponent > -1000 ? (int)exponent : -1000);
}

/* A place where the score may be cut, and where the share of matches may be a half. */
typedef struct point {
    double at;
    uint32_t cuts;          /* how many of the background's cuts lie at or above it */
    double rows, ok, again; /* rows of the collection, positives and negatives at or above it */
} point;

static int compare_points(const void *a, const void *b) {
    const point *x = a, *y = b;
    return (x->at < y->at) - (x->at > y->at);
}

static int compare_descending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* The cuts of the background and some scores of labels, from the highest. `sorted` has room for all labels.
 */
static uint32_t list_points(const score *s, const double *wrong, size_t n_wrong, double rows_each,
                            const double *cuts, const size_t *counts, uint32_t n_cuts, double *sorted,
                            point *points) {
    size_t labels = s->n_out + n_wrong, some = labels < LABEL_POINTS ? labels : LABEL_POINTS;
    uint32_t n = 0;
    memcpy(sorted, s->out, s->n_out * sizeof *sorted);
    memcpy(sorted + s->n_out, wrong, n_wrong * sizeof *sorted);
    qsort(sorted, labels, sizeof *sorted, compare_descending);
    for (uint32_t i = 0; i < n_cuts; i++) {
        points[n++].at = cuts[i];
    }
    for (size_t i = 0; i < some; i++) {
        points[n++].at = sorted[spaced(i, labels, some)];
    }
    qsort(points, n, sizeof *points, compare_points);
    for (uint32_t i = 0; i < n; i++) {
        point *p = &points[i];
        p->cuts = i > 0 ? points[i - 1].cuts : 0;
        while (p->cuts < n_cuts && cuts[p->cuts] >= p->at) {
            p->cuts++;
        }
        p->rows = p->cuts > 0 ? (double)counts[p->cuts - 1] * rows_each : 0;
        p->ok = p->again = 0;
        for (size_t k = 0; k < s->n_out; k++) {
            p->ok += s->out[k] >= p->at;
        }
        for (size_t k = 0; k < n_wrong; k++) {
            p->again += wrong[k] >= p->at;
        }
    }
    return n;
}

/* matches[i]: rows of the collection that match and score at least the i-th cut, if their share at a score is
 * logistic(slope * (score - middle)). Gives how many match at all. */
static double count_matches(const double *cuts, const size_t *counts, uint32_t n, double rows_each,
                            double slope, double middle, double *matches) {
    double z[CUTS], shares[CUTS], sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        z[i] = slope * (cuts[i] - middle);
    }
    smooth_steps(z, n, shares);
    for (uint32_t i = 0; i < n; i++) {
        sum += (double)(counts[i] - (i > 0 ? counts[i - 1] : 0)) * rows_each * shares[i];
        matches[i] = sum;
    }
    return sum;
}

/* Where to cut when labels come from the top of a ranking. Those are right or wrong by what they look like,
 * not by whether they were found, so the share of matches at a score can be learnt from them: it is taken to
 * be logistic(slope * (score - middle)). The slope is that with which the rows thin out above the cut, at
 * least SLOPE, or twice that; the middle any of the points. Of each slope, middles are weighted by the
 * held-out scores of the positives and a prior by which N matches, marked or not, have a density of N^-2.5;
 * both slopes count the same, until the scores of the negatives, `wrong`, tell them and the middles apart.
 * The cut is the point of the highest expected F1 of what is returned, marked or not. The threshold moves
 * there by the part c->exhausted. */
static int32_t go_beyond(const score *s, const double *wrong, size_t n_wrong, double rows_each, cut *c,
                         bw_error *error) {
    double cuts[CUTS], matches[CUTS], weights[SLOPES][POINTS], likely[SLOPES][POINTS], all[POINTS];
    double f1[POINTS] = {0}, right[POINTS] = {0}, recall[POINTS] = {0}, slopes[SLOPES];
    int64_t exponents[SLOPES][POINTS], highest = INT64_MIN;
    size_t counts[CUTS];
    point points[POINTS];
    double n = (double)s->n_out, sum = 0;
    double *sorted = bw_alloc_array(s->n_out + n_wrong, sizeof *sorted);
    if (!sorted) {
        return bw_fail_nomem(error, (s->n_out + n_wrong) * sizeof *sorted);
    }
    uint32_t n_cuts = list_cuts(s, cuts, counts), best = 0, last = 0;
    uint32_t steps = list_points(s, wrong, n_wrong, rows_each, cuts, counts, n_cuts, sorted, points);
    bw_free(sorted);
    size_t near = (size_t)floor(n / rows_each + 0.5);
    near = near > 2 ? near : 2;
    double first = score_at(s, near < s->n ? near : s->n - 1);
    double second = score_at(s, 4 * near < s->n ? 4 * near : s->n - 1);
    slopes[0] = LOG_4 / fmax(first - second, 0.02);
    slopes[0] = slopes[0] > SLOPE ? slopes[0] : SLOPE;
    for (uint32_t k = 0; k < SLOPES; k++) {
        slopes[k] = k > 0 ? 2 * slopes[k - 1] : slopes[0];
        int64_t powers[POINTS], most = INT64_MIN; /* of the positives' likelihood, in weights first */
        for (uint32_t b = 0; b < steps; b++) {
            weights[k][b] = likely[k][b] = 1;
            powers[b] = exponents[k][b] = 0;
            all[b] = count_matches(cuts, counts, n_cuts, rows_each, slopes[k], points[b].at, matches);
            all[b] += likelihood(s->out, s->n_out, true, points[b].at, slopes[k], &weights[k][b], &powers[b]);
            all[b] +=
                likelihood(wrong, n_wrong, false, points[b].at, slopes[k], &likely[k][b], &exponents[k][b]);
            most = powers[b] > most ? powers[b] : most;
            highest = exponents[k][b] > highest ? exponents[k][b] : highest;
        }
        sum = 0;
        for (uint32_t b = 0; b < steps; b++) {
            double wide = fabs(all[b + 1 < steps ? b + 1 : b] - all[b > 0 ? b - 1 : b]);
            weights[k][b] = scaled(weights[k][b], powers[b] - most) * wide / (all[b] * all[b] * sqrt(all[b]));
            sum += weights[k][b];
        }
        for (uint32_t b = 0; b < steps; b++) {
            weights[k][b] = sum > 0 ? weights[k][b] / sum : 0;
        }
    }
    sum = 0;
    for (uint32_t k = 0; k < SLOPES; k++) {
        for (uint32_t b = 0; b < steps; b++) {
            weights[k][b] *= scaled(likely[k][b], exponents[k][b] - highest);
            sum += weights[k][b];
        }
    }
    if (!(sum > 0)) {
        c->exhausted = 0;
        return BW_OK;
    }
    for (uint32_t k = 0; k < SLOPES; k++) {
        for (uint32_t b = 0; b < steps; b++) {
            double weight = weights[k][b] / sum;
            double hidden = count_matches(cuts, counts, n_cuts, rows_each, slopes[k], points[b].at, matches);
            for (uint32_t i = 0; i < steps; i++) {
                const point *p = &points[i];
                double found = p->cuts > 0 ? matches[p->cuts - 1] : 0;
                f1[i] += weight * (2 * (p->ok + found) / (p->ok + p->again + p->rows + n + hidden));
                right[i] += weight * (found / fmax(p->rows, rows_each));
                recall[i] += weight * (found / hidden);
            }
        }
    }
    for (uint32_t i = 1; i < steps; i++) {
        best = f1[i] > f1[best] ? i : best;
    }
    c->at = (1 - c->exhausted) * c->at + c->exhausted * points[best].at;
    while (last + 1 < steps && points[last + 1].at >= c->at) {
        last++;
    }
    c->precision = fmin(right[last], 1); /* sums of many parts may end a little above it */
    c->recall = fmin(recall[last], 1);
    return BW_OK;
}

/* Scores of the negatives, which the term has seen: they weigh little in it. */
static void score_negatives(const score *s, const labels *l, uint32_t dims, double *values) {
    for (size_t i = 0; i < l->n_negatives; i++) {
        values[i] = (double)bw_score_terms(&s->terms, dims, l->negatives[i], 1) / s->unit;
    }
}

/* ---- the learner ---- */

/* The background, and what is made for it once. */
typedef struct background {
    const uint8_t **rows;
    size_t n;
    space space;
    double prior[BW_DIMS];
    uint8_t *columns; /* [32][n] */
    uint64_t *keys;   /* scratch of 2 n */
    uint32_t *order;
    int32_t *scores;
} background;

static void background_free(background *b) {
    space_free(&b->space);
    bw_free(b->rows);
    bw_free(b->columns);
    bw_free(b->keys);
    bw_free(b->order);
    bw_free(b->scores);
}

/* The rows drawn from the collection; where these are few, the labelled ones belong to it as well. */
static int32_t background_make(const bw_training *training, background *b, bw_error *error) {
    size_t few = training->n_randoms < FEW ? training->n_positives + training->n_negatives + 1 : 0;
    b->rows = bw_alloc_array(training->n_randoms + few, sizeof *b->rows);
    if (!b->rows) {
        return bw_fail_nomem(error, (training->n_randoms + few) * sizeof *b->rows);
    }
    for (size_t i = 0; i < training->n_randoms; i++) {
        b->rows[b->n++] = training->randoms + i * BW_DIMS;
    }
    for (size_t i = 0; few > 0 && i < training->n_negatives; i++) {
        b->rows[b->n++] = training->negatives + i * BW_DIMS;
    }
    for (size_t i = 0; few > 0 && i < training->n_positives; i++) {
        b->rows[b->n++] = training->positives + i * BW_DIMS;
    }
    if (few > 0 && training->options->query && (!training->fine || training->options->query_fine)) {
        b->rows[b->n++] = training->options->query;
    }
    size_t n = b->n < MEASURED ? b->n : MEASURED;
    const uint8_t **measured = bw_alloc_array(n, sizeof *measured);
    b->keys = bw_alloc_array(b->n, 2 * sizeof *b->keys);
    b->order = bw_alloc_array(b->n, sizeof *b->order);
    b->scores = bw_alloc_array(b->n, sizeof *b->scores);
    b->columns = make_columns(b->rows, b->n, BW_DIMS);
    if (!measured || !b->columns || !b->keys || !b->order || !b->scores) {
        bw_free(measured);
        return bw_fail_nomem(error, b->n * 56);
    }
    for (size_t i = 0; i < n; i++) {
        measured[i] = b->rows[spaced(i, b->n, n)];
    }
    chosen all = {.n = n, .first = n, .of = n};
    int32_t status = space_make(measured, &all, n, BW_DIMS, &b->space, error);
    bw_free(measured);
    int64_t prior[BW_DIMS];
    const uint8_t *few_rows[BW_PRIOR_ROWS];
    size_t n_prior = b->n < BW_PRIOR_ROWS ? b->n : BW_PRIOR_ROWS;
    for (size_t i = 0; i < n_prior; i++) {
        few_rows[i] = b->rows[spaced(i, b->n, n_prior)];
    }
    bw_training_prior(few_rows, n_prior, prior);
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        b->prior[d] = (double)prior[d] / 256;
    }
    return status;
}

/* Rows for the regression: first those that a linear discriminant from the moments puts first. */
static void discriminate(const background *b, const labels *l, chosen *c) {
    if (b->n <= ROWS) {
        choose(NULL, b->n, ROWS, c);
        return;
    }
    const space *s = &b->space;
    double matrix[BW_DIMS * BW_DIMS], weights[BW_DIMS], center[BW_DIMS], bound = 0;
    double mass = label_mass(l, l->n_positives);
    label_center(l, 1, 1, BW_DIMS, center);
    memcpy(matrix, s->covariance, sizeof matrix);
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        matrix[d * BW_DIMS + d] += 0.04 + 0.16 / mass;
        weights[d] = (center[d] - s->mean[d]) / s->unit;
    }
    solve(matrix, BW_DIMS, BW_DIMS, weights);
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        weights[d] /= s->unit;
        bound += fabs(weights[d]) * 255;
    }
    double scale = power_of_two(fitting_shift(bound));
    int32_t whole[BW_DIMS];
    static const int32_t none[BW_DIMS];
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        whole[d] = (int32_t)floor(weights[d] * scale + 0.5);
    }
    s->kernels->whole_values(b->columns, b->n, b->n, BW_DIMS, whole, none, 0, b->scores);
    sort_scores(b->scores, b->n, b->keys, b->order);
    choose(b->order, b->n, ROWS, c);
}

/* ---- kinds of rows ---- */

static double distance_to(const double *row, const double *center) {
    double sum = 0;
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        double difference = row[d] - center[d];
        sum += difference * difference;
    }
    return sum;
}

/* k-means of n rows of 32, from centres that are far from each other. groups[i] < k. */
static void group_rows(const double *rows, size_t n, uint32_t k, double *centers, double *nearest,
                       uint8_t *groups) {
    double mean[BW_DIMS] = {0};
    for (size_t i = 0; i < n; i++) {
        for (uint32_t d = 0; d < BW_DIMS; d++) {
            mean[d] += rows[i * BW_DIMS + d];
        }
        nearest[i] = DBL_MAX;
    }
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        mean[d] /= (double)n;
    }
    for (uint32_t c = 0; c < k; c++) {
        size_t at = 0;
        double farthest = -1;
        for (size_t i = 0; i < n; i++) {
            double distance = c == 0 ? distance_to(rows + i * BW_DIMS, mean) : nearest[i];
            if (distance > farthest) {
                farthest = distance;
                at = i;
            }
        }
        memcpy(centers + c * BW_DIMS, rows + at * BW_DIMS, BW_DIMS * sizeof *centers);
        for (size_t i = 0; i < n; i++) {
            double distance = distance_to(rows + i * BW_DIMS, centers + c * BW_DIMS);
            nearest[i] = distance < nearest[i] ? distance : nearest[i];
        }
    }
    for (int step = 0; step <= MEANS_STEPS; step++) {
        bool moved = step == 0;
        for (size_t i = 0; i < n; i++) {
            uint8_t best = 0;
            double least = DBL_MAX;
            for (uint32_t c = 0; c < k; c++) {
                double distance = distance_to(rows + i * BW_DIMS, centers + c * BW_DIMS);
                if (distance < least) {
                    least = distance;
                    best = (uint8_t)c;
                }
            }
            moved = moved || best != groups[i];
            groups[i] = best;
        }
        if (!moved) {
            break;
        }
        for (uint32_t c = 0; c < k; c++) {
            double sum[BW_DIMS] = {0};
            size_t count = 0;
            for (size_t i = 0; i < n; i++) {
                if (groups[i] == c) {
                    count++;
                    for (uint32_t d = 0; d < BW_DIMS; d++) {
                        sum[d] += rows[i * BW_DIMS + d];
                    }
                }
            }
            for (uint32_t d = 0; d < BW_DIMS && count > 0; d++) {
                centers[c * BW_DIMS + d] = sum[d] / (double)count;
            }
        }
    }
}

/* Rows with distances in standard deviations of small neighbourhoods. */
static void scale_rows(const labels *l, const uint8_t *const *codes, size_t n, double *rows) {
    for (size_t i = 0; i < n; i++) {
        for (uint32_t d = 0; d < BW_DIMS; d++) {
            rows[i * BW_DIMS + d] = codes[i][d] / sqrt(l->prior[d]);
        }
    }
}

/* Tells the positives of two kinds apart; gives how many are of the second. `rows` has room for 33
 * n_positives. */
static size_t two_kinds(const labels *l, uint8_t *kinds, double *rows) {
    size_t n = l->n_positives, second = 0;
    double centers[2 * BW_DIMS];
    scale_rows(l, l->positives, n, rows);
    group_rows(rows, n, 2, centers, rows + n * BW_DIMS, kinds);
    for (size_t i = 0; i < n; i++) {
        second += kinds[i];
    }
    return second;
}

/* Ranks the labels of one kind against rows chosen for them. */
static int32_t rank_codes(const bw_training *training, const background *b, const labels *l, ranked *r,
                          bw_error *error) {
    uint32_t rows[ROWS];
    const uint8_t *codes[ROWS];
    chosen c = {.rows = rows};
    discriminate(b, l, &c);
    for (size_t i = 0; i < c.n; i++) {
        codes[i] = b->rows[rows[i]];
    }
    return rank(training, &b->space, l, codes, &c, r, error);
}

/* The labels of one of several kinds of positives; all of them where `kinds` is NULL. Room for all in
 * `rows`. */
static labels part_of(const labels *l, const uint8_t *kinds, uint8_t kind, const uint8_t **rows) {
    labels part = *l;
    part.positives = rows;
    part.n_positives = 0;
    for (size_t i = 0; i < l->n_positives; i++) {
        if (!kinds || kinds[i] == kind) {
            rows[part.n_positives++] = l->positives[i];
        }
    }
    return part;
}

/* Held-out scores of the larger of several terms: a positive's own term is the one without it. r[k].out
 * are those of the positives of kind k in their order. */
static void combine(const labels *l, const uint8_t *kinds, const ranked *r, uint32_t n_kinds, uint32_t dims,
                    double *out) {
    size_t next[2] = {0};
    for (size_t i = 0; i < l->n_positives; i++) {
        uint8_t kind = kinds ? kinds[i] : 0;
        out[i] = r[kind].out[next[kind]++];
        for (uint32_t k = 0; k < n_kinds; k++) {
            double other = k == kind ? out[i] : term_value(&r[k].whole, l->positives[i], dims);
            out[i] = other > out[i] ? other : out[i];
        }
    }
}

/* What is at work, in one place to free. */
typedef struct learner {
    background background;
    const uint8_t **rows; /* of positives, negatives, and scratch for the positives of a kind; */
    const uint8_t **fine; /* their fine codes */
    double *numbers;      /* 5 n_positives: held-out scores */
    double *scaled;       /* n_positives * 33 */
    double *scratch;      /* 2 n_positives */
    double *wrong;        /* n_negatives: scores */
    uint8_t *kinds;
    score score, fine_score;
} learner;

static void learner_free(learner *w) {
    background_free(&w->background);
    bw_free(w->rows);
    bw_free(w->fine);
    bw_free(w->numbers);
    bw_free(w->scaled);
    bw_free(w->scratch);
    bw_free(w->wrong);
    bw_free(w->kinds);
    score_free(&w->score);
    score_free(&w->fine_score);
}

static int32_t make_score(const background *b, const ranked *r, uint32_t terms, double *out, size_t n_out,
                          score *s, bw_error *error) {
    term list[2] = {r[0].whole, r[terms - 1].whole};
    int32_t status = score_make(list, terms, BW_DIMS, b->columns, b->n, s, error);
    s->out = out;
    s->n_out = n_out;
    return status;
}

/* Takes `better` in place of the score so far, or drops it. */
static bool replace(learner *w, score *better, bool take) {
    if (take) {
        score old = w->score;
        w->score = *better;
        *better = old;
    }
    score_free(better);
    return take;
}

/* The score of codes; *terms receives the number of kinds, *fallen whether it is the distance. */
static int32_t learn_codes(const bw_training *training, learner *w, const labels *l, uint32_t *terms,
                           bool *fallen, bw_error *error) {
    const background *b = &w->background;
    size_t n = l->n_positives, n_out = label_folds(l) > 0 ? n : 0;
    double *out = w->numbers, *spare = out + n, *outs[2] = {out + 2 * n, out + 3 * n};
    const uint8_t **scratch = w->rows + n + l->n_negatives;
    ranked r[2] = {{.out = out}, {.out = spare}};
    *terms = 1;
    *fallen = false;
    int32_t status = rank_codes(training, b, l, &r[0], error);
    if (status == BW_OK) {
        status = make_score(b, r, 1, out, n_out, &w->score, error);
    }
    size_t second = status == BW_OK && n >= 2 * LEAST_KIND + 2 ? two_kinds(l, w->kinds, w->scaled) : 0;
    if (status == BW_OK && second >= LEAST_KIND && n - second >= LEAST_KIND) {
        score two = {.n = 0};
        for (uint8_t kind = 0; status == BW_OK && kind < 2; kind++) {
            labels part = part_of(l, w->kinds, kind, scratch);
            r[kind].out = outs[kind];
            status = rank_codes(training, b, &part, &r[kind], error);
        }
        if (status == BW_OK) {
            combine(l, w->kinds, r, 2, BW_DIMS, spare);
            status = make_score(b, r, 2, spare, n_out, &two, error);
        }
        bool clearly = status == BW_OK && place(&two) + MARGIN * (int64_t)n < place(&w->score);
        *terms = replace(w, &two, clearly) ? 2 : 1;
    }
    if (status == BW_OK && training->options->guard && n_out > 0) {
        score distance = {.n = 0};
        r[0].out = outs[0];
        rank_nearest(&b->space, l, &r[0]);
        status = make_score(b, r, 1, outs[0], n_out, &distance, error);
        bool clearly = status == BW_OK && place(&distance) + MARGIN * (int64_t)n < place(&w->score);
        *fallen = replace(w, &distance, clearly);
    }
    return status;
}

/* The fine code of row i of the background. */
static const uint8_t *fine_row(const bw_training *t, size_t i) {
    if (i < t->n_randoms) {
        return t->fine(t->fine_context, i);
    }
    i -= t->n_randoms;
    if (i < t->n_negatives) {
        return t->negatives_fine + i * BW_FINE_DIMS;
    }
    i -= t->n_negatives;
    return i < t->n_positives ? t->positives_fine + i * BW_FINE_DIMS : t->options->query_fine;
}

/* The score of fine codes, against the rows of the background that the score of codes puts first and others,
 * and its threshold, by the rows that score at least `least`. */
static int32_t learn_fine(const bw_training *training, learner *w, const labels *l, uint32_t terms,
                          double least, bw_error *error) {
    const background *b = &w->background;
    size_t n = l->n_positives;
    uint32_t rows[FINE_ROWS];
    const uint8_t *codes[FINE_ROWS], **scratch = w->fine + n + l->n_negatives;
    chosen c = {.rows = rows};
    choose(w->score.order, b->n, FINE_ROWS, &c);
    for (size_t i = 0; i < c.n; i++) {
        codes[i] = fine_row(training, rows[i]);
    }
    space s;
    int32_t status = space_make(codes, &c, 0, BW_FINE_DIMS, &s, error);
    double *out = w->numbers, *outs[2] = {out + n, out + 2 * n};
    ranked r[2] = {{.out = outs[0]}, {.out = outs[1]}};
    for (uint8_t kind = 0; status == BW_OK && kind < terms; kind++) {
        labels part = part_of(l, terms == 1 ? NULL : w->kinds, kind, scratch);
        status = rank(training, &s, &part, codes, &c, &r[kind], error);
    }
    size_t near = count_above(&w->score, least);
    near = near > 1 ? near : 1;
    const uint8_t **candidates = bw_alloc_array(near, sizeof *candidates);
    for (size_t i = 0; candidates && i < near; i++) {
        candidates[i] = fine_row(training, w->score.order[i]);
    }
    uint8_t *columns = candidates ? make_columns(candidates, near, BW_FINE_DIMS) : NULL;
    if (status == BW_OK && !columns) {
        status = bw_fail_nomem(error, near * BW_FINE_DIMS);
    }
    if (status == BW_OK) {
        term list[2] = {r[0].whole, r[terms - 1].whole};
        combine(l, terms == 1 ? NULL : w->kinds, r, terms, BW_FINE_DIMS, out);
        status = score_make(list, terms, BW_FINE_DIMS, columns, near, &w->fine_score, error);
        w->fine_score.out = out;
        w->fine_score.n_out = label_folds(l) > 0 ? n : 0;
    }
    bw_free(columns);
    bw_free(candidates);
    space_free(&s);
    return status;
}

/* ---- boxes around what the score lets through ---- */

/* Keeps the ranges that leave the fewest rows of the background inside, one by one, at most BOX_DIMS.
 * `inside` and `alive` have room for 33 n. */
static void choose_ranges(const background *b, const int32_t *lo, const int32_t *hi, uint8_t *inside,
                          bw_ranges *box) {
    uint8_t *alive = inside + BW_DIMS * b->n;
    size_t left = b->n, own[BW_DIMS];
    uint32_t chosen_dims = 0;
    memset(alive, 1, b->n);
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        const uint8_t *column = b->columns + d * b->n;
        uint8_t *in = inside + d * b->n;
        own[d] = 0;
        for (size_t i = 0; i < b->n; i++) {
            in[i] = (column[i] >= lo[d]) & (column[i] <= hi[d]);
            own[d] += in[i];
        }
    }
    for (int step = 0; step < BOX_DIMS; step++) {
        size_t least = left;
        uint32_t best = BW_DIMS;
        for (uint32_t d = 0; d < BW_DIMS; d++) {
            size_t count = 0;
            for (size_t i = 0; i < b->n; i++) {
                count += inside[d * b->n + i] & alive[i];
            }
            if (!(chosen_dims >> d & 1) &&
                (count < least || (best < BW_DIMS && count == least && own[d] < own[best]))) {
                least = count;
                best = d;
            }
        }
        if (best == BW_DIMS) {
            break;
        }
        chosen_dims |= UINT32_C(1) << best;
        left = least;
        for (size_t i = 0; i < b->n; i++) {
            alive[i] &= inside[best * b->n + i];
        }
    }
    box->count = 0;
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        if (chosen_dims >> d & 1) {
            box->dim[box->count] = (uint8_t)d;
            box->lo[box->count] = (uint8_t)lo[d];
            box->hi[box->count++] = (uint8_t)hi[d];
        }
    }
}

/* At most `wanted` boxes around the positives and the rows of the background that score at least `least`. */
static int32_t enclose(const learner *w, const labels *l, double least, uint32_t wanted, bw_ranges *boxes,
                       uint32_t *n_boxes, bw_error *error) {
    const background *b = &w->background;
    size_t above = count_above(&w->score, least), n = l->n_positives;
    size_t enclosed = above < ENCLOSED ? above : ENCLOSED, rows = n + enclosed;
    uint32_t k = rows < wanted ? (uint32_t)rows : wanted;
    const uint8_t **codes = bw_alloc_array(rows + 1, sizeof *codes);
    double *scaled = bw_alloc_array(rows + 1, (BW_DIMS + 1) * sizeof *scaled);
    double *centers = bw_alloc_array(k + 1, BW_DIMS * sizeof *centers);
    uint8_t *groups = bw_alloc_zero(rows + 1, 1), *inside = bw_alloc_array(b->n, BW_DIMS + 1);
    bool enough = codes && scaled && centers && groups && inside;
    *n_boxes = 0;
    if (enough) {
        for (size_t i = 0; i < rows; i++) {
            codes[i] = i < n ? l->positives[i] : b->rows[w->score.order[spaced(i - n, above, enclosed)]];
        }
        scale_rows(l, codes, rows, scaled);
        group_rows(scaled, rows, k, centers, scaled + rows * BW_DIMS, groups);
    }
    for (uint32_t c = 0; enough && c < k; c++) {
        size_t counts[BW_DIMS][256] = {{0}}, members = 0;
        for (size_t i = 0; i < rows; i++) {
            for (uint32_t d = 0; d < BW_DIMS && groups[i] == c; d++) {
                counts[d][codes[i][d]]++;
            }
            members += groups[i] == c;
        }
        if (members == 0) {
            continue;
        }
        int32_t lo[BW_DIMS], hi[BW_DIMS];
        size_t tail = members / BOX_TAIL; /* so many are left out at each end */
        for (uint32_t d = 0; d < BW_DIMS; d++) {
            size_t below = 0, over = 0;
            int32_t first = 0, last = 255;
            while (below + counts[d][first] <= tail) {
                below += counts[d][first++];
            }
            while (over + counts[d][last] <= tail) {
                over += counts[d][last--];
            }
            double slack = sqrt(l->prior[d]) * (1 + 8 / (double)members);
            lo[d] = (int32_t)fmax(floor(first - slack), 0);
            hi[d] = (int32_t)fmin(ceil(last + slack), 255);
        }
        choose_ranges(b, lo, hi, inside, &boxes[(*n_boxes)++]);
    }
    bw_free(codes);
    bw_free(scaled);
    bw_free(centers);
    bw_free(groups);
    bw_free(inside);
    return enough ? BW_OK : bw_fail_nomem(error, rows * 400 + b->n * 33);
}

/* m of n labels, evenly. */
static void take_labels(const uint8_t *codes, size_t n, size_t m, uint32_t dims, const uint8_t **rows) {
    for (size_t i = 0; i < m; i++) {
        rows[i] = codes + spaced(i, n, m) * dims;
    }
}

static int32_t make_model(const bw_training *training, learner *w, const bw_ranges *boxes, uint32_t n_boxes,
                          bool fine, bool fallen, bw_model **model, bw_error *error) {
    const bw_train_options *options = training->options;
    uint32_t hundredths = (uint32_t)(options->negative_weight * 100 + 0.5), first_box[2] = {0, n_boxes};
    uint32_t estimators = n_boxes > 0;
    bw_text text = {0};
    bw_text_append(
        &text, "{\"positives\":%zu,\"negatives\":%zu,\"background\":%zu,\"negative_weight\":%u.%02u}",
        training->n_positives, training->n_negatives, w->background.n, hundredths / 100, hundredths % 100);
    int32_t status =
        text.failed ? bw_fail_nomem(error, 256)
                    : bw_model_new(fallen ? "nearest" : "cover", training->quantizer, estimators, first_box,
                                   boxes, estimators, &w->score.terms, fine ? training->fine_quantizer : NULL,
                                   fine ? &w->fine_score.terms : NULL, text.data, model, error);
    bw_free(text.data);
    return status;
}

/* How many rows without a label score at least `least`, `sampled` of them in the background; those that are
 * too few there to tell are counted in the collection. */
static int32_t unlabelled_above(const bw_training *training, const bw_score *terms, int64_t least,
                                size_t sampled, double many, const labels *l, double *rows, bw_error *error) {
    double each = training->rows_each;
    *rows = (double)sampled * each;
    if (!training->count || !(each > 1) || *rows >= many + 4 * each) {
        return BW_OK;
    }
    int32_t status = training->count(training->count_context, terms, least, rows, error);
    for (size_t i = 0; status == BW_OK && i < l->n_positives + l->n_negatives; i++) {
        const uint8_t *code = i < l->n_positives ? l->positives[i] : l->negatives[i - l->n_positives];
        *rows -= bw_score_terms(terms, BW_DIMS, code, 1) >= least;
    }
    return status;
}

/* Whether the labels come from the top of a ranking, from 0 to 1: by the score, or by the distance to the
 * query. They do where hardly a row is left that ranks as high as the held-out positives do on average: of
 * positives that are a fair sample, as many rows are left above that as half the matches without a label. The
 * scores of labels from the top say nothing of how far the matches reach. */
static int32_t exhausted(const bw_training *training, const background *b, const score *s, const labels *l,
                         double *share, bw_error *error) {
    *share = 0;
    size_t n = s->n_out;
    if (n < 3 || training->n_randoms < FEW || n < training->n_positives) {
        return BW_OK;
    }
    double low = 0.05 * (double)n, high = 0.1 * (double)n + 2, above;
    double mean = mean_of(s->out, n);
    int64_t least = (int64_t)floor(mean * s->unit + 0.5);
    int32_t status =
        unlabelled_above(training, &s->terms, least, count_above(s, mean), high, l, &above, error);
    if (status == BW_OK && l->query) {
        bw_score near = {.terms = 1};
        int64_t sum = 0;
        size_t sampled = 0;
        for (uint32_t d = 0; d < BW_DIMS; d++) {
            near.term[0].linear[d] = 2 * l->query[d];
            near.term[0].square[d] = -1;
        }
        for (size_t i = 0; i < n; i++) {
            sum += bw_score_terms(&near, BW_DIMS, l->positives[i], 1);
        }
        least = sum >= 0 ? sum / (int64_t)n : -((-sum + (int64_t)n - 1) / (int64_t)n); /* rounded down */
        int32_t linear[BW_DIMS], square[BW_DIMS];
        for (uint32_t d = 0; d < BW_DIMS; d++) {
            linear[d] = (int32_t)near.term[0].linear[d];
            square[d] = -1;
        }
        b->space.kernels->whole_values(b->columns, b->n, b->n, BW_DIMS, linear, square, 0, b->scores);
        for (size_t i = 0; i < b->n; i++) {
            sampled += b->scores[i] >= least;
        }
        double nearer = above;
        status = unlabelled_above(training, &near, least, sampled, high, l, &nearer, error);
        above = fmin(above, nearer);
    }
    *share = fmin(fmax((high - above) / (high - low), 0), 1);
    return status;
}

/* What to expect of the rows above a cut, of `rows` in the background. The recall is that of held-out
 * positives, drawn towards 0.7. How many rows above the cut are wrong nobody can know without labels: the
 * precision leans on the recall and on the bound for the number of positives, and its interval is wide. All
 * numbers here were fitted by hand so that about nine of ten intervals hold on the data of docs/LEARNERS.md,
 * which says where fewer do: where matches are rare. */
static void estimate(const bw_training *training, const score *s, const cut *c, size_t rows,
                     double *scratch) {
    bw_train_stats *stats = training->stats;
    size_t above = count_above(s, c->at);
    if (training->n_randoms < FEW) { /* the background then holds the labels themselves */
        return;
    }
    stats->rows = (double)above * training->rows_each;
    if (s->n_out == 0) {
        return;
    }
    double n = (double)s->n_out, rate = rate_above(s, c->at, c->width, scratch);
    double bound = c->there * rate / (double)(above > 1 ? above : 1);
    stats->recall = (n * rate + 4 * 0.7) / (n + 4);
    stats->precision = (4 * rate + (bound < 1 ? bound : 1)) / 6;
    double recall_half = 0.9 / sqrt(n + 2), precision_half = 0.48;
    if (c->exhausted > 0) {
        stats->recall += c->exhausted * (c->recall - stats->recall);
        stats->precision += c->exhausted * (c->precision - stats->precision);
        recall_half += c->exhausted * (fmax(recall_half, 0.45) - recall_half);
    }
    stats->recall_low = fmax(stats->recall - recall_half, 0);
    stats->recall_high = fmin(stats->recall + recall_half, 1);
    stats->precision_low = fmax(stats->precision - precision_half, 0);
    if (stats->fallback || (double)above > MANY * (double)rows) {
        stats->precision_low = 0; /* labels that have nothing in common end here, too */
    }
    stats->precision_high = fmin(stats->precision + precision_half, 1);
}

/* Adds to the note, after what is there, if all of it fits. */
static void add_note(bw_train_stats *stats, const char *text) {
    size_t used = strlen(stats->note), room = sizeof stats->note - used;
    if (strlen(text) + 3 <= room) {
        snprintf(stats->note + used, room, "%s%s", used > 0 ? "; " : "", text);
    }
}

/* What people should know about their labels. `n` background rows were looked at. */
static void advise(const bw_training *training, const score *s, const cut *c, size_t n) {
    bw_train_stats *stats = training->stats;
    char text[sizeof stats->note];
    size_t first[3] = {0}, unlike = 0;
    if (training->n_randoms < FEW) {
        add_note(stats, "there are hardly any other images to tell these from");
    } else if (s->n_out == 0) {
        add_note(stats,
                 training->n_positives == 0
                     ? "words or a code alone: nothing tells how well this works; mark images that are right"
                     : "a single example: nothing tells how well this works; mark more images");
    }
    if (stats->fallback) {
        add_note(stats,
                 "held-out positives rank higher by distance to the mean of the others, so that is the "
                 "ranking; mark more images");
    }
    if (c->exhausted >= 0.5) {
        add_note(stats,
                 "what ranks as high as the positives is marked already, so how far the rest reaches is a "
                 "guess: mark some of what is returned");
    }
    if (n >= FEW && (double)count_above(s, c->at) > MANY * (double)n) {
        add_note(stats, "much of the collection matches: the positives may have little in common");
    }
    for (size_t i = 0; i < s->n_out && s->n_out >= 4; i++) {
        if (s->out[i] < c->at - UNLIKE) {
            if (unlike < 3) {
                first[unlike] = spaced(i, training->n_positives, s->n_out);
            }
            unlike++;
        }
    }
    if (unlike == 0 || unlike * 3 > s->n_out) { /* many: it is not they who are wrong */
        return;
    }
    int used = snprintf(text, sizeof text, "%zu of %zu positives look unlike the others: ", unlike, s->n_out);
    for (size_t i = 0; i < unlike && i < 3; i++) {
        long long id = training->ids ? (long long)training->ids[first[i]] : (long long)first[i];
        used += snprintf(text + used, sizeof text - (size_t)used, "%s%lld", i > 0 ? ", " : "", id);
    }
    snprintf(text + used, sizeof text - (size_t)used, "%s", unlike > 3 ? ", .." : "");
    add_note(stats, text);
}

int32_t bw_train_cover(const bw_training *training, bw_model **model, bw_error *error) {
    size_t positives = training->n_positives < LABELS ? training->n_positives : LABELS;
    size_t negatives = training->n_negatives < LABELS ? training->n_negatives : LABELS;
    learner w = {.kinds = bw_alloc_zero(positives + 1, 1)};
    w.rows = bw_alloc_array(2 * positives + negatives + 1, sizeof *w.rows);
    w.fine = bw_alloc_array(2 * positives + negatives + 1, sizeof *w.fine);
    w.numbers = bw_alloc_zero(positives + 1, 5 * sizeof *w.numbers);
    w.scaled = bw_alloc_array(positives + 1, (BW_DIMS + 1) * sizeof *w.scaled);
    w.scratch = bw_alloc_array(positives + 1, 2 * sizeof *w.scratch);
    w.wrong = bw_alloc_array(negatives + 1, sizeof *w.wrong);
    if (!w.kinds || !w.rows || !w.fine || !w.numbers || !w.scaled || !w.scratch || !w.wrong) {
        learner_free(&w);
        return bw_fail_nomem(error, (positives + negatives + 1) * 400);
    }
    take_labels(training->positives, training->n_positives, positives, BW_DIMS, w.rows);
    take_labels(training->negatives, training->n_negatives, negatives, BW_DIMS, w.rows + positives);
    labels l = {.positives = w.rows,
                .negatives = w.rows + positives,
                .n_positives = positives,
                .n_negatives = negatives,
                .query = training->options->query,
                .prior = w.background.prior,
                .negative_weight = training->options->negative_weight};
    uint32_t terms = 1;
    bool fallen = false, fine = false;
    int32_t status = background_make(training, &w.background, error);
    if (status == BW_OK) {
        status = learn_codes(training, &w, &l, &terms, &fallen, error);
    }
    cut at = {0}, fine_at = {0};
    if (status == BW_OK) {
        at = find_cut(&w.score, BELOW, training->rows_each, w.scratch);
        status = exhausted(training, &w.background, &w.score, &l, &at.exhausted, error);
    }
    double share = at.exhausted;
    if (status == BW_OK && share > 0) {
        score_negatives(&w.score, &l, BW_DIMS, w.wrong);
        status = go_beyond(&w.score, w.wrong, negatives, training->rows_each, &at, error);
    }
    if (status == BW_OK && training->fine && !fallen) {
        labels of_fine = l;
        take_labels(training->positives_fine, training->n_positives, positives, BW_FINE_DIMS, w.fine);
        take_labels(training->negatives_fine, training->n_negatives, negatives, BW_FINE_DIMS,
                    w.fine + positives);
        of_fine.positives = w.fine;
        of_fine.negatives = w.fine + positives;
        of_fine.query = training->options->query_fine;
        of_fine.prior = NULL;
        fine = true;
        at.at -= MARGIN_FINE;
        status = learn_fine(training, &w, &of_fine, terms, at.at, error);
        if (status == BW_OK) {
            fine_at = find_cut(&w.fine_score, FINE_BELOW, training->rows_each, w.scratch);
            fine_at.exhausted = share;
            if (share > 0) {
                score_negatives(&w.fine_score, &of_fine, BW_FINE_DIMS, w.wrong);
                status = go_beyond(&w.fine_score, w.wrong, negatives, training->rows_each, &fine_at, error);
            }
            w.fine_score.terms.threshold = (int64_t)floor(fine_at.at * w.fine_score.unit + 0.5);
        }
    }
    if (status == BW_OK) {
        training->stats->terms = w.score.terms.terms;
        training->stats->fallback = fallen;
        const score *last = fine ? &w.fine_score : &w.score;
        training->stats->held_out = (uint32_t)last->n_out;
        const cut *last_cut = fine ? &fine_at : &at;
        estimate(training, last, last_cut, w.background.n, w.scratch);
        advise(training, last, last_cut, w.background.n);
        w.score.terms.threshold = (int64_t)floor(at.at * w.score.unit + 0.5);
    }
    bw_ranges boxes[BW_MAX_COVER_BOXES];
    uint32_t n_boxes = 0, wanted = training->options->boxes;
    if (status == BW_OK && wanted > 0) {
        status = enclose(&w, &l, at.at - BOX_BELOW, wanted, boxes, &n_boxes, error);
    }
    if (status == BW_OK) {
        status = make_model(training, &w, boxes, n_boxes, fine, fallen, model, error);
    }
    learner_free(&w);
    return status;
}
