/* index.h - the segments that a manifest lists, as one. */
#ifndef BW_INDEX_H
#define BW_INDEX_H

#include "segment.h"

struct bw_index {
    bw_index_info info;
    bw_segment **segments; /* info.segments entries */
    uint64_t *first_rows;  /* info.segments + 1 entries: rows before each segment */
    uint64_t *first_blocks;
    /* what the process-wide table of open indexes keeps is private to index.c */
    struct bw_index_entry *entry;
};

/* Another hold on the same index; released by bw_index_close. */
const bw_index *bw_index_retain(const bw_index *index);

/* The row with this id, or false. */
bool bw_index_find(const bw_index *index, int64_t id, uint32_t *segment, uint32_t *row);

/* One row's code, gathered from its columns. */
void bw_index_gather(const bw_index *index, uint32_t segment, uint32_t row, uint8_t code[BW_DIMS]);

#endif
