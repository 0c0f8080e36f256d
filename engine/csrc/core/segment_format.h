/* segment_format.h - the bytes of segments, deletion vectors and manifests, docs/FORMAT.md, as structures. */
#ifndef BW_SEGMENT_FORMAT_H
#define BW_SEGMENT_FORMAT_H

#include "base.h"

#include <string.h>

#define BW_SEGMENT_MAGIC "BXWSEGM1"
#define BW_MANIFEST_MAGIC "BXWMANI1"
#define BW_MANIFEST_NAME "MANIFEST"
#define BW_MANIFEST_FORMAT 3
#define BW_DELETED_MAGIC "BXWDELE1"
#define BW_DELETED_FORMAT 1
#define BW_BYTE_ORDER UINT32_C(0x01020304)
#define BW_OTHER_BYTE_ORDER UINT32_C(0x04030201)
#define BW_HEADER_BYTES 4096
#define BW_SECTION_ALIGN 4096
#define BW_SECTIONS_MAX 32
#define BW_SEGMENT_ROWS_MAX ((uint64_t)INT32_MAX)

#define BW_PLANES 3                        /* bits of a value's bin */
#define BW_BINS (1 << BW_PLANES)           /* bins a dimension */
#define BW_PLANE_BYTES (BW_BLOCK_ROWS / 8) /* one plane of one dimension of one block */
#define BW_BLOCK_PLANES_BYTES (BW_DIMS * BW_PLANES * BW_PLANE_BYTES)
#define BW_GRANULE_ROWS 64 /* rows a granule: the unit that k-NN visits */
#define BW_TILE_GRANULES (BW_TILE_ROWS / BW_GRANULE_ROWS)
/* Rows of a segment's sample, where the segment has more; the rows of a smaller one are their own sample. */
#define BW_SAMPLE_ROWS 32768
#define BW_SAMPLE_BLOCKS (BW_SAMPLE_ROWS / BW_BLOCK_ROWS)

enum {
    BW_SECTION_IDS = 1,
    BW_SECTION_ID_ROWS,
    BW_SECTION_CODES,
    BW_SECTION_ZONES,
    BW_SECTION_PLANES,
    BW_SECTION_BINS,
    BW_SECTION_CENTROIDS,
    BW_SECTION_HISTOGRAMS,
    BW_SECTION_SAMPLE,
    BW_SECTION_RECALL,
    BW_SECTION_FINE,
    BW_SECTION_KINDS
};

/* What approximate k-NN must spend for a recall, measured on the segment itself when it was built: FORMAT.md,
 * "Recall". */
#define BW_RECALL_KS 6
#define BW_RECALL_LEVELS 8
typedef struct bw_recall {
    uint32_t effort[BW_RECALL_KS][BW_RECALL_LEVELS];
} bw_recall;

typedef struct bw_section {
    uint32_t kind;
    uint32_t checksum;
    uint64_t offset;
    uint64_t bytes;
    uint64_t zero;
} bw_section;

typedef struct bw_segment_header {
    char magic[8];
    uint32_t format;
    uint32_t byte_order;
    uint32_t header_bytes;
    uint32_t dims;
    uint32_t block_rows;
    uint32_t tile_rows;
    uint64_t rows;
    uint64_t bytes;
    uint64_t generation;
    uint8_t uuid[16];
    bw_fingerprints fingerprints;
    int64_t min_id;
    int64_t max_id;
    uint32_t sections;
    uint32_t zero;
    bw_section table[BW_SECTIONS_MAX];
    uint8_t zeros[BW_HEADER_BYTES - 4 - 224 - 32 * BW_SECTIONS_MAX];
    uint32_t checksum;
} bw_segment_header;

_Static_assert(sizeof(bw_section) == 32 && sizeof(bw_fingerprints) == 128, "as in FORMAT.md");
_Static_assert(sizeof(bw_segment_header) == BW_HEADER_BYTES, "as in FORMAT.md");
_Static_assert(offsetof(bw_segment_header, uuid) == 56 && offsetof(bw_segment_header, min_id) == 200,
               "as in FORMAT.md");
_Static_assert(offsetof(bw_segment_header, table) == 224, "as in FORMAT.md");
_Static_assert(offsetof(bw_segment_header, checksum) == 4092, "as in FORMAT.md");

typedef struct bw_manifest_header {
    char magic[8];
    uint32_t format;
    uint32_t byte_order;
    uint8_t uuid[16];
    uint64_t generation;
    uint32_t segments;
    uint32_t zero;
    bw_fingerprints fingerprints;
} bw_manifest_header;

typedef struct bw_manifest_entry {
    char name[BW_NAME_BYTES];
    uint64_t rows;
    uint64_t bytes;
    uint64_t generation;
    uint64_t deleted; /* dead rows */
    uint32_t checksum;
    uint32_t deleted_checksum;
    char deleted_name[BW_NAME_BYTES]; /* empty, and the two numbers zero: no deletion vector */
    uint8_t zeros[8];
} bw_manifest_entry;

_Static_assert(sizeof(bw_manifest_header) == 176 && sizeof(bw_manifest_entry) == 144, "as in FORMAT.md");

/* The bitmap follows, 4 words a block, and the checksum of all before it. */
typedef struct bw_deleted_header {
    char magic[8];
    uint32_t format;
    uint32_t byte_order;
    uint8_t uuid[16];
    uint64_t rows; /* of the segment */
    uint64_t deleted;
    char segment[BW_NAME_BYTES];
    uint32_t segment_checksum;
    uint8_t zeros[28];
} bw_deleted_header;

_Static_assert(sizeof(bw_deleted_header) == 128, "as in FORMAT.md");

static inline size_t bw_manifest_bytes(uint64_t segments) {
    return sizeof(bw_manifest_header) + segments * sizeof(bw_manifest_entry) + sizeof(uint32_t);
}

static inline uint64_t bw_round_up(uint64_t number, uint64_t multiple) {
    return (number + multiple - 1) / multiple * multiple;
}

/* A bit for each row of a segment, in whole blocks. */
static inline size_t bw_bitmap_bytes(uint64_t rows) {
    return bw_round_up(rows, BW_BLOCK_ROWS) / 8;
}

static inline size_t bw_deleted_bytes(uint64_t rows) {
    return sizeof(bw_deleted_header) + bw_bitmap_bytes(rows) + sizeof(uint32_t);
}

/* Sizes of the sections of a segment; rows <= BW_SEGMENT_ROWS_MAX, so nothing overflows. */
static inline uint64_t bw_section_bytes(uint32_t kind, uint64_t rows) {
    uint64_t blocks = bw_round_up(rows, BW_BLOCK_ROWS) / BW_BLOCK_ROWS;
    switch (kind) {
    case BW_SECTION_IDS:
        return rows * sizeof(int64_t);
    case BW_SECTION_ID_ROWS:
        return rows * sizeof(uint32_t);
    case BW_SECTION_CODES:
        return blocks * BW_BLOCK_ROWS * BW_DIMS;
    case BW_SECTION_ZONES:
        return bw_round_up(blocks, 64) * 2 * BW_DIMS;
    case BW_SECTION_PLANES:
        return blocks * BW_BLOCK_PLANES_BYTES;
    case BW_SECTION_BINS:
        return (uint64_t)BW_DIMS * BW_BINS;
    case BW_SECTION_CENTROIDS: {
        uint64_t tiles = bw_round_up(rows, BW_TILE_ROWS) / BW_TILE_ROWS;
        return BW_DIMS * (bw_round_up(tiles, 64) + tiles * BW_TILE_GRANULES);
    }
    case BW_SECTION_HISTOGRAMS:
        return (uint64_t)BW_DIMS * 256 * sizeof(uint32_t);
    case BW_SECTION_SAMPLE:
        return (uint64_t)BW_SAMPLE_ROWS * BW_DIMS;
    case BW_SECTION_FINE:
        return rows * BW_FINE_DIMS;
    default:
        return sizeof(bw_recall);
    }
}

/* Whether a segment has a section of this kind. */
static inline bool bw_section_wanted(uint32_t kind, uint64_t rows, const bw_fingerprints *fingerprints) {
    return kind == BW_SECTION_SAMPLE ? rows > BW_SAMPLE_ROWS
           : kind == BW_SECTION_FINE ? fingerprints->fine[0] != '\0'
                                     : true;
}

static inline bool bw_all_zero(const void *memory, size_t bytes) {
    const uint8_t *at = memory;
    uint8_t any = 0;
    for (size_t i = 0; i < bytes; i++) {
        any |= at[i];
    }
    return any == 0;
}

/* A text in a field of fixed size: ended by a zero, and zeros to the end of the field. */
static inline bool bw_padded_ok(const char *text, size_t field) {
    size_t length = 0;
    while (length < field && text[length] != '\0') {
        length++;
    }
    return length < field && bw_all_zero(text + length, field - length);
}

static inline bool bw_fingerprints_ok(const bw_fingerprints *fingerprints) {
    return bw_padded_ok(fingerprints->encoder, sizeof fingerprints->encoder) &&
           bw_padded_ok(fingerprints->head, sizeof fingerprints->head) &&
           bw_padded_ok(fingerprints->quantizer, sizeof fingerprints->quantizer) &&
           bw_padded_ok(fingerprints->fine, sizeof fingerprints->fine);
}

/* Callers' texts end at their zero; in a file the rest of the field is zeros. False when a text has no end.
 */
static inline bool bw_fingerprints_pad(bw_fingerprints *to, const bw_fingerprints *from) {
    const char *texts[4] = {from->encoder, from->head, from->quantizer, from->fine};
    char *fields[4] = {to->encoder, to->head, to->quantizer, to->fine};
    for (int i = 0; i < 4; i++) {
        const char *end = memchr(texts[i], '\0', BW_FINGERPRINT_BYTES);
        if (end == NULL) {
            return false;
        }
        memset(fields[i], 0, BW_FINGERPRINT_BYTES);
        memcpy(fields[i], texts[i], (size_t)(end - texts[i]));
    }
    return true;
}

#endif
