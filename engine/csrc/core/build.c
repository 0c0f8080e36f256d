/* build.c - writing segment files (docs/FORMAT.md). The order and the ranks of ids come first; then batches
 * of tiles are made by several threads and written where they belong; what a search by nearness must spend is
 * measured on the finished file. Nothing in the file depends on the number of threads. */
#include "kernels.h"
#include "search.h"
#include "segment.h"
#include "segment_format.h"

#include <stdatomic.h>

#define BATCH_TILES 64
#define TILE_BYTES ((size_t)BW_TILE_ROWS * BW_DIMS)
#define TILE_FINE_BYTES ((size_t)BW_TILE_ROWS * BW_FINE_DIMS)
#define TILE_PLANES_BYTES ((size_t)(BW_TILE_ROWS / BW_BLOCK_ROWS) * BW_BLOCK_PLANES_BYTES)
#define PREFETCH_ROWS 32
#define HISTOGRAM_ROWS 65536 /* rows that a thread takes at a time */

/* Parts of the time, for progress. */
#define ORDER_SHARE 0.5
#define FILL_SHARE 0.3
#define RECALL_SHARE 0.2

typedef uint32_t histogram[BW_DIMS][256];

typedef struct build {
    const bw_segment_spec *spec;
    bw_writer *writer;
    bw_segment_header header;
    bw_section *sections[BW_SECTION_KINDS]; /* in the header's table; NULL: none of this kind */
    uint32_t threads;
    uint32_t *order;   /* place -> input row */
    uint32_t *id_rows; /* place by rank of id */
    /* A batch of tiles. */
    int64_t *ids;
    uint8_t *codes;
    uint8_t *planes;
    uint8_t *fine; /* NULL: none */
    uint32_t tiles_max, first_tile, tiles;
    _Atomic uint64_t next; /* what the next free thread takes */
    /* Whole sections. */
    uint8_t *zones;
    uint8_t *centroids;
    uint8_t *sample;
    histogram *histograms; /* one a thread; in the end the first is the section */
    uint8_t bins[BW_DIMS][BW_BINS];
    bw_progress progress;
    void *context;
    bw_error *error;
} build;

static int32_t report(build *b, double done) {
    if (b->progress != NULL && b->progress(b->context, done) != 0) {
        return bw_fail(b->error, BW_CANCELLED, "cancelled while a segment was written");
    }
    return BW_OK;
}

static int32_t order_progress(void *context, double done) {
    build *b = context;
    return b->progress == NULL ? 0 : b->progress(b->context, ORDER_SHARE * done);
}

static int32_t recall_progress(void *context, double done) {
    build *b = context;
    return b->progress == NULL ? 0 : b->progress(b->context, ORDER_SHARE + FILL_SHARE + RECALL_SHARE * done);
}

static uint64_t section_bytes(const build *b, uint32_t kind) {
    return bw_section_bytes(kind, b->spec->rows);
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
    if ((spec->fine == NULL) != (fingerprints->fine[0] == '\0')) {
        return bw_fail(error, BW_INVALID,
                       "fine codes and their fingerprint are given together or not at all");
    }
    return BW_OK;
}

/* Ids must be >= 0 and unique; `sorted` are the rows in ascending order of their ids. */
static int32_t check_ids(const bw_segment_spec *spec, const uint32_t *sorted, bw_error *error) {
    for (uint64_t i = 0; i < spec->rows; i++) {
        int64_t id = spec->ids[sorted[i]];
        if (id < 0) {
            return bw_fail(error, BW_INVALID, "id %lld is negative; ids are 0 or more", (long long)id);
        }
        if (i > 0 && id == spec->ids[sorted[i - 1]]) {
            return bw_fail(error, BW_INVALID, "id %lld is given twice; ids are unique in a collection",
                           (long long)id);
        }
    }
    return BW_OK;
}

/* Sorts the rows and turns ranks of ids into places. */
static int32_t put_in_order(build *b) {
    uint64_t rows = b->spec->rows;
    int32_t code = report(b, 0);
    if (code == BW_OK) {
        code = bw_sort_ids(b->spec->ids, rows, b->id_rows, b->error);
    }
    if (code == BW_OK) {
        code = check_ids(b->spec, b->id_rows, b->error);
    }
    if (code != BW_OK) {
        return code;
    }
    b->header.min_id = b->spec->ids[b->id_rows[0]];
    b->header.max_id = b->spec->ids[b->id_rows[rows - 1]];
    code =
        bw_segment_order(b->id_rows, b->spec->codes, rows, b->order, b->threads, order_progress, b, b->error);
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

static void count_values(void *context, uint32_t worker) {
    build *b = context;
    uint32_t (*counts)[256] = b->histograms[worker];
    for (;;) {
        uint64_t row = atomic_fetch_add(&b->next, HISTOGRAM_ROWS), end = row + HISTOGRAM_ROWS;
        if (row >= b->spec->rows) {
            return;
        }
        for (end = end < b->spec->rows ? end : b->spec->rows; row < end; row++) {
            const uint8_t *code = b->spec->codes + row * BW_DIMS;
            for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
                counts[dim][code[dim]]++;
            }
        }
    }
}

/* Bin i begins at the smallest value that at least i / 8 of the rows are below. */
static void bin_edges(const uint32_t counts[256], uint64_t rows, uint8_t edges[BW_BINS]) {
    uint64_t below = 0;
    uint32_t value = 0;
    edges[0] = 0;
    for (uint32_t bin = 1; bin < BW_BINS; bin++) {
        while (value < 255 && BW_BINS * below < bin * rows) {
            below += counts[value++];
        }
        edges[bin] = (uint8_t)value;
    }
}

static void make_histograms_and_bins(build *b) {
    atomic_store(&b->next, 0);
    bw_parallel(b->threads, count_values, b);
    for (uint32_t thread = 1; thread < b->threads; thread++) {
        for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
            for (uint32_t value = 0; value < 256; value++) {
                b->histograms[0][dim][value] += b->histograms[thread][dim][value];
            }
        }
    }
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        bin_edges(b->histograms[0][dim], b->spec->rows, b->bins[dim]);
    }
}

/* The columns of one block. Its rows lie anywhere in the input, so those that come next are asked for early.
 */
static void fill_codes(const build *b, uint64_t first, uint32_t rows, uint8_t *columns) {
    for (uint32_t i = 0; i < rows; i++) {
        uint64_t ahead = first + i + PREFETCH_ROWS;
        if (ahead < b->spec->rows) {
            __builtin_prefetch(b->spec->codes + (size_t)b->order[ahead] * BW_DIMS);
        }
        const uint8_t *code = b->spec->codes + (size_t)b->order[first + i] * BW_DIMS;
        for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
            columns[dim * BW_BLOCK_ROWS + i] = code[dim];
        }
    }
    for (uint32_t dim = 0; dim < BW_DIMS && rows < BW_BLOCK_ROWS; dim++) {
        memset(columns + dim * BW_BLOCK_ROWS + rows, 0, BW_BLOCK_ROWS - rows);
    }
}

/* Fine codes stand row by row: who reads them reads whole ones, of few rows. */
static void fill_fine(const build *b, uint64_t first, uint32_t rows, uint8_t *fine) {
    for (uint32_t i = 0; i < rows; i++) {
        uint64_t ahead = first + i + PREFETCH_ROWS;
        if (ahead < b->spec->rows) {
            __builtin_prefetch(b->spec->fine + (size_t)b->order[ahead] * BW_FINE_DIMS);
        }
        memcpy(fine + (size_t)i * BW_FINE_DIMS, b->spec->fine + (size_t)b->order[first + i] * BW_FINE_DIMS,
               BW_FINE_DIMS);
    }
}

static void fill_zones(const build *b, uint32_t block, uint32_t rows, const uint8_t *columns) {
    size_t zone_bytes = section_bytes(b, BW_SECTION_ZONES), stride = zone_bytes / 2 / BW_DIMS;
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        const uint8_t *column = columns + dim * BW_BLOCK_ROWS;
        uint8_t least = 255, most = 0;
        for (uint32_t i = 0; i < rows; i++) {
            least = column[i] < least ? column[i] : least;
            most = column[i] > most ? column[i] : most;
        }
        b->zones[dim * stride + block] = least;
        b->zones[zone_bytes / 2 + dim * stride + block] = most;
    }
}

/* Eight bytes of 0 or 1 as the eight bits of one, the first the lowest: their product with the constant has
 * byte i's bit at 56 + i, and no two partial products meet. */
static uint8_t gather_bits(const uint8_t bits[8]) {
    uint64_t word;
    memcpy(&word, bits, 8);
    return (uint8_t)(word * UINT64_C(0x0102040810204080) >> 56);
}

/* The planes of one block. Values past the last row are zero, which lies in bin 0, so their bits are zero. */
static void fill_planes(const uint8_t *columns, uint8_t bins[BW_DIMS][BW_BINS], uint8_t *planes) {
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        const uint8_t *column = columns + dim * BW_BLOCK_ROWS;
        uint8_t bin_of[BW_BLOCK_ROWS] = {0}, bits[BW_BLOCK_ROWS];
        for (uint32_t bin = 1; bin < BW_BINS; bin++) {
            uint8_t edge = bins[dim][bin];
            for (uint32_t i = 0; i < BW_BLOCK_ROWS; i++) {
                bin_of[i] = (uint8_t)(bin_of[i] + (column[i] >= edge));
            }
        }
        for (uint32_t plane = 0; plane < BW_PLANES; plane++, planes += BW_PLANE_BYTES) {
            for (uint32_t i = 0; i < BW_BLOCK_ROWS; i++) {
                bits[i] = bin_of[i] >> (BW_PLANES - 1 - plane) & 1;
            }
            for (uint32_t i = 0; i < BW_PLANE_BYTES; i++) {
                planes[i] = gather_bits(bits + 8 * (size_t)i);
            }
        }
    }
}

static uint8_t mean(uint32_t sum, uint32_t n) {
    return n == 0 ? 0 : (uint8_t)((2 * sum + n) / (2 * n));
}

/* The means of a tile, and of its granules, dimension by dimension. */
static void fill_centroids(const uint8_t *codes, uint32_t rows, uint8_t tile[BW_DIMS], uint8_t *granules) {
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        uint32_t total = 0;
        for (uint32_t start = 0; start < rows; start += BW_GRANULE_ROWS) {
            const uint8_t *values = codes + (size_t)(start / BW_BLOCK_ROWS) * BW_BLOCK_ROWS * BW_DIMS +
                                    dim * BW_BLOCK_ROWS + start % BW_BLOCK_ROWS;
            uint32_t n = rows - start < BW_GRANULE_ROWS ? rows - start : BW_GRANULE_ROWS, sum = 0;
            for (uint32_t i = 0; i < BW_GRANULE_ROWS; i++) {
                sum += values[i]; /* zero past the last row */
            }
            granules[dim * BW_TILE_GRANULES + start / BW_GRANULE_ROWS] = mean(sum, n);
            total += sum;
        }
        tile[dim] = mean(total, rows);
    }
}

static void make_tile(build *b, uint32_t index) {
    uint32_t tile = b->first_tile + index;
    uint64_t first = (uint64_t)tile * BW_TILE_ROWS, left = b->spec->rows - first;
    uint32_t rows = left < BW_TILE_ROWS ? (uint32_t)left : BW_TILE_ROWS;
    uint8_t *codes = b->codes + index * TILE_BYTES, *planes = b->planes + index * TILE_PLANES_BYTES;
    int64_t *ids = b->ids + (size_t)index * BW_TILE_ROWS;
    for (uint32_t i = 0; i < rows; i++) {
        ids[i] = b->spec->ids[b->order[first + i]];
    }
    if (b->fine != NULL) {
        fill_fine(b, first, rows, b->fine + index * TILE_FINE_BYTES);
    }
    for (uint32_t start = 0; start < rows; start += BW_BLOCK_ROWS) {
        uint32_t in_block = rows - start < BW_BLOCK_ROWS ? rows - start : BW_BLOCK_ROWS;
        uint32_t block = (uint32_t)((first + start) / BW_BLOCK_ROWS);
        uint8_t *columns = codes + (size_t)start * BW_DIMS;
        fill_codes(b, first + start, in_block, columns);
        fill_zones(b, block, in_block, columns);
        fill_planes(columns, b->bins, planes + (size_t)(start / BW_BLOCK_ROWS) * BW_BLOCK_PLANES_BYTES);
    }
    uint64_t tile_stride = bw_round_up(bw_round_up(b->spec->rows, BW_TILE_ROWS) / BW_TILE_ROWS, 64);
    uint8_t means[BW_DIMS];
    fill_centroids(codes, rows, means,
                   b->centroids + BW_DIMS * (tile_stride + (size_t)tile * BW_TILE_GRANULES));
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        b->centroids[dim * tile_stride + tile] = means[dim];
    }
}

static void make_tiles(void *context, uint32_t worker) {
    build *b = context;
    (void)worker;
    for (;;) {
        uint64_t index = atomic_fetch_add(&b->next, 1);
        if (index >= b->tiles) {
            return;
        }
        make_tile(b, (uint32_t)index);
    }
}

/* Rows evenly spaced, dealt out to the blocks one by one: each block by itself is an even sample as well. */
static void make_sample(build *b) {
    uint64_t rows = b->spec->rows;
    for (uint64_t i = 0; b->sample != NULL && i < BW_SAMPLE_ROWS; i++) {
        const uint8_t *code =
            b->spec->codes + (size_t)b->order[(2 * i + 1) * rows / (2 * BW_SAMPLE_ROWS)] * BW_DIMS;
        uint8_t *to = b->sample + i % BW_SAMPLE_BLOCKS * BW_BLOCK_ROWS * BW_DIMS + i / BW_SAMPLE_BLOCKS;
        for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
            to[(size_t)dim * BW_BLOCK_ROWS] = code[dim];
        }
    }
}

/* Sections stand in order of their kinds. What lies between them is never written, and so reads as zeros. */
static void lay_out(build *b) {
    bw_segment_header *header = &b->header;
    uint64_t end = BW_HEADER_BYTES;
    for (uint32_t kind = BW_SECTION_IDS; kind < BW_SECTION_KINDS; kind++) {
        if (bw_section_wanted(kind, header->rows, &header->fingerprints)) {
            bw_section *section = &header->table[header->sections++];
            *section = (bw_section){
                .kind = kind, .offset = bw_round_up(end, BW_SECTION_ALIGN), .bytes = section_bytes(b, kind)};
            end = section->offset + section->bytes;
            b->sections[kind] = section;
        }
    }
    header->bytes = end;
}

/* The bytes of a section from `at` on. Its checksum grows with them, so they come in order. */
static int32_t write_part(build *b, uint32_t kind, uint64_t at, const void *data, size_t bytes) {
    bw_section *section = b->sections[kind];
    section->checksum = bw_kernels_get()->crc32c(section->checksum, data, bytes);
    return bw_writer_rewrite(b->writer, section->offset + at, data, bytes, b->error);
}

static int32_t write_whole(build *b, uint32_t kind, const void *data) {
    return write_part(b, kind, 0, data, section_bytes(b, kind));
}

static int32_t write_tiles(build *b) {
    uint64_t rows = b->spec->rows;
    uint32_t tiles = (uint32_t)(bw_round_up(rows, BW_TILE_ROWS) / BW_TILE_ROWS);
    int32_t code = BW_OK;
    for (uint32_t first = 0; first < tiles && code == BW_OK; first += b->tiles) {
        uint64_t first_row = (uint64_t)first * BW_TILE_ROWS;
        b->first_tile = first;
        b->tiles = tiles - first < b->tiles_max ? tiles - first : b->tiles_max;
        atomic_store(&b->next, 0);
        bw_parallel(b->threads < b->tiles ? b->threads : b->tiles, make_tiles, b);
        uint64_t last_row = first_row + (uint64_t)b->tiles * BW_TILE_ROWS;
        last_row = last_row < rows ? last_row : rows;
        size_t n = last_row - first_row, padded = bw_round_up(n, BW_BLOCK_ROWS);
        code = write_part(b, BW_SECTION_IDS, first_row * sizeof *b->ids, b->ids, n * sizeof *b->ids);
        if (code == BW_OK) {
            code = write_part(b, BW_SECTION_CODES, first_row * BW_DIMS, b->codes, padded * BW_DIMS);
        }
        if (code == BW_OK) {
            code = write_part(b, BW_SECTION_PLANES, first_row / BW_BLOCK_ROWS * BW_BLOCK_PLANES_BYTES,
                              b->planes, padded / BW_BLOCK_ROWS * BW_BLOCK_PLANES_BYTES);
        }
        if (code == BW_OK && b->fine != NULL) {
            code = write_part(b, BW_SECTION_FINE, first_row * BW_FINE_DIMS, b->fine, n * BW_FINE_DIMS);
        }
        if (code == BW_OK) {
            code = report(b, ORDER_SHARE + FILL_SHARE * ((double)last_row / (double)rows));
        }
    }
    return code;
}

static int32_t write_header(build *b) {
    b->header.checksum = bw_crc32c(0, &b->header, offsetof(bw_segment_header, checksum));
    return bw_writer_rewrite(b->writer, 0, &b->header, sizeof b->header, b->error);
}

/* All sections but recall, whose place is left zero, so that the file is whole but for checksums. */
static int32_t write_sections(build *b) {
    lay_out(b);
    int32_t code = write_tiles(b);
    const struct {
        uint32_t kind;
        const void *data;
    } wholes[] = {{BW_SECTION_ID_ROWS, b->id_rows},
                  {BW_SECTION_ZONES, b->zones},
                  {BW_SECTION_BINS, b->bins},
                  {BW_SECTION_CENTROIDS, b->centroids},
                  {BW_SECTION_HISTOGRAMS, b->histograms},
                  {BW_SECTION_SAMPLE, b->sample}};
    for (size_t i = 0; i < sizeof wholes / sizeof *wholes && code == BW_OK; i++) {
        if (b->sections[wholes[i].kind] != NULL) {
            code = write_whole(b, wholes[i].kind, wholes[i].data);
        }
    }
    if (code == BW_OK) {
        const bw_recall none = {0};
        code = bw_writer_rewrite(b->writer, b->sections[BW_SECTION_RECALL]->offset, &none, sizeof none,
                                 b->error);
    }
    return code == BW_OK ? write_header(b) : code;
}

/* What a search by nearness must spend is measured on the file as searches will see it. */
static int32_t write_recall(build *b) {
    bw_segment segment = {0};
    bw_recall recall = {0};
    int32_t code = report(b, ORDER_SHARE + FILL_SHARE);
    if (code == BW_OK) {
        code = bw_writer_map(b->writer, &segment.map, b->error);
    }
    if (code == BW_OK) {
        bw_segment_attach(&segment, "");
        code = bw_knn_calibrate(&segment, b->threads, &recall, recall_progress, b, b->error);
        bw_map_close(&segment.map);
    }
    if (code == BW_OK) {
        code = write_whole(b, BW_SECTION_RECALL, &recall);
    }
    if (code == BW_OK) {
        code = write_header(b);
    }
    return code == BW_OK ? report(b, 1) : code;
}

/* BW_NOMEM when one of them is refused; free_parts frees what there is. */
static int32_t make_parts(build *b) {
    uint64_t rows = b->spec->rows, tiles = bw_round_up(rows, BW_TILE_ROWS) / BW_TILE_ROWS;
    size_t zone_bytes = section_bytes(b, BW_SECTION_ZONES);
    size_t centroid_bytes = section_bytes(b, BW_SECTION_CENTROIDS);
    bool sampled = bw_section_wanted(BW_SECTION_SAMPLE, rows, &b->header.fingerprints);
    bool fine = bw_section_wanted(BW_SECTION_FINE, rows, &b->header.fingerprints);
    size_t sample_bytes = sampled ? section_bytes(b, BW_SECTION_SAMPLE) : 0;
    b->tiles_max = tiles < BATCH_TILES ? (uint32_t)tiles : BATCH_TILES;
    b->order = bw_alloc_array(rows, sizeof *b->order);
    b->id_rows = bw_alloc_array(rows, sizeof *b->id_rows);
    b->ids = bw_alloc_array((size_t)b->tiles_max * BW_TILE_ROWS, sizeof *b->ids);
    b->codes = bw_alloc_aligned(b->tiles_max * TILE_BYTES);
    b->planes = bw_alloc_aligned(b->tiles_max * TILE_PLANES_BYTES);
    b->zones = bw_alloc(zone_bytes);
    b->centroids = bw_alloc_zero(centroid_bytes, 1);
    b->sample = sampled ? bw_alloc(sample_bytes) : NULL;
    b->fine = fine ? bw_alloc_array(b->tiles_max, TILE_FINE_BYTES) : NULL;
    b->histograms = bw_alloc_zero(b->threads, sizeof *b->histograms);
    if (b->order == NULL || b->id_rows == NULL || b->ids == NULL || b->codes == NULL || b->planes == NULL ||
        b->zones == NULL || b->centroids == NULL || (sampled && b->sample == NULL) ||
        (fine && b->fine == NULL) || b->histograms == NULL) {
        return bw_fail_nomem(b->error, rows * 2 * sizeof *b->order +
                                           b->tiles_max *
                                               (2 * TILE_BYTES + TILE_PLANES_BYTES + fine * TILE_FINE_BYTES) +
                                           zone_bytes + centroid_bytes + sample_bytes);
    }
    /* What no block overwrites overlaps no range. */
    memset(b->zones, 255, zone_bytes / 2);
    memset(b->zones + zone_bytes / 2, 0, zone_bytes / 2);
    return BW_OK;
}

static void free_parts(build *b) {
    bw_free(b->order);
    bw_free(b->id_rows);
    bw_free(b->ids);
    bw_free(b->codes);
    bw_free(b->planes);
    bw_free(b->zones);
    bw_free(b->centroids);
    bw_free(b->sample);
    bw_free(b->fine);
    bw_free(b->histograms);
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

    b.threads = bw_thread_count(spec->threads);
    code = make_parts(&b);
    if (code == BW_OK) {
        code = put_in_order(&b);
    }
    if (code == BW_OK) {
        make_histograms_and_bins(&b);
        make_sample(&b);
        code = write_sections(&b);
    }
    free_parts(&b);
    if (code == BW_OK) {
        code = write_recall(&b);
    }
    if (code == BW_OK) {
        return bw_writer_commit(b.writer, error);
    }
    bw_writer_abandon(b.writer);
    return code;
}
