/* segment_open.c - opening and checking segment files. Everything that a file says is checked before it is
 * used. */
#include "kernels.h"
#include "segment.h"
#include "segment_format.h"

#include <stdatomic.h>

#define REPAIR "Run: boxwood repair"
#define PARALLEL_BYTES ((size_t)64 << 20) /* checksums of smaller files are not worth threads */

static const char *const section_names[BW_SECTION_KINDS] = {"",           "ids",    "id rows", "codes",
                                                            "zones",      "planes", "bins",    "centroids",
                                                            "histograms", "sample", "recall",  "fine"};

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
        return bw_fail(error, BW_VERSION,
                       "segment %s: header: format %u, but this Boxwood reads format %d. %s", name,
                       header->format, BW_FORMAT,
                       header->format < BW_FORMAT ? REPAIR : "Update Boxwood, or run: boxwood repair");
    }
    if (bw_crc32c(0, header, offsetof(bw_segment_header, checksum)) != header->checksum) {
        return bw_fail(error, BW_CORRUPT,
                       "segment %s: header: checksum does not match; the file is damaged. " REPAIR, name);
    }
    if (header->header_bytes != BW_HEADER_BYTES || header->dims != BW_DIMS ||
        header->block_rows != BW_BLOCK_ROWS || header->tile_rows != BW_TILE_ROWS) {
        return bw_fail(error, BW_CORRUPT,
                       "segment %s: header: dimensions, block or tile are not those of format %d. " REPAIR,
                       name, BW_FORMAT);
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
                           "segment %s: section table: kind %u is unknown to format %d. " REPAIR, name,
                           section->kind, BW_FORMAT);
        }
        const char *what = section_names[section->kind];
        if (sections[section->kind] != NULL) {
            return bw_fail(error, BW_CORRUPT, "segment %s: section %s: listed twice. " REPAIR, name, what);
        }
        sections[section->kind] = section;
        if (!bw_section_wanted(section->kind, header->rows, &header->fingerprints)) {
            return bw_fail(
                error, BW_CORRUPT,
                "segment %s: section %s: a segment of these rows and fingerprints has none. " REPAIR, name,
                what);
        }
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
        if (sections[kind] == NULL && bw_section_wanted(kind, header->rows, &header->fingerprints)) {
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

typedef struct sums {
    const bw_map *map;
    const bw_section *const *sections; /* by kind */
    _Atomic uint32_t next;
    bool right[BW_SECTION_KINDS];
} sums;

static void sum_sections(void *context, uint32_t worker) {
    /* The largest first, so that threads end together. */
    static const uint8_t kinds[] = {BW_SECTION_FINE,      BW_SECTION_CODES,   BW_SECTION_PLANES,
                                    BW_SECTION_IDS,       BW_SECTION_ID_ROWS, BW_SECTION_ZONES,
                                    BW_SECTION_CENTROIDS, BW_SECTION_SAMPLE,  BW_SECTION_HISTOGRAMS,
                                    BW_SECTION_BINS,      BW_SECTION_RECALL};
    _Static_assert(sizeof kinds == BW_SECTION_KINDS - 1, "each once");
    sums *all = context;
    (void)worker;
    for (uint32_t i; (i = atomic_fetch_add(&all->next, 1)) < sizeof kinds;) {
        const bw_section *section = all->sections[kinds[i]];
        if (section == NULL) { /* one that this segment has none of */
            all->right[kinds[i]] = true;
            continue;
        }
        uint32_t sum = bw_kernels_get()->crc32c(0, all->map->data + section->offset, section->bytes);
        all->right[kinds[i]] = sum == section->checksum;
    }
}

static int32_t check_sums(const char *name, const bw_map *map,
                          const bw_section *const sections[BW_SECTION_KINDS], bw_error *error) {
    sums all = {.map = map, .sections = sections};
    bw_parallel(map->bytes < PARALLEL_BYTES ? 1 : 0, sum_sections, &all);
    for (uint32_t kind = BW_SECTION_IDS; kind < BW_SECTION_KINDS; kind++) {
        if (!all.right[kind]) {
            return bw_fail(error, BW_CORRUPT,
                           "segment %s: section %s: checksum does not match; the file is damaged. " REPAIR,
                           name, section_names[kind]);
        }
    }
    return BW_OK;
}

int32_t bw_segment_check(const char *name, const bw_map *map, bw_error *error) {
    if (map->bytes < BW_HEADER_BYTES) {
        return bw_fail(error, BW_CORRUPT,
                       "segment %s: the file has %zu bytes, fewer than its header. " REPAIR, name,
                       map->bytes);
    }
    const bw_segment_header *header = (const bw_segment_header *)(const void *)map->data;
    const bw_section *sections[BW_SECTION_KINDS] = {NULL};
    int32_t code = check_header(name, map, header, error);
    if (code == BW_OK) {
        code = check_table(name, map, header, sections, error);
    }
    return code == BW_OK ? check_sums(name, map, sections, error) : code;
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

/* What searches rely on in the small sections. */
static int32_t check_bins_and_recall(const bw_segment *segment, bw_error *error) {
    const char *name = segment->info.name;
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        bool ascending = segment->bins[dim][0] == 0;
        for (uint32_t bin = 1; bin < BW_BINS; bin++) {
            ascending &= segment->bins[dim][bin - 1] <= segment->bins[dim][bin];
        }
        if (!ascending) {
            return bw_fail(error, BW_CORRUPT,
                           "segment %s: section bins: the bins of dimension %u do not ascend from 0. " REPAIR,
                           name, dim);
        }
    }
    uint64_t granules = (segment->rows + BW_GRANULE_ROWS - 1) / BW_GRANULE_ROWS;
    for (uint32_t k = 0; k < BW_RECALL_KS; k++) {
        const uint32_t *effort = segment->recall->effort[k];
        bool ascending = effort[0] >= 1 && effort[BW_RECALL_LEVELS - 1] <= granules;
        for (uint32_t level = 1; level < BW_RECALL_LEVELS; level++) {
            ascending &= effort[level - 1] <= effort[level];
        }
        for (uint32_t level = 0; k > 0 && level < BW_RECALL_LEVELS; level++) {
            ascending &= segment->recall->effort[k - 1][level] <= effort[level];
        }
        if (!ascending) {
            return bw_fail(
                error, BW_CORRUPT,
                "segment %s: section recall: row %u does not ascend from 1 to at most %llu granules, or is "
                "below the one before. " REPAIR,
                name, k, (unsigned long long)granules);
        }
    }
    return BW_OK;
}

int32_t bw_segment_check_contents(const bw_segment *segment, bw_error *error) {
    int32_t code = check_id_rows(segment, error);
    return code == BW_OK ? check_bins_and_recall(segment, error) : code;
}

void bw_segment_attach(bw_segment *segment, const char *name) {
    const uint8_t *data = segment->map.data;
    /* Maps begin at a page and sections at multiples of one, so that everything is aligned. */
    const bw_segment_header *header = (const bw_segment_header *)(const void *)data;
    const uint8_t *sections[BW_SECTION_KINDS] = {NULL};
    for (uint32_t i = 0; i < header->sections; i++) {
        sections[header->table[i].kind] = data + header->table[i].offset;
    }
    segment->rows = header->rows;
    segment->blocks = (uint32_t)(bw_round_up(header->rows, BW_BLOCK_ROWS) / BW_BLOCK_ROWS);
    segment->zone_stride = (uint32_t)bw_round_up(segment->blocks, 64);
    segment->tiles = (uint32_t)(bw_round_up(header->rows, BW_TILE_ROWS) / BW_TILE_ROWS);
    segment->tile_stride = (uint32_t)bw_round_up(segment->tiles, 64);
    segment->ids = (const int64_t *)(const void *)sections[BW_SECTION_IDS];
    segment->id_rows = (const uint32_t *)(const void *)sections[BW_SECTION_ID_ROWS];
    segment->codes = sections[BW_SECTION_CODES];
    segment->zone_min = sections[BW_SECTION_ZONES];
    segment->zone_max = segment->zone_min + (size_t)segment->zone_stride * BW_DIMS;
    segment->planes = (const uint64_t *)(const void *)sections[BW_SECTION_PLANES];
    segment->bins = (const uint8_t (*)[BW_BINS])sections[BW_SECTION_BINS];
    segment->tile_centroids = sections[BW_SECTION_CENTROIDS];
    segment->granule_centroids = segment->tile_centroids + (size_t)segment->tile_stride * BW_DIMS;
    segment->histograms = (const uint32_t (*)[256])(const void *)sections[BW_SECTION_HISTOGRAMS];
    segment->sample_rows = header->rows < BW_SAMPLE_ROWS ? (uint32_t)header->rows : BW_SAMPLE_ROWS;
    segment->sample =
        sections[BW_SECTION_SAMPLE] != NULL ? sections[BW_SECTION_SAMPLE] : sections[BW_SECTION_CODES];
    segment->fine = sections[BW_SECTION_FINE];
    segment->recall = (const bw_recall *)(const void *)sections[BW_SECTION_RECALL];
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
    code = bw_segment_check(name, &segment->map, error);
    if (code == BW_OK) {
        bw_segment_attach(segment, name);
        code = bw_segment_check_contents(segment, error);
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
