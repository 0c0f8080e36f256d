/* search_knn.c - exact nearest neighbours: blocks in ascending order of the smallest distance that their
 * zones allow, until that passes the k-th best so far. Best-first search as in Hjaltason and Samet, "Distance
 * browsing in spatial databases" (1999), over one flat level of boxes. */
#include "index.h"
#include "kernels.h"

#include <stdatomic.h>
#include <string.h>

/* A block in the queue: its bound, then its number in the index. Distances take 21 bits. */
#define NUMBER_BITS 43
#define NUMBER_MASK (((uint64_t)1 << NUMBER_BITS) - 1)

typedef struct neighbour {
    uint32_t distance;
    int64_t id;
} neighbour;

typedef struct knn {
    const bw_index *index;
    const bw_kernels *kernels;
    const uint8_t *queries;
    size_t n;
    uint32_t k;    /* asked for: the width of the answers */
    uint32_t room; /* min(k, rows) */
    int64_t *ids;
    uint32_t *distances;
    _Atomic size_t next;
    _Atomic uint64_t scanned;
} knn;

static inline bool nearer(neighbour a, neighbour b) {
    return a.distance != b.distance ? a.distance < b.distance : a.id < b.id;
}

/* The best `count` so far; best[0] is the worst of them once the heap is full. */
static void sink(neighbour *best, uint32_t count, uint32_t place) {
    neighbour moving = best[place];
    for (uint32_t child; (child = 2 * place + 1) < count; place = child) {
        if (child + 1 < count && nearer(best[child], best[child + 1])) {
            child++;
        }
        if (!nearer(moving, best[child])) {
            break;
        }
        best[place] = best[child];
    }
    best[place] = moving;
}

static void sink_block(uint64_t *queue, size_t count, size_t place) {
    uint64_t moving = queue[place];
    for (size_t child; (child = 2 * place + 1) < count; place = child) {
        child += child + 1 < count && queue[child + 1] < queue[child];
        if (moving <= queue[child]) {
            break;
        }
        queue[place] = queue[child];
    }
    queue[place] = moving;
}

/* All blocks, the nearest one first. */
static size_t fill_queue(const knn *knn, const uint8_t *query, uint64_t *queue) {
    size_t count = 0;
    for (uint32_t s = 0; s < knn->index->info.segments; s++) {
        const bw_segment *segment = knn->index->segments[s];
        for (uint32_t b = 0; b < segment->blocks; b += 64) {
            uint32_t bounds[64], left = segment->blocks - b;
            knn->kernels->zone_distances(segment->zone_min, segment->zone_max, segment->zone_stride, b, query,
                                         bounds);
            for (uint32_t i = 0; i < 64 && i < left; i++) {
                queue[count++] = (uint64_t)bounds[i] << NUMBER_BITS | (knn->index->first_blocks[s] + b + i);
            }
        }
    }
    for (size_t place = count / 2; place-- > 0;) {
        sink_block(queue, count, place);
    }
    return count;
}

/* Offers the rows of one block to the best so far; returns how many these are now. */
static uint32_t offer_block(const knn *knn, const uint8_t *query, uint64_t number, neighbour *best,
                            uint32_t count) {
    uint32_t low = 0, high = knn->index->info.segments;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (knn->index->first_blocks[middle] <= number) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const bw_segment *segment = knn->index->segments[low];
    uint32_t block = (uint32_t)(number - knn->index->first_blocks[low]);
    uint32_t rows = bw_segment_block_rows(segment, block), distances[BW_BLOCK_ROWS];
    size_t stride;
    const uint8_t *codes = bw_segment_block(segment, block, &stride);
    const int64_t *ids = segment->ids + (size_t)block * BW_BLOCK_ROWS;
    knn->kernels->distances(codes, stride, query, distances);
    uint32_t r = 0;
    for (; r < rows && count < knn->room; r++) {
        best[count++] = (neighbour){distances[r], ids[r]};
        if (count == knn->room) {
            for (uint32_t place = count / 2; place-- > 0;) {
                sink(best, count, place);
            }
        }
    }
    for (; r < rows; r++) {
        if (distances[r] > best[0].distance) {
            continue;
        }
        neighbour found = {distances[r], ids[r]};
        if (nearer(found, best[0])) {
            best[0] = found;
            sink(best, count, 0);
        }
    }
    return count;
}

/* Answers one query; returns how many blocks were read. */
static uint64_t answer(const knn *knn, size_t q, uint64_t *queue, neighbour *best) {
    const uint8_t *query = knn->queries + q * BW_DIMS;
    size_t left = fill_queue(knn, query, queue);
    uint32_t count = 0;
    uint64_t scanned = 0;
    /* A block at just the k-th distance is read too: it may hold a smaller id. */
    while (left > 0 && (count < knn->room || queue[0] >> NUMBER_BITS <= best[0].distance)) {
        uint64_t number = queue[0] & NUMBER_MASK;
        queue[0] = queue[--left];
        sink_block(queue, left, 0);
        count = offer_block(knn, query, number, best, count);
        scanned++;
    }
    while (count > 0) { /* the heap gives the farthest first */
        neighbour farthest = best[0];
        best[0] = best[--count];
        sink(best, count, 0);
        knn->ids[q * knn->k + count] = farthest.id;
        knn->distances[q * knn->k + count] = farthest.distance;
    }
    return scanned;
}

static void work(void *context, uint32_t worker) {
    (void)worker;
    knn *knn = context;
    uint64_t *queue = bw_alloc_array(knn->index->first_blocks[knn->index->info.segments], sizeof *queue);
    neighbour *best = bw_alloc_array(knn->room, sizeof *best);
    /* A worker without memory leaves the queries to the others. */
    for (size_t q; queue && best && (q = atomic_fetch_add(&knn->next, 1)) < knn->n;) {
        atomic_fetch_add(&knn->scanned, answer(knn, q, queue, best));
    }
    bw_free(queue);
    bw_free(best);
}

int32_t bw_knn(const bw_index *index, const uint8_t *queries, size_t n, uint32_t k, uint32_t threads,
               int64_t *ids, uint32_t *distances, uint32_t *counts, bw_stats *stats, bw_error *error) {
    uint64_t began = bw_now();
    if (!index || (n > 0 && (!queries || !ids || !distances || !counts))) {
        return bw_fail(error, BW_INVALID,
                       "nearest neighbours need an index, queries, and places for ids, distances and counts");
    }
    if (k < 1 || k > BW_MAX_K) {
        return bw_fail(error, BW_INVALID, "k is %u: ask for 1 to %d neighbours", k, BW_MAX_K);
    }
    uint64_t rows = index->info.rows, blocks = index->first_blocks[index->info.segments], cells;
    if (bw_mul_overflows(n, k, &cells) || cells > SIZE_MAX / sizeof(int64_t)) {
        return bw_fail(error, BW_INVALID,
                       "%zu queries with %u neighbours each are too many for one call: ask in parts", n, k);
    }
    knn run = {.index = index, .kernels = bw_kernels_get(), .queries = queries, .n = n, .k = k};
    run.room = rows < k ? (uint32_t)rows : k;
    run.ids = ids;
    run.distances = distances;
    if (n > 0 && rows > 0) {
        threads = bw_thread_count(threads);
        bw_parallel(threads < n ? threads : (uint32_t)n, work, &run);
        /* Queries are left only when no worker had memory. */
        if (atomic_load(&run.next) < n) {
            return bw_fail_nomem(error, (size_t)blocks * sizeof(uint64_t));
        }
    }
    for (size_t q = 0; q < n; q++) {
        counts[q] = run.room;
    }
    if (stats) {
        memset(stats, 0, sizeof *stats);
        stats->rows = n * run.room;
        stats->blocks = n * blocks;
        stats->blocks_scanned = atomic_load(&run.scanned);
        stats->blocks_pruned = stats->blocks - stats->blocks_scanned;
        stats->bytes = stats->blocks_scanned * BW_BLOCK_ROWS * BW_DIMS;
        for (uint32_t s = 0; s < index->info.segments; s++) {
            stats->bytes += (uint64_t)n * 2 * BW_DIMS * index->segments[s]->zone_stride;
        }
        stats->nanoseconds = bw_now() - began;
    }
    return BW_OK;
}
