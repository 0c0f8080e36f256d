/* Errors, memory, texts, random numbers, checksums, files and threads. */
#include "test.h"

#include <stdatomic.h>

static void test_errors(void) {
    bw_error error;
    CHECK_EQUAL(bw_fail(&error, BW_IO, "file %s: %d", "x", 7), BW_IO);
    CHECK(error.code == BW_IO && strcmp(error.message, "file x: 7") == 0);
    CHECK_EQUAL(bw_fail(NULL, BW_NOMEM, "nobody listens"), BW_NOMEM);
    CHECK_EQUAL(bw_fail_nomem(&error, 12345), BW_NOMEM);
    CHECK_MESSAGE("12345 bytes");

    /* A message that is cut ends with a whole character: 4-byte ones at every offset. */
    for (int shift = 0; shift < 4; shift++) {
        char text[1024] = "xxx";
        size_t length = (size_t)shift;
        for (; length + 4 < sizeof text; length += 4) {
            memcpy(text + length, "\xF0\x9F\x8C\xB3", 4);
        }
        text[length] = '\0';
        bw_fail(&error, BW_INVALID, "%s", text);
        size_t kept = strlen(error.message);
        CHECK(kept >= sizeof error.message - 4 && (kept - (size_t)shift) % 4 == 0);
        CHECK(memcmp(error.message, text, kept) == 0);
    }

    CHECK(strcmp(bw_status_name(BW_CORRUPT), "corrupt") == 0);
    CHECK(strcmp(bw_status_name(99), "unknown") == 0);
    for (int32_t i = 0; i <= BW_MISMATCH; i++) {
        CHECK(strcmp(bw_status_name(i), "unknown") != 0);
        for (int32_t j = 0; j < i; j++) {
            CHECK(strcmp(bw_status_name(i), bw_status_name(j)) != 0);
        }
    }
    CHECK(strcmp(bw_version(), "0.1.0") == 0);
}

static void test_memory(void) {
    void *memory = bw_alloc(0);
    CHECK(memory != NULL);
    bw_free(memory);
    CHECK(bw_alloc_array(SIZE_MAX / 2, 3) == NULL);
    CHECK(bw_alloc_zero(SIZE_MAX / 2, 3) == NULL);
    uint32_t *numbers = bw_alloc_zero(1000, sizeof *numbers);
    for (int i = 0; i < 1000; i++) {
        CHECK(numbers[i] == 0);
        numbers[i] = (uint32_t)i;
    }
    CHECK(bw_realloc_array(numbers, SIZE_MAX, 8) == NULL);
    numbers = bw_realloc_array(numbers, 2000, sizeof *numbers);
    CHECK(numbers != NULL && numbers[999] == 999);
    bw_free(numbers);
    for (size_t bytes = 0; bytes < 300; bytes += 37) {
        memory = bw_alloc_aligned(bytes);
        CHECK(memory != NULL && (uintptr_t)memory % 64 == 0);
        bw_free(memory);
    }
    bw_free(NULL);
    uint64_t result;
    CHECK(bw_mul_overflows(UINT64_MAX, 2, &result) && !bw_mul_overflows(1u << 31, 2, &result));
}

static void test_text(void) {
    bw_text text = {0};
    char expected[20000] = "";
    for (int i = 0; i < 3000; i++) {
        bw_text_append(&text, "%d,", i);
        sprintf(expected + strlen(expected), "%d,", i);
    }
    CHECK(!text.failed && text.length == strlen(expected) && strcmp(text.data, expected) == 0);
    bw_text_append(&text, "%s", expected); /* more than twice what is there in one go */
    CHECK(text.length == 2 * strlen(expected));
    bw_text_append(&text, "%s", "");
    CHECK(text.length == 2 * strlen(expected) && strlen(text.data) == text.length);
    text.failed = true;
    bw_text_append(&text, "lost");
    CHECK(text.length == 2 * strlen(expected));
    bw_free(text.data);
}

static void test_random(void) {
    /* The first outputs of SplitMix64 for seeds 0 and 1234567, as published with its reference
     * implementation. */
    bw_random zero = {0}, other = {1234567};
    CHECK(bw_random_next(&zero) == UINT64_C(0xE220A8397B1DCDAF));
    CHECK(bw_random_next(&zero) == UINT64_C(0x6E789E6AA1B965F4));
    CHECK(bw_random_next(&other) == UINT64_C(6457827717110365317));
    CHECK(bw_random_next(&other) == UINT64_C(3203168211198807973));
    unsigned counts[7] = {0};
    for (int i = 0; i < 70000; i++) {
        uint64_t number = bw_random_below(&zero, 7);
        CHECK(number < 7);
        counts[number % 7]++;
    }
    for (int i = 0; i < 7; i++) {
        CHECK(counts[i] > 9600 && counts[i] < 10400); /* four standard deviations */
    }
    CHECK(bw_random_below(&zero, 1) == 0);
    /* Rejection: a bound of 3/4 of 2^64 would make the lower third twice as likely. */
    uint64_t bound = (UINT64_C(1) << 63) + (UINT64_C(1) << 62);
    unsigned low = 0;
    for (int i = 0; i < 30000; i++) {
        low += bw_random_below(&zero, bound) < bound / 3;
    }
    CHECK(low > 9650 && low < 10350);
}

static void test_checksums(void) {
    CHECK_EQUAL(bw_crc32c(0, "123456789", 9), 0xE3069283);
    CHECK_EQUAL(bw_crc32c(0, "", 0), 0);
    uint8_t data[300];
    memset(data, 0, 32);
    CHECK_EQUAL(bw_crc32c(0, data, 32), 0x8A9136AA); /* RFC 3720, B.4 */
    memset(data, 0xFF, 32);
    CHECK_EQUAL(bw_crc32c(0, data, 32), 0x62A8AB43);
    bw_random random = {5};
    for (size_t i = 0; i < sizeof data; i++) {
        data[i] = (uint8_t)bw_random_next(&random);
    }
    /* Against the definition, bit by bit, at every alignment and length; and chained. */
    for (size_t start = 0; start < 9; start++) {
        uint32_t plain = UINT32_MAX;
        for (size_t end = start; end < sizeof data; end++) {
            CHECK(bw_crc32c(0, data + start, end - start) == ~plain);
            size_t cut = start + (end - start) / 3;
            CHECK(bw_crc32c(bw_crc32c(0, data + start, cut - start), data + cut, end - cut) == ~plain);
            plain ^= data[end];
            for (int bit = 0; bit < 8; bit++) {
                plain = plain >> 1 ^ (plain & 1 ? UINT32_C(0x82F63B78) : 0);
            }
        }
    }
}

static void test_names(void) {
    CHECK(bw_name_ok("1-0.segment") && bw_name_ok("MANIFEST") && bw_name_ok("a") && bw_name_ok("A_z-9."));
    const char *bad[] = {"",    ".",    "..",   ".hidden", "a/b",      "../a", "/a",
                         "a b", "a\nb", "a\\b", "a:b",     "\xC3\xA4", "a%",   "a*"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(!bw_name_ok(bad[i]));
    }
    CHECK(bw_name_ok("12345678901234567890123456789012345678901234567")); /* 47 */
    CHECK(!bw_name_ok("123456789012345678901234567890123456789012345678"));
}

static void test_writer(void) {
    bw_error error;
    const char *folder = test_make_folder("base.tmp");
    bw_writer *writer;
    CHECK_STATUS(bw_writer_open("base.tmp/none", "a", &writer, &error), BW_IO);
    CHECK_MESSAGE("base.tmp/none");
    CHECK_MESSAGE("must exist");
    CHECK_STATUS(bw_writer_open(folder, "../a", &writer, &error), BW_INVALID);

    CHECK_STATUS(bw_writer_open(folder, "a", &writer, &error), BW_OK);
    CHECK_EQUAL(test_count_files(folder, ".a.tmp-"), 1);
    CHECK_STATUS(bw_writer_write(writer, "hello world", 11, &error), BW_OK);
    CHECK_STATUS(bw_writer_rewrite(writer, 0, "J", 1, &error), BW_OK);
    CHECK_EQUAL(bw_writer_offset(writer), 11);
    CHECK_STATUS(bw_writer_write(writer, "!", 1, &error), BW_OK);
    CHECK_EQUAL(test_count_files(folder, "a"), 0);
    CHECK_STATUS(bw_writer_commit(writer, &error), BW_OK);
    CHECK_EQUAL(test_count_files(folder, NULL), 1);

    bw_map map;
    CHECK_STATUS(bw_map_open("base.tmp/a", &map, &error), BW_OK);
    CHECK(map.bytes == 12 && memcmp(map.data, "Jello world!", 12) == 0);
    uint64_t device, inode, modified, bytes;
    CHECK_STATUS(bw_file_identity("base.tmp/a", &device, &inode, &modified, &bytes, &error), BW_OK);
    CHECK(device == map.device && inode == map.inode && modified == map.modified_ns && bytes == 12);

    /* Replacing and removing the file leaves the map alone. */
    CHECK_STATUS(bw_writer_open(folder, "a", &writer, &error), BW_OK);
    CHECK_STATUS(bw_writer_write(writer, "new", 3, &error), BW_OK);
    CHECK_STATUS(bw_writer_commit(writer, &error), BW_OK);
    CHECK(memcmp(map.data, "Jello world!", 12) == 0);
    CHECK_STATUS(bw_file_identity("base.tmp/a", &device, &inode, &modified, &bytes, &error), BW_OK);
    CHECK(bytes == 3 && inode != map.inode);
    bw_map_close(&map);
    CHECK(map.data == NULL);
    bw_map_close(&map);

    CHECK_STATUS(bw_writer_open(folder, "b", &writer, &error), BW_OK);
    CHECK_STATUS(bw_writer_write(writer, "half", 4, &error), BW_OK);
    bw_writer_abandon(writer);
    bw_writer_abandon(NULL);
    CHECK_EQUAL(test_count_files(folder, NULL), 1);

    /* Two writers of one name do not meet; the last commit wins. */
    bw_writer *second;
    CHECK_STATUS(bw_writer_open(folder, "c", &writer, &error), BW_OK);
    CHECK_STATUS(bw_writer_open(folder, "c", &second, &error), BW_OK);
    CHECK_STATUS(bw_writer_write(writer, "1", 1, &error), BW_OK);
    CHECK_STATUS(bw_writer_write(second, "2", 1, &error), BW_OK);
    CHECK_STATUS(bw_writer_commit(second, &error), BW_OK);
    CHECK_STATUS(bw_writer_commit(writer, &error), BW_OK);
    size_t n;
    uint8_t *data = test_read_file(folder, "c", &n);
    CHECK(n == 1 && data[0] == '1');
    free(data);

    /* A folder in the way: the commit fails and leaves nothing. */
    CHECK(mkdir("base.tmp/d", 0777) == 0);
    CHECK_STATUS(bw_writer_open(folder, "d", &writer, &error), BW_OK);
    CHECK_STATUS(bw_writer_commit(writer, &error), BW_IO);
    CHECK_EQUAL(test_count_files(folder, "."), 0);

    CHECK_STATUS(bw_map_open("base.tmp/none", &map, &error), BW_MISSING);
    CHECK_STATUS(bw_map_open("base.tmp/a/none", &map, &error), BW_MISSING);
    CHECK_STATUS(bw_map_open("base.tmp/d", &map, &error), BW_CORRUPT);
    CHECK(mkfifo("base.tmp/pipe", 0666) == 0);
    CHECK_STATUS(bw_map_open("base.tmp/pipe", &map, &error), BW_CORRUPT);
    test_write_file(folder, "empty", "", 0);
    CHECK_STATUS(bw_map_open("base.tmp/empty", &map, &error), BW_OK);
    CHECK(map.bytes == 0 && map.data == NULL && !map.settled);
    bw_map_close(&map);
    CHECK_STATUS(bw_file_identity("base.tmp/none", &device, &inode, &modified, &bytes, &error), BW_MISSING);
    rmdir("base.tmp/d");
    test_remove_folder(folder);
}

static void count_workers(void *context, uint32_t worker) {
    _Atomic uint32_t *counts = context;
    atomic_fetch_add(&counts[worker], 1);
}

static void test_threads(void) {
    CHECK(bw_thread_count(0) >= 1 && bw_thread_count(0) <= 64);
    CHECK(bw_thread_count(5) == 5 && bw_thread_count(1000) == 64);
    for (uint32_t threads = 1; threads <= 64; threads += 9) {
        _Atomic uint32_t counts[64] = {0};
        bw_parallel(threads, count_workers, (void *)counts);
        for (uint32_t i = 0; i < 64; i++) {
            CHECK(counts[i] == (i < threads));
        }
    }
    uint64_t before = bw_now();
    usleep(2000);
    CHECK(bw_now() - before >= 1900000);
}

int main(void) {
    test_errors();
    test_memory();
    test_text();
    test_random();
    test_checksums();
    test_names();
    test_writer();
    test_threads();
    return test_finish();
}
