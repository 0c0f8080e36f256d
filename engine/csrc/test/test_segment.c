/* Segment files: bytes as FORMAT.md says, the row order, and refusal of everything that is damaged. */
#include "segment.h"
#include "test.h"

static const char *const folder = "segment.tmp";
static bw_error error;

typedef struct rows {
    uint64_t n;
    int64_t *ids;
    uint8_t *codes;
} rows;

static rows make_rows(uint64_t seed, uint64_t n, int64_t first_id, int64_t step) {
    rows made = {n, test_alloc(n * sizeof(int64_t)), test_alloc(n * BW_DIMS)};
    test_make_rows(seed, n, first_id, step, made.ids, made.codes);
    return made;
}

static void free_rows(rows *gone) {
    free(gone->ids);
    free(gone->codes);
}

static bw_segment_spec make_spec(const rows *from) {
    bw_segment_spec spec = {.rows = from->n,
                            .ids = from->ids,
                            .codes = from->codes,
                            .generation = 7,
                            .fingerprints = {"an encoder", "a head", "5f0c3d2a9b1e4877"}};
    memcpy(spec.uuid, "0123456789abcdef", 16);
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
        at[i] = (uint8_t)(value >> (8 * i));
    }
}

/* Makes the checksums right again: those of the sections that lie in the file, and the header's. */
static void fix(uint8_t *file, size_t bytes) {
    uint32_t sections = u32(file + 184);
    for (uint32_t i = 0; i < sections && i < 32; i++) {
        uint8_t *entry = file + 192 + 32 * (size_t)i;
        uint64_t offset = u64(entry + 8), size = u64(entry + 16);
        if (offset <= bytes && size <= bytes - offset) {
            put(entry + 4, 4, bw_crc32c(0, file + offset, size));
        }
    }
    put(file + 4092, 4, bw_crc32c(0, file, 4092));
}

static const uint8_t *section(const uint8_t *file, uint32_t kind, uint64_t expected_bytes) {
    for (uint32_t i = 0; i < u32(file + 184); i++) {
        const uint8_t *entry = file + 192 + 32 * (size_t)i;
        if (u32(entry) == kind) {
            CHECK_EQUAL(u64(entry + 16), expected_bytes);
            CHECK_EQUAL(u64(entry + 8) % 4096, 0);
            CHECK_EQUAL(u32(entry + 4), bw_crc32c(0, file + u64(entry + 8), expected_bytes));
            CHECK_EQUAL(u64(entry + 24), 0);
            return file + u64(entry + 8);
        }
    }
    CHECK(!"section found");
    exit(1);
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

static void check_file(const rows *from) {
    size_t bytes;
    uint8_t *file = test_read_file(folder, "s", &bytes);
    uint64_t n = from->n, blocks = (n + 255) / 256, stride = (blocks + 63) / 64 * 64;
    CHECK(memcmp(file, "BXWSEGM1", 8) == 0);
    const uint32_t words[] = {1, 0x01020304, 4096, 32, 256, 4096};
    for (size_t i = 0; i < 6; i++) {
        CHECK_EQUAL(u32(file + 8 + 4 * i), words[i]);
    }
    CHECK_EQUAL(u64(file + 32), n);
    CHECK_EQUAL(u64(file + 40), bytes);
    CHECK_EQUAL(u64(file + 48), 7);
    CHECK(memcmp(file + 56, "0123456789abcdef", 16) == 0);
    CHECK(memcmp(file + 72, "an encoder\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 32) == 0);
    CHECK(strcmp((char *)file + 104, "a head") == 0 && strcmp((char *)file + 136, "5f0c3d2a9b1e4877") == 0);
    CHECK_EQUAL(u32(file + 184), 4);
    CHECK_EQUAL(u32(file + 188), 0);
    CHECK_EQUAL(u32(file + 4092), bw_crc32c(0, file, 4092));
    for (size_t i = 192 + 4 * 32; i < 4092; i++) {
        CHECK(file[i] == 0);
    }
    for (uint64_t i = 1; i < 4; i++) {
        CHECK(u64(file + 192 + 32 * i + 8) > u64(file + 192 + 32 * (i - 1) + 8));
    }

    const uint8_t *ids = section(file, 1, 8 * n), *id_rows = section(file, 2, 4 * n);
    const uint8_t *codes = section(file, 3, 8192 * blocks), *zones = section(file, 4, 64 * stride);
    CHECK_EQUAL(zones + 64 * stride - file, bytes);
    const int64_t **sorted = sort_rows(from);
    CHECK_EQUAL(u64(file + 168), *sorted[0]);
    CHECK_EQUAL(u64(file + 176), *sorted[n - 1]);
    uint8_t low[BW_DIMS], high[BW_DIMS];
    uint8_t *seen = test_alloc(n);
    bool rows_right = true, ids_right = true, zones_right = true, padding_right = true, blocks_right = true;
    for (uint64_t rank = 0; rank < n; rank++) {
        uint32_t row = u32(id_rows + 4 * rank);
        ids_right &= row < n && !seen[row] && u64(ids + 8 * row) == (uint64_t)*sorted[rank];
        seen[row] = 1;
        const uint8_t *code = from->codes + (sorted[rank] - from->ids) * BW_DIMS;
        uint64_t tile = row / 4096, left = blocks - tile * 16;
        uint64_t width = left < 16 ? left * 256 : 4096;
        for (uint64_t dim = 0; dim < BW_DIMS; dim++) {
            rows_right &= codes[tile * 131072 + dim * width + row % 4096] == code[dim];
        }
    }
    for (uint64_t block = 0; block < stride; block++) {
        memset(low, 255, sizeof low);
        memset(high, 0, sizeof high);
        for (uint64_t row = block * 256; row < (block + 1) * 256 && block < blocks; row++) {
            uint64_t tile = row / 4096, left = blocks - tile * 16;
            uint64_t width = left < 16 ? left * 256 : 4096;
            blocks_right &= row >= n || row % 256 == 0 || u64(ids + 8 * row) > u64(ids + 8 * (row - 1));
            for (uint64_t dim = 0; dim < BW_DIMS; dim++) {
                uint8_t value = codes[tile * 131072 + dim * width + row % 4096];
                if (row >= n) {
                    padding_right &= value == 0;
                } else {
                    low[dim] = value < low[dim] ? value : low[dim];
                    high[dim] = value > high[dim] ? value : high[dim];
                }
            }
        }
        for (uint64_t dim = 0; dim < BW_DIMS; dim++) {
            zones_right &= zones[dim * stride + block] == low[dim];
            zones_right &= zones[32 * stride + dim * stride + block] == high[dim];
        }
    }
    CHECK(rows_right);
    CHECK(ids_right);
    CHECK(zones_right);
    CHECK(padding_right);
    CHECK(blocks_right); /* ids ascend inside a block */
    free(sorted);
    free(seen);
    free(file);
}

static void check_open(const rows *from) {
    bw_segment *segment;
    CHECK_STATUS(bw_segment_open(folder, "s", &segment, &error), BW_OK);
    CHECK_STATUS(bw_segment_validate(segment, &error), BW_OK);
    CHECK_EQUAL(segment->rows, from->n);
    CHECK(strcmp(segment->info.name, "s") == 0 && segment->info.blocks == segment->blocks);
    CHECK(segment->info.generation == 7 && segment->info.format == 1);
    uint64_t total = 0;
    for (uint32_t block = 0; block < segment->blocks; block++) {
        uint32_t in_block = bw_segment_block_rows(segment, block);
        size_t stride;
        const uint8_t *columns = bw_segment_block(segment, block, &stride);
        CHECK(in_block >= 1 && in_block <= 256);
        CHECK(columns >= segment->codes &&
              columns + 31 * stride + 256 <= segment->map.data + segment->map.bytes);
        total += in_block;
    }
    CHECK_EQUAL(total, from->n);
    bw_segment_close(segment);
    bw_segment_close(NULL);
}

/* The same rows in another order of input give the same bytes. */
static void check_deterministic(const rows *from) {
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
    bw_segment_spec spec = make_spec(&other);
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

static void test_sizes(void) {
    const uint64_t sizes[] = {1, 2, 255, 256, 257, 511, 513, 4095, 4096, 4097, 16384, 16385, 70000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        rows from = make_rows(i, sizes[i], i % 2 ? 0 : INT64_MAX - 7 * 70000, i % 2 ? 3 : 7);
        bw_segment_spec spec = make_spec(&from);
        CHECK_STATUS(bw_segment_write(folder, "s", &spec, NULL, NULL, &error), BW_OK);
        check_file(&from);
        check_open(&from);
        check_deterministic(&from);
        CHECK_EQUAL(test_count_files(folder, "."), 0);
        free_rows(&from);
    }
}

/* ---- the order ---- */

static const rows *sorting;
static uint32_t sorting_dim;

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    uint8_t u = sorting->codes[x * BW_DIMS + sorting_dim], v = sorting->codes[y * BW_DIMS + sorting_dim];
    int64_t i = sorting->ids[x], j = sorting->ids[y];
    return u != v ? (u > v) - (u < v) : (i > j) - (i < j);
}

static int by_row_id(const void *a, const void *b) {
    int64_t i = sorting->ids[*(const uint32_t *)a], j = sorting->ids[*(const uint32_t *)b];
    return (i > j) - (i < j);
}

/* The order as FORMAT.md and segment_order.c define it, by sorting. */
static void plain_order(uint32_t *order, uint64_t n) {
    if (n <= 256) {
        qsort(order, n, sizeof *order, by_row_id);
        return;
    }
    uint64_t best = 0;
    sorting_dim = 0;
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        uint64_t sum = 0, squares = 0;
        for (uint64_t i = 0; i < n; i++) {
            uint64_t value = sorting->codes[order[i] * BW_DIMS + dim];
            sum += value;
            squares += value * value;
        }
        if (n * squares - sum * sum > best) {
            best = n * squares - sum * sum;
            sorting_dim = dim;
        }
    }
    qsort(order, n, sizeof *order, by_value);
    uint64_t left = (n / 2 + 128) / 256 * 256;
    plain_order(order, left);
    plain_order(order + left, n - left);
}

static void check_order(const rows *from) {
    uint32_t *order = test_alloc(from->n * sizeof *order), *plain = test_alloc(from->n * sizeof *plain);
    CHECK_STATUS(bw_segment_order(from->ids, from->codes, from->n, order, NULL, NULL, &error), BW_OK);
    for (uint64_t i = 0; i < from->n; i++) {
        plain[i] = (uint32_t)i;
    }
    sorting = from;
    plain_order(plain, from->n);
    CHECK(memcmp(order, plain, from->n * sizeof *order) == 0);
    free(order);
    free(plain);
}

static void test_order(void) {
    const uint64_t sizes[] = {1, 256, 257, 384, 385, 640, 1000, 5000, 20000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        rows from = make_rows(100 + i, sizes[i], 5, 2);
        check_order(&from);
        memset(from.codes, 9, from.n * BW_DIMS); /* nothing to tell rows apart but ids */
        check_order(&from);
        for (uint64_t j = 0; j < from.n * BW_DIMS; j++) {
            from.codes[j] = j % 3 ? 255 : 0; /* two values, largest variances, many ties */
        }
        check_order(&from);
        free_rows(&from);
    }
    CHECK_STATUS(bw_segment_order(NULL, NULL, 0, NULL, NULL, NULL, &error), BW_INVALID);

    /* Sums over more than 65,536 rows of the largest values, and what the order is for: narrow zones. */
    rows from = make_rows(1, 70000, 0, 1);
    bw_segment_spec spec = make_spec(&from);
    CHECK_STATUS(bw_segment_write(folder, "s", &spec, NULL, NULL, &error), BW_OK);
    bw_segment *segment;
    CHECK_STATUS(bw_segment_open(folder, "s", &segment, &error), BW_OK);
    uint64_t widths = 0;
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        for (uint32_t block = 0; block < segment->blocks; block++) {
            size_t zone = (size_t)dim * segment->zone_stride + block;
            widths += (uint64_t)(segment->zone_max[zone] - segment->zone_min[zone]);
        }
    }
    CHECK(widths / (BW_DIMS * segment->blocks) < 64); /* clusters are 32 wide, all rows 255 */
    bw_segment_close(segment);
    for (uint64_t j = 0; j < from.n; j++) {
        memset(from.codes + j * BW_DIMS, j % 5 == 0 ? 254 : 255, BW_DIMS);
        from.codes[j * BW_DIMS + 17] = j % 2 ? 253 : 255;
    }
    check_order(&from);
    free_rows(&from);

    /* Sorting ids whose digits differ in few and in all places. */
    bw_random random = {3};
    int64_t ids[5000];
    uint32_t sorted[5000];
    for (int shift = 0; shift < 63; shift += 3) {
        for (int i = 0; i < 5000; i++) {
            ids[i] = (int64_t)((bw_random_next(&random) >> 1) >> shift);
        }
        CHECK_STATUS(bw_sort_ids(ids, 5000, sorted, &error), BW_OK);
        bool right = true;
        for (int i = 1; i < 5000; i++) {
            right &= ids[sorted[i - 1]] < ids[sorted[i]] ||
                     (ids[sorted[i - 1]] == ids[sorted[i]] && sorted[i - 1] < sorted[i]);
        }
        CHECK(right);
    }
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

/* Every byte of the file is guarded: one bit in each, and all bits of the header's fields. */
static void test_flips(const uint8_t *file, size_t bytes) {
    CHECK_EQUAL(open_bytes(file, bytes), BW_OK);
    int changing = open("segment.tmp/x", O_WRONLY);
    unsigned long refused = 0, tried = 0;
    for (size_t at = 0; at < bytes; at++) {
        for (unsigned bit = at < 320 ? 0 : (unsigned)at % 8; bit < 8; bit += at < 320 ? 1 : 8) {
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

static void test_truncation(const uint8_t *file, size_t bytes) {
    uint8_t *longer = test_alloc(bytes + 4096);
    memcpy(longer, file, bytes);
    for (size_t length = 0; length < bytes + 4096; length += length < 64 || length > bytes - 64 ? 1 : 61) {
        if (length != bytes) {
            CHECK_STATUS(open_bytes(longer, length), BW_CORRUPT);
            if (length >= 4096) {
                /* Though the header be made to agree. */
                uint8_t *agreeing = test_alloc(length);
                memcpy(agreeing, longer, length);
                put(agreeing + 40, 8, length);
                fix(agreeing, length);
                CHECK_STATUS(open_bytes(agreeing, length), BW_CORRUPT);
                free(agreeing);
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
        {8, 4, 2, BW_VERSION, "format 2"},
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
        {168, 8, UINT64_MAX, BW_CORRUPT, "smallest and largest"},
        {168, 8, 1 << 20, BW_CORRUPT, "smallest and largest"},
        {168, 8, 1, BW_CORRUPT, "not the header's"},
        {176, 8, 1 << 20, BW_CORRUPT, "not the header's"},
        {184, 4, 3, BW_CORRUPT, "must be zero"},
        {184, 4, 5, BW_CORRUPT, "kind 0"},
        {184, 4, 33, BW_CORRUPT, "too many"},
        {184, 4, UINT32_MAX, BW_CORRUPT, "too many"},
        {188, 4, 1, BW_CORRUPT, "must be zero"},
        {192, 4, 0, BW_CORRUPT, "kind 0"},
        {192, 4, 5, BW_CORRUPT, "kind 5"},
        {192, 4, UINT32_MAX, BW_CORRUPT, "kind 4294967295"},
        {192, 4, 3, BW_CORRUPT, "section codes: its size"},
        {192 + 32, 4, 1, BW_CORRUPT, "listed twice"},
        {192 + 8, 8, 0, BW_CORRUPT, "overlaps"},
        {192 + 8, 8, 4097, BW_CORRUPT, "overlaps"},
        {192 + 8, 8, UINT64_MAX - 4095, BW_CORRUPT, "outside"},
        {192 + 32 + 8, 8, 4096, BW_CORRUPT, "overlaps"},
        {192 + 96 + 8, 8, UINT64_C(1) << 40, BW_CORRUPT, "outside"},
        {192 + 16, 8, 2392, BW_CORRUPT, "section ids: its size"},
        {192 + 16, 8, UINT64_MAX, BW_CORRUPT, "section ids: its size"},
        {192 + 24, 8, 1, BW_CORRUPT, "section ids: its size"},
        {192 + 4 * 32, 1, 1, BW_CORRUPT, "must be zero"},
        {192 + 32 * 32, 1, 1, BW_CORRUPT, "must be zero"},
        {4091, 1, 1, BW_CORRUPT, "must be zero"},
        {4096 + 2400, 1, 1, BW_CORRUPT, "gap before section id rows"},
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
    const char *names[] = {"section ids:", "section id rows:", "section codes:", "section zones:"};
    for (size_t i = 0; i < 4; i++) {
        memcpy(copy, file, bytes);
        copy[u64(file + 192 + 32 * i + 8) + 5] ^= 4;
        CHECK_STATUS(open_bytes(copy, bytes), BW_CORRUPT);
        CHECK_MESSAGE(names[i]);
        CHECK_MESSAGE("checksum does not match");
        CHECK_MESSAGE("boxwood repair");
    }
    /* Entries in another order than their offsets. */
    memcpy(copy, file, bytes);
    memcpy(copy + 192, file + 192 + 32, 32);
    memcpy(copy + 192 + 32, file + 192, 32);
    fix(copy, bytes);
    CHECK_STATUS(open_bytes(copy, bytes), BW_CORRUPT);
    CHECK_MESSAGE("the gap before section id rows"); /* the ids would lie there */
    /* Contents that have changed places under right checksums. */
    memcpy(copy, file, bytes);
    put(copy + 192, 4, 2);
    put(copy + 192 + 32, 4, 1);
    fix(copy, bytes);
    CHECK_STATUS(open_bytes(copy, bytes), BW_CORRUPT);
    CHECK_MESSAGE("its size");
    /* One left out: the last, with the file cut before its gap, after it, and with nothing after the third.
     */
    uint64_t third_end = u64(file + 192 + 64 + 8) + u64(file + 192 + 64 + 16);
    memcpy(copy, file, bytes);
    memset(copy + 192 + 96, 0, 32);
    put(copy + 184, 4, 3);
    put(copy + 40, 8, third_end);
    fix(copy, third_end);
    CHECK_STATUS(open_bytes(copy, third_end), BW_CORRUPT);
    CHECK_MESSAGE("section zones: missing");
    /* A larger gap of zeros is allowed; bytes after the last section are not. */
    memcpy(copy, file, bytes);
    uint64_t zones = u64(file + 192 + 96 + 8);
    memset(copy + zones, 0, 4096);
    memcpy(copy + zones + 4096, file + zones, bytes - zones);
    put(copy + 192 + 96 + 8, 8, zones + 4096);
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
    uint64_t ids = u64(file + 200), id_rows = u64(file + 232), codes = u64(file + 264),
             zones = u64(file + 296);
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
    copy[codes + 300] = 1; /* row 300 of 300, dimension 0 */
    fix(copy, bytes);
    CHECK_STATUS(validate_bytes(copy, bytes), BW_CORRUPT);
    CHECK_MESSAGE("past the last row");

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

static void test_damage(void) {
    rows from = make_rows(9, 300, 0, 11);
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

    /* Stopped at every call of the progress function: no file. Not stopped: the share done rises to 1. */
    from = make_rows(5, 140000, 0, 1);
    spec = make_spec(&from);
    for (unsigned stop_at = 1;; stop_at += 4) {
        watch w = {.stop_at = stop_at, .right = true};
        int32_t code = bw_segment_write(folder, "s", &spec, look, &w, &error);
        CHECK(w.right);
        if (code == BW_OK) {
            CHECK(w.calls < stop_at && w.calls > 30 && w.last > 0.999);
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
    test_sizes();
    test_order();
    test_damage();
    test_refusals();
    test_remove_folder(folder);
    return test_finish();
}
