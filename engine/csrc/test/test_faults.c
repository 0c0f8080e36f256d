/* Every allocation, write, sync, rename and map fails once: an error comes back, nothing leaks
 * (AddressSanitizer looks), no half file is left, and the index is the old one or the new one. Needs
 * -DBOXWOOD_FAULTS=ON to have anything to do. */
#include "index.h"
#include "test.h"

#ifdef BW_FAULTS

static const char *const folder = "faults.tmp";
static bw_error error;

static bw_segment_spec make_spec(const int64_t *ids, const uint8_t *codes, uint64_t rows,
                                 uint64_t generation) {
    static uint8_t fine[1300 * BW_FINE_DIMS];
    return (bw_segment_spec){.rows = rows,
                             .ids = ids,
                             .codes = codes,
                             .fine = fine,
                             .generation = generation,
                             .fingerprints = {.fine = "f"}};
}

/* The rows of the index in the folder, opened without faults. */
static uint64_t rows_now(void) {
    bw_index *index;
    CHECK_STATUS(bw_index_open(folder, &index, &error), BW_OK);
    bw_index_info info;
    CHECK_EQUAL(bw_index_describe(index, &info), BW_OK);
    CHECK_STATUS(bw_index_validate(index, &error), BW_OK);
    bw_index_close(index);
    return info.rows;
}

static void check_error(int32_t code, int kind) {
    bool expected = kind == BW_FAULT_ALLOC ? code == BW_NOMEM : code == BW_IO;
    CHECK(expected);
    CHECK(error.code == code && error.message[0] != '\0');
    if (kind == BW_FAULT_WRITE) {
        CHECK_MESSAGE("make room on this disk");
    }
}

static const uint64_t first_rows = 700, second_rows = 600, dead_rows = 300;

/* From an index of one segment to one of two, in the first of which rows are dead; the step that fails is
 * done again without faults. */
static void check_kind(int kind, const int64_t *ids, const uint8_t *codes) {
    static const bw_fingerprints prints = {.fine = "f"};
    const char *names[] = {"1", "2"}, *deleted[] = {"1.deleted", NULL};
    const uint8_t uuid[16] = {0};
    long faults = 0;
    for (long countdown = 0;; countdown++) {
        bw_segment_spec first = make_spec(ids, codes, first_rows, 1);
        bw_segment_spec second = make_spec(ids + first_rows, codes + first_rows * BW_DIMS, second_rows, 2);
        test_make_folder(folder); /* a new one each time: nothing of it is in the table of open indexes */
        CHECK_STATUS(bw_segment_write(folder, "1", &first, NULL, NULL, &error), BW_OK);
        CHECK_STATUS(bw_manifest_write(folder, uuid, 1, names, NULL, 1, &prints, &error), BW_OK);
        bw_index *old;
        CHECK_STATUS(bw_index_open(folder, &old, &error), BW_OK);

        bw_index *index = NULL;
        error = (bw_error){0};
        bw_fault_set(kind, countdown);
        int32_t written = bw_segment_write(folder, "2", &second, NULL, NULL, &error);
        int32_t marked =
            written != BW_OK ? written : bw_deleted_write(folder, "1.deleted", "1", ids, dead_rows, &error);
        int32_t listed =
            marked != BW_OK ? marked : bw_manifest_write(folder, uuid, 2, names, deleted, 2, &prints, &error);
        int32_t opened = listed != BW_OK ? listed : bw_index_open(folder, &index, &error);
        int64_t drawn_ids[100];
        uint8_t drawn_codes[100 * BW_DIMS];
        size_t drawn = 0;
        int32_t read = opened != BW_OK
                           ? opened
                           : bw_index_draw(index, 1, 100, ids + first_rows, 1, drawn_ids, &drawn, &error);
        if (read == BW_OK) {
            read = bw_index_codes(index, drawn_ids, drawn, drawn_codes, NULL, &error);
        }
        if (read == BW_OK) {
            static uint8_t drawn_fine[100 * BW_FINE_DIMS];
            read = bw_index_fine(index, drawn_ids, drawn, drawn_fine, NULL, &error);
        }
        if (read == BW_OK) {
            read = bw_index_validate(index, &error);
        }
        bw_index *without = NULL;
        if (read == BW_OK) {
            read = bw_index_without(index, ids, first_rows + second_rows - 100, &without, &error);
        }
        if (read == BW_OK) {
            read = bw_index_draw(without, 1, 100, NULL, 0, drawn_ids, &drawn, &error);
            CHECK(read != BW_OK || drawn == 100);
        }
        bw_index_close(without);
        bw_fault_set(kind, -1);
        if (read != BW_OK) {
            check_error(read, kind);
        }
        bw_index_close(index);

        CHECK_EQUAL(test_count_files(folder, "."), 0);
        if (written != BW_OK) {
            /* Not there, or, if syncing the folder alone failed, whole. */
            bw_segment *segment;
            int32_t code = bw_segment_open(folder, "2", &segment, &error);
            CHECK(code == BW_MISSING || (code == BW_OK && kind == BW_FAULT_SYNC));
            if (code == BW_OK) {
                bw_segment_close(segment);
            }
        }
        if (written == BW_OK && marked != BW_OK) {
            bw_deleted *vector;
            int32_t code = bw_deleted_open(folder, "1.deleted", &vector, &error);
            CHECK(code == BW_MISSING || (code == BW_OK && kind == BW_FAULT_SYNC));
            if (code == BW_OK) {
                bw_deleted_close(vector);
            }
        }
        error.message[0] = '\0';
        uint64_t rows = rows_now(), grown = first_rows + second_rows - dead_rows;
        CHECK(rows == first_rows || (marked == BW_OK && rows == grown));
        CHECK(listed != BW_OK || rows == grown);
        CHECK_STATUS(bw_index_validate(old, &error), BW_OK);
        CHECK_EQUAL(old->info.rows, first_rows);
        bw_index_close(old);
        if (read == BW_OK) {
            break;
        }
        faults++;
    }
    printf("kind %d: %ld faults\n", kind, faults);
    CHECK(faults >= (kind == BW_FAULT_ALLOC ? 20 : kind == BW_FAULT_WRITE ? 8 : 2));
    test_remove_folder(folder);
}

/* Opening alone, at every allocation and map. */
static void check_open(int kind, const int64_t *ids, const uint8_t *codes) {
    static const bw_fingerprints prints = {.fine = "f"};
    const char *names[] = {"1", "2"}, *deleted[] = {"1.deleted", NULL};
    const char *files[] = {"1", "2", "1.deleted"};
    const uint8_t uuid[16] = {0};
    bw_segment_spec first = make_spec(ids, codes, first_rows, 1);
    bw_segment_spec second = make_spec(ids + first_rows, codes + first_rows * BW_DIMS, second_rows, 2);
    test_make_folder(folder);
    CHECK_STATUS(bw_segment_write(folder, "1", &first, NULL, NULL, &error), BW_OK);
    CHECK_STATUS(bw_segment_write(folder, "2", &second, NULL, NULL, &error), BW_OK);
    CHECK_STATUS(bw_deleted_write(folder, "1.deleted", "1", ids, dead_rows, &error), BW_OK);
    CHECK_STATUS(bw_manifest_write(folder, uuid, 2, names, deleted, 2, &prints, &error), BW_OK);
    for (long countdown = 0;; countdown++) {
        /* Files that have just been touched are opened anew, not shared. */
        char path[64];
        for (int i = 0; i < 3; i++) {
            snprintf(path, sizeof path, "%s/%s", folder, files[i]);
            CHECK(utimensat(AT_FDCWD, path, NULL, 0) == 0);
        }
        bw_index *index = NULL;
        error = (bw_error){0};
        bw_fault_set(kind, countdown);
        int32_t code = bw_index_open(folder, &index, &error);
        bw_fault_set(kind, -1);
        if (code == BW_OK) {
            CHECK(countdown >= 4); /* the manifest, two segments and a deletion vector, at least */
            bw_index_close(index);
            break;
        }
        CHECK(index == NULL);
        check_error(code, kind);
        CHECK_EQUAL(rows_now(), first_rows + second_rows - dead_rows);
    }
    test_remove_folder(folder);
}

int main(void) {
    uint64_t rows = first_rows + second_rows;
    int64_t *ids = test_alloc(rows * sizeof *ids);
    uint8_t *codes = test_alloc(rows * BW_DIMS);
    test_make_rows(1, rows, 0, 1, ids, codes);
    for (int kind = 0; kind < BW_FAULT_KINDS; kind++) {
        check_kind(kind, ids, codes);
    }
    check_open(BW_FAULT_ALLOC, ids, codes);
    check_open(BW_FAULT_MAP, ids, codes);

    bw_text text = {0};
    bw_text_append(&text, "kept");
    bw_fault_set(BW_FAULT_ALLOC, 0);
    bw_text_append(&text, "%0999d", 1);
    CHECK(text.failed && strcmp(text.data, "kept") == 0);
    CHECK(bw_alloc(1) == NULL && bw_alloc_zero(1, 1) == NULL && bw_alloc_aligned(1) == NULL);
    CHECK(bw_realloc_array(text.data, 1, 1) == NULL);
    bw_fault_set(BW_FAULT_ALLOC, -1);
    bw_free(text.data);
    free(ids);
    free(codes);
    return test_finish();
}

#else

int main(void) {
    printf("built without BOXWOOD_FAULTS: nothing to check\n");
    return 0;
}

#endif
