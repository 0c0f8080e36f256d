/* segment_validate.c - the deep check: everything in a segment that was made from its ids and codes, made
 * once more, plainly, and compared. It shares nothing with build.c, whose oracle it is. */
#include "segment.h"
#include "segment_format.h"

#define REPAIR "Run: boxwood repair"

/* One block's zones and padding; counts its values. */
static int32_t check_block(const bw_segment *segment, uint32_t block, uint32_t counts[BW_DIMS][256],
                           bw_error *error) {
    const uint8_t *columns = bw_segment_block(segment, block);
    uint32_t rows = bw_segment_block_rows(segment, block);
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        const uint8_t *column = columns + dim * BW_BLOCK_ROWS;
        uint8_t least = 255, most = 0;
        for (uint32_t row = 0; row < rows; row++) {
            least = column[row] < least ? column[row] : least;
            most = column[row] > most ? column[row] : most;
            counts[dim][column[row]]++;
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

static int32_t check_zone_padding(const bw_segment *segment, bw_error *error) {
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        for (uint32_t block = segment->blocks; block < segment->zone_stride; block++) {
            size_t zone = (size_t)dim * segment->zone_stride + block;
            if (segment->zone_min[zone] != 255 || segment->zone_max[zone] != 0) {
                return bw_fail(error, BW_CORRUPT,
                               "segment %s: section zones: places past the last block are not empty. " REPAIR,
                               segment->info.name);
            }
        }
    }
    return BW_OK;
}

static int32_t check_histograms_and_bins(const bw_segment *segment, uint32_t counts[BW_DIMS][256],
                                         bw_error *error) {
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        uint64_t below = 0;
        uint8_t edges[BW_BINS] = {0};
        for (uint32_t value = 0; value < 256; value++) {
            if (segment->histograms[dim][value] != counts[dim][value]) {
                return bw_fail(error, BW_CORRUPT,
                               "segment %s: section histograms: %u rows have the value %u in dimension %u, "
                               "not %u. " REPAIR,
                               segment->info.name, counts[dim][value], value, dim,
                               segment->histograms[dim][value]);
            }
            for (uint32_t bin = 1; bin < BW_BINS; bin++) {
                if (edges[bin] == 0 && (value == 255 || BW_BINS * below >= bin * segment->rows)) {
                    edges[bin] = (uint8_t)value;
                }
            }
            below += counts[dim][value];
        }
        for (uint32_t bin = 0; bin < BW_BINS; bin++) {
            if (segment->bins[dim][bin] != edges[bin]) {
                return bw_fail(error, BW_CORRUPT,
                               "segment %s: section bins: bin %u of dimension %u begins at %u, not at "
                               "%u. " REPAIR,
                               segment->info.name, bin, dim, edges[bin], segment->bins[dim][bin]);
            }
        }
    }
    return BW_OK;
}

static int32_t check_planes(const bw_segment *segment, uint32_t block, bw_error *error) {
    const uint8_t *columns = bw_segment_block(segment, block);
    uint32_t rows = bw_segment_block_rows(segment, block);
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        const uint8_t *column = columns + dim * BW_BLOCK_ROWS;
        const uint64_t *planes = segment->planes + ((size_t)block * BW_DIMS + dim) * BW_PLANES * 4;
        uint8_t bin_of[256];
        for (uint32_t value = 0, bin = 0; value < 256; value++) {
            while (bin < BW_BINS - 1 && segment->bins[dim][bin + 1] <= value) {
                bin++;
            }
            bin_of[value] = (uint8_t)bin;
        }
        for (uint32_t row = 0; row < BW_BLOCK_ROWS; row++) {
            uint32_t word = row / 64, bit = row % 64;
            uint32_t found = (uint32_t)((planes[word] >> bit & 1) << 2 | (planes[4 + word] >> bit & 1) << 1 |
                                        (planes[8 + word] >> bit & 1));
            if (row >= rows && found != 0) {
                return bw_fail(error, BW_CORRUPT,
                               "segment %s: section planes: bits past the last row are not zero. " REPAIR,
                               segment->info.name);
            }
            if (row < rows && found != bin_of[column[row]]) {
                return bw_fail(error, BW_CORRUPT,
                               "segment %s: section planes: row %u of block %u lies in bin %u of dimension "
                               "%u, not in %u. " REPAIR,
                               segment->info.name, row, block, bin_of[column[row]], dim, found);
            }
        }
    }
    return BW_OK;
}

/* To the nearest integer, halves up. */
static uint8_t mean(uint32_t sum, uint32_t n) {
    return n == 0 ? 0 : (uint8_t)(sum / n + (sum % n >= n - sum % n));
}

static int32_t check_centroids(const bw_segment *segment, uint32_t tile, bw_error *error) {
    uint64_t left = segment->rows - (uint64_t)tile * BW_TILE_ROWS;
    uint32_t rows = left < BW_TILE_ROWS ? (uint32_t)left : BW_TILE_ROWS;
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        uint32_t total = 0;
        for (uint32_t granule = 0; granule < BW_TILE_GRANULES; granule++) {
            uint32_t sum = 0, n = 0, first = granule * BW_GRANULE_ROWS;
            if (first < rows) {
                uint32_t block = tile * (BW_TILE_ROWS / BW_BLOCK_ROWS) + first / BW_BLOCK_ROWS;
                const uint8_t *column =
                    bw_segment_block(segment, block) + dim * BW_BLOCK_ROWS + first % BW_BLOCK_ROWS;
                n = rows - first < BW_GRANULE_ROWS ? rows - first : BW_GRANULE_ROWS;
                for (uint32_t row = 0; row < n; row++) {
                    sum += column[row];
                }
            }
            total += sum;
            uint8_t found =
                segment->granule_centroids[((size_t)tile * BW_DIMS + dim) * BW_TILE_GRANULES + granule];
            if (found != mean(sum, n)) {
                return bw_fail(error, BW_CORRUPT,
                               "segment %s: section centroids: the mean of granule %u of tile %u in "
                               "dimension %u is %u, not %u. " REPAIR,
                               segment->info.name, granule, tile, dim, mean(sum, n), found);
            }
        }
        uint8_t found = segment->tile_centroids[(size_t)dim * segment->tile_stride + tile];
        if (found != mean(total, rows)) {
            return bw_fail(error, BW_CORRUPT,
                           "segment %s: section centroids: the mean of tile %u in dimension %u is %u, not "
                           "%u. " REPAIR,
                           segment->info.name, tile, dim, mean(total, rows), found);
        }
    }
    return BW_OK;
}

static int32_t check_centroid_padding(const bw_segment *segment, bw_error *error) {
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        const uint8_t *row = segment->tile_centroids + (size_t)dim * segment->tile_stride;
        if (!bw_all_zero(row + segment->tiles, segment->tile_stride - segment->tiles)) {
            return bw_fail(error, BW_CORRUPT,
                           "segment %s: section centroids: places past the last tile are not zero. " REPAIR,
                           segment->info.name);
        }
    }
    return BW_OK;
}

static int32_t check_sample(const bw_segment *segment, bw_error *error) {
    for (uint32_t i = 0; segment->rows > BW_SAMPLE_ROWS && i < BW_SAMPLE_ROWS; i++) {
        uint32_t block = i / BW_BLOCK_ROWS, place = i % BW_BLOCK_ROWS;
        uint64_t turn = (uint64_t)place * BW_SAMPLE_BLOCKS + block;
        uint64_t row = (2 * turn + 1) * segment->rows / (2 * (uint64_t)BW_SAMPLE_ROWS);
        const uint8_t *sampled = segment->sample + (size_t)block * BW_BLOCK_ROWS * BW_DIMS;
        for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
            uint8_t found = sampled[dim * BW_BLOCK_ROWS + place];
            const uint8_t *columns = bw_segment_block(segment, (uint32_t)(row / BW_BLOCK_ROWS));
            if (found != columns[dim * BW_BLOCK_ROWS + row % BW_BLOCK_ROWS]) {
                return bw_fail(error, BW_CORRUPT,
                               "segment %s: section sample: sample row %u is not row %llu. " REPAIR,
                               segment->info.name, i, (unsigned long long)row);
            }
        }
    }
    return BW_OK;
}

/* Strictly ascending through every place means a permutation: no id twice, none left out. */
static int32_t check_ids(const bw_segment *segment, bw_error *error) {
    for (uint64_t i = 1; i < segment->rows; i++) {
        int64_t before = segment->ids[segment->id_rows[i - 1]], id = segment->ids[segment->id_rows[i]];
        if (before >= id) {
            return bw_fail(error, BW_CORRUPT,
                           "segment %s: section id rows: id %lld stands before id %lld. " REPAIR,
                           segment->info.name, (long long)before, (long long)id);
        }
    }
    return BW_OK;
}

int32_t bw_segment_validate(const bw_segment *segment, bw_error *error) {
    int32_t code = bw_segment_check(segment->info.name, &segment->map, error);
    if (code == BW_OK) {
        code = bw_segment_check_contents(segment, error);
    }
    uint32_t (*counts)[256] = bw_alloc_zero(BW_DIMS, sizeof *counts);
    if (counts == NULL) {
        return code == BW_OK ? bw_fail_nomem(error, BW_DIMS * sizeof *counts) : code;
    }
    for (uint32_t block = 0; block < segment->blocks && code == BW_OK; block++) {
        code = check_block(segment, block, counts, error);
    }
    if (code == BW_OK) {
        code = check_zone_padding(segment, error);
    }
    if (code == BW_OK) {
        code = check_histograms_and_bins(segment, counts, error);
    }
    bw_free(counts);
    for (uint32_t block = 0; block < segment->blocks && code == BW_OK; block++) {
        code = check_planes(segment, block, error);
    }
    for (uint32_t tile = 0; tile < segment->tiles && code == BW_OK; tile++) {
        code = check_centroids(segment, tile, error);
    }
    if (code == BW_OK) {
        code = check_centroid_padding(segment, error);
    }
    if (code == BW_OK) {
        code = check_sample(segment, error);
    }
    return code == BW_OK ? check_ids(segment, error) : code;
}
