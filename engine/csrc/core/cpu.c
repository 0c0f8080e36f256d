/* cpu.c - which kernels this CPU can run, and which of them are in use. */
#include "kernels.h"

#include <stdatomic.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
/* __builtin_cpu_supports asks the operating system (XGETBV) too, whether it saves the wide registers. */
bool bw_cpu_has_avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt") &&
           __builtin_cpu_supports("sse4.2");
}

bool bw_cpu_has_avx512(void) {
    return bw_cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool bw_cpu_has_vbmi2(void) {
    return __builtin_cpu_supports("avx512vbmi2");
}
#else
bool bw_cpu_has_avx2(void) {
    return false;
}
bool bw_cpu_has_avx512(void) {
    return false;
}
bool bw_cpu_has_vbmi2(void) {
    return false;
}
#endif

bool bw_cpu_has_neon(void) {
#if defined(__aarch64__)
    return true; /* part of the base architecture */
#else
    return false;
#endif
}

static bool always(void) {
    return true;
}

static const struct {
    const char *name;
    bool (*cpu_has)(void);
    const bw_kernels *(*table)(void);
} choices[] = {
    /* best first */
    {"avx512", bw_cpu_has_avx512, bw_kernels_avx512},
    {"avx2", bw_cpu_has_avx2, bw_kernels_avx2},
    {"neon", bw_cpu_has_neon, bw_kernels_neon},
    {"generic", always, bw_kernels_generic},
};
#define CHOICES (sizeof choices / sizeof choices[0])

static _Atomic(const bw_kernels *) in_use;

static const bw_kernels *best(void) {
    for (size_t i = 0; i + 1 < CHOICES; i++) {
        const bw_kernels *table = choices[i].table();
        if (table && choices[i].cpu_has()) {
            return table;
        }
    }
    return bw_kernels_generic();
}

const bw_kernels *bw_kernels_get(void) {
    const bw_kernels *table = atomic_load_explicit(&in_use, memory_order_acquire);
    if (!table) {
        /* A selection that comes between the load and the store is kept. */
        const bw_kernels *chosen = best();
        if (atomic_compare_exchange_strong(&in_use, &table, chosen)) {
            table = chosen;
        }
    }
    return table;
}

int32_t bw_isa_select(const char *name, bw_error *error) {
    const bw_kernels *table = NULL;
    if (!name || !name[0]) {
        table = best();
    }
    for (size_t i = 0; !table && i < CHOICES; i++) {
        if (strcmp(name, choices[i].name) != 0) {
            continue;
        }
        table = choices[i].table();
        if (!table || !choices[i].cpu_has()) {
            return bw_fail(error, BW_INVALID,
                           "this computer cannot run the %s kernels; the best it can run are %s", name,
                           best()->name);
        }
    }
    if (!table) {
        return bw_fail(error, BW_INVALID,
                       "there is no instruction set \"%.40s\": choose generic, avx2, avx512 or neon, or "
                       "nothing for the best",
                       name);
    }
    atomic_store_explicit(&in_use, table, memory_order_release);
    return BW_OK;
}

const char *bw_isa(void) {
    return bw_kernels_get()->name;
}
