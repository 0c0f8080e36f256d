/* kernels_learn.h - inner loops of learning, the same C for every instruction set: included by each
 * kernels_*.c and compiled with its flags. The order of every sum is that of the text, whatever the width of
 * registers, so that all give the same doubles. */
#ifndef BW_KERNELS_LEARN_H
#define BW_KERNELS_LEARN_H

#include <math.h>
#include <string.h>

#define LEARN_LOOP _Pragma("GCC ivdep")

/* e^x for |x| <= 30 */
static inline double learn_exponential(double x) {
    double k = floor(x * 1.4426950408889634 + 0.5);
    double r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10;
    double value = 1 / 6227020800.0;
    value = value * r + 1 / 479001600.0;
    value = value * r + 1 / 39916800.0;
    value = value * r + 1 / 3628800.0;
    value = value * r + 1 / 362880.0;
    value = value * r + 1 / 40320.0;
    value = value * r + 1 / 5040.0;
    value = value * r + 1 / 720.0;
    value = value * r + 1 / 120.0;
    value = value * r + 1 / 24.0;
    value = value * r + 1 / 6.0;
    value = value * r + 1 / 2.0;
    value = value * r + 1 / 1.0;
    value = value * r + 1 / 1.0;
    uint64_t bits = (uint64_t)((int64_t)k + 1023) << 52; /* 2^k */
    double power;
    memcpy(&power, &bits, sizeof power);
    return value * power;
}

static void logistics(const double *columns, size_t stride, size_t n, const double *b, uint32_t dims,
                      double *restrict p) {
    for (size_t i = 0; i < n; i++) {
        p[i] = b[dims];
    }
    for (uint32_t d = 0; d < dims; d++) {
        const double *restrict column = columns + d * stride;
        double factor = b[d];
        LEARN_LOOP
        for (size_t i = 0; i < n; i++) {
            p[i] += column[i] * factor;
        }
    }
    for (size_t i = 0; i < n; i++) {
        double x = p[i];
        x = x < -30 ? -30 : x > 30 ? 30 : x;
        p[i] = 1 / (1 + learn_exponential(-x));
    }
}

static void gradients(const double *rows, uint32_t stride, size_t n, const double *factors,
                      double *restrict gradient) {
    memset(gradient, 0, stride * sizeof *gradient);
    for (size_t i = 0; i < n; i++) {
        const double *restrict row = rows + i * stride;
        double factor = factors[i];
        LEARN_LOOP
        for (uint32_t j = 0; j < stride; j++) {
            gradient[j] += factor * row[j];
        }
    }
}

static void hessians(const double *rows, uint32_t stride, size_t n, const double *curvatures, uint32_t dims,
                     double *restrict hessian) {
    memset(hessian, 0, (dims + 1) * (size_t)stride * sizeof *hessian);
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const double *restrict a = rows + i * stride, *restrict b = a + stride, *restrict c = b + stride,
                               *restrict e = c + stride;
        for (uint32_t d = 0; d <= dims; d++) {
            double *restrict to = hessian + d * (size_t)stride;
            double fa = curvatures[i] * a[d], fb = curvatures[i + 1] * b[d], fc = curvatures[i + 2] * c[d],
                   fe = curvatures[i + 3] * e[d];
            uint32_t end = (d + 8) / 8 * 8; /* the lower half */
            LEARN_LOOP
            for (uint32_t j = 0; j < end; j++) {
                to[j] = (((to[j] + fa * a[j]) + fb * b[j]) + fc * c[j]) + fe * e[j];
            }
        }
    }
    for (; i < n; i++) {
        const double *restrict a = rows + i * stride;
        for (uint32_t d = 0; d <= dims; d++) {
            double *restrict to = hessian + d * (size_t)stride, factor = curvatures[i] * a[d];
            uint32_t end = (d + 8) / 8 * 8;
            LEARN_LOOP
            for (uint32_t j = 0; j < end; j++) {
                to[j] += factor * a[j];
            }
        }
    }
}

static void values(const uint8_t *columns, size_t stride, size_t n, uint32_t dims, const double *linear,
                   const double *square, double constant, double *restrict to) {
    for (size_t i = 0; i < n; i++) {
        to[i] = constant;
    }
    for (uint32_t d = 0; d < dims; d++) {
        const uint8_t *restrict column = columns + d * stride;
        double a = linear[d], b = square[d];
        LEARN_LOOP
        for (size_t i = 0; i < n; i++) {
            double x = column[i];
            to[i] += (a + b * x) * x;
        }
    }
}

static void whole_values(const uint8_t *columns, size_t stride, size_t n, uint32_t dims,
                         const int32_t *linear, const int32_t *square, int32_t constant,
                         int32_t *restrict to) {
    for (size_t first = 0; first < n; first += 1024) {
        size_t end = first + 1024 < n ? first + 1024 : n;
        for (size_t i = first; i < end; i++) {
            to[i] = constant;
        }
        for (uint32_t d = 0; d < dims; d++) {
            const uint8_t *restrict column = columns + d * stride;
            uint32_t a = (uint32_t)linear[d], b = (uint32_t)square[d];
            LEARN_LOOP
            for (size_t i = first; i < end; i++) {
                uint32_t x = column[i];
                to[i] = (int32_t)((uint32_t)to[i] + (a + b * x) * x);
            }
        }
    }
}

#endif
