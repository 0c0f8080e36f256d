/* segment_build.c - writing segment files. Tile by tile: beside the caller's rows it needs the memory of the
 * order. */
#include "kernels.h"
#include "segment.h"
#include "segment_format.h"

#define CHUNK_ROWS 16384
#define TILE_BYTES ((size_t)BW_TILE_ROWS * BW_DIMS)
#define ORDER_SHARE 0.7 /* of the time, for progress */

typedef struct build {
    const bw_segment_spec *spec;
    bw_writer *writer;
    bw_segment_header header;
    uint32_t *order;   /* place -> input row */
    uint32_t *id_rows; /* place by rank of id */
    uint8_t *buffer;   /* TILE_BYTES, which is CHUNK_ROWS ids too */
    uint8_t *zones;    /* the section */
    size_t zone_bytes;
    bw_progress progress;
    void *context;
    bw_error *error;
} build;

static int32_t order_progress(void *context, double done) {
    build *b = context;
    return b->progress == NULL ? 0 : b->progress(b->context, ORDER_SHARE * done);
}

static int32_t report(build *b, uint64_t rows_written) {
    double done = ORDER_SHARE + (1 - ORDER_SHARE) * (double)rows_written / (double)b->spec->rows;
    if (b->progress != NULL && b->progress(b->context, done) != 0) {
        return bw_fail(b->error, BW_CANCELLED, "cancelled while a segment was written");
    }
    return BW_OK;
}

/* Zeros up to a multiple of BW_SECTION_ALIGN, then a new section begins. */
static int32_t begin_section(build *b, uint32_t kind) {
    static const uint8_t zeros[BW_SECTION_ALIGN];
    uint64_t offset = bw_writer_offset(b->writer), start = bw_round_up(offset, BW_SECTION_ALIGN);
    int32_t code = bw_writer_write(b->writer, zeros, start - offset, b->error);
    b->header.table[b->header.sections++] =
        (bw_section){.kind = kind, .offset = start, .bytes = bw_section_bytes(kind, b->spec->rows)};
    return code;
}

static int32_t write_part(build *b, const void *data, size_t bytes) {
    bw_section *section = &b->header.table[b->header.sections - 1];
    section->checksum = bw_kernels_get()->crc32c(section->checksum, data, bytes);
    return bw_writer_write(b->writer, data, bytes, b->error);
}

static int32_t write_ids(build *b) {
    int64_t *ids = (int64_t *)(void *)b->buffer;
    int32_t code = begin_section(b, BW_SECTION_IDS);
    for (uint64_t first = 0; first < b->spec->rows && code == BW_OK; first += CHUNK_ROWS) {
        uint64_t left = b->spec->rows - first, n = left < CHUNK_ROWS ? left : CHUNK_ROWS;
        for (uint64_t i = 0; i < n; i++) {
            ids[i] = b->spec->ids[b->order[first + i]];
        }
        code = write_part(b, ids, n * sizeof *ids);
    }
    return code;
}

/* One tile: rows gathered in groups of 64, so that the columns, which lie a page apart, are written in whole
 * cache lines. */
static void fill_tile(build *b, uint64_t first, uint32_t rows, size_t width) {
    uint8_t group[BW_DIMS][64];
    for (uint32_t start = 0; start < width; start += 64) {
        for (uint32_t i = 0; i < 64; i++) {
            if (start + i < rows) {
                const uint8_t *code = b->spec->codes + (size_t)b->order[first + start + i] * BW_DIMS;
                for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
                    group[dim][i] = code[dim];
                }
            } else {
                for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
                    group[dim][i] = 0;
                }
            }
        }
        for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
            memcpy(b->buffer + dim * width + start, group[dim], sizeof group[dim]);
        }
    }
}

static void fill_zones(build *b, uint64_t first, uint32_t rows, size_t width) {
    size_t stride = b->zone_bytes / 2 / BW_DIMS;
    uint8_t *minima = b->zones, *maxima = b->zones + b->zone_bytes / 2;
    for (uint32_t start = 0; start < rows; start += BW_BLOCK_ROWS) {
        uint32_t n = rows - start < BW_BLOCK_ROWS ? rows - start : BW_BLOCK_ROWS;
        size_t block = (first + start) / BW_BLOCK_ROWS;
        for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
            const uint8_t *column = b->buffer + dim * width + start;
            uint8_t least = 255, most = 0;
            for (uint32_t i = 0; i < n; i++) {
                least = column[i] < least ? column[i] : least;
                most = column[i] > most ? column[i] : most;
            }
            minima[dim * stride + block] = least;
            maxima[dim * stride + block] = most;
        }
    }
}

static int32_t write_codes(build *b) {
    int32_t code = begin_section(b, BW_SECTION_CODES);
    for (uint64_t first = 0; first < b->spec->rows && code == BW_OK; first += BW_TILE_ROWS) {
        uint64_t left = b->spec->rows - first;
        uint32_t rows = left < BW_TILE_ROWS ? (uint32_t)left : BW_TILE_ROWS;
        size_t width = bw_round_up(rows, BW_BLOCK_ROWS);
        fill_tile(b, first, rows, width);
        fill_zones(b, first, rows, width);
        code = write_part(b, b->buffer, width * BW_DIMS);
        if (code == BW_OK) {
            code = report(b, first + rows);
        }
    }
    return code;
}

static int32_t write_whole(build *b, uint32_t kind, const void *data, size_t bytes) {
    int32_t code = begin_section(b, kind);
    return code == BW_OK ? write_part(b, data, bytes) : code;
}

/* Ids must be >= 0 and unique; `sorted` are the rows in ascending order of their ids. */
static int32_t check_ids(const bw_segment_spec *spec, const uint32_t *sorted, bw_error *error) {
    for (uint64_t i = 0; i < spec->rows; i++) {
        int64_t id = spec->ids[sorted[i]];
        if (i > 0 && spec->ids[sorted[i - 1]] == id) {
            return bw_fail(error, BW_INVALID, "id %lld is given twice; ids are unique in a collection",
                           (long long)id);
        }
    }
    return BW_OK;
}

static int32_t check_spec(const bw_segment_spec *spec, bw_fingerprints *fingerprints, bw_error *error) {
    if (spec == NULL || spec->rows < 1 || spec->rows > BW_SEGMENT_ROWS_MAX) {
        return bw_fail(error, BW_INVALID, "a segment holds 1 to %llu rows, not %llu",
                       (unsigned long long)BW_SEGMENT_ROWS_MAX,
                       spec == NULL ? 0ULL : (unsigned long long)spec->rows);
    }
    if (spec->ids == NULL || spec->codes == NULL) {
        return bw_fail(error, BW_INVALID, "a segment needs both ids and codes");
    }
    if (!bw_fingerprints_pad(fingerprints, &spec->fingerprints)) {
        return bw_fail(error, BW_INVALID, "a fingerprint is longer than %d bytes", BW_FINGERPRINT_BYTES - 1);
    }
    for (uint64_t i = 0; i < spec->rows; i++) {
        if (spec->ids[i] < 0) {
            return bw_fail(error, BW_INVALID, "id %lld is negative; ids are 0 or more",
                           (long long)spec->ids[i]);
        }
    }
    return BW_OK;
}

/* Sorts the rows and turns ranks of ids into places. */
static int32_t put_in_order(build *b) {
    uint64_t rows = b->spec->rows;
    int32_t code = bw_sort_ids(b->spec->ids, rows, b->id_rows, b->error);
    if (code == BW_OK) {
        code = check_ids(b->spec, b->id_rows, b->error);
    }
    if (code != BW_OK) {
        return code;
    }
    b->header.min_id = b->spec->ids[b->id_rows[0]];
    b->header.max_id = b->spec->ids[b->id_rows[rows - 1]];
    code = bw_segment_order(b->spec->ids, b->spec->codes, rows, b->order, order_progress, b, b->error);
    if (code != BW_OK) {
        return code;
    }
    uint32_t *places = bw_alloc_array(rows, sizeof *places);
    if (places == NULL) {
        return bw_fail_nomem(b->error, rows * sizeof *places);
    }
    for (uint64_t place = 0; place < rows; place++) {
        places[b->order[place]] = (uint32_t)place;
    }
    for (uint64_t rank = 0; rank < rows; rank++) {
        b->id_rows[rank] = places[b->id_rows[rank]];
    }
    bw_free(places);
    return BW_OK;
}

static int32_t write_file(build *b) {
    bw_segment_header *header = &b->header;
    /* The header comes last: what it says about the sections is known only then. */
    int32_t code = bw_writer_write(b->writer, header, sizeof *header, b->error);
    if (code == BW_OK) {
        code = write_ids(b);
    }
    if (code == BW_OK) {
        code = write_whole(b, BW_SECTION_ID_ROWS, b->id_rows, b->spec->rows * sizeof *b->id_rows);
    }
    if (code == BW_OK) {
        code = write_codes(b);
    }
    if (code == BW_OK) {
        code = write_whole(b, BW_SECTION_ZONES, b->zones, b->zone_bytes);
    }
    if (code == BW_OK) {
        header->bytes = bw_writer_offset(b->writer);
        header->checksum = bw_crc32c(0, header, offsetof(bw_segment_header, checksum));
        code = bw_writer_rewrite(b->writer, 0, header, sizeof *header, b->error);
    }
    return code;
}

int32_t bw_segment_write(const char *folder, const char *name, const bw_segment_spec *spec,
                         bw_progress progress, void *context, bw_error *error) {
    build b = {.spec = spec, .progress = progress, .context = context, .error = error};
    int32_t code = check_spec(spec, &b.header.fingerprints, error);
    if (code == BW_OK && (folder == NULL || name == NULL)) {
        code = bw_fail(error, BW_INVALID, "a segment needs a folder and a name");
    }
    if (code == BW_OK) {
        /* First, so that a folder that cannot be written to shows before the long work. */
        code = bw_writer_open(folder, name, &b.writer, error);
    }
    if (code != BW_OK) {
        return code;
    }
    bw_segment_header *header = &b.header;
    memcpy(header->magic, BW_SEGMENT_MAGIC, sizeof header->magic);
    header->format = BW_FORMAT;
    header->byte_order = BW_BYTE_ORDER;
    header->header_bytes = BW_HEADER_BYTES;
    header->dims = BW_DIMS;
    header->block_rows = BW_BLOCK_ROWS;
    header->tile_rows = BW_TILE_ROWS;
    header->rows = spec->rows;
    header->generation = spec->generation;
    memcpy(header->uuid, spec->uuid, sizeof header->uuid);

    b.zone_bytes = bw_section_bytes(BW_SECTION_ZONES, spec->rows);
    b.order = bw_alloc_array(spec->rows, sizeof *b.order);
    b.id_rows = bw_alloc_array(spec->rows, sizeof *b.id_rows);
    b.zones = bw_alloc(b.zone_bytes);
    b.buffer = bw_alloc_aligned(TILE_BYTES);
    if (b.order == NULL || b.id_rows == NULL || b.zones == NULL || b.buffer == NULL) {
        code = bw_fail_nomem(error, 8 * spec->rows + b.zone_bytes + TILE_BYTES);
    } else {
        /* What no block overwrites overlaps no range. */
        memset(b.zones, 255, b.zone_bytes / 2);
        memset(b.zones + b.zone_bytes / 2, 0, b.zone_bytes / 2);
        code = put_in_order(&b);
        if (code == BW_OK) {
            code = write_file(&b);
        }
    }
    bw_free(b.order);
    bw_free(b.id_rows);
    bw_free(b.zones);
    bw_free(b.buffer);
    if (code == BW_OK) {
        return bw_writer_commit(b.writer, error);
    }
    bw_writer_abandon(b.writer);
    return code;
}
