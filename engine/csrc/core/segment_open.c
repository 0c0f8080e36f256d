/* segment_open.c - opening and checking segment files. Everything that a file says is checked before it is
 * used. */
#include "kernels.h"
#include "segment.h"
#include "segment_format.h"

#define REPAIR "Run: boxwood repair"

static const char *const section_names[BW_SECTION_KINDS] = {"", "ids", "id rows", "codes", "zones"};

static int32_t check_header(const char *name, const bw_map *map, const bw_segment_header *header,
                            bw_error *error) {
    if (memcmp(header->magic, BW_SEGMENT_MAGIC, sizeof header->magic) != 0) {
        return bw_fail(error, BW_CORRUPT, "segment %s: header: this is not a segment file. " REPAIR, name);
    }
    if (header->byte_order == BW_OTHER_BYTE_ORDER) {
        return bw_fail(error, BW_VERSION,
                       "segment %s: header: written on a machine of the other byte order. " REPAIR, name);
    }
    if (header->byte_order != BW_BYTE_ORDER) {
        return bw_fail(error, BW_CORRUPT, "segment %s: header: the byte order mark is damaged. " REPAIR,
                       name);
    }
    if (header->format != BW_FORMAT) {
        return bw_fail(
            error, BW_VERSION,
            "segment %s: header: format %u, but this Boxwood reads format %d. Update Boxwood, or run: "
            "boxwood repair",
            name, header->format, BW_FORMAT);
    }
    if (bw_crc32c(0, header, offsetof(bw_segment_header, checksum)) != header->checksum) {
        return bw_fail(error, BW_CORRUPT,
                       "segment %s: header: checksum does not match; the file is damaged. " REPAIR, name);
    }
    if (header->header_bytes != BW_HEADER_BYTES || header->dims != BW_DIMS ||
        header->block_rows != BW_BLOCK_ROWS || header->tile_rows != BW_TILE_ROWS) {
        return bw_fail(error, BW_CORRUPT,
                       "segment %s: header: dimensions, block or tile are not those of format 1. " REPAIR,
                       name);
    }
    if (header->rows < 1 || header->rows > BW_SEGMENT_ROWS_MAX) {
        return bw_fail(error, BW_CORRUPT, "segment %s: header: %llu rows are out of range. " REPAIR, name,
                       (unsigned long long)header->rows);
    }
    if (header->bytes != map->bytes) {
        return bw_fail(
            error, BW_CORRUPT,
            "segment %s: the file has %zu bytes, its header says %llu; it was cut or added to. " REPAIR, name,
            map->bytes, (unsigned long long)header->bytes);
    }
    if (!bw_fingerprints_ok(&header->fingerprints)) {
        return bw_fail(error, BW_CORRUPT, "segment %s: header: a fingerprint is not a padded text. " REPAIR,
                       name);
    }
    if (header->min_id < 0 || header->min_id > header->max_id) {
        return bw_fail(error, BW_CORRUPT,
                       "segment %s: header: the smallest and largest id contradict. " REPAIR, name);
    }
    if (header->sections > BW_SECTIONS_MAX || header->zero != 0 ||
        !bw_all_zero(&header->table[header->sections], offsetof(bw_segment_header, checksum) -
                                                           offsetof(bw_segment_header, table) -
                                                           header->sections * sizeof(bw_section))) {
        return bw_fail(error, BW_CORRUPT,
                       "segment %s: header: too many sections, or bytes that must be zero are not. " REPAIR,
                       name);
    }
    return BW_OK;
}

/* Places of the sections: known kinds, once each, of the right size, one after the other inside the file. */
static int32_t check_table(const char *name, const bw_map *map, const bw_segment_header *header,
                           const bw_section *sections[BW_SECTION_KINDS], bw_error *error) {
    uint64_t end = BW_HEADER_BYTES;
    for (uint32_t i = 0; i < header->sections; i++) {
        const bw_section *section = &header->table[i];
        if (section->kind < BW_SECTION_IDS || section->kind >= BW_SECTION_KINDS) {
            return bw_fail(error, BW_CORRUPT,
                           "segment %s: section table: kind %u is unknown to format 1. " REPAIR, name,
                           section->kind);
        }
        const char *what = section_names[section->kind];
        if (sections[section->kind] != NULL) {
            return bw_fail(error, BW_CORRUPT, "segment %s: section %s: listed twice. " REPAIR, name, what);
        }
        sections[section->kind] = section;
        if (section->bytes != bw_section_bytes(section->kind, header->rows) || section->zero != 0) {
            return bw_fail(error, BW_CORRUPT,
                           "segment %s: section %s: its size is not that of %llu rows. " REPAIR, name, what,
                           (unsigned long long)header->rows);
        }
        if (section->offset % BW_SECTION_ALIGN != 0 || section->offset < end ||
            section->offset > map->bytes || section->bytes > map->bytes - section->offset) {
            return bw_fail(error, BW_CORRUPT,
                           "segment %s: section %s: overlaps its neighbour or lies outside the file. " REPAIR,
                           name, what);
        }
        if (!bw_all_zero(map->data + end, section->offset - end)) {
            return bw_fail(error, BW_CORRUPT, "segment %s: the gap before section %s is not zeros. " REPAIR,
                           name, what);
        }
        end = section->offset + section->bytes;
    }
    for (uint32_t kind = BW_SECTION_IDS; kind < BW_SECTION_KINDS; kind++) {
        if (sections[kind] == NULL) {
            return bw_fail(error, BW_CORRUPT, "segment %s: section %s: missing. " REPAIR, name,
                           section_names[kind]);
        }
    }
    if (end != map->bytes) {
        return bw_fail(error, BW_CORRUPT, "segment %s: there are bytes after the last section. " REPAIR,
                       name);
    }
    return BW_OK;
}

static int32_t check_sums(const char *name, const bw_map *map, const bw_segment_header *header,
                          bw_error *error) {
    const bw_kernels *kernels = bw_kernels_get();
    for (uint32_t i = 0; i < header->sections; i++) {
        const bw_section *section = &header->table[i];
        if (kernels->crc32c(0, map->data + section->offset, section->bytes) != section->checksum) {
            return bw_fail(error, BW_CORRUPT,
                           "segment %s: section %s: checksum does not match; the file is damaged. " REPAIR,
                           name, section_names[section->kind]);
        }
    }
    return BW_OK;
}

/* What is followed without looking later: row numbers, and the ids at both ends. */
static int32_t check_id_rows(const bw_segment *segment, bw_error *error) {
    uint32_t largest = 0;
    for (uint64_t i = 0; i < segment->rows; i++) {
        largest = segment->id_rows[i] > largest ? segment->id_rows[i] : largest;
    }
    if (largest >= segment->rows) {
        return bw_fail(error, BW_CORRUPT, "segment %s: section id rows: row %u of %llu. " REPAIR,
                       segment->info.name, largest, (unsigned long long)segment->rows);
    }
    if (segment->ids[segment->id_rows[0]] != segment->info.min_id ||
        segment->ids[segment->id_rows[segment->rows - 1]] != segment->info.max_id) {
        return bw_fail(error, BW_CORRUPT,
                       "segment %s: section id rows: the smallest or largest id is not the header's. " REPAIR,
                       segment->info.name);
    }
    return BW_OK;
}

int32_t bw_segment_open(const char *folder, const char *name, bw_segment **result, bw_error *error) {
    if (!bw_name_ok(name)) {
        return bw_fail(error, BW_INVALID,
                       "a segment's name is 1 to %d letters, digits, '.', '_' or '-' and does not "
                       "begin with a dot",
                       BW_NAME_BYTES - 1);
    }
    bw_segment *segment = bw_alloc_zero(1, sizeof *segment);
    char *path = bw_path_join(folder, name);
    if (segment == NULL || path == NULL) {
        bw_free(segment);
        bw_free(path);
        return bw_fail_nomem(error, sizeof *segment);
    }
    int32_t code = bw_map_open(path, &segment->map, error);
    bw_free(path);
    if (code != BW_OK) {
        bw_free(segment);
        return code;
    }
    const bw_map *map = &segment->map;
    if (map->bytes < BW_HEADER_BYTES) {
        code =
            bw_fail(error, BW_CORRUPT, "segment %s: the file has %zu bytes, fewer than its header. " REPAIR,
                    name, map->bytes);
        bw_segment_close(segment);
        return code;
    }
    /* Maps begin at a page, so that the header and every section are aligned. */
    const bw_segment_header *header = (const bw_segment_header *)(const void *)map->data;
    const bw_section *sections[BW_SECTION_KINDS] = {NULL};
    code = check_header(name, map, header, error);
    if (code == BW_OK) {
        code = check_table(name, map, header, sections, error);
    }
    if (code == BW_OK) {
        code = check_sums(name, map, header, error);
    }
    if (code == BW_OK) {
        segment->rows = header->rows;
        segment->blocks = (uint32_t)(bw_round_up(header->rows, BW_BLOCK_ROWS) / BW_BLOCK_ROWS);
        segment->zone_stride = (uint32_t)bw_round_up(segment->blocks, 64);
        segment->ids = (const int64_t *)(const void *)(map->data + sections[BW_SECTION_IDS]->offset);
        segment->id_rows = (const uint32_t *)(const void *)(map->data + sections[BW_SECTION_ID_ROWS]->offset);
        segment->codes = map->data + sections[BW_SECTION_CODES]->offset;
        segment->zone_min = map->data + sections[BW_SECTION_ZONES]->offset;
        segment->zone_max = segment->zone_min + (size_t)segment->zone_stride * BW_DIMS;
        segment->header_checksum = header->checksum;
        memcpy(segment->uuid, header->uuid, sizeof segment->uuid);
        segment->fingerprints = header->fingerprints;
        segment->info = (bw_segment_info){.rows = header->rows,
                                          .blocks = segment->blocks,
                                          .bytes = header->bytes,
                                          .generation = header->generation,
                                          .format = header->format,
                                          .min_id = header->min_id,
                                          .max_id = header->max_id};
        memcpy(segment->info.name, name, strlen(name) + 1);
        code = check_id_rows(segment, error);
    }
    if (code != BW_OK) {
        bw_segment_close(segment);
        return code;
    }
    *result = segment;
    return BW_OK;
}

void bw_segment_close(bw_segment *segment) {
    if (segment != NULL) {
        bw_map_close(&segment->map);
        bw_free(segment);
    }
}

static int32_t validate_block(const bw_segment *segment, uint32_t block, bw_error *error) {
    size_t stride;
    const uint8_t *columns = bw_segment_block(segment, block, &stride);
    uint32_t rows = bw_segment_block_rows(segment, block);
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        const uint8_t *column = columns + dim * stride;
        uint8_t least = 255, most = 0;
        for (uint32_t row = 0; row < rows; row++) {
            least = column[row] < least ? column[row] : least;
            most = column[row] > most ? column[row] : most;
        }
        size_t zone = (size_t)dim * segment->zone_stride + block;
        if (segment->zone_min[zone] != least || segment->zone_max[zone] != most) {
            return bw_fail(
                error, BW_CORRUPT,
                "segment %s: section zones: block %u holds %u to %u in dimension %u, its zone says %u to "
                "%u. " REPAIR,
                segment->info.name, block, least, most, dim, segment->zone_min[zone],
                segment->zone_max[zone]);
        }
        if (!bw_all_zero(column + rows, BW_BLOCK_ROWS - rows)) {
            return bw_fail(error, BW_CORRUPT,
                           "segment %s: section codes: values past the last row are not zero. " REPAIR,
                           segment->info.name);
        }
    }
    return BW_OK;
}

int32_t bw_segment_validate(const bw_segment *segment, bw_error *error) {
    const char *name = segment->info.name;
    const bw_segment_header *header = (const bw_segment_header *)(const void *)segment->map.data;
    const bw_section *sections[BW_SECTION_KINDS] = {NULL};
    int32_t code = check_header(name, &segment->map, header, error);
    if (code == BW_OK) {
        code = check_table(name, &segment->map, header, sections, error);
    }
    if (code == BW_OK) {
        code = check_sums(name, &segment->map, header, error);
    }
    if (code == BW_OK) {
        code = check_id_rows(segment, error);
    }
    for (uint32_t block = 0; block < segment->blocks && code == BW_OK; block++) {
        code = validate_block(segment, block, error);
    }
    if (code != BW_OK) {
        return code;
    }
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        for (uint32_t block = segment->blocks; block < segment->zone_stride; block++) {
            size_t zone = (size_t)dim * segment->zone_stride + block;
            if (segment->zone_min[zone] != 255 || segment->zone_max[zone] != 0) {
                return bw_fail(error, BW_CORRUPT,
                               "segment %s: section zones: places past the last block are not empty. " REPAIR,
                               name);
            }
        }
    }
    /* Strictly ascending through every place means a permutation: no id twice, none left out. */
    for (uint64_t i = 1; i < segment->rows; i++) {
        int64_t before = segment->ids[segment->id_rows[i - 1]], id = segment->ids[segment->id_rows[i]];
        if (before >= id) {
            return bw_fail(error, BW_CORRUPT,
                           "segment %s: section id rows: id %lld stands before id %lld. " REPAIR, name,
                           (long long)before, (long long)id);
        }
    }
    return BW_OK;
}
