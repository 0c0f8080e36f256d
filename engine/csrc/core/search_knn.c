/* search_knn.c - nearest neighbours.
 *
 * Approximate: the tiles whose centroids are nearest, of these the granules whose centroids are nearest, and
 * of these all rows: an inverted file (Jegou, Douze, Schmid, "Product quantization for nearest neighbor
 * search", 2011) of two levels, whose lists are stretches of the one order of rows. How many granules a
 * recall takes, each segment has measured on itself (bw_knn_calibrate).
 *
 * Exact: a few granules give a first k-th distance; then every block whose zones allow a row as near as the
 * k-th best so far is read, in the order of the file. Ties are broken by id, so a block that can only hold
 * the k-th distance itself is read too. */
#include "index.h"
#include "kernels.h"
#include "search.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* What is looked for is a key: a squared distance, 21 bits, and below it a number: of a tile, of a granule,
 * or of a row. Granules and rows are numbered through all segments, with the padding of each one's last
 * block.
 */
#define NUMBER_BITS 43
#define NUMBER_MASK (((uint64_t)1 << NUMBER_BITS) - 1)
#define BLOCK_GRANULES (BW_BLOCK_ROWS / BW_GRANULE_ROWS)
#define PASS_BLOCKS 128         /* what a thread takes at a time of an exact search */
#define SHARED_VISITS 16384     /* granules of an exact search after which other threads are worth starting */
#define AHEAD 4                 /* granules whose columns are fetched before they are looked at */
#define BEAM_LEAST 32           /* tiles whose granules are ranked; more to visit more granules */
#define PACKED_ROWS 65536       /* of a filter: up to as many are copied together */
#define CALIBRATION_QUERIES 512 /* of a calibration, at most and */
#define CALIBRATION_LEAST 64    /* at least, */
#define CALIBRATION_VISITS 6000000 /* and as many as visit so many granules in all */
#define CALIBRATION_EVERY 4        /* of those, the ones whose many neighbours are looked at */
#define CALIBRATION_FEW 100
#define CALIBRATION_MANY 1000
#define CALIBRATION_STEP (1.0 / 32)       /* of a calibration: how often progress is reported */
#define CANCEL_IDS 4096                   /* of a filter: after so many the cancel flag is looked at */
#define MOST_GRANULES (UINT32_C(1) << 30) /* of a segment, and more */
#define MARGIN 1.5 /* standard errors that a measured share of neighbours is taken for less */

_Static_assert(BW_DIMS * 255 * 255 < 1 << (64 - NUMBER_BITS), "a distance and a number share 64 bits");

static const double recall_levels[BW_RECALL_LEVELS] = {0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999};
static const uint32_t recall_ks[BW_RECALL_KS] = {1, 10, 30, 100, 300, 1000};

/* The least `keep` keys of all that were offered, among those that may still be: at most full + 63 of them.
 */
typedef struct list {
    uint64_t *keys;
    uint32_t count;
    uint32_t keep;
    uint32_t full;  /* number of keys from which on it is time to drop some */
    uint32_t limit; /* a greater distance is not among the least */
} list;

/* A segment, as one call searches it. */
typedef struct part {
    const bw_segment *segment;
    const uint64_t *dead;   /* a bit for each dead row; NULL: none */
    uint64_t live;          /* the other rows */
    uint64_t first_block;   /* blocks in the segments before */
    uint32_t granules;      /* ceil(rows / 64) */
    uint32_t effort;        /* granules to visit */
    uint8_t order[BW_DIMS]; /* dimensions, the widest first: they tell far rows soonest */
} part;

typedef struct knn {
    const bw_kernels *kernels;
    part *parts;
    uint32_t n_parts;
    uint32_t keep;   /* min(k, rows that may be answers) */
    uint64_t budget; /* approximate: granules to visit in all */
    bool exact;
    /* Of a filter, one of the two: a bit for each row that may be an answer, one word a granule, */
    const uint64_t *wanted;
    uint64_t blocks; /* of all parts */
    /* or those rows themselves, in ascending order of their ids: granules of 32 columns of 64 values. */
    const uint8_t *packed;
    const int64_t *packed_ids;
    const volatile int32_t *cancel; /* may be NULL */
} knn;

/* What one thread needs. */
typedef struct scratch {
    list tiles, granules, found;
    uint64_t *spare;  /* as long as found */
    uint64_t *blocks; /* with a bitmap: room for all blocks */
    uint64_t visited; /* granules */
    uint64_t bytes;   /* of zones and centroids */
    bool stopped;     /* the cancel flag was seen: what was found is not an answer */
    void *memory;     /* owned: bw_free */
} scratch;

/* ---- keys ---- */

static inline uint64_t key_of(uint32_t distance, uint64_t number) {
    return (uint64_t)distance << NUMBER_BITS | number;
}

static inline uint32_t distance_of(uint64_t key) {
    return (uint32_t)(key >> NUMBER_BITS);
}

static inline void swap(uint64_t *a, uint64_t *b) {
    uint64_t other = *a;
    *a = *b;
    *b = other;
}

/* Puts a pivot where it belongs among keys, no two of which are the same, and returns its place. No branch
 * depends on the keys. */
static uint32_t divide(uint64_t *keys, uint32_t n) {
    uint32_t a = n / 4, b = n / 2, c = n - 1 - n / 4, middle = b;
    if ((keys[a] < keys[b]) == (keys[c] < keys[a])) {
        middle = a;
    } else if ((keys[b] < keys[c]) != (keys[a] < keys[b])) {
        middle = c;
    }
    uint64_t pivot = keys[middle];
    keys[middle] = keys[n - 1];
    uint32_t place = 0;
    for (uint32_t i = 0; i < n - 1; i++) {
        uint64_t key = keys[i];
        keys[i] = keys[place];
        keys[place] = key;
        place += key < pivot;
    }
    keys[n - 1] = keys[place];
    keys[place] = pivot;
    return place;
}

static void sort_few(uint64_t *keys, uint32_t n) {
    for (uint32_t i = 1; i < n; i++) {
        uint64_t key = keys[i];
        uint32_t place = i;
        for (; place > 0 && keys[place - 1] > key; place--) {
            keys[place] = keys[place - 1];
        }
        keys[place] = key;
    }
}

static void sink(uint64_t *heap, uint32_t n, uint32_t place) {
    uint64_t moving = heap[place];
    for (uint32_t child; (child = 2 * place + 1) < n; place = child) {
        child += child + 1 < n && heap[child + 1] > heap[child];
        if (moving >= heap[child]) {
            break;
        }
        heap[place] = heap[child];
    }
    heap[place] = moving;
}

/* Where pivots turn out badly. */
static void heap_sort(uint64_t *keys, uint32_t n) {
    for (uint32_t place = n / 2; place-- > 0;) {
        sink(keys, n, place);
    }
    while (n > 1) {
        swap(&keys[0], &keys[--n]);
        sink(keys, n, 0);
    }
}

static void sort_keys(uint64_t *keys, uint32_t n) {
    for (uint32_t bad = 0; n > 16;) {
        if (bad > 24) {
            heap_sort(keys, n);
            return;
        }
        uint32_t place = divide(keys, n), rest = n - place - 1;
        bad += (place < rest ? place : rest) < n / 8;
        if (place < rest) {
            sort_keys(keys, place);
            keys += place + 1;
            n = rest;
        } else {
            sort_keys(keys + place + 1, rest);
            n = place;
        }
    }
    sort_few(keys, n);
}

/* Brings the least `keep` of n > keep >= 1 keys to the front and the greatest of those to keys[keep - 1]. */
static void select_keys(uint64_t *keys, uint32_t n, uint32_t keep) {
    for (uint32_t bad = 0; n > 16;) {
        if (bad > 24) {
            heap_sort(keys, n);
            return;
        }
        uint32_t place = divide(keys, n), rest = n - place - 1;
        bad += (place < rest ? place : rest) < n / 8;
        if (place == keep - 1) {
            return;
        }
        if (place < keep) {
            keys += place + 1;
            keep -= place + 1;
            n = rest;
        } else {
            n = place;
        }
    }
    sort_few(keys, n);
}

/* ---- lists ---- */

static inline uint32_t list_full(uint32_t keep) {
    return keep + (keep / 2 < 32 ? 32 : keep / 2);
}

static inline size_t list_room(uint32_t keep) {
    return list_full(keep) + 64;
}

static inline void list_begin(list *list, uint32_t keep) {
    list->count = 0;
    list->keep = keep;
    list->full = list_full(keep);
    list->limit = UINT32_MAX;
}

/* The points of `mask`, which stand at numbers from `first` on. The caller sees to it that the list is not
 * full. */
static inline void offer(list *list, uint64_t mask, const uint32_t distances[64], uint64_t first) {
    uint64_t *to = list->keys + list->count;
    list->count += (uint32_t)__builtin_popcountll(mask);
    for (; mask; mask &= mask - 1) {
        uint32_t i = (uint32_t)__builtin_ctzll(mask);
        *to++ = key_of(distances[i], first + i);
    }
}

/* Drops what is not among the least. Tiles and granules: of equal distances the first numbers stay. */
static void shrink(list *list) {
    if (list->count > list->keep) {
        select_keys(list->keys, list->count, list->keep);
        list->count = list->keep;
        list->limit = distance_of(list->keys[list->keep - 1]);
    }
}

static inline bool stopped(const knn *knn, scratch *scratch) {
    scratch->stopped = scratch->stopped || (knn->cancel && *knn->cancel);
    return scratch->stopped;
}

static inline uint64_t first_bits(uint64_t n) {
    return n >= 64 ? ~(uint64_t)0 : ((uint64_t)1 << n) - 1;
}

/* ---- rows ---- */

static const part *part_of(const knn *knn, uint64_t block) {
    uint32_t low = 0, high = knn->n_parts;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (knn->parts[middle].first_block <= block) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return &knn->parts[low];
}

static int64_t id_of(const knn *knn, uint64_t key) {
    uint64_t row = key & NUMBER_MASK;
    if (knn->packed) {
        return knn->packed_ids[row];
    }
    const part *part = part_of(knn, row / BW_BLOCK_ROWS);
    return part->segment->ids[row - part->first_block * BW_BLOCK_ROWS];
}

/* The same for rows, where of equal distances the least ids stay. */
static void shrink_found(const knn *knn, scratch *scratch) {
    list *found = &scratch->found;
    uint32_t count = found->count, keep = found->keep;
    if (count <= keep) {
        return;
    }
    select_keys(found->keys, count, keep);
    uint32_t last = distance_of(found->keys[keep - 1]), nearer = 0, equal = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t distance = distance_of(found->keys[i]);
        nearer += distance < last;
        equal += distance == last;
    }
    if (nearer + equal > keep) { /* ids decide who of the equals stays */
        uint32_t stay = keep - nearer, n = 0, place = 0;
        for (uint32_t i = 0; i < count; i++) {
            if (distance_of(found->keys[i]) == last) {
                scratch->spare[n++] = (uint64_t)id_of(knn, found->keys[i]);
            }
        }
        select_keys(scratch->spare, n, stay);
        uint64_t greatest = scratch->spare[0];
        for (uint32_t i = 1; i < stay; i++) {
            greatest = scratch->spare[i] > greatest ? scratch->spare[i] : greatest;
        }
        for (uint32_t i = 0; i < count; i++) {
            uint64_t key = found->keys[i];
            found->keys[place] = key;
            place += distance_of(key) < last ||
                     (distance_of(key) == last && (uint64_t)id_of(knn, key) <= greatest);
        }
    }
    found->count = keep;
    found->limit = last;
}

/* Offers the rows of a granule: number `granule` of its segment. */
static inline void visit(const knn *knn, scratch *scratch, const part *part, uint32_t granule,
                         const uint8_t *query) {
    uint32_t distances[64];
    const uint8_t *block = bw_segment_block(part->segment, granule / BLOCK_GRANULES);
    uint64_t row = (uint64_t)granule * BW_GRANULE_ROWS, mask;
    scratch->visited++;
    mask = knn->kernels->near(block + granule % BLOCK_GRANULES * BW_GRANULE_ROWS, BW_BLOCK_ROWS, query,
                              part->order, scratch->found.limit, distances);
    if (mask) {
        mask &= knn->wanted ? knn->wanted[part->first_block * BLOCK_GRANULES + granule]
                            : first_bits(part->segment->rows - row) & ~(part->dead ? part->dead[granule] : 0);
        offer(&scratch->found, mask, distances, part->first_block * BW_BLOCK_ROWS + row);
        if (scratch->found.count >= scratch->found.full) {
            shrink_found(knn, scratch);
        }
    }
}

static inline void fetch(const part *part, uint32_t granule) {
    const uint8_t *block = bw_segment_block(part->segment, granule / BLOCK_GRANULES) +
                           granule % BLOCK_GRANULES * BW_GRANULE_ROWS;
    for (int d = 0; d < BW_DIMS; d++) {
        __builtin_prefetch(block + d * BW_BLOCK_ROWS);
    }
}

/* ---- granules by the distance of their centroids ---- */

/* How many tiles have their granules ranked for a number of granules to visit. */
static uint32_t beam(const bw_segment *segment, uint32_t effort) {
    uint32_t tiles = effort < BEAM_LEAST ? BEAM_LEAST : effort;
    return tiles < segment->tiles ? tiles : segment->tiles;
}

/* Which of a tile's granules, the first of which is given, have live rows. */
static uint64_t live_granules(const part *part, uint32_t first) {
    uint32_t left = part->granules - first, n = left < BW_TILE_GRANULES ? left : BW_TILE_GRANULES;
    uint64_t live = first_bits(left);
    for (uint32_t g = 0; part->dead && g < n; g++) {
        uint64_t row = (uint64_t)(first + g) * BW_GRANULE_ROWS;
        if (part->dead[first + g] == first_bits(part->segment->rows - row)) {
            live &= ~((uint64_t)1 << g);
        }
    }
    return live;
}

/* Appends the nearest `effort` granules with live rows to `granules`, in no order. */
static void rank(const knn *knn, scratch *scratch, const part *part, uint32_t effort, const uint8_t *query) {
    const bw_segment *segment = part->segment;
    uint32_t distances[64];
    list *tiles = &scratch->tiles;
    list_begin(tiles, beam(segment, effort));
    for (uint32_t t = 0; t < segment->tiles; t += 64) {
        uint64_t mask = knn->kernels->near(segment->tile_centroids + t, segment->tile_stride, query,
                                           part->order, tiles->limit, distances);
        offer(tiles, mask & first_bits(segment->tiles - t), distances, t);
        if (tiles->count >= tiles->full) {
            shrink(tiles);
        }
    }
    shrink(tiles);
    sort_keys(tiles->keys, tiles->count);
    list all = scratch->granules, nearest = {.keys = all.keys + all.count};
    list_begin(&nearest, effort);
    for (uint32_t i = 0; i < tiles->count; i++) {
        uint32_t t = (uint32_t)(tiles->keys[i] & NUMBER_MASK), granule = t * BW_TILE_GRANULES;
        if (i + 2 < tiles->count) {
            const uint8_t *next = segment->granule_centroids +
                                  (tiles->keys[i + 2] & NUMBER_MASK) * (BW_TILE_GRANULES * BW_DIMS);
            for (int d = 0; d < BW_DIMS; d++) {
                __builtin_prefetch(next + d * BW_TILE_GRANULES);
            }
        }
        uint64_t mask = knn->kernels->near(segment->granule_centroids + (size_t)granule * BW_DIMS, 64, query,
                                           part->order, nearest.limit, distances);
        offer(&nearest, mask & live_granules(part, granule), distances,
              part->first_block * BLOCK_GRANULES + granule);
        if (nearest.count >= nearest.full) {
            shrink(&nearest);
        }
    }
    shrink(&nearest);
    scratch->granules.count += nearest.count;
    scratch->bytes += (uint64_t)BW_DIMS * (segment->tile_stride + BW_TILE_GRANULES * tiles->count);
}

/* Visits the nearest of the granules that the parts bring in, within the budget. */
static void search_granules(const knn *knn, scratch *scratch, const uint8_t *query) {
    list *granules = &scratch->granules;
    granules->count = 0;
    for (uint32_t p = 0; p < knn->n_parts; p++) {
        rank(knn, scratch, &knn->parts[p], knn->parts[p].effort, query);
    }
    sort_keys(granules->keys, granules->count);
    if (granules->count > knn->budget) {
        granules->count = (uint32_t)knn->budget;
    }
    for (uint32_t i = 0; i < granules->count; i++) {
        if (i + AHEAD < granules->count) {
            uint64_t next = granules->keys[i + AHEAD] & NUMBER_MASK;
            const part *part = part_of(knn, next / BLOCK_GRANULES);
            fetch(part, (uint32_t)(next - part->first_block * BLOCK_GRANULES));
        }
        uint64_t granule = granules->keys[i] & NUMBER_MASK;
        const part *part = part_of(knn, granule / BLOCK_GRANULES);
        visit(knn, scratch, part, (uint32_t)(granule - part->first_block * BLOCK_GRANULES), query);
    }
    shrink_found(knn, scratch);
}

/* ---- blocks by the bounds of their zones ---- */

/* Reads those blocks of a part that may hold answers: from `first`, a multiple of 64, to `end`. */
static void search_blocks(const knn *knn, scratch *scratch, const part *part, uint32_t first, uint32_t end,
                          const uint8_t *query) {
    const bw_segment *segment = part->segment;
    for (uint32_t b = first; b < end; b += 64) {
        uint32_t bounds[64], granules[64 * BLOCK_GRANULES], n = 0;
        knn->kernels->zone_distances(segment->zone_min, segment->zone_max, segment->zone_stride, b, query,
                                     bounds);
        scratch->bytes += 2 * 64 * BW_DIMS;
        for (uint32_t i = 0; i < 64 && b + i < end; i++) {
            uint32_t granule = (b + i) * BLOCK_GRANULES;
            for (uint32_t g = 0; g < BLOCK_GRANULES; g++) {
                granules[n + g] = granule + g;
            }
            n += bounds[i] <= scratch->found.limit ? BLOCK_GRANULES : 0;
        }
        for (uint32_t i = 0; i < n; i++) {
            if (i + AHEAD < n) {
                fetch(part, granules[i + AHEAD]);
            }
            if (granules[i] < part->granules &&
                bounds[granules[i] / BLOCK_GRANULES - b] <= scratch->found.limit) {
                visit(knn, scratch, part, granules[i], query);
            }
        }
    }
}

/* The blocks of all parts, shared out among threads that work on one query. */
typedef struct pass {
    const knn *knn;
    const uint8_t *query;
    scratch *scratches; /* one a thread; the first one is made ready by the caller */
    uint64_t chunks;
    _Atomic uint64_t next;
    _Atomic uint32_t limit;
} pass;

static uint64_t part_chunks(const part *part) {
    return (part->segment->blocks + (uint64_t)PASS_BLOCKS - 1) / PASS_BLOCKS;
}

static bool scratch_begin(const knn *knn, scratch *scratch);

/* Searches the next chunk; false when none is left, or no more are wanted. */
static bool pass_chunk(pass *pass, scratch *scratch) {
    if (stopped(pass->knn, scratch)) {
        return false;
    }
    uint64_t chunk = atomic_fetch_add(&pass->next, 1);
    if (chunk >= pass->chunks) {
        return false;
    }
    const part *part = pass->knn->parts;
    for (; chunk >= part_chunks(part); part++) {
        chunk -= part_chunks(part);
    }
    uint32_t first = (uint32_t)chunk * PASS_BLOCKS, left = part->segment->blocks - first;
    uint32_t limit = atomic_load(&pass->limit), own = scratch->found.limit;
    scratch->found.limit = limit < own ? limit : own;
    search_blocks(pass->knn, scratch, part, first, first + (left < PASS_BLOCKS ? left : PASS_BLOCKS),
                  pass->query);
    own = scratch->found.limit;
    while (own < limit && !atomic_compare_exchange_weak(&pass->limit, &limit, own)) {
    }
    return true;
}

static void pass_worker(void *context, uint32_t worker) {
    pass *pass = context;
    scratch *scratch = &pass->scratches[worker];
    if (worker > 0) {
        if (!scratch_begin(pass->knn, scratch)) {
            return; /* the others do it */
        }
        list_begin(&scratch->found, pass->knn->keep);
    }
    while (pass_chunk(pass, scratch)) {
    }
}

#define MOST_THREADS 16 /* on one query */

static void search_exactly(const knn *knn, scratch *scratch, uint32_t threads, const uint8_t *query) {
    struct scratch scratches[MOST_THREADS] = {0};
    search_granules(knn, scratch, query);
    /* Begun anew within the limit that they gave: no row is found twice. */
    scratch->found.count = 0;
    scratches[0] = *scratch;
    pass pass = {.knn = knn, .query = query, .scratches = scratches, .limit = scratch->found.limit};
    for (uint32_t p = 0; p < knn->n_parts; p++) {
        pass.chunks += part_chunks(&knn->parts[p]);
    }
    threads = threads < MOST_THREADS ? threads : MOST_THREADS;
    /* Most queries are done before another thread would have begun. The more neighbours, the more a visit
     * costs. */
    uint64_t weight = 1 + knn->keep / 256, before = scratch->visited;
    while (pass_chunk(&pass, &scratches[0])) {
        if (threads > 1 && (scratches[0].visited - before) * weight >= SHARED_VISITS) {
            bw_parallel(threads, pass_worker, &pass);
            break;
        }
    }
    *scratch = scratches[0];
    for (uint32_t t = 1; t < threads; t++) {
        const list *other = &scratches[t].found;
        for (uint32_t i = 0; i < other->count; i++) {
            scratch->found.keys[scratch->found.count++] = other->keys[i];
            if (scratch->found.count >= scratch->found.full) {
                shrink_found(knn, scratch);
            }
        }
        scratch->stopped = scratch->stopped || scratches[t].stopped;
        scratch->visited += scratches[t].visited;
        scratch->bytes += scratches[t].bytes;
        bw_free(scratches[t].memory);
    }
    shrink_found(knn, scratch);
}

/* ---- filters ---- */

static inline const uint64_t *wanted_of(const knn *knn, uint64_t block) {
    return knn->wanted + block * BLOCK_GRANULES;
}

static uint32_t wanted_count(const knn *knn, uint64_t block) {
    const uint64_t *words = wanted_of(knn, block);
    uint32_t count = 0;
    for (int g = 0; g < BLOCK_GRANULES; g++) {
        count += (uint32_t)__builtin_popcountll(words[g]);
    }
    return count;
}

static void search_wanted_block(const knn *knn, scratch *scratch, uint64_t key, const uint8_t *query) {
    uint64_t block = key & NUMBER_MASK;
    const part *part = part_of(knn, block);
    uint32_t granule = (uint32_t)(block - part->first_block) * BLOCK_GRANULES;
    for (uint32_t g = 0; g < BLOCK_GRANULES; g++) {
        if (wanted_of(knn, block)[g]) {
            visit(knn, scratch, part, granule + g, query);
        }
    }
}

/* The blocks with rows that may be answers: first the nearest ones, enough of them for k rows, and then those
 * of the rest that their bounds do not rule out. */
static void search_wanted(const knn *knn, scratch *scratch, const uint8_t *query) {
    uint64_t *blocks = scratch->blocks, n = 0;
    for (uint32_t p = 0; p < knn->n_parts; p++) {
        const part *part = &knn->parts[p];
        const bw_segment *segment = part->segment;
        for (uint32_t b = 0; b < segment->blocks; b += 64) {
            uint32_t bounds[64];
            uint64_t some = 0;
            if (stopped(knn, scratch)) {
                return;
            }
            for (uint32_t i = 0; i < 64 && b + i < segment->blocks; i++) {
                const uint64_t *words = wanted_of(knn, part->first_block + b + i);
                some |= (uint64_t)((words[0] | words[1] | words[2] | words[3]) != 0) << i;
            }
            if (some) {
                knn->kernels->zone_distances(segment->zone_min, segment->zone_max, segment->zone_stride, b,
                                             query, bounds);
                scratch->bytes += 2 * 64 * BW_DIMS;
            }
            for (; some; some &= some - 1) {
                uint32_t i = (uint32_t)__builtin_ctzll(some);
                blocks[n++] = key_of(bounds[i], part->first_block + b + i);
            }
        }
    }
    uint64_t nearest = 16, rows = 0;
    for (;; nearest *= 4) {
        nearest = nearest < n ? nearest : n;
        if (nearest < n) {
            select_keys(blocks, (uint32_t)n, (uint32_t)nearest);
        }
        rows = 0;
        for (uint64_t i = 0; i < nearest; i++) {
            rows += wanted_count(knn, blocks[i] & NUMBER_MASK);
        }
        if (rows >= knn->keep) {
            break;
        }
    }
    for (uint64_t i = 0; i < nearest; i++) {
        if (i % PASS_BLOCKS == 0 && stopped(knn, scratch)) {
            return;
        }
        search_wanted_block(knn, scratch, blocks[i], query);
    }
    shrink_found(knn, scratch);
    for (uint64_t i = nearest; i < n; i++) {
        if (i % PASS_BLOCKS == 0 && stopped(knn, scratch)) {
            return;
        }
        if (distance_of(blocks[i]) <= scratch->found.limit) {
            search_wanted_block(knn, scratch, blocks[i], query);
        }
    }
    shrink_found(knn, scratch);
}

static void search_packed(const knn *knn, scratch *scratch, uint64_t rows, const uint8_t *query) {
    uint32_t distances[64];
    for (uint64_t row = 0; row < rows; row += BW_GRANULE_ROWS) {
        uint64_t mask = knn->kernels->near(knn->packed + row * BW_DIMS, BW_GRANULE_ROWS, query,
                                           knn->parts[0].order, scratch->found.limit, distances);
        offer(&scratch->found, mask & first_bits(rows - row), distances, row);
        if (scratch->found.count >= scratch->found.full) {
            shrink_found(knn, scratch);
        }
        scratch->visited++;
    }
    shrink_found(knn, scratch);
}

/* The rows that may be answers: as `wanted` or as `packed`. */
typedef struct filter {
    uint64_t rows;
    uint64_t *wanted;
    uint8_t *packed;
    int64_t *ids;
    const bw_index *index;
    bw_search *search; /* of the model */
    const volatile int32_t *cancel;
    _Atomic int32_t status; /* of a thread that works on the search */
    bw_error error;
} filter;

static void filter_free(filter *filter) {
    bw_search_close(filter->search);
    bw_free(filter->wanted);
    bw_free(filter->packed);
    bw_free(filter->ids);
}

static int32_t fail_cancelled(bw_error *error) {
    return bw_fail(error, BW_CANCELLED, "the search for neighbours was cancelled");
}

/* BW_CANCELLED when that is what the flag says as the i-th id comes. */
static int32_t filter_look(const filter *filter, uint64_t i, bw_error *error) {
    return i % CANCEL_IDS == 0 && filter->cancel && *filter->cancel ? fail_cancelled(error) : BW_OK;
}

/* Copies the codes of the rows with filter->ids, ascending; ids that the index lacks are dropped, and those
 * that `model`, if not NULL, does not match. */
static int32_t filter_pack(filter *filter, uint64_t n, const bw_model *model, bw_error *error) {
    uint64_t granules = (n + BW_GRANULE_ROWS - 1) / BW_GRANULE_ROWS;
    filter->packed = bw_alloc_zero(granules + 1, (size_t)BW_GRANULE_ROWS * BW_DIMS);
    if (!filter->packed) {
        return bw_fail_nomem(error, granules * BW_GRANULE_ROWS * BW_DIMS);
    }
    for (uint64_t i = 0; i < n; i++) {
        uint32_t segment, row;
        uint8_t code[BW_DIMS], match = 1;
        int32_t status = filter_look(filter, i, error);
        if (status != BW_OK) {
            return status;
        }
        if (!bw_index_find(filter->index, filter->ids[i], &segment, &row)) {
            continue;
        }
        bw_index_gather(filter->index, segment, row, code);
        const uint8_t *fine = filter->index->segments[segment]->fine;
        fine = fine ? fine + (size_t)row * BW_FINE_DIMS : NULL;
        status = model ? bw_model_evaluate(model, code, fine, 1, NULL, NULL, &match, error) : BW_OK;
        if (status != BW_OK) {
            return status;
        }
        if (match) {
            uint64_t place = filter->rows++;
            uint8_t *to = filter->packed + place / BW_GRANULE_ROWS * BW_GRANULE_ROWS * BW_DIMS;
            for (int d = 0; d < BW_DIMS; d++) {
                to[d * BW_GRANULE_ROWS + place % BW_GRANULE_ROWS] = code[d];
            }
            filter->ids[place] = filter->ids[i];
        }
    }
    return BW_OK;
}

/* Ids in ascending order, each once; returns how many. */
static uint64_t sort_ids(int64_t *ids, uint32_t n) {
    sort_keys((uint64_t *)(void *)ids, n);
    uint64_t unique = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (i == 0 || ids[i] != ids[i - 1]) {
            ids[unique++] = ids[i];
        }
    }
    return unique;
}

static void filter_worker(void *context, uint32_t worker) {
    (void)worker;
    filter *filter = context;
    bw_error error = {0};
    bw_batch batch = {.ids = bw_alloc_array(BW_MORSEL_ROWS, sizeof *batch.ids)};
    int32_t status = batch.ids ? BW_OK : bw_fail_nomem(&error, BW_MORSEL_ROWS * sizeof *batch.ids);
    while (status == BW_OK && atomic_load(&filter->status) == BW_OK) {
        if (filter->cancel && *filter->cancel) {
            status = fail_cancelled(&error);
            break;
        }
        status = bw_search_next(filter->search, &batch, NULL, &error);
        if (status != BW_OK || batch.rows == 0) {
            break;
        }
        for (uint64_t i = 0; i < batch.rows; i++) { /* a block belongs to one morsel: no two threads meet */
            uint64_t place = (uint64_t)batch.ids[i];
            filter->wanted[place / 64] |= (uint64_t)1 << place % 64;
        }
    }
    int32_t none = BW_OK;
    if (status != BW_OK && atomic_compare_exchange_strong(&filter->status, &none, status)) {
        filter->error = error;
    }
    bw_free(batch.ids);
}

/* Leaves of the bits those whose ids are listed. */
static int32_t filter_list(filter *filter, const int64_t *ids, size_t n, uint64_t words, bool all,
                           bw_error *error) {
    uint64_t *listed = bw_alloc_zero(words, sizeof *listed);
    if (!listed) {
        return bw_fail_nomem(error, words * sizeof *listed);
    }
    int32_t status = BW_OK;
    for (size_t i = 0; i < n && (status = filter_look(filter, i, error)) == BW_OK; i++) {
        uint32_t segment, row;
        if (bw_index_find(filter->index, ids[i], &segment, &row)) {
            uint64_t place = filter->index->first_blocks[segment] * BW_BLOCK_ROWS + row;
            listed[place / 64] |= (uint64_t)1 << place % 64;
        }
    }
    for (uint64_t w = 0; w < words; w++) {
        filter->wanted[w] = all ? listed[w] : filter->wanted[w] & listed[w];
    }
    bw_free(listed);
    return status;
}

static int32_t filter_make(filter *filter, const bw_index *index, const bw_knn_options *options,
                           bw_error *error) {
    filter->index = index;
    filter->cancel = options->cancel;
    int32_t status = BW_OK;
    if (options->within) { /* also tells whether the model is for this index */
        status = bw_search_open(index, options->within, 0, &filter->search, error);
    }
    if (status != BW_OK) {
        return status;
    }
    if (options->ids && options->n_ids <= PACKED_ROWS) {
        uint64_t n = 0;
        filter->ids = bw_alloc_array(options->n_ids, sizeof *filter->ids);
        if (!filter->ids) {
            return bw_fail_nomem(error, options->n_ids * sizeof *filter->ids);
        }
        for (size_t i = 0; i < options->n_ids; i++) {
            filter->ids[n] = options->ids[i];
            n += options->ids[i] >= 0;
        }
        return filter_pack(filter, sort_ids(filter->ids, (uint32_t)n), options->within, error);
    }
    uint64_t words = index->first_blocks[index->info.segments] * BLOCK_GRANULES, rows = 0;
    filter->wanted = bw_alloc_zero(words, sizeof *filter->wanted);
    if (!filter->wanted) {
        return bw_fail_nomem(error, words * sizeof *filter->wanted);
    }
    if (options->within) {
        uint64_t morsels = bw_search_morsels(filter->search);
        uint32_t threads = bw_thread_count(options->threads);
        bw_search_give_places(filter->search);
        bw_parallel(threads < morsels ? threads : morsels ? (uint32_t)morsels : 1, filter_worker, filter);
        status = atomic_load(&filter->status);
        if (status != BW_OK) {
            if (error) {
                *error = filter->error;
            }
            return status;
        }
    }
    if (options->ids) {
        status = filter_list(filter, options->ids, options->n_ids, words, !options->within, error);
    }
    for (uint64_t w = 0; w < words; w++) {
        rows += (uint64_t)__builtin_popcountll(filter->wanted[w]);
    }
    if (status != BW_OK || rows > PACKED_ROWS) {
        filter->rows = rows;
        return status;
    }
    filter->ids = bw_alloc_array(rows, sizeof *filter->ids);
    if (!filter->ids) {
        return bw_fail_nomem(error, rows * sizeof *filter->ids);
    }
    uint32_t n = 0;
    for (uint32_t s = 0; s < index->info.segments; s++) {
        const uint64_t *bits = filter->wanted + index->first_blocks[s] * BLOCK_GRANULES;
        for (uint64_t w = 0; w * 64 < index->segments[s]->rows; w++) {
            for (uint64_t left = bits[w]; left; left &= left - 1) {
                filter->ids[n++] = index->segments[s]->ids[64 * w + (uint32_t)__builtin_ctzll(left)];
            }
        }
    }
    bw_free(filter->wanted);
    filter->wanted = NULL;
    return filter_pack(filter, sort_ids(filter->ids, n), NULL, error);
}

/* ---- efforts ---- */

/* What a segment must spend for a recall, by what it has measured: straight lines between levels, which lie
 * above the true curve, and between the logarithms of k. */
static uint32_t effort_at(const bw_recall *table, uint32_t row, double recall) {
    const uint32_t *efforts = table->effort[row];
    uint32_t level = 0;
    while (level < BW_RECALL_LEVELS && recall_levels[level] < recall) {
        level++;
    }
    if (level == 0) {
        return efforts[0];
    }
    if (level == BW_RECALL_LEVELS) {
        return efforts[level - 1];
    }
    double part = (recall - recall_levels[level - 1]) / (recall_levels[level] - recall_levels[level - 1]);
    return (uint32_t)ceil(efforts[level - 1] + part * ((double)efforts[level] - efforts[level - 1]));
}

/* The k nearest live rows are, on average, among so many more of all rows. */
static uint32_t effort_for(const part *part, uint32_t k, double recall) {
    const bw_recall *table = part->segment->recall;
    uint32_t row = 0;
    if (part->live <= k) {
        return part->granules;
    }
    if (part->dead) { /* k < live: no more than the segment has */
        k = (uint32_t)ceil((double)k * (double)part->segment->rows / (double)part->live);
    }
    while (row < BW_RECALL_KS && recall_ks[row] < k) {
        row++;
    }
    double effort;
    if (row == BW_RECALL_KS) {
        effort = (double)effort_at(table, row - 1, recall) * k / recall_ks[row - 1];
    } else {
        effort = effort_at(table, row, recall);
        if (row > 0) {
            double below = effort_at(table, row - 1, recall);
            double at =
                log((double)k / recall_ks[row - 1]) / log((double)recall_ks[row] / recall_ks[row - 1]);
            effort = below + at * (effort - below);
        }
    }
    effort = ceil(effort);
    return effort < 1 ? 1 : effort < part->granules ? (uint32_t)effort : part->granules;
}

/* The dimensions of a segment by how far apart its first and its last bin begin, the widest first. */
static void order_dims(const bw_segment *segment, uint8_t order[BW_DIMS]) {
    uint8_t width[BW_DIMS];
    for (int d = 0; d < BW_DIMS; d++) {
        uint8_t w = (uint8_t)(segment->bins[d][BW_BINS - 1] - segment->bins[d][1]);
        int place = d;
        for (; place > 0 && width[place - 1] < w; place--) {
            width[place] = width[place - 1];
            order[place] = order[place - 1];
        }
        width[place] = w;
        order[place] = (uint8_t)d;
    }
}

static void part_begin(part *part, const bw_segment *segment, const bw_dead *dead, uint64_t first_block) {
    part->segment = segment;
    part->dead = dead->bits;
    part->live = segment->rows - dead->rows;
    part->first_block = first_block;
    part->granules = (uint32_t)((segment->rows + BW_GRANULE_ROWS - 1) / BW_GRANULE_ROWS);
    order_dims(segment, part->order);
}

/* ---- memory ---- */

static bool scratch_begin(const knn *knn, scratch *scratch) {
    uint64_t tiles = 0, granules = 0;
    for (uint32_t p = 0; p < knn->n_parts; p++) {
        const part *part = &knn->parts[p];
        uint64_t room = list_room(beam(part->segment, part->effort));
        tiles = room > tiles ? room : tiles;
        granules += list_room(part->effort);
    }
    uint64_t found = list_room(knn->keep), blocks = knn->wanted ? knn->blocks : 0;
    memset(scratch, 0, sizeof *scratch);
    scratch->memory = bw_alloc_array(tiles + granules + 2 * found + blocks, sizeof(uint64_t));
    if (!scratch->memory) {
        return false;
    }
    scratch->tiles.keys = scratch->memory;
    scratch->granules.keys = scratch->tiles.keys + tiles;
    scratch->found.keys = scratch->granules.keys + granules;
    scratch->spare = scratch->found.keys + found;
    scratch->blocks = scratch->spare + found;
    return true;
}

/* ---- calibration ---- */

typedef struct calibration {
    const bw_segment *segment;
    uint32_t queries;     /* of which the next is taken */
    uint32_t least, most; /* how many there are in all, at the end */
    uint32_t few, many;   /* neighbours of a query, and of every fourth; at most rows - 1 */
    uint32_t *efforts;    /* [queries][many]: what it takes to find each, the nearest one first */
    _Atomic uint32_t next;
    _Atomic uint32_t done;
    _Atomic uint64_t visited; /* granules */
    _Atomic bool stopped;
    bw_progress progress; /* of the caller's thread, which is worker 0 */
    void *context;
    double reported;
} calibration;

/* There are as many queries as CALIBRATION_VISITS allow, but no fewer than c->least and no more than c->most.
 */
static void calibration_report(calibration *c) {
    double done = atomic_load(&c->done), part = (double)atomic_load(&c->visited) / CALIBRATION_VISITS;
    part = part < done / c->least ? part : done / c->least;
    part = part > done / c->most ? part : done / c->most;
    part = part < 1 ? part : 1;
    if (c->progress && part >= c->reported + CALIBRATION_STEP) {
        c->reported = part;
        if (c->progress(c->context, part) != 0) {
            atomic_store(&c->stopped, true);
        }
    }
}

/* The efforts that find each of the neighbours in `found`: the rank of its granule among all of the segment,
 * and at least so much that the granule's tile is in the beam. */
static void measure(const knn *knn, scratch *scratch, uint64_t *spare, const uint8_t *query, uint32_t n,
                    uint32_t *efforts) {
    const part *part = &knn->parts[0];
    const bw_segment *segment = part->segment;
    const uint64_t *found = scratch->found.keys;
    uint32_t distances[64], farthest = 0, kept = 0;
    /* Where the neighbours are, and how far the farthest of these granules is. */
    for (uint32_t i = 0; i < n; i++) {
        uint32_t granule = (uint32_t)((found[i] & NUMBER_MASK) / BW_GRANULE_ROWS);
        uint32_t tile = granule / BW_TILE_GRANULES, distance = 0;
        const uint8_t *centroid = segment->granule_centroids + (size_t)tile * BW_TILE_GRANULES * BW_DIMS +
                                  granule % BW_TILE_GRANULES;
        for (int d = 0; d < BW_DIMS; d++) {
            int difference = centroid[d * BW_TILE_GRANULES] - query[d];
            distance += (uint32_t)(difference * difference);
        }
        farthest = distance > farthest ? distance : farthest;
        scratch->spare[i] = key_of(distance, granule);
    }
    for (uint32_t t = 0; t < segment->tiles; t++) {
        uint32_t granule = t * BW_TILE_GRANULES;
        uint64_t mask = knn->kernels->near(segment->granule_centroids + (size_t)granule * BW_DIMS,
                                           BW_TILE_GRANULES, query, part->order, farthest, distances);
        list all = {.keys = spare, .count = kept};
        offer(&all, mask & first_bits(part->granules - granule), distances, granule);
        kept = all.count;
    }
    sort_keys(spare, kept);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t low = 0, high = kept;
        while (low < high) {
            uint32_t middle = low + (high - low) / 2;
            if (spare[middle] < scratch->spare[i]) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        efforts[i] = low + 1;
    }
    /* The same for tiles. */
    for (uint32_t t = 0; t < segment->tiles; t += 64) {
        knn->kernels->distances(segment->tile_centroids + t, segment->tile_stride, query, distances);
        for (uint32_t i = t; i < segment->tiles && i < t + 64; i++) {
            spare[i] = key_of(distances[i - t], i);
        }
    }
    sort_keys(spare, segment->tiles);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t tile = (uint32_t)((found[i] & NUMBER_MASK) / BW_TILE_ROWS), place = 0;
        while ((spare[place] & NUMBER_MASK) != tile) {
            place++;
        }
        if (place >= beam(segment, efforts[i])) {
            efforts[i] = place + 1;
        }
    }
}

static void calibrate_worker(void *context, uint32_t worker) {
    calibration *c = context;
    const bw_segment *segment = c->segment;
    part part;
    part_begin(&part, segment, &(bw_dead){0}, 0);
    part.effort = part.granules < 128 ? part.granules : 128;
    knn knn = {.kernels = bw_kernels_get(),
               .parts = &part,
               .n_parts = 1,
               .keep = c->many + 1,
               .budget = part.effort};
    scratch scratch;
    uint64_t *spare = bw_alloc_array((size_t)part.granules + 64, sizeof *spare);
    bool ready = scratch_begin(&knn, &scratch) && spare;
    /* A worker without memory leaves the queries to the others. */
    for (uint32_t q;
         ready && !atomic_load(&c->stopped) && (q = atomic_fetch_add(&c->next, 1)) < c->queries;) {
        /* However many queries there will be, they are spread over the segment: multiples of the golden
         * section, modulo 1. */
        uint64_t own = (uint64_t)(q * UINT32_C(0x9E3779B9)) * segment->rows >> 32;
        uint8_t query[BW_DIMS];
        const uint8_t *block = bw_segment_block(segment, (uint32_t)(own / BW_BLOCK_ROWS));
        for (int d = 0; d < BW_DIMS; d++) {
            query[d] = block[d * BW_BLOCK_ROWS + own % BW_BLOCK_ROWS];
        }
        uint32_t neighbours = q % CALIBRATION_EVERY == 0 ? c->many : c->few;
        list_begin(&scratch.found, neighbours + 1);
        uint64_t before = scratch.visited;
        search_exactly(&knn, &scratch, 1, query);
        sort_keys(scratch.found.keys, scratch.found.count);
        uint32_t n = 0; /* a row is not its own neighbour */
        for (uint32_t i = 0; i < scratch.found.count && n < neighbours; i++) {
            uint64_t key = scratch.found.keys[i];
            if ((key & NUMBER_MASK) != own) {
                scratch.found.keys[n++] = key;
            }
        }
        measure(&knn, &scratch, spare, query, n, c->efforts + (size_t)q * c->many);
        atomic_fetch_add(&c->visited, scratch.visited - before);
        atomic_fetch_add(&c->done, 1);
        if (worker == 0) {
            calibration_report(c);
        }
    }
    bw_free(scratch.memory);
    bw_free(spare);
}

/* The share of the k nearest that an effort finds, on average over the queries, less its margin.
 * `sorted`: the efforts of each query's k nearest, in ascending order. */
static double share_found(const uint32_t *sorted, uint32_t queries, uint32_t k, uint32_t effort) {
    double sum = 0, squares = 0;
    for (uint32_t q = 0; q < queries; q++) {
        const uint32_t *of = sorted + (size_t)q * k;
        uint32_t low = 0, high = k;
        while (low < high) {
            uint32_t middle = low + (high - low) / 2;
            if (of[middle] <= effort) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        double share = (double)low / k;
        sum += share;
        squares += share * share;
    }
    double mean = sum / queries, variance = squares / queries - mean * mean;
    return mean - (variance > 0 ? MARGIN * sqrt(variance / queries) : 0);
}

static int by_effort(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* From the greatest k to the least: more neighbours never take less, so that what many neighbours of a query
 * say bounds what its few nearest, of which chance has a greater part, seem to take. */
static void fill_table(const calibration *c, uint32_t granules, uint32_t *sorted, bw_recall *recall) {
    for (uint32_t row = BW_RECALL_KS; row-- > 0;) {
        uint32_t k = recall_ks[row], step = k <= c->few ? 1 : CALIBRATION_EVERY, queries = 0;
        for (uint32_t q = 0; q < c->queries && k <= c->many; q += step) {
            uint32_t *of = sorted + (size_t)queries++ * k;
            memcpy(of, c->efforts + (size_t)q * c->many, k * sizeof *of);
            qsort(of, k, sizeof *of, by_effort);
        }
        for (uint32_t level = 0; level < BW_RECALL_LEVELS; level++) {
            uint32_t low = 1, high = row + 1 < BW_RECALL_KS ? recall->effort[row + 1][level] : granules;
            while (low < high && k <= c->many) {
                uint32_t middle = low + (high - low) / 2;
                if (share_found(sorted, queries, k, middle) >= recall_levels[level]) {
                    high = middle;
                } else {
                    low = middle + 1;
                }
            }
            recall->effort[row][level] = high;
        }
    }
}

int32_t bw_knn_calibrate(const bw_segment *segment, uint32_t threads, bw_recall *recall, bw_progress progress,
                         void *context, bw_error *error) {
    uint64_t others = segment->rows - 1;
    calibration c = {.segment = segment, .progress = progress, .context = context};
    c.few = others < CALIBRATION_FEW ? (uint32_t)others : CALIBRATION_FEW;
    c.many = others < CALIBRATION_MANY ? (uint32_t)others : CALIBRATION_MANY;
    /* Less is at stake in a small segment. */
    uint32_t most = segment->blocks < CALIBRATION_QUERIES ? segment->blocks : CALIBRATION_QUERIES;
    uint32_t least = segment->rows < CALIBRATION_LEAST ? (uint32_t)segment->rows : CALIBRATION_LEAST;
    c.least = least;
    c.most = most > least ? most : least;
    size_t cells = (size_t)c.most * (c.many ? c.many : 1);
    c.efforts = bw_alloc_array(cells, sizeof *c.efforts);
    uint32_t *sorted = bw_alloc_array(cells, sizeof *sorted);
    bool done = c.efforts && sorted;
    if (done && c.many) {
        threads = bw_thread_count(threads);
        c.queries = least;
        bw_parallel(threads < least ? threads : least, calibrate_worker, &c);
        /* What these have cost tells how many more there may be. */
        uint64_t visited = atomic_load(&c.visited), affordable = CALIBRATION_VISITS / (visited / least + 1);
        if (affordable > least && most > least && atomic_load(&c.done) == least && !atomic_load(&c.stopped)) {
            c.queries = affordable < most ? (uint32_t)affordable : most;
            atomic_store(&c.next, least);
            bw_parallel(threads, calibrate_worker, &c);
        }
        done = atomic_load(&c.done) == c.queries;
    }
    bool stopped = atomic_load(&c.stopped);
    if (done && !stopped) {
        memset(recall, 0, sizeof *recall);
        fill_table(&c, (uint32_t)((segment->rows + BW_GRANULE_ROWS - 1) / BW_GRANULE_ROWS), sorted, recall);
    }
    bw_free(c.efforts);
    bw_free(sorted);
    if (stopped) {
        return bw_fail(error, BW_CANCELLED, "cancelled while nearest neighbours were measured");
    }
    return done ? BW_OK : bw_fail_nomem(error, 2 * cells * sizeof *c.efforts);
}

/* ---- many queries ---- */

typedef struct run {
    knn knn;
    const uint8_t *queries;
    size_t n;
    uint32_t k;       /* asked for: the width of the answers */
    uint32_t threads; /* on one query */
    uint64_t packed_rows;
    int64_t *ids;
    uint32_t *distances;
    _Atomic bool stopped;
    _Atomic size_t next;
    _Atomic size_t answered;
    _Atomic uint64_t visited;
    _Atomic uint64_t bytes;
} run;

/* Writes the answer to a query, the nearest one first. */
static void give(const knn *knn, list *found, int64_t *ids, uint32_t *distances) {
    uint32_t n = found->count;
    for (uint32_t i = 0; i < n && !knn->packed; i++) { /* ids lie far apart */
        uint64_t row = found->keys[i] & NUMBER_MASK;
        const part *part = part_of(knn, row / BW_BLOCK_ROWS);
        __builtin_prefetch(part->segment->ids + (row - part->first_block * BW_BLOCK_ROWS));
    }
    sort_keys(found->keys, n);
    for (uint32_t i = 0; i < n; i++) {
        ids[i] = id_of(knn, found->keys[i]);
        distances[i] = distance_of(found->keys[i]);
    }
    for (uint32_t i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && distances[end] == distances[i]; end++) {
        }
        if (end - i > 1) { /* ids are >= 0 and no two the same */
            sort_keys((uint64_t *)(void *)(ids + i), end - i);
        }
    }
}

static void work(void *context, uint32_t worker) {
    (void)worker;
    run *run = context;
    const knn *knn = &run->knn;
    scratch scratch;
    bool ready = scratch_begin(knn, &scratch);
    /* A worker without memory leaves the queries to the others. */
    for (size_t q; ready && (q = atomic_fetch_add(&run->next, 1)) < run->n;) {
        if (stopped(knn, &scratch)) {
            break;
        }
        const uint8_t *query = run->queries + q * BW_DIMS;
        list_begin(&scratch.found, knn->keep);
        if (knn->packed) {
            search_packed(knn, &scratch, run->packed_rows, query);
        } else if (knn->wanted) {
            search_wanted(knn, &scratch, query);
        } else if (knn->exact) {
            search_exactly(knn, &scratch, run->threads, query);
        } else {
            search_granules(knn, &scratch, query);
            if (scratch.found.count < knn->keep) { /* too many of the rows visited are dead */
                list_begin(&scratch.found, knn->keep);
                search_exactly(knn, &scratch, run->threads, query);
            }
        }
        if (scratch.stopped) {
            break;
        }
        give(knn, &scratch.found, run->ids + q * run->k, run->distances + q * run->k);
        atomic_fetch_add(&run->answered, 1);
    }
    if (ready) {
        if (scratch.stopped) {
            atomic_store(&run->stopped, true);
        }
        atomic_fetch_add(&run->visited, scratch.visited);
        atomic_fetch_add(&run->bytes, scratch.bytes);
        bw_free(scratch.memory);
    }
}

static int32_t check_arguments(const bw_index *index, const uint8_t *queries, size_t n,
                               const bw_knn_options *options, const int64_t *ids, const uint32_t *distances,
                               const uint32_t *counts, bw_error *error) {
    uint64_t cells;
    if (!index || !options || (n > 0 && (!queries || !ids || !distances || !counts)) ||
        (options->n_ids > 0 && !options->ids)) {
        return bw_fail(error, BW_INVALID,
                       "nearest neighbours need an index, options, queries, and places for ids, distances "
                       "and counts");
    }
    if (options->k < 1 || options->k > BW_MAX_K) {
        return bw_fail(error, BW_INVALID, "k is %u: ask for 1 to %d neighbours", options->k, BW_MAX_K);
    }
    if (!(options->recall > 0 && options->recall <= 1)) {
        return bw_fail(error, BW_INVALID,
                       "recall is %g: give 1 for exact answers, or the share of the true neighbours to be "
                       "found, above 0 and below 1",
                       options->recall);
    }
    if (bw_mul_overflows(n, options->k, &cells) || cells > SIZE_MAX / sizeof(int64_t)) {
        return bw_fail(error, BW_INVALID,
                       "%zu queries with %u neighbours each are too many for one call: ask in parts", n,
                       options->k);
    }
    return BW_OK;
}

/* What each part brings in, and how much of it is visited. A part's effort is what finds all k in it alone,
 * for they may all be there; the budget is what finds them when they lie in the parts by their sizes, and at
 * least the greatest effort. `rows`: live ones of all parts. */
static void set_efforts(knn *knn, uint64_t rows, uint32_t k, double recall) {
    uint64_t greatest = 0, shared = 0, held = 0;
    for (uint32_t p = 0; p < knn->n_parts; p++) {
        held += knn->parts[p].segment->rows;
    }
    /* For k live rows, when the last granule is not full. */
    double most = held > rows ? (double)(k < rows ? k : rows) * (double)held / (double)rows : k;
    most = ceil(most / BW_GRANULE_ROWS) + 1;
    uint32_t enough = most < MOST_GRANULES ? (uint32_t)most : MOST_GRANULES;
    for (uint32_t p = 0; p < knn->n_parts; p++) {
        part *part = &knn->parts[p];
        if (knn->exact) { /* for the first limit */
            uint32_t seeds = (32 + k / 16) / knn->n_parts + 8;
            part->effort = seeds < part->granules ? seeds : part->granules;
            shared += part->effort;
        } else {
            uint32_t share = (uint32_t)ceil((double)k * (double)part->live / (double)rows);
            part->effort = effort_for(part, k, recall);
            part->effort = part->effort < enough ? enough : part->effort;
            part->effort = part->effort < part->granules ? part->effort : part->granules;
            shared += effort_for(part, share, recall);
        }
        greatest = part->effort > greatest ? part->effort : greatest;
    }
    knn->budget = shared > greatest ? shared : greatest;
    if (knn->budget < enough + knn->n_parts) { /* one of each part may not be full */
        knn->budget = enough + knn->n_parts;
    }
}

static int32_t run_queries(run *run, uint32_t threads, bw_error *error) {
    threads = bw_thread_count(threads);
    bool plain = run->knn.exact && !run->knn.packed && !run->knn.wanted;
    if (plain && run->n < threads) {
        run->threads = threads;
        work(run, 0);
    } else {
        run->threads = 1;
        bw_parallel(threads < run->n ? threads : (uint32_t)run->n, work, run);
    }
    if (atomic_load(&run->answered) == run->n) {
        return BW_OK;
    }
    if (atomic_load(&run->stopped)) {
        return fail_cancelled(error);
    }
    /* Queries are left only when no worker had memory. */
    return bw_fail_nomem(error, list_room(run->knn.keep) * 2 * sizeof(uint64_t));
}

int32_t bw_knn(const bw_index *index, const uint8_t *queries, size_t n, const bw_knn_options *options,
               int64_t *ids, uint32_t *distances, uint32_t *counts, bw_stats *stats, bw_error *error) {
    uint64_t began = bw_now();
    int32_t status = check_arguments(index, queries, n, options, ids, distances, counts, error);
    if (status != BW_OK) {
        return status;
    }
    uint32_t k = options->k, segments = index->info.segments;
    uint64_t rows = index->info.rows, blocks = index->first_blocks[segments];
    filter filter = {0};
    part *parts = bw_alloc_array(segments, sizeof *parts);
    if (!parts) {
        return bw_fail_nomem(error, segments * sizeof *parts);
    }
    run run = {.queries = queries, .n = n, .k = k, .ids = ids, .distances = distances};
    run.knn = (knn){.kernels = bw_kernels_get(), .parts = parts, .blocks = blocks, .cancel = options->cancel};
    for (uint32_t s = 0; s < segments; s++) {
        if (index->dead[s].rows < index->segments[s]->rows) {
            part_begin(&parts[run.knn.n_parts++], index->segments[s], &index->dead[s],
                       index->first_blocks[s]);
        }
    }
    run.knn.exact = options->recall > recall_levels[BW_RECALL_LEVELS - 1];
    if (options->within || options->ids) {
        status = filter_make(&filter, index, options, error);
        run.knn.wanted = filter.wanted;
        run.knn.packed = filter.packed;
        run.knn.packed_ids = filter.ids;
        run.packed_rows = rows = filter.rows;
        run.knn.exact = true;
    }
    run.knn.keep = rows < k ? (uint32_t)rows : k;
    set_efforts(&run.knn, index->info.rows, k, options->recall);
    if (status == BW_OK && n > 0 && rows > 0) {
        status = run_queries(&run, options->threads, error);
    }
    if (status == BW_OK) {
        for (size_t q = 0; q < n; q++) {
            counts[q] = run.knn.keep;
        }
    }
    if (status == BW_OK && stats) {
        uint64_t visited = atomic_load(&run.visited);
        memset(stats, 0, sizeof *stats);
        stats->rows = n * run.knn.keep;
        stats->blocks = n * blocks;
        stats->blocks_scanned = (visited + BLOCK_GRANULES - 1) / BLOCK_GRANULES;
        if (stats->blocks_scanned > stats->blocks) { /* what gave the first limit is read again */
            stats->blocks_scanned = stats->blocks;
        }
        stats->blocks_pruned = stats->blocks - stats->blocks_scanned;
        stats->bytes = visited * BW_GRANULE_ROWS * BW_DIMS + atomic_load(&run.bytes);
        stats->nanoseconds = bw_now() - began;
    }
    filter_free(&filter);
    bw_free(parts);
    return status;
}
