/* search_box.c - boxes: their rows in a sample, the order in which they and their ranges are tried, and their
 * zone tests on 64 blocks. */
#include "search.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES ((size_t)BW_BLOCK_ROWS * BW_DIMS)
#define ORDER_BLOCKS 16 /* of the sample, to order estimators by: at most */
#define ORDER_LEAST 4   /* and at least, */
#define ORDER_TESTS 448 /* so many that this is the number of boxes times blocks */

static void find_live(const bw_index *index, bw_sample_block *block) {
    const bw_dead *dead = &index->dead[block->segment];
    for (uint32_t w = 0; w < 4; w++) {
        uint32_t left = block->rows > 64 * w ? block->rows - 64 * w : 0;
        block->live[w] = left < 64 ? ((uint64_t)1 << left) - 1 : ~(uint64_t)0;
    }
    for (uint32_t r = 0; dead->bits && r < block->rows; r++) {
        block->live[r / 64] &= ~((uint64_t)bw_is_dead(dead, bw_sample_row(index, block, r)) << r % 64);
    }
}

int32_t bw_sample_draw(const bw_index *index, uint32_t most, bw_sample *sample, bw_error *error) {
    uint64_t total = 0, before = 0;
    for (uint32_t s = 0; s < index->info.segments; s++) {
        total += (index->segments[s]->sample_rows + (uint64_t)BW_BLOCK_ROWS - 1) / BW_BLOCK_ROWS;
    }
    uint32_t n = total < most ? (uint32_t)total : most, drawn = 0;
    bw_sample_block *blocks = bw_alloc_array(n, sizeof *blocks);
    if (!blocks) {
        return bw_fail_nomem(error, n * sizeof *blocks);
    }
    for (uint32_t s = 0; s < index->info.segments && drawn < n; s++) {
        const bw_segment *segment = index->segments[s];
        uint64_t own = (segment->sample_rows + (uint64_t)BW_BLOCK_ROWS - 1) / BW_BLOCK_ROWS;
        for (uint64_t at;
             drawn < n && (at = (2 * (uint64_t)drawn + 1) * total / (2 * (uint64_t)n)) < before + own;
             drawn++) {
            uint32_t left = segment->sample_rows - (uint32_t)(at - before) * BW_BLOCK_ROWS;
            blocks[drawn].codes = segment->sample + (at - before) * BLOCK_BYTES;
            blocks[drawn].rows = left < BW_BLOCK_ROWS ? left : BW_BLOCK_ROWS;
            blocks[drawn].segment = s;
            find_live(index, &blocks[drawn]);
        }
        before += own;
    }
    sample->blocks = n;
    sample->block = blocks;
    return BW_OK;
}

uint32_t bw_sample_row(const bw_index *index, const bw_sample_block *block, uint32_t r) {
    const bw_segment *segment = index->segments[block->segment];
    uint64_t number = (uint64_t)(block->codes - segment->sample) / BLOCK_BYTES;
    if (segment->rows <= BW_SAMPLE_ROWS) {
        return (uint32_t)number * BW_BLOCK_ROWS + r;
    }
    uint64_t place = (uint64_t)r * BW_SAMPLE_BLOCKS + number;
    return (uint32_t)((2 * place + 1) * segment->rows / (2 * BW_SAMPLE_ROWS));
}

double bw_sample_total(const bw_index *index, const bw_sample *sample) {
    double rows = 0, seen = 0;
    for (uint32_t s = 0; s < sample->blocks;) {
        uint32_t segment = sample->block[s].segment;
        uint64_t found = 0, drawn = 0;
        for (; s < sample->blocks && sample->block[s].segment == segment; s++) {
            found += sample->block[s].found;
            drawn += sample->block[s].rows;
        }
        rows += (double)found * (double)index->segments[segment]->rows / (double)drawn;
        seen += (double)index->segments[segment]->rows;
    }
    /* segments that the sample leaves out are taken to be like the others */
    double all = (double)index->first_rows[index->info.segments];
    return seen > 0 && seen < all ? rows * all / seen : rows;
}

double bw_sample_estimate(const bw_index *index, bw_sample *sample, const bw_kernels *kernels,
                          const bw_ranges *boxes, uint32_t n) {
    for (uint32_t s = 0; s < sample->blocks; s++) {
        bw_sample_block *block = &sample->block[s];
        uint64_t rest[4], mask[4];
        block->found = 0;
        memcpy(rest, block->live, sizeof rest);
        for (uint32_t i = 0; i < n; i++) {
            kernels->box(block->codes, BW_BLOCK_ROWS, &boxes[i], rest, mask);
            for (int word = 0; word < 4; word++) {
                block->found += (uint32_t)__builtin_popcountll(mask[word]);
                rest[word] &= ~mask[word]; /* of several boxes a row counts once */
            }
        }
    }
    return bw_sample_total(index, sample);
}

/* A box without the ranges that hold every value, the others rarest first. below[d][x]: rows with a value
 * < x. */
static void order_ranges(const bw_ranges *box, const uint32_t below[BW_DIMS][257], bw_ranges *ordered) {
    uint32_t inside[BW_DIMS];
    memset(ordered, 0, sizeof *ordered);
    for (uint32_t i = 0; i < box->count; i++) {
        uint8_t dim = box->dim[i], lo = box->lo[i], hi = box->hi[i];
        if (lo == 0 && hi == 255) {
            continue;
        }
        uint32_t rows = below[dim][hi + 1] - below[dim][lo];
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
    double rows;
    uint32_t estimator;
} ranked;

static int by_rows(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->rows != y->rows) {
        return x->rows < y->rows ? -1 : 1;
    }
    return x->estimator < y->estimator ? -1 : x->estimator > y->estimator;
}

/* By the largest segment: good enough for an order. */
static void count_below(const bw_index *index, uint32_t below[BW_DIMS][257]) {
    const bw_segment *largest = NULL;
    for (uint32_t s = 0; s < index->info.segments; s++) {
        if (!largest || index->segments[s]->rows > largest->rows) {
            largest = index->segments[s];
        }
    }
    for (int d = 0; largest && d < BW_DIMS; d++) {
        for (int x = 0; x < 256; x++) {
            below[d][x + 1] = below[d][x] + largest->histograms[d][x];
        }
    }
}

int32_t bw_program_make(const bw_index *index, const bw_model *model, const bw_kernels *kernels,
                        bw_program *program, bw_error *error) {
    uint32_t boxes = bw_model_boxes(model);
    uint32_t blocks = boxes > 0 ? ORDER_TESTS / boxes : ORDER_BLOCKS;
    blocks = blocks < ORDER_LEAST ? ORDER_LEAST : blocks > ORDER_BLOCKS ? ORDER_BLOCKS : blocks;
    bw_program made = {0};
    bw_sample sample = {0};
    int32_t status = bw_sample_draw(index, blocks, &sample, error);
    if (status != BW_OK) {
        return status;
    }
    ranked *order = bw_alloc_array(model->estimators, sizeof *order);
    uint32_t (*below)[257] = bw_alloc_zero(BW_DIMS, sizeof *below);
    made.first_box = bw_alloc_array((size_t)model->estimators + 1, sizeof *made.first_box);
    made.boxes = bw_alloc_array(boxes, sizeof *made.boxes);
    made.box_dims = bw_alloc_array(boxes, sizeof *made.box_dims);
    if (!order || !below || !made.first_box || !made.boxes || !made.box_dims) {
        bw_free(sample.block);
        bw_free(order);
        bw_free(below);
        bw_program_free(&made);
        return bw_fail_nomem(error, boxes * sizeof *made.boxes);
    }
    count_below(index, below);
    for (uint32_t e = 0; e < model->estimators; e++) {
        uint32_t first = model->first_box[e], n = model->first_box[e + 1] - first;
        if (n > 0) {
            double rows = bw_sample_estimate(index, &sample, kernels, model->boxes + first, n);
            order[made.estimators++] = (ranked){rows, e};
        }
    }
    qsort(order, made.estimators, sizeof *order, by_rows);
    uint32_t filled = 0;
    for (uint32_t i = 0; i < made.estimators; i++) {
        made.first_box[i] = filled;
        uint32_t e = order[i].estimator;
        for (uint32_t b = model->first_box[e]; b < model->first_box[e + 1]; b++, filled++) {
            order_ranges(&model->boxes[b], (const uint32_t (*)[257])below, &made.boxes[filled]);
            made.box_dims[filled] = 0;
            for (uint32_t r = 0; r < made.boxes[filled].count; r++) {
                made.box_dims[filled] |= (uint32_t)1 << made.boxes[filled].dim[r];
            }
            made.dims |= made.box_dims[filled];
        }
    }
    made.first_box[made.estimators] = filled;
    bw_free(sample.block);
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
