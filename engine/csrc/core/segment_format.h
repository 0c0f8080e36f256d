/* segment_format.h - the bytes of segments and manifests, docs/FORMAT.md, as structures. */
#ifndef BW_SEGMENT_FORMAT_H
#define BW_SEGMENT_FORMAT_H

#include "base.h"

#include <string.h>

#define BW_SEGMENT_MAGIC "BXWSEGM1"
#define BW_MANIFEST_MAGIC "BXWMANI1"
#define BW_MANIFEST_NAME "MANIFEST"
#define BW_BYTE_ORDER UINT32_C(0x01020304)
#define BW_OTHER_BYTE_ORDER UINT32_C(0x04030201)
#define BW_HEADER_BYTES 4096
#define BW_SECTION_ALIGN 4096
#define BW_SECTIONS_MAX 32
#define BW_SEGMENT_ROWS_MAX ((uint64_t)INT32_MAX)

enum { BW_SECTION_IDS = 1, BW_SECTION_ID_ROWS, BW_SECTION_CODES, BW_SECTION_ZONES, BW_SECTION_KINDS };

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
    uint8_t zeros[BW_HEADER_BYTES - 4 - 192 - 32 * BW_SECTIONS_MAX];
    uint32_t checksum;
} bw_segment_header;

_Static_assert(sizeof(bw_section) == 32 && sizeof(bw_fingerprints) == 96, "as in FORMAT.md");
_Static_assert(sizeof(bw_segment_header) == BW_HEADER_BYTES, "as in FORMAT.md");
_Static_assert(offsetof(bw_segment_header, uuid) == 56 && offsetof(bw_segment_header, min_id) == 168,
               "as in FORMAT.md");
_Static_assert(offsetof(bw_segment_header, table) == 192, "as in FORMAT.md");
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
    uint32_t checksum;
    uint8_t zeros[20];
} bw_manifest_entry;

_Static_assert(sizeof(bw_manifest_header) == 144 && sizeof(bw_manifest_entry) == 96, "as in FORMAT.md");

static inline size_t bw_manifest_bytes(uint64_t segments) {
    return sizeof(bw_manifest_header) + segments * sizeof(bw_manifest_entry) + sizeof(uint32_t);
}

static inline uint64_t bw_round_up(uint64_t number, uint64_t multiple) {
    return (number + multiple - 1) / multiple * multiple;
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
    default:
        return bw_round_up(blocks, 64) * 2 * BW_DIMS;
    }
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
           bw_padded_ok(fingerprints->quantizer, sizeof fingerprints->quantizer);
}

/* Callers' texts end at their zero; in a file the rest of the field is zeros. False when a text has no end.
 */
static inline bool bw_fingerprints_pad(bw_fingerprints *to, const bw_fingerprints *from) {
    const char *texts[3] = {from->encoder, from->head, from->quantizer};
    char *fields[3] = {to->encoder, to->head, to->quantizer};
    for (int i = 0; i < 3; i++) {
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
