/* Segment files: bytes as FORMAT.md says, the row order, and refusal of everything that is damaged. */
#include "segment.h"
#include "test.h"

static const char *const folder = "segment.tmp";
static bw_error error;

#define SECTIONS 10 /* of a segment with fine codes and without a sample */

typedef struct rows {
    uint64_t n;
    int64_t *ids;
    uint8_t *codes;
    uint8_t *fine; /* NULL: none */
} rows;

static rows make_rows(uint64_t seed, uint64_t n, int64_t first_id, int64_t step) {
    rows made = {n, test_alloc(n * sizeof(int64_t)), test_alloc(n * BW_DIMS), NULL};
    test_make_rows(seed, n, first_id, step, made.ids, made.codes);
    return made;
}

static void add_fine(rows *to) {
    to->fine = test_alloc(to->n * BW_FINE_DIMS);
    test_make_fine(to->n, to->ids, to->fine);
}

static void free_rows(rows *gone) {
    free(gone->ids);
    free(gone->codes);
    free(gone->fine);
}

static bw_segment_spec make_spec(const rows *from) {
    bw_segment_spec spec = {.rows = from->n,
                            .ids = from->ids,
                            .codes = from->codes,
                            .fine = from->fine,
                            .generation = 7,
                            .fingerprints = {"an encoder", "a head", "5f0c3d2a9b1e4877", ""}};
    memcpy(spec.uuid, "0123456789abcdef", 16);
    if (from->fine != NULL) {
        strcpy(spec.fingerprints.fine, "9e8d7c6b5a493827");
    }
    return spec;
}

/* ---- a reader of its own, by the numbers of FORMAT.md ---- */

static uint32_t u32(const uint8_t *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static uint64_t u64(const uint8_t *at) {
    return u32(at) | (uint64_t)u32(at + 4) << 32;
}

static void put(uint8_t *at, size_t bytes, uint64_t value) {
    for (size_t i = 0; i < bytes; i++) {
        at[i] = i < 8 ? (uint8_t)(value >> (8 * i)) : 0;
    }
}

/* Makes the checksums right again: those of the sections that lie in the file, and the header's. */
static void fix(uint8_t *file, size_t bytes) {
    uint32_t sections = u32(file + 216);
    for (uint32_t i = 0; i < sections && i < 32; i++) {
        uint8_t *entry = file + 224 + 32 * (size_t)i;
        uint64_t offset = u64(entry + 8), size = u64(entry + 16);
        if (offset <= bytes && size <= bytes - offset) {
            put(entry + 4, 4, bw_crc32c(0, file + offset, size));
        }
    }
    put(file + 4092, 4, bw_crc32c(0, file, 4092));
}

/* A section's entry in the table, by its kind. */
static const uint8_t *entry_of(const uint8_t *file, uint32_t kind) {
    for (uint32_t i = 0; i < u32(file + 216); i++) {
        if (u32(file + 224 + 32 * (size_t)i) == kind) {
            return file + 224 + 32 * (size_t)i;
        }
    }
    CHECK(!"section found");
    exit(1);
}

/* Where a section begins, by its kind; its checksum and size are right. */
static uint64_t place(const uint8_t *file, uint32_t kind) {
    return u64(entry_of(file, kind) + 8);
}

static const uint8_t *section(const uint8_t *file, uint32_t kind, uint64_t expected_bytes) {
    const uint8_t *entry = entry_of(file, kind), *data = file + place(file, kind);
    CHECK_EQUAL(u64(entry + 16), expected_bytes);
    CHECK_EQUAL(u64(entry + 8) % 4096, 0);
    CHECK_EQUAL(u32(entry + 4), bw_crc32c(0, data, expected_bytes));
    CHECK_EQUAL(u64(entry + 24), 0);
    return data;
}

static int by_id(const void *a, const void *b) {
    int64_t x = **(const int64_t *const *)a, y = **(const int64_t *const *)b;
    return (x > y) - (x < y);
}

/* The input rows in ascending order of id. Owned: free. */
static const int64_t **sort_rows(const rows *from) {
    const int64_t **sorted = test_alloc(from->n * sizeof *sorted);
    for (uint64_t i = 0; i < from->n; i++) {
        sorted[i] = from->ids + i;
    }
    qsort(sorted, from->n, sizeof *sorted, by_id);
    return sorted;
}

static uint8_t value_at(const uint8_t *codes, uint64_t row, uint64_t dim) {
    return codes[row / 256 * 8192 + dim * 256 + row % 256];
}

static void check_rows(const rows *from, const uint8_t *file, const uint8_t *codes) {
    uint64_t n = from->n, blocks = (n + 255) / 256;
    const uint8_t *ids = section(file, 1, 8 * n), *id_rows = section(file, 2, 4 * n);
    const uint8_t *fine = from->fine == NULL ? NULL : section(file, 11, 128 * n);
    const int64_t **sorted = sort_rows(from);
    CHECK_EQUAL(u64(file + 200), *sorted[0]);
    CHECK_EQUAL(u64(file + 208), *sorted[n - 1]);
    uint8_t *seen = test_alloc(n);
    bool rows_right = true, ids_right = true, padding_right = true;
    for (uint64_t rank = 0; rank < n; rank++) {
        uint32_t row = u32(id_rows + 4 * rank);
        ids_right &= row < n && !seen[row] && u64(ids + 8 * row) == (uint64_t)*sorted[rank];
        seen[row] = 1;
        const uint8_t *code = from->codes + (sorted[rank] - from->ids) * BW_DIMS;
        for (uint64_t dim = 0; dim < BW_DIMS; dim++) {
            rows_right &= value_at(codes, row, dim) == code[dim];
        }
        if (fine != NULL) {
            rows_right &=
                memcmp(fine + 128 * (uint64_t)row, from->fine + (sorted[rank] - from->ids) * 128, 128) == 0;
        }
    }
    for (uint64_t row = n; row < 256 * blocks; row++) {
        for (uint64_t dim = 0; dim < BW_DIMS; dim++) {
            padding_right &= value_at(codes, row, dim) == 0;
        }
    }
    CHECK(rows_right);
    CHECK(ids_right);
    CHECK(padding_right);
    free(sorted);
    free(seen);
}

static void check_zones(const rows *from, const uint8_t *file, const uint8_t *codes) {
    uint64_t n = from->n, blocks = (n + 255) / 256, stride = (blocks + 63) / 64 * 64;
    const uint8_t *zones = section(file, 4, 64 * stride);
    bool right = true;
    for (uint64_t block = 0; block < stride; block++) {
        for (uint64_t dim = 0; dim < BW_DIMS; dim++) {
            uint8_t low = 255, high = 0;
            for (uint64_t row = block * 256; row < (block + 1) * 256 && row < n; row++) {
                uint8_t value = value_at(codes, row, dim);
                low = value < low ? value : low;
                high = value > high ? value : high;
            }
            right &= zones[dim * stride + block] == low && zones[32 * stride + dim * stride + block] == high;
        }
    }
    CHECK(right);
}

static void check_bins_and_planes(const rows *from, const uint8_t *file, const uint8_t *codes) {
    uint64_t n = from->n, blocks = (n + 255) / 256;
    const uint8_t *bins = section(file, 6, 256), *histograms = section(file, 8, 32768);
    const uint8_t *planes = section(file, 5, 3072 * blocks);
    bool histograms_right = true, bins_right = true, planes_right = true;
    for (uint64_t dim = 0; dim < BW_DIMS; dim++) {
        uint64_t below[257] = {0}; /* rows below a value */
        for (uint64_t i = 0; i < n; i++) {
            below[from->codes[i * BW_DIMS + dim] + 1]++;
        }
        for (uint64_t value = 0; value < 256; value++) {
            histograms_right &= u32(histograms + 4 * (256 * dim + value)) == below[value + 1];
            below[value + 1] += below[value];
        }
        bins_right &= bins[8 * dim] == 0;
        for (uint64_t bin = 1; bin < 8; bin++) {
            uint64_t edge = bins[8 * dim + bin];
            bins_right &= edge == 255 || 8 * below[edge] >= bin * n;
            bins_right &= edge > 0 && 8 * below[edge - 1] < bin * n;
        }
        for (uint64_t row = 0; row < 256 * blocks; row++) {
            uint32_t bin = 0, found = 0;
            while (row < n && bin < 7 && bins[8 * dim + bin + 1] <= value_at(codes, row, dim)) {
                bin++;
            }
            for (uint64_t plane = 0; plane < 3; plane++) {
                const uint8_t *words = planes + 3072 * (row / 256) + 96 * dim + 32 * plane;
                found = 2 * found + (u64(words + 8 * (row % 256 / 64)) >> (row % 64) & 1);
            }
            planes_right &= found == bin;
        }
    }
    CHECK(histograms_right);
    CHECK(bins_right);
    CHECK(planes_right);
}

static uint8_t mean(const uint8_t *codes, uint64_t n, uint64_t first, uint64_t most, uint64_t dim) {
    uint64_t last = first + most < n ? first + most : n;
    double sum = 0;
    for (uint64_t row = first; row < last; row++) {
        sum += value_at(codes, row, dim);
    }
    return first < last ? (uint8_t)(sum / (double)(last - first) + 0.5) : 0;
}

static void check_centroids_and_sample(const rows *from, const uint8_t *file, const uint8_t *codes) {
    uint64_t n = from->n, tiles = (n + 4095) / 4096, stride = (tiles + 63) / 64 * 64;
    const uint8_t *centroids = section(file, 7, 32 * stride + 2048 * tiles);
    bool right = true;
    for (uint64_t dim = 0; dim < BW_DIMS; dim++) {
        for (uint64_t tile = 0; tile < stride; tile++) {
            right &= centroids[dim * stride + tile] == mean(codes, n, 4096 * tile, 4096, dim);
        }
        for (uint64_t granule = 0; granule < 64 * tiles; granule++) {
            right &= centroids[32 * stride + 2048 * (granule / 64) + 64 * dim + granule % 64] ==
                     mean(codes, n, 64 * granule, 64, dim);
        }
    }
    CHECK(right);

    const uint8_t *sample = n > 32768 ? section(file, 9, 1048576) : NULL;
    bool sample_right = true;
    for (uint64_t i = 0; n > 32768 && i < 32768; i++) {
        for (uint64_t dim = 0; dim < BW_DIMS; dim++) {
            uint8_t expected = value_at(codes, (2 * i + 1) * n / 65536, dim);
            sample_right &= sample[8192 * (i % 128) + 256 * dim + i / 128] == expected;
        }
    }
    CHECK(sample_right);
}

static void check_recall(const rows *from, const uint8_t *file) {
    const uint8_t *recall = section(file, 10, 192);
    bool right = true;
    for (uint64_t k = 0; k < 6; k++) {
        for (uint64_t level = 0; level < 8; level++) {
            uint32_t effort = u32(recall + 4 * (8 * k + level));
            right &= effort >= 1 && effort <= (from->n + 63) / 64;
            right &= level == 0 || effort >= u32(recall + 4 * (8 * k + level - 1));
        }
    }
    CHECK(right);
}

static void check_file(const rows *from) {
    size_t bytes;
    uint8_t *file = test_read_file(folder, "s", &bytes);
    CHECK(memcmp(file, "BXWSEGM1", 8) == 0);
    const uint32_t words[] = {3, 0x01020304, 4096, 32, 256, 4096};
    for (size_t i = 0; i < 6; i++) {
        CHECK_EQUAL(u32(file + 8 + 4 * i), words[i]);
    }
    CHECK_EQUAL(u64(file + 32), from->n);
    CHECK_EQUAL(u64(file + 40), bytes);
    CHECK_EQUAL(u64(file + 48), 7);
    CHECK(memcmp(file + 56, "0123456789abcdef", 16) == 0);
    CHECK(memcmp(file + 72, "an encoder\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 32) == 0);
    CHECK(strcmp((char *)file + 104, "a head") == 0 && strcmp((char *)file + 136, "5f0c3d2a9b1e4877") == 0);
    CHECK(strcmp((char *)file + 168, from->fine == NULL ? "" : "9e8d7c6b5a493827") == 0);
    const uint32_t sections = 9 + (from->n > 32768) + (from->fine != NULL);
    CHECK_EQUAL(u32(file + 216), sections);
    CHECK_EQUAL(u32(file + 220), 0);
    CHECK_EQUAL(u32(file + 4092), bw_crc32c(0, file, 4092));
    for (size_t i = 224 + sections * 32; i < 4092; i++) {
        CHECK(file[i] == 0);
    }
    for (uint32_t i = 1; i < sections; i++) {
        const uint8_t *entry = file + 224 + 32 * (size_t)i;
        CHECK(u32(entry) > u32(entry - 32) && u64(entry + 8) > u64(entry - 32 + 8));
    }
    CHECK_EQUAL(from->fine == NULL ? place(file, 10) + 192 : place(file, 11) + 128 * from->n, bytes);
    const uint8_t *codes = section(file, 3, 8192 * ((from->n + 255) / 256));
    check_rows(from, file, codes);
    check_zones(from, file, codes);
    check_bins_and_planes(from, file, codes);
    check_centroids_and_sample(from, file, codes);
    check_recall(from, file);
    free(file);
}

static void check_open(const rows *from) {
    bw_segment *segment;
    CHECK_STATUS(bw_segment_open(folder, "s", &segment, &error), BW_OK);
    CHECK_STATUS(bw_segment_validate(segment, &error), BW_OK);
    CHECK_EQUAL(segment->rows, from->n);
    CHECK(strcmp(segment->info.name, "s") == 0 && segment->info.blocks == segment->blocks);
    CHECK(segment->info.generation == 7 && segment->info.format == 3);
    const uint8_t *data = segment->map.data;
    CHECK(segment->tiles == (from->n + 4095) / 4096 && segment->tile_stride % 64 == 0);
    CHECK((const uint8_t *)segment->planes == data + place(data, 5));
    CHECK((const uint8_t *)segment->bins == data + place(data, 6));
    CHECK(segment->tile_centroids == data + place(data, 7));
    CHECK(segment->granule_centroids == segment->tile_centroids + 32 * (size_t)segment->tile_stride);
    CHECK((const uint8_t *)segment->histograms == data + place(data, 8));
    CHECK(segment->sample == data + place(data, from->n > 32768 ? 9 : 3));
    CHECK(segment->sample_rows == (from->n < 32768 ? from->n : 32768));
    CHECK(segment->fine == (from->fine == NULL ? NULL : data + place(data, 11)));
    CHECK((const uint8_t *)segment->recall == data + place(data, 10));
    uint64_t total = 0;
    for (uint32_t block = 0; block < segment->blocks; block++) {
        uint32_t in_block = bw_segment_block_rows(segment, block);
        const uint8_t *columns = bw_segment_block(segment, block);
        CHECK(in_block >= 1 && in_block <= 256);
        CHECK(columns >= segment->codes && columns + 31 * 256 + 256 <= data + segment->map.bytes);
        total += in_block;
    }
    CHECK_EQUAL(total, from->n);
    bw_segment_close(segment);
    bw_segment_close(NULL);
}

/* The same rows in another order of input, with any number of threads, give the same bytes. */
static void check_deterministic(const rows *from, uint32_t threads) {
    rows other = make_rows(0, from->n, 0, 1);
    bw_random random = {77};
    uint64_t *places = test_alloc(from->n * sizeof *places);
    for (uint64_t i = 0; i < from->n; i++) {
        uint64_t j = bw_random_below(&random, i + 1);
        places[i] = places[j];
        places[j] = i;
    }
    for (uint64_t i = 0; i < from->n; i++) {
        other.ids[i] = from->ids[places[i]];
        memcpy(other.codes + i * BW_DIMS, from->codes + places[i] * BW_DIMS, BW_DIMS);
    }
    if (from->fine != NULL) {
        add_fine(&other);
    }
    bw_segment_spec spec = make_spec(&other);
    spec.threads = threads;
    memset(spec.fingerprints.head + 8, 'x', 8); /* past the end of the text: not written */
    CHECK_STATUS(bw_segment_write(folder, "t", &spec, NULL, NULL, &error), BW_OK);
    size_t a_bytes, b_bytes;
    uint8_t *a = test_read_file(folder, "s", &a_bytes), *b = test_read_file(folder, "t", &b_bytes);
    CHECK(a_bytes == b_bytes && memcmp(a, b, a_bytes) == 0);
    free(a);
    free(b);
    free(places);
    free_rows(&other);
}

static void check_all(const rows *from, uint32_t most_threads) {
    bw_segment_spec spec = make_spec(from);
    spec.threads = 1;
    CHECK_STATUS(bw_segment_write(folder, "s", &spec, NULL, NULL, &error), BW_OK);
    check_file(from);
    check_open(from);
    for (uint32_t threads = most_threads > 1 ? 2 : 1; threads <= most_threads; threads++) {
        check_deterministic(from, threads);
    }
    CHECK_EQUAL(test_count_files(folder, "."), 0);
}

/* Around the edges of granules, blocks, tiles, and (the last) of a batch of 64 tiles. */
static void test_sizes(void) {
    const uint64_t sizes[] = {1,   2,    63,   64,   65,   127,   255,   256,   257,   511,   513,
                              767, 4095, 4096, 4097, 8191, 16384, 32768, 32769, 70000, 266300};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        rows from = make_rows(i, sizes[i], i % 2 ? 0 : INT64_MAX - 7 * 266300, i % 2 ? 3 : 7);
        if (i % 3 != 1) {
            add_fine(&from);
        }
        check_all(&from, sizes[i] == 70000 ? 4 : 2);
        free_rows(&from);
    }
}

static void test_shapes(void) {
    const uint64_t sizes[] = {1, 65, 300, 5000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int shape = 0; shape < 6; shape++) {
            rows from = make_rows(50 + i, sizes[i], 0, 1);
            bw_random random = {i};
            for (uint64_t j = 0; j < from.n * BW_DIMS; j++) {
                switch (shape) {
                case 0: /* all rows equal, at either end and between */
                    from.codes[j] = (uint8_t)(j % BW_DIMS * 255 / 31);
                    break;
                case 1: /* two values */
                    from.codes[j] = bw_random_below(&random, 2) == 0 ? 0 : 255;
                    break;
                case 2: /* some dimensions constant */
                    from.codes[j] = j % 3 == 0 ? 77 : from.codes[j];
                    break;
                case 3: /* uniform */
                    from.codes[j] = (uint8_t)bw_random_next(&random);
                    break;
                case 4: /* nearly all rows at the top */
                    from.codes[j] = bw_random_below(&random, 100) == 0 ? 254 : 255;
                    break;
                default: /* eight values that are the edges themselves */
                    from.codes[j] = (uint8_t)(j / BW_DIMS % 8 * 32);
                    break;
                }
            }
            check_all(&from, 2);
            free_rows(&from);
        }
    }
}

/* The file that these rows have always given, on every machine. When the order of rows or the calibration of
 * recall changes on purpose, put the number here that the failed check prints; when the format does, raise
 * BW_FORMAT. */
#define GOLDEN_CHECKSUM UINT32_C(3539208566)
#define GOLDEN_FINE_CHECKSUM UINT32_C(3013471412)

static void test_golden(void) {
    const char *isas[] = {"generic", "avx2", "avx512", "neon"};
    const uint64_t places[SECTIONS] = {4096,   45056,  65536,  229376, 233472,
                                       294912, 299008, 307200, 339968, 344064};
    rows from = make_rows(2026, 5000, 1000, 3);
    for (size_t i = 0; i < 2 * (sizeof isas / sizeof *isas); i++) {
        if (bw_isa_select(isas[i / 2], &error) != BW_OK) {
            continue;
        }
        bool fine = i % 2 == 1;
        if (fine && from.fine == NULL) {
            add_fine(&from);
        }
        bw_segment_spec spec = make_spec(&from);
        if (!fine) {
            spec.fine = NULL;
            spec.fingerprints.fine[0] = '\0';
        }
        CHECK_STATUS(bw_segment_write(folder, "s", &spec, NULL, NULL, &error), BW_OK);
        size_t bytes;
        uint8_t *file = test_read_file(folder, "s", &bytes);
        CHECK_EQUAL(bytes, fine ? 984064 : 340160);
        for (uint32_t number = 0; number < (fine ? SECTIONS : SECTIONS - 1); number++) {
            CHECK_EQUAL(place(file, number < 8 ? number + 1 : number + 2), places[number]);
        }
        CHECK_EQUAL(u64(file + 200), 1000);
        CHECK_EQUAL(u64(file + 208), 15997);
        CHECK_EQUAL(u64(file + 294912), UINT64_C(0xC6AF9D785A482300));          /* bins of dimension 0 */
        CHECK_EQUAL(u64(file + 294912 + 8 * 31), UINT64_C(0xE4D1C4B697773D00)); /* and 31 */
        CHECK_EQUAL(u32(file + 307200 + 4 * (256 * 3 + 100)), 25); /* rows with value 100 in dimension 3 */
        CHECK_EQUAL(bw_crc32c(0, file, bytes), fine ? GOLDEN_FINE_CHECKSUM : GOLDEN_CHECKSUM);
        free(file);
    }
    CHECK_STATUS(bw_isa_select(NULL, &error), BW_OK);
    free_rows(&from);
}

/* ---- damage ---- */

static int32_t open_bytes(const void *data, size_t bytes) {
    test_write_file(folder, "x", data, bytes);
    bw_segment *segment = NULL;
    int32_t code = bw_segment_open(folder, "x", &segment, &error);
    if (code == BW_OK) {
        bw_segment_close(segment);
    }
    return code;
}

static int32_t validate_bytes(const void *data, size_t bytes) {
    test_write_file(folder, "x", data, bytes);
    bw_segment *segment = NULL;
    CHECK_STATUS(bw_segment_open(folder, "x", &segment, &error), BW_OK);
    int32_t code = bw_segment_validate(segment, &error);
    bw_segment_close(segment);
    return code;
}

/* Every byte of the file is guarded: all bits of the header's fields, one bit in every fifth byte behind. */
static void test_flips(const uint8_t *file, size_t bytes) {
    CHECK_EQUAL(open_bytes(file, bytes), BW_OK);
    int changing = open("segment.tmp/x", O_WRONLY);
    unsigned long refused = 0, tried = 0;
    const size_t fields = 224 + 32 * SECTIONS;
    for (size_t at = 0; at < bytes; at += at < fields ? 1 : 5) {
        for (unsigned bit = at < fields ? 0 : (unsigned)at % 8; bit < 8; bit += at < fields ? 1 : 8) {
            uint8_t flipped = file[at] ^ (uint8_t)(1u << bit);
            CHECK(pwrite(changing, &flipped, 1, (off_t)at) == 1);
            bw_segment *segment = NULL;
            int32_t code = bw_segment_open(folder, "x", &segment, &error);
            bw_segment_close(segment);
            tried++;
            refused += code == BW_CORRUPT || (code == BW_VERSION && at >= 8 && at < 12);
        }
        CHECK(pwrite(changing, file + at, 1, (off_t)at) == 1);
    }
    close(changing);
    CHECK_EQUAL(refused, tried);
    bw_segment *segment = NULL;
    CHECK_STATUS(bw_segment_open(folder, "x", &segment, &error), BW_OK);
    bw_segment_close(segment);
}

static void check_cut(const uint8_t *file, size_t length) {
    CHECK_STATUS(open_bytes(file, length), BW_CORRUPT);
    if (length >= 4096) {
        /* Though the header be made to agree. */
        uint8_t *agreeing = test_alloc(length);
        memcpy(agreeing, file, length);
        put(agreeing + 40, 8, length);
        fix(agreeing, length);
        CHECK_STATUS(open_bytes(agreeing, length), BW_CORRUPT);
        free(agreeing);
    }
}

static void test_truncation(const uint8_t *file, size_t bytes) {
    uint8_t *longer = test_alloc(bytes + 4096);
    memcpy(longer, file, bytes);
    for (size_t length = 0; length < bytes + 4096; length += length < 64 || length > bytes - 64 ? 1 : 61) {
        if (length != bytes) {
            check_cut(longer, length);
        }
    }
    for (size_t i = 0; i < SECTIONS; i++) {
        const uint8_t *entry = file + 224 + 32 * i;
        uint64_t begin = u64(entry + 8), end = begin + u64(entry + 16);
        for (uint64_t off = 0; off < 3; off++) {
            check_cut(longer, begin + off - 1);
            if (end + off - 1 != bytes) {
                check_cut(longer, end + off - 1);
            }
        }
    }
    free(longer);
}

static void test_fields(const uint8_t *file, size_t bytes) {
    const struct {
        size_t offset, size;
        uint64_t value;
        int32_t status;
        const char *message;
    } changes[] = {
        {0, 1, 'Y', BW_CORRUPT, "not a segment"},
        {8, 4, 1, BW_VERSION, "format 1, but this Boxwood reads format 3"},
        {8, 4, 2, BW_VERSION, "format 2"},
        {8, 4, 4, BW_VERSION, "format 4"},
        {8, 4, 0, BW_VERSION, "format 0"},
        {12, 4, 0x04030201, BW_VERSION, "byte order"},
        {12, 4, 0x01020305, BW_CORRUPT, "byte order mark"},
        {16, 4, 8192, BW_CORRUPT, "dimensions, block or tile"},
        {20, 4, 31, BW_CORRUPT, "dimensions, block or tile"},
        {24, 4, 128, BW_CORRUPT, "dimensions, block or tile"},
        {28, 4, 8192, BW_CORRUPT, "dimensions, block or tile"},
        {32, 8, 0, BW_CORRUPT, "out of range"},
        {32, 8, UINT64_C(1) << 31, BW_CORRUPT, "out of range"},
        {32, 8, UINT64_MAX, BW_CORRUPT, "out of range"},
        {32, 8, 299, BW_CORRUPT, "section ids: its size"},
        {40, 8, bytes + 1, BW_CORRUPT, "cut or added to"},
        {72 + 31, 1, 'x', BW_CORRUPT, "fingerprint"},
        {104 + 20, 1, 'x', BW_CORRUPT, "fingerprint"},
        {168 + 31, 1, 'x', BW_CORRUPT, "fingerprint"},
        {168, 16, 0, BW_CORRUPT, "section fine: a segment of these rows and fingerprints has none"},
        {200, 8, UINT64_MAX, BW_CORRUPT, "smallest and largest"},
        {200, 8, 1 << 20, BW_CORRUPT, "smallest and largest"},
        {200, 8, 1, BW_CORRUPT, "not the header's"},
        {208, 8, 1 << 20, BW_CORRUPT, "not the header's"},
        {216, 4, SECTIONS - 1, BW_CORRUPT, "must be zero"},
        {216, 4, SECTIONS + 1, BW_CORRUPT, "kind 0"},
        {216, 4, 33, BW_CORRUPT, "too many"},
        {216, 4, UINT32_MAX, BW_CORRUPT, "too many"},
        {220, 4, 1, BW_CORRUPT, "must be zero"},
        {224, 4, 0, BW_CORRUPT, "kind 0"},
        {224, 4, 12, BW_CORRUPT, "kind 12"},
        {224, 4, 9, BW_CORRUPT, "section sample: a segment of these rows and fingerprints has none"},
        {224, 4, UINT32_MAX, BW_CORRUPT, "kind 4294967295"},
        {224, 4, 3, BW_CORRUPT, "section codes: its size"},
        {224 + 32, 4, 1, BW_CORRUPT, "listed twice"},
        {224 + 8, 8, 0, BW_CORRUPT, "overlaps"},
        {224 + 8, 8, 4097, BW_CORRUPT, "overlaps"},
        {224 + 8, 8, UINT64_MAX - 4095, BW_CORRUPT, "outside"},
        {224 + 32 + 8, 8, 4096, BW_CORRUPT, "overlaps"},
        {224 + 96 + 8, 8, UINT64_C(1) << 40, BW_CORRUPT, "outside"},
        {224 + 16, 8, 2392, BW_CORRUPT, "section ids: its size"},
        {224 + 16, 8, UINT64_MAX, BW_CORRUPT, "section ids: its size"},
        {224 + 24, 8, 1, BW_CORRUPT, "section ids: its size"},
        {224 + 32 * 4 + 16, 8, 3072, BW_CORRUPT, "section planes: its size"},
        {224 + 32 * 5 + 16, 8, 512, BW_CORRUPT, "section bins: its size"},
        {224 + 32 * 6 + 16, 8, 8192, BW_CORRUPT, "section centroids: its size"},
        {224 + 32 * 7 + 16, 8, 0, BW_CORRUPT, "section histograms: its size"},
        {224 + 32 * 8 + 16, 8, 196, BW_CORRUPT, "section recall: its size"},
        {224 + 32 * 9 + 16, 8, 300 * 128 - 1, BW_CORRUPT, "section fine: its size"},
        {224 + 32 * 9 + 16, 8, UINT64_MAX, BW_CORRUPT, "section fine: its size"},
        {224 + 32 * 9 + 8, 8, UINT64_C(1) << 40, BW_CORRUPT, "outside"},
        {224 + SECTIONS * 32, 1, 1, BW_CORRUPT, "must be zero"},
        {224 + 32 * 32, 1, 1, BW_CORRUPT, "must be zero"},
        {4091, 1, 1, BW_CORRUPT, "must be zero"},
        {4096 + 2400, 1, 1, BW_CORRUPT, "gap before section id rows"},
        {place(file, 6) + 256, 1, 1, BW_CORRUPT, "gap before section centroids"},
        {place(file, 6), 1, 1, BW_CORRUPT, "section bins: the bins of dimension 0"},
        {place(file, 6) + 8 * 31, 1, 1, BW_CORRUPT, "section bins: the bins of dimension 31"},
        {place(file, 6) + 8 * 5 + 3, 1, 0, BW_CORRUPT, "section bins: the bins of dimension 5"},
        {place(file, 6) + 8 * 7 + 2, 1, 255, BW_CORRUPT, "section bins: the bins of dimension 7"},
        {place(file, 10) + 4 * 7, 4, 6, BW_CORRUPT, "section recall: row 0"},
        {place(file, 10) + 4 * 47, 4, UINT32_MAX, BW_CORRUPT, "section recall: row 5"},
        {place(file, 10) + 4 * 16, 4, 6, BW_CORRUPT, "section recall: row 2"},
        {place(file, 10) + 4 * 12, 4, 0, BW_CORRUPT, "section recall: row 1"},
    };
    uint8_t *copy = test_alloc(bytes);
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        memcpy(copy, file, bytes);
        put(copy + changes[i].offset, changes[i].size, changes[i].value);
        fix(copy, bytes);
        CHECK_STATUS(open_bytes(copy, bytes), changes[i].status);
        CHECK_MESSAGE(changes[i].message);
        CHECK_MESSAGE("segment x");
        CHECK_MESSAGE("boxwood repair");
    }
    free(copy);
}

static void test_sections(const uint8_t *file, size_t bytes) {
    uint8_t *copy = test_alloc(bytes + 8192);
    const char *names[SECTIONS] = {"ids",  "id rows",   "codes",      "zones",  "planes",
                                   "bins", "centroids", "histograms", "recall", "fine"};
    char expected[64];
    for (size_t i = 0; i < SECTIONS; i++) {
        uint64_t offset = u64(file + 224 + 32 * i + 8), end = offset + u64(file + 224 + 32 * i + 16);
        memcpy(copy, file, bytes);
        copy[offset + 5] ^= 4;
        CHECK_STATUS(open_bytes(copy, bytes), BW_CORRUPT);
        snprintf(expected, sizeof expected, "section %s: checksum does not match", names[i]);
        CHECK_MESSAGE(expected);
        CHECK_MESSAGE("boxwood repair");
        /* Left out, with zeros in its place; the last with the file cut. */
        memcpy(copy, file, bytes);
        memset(copy + offset, 0, end - offset);
        memmove(copy + 224 + 32 * i, copy + 224 + 32 * (i + 1), 32 * (SECTIONS - i));
        put(copy + 216, 4, SECTIONS - 1);
        uint64_t before =
            i > 0 ? u64(file + 224 + 32 * (i - 1) + 8) + u64(file + 224 + 32 * (i - 1) + 16) : 0;
        size_t cut = i == SECTIONS - 1 ? before : bytes;
        put(copy + 40, 8, cut);
        fix(copy, cut);
        CHECK_STATUS(open_bytes(copy, cut), BW_CORRUPT);
        snprintf(expected, sizeof expected, "section %s: missing", names[i]);
        CHECK_MESSAGE(expected);
    }
    /* Entries in another order than their offsets. */
    memcpy(copy, file, bytes);
    memcpy(copy + 224, file + 224 + 32, 32);
    memcpy(copy + 224 + 32, file + 224, 32);
    fix(copy, bytes);
    CHECK_STATUS(open_bytes(copy, bytes), BW_CORRUPT);
    CHECK_MESSAGE("the gap before section id rows"); /* the ids would lie there */
    /* Contents that have changed places under right checksums: sizes tell, or where they are equal, the rows.
     */
    memcpy(copy, file, bytes);
    put(copy + 224, 4, 2);
    put(copy + 224 + 32, 4, 1);
    fix(copy, bytes);
    CHECK_STATUS(open_bytes(copy, bytes), BW_CORRUPT);
    CHECK_MESSAGE("its size");
    memcpy(copy, file, bytes);
    CHECK_EQUAL(u64(file + 224 + 32 * 3 + 16), u64(file + 224 + 32 * 6 + 16));
    put(copy + 224 + 32 * 3, 4, 7); /* zones and centroids */
    put(copy + 224 + 32 * 6, 4, 4);
    fix(copy, bytes);
    CHECK_STATUS(validate_bytes(copy, bytes), BW_CORRUPT);
    CHECK_MESSAGE("section zones: block 0");
    /* A larger gap of zeros is allowed; bytes after the last section are not. */
    memcpy(copy, file, bytes);
    uint64_t last = place(file, 11);
    memset(copy + last, 0, 4096);
    memcpy(copy + last + 4096, file + last, bytes - last);
    put(copy + 224 + 32 * 9 + 8, 8, last + 4096);
    put(copy + 40, 8, bytes + 4096);
    fix(copy, bytes + 4096);
    CHECK_STATUS(open_bytes(copy, bytes + 4096), BW_OK);
    memcpy(copy, file, bytes);
    memset(copy + bytes, 0, 8192);
    put(copy + 40, 8, bytes + 1);
    fix(copy, bytes + 1);
    CHECK_STATUS(open_bytes(copy, bytes + 1), BW_CORRUPT);
    CHECK_MESSAGE("after the last section");
    free(copy);
}

/* Contradictions under right checksums: row numbers are checked at open, the rest by the deep check. */
static void test_contents(const uint8_t *file, size_t bytes) {
    uint8_t *copy = test_alloc(bytes);
    uint64_t ids = place(file, 1), id_rows = place(file, 2), codes = place(file, 3), zones = place(file, 4);
    CHECK_EQUAL(validate_bytes(file, bytes), BW_OK);

    for (size_t rank = 0; rank < 300; rank += 23) {
        memcpy(copy, file, bytes);
        put(copy + id_rows + 4 * rank, 4, rank % 2 ? 300 : UINT32_MAX);
        fix(copy, bytes);
        CHECK_STATUS(open_bytes(copy, bytes), BW_CORRUPT);
        CHECK_MESSAGE("section id rows: row");
    }
    memcpy(copy, file, bytes);
    memcpy(copy + id_rows + 40, file + id_rows + 44, 4); /* a row twice, another never */
    fix(copy, bytes);
    CHECK_STATUS(validate_bytes(copy, bytes), BW_CORRUPT);
    CHECK_MESSAGE("section id rows: id");
    memcpy(copy, file, bytes);
    memcpy(copy + id_rows + 40, file + id_rows + 44, 4); /* two change places */
    memcpy(copy + id_rows + 44, file + id_rows + 40, 4);
    fix(copy, bytes);
    CHECK_STATUS(validate_bytes(copy, bytes), BW_CORRUPT);
    memcpy(copy, file, bytes);
    put(copy + ids + 8 * u32(file + id_rows + 40), 8, UINT64_MAX); /* a negative id */
    fix(copy, bytes);
    CHECK_STATUS(validate_bytes(copy, bytes), BW_CORRUPT);

    for (size_t dim = 0; dim < 64; dim += 9) {
        memcpy(copy, file, bytes);
        copy[zones + 64 * dim + 1] ^= 1;
        fix(copy, bytes);
        CHECK_STATUS(validate_bytes(copy, bytes), BW_CORRUPT);
        CHECK_MESSAGE("section zones: block 1");
        memcpy(copy, file, bytes);
        copy[zones + 64 * dim + 2] ^= 1;
        fix(copy, bytes);
        CHECK_STATUS(validate_bytes(copy, bytes), BW_CORRUPT);
        CHECK_MESSAGE("section zones: places past");
    }
    memcpy(copy, file, bytes);
    copy[codes + 8192 + 44] = 1; /* row 300 of 300, dimension 0 */
    fix(copy, bytes);
    CHECK_STATUS(validate_bytes(copy, bytes), BW_CORRUPT);
    CHECK_MESSAGE("section codes: values past the last row");

    /* What was made from the codes. 300 rows: 2 blocks, 5 granules, 1 tile. */
    const uint64_t planes = place(file, 5), bins = place(file, 6), centroids = place(file, 7),
                   histograms = place(file, 8);
    const struct {
        uint64_t offset;
        const char *message;
    } changes[] = {
        {planes, "section planes: row 0 of block 0 lies in bin"},
        {planes + 96 * 9 + 32 + 12, "section planes: row 96 of block 0 lies in bin"},
        {planes + 3072 + 96 * 31 + 64 + 5, "section planes: row 40 of block 1 lies in bin"},
        {planes + 3072 + 96 * 3 + 6, "section planes: bits past the last row"},
        {planes + 6143, "section planes: bits past the last row"},
        {bins + 7, "section bins: bin 7 of dimension 0"},
        {bins + 8 * 31 + 7, "section bins: bin 7 of dimension 31"},
        {centroids, "section centroids: the mean of tile 0 in dimension 0"},
        {centroids + 64 * 31, "section centroids: the mean of tile 0 in dimension 31"},
        {centroids + 1, "section centroids: places past the last tile"},
        {centroids + 64 * 31 + 63, "section centroids: places past the last tile"},
        {centroids + 2048 + 4, "section centroids: the mean of granule 4 of tile 0 in dimension 0"},
        {centroids + 2048 + 5, "section centroids: the mean of granule 5 of tile 0 in dimension 0 is 0"},
        {centroids + 2048 + 64 * 31, "section centroids: the mean of granule 0 of tile 0 in dimension 31"},
        {histograms + 4 * (256 * 4 + 100), "value 100 in dimension 4"},
        {histograms + 32764, "value 255 in dimension 31"},
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        memcpy(copy, file, bytes);
        copy[changes[i].offset] ^= 1;
        fix(copy, bytes);
        CHECK_STATUS(validate_bytes(copy, bytes), BW_CORRUPT);
        CHECK_MESSAGE(changes[i].message);
        CHECK_MESSAGE("segment x");
        CHECK_MESSAGE("boxwood repair");
    }

    /* A file that changes while it is open: the deep check reads the checksums again. */
    test_write_file(folder, "x", file, bytes);
    bw_segment *segment;
    CHECK_STATUS(bw_segment_open(folder, "x", &segment, &error), BW_OK);
    int changing = open("segment.tmp/x", O_WRONLY);
    CHECK(pwrite(changing, "\x55", 1, (off_t)codes + 7) == 1);
    close(changing);
    CHECK_STATUS(bw_segment_validate(segment, &error), BW_CORRUPT);
    CHECK_MESSAGE("section codes: checksum");
    bw_segment_close(segment);
    free(copy);
}

/* The sample, which only segments of more rows have. */
static void test_sample(void) {
    rows from = make_rows(10, 40000, 0, 1);
    bw_segment_spec spec = make_spec(&from);
    CHECK_STATUS(bw_segment_write(folder, "s", &spec, NULL, NULL, &error), BW_OK);
    size_t bytes;
    uint8_t *file = test_read_file(folder, "s", &bytes);
    const uint64_t sample = place(file, 9);
    const struct {
        uint64_t offset;
        const char *message;
    } changes[] = {
        {sample, "section sample: sample row 0 is not row 0"},
        {sample + 127 * 8192 + 256 * 31 + 255, "section sample: sample row 32767 is not row 39999"},
        {sample + 3 * 8192 + 256 * 7 + 9, "section sample: sample row 777 is not row 1410"}};
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        file[changes[i].offset] ^= 1;
        fix(file, bytes);
        CHECK_STATUS(validate_bytes(file, bytes), BW_CORRUPT);
        CHECK_MESSAGE(changes[i].message);
        file[changes[i].offset] ^= 1;
    }
    fix(file, bytes);
    CHECK_STATUS(validate_bytes(file, bytes), BW_OK);
    file[sample + 77] ^= 1;
    CHECK_STATUS(open_bytes(file, bytes), BW_CORRUPT);
    CHECK_MESSAGE("section sample: checksum");
    /* Left out, and a fingerprint of fine codes that are not there. */
    file[sample + 77] ^= 1;
    uint8_t *entry = file + (entry_of(file, 9) - file);
    memset(file + sample, 0, 1048576);
    memmove(entry, entry + 32, 32 * 2);
    put(file + 216, 4, 9);
    fix(file, bytes);
    CHECK_STATUS(open_bytes(file, bytes), BW_CORRUPT);
    CHECK_MESSAGE("section sample: missing");
    free(file);
    file = test_read_file(folder, "s", &bytes);
    memcpy(file + 168, "fine", 4);
    fix(file, bytes);
    CHECK_STATUS(open_bytes(file, bytes), BW_CORRUPT);
    CHECK_MESSAGE("section fine: missing");
    free(file);
    free_rows(&from);
}

static void test_damage(void) {
    rows from = make_rows(9, 300, 0, 11);
    add_fine(&from);
    bw_segment_spec spec = make_spec(&from);
    CHECK_STATUS(bw_segment_write(folder, "s", &spec, NULL, NULL, &error), BW_OK);
    size_t bytes;
    uint8_t *file = test_read_file(folder, "s", &bytes);
    test_flips(file, bytes);
    test_truncation(file, bytes);
    test_fields(file, bytes);
    test_sections(file, bytes);
    test_contents(file, bytes);
    bw_segment *segment = NULL;
    CHECK_STATUS(bw_segment_open(folder, "none", &segment, &error), BW_MISSING);
    CHECK_STATUS(bw_segment_open(folder, "../segment.tmp/s", &segment, &error), BW_INVALID);
    CHECK_STATUS(bw_segment_open(folder, "", &segment, &error), BW_INVALID);
    CHECK(segment == NULL);
    free(file);
    free_rows(&from);
}

/* ---- writing what cannot be written ---- */

typedef struct watch {
    double last;
    unsigned calls, stop_at;
    bool right;
} watch;

static int32_t look(void *context, double done) {
    watch *w = context;
    w->right &= done >= w->last && done <= 1;
    w->last = done;
    return ++w->calls == w->stop_at;
}

static void test_refusals(void) {
    test_empty_folder(folder);
    rows from = make_rows(4, 1000, 0, 1);
    bw_segment_spec spec = make_spec(&from), bad;
    from.ids[500] = from.ids[17];
    CHECK_STATUS(bw_segment_write(folder, "s", &spec, NULL, NULL, &error), BW_INVALID);
    char expected[64];
    snprintf(expected, sizeof expected, "id %lld is given twice", (long long)from.ids[17]);
    CHECK_MESSAGE(expected);
    from.ids[500] = -12;
    CHECK_STATUS(bw_segment_write(folder, "s", &spec, NULL, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("id -12 is negative");
    from.ids[500] = 5000;
    bad = spec;
    bad.rows = 0;
    CHECK_STATUS(bw_segment_write(folder, "s", &bad, NULL, NULL, &error), BW_INVALID);
    bad.rows = UINT64_C(1) << 31;
    CHECK_STATUS(bw_segment_write(folder, "s", &bad, NULL, NULL, &error), BW_INVALID);
    bad.rows = UINT64_MAX;
    CHECK_STATUS(bw_segment_write(folder, "s", &bad, NULL, NULL, &error), BW_INVALID);
    bad = spec;
    bad.ids = NULL;
    CHECK_STATUS(bw_segment_write(folder, "s", &bad, NULL, NULL, &error), BW_INVALID);
    bad = spec;
    bad.codes = NULL;
    CHECK_STATUS(bw_segment_write(folder, "s", &bad, NULL, NULL, &error), BW_INVALID);
    bad = spec;
    bad.fine = from.codes;
    CHECK_STATUS(bw_segment_write(folder, "s", &bad, NULL, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("fine codes and their fingerprint are given together or not at all");
    bad = spec;
    strcpy(bad.fingerprints.fine, "f");
    CHECK_STATUS(bw_segment_write(folder, "s", &bad, NULL, NULL, &error), BW_INVALID);
    CHECK_MESSAGE("together or not at all");
    memset(bad.fingerprints.fine, 'f', 32);
    CHECK_STATUS(bw_segment_write(folder, "s", &bad, NULL, NULL, &error), BW_INVALID);
    CHECK_STATUS(bw_segment_write(folder, "s", NULL, NULL, NULL, &error), BW_INVALID);
    CHECK_STATUS(bw_segment_write(NULL, "s", &spec, NULL, NULL, &error), BW_INVALID);
    CHECK_STATUS(bw_segment_write(folder, "a/b", &spec, NULL, NULL, &error), BW_INVALID);
    CHECK_STATUS(bw_segment_write("none.tmp", "s", &spec, NULL, NULL, &error), BW_IO);
    bad = spec;
    memset(bad.fingerprints.quantizer, 'q', 32);
    CHECK_STATUS(bw_segment_write(folder, "s", &bad, NULL, NULL, &error), BW_INVALID);
    CHECK_EQUAL(bw_segment_write(folder, "s", &bad, NULL, NULL, NULL), BW_INVALID);
    CHECK_EQUAL(test_count_files(folder, NULL), 0);
    free_rows(&from);

    /* Stopped at every call of the progress function: no file, or the one from before. Not stopped: the share
     * done rises to 1. */
    from = make_rows(5, 70000, 0, 1);
    spec = make_spec(&from);
    test_write_file(folder, "old", "as it was", 9);
    watch last = {.stop_at = 1, .right = true};
    CHECK_STATUS(bw_segment_write(folder, "old", &spec, look, &last, &error), BW_CANCELLED);
    size_t old_bytes;
    uint8_t *old = test_read_file(folder, "old", &old_bytes);
    CHECK(old_bytes == 9 && memcmp(old, "as it was", 9) == 0);
    free(old);
    test_remove_file(folder, "old");
    for (unsigned stop_at = 1;; stop_at += 4) {
        watch w = {.stop_at = stop_at, .right = true};
        int32_t code = bw_segment_write(folder, "s", &spec, look, &w, &error);
        CHECK(w.right);
        if (code == BW_OK) {
            CHECK(w.calls < stop_at && w.calls > 5 && w.last > 0.999);
            break;
        }
        CHECK(code == BW_CANCELLED && error.code == BW_CANCELLED && w.calls == stop_at);
        CHECK_EQUAL(test_count_files(folder, NULL), 0);
    }
    check_file(&from);
    free_rows(&from);
}

int main(void) {
    test_make_folder(folder);
    test_golden();
    test_sizes();
    test_shapes();
    test_sample();
    test_damage();
    test_refusals();
    test_remove_folder(folder);
    return test_finish();
}
