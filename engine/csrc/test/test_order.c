/* The order of rows: against its definition written out plainly, on data of many shapes and sizes, by any
 * number of threads; and how it is stopped. */
#include "segment.h"
#include "test.h"

#include <pthread.h>

static bw_error error;

typedef struct rows {
    uint64_t n;
    int64_t *ids;
    uint8_t *codes;
} rows;

static void free_rows(rows *from) {
    free(from->ids);
    free(from->codes);
}

/* ---- data ---- */

enum {
    CLUSTERED,
    UNIFORM,
    EQUAL,
    TWO_VALUES,
    CONSTANT_DIMS,
    RAMP,
    OUTLIERS,
    EXPONENTIAL,
    TIES,
    OPPOSED,
    SHAPES
};

static void fill_code(int shape, bw_random *random, uint64_t i, uint64_t n, uint8_t code[BW_DIMS]) {
    uint64_t group = bw_random_below(random, 16);
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        uint64_t value = 0;
        switch (shape) {
        case CLUSTERED:
            value = (group * 97 + dim * 31 + group * dim) % 224 + bw_random_below(random, 32);
            break;
        case UNIFORM:
            value = bw_random_below(random, 256);
            break;
        case EQUAL:
            value = 255;
            break;
        case TWO_VALUES:
            value = bw_random_below(random, 2) ? 255 : 0;
            break;
        case CONSTANT_DIMS: /* all but one, which has one row in a hundred apart */
            value = dim == 17 ? (i % 100 == 0 ? 9 : 8) : 3 * dim;
            break;
        case RAMP: /* in the order of ids */
            value = i * 255 / n;
            break;
        case OUTLIERS: /* three rows in each dimension, each group nearer than the one before */
            value = i / 3 == dim ? 255 - 7 * dim : 0;
            break;
        case EXPONENTIAL: /* half the values a step, in every dimension */
            while (value < 255 && bw_random_below(random, 2)) {
                value = 2 * value + 1;
            }
            break;
        case TIES: /* few places, so that cuts pass through rows that are equal */
            value = dim < 3 ? bw_random_below(random, 3) : dim;
            break;
        case OPPOSED: /* the higher in one dimension, the lower in another: edges below 0, on rows */
            value = dim == 0 ? group % 6 : dim == 1 ? 250 - bw_random_below(random, code[0] + 1u) : 0;
            break;
        }
        code[dim] = (uint8_t)value;
    }
}

/* Ids are in shuffled order, with gaps. */
static rows make_rows(int shape, uint64_t n) {
    rows made = {n, test_alloc(n * sizeof *made.ids), test_alloc(n * BW_DIMS)};
    bw_random random = {(uint64_t)shape + n};
    for (uint64_t i = 0; i < n; i++) {
        made.ids[i] = (int64_t)(i * 3 + 5);
        fill_code(shape, &random, i, n, made.codes + i * BW_DIMS);
    }
    for (uint64_t i = n; i > 1; i--) {
        uint64_t j = bw_random_below(&random, i);
        int64_t id = made.ids[i - 1];
        made.ids[i - 1] = made.ids[j];
        made.ids[j] = id;
        uint8_t code[BW_DIMS];
        memcpy(code, made.codes + (i - 1) * BW_DIMS, BW_DIMS);
        memcpy(made.codes + (i - 1) * BW_DIMS, made.codes + j * BW_DIMS, BW_DIMS);
        memcpy(made.codes + j * BW_DIMS, code, BW_DIMS);
    }
    return made;
}

/* ---- the order as segment_order.c defines it, by sorting ---- */

typedef struct placed {
    int64_t projection;
    uint64_t place;
} placed;

static int by_projection(const void *a, const void *b) {
    const placed *x = a, *y = b;
    return x->projection != y->projection ? (x->projection > y->projection) - (x->projection < y->projection)
                                          : (x->place > y->place) - (x->place < y->place);
}

typedef struct plain_plane {
    int64_t weights[BW_DIMS], edge;
} plain_plane;

static int64_t project(const uint8_t *code, const plain_plane *plane) {
    int64_t sum = 0;
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        sum += plane->weights[dim] * code[dim];
    }
    return sum;
}

/* The rows in order of their projections, and how many of them are low. */
static uint64_t plain_cut(const uint8_t *const *codes, uint64_t n, const plain_plane *plane, placed *sorted) {
    uint64_t natural = 0;
    for (uint64_t i = 0; i < n; i++) {
        sorted[i] = (placed){project(codes[i], plane), i};
        natural += sorted[i].projection <= plane->edge;
    }
    qsort(sorted, n, sizeof *sorted, by_projection);
    uint64_t best = 0, unit = n > 256 ? 256 : 64;
    uint64_t least = n > 256 ? (n / 8 + 128) / 256 : (n / 2 + 32) / 64;
    uint64_t most = n > 256 ? (n - n / 8 + 128) / 256 : (n - n / 2 + 32) / 64;
    for (uint64_t left = unit; left < n; left += unit) {
        /* The nearest of those allowed; of two as near, the higher. */
        uint64_t apart = left > natural ? left - natural : natural - left;
        uint64_t apart_best = best > natural ? best - natural : natural - best;
        bool allowed = left / unit >= least && left / unit <= most;
        if (best == 0 || (allowed && apart <= apart_best) || (best / unit < least && left / unit <= least)) {
            best = left;
        }
    }
    return best;
}

static plain_plane plain_first(const uint8_t *const *codes, uint64_t n) {
    plain_plane plane = {0};
    uint64_t best = 0;
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        uint64_t sum = 0, squares = 0, counts[256] = {0};
        for (uint64_t i = 0; i < n; i++) {
            sum += codes[i][dim];
            squares += (uint64_t)codes[i][dim] * codes[i][dim];
            counts[codes[i][dim]]++;
        }
        if (n * squares - sum * sum > best) {
            best = n * squares - sum * sum;
            /* The highest value with at most half the rows up to it, but with at least one. */
            uint64_t up_to = counts[0];
            int64_t edge = 0;
            while (up_to == 0 || up_to + counts[edge + 1] <= n / 2) {
                up_to += counts[++edge];
            }
            plane = (plain_plane){.edge = 64 * edge};
            plane.weights[dim] = 64;
        }
    }
    return plane;
}

static plain_plane plain_means(const uint8_t *const *codes, uint64_t n, bool whole, placed *sorted) {
    plain_plane plane = plain_first(codes, n);
    for (int iteration = 0; iteration < 6; iteration++) {
        int64_t edge = plane.edge;
        if (whole) {
            uint64_t left = plain_cut(codes, n, &plane, sorted);
            edge = sorted[left - 1].projection;
        }
        int64_t sums[2][BW_DIMS] = {{0}}, counts[2] = {0};
        for (uint64_t i = 0; i < n; i++) {
            int high = project(codes[i], &plane) > edge;
            counts[high]++;
            for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
                sums[high][dim] += codes[i][dim];
            }
        }
        if (counts[0] == 0 || counts[1] == 0) {
            break;
        }
        plain_plane next = {0};
        bool apart = false;
        int64_t doubled = 0;
        for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
            int64_t low = (64 * sums[0][dim] + counts[0] / 2) / counts[0];
            int64_t high = (64 * sums[1][dim] + counts[1] / 2) / counts[1];
            next.weights[dim] = high - low;
            doubled += high * high - low * low;
            apart |= high != low;
        }
        next.edge = doubled / 128;
        while (next.edge * 128 > doubled) {
            next.edge--;
        }
        if (!apart) {
            break;
        }
        plane = next;
    }
    return plane;
}

static void plain_order(const rows *from, uint32_t *order, uint64_t n) {
    if (n <= 64) {
        return;
    }
    uint64_t samples = n < 2048 ? n : 2048;
    const uint8_t **codes = test_alloc(n * sizeof *codes), **sample = test_alloc(samples * sizeof *sample);
    placed *sorted = test_alloc(n * sizeof *sorted);
    bool *low = test_alloc(n);
    uint32_t *before = test_alloc(n * sizeof *before);
    for (uint64_t i = 0; i < n; i++) {
        codes[i] = from->codes + (size_t)order[i] * BW_DIMS;
        before[i] = order[i];
    }
    for (uint64_t i = 0; i < samples; i++) {
        sample[i] = codes[i * n / samples];
    }
    plain_plane plane = plain_means(sample, samples, samples == n, sorted);
    uint64_t left = plain_cut(codes, n, &plane, sorted);
    for (uint64_t i = 0; i < left; i++) {
        low[sorted[i].place] = true;
    }
    for (uint64_t i = 0, to_low = 0, to_high = left; i < n; i++) {
        order[low[i] ? to_low++ : to_high++] = before[i];
    }
    free(codes);
    free(sample);
    free(sorted);
    free(low);
    free(before);
    plain_order(from, order, left);
    plain_order(from, order + left, n - left);
}

/* ---- checks ---- */

static void check_permutation(const rows *from, const uint32_t *order) {
    bool *seen = test_alloc(from->n);
    bool each_once = true, ascending = true;
    for (uint64_t i = 0; i < from->n; i++) {
        each_once &= order[i] < from->n && !seen[order[i]];
        seen[order[i] < from->n ? order[i] : 0] = true;
        ascending &= i % 64 == 0 || from->ids[order[i - 1]] < from->ids[order[i]];
    }
    CHECK(each_once);
    CHECK(ascending); /* inside a granule */
    free(seen);
}

static uint32_t *sorted_by_id(const rows *from) {
    uint32_t *by_id = test_alloc(from->n * sizeof *by_id);
    CHECK_STATUS(bw_sort_ids(from->ids, from->n, by_id, &error), BW_OK);
    return by_id;
}

static int32_t put_in_order(const rows *from, uint32_t *order, uint32_t threads, bw_progress progress,
                            void *context) {
    uint32_t *by_id = sorted_by_id(from);
    int32_t code = bw_segment_order(by_id, from->codes, from->n, order, threads, progress, context, &error);
    free(by_id);
    return code;
}

/* The same by any number of threads as by one, and whatever order the rows come in. */
static void check_threads(const rows *from, const uint32_t *order) {
    uint32_t *other = test_alloc(from->n * sizeof *other);
    const uint32_t threads[] = {0, 2, 3, 4};
    for (int i = 0; i < 4; i++) {
        CHECK_STATUS(put_in_order(from, other, threads[i], NULL, NULL), BW_OK);
        CHECK(memcmp(order, other, from->n * sizeof *order) == 0);
    }
    rows turned = {from->n, test_alloc(from->n * sizeof *turned.ids), test_alloc(from->n * BW_DIMS)};
    for (uint64_t i = 0; i < from->n; i++) {
        turned.ids[i] = from->ids[from->n - 1 - i];
        memcpy(turned.codes + i * BW_DIMS, from->codes + (from->n - 1 - i) * BW_DIMS, BW_DIMS);
    }
    CHECK_STATUS(put_in_order(&turned, other, 2, NULL, NULL), BW_OK);
    bool same = true;
    for (uint64_t i = 0; i < from->n; i++) {
        same &= turned.ids[other[i]] == from->ids[order[i]];
    }
    CHECK(same);
    free_rows(&turned);
    free(other);
}

static void check_rows(const rows *from, bool by_threads) {
    uint32_t *order = test_alloc(from->n * sizeof *order), *plain = test_alloc(from->n * sizeof *plain);
    CHECK_STATUS(put_in_order(from, order, 1, NULL, NULL), BW_OK);
    CHECK_STATUS(bw_sort_ids(from->ids, from->n, plain, &error), BW_OK);
    plain_order(from, plain, from->n);
    CHECK(memcmp(order, plain, from->n * sizeof *order) == 0);
    check_permutation(from, order);
    if (by_threads) {
        check_threads(from, order);
    }
    free(order);
    free(plain);
}

static void test_sizes(void) {
    const uint64_t sizes[] = {1,   2,    63,   64,   65,   95,   96,   127,  128,  129,  160,
                              191, 192,  193,  255,  256,  257,  384,  511,  512,  513,  640,
                              999, 1151, 1152, 2047, 2048, 2049, 4000, 4095, 4096, 4097, 32769};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int shape = 0; shape < SHAPES; shape++) {
            rows from = make_rows(shape, sizes[i]);
            unsigned long failed = test_failures;
            check_rows(&from, sizes[i] == 513);
            if (test_failures > failed) {
                printf("    shape %d, %llu rows\n", shape, (unsigned long long)from.n);
            }
            free_rows(&from);
        }
    }
    for (uint64_t n = 2049; n < 6000; n += 97) { /* rarely does a row lie where rounding matters */
        rows from = make_rows(OPPOSED, n);
        check_rows(&from, false);
        free_rows(&from);
    }
    uint32_t order[1], first = 0;
    uint8_t code[BW_DIMS] = {0};
    CHECK_STATUS(bw_segment_order(&first, code, 0, order, 1, NULL, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("not 0");
    CHECK_STATUS(bw_segment_order(&first, code, UINT64_MAX, order, 1, NULL, NULL, &error), BW_INVALID);
}

/* Nodes shared among threads. */
static void test_threads(void) {
    const int shapes[] = {CLUSTERED, EXPONENTIAL};
    for (int i = 0; i < 2; i++) {
        rows from = make_rows(shapes[i], 100001); /* shared among four */
        check_rows(&from, true);
        free_rows(&from);
    }
}

/* What the order is for: blocks of clustered rows are as narrow as the clusters, granules not wider. */
static void test_narrow(void) {
    rows from = make_rows(CLUSTERED, 100000);
    uint32_t *order = test_alloc(from.n * sizeof *order);
    CHECK_STATUS(put_in_order(&from, order, 0, NULL, NULL), BW_OK);
    const uint64_t units[] = {256, 64};
    double widths[2];
    for (int u = 0; u < 2; u++) {
        uint64_t sum = 0, parts = 0;
        for (uint64_t first = 0; first < from.n; first += units[u], parts++) {
            for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
                uint8_t least = 255, most = 0;
                for (uint64_t i = first; i < first + units[u] && i < from.n; i++) {
                    uint8_t value = from.codes[(size_t)order[i] * BW_DIMS + dim];
                    least = value < least ? value : least;
                    most = value > most ? value : most;
                }
                sum += (uint64_t)(most - least);
            }
        }
        widths[u] = (double)sum / (double)(parts * BW_DIMS);
    }
    CHECK(widths[0] < 36); /* 31 in a cluster; a block in which clusters meet is wider */
    CHECK(widths[1] < widths[0] - 1);
    free(order);
    free_rows(&from);
}

/* ---- progress ---- */

typedef struct watch {
    long calls, stop_at; /* stop_at < 0: never */
    double last;
    bool right; /* from the caller's thread, 0 to 1, ascending, and not after it said stop */
    pthread_t caller;
} watch;

static int32_t see(void *context, double done) {
    watch *w = context;
    w->right &= pthread_equal(pthread_self(), w->caller) && done >= w->last && done <= 1;
    w->right &= w->stop_at < 0 || w->calls <= w->stop_at;
    w->last = done;
    return w->calls++ == w->stop_at;
}

static int32_t order_watched(const rows *from, uint32_t *order, uint32_t threads, long stop_at, watch *w) {
    *w = (watch){.stop_at = stop_at, .right = true, .caller = pthread_self()};
    error.message[0] = '\0';
    return put_in_order(from, order, threads, see, w);
}

static void test_cancel(void) {
    rows from = make_rows(UNIFORM, 100000);
    uint32_t *order = test_alloc(from.n * sizeof *order);
    watch w;
    CHECK_STATUS(order_watched(&from, order, 1, -1, &w), BW_OK);
    CHECK(w.right && w.calls >= 3 && w.last > 0.5);
    for (long stop_at = 0, calls = w.calls; stop_at < calls; stop_at++) {
        CHECK_STATUS(order_watched(&from, order, 1, stop_at, &w), BW_CANCELLED);
        CHECK_MESSAGE("cancelled");
        CHECK(w.right && w.calls == stop_at + 1);
    }
    for (uint32_t threads = 2; threads <= 4; threads++) {
        for (long stop_at = 0; stop_at < 2; stop_at++) {
            int32_t code = order_watched(&from, order, threads, stop_at, &w);
            CHECK(code == (w.calls > stop_at ? BW_CANCELLED : BW_OK)); /* the others may do most of it */
            CHECK(w.right);
        }
    }
    free(order);
    free_rows(&from);
}

/* More rows than lie between two calls: in the middle of a cut. */
static void test_cancel_cut(void) {
    rows from = make_rows(UNIFORM, 600000);
    uint32_t *order = test_alloc(from.n * sizeof *order);
    watch w;
    for (uint32_t threads = 1; threads <= 2; threads++) {
        for (long stop_at = 0; stop_at < 3; stop_at++) {
            int32_t code = order_watched(&from, order, threads, stop_at, &w);
            CHECK(code == (w.calls > stop_at ? BW_CANCELLED : BW_OK));
            CHECK(w.right && (threads > 1 || w.last == 0));
        }
    }
    CHECK_STATUS(order_watched(&from, order, 2, -1, &w), BW_OK);
    check_permutation(&from, order);
    free(order);
    free_rows(&from);
}

/* Work is bounded on data that would peel off a block at a time: progress counts it, a call at least every
 * 2^19 rows gone over. A cut goes over its rows twice and leaves at most 7/8 of them in a part. */
static void test_bounded(void) {
    const uint64_t n = 100000;
    uint32_t *order = test_alloc(n * sizeof *order);
    for (int shape = 0; shape < SHAPES; shape++) {
        rows from = make_rows(shape, n);
        uint64_t levels = 2; /* of a block */
        for (uint64_t part = n; part > 256; part = part * 7 / 8) {
            levels++;
        }
        watch w;
        CHECK_STATUS(order_watched(&from, order, 1, -1, &w), BW_OK);
        CHECK(w.calls > 0 && (uint64_t)w.calls <= (2 * n * levels >> 19) + 1);
        check_permutation(&from, order);
        free_rows(&from);
    }
    free(order);
}

/* ---- out of memory ---- */

static void test_no_memory(void) {
#ifdef BW_FAULTS
    rows from = make_rows(CLUSTERED, 70000);
    uint32_t *order = test_alloc(from.n * sizeof *order), *by_id = sorted_by_id(&from);
    for (uint32_t threads = 1; threads <= 3; threads++) {
        for (long countdown = 0;; countdown++) {
            error.message[0] = '\0';
            bw_fault_set(BW_FAULT_ALLOC, countdown);
            int32_t code = bw_segment_order(by_id, from.codes, from.n, order, threads, NULL, NULL, &error);
            bw_fault_set(BW_FAULT_ALLOC, -1);
            if (code == BW_OK) {
                CHECK_EQUAL(countdown, 6);
                check_permutation(&from, order);
                break;
            }
            CHECK(code == BW_NOMEM && error.code == BW_NOMEM && error.message[0] != '\0');
        }
    }
    free(order);
    free(by_id);
    free_rows(&from);
#endif
}

/* ---- sorting ids whose digits differ in few and in all places ---- */

static void test_sort(void) {
    bw_random random = {3};
    int64_t ids[5000];
    uint32_t sorted[5000];
    for (int shift = 0; shift < 63; shift += 3) {
        for (int i = 0; i < 5000; i++) {
            ids[i] = (int64_t)((bw_random_next(&random) >> 1) >> shift);
        }
        CHECK_STATUS(bw_sort_ids(ids, 5000, sorted, &error), BW_OK);
        bool right = true;
        for (int i = 1; i < 5000; i++) {
            right &= ids[sorted[i - 1]] < ids[sorted[i]] ||
                     (ids[sorted[i - 1]] == ids[sorted[i]] && sorted[i - 1] < sorted[i]);
        }
        CHECK(right);
    }
}

int main(void) {
    test_sort();
    test_sizes();
    test_threads();
    test_narrow();
    test_cancel();
    test_cancel_cut();
    test_bounded();
    test_no_memory();
    return test_finish();
}
