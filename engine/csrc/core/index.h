/* index.h - the segments that a manifest lists, as one, and which of their rows are dead. */
#ifndef BW_INDEX_H
#define BW_INDEX_H

#include "segment.h"

/* The dead rows of a segment as bits: 4 words a block, one a granule; zero past the last row. */
typedef struct bw_dead {
    const uint64_t *bits; /* NULL: all rows are alive */
    uint64_t rows;        /* bits set */
} bw_dead;

struct bw_index {
    bw_index_info info;
    bw_segment **segments; /* info.segments entries */
    bw_dead *dead;         /* as many */
    uint64_t *first_rows;  /* info.segments + 1 entries: rows, dead ones too, before each segment */
    uint64_t *first_blocks;
    /* What the process-wide table of open indexes keeps, and what bw_index_without keeps (NULL: the index is
     * as its manifest lists it), are private to index.c. */
    struct bw_index_entry *entry;
    struct bw_index_view *view;
};

/* Another hold on the same index; released by bw_index_close. */
const bw_index *bw_index_retain(const bw_index *index);

/* The live row with this id, or false. */
bool bw_index_find(const bw_index *index, int64_t id, uint32_t *segment, uint32_t *row);

/* One row's code, gathered from its columns. */
void bw_index_gather(const bw_index *index, uint32_t segment, uint32_t row, uint8_t code[BW_DIMS]);

static inline bool bw_is_dead(const bw_dead *dead, uint64_t row) {
    return dead->bits != NULL && (dead->bits[row / 64] >> row % 64 & 1) != 0;
}

/* Leaves of the rows of a block, 4 words, those that are alive. */
static inline void bw_keep_live(const bw_dead *dead, uint32_t block, uint64_t rows[4]) {
    for (uint32_t w = 0; dead->bits != NULL && w < 4; w++) {
        rows[w] &= ~dead->bits[(size_t)block * 4 + w];
    }
}

/* ---- deletion vectors: index_deleted.c ---- */

typedef struct bw_deleted {
    bw_map map;
    char name[BW_NAME_BYTES];
    uint64_t rows;               /* of its segment */
    bw_dead dead;                /* its bits are the map's */
    uint32_t checksum;           /* of the file */
    char segment[BW_NAME_BYTES]; /* what it belongs to: */
    uint32_t segment_checksum;
    uint8_t uuid[16];
} bw_deleted;

/* Everything about the file itself is checked. BW_MISSING when there is none, BW_CORRUPT or BW_VERSION when
 * it is not a whole deletion vector. */
int32_t bw_deleted_open(const char *folder, const char *name, bw_deleted **deleted, bw_error *error);
void bw_deleted_close(bw_deleted *deleted);
/* The check of the opening, on a map. */
int32_t bw_deleted_check(const char *name, const bw_map *map, bw_error *error);
/* Whether it is this segment's: BW_MISMATCH. */
int32_t bw_deleted_belongs(const bw_deleted *deleted, const bw_segment *segment, bw_error *error);
/* Sets the bits of the rows with these ids; returns how many were not yet set. *absent: the place of the
 * first id that the segment lacks, or n. */
uint64_t bw_deleted_mark(const bw_segment *segment, const int64_t *ids, size_t n, uint64_t *bits,
                         size_t *absent);
/* bw_deleted_write, with the segment open. */
int32_t bw_deleted_save(const char *folder, const char *name, const bw_segment *segment, const int64_t *ids,
                        size_t n, bw_error *error);

#endif
