/* segment_order.c - the order of rows in a segment: the leaves of a tree of two-means splits.
 *
 * Bisecting k-means (Steinbach, Karypis, Kumar: A comparison of document clustering techniques, 2000) used as
 * an index order. The means of a node's two clusters are found on a sample by Lloyd's iterations; its rows
 * are projected on the line through them, and cut at the multiple of a block nearest to the plane between
 * them. Blocks are cut likewise, but in the middle, down to granules.
 *
 * A k-d order (Bentley 1975) is simpler, but parts what belongs together. On 10M image codes a row's 60
 * nearest lie to 91% in the best 64 granules of a k-d order and to 98% in those of this one, and ensembles of
 * wide, tight and tiny boxes may have rows in 91, 60 and 23% of the blocks of a k-d order, 83, 58 and 24% of
 * these: one order serves both.
 *
 * Rows start in ascending order of id and every cut is a stable partition, so a granule's rows stand in
 * ascending order of id. All arithmetic is in integers, and a node's cut depends on its rows alone: the same
 * rows give the same order on every machine and any number of threads. */
#include "segment.h"
#include "segment_format.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#define DIGIT_BITS 11
#define DIGITS ((64 + DIGIT_BITS - 1) / DIGIT_BITS)
#define DIGIT_VALUES (1u << DIGIT_BITS)

/* Least significant digit first; digits in which all ids agree are passed over. */
int32_t bw_sort_ids(const int64_t *ids, uint64_t rows, uint32_t *sorted, bw_error *error) {
    uint64_t differ = 0;
    bool ascending = true;
    for (uint64_t i = 0; i < rows; i++) {
        sorted[i] = (uint32_t)i;
        differ |= (uint64_t)ids[i] ^ (uint64_t)ids[0];
        ascending &= i == 0 || ids[i - 1] <= ids[i];
    }
    if (ascending) {
        return BW_OK;
    }
    uint32_t *other = bw_alloc_array(rows, sizeof *other);
    if (other == NULL) {
        return bw_fail_nomem(error, rows * sizeof *other);
    }
    uint32_t *from = sorted, *to = other;
    for (unsigned digit = 0; digit < DIGITS; digit++) {
        unsigned shift = digit * DIGIT_BITS;
        if (((differ >> shift) & (DIGIT_VALUES - 1)) == 0) {
            continue;
        }
        uint32_t places[DIGIT_VALUES] = {0};
        for (uint64_t i = 0; i < rows; i++) {
            places[((uint64_t)ids[i] >> shift) & (DIGIT_VALUES - 1)]++;
        }
        uint32_t before = 0;
        for (unsigned value = 0; value < DIGIT_VALUES; value++) {
            uint32_t count = places[value];
            places[value] = before;
            before += count;
        }
        for (uint64_t i = 0; i < rows; i++) {
            to[places[((uint64_t)ids[from[i]] >> shift) & (DIGIT_VALUES - 1)]++] = from[i];
        }
        uint32_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != sorted) {
        memcpy(sorted, from, rows * sizeof *sorted);
    }
    bw_free(other);
    return BW_OK;
}

#define GRANULE_ROWS 64u

/* Rows that a node's means are found on, and iterations at most: more of either finds no better neighbours
 * (measured on 1M image codes), fewer do. */
#define SAMPLE_ROWS 2048u
#define ITERATIONS 6

/* Means are in 1/64: their differences fit int16, and projections (32 * 255 * 255 * 64) int32. */
#define FRACTION_BITS 6

/* Nodes of more rows than this are shared among threads part by part, smaller ones are one thread's. The
 * parts of a shared node have at least an eighth of its rows, up to half a block less by rounding. */
#define SHARED_ROWS ((uint32_t)1 << 15)
#define WAITING_ROWS_MIN (SHARED_ROWS / 8 - BW_BLOCK_ROWS / 2)

/* Between two calls of the progress function: rows that the calling thread went over, and nanoseconds that it
 * waits for others. */
#define PROGRESS_ROWS ((uint32_t)1 << 19)
#define PROGRESS_WAIT_NS 50000000

/* select_rank's digits: counts of the values of a digit are to be fewer than the rows. */
#define COUNT_BITS 12
#define FEW_ROWS 4096u
#define FEW_COUNT_BITS 8

typedef struct node {
    uint32_t first, rows;
    uint32_t side; /* in which of the two buffers its rows stand */
} node;

/* What a thread needs for itself. */
typedef struct scratch {
    uint8_t sample[SAMPLE_ROWS][BW_DIMS];
    int32_t projections[SAMPLE_ROWS];
    uint32_t counts[1u << COUNT_BITS];
    bool calls_progress;
    uint32_t unreported; /* rows that it went over since progress was last called */
} scratch;

typedef struct ordering {
    uint32_t total;
    uint8_t (*codes[2])[BW_DIMS]; /* a cut moves a node's rows from one side to the other */
    uint32_t *rows[2];            /* their input rows; side 0 is the caller's array */
    int32_t *projections;
    scratch *scratches; /* one a thread */
    bw_progress progress;
    void *context;

    _Atomic uint32_t done; /* rows in place */
    atomic_bool cancelled;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    node *waiting; /* disjoint, of WAITING_ROWS_MIN rows or more, or the root alone */
    uint32_t waiting_nodes, busy_threads;
} ordering;

/* A direction in 1/64, and the place on it where the sides part: at most `edge` is low. */
typedef struct plane {
    int16_t weights[BW_DIMS];
    int32_t edge;
} plane;

static void project(const uint8_t (*codes)[BW_DIMS], uint32_t n, const int16_t weights[BW_DIMS],
                    int32_t *projections) {
    for (uint32_t i = 0; i < n; i++) {
        int32_t sum = 0;
        for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
            sum += (int32_t)weights[dim] * (int16_t)codes[i][dim];
        }
        projections[i] = sum;
    }
}

/* Sums of the rows on the low side, and how many they are. */
static uint32_t sum_low(const uint8_t (*codes)[BW_DIMS], const int32_t *projections, uint32_t n, int32_t edge,
                        uint32_t sums[BW_DIMS]) {
    uint32_t low = 0;
    memset(sums, 0, BW_DIMS * sizeof *sums);
    for (uint32_t i = 0; i < n;) {
        /* 256 * 255 < 2^16: short sums that vectorise well. */
        uint16_t part[BW_DIMS] = {0};
        for (uint32_t last = n - i > 256 ? i + 256 : n; i < last; i++) {
            bool is_low = projections[i] <= edge;
            uint8_t mask = (uint8_t)-(int)is_low;
            low += is_low;
            for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
                part[dim] = (uint16_t)(part[dim] + (codes[i][dim] & mask));
            }
        }
        for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
            sums[dim] += part[dim];
        }
    }
    return low;
}

/* The value of the rank-th smallest of n projections (from 1), and how many of its equals are among the
 * `rank` smallest. Digit by digit, from the highest. */
static int32_t select_rank(const int32_t *projections, uint32_t n, uint32_t rank, uint32_t *counts,
                           uint32_t *equals) {
    int32_t least = projections[0], most = projections[0];
    for (uint32_t i = 1; i < n; i++) {
        least = projections[i] < least ? projections[i] : least;
        most = projections[i] > most ? projections[i] : most;
    }
    uint32_t bits = n < FEW_ROWS ? FEW_COUNT_BITS : COUNT_BITS;
    uint32_t base = (uint32_t)least, width = (uint32_t)most - base;
    for (;;) {
        uint32_t shift = 0;
        while (width >> shift >> bits != 0) {
            shift++;
        }
        memset(counts, 0, ((size_t)(width >> shift) + 1) * sizeof *counts);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t above = (uint32_t)projections[i] - base;
            if (above <= width) {
                counts[above >> shift]++;
            }
        }
        uint32_t digit = 0;
        while (counts[digit] < rank) {
            rank -= counts[digit++];
        }
        base += digit << shift;
        if (shift == 0) {
            *equals = rank;
            return (int32_t)base;
        }
        width = ((uint32_t)1 << shift) - 1;
    }
}

/* Along the dimension of largest variance, the lowest of equals, at the median: the highest value that has at
 * most half the rows below or at it, if there is one. `sums` are those of all rows. */
static plane first_plane(const uint8_t (*codes)[BW_DIMS], uint32_t n, uint32_t sums[BW_DIMS]) {
    uint32_t squares[BW_DIMS] = {0}; /* 2,048 * 255^2 < 2^32 */
    memset(sums, 0, BW_DIMS * sizeof *sums);
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
            uint16_t value = codes[i][dim];
            sums[dim] += value;
            squares[dim] += (uint16_t)(value * value);
        }
    }
    uint32_t widest = 0;
    uint64_t most = 0;
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        /* n^2 times the variance */
        uint64_t variance = (uint64_t)n * squares[dim] - (uint64_t)sums[dim] * sums[dim];
        if (variance > most) {
            most = variance;
            widest = dim;
        }
    }
    plane now = {0};
    if (most > 0) {
        uint32_t counts[256] = {0}, below = 0;
        for (uint32_t i = 0; i < n; i++) {
            counts[codes[i][widest]]++;
        }
        int32_t value = 0;
        while (below + counts[value] <= n / 2) {
            below += counts[value++];
        }
        if (below == 0) { /* most rows have the least value */
            value++;
        }
        now.weights[widest] = 1 << FRACTION_BITS;
        now.edge = (value - 1) << FRACTION_BITS;
    }
    return now;
}

static uint32_t nearest_multiple(uint64_t rows, uint32_t unit) {
    return (uint32_t)((rows + unit / 2) / unit * unit);
}

/* How many rows of a node go to the low side, of which `natural` lie on it: a block is cut in its middle, a
 * larger node as near to `natural` as whole blocks and shares of an eighth allow, which bound the depth of
 * the tree. At least one row is left to either side. */
static uint32_t low_rows(uint32_t n, uint32_t natural) {
    uint32_t unit = n > BW_BLOCK_ROWS ? BW_BLOCK_ROWS : GRANULE_ROWS;
    uint32_t share = n > BW_BLOCK_ROWS ? n / 8 : n / 2;
    uint32_t least = nearest_multiple(share, unit), most = nearest_multiple(n - share, unit);
    uint32_t last = (n - 1) / unit * unit, left = nearest_multiple(natural, unit);
    least = least < unit ? unit : least;
    most = most > last ? last : most;
    left = left < least ? least : left;
    return left > most ? most : left;
}

/* The cut of a node: its `left` lowest rows by projection are low, that is, those below `edge`, and the first
 * `equals` of those at it. */
typedef struct node_cut {
    uint32_t left, equals;
    int32_t edge;
} node_cut;

static node_cut cut_near(const int32_t *projections, uint32_t n, int32_t edge, uint32_t *counts) {
    uint32_t natural = 0;
    for (uint32_t i = 0; i < n; i++) {
        natural += projections[i] <= edge;
    }
    node_cut made = {.left = low_rows(n, natural)};
    made.edge = select_rank(projections, n, made.left, counts, &made.equals);
    return made;
}

/* The plane between the means of two clusters. All weights are 0 when all rows of the sample are equal. A
 * sample that is a `whole` node is parted where the node would be cut, not by the plane: few rows cannot be
 * cut where their clusters part, so the means are those of the parts that they will have. */
static plane find_plane(const uint8_t (*sample)[BW_DIMS], uint32_t n, bool whole, scratch *own) {
    uint32_t sums[BW_DIMS], low_sums[BW_DIMS];
    plane now = first_plane(sample, n, sums);
    for (int i = 0; i < ITERATIONS; i++) {
        project(sample, n, now.weights, own->projections);
        int32_t edge = whole ? cut_near(own->projections, n, now.edge, own->counts).edge : now.edge;
        uint32_t low = sum_low(sample, own->projections, n, edge, low_sums), high = n - low;
        if (low == 0 || high == 0) {
            break;
        }
        plane next = {0};
        int64_t twice_edge = 0;
        bool apart = false;
        for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
            uint32_t high_sum = sums[dim] - low_sums[dim];
            int32_t low_mean = (int32_t)(((low_sums[dim] << FRACTION_BITS) + low / 2) / low);
            int32_t high_mean = (int32_t)(((high_sum << FRACTION_BITS) + high / 2) / high);
            next.weights[dim] = (int16_t)(high_mean - low_mean);
            twice_edge += (int64_t)(high_mean - low_mean) * (high_mean + low_mean);
            apart |= high_mean != low_mean;
        }
        /* Rounded down: whole numbers are at most the edge exactly when they are at most that. */
        const int64_t unit = (int64_t)2 << FRACTION_BITS;
        next.edge = (int32_t)(twice_edge / unit - (twice_edge % unit < 0));
        if (!apart || memcmp(&next, &now, sizeof now) == 0) {
            break;
        }
        now = next;
    }
    return now;
}

/* Whether to go over the next `rows` rows: not when the work was cancelled. */
static bool go_on(ordering *o, scratch *own, uint32_t rows) {
    own->unreported += rows;
    if (own->calls_progress && own->unreported >= PROGRESS_ROWS && !atomic_load(&o->cancelled)) {
        own->unreported = 0;
        if (o->progress(o->context, (double)atomic_load(&o->done) / o->total) != 0) {
            atomic_store(&o->cancelled, true);
        }
    }
    return !atomic_load(&o->cancelled);
}

/* Cuts a node of more than a granule in two and moves its rows to the other side. False: cancelled. */
static bool cut(ordering *o, scratch *own, node now, node parts[2]) {
    const uint8_t (*codes)[BW_DIMS] = (const uint8_t (*)[BW_DIMS])(o->codes[now.side] + now.first);
    const uint32_t *rows = o->rows[now.side] + now.first;
    int32_t *projections = o->projections + now.first;
    uint32_t n = now.rows;

    const uint8_t (*sample)[BW_DIMS] = codes;
    uint32_t sample_rows = n;
    if (n > SAMPLE_ROWS) {
        sample_rows = SAMPLE_ROWS;
        for (uint32_t i = 0; i < sample_rows; i++) {
            memcpy(own->sample[i], codes[(uint64_t)i * n / sample_rows], BW_DIMS);
        }
        sample = (const uint8_t (*)[BW_DIMS])own->sample;
    }
    plane found = find_plane(sample, sample_rows, sample == codes, own);
    for (uint32_t i = 0, part; i < n; i += part) {
        part = n - i < PROGRESS_ROWS ? n - i : PROGRESS_ROWS;
        if (!go_on(o, own, part)) {
            return false;
        }
        project(codes + i, part, found.weights, projections + i);
    }
    node_cut made = cut_near(projections, n, found.edge, own->counts);

    uint8_t (*to_codes)[BW_DIMS] = o->codes[!now.side] + now.first;
    uint32_t *to_rows = o->rows[!now.side] + now.first;
    uint32_t to_low = 0, to_high = made.left, equals = made.equals;
    for (uint32_t i = 0, last; i < n;) {
        last = n - i < PROGRESS_ROWS ? n : i + PROGRESS_ROWS;
        if (!go_on(o, own, last - i)) {
            return false;
        }
        for (; i < last; i++) {
            /* No branch on the data. */
            uint32_t takes_equal = (uint32_t)(projections[i] == made.edge) & (uint32_t)(equals > 0);
            uint32_t is_low = (uint32_t)(projections[i] < made.edge) | takes_equal;
            equals -= takes_equal;
            uint32_t to = to_high ^ ((to_high ^ to_low) & (0 - is_low));
            memcpy(to_codes[to], codes[i], BW_DIMS);
            to_rows[to] = rows[i];
            to_low += is_low;
            to_high += 1 - is_low;
        }
    }
    parts[0] = (node){now.first, made.left, !now.side};
    parts[1] = (node){now.first + made.left, n - made.left, !now.side};
    return true;
}

/* Cuts a node down to granules, and brings their rows to side 0. False: cancelled. */
static bool finish(ordering *o, scratch *own, node now) {
    /* The larger part waits while the smaller one is worked on, so 32 are enough. */
    node waiting[32];
    uint32_t depth = 0, done = now.rows;
    waiting[depth++] = now;
    while (depth > 0) {
        now = waiting[--depth];
        if (now.rows <= GRANULE_ROWS) {
            if (now.side == 1) {
                memcpy(o->rows[0] + now.first, o->rows[1] + now.first, now.rows * sizeof *o->rows[0]);
            }
            continue;
        }
        node parts[2];
        if (!cut(o, own, now, parts)) {
            return false;
        }
        bool low_is_larger = parts[0].rows > parts[1].rows;
        waiting[depth++] = parts[!low_is_larger];
        waiting[depth++] = parts[low_is_larger];
    }
    atomic_fetch_add(&o->done, done);
    return true;
}

/* Waits until the shared nodes have changed. The thread that calls progress does so meanwhile. */
static void wait_for_others(ordering *o, scratch *own) {
    if (!own->calls_progress) {
        pthread_cond_wait(&o->changed, &o->lock);
        return;
    }
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += PROGRESS_WAIT_NS;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    if (pthread_cond_timedwait(&o->changed, &o->lock, &until) != 0) {
        pthread_mutex_unlock(&o->lock);
        go_on(o, own, PROGRESS_ROWS);
        pthread_mutex_lock(&o->lock);
    }
}

static bool next_node(ordering *o, scratch *own, node *next) {
    pthread_mutex_lock(&o->lock);
    while (o->waiting_nodes == 0 && o->busy_threads > 0) {
        wait_for_others(o, own);
    }
    bool found = o->waiting_nodes > 0;
    if (found) {
        *next = o->waiting[--o->waiting_nodes];
        o->busy_threads++;
    }
    pthread_mutex_unlock(&o->lock);
    return found;
}

static void share_node(ordering *o, node now) {
    pthread_mutex_lock(&o->lock);
    o->waiting[o->waiting_nodes++] = now;
    /* Not only one: it may be the one that is about to report. */
    pthread_cond_broadcast(&o->changed);
    pthread_mutex_unlock(&o->lock);
}

static void end_node(ordering *o) {
    pthread_mutex_lock(&o->lock);
    if (--o->busy_threads == 0) {
        pthread_cond_broadcast(&o->changed);
    }
    pthread_mutex_unlock(&o->lock);
}

/* One thread's share. Worker 0 is the caller's thread. When the work is cancelled, the nodes that still wait
 * are taken and dropped. */
static void order_some(void *context, uint32_t worker) {
    ordering *o = context;
    scratch *own = &o->scratches[worker];
    own->calls_progress = worker == 0 && o->progress != NULL;
    node now, parts[2];
    while (next_node(o, own, &now)) {
        while (now.rows > SHARED_ROWS && cut(o, own, now, parts)) {
            bool low_is_larger = parts[0].rows > parts[1].rows;
            share_node(o, parts[low_is_larger]);
            now = parts[!low_is_larger];
        }
        if (now.rows <= SHARED_ROWS) {
            finish(o, own, now);
        }
        end_node(o);
    }
}

int32_t bw_segment_order(const uint32_t *by_id, const uint8_t *codes, uint64_t rows, uint32_t *order,
                         uint32_t threads, bw_progress progress, void *context, bw_error *error) {
    if (rows < 1 || rows > BW_SEGMENT_ROWS_MAX) {
        return bw_fail(error, BW_INVALID, "a segment holds 1 to %llu rows, not %llu",
                       (unsigned long long)BW_SEGMENT_ROWS_MAX, (unsigned long long)rows);
    }
    int32_t code = BW_OK;
    uint32_t useful_threads = (uint32_t)(rows / SHARED_ROWS) + 1;
    threads = bw_thread_count(threads);
    threads = threads < useful_threads ? threads : useful_threads;
    size_t waiting_nodes = rows / WAITING_ROWS_MIN + 1;
    ordering o = {.total = (uint32_t)rows,
                  .rows = {order, bw_alloc_array(rows, sizeof *o.rows[1])},
                  .codes = {bw_alloc_array(rows, BW_DIMS), bw_alloc_array(rows, BW_DIMS)},
                  .projections = bw_alloc_array(rows, sizeof *o.projections),
                  .scratches = bw_alloc_zero(threads, sizeof *o.scratches),
                  .waiting = bw_alloc_array(waiting_nodes, sizeof *o.waiting),
                  .progress = progress,
                  .context = context,
                  .lock = PTHREAD_MUTEX_INITIALIZER,
                  .changed = PTHREAD_COND_INITIALIZER};
    if (o.rows[1] == NULL || o.codes[0] == NULL || o.codes[1] == NULL || o.projections == NULL ||
        o.scratches == NULL || o.waiting == NULL) {
        code = bw_fail_nomem(error, rows * (2 * BW_DIMS + sizeof *o.rows[1] + sizeof *o.projections) +
                                        threads * sizeof *o.scratches + waiting_nodes * sizeof *o.waiting);
    } else {
        for (uint64_t i = 0; i < rows; i++) {
            order[i] = by_id[i];
            memcpy(o.codes[0][i], codes + (size_t)by_id[i] * BW_DIMS, BW_DIMS);
        }
        o.waiting[o.waiting_nodes++] = (node){0, (uint32_t)rows, 0};
        bw_parallel(threads, order_some, &o);
        if (o.cancelled) {
            code = bw_fail(error, BW_CANCELLED, "cancelled while rows were put in order");
        }
    }
    pthread_mutex_destroy(&o.lock);
    pthread_cond_destroy(&o.changed);
    bw_free(o.rows[1]);
    bw_free(o.codes[0]);
    bw_free(o.codes[1]);
    bw_free(o.projections);
    bw_free(o.scratches);
    bw_free(o.waiting);
    return code;
}
