/* search_score.c - scores in the form that kernels take, and what zones say of them.
 *
 * A term, a quadratic a dimension with coefficients of up to 38 bits, becomes one of 16 bits in units of
 * 2^shift that is nowhere less, up to a known error: about the place where it turns, so that what is lost
 * grows towards its ends, where rows are out anyway. With a shift of 0 it is the term itself, and so it is
 * for coefficients of up to seven bits. Rows that a rounded term lets through are scored again, exactly. */
#include "search.h"

#include <string.h>

#define MAX_SUM ((int64_t)1 << 30) /* beyond every sum of a bw_quadratic, and of any part of one */
#define MAX_SCORE ((int64_t)1 << 54)

/* One dimension of a term before and after rounding; the rest is as in bw_quadratic. */
typedef struct rounded {
    int64_t linear, square; /* about the centre, exact */
    int64_t centre;
    int64_t linear_units, square_units;
    int64_t error; /* the most that the exact one is above the rounded one */
} rounded;

/* The whole number nearest to a / b, b > 0, halves up. */
static int64_t divide(int64_t a, int64_t b) {
    int64_t doubled = 2 * a + b, quotient = doubled / (2 * b);
    return quotient - (doubled % (2 * b) < 0);
}

/* ceil(a / 2^shift) */
static int64_t shift_up(int64_t a, uint32_t shift) {
    int64_t unit = (int64_t)1 << shift, quotient = a / unit;
    return quotient + (a % unit > 0);
}

static void centre(rounded *r, int64_t linear, int64_t square) {
    r->centre = 128;
    if (square < 0) {
        int64_t best = divide(linear, -2 * square);
        r->centre = best < 0 ? 0 : best > 255 ? 255 : best;
    }
    r->linear = linear + 2 * square * r->centre;
    r->square = square;
}

/* False when 16 bits do not hold it at this shift. */
static bool round_to(rounded *r, uint32_t shift) {
    r->square_units = shift_up(r->square, shift);
    r->linear_units = divide(r->linear, (int64_t)1 << shift);
    int64_t first = r->linear_units - r->square_units * r->centre;
    int64_t last = r->linear_units + r->square_units * (255 - r->centre);
    return r->square_units >= -INT16_MAX && r->square_units <= INT16_MAX && r->linear_units >= -INT16_MAX &&
           r->linear_units <= INT16_MAX && first >= -INT16_MAX && first <= INT16_MAX && last >= -INT16_MAX &&
           last <= INT16_MAX;
}

static void find_error(rounded *r, uint32_t shift) {
    int64_t unit = (int64_t)1 << shift;
    r->error = 0;
    for (int64_t x = 0; shift > 0 && x < 256; x++) {
        int64_t y = x - r->centre;
        int64_t above = (r->linear + r->square * y) * y - (r->linear_units + r->square_units * y) * y * unit;
        r->error = above > r->error ? above : r->error;
    }
}

/* Rounds n dimensions of a term with the smallest shift that will do. */
static void round_term(const bw_term *term, uint32_t n, rounded *parts, uint32_t *shift, int64_t *base) {
    bool held = false;
    *base = term->constant;
    for (uint32_t d = 0; d < n; d++) {
        centre(&parts[d], term->linear[d], term->square[d]);
        *base += (term->linear[d] + term->square[d] * parts[d].centre) * parts[d].centre;
    }
    for (*shift = 0; !held; *shift += !held) {
        held = true;
        for (uint32_t d = 0; held && d < n; d++) {
            held = round_to(&parts[d], *shift);
        }
    }
    for (uint32_t d = 0; d < n; d++) {
        find_error(&parts[d], *shift);
        *base += parts[d].error;
    }
}

/* How far apart a dimension sets rows: the variance of what it adds, by the rows of a segment. */
static double spread_of(const rounded *part, const uint32_t rows[256]) {
    double n = 0, sum = 0, squares = 0;
    for (int64_t x = 0; x < 256; x++) {
        int64_t y = x - part->centre;
        double value = (double)((part->linear_units + part->square_units * y) * y);
        double weight = rows ? rows[x] : 1;
        n += weight;
        sum += weight * value;
        squares += weight * value * value;
    }
    double variance = n > 0 ? squares / n - sum / n * (sum / n) : 0;
    return variance > 0 ? variance : 0;
}

static uint8_t best_of(const rounded *part) {
    int64_t most = INT64_MIN;
    uint8_t best = 0;
    for (int64_t x = 0; x < 256; x++) {
        int64_t y = x - part->centre, value = (part->linear_units + part->square_units * y) * y;
        if (value > most) {
            most = value;
            best = (uint8_t)x;
        }
    }
    return best;
}

static void make_quadratic(const rounded parts[BW_DIMS], const bw_segment *segment, bw_quadratic *q) {
    double spread[BW_DIMS];
    uint32_t count = 0;
    for (uint32_t d = 0; d < BW_DIMS; d++) {
        bool used = parts[d].linear_units != 0 || parts[d].square_units != 0;
        double own = used ? spread_of(&parts[d], segment ? segment->histograms[d] : NULL) : -1;
        uint32_t place = d;
        for (; place > 0 && spread[place - 1] < own; place--) {
            spread[place] = spread[place - 1];
            q->dim[place] = q->dim[place - 1];
        }
        spread[place] = own;
        q->dim[place] = (uint8_t)d;
        count += used;
    }
    q->groups = count > 0 ? (count + 7) / 8 : 1;
    for (uint32_t i = 0; i < BW_DIMS; i++) {
        const rounded *part = &parts[q->dim[i]];
        q->best[i] = best_of(part);
        q->centre[i] = (int16_t)part->centre;
        q->linear[i] = (int16_t)part->linear_units;
        q->square[i] = (int16_t)part->square_units;
    }
}

void bw_scorer_make(const bw_index *index, const bw_score *score, bw_scorer *scorer) {
    const bw_segment *largest = NULL;
    for (uint32_t s = 0; s < index->info.segments; s++) {
        if (!largest || index->segments[s]->rows > largest->rows) {
            largest = index->segments[s];
        }
    }
    scorer->terms = score->terms;
    scorer->exact = true;
    for (uint32_t t = 0; t < score->terms; t++) {
        bw_scorer_term *term = &scorer->term[t];
        rounded parts[BW_DIMS];
        round_term(&score->term[t], BW_DIMS, parts, &term->shift, &term->base);
        make_quadratic(parts, largest, &term->q);
        scorer->exact = scorer->exact && term->shift == 0;
    }
}

void bw_fine_scorer_make(const bw_score *score, bw_fine_scorer *scorer) {
    scorer->exact = true;
    for (uint32_t t = 0; t < score->terms; t++) {
        rounded parts[BW_FINE_DIMS];
        round_term(&score->term[t], BW_FINE_DIMS, parts, &scorer->shift[t], &scorer->base[t]);
        scorer->exact = scorer->exact && scorer->shift[t] == 0;
        for (uint32_t d = 0; d < BW_FINE_DIMS; d++) {
            scorer->q[t].centre[d] = (int16_t)parts[d].centre;
            scorer->q[t].linear[d] = (int16_t)parts[d].linear_units;
            scorer->q[t].square[d] = (int16_t)parts[d].square_units;
        }
    }
    for (uint32_t t = 0; t < score->terms; t++) {
        int64_t threshold = score->has_threshold ? score->threshold : INT64_MIN;
        scorer->least[t] = bw_least_sum(threshold, scorer->base[t], scorer->shift[t]);
    }
    scorer->terms = score->terms;
}

int32_t bw_least_sum(int64_t threshold, int64_t base, uint32_t shift) {
    threshold = threshold > MAX_SCORE ? MAX_SCORE : threshold < -MAX_SCORE ? -MAX_SCORE : threshold;
    int64_t least = shift_up(threshold - base, shift);
    return (int32_t)(least > MAX_SUM ? MAX_SUM : least < -MAX_SUM ? -MAX_SUM : least);
}

bool bw_fine_score(const bw_fine_scorer *scorer, const bw_score *score, const bw_kernels *kernels,
                   const uint8_t code[BW_FINE_DIMS], int64_t *value) {
    bool reached = false;
    int64_t most = INT64_MIN;
    for (uint32_t t = 0; t < scorer->terms; t++) {
        int32_t sum = kernels->fine(code, &scorer->q[t]);
        reached = reached || sum >= scorer->least[t];
        most = sum + scorer->base[t] > most ? sum + scorer->base[t] : most;
    }
    if (reached && !scorer->exact) {
        most = bw_score_terms(score, BW_FINE_DIMS, code, 1);
        reached = !score->has_threshold || most >= score->threshold;
    }
    *value = most;
    return reached;
}

/* ---- blocks and rows ---- */

uint64_t bw_scorer_zones(const bw_scorer *scorer, const bw_kernels *kernels, const bw_segment *segment,
                         uint32_t first, const int64_t *threshold, bool same, uint64_t blocks,
                         bw_score_group *group) {
    uint64_t possible = 0;
    for (uint32_t t = 0; t < scorer->terms; t++) {
        const bw_scorer_term *term = &scorer->term[t];
        int32_t *most = group->most[t], *least = group->least[t];
        kernels->quadratic_zones(segment->zone_min, segment->zone_max, segment->zone_stride, first, &term->q,
                                 most);
        int32_t one = bw_least_sum(threshold[0], term->base, term->shift);
        uint64_t alive = 0;
        for (uint32_t i = 0; i < BW_GROUP_BLOCKS; i++) {
            least[i] = same ? one : bw_least_sum(threshold[i], term->base, term->shift);
            alive |= (uint64_t)(most[i] >= least[i]) << i;
        }
        group->alive[t] = alive & blocks;
        possible |= group->alive[t];
    }
    return possible;
}

/* Takes over what one term gives for 64 rows. */
static void keep_most(uint64_t reached, uint64_t before, const int32_t sums[64], int64_t base,
                      int64_t *scores) {
    for (; reached; reached &= reached - 1) {
        uint32_t i = (uint32_t)__builtin_ctzll(reached);
        int64_t score = sums[i] + base;
        scores[i] = before >> i & 1 && scores[i] > score ? scores[i] : score;
    }
}

bool bw_scorer_rows(const bw_scorer *scorer, const bw_kernels *kernels, const uint8_t *codes, size_t stride,
                    const bw_score_group *group, uint32_t bit, uint64_t rows[4], int64_t scores[256]) {
    int32_t least[BW_MAX_TERMS][BW_GROUPS];
    uint64_t any = 0;
    for (uint32_t t = 0; t < scorer->terms; t++) {
        uint32_t groups = scorer->term[t].q.groups;
        for (uint32_t g = 0; group && g < groups; g++) {
            int32_t rest = g + 1 < groups ? group->most[t][BW_GROUP_BLOCKS * (g + 1) + bit] : 0;
            least[t][g] = group->least[t][bit] - rest;
        }
        for (uint32_t g = 0; !group && g < groups; g++) {
            least[t][g] = INT32_MIN;
        }
    }
    for (uint32_t w = 0; w < 4; w++) {
        uint64_t passed = 0;
        for (uint32_t t = 0; rows[w] && t < scorer->terms; t++) {
            int32_t sums[64];
            if (group && !(group->alive[t] >> bit & 1)) {
                continue;
            }
            uint64_t reached =
                rows[w] & kernels->quadratic(codes + 64 * w, stride, &scorer->term[t].q, least[t], sums);
            if (scorer->exact && scores) {
                keep_most(reached, passed, sums, scorer->term[t].base, scores + 64 * w);
            }
            passed |= reached;
        }
        rows[w] = passed;
        any |= passed;
    }
    return any != 0;
}
