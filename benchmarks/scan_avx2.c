/* scan_avx2.c - the straightforward scan that the index is measured against: every column, every row.
 *
 * Columns, one byte a value, in blocks of 4,096 rows (the 32 pages of a block lie side by side: 1.4 times
 * faster here than columns as long as the table), in memory that is advised to use huge pages. 256 rows at a
 * time go through all boxes of all estimators. The answer is the ids and the votes of the rows with enough
 * votes. No zones, no order, no planes.
 *
 * Variants: SCAN_PLAIN does everything; SCAN_EARLY leaves a box when two or more of its ranges exclude all of
 * the 256 rows, and leaves the rows when the estimators that are left cannot bring any of them to the
 * threshold. Callers pass estimators and ranges with the rarest first.
 */
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* cffi: begin */
#define SCAN_PLAIN 0
#define SCAN_EARLY 1
#define SCAN_MAX_ESTIMATORS 255
#define SCAN_MAX_THREADS 64

typedef struct scan_model {
    uint32_t estimators;       /* at most SCAN_MAX_ESTIMATORS */
    uint32_t threshold;        /* 1 .. estimators */
    const uint32_t *box_start; /* estimators + 1: boxes of estimator e are [box_start[e], box_start[e + 1]) */
    const uint32_t *range_start; /* boxes + 1 */
    const uint8_t *dim;
    const uint8_t *lo;
    const uint8_t *width; /* hi - lo */
} scan_model;

/* Room for `rows` rows (a multiple of 4,096), zeroed; NULL when there is no memory. Row r of dimension d is
 * at r / 4096 * 32 * 4096 + d * 4096 + r % 4096. */
uint8_t *scan_alloc(uint64_t rows);
void scan_free(uint8_t *columns);
int32_t scan_supported(void);

typedef struct scan_rows {
    uint64_t rows;
    int64_t *ids;
    int32_t *votes;
} scan_rows;

/* Rows [0, rows) by `threads` threads, matches in row order, in memory of their own, as bw_search_run gives
 * them; NULL when there is no memory or a thread cannot be started. */
scan_rows *scan_run(const uint8_t *columns, uint64_t rows, const int64_t *ids, const scan_model *model,
                    int32_t variant, int32_t threads);
void scan_rows_free(scan_rows *found);
/* cffi: end */

enum { BLOCK = 4096, GROUP = 256, VECTORS = GROUP / 32, HUGE_PAGE = 2 << 20 };

int32_t scan_supported(void) {
    return __builtin_cpu_supports("avx2") != 0;
}

uint8_t *scan_alloc(uint64_t rows) {
    uint64_t bytes = (32 * rows + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    uint8_t *columns = aligned_alloc(HUGE_PAGE, bytes);
    if (columns != NULL) {
        madvise(columns, bytes, MADV_HUGEPAGE);
        memset(columns, 0, bytes);
    }
    return columns;
}

void scan_free(uint8_t *columns) {
    free(columns);
}

typedef struct job {
    const uint8_t *columns;
    uint64_t first, rows; /* rows [first, rows) */
    const int64_t *ids;
    const scan_model *model;
    int32_t variant;
    int64_t *out_ids;
    int32_t *out_votes;
    uint64_t found;
} job;

/* outside[i] is zero where the box contains the row. False: with `early`, when it contains none. */
static inline __attribute__((always_inline)) int
box_outside(const job *job, const uint8_t *rows, uint32_t box, int early, __m256i outside[VECTORS]) {
    const scan_model *model = job->model;
    uint32_t range = model->range_start[box], end = model->range_start[box + 1];
    for (int i = 0; i < VECTORS; i++) {
        outside[i] = _mm256_setzero_si256();
    }
    for (uint32_t done = 0; range < end; range++, done++) {
        const __m256i *column = (const __m256i *)(rows + model->dim[range] * BLOCK);
        __m256i lo = _mm256_set1_epi8((char)model->lo[range]);
        __m256i width = _mm256_set1_epi8((char)model->width[range]);
        for (int i = 0; i < VECTORS; i++) {
            __m256i above = _mm256_sub_epi8(_mm256_load_si256(column + i), lo);
            outside[i] = _mm256_or_si256(outside[i], _mm256_subs_epu8(above, width));
        }
        if (early && done > 0) {
            __m256i least = outside[0];
            for (int i = 1; i < VECTORS; i++) {
                least = _mm256_min_epu8(least, outside[i]);
            }
            if (_mm256_movemask_epi8(_mm256_cmpeq_epi8(least, _mm256_setzero_si256())) == 0) {
                return 0;
            }
        }
    }
    return 1;
}

/* Adds the votes of one estimator for 256 rows. */
static inline __attribute__((always_inline)) void
estimator_votes(const job *job, const uint8_t *rows, uint32_t estimator, int early, __m256i *votes) {
    uint32_t box = job->model->box_start[estimator], end = job->model->box_start[estimator + 1];
    __m256i inside[VECTORS];
    int any = 0;
    for (; box < end; box++) {
        __m256i outside[VECTORS];
        if (!box_outside(job, rows, box, early, outside)) {
            continue;
        }
        for (int i = 0; i < VECTORS; i++) {
            __m256i in = _mm256_cmpeq_epi8(outside[i], _mm256_setzero_si256());
            inside[i] = any ? _mm256_or_si256(inside[i], in) : in;
        }
        any = 1;
    }
    if (any) {
        for (int i = 0; i < VECTORS; i++) {
            votes[i] = _mm256_sub_epi8(votes[i], inside[i]); /* a row inside has -1 */
        }
    }
}

static void emit(job *job, uint64_t row, const __m256i *votes) {
    __m256i threshold = _mm256_set1_epi8((char)job->model->threshold);
    for (int i = 0; i < VECTORS; i++, row += 32) {
        __m256i enough = _mm256_cmpeq_epi8(_mm256_max_epu8(votes[i], threshold), votes[i]);
        uint32_t bits = (uint32_t)_mm256_movemask_epi8(enough);
        for (; bits != 0; bits &= bits - 1) {
            uint64_t place = (uint64_t)__builtin_ctz(bits);
            if (row + place >= job->rows) {
                return;
            }
            job->out_ids[job->found] = job->ids[row + place];
            job->out_votes[job->found++] = ((const uint8_t *)&votes[i])[place];
        }
    }
}

static void *work(void *context) {
    job *job = context;
    uint32_t estimators = job->model->estimators, spare = estimators - job->model->threshold;
    for (uint64_t block = job->first; block < job->rows; block += BLOCK) {
        __m256i votes[VECTORS];
        const uint8_t *rows = job->columns + 32 * block;
        for (uint64_t group = 0; group < BLOCK; group += GROUP) {
            memset(votes, 0, sizeof votes);
            int alive = 1, early = job->variant == SCAN_EARLY;
            for (uint32_t e = 0; e < estimators && !early; e++) {
                estimator_votes(job, rows + group, e, 0, votes);
            }
            for (uint32_t e = 0; e < estimators && early && alive; e++) {
                estimator_votes(job, rows + group, e, 1, votes);
                if (e >= spare) { /* votes that a row must have by now */
                    __m256i most = votes[0], need = _mm256_set1_epi8((char)(e + 1 - spare));
                    for (int i = 1; i < VECTORS; i++) {
                        most = _mm256_max_epu8(most, votes[i]);
                    }
                    __m256i enough = _mm256_cmpeq_epi8(_mm256_max_epu8(most, need), most);
                    alive = _mm256_movemask_epi8(enough) != 0;
                }
            }
            if (alive) {
                emit(job, block + group, votes);
            }
        }
    }
    return NULL;
}

void scan_rows_free(scan_rows *found) {
    if (found != NULL) {
        free(found->ids);
        free(found->votes);
        free(found);
    }
}

scan_rows *scan_run(const uint8_t *columns, uint64_t rows, const int64_t *ids, const scan_model *model,
                    int32_t variant, int32_t threads) {
    job jobs[SCAN_MAX_THREADS];
    pthread_t thread[SCAN_MAX_THREADS];
    scan_rows *found = calloc(1, sizeof *found);
    if (found == NULL || threads < 1 || threads > SCAN_MAX_THREADS) {
        scan_rows_free(found);
        return NULL;
    }
    /* Room for every row; the system gives pages only where something is written. */
    found->ids = malloc(rows * sizeof *found->ids);
    found->votes = malloc(rows * sizeof *found->votes);
    if (found->ids == NULL || found->votes == NULL) {
        scan_rows_free(found);
        return NULL;
    }
    uint64_t share = (rows / (uint64_t)threads + BLOCK) / BLOCK * BLOCK;
    for (int t = 0; t < threads; t++) {
        uint64_t first = share * (uint64_t)t < rows ? share * (uint64_t)t : rows;
        uint64_t end = first + share < rows ? first + share : rows;
        jobs[t] =
            (job){columns, first, end, ids, model, variant, found->ids + first, found->votes + first, 0};
    }
    int started = 1;
    while (started < threads && pthread_create(&thread[started], NULL, work, &jobs[started]) == 0) {
        started++;
    }
    work(&jobs[0]);
    found->rows = jobs[0].found;
    for (int t = 1; t < started; t++) {
        pthread_join(thread[t], NULL);
        memmove(found->ids + found->rows, jobs[t].out_ids, jobs[t].found * sizeof *found->ids);
        memmove(found->votes + found->rows, jobs[t].out_votes, jobs[t].found * sizeof *found->votes);
        found->rows += jobs[t].found;
    }
    if (started < threads) {
        scan_rows_free(found);
        return NULL;
    }
    return found;
}
