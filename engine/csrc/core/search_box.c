/* search_box.c - one estimator, a union of boxes: its zone tests on 64 blocks, its rows in one block, and the
 * order in which boxes and their ranges are tried. */
#include "search.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES ((size_t)BW_BLOCK_ROWS * BW_DIMS)

int32_t bw_sample_draw(const bw_index *index, uint32_t rows, bw_sample *sample, bw_error *error) {
    uint32_t n = index->info.rows < rows ? (uint32_t)index->info.rows : rows;
    uint32_t blocks = (n + BW_BLOCK_ROWS - 1) / BW_BLOCK_ROWS;
    uint8_t *codes = bw_alloc_aligned(blocks * BLOCK_BYTES);
    if (!codes) {
        return bw_fail_nomem(error, blocks * BLOCK_BYTES);
    }
    memset(codes, 0, blocks * BLOCK_BYTES);
    uint32_t segment = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t row = (2 * (uint64_t)i + 1) * index->info.rows / (2 * (uint64_t)n);
        while (row >= index->first_rows[segment + 1]) {
            segment++;
        }
        uint8_t code[BW_DIMS];
        bw_index_gather(index, segment, (uint32_t)(row - index->first_rows[segment]), code);
        uint8_t *at = codes + i / BW_BLOCK_ROWS * BLOCK_BYTES + i % BW_BLOCK_ROWS;
        for (int d = 0; d < BW_DIMS; d++) {
            at[d * BW_BLOCK_ROWS] = code[d];
        }
    }
    sample->rows = n;
    sample->blocks = blocks;
    sample->codes = codes;
    return BW_OK;
}

uint32_t bw_sample_count(const bw_sample *sample, const bw_kernels *kernels, const bw_ranges *boxes,
                         uint32_t n) {
    uint32_t count = 0;
    for (uint32_t s = 0; s < sample->blocks; s++) {
        uint64_t in_any[4] = {0}, mask[4];
        for (uint32_t i = 0; i < n; i++) {
            kernels->box(sample->codes + s * BLOCK_BYTES, BW_BLOCK_ROWS, &boxes[i], mask);
            for (int word = 0; word < 4; word++) {
                in_any[word] |= mask[word];
            }
        }
        uint32_t rows = sample->rows - s * BW_BLOCK_ROWS;
        for (uint32_t word = 0; word < 4 && rows > 64 * word; word++) {
            uint32_t left = rows - 64 * word;
            count += (uint32_t)__builtin_popcountll(left < 64 ? in_any[word] & (((uint64_t)1 << left) - 1)
                                                              : in_any[word]);
        }
    }
    return count;
}

/* A box without the ranges that hold every value, the others rarest first. below[d][x]: sample rows with a
 * value < x. */
static void order_ranges(const bw_ranges *box, const uint16_t below[BW_DIMS][257], bw_ranges *ordered) {
    uint32_t inside[BW_DIMS];
    memset(ordered, 0, sizeof *ordered);
    for (uint32_t i = 0; i < box->count; i++) {
        uint8_t dim = box->dim[i], lo = box->lo[i], hi = box->hi[i];
        if (lo == 0 && hi == 255) {
            continue;
        }
        uint32_t rows = (uint32_t)below[dim][hi + 1] - below[dim][lo];
        uint32_t place = ordered->count++;
        for (; place > 0 && inside[place - 1] > rows; place--) {
            inside[place] = inside[place - 1];
            ordered->dim[place] = ordered->dim[place - 1];
            ordered->lo[place] = ordered->lo[place - 1];
            ordered->hi[place] = ordered->hi[place - 1];
        }
        inside[place] = rows;
        ordered->dim[place] = dim;
        ordered->lo[place] = lo;
        ordered->hi[place] = hi;
    }
}

typedef struct ranked {
    uint32_t rows;
    uint32_t estimator;
} ranked;

static int by_rows(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->rows != y->rows) {
        return x->rows < y->rows ? -1 : 1;
    }
    return x->estimator < y->estimator ? -1 : x->estimator > y->estimator;
}

int32_t bw_program_make(const bw_model *model, const bw_sample *sample, const bw_kernels *kernels,
                        bw_program *program, bw_error *error) {
    uint32_t boxes = bw_model_boxes(model);
    bw_program made = {0};
    ranked *order = bw_alloc_array(model->estimators, sizeof *order);
    uint16_t (*below)[257] = bw_alloc_zero(BW_DIMS, sizeof *below);
    made.first_box = bw_alloc_array((size_t)model->estimators + 1, sizeof *made.first_box);
    made.boxes = bw_alloc_array(boxes, sizeof *made.boxes);
    made.box_dims = bw_alloc_array(boxes, sizeof *made.box_dims);
    if (!order || !below || !made.first_box || !made.boxes || !made.box_dims) {
        bw_free(order);
        bw_free(below);
        bw_program_free(&made);
        return bw_fail_nomem(error, boxes * sizeof *made.boxes);
    }
    for (uint32_t i = 0; i < sample->rows; i++) {
        const uint8_t *at = sample->codes + i / BW_BLOCK_ROWS * BLOCK_BYTES + i % BW_BLOCK_ROWS;
        for (int d = 0; d < BW_DIMS; d++) {
            below[d][at[d * BW_BLOCK_ROWS] + 1]++;
        }
    }
    for (int d = 0; d < BW_DIMS; d++) {
        for (int x = 1; x <= 256; x++) {
            below[d][x] = (uint16_t)(below[d][x] + below[d][x - 1]);
        }
    }
    for (uint32_t e = 0; e < model->estimators; e++) {
        uint32_t first = model->first_box[e], n = model->first_box[e + 1] - first;
        if (n > 0) {
            order[made.estimators++] = (ranked){bw_sample_count(sample, kernels, model->boxes + first, n), e};
        }
    }
    qsort(order, made.estimators, sizeof *order, by_rows);
    uint32_t filled = 0;
    for (uint32_t i = 0; i < made.estimators; i++) {
        made.first_box[i] = filled;
        uint32_t e = order[i].estimator;
        for (uint32_t b = model->first_box[e]; b < model->first_box[e + 1]; b++, filled++) {
            order_ranges(&model->boxes[b], (const uint16_t (*)[257])below, &made.boxes[filled]);
            made.box_dims[filled] = 0;
            for (uint32_t r = 0; r < made.boxes[filled].count; r++) {
                made.box_dims[filled] |= (uint32_t)1 << made.boxes[filled].dim[r];
            }
            made.dims |= made.box_dims[filled];
        }
    }
    made.first_box[made.estimators] = filled;
    bw_free(order);
    bw_free(below);
    *program = made;
    return BW_OK;
}

void bw_program_free(bw_program *program) {
    bw_free(program->first_box);
    bw_free(program->boxes);
    bw_free(program->box_dims);
}

void bw_boxes_zones(const bw_segment *segment, const bw_kernels *kernels, uint32_t b, const bw_ranges *boxes,
                    uint32_t n, uint64_t *overlaps, uint64_t *alive, uint64_t *certain) {
    uint64_t any = 0, whole = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t contained;
        kernels->zones(segment->zone_min, segment->zone_max, segment->zone_stride, b, &boxes[i], &overlaps[i],
                       &contained);
        any |= overlaps[i];
        whole |= contained;
    }
    *alive = any;
    *certain = whole;
}

uint32_t bw_boxes_scan(const uint8_t *block, size_t stride, const bw_kernels *kernels, const bw_ranges *boxes,
                       const uint32_t *box_dims, uint32_t n, const uint64_t *overlaps, uint32_t bit,
                       uint64_t mask[4]) {
    uint32_t dims = 0;
    uint64_t rows[4];
    memset(mask, 0, 4 * sizeof *mask);
    for (uint32_t i = 0; i < n; i++) {
        if (!(overlaps[i] >> bit & 1)) {
            continue;
        }
        dims |= box_dims[i];
        if (kernels->box(block, stride, &boxes[i], rows)) {
            for (int word = 0; word < 4; word++) {
                mask[word] |= rows[word];
            }
        }
    }
    return dims;
}
