/* segment.h - an open segment: a mapped file (docs/FORMAT.md) whose bounds and checksums have been checked.
 */
#ifndef BW_SEGMENT_H
#define BW_SEGMENT_H

#include "base.h"
#include "segment_format.h"

typedef struct bw_segment {
    bw_map map;
    bw_segment_info info;
    uint8_t uuid[16];
    bw_fingerprints fingerprints;
    uint64_t rows;
    uint32_t blocks;         /* ceil(rows / 256) */
    uint32_t zone_stride;    /* blocks rounded up to 64 */
    const int64_t *ids;      /* rows, in index order */
    const uint32_t *id_rows; /* rows: row numbers in ascending order of id */
    const uint8_t *codes;    /* blocks of 32 columns of 256 values */
    const uint8_t *zone_min; /* [32][zone_stride] */
    const uint8_t *zone_max;
    const uint64_t *planes; /* [blocks][32][3][4]: bits of bins, the highest first; row r of a block is bit
                               r % 64 of word r / 64 */
    const uint8_t (*bins)[BW_BINS];    /* [32]: the smallest value of each bin; bins[d][0] is 0 */
    uint32_t tiles;                    /* ceil(rows / 4096) */
    uint32_t tile_stride;              /* tiles rounded up to 64 */
    const uint8_t *tile_centroids;     /* [32][tile_stride] */
    const uint8_t *granule_centroids;  /* [tiles][32][64] */
    const uint32_t (*histograms)[256]; /* [32]: rows by value */
    uint32_t sample_rows;
    const uint8_t
        *sample;         /* rows as blocks of 256 * 32 bytes, stride 256: all rows where there are at most
                            BW_SAMPLE_ROWS, else so many, every block of them evenly spaced in the segment */
    const uint8_t *fine; /* [rows][128], in index order; NULL: none */
    const bw_recall *recall;
    uint32_t header_checksum;
    uint32_t holds; /* open indexes that use it; index.c's */
} bw_segment;

/* segment_open.c. BW_MISSING when there is no such file, BW_CORRUPT or BW_VERSION when it is not a whole
 * segment. */
int32_t bw_segment_open(const char *folder, const char *name, bw_segment **segment, bw_error *error);
void bw_segment_close(bw_segment *segment);
/* Fills all of a segment but its map from that map, whose header and section table must be right. */
void bw_segment_attach(bw_segment *segment, const char *name);
/* Header, section table and checksums of a file; then what searches follow without looking: row numbers,
 * bins, recall. Together they are the check of bw_segment_open. */
int32_t bw_segment_check(const char *name, const bw_map *map, bw_error *error);
int32_t bw_segment_check_contents(const bw_segment *segment, bw_error *error);

/* segment_validate.c. Deep, O(rows): the checks of the opening again, then everything that was made from the
 * ids and codes against these. BW_NOMEM, or BW_CORRUPT with the first contradiction. */
int32_t bw_segment_validate(const bw_segment *segment, bw_error *error);

/* Where the columns of a block are: dimension d's 256 values start at the result + d * BW_BLOCK_ROWS. Values
 * past the last row are zero. A block is two pages: k-NN and the verification of candidates look at few
 * blocks here and there, and columns longer than a block would make each of them 32 pages. */
static inline const uint8_t *bw_segment_block(const bw_segment *segment, uint32_t block) {
    return segment->codes + (size_t)block * BW_BLOCK_ROWS * BW_DIMS;
}

/* The id of rank `at`, the ranks being those of ascending ids. */
static inline int64_t bw_segment_id(const bw_segment *segment, uint32_t at) {
    return segment->ids[segment->id_rows[at]];
}

/* The first rank in [first, last) with an id >= id, or last. */
static inline uint32_t bw_segment_rank(const bw_segment *segment, uint32_t first, uint32_t last, int64_t id) {
    while (first < last) {
        uint32_t middle = first + (last - first) / 2;
        if (bw_segment_id(segment, middle) < id) {
            first = middle + 1;
        } else {
            last = middle;
        }
    }
    return first;
}

/* The row with this id, dead or alive, or false. */
static inline bool bw_segment_find(const bw_segment *segment, int64_t id, uint32_t *row) {
    if (id < segment->info.min_id || id > segment->info.max_id) {
        return false;
    }
    uint32_t rank = bw_segment_rank(segment, 0, (uint32_t)segment->rows, id);
    if (rank == segment->rows || bw_segment_id(segment, rank) != id) {
        return false;
    }
    *row = segment->id_rows[rank];
    return true;
}

/* Rows that block holds: 256, fewer in the last one. */
static inline uint32_t bw_segment_block_rows(const bw_segment *segment, uint32_t block) {
    uint64_t left = segment->rows - (uint64_t)block * BW_BLOCK_ROWS;
    return left < BW_BLOCK_ROWS ? (uint32_t)left : BW_BLOCK_ROWS;
}

/* segment_order.c. Row numbers in ascending order of their ids; rows with the same id in ascending order of
 * number. */
int32_t bw_sort_ids(const int64_t *ids, uint64_t rows, uint32_t *sorted, bw_error *error);

/* The order of rows in a segment, of `by_id`, the rows in ascending order of their ids. order[i] is the input
 * row that goes to place i; depends on the set of (id, code) alone, not on the number of threads (0: one a
 * core). Needs 72 bytes a row while it works, `order` among them. */
int32_t bw_segment_order(const uint32_t *by_id, const uint8_t *codes, uint64_t rows, uint32_t *order,
                         uint32_t threads, bw_progress progress, void *context, bw_error *error);

#endif
