/* fuzz_segment.c - segments, manifests and deletion vectors as untrusted bytes. The first byte of an input
 * says what the rest is: bit 0, make the checksums right first, so that the checks behind them are reached;
 * bit 1, a manifest instead of a segment; bit 2, take only the contents of sections from it and all else from
 * a good segment, so that most inputs open; bit 3, a deletion vector instead, which a good manifest lists
 * (with bit 2: only its bitmap is taken). Whatever opens is used in every way there is: wrong answers are
 * allowed, reads outside the file are not. */
#include "search.h"
#include "segment_format.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define FIX_CHECKSUMS 1
#define IS_MANIFEST 2
#define KEEP_LAYOUT 4
#define IS_VECTOR 8

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t fuzz_seed(uint8_t *buffer, size_t capacity, unsigned number);

static const char *const folder = "fuzz_segment.tmp";

static void stop(const char *what) {
    fprintf(stderr, "fuzz_segment: %s\n", what);
    exit(1);
}

static void write_file(const char *name, const uint8_t *data, size_t size) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path); /* some file systems write a file that was cut and filled again to disk at once */
    int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file < 0 || write(file, data, size) != (ssize_t)size || close(file) != 0) {
        stop("cannot write its input");
    }
}

static void remove_files(void) {
    const char *names[] = {"0", "1", "x", "v", "0.deleted", BW_MANIFEST_NAME};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

/* Two good segments, which manifests list, and a good deletion vector. */
static void prepare(void) {
    static bool done;
    if (done) {
        return;
    }
    done = true;
    if (mkdir(folder, 0777) != 0 && errno != EEXIST) {
        stop("cannot make its folder");
    }
    atexit(remove_files);
    enum { ROWS = 600 };
    static int64_t ids[ROWS];
    static uint8_t codes[ROWS * BW_DIMS], fine[ROWS * BW_FINE_DIMS];
    bw_random random = {1};
    for (int i = 0; i < ROWS; i++) {
        ids[i] = 5 * i;
        for (int dim = 0; dim < BW_DIMS; dim++) {
            codes[i * BW_DIMS + dim] = (uint8_t)bw_random_next(&random);
        }
    }
    for (size_t i = 0; i < sizeof fine; i++) {
        fine[i] = (uint8_t)bw_random_next(&random);
    }
    bw_segment_spec spec = {.rows = 300,
                            .ids = ids,
                            .codes = codes,
                            .fine = fine,
                            .generation = 1,
                            .fingerprints = {"e", "h", "q", "f"}};
    if (bw_segment_write(folder, "0", &spec, NULL, NULL, NULL) != BW_OK) {
        stop("cannot write a segment");
    }
    if (bw_deleted_write(folder, "0.deleted", "0", ids, 100, NULL) != BW_OK) {
        stop("cannot write a deletion vector");
    }
    spec.ids += 300;
    spec.codes += 300 * BW_DIMS;
    spec.fine += 300 * BW_FINE_DIMS;
    spec.rows = 1;
    if (bw_segment_write(folder, "1", &spec, NULL, NULL, NULL) != BW_OK) {
        stop("cannot write a segment");
    }
}

/* An ensemble with narrow and wide boxes, so that zones, planes and codes all have something to do. */
#define TIMES_8(numbers)                                                                                     \
    numbers "," numbers "," numbers "," numbers "," numbers "," numbers "," numbers "," numbers
#define RISING TIMES_8("1, 2, 3, 4")
#define MIXED TIMES_8("-9, 1, 8, -1")
#define ZEROS TIMES_8("0, 0, 0, 0")
#define FINE(numbers) numbers ", " numbers ", " numbers ", " numbers
static const char model_text[] =
    "{\"boxwood_model\": 1, \"learner\": \"fuzz\", \"dims\": 32, \"estimators\": ["
    "[[[0, 10, 100], [5, 0, 200]], [[3, 200, 255]]], [[[1, 60, 180], [2, 30, 220], [31, 1, 254]]], "
    "[[[4, 100, 110]], [[0, 0, 127], [7, 0, 127], [9, 64, 255]]], [[[6, 0, 254]]]], \"threshold\": 2, "
    "\"score\": {\"terms\": [{\"linear\": [" RISING "], \"square\": [" ZEROS "], \"constant\": 0},"
    "{\"linear\": [" MIXED "], \"square\": [" MIXED "], \"constant\": 9}],"
    "\"votes\": 100, \"shift\": 0, \"threshold\": null},"
    "\"fine\": {\"terms\": [{\"linear\": [" FINE(RISING) "], \"square\": [" FINE(
        MIXED) "],"
               "\"constant\": 5}], \"shift\": 0, \"threshold\": 20000}}";

static const bw_model *the_model(void) {
    static bw_model *model;
    if (model == NULL && bw_model_from_json(model_text, sizeof model_text - 1, &model, NULL) != BW_OK) {
        stop("cannot read its model");
    }
    return model;
}

static void search_index(const bw_index *index) {
    const uint32_t ks[] = {1, 25, 40, 2000};
    const double recalls[] = {0.9, 1, 0.01, 0.999};
    const int64_t some[] = {0, 5, 10, 700, 1495};
    static int64_t ids[2 * 2000];
    static uint32_t distances[2 * 2000];
    uint8_t queries[2 * BW_DIMS];
    uint32_t counts[2];
    bw_error error;
    for (bw_path path = BW_PATH_CHOOSE; path < BW_PATHS; path++) {
        bw_rows *rows = NULL;
        bw_search_run_path(index, the_model(), 0, path, 1, NULL, &rows, NULL, NULL, &error);
        bw_rows_free(rows);
    }
    for (size_t i = 0; i < sizeof queries; i++) {
        queries[i] = (uint8_t)(i * 37);
    }
    for (size_t i = 0; i < sizeof ks / sizeof *ks; i++) {
        bw_knn_options options = {.k = ks[i], .threads = 1, .recall = recalls[i]};
        bw_knn(index, queries, 2, &options, ids, distances, counts, NULL, &error);
    }
    bw_knn_options options = {.k = 10, .threads = 1, .recall = 0.9, .within = the_model()};
    bw_knn(index, queries, 2, &options, ids, distances, counts, NULL, &error);
    options.within = NULL;
    options.ids = some;
    options.n_ids = sizeof some / sizeof *some;
    bw_knn(index, queries, 2, &options, ids, distances, counts, NULL, &error);
    bw_box_report reports[8], whole;
    bw_explain(index, the_model(), reports, &whole, &error);
}

static void use_index(const bw_index *index) {
    enum { ROWS = 700 };
    static int64_t ids[ROWS];
    static uint8_t codes[ROWS * BW_DIMS], fine[ROWS * BW_FINE_DIMS], found[ROWS];
    const int64_t exclude[] = {-1, 0, 5, 7, 7, 1000, INT64_MAX};
    size_t drawn = 0;
    bw_error error;
    bw_index_validate(index, &error);
    uint64_t held = index->info.rows + index->info.deleted, n = held < ROWS ? held : ROWS;
    if (bw_index_rows(index, 0, n, ids, codes, fine, &error) != BW_OK) {
        bw_index_rows(index, 0, n, ids, codes, NULL, &error);
    }
    bw_index_codes(index, ids, n, codes, found, &error);
    bw_index_fine(index, ids, n, fine, found, &error);
    bw_index_draw(index, 3, 50, exclude, sizeof exclude / sizeof *exclude, ids, &drawn, &error);
    bw_index_codes(index, ids, drawn, codes, NULL, &error);
    bw_index_draw(index, 3, ROWS, NULL, 0, ids, &drawn, &error);
}

/* One segment twice, as an index: drawing must hold its bounds even where ids come in no order. */
static void use_segment(bw_segment *segment) {
    static uint64_t few[BW_BLOCK_ROWS * 4], many[BW_BLOCK_ROWS * 4]; /* bits */
    bw_segment *segments[] = {segment, segment};
    uint64_t first_rows[] = {0, segment->rows, 2 * segment->rows};
    uint64_t first_blocks[] = {0, segment->blocks, 2 * (uint64_t)segment->blocks};
    bw_dead dead[2] = {{0}};
    bw_index index = {
        .info = {.rows = 2 * segment->rows, .segments = 2, .fingerprints = segment->fingerprints},
        .segments = segments,
        .dead = dead,
        .first_rows = first_rows,
        .first_blocks = first_blocks};
    use_index(&index);
    if (segment->rows > sizeof few * 8) {
        return;
    }
    memset(few, 0, sizeof few);
    memset(many, 0, sizeof many);
    for (uint64_t r = 0; r < segment->rows; r++) { /* few are found by their ids, many by their ranks */
        few[r / 64] |= (uint64_t)(r % 100 == 7) << r % 64;
        many[r / 64] |= (uint64_t)(r % 3 > 0) << r % 64;
    }
    for (int i = 0; i < 2; i++) {
        const uint64_t *bits = i == 0 ? few : many;
        uint64_t rows = 0;
        for (size_t w = 0; w < sizeof few / sizeof *few; w++) {
            rows += (uint64_t)__builtin_popcountll(bits[w]);
        }
        dead[i] = rows > 0 ? (bw_dead){bits, rows} : (bw_dead){0};
        index.info.rows -= rows;
        index.info.deleted += rows;
    }
    use_index(&index);
}

/* The segment as the only one of an index that is opened as every other. */
static void search_segment(const bw_segment *segment) {
    struct {
        bw_manifest_header header;
        bw_manifest_entry entry;
        uint32_t checksum;
    } manifest = {.header = {.format = BW_MANIFEST_FORMAT,
                             .byte_order = BW_BYTE_ORDER,
                             .generation = 1,
                             .segments = 1,
                             .fingerprints = segment->fingerprints},
                  .entry = {.name = "x",
                            .rows = segment->rows,
                            .bytes = segment->info.bytes,
                            .generation = segment->info.generation,
                            .checksum = segment->header_checksum}};
    memcpy(manifest.header.magic, BW_MANIFEST_MAGIC, sizeof manifest.header.magic);
    memcpy(manifest.header.uuid, segment->uuid, sizeof segment->uuid);
    size_t bytes = bw_manifest_bytes(1);
    manifest.checksum = bw_crc32c(0, &manifest, bytes - sizeof manifest.checksum);
    write_file(BW_MANIFEST_NAME, (const uint8_t *)&manifest, bytes);
    bw_index *index;
    bw_error error;
    if (bw_index_open(folder, &index, &error) != BW_OK) {
        stop("a segment that opens cannot be listed");
    }
    search_index(index);
    bw_index_close(index);
}

static void fix_segment(uint8_t *data, size_t size) {
    if (size < BW_HEADER_BYTES) {
        return;
    }
    bw_segment_header header;
    memcpy(&header, data, sizeof header);
    for (uint32_t i = 0; i < header.sections && i < BW_SECTIONS_MAX; i++) {
        bw_section *section = &header.table[i];
        if (section->offset <= size && section->bytes <= size - section->offset) {
            section->checksum = bw_crc32c(0, data + section->offset, section->bytes);
        }
    }
    header.bytes = size; /* cutting the file must not be all that is found */
    header.checksum = bw_crc32c(0, &header, offsetof(bw_segment_header, checksum));
    memcpy(data, &header, sizeof header);
}

/* The good segment, with what the sections of the input hold. Owned: free. */
static uint8_t *keep_layout(const uint8_t *data, size_t size, size_t *kept) {
    char path[128];
    snprintf(path, sizeof path, "%s/0", folder);
    bw_map good;
    if (bw_map_open(path, &good, NULL) != BW_OK) {
        stop("cannot read a seed");
    }
    uint8_t *file = malloc(good.bytes);
    if (file == NULL) {
        stop("out of memory");
    }
    memcpy(file, good.data, good.bytes);
    const bw_segment_header *header = (const bw_segment_header *)(const void *)good.data;
    for (uint32_t i = 0; i < header->sections; i++) {
        uint64_t offset = header->table[i].offset, bytes = header->table[i].bytes;
        if (offset < size) {
            memcpy(file + offset, data + offset, bytes < size - offset ? bytes : size - offset);
        }
    }
    *kept = good.bytes;
    bw_map_close(&good);
    return file;
}

/* Of manifests and deletion vectors. */
static void fix_end(uint8_t *data, size_t size) {
    if (size >= sizeof(uint32_t)) {
        uint32_t checksum = bw_crc32c(0, data, size - sizeof checksum);
        memcpy(data + size - sizeof checksum, &checksum, sizeof checksum);
    }
}

static size_t read_seed(const char *name, uint8_t flags, uint8_t *buffer, size_t capacity) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        stop("cannot read a seed");
    }
    buffer[0] = flags;
    size_t size = 1 + fread(buffer + 1, 1, capacity - 1, file);
    fclose(file);
    return size;
}

/* A manifest that lists this file, whatever is in it, as the deletion vector "v" of segment 0. */
static void list_vector(const uint8_t *file, size_t size) {
    static union {
        bw_manifest_header header;
        uint8_t bytes[4096];
    } manifest;
    static size_t bytes;
    if (bytes == 0) {
        const char *names[] = {"0", "1"}, *deleted[] = {"0.deleted", NULL};
        const bw_fingerprints fingerprints = {"e", "h", "q", "f"};
        const uint8_t uuid[16] = {0};
        if (bw_manifest_write(folder, uuid, 1, names, deleted, 2, &fingerprints, NULL) != BW_OK) {
            stop("cannot write a manifest");
        }
        bytes = read_seed(BW_MANIFEST_NAME, 0, manifest.bytes, sizeof manifest) - 1;
        memmove(manifest.bytes, manifest.bytes + 1, bytes); /* its flags come first */
    }
    bw_manifest_entry *entry = (bw_manifest_entry *)(&manifest.header + 1);
    bw_deleted_header header = {.deleted = 1};
    memcpy(&header, file, size < sizeof header ? size : sizeof header);
    memset(entry->deleted_name, 0, sizeof entry->deleted_name);
    entry->deleted_name[0] = 'v';
    entry->deleted = header.deleted;
    if (size >= sizeof(uint32_t)) {
        memcpy(&entry->deleted_checksum, file + size - sizeof(uint32_t), sizeof(uint32_t));
    }
    fix_end(manifest.bytes, bytes);
    write_file(BW_MANIFEST_NAME, manifest.bytes, bytes);
}

static void use_vector(uint8_t *file, size_t size, uint8_t flags) {
    size_t bytes = bw_deleted_bytes(300), first = sizeof(bw_deleted_header), end = bytes - sizeof(uint32_t);
    uint8_t *kept = malloc(bytes);
    if (kept == NULL) {
        stop("out of memory");
    }
    if ((flags & KEEP_LAYOUT) != 0) { /* any bits of rows that there are */
        uint64_t rows = 0;
        read_seed("0.deleted", 0, kept, bytes); /* its flags come first, and the last byte is cut */
        memmove(kept, kept + 1, bytes - 1);
        memset(kept + first, 0, end - first);
        for (size_t r = 0; r < 300; r++) {
            bool dead = first + r / 8 < size && (file[first + r / 8] >> r % 8 & 1) != 0;
            kept[first + r / 8] |= (uint8_t)(dead << r % 8);
            rows += dead;
        }
        memcpy(kept + offsetof(bw_deleted_header, deleted), &rows, sizeof rows);
        file = kept;
        size = bytes;
    }
    if ((flags & FIX_CHECKSUMS) != 0) {
        fix_end(file, size);
    }
    write_file("v", file, size);
    list_vector(file, size);
    free(kept);
    bw_index *index, *without;
    bw_error error;
    if (bw_index_open(folder, &index, &error) != BW_OK) {
        return;
    }
    use_index(index);
    search_index(index);
    const int64_t ids[] = {0, 5, 10, 15, 700, 1500, -1};
    if (bw_index_without(index, ids, sizeof ids / sizeof *ids, &without, &error) == BW_OK) {
        use_index(without);
        search_index(without);
        bw_index_close(without);
    }
    bw_index_close(index);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    prepare();
    if (size < 1) {
        return 0;
    }
    uint8_t flags = data[0];
    uint8_t *file = malloc(size);
    if (file == NULL) {
        stop("out of memory");
    }
    size--;
    memcpy(file, data + 1, size);
    bw_error error;
    if ((flags & IS_MANIFEST) != 0) {
        if ((flags & FIX_CHECKSUMS) != 0) {
            fix_end(file, size);
        }
        write_file(BW_MANIFEST_NAME, file, size);
        bw_index *index;
        if (bw_index_open(folder, &index, &error) == BW_OK) {
            use_index(index);
            search_index(index);
            bw_index_close(index);
        }
    } else if ((flags & IS_VECTOR) != 0) {
        use_vector(file, size, flags);
    } else {
        if ((flags & KEEP_LAYOUT) != 0) {
            uint8_t *kept = keep_layout(file, size, &size);
            free(file);
            file = kept;
        }
        if ((flags & FIX_CHECKSUMS) != 0) {
            fix_segment(file, size);
        }
        write_file("x", file, size);
        bw_segment *segment;
        if (bw_segment_open(folder, "x", &segment, &error) == BW_OK) {
            bw_segment_validate(segment, &error);
            use_segment(segment);
            bw_recall recall;
            bw_knn_calibrate(segment, 1, &recall, NULL, NULL, &error);
            search_segment(segment);
            bw_segment_close(segment);
        }
    }
    free(file);
    return 0;
}

size_t fuzz_seed(uint8_t *buffer, size_t capacity, unsigned number) {
    const char *names[] = {"0", "1"};
    prepare();
    if (number < 6) { /* with right checksums more often than without */
        return read_seed(names[number % 2], number < 4 ? FIX_CHECKSUMS : 0, buffer, capacity);
    }
    if (number < 9) { /* of the second, contents that stand in the wrong places */
        return read_seed(names[number == 7], FIX_CHECKSUMS | KEEP_LAYOUT, buffer, capacity);
    }
    if (number < 12) {
        bw_fingerprints fingerprints = {"e", "h", "q", "f"};
        const uint8_t uuid[16] = {0};
        const char *deleted[] = {"0.deleted", NULL};
        if (bw_manifest_write(folder, uuid, 1, names, number == 10 ? NULL : deleted, number - 9,
                              &fingerprints, NULL) != BW_OK) {
            stop("cannot write a manifest");
        }
        return read_seed(BW_MANIFEST_NAME, IS_MANIFEST | FIX_CHECKSUMS, buffer, capacity);
    }
    if (number == 12) { /* nothing that was made from the codes agrees with them */
        size_t size = read_seed("0", FIX_CHECKSUMS | KEEP_LAYOUT, buffer, capacity);
        bw_random random = {9};
        bw_segment_header header;
        memcpy(&header, buffer + 1, sizeof header);
        for (uint32_t i = 0; i < header.sections; i++) {
            const bw_section *section = &header.table[i];
            bool checked = section->kind == BW_SECTION_IDS || section->kind == BW_SECTION_ID_ROWS ||
                           section->kind == BW_SECTION_BINS || section->kind == BW_SECTION_RECALL;
            for (uint64_t at = 0; at < section->bytes && !checked; at++) {
                buffer[1 + section->offset + at] = (uint8_t)bw_random_next(&random);
            }
        }
        return size;
    }
    if (number < 16) {
        const uint8_t flags[] = {0, FIX_CHECKSUMS, FIX_CHECKSUMS | KEEP_LAYOUT};
        return read_seed("0.deleted", IS_VECTOR | flags[number - 13], buffer, capacity);
    }
    return 0;
}
