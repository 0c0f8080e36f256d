/* Manifests, the table of open indexes, reading by id and row, drawing. */
#include "index.h"
#include "test.h"

#include <pthread.h>

static const char *const folder = "index.tmp";
static const uint8_t uuid[16] = "0123456789abcdef";
static const bw_fingerprints fingerprints = {"encoder", "head", "quantizer", "fine"};
static bw_error error;

static void write_rows(const char *name, uint64_t n, const int64_t *ids, const uint8_t *codes) {
    uint8_t *fine = test_alloc(n * BW_FINE_DIMS);
    test_make_fine(n, ids, fine);
    bw_segment_spec spec = {
        .rows = n, .ids = ids, .codes = codes, .fine = fine, .generation = 3, .fingerprints = fingerprints};
    memcpy(spec.uuid, uuid, 16);
    CHECK_STATUS(bw_segment_write(folder, name, &spec, NULL, NULL, &error), BW_OK);
    free(fine);
}

static bool fine_right(uint64_t n, const int64_t *ids, const uint8_t *fine) {
    uint8_t *expected = test_alloc(n * BW_FINE_DIMS);
    test_make_fine(n, ids, expected);
    bool right = memcmp(expected, fine, n * BW_FINE_DIMS) == 0;
    free(expected);
    return right;
}

/* ids first_id, first_id + step, ... */
static void write_segment(const char *name, uint64_t seed, uint64_t n, int64_t first_id, int64_t step) {
    int64_t *ids = test_alloc(n * sizeof *ids);
    uint8_t *codes = test_alloc(n * BW_DIMS);
    test_make_rows(seed, n, first_id, step, ids, codes);
    write_rows(name, n, ids, codes);
    free(ids);
    free(codes);
}

static int32_t write_manifest(uint64_t generation, const char *const *names, uint32_t n) {
    return bw_manifest_write(folder, uuid, generation, names, NULL, n, &fingerprints, &error);
}

static bw_index *open_index(void) {
    bw_index *index = NULL;
    CHECK_STATUS(bw_index_open(folder, &index, &error), BW_OK);
    if (index == NULL) {
        exit(test_finish());
    }
    return index;
}

/* Files that are younger than the clock's tick are never trusted to be unchanged. */
static void settle(void) {
    usleep(150000);
}

static void put(uint8_t *at, size_t bytes, uint64_t value) {
    for (size_t i = 0; i < bytes; i++) {
        at[i] = (uint8_t)(value >> (8 * i));
    }
}

/* ---- manifests ---- */

static void test_manifest(void) {
    const char *names[] = {"1-0.segment", "1-1.segment", "2-0.segment"};
    test_make_folder(folder);
    bw_index *index = NULL;
    CHECK_STATUS(bw_index_open("none.tmp", &index, &error), BW_MISSING);
    CHECK_MESSAGE("no Boxwood index at 'none.tmp'");
    CHECK_MESSAGE("boxwood repair");
    CHECK_STATUS(bw_index_open(folder, &index, &error), BW_MISSING);
    CHECK_STATUS(bw_index_open(NULL, &index, &error), BW_INVALID);
    CHECK(index == NULL);

    /* An index without segments. */
    CHECK_STATUS(write_manifest(1, NULL, 0), BW_OK);
    index = open_index();
    bw_index_info info;
    bw_segment_info segment;
    CHECK_EQUAL(bw_index_describe(index, &info), BW_OK);
    CHECK(info.rows == 0 && info.bytes == 0 && info.segments == 0 && info.generation == 1);
    CHECK_STATUS(bw_index_segment(index, 0, &segment, &error), BW_INVALID);
    CHECK_STATUS(bw_index_validate(index, &error), BW_OK);
    int64_t id = 5;
    uint8_t code[BW_DIMS], found = 9;
    size_t drawn = 9;
    CHECK_STATUS(bw_index_codes(index, &id, 1, code, &found, &error), BW_OK);
    CHECK(found == 0);
    CHECK_STATUS(bw_index_rows(index, 0, 0, NULL, NULL, NULL, &error), BW_OK);
    CHECK_STATUS(bw_index_rows(index, 0, 1, &id, NULL, NULL, &error), BW_INVALID);
    CHECK_STATUS(bw_index_draw(index, 1, 1, NULL, 0, &id, &drawn, &error), BW_OK);
    CHECK_EQUAL(drawn, 0);
    bw_index_close(index);
    bw_index_close(NULL);

    /* What is written must exist and belong together. */
    write_segment("1-0.segment", 1, 1000, 0, 1);
    write_segment("1-1.segment", 2, 300, 1000, 1);
    CHECK_STATUS(write_manifest(2, names, 3), BW_MISSING);
    CHECK_MESSAGE("2-0.segment");
    CHECK_EQUAL(test_count_files(folder, "."), 0);
    write_segment("2-0.segment", 3, 5000, 1300, 1);
    CHECK_STATUS(write_manifest(2, names, 3), BW_OK);
    const char *twice[] = {"1-0.segment", "2-0.segment", "1-0.segment"},
               *outside[] = {"../index.tmp/1-0.segment"};
    const char *none[] = {NULL};
    CHECK_STATUS(write_manifest(2, twice, 3), BW_INVALID);
    CHECK_MESSAGE("listed twice");
    CHECK_STATUS(write_manifest(2, outside, 1), BW_INVALID);
    CHECK_STATUS(write_manifest(2, none, 1), BW_INVALID);
    CHECK_STATUS(write_manifest(2, NULL, 1), BW_INVALID);
    CHECK_STATUS(write_manifest(2, names, BW_MAX_SEGMENTS + 1), BW_INVALID);
    bw_fingerprints other = fingerprints;
    other.quantizer[0] = 'Q';
    CHECK_STATUS(bw_manifest_write(folder, uuid, 2, names, NULL, 3, &other, &error), BW_MISMATCH);
    CHECK_MESSAGE("fingerprints");
    memset(other.quantizer, 'Q', 32);
    CHECK_STATUS(bw_manifest_write(folder, uuid, 2, names, NULL, 3, &other, &error), BW_INVALID);
    CHECK_STATUS(bw_manifest_write(folder, (const uint8_t *)"another one's id", 2, names, NULL, 3,
                                   &fingerprints, &error),
                 BW_MISMATCH);
    CHECK_MESSAGE("another collection");
    CHECK_STATUS(bw_manifest_write("none.tmp", uuid, 2, names, NULL, 3, &fingerprints, &error), BW_MISSING);

    index = open_index();
    CHECK_EQUAL(bw_index_describe(index, &info), BW_OK);
    CHECK(info.rows == 6300 && info.segments == 3 && info.generation == 2 &&
          memcmp(info.uuid, uuid, 16) == 0);
    CHECK(memcmp(&info.fingerprints, &fingerprints, sizeof fingerprints) == 0);
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < 3; i++) {
        CHECK_STATUS(bw_index_segment(index, i, &segment, &error), BW_OK);
        CHECK(strcmp(segment.name, names[i]) == 0 && segment.generation == 3);
        bytes += segment.bytes;
        size_t file_bytes;
        free(test_read_file(folder, names[i], &file_bytes));
        CHECK_EQUAL(segment.bytes, file_bytes);
    }
    CHECK(bytes == info.bytes && segment.rows == 5000 && segment.blocks == 20 && segment.min_id == 1300);
    CHECK_EQUAL(index->first_rows[3], 6300);
    CHECK_EQUAL(index->first_blocks[3], 4 + 2 + 20);
    CHECK_STATUS(bw_index_segment(index, 3, &segment, &error), BW_INVALID);
    CHECK_STATUS(bw_index_validate(index, &error), BW_OK);

    /* The bytes, by the numbers of FORMAT.md. */
    size_t n;
    uint8_t *file = test_read_file(folder, "MANIFEST", &n);
    CHECK_EQUAL(n, 180 + 144 * 3);
    CHECK(memcmp(file, "BXWMANI1\3\0\0\0\4\3\2\1", 16) == 0 && memcmp(file + 16, uuid, 16) == 0);
    CHECK(memcmp(file + 32, "\2\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0", 16) == 0);
    CHECK(memcmp(file + 48, &fingerprints, 128) == 0);
    for (size_t i = 0; i < 3; i++) {
        const uint8_t *entry = file + 176 + 144 * i;
        size_t segment_bytes;
        uint8_t *listed = test_read_file(folder, names[i], &segment_bytes);
        CHECK(strcmp((const char *)entry, names[i]) == 0);
        CHECK(memcmp(entry + 48, listed + 32, 24) == 0); /* rows, bytes, generation */
        CHECK(memcmp(entry + 80, listed + 4092, 4) == 0);
        free(listed);
    }
    bw_index_close(index);

    /* Damage: every byte, every length; then fields under a right checksum. */
    uint8_t *copy = test_alloc(n + 144);
    for (size_t at = 0; at < n; at++) {
        memcpy(copy, file, n);
        copy[at] ^= (uint8_t)(1u << (at % 8));
        test_write_file(folder, "MANIFEST", copy, n);
        int32_t code = bw_index_open(folder, &index, &error);
        CHECK(code == BW_CORRUPT || (code == BW_VERSION && at >= 8 && at < 12));
        CHECK_MESSAGE("boxwood repair");
    }
    memset(copy, 0, n + 144);
    memcpy(copy, file, n);
    for (size_t length = 0; length < n + 144; length++) {
        if (length != n) {
            test_write_file(folder, "MANIFEST", copy, length);
            CHECK_STATUS(bw_index_open(folder, &index, &error), BW_CORRUPT);
        }
    }
    const struct {
        size_t offset, size;
        uint64_t value;
        int32_t status;
        const char *message;
    } changes[] = {
        {8, 4, 2, BW_VERSION, "format 2"},
        {8, 4, 4, BW_VERSION, "format 4"},
        {12, 4, 0x04030201, BW_VERSION, "byte order"},
        {16, 1, 'X', BW_MISMATCH, "another collection"},
        {40, 4, 2, BW_CORRUPT, "2 segments"},
        {40, 4, UINT32_MAX, BW_CORRUPT, "4294967295 segments"},
        {44, 4, 1, BW_CORRUPT, "header"},
        {48 + 31, 1, 'x', BW_CORRUPT, "header"},
        {48, 1, 'E', BW_MISMATCH, "fingerprints"},
        {144, 4, 0, BW_MISMATCH, "fingerprints"}, /* no fine codes, says the manifest */
        {144 + 31, 1, 'x', BW_CORRUPT, "header"},
        {176, 1, '/', BW_CORRUPT, "entry 0"},
        {176, 1, '.', BW_CORRUPT, "entry 0"},
        {176, 1, 0, BW_CORRUPT, "entry 0"},
        {176 + 47, 1, 'x', BW_CORRUPT, "entry 0"},
        {176 + 144 + 143, 1, 1, BW_CORRUPT, "entry 1"},
        {176, 1, '7', BW_CORRUPT, "7-0.segment"},
        {176 + 144 + 2, 1, '0', BW_CORRUPT, "listed twice"},
        {176 + 48, 8, 999, BW_MISMATCH, "not the file that the manifest lists"},
        {176 + 56, 8, 4096, BW_MISMATCH, "not the file that the manifest lists"},
        {176 + 64, 8, 4, BW_MISMATCH, "not the file that the manifest lists"},
        {176 + 80, 4, 4, BW_MISMATCH, "not the file that the manifest lists"},
        {176 + 72, 8, 1, BW_CORRUPT, "entry 0"}, /* dead rows without a deletion vector */
        {176 + 84, 4, 1, BW_CORRUPT, "entry 0"},
        {176 + 88, 1, '/', BW_CORRUPT, "entry 0"},
        {176 + 88, 1, 'x', BW_CORRUPT, "lists a deletion vector that is gone"},
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        memcpy(copy, file, n);
        put(copy + changes[i].offset, changes[i].size, changes[i].value);
        put(copy + n - 4, 4, bw_crc32c(0, copy, n - 4));
        test_write_file(folder, "MANIFEST", copy, n);
        CHECK_STATUS(bw_index_open(folder, &index, &error), changes[i].status);
        CHECK_MESSAGE(changes[i].message);
    }
    test_write_file(folder, "MANIFEST", file, n);
    bw_index_close(open_index());
    free(copy);
    free(file);
}

/* ---- sharing ---- */

static void damage(const char *name, size_t offset) {
    char path[64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int file = open(path, O_RDWR);
    uint8_t byte = 0;
    CHECK(pread(file, &byte, 1, (off_t)offset) == 1);
    byte ^= 16;
    CHECK(pwrite(file, &byte, 1, (off_t)offset) == 1);
    close(file);
}

static void test_sharing(void) {
    const char *names[] = {"a", "b"};
    test_make_folder(folder);
    write_segment("a", 1, 1000, 0, 1);
    write_segment("b", 2, 1000, 1000, 1);
    settle();
    CHECK_STATUS(write_manifest(1, names, 1), BW_OK);
    bw_index *first = open_index(), *again = open_index();
    CHECK(first == again);
    CHECK(bw_index_retain(first) == first);
    bw_index_close(first);
    bw_index_close(again);

    /* An append opens the new segment alone; the old index lives on. */
    CHECK_STATUS(write_manifest(2, names, 2), BW_OK);
    bw_index *second = open_index();
    CHECK(second != first && second->segments[0] == first->segments[0] && second->info.rows == 2000);
    int64_t ids[10];
    uint8_t codes[10 * BW_DIMS];
    CHECK_STATUS(bw_index_rows(first, 990, 10, ids, codes, NULL, &error), BW_OK);
    CHECK_STATUS(bw_index_rows(first, 991, 10, ids, codes, NULL, &error), BW_INVALID);
    bw_index_close(first); /* the last hold: what bw_index_retain gave */

    /* Unused, an index is kept for whoever comes next. */
    const bw_segment *kept = second->segments[1];
    bw_index_close(second);
    CHECK_STATUS(bw_index_open("index.tmp/../index.tmp", &again, &error),
                 BW_OK); /* another path to the same folder */
    CHECK(again == second && again->segments[1] == kept);

    /* Generations go back and forth while it is in use. */
    CHECK_STATUS(write_manifest(3, names + 1, 1), BW_OK);
    bw_index *third = open_index();
    CHECK(third->info.rows == 1000 && third->segments[0] == kept && third->info.generation == 3);
    CHECK_STATUS(write_manifest(2, names, 2), BW_OK);
    bw_index *fourth = open_index();
    CHECK(fourth->info.generation == 2 && fourth != third && fourth->segments[1] == kept);
    CHECK_STATUS(bw_index_validate(again, &error), BW_OK);
    bw_index_close(again);
    bw_index_close(third);
    bw_index_close(fourth);

    /* A file that was tampered with is noticed at the next open, though the index is in the table; and again.
     */
    damage("a", 4096 + 8);
    CHECK_STATUS(bw_index_open(folder, &first, &error), BW_CORRUPT);
    CHECK_MESSAGE("segment a: section ids: checksum");
    CHECK_STATUS(bw_index_open(folder, &first, &error), BW_CORRUPT);
    damage("a", 4096 + 8);
    first = open_index();
    damage("a", 4096 + 8); /* in the same tick of the clock, maybe: a young file is not trusted */
    CHECK_STATUS(bw_index_open(folder, &again, &error), BW_CORRUPT);
    damage("a", 4096 + 8);
    bw_index_close(first);
    bw_index_close(open_index());
    size_t bytes;
    uint8_t *file = test_read_file(folder, "b", &bytes);
    CHECK(truncate("index.tmp/b", 5000) == 0);
    CHECK_STATUS(bw_index_open(folder, &first, &error), BW_CORRUPT);
    CHECK_MESSAGE("segment b");
    test_remove_file(folder, "b");
    CHECK_STATUS(bw_index_open(folder, &first, &error), BW_CORRUPT);
    CHECK_MESSAGE("lists a segment that is gone");
    test_write_file(folder, "b", file, bytes);
    bw_index_close(open_index());
    /* A whole segment of the same collection under a listed name. */
    write_segment("b", 9, 1000, 1000, 1);
    CHECK_STATUS(bw_index_open(folder, &first, &error), BW_MISMATCH);
    test_write_file(folder, "b", file, bytes);
    free(file);

    /* An open index outlives its folder. */
    settle();
    first = open_index();
    test_remove_folder(folder);
    CHECK_STATUS(bw_index_validate(first, &error), BW_OK);
    CHECK_STATUS(bw_index_open(folder, &again, &error), BW_MISSING);
    bw_index_close(first);

    /* More folders than are kept. */
    char path[32];
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 12; i++) {
            snprintf(path, sizeof path, "index%d.tmp", i);
            if (round == 0) {
                test_make_folder(path);
                bw_segment_spec spec = {.rows = 1, .ids = (const int64_t[]){i}, .codes = codes};
                CHECK_STATUS(bw_segment_write(path, "a", &spec, NULL, NULL, &error), BW_OK);
                CHECK_STATUS(
                    bw_manifest_write(path, spec.uuid, 1, names, NULL, 1, &spec.fingerprints, &error), BW_OK);
            }
            CHECK_STATUS(bw_index_open(path, &first, &error), BW_OK);
            CHECK_STATUS(bw_index_rows(first, 0, 1, ids, NULL, NULL, &error), BW_OK);
            CHECK_EQUAL(ids[0], i);
            bw_index_close(first);
        }
    }
    for (int i = 0; i < 12; i++) {
        snprintf(path, sizeof path, "index%d.tmp", i);
        test_remove_folder(path);
    }
}

/* Readers open, read and close while a writer goes back and forth between two manifests and rewrites a
 * segment. */
static _Atomic bool readers_stop;
static _Atomic unsigned long reads, wrong_reads;

static void *read_on(void *unused) {
    while (!readers_stop) {
        bw_index *index;
        bw_error reason;
        int32_t code = bw_index_open(folder, &index, &reason);
        if (code != BW_OK) {
            printf("    %s: %s\n", bw_status_name(code), reason.message);
            wrong_reads++;
            continue;
        }
        int64_t ids[100];
        size_t drawn = 0;
        uint64_t expected = index->info.generation % 2 ? 1000 : 2000;
        const bw_index *same = bw_index_retain(index);
        wrong_reads += bw_index_draw(same, reads, 100, NULL, 0, ids, &drawn, NULL) != BW_OK || drawn != 100;
        wrong_reads += index->info.rows != expected;
        bw_index_close(index);
        bw_index_close(index);
        reads++;
    }
    return unused;
}

static void test_threads(void) {
    test_make_folder(folder);
    write_segment("1", 1, 1000, 0, 1);
    const char *one[] = {"1"};
    CHECK_STATUS(write_manifest(1, one, 1), BW_OK);
    pthread_t readers[4];
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_create(&readers[i], NULL, read_on, NULL) == 0);
    }
    for (unsigned generation = 2; generation < 40; generation++) {
        char fresh[16], stale[16];
        snprintf(fresh, sizeof fresh, "%u", generation);
        snprintf(stale, sizeof stale, "%u", generation - 1);
        const char *two[] = {"1", fresh};
        if (generation % 2 == 0) {
            write_segment(fresh, generation, 1000, 1000, 1);
        }
        CHECK_STATUS(write_manifest(generation, two, generation % 2 ? 1 : 2), BW_OK);
        if (generation % 2) {
            test_remove_file(folder, stale); /* what an old manifest lists may be gone before it is opened */
        }
    }
    readers_stop = true;
    for (int i = 0; i < 4; i++) {
        pthread_join(readers[i], NULL);
    }
    CHECK(reads > 0);
    CHECK_EQUAL(wrong_reads, 0);
    test_remove_folder(folder);
}

/* ---- reading and drawing ---- */

static int compare_ids(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

#define ROWS 6000

typedef struct layout {
    int segments;
    bool interleaved; /* rows dealt out in turn; otherwise in slices of ascending ids */
    const char *names[7];
} layout;

/* One collection, cut into segments in several ways. */
static void build_layout(const layout *how, const int64_t *sorted, const uint8_t *codes) {
    int64_t *ids = test_alloc(ROWS * sizeof *ids);
    uint8_t *part_codes = test_alloc(ROWS * BW_DIMS);
    for (int s = 0; s < how->segments; s++) {
        uint64_t n = 0;
        for (int i = 0; i < ROWS; i++) {
            int owner = how->interleaved ? i * 31 / 7 % how->segments : i * how->segments / ROWS;
            if (owner == s) {
                ids[n] = sorted[i];
                memcpy(part_codes + n * BW_DIMS, codes + i * BW_DIMS, BW_DIMS);
                n++;
            }
        }
        write_rows(how->names[s], n, ids, part_codes);
    }
    CHECK_STATUS(write_manifest(1, how->names, (uint32_t)how->segments), BW_OK);
    free(ids);
    free(part_codes);
}

static void check_reading(const bw_index *index, const int64_t *sorted, const uint8_t *codes) {
    /* By row: every row once, with its code. */
    int64_t *ids = test_alloc(ROWS * sizeof *ids);
    uint8_t *read = test_alloc(ROWS * BW_DIMS), *found = test_alloc(2 * ROWS);
    uint8_t *fine = test_alloc(2 * ROWS * BW_FINE_DIMS);
    CHECK_STATUS(bw_index_rows(index, 0, ROWS, ids, read, fine, &error), BW_OK);
    CHECK(fine_right(ROWS, ids, fine));
    uint8_t *seen = test_alloc(ROWS);
    bool right = true;
    for (int i = 0; i < ROWS; i++) {
        const int64_t *at = bsearch(ids + i, sorted, ROWS, sizeof *ids, compare_ids);
        right &= at != NULL && !seen[at - sorted];
        if (at != NULL) {
            seen[at - sorted] = 1;
            right &= memcmp(read + i * BW_DIMS, codes + (at - sorted) * BW_DIMS, BW_DIMS) == 0;
        }
    }
    CHECK(right);
    for (uint64_t first = 0; first < ROWS; first += 577) {
        for (uint64_t n = 0; n <= 1200 && n <= ROWS - first; n += 171) {
            int64_t part_ids[1200];
            uint8_t part[1200 * BW_DIMS];
            CHECK_STATUS(bw_index_rows(index, first, n, part_ids, part, NULL, &error), BW_OK);
            CHECK(memcmp(part_ids, ids + first, n * 8) == 0 && memcmp(part, read + first * 32, n * 32) == 0);
            CHECK_STATUS(bw_index_rows(index, first, n, part_ids, NULL, fine, &error), BW_OK);
            CHECK(fine_right(n, part_ids, fine));
        }
    }
    CHECK_STATUS(bw_index_rows(index, ROWS, 0, NULL, NULL, NULL, &error), BW_OK);
    CHECK_STATUS(bw_index_rows(index, ROWS + 1, 0, ids, NULL, NULL, &error), BW_INVALID);
    CHECK_STATUS(bw_index_rows(index, 1, UINT64_MAX, ids, NULL, NULL, &error), BW_INVALID);
    CHECK_STATUS(bw_index_rows(index, 0, 1, NULL, read, NULL, &error), BW_INVALID);

    /* By id, present and absent ones in turn. */
    int64_t *wanted = test_alloc(2 * ROWS * sizeof *wanted);
    uint8_t *got = test_alloc(2 * ROWS * BW_DIMS);
    for (int i = 0; i < ROWS; i++) {
        int place = (int)((int64_t)i * 4441 % ROWS);
        wanted[2 * i] = sorted[place];
        wanted[2 * i + 1] = sorted[place] + 1; /* ids are multiples of 3 */
    }
    wanted[1] = -1;
    wanted[3] = INT64_MIN;
    wanted[5] = INT64_MAX;
    memset(got, 7, 2 * ROWS * BW_DIMS);
    CHECK_STATUS(bw_index_codes(index, wanted, 2 * ROWS, got, found, &error), BW_OK);
    right = true;
    for (int i = 0; i < ROWS; i++) {
        int place = (int)((int64_t)i * 4441 % ROWS);
        static const uint8_t zeros[BW_DIMS];
        right &= found[2 * i] == 1 && memcmp(got + 2 * i * BW_DIMS, codes + place * BW_DIMS, BW_DIMS) == 0;
        right &= found[2 * i + 1] == 0 && memcmp(got + (2 * i + 1) * BW_DIMS, zeros, BW_DIMS) == 0;
    }
    CHECK(right);
    memset(fine, 7, 2 * ROWS * BW_FINE_DIMS);
    memset(found, 7, 2 * ROWS);
    CHECK_STATUS(bw_index_fine(index, wanted, 2 * ROWS, fine, found, &error), BW_OK);
    right = true;
    for (int i = 0; i < ROWS; i++) {
        static const uint8_t zeros[BW_FINE_DIMS];
        right &= found[2 * i] == 1 && fine_right(1, wanted + 2 * i, fine + 2 * i * BW_FINE_DIMS);
        right &= found[2 * i + 1] == 0 && memcmp(fine + (2 * i + 1) * BW_FINE_DIMS, zeros, BW_FINE_DIMS) == 0;
    }
    CHECK(right);
    CHECK_STATUS(bw_index_fine(index, wanted, 2, fine, NULL, &error), BW_MISSING);
    CHECK_STATUS(bw_index_fine(index, wanted, 1, NULL, NULL, &error), BW_INVALID);
    CHECK_STATUS(bw_index_fine(index, NULL, 0, NULL, NULL, &error), BW_OK);
    memset(got, 7, BW_DIMS);
    CHECK_STATUS(bw_index_codes(index, wanted, 2, got, NULL, &error), BW_MISSING);
    CHECK_MESSAGE("id -1 ");
    CHECK(got[0] == 7); /* untouched */
    CHECK_STATUS(bw_index_codes(index, wanted, 1, got, NULL, &error), BW_OK);
    CHECK_STATUS(bw_index_codes(index, NULL, 0, NULL, NULL, &error), BW_OK);
    CHECK_STATUS(bw_index_codes(index, NULL, 1, got, NULL, &error), BW_INVALID);
    CHECK_STATUS(bw_index_validate(index, &error), BW_OK);
    free(ids);
    free(read);
    free(found);
    free(seen);
    free(wanted);
    free(got);
    free(fine);
}

/* Draws of several sizes and exclusions, checked to be distinct, ascending, present and not excluded;
 * gathered into one checksum, which must not depend on the segments. */
static uint32_t check_draws(const bw_index *index, const int64_t *sorted) {
    const size_t sizes[] = {0, 1, 2, 10, 500, 2999, ROWS - 1, ROWS, ROWS + 1, SIZE_MAX};
    int64_t *ids = test_alloc((ROWS + 1) * sizeof *ids), *exclude = test_alloc(2 * ROWS * sizeof *exclude);
    uint32_t sum = 0;
    for (size_t step = 0; step < 4; step++) {
        /* Nothing; some with absent ones and repetitions in between; half; all but one. */
        size_t excluded = 0, present = 0;
        for (int i = 0; i < ROWS && step > 0; i++) {
            if (step == 1 ? i % 97 == 3 : step == 2 ? i % 2 == 0 : i != 4242) {
                exclude[excluded++] = sorted[i];
                if (step == 1) {
                    exclude[excluded++] = sorted[i];
                    exclude[excluded++] = sorted[i] + 1;
                }
                present++;
            }
        }
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            size_t expected = sizes[i] < ROWS - present ? sizes[i] : ROWS - present, drawn = 0;
            CHECK_STATUS(bw_index_draw(index, 42 + step, sizes[i], exclude, excluded, ids, &drawn, &error),
                         BW_OK);
            CHECK_EQUAL(drawn, expected);
            bool right = true;
            for (size_t j = 0; j < drawn; j++) {
                right &= j == 0 || ids[j] > ids[j - 1];
                right &= bsearch(ids + j, sorted, ROWS, sizeof *ids, compare_ids) != NULL;
                right &= bsearch(ids + j, exclude, excluded, sizeof *ids, compare_ids) == NULL;
            }
            CHECK(right);
            sum = bw_crc32c(sum, ids, drawn * sizeof *ids);
        }
    }
    size_t drawn = 7;
    int64_t unsorted[] = {5, 4};
    CHECK_STATUS(bw_index_draw(index, 1, 1, unsorted, 2, ids, &drawn, &error), BW_INVALID);
    CHECK_STATUS(bw_index_draw(index, 1, 1, NULL, 2, ids, &drawn, &error), BW_INVALID);
    CHECK_STATUS(bw_index_draw(index, 1, 1, NULL, 0, NULL, &drawn, &error), BW_INVALID);
    CHECK_EQUAL(drawn, 7);
    free(ids);
    free(exclude);
    return sum;
}

/* Every row is drawn about equally often, and another seed draws others. */
static void check_distribution(const bw_index *index, const int64_t *sorted) {
    unsigned *counts = test_alloc(ROWS * sizeof *counts);
    int64_t ids[600], before[600] = {0};
    for (uint64_t seed = 0; seed < 1000; seed++) {
        size_t drawn;
        CHECK_STATUS(bw_index_draw(index, seed, 600, sorted, 100, ids, &drawn, &error), BW_OK);
        CHECK(memcmp(ids, before, sizeof ids) != 0);
        memcpy(before, ids, sizeof ids);
        for (size_t i = 0; i < drawn; i++) {
            counts[(const int64_t *)bsearch(ids + i, sorted, ROWS, sizeof *ids, compare_ids) - sorted]++;
        }
    }
    double square = 0, expected = 600.0 * 1000 / (ROWS - 100);
    for (int i = 0; i < ROWS; i++) {
        CHECK(i >= 100 || counts[i] == 0);
        if (i >= 100) {
            CHECK(counts[i] > 40 && counts[i] < 180);
            square += (counts[i] - expected) * (counts[i] - expected);
        }
    }
    /* The variance of a count without replacement is e (1 - 600 / 5900). */
    double ratio = square / (ROWS - 100) / (expected * (1 - 600.0 / (ROWS - 100)));
    CHECK(ratio > 0.9 && ratio < 1.1);
    free(counts);
}

static void test_reading(void) {
    const layout layouts[] = {
        {1, false, {"s0"}},
        {5, false, {"s0", "s1", "s2", "s3", "s4"}},
        {5, true, {"s0", "s1", "s2", "s3", "s4"}},
        {7, true, {"s6", "s1", "s2", "s3", "s4", "s5", "s0"}},
        {2, true, {"s1", "s0"}},
    };
    int64_t *sorted = test_alloc(ROWS * sizeof *sorted);
    uint8_t *codes = test_alloc(ROWS * BW_DIMS);
    test_make_rows(8, ROWS, 0, 3, sorted, codes);
    qsort(sorted, ROWS, sizeof *sorted, compare_ids);
    for (int i = 4000; i < ROWS; i++) {
        sorted[i] += INT64_C(3) << 58; /* a wide gap between ids */
    }
    uint32_t sum = 0;
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        test_make_folder(folder);
        build_layout(&layouts[i], sorted, codes);
        bw_index *index = open_index();
        check_reading(index, sorted, codes);
        uint32_t draws = check_draws(index, sorted);
        CHECK(i == 0 || draws == sum);
        sum = draws;
        if (i < 3) {
            check_distribution(index, sorted);
        }
        bw_index_close(index);
    }
    free(sorted);
    free(codes);
    test_remove_folder(folder);
}

/* Many segments, many of them tiny. */
static void test_many(void) {
    const char *names[300];
    char texts[300][32];
    test_make_folder(folder);
    int64_t ids[20];
    uint8_t codes[20 * BW_DIMS] = {0};
    int64_t next = 0;
    for (int i = 0; i < 300; i++) {
        snprintf(texts[i], sizeof texts[i], "%d.segment", i);
        names[i] = texts[i];
        uint64_t n = 1 + (uint64_t)i * 7 % 20;
        for (uint64_t j = 0; j < n; j++) {
            ids[j] = next++;
        }
        write_rows(texts[i], n, ids, codes);
    }
    CHECK_STATUS(write_manifest(1, names, 300), BW_OK);
    bw_index *index = open_index();
    CHECK_EQUAL(index->info.rows, next);
    CHECK_STATUS(bw_index_validate(index, &error), BW_OK);
    int64_t *all = test_alloc((size_t)next * sizeof *all);
    size_t drawn;
    CHECK_STATUS(bw_index_draw(index, 1, (size_t)next, NULL, 0, all, &drawn, &error), BW_OK);
    bool right = drawn == (size_t)next;
    for (size_t i = 0; i < drawn; i++) {
        right &= all[i] == (int64_t)i;
    }
    CHECK(right);
    free(all);
    bw_index_close(index);

    /* An id in two segments is for the deep check to find. */
    ids[0] = 17;
    write_rows("twice", 1, ids, codes);
    names[299] = "twice";
    CHECK_STATUS(write_manifest(2, names, 300), BW_OK);
    index = open_index();
    CHECK_STATUS(bw_index_validate(index, &error), BW_CORRUPT);
    CHECK_MESSAGE("id 17 stands in segment ");
    CHECK_MESSAGE("twice");
    CHECK_STATUS(bw_index_draw(index, 1, 1000, NULL, 0, (all = test_alloc(8000)), &drawn, &error), BW_OK);
    CHECK_EQUAL(drawn, 1000);
    free(all);
    bw_index_close(index);
    test_remove_folder(folder);
}

int main(void) {
    test_manifest();
    test_sharing();
    test_threads();
    test_reading();
    test_many();
    return test_finish();
}
