/* boxwood.h - the public C interface of the Boxwood core.
 *
 * A collection of images is held as 32-byte codes (uint8_t[32], one value a dimension). This library stores
 * codes in immutable segment files, searches them with models (unions of boxes with votes, and an additive
 * score), finds nearest neighbours, and trains models from labelled ids.
 *
 * Conventions
 * - Every function that can fail returns a bw_status and, when that is not BW_OK, fills the caller's bw_error
 * (which may be NULL) with a message for people: what is wrong, and what to do. Outputs are untouched on
 * failure unless said otherwise.
 * - The library never prints, aborts, or reads the environment. It touches only the files it is told to
 * touch.
 * - Pointers marked "owned" must be handed back to the named function; NULL is accepted there and does
 * nothing.
 * - Objects behind `const` pointers are immutable and may be used by any number of threads at once. A
 * bw_search may be advanced by several threads at once. Everything else belongs to one thread at a time.
 * - Codes are row-major: row i occupies codes[32 * i .. 32 * i + 31]. Ids are >= 0 and unique within a
 * collection.
 *
 * The part between the two cffi marks is plain C for cffi's parser: no macros but constants, no conditionals.
 */
#ifndef BOXWOOD_H
#define BOXWOOD_H

#include <stddef.h>
#include <stdint.h>

/* The rest of the library is built hidden; what this header declares is what the file exports. */
#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

/* cffi: begin */
#define BW_DIMS 32           /* dimensions of a code */
#define BW_FINE_DIMS 128     /* dimensions of a fine code, the optional second code of a row */
#define BW_BLOCK_ROWS 256    /* rows a block: the unit of zones and pruning */
#define BW_TILE_ROWS 4096    /* rows a tile: the coarse unit of k-NN */
#define BW_MORSEL_ROWS 32768 /* rows a morsel: the unit of work handed to a thread */
#define BW_FORMAT 3          /* version of the segment format, docs/FORMAT.md */
#define BW_MAX_K 10000       /* neighbours a query */
#define BW_MAX_ESTIMATORS 1024
#define BW_MAX_BOXES 65536 /* boxes a model, all estimators together */
#define BW_MAX_SEGMENTS 4096
#define BW_NAME_BYTES 48 /* a segment's file name with its NUL */
#define BW_FINGERPRINT_BYTES 32

typedef enum bw_status {
    BW_OK = 0,
    BW_INVALID = 1,   /* an argument is out of range or contradicts another */
    BW_NOMEM = 2,     /* out of memory; nothing was changed */
    BW_IO = 3,        /* the operating system refused a file operation */
    BW_CORRUPT = 4,   /* a file's content is not what was written: repair the index */
    BW_MISSING = 5,   /* no index at this path, or an id that it does not hold */
    BW_VERSION = 6,   /* a file of another format version or byte order */
    BW_CANCELLED = 7, /* the caller's progress function or cancel flag said stop */
    BW_MISMATCH = 8   /* parts that do not belong together: model and index, segment and manifest */
} bw_status;

typedef struct bw_error {
    int32_t code;      /* a bw_status */
    char message[508]; /* NUL-terminated UTF-8 */
} bw_error;

/* Called now and then during long work with the part done, 0..1, from the calling thread. Non-zero stops the
 * work (BW_CANCELLED). May be NULL. */
typedef int32_t (*bw_progress)(void *context, double done);

/* Texts of at most 31 bytes, NUL-padded; empty where there is none. Compared byte by byte. */
typedef struct bw_fingerprints {
    char encoder[32];
    char head[32];
    char quantizer[32];
    char fine[32]; /* head and quantizer of the fine codes; empty: there are none */
} bw_fingerprints;

/* ---- library
 * ------------------------------------------------------------------------------------------------- */

const char *bw_version(void);               /* "0.1.0"; static */
const char *bw_status_name(int32_t status); /* "corrupt"; static */

/* Instruction set of the kernels: "generic", "avx2", "avx512" or "neon". NULL or "" chooses the best that
 * this CPU has. Process-wide; takes effect for calls that start afterwards. BW_INVALID for an unknown name or
 * one this CPU lacks. */
int32_t bw_isa_select(const char *name, bw_error *error);
const char *bw_isa(void); /* the one in use; static */

void bw_free(void *memory); /* frees what the library returned as "owned" without a function of its own */

/* ---- writing an index
 * ---------------------------------------------------------------------------------------- */

typedef struct bw_segment_spec {
    uint64_t rows;        /* 1 .. 2^31 - 1 */
    const int64_t *ids;   /* rows, any order, >= 0, no duplicates */
    const uint8_t *codes; /* rows * 32, row-major */
    const uint8_t *fine;  /* rows * 128, row-major; NULL exactly where fingerprints.fine is empty */
    uint8_t uuid[16];     /* the collection's */
    uint64_t generation;  /* the collection's generation that this segment was made for */
    bw_fingerprints fingerprints;
    uint32_t threads; /* 0: one a core */
} bw_segment_spec;

/* Sorts the rows into index order and writes the segment file folder/name: under a temporary name, synced,
 * renamed. The folder must exist. The same rows give the same bytes, whatever order they come in and however
 * many threads work. Beside the caller's rows it needs 80 bytes of memory a row, and some MB (32 more with
 * fine codes, of which no copy is made). When it fails or is cancelled, no half file is left, and one of that
 * name that was there before stays. */
int32_t bw_segment_write(const char *folder, const char *name, const bw_segment_spec *spec,
                         bw_progress progress, void *context, bw_error *error);

/* Writes the deletion vector folder/name (by custom `<generation>-<number>.deleted`) of the segment file
 * folder/segment: under a temporary name, synced, renamed. It says which of the segment's rows are dead:
 * those with these n >= 1 ids, in any order, all of them and no others; an id that is not in the segment is
 * BW_INVALID. The segment stays as it is, and the vector takes effect when a manifest lists it. */
int32_t bw_deleted_write(const char *folder, const char *name, const char *segment, const int64_t *ids,
                         size_t n, bw_error *error);

/* Lists the segments that make up the index from now on, atomically, each with the deletion vector that is to
 * hold for it: `deleted` has as many entries as `names`, NULL or "" where a segment has none; NULL: none has.
 * Every file must exist in the folder and open cleanly, a segment must carry this uuid and the same
 * fingerprints, and a deletion vector must be its segment's. No segments is a valid, empty index. */
int32_t bw_manifest_write(const char *folder, const uint8_t *uuid, uint64_t generation,
                          const char *const *names, const char *const *deleted, uint32_t segments,
                          const bw_fingerprints *fingerprints, bw_error *error);

/* ---- an open index
 * ------------------------------------------------------------------------------------------- */

typedef struct bw_index bw_index;

typedef struct bw_index_info {
    uint64_t rows;    /* that are alive */
    uint64_t deleted; /* dead ones that segments still hold: no answer has them */
    uint64_t bytes;   /* all segment files */
    uint64_t generation;
    uint32_t segments;
    uint32_t checksum; /* the manifest's: no two indexes of a generation share it, but by a chance in 2^32 */
    uint8_t uuid[16];
    bw_fingerprints fingerprints;
} bw_index_info;

typedef struct bw_segment_info {
    char name[48];
    char deletions[48]; /* its deletion vector; empty: it has none, or not one of this name alone, as in what
                           bw_index_without makes */
    uint64_t rows;      /* of the file, */
    uint64_t deleted;   /* and so many of them are dead */
    uint64_t blocks;
    uint64_t bytes;
    uint64_t generation;
    uint32_t format;
    int64_t min_id;
    int64_t max_id;
} bw_segment_info;

/* Opens the index in `folder` as its manifest lists it now. Bounds and the checksum of every section are
 * checked before anything is used. An index that is already open in this process and unchanged on disk is
 * shared, not opened again. *index is owned: bw_index_close. It stays usable when the folder is rewritten or
 * removed. */
int32_t bw_index_open(const char *folder, bw_index **index, bw_error *error);
void bw_index_close(bw_index *index);

/* The same segments with these n ids (any order; those that the index lacks are passed over) dead as well.
 * Every function answers as if dead rows did not exist: searches, counts and exact neighbours as an index
 * made anew without them would. It costs a look-up an id, and a bit for each row of the segments that hold
 * any of them. *without is owned: bw_index_close; `index` may be closed before it. */
int32_t bw_index_without(const bw_index *index, const int64_t *ids, size_t n, bw_index **without,
                         bw_error *error);

/* Writes the deletion vector folder/name of a segment, by its place in the index: the rows that are dead in
 * this index, by the vector that its manifest lists and by bw_index_without. BW_INVALID where none is. */
int32_t bw_index_write_deleted(const bw_index *index, uint32_t segment, const char *folder, const char *name,
                               bw_error *error);

int32_t bw_index_describe(const bw_index *index, bw_index_info *info);
int32_t bw_index_segment(const bw_index *index, uint32_t segment, bw_segment_info *info, bw_error *error);

/* Deep check, O(rows): checksums again, all that is made from the codes against these, ids sorted, and those
 * of live rows unique across segments.
 * BW_CORRUPT with the reason for the first contradiction. */
int32_t bw_index_validate(const bw_index *index, bw_error *error);

/* Codes of n ids in the order given. found[i] is 1 or 0, codes of absent ids are zero; with found == NULL an
 * absent id is an error (BW_MISSING) that names it. */
int32_t bw_index_codes(const bw_index *index, const int64_t *ids, size_t n, uint8_t *codes, uint8_t *found,
                       bw_error *error);

/* The same for fine codes, 128 bytes each. BW_INVALID when the index has none. */
int32_t bw_index_fine(const bw_index *index, const int64_t *ids, size_t n, uint8_t *fine, uint8_t *found,
                      bw_error *error);

/* Rows [first, first + n) in index order, out of info.rows + info.deleted: dead ones have a place here too,
 * and the id -1. codes and fine (n * 128) may be NULL; fine must be where the index has no fine codes
 * (BW_INVALID). */
int32_t bw_index_rows(const bw_index *index, uint64_t first, uint64_t n, int64_t *ids, uint8_t *codes,
                      uint8_t *fine, bw_error *error);

/* Draws min(n, rows left) distinct random ids that are not in `exclude` (sorted ascending, may be NULL with
 * 0). The draw depends on the seed and on the set of live ids alone, not on segments or row order. ids
 * receives them in ascending order, *drawn their number. */
int32_t bw_index_draw(const bw_index *index, uint64_t seed, size_t n, const int64_t *exclude, size_t excluded,
                      int64_t *ids, size_t *drawn, bw_error *error);

/* ---- models
 * -------------------------------------------------------------------------------------------------- */

typedef struct bw_model bw_model;

typedef struct bw_model_info {
    char learner[16];
    char quantizer[32]; /* fingerprint of the codes the model is for; empty: any */
    uint32_t estimators;
    uint32_t boxes;
    uint32_t ranges;    /* lo <= code[dim] <= hi, all boxes together */
    uint32_t threshold; /* votes that a row needs; 0: every row has enough */
    int32_t has_score;
    uint32_t score_terms; /* 0 without a score */
    int32_t has_score_threshold;
    int64_t score_threshold; /* in units of 2^-score_shift */
    int32_t score_shift;
    char fine_quantizer[32]; /* fingerprint of the fine codes that the fine score is for; empty: any */
    int32_t has_fine;        /* there is a score of fine codes */
    uint32_t fine_terms;
    int32_t has_fine_threshold;
    int64_t fine_threshold; /* in units of 2^-fine_shift */
    int32_t fine_shift;
    int32_t result_shift; /* the score of a search's rows is in units of 2^-result_shift */
} bw_model_info;

typedef struct bw_range {
    uint32_t estimator; /* 0 .. estimators - 1 */
    uint32_t box;       /* 0 .. boxes of this estimator - 1 */
    uint8_t dim;
    uint8_t lo;
    uint8_t hi;
} bw_range;

/* Parses and checks a model document (docs/FORMAT.md, "Model"). Models are untrusted input: size, depth and
 * counts are limited. *model is owned: bw_model_free. */
int32_t bw_model_from_json(const char *json, size_t bytes, bw_model **model, bw_error *error);
int32_t bw_model_to_json(const bw_model *model, char **json, bw_error *error); /* *json owned: bw_free */

/* The model as a boolean SQL expression over columns d00 .. d31, and fine (a list or array of 128 values)
 * where the model has a fine threshold, that is true for exactly the rows the model matches. */
int32_t bw_model_to_sql(const bw_model *model, char **sql, bw_error *error); /* *sql owned: bw_free */
void bw_model_free(bw_model *model);

void bw_model_describe(const bw_model *model, bw_model_info *info);
/* All ranges, ordered by estimator, box, dim. `ranges` holds info.ranges entries. A box without ranges
 * contains every row and gives no entry. */
void bw_model_ranges(const bw_model *model, bw_range *ranges);

/* Votes, scores and match of n rows (codes: n * 32, fine codes: n * 128), plainly, row by row: the oracle of
 * every fast path. Each output may be NULL. `fine` may be NULL where the model has no fine score or votes
 * alone are wanted, else that is BW_INVALID. A score is the largest of its terms, each constant + sum over
 * dims of (linear[d] + square[d] * x) * x, and votes * score.votes in the score of codes: an exact integer in
 * units of 2^-score_shift (or 2^-fine_shift). A row matches when votes >= threshold and each of the two
 * scores that has a threshold reaches it. `scores` gets the fine score where the model has one, else the
 * score, else the votes. */
int32_t bw_model_evaluate(const bw_model *model, const uint8_t *codes, const uint8_t *fine, size_t n,
                          int32_t *votes, int64_t *scores, uint8_t *match, bw_error *error);

/* ---- searching
 * ----------------------------------------------------------------------------------------------- */

#define BW_COUNT_ONLY 1 /* flag: count the matching rows, give none back */

typedef struct bw_stats {
    uint64_t rows;             /* rows that matched */
    uint64_t blocks;           /* blocks in the index */
    uint64_t blocks_pruned;    /* ruled out by their zones */
    uint64_t blocks_outscored; /* of these: by bounds of the score, where votes would have done */
    uint64_t blocks_contained; /* known to match whole by their zones */
    uint64_t blocks_planes;    /* whose bit planes were read; the rest of all blocks but */
    uint64_t blocks_scanned;   /* those whose codes were read, because nothing else could tell */
    uint64_t fine_rows;        /* rows whose fine codes were read */
    uint64_t bytes;            /* of codes, planes, zones and fine codes read */
    uint64_t nanoseconds;      /* wall time from open to the last morsel */
} bw_stats;

typedef struct bw_search bw_search;

typedef struct bw_batch {
    uint64_t rows; /* out */
    int64_t *ids;  /* caller's buffers of BW_MORSEL_ROWS entries each; any may be NULL if not wanted */
    int32_t *votes;
    int64_t *scores;
} bw_batch;

/* Prepares a search; keeps its own hold on the index and its own copy of what it needs of the model.
 * BW_MISMATCH when the model is for another quantizer. *search is owned: bw_search_close. */
int32_t bw_search_open(const bw_index *index, const bw_model *model, uint32_t flags, bw_search **search,
                       bw_error *error);
uint64_t bw_search_morsels(const bw_search *search); /* at most this many threads are useful */
/* Works on the next morsels until one has matching rows (in index order within the batch), or none is left:
 * batch->rows is then 0. With BW_COUNT_ONLY it works through all that is left and leaves batch->rows at 0.
 * `morsel`, if not NULL, receives the number of the batch's morsel. Several threads may call it, each with a
 * batch of its own. */
int32_t bw_search_next(bw_search *search, bw_batch *batch, uint64_t *morsel, bw_error *error);
void bw_search_stats(const bw_search *search,
                     bw_stats *stats); /* complete once every thread has seen its last batch */
void bw_search_close(bw_search *search);

typedef struct bw_rows {
    uint64_t rows;
    int64_t *ids;
    int32_t *votes;
    int64_t *scores;
} bw_rows;

/* A whole search with the library's own threads (0: one a core). Rows in index order, whatever the threads;
 * with BW_COUNT_ONLY `rows` may be NULL. `cancel`, if not NULL, is looked at between morsels; non-zero stops
 * the search. *rows is owned: bw_rows_free. */
int32_t bw_search_run(const bw_index *index, const bw_model *model, uint32_t flags, uint32_t threads,
                      const volatile int32_t *cancel, bw_rows **rows, bw_stats *stats, bw_error *error);
void bw_rows_free(bw_rows *rows);

typedef struct bw_knn_options {
    uint32_t k;             /* 1 .. BW_MAX_K */
    uint32_t threads;       /* 0: one a core; queries are shared out among them */
    double recall;          /* 1: exact, proven by bounds. Less, but above 0: at least this share of the true
                               neighbours on average, by what the segments measured when they were built;
                               they spend more where rows are dead */
    const bw_model *within; /* only rows that this model matches; NULL: all */
    const int64_t
        *ids; /* only these ids (any order; those that the index lacks are passed over); NULL: all */
    size_t n_ids;
    const volatile int32_t *cancel; /* looked at now and then; non-zero stops the work; may be NULL */
} bw_knn_options;

/* The k nearest rows of each of n queries (n * 32 codes) by squared Euclidean distance on codes, ties by id,
 * nearest first. Query i's answers start at i * k in ids and distances; counts[i] = min(k, rows that may be
 * answers). With `within` or `ids` the answer is exact whatever the recall, and never shorter than that. A
 * recall above 0.999 is exact too. stats may be NULL; they count for each query all blocks, four visits of 64
 * rows as one block scanned, and the bytes of these rows as a whole, though dimensions that could not matter
 * any more were left unread. */
int32_t bw_knn(const bw_index *index, const uint8_t *queries, size_t n, const bw_knn_options *options,
               int64_t *ids, uint32_t *distances, uint32_t *counts, bw_stats *stats, bw_error *error);

typedef struct bw_box_report {
    uint32_t estimator;
    uint32_t box;
    uint32_t ranges;
    double estimated_rows; /* from the segments' samples */
    uint64_t rows;         /* the truth */
    char path[16];         /* the cheapest by estimate. "zones": zones, then codes; "planes": zones, then bit
                              planes, then codes of the rows that these leave; "scan": all codes; "score":
                              zones, then scores by codes, then boxes of the rows that these leave */
    double estimated_blocks;      /* whose planes or codes would be read, by a look at a few of them */
    double estimated_nanoseconds; /* one thread of the computer that the costs were measured on */
    uint64_t blocks;              /* as in bw_stats, from here on */
    uint64_t blocks_pruned;
    uint64_t blocks_outscored;
    uint64_t blocks_contained;
    uint64_t blocks_planes;
    uint64_t blocks_scanned;
    uint64_t fine_rows;
    uint64_t bytes;
    uint64_t nanoseconds;
} bw_box_report;

/* Counts, on one thread, what every box of the model matches by itself, and the model as a whole. `reports`
 * holds as many entries as the model has boxes, in order; `whole` is the whole model's: its estimator, box
 * and ranges are how many there are. */
int32_t bw_explain(const bw_index *index, const bw_model *model, bw_box_report *reports, bw_box_report *whole,
                   bw_error *error);

/* ---- learning
 * ------------------------------------------------------------------------------------------------ */

#define BW_LEARNER_BRANCH 1   /* one decision branch */
#define BW_LEARNER_ENSEMBLE 2 /* `estimators` decision branches on bootstraps, majority vote */
#define BW_MAX_COVER_BOXES 64
#define BW_COVER_ROWS 30000 /* random_negatives where nothing else is asked for: for cover, */
#define BW_BRANCH_ROWS 500  /* and for the others */
#define BW_LEARNER_COVER 3  /* a score, and where to cut it; within boxes if these are asked for */

typedef struct bw_train_options {
    int32_t learner;
    uint32_t estimators;       /* ensemble: 1 .. BW_MAX_ESTIMATORS */
    uint32_t boxes;            /* cover: so many boxes at most around what it looks for, 0 .. 64; 0: none */
    uint32_t random_negatives; /* rows of the collection that labels are told from, 0 .. 100,000 */
    double negative_weight;    /* cost of a given negative left inside against a positive lost, 0.01 .. 100 */
    uint64_t seed;             /* branch and ensemble: of all that is drawn. cover draws nothing */
    int32_t prior; /* branch and ensemble: 1: boxes from a variance with a prior, good with few labels; 0: the
                      papers' own method, boxes from the labels alone (negative_weight has no say) */
    int32_t rerank;       /* cover: 1: rows near the threshold are judged by their fine codes */
    int32_t guard;        /* cover: 1: fall back to the distance to the mean positive where held-out
                             positives rank clearly higher by it */
    const uint8_t *query; /* 32: the code of words or an image that says what is sought; NULL: none. cover
                             takes it for half a positive, the others for one where there is no other */
    const uint8_t *query_fine; /* 128: its fine code, with rerank; may be NULL where there are positives */
    const volatile int32_t *cancel; /* looked at between boxes and regressions; non-zero stops the work with
                                       BW_CANCELLED; may be NULL */
    /* bw_train: rows whose codes the caller gives, because the index lacks them or has them with other codes:
     * labels are looked for here first. In any order, no id twice; those that are no labels are passed over.
     */
    const int64_t *given_ids;   /* n_given; may be NULL with 0, */
    const uint8_t *given_codes; /* as may n_given * 32, */
    const uint8_t *given_fine;  /* and n_given * 128; read with rerank alone */
    size_t n_given;
} bw_train_options;

typedef struct bw_train_stats {
    uint32_t positives;
    uint32_t negatives;
    uint32_t random_negatives; /* rows of the collection that were taken */
    uint32_t estimators;
    uint32_t boxes;
    uint32_t terms; /* of the score: kinds of positives that were told apart */
    uint32_t
        held_out; /* positives whose score is known from a model without them; the estimates rest on these */
    int32_t fallback; /* 1: the guard took the distance to the mean positive */
    double rows;      /* how many rows of the collection should match */
    double precision, precision_low,
        precision_high;                     /* of these, the share that is right: what to expect, and */
    double recall, recall_low, recall_high; /* where it was in about nine cases of ten of docs/LEARNERS.md
                                                        (fewer where matches are rarer than 1 in 1,000).
                                                        NaN: unknown */
    char note[200];                         /* what people should know about these labels; often empty */
    uint64_t nanoseconds;
} bw_train_stats;

/* Trains on labelled ids of the index. What they are told from are further rows: for branch and ensemble
 * drawn by bw_index_draw, the same whatever the segments; for cover the live rows of the samples that
 * segments carry. The same labels (as sets), options and index give the same model on every machine. Errors:
 * neither positives nor a query, an id both positive and negative, an id that is neither given nor in the
 * index, options out of range, rerank where the index has no fine codes. *model is owned: bw_model_free.
 * stats may be NULL. */
int32_t bw_train(const bw_index *index, const int64_t *positives, size_t n_positives,
                 const int64_t *negatives, size_t n_negatives, const bw_train_options *options,
                 bw_model **model, bw_train_stats *stats, bw_error *error);

/* Labels as codes of 32 bytes, row after row, and with options->rerank as fine codes of 128 bytes as well.
 * Borrowed for the call. */
typedef struct bw_labels {
    const uint8_t *positives, *negatives, *randoms; /* randoms: rows of the collection */
    size_t n_positives, n_negatives, n_randoms;
    const uint8_t *positives_fine, *negatives_fine, *randoms_fine; /* NULL without rerank */
    uint64_t rows;         /* of the collection that randoms are a sample of; 0: randoms are all of it */
    const char *quantizer; /* fingerprints for the model; NULL or "": any */
    const char *fine_quantizer;
} bw_labels;

/* The same from codes; random_negatives and the given rows of the options are not used. */
int32_t bw_train_codes(const bw_labels *labels, const bw_train_options *options, bw_model **model,
                       bw_train_stats *stats, bw_error *error);
/* cffi: end */

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
