/* search_planes.c - a model on the bins of one segment: what the plane kernel runs. */
#include "search.h"

#include <string.h>

/* The smallest class for a number of ranges. */
static uint32_t class_of(uint32_t ranges) {
    uint32_t class = 0;
    while (bw_plane_class_ranges[class] < ranges) {
        class++;
    }
    return class;
}

static size_t code_words(uint32_t class) {
    return 1 + 2 * (size_t)bw_plane_class_ranges[class];
}

int32_t bw_planes_new(const bw_program *program, bw_planes *planes, bw_error *error) {
    uint32_t boxes = bw_program_boxes(program);
    size_t words = 0;
    for (uint32_t i = 0; i < boxes; i++) { /* on bins a box has as many ranges or fewer */
        words += code_words(class_of(program->boxes[i].count));
    }
    bw_planes made = {.boxes = boxes};
    made.order = bw_alloc_array(boxes, sizeof *made.order);
    made.code = bw_alloc_array(words, sizeof *made.code);
    made.overlaps = bw_alloc_array(boxes, sizeof *made.overlaps);
    made.work = bw_alloc_aligned(BW_PLANES_WORK(program->estimators, boxes));
    if (!made.order || !made.code || !made.overlaps || !made.work) {
        bw_planes_free(&made);
        return bw_fail_nomem(error, words * sizeof *made.code);
    }
    *planes = made;
    return BW_OK;
}

void bw_planes_free(bw_planes *planes) {
    bw_free(planes->order);
    bw_free(planes->code);
    bw_free(planes->overlaps);
    bw_free(planes->work);
    memset(planes, 0, sizeof *planes);
}

/* The last bin that begins at or below the value. */
static uint32_t bin_of(const uint8_t bins[BW_BINS], uint8_t value) {
    uint32_t bin = 0;
    for (uint32_t i = 1; i < BW_BINS; i++) {
        bin += bins[i] <= value;
    }
    return bin;
}

/* The ranges of a box on bins, as numbers of bitmaps; returns how many. */
static uint32_t plane_ranges(const bw_segment *segment, const bw_ranges *box, uint16_t bitmaps[2 * BW_DIMS],
                             uint32_t *dims) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < box->count; i++) {
        uint32_t d = box->dim[i];
        uint32_t lo = bin_of(segment->bins[d], box->lo[i]), end = bin_of(segment->bins[d], box->hi[i]) + 1;
        if (lo > 0 || end < BW_BINS) {
            bitmaps[2 * count] = (uint16_t)(64 * (lo > 0 ? 8 * d + lo : BW_PLANES_ALL));
            bitmaps[2 * count + 1] = (uint16_t)(64 * (end < BW_BINS ? 8 * d + end : BW_PLANES_NONE));
            *dims |= (uint32_t)1 << d;
            count++;
        }
    }
    return count;
}

void bw_planes_set(bw_planes *planes, const bw_program *program, uint32_t threshold,
                   const bw_segment *segment) {
    bw_plane_program *to = &planes->program;
    uint16_t bitmaps[2 * BW_DIMS];
    memset(to, 0, sizeof *to);
    to->estimators = program->estimators;
    to->threshold = threshold;
    for (uint32_t i = 0; i < planes->boxes; i++) {
        to->first_box[class_of(plane_ranges(segment, &program->boxes[i], bitmaps, &to->dims)) + 1]++;
    }
    uint32_t filled[BW_PLANE_CLASSES];
    uint16_t *code = planes->code;
    for (uint32_t c = 0; c < BW_PLANE_CLASSES; c++) {
        to->code[c] = code;
        code += to->first_box[c + 1] * code_words(c);
        to->first_box[c + 1] += to->first_box[c];
        filled[c] = to->first_box[c];
    }
    for (uint32_t e = 0; e < program->estimators; e++) {
        for (uint32_t i = program->first_box[e]; i < program->first_box[e + 1]; i++) {
            uint32_t ranges = plane_ranges(segment, &program->boxes[i], bitmaps, &to->dims);
            uint32_t c = class_of(ranges);
            code = to->code[c] + (filled[c] - to->first_box[c]) * code_words(c);
            code[0] = (uint16_t)e;
            memcpy(code + 1, bitmaps, 2 * ranges * sizeof *code);
            for (uint32_t r = ranges; r < bw_plane_class_ranges[c]; r++) {
                code[1 + 2 * r] = 64 * BW_PLANES_ALL;
                code[2 + 2 * r] = 64 * BW_PLANES_NONE;
            }
            planes->order[filled[c]++] = i;
        }
    }
}

void bw_planes_group(bw_planes *planes, const uint64_t *overlaps) {
    for (uint32_t i = 0; i < planes->boxes; i++) {
        planes->overlaps[i] = overlaps[planes->order[i]];
    }
}
