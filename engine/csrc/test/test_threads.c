/* Many threads on one index while a publisher replaces it: opening, searching, k-NN, training, drawing and
 * closing beside new manifests and removed files. Every answer must be that of one published generation.
 * Made to be run under ThreadSanitizer (make test-threads), and fast enough to run without. */
#include "index.h"
#include "test.h"

#include <pthread.h>
#include <stdatomic.h>

enum { READERS = 5, SEGMENTS = 4, ROWS = 600, GENERATIONS = 40 };

static const char *const folder = "threads.tmp";
static const uint8_t uuid[16] = "threads";
static const bw_fingerprints fingerprints = {.quantizer = "q"};
static atomic_bool stop;
static atomic_ulong rounds, wrong;
static bw_model *everything, *half;

#define REQUIRE(condition)                                                                                   \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            printf("%s:%d: FAILED in a thread: %s\n", __FILE__, __LINE__, #condition);                       \
            atomic_fetch_add(&wrong, 1);                                                                     \
        }                                                                                                    \
    } while (0)

/* The code of an id tells the id (dims 0 and 1) and is drawn for the rest; no two rows have the same. */
static void code_of(int64_t id, uint8_t *code) {
    bw_random random = {(uint64_t)id};
    for (int dim = 0; dim < BW_DIMS; dim++) {
        code[dim] = (uint8_t)bw_random_next(&random);
    }
    code[0] = (uint8_t)id;
    code[1] = (uint8_t)(id >> 8);
}

/* Generation g lists the segments of generations g - 3 .. g, of which each has the ids g * ROWS and on. All
 * but the newest have deletion vectors: every fifth id is dead. */
static bool is_live(int64_t id, uint64_t generation) {
    return (uint64_t)id / ROWS == generation || id % 5 != 0;
}

static void write_segment(unsigned generation) {
    static int64_t ids[ROWS];
    static uint8_t codes[ROWS * BW_DIMS];
    bw_error error;
    char name[BW_NAME_BYTES];
    for (int i = 0; i < ROWS; i++) {
        ids[i] = (int64_t)generation * ROWS + i;
        code_of(ids[i], codes + (size_t)i * BW_DIMS);
    }
    bw_segment_spec spec = {.rows = ROWS,
                            .ids = ids,
                            .codes = codes,
                            .generation = generation,
                            .fingerprints = fingerprints,
                            .threads = 2};
    memcpy(spec.uuid, uuid, sizeof uuid);
    snprintf(name, sizeof name, "%u.segment", generation);
    CHECK_STATUS(bw_segment_write(folder, name, &spec, NULL, NULL, &error), BW_OK);
}

static void write_deleted(unsigned generation) {
    static int64_t dead[ROWS];
    size_t n = 0;
    for (int64_t id = (int64_t)generation * ROWS; id < (int64_t)(generation + 1) * ROWS; id++) {
        dead[n] = id;
        n += id % 5 == 0;
    }
    bw_error error;
    char name[BW_NAME_BYTES], segment[BW_NAME_BYTES];
    snprintf(name, sizeof name, "%u.deleted", generation);
    snprintf(segment, sizeof segment, "%u.segment", generation);
    CHECK_STATUS(bw_deleted_write(folder, name, segment, dead, n, &error), BW_OK);
}

static void publish(unsigned generation) {
    bw_error error;
    char name[SEGMENTS][BW_NAME_BYTES], vector[SEGMENTS][BW_NAME_BYTES];
    const char *names[SEGMENTS], *deleted[SEGMENTS];
    write_segment(generation);
    write_deleted(generation - 1);
    for (unsigned i = 0; i < SEGMENTS; i++) {
        snprintf(name[i], sizeof name[i], "%u.segment", generation - SEGMENTS + 1 + i);
        snprintf(vector[i], sizeof vector[i], "%u.deleted", generation - SEGMENTS + 1 + i);
        names[i] = name[i];
        deleted[i] = i + 1 < SEGMENTS ? vector[i] : NULL;
    }
    CHECK_STATUS(bw_manifest_write(folder, uuid, generation, names, deleted, SEGMENTS, &fingerprints, &error),
                 BW_OK);
    snprintf(name[0], sizeof name[0], "%u.segment", generation - SEGMENTS);
    snprintf(vector[0], sizeof vector[0], "%u.deleted", generation - SEGMENTS);
    test_remove_file(folder, name[0]);
    test_remove_file(folder, vector[0]);
}

/* Live rows of a generation, or those that `half` matches, without these ids: counted plainly. */
static uint64_t plain_count(uint64_t generation, bool of_half, const int64_t *without, size_t n) {
    uint64_t rows = 0;
    for (int64_t id = (int64_t)(generation - SEGMENTS + 1) * ROWS; id < (int64_t)(generation + 1) * ROWS;
         id++) {
        uint8_t code[BW_DIMS];
        bool live = is_live(id, generation);
        for (size_t i = 0; i < n; i++) {
            live = live && id != without[i];
        }
        code_of(id, code);
        rows += live && (!of_half || code[2] < 128);
    }
    return rows;
}

/* One search, advanced by several threads, each with buffers of its own. */
typedef struct sharing {
    bw_search *search;
    atomic_ullong rows;
} sharing;

static void advance(void *context, uint32_t worker) {
    (void)worker;
    sharing *shared = context;
    int64_t *ids = test_alloc(BW_MORSEL_ROWS * sizeof *ids);
    bw_batch batch = {.ids = ids};
    bw_error error;
    do {
        batch.rows = 0;
        REQUIRE(bw_search_next(shared->search, &batch, NULL, &error) == BW_OK);
        atomic_fetch_add(&shared->rows, batch.rows);
    } while (batch.rows > 0);
    free(ids);
}

static uint64_t count(const bw_index *index, const bw_model *model, uint32_t threads) {
    bw_error error;
    bw_stats stats = {0};
    REQUIRE(bw_search_run(index, model, BW_COUNT_ONLY, threads, NULL, NULL, &stats, &error) == BW_OK);
    return stats.rows;
}

static void use(const bw_index *index, uint64_t seed) {
    bw_error error;
    bw_random random = {seed};
    bw_index_info info;
    bw_index_describe(index, &info);
    int64_t first = (int64_t)(info.generation - SEGMENTS + 1) * ROWS;
    REQUIRE(info.rows == plain_count(info.generation, false, NULL, 0) && info.segments == SEGMENTS);

    REQUIRE(count(index, everything, 3) == info.rows);
    sharing shared = {0};
    REQUIRE(bw_search_open(index, half, 0, &shared.search, &error) == BW_OK);
    bw_parallel(2, advance, &shared);
    REQUIRE(atomic_load(&shared.rows) == plain_count(info.generation, true, NULL, 0));
    bw_search_close(shared.search);

    int64_t ids[10], id = first + (int64_t)bw_random_below(&random, SEGMENTS * ROWS);
    uint32_t distances[10], counts[1];
    uint8_t code[BW_DIMS], stored[BW_DIMS], found;
    code_of(id, code);
    bool live = is_live(id, info.generation);
    bw_knn_options options = {.k = 5, .threads = 2, .recall = bw_random_below(&random, 2) ? 1 : 0.9};
    options.within = bw_random_below(&random, 3) ? NULL : everything;
    REQUIRE(bw_knn(index, code, 1, &options, ids, distances, counts, NULL, &error) == BW_OK);
    REQUIRE(counts[0] == 5 && (options.recall < 1 || (ids[0] == id) == live));
    REQUIRE(bw_index_codes(index, &id, 1, stored, &found, &error) == BW_OK && found == live);
    REQUIRE(!live || memcmp(stored, code, BW_DIMS) == 0);

    size_t drawn = 0;
    REQUIRE(bw_index_draw(index, seed, 10, NULL, 0, ids, &drawn, &error) == BW_OK && drawn == 10);
    for (size_t i = 0; i < drawn; i++) {
        REQUIRE(ids[i] >= first && is_live(ids[i], info.generation));
    }
    /* Views share the segments with the index that they are of, and outlive it. */
    bw_index *without = NULL;
    REQUIRE(bw_index_without(index, ids, 4, &without, &error) == BW_OK);
    REQUIRE(count(without, half, 2) == plain_count(info.generation, true, ids, 4));
    bw_train_options training = {.learner =
                                     bw_random_below(&random, 2) ? BW_LEARNER_COVER : BW_LEARNER_BRANCH,
                                 .random_negatives = 200,
                                 .negative_weight = 1,
                                 .prior = 1,
                                 .guard = 1};
    bw_model *model = NULL;
    REQUIRE(bw_train(without, ids + 4, 3, ids + 7, 2, &training, &model, NULL, &error) == BW_OK);
    bw_model_free(model);
    bw_index_close(without);
    if (bw_random_below(&random, 8) == 0) {
        REQUIRE(bw_index_validate(index, &error) == BW_OK);
    }
}

static void *read_on(void *argument) {
    uint64_t seed = (uint64_t)(uintptr_t)argument;
    bw_index *kept = NULL;
    while (!atomic_load(&stop)) {
        bw_index *index;
        bw_error error;
        int32_t code = bw_index_open(folder, &index, &error);
        if (code != BW_OK) {
            printf("    %s: %s\n", bw_status_name(code), error.message);
            atomic_fetch_add(&wrong, 1);
            continue;
        }
        use(index, seed += 1000);
        /* An old index stays what it was, though its files are gone. */
        if (kept != NULL) {
            use(kept, seed);
        }
        bw_index_close(kept);
        kept = index;
        atomic_fetch_add(&rounds, 1);
    }
    bw_index_close(kept);
    return NULL;
}

static bw_model *read_model(const char *text) {
    bw_model *model = NULL;
    bw_error error;
    CHECK_STATUS(bw_model_from_json(text, strlen(text), &model, &error), BW_OK);
    return model;
}

int main(void) {
    everything = read_model("{\"boxwood_model\":1,\"learner\":\"all\",\"dims\":32,\"estimators\":[[[]]],"
                            "\"threshold\":1}");
    half = read_model("{\"boxwood_model\":1,\"learner\":\"half\",\"dims\":32,\"estimators\":[[[[2,0,127]]]],"
                      "\"threshold\":1}");
    test_make_folder(folder);
    for (unsigned generation = 1; generation < SEGMENTS; generation++) {
        write_segment(generation);
        write_deleted(generation);
    }
    publish(SEGMENTS);
    pthread_t readers[READERS];
    for (uintptr_t i = 0; i < READERS; i++) {
        CHECK(pthread_create(&readers[i], NULL, read_on, (void *)(i + 1)) == 0);
    }
    for (unsigned generation = SEGMENTS + 1; generation <= GENERATIONS; generation++) {
        unsigned long before = atomic_load(&rounds);
        publish(generation);
        while (atomic_load(&rounds) < before + 2 && atomic_load(&wrong) == 0) {
            usleep(1000); /* publishing must not be all that happens */
        }
    }
    atomic_store(&stop, true);
    for (int i = 0; i < READERS; i++) {
        pthread_join(readers[i], NULL);
    }
    printf("%lu rounds beside %d publications\n", atomic_load(&rounds), GENERATIONS - SEGMENTS);
    CHECK_EQUAL(atomic_load(&wrong), 0);
    bw_model_free(everything);
    bw_model_free(half);
    test_remove_folder(folder);
    return test_finish();
}
