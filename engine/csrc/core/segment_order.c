/* segment_order.c - the order of rows in a segment: a k-d order (Bentley 1975) over all dimensions. A range
 * of rows is cut at the multiple of a block nearest its middle, along the dimension in which its values vary
 * most, until a block is left. Rows start in ascending order of id and every cut keeps the order of the rows
 * on each side, so the result depends on nothing but the rows, and a block's rows stand in ascending order of
 * id. */
#include "segment.h"
#include "segment_format.h"

#define DIGIT_BITS 11
#define DIGITS ((64 + DIGIT_BITS - 1) / DIGIT_BITS)
#define DIGIT_VALUES (1u << DIGIT_BITS)

/* Work between two calls of the progress function, in rows that were looked at. */
#define PROGRESS_ROWS ((uint64_t)1 << 19)

/* Least significant digit first; digits in which all ids agree are passed over. */
int32_t bw_sort_ids(const int64_t *ids, uint64_t rows, uint32_t *sorted, bw_error *error) {
    uint64_t differ = 0;
    bool ascending = true;
    for (uint64_t i = 0; i < rows; i++) {
        sorted[i] = (uint32_t)i;
        differ |= (uint64_t)ids[i] ^ (uint64_t)ids[0];
        ascending &= i == 0 || ids[i - 1] <= ids[i];
    }
    if (ascending) {
        return BW_OK;
    }
    uint32_t *other = bw_alloc_array(rows, sizeof *other);
    if (other == NULL) {
        return bw_fail_nomem(error, rows * sizeof *other);
    }
    uint32_t *from = sorted, *to = other;
    for (unsigned digit = 0; digit < DIGITS; digit++) {
        unsigned shift = digit * DIGIT_BITS;
        if (((differ >> shift) & (DIGIT_VALUES - 1)) == 0) {
            continue;
        }
        uint32_t places[DIGIT_VALUES] = {0};
        for (uint64_t i = 0; i < rows; i++) {
            places[((uint64_t)ids[i] >> shift) & (DIGIT_VALUES - 1)]++;
        }
        uint32_t before = 0;
        for (unsigned value = 0; value < DIGIT_VALUES; value++) {
            uint32_t count = places[value];
            places[value] = before;
            before += count;
        }
        for (uint64_t i = 0; i < rows; i++) {
            to[places[((uint64_t)ids[from[i]] >> shift) & (DIGIT_VALUES - 1)]++] = from[i];
        }
        uint32_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != sorted) {
        memcpy(sorted, from, rows * sizeof *sorted);
    }
    bw_free(other);
    return BW_OK;
}

typedef struct item {
    uint8_t code[BW_DIMS];
    uint32_t row;
} item;

/* The dimension of largest variance, the lowest of equals. n * sum of squares - square of sum is n^2 times
 * the variance: integers, so that every machine cuts alike. */
static uint32_t widest_dimension(const item *items, uint32_t n) {
    __extension__ typedef unsigned __int128 wide;
    uint64_t sums[BW_DIMS] = {0}, squares[BW_DIMS] = {0};
    for (uint32_t first = 0; first < n;) {
        /* 65,536 * 255^2 < 2^32: short sums that vectorise well. */
        uint32_t last = n - first > 65536 ? first + 65536 : n;
        uint32_t part_sums[BW_DIMS] = {0}, part_squares[BW_DIMS] = {0};
        for (; first < last; first++) {
            const uint8_t *code = items[first].code;
            for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
                uint16_t value = code[dim];
                part_sums[dim] += value;
                part_squares[dim] += (uint16_t)(value * value);
            }
        }
        for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
            sums[dim] += part_sums[dim];
            squares[dim] += part_squares[dim];
        }
    }
    uint32_t best = 0;
    wide most = 0;
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        wide variance = (wide)n * squares[dim] - (wide)sums[dim] * sums[dim];
        if (variance > most) {
            most = variance;
            best = dim;
        }
    }
    return best;
}

/* Brings the `left` items of smallest value in `dim` to the front, the first of equals; both sides keep their
 * order. */
static void cut(item *items, uint32_t n, uint32_t left, uint32_t dim, item *spare) {
    uint32_t counts[256] = {0};
    for (uint32_t i = 0; i < n; i++) {
        counts[items[i].code[dim]]++;
    }
    uint32_t below = 0, edge = 0;
    while (below + counts[edge] <= left) {
        below += counts[edge];
        edge++;
    }
    uint32_t equals = left - below; /* rows with the value `edge` that still belong to the left */
    uint32_t to_left = 0, to_right = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t value = items[i].code[dim];
        uint32_t takes_equal = (uint32_t)(value == edge) & (uint32_t)(equals > 0);
        uint32_t goes_left = (uint32_t)(value < edge) | takes_equal;
        equals -= takes_equal;
        /* No branch on the data: the item goes to both sides, and the one it does not belong to overwrites
         * it. */
        spare[to_right] = items[i];
        items[to_left] = items[i];
        to_left += goes_left;
        to_right += 1 - goes_left;
    }
    memcpy(items + to_left, spare, to_right * sizeof *spare);
}

int32_t bw_segment_order(const int64_t *ids, const uint8_t *codes, uint64_t rows, uint32_t *order,
                         bw_progress progress, void *context, bw_error *error) {
    typedef struct range {
        uint32_t first, rows;
    } range;
    if (rows < 1 || rows > BW_SEGMENT_ROWS_MAX) {
        return bw_fail(error, BW_INVALID, "a segment holds 1 to %llu rows, not %llu",
                       (unsigned long long)BW_SEGMENT_ROWS_MAX, (unsigned long long)rows);
    }
    int32_t code = bw_sort_ids(ids, rows, order, error);
    if (code != BW_OK) {
        return code;
    }
    /* A cut sends at most half the rows and half a block to the right, and one place more is written in
     * passing. */
    size_t spare_rows = rows / 2 + BW_BLOCK_ROWS + 1;
    item *items = bw_alloc_array(rows, sizeof *items);
    item *spare = bw_alloc_array(spare_rows, sizeof *spare);
    if (items == NULL || spare == NULL) {
        bw_free(items);
        bw_free(spare);
        return bw_fail_nomem(error, (rows + spare_rows) * sizeof *items);
    }
    uint64_t total = rows;
    for (uint64_t n = rows; n > BW_BLOCK_ROWS; n = (n + 1) / 2) {
        total += rows;
    }
    for (uint64_t i = 0; i < rows; i++) {
        memcpy(items[i].code, codes + (size_t)order[i] * BW_DIMS, BW_DIMS);
        items[i].row = order[i];
    }
    /* Ranges that wait to be cut. The larger part waits while the smaller one is worked on, so 32 are enough.
     */
    range waiting[32];
    uint32_t depth = 0;
    uint64_t done = rows, reported = 0;
    range now = {0, (uint32_t)rows};
    for (;;) {
        if (now.rows <= BW_BLOCK_ROWS) {
            if (depth == 0) {
                break;
            }
            now = waiting[--depth];
            continue;
        }
        if (progress != NULL && done - reported >= PROGRESS_ROWS) {
            reported = done;
            if (progress(context, done < total ? (double)done / (double)total : 1.0) != 0) {
                code = bw_fail(error, BW_CANCELLED, "cancelled while rows were put in order");
                break;
            }
        }
        item *part = items + now.first;
        uint32_t left = (now.rows / 2 + BW_BLOCK_ROWS / 2) / BW_BLOCK_ROWS * BW_BLOCK_ROWS;
        cut(part, now.rows, left, widest_dimension(part, now.rows), spare);
        done += now.rows;
        range low = {now.first, left}, high = {now.first + left, now.rows - left};
        bool low_is_smaller = low.rows < high.rows;
        waiting[depth++] = low_is_smaller ? high : low;
        now = low_is_smaller ? low : high;
    }
    for (uint64_t i = 0; i < rows && code == BW_OK; i++) {
        order[i] = items[i].row;
    }
    bw_free(items);
    bw_free(spare);
    return code;
}
