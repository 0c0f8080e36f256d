/* index_deleted.c - deletion vectors (docs/FORMAT.md): which rows of a segment are dead, one bit each. The
 * segment itself is never written to again. */
#include "index.h"
#include "segment_format.h"

#define REPAIR "Run: boxwood repair"

static const bw_deleted_header *header_of(const bw_map *map) {
    return (const bw_deleted_header *)(const void *)map->data;
}

static const uint64_t *bits_of(const bw_map *map) {
    /* A map begins at a page, and the header has 128 bytes. */
    return (const uint64_t *)(const void *)(map->data + sizeof(bw_deleted_header));
}

static uint32_t checksum_of(const bw_map *map) {
    uint32_t checksum;
    memcpy(&checksum, map->data + map->bytes - sizeof checksum, sizeof checksum);
    return checksum;
}

/* The bits set, or UINT64_MAX where one past the last row is. */
static uint64_t count_bits(const uint64_t *bits, uint64_t rows) {
    uint64_t count = 0;
    for (uint64_t w = 0; w < bw_bitmap_bytes(rows) / 8; w++) {
        uint64_t first = 64 * w, valid = ~(uint64_t)0;
        if (first + 64 > rows) {
            valid = first >= rows ? 0 : ((uint64_t)1 << (rows - first)) - 1;
        }
        if (bits[w] & ~valid) {
            return UINT64_MAX;
        }
        count += (uint64_t)__builtin_popcountll(bits[w]);
    }
    return count;
}

int32_t bw_deleted_check(const char *name, const bw_map *map, bw_error *error) {
    const bw_deleted_header *header = header_of(map);
    if (map->bytes < bw_deleted_bytes(1) ||
        memcmp(header->magic, BW_DELETED_MAGIC, sizeof header->magic) != 0) {
        return bw_fail(error, BW_CORRUPT, "deletion vector %s: this is not a deletion vector. " REPAIR, name);
    }
    if (header->byte_order == BW_OTHER_BYTE_ORDER) {
        return bw_fail(error, BW_VERSION,
                       "deletion vector %s: written on a machine of the other byte order. " REPAIR, name);
    }
    if (header->byte_order != BW_BYTE_ORDER) {
        return bw_fail(error, BW_CORRUPT, "deletion vector %s: the byte order mark is damaged. " REPAIR,
                       name);
    }
    if (header->format != BW_DELETED_FORMAT) {
        return bw_fail(error, BW_VERSION,
                       "deletion vector %s: format %u, but this Boxwood reads format %d. Update Boxwood, or "
                       "run: boxwood repair",
                       name, header->format, BW_DELETED_FORMAT);
    }
    if (header->rows < 1 || header->rows > BW_SEGMENT_ROWS_MAX ||
        map->bytes != bw_deleted_bytes(header->rows)) {
        return bw_fail(error, BW_CORRUPT, "deletion vector %s: %zu bytes are not those of %llu rows. " REPAIR,
                       name, map->bytes, (unsigned long long)header->rows);
    }
    if (bw_crc32c(0, map->data, map->bytes - sizeof(uint32_t)) != checksum_of(map)) {
        return bw_fail(error, BW_CORRUPT,
                       "deletion vector %s: checksum does not match; the file is damaged. " REPAIR, name);
    }
    if (!bw_padded_ok(header->segment, BW_NAME_BYTES) || !bw_name_ok(header->segment) ||
        !bw_all_zero(header->zeros, sizeof header->zeros)) {
        return bw_fail(error, BW_CORRUPT, "deletion vector %s: a field of its header is malformed. " REPAIR,
                       name);
    }
    if (header->deleted < 1 || count_bits(bits_of(map), header->rows) != header->deleted) {
        return bw_fail(error, BW_CORRUPT,
                       "deletion vector %s: its bits are not %llu dead rows of %llu. " REPAIR, name,
                       (unsigned long long)header->deleted, (unsigned long long)header->rows);
    }
    return BW_OK;
}

int32_t bw_deleted_open(const char *folder, const char *name, bw_deleted **result, bw_error *error) {
    bw_deleted *deleted = bw_alloc_zero(1, sizeof *deleted);
    char *path = bw_path_join(folder, name);
    if (deleted == NULL || path == NULL) {
        bw_free(deleted);
        bw_free(path);
        return bw_fail_nomem(error, sizeof *deleted);
    }
    int32_t code = bw_map_open(path, &deleted->map, error);
    bw_free(path);
    if (code != BW_OK) {
        bw_free(deleted);
        return code;
    }
    code = bw_deleted_check(name, &deleted->map, error);
    if (code != BW_OK) {
        bw_deleted_close(deleted);
        return code;
    }
    const bw_deleted_header *header = header_of(&deleted->map);
    memcpy(deleted->name, name, strlen(name) + 1);
    memcpy(deleted->segment, header->segment, sizeof header->segment);
    memcpy(deleted->uuid, header->uuid, sizeof header->uuid);
    deleted->segment_checksum = header->segment_checksum;
    deleted->rows = header->rows;
    deleted->dead = (bw_dead){bits_of(&deleted->map), header->deleted};
    deleted->checksum = checksum_of(&deleted->map);
    *result = deleted;
    return BW_OK;
}

void bw_deleted_close(bw_deleted *deleted) {
    if (deleted != NULL) {
        bw_map_close(&deleted->map);
        bw_free(deleted);
    }
}

int32_t bw_deleted_belongs(const bw_deleted *deleted, const bw_segment *segment, bw_error *error) {
    if (strcmp(deleted->segment, segment->info.name) != 0 || deleted->rows != segment->rows ||
        deleted->segment_checksum != segment->header_checksum ||
        memcmp(deleted->uuid, segment->uuid, sizeof deleted->uuid) != 0) {
        return bw_fail(error, BW_MISMATCH,
                       "deletion vector %s: belongs to another segment than %s (to one called %s). " REPAIR,
                       deleted->name, segment->info.name, deleted->segment);
    }
    return BW_OK;
}

uint64_t bw_deleted_mark(const bw_segment *segment, const int64_t *ids, size_t n, uint64_t *bits,
                         size_t *absent) {
    uint64_t marked = 0;
    *absent = n;
    for (size_t i = 0; i < n; i++) {
        uint32_t row;
        if (!bw_segment_find(segment, ids[i], &row)) {
            *absent = *absent < n ? *absent : i;
            continue;
        }
        uint64_t bit = (uint64_t)1 << row % 64;
        marked += (bits[row / 64] & bit) == 0;
        bits[row / 64] |= bit;
    }
    return marked;
}

/* Completes a file whose bits are set, writes it and frees it. */
static int32_t seal(const char *folder, const char *name, const bw_segment *segment, uint64_t dead,
                    uint8_t *file, bw_error *error) {
    size_t bytes = bw_deleted_bytes(segment->rows);
    bw_deleted_header *header = (bw_deleted_header *)(void *)file;
    memcpy(header->magic, BW_DELETED_MAGIC, sizeof header->magic);
    header->format = BW_DELETED_FORMAT;
    header->byte_order = BW_BYTE_ORDER;
    memcpy(header->uuid, segment->uuid, sizeof header->uuid);
    header->rows = segment->rows;
    header->deleted = dead;
    memcpy(header->segment, segment->info.name, sizeof header->segment);
    header->segment_checksum = segment->header_checksum;
    uint32_t checksum = bw_crc32c(0, file, bytes - sizeof checksum);
    memcpy(file + bytes - sizeof checksum, &checksum, sizeof checksum);
    bw_writer *writer = NULL;
    int32_t code = bw_writer_open(folder, name, &writer, error);
    if (code == BW_OK) {
        code = bw_writer_write(writer, file, bytes, error);
        if (code == BW_OK) {
            code = bw_writer_commit(writer, error);
        } else {
            bw_writer_abandon(writer);
        }
    }
    bw_free(file);
    return code;
}

int32_t bw_index_write_deleted(const bw_index *index, uint32_t segment, const char *folder, const char *name,
                               bw_error *error) {
    if (folder == NULL || name == NULL) {
        return bw_fail(error, BW_INVALID, "a deletion vector needs a folder and a name");
    }
    if (segment >= index->info.segments) {
        return bw_fail(error, BW_INVALID, "segment %u of an index that has %u", segment,
                       index->info.segments);
    }
    const bw_segment *of = index->segments[segment];
    const bw_dead *dead = &index->dead[segment];
    if (dead->rows == 0) {
        return bw_fail(error, BW_INVALID, "segment %s has no dead rows to write down", of->info.name);
    }
    if (!bw_name_ok(name)) {
        return bw_fail(error, BW_INVALID, "'%s' cannot name a file of an index", name);
    }
    size_t bytes = bw_deleted_bytes(of->rows);
    uint8_t *file = bw_alloc_zero(1, bytes);
    if (file == NULL) {
        return bw_fail_nomem(error, bytes);
    }
    memcpy(file + sizeof(bw_deleted_header), dead->bits, bw_bitmap_bytes(of->rows));
    return seal(folder, name, of, dead->rows, file, error);
}

int32_t bw_deleted_save(const char *folder, const char *name, const bw_segment *segment, const int64_t *ids,
                        size_t n, bw_error *error) {
    size_t bytes = bw_deleted_bytes(segment->rows);
    uint8_t *file = bw_alloc_zero(1, bytes);
    if (file == NULL) {
        return bw_fail_nomem(error, bytes);
    }
    uint64_t *bits = (uint64_t *)(void *)(file + sizeof(bw_deleted_header));
    size_t absent;
    uint64_t dead = bw_deleted_mark(segment, ids, n, bits, &absent);
    if (absent < n) {
        bw_free(file);
        return bw_fail(error, BW_INVALID, "id %lld is not in segment %s: it has no row there to delete",
                       (long long)ids[absent], segment->info.name);
    }
    return seal(folder, name, segment, dead, file, error);
}
